"""Small models, each with one way of dropping, and the helpers of these tests."""

from __future__ import annotations

import torch
from torch import nn

import sitout

WIDE = (64, 32, 16)
IMAGE = (32, 16, 6, 6)
VOLUME = (16, 16, 3, 4, 5)


def made_of(function):
    """Return a module whose forward is a function of (self, x); it has a parameter and a rate."""

    class Made(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))
            self.p = 0.25
            self.drop_rate = 0.25

        def forward(self, x):
            return self.scale * function(self, x)

    return Made()


def sites(model, *inputs, **kwargs):
    """Run the probe and return what it finds; the seed is fixed, and sites are printed."""
    torch.manual_seed(3)
    found = sitout.sites(model, *inputs, **kwargs)
    print(found)  # noqa: T201
    return found


def only(model, *inputs, **kwargs):
    """Return the one site of a model."""
    found = sites(model, *inputs, **kwargs)
    assert len(found) == 1
    return found[0]


def wide(shape=WIDE):
    """Return a tensor without zeros."""
    return torch.randn(shape).abs() + 0.5
