"""Kept rows and columns of a weight, for all groups at once: gathered, and spread again."""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import math

import torch
import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]
from torch import Tensor

from ._launch import launch

_ROWS, _COLS = 8, 256  # of a tile


@triton.jit
def _tile(n_rows, n_cols, tile_rows: tl.constexpr, tile_cols: tl.constexpr):
    """Return the group of a program, its rows and columns, and which of these there are."""
    across, down = tl.cdiv(n_cols, tile_cols), tl.cdiv(n_rows, tile_rows)
    pid = tl.program_id(0)
    row = (pid // across % down) * tile_rows + tl.arange(0, tile_rows)
    col = (pid % across) * tile_cols + tl.arange(0, tile_cols)
    g = (pid // across // down).to(tl.int64)
    return g, row[:, None], col[None, :], row[:, None] < n_rows, col[None, :] < n_cols


@triton.jit
def gather(
    out, x, rows, cols, n_rows, n_cols, kept_rows, kept_cols, inner,
    x_stride: tl.int64, out_stride: tl.int64,
    tile_rows: tl.constexpr, tile_cols: tl.constexpr,
):  # fmt: skip
    """Write a tile of the kept rows and columns of one group.

    Args:
        out: ``[G, n_rows, n_cols]``.
        x: ``[R, C * inner]``.
        rows: int64 ``[G, n_rows]``, or None for all.
        cols: int64 ``[G, n_cols / inner]``, or None for all.
        n_rows: of the result, like the next.
        n_cols: times what is within a column.
        kept_rows: of a group in ``rows``.
        kept_cols: of a group in ``cols``.
        inner: elements of a column that lie side by side.
        x_stride: from a row of x to the next.
        out_stride: from a row of the result to the next.
        tile_rows: of a tile.
        tile_cols: of a tile.
    """
    g, row, col, in_rows, in_cols = _tile(n_rows, n_cols, tile_rows, tile_cols)
    from_row, from_col = row.to(tl.int64), col.to(tl.int64)
    if rows is not None:
        from_row = tl.load(rows + g * kept_rows + row, mask=in_rows, other=0)
    if cols is not None:
        from_col = tl.load(cols + g * kept_cols + col // inner, mask=in_cols, other=0)
        from_col = from_col * inner + col % inner
    inside = in_rows & in_cols
    value = tl.load(x + from_row * x_stride + from_col, mask=inside)
    tl.store(out + (g * n_rows + row) * out_stride + col, value, mask=inside)


@triton.jit
def scatter(
    out, x, row_at, col_at, n_rows, n_cols, kept_rows, groups, inner,
    x_stride: tl.int64,
    tile_rows: tl.constexpr, tile_cols: tl.constexpr,
):  # fmt: skip
    """Write a tile of zeros with the kept rows and columns of all groups added.

    Args:
        out: ``[n_rows, n_cols]``.
        x: ``[G, r, c * inner]``.
        row_at: int32 ``[G, n_rows]``: where a row is among the kept ones, or -1; None for all.
        col_at: int32 ``[G, n_cols / inner]``, or None, likewise.
        n_rows: of the result, like the next.
        n_cols: times what is within a column.
        kept_rows: r.
        groups: G.
        inner: elements of a column that lie side by side.
        x_stride: from a row of x to the next.
        tile_rows: of a tile.
        tile_cols: of a tile.
    """
    _, row, col, in_rows, in_cols = _tile(n_rows, n_cols, tile_rows, tile_cols)
    wide = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    total = tl.zeros([tile_rows, tile_cols], wide)
    before = tl.zeros([], tl.int64)  # kept rows of the groups before
    rows_before, cols_before = before, before  # and numbers of their lists
    for _ in range(groups):
        from_row, from_col = row, col
        if row_at is not None:
            from_row = tl.load(row_at + rows_before + row, mask=in_rows, other=-1)
        if col_at is not None:
            from_col = tl.load(col_at + cols_before + col // inner, mask=in_cols, other=-1)
            from_col = tl.where(from_col < 0, -1, from_col * inner + col % inner)
        inside = in_rows & in_cols & (from_row >= 0) & (from_col >= 0)
        at = (before + from_row) * x_stride + from_col
        total += tl.load(x + at, mask=inside, other=0.0).to(wide)
        before += kept_rows
        rows_before += n_rows
        cols_before += n_cols // inner
    at = row.to(tl.int64) * n_cols + col
    tl.store(out + at, total.to(out.dtype.element_ty), mask=in_rows & in_cols)


@triton.jit
def invert(place, kept, n, k, chunk: tl.constexpr):
    """Write at each kept index of a group its place among the kept ones.

    Args:
        place: int32 ``[G, n]``, filled with -1.
        kept: int64 ``[G, k]``.
        n: how many there are.
        k: how many are kept.
        chunk: a power of two, of which a program takes one after the other.
    """
    g = tl.program_id(0).to(tl.int64)
    for start in range(0, k, chunk):
        at = start + tl.arange(0, chunk)
        index = tl.load(kept + g * k + at, mask=at < k, other=0)
        tl.store(place + g * n + index, at, mask=at < k)


def take(x: Tensor, rows: Tensor | None, cols: Tensor | None, width: int = 1) -> Tensor:
    """Return the kept rows, and of these the kept columns, of each group.

    Args:
        x: ``[R, ...]``, or with ``cols`` ``[R, C, ...]``.
        rows: int64 ``[G, r]``; all of them if None.
        cols: int64 ``[G, c]``; all of them if None.
        width: elements: rows of a matrix of the result begin at multiples of it.

    Returns:
        ``[G, r, c, ...]``. A bit stays as it is.
    """
    x = x.contiguous()
    groups = _groups(rows, cols)
    n_rows, x_stride = len(x) if rows is None else rows.shape[1], math.prod(x.shape[1:])
    inner = 1 if cols is None else math.prod(x.shape[2:])
    shape = x.shape[1:] if cols is None else (cols.shape[1], *x.shape[2:])
    n_cols = math.prod(shape)
    stride = -(-n_cols // width) * width if len(shape) == 1 else n_cols
    out = x.new_empty(groups, n_rows, stride)
    if out.numel():
        launch(
            *(gather, _tiles(n_rows, n_cols) * groups, x.device, out, x),
            *(_listed(rows), _listed(cols), n_rows, n_cols),
            *(0 if one is None else one.shape[1] for one in (rows, cols)),
            *(inner, x_stride, stride),
            tile_rows=_ROWS,
            tile_cols=_COLS,
        )
    out = out[:, :, :n_cols]
    return out if len(shape) == 1 else out.reshape(groups, n_rows, *shape)


def spread(
    x: Tensor,
    rows: Tensor | None,
    cols: Tensor | None,
    n_rows: int,
    n_cols: int,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return zeros with ``x`` added in the kept rows and columns of each group.

    Args:
        x: ``[G, r, c, ...]``, without ``cols`` ``[G, r, ...]``; its rows may lie apart.
        rows: int64 ``[G, r]``; all of them if None.
        cols: int64 ``[G, c]``; all of them if None.
        n_rows: of the result.
        n_cols: of the result, where there are ``cols``.
        dtype: of the result, that of ``x`` if None. Sums are made in float32, or float64.

    Returns:
        ``[n_rows, n_cols, ...]``, without ``cols`` ``[n_rows, ...]``.
    """
    groups = len(x)
    shape = x.shape[2:] if cols is None else (n_cols, *x.shape[3:])
    out = x.new_empty(n_rows, *shape, dtype=dtype or x.dtype)
    width, inner = math.prod(shape), 1 if cols is None else math.prod(x.shape[3:])
    flat = x.flatten(2) if x.dim() > 2 else x[:, :, None]
    if flat.stride(2) != 1 or flat.stride(0) != flat.shape[1] * flat.stride(1):
        flat = flat.contiguous()
    if out.numel():
        launch(
            *(scatter, _tiles(n_rows, width), x.device, out, flat),
            *(_places(rows, n_rows), _places(cols, n_cols)),
            *(n_rows, width, flat.shape[1], groups, inner, flat.stride(1)),
            tile_rows=_ROWS,
            tile_cols=_COLS,
        )
    return out


def _groups(*kept: Tensor | None) -> int:
    return next(len(one) for one in kept if one is not None)


def _listed(kept: Tensor | None) -> Tensor | None:
    return None if kept is None else kept.contiguous()


def _tiles(n_rows: int, n_cols: int) -> int:
    return -(-n_rows // _ROWS) * -(-n_cols // _COLS)


def _places(kept: Tensor | None, n: int) -> Tensor | None:
    """Return where each index is among the kept ones of a group, or -1: int32 ``[G, n]``."""
    if kept is None:
        return None
    place = kept.new_full((len(kept), n), -1, dtype=torch.int32)
    if kept.numel():
        launch(
            *(invert, len(kept), kept.device, place, _listed(kept), n, kept.shape[1]), chunk=1024
        )
    return place
