"""Activation and dropout, dropout and sum: one kernel gives what the composition gives."""

from __future__ import annotations

import pytest
import torch

from sitout import MaskKey
from sitout import functional as F
from sitout.backends import Address, cpu, use
from sitout.backends import triton as backend
from sitout.backends.triton import _drop
from sitout.masks import rate_data
from test_fused import HALVES, OPS, SMOOTH, SUMS, TORCH, cases, composed, fused, results
from test_fused import ordered as in_order

pytestmark = [
    pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning"),
    pytest.mark.usefixtures("_forced"),
]

KEY = MaskKey(seed=2**63 + 11, site=7, step=9, call=1)
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def on(device, one):
    """Return what holds tensors on another device; strides that are not dense are lost on a GPU."""
    if isinstance(one, torch.Tensor):
        return one if one.device.type == device else one.to(device)
    if isinstance(one, MaskKey):
        return MaskKey(*(on(device, field) for field in vars(one).values()))
    return {name: on(device, option) for name, option in one.items()} if type(one) is dict else one


def placed(device, seed, count, op):
    """Yield the smaller cases of the CPU's test on the device."""
    for case in cases(seed, count, op):
        if case[0].numel() < 800:
            yield [on(device, one) for one in case]


@pytest.mark.parametrize("op", ["relu", *SUMS])
def test_relu_and_sums_are_their_composition_forward_and_backward(device, op):
    for x, other, p, upstream, options in placed(device, 5, 24, op):
        made = results(fused, op, x, other, p, upstream, **options)
        wide = x.float() if x.dtype in HALVES else x
        wide_other = None if other is None else other.to(wide.dtype)
        with use("reference"):
            wanted = results(composed, op, wide, wide_other, p, upstream.to(wide.dtype), **options)
        y = wanted[0].to(x.dtype)
        assert ((in_order(made[0]) - in_order(y)).abs() <= 1).all()
        there = (made[0] == 0) == (wanted[0] == 0)  # what vanishes in rounding has no derivative
        assert torch.equal(made[1][there], wanted[1].to(x.dtype)[there])


@pytest.mark.parametrize("op", SMOOTH)
def test_smooth_activations_are_those_of_float64_within_a_few_roundings(device, op):
    for x, bias, p, upstream, options in placed(device, 6, 20, op):
        made = results(fused, op, x, bias, p, upstream, **options)
        wide = None if bias is None else bias.double()
        with use("reference"):
            wanted = results(composed, op, x.double(), wide, p, upstream.double(), **options)
        eps = torch.finfo(x.dtype).eps
        # A sum is rounded where it is made, and the scale and each product once more.
        reach = x.double().abs() + (0.0 if wide is None else wide.abs()) + 1
        rest = 1 - (p[1] / 2.0 ** p[0] if isinstance(p, torch.Tensor) else p)
        bound = 8 * max(eps, 2.0**-52) * reach / rest
        assert ((made[0].double() - wanted[0]).abs() <= bound).all()
        bound = bound * upstream.double().abs() + 1e-300
        assert ((made[1].double() - wanted[1]).abs() <= bound).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", SMOOTH)
def test_activations_and_slopes_are_as_near_as_those_of_torch(device, op, dtype):
    x = torch.linspace(-16, 16, 1501).to(device, dtype)

    def slope(at):
        at = at.clone().requires_grad_()
        return torch.autograd.grad(TORCH[op](at), at, torch.ones_like(at))[0]

    value = backend.fuse(op, x, Address(KEY), 0.0)
    steep = backend.fuse(f"{op}_slope", torch.ones_like(x), Address(KEY), 0.0, other=x)
    for made, function in ((value, TORCH[op]), (steep, slope)):
        wanted = function(x.double())
        error = (made.double() - wanted).abs().max()
        theirs = (function(x).double() - wanted).abs().max()
        assert error <= max(2 * theirs, torch.finfo(dtype).eps, 64 * 2.0**-52)


@pytest.mark.parametrize("op", [*SMOOTH, *(f"{op}_slope" for op in SMOOTH)])
def test_the_tails_of_activations_are_those_of_the_core(device, op):
    x = torch.cat([torch.linspace(-16, 16, 1501), torch.tensor([0.0, -0.0, 80.0, -80.0, -120.0])])
    for dtype, digits in ((torch.float32, 3e-5), (torch.float64, 1e-13)):  # of exp(-80)
        at = x.to(dtype)
        rest = (torch.ones_like(at), at) if op.endswith("_slope") else (at, None)
        wanted = cpu.fuse(op, rest[0], Address(KEY), 0.0, other=rest[1])
        rest = [None if one is None else one.to(device) for one in rest]
        made = backend.fuse(op, rest[0], Address(KEY), 0.0, other=rest[1]).cpu()
        least = 1e3 * torch.finfo(dtype).tiny + (digits if op.endswith("slope") else 0.0)
        assert ((made - wanted).abs() <= digits * wanted.abs() + least).all()


@pytest.mark.parametrize("op", OPS)
def test_each_function_takes_one_kernel_forward_and_one_backward(device, monkeypatch, op):
    seen = []
    run = _drop.run
    monkeypatch.setattr(_drop, "run", lambda name, *rest: seen.append(name) or run(name, *rest))
    x, other = torch.randn(2, 3, 16, device=device)
    results(fused, op, x, other, 0.3, torch.ones_like(x), key=KEY)
    sums = {"dropout_add": ["add", "dropout"], "drop_path_add": ["add", "dropout"]}
    assert seen == sums.get(op, [op, f"{op}_slope"])


@pytest.mark.parametrize("op", OPS)
def test_what_sits_out_leaks_into_nothing(device, op):
    x = torch.full((16, 6), float("nan"), device=device)
    other = torch.ones(16, 6, device=device)
    x_at = x.clone().requires_grad_()
    y = fused(op, x_at, other, 0.5, key=KEY)
    (grad,) = torch.autograd.grad(y, x_at, torch.ones_like(x))
    out = ~y.isnan()
    assert 0 < int(out.sum()) < 96
    assert (y[out] == (1.0 if op in SUMS else 0.0)).all()
    assert (grad[out] == 0).all()


@pytest.mark.parametrize("p", [1.0, rate_data(1.0)])
@pytest.mark.parametrize("op", OPS)
def test_where_all_sits_out_nothing_is_left(device, op, p):
    x, other = torch.randn(2, 3, 16, device=device)
    y, grad, *_ = results(fused, op, x, other, on(device, p), torch.ones_like(x), key=KEY)
    assert torch.equal(y, other if op in SUMS else torch.zeros_like(x))
    assert not grad.any()


@pytest.mark.parametrize("op", SMOOTH)
def test_second_derivatives_are_those_of_the_composition(device, op):
    x = torch.randn(1, 5, dtype=torch.float64, device=device)
    made = []
    for run, which in ((fused, "triton"), (composed, "reference")):
        at = x.clone().requires_grad_()
        with use(which):
            y = run(op, at, None, 0.3, key=KEY)
            (grad,) = torch.autograd.grad(y.sum(), at, create_graph=True)
            made.append(torch.autograd.grad(grad.sum(), at)[0])
    assert torch.allclose(*made, rtol=1e-10)


@pytest.mark.parametrize("shape", [(16,), (1, 1, 16), (4, 1, 1), (1, 5, 1), (), (4, 5, 16)])
def test_a_bias_of_any_shape_is_added_and_gets_its_gradient(device, shape):
    x, bias = torch.randn(4, 5, 16, device=device), torch.randn(shape, device=device)
    upstream = torch.randn_like(x)
    made = results(fused, "relu", x, bias, 0.3, upstream, key=KEY)
    with use("reference"):
        wanted = results(composed, "relu", x, bias, 0.3, upstream, key=KEY)
    for one, other in zip(made, wanted, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("op", [*TORCH, "add", "path_add", "relu_slope", "silu_slope"])
def test_the_operations_are_those_of_the_core(device, op):
    x, other = torch.randn(2, 9, 21)
    bias = torch.randn(21) if op in TORCH or op == "silu_slope" else None
    rest = {"other": None if op in TORCH else other, "bias": bias}
    wanted = cpu.fuse(op, x, Address(KEY), 0.4, **rest)
    rest = {name: None if one is None else one.to(device) for name, one in rest.items()}
    made = backend.fuse(op, x.to(device), Address(KEY), 0.4, **rest).cpu()
    assert torch.equal(made == 0, wanted == 0)
    assert torch.allclose(made, wanted, rtol=1e-5, atol=1e-6)


def test_a_residual_of_another_type_or_device_is_not_fused(device, monkeypatch):
    monkeypatch.setattr(_drop, "run", lambda op, *rest: pytest.fail(op) if op == "add" else rest[1])
    x = torch.randn(3, 8, device=device)
    F.dropout_add(x, x.double(), 0.3, key=KEY)
