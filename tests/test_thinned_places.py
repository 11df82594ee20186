"""Thinned layers where rows, groups and dtypes are not those of the usual case."""

from __future__ import annotations

import copy

import pytest
import torch

import sitout
from sitout.nn import DropResidual, ThinnedDropout, ThinnedLinear


def forms(model, *sites):
    """Return the model in thinned and in masked form, under clocks of one seed."""
    other = copy.deepcopy(model)
    for one, form in ((model, "thinned"), (other, "masked")):
        for name in sites:
            one.get_submodule(name).form = form
    return [(one, sitout.MaskClock(one, seed=3)) for one in (model, other)]


@pytest.mark.parametrize("batch", [16, 8])
def test_rows_in_the_second_dim_that_fall_into_two_groups_have_the_units_of_their_own(batch):
    layer = torch.nn.TransformerEncoderLayer(16, 2, 64, dropout=0.0).double()
    layer.dropout.p = 0.25
    sitout.thin(layer)
    x = torch.randn(16, batch, 16, dtype=torch.float64)
    made = []
    for model, clock in forms(layer, "dropout"):
        with clock.at(0, rows=torch.arange(3, 3 + batch)):
            made.append(model(x))
    torch.testing.assert_close(*made)


def test_batch_norm_in_a_chain_takes_micro_batches_of_any_size():
    model = torch.nn.Sequential(
        torch.nn.Conv1d(3, 100, 3),
        torch.nn.BatchNorm1d(100),
        torch.nn.ReLU(),
        torch.nn.Dropout1d(0.5),
        torch.nn.Conv1d(100, 8, 3),
    ).double()
    sitout.thin(model)
    x = torch.randn(11, 3, 9, dtype=torch.float64)
    made = []
    for one, clock in forms(model, "3"):
        parts = []
        for part, rows in zip(x.chunk(3), torch.arange(11).chunk(3), strict=True):
            with clock.at(0, rows=rows):
                parts.append(one(part))
        made.append(torch.cat(parts))
    torch.testing.assert_close(*made)


def test_groups_of_a_chain_refuse_a_second_source_of_another_rank():
    drop = ThinnedDropout(0.5, groups=4, form="thinned")
    first, second = ThinnedLinear(12, 64, before=drop), ThinnedLinear(12, 64, before=drop)
    ThinnedLinear(64, 2, after=drop)
    first(torch.randn(8, 12))
    with pytest.raises(
        ValueError, match=r"of the same rank and rows\. Got '2 dims with 8 rows and 3"
    ):
        second(torch.randn(8, 8, 12))


def test_one_group_takes_sources_of_any_rank():
    drop = ThinnedDropout(0.5, form="thinned")
    first, second = ThinnedLinear(12, 64, before=drop), ThinnedLinear(12, 64, before=drop)
    last = ThinnedLinear(64, 2, after=drop)
    hidden = drop(torch.tanh(first(torch.randn(8, 12)) + second(torch.randn(8, 8, 12))))
    assert last(hidden).shape == (8, 8, 2)


def test_the_stream_of_a_block_has_the_dtype_of_the_plain_sum_under_autocast():
    class Wide(torch.nn.Module):
        def forward(self, x):
            return x.float() * 1.5

    block = DropResidual(Wide(), 0.5)
    x = torch.randn(6, 4).bfloat16()
    assert block(x).dtype == block.eval()(x).dtype == torch.float32


def test_a_hidden_value_that_is_stored_keeps_its_layers_whole():
    class Stored(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.c = torch.nn.Linear(12, 64), torch.nn.Linear(64, 3)
            self.d = torch.nn.Dropout(0.5)
            self.seen = []

        def forward(self, x):
            hidden = torch.relu(self.a(x))
            self.seen.append(hidden)
            return self.c(self.d(hidden))

    model = Stored()
    with pytest.raises(ValueError, match="stored_in_an_attribute"):
        sitout.thin(model)
    assert model.seen == []


def test_clocked_layers_in_a_thinned_branch_keep_the_addresses_of_their_samples():
    branch = torch.nn.Sequential(torch.nn.Linear(12, 12), sitout.nn.Dropout(0.5))
    block = DropResidual(branch, 0.4).double()
    x = torch.randn(10, 12, dtype=torch.float64)
    for rows in (None, torch.arange(30, 40)):
        made = []
        for model, clock in forms(block, ""):
            with clock.at(0, rows=rows):
                made.append(model(x))
        torch.testing.assert_close(*made)


def test_a_thinned_block_runs_the_function_that_its_attribute_holds_now():
    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.path = torch.nn.Linear(12, 12), sitout.nn.DropPath(0.4)
            self.act = torch.relu

        def forward(self, x):
            return x + self.path(self.act(self.layer(x)))

    block, x = Block(), torch.randn(4, 12)
    sitout.thin(block)
    block.path.p = 0.0
    block(x)
    block.act = torch.tanh
    torch.testing.assert_close(block.train()(x), block.eval()(x))
