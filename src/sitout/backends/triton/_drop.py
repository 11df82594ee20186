"""From a call to launches of the kernel that works element by element."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ... import _checks, masks
from .. import cpu
from . import _drop_kernel, _layout
from ._launch import key_arguments, launch, rate_on_host, rows_on

if TYPE_CHECKING:
    from .._address import Address

_OPS = {  # of the kernel, where it has another name
    "dropout": "scale",
    "path": "scale",
    "alpha": "affine",
    "alpha_slope": "scale",
    "gaussian": "noise",
    "path_add": "add",
}
_BIAS = 2  # its place among the operands: x, other, bias and the result
_SINGLE = 256  # elements of a tile in which each has an address of its own


def run(
    op: str,
    x: Tensor | None,
    out: Tensor,
    address: Address,
    p: float | Tensor,
    other: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Do one operation of :func:`sitout.backends.cpu.fuse`, or a law, or "mask".

    Args:
        op: which.
        x: what is dropped from; None for "mask".
        out: where the result is written.
        address: of the mask.
        p: drop rate, a fraction in [0, 1], or as data.
        other: of the shape of ``x``.
        bias: broadcastable to it.

    Returns:
        ``out``.
    """
    shape, device = out.shape, out.device
    if bias is not None:
        bias = bias.expand(shape)
    by_data = isinstance(p, Tensor) and p.device == device
    job = _prepare(
        op,
        shape,
        tuple([(out if one is None else one).stride() for one in (x, other, bias, out)]),
        address.shared_dims,
        address.batch_dim,
        address.block,
        by_data,
    )
    rate, bits, numbers = p, 0, (0, 0.0, 0.0, 0.0)
    if not by_data:
        told = _rate(op, rate_on_host(p, device))
        if told is None:  # all sits out
            both = op in ("add", "path_add") and other is not None
            return out.copy_(other) if both else out.zero_()  # type: ignore[arg-type]
        rate, (bits, *numbers) = None, told  # type: ignore[assignment]
    rows = None
    if address.rows is not None and job.takes_rows:
        rows = rows_on(masks._check_rows(address.rows, job.n_rows), device)
    key = key_arguments(address.key, job.n_rows, device)
    operands = (x, other, bias, out.view(torch.uint8) if x is None else out)
    for start in job.starts:
        at = _moved(operands, start.offsets) if any(start.offsets) else operands
        arguments = (*at, rate, *numbers, *key, rows, *start.numbers)
        launch(
            _drop_kernel.elementwise, start.programs, device, *arguments, bits=bits, **start.flags
        )
    return out


def keep_mask(
    address: Address, p: float | Tensor, shape: tuple[int, ...], device: torch.device | str
) -> Tensor:
    """Return a mask; see :func:`sitout.backends.cpu.keep_mask`."""
    shared = {_checks.dim(dim, len(shape), "shared_dims") for dim in address.shared_dims}
    sizes = [1 if dim in shared else size for dim, size in enumerate(shape)]
    return run("mask", None, torch.empty(sizes, dtype=torch.bool, device=device), address, p)


def _moved(operands: tuple[Tensor | None, ...], offsets: tuple[int, ...]) -> list[Tensor | None]:
    """Return tensors that begin where a piece does."""
    return [
        one if one is None or not by else one.as_strided((1,), (1,), one.storage_offset() + by)
        for one, by in zip(operands, offsets, strict=True)
    ]


_rate = lru_cache(256)(cpu._rate)


class _Start(NamedTuple):
    """One launch: how many programs, where its operands begin, and what the kernel is told."""

    programs: int
    offsets: tuple[int, ...]
    numbers: tuple[int, ...]
    flags: dict[str, Any]


class _Job(NamedTuple):
    """What is worth keeping between calls; see :class:`_layout.Layout`."""

    starts: tuple[_Start, ...]
    n_rows: int
    takes_rows: bool


@lru_cache(1024)
def _prepare(
    op: str,
    shape: tuple[int, ...],
    strides: tuple[tuple[int, ...], ...],
    shared_dims: tuple[int, ...],
    batch_dim: int,
    block: tuple[tuple[int, int], ...] | None,
    by_data: bool,
) -> _Job:
    layout = _layout.plan(shape, strides, shared_dims, batch_dim, block)
    law, op = cpu._LAW.get(op, "dropout"), _OPS.get(op, op)
    starts = []
    for piece in layout.pieces:
        flags = {"op": op, "law": law, **_flags(piece, op, by_data)}
        programs = -(-piece.rows // flags["tile"])
        starts.append(_Start(programs, piece.offsets, _numbers(piece, flags["flat"]), flags))
    return _Job(tuple(starts), layout.n_rows, layout.takes_rows)


def _flags(piece: _layout.Piece, op: str, by_data: bool) -> dict[str, Any]:
    """Return what a kernel is compiled for."""
    bias = [strides[_BIAS] for strides in piece.all_strides]
    span, flat = piece.span, piece.is_flat(_BIAS)
    light = flat and op != "noise"
    return {
        "tile": _SINGLE if span == 1 else _layout.ELEMENTS // span // (1 if light else 2),
        "span": span,
        "dims": len(piece.outer),
        "row_dim": next((at for at, dim in enumerate(piece.outer, 1) if dim.row), 0),
        "cut": piece.cuts > 1,
        "lanes": piece.has_lanes,
        "aligned": piece.is_aligned,
        "flat": flat,
        "bias_flat": bias[0] == 1 and not any(bias[1:]),
        "packed": op != "noise" and (by_data or (span > 1 and not flat)),
    }


def _numbers(piece: _layout.Piece, flat: bool) -> tuple[int, ...]:
    """Return the numbers of a piece in the order of the kernel."""
    unit = _layout.LANES if flat else 1
    sizes = [piece.cuts, *(dim.size for dim in piece.outer)]
    strides = []
    for at, (inner, *outer) in enumerate(zip(*piece.all_strides, strict=True)):
        scaled = [one if at == _BIAS else one // unit for one in outer]
        strides += [inner, *scaled, *[0] * (_layout.DIMS - len(outer))]
    cols = [dim.col for dim in piece.outer]
    return (
        *(piece.rows, piece.inner.size // unit, piece.first, piece.row),
        *(one for size in [*sizes, 1, 1, 1][: _layout.DIMS] for one in _divisor(size)),
        *strides,
        *(*cols, 0, 0, 0)[: _layout.DIMS],
    )


def _divisor(size: int) -> tuple[int, int, int]:
    """Return a size with the numbers by which a kernel divides by it.

    For n < 2**31, n // size = (n * magic // 2**32 + n) >> shift (Granlund and Montgomery 1994).
    """
    shift = (size - 1).bit_length()
    return size, ((1 << 32) * ((1 << shift) - size)) // size + 1, shift
