"""Making a plan: a forward is put on tape for small batches, and the program is tried."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import _plan
from ._draws import AllPlay
from ._loop import clocked
from ._program import build, check_alike, counts
from ._tape import Tape, UntraceableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from ._batch import Batch
    from ._plan import Plan

_FEW, _MORE = 2, 3


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
    many = max(batch.rows, _MORE)  # code may ask how many rows there are
    longer = _recorded(model, batch.take([-i % batch.rows for i in range(1, many + 1)]), select)[0]
    few = batch.take([i % batch.rows for i in range(_FEW)])
    tape, out = _recorded(model, few, select)
    if not any(step.draws for step in tape.steps):
        raise NothingDrawnError
    if batch.rows == 1:
        check_alike(tape, _recorded(model, batch.take([0]), select)[0])
    program = build(tape, longer, (_FEW, many), len(few.tensors()))
    if not program.draws:
        raise NothingDrawnError
    del tape, longer
    plan = _plan.split(program)
    expands, tried = _expands(plan, few, out)
    _plan.fuse(program)
    made = _plan.split(program)
    made.expands, made.rows = expands, _FEW + many + (batch.rows == 1) + tried
    return made


class NothingDrawnError(Exception):
    """No draw reaches the output of a forward."""


def _recorded(
    model: nn.Module, batch: Batch, select: Callable[[Any], Tensor]
) -> tuple[Tape, Tensor]:
    with Tape(batch.tensors()) as tape:
        out = select(batch.call(model))
    tape.outputs = [tape.number(out)]
    return tape, out


def _expands(plan: Plan, few: Batch, out: Tensor) -> tuple[bool, int]:
    """Return whether samples that run as one batch do not meet, and how many rows ran to know.

    Raises:
        UntraceableError: the program does not give what the model gives.
    """
    at, rows = plan.program.batch_dim(plan.program.outputs[0]), 0
    counted = any(counts(plan.program.steps[index]) for index in plan.each)
    if at is not None and at[1] == 1 and not counted and not plan.weights():
        wanted, rows = out.narrow(at[0], 0, 1), 3
        border = plan.prefix(few.take([0]).tensors(), 1)
        try:
            [twice] = plan.suffix(border, 1, AllPlay(range(2), out.device))
            [other] = plan.suffix(border, 1, AllPlay(range(1, 2), out.device))
            first, second = (twice.narrow(at[0], sample, 1) for sample in range(2))
            apart = same(first, wanted) and same(second, other)  # whatever the other one holds
        except (RuntimeError, UntraceableError, ValueError):
            apart = False
        if apart:
            return True, rows
    border, played = plan.prefix(few.tensors(), _FEW), AllPlay(range(1), out.device)
    [alone] = plan.suffix(border, _FEW, played)
    if not same(alone, out):
        raise UntraceableError("its program gives other outputs")
    return False, rows + _FEW


def same(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are equal but for rounding."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if torch.equal(one, other):
        return True
    a, b = (each.to(torch.promote_types(one.dtype, torch.float32)) for each in (one, other))
    if not a.is_floating_point() or not b.numel():
        return False
    eps, scale = 1e3 * torch.finfo(one.dtype).eps, b.abs().max().item()
    if math.isfinite(scale):
        return bool((a - b).abs_().max() <= eps * max(scale, 1e-30))
    scale = b[b.isfinite()].abs().max().item() if b.isfinite().any() else 1.0
    return torch.allclose(a, b, rtol=0.0, atol=eps * max(scale, 1e-30), equal_nan=True)
