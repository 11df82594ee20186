"""Small models, each with one way of dropping, and the helpers of these tests."""

from __future__ import annotations

import torch
from torch import nn

import sitout

P = 0.25
WIDE = (64, 32, 16)
IMAGE = (32, 16, 6, 6)
VOLUME = (16, 16, 3, 4, 5)
HEADS = (4, 2, 16, 8)  # of an attention: [B, H, L, E]


class Made(nn.Module):
    """A module with a parameter and a rate, whose forward is a function of (self, x)."""

    def __init__(self, function):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.function = function
        self.p = P
        self.add_module("child", nn.Identity())

    def forward(self, x):
        return self.scale * self.function(self, x)


def sites(model, *inputs, **kwargs):
    """Run the probe and return what it finds; the seed is fixed."""
    torch.manual_seed(3)
    return sitout.sites(model, *inputs, **kwargs)


def only(model, *inputs, **kwargs):
    """Return the one site of a model."""
    found = sites(model, *inputs, **kwargs)
    assert len(found) == 1, f"\n{found}"
    return found[0]


def positive(shape=WIDE):
    """Return a tensor without zeros."""
    return torch.randn(shape).abs() + 0.5


def near(site, p=P):
    """Return whether the interval of a site is about its rate, and narrow enough to tell."""
    seen = site.measured
    slack = 4.5 * (p * (1 - p) / seen.bits) ** 0.5
    return abs(seen.rate - p) <= slack and seen.low <= seen.rate <= seen.high
