"""Every rule: the smallest model that shows the mistake, and its repaired twin."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import sitout

X = torch.linspace(-1.0, 1.0, 8 * 64).reshape(8, 64)
IMAGES = torch.linspace(-1.0, 1.0, 4 * 8 * 12 * 12).reshape(4, 8, 12, 12)
TOKENS = torch.linspace(-1.0, 1.0, 4 * 10 * 16).reshape(4, 10, 16)


def found(model, *inputs):
    """Return the rules, severities and sites of what an audit finds under a fixed seed."""
    torch.manual_seed(0)
    return {(one.rule, one.severity, one.site) for one in sitout.audit(model, *inputs)}


class Calls(nn.Module):
    """A module whose forward is a function of it and the input."""

    def __init__(self, forward, **attributes):
        super().__init__()
        for name, value in attributes.items():
            setattr(self, name, value)
        self.run = forward

    def forward(self, *inputs):
        return self.run(self, *inputs)


def attention(self, x, dropout_p):
    q = x[:, None]
    return F.scaled_dot_product_attention(q, q, q, dropout_p=dropout_p)


def path(p, shape):
    def run(self, x):
        if not self.training:
            return x
        mask = x.new_empty(shape(x)).bernoulli_(1 - p)
        return x * mask / (1 - p)

    return run


class KeepsMask(nn.Module):
    def __init__(self, again):
        super().__init__()
        self.again, self.mask = again, None

    def forward(self, x):
        if not self.training:
            return x
        if self.mask is None or self.again:
            self.mask = torch.bernoulli(torch.full_like(x, 0.5)) * 2
        return x * self.mask


class DropsInEval(nn.Module):
    """As Baal's ConsistentDropout: a mask that eval() of a parent does not take away."""

    def __init__(self):
        super().__init__()
        self.p, self.mask = 0.5, None

    def forward(self, x):
        if self.training:
            self.mask = torch.bernoulli(torch.full_like(x, 0.5)) * 2
        return x if self.mask is None else x * self.mask


DropsInEval.__name__ = "ConsistentDropout"


class WeightDrop(nn.Module):
    def __init__(self, *, for_good):
        super().__init__()
        self.weight, self.for_good = nn.Parameter(torch.ones(64, 64)), for_good

    def forward(self, x):
        if self.training and self.for_good:
            with torch.no_grad():
                self.weight.mul_(torch.bernoulli(torch.full_like(self.weight, 0.5)) * 2)
            return x @ self.weight
        return x @ F.dropout(self.weight, 0.5, self.training)


class LayerDrop(nn.Module):
    def __init__(self, draw):
        super().__init__()
        self.layer, self.draw = nn.Linear(64, 64), draw

    def forward(self, x):
        if self.training and self.draw() < 0.25:
            return x
        return x + self.layer(x)


def half_off():
    model = nn.Sequential(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True))
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def mc(model, kinds):
    model.eval()
    for module in model.modules():
        if isinstance(module, kinds):
            module.training = True
    return model


def with_norm():
    return nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.Dropout(0.5))


def left(model, name, mode):
    model.train(not mode)
    model.get_submodule(name).training = mode
    return model


class Block(nn.Module):
    """A residual branch with stochastic depth; the samples lie along ``batch_dim``."""

    def __init__(self, batch_dim, size):
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=batch_dim == 0)
        self.drop = sitout.nn.DropPath(0.5, batch_dim=size)

    def forward(self, x):
        return x + self.drop(self.attention(x, x, x, need_weights=False)[0])


def dropblock(size, p, gamma=None):
    class DropBlock2d(nn.Module):
        def __init__(self):
            super().__init__()
            self.p, self.block_size = p, size

        def forward(self, x):
            if not self.training:
                return x
            seeds = torch.bernoulli(torch.full_like(x, gamma or p / size**2))
            blocks = F.max_pool2d(seeds, size, 1, size // 2)
            return x * (1 - blocks) * blocks.numel() / (1 - blocks).sum()

    return nn.Sequential(DropBlock2d())


def repeated(preserve):
    def run(self, x):
        return checkpoint(self.layers, x, use_reentrant=False, preserve_rng_state=preserve)

    return Calls(run, layers=nn.Sequential(nn.Linear(64, 64), nn.Dropout(0.5)))


def in_place_residual(inplace):
    def run(self, x):
        y = self.layer(x)
        return y + self.drop(y)

    return Calls(run, layer=nn.Linear(64, 64), drop=nn.Dropout(0.5, inplace=inplace))


def alpha_like(scale):
    def run(self, x):
        if not self.training:
            return x
        return x * (torch.rand_like(x) > 0.25) * scale

    return Calls(run, weight=nn.Parameter(torch.ones(1)))


CASES = {
    "A1 without training": (
        Calls(lambda self, x: F.dropout(x, 0.5)),
        Calls(lambda self, x: F.dropout(x, 0.5, self.training)),
        X,
        {("A1", "error", "")},
    ),
    "A1 made in forward": (
        Calls(lambda self, x: nn.Dropout(0.5)(x)),
        Calls(lambda self, x: self.drop(x), drop=nn.Dropout(0.5)),
        X,
        {("A1", "error", "<Dropout>")},
    ),
    "A2": (
        Calls(lambda self, x: attention(self, x, 0.5)),
        Calls(lambda self, x: attention(self, x, 0.5 if self.training else 0.0)),
        TOKENS,
        {("A2", "error", "")},
    ),
    "A3 mask": (
        Calls(lambda self, x: x * torch.bernoulli(torch.full_like(x, 0.5)) * 2, w=nn.Linear(1, 1)),
        Calls(
            lambda self, x: (
                x * torch.bernoulli(torch.full_like(x, 0.5)) * 2 if self.training else x
            ),
            w=nn.Linear(1, 1),
        ),
        X,
        {("A3", "error", "")},
    ),
    "A3 noise": (
        Calls(lambda self, x: x + torch.randn_like(x)),
        Calls(lambda self, x: x + torch.randn_like(x) if self.training else x),
        X,
        {("A3", "error", "")},
    ),
    "A4 off": (
        left(with_norm(), "2", False),
        with_norm().train(),
        X,
        {("A4", "warning", "2")},
    ),
    "A4 on": (
        left(nn.Sequential(nn.Linear(64, 64), nn.Dropout(0.5)), "1", True),
        nn.Sequential(nn.Linear(64, 64), nn.Dropout(0.5)).eval(),
        X,
        {("A4", "warning", "1")},
    ),
    "A5": (
        Calls(lambda self, x: F.dropout(x, 0.5, training=False)),
        Calls(lambda self, x: F.dropout(x, 0.5, training=self.training)),
        X,
        {("A5", "error", "")},
    ),
    "A5 did not run": (
        Calls(lambda self, x: x, drop=nn.Dropout(0.5)),
        Calls(lambda self, x: self.drop(x), drop=nn.Dropout(0.5)),
        X,
        {("A5", "note", "drop")},
    ),
    "A6": (
        pytest.param("lstm", 1),
        nn.LSTM(16, 16, num_layers=2, dropout=0.5),
        TOKENS,
        {("A6", "warning", "")},
    ),
    "A7 off": (
        half_off(),
        nn.Sequential(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)),
        TOKENS,
        {("A7", "note", "0.self_attn")},
    ),
    "A7 on": (
        mc(nn.Sequential(nn.MultiheadAttention(16, 2, 0.5), nn.Dropout(0.5)), nn.Dropout),
        nn.Sequential(nn.MultiheadAttention(16, 2, 0.5), nn.Dropout(0.5)).eval(),
        None,
        {("A7", "warning", "0"), ("A4", "warning", "1")},
    ),
    "A8": (
        nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(64)),
        nn.Sequential(nn.BatchNorm1d(64), nn.Dropout(0.5)),
        X,
        {("A8", "warning", "0")},
    ),
    "A8 through weights": (
        nn.Sequential(nn.Dropout(0.5), nn.Linear(64, 64), nn.ReLU(), nn.BatchNorm1d(64)),
        nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.BatchNorm1d(64), nn.Dropout(0.5)),
        X,
        {("A8", "note", "0")},
    ),
    "A9": (
        mc(with_norm(), (nn.Dropout, nn.BatchNorm1d)),
        with_norm().eval(),
        X,
        {("A9", "error", "1"), ("A4", "warning", "2")},
    ),
    "A10 too few dims": (
        nn.Sequential(nn.Dropout1d(0.5)),
        nn.Sequential(nn.Dropout1d(0.5)),
        (X, TOKENS),
        {("A10", "error", "0")},
    ),
    "A10 time steps": (
        nn.Sequential(nn.Dropout1d(0.5), nn.Linear(16, 16)),
        nn.Sequential(sitout.nn.Dropout(0.5, shared_dims=(1,)), nn.Linear(16, 16)),
        TOKENS,
        {("A10", "warning", "0")},
    ),
    "A11": (
        Block(batch_dim=1, size=0),
        Block(batch_dim=1, size=1),
        TOKENS,
        {("A11", "error", "drop")},
    ),
    "A13": (
        nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.5, inplace=True)),
        nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.5)),
        X,
        {("A13", "error", "2")},
    ),
    "A13 residual": (
        in_place_residual(True),
        in_place_residual(False),
        X,
        {("A13", "error", "drop")},
    ),
    "A14 plain": (
        nn.Sequential(nn.Linear(64, 64), nn.SELU(), nn.Dropout(0.5)),
        nn.Sequential(nn.Linear(64, 64), nn.SELU(), nn.AlphaDropout(0.5)),
        X,
        {("A14", "warning", "2")},
    ),
    "A14 alpha": (
        nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.AlphaDropout(0.5)),
        nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.5)),
        X,
        {("A14", "warning", "2")},
    ),
    "A15": (
        repeated(False),
        repeated(True),
        X,
        {("A15", "error", "layers.1")},
    ),
    "A16 torch": (
        LayerDrop(lambda: torch.rand([])),
        nn.Sequential(sitout.nn.DropPath(0.25)),
        X,
        {("A16", "note", "")},
    ),
    "A16 python": (
        LayerDrop(random.random),
        nn.Sequential(sitout.nn.DropPath(0.25)),
        X,
        {("A16", "note", "")},
    ),
    "A16 numpy": (
        LayerDrop(np.random.random),
        nn.Sequential(sitout.nn.DropPath(0.25)),
        X,
        {("A16", "note", "")},
    ),
    "A22 range": (
        nn.Sequential(nn.MultiheadAttention(16, 2, dropout=1.7)),
        nn.Sequential(nn.MultiheadAttention(16, 2, dropout=0.7)),
        None,
        {("A22", "error", "0")},
    ),
    "A22 nan": (
        nn.Sequential(nn.Dropout(float("nan"))),
        nn.Sequential(nn.Dropout(0.5)),
        None,
        {("A22", "error", "0")},
    ),
    "A22 bool": (
        nn.Sequential(nn.Dropout(True)),
        nn.Sequential(nn.Dropout(0.5)),
        None,
        {("A22", "error", "0")},
    ),
    "A22 keep": (
        nn.Sequential(nn.Dropout(0.9)),
        nn.Sequential(nn.Dropout(0.1)),
        X,
        {("A22", "note", "0")},
    ),
    "A25": (
        alpha_like(1.0),
        alpha_like(1 / 0.75),
        X,
        {("A25", "warning", "")},
    ),
    "A28": (KeepsMask(again=False), KeepsMask(again=True), X, {("A28", "error", "")}),
    "A28 in evaluation": (
        nn.Sequential(DropsInEval()),
        nn.Sequential(nn.Dropout(0.5)),
        X,
        {("A28", "error", "0")},
    ),
    "A29": (
        WeightDrop(for_good=True),
        WeightDrop(for_good=False),
        X,
        {("A29", "error", "")},
    ),
    "A30 too large": (dropblock(13, 0.1), dropblock(3, 0.1), IMAGES, {("A30", "error", "0")}),
    "A30 too much": (dropblock(3, 0.1, 0.1), dropblock(3, 0.1), IMAGES, {("A30", "warning", "0")}),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore:dropout option adds dropout after all but last:UserWarning")
@pytest.mark.filterwarnings("ignore:dropout1d. Received a 2-D input:UserWarning")
def test_the_mistake_is_found_and_its_repaired_twin_is_clean(name):
    model, twin, inputs, expected = CASES[name]
    if name == "A6":
        model = nn.LSTM(16, 16, num_layers=1, dropout=0.5)
    first, second = inputs if isinstance(inputs, tuple) else (inputs, inputs)
    rules = {name.split()[0], "A4"}
    assert found(model, *() if first is None else (first,)) == expected
    assert {
        hit for hit in found(twin, *() if second is None else (second,)) if hit[0] in rules
    } == set()
