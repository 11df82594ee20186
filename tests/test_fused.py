"""Activation and dropout, dropout and sum: one pass gives what the composition gives."""

from __future__ import annotations

import io
import itertools
import math
import random
import re
import weakref
from functools import cache, partial

import mpmath
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as TF
from torch.utils.checkpoint import checkpoint

import sitout
from sitout import MaskClock, MaskKey, nn
from sitout import functional as F
from sitout.backends import use
from sitout.masks import effective_rate, keep_mask, rate_data

KEY = MaskKey(seed=2**40 + 7, site=4, step=9, call=1)
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
HALVES = (torch.bfloat16, torch.float16)
SMOOTH = ["gelu", "gelu_tanh", "silu"]
TORCH = {
    "relu": TF.relu,
    "gelu": TF.gelu,
    "gelu_tanh": partial(TF.gelu, approximate="tanh"),
    "silu": TF.silu,
}
SUMS = {"dropout_add": F.dropout, "drop_path_add": F.drop_path}
OPS = [*TORCH, *SUMS]
SIZES = [1, 2, 3, 5, 7, 8, 13, 16, 17, 31, 64, 65, 101]
RATES = [2.0**-33, 2.0**-32, 0.001, 1 / 64, 0.1, 0.3, 0.5, 63 / 64, 1 - 2.0**-32]

every_op = pytest.mark.parametrize("op", OPS)
every_sum = pytest.mark.parametrize("op", SUMS)
every_activation = pytest.mark.parametrize("op", TORCH)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
torch_imports = pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")


@pytest.fixture
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def fused(op, x, other, p, *rest, **options):
    """Call one of the functions; ``other`` is the bias, or the residual."""
    if op in TORCH:
        return F.activation_dropout(x, op, p, *rest, bias=other, **options)
    return getattr(F, op)(x, other, p, *rest, **options)


def composed(op, x, other, p, *rest, **options):
    """Do the same one after the other."""
    if op in TORCH:
        return F.dropout(TORCH[op](x if other is None else x + other), p, *rest, **options)
    return other + SUMS[op](x, p, *rest, **options)


def results(run, op, x, other, p, upstream, **options):
    """Return the result and the gradients with respect to ``x`` and ``other``."""
    inputs = [one.detach().requires_grad_() for one in (x, other) if one is not None]
    y = run(op, inputs[0], inputs[1] if len(inputs) > 1 else None, p, **options)
    return [y.detach(), *torch.autograd.grad(y, inputs, upstream)]


def ordered(x):
    """Return ints that follow the order of floats: neighbours differ by 1, and 0 is -0."""
    words, last = {2: (torch.int16, 15), 4: (torch.int32, 31), 8: (torch.int64, 63)}[
        x.element_size()
    ]
    bits = x.detach().contiguous().view(words).long()
    return torch.where(bits < 0, -(bits - (-1 << last)), bits)


def within_one_ulp(a, b):
    near = (ordered(a) - ordered(b)).abs() <= 1
    return a.dtype == b.dtype and a.shape == b.shape and bool((near | a.isnan() & b.isnan()).all())


def alike(a, b):
    """Whether two tensors are equal, NaN to NaN."""
    return (
        a.dtype == b.dtype
        and torch.equal(a.isnan(), b.isnan())
        and torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))
    )


def layout(draw, x):
    """Return ``x`` with the same values and other strides."""
    rank, how = x.dim(), draw.randrange(5)
    if how == 0 and rank > 1:
        order = draw.sample(range(rank), rank)
        return x.permute(order).contiguous().permute([order.index(dim) for dim in range(rank)])
    if how == 1:
        return torch.stack([x, -x], -1)[..., 0]
    if how == 2 and rank == 4:
        return x.contiguous(memory_format=torch.channels_last)
    if how == 3 and rank > 1:
        return torch.cat([x, x], 1)[:, : x.shape[1]]
    return x


def bias_shape(draw, shape):
    """Return a shape that broadcasts: [C], [1, C], [B, 1], [], all, or any dims of size 1."""
    how = draw.randrange(5)
    if how == 0:
        return ()
    if how == 1:
        return shape[1:]
    if how == 2:
        return (*shape[:1], *[1] * (len(shape) - 1))
    return shape if how == 3 else tuple(draw.choice([1, size]) for size in shape)


def cases(seed, count, op, dtypes=DTYPES):
    """Yield x, the bias or the residual, the rate, the upstream gradient and options."""
    draw = random.Random(f"{seed} {op}")
    for _ in range(count):
        rank = draw.choice([0, 1, 1, 2, 2, 2, 3, 4, 4])
        shape = [draw.choice(SIZES) for _ in range(rank)]
        while math.prod(shape) > 12_000:
            shape[draw.randrange(rank)] = draw.choice([1, 2, 3])
        dtype, shape = draw.choice(dtypes), tuple(shape)
        x, upstream, other = (torch.randn(shape).to(dtype) for _ in range(3))
        if op in TORCH:
            other = torch.randn(bias_shape(draw, shape)).to(dtype) if draw.random() < 0.7 else None
        other = None if other is None else layout(draw, other)
        shared = tuple(dim for dim in range(rank) if draw.random() < 0.15)
        batch = draw.randrange(rank) if rank > 1 and draw.random() < 0.4 else 0
        one_a_row = op == "drop_path_add"
        n = shape[batch] if (rank > 1 or (one_a_row and rank == 1)) and batch not in shared else 1
        rows = torch.randint(2**32, (n,)) if draw.random() < 0.3 else None
        step = torch.randint(2**32, (n,)) if draw.random() < 0.2 else draw.getrandbits(32)
        options = {"shared_dims": shared, "batch_dim": batch, "rows": rows}
        if not one_a_row and draw.random() < 0.3:
            sizes = [1 if d in shared else shape[d] for d in range(rank) if rank < 2 or d != batch]
            starts = [draw.choice([0, 1, 5, 33]) for _ in sizes]
            options["block"] = [(a, a + m + 3) for a, m in zip(starts, sizes, strict=True)]
        options["key"] = MaskKey(draw.getrandbits(64), draw.getrandbits(28), step, 3)
        p = draw.choice(RATES)
        p = rate_data(p) if draw.random() < 0.2 else p
        yield layout(draw, x), other, p, layout(draw, upstream), options


# Values and gradients


def assert_sums_agree(made, wanted, terms):
    """Compare sums of the same terms, whose order is free."""
    bound = torch.finfo(wanted.dtype).eps * terms.abs().double().sum().clamp(min=1e-30) * 4
    assert made.shape == wanted.shape
    assert ((made.double() - wanted.double()).abs() <= bound).all()


@pytest.mark.parametrize("op", ["relu", *SUMS])
def test_relu_and_sums_are_their_composition_forward_and_backward(target, op):
    """Half precision is rounded once: the composition is that in float32, rounded."""
    for x, other, p, upstream, options in cases(1, 90, op):
        made = results(fused, op, x, other, p, upstream, **options)
        where = (x.shape, x.stride(), x.dtype, None if other is None else other.stride(), p)
        wide = x.float() if x.dtype in HALVES else x
        wide_other = None if other is None else other.to(wide.dtype)
        y = composed(op, wide, wide_other, p, **options)
        assert within_one_ulp(made[0], y.to(x.dtype)), (where, options)
        # At a value that vanishes in rounding there is no derivative to agree on.
        vanished = (made[0] == 0) != (y == 0)
        _, x_grad, *others = results(
            composed, op, wide, wide_other, p, upstream.to(wide.dtype), **options
        )
        x_grad = x_grad.to(x.dtype)
        assert torch.equal(made[1][~vanished], x_grad[~vanished]), (where, options)
        assert int(vanished.sum()) <= 1
        if others and other.shape == x.shape:
            assert torch.equal(made[2][~vanished], others[0].to(x.dtype)[~vanished])
        elif others:
            assert_sums_agree(made[2], others[0].to(x.dtype), made[1])


@pytest.mark.parametrize("op", SMOOTH)
def test_smooth_activations_are_their_composition_forward_and_backward(target, op):
    for x, bias, p, upstream, options in cases(2, 90, op):
        made = results(fused, op, x, bias, p, upstream, **options)
        bias64 = None if bias is None else bias.double()
        wanted = results(composed, op, x.double(), bias64, p, upstream.double(), **options)
        mask = keep_mask(shape=x.shape, p=p, **options).expand(x.shape)
        eps = torch.finfo(x.dtype).eps
        # float32 knows 1 / (1 - p) to one rounding, and so does every product after it.
        reach = x.double().abs() + (0 if bias is None else bias64.abs()) + 1
        scale = 1 / (1 - effective_rate(p)) if isinstance(p, float) else float(wanted_scale(p))
        for y, z, weight in zip(made[:2], wanted[:2], (1, upstream.double().abs()), strict=True):
            assert not y[~mask].any()
            assert ((y.double() - z).abs() <= 16 * eps * scale * reach * weight).all()
        if bias is not None:
            terms = 16 * eps * scale * (reach * upstream.double().abs() * mask).sum()
            few = eps * made[1].double().abs().sum()
            assert ((made[2].double() - wanted[2]).abs() <= terms + few).all()


def wanted_scale(p):
    bits, threshold = p.tolist()
    return 1 / (1 - threshold / 2**bits)


@every_dtype
@every_activation
def test_zeros_stand_where_the_mask_drops_and_nowhere_else(target, op, dtype):
    x = torch.linspace(0.5, 9.0, 1300).to(dtype).view(13, 100)
    for p in (0.001, 0.3, 0.97):
        y = fused(op, x, None, p, key=KEY)
        assert torch.equal(y != 0, keep_mask(KEY, p, x.shape))


# Accuracy


def truth(op, x, exp, erfc, root):
    """Return a smooth activation, its slope, and the size of the terms that make the slope up."""
    if op == "gelu":
        below, rise = erfc(-x / root(2)) / 2, x * exp(-x * x / 2) / root(2) / root(math.pi)
    else:
        outer = 2 * root(2 / math.pi)
        u = outer * (x + 0.044715 * x**3) if op == "gelu_tanh" else x
        du = outer * (1 + 3 * 0.044715 * x**2) if op == "gelu_tanh" else 1
        below = 1 / (1 + exp(-u))
        rise = x * below / (1 + exp(u)) * du
    return x * below, below + rise, abs(below) + abs(rise)


def exact(op, x):
    """Return the same in arithmetic that has digits to spare for the type of ``x``."""
    if x.dtype != torch.float64:
        return truth(op, x.double(), torch.exp, torch.special.erfc, math.sqrt)
    with mpmath.workdps(60):
        numbers = map(mpmath.mpf, x.tolist())
        rows = [truth(op, one, mpmath.exp, mpmath.erfc, mpmath.sqrt) for one in numbers]
        return [[*column] for column in zip(*rows, strict=True)]


@cache
def yardstick(op, dtype):
    """Return inputs, the truth, its size, and torch's largest errors, absolute and relative."""
    n = 1_501 if dtype == torch.float64 else 24_001
    small = [sign * torch.finfo(dtype).tiny * 4.0**k for sign in (-1, 1) for k in range(6)]
    grid = [*torch.linspace(-12, 12, n, dtype=torch.float64).tolist(), 0.0, *small]
    x = torch.tensor(grid, dtype=dtype, requires_grad=True)
    y = TORCH[op](x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    x = x.detach()
    values, slopes, sizes = exact(op, x)
    lengths = values.abs() if isinstance(values, torch.Tensor) else [abs(one) for one in values]
    wanted = ((values, lengths), (slopes, sizes))
    own = [errors(made, *pair) for made, pair in zip((y, slope), wanted, strict=True)]
    return x, wanted, [(float(absolute.max()), float(relative.max())) for absolute, relative in own]


def errors(made, wanted, sizes):
    """Return absolute errors, and errors in units of the value where it is a normal number."""
    made = made.detach().double()
    if isinstance(wanted, list):
        wide = [mpmath.mpf(one) - other for one, other in zip(made.tolist(), wanted, strict=True)]
        absolute = torch.tensor([float(abs(one)) for one in wide], dtype=torch.float64)
        sizes = torch.tensor([float(one) for one in sizes], dtype=torch.float64)
    else:
        absolute = (made - wanted).abs()
    return absolute, absolute / sizes.clamp(min=1e-300)


@every_dtype
@pytest.mark.parametrize("op", SMOOTH)
def test_activations_and_slopes_are_within_twice_the_error_of_torch(target, op, dtype):
    """On -12 .. 12 and tiny numbers; at p = 1/2 the scale is 2 and adds no rounding."""
    x, wanted, own = yardstick(op, dtype)
    mask = keep_mask(KEY, 0.5, x.shape) | keep_mask(MaskKey(5), 0.5, x.shape)
    assert int(mask.sum()) > 0.7 * x.numel()
    for key in (KEY, MaskKey(5)):
        kept = keep_mask(key, 0.5, x.shape)
        inputs = x.clone().requires_grad_()
        y = fused(op, inputs, None, 0.5, key=key)
        (slope,) = torch.autograd.grad(y.sum(), inputs)
        for made, pair, (most, most_relative) in zip((y, slope), wanted, own, strict=True):
            absolute, relative = errors(made.detach().double() / 2, *pair)
            assert float(absolute[kept].max()) <= 2 * most
            assert float(relative[kept].max()) <= 2 * most_relative
            assert not made[~kept].any()


def specials(dtype):
    info = torch.finfo(dtype)
    numbers = [0.0, info.tiny, info.tiny / 4, info.smallest_normal, info.eps, 20.0, 39.0, 89.0]
    numbers += [105.0, 710.0, 1e4, info.max**0.25, info.max**0.34, info.max**0.4, info.max**0.45]
    numbers += [info.max**0.5, info.max**0.6, info.max / 4, math.inf, math.nan]
    return torch.tensor([sign * number for number in numbers for sign in (1, -1)], dtype=dtype)


@every_dtype
@every_activation
def test_huge_numbers_infinity_and_nan_give_what_torch_gives(target, op, dtype):
    """In this type or in float64: torch's own vectors make NaN of some limits that exist."""
    x = specials(dtype).repeat_interleave(16)
    kept = keep_mask(KEY, 0.5, x.shape)
    made = results(fused, op, x, None, 0.5, torch.ones_like(x), key=KEY)
    own, wide = (
        results(lambda op, x, *_: TORCH[op](x) * 2, op, one, None, 0.5, torch.ones_like(one))
        for one in (x, x.double())
    )
    eps = torch.finfo(dtype).eps
    for y, as_torch, as_float64 in zip(made, own, wide, strict=True):
        assert not y[~kept].any()  # nothing leaks out of what is dropped
        fits = torch.zeros_like(kept)
        for z in (as_torch, as_float64.to(dtype)):
            fits |= (y == z) | y.isnan() & z.isnan()
            fits |= (y.double() - z.double()).abs() <= 8 * eps * z.double().abs() + 64 * eps
        assert fits[kept].all(), f"other values at {x[~fits & kept].unique().tolist()}"


# Rates


@every_op
@pytest.mark.parametrize("p", [0.0, 2.0**-40, rate_data(0.0)], ids=str)
def test_at_p_0_nothing_is_dropped_and_a_float_draws_nothing(op, p):
    x, other, upstream = torch.randn(3, 7, 13)
    state = torch.get_rng_state()
    made = results(fused, op, x, other, p, upstream)
    if isinstance(p, float):
        assert torch.equal(torch.get_rng_state(), state)
    torch.set_rng_state(state)
    wanted = results(composed, op, x, other, 0.0, upstream)
    for y, z in zip(made, wanted, strict=True):
        assert torch.equal(y, z) if isinstance(p, float) else torch.allclose(y, z, atol=1e-6)


@every_op
@pytest.mark.parametrize("p", [1.0, 1 - 2.0**-40, rate_data(1.0)], ids=str)
def test_at_p_1_nothing_is_left_of_x_not_even_nan(target, op, p):
    x, other, upstream = torch.randn(3, 7, 13)
    x[3], x[4] = math.nan, math.inf
    state = torch.get_rng_state()
    y, x_grad, other_grad = results(fused, op, x, other, p, upstream)
    if isinstance(p, float):
        assert torch.equal(torch.get_rng_state(), state)
    assert not x_grad.any()
    assert torch.equal(y, torch.zeros_like(y) if op in TORCH else other)
    assert torch.equal(other_grad, torch.zeros_like(y) if op in TORCH else upstream)


@every_op
def test_in_evaluation_all_is_kept_and_nothing_is_drawn(op):
    x, other, upstream = torch.randn(3, 7, 13)
    state = torch.get_rng_state()
    made = results(lambda *rest, **_: fused(*rest, False), op, x, other, 0.5, upstream)
    wanted = results(composed, op, x, other, 0.0, upstream)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(y, z) for y, z in zip(made, wanted, strict=True))


@every_op
def test_the_result_is_a_new_tensor_even_where_nothing_is_dropped(op):
    x, other = torch.rand(4, 5) + 1, torch.rand(4, 5) + 1
    before = x.clone(), other.clone()
    for p, training in ((0.0, True), (0.5, False), (0.5, True), (1.0, True)):
        fused(op, x, other, p, training).fill_(-1)
    assert torch.equal(x, before[0])
    assert torch.equal(other, before[1])


@every_op
def test_the_rate_that_held_in_forward_holds_in_backward(target, op):
    x, other, upstream = torch.randn(3, 7, 13)
    wanted = results(fused, op, x, other, rate_data(0.3), upstream, key=KEY)[1:]
    p, inputs = rate_data(0.3), [x.clone().requires_grad_(), other.clone().requires_grad_()]
    y = fused(op, *inputs, p, key=KEY)
    p.copy_(rate_data(0.9))
    made = torch.autograd.grad(y, inputs, upstream)
    assert all(torch.equal(one, two) for one, two in zip(made, wanted, strict=True))


# Default mode


@every_op
@pytest.mark.parametrize("p", [0.001, 0.3, 0.5, rate_data(0.5), rate_data(0.0)], ids=str)
def test_the_ticket_is_the_one_that_the_composition_draws(op, p):
    x, other = torch.rand(2, 9, 14, dtype=torch.float64) + 0.5
    outs, states = [], []
    for run in (fused, composed):
        torch.manual_seed(11)
        outs.append(torch.stack([run(op, x, other, p) for _ in range(3)]))
        states.append(torch.get_rng_state())
    assert torch.equal(*states)
    assert torch.allclose(*outs, rtol=1e-14, atol=0)
    if not isinstance(p, torch.Tensor) and p == 0.5:
        assert not torch.equal(outs[0][0], outs[0][1])


@every_op
def test_a_generator_governs_the_mask_alone(op):
    x, other = torch.rand(2, 9, 14) + 0.5
    state, outs = torch.get_rng_state(), []
    for run in (fused, composed):
        generator = torch.Generator().manual_seed(5)
        outs.append(run(op, x, other, 0.5, generator=generator))
        outs.append(run(op, x, other, 0.5, generator=generator))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.allclose(torch.stack(outs[:2]), torch.stack(outs[2:]), rtol=1e-5)
    assert not torch.equal(outs[0], outs[1])


@every_op
@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 5), (2, 0, 3)])
def test_an_empty_input_gives_an_empty_result_and_draws_nothing(op, shape):
    x, other, state = torch.empty(shape), torch.empty(shape), torch.get_rng_state()
    for bias in (other, torch.ones(())) if op in TORCH else (other,):
        made = results(fused, op, x, bias, 0.5, torch.empty(shape))
        assert [one.shape for one in made] == [shape, shape, bias.shape]
        assert not made[2].any()
    assert torch.equal(torch.get_rng_state(), state)


# Layers


def layers(p=0.3, data=False):
    """Return the fused layers, and those that they stand for, under the same names."""
    one = {f"activation_{op}": nn.ActivationDropout(op, p) for op in TORCH}
    two = {name: nn.Dropout(p) for name in one}
    one |= {"add": nn.DropoutAdd(p), "path": nn.DropPathAdd(p)}
    two |= {"add": nn.Dropout(p), "path": nn.DropPath(p)}
    one["unscaled"], two["unscaled"] = nn.DropPathAdd(p, False), nn.DropPath(p, False)
    pair = torch.nn.ModuleDict(one), torch.nn.ModuleDict(two)
    for layer in [*one.values(), *two.values()] if data else []:
        layer.schedulable_()
    return pair


def run_layers(model, x, residual):
    """Run every layer of either kind, twice."""
    outs = []
    for name, layer in [*model.items()] * 2:
        if isinstance(layer, nn.ActivationDropout):
            outs.append(layer(x))
        elif isinstance(layer, nn.DropoutAdd | nn.DropPathAdd):
            outs.append(layer(x, residual))
        elif name.startswith("activation_"):
            outs.append(layer(TORCH[name.removeprefix("activation_")](x)))
        else:
            outs.append(residual + layer(x))
    return torch.stack(outs)


@pytest.mark.parametrize("data", [False, True])
@pytest.mark.parametrize("p", [0.0, 0.3, 0.001, 1.0])
def test_layers_are_their_composition_with_and_without_a_clock(p, data):
    models = layers(p, data)
    x, residual = torch.rand(2, 9, 14, dtype=torch.float64) + 0.5
    clocks = [MaskClock(model, seed=17) for model in models]
    assert clocks[0].sites == clocks[1].sites
    outs = [[], []]
    for made, model, clock in zip(outs, models, clocks, strict=True):
        torch.manual_seed(3)
        made.append(run_layers(model, x, residual))
        state = torch.get_rng_state()
        for step in (5, 0, 2**32 - 1):
            with clock.at(step):
                made.append(run_layers(model, x, residual))
            with clock.at(step, rows=torch.arange(9) * 7):
                made.append(run_layers(model, x, residual))
        assert torch.equal(torch.get_rng_state(), state)
        made.append(run_layers(model.eval(), x, residual))
        assert torch.equal(torch.get_rng_state(), state)
    for one, two in zip(*outs, strict=True):
        assert torch.allclose(one, two, rtol=1e-14, atol=0)
        assert torch.equal(one == 0, two == 0)


def test_a_layer_under_a_clock_has_the_mask_of_its_site_step_and_call():
    model, _ = layers()
    clock, x = MaskClock(model, seed=17), torch.rand(9, 14) + 0.5
    with clock.at(6):
        outs = run_layers(model, x, torch.zeros_like(x))
    for number, y in enumerate(outs):
        name = [*model][number % len(model)]
        key, by_row = clock.key(name, 6, number // len(model)), name in ("path", "unscaled")
        mask = keep_mask(key, 0.3, x.shape, shared_dims=(1,) if by_row else ())
        assert torch.equal(y != 0, mask.expand_as(x))


@pytest.mark.parametrize("options", [{"shared_dims": (1,)}, {"batch_dim": 1}], ids=str)
def test_layers_pass_their_options_on(options):
    x, residual = torch.rand(2, 6, 7, 5) + 0.5
    pairs = [(nn.ActivationDropout("relu", 0.4, **options), lambda: F.dropout(x, 0.4, **options))]
    pairs += [(nn.DropoutAdd(0.4, **options), lambda: residual + F.dropout(x, 0.4, **options))]
    pairs += [(nn.DropPathAdd(0.4, **options), lambda: residual + F.drop_path(x, 0.4, **options))]
    for layer, wanted in pairs:
        inputs = (x,) if isinstance(layer, nn.ActivationDropout) else (x, residual)
        torch.manual_seed(1)
        made = layer(*inputs)
        torch.manual_seed(1)
        assert torch.equal(made, wanted())


# What is kept for backward


def saved_by(run):
    saved = []

    def pack(tensor):
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = run()
    return y, saved


def keys_and_rows(n):
    yield KEY, None
    yield MaskKey(seed=torch.tensor(5), step=torch.arange(n)), torch.arange(n)


def test_relu_keeps_its_result_and_no_address():
    x, bias = torch.randn(64, 33, requires_grad=True), torch.randn(33, requires_grad=True)
    for key, rows in keys_and_rows(64):
        y, saved = saved_by(lambda k=key, r=rows: fused("relu", x, bias, 0.5, key=k, rows=r))
        assert [(one.data_ptr(), one.shape) for one in saved] == [(y.data_ptr(), y.shape)]


def test_relu_lets_go_of_the_rows():
    x, rows = torch.randn(64, 33, requires_grad=True), torch.arange(64)
    gone = weakref.ref(rows)
    y = fused("relu", x, None, 0.5, key=KEY, rows=rows)
    del rows
    assert gone() is None
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0] != 0, y != 0)


@every_sum
def test_sums_keep_nothing_but_the_address(op):
    x, residual = torch.randn(2, 64, 33, requires_grad=True).unbind()
    for key, rows in keys_and_rows(64):
        _, saved = saved_by(lambda k=key, r=rows: fused(op, x, residual, 0.5, key=k, rows=r))
        held = [] if rows is None else [(), (64,), (64,)]
        assert [tuple(one.shape) for one in saved] == held
        assert all(one.dtype == torch.int64 for one in saved)
    _, saved = saved_by(lambda: fused(op, x, residual, 0.5))
    assert saved == []


@pytest.mark.parametrize("op", SMOOTH)
def test_smooth_activations_keep_their_input_and_no_mask(op):
    x, bias = torch.randn(64, 33, requires_grad=True), torch.randn(33, requires_grad=True)
    for other in (None, bias):
        for key in (KEY, None):
            _, saved = saved_by(lambda o=other, k=key: fused(op, x, o, 0.5, key=k))
            wanted = [x] if other is None else [x, bias]
            assert [one.data_ptr() for one in saved] == [one.data_ptr() for one in wanted]


@every_op
def test_what_needs_no_gradient_gets_none_and_what_does_gets_its_own(target, op):
    x, other, upstream = torch.randn(3, 9, 14)
    _, *wanted = results(fused, op, x, other, 0.5, upstream, key=KEY)
    for place in (0, 1):
        inputs = [x.clone(), other.clone()]
        inputs[place].requires_grad_()
        fused(op, *inputs, 0.5, key=KEY).backward(upstream)
        assert torch.equal(inputs[place].grad, wanted[place])
        assert inputs[1 - place].grad is None
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            y = fused(op, x.requires_grad_(), other, 0.5, key=KEY)
        assert not y.requires_grad


@every_sum
def test_a_sum_of_a_tensor_with_itself_has_both_gradients(target, op):
    x = torch.randn(9, 14)
    for run in (fused, composed):
        leaf = x.clone().requires_grad_()
        run(op, leaf, leaf, 0.5, key=KEY).square().sum().backward()
        x.grads = [*getattr(x, "grads", []), leaf.grad]
    assert torch.allclose(*x.grads)


# Derivatives of derivatives, and torch's transforms


@every_op
def test_gradients_of_gradients_are_right(op):
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    for other in (
        (torch.randn(3, 4), torch.randn(3, 1), None) if op in TORCH else (torch.rand(3, 4),)
    ):
        inputs = (x,) if other is None else (x, other.double().requires_grad_())

        def run(x, other=None):
            return fused(op, x, other, 0.4, key=KEY)

        def bent(x, other=None):  # the relu and the sums are straight
            return fused(op, x.sin(), other, 0.4, key=KEY) * run(x, other)

        for f in (run, bent):
            assert torch.autograd.gradcheck(f, inputs)
            assert torch.autograd.gradgradcheck(f, inputs)


@every_op
def test_second_derivatives_are_those_of_the_composition(target, op):
    x, other, upstream = torch.randn(3, 9, 14, dtype=torch.float64)
    made = []
    for run in (fused, composed):
        inputs = [one.clone().requires_grad_() for one in (x, other, upstream)]
        y = run(op, inputs[0], inputs[1], 0.4, key=KEY)
        first = torch.autograd.grad(y, inputs[:2], inputs[2], create_graph=True)
        energy = sum((one**3).sum() for one in first)
        second = torch.autograd.grad(energy, inputs, allow_unused=True)
        made.append([*first, *[torch.zeros_like(x) if one is None else one for one in second]])
    for one, two in zip(*made, strict=True):
        assert torch.allclose(one, two, rtol=1e-10, atol=1e-12)
    assert made[0][-1].any()


def test_the_slope_of_relu_is_the_same_whether_or_not_it_will_be_differentiated(target):
    x = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0]).repeat_interleave(16)
    grads = []
    for create_graph in (False, True):
        leaf = x.clone().requires_grad_()
        y = fused("relu", leaf, None, 0.5, key=KEY)
        grads.append(torch.autograd.grad(y.sum(), leaf, create_graph=create_graph)[0].detach())
    assert torch.equal(*grads)


@torch_imports
@every_op
def test_function_transforms_see_through(op):
    x, other, tangent = torch.randn(3, 5, 7, dtype=torch.float64)

    def made(x, other):
        return fused(op, x, other, 0.4, key=KEY)

    def wanted(x, other):
        return composed(op, x, other, 0.4, key=KEY)

    for inputs in ((x, other), (x, other[:1])) if op in TORCH else ((x, other),):
        grads = [
            torch.func.grad(lambda *i, f=f: f(*i).square().sum(), argnums=(0, 1))(*inputs)
            for f in (made, wanted)
        ]
        assert all(torch.allclose(one, two) for one, two in zip(*grads, strict=True))
        tangents = tangent, tangent[: len(inputs[1])]
        pushed = [torch.func.jvp(f, inputs, tangents) for f in (made, wanted)]
        assert all(torch.allclose(one, two) for one, two in zip(*pushed, strict=True))
        jacobians = [torch.func.jacrev(f, argnums=(0, 1))(*inputs) for f in (made, wanted)]
        assert all(torch.allclose(one, two) for one, two in zip(*jacobians, strict=True))
    many = torch.func.vmap(made)(torch.stack([x, other]), torch.stack([other, x]))
    assert torch.allclose(many, torch.stack([wanted(x, other), wanted(other, x)]))
    each = torch.func.vmap(torch.func.grad(lambda *i: made(*i).square().sum()))
    assert torch.allclose(each(x[None], other[None])[0], grads[0][0]) or op in TORCH


@every_op
def test_vmap_over_keys_is_the_loop_over_keys(op):
    x, other = torch.rand(2, 4, 5, 7) + 0.5
    seeds = torch.randint(2**62, (4,))

    def run(x, other, seed):
        return fused(op, x, other, 0.4, key=MaskKey(seed=seed))

    wanted = torch.stack([run(*three) for three in zip(x, other, seeds, strict=True)])
    assert torch.allclose(torch.func.vmap(run)(x, other, seeds), wanted, rtol=1e-5)


@torch_imports
@every_op
def test_forward_mode_gives_the_tangent_of_the_composition(op):
    x, other, *tangents = torch.randn(4, 5, 7)
    made = []
    for run in (fused, composed):
        with torch.autograd.forward_ad.dual_level():
            duals = [
                torch.autograd.forward_ad.make_dual(*two)
                for two in zip((x, other), tangents, strict=True)
            ]
            out = run(op, *duals, 0.4, key=KEY)
            made.append(torch.autograd.forward_ad.unpack_dual(out).tangent)
    assert torch.allclose(*made, rtol=1e-5)


@pytest.mark.usefixtures("_fresh_dynamo")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@every_op
def test_compiled_code_is_eager_code_in_one_graph(op, backend):
    def run(x, other):
        return fused(op, x, other, 0.4), fused(op, x, other, 0.4, key=KEY)

    compiled = torch.compile(run, backend=backend, fullgraph=True)
    x, other, upstream = torch.rand(3, 5, 7, dtype=torch.float64) + 0.5
    made = []
    for f in (run, compiled, lambda *i: (composed(op, *i, 0.4), composed(op, *i, 0.4, key=KEY))):
        torch.manual_seed(3)
        inputs = [one.clone().requires_grad_() for one in (x, other)]
        outs = [y for _ in range(2) for y in f(*inputs)]
        made.append(
            outs
            + [g for y in outs for g in torch.autograd.grad(y, inputs, upstream, retain_graph=True)]
        )
    for others in zip(*made, strict=True):
        assert torch.allclose(others[0], others[1], rtol=1e-12)
        assert torch.allclose(others[1], others[2], rtol=1e-12)
    assert not torch.equal(made[1][0], made[1][2])


@pytest.mark.usefixtures("_fresh_dynamo")
def test_compiled_layers_follow_their_clock():
    models, (x, residual) = layers(), torch.rand(2, 9, 14, dtype=torch.float64) + 0.5
    clocks = [MaskClock(model, seed=17) for model in models]
    compiled = torch.compile(partial(run_layers, models[0]), backend="eager", fullgraph=True)
    for step in range(3):
        with clocks[0].at(step):
            made = compiled(x, residual)
        with clocks[1].at(step):
            wanted = run_layers(models[1], x, residual)
        assert torch.allclose(made, wanted, rtol=1e-12)
        assert torch.equal(made == 0, wanted == 0)


class Both(torch.nn.Module):
    """Every fused layer once, each on the result of the last one."""

    def __init__(self):
        super().__init__()
        self.activation = nn.ActivationDropout("gelu", 0.3)
        self.add, self.path = nn.DropoutAdd(0.3), nn.DropPathAdd(0.3)

    def forward(self, x, residual):
        return self.path(self.activation(x), self.add(x, residual))


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_an_exported_program_is_the_model(training, strict):
    model, (x, residual) = Both().train(training), torch.randn(2, 9, 14)
    file = io.BytesIO()
    torch.export.save(torch.export.export(model, (x, residual), strict=strict), file)
    file.seek(0)
    exported = torch.export.load(file)
    names = [str(n.target) for n in exported.graph.nodes if n.op == "call_function"]
    assert ("sitout.drop.default" in names) == training
    run = exported.module()
    torch.manual_seed(5)
    made = run(x, residual)
    torch.manual_seed(5)
    assert torch.allclose(made, model(x, residual), rtol=1e-5, atol=1e-6)
    assert torch.equal(run(x, residual), made) != training


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_repeats_the_masks_of_its_forward(reentrant):
    model, (x, residual) = Both(), torch.randn(2, 9, 14)
    made = []
    for repeats in (False, True):
        torch.manual_seed(5)
        inputs = [one.clone().requires_grad_() for one in (x, residual)]
        y = checkpoint(model, *inputs, use_reentrant=reentrant) if repeats else model(*inputs)
        torch.rand(7)  # what others draw before backward does not matter
        y.square().sum().backward()
        made.append([y.detach(), *[one.grad for one in inputs]])
    assert all(torch.equal(one, two) for one, two in zip(*made, strict=True))


def test_a_checkpoint_under_a_clock_repeats_the_masks_of_its_forward():
    model, (x, residual) = Both(), torch.randn(2, 9, 14)
    clock, made = MaskClock(model, seed=3), []
    for repeats, step in ((False, 0), (True, 0)):
        inputs = [one.clone().requires_grad_() for one in (x, residual)]
        options = {"use_reentrant": False, "context_fn": clock.recompute}
        with clock.at(step, rows=torch.arange(9)):
            y = checkpoint(model, *inputs, **options) if repeats else model(*inputs)
        y.square().sum().backward()
        made.append([y.detach(), *[one.grad for one in inputs]])
    assert all(torch.equal(one, two) for one, two in zip(*made, strict=True))


# Types


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@every_sum
def test_under_autocast_a_sum_with_float32_is_float32(op, dtype):
    linear, (x, residual) = torch.nn.Linear(14, 14), torch.randn(2, 9, 14)
    made = []
    for run in (fused, composed):
        with torch.autocast("cpu", dtype=dtype):
            hidden = linear(x)
            y = run(op, hidden, residual.requires_grad_(), 0.5, key=KEY)
        assert (hidden.dtype, y.dtype) == (dtype, torch.float32)
        grads = torch.autograd.grad(y.square().sum(), [linear.weight, residual])
        assert [one.dtype for one in grads] == [torch.float32] * 2
        made.append([y, *grads])
    assert all(torch.equal(one, two) for one, two in zip(*made, strict=True))


@every_activation
def test_under_autocast_an_activation_keeps_the_type_of_its_input(op):
    linear, x = torch.nn.Linear(14, 14), torch.randn(9, 14, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = fused(op, linear(x), None, 0.5, key=KEY)
    y.float().sum().backward()
    assert (y.dtype, x.grad.dtype) == (torch.bfloat16, torch.float32)
    assert not y[keep_mask(KEY, 0.5, y.shape).logical_not()].any()


@pytest.mark.parametrize(("one", "two"), list(itertools.permutations(DTYPES, 2)), ids=str)
@every_op
def test_mixed_types_are_the_composition_to_the_bit(op, one, two):
    x, other, upstream = torch.randn(3, 9, 14)
    wide = torch.promote_types(one, two)
    x, other = x.to(one), other.to(two)
    made, wanted = (
        results(run, op, x, other, 0.4, upstream.to(wide), key=KEY) for run in (fused, composed)
    )
    assert made[0].dtype == wide
    assert [y.dtype for y in made[1:]] == [one, two]
    assert all(alike(y, z) for y, z in zip(made, wanted, strict=True))


@every_dtype
@every_op
def test_the_reference_backend_gives_the_composition_to_the_bit(op, dtype):
    for x, other, p, upstream, options in cases(3, 12, op, [dtype]):
        with use("reference"):
            made, wanted = (
                results(run, op, x, other, p, upstream, **options) for run in (fused, composed)
            )
        assert all(alike(y, z) for y, z in zip(made, wanted, strict=True))


@every_op
def test_the_core_and_the_reference_may_be_mixed_in_one_graph(op):
    x, other, upstream = torch.rand(3, 9, 14, dtype=torch.float64) + 0.5
    wanted = results(composed, op, x, other, 0.4, upstream, key=KEY)
    for first, second in (("cpu", "reference"), ("reference", "cpu"), (None, "reference")):
        inputs = [x.clone().requires_grad_(), other.clone().requires_grad_()]
        with use(first):
            y = fused(op, *inputs, 0.4, key=KEY)
        with use(second):
            made = [y, *torch.autograd.grad(y, inputs, upstream)]
        assert all(torch.allclose(a, b, rtol=1e-12) for a, b in zip(made, wanted, strict=True))


@every_op
def test_tensors_without_values_go_through_and_draw_nothing(op):
    state = torch.get_rng_state()
    for context, device in ((FakeTensorMode(), "cpu"), (torch.no_grad(), "meta")):
        with context:
            x, other = (torch.empty(3, 5, dtype=torch.bfloat16, device=device) for _ in range(2))
            y = fused(op, x, other, 0.5)
        assert (y.shape, y.dtype, y.device.type) == (x.shape, x.dtype, device)
    x, other = (torch.empty(3, 5, device="meta", requires_grad=True) for _ in range(2))
    fused(op, x, other, 0.5).sum().backward()
    assert x.grad.shape == other.grad.shape == x.shape
    assert torch.equal(torch.get_rng_state(), state)


@every_op
def test_the_layout_of_a_result_is_that_of_x(target, op):
    x, other = torch.randn(2, 3, 5, 7).contiguous(memory_format=torch.channels_last), None
    other = torch.randn(2, 3, 5, 7)
    assert fused(op, x, other, 0.5, key=KEY).stride() == x.stride()
    turned = torch.randn(7, 5).t()
    assert fused(op, turned, torch.randn(5, 7), 0.5, key=KEY).stride() == turned.stride()


# What is refused


def line(message):
    return f"^{re.escape(message)}$"


@pytest.mark.parametrize("given", ["geluu", "ReLU", "", None, 3, ["relu"]])
def test_an_unknown_activation_is_refused_with_the_known_ones(given):
    rule = "must be one of relu, gelu, gelu_tanh, silu. Got "
    for owner, call in {
        "activation_dropout": lambda: F.activation_dropout(torch.ones(3), given, 0.5),
        "ActivationDropout": lambda: nn.ActivationDropout(given, 0.5),
    }.items():
        with pytest.raises(
            ValueError, match=f"^{re.escape(f'`activation` of {owner} {rule}')}"
        ) as e:
            call()
        assert repr(given) in str(e.value)
        assert "\n" not in str(e.value)
    hint = re.escape("Did you mean 'gelu'?")
    if given == "geluu":
        with pytest.raises(ValueError, match=hint):
            nn.ActivationDropout(given, 0.5)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shape", [(2,), (3, 1, 1), (4, 3), (2, 4), (0,), (3, 4, 1), (1, 3, 4)])
def test_a_bias_that_does_not_broadcast_is_refused(shape, training):
    rule = f"broadcastable to the shape of the input, (3, 4). Got {shape}."
    with pytest.raises(ValueError, match=line(f"`bias` of activation_dropout must be {rule}")):
        F.activation_dropout(torch.ones(3, 4), "relu", 0.5, training, bias=torch.ones(shape))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("given", [[1.0, 2.0], 1.0, "b"], ids=str)
def test_a_bias_that_is_no_tensor_is_refused(given, training):
    rule = f"a tensor or None. Got {given!r}."
    with pytest.raises(TypeError, match=line(f"`bias` of activation_dropout must be {rule}")):
        F.activation_dropout(torch.ones(3, 2), "relu", 0.5, training, bias=given)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shape", [(), (4,), (1, 4), (3, 1), (4, 3), (1, 3, 4), (3, 0)])
@every_sum
def test_a_residual_of_another_shape_is_refused(op, shape, training):
    rule = f"of the shape of the input, (3, 4). Got {shape}."
    with pytest.raises(ValueError, match=line(f"`residual` of {op} must be {rule}")):
        getattr(F, op)(torch.ones(3, 4), torch.ones(shape), 0.5, training)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("given", [[1.0, 2.0], 1.0, None], ids=str)
@every_sum
def test_a_residual_that_is_no_tensor_is_refused(op, given, training):
    message = f"`residual` of {op} must be a tensor. Got {given!r}."
    with pytest.raises(TypeError, match=line(message)):
        getattr(F, op)(torch.ones(2), given, 0.5, training)
    layer = (nn.DropoutAdd if op == "dropout_add" else nn.DropPathAdd)(0.5).train(training)
    with pytest.raises(TypeError, match=line(message)):
        layer(torch.ones(2), given)


@pytest.mark.parametrize("given", [[1.0, 2.0], 1.0, None], ids=str)
@every_op
def test_an_input_that_is_no_tensor_is_refused(op, given):
    owner = op if op in SUMS else "activation_dropout"
    message = f"The input of {owner} must be a tensor. Got {type(given).__name__!r}."
    with pytest.raises(TypeError, match=line(message)):
        fused(op, given, torch.ones(2), 0.5)


@pytest.mark.parametrize("given", [-0.1, 1.5, math.nan, "0.5", None, True])
@every_op
def test_a_rate_outside_of_0_to_1_is_refused(op, given):
    owner = op if op in SUMS else "activation_dropout"
    message = f"`p` of {owner} must be a number in [0, 1]. Got {given!r}."
    with pytest.raises((TypeError, ValueError), match=line(message)):
        fused(op, torch.ones(2), torch.ones(2), given)


@every_op
def test_ints_are_refused_in_training(op):
    with pytest.raises(
        TypeError, match=r"must be of a floating dtype in training\. Got torch\.int"
    ):
        fused(op, torch.ones(2, dtype=torch.int64), torch.ones(2), 0.5)


@every_op
def test_a_key_and_a_generator_together_are_refused(op):
    with pytest.raises(
        ValueError, match=r"must be given as `key` or as `generator`\. Got 'both'\.$"
    ):
        fused(op, torch.ones(2), torch.ones(2), 0.5, key=KEY, generator=torch.Generator())


def test_the_functions_and_the_layers_are_public():
    assert {"activation_dropout", *SUMS} <= {*sitout.functional.__all__}
    assert {"ActivationDropout", "DropoutAdd", "DropPathAdd"} <= {*sitout.nn.__all__}


@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_tanh", "silu"])
@pytest.mark.parametrize("bias_of", [lambda x: x.mean(0) * 2, lambda x: x, lambda x: x[0]])
def test_a_bias_that_comes_from_the_input_is_counted_once(activation, bias_of):
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)

    def grad(way, **options):
        y = way(activation, x, bias_of(x), 0.5, key=KEY)
        return torch.autograd.grad((y**2).sum(), x, **options)[0]

    wanted = grad(composed)
    assert torch.allclose(grad(fused), wanted)
    assert torch.allclose(grad(fused, create_graph=True), wanted)


@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_tanh", "silu"])
@pytest.mark.parametrize("create_graph", [False, True])
def test_a_hook_on_the_input_is_called_once(activation, create_graph):
    x = torch.randn(4, 6, requires_grad=True)
    seen = []
    x.register_hook(seen.append)
    y = F.activation_dropout(x, activation, 0.5, key=KEY)
    torch.autograd.grad(y.sum(), x, create_graph=create_graph)
    assert len(seen) == 1


@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_tanh", "silu"])
def test_gradients_carry_a_graph_only_if_asked(activation):
    x = torch.randn(4, 6, requires_grad=True)
    y = F.activation_dropout(x, activation, 0.5, key=KEY)
    g = torch.ones(3, 4, 6)
    (batched,) = torch.autograd.grad(y, x, g, is_grads_batched=True, retain_graph=True)
    (one,) = torch.autograd.grad(y, x, g[0], retain_graph=True)
    (again,) = torch.autograd.grad(y, x, g[0], create_graph=True)
    assert not batched.requires_grad
    assert not one.requires_grad
    assert torch.allclose(batched, one.expand(3, 4, 6), atol=1e-6)
    assert torch.allclose(again, one, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_gradient_of_relu_is_rounded_once_in_every_order(dtype):
    x = torch.rand(64, dtype=dtype, requires_grad=True)
    y = F.activation_dropout(x, "relu", rate_data(0.1), key=KEY)
    g = torch.randn(64).to(dtype)
    (first,) = torch.autograd.grad(y, x, g, retain_graph=True)
    (second,) = torch.autograd.grad(y, x, g, create_graph=True)
    assert torch.equal(first, second)
