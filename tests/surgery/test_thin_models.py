"""thin on real networks: the same functions, parameters and masks, with less computed."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import sitout
from sitout import MaskClock, thin
from sitout.functional import keep_units
from surgery.chains import CHAINS, build, run
from surgery.networks import same_tree, tree

HAS_NORM = {"mlp", "conv1d", "conv2d", "conv3d"}
STEP = 3


@pytest.fixture(params=CHAINS)
def name(request):
    return request.param


def groups_of(name):
    return 1 if name in HAS_NORM else 3


class Oracle(nn.Module):
    """Multiplies by the mask that is built from the units of a key."""

    def __init__(self, site, key, batch_dim):
        super().__init__()
        self.site, self.key, self.batch_dim = site, key, batch_dim

    def forward(self, x):
        site, batch_dim = self.site, self.batch_dim
        n, batch = x.shape[site.dim], x.shape[batch_dim]
        kept = keep_units(x, n, site.p, groups=site.groups, batch_dim=batch_dim, key=self.key)
        size = -(-batch // site.groups)
        mask = torch.zeros(batch, n, dtype=x.dtype)
        for row in range(batch):
            units = kept.units[row // size]
            mask[row, units] = n / len(units)
        sizes = [1] * x.dim()
        sizes[site.dim], sizes[batch_dim] = n, batch
        return x * (mask.t() if batch_dim > site.dim % x.dim() else mask).reshape(sizes)


def trained(model, x):
    """Return the output of a step and all gradients."""
    x = x.clone().requires_grad_()
    model.zero_grad()
    out = run(model, x)
    out = out[0] if isinstance(out, tuple) else out
    (out * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum().backward()
    return [out.detach(), x.grad, *(p.grad for p in model.parameters())]


def clocked(model, x):
    with MaskClock(model, seed=7).at(STEP):
        return trained(model, x)


def close(one, other):
    pairs = zip(one, other, strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_evaluation_is_the_same_to_the_bit_and_undo_gives_the_very_modules_back(name):
    model, x, sites = build(name)
    out, before = run(model.eval(), x), tree(model)
    with torch.no_grad():
        fast = run(model, x)
    change = thin(model)
    assert change.sites == sites
    assert torch.equal(run(model, x), out)
    with torch.no_grad():
        assert torch.equal(run(model, x), fast)
    assert not same_tree(tree(model), before)
    change.undo()
    assert same_tree(tree(model), before)
    assert torch.equal(run(model, x), out)


def test_a_thinned_step_equals_the_masked_one_and_the_network_with_those_units_zeroed(name):
    model, x, sites = build(name)
    masked, dense = copy.deepcopy(model), copy.deepcopy(model)
    groups = groups_of(name)
    thin(model, groups, form="thinned")
    thin(masked, groups, form="masked")
    clock = MaskClock(model, seed=7)
    for site in sites:
        second = name == "encoder layer"  # [T, B, C]
        oracle = Oracle(model.get_submodule(site), clock.key(site, STEP), int(second))
        parent, _, child = site.rpartition(".")
        dense.get_submodule(parent)._modules[child] = oracle
    with clock.at(STEP):
        made = trained(model, x)
    close(made, clocked(masked, x))
    close(made, trained(dense, x))


def test_a_thinned_layer_computes_the_kept_units_alone(name):
    model, x, sites = build(name)
    thin(model, form="thinned")
    seen = {}
    for site in sites:
        layer = model.get_submodule(site)
        layer.register_forward_hook(
            lambda layer, args, out, site=site: seen.update({site: out.shape[layer.dim]})
        )
    run(model, x)
    for site in sites:
        layer = model.get_submodule(site)
        n = next(
            getattr(one, "out_features", None) or one.out_channels
            for one in model.modules()
            if getattr(one, "_before", None) == (layer, 1)
        )
        assert seen[site] == n - round(layer.p * n)


def test_parameters_keep_their_identity_names_and_order(name):
    model, _, _ = build(name)
    parameters, state = list(model.named_parameters()), model.state_dict(keep_vars=True)
    buffers, order = list(model.named_buffers()), [one for one, _ in model.named_modules()]
    change = thin(model)
    for _ in range(2):
        new = model.state_dict(keep_vars=True)
        assert list(new) == list(state)
        assert all(new[key] is value for key, value in state.items())
        for old, now in ((parameters, model.named_parameters()), (buffers, model.named_buffers())):
            assert [(key, id(one)) for key, one in old] == [(key, id(one)) for key, one in now]
        assert [one for one, _ in model.named_modules()] == order
        change.undo()


def test_finding_leaves_no_trace(name):
    """RNG, modes, buffers, attributes and the class of nn.Module are what they were."""
    model, _, _ = build(name)
    first = next(model.modules())
    some = next(one for one in model.modules() if isinstance(one, nn.modules.dropout._DropoutNd))
    some.eval()
    before = torch.get_rng_state(), nn.Module.__call__, nn.Module.__getattr__
    state = {key: value.clone() for key, value in model.state_dict().items()}
    attributes = {id(one): dict(vars(one)) for one in model.modules()}
    thin(model).undo()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (nn.Module.__call__, nn.Module.__getattr__) == before[1:]
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert all(
        vars(one).keys() == attributes[id(one)].keys()
        and all(value is attributes[id(one)][key] for key, value in vars(one).items())
        for one in model.modules()
    )
    assert first.training
    assert not some.training


@pytest.mark.parametrize("copied", ["deepcopy", "pickle", "save"])
def test_a_copy_trains_alike(name, copied, tmp_path):
    model, x, _ = build(name)
    thin(model, form="thinned")
    run(model, x)
    if copied == "deepcopy":
        other = copy.deepcopy(model)
    elif copied == "pickle":
        other = pickle.loads(pickle.dumps(model))
    else:
        torch.save(model, tmp_path / "model.pt")
        other = torch.load(tmp_path / "model.pt", weights_only=False)
    mine, theirs = clocked(model, x), clocked(other, x)
    assert all(map(torch.equal, mine, theirs))
    assert {id(one) for one in model.modules()}.isdisjoint(id(one) for one in other.modules())


def test_an_optimizer_made_before_goes_on(name):
    model, x, _ = build(name)
    other = copy.deepcopy(model)
    thin(other, form="thinned")
    after = torch.optim.AdamW(other.parameters(), lr=0.1, weight_decay=0.1)
    before = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    change = thin(model, form="thinned")
    clocked(model, x)
    clocked(other, x)
    before.step()
    after.step()
    assert all(map(torch.equal, model.parameters(), other.parameters()))
    weights = [one.detach().clone() for one in model.parameters()]
    change.undo()
    assert all(map(torch.equal, model.parameters(), weights))


def test_the_probe_sees_what_drops_and_the_form_comes_back(name):
    model, x, sites = build(name)
    thin(model, form="thinned")
    inputs = (x, x) if isinstance(model, nn.TransformerDecoderLayer) else (x,)
    found = sitout.sites(model, *inputs)
    active = {site.name: site for site in found if site.active_in_train}
    assert set(active) == set(sites)
    for site in active.values():
        layer = model.get_submodule(site.name)
        assert site.p == layer.p
        assert layer.batch_dim not in site.shared_dims or layer.groups == 1
        assert site.shape[layer.dim] >= 32
        assert not site.active_in_eval
        assert layer.form == "thinned"
    assert found.changed == ["steps"] * (name == "untraceable")
