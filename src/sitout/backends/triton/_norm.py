"""From a call to the kernels that drop, add and normalize row by row."""

from __future__ import annotations

import math
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ... import masks
from .. import cpu
from . import _norm_kernel
from ._launch import key_arguments, launch, rate_on_host, rows_on

if TYPE_CHECKING:
    from .._address import Address

_INTERPRETED = 3  # programs of backward in the interpreter


class Place(NamedTuple):
    """Where the rows of a tensor in memory lie in the address space.

    Args:
        n_cols: elements of a row.
        inner: rows of memory behind one index of the batch dim.
        n_batch: samples.
        outer_stride: columns from one index of the dims before the batch dim to the next.
        inner_stride: columns from one index of the dims behind it to the next.
        first: the first column.
        takes_rows: whether an address's rows count; those of a shared batch dim do not.
    """

    n_cols: int
    inner: int
    n_batch: int
    outer_stride: int
    inner_stride: int
    first: int
    takes_rows: bool

    @property
    def is_aligned(self) -> bool:
        """Whether every row begins where a block does, and ends where one does."""
        numbers = (self.n_cols, self.first, self.outer_stride, self.inner_stride)
        return all(number % 8 == 0 for number in numbers)


@lru_cache(1024)
def place(
    shape: tuple[int, ...],
    n_dims: int,
    shared_dims: tuple[int, ...],
    batch_dim: int,
    block: tuple[tuple[int, int], ...] | None,
) -> Place | None:
    """Return where rows over the last ``n_dims`` dims lie, or None if they lie in no such way.

    Args:
        shape: of the input, not empty.
        n_dims: that are normalized together.
        shared_dims: as in :class:`sitout.backends.Address`.
        batch_dim: as there.
        block: as there.

    Raises:
        ValueError: a dim or the block does not fit the shape.
    """
    cols, first, row_dim, takes_rows = cpu._columns(shape, shared_dims, batch_dim, block)
    lead = len(shape) - n_dims
    if row_dim >= lead or math.prod(shape[:lead]) >= 1 << 31:
        return None
    before = lead if row_dim < 0 else row_dim
    parts = (slice(before), slice(before + 1, lead), slice(lead, None))
    outer, inner, along = (_joined(shape[part], cols[part]) for part in parts)
    if outer is None or inner is None or along is None or along[1] not in (0, 1):
        return None
    if along[0] > 1 and along[1] == 0:  # one bit for a whole row
        return None
    n_batch = 1 if row_dim < 0 else shape[row_dim]
    return Place(along[0], inner[0], n_batch, outer[1], inner[1], first, takes_rows)


def _joined(shape: tuple[int, ...], cols: tuple[int, ...]) -> tuple[int, int] | None:
    """Return size and stride of several dims as one, or None if they are not one."""
    size, stride = 1, 0
    for more, col in zip(reversed(shape), reversed(cols), strict=True):
        if more > 1 and size > 1 and col != size * stride:
            return None
        stride = col if more > 1 and size == 1 else stride
        size *= more
    return size, stride


class Call(NamedTuple):
    """What the kernels of one call have in common.

    Args:
        rms: whether the mean stays as it is.
        eps: added to the variance, or to the mean square.
        where: the rows lie.
        dtypes: of the sum, and of the result.
        address: of the mask.
        p: drop rate, a fraction in [0, 1], or as data.
    """

    rms: bool
    eps: float
    where: Place
    dtypes: tuple[torch.dtype, torch.dtype]
    address: Address
    p: float | Tensor

    def arguments(self, device: torch.device) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return what both kernels take of rate and address, and what they are compiled for."""
        rate, (bits, *numbers) = _rate(self.p, device)
        n_batch, rows = self.where.n_batch, None
        if self.address.rows is not None and self.where.takes_rows:
            rows = rows_on(masks._check_rows(self.address.rows, n_batch), device)
        key = key_arguments(self.address.key, n_batch, device)
        n_cols, *numbers_of_place, _ = self.where
        flags = {
            "rms": self.rms,
            "blocks": 1 << (-(-n_cols // 8) - 1).bit_length(),
            "bits": bits,
            "aligned": self.where.is_aligned,
        }
        return (rate, *numbers, *key, rows, *numbers_of_place), flags


def _rate(p: float | Tensor, device: torch.device) -> tuple[Tensor | None, tuple[Any, ...]]:
    """Return a rate as data where it lies on the device, else bits, threshold and scale."""
    if isinstance(p, Tensor) and p.device == device:
        return p, (0, 0, 0.0)
    told = cpu._rate("dropout", rate_on_host(p, device))
    return None, (32, 1 << 32, 0.0) if told is None else told[:3]


def forward(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    call: Call,
    for_backward: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Normalize ``residual + dropout(x)``.

    Args:
        x: ``[B, ..., C]``, contiguous.
        residual: of the same shape, contiguous.
        weight: of the normalized shape, contiguous, or None.
        bias: of the normalized shape, contiguous, or None.
        call: the rest.
        for_backward: whether the numbers of each row are wanted.

    Returns:
        The normalized sum, the sum, and float32 ``[M]`` for backward: mean and 1 / root.
    """
    out, total = (torch.empty_like(x, dtype=dtype) for dtype in reversed(call.dtypes))
    n_cols = call.where.n_cols
    n_rows = x.numel() // n_cols
    rstd = x.new_empty(n_rows, dtype=torch.float32) if for_backward else None
    mean = torch.empty_like(rstd) if rstd is not None and not call.rms else None
    same, flags = call.arguments(x.device)
    launch(
        *(_norm_kernel.forward, n_rows, x.device),
        *(x, residual, weight, bias, out, total, mean, rstd, *same, n_cols, call.eps),
        num_warps=_warps(flags["blocks"], 64),
        **flags,
    )
    return out, total, mean, rstd


def backward(
    grad: Tensor,
    total_grad: Tensor | None,
    total: Tensor,
    weight: Tensor | None,
    numbers: tuple[Tensor | None, Tensor],
    call: Call,
    dtypes: tuple[torch.dtype, torch.dtype],
    affine: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the gradients.

    Args:
        grad: ``[B, ..., C]``, contiguous.
        total_grad: of the same shape, contiguous, or None.
        total: of the same shape, the sum.
        weight: of the normalized shape, contiguous, or None.
        numbers: mean and 1 / root of each row, as :func:`forward` made them.
        call: as there.
        dtypes: of the gradients of ``x`` and of the residual.
        affine: whether the gradients of weight and bias are wanted.

    Returns:
        The gradients of ``x`` and of the residual; and float32 ``[2, N]``: those of weight and
        bias, or None. For a mean square the second of them is left as it came.
    """
    x_grad, residual_grad = (torch.empty_like(total, dtype=dtype) for dtype in dtypes)
    n_cols = call.where.n_cols
    n_rows = total.numel() // n_cols
    same, flags = call.arguments(total.device)
    warps = _warps(flags["blocks"], 64 if total.itemsize == 2 else 32)
    programs = min(n_rows, _programs(total.device, warps))
    shape = (1 if call.rms else 2, programs, n_cols)
    sums = total.new_empty(shape, dtype=torch.float32) if affine else None
    launch(
        *(_norm_kernel.backward, programs, total.device),
        *(grad, total_grad, total, weight, *numbers, x_grad, residual_grad, sums),
        *(*same, n_rows, n_cols),
        num_warps=warps,
        **flags,
    )
    return x_grad, residual_grad, None if sums is None else sums.sum(1)


def _warps(blocks: int, each: int) -> int:
    """Return how many warps a program has, each with so many blocks."""
    return max(1, min(blocks // each, 32))


@cache
def _programs(device: torch.device, warps: int) -> int:
    """Return how many programs of backward a device runs at a time."""
    if device.type == "cpu":
        return _INTERPRETED
    return torch.cuda.get_device_properties(device).multi_processor_count * max(1, 16 // warps)
