"""Kept rows and columns: gathered, and spread again over zeros.

Each of the two is the other's gradient, so both are differentiable any number of times.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _choice, _op, cpu
from ._drop import is_direct


def take(x: Tensor, rows: Tensor | None, cols: Tensor | None) -> Tensor:
    """Return the kept rows, and of these the kept columns.

    Args:
        x: ``[R, ...]``, or with ``cols`` ``[R, C, ...]``.
        rows: int64 ``[r]``, ascending; all of them if None.
        cols: int64 ``[c]``, ascending; all of them if None.

    Returns:
        ``[r, c, ...]``, a new tensor.

    Example:
        >>> take(torch.arange(6.0).view(2, 3), torch.tensor([1]), torch.tensor([0, 2]))
        tensor([[3., 5.]])
    """
    if rows is None and cols is None:
        return x
    if is_direct(x) and is_index(rows) and is_index(cols):
        made: Tensor = _Take.apply(x, rows, cols)  # type: ignore[no-untyped-call]
        return made
    if _op.is_seen():
        out: Tensor = torch.ops.sitout.take.default(x, rows, cols)
        return out
    return _take_plainly(x, rows, cols)


def spread(x: Tensor, rows: Tensor | None, cols: Tensor | None, n_rows: int, n_cols: int) -> Tensor:
    """Return a larger tensor with ``x`` in the kept rows and columns, and 0 elsewhere.

    Args:
        x: ``[r, ...]``, or with ``cols`` ``[r, c, ...]``.
        rows: int64 ``[r]``, ascending; all of them if None.
        cols: int64 ``[c]``, ascending; all of them if None.
        n_rows: of the result.
        n_cols: of the result, where there are ``cols``.

    Returns:
        ``[n_rows, n_cols, ...]``.

    Example:
        >>> spread(torch.ones(1, 2), torch.tensor([1]), torch.tensor([0, 2]), 2, 3)
        tensor([[0., 0., 0.],
                [1., 0., 1.]])
    """
    if rows is None and cols is None:
        return x
    if is_direct(x) and is_index(rows) and is_index(cols) and _fit(x, rows, cols):
        made: Tensor = _Spread.apply(x, rows, cols, n_rows, n_cols)  # type: ignore[no-untyped-call]
        return made
    if _op.is_seen():
        out: Tensor = torch.ops.sitout.spread.default(x, rows, cols, n_rows, n_cols)
        return out
    return _spread_plainly(x, rows, cols, n_rows, n_cols)


def is_index(kept: Tensor | None) -> bool:
    """Return whether the core can read which indices are kept; one of no length is no address.

    Args:
        kept: int64, ascending; None for all.

    Example:
        >>> is_index(torch.tensor([0, 2])), is_index(torch.tensor([0, 1, 2, 3])[::2])
        (True, False)
    """
    return kept is None or (
        kept.dtype == torch.int64
        and kept.numel() > 0
        and cpu.is_memory(kept)
        and kept.is_contiguous()
    )


def _fit(x: Tensor, *kept: Tensor | None) -> bool:
    """Return whether each of the first dims of ``x`` has as many indices as it is long."""
    return all(
        one is None or (dim < x.dim() and x.shape[dim] == len(one)) for dim, one in enumerate(kept)
    )


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor | None, cols: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows, cols)
        ctx.sizes = len(x), x.shape[1] if cols is not None else 0
        return cpu.take(x, rows, cols)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return spread(grad, *ctx.saved_tensors, *ctx.sizes), None, None


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, rows: Tensor | None, cols: Tensor | None, n_rows: int, n_cols: int
    ) -> Tensor:
        ctx.save_for_backward(rows, cols)
        return cpu.spread(x, rows, cols, n_rows, n_cols)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        return take(grad, *ctx.saved_tensors), None, None, None, None


def _take_plainly(x: Tensor, rows: Tensor | None, cols: Tensor | None) -> Tensor:
    if rows is not None:
        x = x.index_select(0, rows)
    return x if cols is None else x.index_select(1, cols)


def _spread_plainly(
    x: Tensor, rows: Tensor | None, cols: Tensor | None, n_rows: int, n_cols: int
) -> Tensor:
    if cols is not None:
        x = x.new_zeros(len(x), n_cols, *x.shape[2:]).index_copy(1, cols, x)
    if rows is not None:
        x = x.new_zeros(n_rows, *x.shape[1:]).index_copy(0, rows, x)
    return x


def _take_kernel(x: Tensor, rows: Tensor | None, cols: Tensor | None) -> Tensor:
    core = _choice.select(x) is cpu and is_index(rows) and is_index(cols)
    return (cpu.take if core else _take_plainly)(x, rows, cols)


def _spread_kernel(
    x: Tensor, rows: Tensor | None, cols: Tensor | None, n_rows: int, n_cols: int
) -> Tensor:
    core = _choice.select(x) is cpu and is_index(rows) and is_index(cols) and _fit(x, rows, cols)
    return (cpu.spread if core else _spread_plainly)(x, rows, cols, n_rows, n_cols)


def _take_fake(x: Tensor, rows: Tensor | None, cols: Tensor | None) -> Tensor:
    # Not len(): it would make a constant of a compiler's symbol.
    shape = [x.shape[0] if rows is None else rows.shape[0], *x.shape[1:]]
    if cols is not None:
        shape[1] = cols.shape[0]
    return x.new_empty(shape)


def _spread_fake(
    x: Tensor, rows: Tensor | None, cols: Tensor | None, n_rows: int, n_cols: int
) -> Tensor:
    shape = [x.shape[0] if rows is None else n_rows, *x.shape[1:]]
    if cols is not None:
        shape[1] = n_cols
    return x.new_empty(shape)


def _take_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, rows, cols = inputs
    ctx.save_for_backward(rows, cols)
    ctx.sizes = x.shape[0], x.shape[1] if cols is not None else 0


def _take_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    return torch.ops.sitout.spread.default(grad, *ctx.saved_tensors, *ctx.sizes), None, None


def _spread_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:3])


def _spread_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return torch.ops.sitout.take.default(grad, *ctx.saved_tensors), None, None, None, None


_op.register("take(Tensor x, Tensor? rows, Tensor? cols) -> Tensor", _take_kernel, _take_fake)
_op.register(
    "spread(Tensor x, Tensor? rows, Tensor? cols, SymInt n_rows, SymInt n_cols) -> Tensor",
    _spread_kernel,
    _spread_fake,
)
_op.differentiate("take", _take_backward, _take_context)
_op.differentiate("spread", _spread_backward, _spread_context)
