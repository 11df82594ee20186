"""Shared masks without the units that sit out: rows and columns of weights are left out instead.

Where sample t has one mask for all rows, a hidden unit that sits out does so in the whole batch.
The linear layer before the dropout need not compute it, and the one behind need not read it. The
masks are those of the plain form.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from .. import backends
from ..masks import effective_rate
from ._tape import DROP, Ref, Size, Step, aten

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._draws import Addresses
    from ._program import Program

_LEAST_RATE = 0.2
_INPUT = {aten.addmm.default: 1, aten.mm.default: 0}
"""The products of linear layers, and which argument is the input."""

_ZERO_AT_ZERO = frozenset(
    {
        *("relu", "gelu", "silu", "elu", "celu", "leaky_relu", "tanh", "mish", "hardswish"),
        *("abs", "neg"),
    }
)
"""What may stand behind a dropout: a unit that sits out is a zero there too."""
_ELEMENTWISE = _ZERO_AT_ZERO | {
    *("sigmoid", "softplus", "hardtanh", "hardsigmoid", "clamp", "clamp_min")
}
"""What may stand before it."""


class Packed:
    """Which values of a program hold the columns that play, and no others.

    Args:
        program: of the forward.
        later: indices of the steps that run for each sample.

    Attributes:
        by: for each such value, the index of the step that draws.
    """

    def __init__(self, program: Program, later: list[int]) -> None:
        self.program, self.by = program, dict[int, int]()
        self._users: dict[int, list[int]] = {number: [-1] for number in program.outputs}
        self._makers: dict[int, int] = {}
        for index in later:
            step = program.steps[index]
            for number in step.reads:
                self._users.setdefault(number, []).append(index)
            for number in step.outs:
                self._makers[number] = index
        for index in later:
            if self._is_plain(program.steps[index]):
                self._pack(index)

    def _is_plain(self, step: Step) -> bool:
        """Return whether a step is dropout of the hidden units of rows, at a rate that pays."""
        if step.func is not DROP or step.args[5] or step.args[7] is not None:
            return False
        shape = self.program.shapes[step.outs[0]]
        rows = len(shape) == 2 and isinstance(shape[0], Size) and shape[0].slope == 1
        p, law = step.args[8:]
        return rows and isinstance(shape[1], int) and law == "dropout" and p >= _LEAST_RATE

    def _pack(self, index: int) -> None:
        step = self.program.steps[index]
        behind = self._behind(step.outs[0])
        if behind is not None:
            self.by.update(dict.fromkeys([*behind, *self._before(step.args[0].value)], index))

    def _behind(self, value: int) -> list[int] | None:
        """Return the values behind a dropout up to the next products; None if others read them."""
        found = [value]
        for number in found:
            for user in self._users.get(number, []):
                step = self.program.steps[user]
                if user >= 0 and _is_product_of(step, number):
                    continue
                if user < 0 or not _is_one_of(_ZERO_AT_ZERO, step):
                    return None
                found += step.outs
        return found

    def _before(self, value: int) -> Iterator[int]:
        """Yield the values before a dropout down to a product, where nothing else reads them."""
        chain = []
        while len(self._users[value]) == 1 and value in self._makers:
            step = self.program.steps[self._makers[value]]
            chain.append(value)
            if step.func in _INPUT:
                yield from chain
                return
            if not _is_one_of(_ELEMENTWISE, step):
                return
            value = step.reads[0]

    @property
    def products(self) -> list[int]:
        """The indices of the steps that multiply fewer rows or columns of a weight."""
        return [
            index
            for index, step in enumerate(self.program.steps)
            if step.func in _INPUT and {*step.reads, *step.outs} & self.by.keys()
        ]

    def units(self, kept: dict[int, Tensor], where: Addresses, value: int) -> Tensor | None:
        """Return which columns a value holds; None for all.

        Args:
            kept: those of each draw so far.
            where: what draws.
            value: its number.
        """
        index = self.by.get(value)
        if index is None:
            return None
        if index not in kept:
            step = self.program.steps[index]
            width: Any = self.program.shapes[step.outs[0]][1]
            keep = where.first_row(self.program.draws[index], width, step.args[8])
            kept[index] = keep.nonzero().squeeze(1)
        return kept[index]

    def run(
        self, step: Step, args: tuple[Any, ...], kept: dict[int, Tensor], where: Addresses
    ) -> Tensor | None:
        """Do a product or a dropout on the columns that play; None for another step.

        Args:
            step: a step of the program.
            args: its arguments.
            kept: the columns of each draw so far.
            where: what draws.
        """
        out = step.outs[0] if step.outs else -1
        if step.func in _INPUT:
            at = _INPUT[step.func]
            before = self.units(kept, where, step.args[at].value)
            behind = self.units(kept, where, out)
            if before is None and behind is None:
                return None
            weight = backends.take(args[at + 1].t(), behind, before).t()
            bias = [
                one if behind is None else backends.take(one, behind, None) for one in args[:at]
            ]
            made: Tensor = step.func(*bias, args[at], weight)
            return made
        if step.func is not DROP or out not in self.by:
            return None
        x, p = args[0], args[8]
        if step.args[0].value not in self.by:
            x = backends.take(x, None, self.units(kept, where, out))
        scaled: Tensor = x * (1.0 / (1.0 - effective_rate(p)))
        return scaled


def _is_product_of(step: Step, number: int) -> bool:
    """Return whether a step multiplies a value by a weight, and does nothing else with it."""
    at = _INPUT.get(step.func)
    if at is None or step.kwargs:
        return False
    return step.args[at] == Ref(number) and step.reads.count(number) == 1


def _is_one_of(names: frozenset[str], step: Step) -> bool:
    return step.func._opname in names and len(step.reads) == 1 and not step.writes
