"""How much work the steps of a program are, to tell what a plan saves."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from ._tape import Ref, Size, aten, each

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._plan import Plan
    from ._program import Program
    from ._tape import Step

_FLOPS_A_BYTE = 10.0  # about as long: of today's CPUs and GPUs, for what they sustain
_ROWS = 2
_ATTENTION = aten._scaled_dot_product_flash_attention_for_cpu.default  # torch counts it for CUDA


def share(plan: Plan) -> float:
    """Return the fraction of a pass, f, that a plan runs once: by operations and bytes moved.

    Args:
        plan: of any model.
    """
    once, later = (_work(plan.program, part) for part in (plan.once, plan.each))
    return once / max(once + later, 1.0)


def of_a_row(program: Program, indices: Sequence[int]) -> float:
    """Return how many operations some steps are, for one row."""
    return sum(_flops(program, program.steps[index]) for index in indices) / _ROWS


def gain(fraction: float, samples: int) -> float:
    """Return how many times as fast it is to run a fraction once: 1 / (1 - f + f / T).

    Args:
        fraction: f, of a pass.
        samples: T.
    """
    return 1.0 / (1.0 - fraction + fraction / samples)


def _work(program: Program, indices: Sequence[int]) -> float:
    return sum(_work_of(program, program.steps[index]) for index in indices)


def _work_of(program: Program, step: Step) -> float:
    read = {program.storages[number] for number in step.reads}
    made = [number for number in step.outs if program.storages[number] not in read]
    if not made and not step.writes:
        return 0.0  # a view
    moved = sum(_bytes(program, number) for number in {*step.reads, *step.outs})
    return _flops(program, step) + _FLOPS_A_BYTE * moved


def _bytes(program: Program, number: int) -> int:
    return math.prod(_shape(program, number)) * program.widths[number]


def _shape(program: Program, number: int) -> list[int]:
    return [one.at(_ROWS) if isinstance(one, Size) else one for one in program.shapes[number]]


def _flops(program: Program, step: Step) -> float:
    from torch.utils.flop_counter import flop_registry

    packet = step.func.overloadpacket
    if step.func is _ATTENTION:
        packet = aten._scaled_dot_product_flash_attention
    if packet not in flop_registry:
        return 0.0

    def fill(one: Any) -> Any:
        if isinstance(one, Ref):
            return torch.empty(_shape(program, one.value), device="meta")
        return one.at(_ROWS) if isinstance(one, Size) else one

    outs = [fill(Ref(number)) for number in step.outs]
    args, kwargs = each(fill, step.args), each(fill, step.kwargs)
    try:
        return float(flop_registry[packet](*args, **kwargs, out_val=outs[0]))
    except Exception:  # a formula of torch that does not know these arguments: nothing hangs on it
        return 0.0
