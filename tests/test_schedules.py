"""A schedule is a pure function of the step; a scheduler sets what it says, and nothing else."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import pickle
import re
import warnings

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import sitout
from sitout import nn, schedules
from sitout.masks import effective_rate, rate_data
from sitout.schedules import RateScheduler
from zoo import has

P, Q = 0.3, 0.7
ALL = {
    "constant": schedules.constant(P),
    "linear": schedules.linear(P, Q),
    "early": schedules.early(P, until=0.4),
    "late": schedules.late(P, start=0.4),
    "flat_cos": schedules.flat_cos(P, Q, flat=0.4),
    "ramp": schedules.ramp(P, until=0.4),
    "cosine": schedules.cosine(P, Q),
    "curriculum": schedules.curriculum(P),
}
# At 0, 1, 2, ... tenths of the run, from the formulas in the papers.
TENTHS = {
    "constant": [P] * 11,
    "linear": [P + (Q - P) * x / 10 for x in range(11)],
    "early": [0.3, 0.225, 0.15, 0.075, *[0.0] * 7],
    "late": [*[0.0] * 4, *[P] * 7],
    "flat_cos": [
        *[P] * 5,
        *[Q + (P - Q) * (1 + math.cos(math.pi * x / 6)) / 2 for x in range(1, 7)],
    ],
    "ramp": [0.0, 0.075, 0.15, 0.225, *[P] * 7],
    "cosine": [Q + (P - Q) * (1 + math.cos(math.pi * x / 10)) / 2 for x in range(11)],
    "curriculum": [1 - ((1 - P) + P * math.exp(-10 * x / 10)) for x in range(11)],
}
every = pytest.mark.parametrize("name", ALL)


def test_every_schedule_is_tried_here():
    made = {*schedules.__all__} - {"RateScheduler", "Schedule", "over_depth"}
    assert {*ALL} == {*TENTHS} == made


# Schedules


@every
@pytest.mark.parametrize("total", [10, 70, 10.0])
def test_a_schedule_gives_what_its_formula_says(name, total):
    made = [ALL[name](total / 10 * x, total) for x in range(11)]
    assert made == pytest.approx(TENTHS[name], abs=1e-12)


@every
def test_beyond_the_end_a_schedule_stays_at_its_last_value(name):
    last = ALL[name](7, 7)
    assert [ALL[name](step, 7) for step in (8, 100, 10**30)] == [last] * 3


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        ("constant", P, P),
        ("linear", P, Q),
        ("early", P, 0.0),
        ("late", 0.0, P),
        ("flat_cos", P, Q),
        ("ramp", 0.0, P),
        ("cosine", P, Q),
        ("curriculum", 0.0, P * (1 - math.exp(-10))),
    ],
)
def test_the_ends_of_a_schedule_are_exact(name, first, last):
    assert (ALL[name](0, 9), ALL[name](9, 9)) == (first, last)


@every
def test_a_schedule_of_rates_gives_rates(name):
    for p in (0.0, 1.0, 0.1, 1 / 3):
        make = getattr(schedules, name)
        schedule = make(p, p) if name in ("linear", "cosine", "flat_cos") else make(p)
        for step in range(98):
            assert 0.0 <= schedule(step, 97) <= 1.0


@pytest.mark.parametrize("flat", [0.0, 1.0])
def test_a_flat_part_may_be_nothing_or_all(flat):
    schedule = schedules.flat_cos(P, Q, flat=flat)
    same = schedules.constant(P) if flat else schedules.cosine(P, Q)
    assert [schedule(step, 7) for step in range(9)] == [same(step, 7) for step in range(9)]


@every
def test_a_schedule_survives_pickle_and_copy_and_equals_its_twin(name):
    schedule = ALL[name]
    for twin in (pickle.loads(pickle.dumps(schedule)), copy.deepcopy(schedule)):
        assert twin == schedule
        assert hash(twin) == hash(schedule)
        assert twin(3, 10) == schedule(3, 10)
    assert schedule != schedules.constant(0.99)
    with pytest.raises(AttributeError):
        schedule.name = "other"


@every
def test_the_repr_of_a_schedule_makes_it_again(name):
    assert repr(ALL[name]).startswith(f"{name}(")
    assert eval(repr(ALL[name]), vars(schedules)) == ALL[name]


@every
@pytest.mark.parametrize(
    ("step", "total", "what"),
    [
        (-1, 10, "step"),
        (math.nan, 10, "step"),
        (math.inf, 10, "step"),
        (True, 10, "step"),
        ("1", 10, "step"),
        (1, 0, "total"),
        (1, -1, "total"),
        (1, math.inf, "total"),
        (1, None, "total"),
    ],
)
def test_a_step_outside_of_a_run_is_refused(name, step, total, what):
    with pytest.raises((TypeError, ValueError), match=f"^`{what}` of {name} must be a finite "):
        ALL[name](step, total)


WRONG = [
    (schedules.constant, "p", [-0.1, 1.5, math.nan, "0.5", None, True]),
    (lambda v: schedules.linear(v, 0.1), "start", [-0.1, 1.5, math.nan, "0.5", None, True]),
    (lambda v: schedules.linear(0.1, v), "end", [-0.1, 1.5, math.nan, "0.5", None, True]),
    (lambda v: schedules.cosine(v, 0.1), "start", [-0.1, 1.5]),
    (lambda v: schedules.cosine(0.1, v), "end", [-0.1, 1.5]),
    (schedules.early, "p", [-0.1, 1.5]),
    (lambda v: schedules.early(0.1, v), "until", [0.0, -0.1, 1.5, math.nan, None]),
    (schedules.late, "p", [-0.1, 1.5]),
    (lambda v: schedules.late(0.1, v), "start", [-0.1, 1.5, math.nan, None]),
    (schedules.flat_cos, "p", [-0.1, 1.5]),
    (lambda v: schedules.flat_cos(0.1, v), "end", [-0.1, 1.5]),
    (lambda v: schedules.flat_cos(0.1, 0, v), "flat", [-0.1, 1.5]),
    (schedules.ramp, "p", [-0.1, 1.5]),
    (lambda v: schedules.ramp(0.1, v), "until", [0.0, 1.5]),
    (schedules.curriculum, "p", [-0.1, 1.5]),
    (lambda v: schedules.curriculum(0.1, v), "gamma", [0.0, -1, math.inf, math.nan, None]),
    (lambda v: schedules.over_depth(v, 3), "p", [-0.1, 1.5]),
    (lambda v: schedules.over_depth(0.1, v), "n", [0, -1, 1.5, True, None]),
    (lambda v: schedules.over_depth(0.1, 3, from_zero=v), "from_zero", [0, None]),
]


@pytest.mark.parametrize(("make", "what", "value"), [(m, w, v) for m, w, vs in WRONG for v in vs])
def test_a_constant_out_of_range_is_refused_when_the_schedule_is_made(make, what, value):
    line = rf"^`{what}` of \w+ must be .*\. Got {re.escape(repr(value))}\.$"
    with pytest.raises((TypeError, ValueError), match=line):
        make(value)


@pytest.mark.parametrize("n", [1, 2, 3, 12])
def test_over_depth_is_linear_from_zero_as_in_timm_or_from_the_first_as_in_the_paper(n):
    assert schedules.over_depth(0.2, n) == pytest.approx(torch.linspace(0, 0.2, n).tolist())
    paper = schedules.over_depth(0.2, n, from_zero=False)
    assert paper == pytest.approx([0.2 * at / n for at in range(1, n + 1)])
    assert paper[-1] == 0.2
    assert all(0.0 <= p <= 1.0 for p in schedules.over_depth(1.0, n) + paper)


# The scheduler: what it sets


class Noisy(torch.nn.Module):
    """As timm has it: a layer by its name, whose rate is an attribute."""

    def __init__(self, drop_prob):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x):
        return torch.nn.functional.dropout(x, self.drop_prob, self.training)


class DropPath(Noisy):
    pass


class Config:
    layerdrop = 0.4


class Skips(torch.nn.Module):
    """As in Wav2Vec2: the rate is an attribute of the config."""

    def __init__(self):
        super().__init__()
        self.config = Config()
        self.config.layerdrop = 0.4

    def forward(self, x):
        return x if torch.rand([]) < self.config.layerdrop else x + 1


def everything():
    return torch.nn.ModuleDict(
        {
            "ours": nn.Dropout(0.125),
            "torch": torch.nn.Dropout(0.2),
            "timm": DropPath(0.3),
            "skips": Skips(),
            "heads": torch.nn.MultiheadAttention(4, 2, dropout=0.5),
            "lstm": torch.nn.LSTM(4, 4, 2, dropout=0.6),
        }
    )


def floats(model):
    return {
        "ours.p": model["ours"].p,
        "torch.p": model["torch"].p,
        "timm.drop_prob": model["timm"].drop_prob,
        "skips.config.layerdrop": model["skips"].config.layerdrop,
        "heads.dropout": model["heads"].dropout,
        "lstm.dropout": model["lstm"].dropout,
    }


def test_a_scheduler_drives_layers_attributes_and_configs():
    model = everything()
    scheduler = RateScheduler(model, schedules.linear(0.5, 0.25), 4)
    for p in (0.5, 0.4375, 0.375, 0.3125, 0.25, 0.25):
        assert floats(model) == dict.fromkeys(floats(model), p) == scheduler.rates()
        assert scheduler.rate == p
        scheduler.step()
    assert scheduler.last_step == 6
    assert model["ours"].rate_data.tolist() == rate_data(0.25).tolist()


def test_a_relative_schedule_keeps_the_shape_of_the_rates():
    depths = schedules.over_depth(0.5, 5)
    model = torch.nn.Sequential(*map(torch.nn.Dropout, depths))
    scheduler = RateScheduler(model, schedules.linear(1.0, 0.0), 4, relative=True)
    for factor in (1.0, 0.75, 0.5, 0.25, 0.0):
        assert scheduler.rate == factor
        assert [layer.p for layer in model] == [factor * p for p in depths]
        scheduler.step()


@pytest.mark.parametrize(
    ("where", "driven"),
    [
        ("torch", ["torch.p"]),
        ("*.dropout", ["heads.dropout", "lstm.dropout"]),
        ("*config*", ["skips.config.layerdrop"]),
        (torch.nn.LSTM, ["lstm.dropout"]),
        (lambda name, module: "i" in name, ["timm.drop_prob", "skips.config.layerdrop"]),
        (["ours", DropPath], ["ours.p", "timm.drop_prob"]),
    ],
)
def test_only_what_where_means_is_driven(where, driven):
    model = everything()
    before = floats(model)
    scheduler = RateScheduler(model, schedules.constant(0.75), 4, where)
    assert sorted(scheduler.rates()) == sorted(driven)
    assert floats(model) == before | dict.fromkeys(driven, 0.75)
    assert (model["ours"].rate_data is None) == ("ours.p" not in driven)


def test_where_without_a_rate_is_refused_and_names_the_nearest():
    line = r"^`where` of RateScheduler must be that of a drop rate\. Got 'hads\.dropout'\. The near"
    with pytest.raises(ValueError, match=line) as error:
        RateScheduler(everything(), schedules.constant(0.1), 4, "hads.dropout")
    assert "'heads.dropout'" in str(error.value)
    with pytest.raises(ValueError, match="There is no drop rate at all"):
        RateScheduler(torch.nn.Linear(2, 2), schedules.constant(0.1), 4)


@pytest.mark.parametrize("name", ["a.drop", "b.drop", "b.drop.p"])
def test_a_place_under_several_names_is_driven_once_and_found_by_each(name):
    shared = torch.nn.Dropout(0.5)
    model = torch.nn.ModuleDict({key: torch.nn.Module() for key in "ab"})
    for part in model.values():
        part.drop = shared
    scheduler = RateScheduler(model, schedules.constant(0.5), 4, name, relative=True)
    assert scheduler.rates() == {"a.drop.p": 0.25} == {"a.drop.p": shared.p}


@pytest.mark.parametrize("where", [None, "drop", "1.drop_prob", "drop.p"])
def test_wrappers_do_not_count_in_names(where):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = nn.Dropout(0.5)
            self.__dict__["_modules"]["1"] = DropPath(0.5)

    net = Net()
    found = RateScheduler(net, schedules.constant(0.1), 4, where).rates()
    for wrapped in (torch.nn.DataParallel(net), torch.compile(net, backend="eager")):
        assert RateScheduler(wrapped, schedules.constant(0.1), 4, where).rates() == found


# The scheduler: what it refuses


def test_a_scheduler_takes_any_function_of_step_and_total_but_never_asks_beyond_the_end():
    asked, model = [], torch.nn.Dropout(0.5)
    scheduler = RateScheduler(model, lambda *at: asked.append(at) or 0.01 * at[0], 3)
    for _ in range(5):
        scheduler.step()
    assert asked == [(0, 3), (1, 3), (2, 3), (3, 3), (3, 3), (3, 3)]
    assert model.p == 0.03


@pytest.mark.parametrize("value", [-0.1, 1.5, math.nan, None, "0.5", True, torch.tensor(0.5)])
def test_what_is_no_rate_is_refused_at_its_step_and_changes_nothing(value):
    model = everything()
    scheduler = RateScheduler(model, lambda step, total: value if step == 2 else 0.25, 4)
    scheduler.step()
    before = floats(model)
    line = r"^`p` of the schedule at step 2 must be a number in \[0, 1\]\. Got "
    for _ in range(2):
        with pytest.raises((TypeError, ValueError), match=line):
            scheduler.step()
        assert floats(model) == before
        assert (scheduler.last_step, scheduler.rate) == (1, 0.25)


@pytest.mark.parametrize("p", [1.0, 1 - 2.0**-40])
def test_noise_with_rate_1_is_refused_and_no_other_place_changes(p):
    model = torch.nn.ModuleDict({"plain": nn.Dropout(0.1), "noise": nn.GaussianDropout(0.1)})
    line = r"^`p` of noise\.p from .* must be a number in \[0, 1\)\. Got 1\.0\.$|\[0, 1\)"
    with pytest.raises(ValueError, match=line):
        RateScheduler(model, lambda step, total: p, 4)
    assert [layer.p for layer in model.values()] == [0.1, 0.1]
    assert [layer.rate_data for layer in model.values()] == [None, None]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"model": 3}, r"^`model` of RateScheduler must be a torch\.nn\.Module\. Got 3\.$"),
        ({"schedule": 0.1}, r"^`schedule` of RateScheduler must be one of .* Got 0\.1\.$"),
        ({"total": 0}, r"^`total` of RateScheduler must be 1 or more\. Got 0\.$"),
        ({"total": math.inf}, r"^`total` of RateScheduler must be an int\. Got inf\.$"),
        ({"where": 3}, r"^`where` of RateScheduler must be a glob"),
        ({"relative": 1}, r"^`relative` of RateScheduler must be True or False\. Got 1\.$"),
    ],
)
def test_a_bad_argument_is_refused_and_the_model_stays_as_it_is(change, line):
    model = everything()
    before = floats(model)
    arguments = {"model": model, "schedule": schedules.constant(0.75), "total": 4} | change
    with pytest.raises((TypeError, ValueError), match=line):
        RateScheduler(**arguments)
    assert floats(model) == before


@pytest.mark.parametrize("p", [1.5, None, "x"])
def test_a_rate_in_the_model_that_is_none_is_refused_by_its_path(p):
    model = torch.nn.Sequential(torch.nn.Dropout(0.5))
    model[0].p = p
    with pytest.raises((TypeError, ValueError), match=r"^`p` of 0\.p must be a number in "):
        RateScheduler(model, schedules.constant(0.1), 4)


# The scheduler: undo, seek, state


def test_undo_gives_back_the_very_rates():
    model = everything()
    model["data"] = nn.Dropout(0.1).schedulable_()
    model["ours"].p = 0.1  # rounded as data
    before, data = floats(model), model["data"].rate_data.clone()
    scheduler = RateScheduler(model, schedules.linear(0.5, 0.25), 4)
    scheduler.step()
    scheduler.undo()
    assert floats(model) == before
    assert model["ours"].rate_data is None
    assert torch.equal(model["data"].rate_data, data)
    scheduler.step()
    assert floats(model) == dict.fromkeys(before, 0.375)


def test_seek_gives_the_rates_that_as_many_steps_give():
    for relative in (False, True):
        stepped, sought = everything(), everything()
        schedule = schedules.cosine(0.5, 0.25)
        first = RateScheduler(stepped, schedule, 9, relative=relative)
        other = RateScheduler(sought, schedule, 9, relative=relative)
        for _ in range(3):
            first.step()
        for step in (8, 20, 3):
            other.seek(step)
        assert floats(stepped) == floats(sought)
        assert other.last_step == 3
    for step in (-1, 1.0, True):
        with pytest.raises((TypeError, ValueError), match=r"^`step` of seek must be "):
            other.seek(step)


@pytest.mark.parametrize("relative", [False, True])
def test_a_run_that_is_resumed_has_the_rates_of_one_that_never_stopped(relative):
    schedule = schedules.cosine(0.75, 0.25)
    whole, model = [], everything()
    scheduler = RateScheduler(model, schedule, 9, relative=relative)
    for step in range(9):
        if step == 4:
            state = json.loads(json.dumps(scheduler.state_dict()))
        whole.append(floats(model))
        scheduler.step()
    # Into a new model, and into the one whose rates have been changed already.
    for again in (everything(), model):
        resumed = RateScheduler(again, schedule, 9, relative=relative)
        resumed.load_state_dict(state)
        for rates in whole[4:]:
            assert floats(again) == rates
            resumed.step()
        resumed.undo()
        assert floats(again) == floats(everything())


def test_a_state_holds_numbers_and_strings():
    state = RateScheduler(everything(), schedules.early(0.5), 9).state_dict()
    assert state["schedule"] == "early(p=0.5, until=0.1)"
    assert {type(value) for value in (state | state["rates"]).values()} == {
        *(int, str, bool, dict, float)
    }
    assert RateScheduler(everything(), lambda *at: 0.5, 9).state_dict()["schedule"] == ""


def test_the_state_of_another_run_is_refused_and_changes_nothing():
    model = everything()
    scheduler = RateScheduler(model, schedules.linear(0.5, 0.25), 4)
    scheduler.step()
    before, state = floats(model), scheduler.state_dict()
    smaller = {name: p for name, p in state["rates"].items() if name != "torch.p"}
    wrong = {
        r"have |must be what state_dict\(\) gave": [{}, 3, None, {"step": 3}, state | {"more": 1}],
        r"must be one with total = 4\. Got 5\. Pass total= as it was\.": [state | {"total": 5}],
        r"must be one with relative = False\. Got True": [state | {"relative": True}],
        r"must be one with schedule = 'linear\(": [state | {"schedule": "linear(start=0.1)"}],
        r"must be of a model with the same rates\. Got none for 'torch\.p'\.": [
            state | {"rates": smaller}
        ],
        r"must be of a model with the same rates\. Got 'x\.p' too\.": [
            state | {"rates": state["rates"] | {"x.p": 0.1}}
        ],
        r"`step` of (seek|the state of RateScheduler) must be ": [
            state | {"step": -1},
            state | {"step": 1.5},
        ],
    }
    for line, states in wrong.items():
        for other in states:
            with pytest.raises((TypeError, ValueError), match=line):
                scheduler.load_state_dict(other)
            assert floats(model) == before
            assert scheduler.state_dict() == state


def test_a_scheduler_and_its_model_are_copied_together():
    model = everything()
    scheduler = RateScheduler(model, schedules.linear(0.5, 0.25), 4)
    for twin, driver in (
        copy.deepcopy((model, scheduler)),
        pickle.loads(pickle.dumps((model, scheduler))),
    ):
        driver.step()
        assert floats(twin) == dict.fromkeys(floats(twin), 0.4375)
        assert floats(model) == dict.fromkeys(floats(model), 0.5)


def test_the_repr_of_a_scheduler_says_where_it_is():
    scheduler = RateScheduler(everything(), schedules.constant(0.5), 4)
    scheduler.step()
    assert repr(scheduler) == "RateScheduler(constant(p=0.5), step 1 of 4, 6 rates)"


# Compiled code


def bound(n):
    """How far the dropped fraction of n elements strays once in 10**12 (Hoeffding)."""
    return math.sqrt(math.log(2e12) / (2 * n))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_two_hundred_rates_compile_once_and_each_one_holds(backend):
    torch._dynamo.reset()
    net = torch.nn.Sequential(nn.Dropout(0.5), torch.nn.ReLU(), nn.DropPath(0.5))
    counter = CompileCounterWithBackend(backend)
    run = torch.compile(net, backend=counter, fullgraph=True)
    x = torch.ones(2**15, 8)
    scheduler = RateScheduler(run, schedules.linear(0.6, 0.1), 200)
    run(x)
    asked = []
    with torch._dynamo.config.patch(error_on_recompile=True):
        for step in range(200):
            assert scheduler.last_step == step
            y = run(x) if step % 20 == 0 else run(x[:])
            rates = scheduler.rates()
            asked.append(rates["0.p"])
            if step % 20 == 0:
                paths = (y == 0).all(dim=1)
                # A row of 8 that dropout empties by itself is no dropped path.
                p = rates["2.p"]
                empty = p + (1 - p) * rates["0.p"] ** 8
                assert abs(paths.float().mean() - empty) < bound(len(x))
                inner = y[~paths] == 0
                alive = rates["0.p"] * (1 - rates["0.p"] ** 7) / (1 - rates["0.p"] ** 8)
                assert abs(inner.float().mean() - alive) < bound(len(inner))
                assert rates["0.p"] == effective_rate(0.6 * (1 - step / 200) + 0.1 * (step / 200))
            scheduler.step()
    assert counter.frame_count == 1
    assert len({*asked}) == 200


def test_uncompiled_layers_drop_what_is_asked_at_each_step():
    layer, n = torch.nn.Dropout(0.5), 2**18
    scheduler = RateScheduler(layer, schedules.curriculum(0.5), 8)
    for step in range(8):
        zeros = (layer(torch.ones(n)) == 0).float().mean()
        assert abs(zeros - 0.5 * (1 - math.exp(-10 * step / 8))) < bound(n)
        scheduler.step()


def compiled_whole(net):
    return torch.compile(net, backend="eager")


def compiled_in_place(net):
    net.compile(backend="eager")
    return net


def compiled_part(net):
    net.block = torch.compile(net.block, backend="eager")
    return net


def compiled_part_in_place(net):
    net.block.compile(backend="eager")
    return net


COMPILED = [compiled_whole, compiled_in_place, compiled_part, compiled_part_in_place]


class Blocks(torch.nn.Module):
    def __init__(self, layer, other=None):
        super().__init__()
        self.block = torch.nn.Sequential(torch.nn.Linear(4, 4), layer)
        self.other = other

    def forward(self, x):
        return self.block(x)


@pytest.mark.parametrize("make", COMPILED)
@pytest.mark.parametrize("later", [False, True])
def test_rates_that_change_in_compiled_code_and_compile_anew_are_warned_of_once(make, later):
    net = Blocks(torch.nn.Dropout(0.5))
    if later and make is not compiled_whole:
        scheduler = RateScheduler(net, schedules.linear(0.5, 0.1), 9)
        make(net)
    else:
        scheduler = RateScheduler(make(net), schedules.linear(0.5, 0.1), 9)
    line = r"^RateScheduler changes the rate of 'block\.1\.p' in .*sitout\.replace"
    with pytest.warns(UserWarning, match=line) as caught:
        scheduler.step()
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler.step()
        scheduler.seek(7)


@pytest.mark.parametrize("make", COMPILED)
def test_no_warning_where_nothing_compiles_anew(make):
    plain = Blocks(torch.nn.Dropout(0.5))
    outside = Blocks(nn.Dropout(0.5), torch.nn.Dropout(0.5) if "part" in make.__name__ else None)
    for net, schedule in [
        (make(Blocks(nn.Dropout(0.5))), schedules.linear(0.5, 0.1)),
        (make(outside), schedules.linear(0.5, 0.1)),
        (make(Blocks(torch.nn.Dropout(0.5))), schedules.constant(0.3)),
        (plain, schedules.linear(0.5, 0.1)),
    ]:
        scheduler = RateScheduler(net, schedule, 9)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for _ in range(9):
                scheduler.step()


def test_torch_layers_do_compile_anew_for_each_rate():
    """The reason of the warning."""
    torch._dynamo.reset()
    net = Blocks(torch.nn.Dropout(0.5))
    counter = CompileCounterWithBackend("eager")
    run = torch.compile(net, backend=counter)
    scheduler = RateScheduler(net, schedules.linear(0.5, 0.1), 9)
    for _ in range(4):
        run(torch.ones(2, 4))
        scheduler.step()
    assert counter.frame_count == 4


# Real models


@pytest.mark.skipif(not has("timm"), reason="timm is not installed")
def test_the_drop_paths_of_timm_follow_and_keep_their_shape():
    import timm

    model = timm.create_model("vit_tiny_patch16_224", drop_path_rate=0.2, depth=4)
    paths = [block.drop_path2 for block in model.blocks[1:]]
    before = [path.drop_prob for path in paths]
    where = lambda name, module: "drop_path" in name  # noqa: E731
    scheduler = RateScheduler(model, schedules.linear(1.0, 0.0), 4, where, relative=True)
    assert before == pytest.approx(schedules.over_depth(0.2, 4)[1:])
    for factor in (1.0, 0.75, 0.5, 0.25, 0.0):
        assert [path.drop_prob for path in paths] == [factor * p for p in before]
        assert all(name.endswith("drop_prob") for name in scheduler.rates())
        scheduler.step()


def test_the_attribute_of_the_package_is_there():
    assert sitout.schedules is schedules


class _ReadByParent(torch.nn.Module):
    """Attention that hands the rate of a layer to a fused kernel, as timm's does."""

    def __init__(self):
        super().__init__()
        self.attn_drop, self.drop = sitout.nn.Dropout(0.1), sitout.nn.Dropout(0.1)

    def forward(self, x):
        p = self.attn_drop.p if self.training else 0.0
        return self.drop(torch.nn.functional.scaled_dot_product_attention(x, x, x, dropout_p=p))


def test_a_rate_that_another_module_reads_stays_a_number_and_compiles_in_one_graph():
    model = _ReadByParent()
    RateScheduler(model, schedules.linear(0.5, 0.0), 8)
    assert model.attn_drop.rate_data is None
    assert model.drop.rate_data is not None
    torch.compile(model, backend="eager", fullgraph=True)(torch.randn(2, 4, 4))


def test_such_a_rate_is_warned_of_in_compiled_code():
    model = torch.compile(_ReadByParent(), backend="eager")
    scheduler = RateScheduler(model, schedules.linear(0.5, 0.0), 8)
    with pytest.warns(UserWarning, match=r"changes the rate of 'attn_drop\.p' in compiled code"):
        scheduler.step()


def test_without_such_a_rate_the_others_compile_once():
    model = torch.compile(_ReadByParent(), backend="eager")
    scheduler = RateScheduler(model, schedules.linear(0.5, 0.0), 20, where="drop")
    model(torch.randn(2, 4, 4))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(20):
            scheduler.step()
            model(torch.randn(2, 4, 4))


def test_a_silenced_model_takes_no_scheduler_and_no_step():
    model = torch.nn.Sequential(torch.nn.Dropout(0.5))
    scheduler = RateScheduler(model, schedules.linear(0.4, 0.0), 4)
    with sitout.disabled(model):
        with pytest.raises(RuntimeError, match="outside of disabled"):
            RateScheduler(model, schedules.linear(0.5, 0.0), 4)
        with pytest.raises(RuntimeError, match="outside of disabled"):
            scheduler.step()
        with pytest.raises(RuntimeError, match="outside of disabled"):
            scheduler.undo()
        assert model[0].p == 0.0
    assert model[0].p == 0.4
    assert scheduler.last_step == 0


def test_a_place_that_cannot_be_set_leaves_all_rates_as_they_were():
    class Frozen(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.config = torch.nn.Dropout(0.3), _Config(0.1)

        def forward(self, x):
            return torch.nn.functional.dropout(self.first(x), self.config.dropout, self.training)

    model = Frozen()
    with pytest.raises(dataclasses.FrozenInstanceError) as caught:
        RateScheduler(model, schedules.constant(0.5), 4)
    assert model.first.p == 0.3
    assert "about to set config.dropout" in caught.value.__notes__[0]


@dataclasses.dataclass(frozen=True)
class _Config:
    dropout: float


def test_a_model_that_is_averaged_after_the_scheduler_was_made_trains():
    model = torch.nn.Sequential(
        torch.nn.BatchNorm1d(4), sitout.nn.Dropout(0.5), torch.nn.BatchNorm1d(4)
    )
    scheduler = RateScheduler(model, schedules.linear(0.5, 0.0), 4)
    average = torch.optim.swa_utils.AveragedModel(model, use_buffers=True)
    for _ in range(4):
        model(torch.randn(8, 4))
        scheduler.step()
        average.update_parameters(model)
