"""Thinned layers equal the dense network with the same units dropped, and compute less."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
import re
import threading

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

from battery import ticket
from sitout import MaskClock, MaskKey, nn
from sitout import functional as F
from sitout.backends import Kept, least_rate, use
from sitout.masks import kept_units
from thinning import (
    NETS,
    NORMED,
    UNITS,
    close,
    conv,
    dense,
    mlp,
    pair,
    results,
    sites_of,
    tickets,
)

KEY = MaskKey(seed=2**40 + 7, site=4, step=9, call=1)
RATES = [1e-12, 0.05, 0.3, 0.5, 0.9, 1.0]

every_net = pytest.mark.parametrize("name", NETS)
every_form = pytest.mark.parametrize("form", ["thinned", "masked"])
torch_imports = pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")


@pytest.fixture
def _fresh_dynamo():
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield
    torch._dynamo.reset()


compiles = pytest.mark.usefixtures("_fresh_dynamo")


def make(name, dtype=torch.float64, **options):
    """Return a network and its input."""
    net, shape = NETS[name]
    return net(**options).to(dtype), torch.randn(shape, dtype=dtype)


def at_seed(seed, run, *inputs, **options):
    torch.manual_seed(seed)
    return run(*inputs, **options)


# Which units play


@pytest.mark.parametrize("p", [0.0, *RATES])
@pytest.mark.parametrize("batch", [0, 1, 7, 13])
@pytest.mark.parametrize("groups", [1, 3, 13])
def test_units_are_those_of_the_specification_for_each_group(batch, groups, p):
    x, size = torch.empty(batch, 3), max(-(-batch // groups), 1)
    kept = F.keep_units(x, UNITS, p, groups=groups, key=KEY)
    each = max(-(-batch // size), 1)
    wanted = [kept_units(KEY, p, UNITS, group=group) for group in range(each)]
    assert torch.equal(kept.units, torch.stack(wanted))
    assert (kept.n, kept.step, kept.of) == (UNITS, size, None)
    k = kept.units.shape[1]
    assert kept.scale == (UNITS / k if k else UNITS)


def test_groups_of_rows_go_by_their_global_positions():
    """Micro-batches have the units of the whole, and other ranks have others."""
    whole = F.keep_units(torch.empty(12, 1), UNITS, group_size=4, key=KEY)
    for rows in torch.arange(12).split(4):
        part = F.keep_units(torch.empty(4, 1), UNITS, group_size=4, key=KEY, rows=rows)
        assert torch.equal(part.units[0], whole.units[int(rows[0]) // 4])
        assert part.of is None
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(whole.units, 2))
    far = F.keep_units(
        torch.empty(2, 1), UNITS, group_size=4, key=KEY, rows=torch.tensor([2**32 - 2, 2**32 - 1])
    )
    assert torch.equal(far.units[0], kept_units(KEY, 0.5, UNITS, group=2**30 - 1))


@pytest.mark.parametrize("rows", [[5, 0, 9, 1], [0, 4, 1, 5], [2, 3, 4, 5], [7, 7, 0, 0]], ids=str)
def test_rows_in_any_order_have_the_units_of_their_groups(rows):
    x, rows = torch.ones(4, UNITS), torch.tensor(rows)
    kept = F.keep_units(x, UNITS, group_size=4, key=KEY, rows=rows)
    y = F.thinned_dropout(x, kept)
    for one, row in zip(y, rows.tolist(), strict=True):
        units = kept_units(KEY, 0.5, UNITS, group=row // 4)
        assert torch.equal(one.nonzero().flatten(), units)


@pytest.mark.parametrize("x", [torch.ones(4, 3), torch.ones(4, 0), torch.ones(0, 3)], ids=str)
@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
def test_a_ticket_is_drawn_where_something_hangs_on_it(x, p):
    state = torch.get_rng_state()
    key = ticket()
    kept = F.keep_units(x, UNITS, p)
    drawn = not torch.equal(torch.get_rng_state(), state)
    assert drawn == (p == 0.5 and x.numel() > 0)
    if drawn:
        assert torch.equal(kept.units[0], kept_units(key, p, UNITS))
    generator = torch.Generator().manual_seed(3)
    first = F.keep_units(x, UNITS, p, generator=generator)
    assert torch.equal(generator.get_state(), torch.Generator().manual_seed(3).get_state()) != drawn
    again = F.keep_units(x, UNITS, p, generator=generator.manual_seed(3))
    assert torch.equal(first.units, again.units)


def test_the_reference_has_the_same_units():
    x = torch.empty(9, 2)
    kept = F.keep_units(x, 101, 0.3, groups=3, key=KEY)
    with use("reference"):
        assert torch.equal(F.keep_units(x, 101, 0.3, groups=3, key=KEY).units, kept.units)


# The masked form


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("groups", [1, 3, 7])
@pytest.mark.parametrize(("shape", "dim", "batch_dim"), [
    ((7, UNITS), -1, 0),
    ((7, UNITS), 1, 0),
    ((7, 3, UNITS), -1, 0),
    ((3, 7, UNITS), -1, 1),
    ((7, UNITS, 3, 2), 1, 0),
    ((UNITS, 7, 3), 0, 1),
    ((UNITS, 7, 3), 0, -2),
])  # fmt: skip
def test_the_masked_form_selects_what_each_group_keeps(shape, dim, batch_dim, groups, dtype):
    x = torch.randn(shape).to(dtype)
    kept = F.keep_units(x, UNITS, 0.3, groups=groups, batch_dim=batch_dim, key=KEY)
    mask = torch.zeros(7, UNITS, dtype=torch.bool)
    for row in range(7):
        mask[row, kept.units[row // kept.step]] = True
    turned = mask.view(7, UNITS, *[1] * (len(shape) - 2))
    mask = turned.movedim((0, 1), (batch_dim % len(shape), dim % len(shape))).expand(shape)
    poisoned = torch.where(mask, x, math.nan)
    for given in (poisoned, torch.stack([poisoned, x], -1)[..., 0]):
        leaf = given.detach().requires_grad_()
        y = F.thinned_dropout(leaf, kept, dim=dim, batch_dim=batch_dim)
        wanted = torch.where(mask, x * (UNITS / 14), 0.0)
        assert y.dtype == dtype
        assert torch.equal(y, wanted)
        upstream = torch.where(mask, x, math.nan)
        (grad,) = torch.autograd.grad(y, leaf, upstream)
        assert torch.equal(grad, wanted)


@pytest.mark.parametrize("shape", [(UNITS,), (1, UNITS), (0, UNITS), (3, 0, UNITS)])
@pytest.mark.parametrize("groups", [1, 3])
def test_a_site_alone_masks_at_the_ticket_that_it_draws(shape, groups):
    """A sample without a batch is row 0."""
    x, key = torch.randn(shape), ticket()
    y = nn.ThinnedDropout(0.5, groups=groups)(x)
    rows = x if x.dim() > 1 else x[None]
    wanted = F.thinned_dropout(rows, F.keep_units(rows, UNITS, groups=groups, key=key))
    assert torch.equal(y, wanted.view(shape))


def test_the_masked_form_has_gradients_of_every_order():
    x = torch.randn(4, UNITS, dtype=torch.float64, requires_grad=True)
    for groups in (1, 3):
        kept = F.keep_units(x, UNITS, groups=groups, key=KEY)
        assert torch.autograd.gradcheck(lambda x, k=kept: F.thinned_dropout(x.sin(), k), x)
        assert torch.autograd.gradgradcheck(
            lambda x, k=kept: F.thinned_dropout(x.sin(), k).square(), x
        )


# The functions


def linear_cases():
    """Yield inputs of a linear layer, and the subsets before and behind it."""
    for shape in [(1, 30), (7, 30), (7, 3, 30), (2, 2, 3, 30), (300, 30), (0, 30), (2, 0, 30)]:
        for groups, p in itertools.product((1, 3), (0.5, 0.9, 1.0)):
            x = torch.empty(shape)
            before = F.keep_units(x, 30, p, groups=groups, key=KEY)
            behind = F.keep_units(x, 101, 0.3, groups=groups, key=KEY)
            yield from ((shape, before, None), (shape, None, behind), (shape, before, behind))
            if p == 1.0:
                yield shape, None, F.keep_units(x, 101, p, groups=groups, key=KEY)


def whole_linear(x, weight, bias, kept_in, kept_out):
    """Return a thinned linear layer, made of the dense one."""
    parts = []
    for i, part in enumerate(x.split((kept_in or kept_out).step)):
        some_weight, some_bias = weight, bias
        if kept_in is not None:
            units = kept_in.units[i]
            part = part.new_zeros(*part.shape[:-1], kept_in.n).index_copy(-1, units, part)
            part = part * kept_in.scale
        if kept_out is not None:
            units = kept_out.units[i]
            some_weight, some_bias = weight[units], None if bias is None else bias[units]
        parts.append(torch.nn.functional.linear(part, some_weight, some_bias))
    return torch.cat(parts)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_thinned_linear_layer_is_rows_and_columns_of_the_dense_one(dtype):
    every = (
        linear_cases() if dtype == torch.float64 else itertools.islice(linear_cases(), 3, None, 5)
    )
    for number, (shape, kept_in, kept_out) in enumerate(every):
        k = 30 if kept_in is None else kept_in.units.shape[1]
        x, weight = torch.randn(*shape[:-1], k).to(dtype), torch.randn(101, 30).to(dtype) / 6
        if number % 3 == 1:
            x, weight = torch.stack([x, -x], -1)[..., 0], weight.t().contiguous().t()
        bias = torch.randn(101).to(dtype) if number % 2 else None
        leaves = [one.requires_grad_() for one in (x, weight, bias) if one is not None]
        wide = [one.detach().double().requires_grad_() for one in leaves]
        made = F.thinned_linear(x, weight, bias, kept_in=kept_in, kept_out=kept_out)
        wanted = whole_linear(*[*wide, None][:3], kept_in, kept_out)
        upstream = torch.randn(wanted.shape).to(dtype)
        grads = torch.autograd.grad(made, leaves, upstream)
        wide_grads = torch.autograd.grad(wanted, wide, upstream.double(), allow_unused=True)
        filled = [
            torch.zeros_like(a) if g is None else g for a, g in zip(wide, wide_grads, strict=True)
        ]
        assert made.dtype == dtype
        assert close([made.detach(), *grads], [wanted.detach(), *filled]), (
            shape,
            kept_in,
            kept_out,
        )


def test_only_kept_rows_and_columns_get_a_gradient_and_it_is_dense():
    x = torch.randn(8, 15)
    weight, bias = torch.randn(20, 30, requires_grad=True), torch.randn(20, requires_grad=True)
    kept_in = F.keep_units(x, 30, key=KEY)
    kept_out = F.keep_units(x, 20, 0.3, key=KEY)
    F.thinned_linear(x, weight, bias, kept_in=kept_in, kept_out=kept_out).sum().backward()
    touched = torch.zeros(20, 30, dtype=torch.bool)
    touched[kept_out.units[0][:, None], kept_in.units[0]] = True
    assert weight.grad.layout == torch.strided
    assert torch.equal(weight.grad != 0, touched)
    assert torch.equal(bias.grad.nonzero().flatten(), kept_out.units[0])


@pytest.mark.parametrize("groups", [1, 2])
def test_a_thinned_linear_layer_has_gradients_of_every_order(groups):
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(6, dtype=torch.float64, requires_grad=True)
    kept_in = F.keep_units(x, 4, groups=groups, key=KEY)
    kept_out = F.keep_units(x, 6, groups=groups, key=KEY)

    def f(x, weight, bias):
        return F.thinned_linear(x.sin(), weight.cos(), bias, kept_in=kept_in, kept_out=kept_out)

    assert torch.autograd.gradcheck(f, (x, weight, bias))
    assert torch.autograd.gradgradcheck(lambda *given: f(*given).square(), (x, weight, bias))
    assert torch.autograd.gradgradcheck(lambda x, weight: f(x, weight, None), (x, weight))
    frozen = weight.detach()
    assert torch.autograd.gradgradcheck(lambda x: f(x, frozen, None).square(), (x,))


def test_frozen_parameters_and_inputs_get_no_gradient():
    x, weight, bias = torch.randn(3, 4), torch.randn(6, 4), torch.randn(6)
    kept = F.keep_units(x, 6, key=KEY)
    for trained in itertools.product((False, True), repeat=3):
        given = [
            a.clone().requires_grad_(t) for a, t in zip((x, weight, bias), trained, strict=True)
        ]
        y = F.thinned_linear(*given, kept_out=kept)
        assert y.requires_grad == any(trained)
        if any(trained):
            y.sum().backward()
        assert [one.grad is not None for one in given] == list(trained)


@pytest.mark.parametrize("groups", [1, 2, 5])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_a_thinned_convolution_is_channels_of_the_dense_one(dims, groups):
    x = torch.randn(5, 6, *(5, 4, 3)[:dims], dtype=torch.float64)
    weight = torch.randn(10, 12, *[2] * dims, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(10, dtype=torch.float64, requires_grad=True)
    kept_in, kept_out = (F.keep_units(x, n, groups=groups, key=KEY) for n in (12, 10))
    conv = getattr(torch.nn.functional, f"conv{dims}d")
    plain = {"stride": 2, "padding": 1, "dilation": 2}
    made = F.thinned_conv(x, weight, bias, **plain, kept_in=kept_in, kept_out=kept_out)
    rows = []
    for i, row in enumerate(x):
        there, here = kept_in.units[i // kept_in.step], kept_out.units[i // kept_out.step]
        full = row.new_zeros(12, *row.shape[1:])
        full[there] = row * 2
        rows.append(conv(full[None], weight[here], bias[here], **plain)[0])
    wanted, upstream = torch.stack(rows), torch.randn(made.shape, dtype=torch.float64)
    grads = [torch.autograd.grad(y, (weight, bias), upstream) for y in (made, wanted)]
    assert close([made.detach(), *grads[0]], [wanted.detach(), *grads[1]])


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("tracked", [False, True])
@pytest.mark.parametrize(
    "shape", [(6, UNITS), (6, UNITS, 3), (3, UNITS, 2, 2), (2, UNITS, 2, 1, 2)]
)
def test_kept_channels_have_the_statistics_that_they_have_in_the_full_network(
    shape, tracked, affine
):
    x = torch.randn(shape, dtype=torch.float64)
    kept = F.keep_units(x, UNITS, 0.3, key=KEY)
    units = kept.units[0]
    mean, var, weight, bias = torch.rand(4, UNITS, dtype=torch.float64)
    ours = [mean.clone(), var.clone()] if tracked else [None, None]
    theirs = [mean.clone(), var.clone()] if tracked else [None, None]
    scale = [weight, bias] if affine else [None, None]
    made = F.thinned_batch_norm(x[:, units], *ours, *scale, kept, 0.3, 1e-3)
    wanted = torch.nn.functional.batch_norm(x, *theirs, *scale, True, 0.3, 1e-3)
    assert torch.allclose(made, wanted[:, units])
    out = torch.ones(UNITS, dtype=torch.bool).index_fill(0, units, False)
    for own, before, full in zip(ours, (mean, var), theirs, strict=True) if tracked else ():
        assert torch.allclose(own[units], full[units])
        assert torch.equal(own[out], before[out])
        assert not torch.equal(own[units], before[units])
    if tracked:
        held = [one.clone() for one in ours]
        frozen = F.thinned_batch_norm(x[:, units], *ours, *scale, kept, training=False)
        wanted = torch.nn.functional.batch_norm(x, *ours, *scale, False)
        assert torch.allclose(frozen, wanted[:, units])
        assert all(map(torch.equal, ours, held))


# Networks


@pytest.mark.parametrize(("form", "p"), [
    *(("thinned", p) for p in (1e-12, 0.3, 0.5, 0.9, 1.0)),
    ("masked", 0.3),
    ("masked", 1.0),
])  # fmt: skip
@pytest.mark.parametrize("groups", [1, 3, 13])
@every_net
def test_a_network_is_the_dense_one_with_the_same_units_dropped(name, form, groups, p):
    net, x = make(name, p=p, form=form, groups=groups)
    keys = tickets(len(sites_of(net)))
    if p == 1.0:
        keys = [MaskKey()] * len(keys)
    wanted = results(dense(net, x, keys), x)
    assert close(results(net, x), wanted)
    if p == 1.0:
        bias = [module for module in net.modules() if hasattr(module, "weight")][-1].bias
        if name != "forked":
            flat = net(x).movedim(1 if "conv" in name else -1, -1)
            assert torch.equal(
                flat, (torch.zeros(1).double() if bias is None else bias).expand_as(flat)
            )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("name", ["mlp", "gated", "conv2d"])
def test_a_network_in_a_narrow_type_is_that_in_a_wide_one_to_rounding(name, groups, dtype):
    net, x = make(name, dtype, groups=groups)
    keys = tickets(len(sites_of(net)))
    wanted = results(dense(net.double(), x.double(), keys), x.double())
    made = results(net.to(dtype), x)
    assert {one.dtype for one in made} == {dtype}
    assert close(made, wanted)


@pytest.mark.parametrize("shape", [(0, 7), (1, 7), (7,), (2, 0, 7), (1, 1, 7)], ids=str)
@pytest.mark.parametrize("groups", [1, 3])
def test_small_batches_and_a_sample_alone_have_both_forms(shape, groups):
    """A sample without a batch is row 0."""
    x, made = torch.randn(shape, dtype=torch.float64), []
    torch.manual_seed(1)
    net = mlp(groups=groups).double()
    for form in ("thinned", "masked"):
        for site in sites_of(net):
            site.form = form
        made.append(at_seed(5, results, net, x))
    assert close(*made)
    assert made[0][0].shape == (*shape[:-1], 5)
    if x.numel():
        rows = x if x.dim() > 1 else x[None]
        torch.manual_seed(5)
        wanted = results(dense(net, rows, tickets(2)), rows)
        assert close([made[0][0].view(-1), *made[0][2:]], [wanted[0].view(-1), *wanted[2:]])


def test_an_input_of_any_layout_gives_the_same():
    net, x = make("mlp")
    wanted = at_seed(5, results, net, x)
    for other in (x.t().contiguous().t(), torch.stack([x, -x], -1)[..., 0]):
        assert not other.is_contiguous()
        assert close(at_seed(5, results, net, other), wanted)
    for module in net:
        if isinstance(module, nn.ThinnedLinear):
            module.weight.data = module.weight.data.t().contiguous().t()
    assert close(at_seed(5, results, net, x), wanted)


@pytest.mark.parametrize("groups", [1, 3])
def test_samples_along_another_dim_have_the_units_of_their_group(groups):
    net, _ = make("mlp", groups=groups)
    for site in sites_of(net):
        site.batch_dim = 1
    x = torch.randn(3, 13, 7, dtype=torch.float64)
    thin = groups == 1
    assert sites_of(net)[0].explain(x).backend == ("thinned" if thin else "masked")
    made = at_seed(5, net, x)
    for site in sites_of(net):
        site.batch_dim = 0
    assert close([made.detach()], [at_seed(5, net, x.transpose(0, 1)).transpose(0, 1).detach()])


@pytest.mark.parametrize("p", [0.3, 0.5])
@every_form
@pytest.mark.parametrize("name", NORMED)
def test_batch_normalization_in_a_chain_is_that_of_the_dense_network(name, form, p):
    build, shape = NORMED[name]
    net, x = build(p, form=form).double(), torch.randn(shape, dtype=torch.float64)
    keys = tickets(2)
    full = dense(net, x, keys)
    wanted = results(full, x)
    units = kept_units(keys[0], p, UNITS)
    assert close(results(net, x), wanted, least=1.0)
    for (key, made), theirs in zip(net[1].named_buffers(), full[1].buffers(), strict=True):
        if form == "masked" or made.dim() == 0:
            assert torch.allclose(made, theirs)
        else:
            assert torch.allclose(made[units], theirs[units])
            rest = torch.ones(UNITS, dtype=torch.bool).index_fill(0, units, False)
            assert (made[rest] == (0.0 if key == "running_mean" else 1.0)).all()


@pytest.mark.parametrize("name", NORMED)
def test_frozen_batch_normalization_in_a_chain_uses_its_statistics_and_leaves_them(name):
    build, shape = NORMED[name]
    net, x = build().double(), torch.randn(shape, dtype=torch.float64)
    net[1].running_mean.uniform_(-1, 1)
    net[1].running_var.uniform_(1, 2)
    net[1].eval()
    before = copy.deepcopy(net[1].state_dict())
    wanted = results(dense(net, x, tickets(2)), x)
    assert close(results(net, x), wanted)
    assert all(torch.equal(now, before[key]) for key, now in net[1].state_dict().items())


def test_a_mode_of_a_layer_changes_nothing_for_its_site_decides():
    net, x = make("mlp")
    wanted = at_seed(5, results, net, x)
    for module in net:
        if isinstance(module, nn.ThinnedLinear):
            module.eval()
    assert close(at_seed(5, results, net, x), wanted)


@pytest.mark.parametrize("how", ["eval", "p"])
@pytest.mark.parametrize("name", [*NETS, *(f"{name} normed" for name in NORMED)])
def test_in_evaluation_and_at_p_0_it_is_torchs_own_to_the_bit_and_draws_nothing(name, how):
    build, shape = {**NETS, **{f"{key} normed": one for key, one in NORMED.items()}}[name]
    net, x = build(p=0.0 if how == "p" else 0.5), torch.randn(shape)
    if how == "eval":
        net.eval()
    full = copy.deepcopy(net)
    for key, module in list(full.named_modules()):
        parent, _, child = key.rpartition(".")
        if isinstance(module, nn.ThinnedDropout):
            setattr(full.get_submodule(parent), child, torch.nn.Identity())
        elif type(module).__name__.startswith("Thinned") and hasattr(module, "weight"):
            twin = copy.copy(module)
            twin.__class__ = getattr(torch.nn, type(module).__name__.removeprefix("Thinned"))
            setattr(full.get_submodule(parent), child, twin)
    state = torch.get_rng_state()
    made, wanted = results(net, x), results(full, x)
    assert all(map(torch.equal, made, wanted))
    assert torch.equal(torch.get_rng_state(), state)


@every_form
@every_net
def test_one_ticket_is_drawn_for_each_site_and_the_seed_repeats_them(name, form):
    net, x = make(name, form=form)
    first, state = at_seed(3, net, x), torch.get_rng_state()
    torch.manual_seed(3)
    for _ in sites_of(net):
        torch.randint(-(2**63), 2**63 - 1, ())
    assert torch.equal(torch.get_rng_state(), state)
    second = net(x)
    assert not torch.equal(first, second)
    assert torch.equal(at_seed(3, net, x), first)
    assert torch.equal(net(x), second)


def test_a_generator_of_its_own_governs_a_site():
    generator = torch.Generator().manual_seed(7)
    site = nn.ThinnedDropout(0.5, form="thinned", generator=generator)
    net = torch.nn.Sequential(
        nn.ThinnedLinear(7, UNITS, before=site), site, nn.ThinnedLinear(UNITS, 5, after=site)
    )
    x, state = torch.randn(6, 7), torch.get_rng_state()
    first = net(x)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(net(x), first)
    generator.manual_seed(7)
    assert torch.equal(net(x), first)


@pytest.mark.parametrize("make_activation", [
    lambda: torch.nn.ReLU(inplace=True),
    lambda: torch.nn.SiLU(inplace=True),
    lambda: torch.nn.Hardtanh(inplace=True),
])  # fmt: skip
@pytest.mark.parametrize("shape", [(6, 7), (6, 3, 7), (7,)])
@pytest.mark.parametrize("groups", [1, 3])
def test_what_is_in_place_between_the_layers_may_write_into_their_output(
    make_activation, shape, groups
):
    x = torch.randn(shape, dtype=torch.float64)
    torch.manual_seed(1)
    inplace = mlp(activation=make_activation, groups=groups).double()
    plain = copy.deepcopy(inplace)
    for module in plain:
        if hasattr(module, "inplace") and not isinstance(module, nn.ThinnedDropout):
            module.inplace = False
    assert close(at_seed(5, results, inplace, x), at_seed(5, results, plain, x))


def test_nan_in_what_sits_out_does_not_leak():
    """Rows of a weight that are not kept are not read, forward or backward."""
    for form in ("thinned", "masked"):
        net, x = make("pair", form=form)
        (key,) = tickets(1)
        units = kept_units(key, 0.5, UNITS)
        out = torch.ones(UNITS, dtype=torch.bool).index_fill(0, units, False)
        net[0].weight.data[out], net[0].bias.data[out] = math.nan, math.nan
        x.requires_grad_()
        y = net(x)
        y.sum().backward()
        assert y.isfinite().all()
        assert net[3].weight.grad.isfinite().all()
        assert not net[3].weight.grad[:, out].any()
        if form == "thinned":
            assert x.grad.isfinite().all()
            assert not net[0].weight.grad[out].any()


# Autograd


def double_gradient(parameter):
    parameter.grad *= 2


@pytest.mark.parametrize("name", ["mlp", "gated", "forked"])
def test_all_ways_to_a_gradient_give_the_same(name):
    net, x = make(name)
    wanted = at_seed(5, results, net, x)[2:]
    seen = []

    def loss():
        y = at_seed(5, net, x)
        return (y * torch.linspace(-1, 2, y.numel()).view(y.shape)).square().sum()

    params = list(net.parameters())
    handles = [one.register_hook(seen.append) for one in params]
    last = loss()
    last.backward(retain_graph=True)
    assert close([one.grad for one in params], wanted)
    assert {one.grad.layout for one in params} == {torch.strided}
    assert len(seen) == len(params)
    last.backward()
    assert close([one.grad / 2 for one in params], wanted)
    for handle in handles:
        handle.remove()
    net.zero_grad()
    hook = params[0].register_post_accumulate_grad_hook(double_gradient)
    loss().backward()
    hook.remove()
    assert close([params[0].grad / 2, *[one.grad for one in params[1:]]], wanted)
    only = torch.autograd.grad(loss(), params[1:2])
    assert close([*only], wanted[1:2])


@pytest.mark.parametrize("name", ["mlp", "gated", "conv2d"])
@pytest.mark.parametrize("groups", [1, 3])
def test_a_network_has_gradients_of_every_order(name, groups):
    net, _ = (
        make(name, activation=torch.nn.Tanh, groups=groups)
        if name == "mlp"
        else make(name, groups=groups)
    )
    shape = (2, 3, 2, 2) if name == "conv2d" else (4, 7)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    full = dense(net, x, at_seed(5, tickets, 2))
    made, wanted = [], []
    for model, out in ((net, made), (full, wanted)):
        torch.manual_seed(5)
        params = [x, *model.parameters()]
        grads = torch.autograd.grad(model(x).square().sum(), params, create_graph=True)
        again = sum(grad.square().sum() for grad in grads)
        out += torch.autograd.grad(again, params)
    assert close(made, wanted, 256)
    assert torch.autograd.gradcheck(lambda x: at_seed(5, net, x), x, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda x: at_seed(5, net, x), x, fast_mode=True)


@pytest.mark.parametrize("groups", [1, 3])
def test_batched_gradients_go_through_backward(groups):
    net, x = make("mlp", groups=groups)
    x.requires_grad_()
    y = net(x)
    given = [x, *net.parameters()]
    upstream = torch.randn(3, *y.shape, dtype=torch.float64)
    made = torch.autograd.grad(y, given, upstream, is_grads_batched=True, retain_graph=True)
    each = [torch.autograd.grad(y, given, one, retain_graph=True) for one in upstream]
    assert close([*made], [torch.stack(one) for one in zip(*each, strict=True)])


def held_by(run):
    """Return the bytes that a forward keeps for backward, without those of parameters."""
    saved = []

    def pack(tensor):
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        net, x, y = run()
    own = {one.untyped_storage().data_ptr() for one in (x, y, *net.parameters())}
    sizes = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in saved}
    return sum(size for place, size in sizes.items() if place not in own)


def test_memory_for_backward_falls_with_the_rate():
    x = torch.randn(128, 784)

    def bytes_at(p):
        net = nn.ThinnedMLP(784, [2048, 2048, 2048], 10, p)
        assert {site.explain(x).backend for site in sites_of(net)} <= {"thinned", "full"}
        return held_by(lambda: (net, x, net(x)))

    whole = bytes_at(0.0)
    assert whole == 3 * 128 * 2048 * 4
    for p in (0.3, 0.5, 0.8):
        assert abs(bytes_at(p) / whole - (1 - p)) < 0.1 * (1 - p)


# Transforms


@torch_imports
@pytest.mark.parametrize("form", ["thinned", "masked"])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("name", ["mlp", "gated", "conv2d"])
def test_function_transforms_are_those_of_the_dense_network(name, groups, form):
    net, x = make(name, groups=groups, form=form)
    full = dense(net, x, at_seed(5, tickets, 2))
    params = {key: one.detach() for key, one in net.named_parameters()}
    t = torch.randn_like(x)

    def of(model, x, params=params):
        return torch.func.functional_call(model, params, (x,))

    made, wanted = [], []
    for model, out in ((net, made), (full, wanted)):
        torch.manual_seed(5)
        grads = torch.func.grad(lambda p, m=model: of(m, x, p).square().sum())(params)
        out += grads.values()
        torch.manual_seed(5)
        out += torch.func.jvp(lambda x, m=model: of(m, x), (x,), (t,))
        torch.manual_seed(5)
        y, pull = torch.func.vjp(lambda x, m=model: of(m, x), x)
        out += [y, *pull(y.detach())]
    assert close(made, wanted)


@every_form
@pytest.mark.parametrize("name", ["mlp", "conv2d"])
def test_vmap_gives_each_example_the_same_units_or_its_own_or_refuses(name, form):
    net, x = make(name, form=form, groups=3)
    xs = torch.stack([x, x.flip(0), -x])
    made = at_seed(5, torch.func.vmap(net, randomness="same"), xs)
    torch.manual_seed(5)
    full = dense(net, x, tickets(2))
    assert close([made.detach()], [torch.stack([full(one) for one in xs]).detach()])
    own = torch.func.vmap(net, randomness="different")(torch.stack([x, x, x]))
    assert not any(torch.allclose(a, b) for a, b in itertools.combinations(own, 2))
    with pytest.raises(RuntimeError, match="randomness error mode"):
        torch.func.vmap(net)(xs)
    assert close([at_seed(5, net, x).detach()], [full(x).detach()])


@every_form
def test_vmap_of_grad_gives_the_gradients_of_each_example(form):
    net, x = make("mlp", form=form)
    full = dense(net, x, at_seed(5, tickets, 2))
    params = {key: one.detach() for key, one in net.named_parameters()}
    made, wanted = (
        at_seed(
            5,
            torch.func.vmap(
                torch.func.grad(
                    lambda p, x, m=model: torch.func.functional_call(m, p, (x,)).square().sum()
                ),
                in_dims=(None, 0),
                randomness="same",
            ),
            params,
            x[:, None],
        )
        for model in (net, full)
    )
    assert close([*made.values()], [*wanted.values()])


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("name", ["mlp", "gated", "conv2d"])
def test_autocast_computes_in_its_type_and_gradients_are_wide(name, groups):
    net, x = make(name, torch.float32, groups=groups)
    wanted = results(dense(net, x, tickets(2)), x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = x.requires_grad_()
        y = net(x)
    assert y.dtype == torch.bfloat16
    weights = torch.linspace(-1, 2, y.numel()).view(y.shape)
    (y.float() * weights).square().sum().backward()
    grads = [x.grad, *[one.grad for one in net.parameters()]]
    assert {one.dtype for one in grads} == {torch.float32}
    for made, right in zip([y.detach(), *grads], wanted, strict=True):
        assert float((made - right).norm()) < 0.1 * float(right.norm())


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@every_form
@every_net
def test_training_without_a_graph_gives_the_same(name, form, context):
    net, x = make(name, form=form)
    wanted = at_seed(5, net, x)
    with context():
        made = at_seed(5, net, x.clone())
    assert torch.equal(made, wanted)
    assert not made.requires_grad


@pytest.mark.parametrize("name", ["mlp", "conv2d"])
def test_without_values_there_are_shapes(name):
    net, x = make(name)
    wanted, state = net(x), torch.get_rng_state()
    net.to("meta")
    y = net(x.to("meta"))
    assert (y.shape, y.device.type) == (wanted.shape, "meta")
    assert torch.equal(torch.get_rng_state(), state)


# A clock


def clocked(name, step=4, **options):
    """Return a network, its input, a clock, and the dense network at a step."""
    net, x = make(name, **options)
    clock = MaskClock(net, seed=17)
    keys = [clock.key(number, step) for number in range(len(sites_of(net)))]
    return net, x, clock, dense(net, x, keys)


@every_form
@every_net
def test_under_a_clock_the_units_are_those_of_the_address(name, form):
    net, x, clock, full = clocked(name, form=form, groups=3)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    with clock.at(4):
        made = results(net, x)
    assert torch.equal(torch.get_rng_state(), state)
    assert close(made, results(full, x))
    with clock.at(5):
        assert not close([net(x).detach()], made[:1])


@every_form
def test_calls_within_a_block_are_counted(form):
    """A network that runs three times, as in weight sharing, has three subsets."""
    net, x, clock, _ = clocked("mlp", form=form)
    with clock.at(2):
        made = [net(x) for _ in range(3)]
    for call, y in enumerate(made):
        keys = [clock.key(site, 2, call) for site in ("2", "5")]
        assert close([y.detach()], [dense(net, x, keys)(x).detach()])


@pytest.mark.parametrize("name", ["mlp", "gated", "conv2d"])
@every_form
def test_micro_batches_of_whole_groups_add_up_to_the_batch(name, form):
    net, x = make(name, form=form, group_size=2)
    x = torch.cat([x, x])[:8]
    clock = MaskClock(net)
    with clock.at(0):
        whole = results_of_sum(net, x, slice(None))
    parts = []
    for rows in torch.arange(8).split(4):
        with clock.at(0, rows=rows):
            parts.append(results_of_sum(net, x[rows], rows))
    assert close([torch.cat([part[0] for part in parts])], whole[:1])
    summed = [sum(grads) for grads in zip(*[part[1:] for part in parts], strict=True)]
    assert close(summed, whole[1:])


def results_of_sum(net, x, rows):
    y = net(x)
    weights = torch.linspace(-1, 2, 8, dtype=x.dtype)[rows].view(-1, *[1] * (y.dim() - 1))
    return [y.detach(), *torch.autograd.grad((y * weights).square().sum(), list(net.parameters()))]


def test_rows_out_of_order_take_the_masked_form_with_the_units_of_each_row():
    net, x, clock, _ = clocked("mlp", group_size=4)
    rows = torch.randperm(13)
    with clock.at(0):
        whole = net(x).detach()
    with clock.at(0, rows=rows):
        hidden = net[0](x[rows])
        assert hidden.shape == (13, UNITS)  # all are computed
        made = net[1:](hidden).detach()
    assert close([made], [whole[rows]])


@every_form
@pytest.mark.parametrize("name", ["mlp", "gated", "conv2d"])
def test_rows_from_the_middle_of_a_group_on_have_the_units_of_their_groups(name, form):
    net, x = make(name, form=form, group_size=4)
    x = torch.cat([x, x, x])[:13]
    clock = MaskClock(net)
    with clock.at(0):
        whole = net(x).detach()
    for rows in (torch.arange(2, 13), torch.arange(3, 6), torch.tensor([0, 1, 9, 12])):
        with clock.at(0, rows=rows):
            assert close([net(x[rows]).detach()], [whole[rows]])


def test_a_resumed_run_has_the_units_of_the_first():
    net, x, clock, _ = clocked("mlp")
    with clock.at(3):
        wanted = net(x)
    twin = copy.deepcopy(net)
    again = MaskClock(twin)
    again.load_state_dict({**clock.state_dict(), "used": []})
    with again.at(3):
        assert torch.equal(twin(x), wanted)


# Checkpoints


@every_form
@every_net
def test_a_checkpoint_around_a_chain_repeats_its_units(name, form):
    net, x = make(name, form=form, groups=2)
    wanted = at_seed(5, results, net, x)
    again = Wrapped(net, lambda x: checkpoint(net, x, use_reentrant=False))
    assert close(at_seed(5, results, again, x), wanted)
    for reentrant in (False, True):
        net.zero_grad()
        y = at_seed(5, checkpoint, net, x.requires_grad_(), use_reentrant=reentrant)
        weights = torch.linspace(-1, 2, y.numel()).view(y.shape)
        (y * weights).square().sum().backward()
        assert close([one.grad for one in net.parameters()], wanted[2:])


class Wrapped(torch.nn.Module):
    def __init__(self, net, run):
        super().__init__()
        self.net, self.run = net, run

    def forward(self, x):
        return self.run(x)


@every_form
@every_net
def test_under_a_clock_a_checkpoint_repeats_the_address(name, form):
    net, x, clock, full = clocked(name, form=form)

    def run(x):
        torch.rand(1)  # default mode would now draw others
        return checkpoint(
            net, x, use_reentrant=False, preserve_rng_state=False, context_fn=clock.recompute
        )

    with clock.at(4):
        made = results(Wrapped(net, run), x)
    assert close(made, results(full, x))
    with clock.at(5), pytest.raises(RuntimeError, match=r"context_fn=clock\.recompute"):
        results(Wrapped(net, lambda x: checkpoint(net, x, use_reentrant=False)), x)
    with clock.at(6):
        net(x)  # the refusal leaves nothing behind


@every_form
@pytest.mark.parametrize("clock_in", [False, True])
def test_a_checkpoint_around_the_front_of_a_chain_repeats_its_units(form, clock_in):
    net, x = make("pair", form=form)
    clock = MaskClock(net) if clock_in else None
    options = {"context_fn": clock.recompute} if clock_in else {}

    def run(x):
        return net[2:](checkpoint(net[:2], x, use_reentrant=False, **options))

    made = []
    for model in (net, Wrapped(net, run)):
        torch.manual_seed(5)
        if clock_in:
            with clock.at(1, rows=torch.arange(13)):
                made.append(results(model, x))
        else:
            made.append(results(model, x))
    assert close(*made)


CHAIN = "The layers of a chain must run one after the other, in one piece"
TORN = (
    "A checkpoint around a ThinnedDropout must hold all layers before it. Got one without the "
    "layer that drew its units. Checkpoint all of the chain, or none of it."
)


@pytest.mark.parametrize("clock_in", [False, True])
@pytest.mark.parametrize(("form", "start"), [("thinned", 2), ("thinned", 3), ("masked", 2)])
def test_a_checkpoint_around_the_end_of_a_chain_is_refused(form, start, clock_in):
    """In masked form too, where shapes would not tell that the units are others."""
    net, x = make("pair", form=form)
    clock = MaskClock(net) if clock_in else None
    options = {"context_fn": clock.recompute} if clock_in else {}

    def run(x):
        return checkpoint(net[start:], net[:start](x), use_reentrant=False, **options)

    with clock.at(0) if clock_in else torch.enable_grad():
        y = run(x)
        with pytest.raises((RuntimeError, ValueError)) as refused:
            y.sum().backward()
    assert CHAIN in str(refused.value) or str(refused.value) == TORN
    assert (start == 3) == (CHAIN in str(refused.value))
    assert close(*(at_seed(5, results, net, x) for _ in range(2)))


@every_form
def test_a_checkpoint_around_the_second_of_two_sources_is_refused(form):
    net, x = make("gated", form=form)
    up = net.up.forward

    def later(x):
        return checkpoint(up, x, use_reentrant=False)

    net.up.forward = later
    y = net(x.requires_grad_())
    with pytest.raises(RuntimeError, match=f"^{re.escape(TORN)}$"):
        y.sum().backward()
    net.up.forward = up
    assert close(*(at_seed(5, results, net, x) for _ in range(2)))


# The state of a chain


def test_a_source_that_is_called_again_before_its_reader_is_refused_and_heals():
    net, x = make("mlp")
    wanted = at_seed(5, net, x)
    hidden = net[0](x)
    line = (
        "A layer before a ThinnedDropout must not be called again before the layer behind it was. "
        "Got a second call. Call all of the chain for one input after the other; after an "
        "interrupted forward, call again."
    )
    with pytest.raises(RuntimeError, match=f"^{re.escape(line)}$"):
        net[0](x)
    assert torch.equal(at_seed(5, net, x), wanted)
    assert hidden.shape == (13, 10)


@every_form
@pytest.mark.parametrize("name", ["mlp", "gated", "forked", "conv2d"])
def test_an_interrupted_forward_leaves_nothing_behind(name, form):
    net, x = make(name, form=form)
    wanted = at_seed(5, net, x).detach()
    layers = [module for module in net.modules() if type(module).__name__.startswith("Thinned")]
    for layer in layers[1:] if layers[0] is net else layers:

        def interrupt(*_):
            raise KeyboardInterrupt

        handle, interrupted = layer.register_forward_pre_hook(interrupt), False
        try:  # pytest.raises would hold the frames, and what is in them
            net(x)
        except KeyboardInterrupt:
            interrupted = True
        handle.remove()
        assert interrupted
        assert torch.equal(at_seed(5, net, x).detach(), wanted)


def test_where_nobody_reads_the_source_may_be_called_again():
    site = nn.ThinnedDropout(0.5, form="thinned")
    first, x = nn.ThinnedLinear(7, UNITS, before=site), torch.randn(3, 7)
    held = [first(x), first(x)]
    assert torch.equal(*held)
    assert site.explain(x).backend == "masked"
    for hidden in held:
        kept = site._now.kept if site._now else F.keep_units(hidden, UNITS, key=ticket())
        assert torch.equal(site(hidden), F.thinned_dropout(hidden, kept))


@every_form
def test_a_copy_in_the_middle_of_a_chain_starts_anew_and_disturbs_nothing(form):
    net, x = make("mlp", form=form)
    wanted = at_seed(5, net, x)
    torch.manual_seed(5)
    hidden = net[:2](x)
    state = torch.get_rng_state()
    copies = [copy.deepcopy(net), pickle.loads(pickle.dumps(net))]
    torch.set_rng_state(state)
    assert torch.equal(net[2:](hidden), wanted)
    for twin in copies:
        assert torch.equal(at_seed(5, twin, x), wanted)
        assert twin[0]._before[0] is twin[2]
        assert twin[2] is not net[2]


def test_parameters_have_the_names_of_torchs_layers():
    net = mlp()
    plain = torch.nn.Sequential(
        *(torch.nn.Linear(7, UNITS), torch.nn.ReLU(), torch.nn.Dropout()),
        *(torch.nn.Linear(UNITS, UNITS), torch.nn.ReLU(), torch.nn.Dropout()),
        torch.nn.Linear(UNITS, 5),
    )
    assert list(net.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(net.state_dict())
    x = torch.randn(3, 7)
    assert torch.equal(net.eval()(x), plain.eval()(x))


def test_a_replica_of_dataparallel_is_refused_in_training_alone():
    net, x = make("pair")
    replica = net[0]._replicate_for_data_parallel()
    line = (
        "ThinnedLinear must be run outside of DataParallel, whose threads share it. Got 'a "
        "replica'. Use DistributedDataParallel."
    )
    with pytest.raises(RuntimeError, match=f"^{re.escape(line)}$"):
        replica(x)
    net.eval()
    replica.weight, replica.bias = net[0].weight, net[0].bias  # as DataParallel does
    assert torch.equal(replica(x), net[0](x))


def in_a_thread(run):
    """Return what a function gives, or raises, in a thread of its own."""
    out = []

    def work():
        try:
            out.append(run())
        except Exception as error:
            out.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return out[0]


def test_two_threads_in_one_chain_are_refused_and_copies_are_not():
    net, x = make("pair")
    line = (
        "A ThinnedDropout must be run by one thread at a time. Got 'another one in between'. "
        "Give each thread a copy of the model."
    )
    hidden = net[:2](x)
    error = in_a_thread(lambda: net[2:](hidden))
    assert isinstance(error, RuntimeError)
    assert str(error) == line
    wanted = at_seed(5, copy.deepcopy(net), x).detach()
    copies = [copy.deepcopy(net) for _ in range(4)]
    barrier, made = threading.Barrier(4), []

    def work(twin):
        generator = torch.Generator().manual_seed(5)
        twin[2].generator = generator
        barrier.wait()
        for _ in range(50):
            generator.manual_seed(5)
            made.append(torch.equal(twin(x).detach(), wanted))

    threads = [threading.Thread(target=work, args=(twin,)) for twin in copies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [True] * 200


def test_a_chain_may_be_trained_in_another_thread():
    net, x = make("mlp")
    wanted = at_seed(5, results, net, x)
    assert close(in_a_thread(lambda: at_seed(5, results, net, x)), wanted)
    assert close(at_seed(5, results, net, x), wanted)


# Compiled code


def compiled(net, backend="aot_eager", **options):
    counter = CompileCounterWithBackend(backend)
    return torch.compile(net, backend=counter, fullgraph=True, **options), counter


def steps_agree(net, x, rows=None, backend="aot_eager", factor=64):
    """Train five steps in compiled code and in eager code, at the same addresses."""
    clock = MaskClock(net, seed=3)
    made, counter = compiled(net, backend)
    for step in range(5):
        with clock.at(step, rows=rows):
            ours = step_of(made, net, x)
        with clock.at(step, rows=torch.arange(len(x)) if rows is None else rows):
            theirs = step_of(net, net, x)
        assert close(ours, theirs, factor)
    assert counter.frame_count == 1


def step_of(run, net, x):
    x = x.detach().requires_grad_()
    y = run(x)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), [x, *net.parameters()])]


@compiles
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("pair", {"groups": 1}),
        ("mlp", {"groups": 4}),
        ("gated", {"groups": 4, "form": "masked"}),
    ],
    ids=str,
)
def test_compiled_code_is_one_graph_that_subsets_do_not_change(name, options):
    steps_agree(*make(name, **options))


@compiles
def test_compiled_code_takes_rows_and_refuses_those_that_are_out_of_order():
    net, x = make("pair", group_size=4)
    clock, x = MaskClock(net), x[:8]
    made, counter = compiled(net)
    for step, start in enumerate((0, 8, 400)):
        rows = torch.arange(start, start + 8)
        with clock.at(step, rows=rows):
            ours = step_of(made, net, x)
        with clock.at(step, rows=rows):
            assert close(ours, step_of(net, net, x))
    assert counter.frame_count == 1
    line = "`rows` in compiled code must hold the rows of a group one after the other"
    mixed = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])
    with clock.at(9, rows=mixed), pytest.raises(RuntimeError, match=line):
        made(x.requires_grad_())


@compiles
def test_a_compiled_chain_of_convolutions_normalizes_its_kept_channels():
    build, shape = NORMED["conv2d"]
    net, x = build().double(), torch.randn(shape, dtype=torch.float64)
    twin, clock = copy.deepcopy(net), MaskClock(net, seed=3)
    other = MaskClock(twin, seed=3)
    made, counter = compiled(net)
    for step in range(3):
        with clock.at(step), other.at(step):
            assert close(step_of(made, net, x), step_of(twin, twin, x), least=1.0)
    assert counter.frame_count == 1
    assert close([*net.buffers()][:2], [*twin.buffers()][:2])


@compiles
@torch_imports
def test_the_default_compiler_gives_the_steps_of_eager_code():
    net, x = make("pair", torch.float32, groups=3)
    steps_agree(net, x, backend="inductor")


@compiles
def test_in_default_mode_compiled_code_draws_the_tickets_of_eager_code():
    net, x = make("mlp")
    made, counter = compiled(net)
    for seed in (5, 6):
        ours, theirs = (at_seed(seed, step_of, run, net, x) for run in (made, net))
        assert close(ours, theirs)
    assert counter.frame_count == 1


@compiles
@pytest.mark.parametrize("options", [{"groups": 2}, {"form": "auto"}], ids=str)
def test_a_batch_of_another_size_compiles_once_more_at_most(options):
    net, _ = make("pair", **options)
    with torch._dynamo.config.patch(error_on_recompile=False):
        made, counter = compiled(net)
        for size in (128, 132, 140):
            x = torch.randn(size, 7, dtype=torch.float64)
            assert close(*(at_seed(size, step_of, run, net, x) for run in (made, net)))
    assert counter.frame_count <= 2


@compiles
def test_a_checkpoint_in_compiled_code_changes_nothing():
    net, x = make("mlp", groups=2)
    made, counter = compiled(
        Wrapped(net, lambda x: checkpoint(net, x, use_reentrant=False)), "aot_eager"
    )
    ours = at_seed(5, step_of, made, net, x)
    assert close(ours, at_seed(5, step_of, net, net, x))
    assert counter.frame_count == 1


def test_exported_evaluation_is_that_of_torchs_layers():
    net, x = make("pair", torch.float32)
    plain = torch.nn.Sequential(
        torch.nn.Linear(7, UNITS), torch.nn.ReLU(), torch.nn.Linear(UNITS, 5)
    )
    graphs = [
        [str(node.target) for node in torch.export.export(model.eval(), (x,)).graph.nodes
         if node.op == "call_function"]
        for model in (net, plain)
    ]  # fmt: skip
    assert graphs[0] == graphs[1] != []


# What explain says


def chain(p=0.5, **options):
    site = nn.ThinnedDropout(p, **options)
    nn.ThinnedLinear(7, UNITS, before=site)
    nn.ThinnedLinear(UNITS, 7, after=site)
    return site


@pytest.mark.parametrize(
    ("site", "x", "form", "why"),
    [
        (chain().eval(), (512, 7), "full", "nothing sits out: it is in evaluation mode"),
        (chain(0.0), (512, 7), "full", "nothing sits out: p is 0"),
        (
            nn.ThinnedDropout(0.5),
            (512, 7),
            "masked",
            "no thinned layer stands before it, or none behind it",
        ),
        (chain(form="thinned"), (2, 7), "thinned", "form='thinned' was asked for"),
        (chain(form="masked"), (512, 7), "masked", "form='masked' was asked for"),
        (
            chain(form="thinned", groups=2, batch_dim=1),
            (5, 512, 7),
            "masked",
            "the rows of a group stand apart in dim 1",
        ),
        (
            chain(1.0, form="thinned"),
            (512, 7),
            "masked",
            "nobody plays at p = 1: there is nothing to gather",
        ),
        (chain(), (512, 7), "thinned", r"p = 0\.5; with 512 rows a group it pays from .* on"),
        (chain(), (32, 16, 7), "thinned", r"p = 0\.5; with 512 rows a group it pays from .* on"),
        (chain(), (1, 7), "masked", r"p = 0\.5; with 1 rows a group it pays from .* on"),
        (chain(), (7,), "masked", r"p = 0\.5; with 1 rows a group it pays from .* on"),
        (chain(0.001), (512, 7), "masked", r"p = 0\.001; with 512 rows a group it pays from .* on"),
        (
            chain(groups=128),
            (512, 7),
            "masked",
            r"p = 0\.5; with 4 rows a group it pays from .* on",
        ),
        (
            chain(group_size=256),
            (512, 7),
            "thinned",
            r"p = 0\.5; with 256 rows a group it pays from .* on",
        ),
    ],
    ids=repr,
)
def test_a_site_says_which_form_it_takes_and_why_and_takes_it(site, x, form, why):
    x = torch.randn(x)
    state = torch.get_rng_state()
    explained = site.explain(x)
    assert torch.equal(torch.get_rng_state(), state)
    assert explained.backend == form
    assert re.fullmatch(why, explained.why)
    if site._sources:
        kept = site._begin(x, UNITS, 1)
        assert (kept is not None) == (form == "thinned")


def test_the_rate_from_which_it_pays_falls_with_the_rows_and_is_what_decides():
    rates = [least_rate(rows) for rows in (0, 1, 8, 64, 512, 4096)]
    assert rates == sorted(rates, reverse=True)
    for rows in (64, 512):
        least = least_rate(rows)
        site, x = chain(round(least + 0.01, 3)), torch.empty(rows, 7)
        assert site.explain(x).backend == "thinned"
        assert chain(round(least - 0.01, 3)).explain(x).backend == "masked"


def test_a_chain_shows_its_options():
    assert repr(nn.ThinnedDropout(0.3)) == "ThinnedDropout(p=0.3, groups=1)"
    site = nn.ThinnedDropout(
        0.3, group_size=4, dim=1, batch_dim=1, form="masked", generator=torch.Generator()
    )
    assert repr(site) == (
        "ThinnedDropout(p=0.3, group_size=4, dim=1, batch_dim=1, form='masked', generator=cpu)"
    )


# Errors


def kept_of(n, groups=1, batch=4):
    return F.keep_units(torch.empty(batch, 1), n, groups=groups, key=KEY)


def scattered():
    return F.keep_units(
        torch.empty(4, 1), UNITS, group_size=2, key=KEY, rows=torch.tensor([0, 2, 1, 3])
    )


X, W = torch.ones(4, 7), torch.ones(UNITS, 10)


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (
            lambda: F.keep_units(X, UNITS, 1.5),
            "`p` of keep_units must be a number in [0, 1]. Got 1.5.",
        ),
        (lambda: F.keep_units(X, -1), "`n` of keep_units must be an int of 0 or more. Got -1."),
        (lambda: F.keep_units(X, 2.0), "`n` of keep_units must be an int of 0 or more. Got 2.0."),
        (
            lambda: F.keep_units(X, 3),
            "`p` of keep_units must be within 0.01 of one that 3 units can have. Got 0.5. "
            "The nearest is 0.6667; more units come nearer.",
        ),
        (
            lambda: F.keep_units(X, 10, 0.95),
            "`p` of keep_units must be within 0.01 of one that 10 units can have. Got 0.95. "
            "The nearest is 0.9; more units come nearer.",
        ),
        (
            lambda: nn.ThinnedMLP(7, [20, 3], 5),
            "`p` of ThinnedMLP must be within 0.01 of one that 3 units can have. Got 0.5. "
            "The nearest is 0.6667; more units come nearer.",
        ),
        (lambda: F.keep_units(X, 4, groups=0), "`groups` of keep_units must be 1 or more. Got 0."),
        (lambda: F.keep_units(X, 4, groups=1.0), "`groups` of keep_units must be an int. Got 1.0."),
        (
            lambda: F.keep_units(X, 4, group_size=0),
            "`group_size` of keep_units must be 1 or more. Got 0.",
        ),
        (
            lambda: F.keep_units(X, 4, batch_dim=2),
            "`batch_dim` must be within the 2 dims of the tensor. Got 2.",
        ),
        (
            lambda: F.keep_units(X, 4, rows=torch.arange(3)),
            "`rows` must be one position per index of the batch dim, [4]. Got (3,). For a tensor "
            "flattened to [B*T, C] pass rows.repeat_interleave(T).",
        ),
        (
            lambda: F.keep_units(X, 4, rows=torch.ones(4)),
            "`rows` must be an int64 tensor. Got torch.float32.",
        ),
        (
            lambda: F.keep_units(X, 4, key=KEY, generator=torch.Generator()),
            "The randomness of keep_units must be given as `key` or as `generator`. Got 'both'.",
        ),
        (lambda: F.keep_units(X, 4, key=7), "`key` of keep_units must be a MaskKey. Got 7."),
        (
            lambda: F.keep_units(X, 4, generator=7),
            "`generator` of keep_units must be a torch.Generator or None. Got 7.",
        ),
        (
            lambda: F.thinned_linear(X, W, kept_out=kept_of(10)),
            "`kept_out` of thinned_linear must be a subset of the 20 units of the weight. "
            "Got 'one of 10'.",
        ),
        (
            lambda: F.thinned_linear(X, W, kept_in=kept_of(20)),
            "`kept_in` of thinned_linear must be a subset of the 10 units of the weight. "
            "Got 'one of 20'.",
        ),
        (
            lambda: F.thinned_conv(X, W, kept_in=kept_of(20)),
            "`kept_in` of thinned_conv must be a subset of the 10 units of the weight. "
            "Got 'one of 20'.",
        ),
        (
            lambda: F.thinned_linear(X, W, kept_out=scattered()),
            "`kept_out` of thinned_linear must be of groups whose rows stand together. Got "
            "'others'. Use thinned_dropout, or order the batch by rows.",
        ),
        (
            lambda: F.thinned_linear(X, W, kept_in=kept_of(10, 2), kept_out=kept_of(20, 4)),
            "The subsets of thinned_linear must be of the same groups. "
            "Got [(2, 2, None), (4, 1, None)].",
        ),
        (
            lambda: F.thinned_dropout(X, kept_of(20)),
            "`x` of thinned_dropout must be a tensor with the 20 units of its subset in dim 1. "
            "Got (4, 7).",
        ),
        (
            lambda: F.thinned_batch_norm(X, None, None, None, None, kept_of(20, 2)),
            "`kept` of thinned_batch_norm must be of one group, as the statistics are. "
            "Got '2 groups'.",
        ),
        (
            lambda: nn.ThinnedDropout(1.5),
            "`p` of ThinnedDropout must be a number in [0, 1]. Got 1.5.",
        ),
        (
            lambda: nn.ThinnedDropout(groups=0),
            "`groups` of ThinnedDropout must be 1 or more. Got 0.",
        ),
        (
            lambda: nn.ThinnedDropout(group_size=0),
            "`group_size` of ThinnedDropout must be 1 or more. Got 0.",
        ),
        (lambda: nn.ThinnedDropout(dim="1"), "`dim` of ThinnedDropout must be an int. Got '1'."),
        (
            lambda: nn.ThinnedDropout(form="thin"),
            "`form` of ThinnedDropout must be one of auto, thinned, masked. Got 'thin'. "
            "Did you mean 'thinned'?",
        ),
        (
            lambda: nn.ThinnedDropout().schedulable_(),
            "The rate of ThinnedDropout must be a number. Got 'data'. Set p; compiled code "
            "compiles anew for each rate.",
        ),
        (
            lambda: nn.ThinnedLinear(3, 4, before=7),
            "`before` of ThinnedLinear must be a ThinnedDropout or None. Got 7.",
        ),
        (
            lambda: nn.ThinnedConv1d(3, 4, 1, after=torch.nn.Dropout()),
            "`after` of ThinnedConv1d must be a ThinnedDropout or None. "
            "Got Dropout(p=0.5, inplace=False).",
        ),
        (
            lambda: nn.ThinnedMLP(7, [], 5),
            "`hidden_features` of ThinnedMLP must be at least one number of units. Got [].",
        ),
        (
            lambda: nn.ThinnedMLP(7, [2.0], 5),
            "`hidden_features` of ThinnedMLP must be an int. Got 2.0.",
        ),
        (
            lambda: nn.ThinnedBatchNorm1d(4, momentum=None, before=nn.ThinnedDropout()),
            "`momentum` of ThinnedBatchNorm1d must be a number. Got None. Set it to 0.1, say.",
        ),
        (
            lambda: conv(2, False)(torch.randn(3, 5, 5)),
            "The input of ThinnedConv2d must be [N, C, ...] with 4 dims where units sit out. "
            "Got (3, 5, 5).",
        ),
        (
            lambda: pair()(torch.randn(4, 8)),
            "The input of ThinnedLinear must be one of 7 units. Got 8.",
        ),
        (
            lambda: reader_of_all(),
            "The input of ThinnedLinear must be one of 10 units. Got 20. The layers of a chain "
            "must run one after the other, in one piece: a checkpoint must hold all of them, and "
            "what is in between must be elementwise.",
        ),
    ],
)
def test_what_is_wrong_is_refused_in_one_line(call, line):
    with pytest.raises((TypeError, ValueError), match=f"^{re.escape(line)}$"):
        call()


def reader_of_all():
    """Read all units where half of them are there."""
    net = pair()
    hidden = net[0](X)
    return net[3](torch.cat([hidden, hidden], 1))


def test_more_rows_than_groups_are_refused():
    kept = kept_of(UNITS, groups=2)
    with pytest.raises(ValueError, match="groups"):
        F.thinned_linear(torch.ones(9, 10), W, kept_out=kept)
    with pytest.raises(ValueError, match="groups"):
        F.thinned_linear(torch.ones(2, 10), W, kept_out=kept)


def test_a_subset_is_a_plain_tuple():
    kept = Kept(torch.tensor([[0, 2]]), 4, 8)
    assert (kept.scale, kept.of) == (2.0, None)
    assert [part.shape for part in kept.parts(torch.ones(20, 1))] == [(20, 1)]
