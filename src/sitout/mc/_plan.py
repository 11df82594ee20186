"""The plan: what of a forward is the same for all samples, and what each sample computes."""

from __future__ import annotations

from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from . import _work
from ._draws import draw
from ._tape import DROP, Ref, Size, Step, UntraceableError, aten, chance
from ._thin import Packed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._draws import Addresses, Draws
    from ._program import Do, Program

_FACTORIES = ("empty", "new_empty", "zeros", "new_zeros", "ones", "new_ones", "full", "new_full")


class Plan:
    """A program in two parts.

    Args:
        program: of the forward.
        later: indices of the steps of the second part: what hangs on a draw.

    Attributes:
        once: indices of the steps that no draw reaches: they run once for a batch.
        each: those of the other steps, which run for each sample.
        border: the values that the second part takes from the first.
        expands: whether several samples may run as one batch.
        rows: how many ran until it was made.
    """

    def __init__(self, program: Program, later: set[int]) -> None:
        self.program, self.expands, self.rows = program, True, 0
        steps = program.steps
        self.once = [index for index in range(len(steps)) if index not in later]
        self.each = sorted(later)
        held = {number for index in self.once for number in steps[index].outs}
        held |= {*program.inputs}
        wanted = {*program.outputs} | {n for index in later for n in steps[index].reads}
        self.border = sorted(held & wanted)
        self._written = {program.storages[n] for index in later for n in steps[index].writes}
        self._free_once = program.last_uses(self.once, {*self.border})
        self._free_each = program.last_uses(self.each, {*program.outputs})
        self.packed = Packed(program, self.each)
        self._bytes: dict[int, int] = {}

    def prefix(self, inputs: Sequence[Tensor], rows: int) -> dict[int, Tensor]:
        """Return the border of a batch."""
        # As on tape: what an op does to strides of its own was not asked there.
        dense = [one.contiguous() for one in inputs]
        values = dict(zip(self.program.inputs, dense, strict=True))
        self.program.run(self.once, values, rows, self._free_once)
        return {number: values[number] for number in self.border}

    def suffix(self, border: dict[int, Tensor], rows: int, where: Draws) -> list[Tensor]:
        """Return the outputs of some samples, one after the other along the dim of the rows.

        Args:
            border: of the batch.
            rows: of the batch.
            where: what draws; it says how many samples there are.
        """
        count = len(where.samples)
        values = {number: self._repeated(number, one, count) for number, one in border.items()}
        return self._run_each(values, rows * count, partial(self._drawn, where))

    def weights(self) -> list[int]:
        """Return what is drawn without a dim of rows: a mask of weights, one for all rows."""
        steps = self.program.steps
        drawn = [steps[index].outs[0] for index in self.program.draws]
        return [number for number in drawn if self.program.batch_dim(number) is None]

    def one(self, border: dict[int, Tensor], rows: int, where: Addresses) -> list[Tensor]:
        """Return the outputs of one sample whose masks all rows share.

        Args:
            border: as of :meth:`suffix`.
            rows: as of :meth:`suffix`.
            where: as of :meth:`suffix`, of one sample, with rows of 0.
        """
        kept: dict[int, Tensor] = {}
        values = {number: self._repeated(number, one, 1) for number, one in border.items()}

        def packed(step: Step, index: int, args: Any, kwargs: Any) -> list[Tensor] | None:
            made = self.packed.run(step, args, kept, where)
            return self._drawn(where, step, index, args, kwargs) if made is None else [made]

        return self._run_each(values, rows, packed)

    def _run_each(self, values: dict[int, Tensor], rows: int, do: Do) -> list[Tensor]:
        self.program.run(self.each, values, rows, self._free_each, do)
        return [values[number] for number in self.program.outputs]

    def _drawn(
        self, where: Draws, step: Step, index: int, args: Any, kwargs: Any
    ) -> list[Tensor] | None:
        """Do a step that draws; None for another one."""
        if not step.draws:
            return None
        at = self.program.batch_dim(step.outs[0])
        return draw(where, self.program.draws[index], at, step.func, args, kwargs)

    def _repeated(self, number: int, one: Tensor, count: int) -> Tensor:
        """Return a value of the border for several samples, in memory that may be written to."""
        at = self.program.batch_dim(number)
        if at is not None and count > 1:
            return repeated(one, at[0], count)
        return one.clone() if self.program.storages[number] in self._written else one

    def bytes_of(self, rows: int) -> int:
        """Return how much memory the second part takes at its peak, for so many rows."""
        if rows not in self._bytes:
            self._bytes[rows] = peak(self.program, self.each, self.border, rows)
        return self._bytes[rows]

    def work_left_out(self, rows: int) -> float:
        """Return how many operations those products are of which units may be left out."""
        return self._packed_work * rows

    @cached_property
    def _packed_work(self) -> float:
        return _work.of_a_row(self.program, self.packed.products)

    @cached_property
    def share(self) -> float:
        """The fraction of a pass that runs once, see :func:`sitout.mc._work.share`."""
        return _work.share(self)


def repeated(x: Tensor, dim: int, count: int) -> Tensor:
    """Return ``x`` several times along a dim, with strides in the order of its own."""
    order = sorted(range(x.dim()), key=x.stride, reverse=True)
    wide = x.permute(order)
    made = wide.repeat([count if one == dim else 1 for one in order])
    back = [order.index(one) for one in range(x.dim())]
    return made.permute(back)


def split(program: Program) -> Plan:
    """Return the plan of a program.

    A step belongs to the second part if it draws, reads or writes memory that another one of that
    part has written, or writes memory that one before it reads.
    """
    steps, storages = program.steps, program.storages
    later = set(program.draws)
    while True:
        tainted = {storages[n] for i in later for n in (*steps[i].outs, *steps[i].writes)} - {
            storages[n] for n in program.constants
        }
        more = {
            i
            for i, step in enumerate(steps)
            if i not in later and _joins(program, i, step, later, tainted)
        }
        if not more:
            break
        later |= more
    if any(steps[index].told is not None for index in later):
        raise UntraceableError("the forward looks at values that hang on what drops")
    return Plan(program, later)


def _joins(program: Program, index: int, step: Step, later: set[int], tainted: set[int]) -> bool:
    storages = program.storages
    reads = {storages[n] for n in step.reads}
    writes = {storages[n] for n in step.writes}
    if (reads | writes) & tainted:
        return True
    fresh = {storages[n] for n in step.outs} - reads
    name = step.func._opname.removesuffix("_like")
    if fresh & tainted and name in _FACTORIES:
        return True
    if not writes:
        return False
    read_before = {storages[n] for i in later if i < index for n in program.steps[i].reads}
    return bool(writes & read_before)


def peak(program: Program, indices: Sequence[int], border: Sequence[int], rows: int) -> int:
    """Return the most bytes that the values of some steps take at one time."""
    sizes: dict[int, int] = {}
    for number, shape in enumerate(program.shapes):
        many = 1
        for size in shape:
            many *= size.at(rows) if isinstance(size, Size) else size
        held = many * program.widths[number]
        sizes[program.storages[number]] = max(sizes.get(program.storages[number], 0), held)
    last: dict[int, int] = {}
    for index in indices:
        for number in (*program.steps[index].reads, *program.steps[index].outs):
            last[program.storages[number]] = index
    outputs = {program.storages[number] for number in program.outputs}
    constant = {program.storages[number] for number in program.constants}
    alive = {program.storages[number] for number in border} - constant
    now = most = sum(sizes[one] for one in alive)
    for index in indices:
        for number in program.steps[index].outs:
            storage = program.storages[number]
            if storage not in alive and storage not in constant:
                alive.add(storage)
                now += sizes[storage]
        most = max(most, now)
        for storage in [one for one in alive if last.get(one) == index and one not in outputs]:
            alive.remove(storage)
            now -= sizes[storage]
    return most


def fuse(program: Program) -> None:
    """Put one op in the place of the four that torch's dropout takes on the CPU.

    They make a tensor, fill it with bits, scale it, and multiply by it.
    """
    steps, fused = program.steps, []
    uses: dict[int, int] = {}
    for number in program.outputs:
        uses[program.storages[number]] = 1
    for step in steps:
        for number in step.reads:
            uses[program.storages[number]] = uses.get(program.storages[number], 0) + 1
    index = 0
    while index < len(steps):
        whole = _dropout(program, steps[index : index + 4], uses)
        fused.append(whole or steps[index])
        index += 4 if whole else 1
    program.steps = fused
    program.number_draws()


def _dropout(program: Program, four: Sequence[Step], uses: dict[int, int]) -> Step | None:
    """Return the step that four of a dropout make up; None of others."""
    if len(four) < 4:
        return None
    made, bits, scaled, product = four
    if bits.func is not aten.bernoulli_.float or scaled.func is not aten.div_.Scalar:
        return None
    if product.func is not aten.mul.Tensor or len(made.outs) != 1:
        return None
    noise = Ref(made.outs[0])
    if (
        bits.args[0] != noise
        or scaled.args != (noise, chance(bits.args))
        or noise not in product.args
    ):
        return None
    x = product.args[1] if product.args[0] == noise else product.args[0]
    if uses[program.storages[noise.value]] != 3 or not isinstance(x, Ref) or x == noise:
        return None
    shapes = program.shapes[x.value], program.shapes[noise.value]
    if len(shapes[0]) != len(shapes[1]) or program.shapes[product.outs[0]] != shapes[0]:
        return None
    shared = [d for d, (a, b) in enumerate(zip(*shapes, strict=True)) if a != b]
    if any(shapes[1][dim] != 1 for dim in shared):
        return None
    p = 1.0 - chance(bits.args)
    args = (x, None, None, None, None, shared, 0, None, p, "dropout")
    return Step(DROP, args, {}, product.outs, [], True)
