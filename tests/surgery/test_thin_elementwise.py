"""thin: what may stand between the layers of a chain, on each side of the dropout."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sitout import MaskClock, thin
from surgery.chains import WIDE

ACTIVATIONS = [
    *(nn.ReLU, nn.LeakyReLU, nn.Identity, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU),
    *(nn.Mish, nn.Sigmoid, nn.LogSigmoid, nn.Tanh, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid),
    *(nn.ReLU6, nn.Softplus, nn.Softsign, nn.Softshrink, nn.Hardshrink, nn.Tanhshrink),
    lambda: nn.Threshold(0.1, 0.2),
]
FUNCTIONS = [
    *(F.relu, F.relu_, torch.relu, torch.relu_, F.leaky_relu, F.gelu, F.silu, F.mish, F.elu),
    *(F.selu, F.celu, F.relu6, F.hardtanh, F.hardswish, F.hardsigmoid, F.softplus, F.softsign),
    *(F.logsigmoid, F.tanhshrink, F.softshrink, F.hardshrink, F.tanh, F.sigmoid),
    *(torch.tanh, torch.sigmoid, torch.exp, torch.sin, torch.square, torch.abs, torch.neg),
    lambda x: F.gelu(x, approximate="tanh"),
    lambda x: F.threshold(x, 0.1, 0.2),
    lambda x: x.relu().tanh().sigmoid().abs().clamp(0.6, 0.7),
    lambda x: x.mul(2.0).add_(1).div(3) - 1,
    lambda x: 1.0 - (2 * x + 1) / 2.0 + (-x) ** 2,
    lambda x: x * torch.sigmoid(1.702 * x),
    lambda x: x.float().contiguous().clone().to(torch.float64),
    lambda x: F.leaky_relu(input=x, negative_slope=0.2),
]
KEEPING = [
    *(nn.ReLU(), nn.LeakyReLU(0.1), nn.PReLU(), nn.Identity(), F.relu, torch.relu, torch.abs),
    lambda x: 2 * x / 3,
    lambda x: x + x.relu(),
    lambda x: -x.mul(0.5).neg().contiguous(),
]
POOLS = [
    *(nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d(2)),
    lambda x: F.max_pool2d(x, 2),
    lambda x: F.avg_pool2d(x, 2, padding=1),
    lambda x: F.adaptive_avg_pool2d(x, 1),
    lambda x: F.adaptive_max_pool2d(x, (2, 1)),
    lambda x: torch.max_pool2d(x, 2, stride=1, padding=1),
]


class Between(nn.Module):
    """A chain with one thing before the dropout and one behind it."""

    def __init__(self, first, before, drop, behind, last):
        super().__init__()
        self.first, self.before, self.drop = first, before, drop
        self.behind, self.last = behind, last

    def forward(self, x):
        return self.last(self.behind(self.drop(self.before(self.first(x)))))


def check_thinned(model, x):
    """The thinned form gives what the masked one does, and gradients."""
    model = model.double()
    assert thin(model, form="thinned").sites == ["drop"]
    masked = copy.deepcopy(model)
    masked.drop.form = "masked"
    for one in (model, masked):
        with MaskClock(one, seed=2).at(0):
            one(x.double()).sum().backward()
    with MaskClock(model).at(1), MaskClock(masked).at(1):
        torch.testing.assert_close(model(x.double()), masked(x.double()))
    for mine, theirs in zip(model.parameters(), masked.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)


@pytest.mark.parametrize("made", ACTIVATIONS)
def test_activation_layers_may_stand_before_the_dropout(made):
    parts = (nn.Linear(8, WIDE), made(), nn.Dropout(0.5), nn.Identity(), nn.Linear(WIDE, 4))
    check_thinned(Between(*parts), torch.randn(5, 8))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_elementwise_functions_may_stand_before_the_dropout(function):
    parts = (nn.Linear(8, WIDE), function, nn.Dropout(0.5), nn.Identity(), nn.Linear(WIDE, 4))
    check_thinned(Between(*parts), torch.randn(5, 8))


@pytest.mark.parametrize("function", KEEPING)
def test_what_keeps_the_scale_may_stand_behind_the_dropout(function):
    parts = (nn.Linear(8, WIDE), torch.tanh, nn.Dropout(0.5), function, nn.Linear(WIDE, 4))
    check_thinned(Between(*parts), torch.randn(5, 8))


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("behind", [False, True])
def test_pools_of_each_channel_may_stand_on_both_sides(pool, behind):
    around = (torch.tanh, pool) if behind else (pool, F.relu)
    drop, last = nn.Dropout2d(0.5), nn.Conv2d(WIDE, 4, 1)
    parts = (nn.Conv2d(3, WIDE, 3), around[0], drop, around[1], last)
    check_thinned(Between(*parts), torch.randn(5, 3, 8, 8))


@pytest.mark.parametrize(
    "function",
    [
        *(nn.Tanh(), nn.PReLU(WIDE), F.gelu, torch.tanh, torch.square, torch.exp, torch.cos),
        lambda x: x + 1,
        lambda x: 1 / x,
        lambda x: x * x,
        lambda x: x.clamp(-1, 1),
    ],
)
def test_what_changes_the_scale_may_not_stand_behind(function):
    parts = (nn.Linear(8, WIDE), torch.tanh, nn.Dropout(0.5), function, nn.Linear(WIDE, 4))
    with pytest.raises(ValueError, match=r"first -> drop -> last|first -> drop: "):
        thin(Between(*parts))


def test_a_prelu_with_a_slope_for_each_unit_is_left():
    parts = (nn.Linear(8, WIDE), nn.PReLU(WIDE), nn.Dropout(0.5), nn.Identity(), nn.Linear(WIDE, 4))
    with pytest.raises(ValueError, match=r"before \(PReLU\) stands before it"):
        thin(Between(*parts))
