"""Dropout, sum and normalization by one kernel: what its parts give, one after the other."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
from functools import partial

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from sitout import MaskClock, MaskKey, nn
from sitout import functional as F
from sitout.backends import cpu, use
from sitout.backends.triton import _norm
from sitout.masks import keep_mask, rate_data

KEY = MaskKey(seed=2**40 + 7, site=4, step=9, call=1)
NORMS = ["layer", "rms"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Widths of one block, of many, around them, and of primes; rows that are prime, and one.
SHAPES = [(4, 8), (2, 13), (1, 2, 40), (1, 131), (1, 1), (1, 1, 2, 9), (17,)]

every_norm = pytest.mark.parametrize("norm", NORMS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture
def launched(monkeypatch):
    """Return the names of the kernels that were started."""
    names, launch = [], _norm.launch

    def noted(kernel, *rest, **more):
        names.append(kernel.fn.__name__ if hasattr(kernel, "fn") else kernel.__name__)
        launch(kernel, *rest, **more)

    monkeypatch.setattr(_norm, "launch", noted)
    return names


def call(norm, x, residual, weight, bias, p=0.3, *rest, **options):
    """Call one of the functions; it returns the normalized sum, and the sum."""
    options = {"key": KEY, "prenorm": True} | options
    if norm == "layer":
        return F.dropout_add_layer_norm(x, residual, weight, bias, p, *rest, **options)
    return F.dropout_add_rms_norm(x, residual, weight, p, *rest, **options)


def inputs(shape, dtype, device, norm="layer", n_dims=1):
    """Return x, residual, weight and bias, and gradients of both results."""
    made = [torch.randn(shape) for _ in range(2)]
    made += [torch.randn(shape[-n_dims:]) for _ in range(2 if norm == "layer" else 1)]
    made = [one.to(device, dtype) for one in made]
    made += [None] * (4 - len(made))
    return made, [torch.randn(shape).to(device, dtype) for _ in range(2)]


def results(norm, given, grads, p=0.3, **options):
    """Return the normalized sum, the sum, and the gradients of all that was given."""
    leaves = [None if one is None else one.detach().clone().requires_grad_() for one in given]
    outs = call(norm, *leaves, p, **options)
    made = torch.autograd.grad(outs, [one for one in leaves if one is not None], grads)
    return [*(one.detach() for one in outs), *made]


def by_kernel(*rest, **options):
    with use("triton"):
        return results(*rest, **options)


def by_parts(*rest, **options):
    with use("reference"):
        return results(*rest, **options)


def wide(tensors):
    return [None if one is None else one.double() for one in tensors]


# Values and gradients


@every_dtype
def test_the_sum_is_that_of_its_parts_rounded_once(device, dtype):
    for shape in SHAPES:
        given, _ = inputs(shape, dtype, device)
        with use("triton"):
            _, total = call("layer", *given)
        x, residual = (one.float() for one in given[:2])
        with use("reference"):
            wanted = residual + F.dropout(x, 0.3, key=KEY)
        assert total.dtype == dtype
        assert torch.equal(total, wanted.to(dtype)), shape


@every_dtype
@every_norm
def test_results_and_gradients_are_within_twice_the_error_of_torch(device, launched, norm, dtype):
    ours, theirs = torch.zeros(6), torch.zeros(6)
    for shape in SHAPES:
        given, grads = inputs(shape, dtype, device, norm)
        truth = by_parts(norm, wide(given), wide(grads))
        for worst, run in ((ours, by_kernel), (theirs, by_parts)):
            made = run(norm, given, grads)
            assert [one.dtype for one in made] == [dtype] * len(made)
            for at, (one, other) in enumerate(zip(made, truth, strict=True)):
                worst[at] = max(worst[at], float((one.double() - other).abs().max()))
    assert launched == ["forward", "backward"] * len(SHAPES)
    assert (ours <= 2 * theirs).all(), (ours, theirs)


@every_norm
def test_the_gradient_of_x_is_zero_where_the_mask_drops_and_nowhere_else(device, norm):
    for shape, p in (((5, 24), 0.3), ((3, 13), 0.3), ((3, 40), 0.004), ((3, 13), 0.996)):
        given, grads = inputs(shape, torch.float32, device, norm)
        x_grad = by_kernel(norm, given, grads, p)[2]
        assert torch.equal(x_grad != 0, keep_mask(KEY, p, shape, device=device))


@every_norm
def test_several_dims_are_normalized_together(device, launched, norm):
    given, grads = inputs((2, 2, 2, 5), torch.float32, device, norm, n_dims=2)
    made, wanted = (run(norm, given, grads) for run in (by_kernel, by_parts))
    assert all(torch.allclose(a, b, atol=2e-6) for a, b in zip(made, wanted, strict=True))
    assert launched == ["forward", "backward"]


@every_norm
def test_without_weight_and_bias_there_are_no_gradients_of_them(device, norm):
    given, grads = inputs((3, 24), torch.float32, device, norm)
    made, wanted = (run(norm, [*given[:2], None, None], grads) for run in (by_kernel, by_parts))
    assert len(made) == 4
    assert all(torch.allclose(a, b, atol=2e-6) for a, b in zip(made, wanted, strict=True))


@pytest.mark.parametrize("place", [2, 3])
def test_weight_or_bias_may_be_alone(device, place):
    given, grads = inputs((3, 24), torch.float32, device)
    given[place] = None
    made, wanted = (run("layer", given, grads) for run in (by_kernel, by_parts))
    assert len(made) == 5
    assert all(torch.allclose(a, b, atol=2e-6) for a, b in zip(made, wanted, strict=True))


@every_norm
def test_a_row_of_equal_numbers_and_a_large_mean_do_no_harm(device, norm):
    given, grads = inputs((4, 24), torch.float32, device, norm)
    given[0][0], given[1][0] = 0.0, 3.0
    given[1][1] += 1000.0
    made, truth = by_kernel(norm, given, grads), by_parts(norm, wide(given), wide(grads))
    theirs = by_parts(norm, given, grads)
    for one, other, exact in zip(made, theirs, truth, strict=True):
        bound = 2 * (other - exact).abs().max() + 1e-6 * exact.abs().max()
        assert (one - exact).abs().max() <= bound


def test_nothing_leaks_out_of_what_is_dropped(device):
    given, grads = inputs((3, 13), torch.float32, device)
    kept = keep_mask(KEY, 0.3, (3, 13), device=device)
    clean = by_kernel("layer", given, grads)
    for poison in (math.nan, math.inf):
        x = torch.where(kept, given[0], poison)
        made = by_kernel("layer", [x, *given[1:]], grads)
        assert all(torch.equal(a, b) for a, b in zip(made, clean, strict=True))


def test_runs_repeat_themselves_to_the_bit(device):
    given, grads = inputs((5, 24), torch.float32, device)
    first, second = (by_kernel("layer", given, grads) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_what_overlaps_or_lies_scattered_is_read_right(device):
    x, residual = torch.randn(2, 24, 5, device=device).transpose(1, 2)
    given = [x, residual[:1].expand(5, 24), *torch.randn(24, 2, device=device).t()]
    grads = list(torch.randn(2, 24, 5, device=device).transpose(1, 2))
    made, wanted = (run("layer", given, grads) for run in (by_kernel, by_parts))
    assert all(torch.allclose(a, b, atol=2e-6) for a, b in zip(made, wanted, strict=True))


# Rates


@every_norm
@pytest.mark.parametrize(
    "p", [1.0, 2.0**-32, rate_data(0.0), rate_data(0.3), rate_data(0.001), rate_data(1.0)], ids=str
)
def test_every_rate_is_that_of_the_parts(device, launched, norm, p):
    given, grads = inputs((3, 24), torch.float32, device, norm)
    p = p.to(device) if isinstance(p, torch.Tensor) else p
    made, wanted = (run(norm, given, grads, p) for run in (by_kernel, by_parts))
    assert torch.equal(made[1], wanted[1])
    assert torch.equal(made[2] == 0, wanted[2] == 0)
    assert all(torch.allclose(a, b, atol=2e-6) for a, b in zip(made, wanted, strict=True))
    assert launched == ["forward", "backward"]


@pytest.mark.parametrize("p", [1.0, rate_data(1.0)], ids=str)
def test_at_p_1_nothing_is_left_of_x_not_even_nan(device, p):
    given, grads = inputs((3, 13), torch.float32, device)
    given[0].fill_(math.nan)
    made = by_kernel("layer", given, grads, p.to(device) if isinstance(p, torch.Tensor) else p)
    assert torch.equal(made[1], given[1])
    assert not made[2].any()


@pytest.mark.parametrize(("p", "training"), [(0.0, True), (0.3, False)])
@every_norm
def test_where_nothing_is_dropped_torch_does_it(device, launched, norm, p, training):
    given, _ = inputs((3, 13), torch.float32, device, norm)
    with use("triton"):
        y, total = call(norm, *given, p, training)
    assert torch.equal(total, given[1] + given[0])
    wanted = torch.nn.functional.layer_norm(total, (13,), *given[2:])
    if norm == "rms":
        wanted = torch.nn.functional.rms_norm(total, (13,), given[2])
    assert torch.equal(y, wanted)
    assert launched == []


def test_the_rate_that_held_in_forward_holds_in_backward(device):
    given, grads = inputs((3, 13), torch.float32, device)
    p = rate_data(0.3, device)
    wanted = by_kernel("layer", given, grads, p)[2:]
    leaves = [one.clone().requires_grad_() for one in given]
    with use("triton"):
        outs = call("layer", *leaves, p)
        p.copy_(rate_data(0.9))
        made = torch.autograd.grad(outs, leaves, grads)
    assert all(torch.equal(a, b) for a, b in zip(made, wanted, strict=True))


# Addresses


def addresses(device):
    some = torch.tensor([5, 0, 2**32 - 1], device=device)
    yield (3, 13), {"rows": some}
    yield (3, 16), {"key": MaskKey(7, 1, torch.tensor([2**32 - 1, 4, 0], device=device), 2)}
    yield (3, 1, 8), {"rows": some.cpu(), "key": MaskKey(7, 1, some.cpu(), 2)}
    yield (2, 3, 1, 7), {"batch_dim": 1, "rows": some}
    yield (1, 3, 2, 8), {"batch_dim": -2}
    yield (1, 4, 8), {"shared_dims": (1,)}
    yield (1, 4, 8), {"block": [(8, 40), (0, 8)]}
    yield (1, 4, 8), {"block": [(8, 2**29), (16, 64)]}
    yield (1, 4, 5), {"block": [(2**32, 2**32 + 4), (0, 5)]}
    yield (7,), {"block": [(3, 11)], "rows": some[:1]}
    words = (2**63 + 5, 2**28 - 1, 2**32 - 1, 2**32 - 1)
    signed = (words[0] - 2**64, *words[1:])
    yield (1, 13), {"key": MaskKey(*words)}
    yield (1, 13), {"key": MaskKey(*(torch.tensor(one, device=device) for one in signed))}
    yield (1, 13), {"key": MaskKey(*map(torch.tensor, signed))}


def test_every_address_has_the_mask_of_the_parts(device, launched):
    for shape, options in addresses(device):
        given, grads = inputs(shape, torch.float32, device)
        made, wanted = (run("layer", given, grads, **options) for run in (by_kernel, by_parts))
        assert torch.equal(made[1], wanted[1]), options
        assert torch.equal(made[2] == 0, wanted[2] == 0), options
        assert launched == ["forward", "backward"], options
        launched.clear()


@pytest.mark.parametrize("place", [0, 3, 8])
def test_a_rate_as_data_has_the_mask_of_the_parts_at_an_address(device, place):
    shape, options = [*addresses(device)][place]
    given, grads = inputs(shape, torch.float32, device)
    for p in (rate_data(0.4, device), rate_data(1 - 0.002, device)):
        made, wanted = (run("layer", given, grads, p, **options) for run in (by_kernel, by_parts))
        assert torch.equal(made[2] == 0, wanted[2] == 0)


@pytest.mark.parametrize(
    ("shape", "n_dims", "options"),
    [
        ((3, 13), 2, {}),  # rows of the mask within what is normalized
        ((3, 4), 1, {"shared_dims": (1,)}),  # one bit for a whole row
        ((3, 2, 4), 2, {"shared_dims": (2,)}),
        ((3, 4, 8), 1, {"shared_dims": (0,)}),  # no samples, and two strides
        ((3, 2, 4), 2, {"block": [(0, 2), (0, 9)]}),
        ((2, 3, 4, 5), 1, {"block": [(0, 3), (0, 9), (0, 5)]}),
        ((3, 13), 1, {"batch_dim": 1}),
    ],
)
def test_what_no_kernel_serves_is_done_by_the_parts(device, launched, shape, n_dims, options):
    given, grads = inputs(shape, torch.float32, device, n_dims=n_dims)
    made, wanted = (run("layer", given, grads, **options) for run in (by_kernel, by_parts))
    assert torch.equal(made[1], wanted[1])
    assert launched == []


def test_a_place_says_of_every_element_what_the_specification_says():
    draw, served = random.Random(0), 0
    for _ in range(400):
        rank = draw.choice([1, 2, 3, 4])
        shape = tuple(draw.choice([1, 2, 3, 5, 8]) for _ in range(rank))
        n_dims, batch = draw.randrange(1, rank + 1), draw.randrange(rank)
        shared = tuple(dim for dim in range(rank) if draw.random() < 0.2)
        block = None
        if draw.random() < 0.4:
            sizes = [
                1 if dim in shared else size
                for dim, size in enumerate(shape)
                if rank < 2 or dim != batch
            ]
            block = tuple(
                (a, a + m + draw.choice([0, 3])) for m in sizes for a in [draw.choice([0, 8])]
            )
        where = _norm.place(shape, n_dims, shared, batch, block)
        if where is None:
            continue
        served += 1
        cols, first, row_dim, _ = cpu._columns(shape, shared, batch, block)
        index = torch.cartesian_prod(*map(torch.arange, shape)).view(math.prod(shape), rank)
        wanted = first + (index * torch.tensor(cols)).sum(1)
        m = torch.arange(math.prod(shape)) // where.n_cols
        outer, within = m // where.inner // where.n_batch, m % where.inner
        col = where.first + outer * where.outer_stride + within * where.inner_stride
        assert torch.equal(col + torch.arange(len(m)) % where.n_cols, wanted)
        row = index[:, row_dim] if row_dim >= 0 else torch.zeros_like(m)
        assert torch.equal(m // where.inner % where.n_batch, row)
    assert served > 100


# Modules, tickets and replays


def layer(norm, width, p=0.3, **options):
    return (nn.DropoutAddLayerNorm if norm == "layer" else nn.DropoutAddRMSNorm)(
        width, p, **options
    )


@every_norm
def test_the_ticket_is_the_one_that_the_parts_draw(device, norm):
    given, _ = inputs((5, 13), torch.float32, device, norm)
    totals = []
    for backend in ("triton", "reference"):
        torch.manual_seed(3)
        with use(backend):
            totals.append(torch.stack([call(norm, *given, key=None)[1] for _ in range(2)]))
    assert torch.equal(*totals)
    assert not torch.equal(*totals[0])


@every_norm
def test_a_clock_replays_a_step_and_a_checkpoint_its_forward(device, norm):
    model = layer(norm, 13).to(device)
    clock = MaskClock(model, seed=3)
    x, residual, upstream = torch.randn(3, 5, 13, device=device)
    made = []
    for repeats in (False, True):
        leaves = [x.clone().requires_grad_(), residual.clone().requires_grad_()]
        options = {"use_reentrant": False, "context_fn": clock.recompute}
        with use("triton"):
            with clock.at(0, rows=torch.arange(5)):
                y = checkpoint(model, *leaves, **options) if repeats else model(*leaves)
            y.backward(upstream)
        made.append([y.detach(), *(one.grad for one in leaves)])
    assert all(torch.equal(a, b) for a, b in zip(*made, strict=True))
    mask = keep_mask(clock.key("", 0, 0), 0.3, x.shape, device=device)
    assert torch.equal(made[0][1] != 0, mask)


# Backward


def test_for_backward_the_sum_and_two_numbers_a_row_are_kept_and_no_mask(device):
    given, _ = inputs((5, 24), torch.float32, device)
    saved = []

    def pack(tensor):
        saved.append((tuple(tensor.shape), tensor.dtype))
        return tensor

    for norm, n_numbers in (("layer", 2), ("rms", 1)):
        leaves = [one.clone().requires_grad_() for one in given]
        with use("triton"), torch.autograd.graph.saved_tensors_hooks(pack, lambda one: one):
            call(norm, *leaves)
        affine = [((24,), torch.float32)] * n_numbers
        assert saved == [((5, 24), torch.float32), *affine, *[((5,), torch.float32)] * n_numbers]
        saved.clear()


@every_norm
@pytest.mark.parametrize("places", [(0,), (1,), (2,), (0, 2)])
def test_what_needs_no_gradient_gets_none_and_what_does_gets_its_own(device, norm, places):
    given, grads = inputs((5, 24), torch.float32, device, norm)
    wanted = by_kernel(norm, given, grads)[2:]
    leaves = [None if one is None else one.clone() for one in given]
    for place in places:
        leaves[place].requires_grad_()
    with use("triton"):
        torch.autograd.backward(call(norm, *leaves), grads)
    for place, one in enumerate(leaves):
        if place in places:
            assert torch.equal(one.grad, wanted[place])
        elif one is not None:
            assert one.grad is None
    with use("triton"), torch.no_grad():
        assert not any(one.requires_grad for one in call(norm, *leaves))


@every_norm
def test_one_of_the_two_results_alone_may_be_differentiated(device, norm):
    given, grads = inputs((5, 13), torch.float32, device, norm)
    for place in (0, 1):
        made = []
        for backend in ("triton", "reference"):
            leaves = [None if one is None else one.clone().requires_grad_() for one in given]
            with use(backend):
                out = call(norm, *leaves)[place]
                asked = [one for one in leaves if one is not None]
                made.append(torch.autograd.grad(out, asked, grads[place], allow_unused=True))
        for one, other in zip(*made, strict=True):
            assert (one is None) == (other is None)
            assert one is None or torch.allclose(one, other, atol=2e-6)


@every_norm
def test_second_derivatives_are_those_of_the_parts(device, norm):
    given, grads = inputs((3, 13), torch.float32, device, norm)
    made = []
    for backend in ("triton", "reference"):
        leaves = [None if one is None else one.clone().requires_grad_() for one in given]
        upstream = [one.clone().requires_grad_() for one in grads]
        asked = [one for one in leaves if one is not None]
        with use(backend):
            outs = call(norm, *leaves)
            first = torch.autograd.grad(outs, asked, upstream, create_graph=True)
            energy = sum((one**3).sum() for one in first)
            second = torch.autograd.grad(energy, [*asked, *upstream], allow_unused=True)
        made.append([*first, *(one for one in second if one is not None)])
    assert len(made[0]) == len(made[1])
    for one, other in zip(*made, strict=True):
        assert torch.allclose(one, other, rtol=2e-4, atol=2e-4)


@every_norm
def test_batched_gradients_are_the_gradients_one_by_one(device, norm):
    given, _ = inputs((3, 13), torch.float32, device, norm)
    leaf, many = given[0].clone().requires_grad_(), torch.randn(2, 3, 13, device=device)
    with use("triton"):
        y, _ = call(norm, leaf, *given[1:])
    grad = partial(torch.autograd.grad, y, leaf, retain_graph=True)
    (batched,) = grad(many, is_grads_batched=True)
    single = torch.stack([grad(one)[0] for one in many])
    assert torch.allclose(batched, single, atol=2e-6)


def test_the_sum_may_come_from_the_input_twice(device):
    x = torch.randn(3, 13, device=device)
    weight = torch.ones(13, device=device)
    made = []
    for backend in ("triton", "reference"):
        leaf = x.clone().requires_grad_()
        with use(backend):
            outs = call("rms", leaf, leaf, weight, None)
            made.append(torch.autograd.grad(sum(one.sum() for one in outs), leaf)[0])
    assert torch.allclose(*made, atol=2e-6)


# Types


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.float16, torch.float32),
    ],
    ids=str,
)
@every_norm
def test_x_and_residual_may_be_of_two_types(device, launched, norm, one, two):
    given, grads = inputs((3, 16), torch.float32, device, norm)
    given[0], given[1] = given[0].to(one), given[1].to(two)
    made, theirs = (run(norm, given, grads) for run in (by_kernel, by_parts))
    assert launched == ["forward", "backward"]
    assert [tensor.dtype for tensor in made] == [tensor.dtype for tensor in theirs]
    for a, b, truth in zip(made, theirs, by_parts(norm, wide(given), wide(grads)), strict=True):
        assert (a - truth).abs().max() <= 2 * (b - truth).abs().max() + 1e-6


@pytest.mark.parametrize(
    ("x", "residual", "weight"),
    [
        (torch.float64, torch.float64, torch.float64),
        (torch.float32, torch.float64, torch.float64),
        (torch.bfloat16, torch.float16, torch.float32),
    ],
    ids=str,
)
def test_other_types_are_done_by_the_parts(device, launched, x, residual, weight):
    given, grads = inputs((3, 16), torch.float32, device)
    types = (x, residual, weight, weight)
    given = [one.to(dtype) for one, dtype in zip(given, types, strict=True)]
    grads = [one.to(torch.promote_types(x, residual)) for one in grads]
    made, wanted = (run("layer", given, grads) for run in (by_kernel, by_parts))
    assert launched == []
    for a, b in zip(made, wanted, strict=True):
        assert torch.allclose(a, b)


@pytest.mark.parametrize(("width", "served"), [(2**13, True), (2**13 + 1, False)])
def test_rows_of_up_to_8192_elements_are_served(device, launched, width, served):
    x, residual = torch.randn(2, 1, width, device=device)
    with use("triton"):
        y = F.dropout_add_rms_norm(x, residual, p=0.3, key=KEY)
    with use("reference"):
        wanted = F.dropout_add_rms_norm(x, residual, p=0.3, key=KEY)
    assert torch.allclose(y, wanted, atol=2e-6)
    assert launched == ["forward"] * served


@on_gpu
def test_a_captured_graph_draws_a_fresh_mask_at_each_replay():
    given, _ = inputs((64, 256), torch.bfloat16, "cuda")
    given = [one.requires_grad_() for one in given]

    def step():
        y, total = call("layer", *given, key=None)
        return total, torch.autograd.grad((y * total).sum(), given)[0]

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        total, grad = step()
    seen = []
    for _ in range(3):
        graph.replay()
        kept = grad != 0
        assert 0.6 < kept.float().mean().item() < 0.8
        assert torch.equal(total[~kept], given[1][~kept])
        seen.append(kept)
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])


@on_gpu
@every_norm
def test_under_autocast_results_have_the_types_of_the_parts(launched, norm):
    given, _ = inputs((64, 256), torch.float32, "cuda", norm)
    given[0] = given[0].bfloat16()
    for residual in (torch.float32, torch.bfloat16):
        given[1] = given[1].to(residual)
        made = []
        for backend in ("triton", "reference"):
            leaves = [None if one is None else one.clone().requires_grad_() for one in given]
            with use(backend), torch.autocast("cuda", dtype=torch.bfloat16):
                y, total = call(norm, *leaves)
            with use(backend):
                asked = [one for one in leaves if one is not None]
                made.append([y, total, *torch.autograd.grad(y.sum() + total.sum(), asked)])
        for a, b in zip(*made, strict=True):
            assert a.dtype == b.dtype
            assert torch.allclose(a, b, rtol=0.02, atol=0.02)
    assert launched == ["forward", "backward"] * 2


# Compilation, without a GPU

COMPILE = """
import json, re, subprocess, sys, tempfile
import torch, triton
from triton.backends.compiler import GPUTarget
from sitout import MaskKey
from sitout.backends import Address
from sitout.backends.triton import _norm, _norm_kernel

architecture = 0
class Driver:
    def get_current_target(self): return GPUTarget("cuda", architecture, 32)
    def get_current_device(self): return architecture
    def get_current_stream(self, device): return 0
triton.runtime.driver.set_active(Driver())
made = []
def launch(kernel, programs, device, *arguments, **more):
    made.append(kernel.warmup(*arguments, grid=(programs,), enable_fp_fusion=False, **more))
_norm.launch = launch

def run(shape, dtype, rms=False, p=0.1, address=Address(MaskKey(2**63 + 1, 2, 3))):
    x = torch.zeros(shape, dtype=dtype)
    weight = torch.zeros(shape[-1], dtype=dtype)
    where = _norm.place(shape, 1, address.shared_dims, address.batch_dim, address.block)
    call = _norm.Call(rms, 1e-5, where, (dtype, dtype), address, p)
    out, total, mean, rstd = _norm.forward(x, x, weight, None if rms else weight, call, True)
    _norm.backward(out, total, total, weight, (mean, rstd), call, (dtype, dtype), True)

def report(kernel):
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(kernel.asm["ptx"])
        file.flush()
        arch = f"sm_{architecture}" + ("a" if architecture >= 90 else "")
        done = subprocess.run(
            [triton.knobs.nvidia.ptxas.path, "-v", f"-arch={arch}", file.name, "-o", "/dev/null"],
            capture_output=True, text=True, check=True)
    spills = [int(n) for n in re.findall(r"(\\d+) bytes spill", done.stderr)]
    registers = int(re.search(r"Used (\\d+) registers", done.stderr)[1])
    wide = len(re.findall(r"ld\\.global\\S*\\.v4", kernel.asm["ptx"]))
    return {"name": kernel.metadata.name, "arch": architecture, "spills": sum(spills),
            "registers": registers, "wide": wide, "high": kernel.asm["ptx"].count("mul.hi")}
"""
WIDE = """
found = []
for architecture, dtype in ((80, torch.bfloat16), (90, torch.bfloat16), (90, torch.float32)):
    made.clear()
    run((2, 16, 4096), dtype)
    found += [report(one) | {"dtype": str(dtype)} for one in made]
"""
ODD = """
made.clear()
rows = torch.arange(3)
run((3, 2, 40), torch.float16, True, torch.tensor([16, 9]), Address(MaskKey(1), rows=rows))
tensors = MaskKey(*(torch.tensor(one) for one in (1, 2, 3, 4)))
run((3, 13), torch.float32, False, 0.001, Address(tensors))
run((3, 16), torch.float32, False, 0.001, Address(MaskKey(1, 2, torch.arange(3)), rows=rows))
odd = len(made)
"""
AGAIN = """
def count():
    return sum(len(one.device_caches[90][0]) for one in kernels)
kernels = _norm_kernel.forward, _norm_kernel.backward
before = count()
run((3, 7, 64), torch.bfloat16)
counts = [count() - before]
for seed in (0, 1, 16, 2**31, 2**32, 2**63, 2**64 - 1):
    run((3, 7, 64), torch.bfloat16, address=Address(MaskKey(seed, seed % 2**28, seed % 2**32)))
    run((3, 7, 64), torch.bfloat16, address=Address(seed))
for p in (1 / 64, 0.5, 0.9):
    run((3, 7, 64), torch.bfloat16, p=p)
for shape in ((1, 64), (16, 64), (17, 64), (16, 16, 64), (1, 32, 64), (5, 3, 56)):
    run(shape, torch.bfloat16)
run((3, 7, 64), torch.bfloat16, address=Address(5, batch_dim=1))
counts.append(count() - before)
print(json.dumps([found, odd, counts]))
"""


@pytest.fixture(scope="module")
def compiled():
    """Return what Triton's compiler says, which needs no GPU, in a process without interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE + WIDE + ODD + AGAIN],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_at_width_4096_both_kernels_spill_nothing_and_load_whole_vectors(compiled):
    assert [one["name"] for one in compiled[0]] == ["forward", "backward"] * 3
    for one in compiled[0]:
        assert one["spills"] == 0, one
        assert one["registers"] <= 128, one
        # Two tensors and the weight, in loads of 16 bytes.
        narrow = one["dtype"] == "torch.bfloat16"
        elements = 16 if narrow or one["name"] == "forward" else 8
        assert one["wide"] >= 3 * elements * (2 if narrow else 4) // 16, one
        # A call of Philox has 20 of these, for 8 elements; in float32 two threads share a block.
        assert one["high"] <= elements * (20 if narrow else 40) // 8, one


def test_rare_variants_compile(compiled):
    assert compiled[1] == 6


def test_another_key_rate_or_number_of_rows_compiles_nothing(compiled):
    assert compiled[2] == [2, 2]
