"""The models on which other libraries return no spread, or a wrong one, or spoil the model.

For each the samples have the moments of a plain loop in which torch itself drops.
"""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import sitout

SAMPLES = 400


class Mean(nn.Module):
    """The mean over places of what a sequence model returns."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x):
        out = self.inner(x)
        return (out[0] if isinstance(out, tuple) else out).mean(1)[:, :4]


class Functional(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.4, self.training)


class Attention(nn.Module):
    def forward(self, x):
        p = 0.4 if self.training else 0.0
        return F.scaled_dot_product_attention(x, x, x, dropout_p=p)


def encoder():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.3, batch_first=True)
    return nn.TransformerEncoder(layer, 2)


CASES = {
    "nn.TransformerEncoder": encoder,
    "F.dropout(self.training)": Functional,
    "scaled_dot_product_attention": Attention,
    "nn.LSTM": lambda: nn.LSTM(8, 8, 2, dropout=0.4, batch_first=True),
    "DropPath": lambda: sitout.nn.DropPath(0.4),
}


def moments(model, x):
    """Of torch's own draws, in a loop."""
    model.eval()
    for module in model.modules():
        module.training = not isinstance(module, nn.BatchNorm1d)
    with torch.no_grad():
        found = torch.stack([model(x) for _ in range(SAMPLES)])
    model.eval()
    return found.mean(0), found.std(0)


@pytest.mark.parametrize("name", CASES)
def test_the_spread_is_that_of_a_loop_with_dropout_on(name):
    torch.manual_seed(3)
    model, x = Mean(CASES[name]()).eval(), torch.randn(3, 5, 8)
    with torch.no_grad():
        found = sitout.mc.predict(model, x, samples=SAMPLES)
    mean, std = moments(model, x)
    assert found.std.min() > 0.0
    error = (found.std**2 + std**2).div(SAMPLES).sqrt()
    assert ((found.mean - mean).abs() / error).max() < 5.5  # of 12 numbers: by chance 5e-7
    assert (found.std / std).log().abs().max() < 5.0 * math.sqrt(2.0 / SAMPLES)


def test_batch_norm_is_left_as_it_is_and_uses_what_it_learnt():
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.4), nn.Linear(8, 2))
    model(torch.randn(64, 6))
    model.train()
    before, x = copy.deepcopy(model.state_dict()), 10.0 + torch.randn(5, 6)
    found = sitout.mc.predict(model, x, samples=SAMPLES)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    mean, std = moments(model, x)
    error = (found.std**2 + std**2).div(SAMPLES).sqrt()
    assert ((found.mean - mean).abs() / error).max() < 5.5


def test_a_ragged_last_batch_has_the_shared_masks_of_the_others():
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 2))
    x = torch.randn(1, 6).expand(7, 6).contiguous()
    batches = x.split(3)  # 3, 3 and 1
    found = sitout.mc.predict(model, iter(batches), samples=9, masks="shared", return_samples=True)
    assert found.samples is not None
    assert found.samples.std(0).min() > 0.0
    assert torch.allclose(found.samples, found.samples[:, :1].expand(9, 7, 2), atol=1e-6)


def test_an_exception_in_mid_prediction_leaves_all_as_it_was():
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
    model.train()
    before, calls = copy.deepcopy(model.state_dict()), 0

    def failing(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls >= 4:
            raise ArithmeticError("in mid-prediction")

    hook = model[3].register_forward_hook(failing)
    with pytest.raises(ArithmeticError, match="in mid-prediction"):
        sitout.mc.predict(model, torch.randn(5, 6), samples=9)
    hook.remove()
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert torch.backends.mha.get_fastpath_enabled()
