"""Training: the arms differ by their regularizer and by nothing else."""

from __future__ import annotations

import pytest
import torch

from sitout._study import measure, networks
from sitout._study.arms import Regularization
from sitout._study.train import Recipe, Rows, Task, _batches, _optimizer, _Steps, train

SGD = {"learning_rate": 0.1}


@pytest.fixture
def task():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(90, 6, generator=generator)
    y = (x[:, 0] + x[:, 1] > 0).long()
    return Task(Rows(x[:60], y[:60]), Rows(x[60:], y[60:]), unit=1.0, outputs=2)


def recipe(settings, epochs=5, seed=1, optimizer="sgd", looks=()):
    return Recipe(settings, epochs, 16, optimizer, seed, looks)


def trained(task, settings, **options):
    return train(networks.factory("mlp:32x2"), task, recipe(settings, **options), train_curve=True)


def same_weights(one, other):
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_same_recipe_gives_the_same_bits(task, optimizer):
    settings = {"learning_rate": 0.01, "hidden_rate": 0.5, "input_rate": 0.1}
    one, _ = trained(task, settings, optimizer=optimizer)
    torch.rand(5)
    other, _ = trained(task, settings, optimizer=optimizer)
    assert same_weights(one, other)
    assert not same_weights(one, trained(task, settings, seed=2, optimizer=optimizer)[0])


@pytest.mark.parametrize(
    "settings",
    [{"weight_decay": 0.0}, {"max_norm": 1e9}, {"hidden_rate": 0.0, "input_rate": 0.0}],
)
def test_an_arm_of_strength_zero_is_the_arm_none(task, settings):
    """Same initial weights, same batches: what is left is the regularizer."""
    assert same_weights(trained(task, SGD)[0], trained(task, SGD | settings)[0])


@pytest.mark.parametrize(
    "settings",
    [{"weight_decay": 0.01}, {"max_norm": 0.5}, {"hidden_rate": 0.3}, {"input_rate": 0.2}],
)
def test_an_arm_of_some_strength_is_not(task, settings):
    assert not same_weights(trained(task, SGD)[0], trained(task, SGD | settings)[0])


def test_max_norm_bounds_the_incoming_weights_of_hidden_units(task):
    network, _ = trained(task, {"learning_rate": 0.5, "max_norm": 0.7})
    for name in ("hidden1", "hidden2"):
        norms = network.get_submodule(name).weight.norm(dim=1)
        assert norms.max() <= 0.7 * (1 + 1e-6)
        assert norms.max() > 0.69
    free, _ = trained(task, {"learning_rate": 0.5})
    assert free.get_submodule("hidden1").weight.norm(dim=1).max() > 0.7


def test_l2_pulls_on_weights_and_not_on_biases(task):
    plain, _ = trained(task, SGD, epochs=1)
    decayed, _ = trained(task, {"learning_rate": 0.1, "weight_decay": 0.5}, epochs=1)
    weights = [name for name, p in plain.named_parameters() if p.dim() > 1]
    before, after = dict(plain.named_parameters()), dict(decayed.named_parameters())
    assert all(after[name].norm() < before[name].norm() for name in weights)
    groups = _optimizer(plain, recipe(SGD), Regularization(weight_decay=0.5)).param_groups
    assert [group["weight_decay"] for group in groups] == [0.5, 0.0]
    assert all(p.dim() == 1 for p in groups[1]["params"])


def test_early_stopping_returns_the_network_of_its_best_epoch(task):
    network, progress = trained(task, SGD | {"patience": 3}, epochs=60)
    curves = progress.curves
    seen = list(zip(curves["validation_error"], curves["validation_loss"], strict=True))
    best = min(seen)
    assert progress.chosen == seen.index(best) + 1
    assert progress.epochs == progress.chosen + 3
    assert progress.epochs < 60
    out = measure.predict(network, task.validation.x)
    assert measure.error_of(out, task.validation.y, 1.0) == best[0]
    assert float(measure.loss_of(out, task.validation.y)) == pytest.approx(best[1])


def test_the_learning_rate_falls_to_zero_by_the_last_batch(task):
    make = networks.factory("mlp:4x1")
    how, order = Regularization(), torch.Generator().manual_seed(0)
    steps = _Steps(make((6,), 2), task.train, recipe(SGD, epochs=3), how, order)
    rates = []
    for _ in range(3):
        rates.append(steps.optimizer.param_groups[0]["lr"])
        steps.epoch()
    assert rates == pytest.approx([0.1, 0.1 * 2 / 3, 0.1 / 3])
    assert steps.optimizer.param_groups[0]["lr"] == 0.0


def test_rates_go_to_input_and_hidden_sites(task):
    network, _ = trained(task, SGD | {"input_rate": 0.1, "hidden_rate": 0.4}, epochs=1)
    rates = {name: site.p for name, site in networks.sites(network).items()}
    assert rates == {"input_dropout": 0.1, "dropout1": 0.4, "dropout2": 0.4}


def test_the_user_s_rates_are_scaled_and_off_in_other_arms():
    x = torch.rand(40, 64)
    task = Task(Rows(x, torch.arange(40) % 3), Rows(x, torch.arange(40) % 3), 1.0, 3)
    make = networks.factory("networks_for_tests:convolutional")
    for settings, wanted in [({"rate_scale": 1.5}, [0.3, 0.6]), ({}, [0.0, 0.0])]:
        network, _ = train(make, task, recipe(SGD | settings, 1), train_curve=False)
        assert [site.p for site in networks.sites(network).values()] == pytest.approx(wanted)


@pytest.mark.parametrize(("n", "size", "sizes"), [(10, 4, [4, 4, 2]), (9, 4, [4, 5]), (3, 8, [3])])
def test_every_row_once_an_epoch_and_no_batch_of_one(n, size, sizes):
    batches = list(_batches(n, size, torch.Generator().manual_seed(0)))
    assert [len(batch) for batch in batches] == sizes
    assert sorted(torch.cat(batches).tolist()) == list(range(n))


def test_a_diverging_network_still_has_a_finite_error(task):
    _, progress = trained(task, {"learning_rate": 1e6}, looks=(5,))
    assert 0.0 <= progress.curves["validation_error"][-1] <= 1.0
    assert progress.curves["validation_loss"][-1] < float("inf")


def test_batchnorm_networks_train():
    x = torch.rand(33, 64)
    task = Task(Rows(x, torch.arange(33) % 3), Rows(x, torch.arange(33) % 3), 1.0, 3)
    make = networks.factory("networks_for_tests:normalised")
    network, _ = train(make, task, recipe(SGD, 2), train_curve=False)
    assert not network.training
