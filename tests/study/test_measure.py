"""Errors, silenced units, and the unit that matters most."""

from __future__ import annotations

import pytest
import torch

from sitout import nn
from sitout._study import measure, networks


def leader(width=20):
    """A network in which hidden unit 7 of the second site does all the work."""
    network = networks.mlp((4,), 2, width, 2)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        network.hidden1.weight[3, 0] = 1.0
        network.hidden2.weight[7, 3] = 1.0
        network.output.weight[1, 7] = 1.0
        network.output.bias[0] = 0.5
    return network.eval()


@pytest.fixture
def rows():
    x = torch.rand(200, 4, generator=torch.Generator().manual_seed(0)) * 1.0
    return x, (x[:, 0] > 0.5).long()


def test_the_errors_are_those_of_the_definitions():
    out = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]])
    assert measure.error_of(out, torch.tensor([1, 1, 1]), 1.0) == pytest.approx(1 / 3)
    values, wanted = torch.tensor([[1.0], [2.0]]), torch.tensor([0.0, 0.0])
    assert measure.error_of(values, wanted, 10.0) == pytest.approx(10 * (2.5**0.5))
    assert float(measure.loss_of(values, wanted)) == pytest.approx(2.5)


def test_hidden_sites_are_those_behind_a_layer_with_weights(rows):
    assert measure.hidden_units(leader(), rows[0]) == {"dropout1": (-1, 20), "dropout2": (-1, 20)}


def test_channels_are_the_units_of_images():
    make = networks.factory("networks_for_tests:convolutional")
    network = networks.build(make, (64,), 3)
    assert measure.hidden_units(network, torch.rand(4, 64)) == {"3": (1, 4), "5": (-1, 144)}


def test_nothing_silenced_is_the_plain_error_and_more_is_worse(rows):
    network = leader()
    errors = measure.silencing(network, *rows, 1.0, seed=3)
    assert errors[0] == measure.error_of(measure.predict(network, rows[0]), rows[1], 1.0) == 0.0
    assert len(errors) == len(measure.FRACTIONS)
    assert max(errors[5:]) > 0.2


def test_equal_seeds_silence_the_same_units(rows):
    one, again = (measure.silencing(leader(), *rows, 1.0, seed=3) for _ in range(2))
    assert one == again
    assert one != measure.silencing(leader(), *rows, 1.0, seed=4)


def test_the_worst_unit_is_found_and_its_harm_measured_on_other_rows(rows):
    site, unit, harm = measure.worst_unit(leader(), *rows, 1.0)
    assert (site, unit) in {("dropout1", 3), ("dropout2", 7)}
    others = rows[1][1::2]
    assert harm == pytest.approx(float(others.double().mean()))


def test_measuring_changes_nothing(rows):
    network = leader().train()
    before = {name: t.clone() for name, t in network.state_dict().items()}
    state = torch.get_rng_state()
    measure.silencing(network, *rows, 1.0, seed=3)
    measure.worst_unit(network, *rows, 1.0)
    assert network.training
    assert all(torch.equal(t, before[name]) for name, t in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    hooks = [(m._forward_hooks, m._forward_pre_hooks) for m in network.modules()]
    assert not any(after or before for after, before in hooks)
    assert torch.equal(state, torch.get_rng_state())


def test_a_network_without_hidden_sites_has_no_curve(rows):
    network = torch.nn.Sequential(nn.Dropout(0.1), torch.nn.Linear(4, 2))
    assert measure.silencing(network, *rows, 1.0, seed=0) is None
    assert measure.worst_unit(network, *rows, 1.0) is None
