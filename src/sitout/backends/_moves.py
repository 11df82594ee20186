"""Kept rows and columns: gathered, and spread again over zeros.

Each of the two is the other's gradient, so both are differentiable any number of times.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import _choice, _op, cpu, triton
from ._drop import is_direct, kernels

if TYPE_CHECKING:
    from types import ModuleType


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
    found = movers(x, rows, cols)
    if found is not None:
        made: Tensor = _Take.apply(x, rows, cols, found)  # type: ignore[no-untyped-call]
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
    found = movers(x, rows, cols)
    if found is not None and _fit(x, rows, cols):
        sizes = n_rows, n_cols
        made: Tensor = _Spread.apply(x, rows, cols, *sizes, found)  # type: ignore[no-untyped-call]
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


def movers(x: Tensor, *kept: Tensor | None) -> ModuleType | None:
    """Return the backend that may move parts of ``x`` at once, as nobody watches; None if none may.

    Args:
        x: any tensor.
        kept: int64, ascending; None for all.

    Example:
        >>> movers(torch.ones(2, device="meta"), torch.tensor([1])) is None
        True
    """
    if is_direct(x):
        return cpu if all(map(is_index, kept)) else None
    if not (x.is_cuda or (x.is_cpu and _choice.is_forced())) or not x.is_floating_point():
        return None
    return triton if kernels(x, False) is triton and _are_near(x, *kept) else None


def draws_on_gpu(groups: Tensor) -> bool:
    """Return whether a kernel draws the subsets of some groups.

    Args:
        groups: int64, on the device of the result.

    Example:
        >>> draws_on_gpu(torch.tensor([0]))
        False
    """
    if not (groups.is_cuda or (groups.is_cpu and _choice.is_forced())):
        return False
    return kernels(groups.view(torch.float64), False) is triton


def _are_near(x: Tensor, *kept: Tensor | None) -> bool:
    """Return whether a kernel that reads ``x`` can read which indices are kept."""
    near = ((one.device, one.dtype) for one in kept if one is not None)
    return all(one == (x.device, torch.int64) for one in near)


def _fit(x: Tensor, *kept: Tensor | None) -> bool:
    """Return whether each of the first dims of ``x`` has as many indices as it is long."""
    return all(
        one is None or (dim < x.dim() and x.shape[dim] == len(one)) for dim, one in enumerate(kept)
    )


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, rows: Tensor | None, cols: Tensor | None, by: ModuleType
    ) -> Tensor:
        ctx.save_for_backward(rows, cols)
        ctx.sizes = len(x), x.shape[1] if cols is not None else 0
        return (cpu.take if by is cpu else _take_on_gpu)(x, rows, cols)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return spread(grad, *ctx.saved_tensors, *ctx.sizes), None, None, None


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        rows: Tensor | None,
        cols: Tensor | None,
        n_rows: int,
        n_cols: int,
        by: ModuleType,
    ) -> Tensor:
        ctx.save_for_backward(rows, cols)
        return (cpu.spread if by is cpu else _spread_on_gpu)(x, rows, cols, n_rows, n_cols)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return take(grad, *ctx.saved_tensors), None, None, None, None, None


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


def _take_on_gpu(x: Tensor, rows: Tensor | None, cols: Tensor | None) -> Tensor:
    from .triton import _moves

    return _moves.take(x, _as_group(rows), _as_group(cols))[0]


def _spread_on_gpu(
    x: Tensor, rows: Tensor | None, cols: Tensor | None, n_rows: int, n_cols: int
) -> Tensor:
    from .triton import _moves

    n_rows = len(x) if rows is None else n_rows
    return _moves.spread(x[None], _as_group(rows), _as_group(cols), n_rows, n_cols)


def _as_group(kept: Tensor | None) -> Tensor | None:
    return None if kept is None else kept[None]


def _op_movers(x: Tensor, *kept: Tensor | None) -> ModuleType | None:
    """Return the backend that moves parts of ``x`` within an op; None for plain torch."""
    found = _choice.select(x) if x.is_floating_point() else None
    if found is cpu and all(map(is_index, kept)):
        return cpu
    return triton if found is triton and _are_near(x, *kept) else None


def _take_kernel(x: Tensor, rows: Tensor | None, cols: Tensor | None) -> Tensor:
    by = _op_movers(x, rows, cols)
    move = _take_plainly if by is None else cpu.take if by is cpu else _take_on_gpu
    return move(x, rows, cols)


def _spread_kernel(
    x: Tensor, rows: Tensor | None, cols: Tensor | None, n_rows: int, n_cols: int
) -> Tensor:
    by = _op_movers(x, rows, cols) if _fit(x, rows, cols) else None
    move = _spread_plainly if by is None else cpu.spread if by is cpu else _spread_on_gpu
    return move(x, rows, cols, n_rows, n_cols)


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
