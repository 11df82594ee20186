"""Every element of a tensor lies in one place of one tile, with its own address."""

from __future__ import annotations

import random
from itertools import product

import pytest
import torch

from sitout import MaskKey
from sitout.backends import Address, reference
from sitout.backends import triton as backend
from sitout.backends.triton import _drop, _layout

SIZES = [1, 2, 3, 7, 8, 9, 16, 24]


def elements(piece):
    """Yield offset, column and row of each element, as a kernel finds them."""
    offset = piece.offsets[-1]
    for index in product(*(range(dim.size) for dim in piece.outer)):
        pairs = list(zip(index, piece.outer, strict=True))
        at = offset + sum(i * dim.strides[-1] for i, dim in pairs)
        col = piece.first + sum(i * dim.col for i, dim in pairs)
        row = piece.row + sum(i for i, dim in pairs if dim.row)
        for j in range(piece.inner.size):
            yield at + j * piece.inner.strides[-1], col + j * piece.inner.col, row


def wanted(shape, shared, batch, block):
    """Return the same by the words of the specification, for a contiguous tensor."""
    rank = len(shape)
    batch = batch if rank > 1 else None
    rest = [dim for dim in range(rank) if dim != batch]
    sizes = [1 if dim in shared else shape[dim] for dim in rest]
    parts = block or [(0, size) for size in sizes]
    for offset, index in enumerate(product(*map(range, shape))):
        col = 0
        for dim, (start, full) in zip(rest, parts, strict=True):
            col = col * full + start + (0 if dim in shared else index[dim])
        yield offset, col, 0 if batch is None or batch in shared else index[batch]


def layouts(seed, count):
    draw = random.Random(seed)
    for _ in range(count):
        rank = draw.randrange(6)
        shape = tuple(draw.choice(SIZES[: 9 - rank]) for _ in range(rank))
        shared = tuple(dim for dim in range(rank) if draw.random() < 0.3)
        batch = draw.randrange(rank) if rank > 1 and draw.random() < 0.5 else 0
        block = None
        if draw.random() < 0.3:
            rest = [dim for dim in range(rank) if rank < 2 or dim != batch]
            sizes = [1 if dim in shared else shape[dim] for dim in rest]
            starts = [draw.choice([0, 1, 5, 8]) for _ in rest]
            block = tuple((a, a + n + 3) for a, n in zip(starts, sizes, strict=True))
        yield shape, shared, batch, block


def plan(shape, shared=(), batch=0, block=None):
    strides = torch.empty(shape, device="meta").stride()
    return _layout.plan(tuple(shape), (strides,) * 4, shared, batch, block)


@pytest.fixture(params=["whole", "in pieces"])
def _pieces(request, monkeypatch):
    """Plan again, in some runs with room for little in one launch."""
    if request.param == "in pieces":
        monkeypatch.setattr(_layout, "DIMS", 1)
        monkeypatch.setattr(_layout, "LONG", 8)
        monkeypatch.setattr(_layout, "_TILES", _layout.ELEMENTS + 4)


@pytest.mark.usefixtures("_pieces")
def test_every_element_lies_in_one_piece_at_its_own_address():
    for shape, shared, batch, block in layouts(0, 300):
        pieces = plan(shape, shared, batch, block).pieces
        made = sorted(place for piece in pieces for place in elements(piece))
        assert made == list(wanted(shape, shared, batch, block)), (shape, shared, batch, block)
        assert all(len(piece.outer) <= _layout.DIMS for piece in pieces)
        assert all(piece.rows + _layout.ELEMENTS <= _layout._TILES for piece in pieces)


def test_pieces_give_what_one_launch_gives(device, monkeypatch):
    monkeypatch.setattr(_layout, "LONG", 8)
    monkeypatch.setattr(_layout, "_TILES", _layout.ELEMENTS + 40)
    _drop._prepare.cache_clear()
    deep = [((2, 3, 2, 3, 2, 3), (1, 3), 5, None), ((2, 2, 2, 2, 2, 9), (0, 2, 4), 1, None)]
    for shape, shared, batch, block in [*deep, *layouts(1, 10)]:
        several = len(shape) > 1 and batch not in shared
        steps = torch.arange(shape[batch]) + 5 if several else 3
        address = Address(MaskKey(seed=2**40, site=3, step=steps), shared, batch, None, block)
        x = torch.randn(shape)
        made = backend.drop(x.to(device), address, 0.3, "dropout").cpu()
        assert torch.equal(made, reference.drop(x, address, 0.3, "dropout")), (shape, shared, block)
    assert len(plan(*deep[0]).pieces) > 1
    _drop._prepare.cache_clear()


def test_more_than_a_kernel_counts_is_cut_into_launches_that_it_can():
    for shape in [(2**35,), (3, 2**34), (2**33, 9), (2**31, 1, 3)]:
        pieces = plan(shape).pieces
        total = 1
        for size in shape:
            total *= size
        assert len(pieces) > 1
        assert sum(map(_count, pieces)) == total
        assert all(piece.rows < 2**31 for piece in pieces)


def _count(piece):
    total = piece.inner.size
    for dim in piece.outer:
        total *= dim.size
    return total


@pytest.mark.parametrize(
    ("shape", "shared", "kind"),
    [
        ((64, 1024), (), "lanes"),
        ((2**20,), (), "lanes"),
        ((8, 16, 32, 64), (), "lanes"),
        ((8, 16, 128), (1,), "lanes"),
        ((8, 16, 32, 32), (2, 3), "shared"),
        ((8, 16, 32), (1, 2), "shared"),
    ],
)
def test_what_lies_together_is_read_in_whole_vectors(shape, shared, kind):
    (piece,) = plan(shape, shared).pieces
    assert piece.is_flat(2)
    assert piece.has_lanes == (kind == "lanes")
    assert _drop._flags(piece, "scale", False)["packed"] is False


def test_a_long_row_with_a_rest_is_read_in_whole_vectors_but_for_the_rest():
    first, rest = plan((2**20 + 3,)).pieces
    assert first.is_flat(2)
    assert first.inner.size == 2**20
    assert (rest.first, rest.inner.size, rest.offsets[-1]) == (2**20, 3, 2**20)


@pytest.mark.parametrize("shape", [(64, 1023), (5, 3), (64, 1021, 3)])
def test_odd_rows_are_not_read_in_whole_vectors(shape):
    assert not any(piece.is_flat(2) for piece in plan(shape).pieces)


def test_division_by_multiplication_is_exact():
    draw = random.Random(0)
    sizes = [*range(1, 300), *(draw.randrange(1, 2**31) for _ in range(300)), 2**31 - 1, 2**30]
    for size in sizes:
        _, magic, shift = _drop._divisor(size)
        assert 0 < magic < 2**32
        ends = [k * size + by for k in (1, 2, 2**31 // size) for by in (-1, 0, 1)]
        for n in [0, 1, 2**31 - 1, *ends, *(draw.randrange(2**31) for _ in range(5))]:
            if 0 <= n < 2**31:
                high = n * magic >> 32
                assert high + n < 2**32
                assert high + n >> shift == n // size
