"""Samples of a residual branch: their sum with the stream in one pass over it, and its gradient."""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import torch
import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]
from torch import Tensor

from ._launch import launch

_TILE = 2048  # elements of a program
_CHUNK = 256  # rows that are looked through at once


@triton.jit
def _weigh(branch, at, inside, weight):
    """Return weighted elements of a row, in float64 or else in float32."""
    wide = tl.float64 if branch.dtype.element_ty == tl.float64 else tl.float32
    return tl.load(branch + at, mask=inside, other=0.0).to(wide) * weight.to(wide)


@triton.jit
def add(
    out, x, branch, rows, weights, inner: tl.int64, c, tiles,
    tile: tl.constexpr, chunk: tl.constexpr,
):  # fmt: skip
    """Write one tile of one row of x, with the weighted row of the branch that belongs to it.

    Args:
        out: ``[B, inner]``.
        x: ``[B, inner]``.
        branch: ``[c, inner]``.
        rows: int64 ``[c]``.
        weights: float64 ``[c]``; a row of weight 0 is not read.
        inner: elements of a row.
        c: rows of the branch.
        tiles: of a row.
        tile: elements of a tile.
        chunk: rows that are looked through at once.
    """
    pid = tl.program_id(0)
    row = pid // tiles
    place = tl.full([], -1, tl.int32)
    for start in range(0, c, chunk):
        at = start + tl.arange(0, chunk)
        here = tl.load(rows + at, mask=at < c, other=-1) == row
        place = tl.maximum(place, tl.max(tl.where(here, at, -1), 0))
    weight = tl.load(weights + place, mask=place >= 0, other=0.0)
    col = (pid % tiles).to(tl.int64) * tile + tl.arange(0, tile)
    inside = col < inner
    value = tl.load(x + row.to(tl.int64) * inner + col, mask=inside)
    if weight != 0.0:
        more = _weigh(branch, place.to(tl.int64) * inner + col, inside, weight)
        value = (value.to(more.dtype) + more).to(value.dtype)
    tl.store(out + row.to(tl.int64) * inner + col, value, mask=inside)


@triton.jit
def gather(
    out, grad, rows, weights, inner: tl.int64, tiles,
    tile: tl.constexpr,
):  # fmt: skip
    """Write one tile of one weighted row of the gradient: 0 where the weight is 0.

    Args:
        out: ``[c, inner]``.
        grad: ``[B, inner]``.
        rows: int64 ``[c]``.
        weights: float64 ``[c]``.
        inner: elements of a row.
        tiles: of a row.
        tile: elements of a tile.
    """
    pid = tl.program_id(0)
    place = pid // tiles
    row, weight = tl.load(rows + place), tl.load(weights + place)
    col = (pid % tiles).to(tl.int64) * tile + tl.arange(0, tile)
    read = tl.where(weight != 0.0, inner, inner * 0)
    value = _weigh(grad, row * inner + col, col < read, weight)
    value = tl.where(weight != 0.0, value, 0.0).to(out.dtype.element_ty)
    tl.store(out + place.to(tl.int64) * inner + col, value, mask=col < inner)


def add_rows(x: Tensor, branch: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """Return ``x`` with the weighted rows of a branch added to its kept rows.

    Args:
        x: ``[B, ...]``, contiguous in some order of the dims behind the first.
        branch: ``[c, ...]``, of the same dtype and order.
        rows: int64 ``[c]``.
        weights: float64 ``[c]``; a row of weight 0 is not read.

    Returns:
        Like ``x``. Computed in float32 for float16 and bfloat16, then rounded once.
    """
    x, branch = _alike(x, branch)
    out = torch.empty_like(x)
    inner = x[0].numel() if len(x) else 0
    if out.numel():
        tiles = -(-inner // _TILE)
        tensors = (out, x, branch, rows.contiguous(), weights.contiguous())
        sizes = (inner, len(rows), tiles)
        launch(add, len(x) * tiles, x.device, *tensors, *sizes, tile=_TILE, chunk=_CHUNK)
    return out


def take_weighted(grad: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """Return kept rows times their weights: the gradient of the branch.

    Args:
        grad: ``[B, ...]``.
        rows: int64 ``[c]``.
        weights: float64 ``[c]``; where it is 0 the row is 0.

    Returns:
        ``[c, ...]``.
    """
    (grad,) = _alike(grad)
    shape = (len(rows), *grad.shape[1:])
    out = torch.empty_strided(shape, grad.stride(), dtype=grad.dtype, device=grad.device)
    inner = grad[0].numel() if len(grad) else 0
    if out.numel():
        tiles = -(-inner // _TILE)
        tensors = (out, grad, rows.contiguous(), weights.contiguous())
        launch(gather, len(rows) * tiles, grad.device, *tensors, inner, tiles, tile=_TILE)
    return out


def _alike(*tensors: Tensor) -> list[Tensor]:
    """Return tensors whose rows lie side by side, in one order of the elements within a row."""
    strides = tensors[0].stride()
    dims = sorted(range(1, tensors[0].dim()), key=lambda dim: -strides[dim])
    order = (0, *dims)
    if all(one.permute(order).is_contiguous() for one in tensors):
        return list(tensors)
    return [one.contiguous() for one in tensors]
