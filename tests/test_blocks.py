"""The law of shards: ``rows=`` and ``block=`` cut the mask of the whole, to the bit."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend
from torch.overrides import TorchFunctionMode

from sitout import functional as F
from sitout.masks import MaskKey, keep_mask, normals, rate_data

KEY = MaskKey(seed=2**40 + 7, site=4, step=9, call=1)
RATES = [0.5, 0.3, 0.015, 0.99]  # narrow, narrow, wide, wide

# The fewest and the most dims of an input, and how many it has at least with a batch dim.
RANKS = dict.fromkeys(("alpha_dropout", "drop_path", "dropout", "gaussian_dropout"), (1, 5, 1))
RANKS |= {"dropout1d": (2, 3, 3), "dropout2d": (4, 4, 4), "dropout3d": (4, 5, 5)}
RANKS |= {"feature_alpha_dropout": (2, 5, 2)}
WITH_BLOCK = [name for name in RANKS if name != "drop_path"]
ELEMENTWISE = ("alpha_dropout", "dropout", "gaussian_dropout")


def same(a, b):
    """Whether two tensors have the same bits: 0 is not -0 here, and NaN is NaN."""
    words = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return a.dtype == b.dtype and torch.equal(a.view(words), b.view(words))


@dataclass(frozen=True)
class Whole:
    """A tensor, perhaps itself a shard of a larger one, and where it lies in its mask."""

    name: str
    shape: tuple[int, ...]
    front: int  # how many dims of size 1 the mask has in front of those of the input
    row_dim: int | None  # the dim of the mask that holds rows
    shared: set[int]  # the dims along which the mask has size 1, whoever asked for it
    starts: list[int]  # where it starts in the larger one, by dims of the mask
    fulls: list[int]  # the sizes of the larger one
    rows: torch.Tensor
    steps: torch.Tensor | None  # the step of each row
    options: dict

    def address(self, piece):
        """Return the options of the function for a piece, which has one slice a dim."""
        here = [slice(0, 1)] * self.front + list(piece)
        options, step = dict(self.options), KEY.step
        if self.row_dim is not None:
            options["rows"] = self.rows[here[self.row_dim]]
            if self.steps is not None:
                step = self.steps if self.row_dim in self.shared else self.steps[here[self.row_dim]]
        if self.name != "drop_path":
            options["block"] = [
                (0, 1) if d in self.shared else (self.starts[d] + here[d].start, self.fulls[d])
                for d in range(len(here))
                if d != self.row_dim
            ]
        return options | {"key": MaskKey(KEY.seed, KEY.site, step, KEY.call)}


@st.composite
def wholes(draw, name, is_shard):
    fewest, most, batched = RANKS[name]
    shape = tuple(draw(st.lists(st.integers(1, 7), min_size=fewest, max_size=most)))
    front = int(len(shape) < batched)
    sizes = (1,) * front + shape
    rank = len(sizes)
    last = rank - 1 if name in (*ELEMENTWISE, "drop_path") else 1 - front
    batch = draw(st.integers(0, last))
    asked = draw(st.lists(st.integers(0, rank - 1), max_size=2, unique=True))
    filled = range(rank, rank) if name in ELEMENTWISE else range(2, rank)
    shared = {*asked, *(set(range(rank)) - {batch} if name == "drop_path" else filled)}
    row_dim = None if rank == 1 and name != "drop_path" else batch
    n, starts, beyond, steps = sizes[batch], [0] * rank, 0, None
    rows = torch.arange(n)
    if is_shard:
        starts, beyond = [draw(st.sampled_from([0, 1, 7, 1000])) for _ in sizes], 3
        rows = torch.tensor(draw(st.lists(st.integers(0, 2**32 - 1), min_size=n, max_size=n)))
    if row_dim is not None and draw(st.booleans()):
        steps = torch.arange(1 if batch in shared else n) * 3
    fulls = [start + size + beyond for start, size in zip(starts, sizes, strict=True)]
    options = {"shared_dims": asked, "batch_dim": batch}
    return Whole(name, shape, front, row_dim, shared, starts, fulls, rows, steps, options)


@st.composite
def cuts(draw, shape):
    """Cut up to three dims at up to two places; a piece may be empty."""
    chosen = draw(st.lists(st.integers(0, len(shape) - 1), min_size=1, max_size=3, unique=True))
    parts = []
    for dim, n in enumerate(shape):
        places = draw(st.lists(st.integers(0, n), min_size=1, max_size=2)) if dim in chosen else []
        parts.append([slice(a, b) for a, b in itertools.pairwise([0, *sorted(places), n])])
    return list(itertools.product(*parts))


def run(name, x, upstream, p, options):
    x = x.detach().requires_grad_()
    y = getattr(F, name)(x, p, **options)
    return y.detach(), torch.autograd.grad(y, x, upstream)[0]


@pytest.mark.parametrize("name", RANKS)
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_the_pieces_of_a_tensor_have_the_values_and_gradients_of_the_whole(name, data):
    is_shard = data.draw(st.booleans())
    whole = data.draw(wholes(name, is_shard))
    pieces = data.draw(cuts(whole.shape))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
    x, upstream = torch.randn(2, *whole.shape).to(dtype)
    options = whole.address([slice(0, n) for n in whole.shape])
    if not is_shard:  # the whole itself needs neither
        options |= {"rows": None} if name == "drop_path" else {"rows": None, "block": None}
    as_data = data.draw(st.booleans())
    for p in (rate_data(p) if as_data else p for p in RATES):
        wanted = run(name, x, upstream, p, options)
        for piece in pieces:
            made = run(name, x[piece], upstream[piece], p, whole.address(piece))
            assert all(same(a, b[piece]) for a, b in zip(made, wanted, strict=True))


class Watcher(TorchFunctionMode):
    """While a mode is open, a call goes through the registered op."""

    seen = ()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.seen = (*self.seen, func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("p", [0.3, 0.005])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_the_registered_op_takes_rows_and_block_too(name, p):
    x, upstream, rows = torch.randn(4, 3, 5), torch.randn(4, 3, 5), torch.tensor([2, 2**32 - 1, 0])
    options = {"key": KEY, "rows": rows, "block": [(6, 11), (2**20, 2**21)], "batch_dim": 1}
    for rate in (p, rate_data(p)):
        with Watcher() as watcher:
            made = run(name, x, upstream, rate, options)
        assert torch.ops.sitout.drop.default in watcher.seen
        assert all(map(same, made, run(name, x, upstream, rate, options)))


# Shards of many processes, in one


def shards(size, n):
    """Return (start, stop) of n shards, as ``torch.tensor_split`` cuts; the last may be empty."""
    stops = list(itertools.accumulate(len(part) for part in torch.arange(size).tensor_split(n)))
    return list(itertools.pairwise([0, *stops]))


@pytest.mark.parametrize("n", [1, 2, 3, 64, 1000, 4096])
@pytest.mark.parametrize("p", [0.3, 0.015])
@pytest.mark.parametrize("along", ["columns", "rows"])
def test_any_number_of_shards_join_to_the_whole(along, p, n):
    size, dim, joined = 4099 if n == 4096 else 997, int(along == "columns"), []
    for a, b in shards(size, n):
        shape, rows, block = (3, b - a), None, [(a, size)]
        if along == "rows":
            shape, rows, block = (b - a, 17), torch.arange(a, b), None
        joined.append(keep_mask(KEY, p, shape, rows=rows, block=block))
    assert len(joined) == n
    whole = keep_mask(KEY, p, (3, size) if dim else (size, 17))
    assert torch.equal(torch.cat(joined, dim), whole)


# Columns far out


def far_out(edge, inner):
    """Return a block of 3 lines of 101 elements around a column, and the columns in it."""
    line, offset = divmod(edge, inner)
    start = min(max(offset - 50, 0), inner - 101)
    cols = [n * inner + start + i for n in (line - 1, line, line + 1) for i in range(101)]
    return [(line - 1, line + 7), (start, inner)], cols


@pytest.mark.parametrize(("p", "bits"), [(0.3, 32), (0.3, 34), (0.015, 32), (0.015, 33)])
@pytest.mark.parametrize("inner", [3**7, 5**9])
def test_a_block_far_out_has_the_columns_of_its_place(p, bits, inner):
    block, cols = far_out(2**bits, inner)
    assert min(cols) < 2**bits <= max(cols)
    shape, cols = (2, 3, 101), torch.tensor(cols)
    wanted = keep_mask(KEY, p, shape, cols=cols)
    for rate in (p, rate_data(p)):
        assert torch.equal(keep_mask(KEY, rate, shape, block=block), wanted)
        assert torch.equal(F.dropout(torch.ones(shape), rate, key=KEY, block=block) != 0, wanted)
    assert not torch.equal(keep_mask(KEY, p, shape, cols=cols % 2**32), wanted)


def test_normal_numbers_far_out_are_those_of_their_columns():
    block, cols = far_out(2**32, 3**7)
    z = normals(KEY, (2, 3, 101), block=block).flatten(1)
    for index, col in enumerate(cols):
        assert torch.equal(z[:, [index]], normals(KEY, (2, 1), block=[(col, col + 1)]))


# Errors

SHAPES = {"dropout1d": (2, 5, 3), "dropout2d": (2, 5, 3, 1), "dropout3d": (2, 5, 3, 1, 1)}


@pytest.mark.parametrize("name", WITH_BLOCK)
@pytest.mark.parametrize(
    "block",
    [5, [5, 6], [(0,), (5,)], [(0, 5, 1), (0, 1, 1)], [(0.0, 5), (0, 1)], [("0", "5"), ("0", "1")]],
)
def test_a_block_is_made_of_pairs_of_ints(name, block):
    line = (
        f"`block` of {name} must be a sequence of (start, full size) pairs of ints. Got {block!r}."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
        getattr(F, name)(torch.ones(SHAPES.get(name, (2, 5, 3))), 0.3, block=block)


@pytest.mark.parametrize("name", WITH_BLOCK)
@pytest.mark.parametrize(
    "change",
    [
        lambda good: [],
        lambda good: good[1:],
        lambda good: [(0, 2), *good],  # the batch dim has no place in it
        lambda good: [(1, 5), *good[1:]],  # 1 + 5 > 5
        lambda good: [(-1, 5), *good[1:]],
        lambda good: [*good[:-1], (0, 0)],
    ],
)
def test_a_block_has_one_pair_per_other_dim_and_lies_within(name, change):
    shape = SHAPES.get(name, (2, 5, 3))
    sizes = shape[1:] if name in ELEMENTWISE else (5, *(1 for _ in shape[2:]))
    good, x = [(0, n) for n in sizes], torch.ones(shape)
    bad = change(good)
    getattr(F, name)(x, 0.3, block=good)
    line = (
        "`block` must be one (start, full size) per non-batch dim of the mask, which has sizes "
        f"{sizes}, with start + size <= full size. Got {bad!r}."
    )
    for rate in (0.3, rate_data(0.3)):
        with pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
            getattr(F, name)(x, rate, block=bad)


@pytest.mark.parametrize("bad", [[(0.5, 5)], [("0", "5")], [5], 5, [(0, 5, 6)], [(True, 5)]])
def test_a_mask_takes_no_block_that_is_not_made_of_pairs_of_ints(bad):
    message = r"^`block` of a mask must be a sequence of \(start, full size\) pairs of ints\. Got "
    with pytest.raises(ValueError, match=message):
        keep_mask(KEY, 0.3, (2, 3), block=bad)
    with pytest.raises(ValueError, match=message):
        normals(KEY, (2, 3), block=bad)


def test_a_block_may_start_anywhere_in_compiled_code_without_another_compilation():
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    def run(x, start):
        return F.dropout(x, 0.3, key=KEY, block=[(start, 4000)])

    compiled, x = torch.compile(run, backend=counter, fullgraph=True), torch.ones(3, 9)
    for start in range(0, 140, 7):
        assert torch.equal(compiled(x, start), run(x, start))
    assert counter.frame_count <= 2  # a number, then a symbol
