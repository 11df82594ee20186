"""The arm that computes only the units that play."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

import sitout
from sitout import nn
from sitout._study import StudyError, networks, study
from sitout._study.train import Recipe, Rows, Task, train


def recipe(**settings):
    return Recipe({"learning_rate": 0.05, **settings}, 2, 16, "sgd", 0, ())


def task():
    rows = Rows(torch.randn(40, 6), torch.arange(40) % 3)
    return Task(rows, rows, 1.0, 3)


def test_the_arm_is_tuned_with_as_many_trials_as_the_others(tmp_path):
    arms = ["dropout", "thinned"]
    found = study("wine", arms=arms, network="mlp:50x2", trials=2, epochs=2, out=tmp_path)
    dropout, thinned = found.arms
    assert [arm.name for arm in found.arms] == arms
    assert len(dropout.trials) == len(thinned.trials) == 2
    assert {trial.settings["groups"] for trial in thinned.trials} <= {1, 4}
    assert all("groups" not in trial.settings for trial in dropout.trials)


def test_a_run_of_the_arm_trains_a_thinned_network_with_the_parameters_of_the_plain_one():
    make = networks.factory("mlp:50x2")
    settings = {"hidden_rate": 0.5, "input_rate": 0.2}
    thinned, _ = train(make, task(), recipe(**settings, groups=4), train_curve=False)
    plain, _ = train(make, task(), recipe(**settings), train_curve=False)
    sites = [one for one in thinned.modules() if isinstance(one, nn.ThinnedDropout)]
    assert [(site.p, site.groups) for site in sites] == [(0.5, 4)] * 2
    assert isinstance(thinned.get_submodule("input_dropout"), nn.Dropout)
    assert list(thinned.state_dict()) == list(plain.state_dict())
    assert not any(isinstance(one, nn.ThinnedDropout) for one in plain.modules())


def test_the_saved_network_is_the_plain_one(tmp_path):
    found = study("wine", arms=["thinned"], network="mlp:50x1", trials=1, epochs=2, out=tmp_path)
    assert found.best == "thinned"
    state = load_file(tmp_path / "best" / "model.safetensors")
    networks.mlp((13,), 3, 50, 1).load_state_dict(state)


@pytest.mark.parametrize(
    ("network", "words"),
    [
        ("mlp:8x1", r"can be thinned for the arm 'thinned'.*within 0\.01"),
        ("networks_for_tests:without_dropout", "must have dropout layers with p > 0"),
        ("networks_for_tests:normalised_behind", "can be thinned for the arm 'thinned'"),
        ("networks_for_tests:normalised_wide", "statistics of the batch, so groups must be 1"),
    ],
)
def test_a_network_that_cannot_be_thinned_is_refused_before_any_training(tmp_path, network, words):
    with pytest.raises(StudyError, match=words):
        study("wine", arms=["none", "thinned"], network=network, trials=1, epochs=1, out=tmp_path)
    assert not list(tmp_path.glob("**/*.safetensors"))


def test_the_arm_is_left_out_unless_asked_for():
    assert "thinned" not in sitout._study.ARMS
