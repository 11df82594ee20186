"""Making a plan: a forward is put on tape for small batches, and the program is tried."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import _plan
from ._draws import AllPlay
from ._loop import clocked
from ._program import build
from ._tape import Tape, UntraceableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from ._batch import Batch
    from ._plan import Plan

_FEW, _MORE = 2, 3
ROWS = _FEW + _MORE + 2 * _FEW  # that run until a plan is made


def make(model: nn.Module, batch: Batch, select: Callable[[Any], Tensor]) -> Plan:
    """Return the plan of a model whose dropout is on.

    Args:
        model: any module.
        batch: what it takes.
        select: returns the output that counts.

    Raises:
        UntraceableError: its forward is not the same sequence of operations for all inputs.
    """
    if clocked(model):
        raise UntraceableError("units that sit out are not computed in it")
    few = batch.take([i % batch.rows for i in range(_FEW)])
    more = batch.take([-i % batch.rows for i in range(1, _MORE + 1)])
    first, out = _recorded(model, few, select)
    if not any(step.draws for step in first.steps):
        raise NothingDrawnError
    second, other = _recorded(model, more, select)
    inputs = few.tensors()
    program = build(first, second, (_FEW, _MORE), len(inputs), [out], [other])
    if not program.draws:
        raise NothingDrawnError
    plan = _plan.split(program)
    plan.expands = _expands(plan, few, out)
    _plan.fuse(program)
    made = _plan.split(program)
    made.expands = plan.expands
    return made


class NothingDrawnError(Exception):
    """No draw reaches the output of a forward."""


def _recorded(
    model: nn.Module, batch: Batch, select: Callable[[Any], Tensor]
) -> tuple[Tape, Tensor]:
    with Tape(batch.tensors()) as tape:
        out = select(batch.call(model))
    return tape, out


def _expands(plan: Plan, few: Batch, out: Tensor) -> bool:
    """Return whether samples that run as one batch do not meet.

    Raises:
        UntraceableError: the program does not give what the model gives.
    """
    border = plan.prefix(few.tensors(), _FEW)
    [alone] = plan.suffix(border, _FEW, AllPlay(range(1)))
    if not same(alone, out):
        raise UntraceableError("its program gives other outputs")
    at = plan.program.batch_dim(plan.program.outputs[0])
    if at is None or at[1] != 1 or plan.weights():
        return False
    try:
        [twice] = plan.suffix(border, _FEW, AllPlay(range(2)))
    except (RuntimeError, UntraceableError):
        return False
    return same(twice.chunk(2, at[0])[0], out)  # whatever the other sample holds


def same(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are equal but for rounding."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    a, b = (each.to(torch.promote_types(one.dtype, torch.float32)) for each in (one, other))
    if not a.is_floating_point() or not b.numel():
        return torch.equal(a, b)
    scale = b[b.isfinite()].abs().max().item() if b.isfinite().any() else 1.0
    close = 1e3 * torch.finfo(one.dtype).eps * max(scale, 1e-30)
    return torch.allclose(a, b, rtol=0.0, atol=close, equal_nan=True)
