"""The program of a forward: its operations as functions of the number of rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ._tape import Ref, Size, Step, UntraceableError, each, tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ._tape import Tape

    Do = Callable[[Step, int, Any, Any], list[Tensor] | None]


@dataclass
class Program:
    """What a forward computes, for any number of rows.

    Args:
        steps: the operations, in order; a :class:`Size` stands for an int that hangs on the rows.
        inputs: the number of the value of each input.
        constants: parameters, buffers and the like, by the numbers of their values.
        shapes: of each value.
        storages: what values that share memory have in common.
        outputs: the numbers of the values that it returns.
        widths: bytes of an element of each value.
    """

    steps: list[Step]
    inputs: list[int]
    constants: dict[int, Tensor]
    shapes: list[tuple[int | Size, ...]]
    storages: list[int]
    outputs: list[int]
    widths: list[int]
    draws: dict[int, int] = field(default_factory=dict)  # index of a step: which draw it is

    def batch_dim(self, value: int) -> tuple[int, int] | None:
        """Return the dim of the rows of a value, and how many of its indices a row has.

        Raises:
            UntraceableError: there is more than one.
        """
        found = [
            (dim, size.slope)
            for dim, size in enumerate(self.shapes[value])
            if isinstance(size, Size)
        ]
        if len(found) > 1:
            raise UntraceableError("a tensor has two dims of rows: the rows of a batch meet")
        return found[0] if found else None

    def run(
        self,
        steps: Sequence[int],
        values: dict[int, Tensor],
        rows: int,
        free: dict[int, list[int]],
        do: Do | None = None,
    ) -> None:
        """Run some of the steps.

        Args:
            steps: their indices.
            values: what they start from; what they make is put there.
            rows: how many there are.
            free: which values go after each step, see :meth:`last_uses`.
            do: does some steps in a way of its own; takes one, its index and its arguments, and
                returns None for the others.
        """
        for index in steps:
            step = self.steps[index]
            fill = _Fill(values, rows, self.constants)
            args, kwargs = each(fill, step.args), each(fill, step.kwargs)
            made = do(step, index, args, kwargs) if do else None
            if made is None:
                out = step.func(*args, **kwargs)
                if step.told is not None and out != step.told:
                    raise OtherBranchError
                made = tensors(out)
                del out
            del args, kwargs
            for number, tensor in zip(step.outs, made, strict=True):
                values[number] = tensor
            del made
            for number in free.get(index, ()):
                values.pop(number, None)

    def number_draws(self) -> None:
        """Number the steps that draw."""
        draws = [index for index, step in enumerate(self.steps) if step.draws]
        self.draws = {index: number for number, index in enumerate(draws)}

    def last_uses(self, steps: Sequence[int], kept: set[int]) -> dict[int, list[int]]:
        """Return which values are of no use after each step.

        Args:
            steps: indices of those that run.
            kept: the numbers of the values that are wanted in the end.
        """
        last: dict[int, int] = {}
        for index in steps:
            step = self.steps[index]
            for number in (*step.reads, *step.outs):
                last[number] = index
        free: dict[int, list[int]] = {}
        for number, index in last.items():
            if number not in kept and number not in self.constants:
                free.setdefault(index, []).append(number)
        return free


class _Fill:
    """Puts values and sizes into the arguments of a step."""

    def __init__(self, values: dict[int, Tensor], rows: int, constants: dict[int, Tensor]) -> None:
        self.values, self.rows, self.constants = values, rows, constants

    def __call__(self, one: Any) -> Any:
        if type(one) is Ref:
            held = self.values.get(one.value)
            return self.constants[one.value] if held is None else held
        return one.at(self.rows) if type(one) is Size else one


class OtherBranchError(Exception):
    """A batch on whose values the forward may take another branch than the one on tape."""


def build(few: Tape, more: Tape, rows: tuple[int, int], inputs: int) -> Program:
    """Return the program that two tapes of a forward have in common.

    Args:
        few: of a forward with ``rows[0]`` rows.
        more: of one with ``rows[1]``.
        rows: how many rows.
        inputs: how many tensors go in.

    Raises:
        UntraceableError: they are not the same forward.
    """
    check_alike(few, more)
    merge = _Merge(rows)
    steps = []
    for one, other in zip(few.steps, more.steps, strict=True):
        args, kwargs = merge(one.args, other.args), merge(one.kwargs, other.kwargs)
        told = merge(one.told, other.told)
        steps.append(Step(one.func, args, kwargs, one.outs, one.writes, one.draws, told))
    shapes = [merge(a, b) for a, b in zip(few.shapes, more.shapes, strict=True)]
    if few.outputs != more.outputs:
        raise UntraceableError("its outputs hang on the number of rows")
    program = Program(
        steps,
        list(range(inputs)),
        {},
        shapes,
        few.storages,
        few.outputs,
        few.widths,
    )
    program.constants = _constants(program, few, more)
    alive = _alive(program)
    program.steps = [step for step, lives in zip(steps, alive, strict=True) if lives]
    program.number_draws()
    return program


def check_alike(one: Tape, other: Tape) -> None:
    """Refuse tapes of which one has other operations than the other.

    Raises:
        UntraceableError: they differ.
    """
    if len(one.steps) != len(other.steps) or len(one.shapes) != len(other.shapes):
        raise UntraceableError("its operations hang on the number of rows")
    for a, b in zip(one.steps, other.steps, strict=True):
        if a.func is not b.func or a.outs != b.outs or a.writes != b.writes:
            raise UntraceableError("its operations hang on the number of rows or on values")


def counts(step: Step) -> bool:
    """Return whether a step computes with the number of rows: of several samples there are more."""
    if step.func._opname == "arange":
        return False
    for at, argument in enumerate(step.func._schema.arguments):
        value = step.args[at] if at < len(step.args) else step.kwargs.get(argument.name)
        if type(value) is Size and "int" not in str(argument.type):
            return True
    return False


class _Merge:
    """Merges what two tapes hold: ints that differ become sizes; nothing else may differ."""

    def __init__(self, rows: tuple[int, int]) -> None:
        self.few, self.more = rows

    def __call__(self, one: Any, other: Any) -> Any:
        if type(one) is not type(other):
            raise UntraceableError("its operations hang on the number of rows")
        if isinstance(one, Ref):
            if one != other:
                raise UntraceableError("its operations hang on the number of rows")
            return one
        if isinstance(one, (list, tuple)):
            if len(one) != len(other):
                raise UntraceableError("its operations hang on the number of rows")
            return type(one)([self(a, b) for a, b in zip(one, other, strict=True)])
        if isinstance(one, dict):
            return {key: self(one[key], other[key]) for key in one}
        if type(one) is int and one != other:
            slope, rest = divmod(other - one, self.more - self.few)
            if rest or slope < 1:
                raise UntraceableError("a size hangs on the number of rows in a way of its own")
            return Size(slope, one - slope * self.few)
        if isinstance(one, torch.Generator):
            return one
        if one != other and not (one != one and other != other):
            raise UntraceableError("a number hangs on the number of rows or on values")
        return one


def _constants(program: Program, few: Tape, more: Tape) -> dict[int, Tensor]:
    """Return the values that no step makes: parameters, buffers, tensors of attributes."""
    made = {*program.inputs}
    found: dict[int, Tensor] = {}
    for step in program.steps:
        for number in set(step.reads) - made - found.keys():
            tensor, other = few.constants[number], more.constants[number]
            if tensor is not other and not _equal(tensor, other):
                raise UntraceableError("it makes a tensor of values of its inputs, out of sight")
            found[number] = tensor
        made |= {*step.outs}
    return found


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


def _alive(program: Program) -> list[bool]:
    """Return which steps the outputs hang on.

    Raises:
        UntraceableError: one of them writes into a parameter, a buffer or an input.
    """
    held = {program.storages[number] for number in (*program.constants, *program.inputs)}
    wanted = {program.storages[number] for number in program.outputs}
    alive = []
    for step in reversed(program.steps):
        written = {program.storages[number] for number in step.writes}
        if written & held:
            raise UntraceableError("it writes into a buffer or an input")
        lives = step.told is not None or bool(
            written & wanted or {program.storages[one] for one in step.outs} & wanted
        )
        if lives:
            wanted |= {program.storages[number] for number in step.reads}
        alive.append(lives)
    return alive[::-1]
