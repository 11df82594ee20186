"""The probe on models that others wrote: nothing missed, nothing invented."""

from __future__ import annotations

import gc
from functools import reduce

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import sitout
import zoo
from sites.tables import FAST, NEVER, TABLES

every_model = pytest.mark.parametrize("name", sorted(zoo.MODELS))

RANDOM = ("bernoulli", "rand", "uniform", "normal", "native_dropout", "_fused_dropout", "dropout")
NO_RATE = {  # models with a site whose rate stands in no attribute
    "hf-wav2vec2-augment": "SpecAugment",
    "pyg-dropout-edge": "a literal",
}


@pytest.fixture(autouse=True)
def _plain_memory():
    """Leave new memory as it is: filling it takes longer than these small models."""
    torch.use_deterministic_algorithms(False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def built(name):
    """Return model, inputs and keywords, or skip the test; seeds are fixed."""
    pytest.importorskip(zoo.package(name))
    model, args, kwargs = zoo.build(name)
    torch.manual_seed(0)
    np.random.seed(0)
    return model, args, kwargs


def test_every_model_has_its_table():
    assert sorted(TABLES) == sorted(zoo.MODELS)


@every_model
def test_the_sites_are_those_of_the_source_code(name):
    model, args, kwargs = built(name)
    found = sitout.sites(model, *args, **kwargs)
    assert [site.name for site in found] == [row.name for row in TABLES[name]], f"\n{found}"
    for site, row in zip(found, TABLES[name], strict=True):
        seen = (site.via, site.kind, site.shape, site.rate_at)
        assert seen == (row.via, row.kind, row.shape, row.rate_at), site
        assert site.p == (None if row.p is None else pytest.approx(row.p, rel=1e-6)), site
        assert site.calls == max(row.calls, 0), site
        assert (site.active_in_train, site.active_in_eval) == (row.on, False), site
        if row.on and row.kind not in ("subset", "layer_drop", "outside"):
            assert site.shared_dims == row.shared, site
        assert ("did not run" in site.note) == (row.calls == NEVER), site


@every_model
def test_a_measured_rate_is_near_the_one_asked_for(name):
    model, args, kwargs = built(name)
    for site in sitout.sites(model, *args, **kwargs):
        if site.measured is not None:
            seen, p = site.measured, site.p
            assert seen.bits >= 100
            assert abs(seen.rate - p) <= 4.5 * (p * (1 - p) / seen.bits) ** 0.5, site
        elif site.active_in_train and site.shape is not None and site.kind not in ("subset",):
            assert np.prod([site.shape[i] for i in kept_dims(site)]) < 100, site


def kept_dims(site):
    return [dim for dim in range(len(site.shape)) if dim not in site.shared_dims]


@every_model
def test_the_fast_path_of_torch_is_told_where_it_is_taken(name):
    model, args, kwargs = built(name)
    told = {site.name for site in sitout.sites(model, *args, **kwargs) if "fast path" in site.note}
    under = tuple(f"{root}." for root in FAST.get(name, ())), FAST.get(name, ())
    names = [row.name for row in TABLES[name]]
    assert told == {one for one in names if one.startswith(under[0]) or one in under[1]}


class Witness(TorchDispatchMode):
    """Counts random ops, and knows nothing of sitout."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        op = func._schema.name.removeprefix("aten::")
        self.count += op.startswith(RANDOM)
        return out


def random_ops(model, args, kwargs, *, training, seed=0):
    torch.manual_seed(seed)
    np.random.seed(seed)
    model.train(training)
    with Witness() as witness, torch.set_grad_enabled(training):
        model(*args, **kwargs)
    return witness.count


@every_model
def test_each_random_op_of_a_forward_belongs_to_a_site(name):
    model, args, kwargs = built(name)
    reported = sum(
        site.calls
        for site in sitout.sites(model, *args, **kwargs)
        if site.active_in_train and site.kind != "outside"
    )
    # LayerDrop leaves out the random ops of a layer now and then; the probe runs them all.
    drops_layers = any(row.kind == "layer_drop" for row in TABLES[name])
    seeds = range(25 if drops_layers else 1)
    assert max(random_ops(model, args, kwargs, training=True, seed=s) for s in seeds) == reported
    assert random_ops(model, args, kwargs, training=False) == 0


def holder(model, path):
    """Return the object that holds an attribute, and the attribute's name."""
    *parts, last = path.split(".")
    return reduce(getattr, parts, model), last


def outputs(model, args, kwargs, seed):
    torch.manual_seed(seed)
    np.random.seed(seed)
    return [leaf for leaf in tree_leaves(model(*args, **kwargs)) if isinstance(leaf, torch.Tensor)]


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@every_model
def test_with_every_rate_at_zero_training_is_deterministic(name):
    """If the probe had missed a site, two seeds would give two results."""
    model, args, kwargs = built(name)
    found = sitout.sites(model, *args, **kwargs)
    model.train()
    if any(site.active_in_train for site in found):
        first = outputs(model, args, kwargs, 0)
        assert not all(equal(first, outputs(model, args, kwargs, seed)) for seed in range(1, 20))
    assert (name in NO_RATE) == any(site.rate_at is None for site in found)
    for path in {site.rate_at for site in found} - {None}:
        setattr(*holder(model, path), 0.0)
    if name not in NO_RATE:
        assert equal(outputs(model, args, kwargs, 1), outputs(model, args, kwargs, 2))
    again = sitout.sites(model, *args, **kwargs)
    assert {site.name for site in again if site.active_in_train} == {
        site.name for site in found if site.rate_at is None
    }


@every_model
def test_rate_at_is_the_attribute_that_feeds_the_site(name):
    """Each attribute gets a rate of its own, and every site must then ask for its own."""
    model, args, kwargs = built(name)
    found = sitout.sites(model, *args, **kwargs)
    paths = dict.fromkeys(site.rate_at for site in found if site.rate_at is not None)
    rates = {path: 0.01 * (i + 1) / len(paths) + 0.02 for i, path in enumerate(paths)}
    for path, rate in rates.items():
        setattr(*holder(model, path), rate)
    again = sitout.sites(model, *args, **kwargs)
    assert [site.name for site in again] == [site.name for site in found]
    for site in again:
        if site.rate_at is not None:
            assert site.p == pytest.approx(rates[site.rate_at], rel=1e-6), site
    assert [site.rate_at for site in again] == [site.rate_at for site in found]


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict(keep_vars=True).items()}


@every_model
def test_the_model_and_the_generators_are_what_they_were(name):
    model, args, kwargs = built(name)
    for i, module in enumerate(model.modules()):
        module.training = i % 3 == 0
    modes, before = [module.training for module in model.modules()], state(model)
    numbers = torch.get_rng_state(), np.random.get_state()[1].tobytes()
    found = sitout.sites(model, *args, **kwargs)
    assert [module.training for module in model.modules()] == modes
    after = model.state_dict(keep_vars=True)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), numbers[0])
    assert np.random.get_state()[1].tobytes() == numbers[1]
    assert found.changed == []


@pytest.mark.parametrize("name", ["timm-swin-drop", "hf-bart", "torch-transformer"])
def test_no_tensor_stays_behind(name):
    model, args, kwargs = built(name)
    sitout.sites(model, *args, **kwargs)  # what libraries cache at first
    gc.collect()
    before = sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects())
    kept = sitout.sites(model, *args, **kwargs)
    gc.collect()
    assert sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects()) == before
    assert kept
