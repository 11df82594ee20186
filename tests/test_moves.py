"""Moves of kept rows and columns: those of plain indexing, to the bit."""

from __future__ import annotations

import itertools
import math
import re

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from sitout.backends import add_rows, cpu, spread, take, use

WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
SHAPES = [(1, 1), (1, 7), (7, 1), (5, 13), (8, 16), (4, 5, 3), (3, 7, 1, 2), (0, 3), (17, 101)]
LARGE = [(401, 331, 3), (311, 450)]  # of more elements than one thread takes

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
wide_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


@pytest.fixture(params=[1, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def any_bits(shape, dtype):
    """Return a tensor of any bits: NaN with every payload, infinity, tiny numbers."""
    word = WORDS[dtype.itemsize]
    info = torch.iinfo(word)
    return torch.randint(info.min, info.max, shape, dtype=word).view(dtype)


def bits(x):
    return x.contiguous().view(WORDS[x.element_size()])


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(bits(a), bits(b))


def subset(n, k):
    return torch.randperm(n)[:k].sort().values


def subsets(n):
    """Yield what may be kept of ``n``: all by None and by name, none, one, about a half."""
    yield None
    for k in sorted({0, min(n, 1), n // 2, n}):
        yield subset(n, k)


def cases(shapes):
    for shape in shapes:
        yield from ((shape, *kept) for kept in itertools.product(*map(subsets, shape[:2])))


def indexed(x, rows, cols):
    x = x if rows is None else x[rows]
    return x if cols is None else x[:, cols]


def zeros_with(x, shape, rows, cols):
    out = torch.zeros(shape, dtype=x.dtype)
    if not x.numel():
        return out
    at = torch.arange(shape[0]) if rows is None else rows
    if cols is None:
        out[at] = x
    else:
        out[at[:, None], cols] = x
    return out


# The kernels


@every_dtype
def test_take_is_indexing_to_the_bit(dtype, threads, target):
    for shape, rows, cols in cases([*SHAPES, *LARGE] if threads > 1 else SHAPES):
        x = any_bits(shape, dtype)
        assert same_bits(take(x, rows, cols), indexed(x, rows, cols)), (shape, rows, cols)


@every_dtype
def test_spread_puts_the_kept_back_among_positive_zeros(dtype, threads, target):
    for shape, rows, cols in cases([*SHAPES, *LARGE] if threads > 1 else SHAPES):
        x = any_bits(indexed(torch.empty(shape), rows, cols).shape, dtype)
        made = spread(x, rows, cols, *shape[:2])
        assert same_bits(made, zeros_with(x, shape, rows, cols)), (shape, rows, cols)


@wide_dtypes
def test_spread_add_adds_at_the_kept_and_leaves_all_else(dtype, threads, target):
    for shape, rows, cols in cases([*SHAPES, *LARGE] if threads > 1 else SHAPES):
        if any(kept is not None and not len(kept) for kept in (rows, cols)):
            continue
        out = torch.randn(shape, dtype=dtype)
        x = torch.randn(indexed(out, rows, cols).shape, dtype=dtype)
        wanted = out + zeros_with(x, shape, rows, cols)
        cpu.spread_add_(out, x, rows, cols)
        assert torch.equal(out, wanted), (shape, rows, cols)


@wide_dtypes
def test_keep_cols_scales_the_kept_along_any_dim_and_selects_zeros(dtype, threads, target):
    for shape in [(1, 1), (7,), (5, 13), (4, 5, 3), *(LARGE if threads > 1 else [])]:
        for dim, size in enumerate(shape):
            cols = subset(size, -(-size // 2))
            x, keep = torch.randn(shape, dtype=dtype), torch.zeros(size, dtype=torch.bool)
            keep[cols] = True
            where = keep.view([-1 if d == dim else 1 for d in range(len(shape))])
            poisoned = torch.where(where, x, math.nan)
            wanted = torch.where(where, x * 1.7, 0.0)
            assert same_bits(cpu.keep_cols(poisoned, cols, dim, 1.7), wanted)


@wide_dtypes
def test_add_rows_adds_weighted_rows_and_does_not_read_those_of_weight_0(dtype, threads):
    for shape in [(1, 1), (7,), (5, 13), (4, 5, 3), *(LARGE if threads > 1 else [])]:
        rows = subset(shape[0], -(-shape[0] // 2))
        weights = torch.rand(len(rows), dtype=torch.float64) * 3
        weights[0] = 0.0
        x = torch.randn(shape, dtype=dtype)
        branch = torch.randn(len(rows), *shape[1:], dtype=dtype)
        wanted = x.clone()
        column = weights.to(dtype).view(-1, *[1] * (len(shape) - 1))
        wanted[rows] += column * branch
        wanted[rows[0]] = x[rows[0]]
        branch[0] = math.nan
        assert same_bits(add_rows(x, branch, rows, weights), wanted)
        with use("reference"):
            plain = add_rows(x, branch, rows, weights)
        assert torch.allclose(plain, wanted, rtol=1e-6)


@every_dtype
def test_any_layout_has_the_values_of_a_contiguous_one(dtype):
    plain, rows, cols = torch.randn(13, 7, 3).to(dtype), subset(13, 5), subset(7, 3)
    wide, more = torch.stack([plain, -plain], -1)[..., 0], subset(9, 7)
    turned = plain.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    row = torch.randn(1, 1, 3).to(dtype).expand(13, 7, 3)
    for x, same in ((wide, plain), (turned, plain), (row, row.contiguous())):
        assert not x.is_contiguous()
        assert same_bits(take(x, rows, cols), indexed(same, rows, cols))
        made = spread(x, None, more, 13, 9)
        assert same_bits(made, zeros_with(same, (13, 9, 3), None, more))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.bool, torch.complex64], ids=str)
def test_other_dtypes_are_moved_too(dtype):
    x, rows, cols = torch.randn(13, 7).to(dtype), subset(13, 5), subset(7, 3)
    some = take(x, rows, cols)
    assert torch.equal(some, indexed(x, rows, cols))
    assert torch.equal(spread(some, rows, cols, 13, 7), zeros_with(some, (13, 7), rows, cols))


def test_indices_of_any_layout_and_width_are_read_as_what_they_hold():
    x, every_other = torch.randn(10, 10), torch.arange(10)[::2]
    assert not every_other.is_contiguous()
    for kept in (every_other, every_other.int()):
        assert torch.equal(take(x, kept, None), x[::2])
        assert torch.equal(take(x, None, kept), x[:, ::2])
        assert torch.equal(take(x, kept, kept), x[::2, ::2])
    back = spread(x[::2, ::2], every_other, every_other, 10, 10)
    assert torch.equal(back, zeros_with(x[::2, ::2], (10, 10), every_other, every_other))


def test_nothing_kept_is_not_taken_for_all():
    """The address of an empty tensor is 0, which stands for all."""
    x, nothing = torch.randn(4, 5), torch.empty(0, dtype=torch.int64)
    assert nothing.data_ptr() == 0
    assert take(x, nothing, None).shape == (0, 5)
    assert take(x, None, nothing).shape == (4, 0)
    assert not spread(x[:0], nothing, None, 4, 5).any()
    assert not spread(x[:, :0], None, nothing, 4, 5).any()
    none = torch.empty(0, dtype=torch.float64)
    assert torch.equal(add_rows(x, x[:0], nothing, none), x)


def test_where_all_is_kept_nothing_is_copied():
    x = torch.randn(4, 5)
    assert take(x, None, None) is x
    assert spread(x, None, None, 4, 5) is x
    every = torch.arange(4)
    assert take(x, every, None).data_ptr() != x.data_ptr()


# Gradients


@pytest.mark.parametrize("shape", [(7, 5), (6, 4, 3), (1, 1), (9,)])
def test_take_and_spread_are_each_others_adjoint(shape):
    """In whole numbers, where no sum is rounded."""
    for rows, cols in itertools.product(*map(subsets, (*shape[:2], 0)[:2])):
        cols = cols if len(shape) > 1 else None
        x = torch.randint(-9, 9, shape).double().requires_grad_()
        some = take(x, rows, cols)
        y = torch.randint(-9, 9, some.shape).double().requires_grad_()
        whole = spread(y, rows, cols, *(*shape, 0)[:2])
        assert torch.equal((some * y).sum(), (whole * x).sum())
        if some is not x:
            assert torch.equal(torch.autograd.grad(some, x, y)[0], whole)
            assert torch.equal(torch.autograd.grad(whole, y, x)[0], some)


def test_moves_have_gradients_of_every_order():
    rows, cols = torch.tensor([0, 2]), torch.tensor([1, 2, 4])
    x = torch.randn(3, 5, 2, dtype=torch.float64, requires_grad=True)
    y = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)

    def taken(x):
        return take(x.sin(), rows, cols).square()

    def spreaded(y):
        return spread(y.sin(), rows, cols, 3, 5).square()

    for f, one in ((taken, x), (spreaded, y)):
        assert torch.autograd.gradcheck(f, one)
        assert torch.autograd.gradgradcheck(f, one)
    grads = torch.randn(4, 2, 3, 2, dtype=torch.float64)
    some = take(x, rows, cols)
    (batched,) = torch.autograd.grad(some, x, grads, is_grads_batched=True, retain_graph=True)
    each = [torch.autograd.grad(some, x, grad, retain_graph=True)[0] for grad in grads]
    assert torch.equal(batched, torch.stack(each))


def test_the_sum_with_a_branch_has_gradients_of_every_order():
    rows, weights = torch.tensor([0, 2, 3]), torch.tensor([2.0, 0.0, 1.5], dtype=torch.float64)
    x = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    branch = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)

    def f(x, branch):
        return add_rows(x.sin(), branch.cos(), rows, weights).square()

    assert torch.autograd.gradcheck(f, (x, branch))
    assert torch.autograd.gradgradcheck(f, (x, branch))
    grad = torch.autograd.grad(add_rows(x, branch, rows, weights).sum(), branch)[0]
    assert torch.equal(grad, weights[:, None].expand(3, 2))


# Transforms, modes and the ops


def test_vmap_moves_each_example_by_its_own_indices_too():
    x, rows = torch.randn(4, 6, 5), torch.stack([subset(6, 3) for _ in range(4)])
    same = torch.func.vmap(lambda x: take(x, rows[0], None))(x)
    assert torch.equal(same, x[:, rows[0]])
    own = torch.func.vmap(lambda x, rows: take(x, rows, None))(x, rows)
    assert torch.equal(own, torch.stack([a[b] for a, b in zip(x, rows, strict=True)]))
    back = torch.func.vmap(lambda x, rows: spread(x, rows, None, 6, 5))(own, rows)
    each = [zeros_with(a, (6, 5), b, None) for a, b in zip(own, rows, strict=True)]
    assert torch.equal(back, torch.stack(each))


@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
def test_forward_mode_goes_through_the_moves():
    x, t, rows = torch.randn(6, 5), torch.randn(6, 5), subset(6, 3)
    _, made = torch.func.jvp(lambda x: take(x, rows, None), (x,), (t,))
    assert torch.equal(made, t[rows])
    _, made = torch.func.jvp(lambda x: spread(x, rows, None, 6, 5), (x[:3],), (t[:3],))
    assert torch.equal(made, zeros_with(t[:3], (6, 5), rows, None))


def test_tensors_without_values_have_the_shapes_of_the_results():
    rows, cols = subset(6, 3), subset(5, 2)
    with FakeTensorMode():
        x, at, along = torch.empty(6, 5), torch.empty(3).long(), torch.empty(2).long()
        assert take(x, at, along).shape == (3, 2)
        assert spread(take(x, at, along), at, along, 6, 5).shape == (6, 5)
    x = torch.empty(6, 5, device="meta")
    some = take(x, rows.to("meta"), cols.to("meta"))
    assert (some.shape, some.device.type) == ((3, 2), "meta")


def test_a_trace_moves_whatever_it_is_given():
    traced = make_fx(lambda x, rows: take(x, rows, None))(torch.randn(6, 5), subset(6, 3))
    x, rows = torch.randn(6, 5), torch.tensor([0, 4, 5])
    assert torch.equal(traced(x, rows), x[rows])


def ops():
    """Yield the registered ops with arguments of every kind."""
    moves = torch.ops.sitout
    rows, cols = torch.tensor([0, 2]), torch.tensor([1, 3, 4])
    for kept in ((rows, None), (None, cols), (rows, cols), (rows[:0], cols)):
        x = torch.randn(3, 5, 2, dtype=torch.float64)
        yield moves.take.default, (x, *kept)
        yield moves.spread.default, (indexed(x, *kept).clone(), *kept, 3, 5)
    key, counter = torch.tensor(7), torch.tensor(3 << 32 | 5)
    for p in (0.3, 0.5, 0.0, 1.0):
        yield moves.kept_units.default, (key, counter, torch.tensor([0, 4]), p, 10)
        yield moves.kept_samples.default, (key, None, torch.tensor(2), p, 7)


@pytest.mark.parametrize(
    ("op", "arguments"), list(ops()), ids=lambda one: getattr(one, "__name__", "")
)
def test_the_ops_keep_their_contract_with_torch(op, arguments):
    for requires_grad in (False, True):
        x = arguments[0].clone()
        if x.is_floating_point():
            x.requires_grad_(requires_grad)
        torch.library.opcheck(op, (x, *arguments[1:]))


# What is refused


@pytest.mark.parametrize(
    "kept",
    [[1, 0], [0, 0], [-1, 0], [0, 4], [4], [0, 1, 2, 3, 3], [2, 3, 4], [2**62]],
    ids=str,
)
def test_indices_that_do_not_ascend_within_their_dim_are_refused(kept):
    kept, x = torch.tensor(kept), torch.randn(4, 4)
    line = "sitout._core: kept indices must ascend within their dim"
    some = torch.randn(len(kept), 4)
    for call in (
        lambda: take(x, kept, None),
        lambda: take(x, None, kept),
        lambda: spread(some, kept, None, 4, 4),
        lambda: add_rows(x, some, kept, torch.ones(len(kept), dtype=torch.float64)),
        lambda: cpu.keep_cols(x, kept, 1, 2.0),
        lambda: cpu.spread_add_(x, some, kept, None),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
            call()


def test_a_grid_and_the_size_of_its_elements_are_checked():
    core, x = cpu.core(), torch.randn(4)
    for sizes in ((-1, 1, 1), (1, -1, 1), (1, 1, -1)):
        with pytest.raises(ValueError, match="a negative size"):
            core.grid(*sizes, 0, 0, 0, 0)
    grid = core.grid(4, 1, 1, 0, 0, 0, 0)
    for move in (core.take, core.spread):
        for size in (0, 1, 3, 16):
            with pytest.raises(ValueError, match="elements have 2, 4 or 8 bytes"):
                move(x.data_ptr(), x.data_ptr(), grid, size, 1)


def test_what_does_not_fit_its_indices_is_refused():
    """Else memory behind the end would be read."""
    x, rows = torch.randn(3, 4), torch.tensor([0, 2])
    with pytest.raises((ValueError, RuntimeError, IndexError)):
        spread(x, rows, None, 5, 4)
    with pytest.raises((ValueError, RuntimeError, IndexError)):
        spread(x, None, rows, 3, 5)
    with pytest.raises((ValueError, RuntimeError, IndexError)):
        add_rows(torch.randn(5, 4), x, rows, torch.ones(2, dtype=torch.float64))
    with pytest.raises((ValueError, RuntimeError, IndexError)):
        take(torch.randn(7), None, rows)
