"""Samples of a residual branch: which are computed, and their sum with the stream."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import masks
from . import _moves, _op, cpu, triton
from ._address import Address, Packed
from ._drop import is_direct
from ._masks import kept_samples

if TYPE_CHECKING:
    from types import ModuleType

LEAST_SAMPLES = 0.05
"""The fraction of the samples that has to sit out before it pays to gather the others."""


def count_samples(p: float, n: int) -> int:
    """Return how many of ``n`` samples are computed.

    Args:
        p: drop rate, a fraction in [0, 1].
        n: samples.

    Example:
        >>> count_samples(0.4, 32)
        20
    """
    return math.ceil(n * (1.0 - p))


def draw_samples(key: masks.MaskKey, p: float, n: int, group: Tensor) -> tuple[Tensor, Tensor]:
    """Return which samples are computed, and their weights, by the exact law.

    Args:
        key: the address.
        p: drop rate, a fraction in [0, 1].
        n: samples.
        group: int64 with no dims: of these rows; on the device of the result.

    Returns:
        int64 ``[c]``, ascending, and float64 ``[c]``.

    Example:
        >>> draw_samples(sitout.MaskKey(seed=0), 0.5, 4, torch.tensor(0))
        (tensor([2, 3]), tensor([2., 2.], dtype=torch.float64))
    """
    if _op.is_seen():
        packed = Address(key).pack(group.device)
        drawn: tuple[Tensor, Tensor] = torch.ops.sitout.kept_samples.default(
            packed.key, packed.counter, group, p, n
        )
        return drawn
    if _moves.draws_on_gpu(group):
        from .triton import _subsets

        return _subsets.kept_samples(key, p, n, group)
    if group.is_cpu and cpu.is_memory(group):
        return kept_samples(key, p, n, group=int(group))
    return masks.kept_samples(key, p, n, group=group, device=group.device)


def add_rows(x: Tensor, branch: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """Return ``x`` with the weighted rows of a branch added to its kept rows, in one pass.

    Args:
        x: ``[B, ...]``.
        branch: ``[c, ...]``.
        rows: int64 ``[c]``, ascending.
        weights: float64 ``[c]``; a row of weight 0 adds nothing, whatever it holds.

    Returns:
        Like ``x``, a new tensor.

    Example:
        >>> rows, weights = torch.tensor([1]), torch.tensor([2.0], dtype=torch.float64)
        >>> add_rows(torch.zeros(2, 2), torch.ones(1, 2), rows, weights)
        tensor([[0., 0.],
                [2., 2.]])
    """
    by = _adders(x, branch, rows)
    if by is not None and branch.shape == (len(rows), *x.shape[1:]) and weights.shape == rows.shape:
        made: Tensor = _add_rows(x, branch, rows, weights, by)
        return made
    return x.index_add(0, rows, _weighted(branch, weights).to(x.dtype))


def _adders(x: Tensor, branch: Tensor, rows: Tensor) -> ModuleType | None:
    """Return the backend that adds rows of these tensors in one pass; None if none does."""
    if x.dtype != branch.dtype or not x.numel():
        return None
    if is_direct(x):
        wide = x.dtype in (torch.float32, torch.float64)
        return cpu if wide and cpu.is_plain(branch) and _moves.is_index(rows) else None
    by = _moves.movers(x, rows)
    return by if by is triton and branch.device == x.device and triton.is_plain(branch) else None


def _weighted(branch: Tensor, weights: Tensor) -> Tensor:
    """Return rows times their weights; those of weight 0 are 0."""
    wide = torch.float32 if branch.dtype in (torch.float16, torch.bfloat16) else branch.dtype
    weight = weights.to(wide).view(-1, *[1] * (branch.dim() - 1))
    return torch.where(weight != 0, branch * weight, 0.0).to(branch.dtype)


class _AddRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, branch: Tensor, rows: Tensor, weights: Tensor, by: ModuleType
    ) -> Tensor:
        ctx.save_for_backward(rows, weights)
        if by is cpu:
            return cpu.add_rows(x, branch, rows, weights)
        from .triton import _rows

        return _rows.add_rows(x, branch, rows, weights)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        branch_grad = None
        if ctx.needs_input_grad[1]:
            branch_grad = _take_weighted(grad, *ctx.saved_tensors)
        return grad, branch_grad, None, None, None


def _take_weighted(grad: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    if not torch.is_grad_enabled() and _moves.movers(grad, rows) is triton:
        from .triton import _rows

        return _rows.take_weighted(grad, rows, weights)
    return _weighted(_moves.take(grad, rows, None), weights)


# As in _drop: without the half of ``apply`` that serves function transforms.
_add_rows: Any = super(torch.autograd.Function, _AddRows).apply


def _draw_kernel(
    key: Tensor, counter: Tensor | None, group: Tensor, p: float, n: int
) -> tuple[Tensor, Tensor]:
    mask_key = Packed(key, counter, None, None, (), 0).unpack().mask_key
    return draw_samples(mask_key, p, n, group)


def _draw_fake(
    key: Tensor, counter: Tensor | None, group: Tensor, p: float, n: int
) -> tuple[Tensor, Tensor]:
    c = count_samples(p, n)
    return group.new_empty(c), group.new_empty(c, dtype=torch.float64)


_op.register(
    "kept_samples(Tensor key, Tensor? counter, Tensor group, float p, SymInt n) "
    "-> (Tensor, Tensor)",
    _draw_kernel,
    _draw_fake,
)
