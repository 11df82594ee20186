"""Requests, budgets and plans."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sitout._study import plan as plans
from sitout._study.arms import ARMS
from sitout._study.errors import StudyError
from sitout._study.plan import Plan, Request

REQUEST = Request(
    data="digits",
    fingerprint="f",
    target="y",
    task="classification",
    network="mlp:16x1",
    arms=ARMS,
    repeats=8,
    budget=600.0,
    train_size=None,
    trials=None,
    epochs=None,
    batch_size=None,
    optimizer="sgd",
    seed=0,
    versions={"torch": "2"},
)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("1h30m", 5400), ("0.5h", 1800), (45, 45)]
)
def test_budgets_are_durations(text, seconds):
    assert plans.seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "10", "ten", "10 m", "-5m", "0s", "5d", 0, -3, True, None])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(StudyError, match=r"--budget\) must be a time such as"):
        plans.seconds_of(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3.2, "3s"), (59.4, "59s"), (59.6, "1m00s"), (200, "3m20s"), (7500, "2h05m")],
)
def test_durations_are_for_people(seconds, text):
    assert plans.clock(seconds) == text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"arms": ("none", "dropuot")}, "Did you mean 'dropout'?"),
        ({"arms": ("none", "none")}, "named once each"),
        ({"arms": ()}, "named once each"),
        ({"repeats": 7}, "8 or more"),
        ({"repeats": True}, "8 or more"),
        ({"trials": 0}, "--trials"),
        ({"epochs": -1}, "--epochs"),
        ({"batch_size": 0}, "--batch-size"),
        ({"optimizer": "lion"}, "sgd or adam"),
        ({"network": "mlp:1024"}, "mlp:WIDTHxLAYERS"),
        ({"network": "mlp:0x2"}, "mlp:WIDTHxLAYERS"),
        ({"network": "no_such_module:net"}, "no_such_module"),
        ({"network": "math:nope"}, "callable"),
    ],
)
def test_bad_requests_are_refused_in_one_line(change, words):
    with pytest.raises(StudyError) as caught:
        plans.check(replace(REQUEST, **change))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_budget_buys_epochs_then_trials():
    rich = plans.choose(REQUEST, 32, seconds_per_epoch=0.01, jobs=2)
    tight = plans.choose(REQUEST, 32, seconds_per_epoch=0.11, jobs=2)
    tighter = plans.choose(REQUEST, 32, seconds_per_epoch=0.4, jobs=2)
    assert rich == Plan(16, (15, 30, 60), 32)
    assert tight.epochs[-1] == 60
    assert 4 <= tight.trials < 16
    assert tighter.epochs[-1] < 60
    assert tighter.trials >= 4


def test_a_plan_fits_its_budget():
    for seconds in (0.01, 0.1, 0.2, 0.4):
        plan = plans.choose(REQUEST, 32, seconds, jobs=2)
        assert plans.trained(REQUEST, plan) * seconds * plan.epochs[-1] / 2 <= REQUEST.budget


def test_too_small_a_budget_says_how_much_is_needed():
    with pytest.raises(StudyError, match=r"about 3h11m\. Got 10m00s"):
        plans.choose(REQUEST, 32, seconds_per_epoch=5.0, jobs=1)


def test_explicit_numbers_are_taken_whatever_they_cost():
    plan = plans.choose(replace(REQUEST, trials=3, epochs=8), 32, 1000.0, 1)
    assert plan == Plan(3, (2, 4, 8), 32)


def test_the_same_request_finds_its_plan_again(tmp_path):
    plan = Plan(5, (2, 4, 8), 32)
    assert plans.kept(tmp_path, REQUEST) is None
    plans.keep(tmp_path, REQUEST, plan)
    assert plans.kept(tmp_path, REQUEST) == plan


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"fingerprint": "g"}, {"arms": ("none",)}, {"versions": {"torch": "3"}}]
)
def test_another_request_is_refused_by_name(tmp_path, change):
    plans.keep(tmp_path, REQUEST, Plan(5, (2, 4, 8), 32))
    with pytest.raises(StudyError, match=next(iter(change))) as caught:
        plans.kept(tmp_path, replace(REQUEST, **change))
    assert "--out" in str(caught.value)
