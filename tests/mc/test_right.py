"""Forwards that a plan could get wrong: it must not, or must not be made."""

from __future__ import annotations

import copy
import types

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import sitout
from sitout.mc import _predict
from sitout.mc._draws import AllPlay
from sitout.mc._state import State

X = torch.rand(16, 4)


class Of(nn.Module):
    """A function of a dropout and an input."""

    def __init__(self, function):
        super().__init__()
        self.drop, self.function = nn.Dropout(0.5), function

    def forward(self, x):
        return self.function(self.drop, x)


def samples_of(model, x=X, **options):
    made = sitout.mc.predict(model.eval(), x, samples=9, return_samples=True, **options)
    return made.samples


# Rows that meet, and code that asks how many there are

OF_ROWS = {
    "cumsum": lambda h: h.cumsum(0),
    "less the first": lambda h: h - h[:1],
    "the one before": lambda h: h.roll(1, 0),
    "cosine to the first": lambda h: torch.cosine_similarity(h, h[:1]),
    "causal attention": lambda h: F.scaled_dot_product_attention(
        *[h[None]] * 3, is_causal=True
    ).squeeze(0),
    "a branch": lambda h: h if len(h) < 8 else -h,
    "at least eight": lambda h: h * max(len(h), 8),
    "at most five": lambda h: h * min(len(h), 5),
    "how many": lambda h: h * len(h),
    "chunks": lambda h: torch.cat([one.sum(0, keepdim=True) + one for one in h.split(4)]),
    "slices": lambda h: torch.cat([h[:4], 2.0 * h[4:]]),
}


@pytest.mark.parametrize("name", OF_ROWS)
@pytest.mark.parametrize("memory", [1, None])
def test_what_a_forward_does_with_the_rows_is_done_in_each_sample(name, memory):
    after = OF_ROWS[name]
    dropped = samples_of(Of(lambda drop, x: drop(x)))
    made = samples_of(Of(lambda drop, x: after(drop(x))), memory=memory)
    torch.testing.assert_close(made, torch.stack([after(one) for one in dropped]))


def test_a_single_row_may_have_a_branch_of_its_own():
    model = Of(lambda drop, x: drop(x) if len(x) > 1 else -drop(x))
    assert torch.equal(samples_of(model, X[:1]), -samples_of(model)[:, :1])


def test_a_model_that_takes_one_number_of_rows_runs():
    near = torch.rand(16, 16)
    model = Of(lambda drop, x: near @ drop(x))
    dropped = samples_of(Of(lambda drop, x: drop(x)))
    torch.testing.assert_close(samples_of(model), near @ dropped)


def test_a_mask_with_as_many_rows_as_the_batch_is_left_whole():
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.5, batch_first=True)
    mask = torch.zeros(6, 6)
    found = [
        samples_of(layer, torch.ones(n, 6, 8), kwargs={"src_mask": mask})[:, :5] for n in (5, 6)
    ]
    torch.testing.assert_close(*found)


# Units that are left out

AFTER = [nn.Sigmoid(), nn.Softplus(), nn.Hardtanh(1.0, 2.0), nn.Tanh(), nn.ReLU6(), nn.GELU()]
DROPS = [nn.Dropout(0.5), sitout.nn.Dropout(0.5), sitout.nn.AlphaDropout(0.5)]


@pytest.mark.parametrize("after", AFTER, ids=str)
@pytest.mark.parametrize("drop", DROPS, ids=str)
def test_samples_are_the_same_where_units_are_left_out(monkeypatch, after, drop):
    model = nn.Sequential(nn.Linear(4, 64), copy.deepcopy(drop), after, nn.Linear(64, 3))
    found = []
    for pays in (0.0, 1e99):
        monkeypatch.setattr(_predict, "_PAYS", pays)
        found.append(samples_of(model, masks="shared"))
    torch.testing.assert_close(*found)


def test_units_are_left_out_where_it_pays():
    layers = [nn.Linear(4, 512), nn.ReLU(), nn.Dropout(0.5), nn.Linear(512, 512)]
    model = nn.Sequential(*layers, nn.ReLU(), nn.Dropout(0.5), nn.Linear(512, 1)).eval()
    told = [
        sitout.mc.predict(model, torch.rand(rows, 4), samples=2, masks="shared").explain()
        for rows in (8, 512)
    ]
    assert ["Units that sit out" in one for one in told] == [False, True]


# What has changed since


class Held(nn.Module):
    """A network that reads much from its attributes."""

    def __init__(self):
        super().__init__()
        self.config = types.SimpleNamespace(rate=0.1, act=torch.tanh)
        self.scales, self.shift = {"of": [1.0]}, torch.ones(1)
        self.table, self.linear = np.ones(3), nn.Linear(4, 3)

    def forward(self, x):
        h = self.linear(F.dropout(x, self.config.rate, self.training))
        scale = self.scales["of"][0] * torch.from_numpy(self.table).float()
        return self.config.act(h) * scale + self.shift


def put(model, name):
    if name == "rate":
        model.config.rate = 0.7
    elif name == "function":
        model.config.act = torch.sin
    elif name == "list":
        model.scales["of"][0] = 3.0
    elif name == "tensor":
        model.shift = torch.zeros(1)
    elif name == "tensor in place":
        model.shift.add_(1.0)
    elif name == "array in place":
        model.table *= 2.0
    else:
        model.linear.forward = lambda x: x[:, :3]


PUT = ["rate", "function", "list", "tensor", "tensor in place", "array in place", "forward"]


@pytest.mark.parametrize("name", PUT)
def test_a_kept_plan_is_not_used_after_a_change(name):
    model = Held()
    before = samples_of(model)
    put(model, name)
    after = samples_of(model)
    assert not torch.allclose(before, after)
    other = Held()
    other.load_state_dict(model.state_dict())
    put(other, name)
    if name == "tensor in place":
        assert torch.equal(other.shift, model.shift)
    assert torch.equal(after, samples_of(other))


class Wrapped:
    """An argument that does not show what it holds."""

    def __init__(self, held):
        self.held = held

    def __repr__(self):
        return "Wrapped"


@pytest.mark.parametrize("wrap", [Wrapped, lambda held: held.numpy(), lambda held: [held.tolist()]])
def test_an_argument_is_known_by_what_it_holds(wrap):
    def times(drop, given):
        held = getattr(given[1], "held", given[1])
        return drop(given[0]) * torch.as_tensor(held).flatten()

    class Two(Of):
        def forward(self, x, given):
            return self.function(self.drop, (x, given))

    model, found = Two(times).eval(), []
    for factor in (1.0, 10.0, 100.0):
        given = wrap(torch.full((4,), factor))
        found.append(sitout.mc.predict(model, X, given, samples=9, return_samples=True).samples)
    assert torch.allclose(found[1], 10.0 * found[0])
    assert torch.allclose(found[2], 100.0 * found[0])


def test_a_forward_that_keeps_what_it_computed_has_one_plan(monkeypatch):
    class Keeping(Of):
        def forward(self, x):
            self.seen = super().forward(x)
            return self.seen

    made = []
    make = _predict.make
    monkeypatch.setattr(_predict, "make", lambda *given: (made.append(1), make(*given))[1])
    model = Keeping(lambda drop, x: drop(x))
    assert torch.equal(samples_of(model), samples_of(model))
    samples_of(model)
    assert len(made) == 1


def test_of_a_long_list_only_the_length_is_asked(monkeypatch):
    asked = []
    of = State.of
    monkeypatch.setattr(State, "of", lambda *given: (asked.append(1), of(*given))[1])
    model = Of(lambda drop, x: drop(x))
    model.table = list(range(5000))
    samples_of(model)
    assert len(asked) < 500


def test_a_trial_is_made_where_the_output_lies():
    play = AllPlay(range(2), torch.device("meta"))
    assert play.keep(0, (4, 3), (0, 1)).is_meta
    assert play.drop(0, torch.ones(4, 3, device="meta"), (0, 1)).shape == (4, 3)
    here = AllPlay(range(3), torch.device("cpu")).keep(0, (6, 3), (0, 2))
    assert here.tolist() == [[True] * 3] * 2 + [[False, True, False], [True, False, True]] * 2


# Models that run as a whole for each sample


def test_what_is_dropped_in_place_is_not_dropped_again():
    x = X.clone()
    made = samples_of(nn.Sequential(nn.Dropout(0.1, inplace=True), nn.Linear(4, 4)), x)
    assert torch.equal(x, X)
    assert made.std(0).max() < samples_of(nn.Sequential(nn.Dropout(0.9), nn.Linear(4, 4))).std()


@pytest.mark.parametrize("kind", ["hook", "in place", "dataclass"])
def test_a_loop_gives_the_samples_of_a_plan(kind):
    class Early(nn.Module):
        def forward(self, x):
            return types.SimpleNamespace(h=x * 2.0) if kind == "dataclass" else x * 2.0

    class Net(nn.Module):
        def __init__(self, looks):
            super().__init__()
            self.early, self.act, self.looks = Early(), nn.ReLU(inplace=True), looks
            self.drop = nn.Dropout(0.5, inplace=True)

        def forward(self, x):
            h = self.early(x - 0.5)
            h = h.h if kind == "dataclass" else h
            if kind == "in place":
                self.act(h)
            h = self.drop(h)
            if self.looks and h.sum() > 1e9:
                return h
            return h * 1.0

    found = []
    for looks in (False, True):
        model = Net(looks)
        if kind == "hook":
            model.early.register_forward_hook(lambda module, given, out: out * 2.0)
        made = sitout.mc.predict(model.eval(), X, samples=9, return_samples=True)
        assert ("no plan" in made.explain()) == looks
        found.append(made.samples)
    assert torch.equal(*found)


# When to stop, and what cannot be told


@pytest.mark.parametrize("seed", range(5))
def test_a_prediction_ends_early_after_thirty_samples_wherever_chunks_end(seed):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.1), nn.Linear(8, 1)).eval()
    options = {"samples": 500, "stop": "ci:0.05", "seed": seed}
    found = [
        sitout.mc.predict(model, X[:1], memory=memory, **options) for memory in (1, "20kB", None)
    ]
    counts = [one.count.item() for one in found]
    assert len({*counts}) == 1
    assert 30 <= counts[0] < 500
    assert counts[0] % 10 == 0
    for one in found[1:]:
        torch.testing.assert_close(one.mean, found[0].mean)


@pytest.mark.parametrize("names", [("mean",), ("aleatoric",), ("aleatoric", "mean")])
def test_statistics_of_two_numbers_may_be_asked_for_alone(names):
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 2)).eval()
    options = {"samples": 9, "outputs": "mean_and_log_variance"}
    some = sitout.mc.predict(model, X, statistics=names, **options)
    everything = sitout.mc.predict(model, X, **options)
    assert {*some.statistics} == {*names}
    for name in names:
        assert torch.equal(some.statistics[name], everything.statistics[name])


def test_a_complex_output_is_refused():
    model = Of(lambda drop, x: torch.complex(drop(x), x))
    with pytest.raises(TypeError, match=r"The output must be of real numbers. Got torch.complex64"):
        sitout.mc.predict(model, X)


def test_batches_one_after_the_other_have_their_rows_first():
    with pytest.raises(ValueError, match=r"`batch_dim` of mc.predict must be 0 for an iterable"):
        sitout.mc.predict(nn.Dropout(0.5), iter([X]), batch_dim=1)
