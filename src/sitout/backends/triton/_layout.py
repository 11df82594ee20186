"""From a tensor in memory to the tiles of a kernel: which elements a row of a tile holds."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, NamedTuple

from .. import cpu

if TYPE_CHECKING:
    from collections.abc import Iterator

    Strides = tuple[tuple[int, ...], ...]

LANES = 8  # columns of a block, and of a row of a tile that has a bit for each
DIMS = 3  # that a kernel counts along, besides the innermost
ELEMENTS = 2048  # of a tile
SPANS = (512, 64, LANES)  # of a row of a tile whose elements share a bit
LONG = 4096  # where a rest that fills no block is worth a launch of its own
_TILES = 1 << 31  # what a kernel can count


class Dim(NamedTuple):
    """A dim of all operands.

    Args:
        size: at least 2.
        strides: of each operand, in elements.
        col: how far it moves the column.
        row: whether it moves the row.
    """

    size: int
    strides: tuple[int, ...]
    col: int
    row: bool

    def joins(self, inner: Dim) -> bool:
        """Return whether this dim and the next one inside are one."""
        steps = ((*inner.strides, inner.col), (*self.strides, self.col))
        return not (self.row or inner.row) and all(
            out == inner.size * step for step, out in zip(*steps, strict=True)
        )


class Piece(NamedTuple):
    """What one launch does: rows of tiles, counted along ``outer`` and cuts of ``inner``.

    Args:
        inner: the dim that a row of a tile runs along; of size 1 where it holds one element.
        outer: the others, at most ``DIMS``, the fastest first.
        first: the column of the first element.
        row: its row.
        offsets: where it lies in each operand.
    """

    inner: Dim
    outer: tuple[Dim, ...]
    first: int
    row: int
    offsets: tuple[int, ...]

    @property
    def has_lanes(self) -> bool:
        """Whether each element of a row of a tile has a bit of its own."""
        return self.inner.col == 1

    @property
    def is_aligned(self) -> bool:
        """Whether every run of ``inner`` begins a block."""
        return all(number % LANES == 0 for number in (self.first, *(dim.col for dim in self.outer)))

    @property
    def span(self) -> int:
        """How many elements a row of a tile holds."""
        size = self.inner.size
        if self.has_lanes or 1 < size < LANES:
            return LANES
        return next((span for span in SPANS if span <= size), 1)

    @property
    def cuts(self) -> int:
        """How many rows of a tile one run of ``inner`` takes."""
        size = self.inner.size
        if self.has_lanes and not self.is_aligned:
            size += LANES - 1
        return -(-size // self.span)

    @property
    def rows(self) -> int:
        """How many rows of tiles there are."""
        rows = self.cuts
        for dim in self.outer:
            rows *= dim.size
        return rows

    def is_flat(self, bias: int) -> bool:
        """Return whether all operands but the bias lie in whole vectors, as the runs do."""
        strides = [one for at, one in enumerate(zip(*self.all_strides, strict=True)) if at != bias]
        return (
            self.inner.size % LANES == 0
            and (self.is_aligned or not self.has_lanes)
            and all(inner == 1 for inner, *_ in strides)
            and all(one % LANES == 0 for _, *outer in strides for one in outer)
        )

    @property
    def all_strides(self) -> Strides:
        """The strides of all operands along each dim, the innermost first."""
        return (self.inner.strides, *(dim.strides for dim in self.outer))

    def cut(self, dim: int, start: int, size: int) -> Piece:
        """Return the part from ``start`` on along a dim: -1 is ``inner``, the others ``outer``."""
        along = self.inner if dim < 0 else self.outer[dim]
        made = along._replace(size=size)
        outer = self.outer
        if dim >= 0:
            outer = (*outer[:dim], *([made] if size > 1 else []), *outer[dim + 1 :])
        return Piece(
            made if dim < 0 else self.inner,
            outer,
            self.first + start * along.col,
            self.row + start * along.row,
            tuple(at + start * step for at, step in zip(self.offsets, along.strides, strict=True)),
        )


class Layout(NamedTuple):
    """How tensors of a shape are worked on.

    Args:
        pieces: one launch each.
        row_dim: the dim of the rows, -1 if there is but one.
        n_rows: how many positions the rows of an address must have.
        takes_rows: whether they count; those of a shared batch dim do not.
    """

    pieces: tuple[Piece, ...]
    row_dim: int
    n_rows: int
    takes_rows: bool


def plan(
    shape: tuple[int, ...],
    strides: Strides,
    shared_dims: tuple[int, ...],
    batch_dim: int,
    block: tuple[tuple[int, int], ...] | None,
) -> Layout:
    """Return how tensors of a shape are worked on.

    Args:
        shape: of the result.
        strides: of each operand; the result is the last one.
        shared_dims: as in :class:`sitout.backends.Address`, like the rest.
        batch_dim: as there.
        block: as there.

    Raises:
        ValueError: a dim or the block does not fit the shape.
    """
    cols, first, row_dim, takes_rows = cpu._columns(shape, shared_dims, batch_dim, block)
    n_rows = 1 if row_dim < 0 else shape[row_dim]
    if 0 in shape:
        return Layout((), row_dim, n_rows, takes_rows)
    dims = [
        Dim(size, tuple(one[at] for one in strides), cols[at], at == row_dim)
        for at, size in enumerate(shape)
        if size > 1
    ]
    nothing = (0,) * len(strides)
    inner, *outer = _joined(dims)[::-1] or [Dim(1, nothing, 0, False)]
    if inner.row or inner.col > 1:
        inner, outer = Dim(1, nothing, 0, False), [inner, *outer]
    whole = Piece(inner, tuple(outer), first, 0, nothing)
    return Layout(tuple(_pieces(whole)), row_dim, n_rows, takes_rows)


def _joined(dims: list[Dim]) -> list[Dim]:
    """Return the dims in the order of memory, the outermost first; what can be joined is."""
    joined: list[Dim] = []
    for dim in sorted(dims, key=lambda dim: [-abs(stride) for stride in reversed(dim.strides)]):
        if joined and joined[-1].joins(dim):
            dim = dim._replace(size=joined.pop().size * dim.size)
        joined.append(dim)
    return joined


def _pieces(piece: Piece) -> Iterator[Piece]:
    """Yield what one launch each can do."""
    spare = len(piece.outer) - DIMS
    if spare > 0:  # one launch for each index of the smallest dims
        smallest = sorted(range(len(piece.outer)), key=lambda at: piece.outer[at].size)[:spare]
        for index in product(*(range(piece.outer[at].size) for at in smallest)):
            one = piece
            for at, start in sorted(zip(smallest, index, strict=True), reverse=True):
                one = one.cut(at, start, 1)
            yield from _pieces(one)
        return
    size, whole = piece.inner.size, piece.inner.size // LANES * LANES
    if not piece.outer and size > LONG and size != whole and piece.is_aligned:
        yield from _pieces(piece.cut(-1, 0, whole))
        yield piece.cut(-1, whole, size - whole)
    elif piece.rows + ELEMENTS > _TILES:
        dim = max(range(-1, len(piece.outer)), key=lambda at: _size(piece, at))
        middle = _size(piece, dim) // 2 // LANES * LANES or 1
        yield from _pieces(piece.cut(dim, 0, middle))
        yield from _pieces(piece.cut(dim, middle, _size(piece, dim) - middle))
    else:
        yield piece


def _size(piece: Piece, dim: int) -> int:
    return piece.inner.size if dim < 0 else piece.outer[dim].size
