"""What becomes of a random tensor in an op that only other numbers, or nothing, goes into."""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

aten = torch.ops.aten

Law = Literal["uniform", "normal", "bits", "index"]


@dataclass(frozen=True)
class Draw:
    """What is known of a random tensor.

    Args:
        number: of the draw that it comes from, counted within one probe.
        law: ``uniform``, ``normal`` (or any other noise), ``bits`` (of two values), ``index``.
        size: independent random numbers in it.
        true: chance that a bit is one, before scale and shift; None if it is not known.
        threshold: what a uniform number was compared with.
        scale: what a uniform number or a bit was multiplied with; None if other things were done.
        shift: what was then added to it.
    """

    number: int
    law: Law
    size: int
    true: float | None = None
    threshold: float | None = None
    scale: float | None = 1.0
    shift: float = 0.0

    @property
    def drops(self) -> bool:
        """Whether one of the two values of a bit is zero, as far as is known."""
        return self.scale is None or 0.0 in (self.shift, self.scale + self.shift)

    @property
    def false(self) -> float | None:
        """The chance that a bit is false or zero; None if it is not known."""
        if self.true is None or self.scale is None:
            return None
        if self.shift == 0.0:
            return 1.0 - self.true
        return self.true if self.scale + self.shift == 0.0 else 0.0


def overloads(*names: str) -> frozenset[Any]:
    """Return every overload of some ops of aten; a ``*`` at the end adds the one in place."""
    plain = [name.removesuffix("*") for name in names]
    plain += [f"{name[:-1]}_" for name in names if name.endswith("*")]
    packets = [getattr(aten, name) for name in plain]
    return frozenset(getattr(packet, name) for packet in packets for name in packet.overloads())


_COMPARE: dict[Any, Callable[[float, float], bool]] = {
    op: getattr(operator, name)
    for name in ("lt", "le", "gt", "ge", "eq", "ne")
    for op in overloads(f"{name}*")
}
_LESS = overloads("lt*", "le*")
_MORE = overloads("gt*", "ge*")
_NOT = overloads("logical_not*", "bitwise_not*")
_ROUND = overloads("floor*", "ceil*", "round*")
_SORT = overloads("sort", "topk", "argsort")
_FOUND = overloads("nonzero")
_ADD = overloads("add*")
_SUB = overloads("sub*")
_RSUB = overloads("rsub")
_MUL = overloads("mul*")
_DIV = overloads("div*")
_NEG = overloads("neg*")
_AFFINE = _ADD | _SUB | _RSUB | _MUL | _DIV | _NEG
_REDUCE = overloads(
    *("sum", "mean", "any", "all", "prod", "max", "min", "amax", "amin", "median", "count_nonzero"),
    *("std", "var", "norm", "linalg_vector_norm", "quantile", "kthvalue", "cumsum"),
)
# These move or copy numbers, but change none; or only a part of them.
_MOVE = overloads(
    *("view", "_unsafe_view", "reshape", "expand", "unsqueeze", "squeeze", "permute", "transpose"),
    *("t", "select", "slice", "index", "gather", "index_select", "clone", "detach", "_to_copy"),
    *("alias", "repeat", "flip", "split", "split_with_sizes", "unbind", "roll", "copy_", "fill_"),
    *("zero_", "diagonal", "expand_as", "view_as", "stack", "cat", "masked_fill*", "lift_fresh"),
    *("as_strided", "unfold", "tile", "contiguous", "bernoulli*", "repeat_interleave"),
)
LOGIC = frozenset(_COMPARE) | overloads(
    *("bitwise_and*", "bitwise_or*", "bitwise_xor*"),
    *("logical_and*", "logical_or*", "logical_xor*"),
)
BERNOULLI = overloads("bernoulli*")


def after(func: Any, args: tuple[Any, ...], mine: Tensor, draw: Draw, out: Tensor) -> Draw | None:
    """Return what is known of a result of an op on a random tensor; None if it is of no interest.

    Args:
        func: the op.
        args: its arguments.
        mine: the random tensor among them.
        draw: what is known of it.
        out: a result.
    """
    if func in _REDUCE and out.numel() < mine.numel():
        return None
    if func in _SORT and draw.law != "index":
        return draw if out.is_floating_point() else Draw(draw.number, "index", draw.size)
    if func in _COMPARE:
        return _compared(func, args, mine, draw)
    if draw.law in ("bits", "uniform"):
        return _changed(func, args, mine, draw)
    return draw


def _compared(func: Any, args: tuple[Any, ...], mine: Tensor, draw: Draw) -> Draw | None:
    """Return what a comparison makes of a random tensor: bits."""
    number = _number(args, mine)
    bits = Draw(draw.number, "bits", draw.size)
    if number is None or draw.scale is None or func not in (_LESS | _MORE):
        known = draw.law == "bits" and number is not None and draw.scale is not None
        return _bits_compared(func, args, mine, draw, number or 0.0) if known else bits
    if draw.law == "bits":
        return _bits_compared(func, args, mine, draw, number)
    if draw.law != "uniform" or draw.scale == 0.0:
        return bits
    below = min(max((number - draw.shift) / draw.scale, 0.0), 1.0)
    less = (func in _LESS) == (args[0] is mine)  # else the number stands on the left
    true = below if less == (draw.scale > 0.0) else 1.0 - below
    return replace(bits, true=true, threshold=below)


def _bits_compared(
    func: Any, args: tuple[Any, ...], mine: Tensor, draw: Draw, number: float
) -> Draw | None:
    """Return what a comparison with a number makes of bits; None if all become the same."""
    compare, scale = _COMPARE[func], draw.scale or 0.0
    zero, one = (
        compare(value, number) if args[0] is mine else compare(number, value)
        for value in (draw.shift, scale + draw.shift)
    )
    if zero == one:
        return None
    true = draw.true if one or draw.true is None else 1.0 - draw.true
    return Draw(draw.number, "bits", draw.size, true, draw.threshold)


def _changed(func: Any, args: tuple[Any, ...], mine: Tensor, draw: Draw) -> Draw:
    """Return what arithmetic makes of uniform numbers or bits."""
    if func in _AFFINE:
        return _affine(func, args, mine, draw)
    if draw.law == "bits":
        if func in _NOT:
            return Draw(draw.number, "bits", draw.size, draw.false, draw.threshold)
        if func in _FOUND:
            return replace(draw, law="index")
        known = func in _MOVE or func in LOGIC
        return draw if known else replace(draw, true=None, scale=None)
    if func in _ROUND or func in BERNOULLI:
        floor = "floor" in func.name() and draw.scale == 1.0
        true = min(max(draw.shift, 0.0), 1.0) if floor else None
        return Draw(draw.number, "bits", draw.size, true, scale=1.0 if floor else None)
    return draw if func in _MOVE else replace(draw, law="normal")


def _affine(func: Any, args: tuple[Any, ...], mine: Tensor, draw: Draw) -> Draw:
    """Return what becomes of scale and shift."""
    scale, shift = draw.scale, draw.shift
    number = 0.0 if func in _NEG else _number(args, mine)
    first = args[0] is mine
    if scale is None or number is None or (func in _DIV and not (first and number)):
        return replace(draw, scale=None, law="bits" if draw.law == "bits" else "normal")
    if func in _MUL:
        return replace(draw, scale=scale * number, shift=shift * number)
    if func in _DIV:
        return replace(draw, scale=scale / number, shift=shift / number)
    if func in _ADD:
        return replace(draw, shift=shift + number)
    if func in _SUB and first:
        return replace(draw, shift=shift - number)
    return replace(draw, scale=-scale, shift=number - shift)


def _number(args: tuple[Any, ...], mine: Tensor) -> float | None:
    """Return the number that a random tensor meets in an op of two operands."""
    for value in args[:2]:
        if isinstance(value, (int, float)):
            return float(value)
        if isinstance(value, Tensor) and value is not mine and value.numel() == 1:
            return None if value.is_meta else float(value.detach())
    return None
