"""Random tensors on their way to a mask: what each is, after every op that it goes through."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

if TYPE_CHECKING:
    from collections.abc import Iterator

aten = torch.ops.aten

Law = Literal["uniform", "normal", "bits", "index"]


@dataclass(frozen=True)
class Draw:
    """What is known of a random tensor.

    Args:
        number: of the draw that it comes from, counted within one forward.
        law: ``uniform``, ``normal``, ``bits`` (kept or dropped, true or false), ``index``.
        size: independent random numbers in it.
        true: chance that a bit is true or not zero; None if it is not known.
        threshold: what a uniform number was compared with.
        shift: what was added to a uniform number.
    """

    number: int
    law: Law
    size: int
    true: float | None = None
    threshold: float | None = None
    shift: float = 0.0

    @property
    def false(self) -> float | None:
        """The chance that a bit is false or zero."""
        return None if self.true is None else 1.0 - self.true


@dataclass(frozen=True)
class Application:
    """Random bits, or a random choice of indices, meet a tensor that is not random.

    Args:
        draw: where the bits come from.
        x: what is dropped from; None where a random bit decides what code runs.
        mask: as it is applied; None for a decision or a choice of indices.
        p: the chance to drop, as far as the ops tell; None if they do not.
        dropped: the share that drops here, a fraction; None for a decision.
        out: the result; None for a decision.
        func: the op.
    """

    draw: Draw
    x: Tensor | None
    mask: Tensor | None
    p: float | None
    dropped: float | None
    out: Any
    func: Any


def _overloads(*names: str) -> frozenset[Any]:
    packets = [getattr(aten, name) for name in names]
    return frozenset(getattr(packet, name) for packet in packets for name in packet.overloads())


_UNIFORM = _overloads("rand", "rand_like", "uniform_", "uniform")
_NORMAL = _overloads("randn", "randn_like", "normal_", "normal")
_INDEX = _overloads("randperm")
_BITS = _overloads("bernoulli", "bernoulli_")
_DRAWS = _UNIFORM | _NORMAL | _INDEX | _BITS
_LESS = _overloads("lt", "le", "lt_", "le_")
_MORE = _overloads("gt", "ge", "gt_", "ge_")
_NOT = _overloads("logical_not", "bitwise_not", "logical_not_", "bitwise_not_", "rsub")
_ADD = _overloads("add", "add_")
_SUB = _overloads("sub", "sub_")
_FLOOR = _overloads("floor", "floor_")
_SORT = _overloads("sort", "topk", "argsort")
_MUL = _overloads("mul", "mul_")
_LOGIC = (
    _LESS
    | _MORE
    | _overloads(
        *("bitwise_and", "bitwise_or", "bitwise_and_", "bitwise_or_", "logical_and", "logical_or")
    )
)
_FILL = _overloads("masked_fill", "masked_fill_")
_WHERE = _overloads("where")
_PICK = _overloads("index", "gather", "index_select")
_READ = _overloads("_local_scalar_dense")


class Draws:
    """Follows random tensors through one forward, by the memory that they lie in."""

    def __init__(self) -> None:
        self._held: dict[int, tuple[StorageWeakRef, Draw]] = {}
        self._count = 0

    def see(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
        """Take note of an op that has run; return the :class:`Application` that it is, if any."""
        if func in _DRAWS:
            self._draw(func, args, kwargs, out)
            return None
        if not self._held:
            return None
        random = [(value, self.of(value)) for value in _tensors(args, kwargs)]
        known = [(value, draw) for value, draw in random if draw is not None]
        if not known:
            return None
        made = self._application(func, args, random, known, out)
        mixed = func not in _LOGIC and any(d is None and v.numel() > 1 for v, d in random)
        if made is None and not mixed:
            draw = _after(func, args, known[0][1])
            for tensor in _tensors((out,), {}):
                self._hold(tensor, draw)
        elif isinstance(out, Tensor) and out.layout == torch.strided:
            self._held.pop(_storage(out), None)  # no longer a mere mask
        return made

    def of(self, value: object) -> Draw | None:
        """Return what is known of a tensor; None if it is not random."""
        if not isinstance(value, Tensor) or value.layout != torch.strided:
            return None
        found = self._held.get(_storage(value))
        if found is None or found[0].expired():  # type: ignore[no-untyped-call]
            return None
        return found[1]

    def _hold(self, tensor: Tensor, draw: Draw) -> None:
        if tensor.layout == torch.strided:
            storage = tensor.untyped_storage()
            self._held[storage._cdata] = (_weak(storage), draw)

    def _draw(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        if not isinstance(out, Tensor):
            return
        self._count += 1
        law: Law = "uniform" if func in _UNIFORM else "normal" if func in _NORMAL else "bits"
        law, true = ("index" if func in _INDEX else law), None
        if law == "bits":
            number = args[1] if len(args) > 1 else kwargs.get("p")
            true = float(number) if isinstance(number, (int, float)) else None
        self._hold(out, Draw(self._count, law, out.numel(), true))

    def _application(
        self,
        func: Any,
        args: tuple[Any, ...],
        random: list[tuple[Tensor, Draw | None]],
        known: list[tuple[Tensor, Draw]],
        out: Any,
    ) -> Application | None:
        mask, draw = known[0]
        others = [value for value, found in random if found is None]
        if func in _READ:
            if draw.law in ("bits", "uniform"):
                return Application(draw, None, None, draw.threshold, None, None, func)
            return None
        if func in _PICK:
            return _pick(func, args, mask, draw, others, out)
        if draw.law != "bits" or not others:
            return None
        x = max(others, key=Tensor.numel)
        if func in _MUL and (x.numel() > 1 or mask.numel() == 1):
            return Application(draw, x, mask, draw.false, _share(mask == 0), out, func)
        true_drops = func in _FILL or (func in _WHERE and args[1] is not x)
        if (func in _FILL and args[1] is mask) or (func in _WHERE and args[0] is mask):
            p = draw.true if true_drops else draw.false
            share = _share(mask != 0) if true_drops else _share(mask == 0)
            return Application(draw, x, mask, p, share, out, func)
        return None


def _pick(
    func: Any, args: tuple[Any, ...], mask: Tensor, draw: Draw, others: list[Tensor], out: Any
) -> Application | None:
    """Return what a random index or boolean mask leaves out; a mere shuffle leaves out nothing."""
    if not others or args[0] is not others[0]:
        return None
    x = others[0]
    if draw.law == "bits" and mask.dtype == torch.bool:
        return Application(draw, x, mask, draw.false, _share(mask == 0), out, func)
    if draw.law != "index" or not isinstance(out, Tensor) or x.numel() == 0:
        return None
    left = 1.0 - out.numel() / x.numel()
    return Application(draw, x, None, left, left, out, func) if left > 0.0 else None


def _after(func: Any, args: tuple[Any, ...], draw: Draw) -> Draw:
    """Return what is known of the result of an op on a random tensor."""
    number = _number(args)
    if draw.law == "uniform":
        if func in _LESS or func in _MORE:
            if number is None:
                return replace(draw, law="bits")
            below = min(max(number - draw.shift, 0.0), 1.0)
            true = below if func in _LESS else 1.0 - below
            return replace(draw, law="bits", true=true, threshold=below)
        if func in _ADD and number is not None:
            return replace(draw, shift=draw.shift + number)
        if func in _SUB and number is not None:
            return replace(draw, shift=draw.shift - number)
        if func in _FLOOR:
            return replace(draw, law="bits", true=min(max(draw.shift, 0.0), 1.0))
        if func in _BITS:
            return replace(draw, law="bits")
    if func in _SORT and draw.law in ("uniform", "normal"):
        return replace(draw, law="index")
    if func in _NOT and draw.true is not None:
        return replace(draw, true=1.0 - draw.true)
    return draw


def _number(args: tuple[Any, ...]) -> float | None:
    """Return the number that a random tensor is compared with, or that is added to it."""
    for value in args:
        if isinstance(value, (int, float)):
            return float(value)
        if isinstance(value, Tensor) and value is not args[0] and value.dim() == 0:
            return None if value.is_meta else float(value)
    return None


_weak: Any = StorageWeakRef


def _share(dropped: Tensor) -> float:
    return int(dropped.sum()) / max(dropped.numel(), 1)


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _tensors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """Yield the tensors among the arguments of an op, those in lists too."""
    for value in (*args, *kwargs.values()) if kwargs else args:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from (one for one in value if isinstance(one, Tensor))
