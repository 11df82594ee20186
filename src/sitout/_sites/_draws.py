"""Random tensors on their way to a mask: what each is, after every op that it goes through."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from ._flow import BERNOULLI, LOGIC, Draw, Law, after, overloads

if TYPE_CHECKING:
    from collections.abc import Iterator


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


_UNIFORM = overloads("rand", "rand_like", "uniform*")
_NORMAL = overloads("randn", "randn_like", "normal*")
_INDEX = overloads("randperm")
_INTEGER = overloads("randint", "randint_like")
_DRAWS = _UNIFORM | _NORMAL | _INDEX | _INTEGER | BERNOULLI
_MUL = overloads("mul*")
_FILL = overloads("masked_fill*")
_WHERE = overloads("where")
PICK = overloads("index", "gather", "index_select", "masked_select")
_PUT = overloads("index_put*", "_index_put_impl_")
_SCATTER = overloads("scatter*", "index_fill*", "index_put*", "_index_put_impl_")
_JOIN = overloads("cat", "stack")
_COPY = overloads("copy_")
_OVERWRITE = overloads("copy_", "fill_", "zero_")
_READ = overloads("_local_scalar_dense")


class Draws:
    """Follows random tensors through the forwards of a probe, by the memory that they lie in."""

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
        self._follow(func, args, random, known, None if made is not None else out)
        if made is not None and isinstance(out, Tensor):
            self._forget(out)  # no longer a mere mask
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

    def _forget(self, tensor: Tensor) -> None:
        if tensor.layout == torch.strided:
            self._held.pop(_storage(tensor), None)

    def _draw(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        if not isinstance(out, Tensor):
            return
        self._count += 1
        law: Law = "uniform" if func in _UNIFORM else "bits" if func in BERNOULLI else "normal"
        law, true = ("index" if func in _INDEX else law), None
        if law == "bits":
            true = _chance(args, kwargs)
        elif func in _INTEGER and [one for one in args if isinstance(one, int)] in ([2], [0, 2]):
            law, true = "bits", 0.5
        self._hold(out, Draw(self._count, law, out.numel(), true))

    def _follow(
        self,
        func: Any,
        args: tuple[Any, ...],
        random: list[tuple[Tensor, Draw | None]],
        known: list[tuple[Tensor, Draw]],
        out: Any,
    ) -> None:
        """Hold what is known of the results of an op."""
        mine, draw = known[0]
        mixed = func not in LOGIC and any(d is None and v.numel() > 1 for v, d in random)
        for tensor in _tensors((out,), {}):
            found: Draw | None = None
            if func in _COPY and self.of(args[1]) is not None:
                found = self.of(args[1])
            elif func in _OVERWRITE:
                found = None if tensor.numel() == _elements(tensor) else draw
            elif mixed:
                found = _blurred(func, draw, tensor)
            else:
                found = after(func, args, mine, draw, tensor)
            if found is None:
                self._forget(tensor)
            else:
                self._hold(tensor, found)

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
            return decision(draw, func)
        if func in PICK:
            return _pick(func, args, mask, draw, others, out)
        if draw.law != "bits" or not others:
            return None
        x = max(others, key=Tensor.numel)
        if func in _MUL and (x.numel() > 1 or mask.numel() == 1):
            share = _share(mask == 0)
            seen = share > 0.0 if draw.scale is None and share is not None else draw.drops
            return Application(draw, x, mask, draw.false, share, out, func) if seen else None
        if func in _WHERE and args[0] is mask:
            return _chosen(args, mask, draw, out, func)
        put = func in _PUT and args[0] is others[0] and mask.dtype == torch.bool
        if put or (func in _FILL and args[1] is mask):
            wide = _aligned(args[1], mask, x) if put else mask
            return Application(draw, others[0], wide, _true(draw), _share(mask != 0), out, func)
        return None


def decision(draw: Draw, func: Any) -> Application | None:
    """Return what it is that code reads a random number: it decides by it.

    That the rarer outcome leaves something out is taken for granted.
    """
    if draw.law not in ("bits", "uniform"):
        return None
    chance = draw.true if draw.threshold is None else draw.threshold
    p = None if chance is None else min(chance, 1.0 - chance)
    return Application(draw, None, None, p, None, None, func)


def _pick(
    func: Any, args: tuple[Any, ...], mask: Tensor, draw: Draw, others: list[Tensor], out: Any
) -> Application | None:
    """Return what a random index or boolean mask leaves out; a mere shuffle leaves out nothing."""
    if not others or args[0] is not others[0]:
        return None
    x = others[0]
    if draw.law == "bits" and mask.dtype == torch.bool:
        wide = _aligned(args[1], mask, x)
        return Application(draw, x, wide, draw.false, _share(mask == 0), out, func)
    if draw.law != "index" or not isinstance(out, Tensor) or x.numel() == 0:
        return None
    left = 1.0 - out.numel() / x.numel()
    p = left if draw.false is None else draw.false
    return Application(draw, x, None, p, left, out, func) if left > 0.0 else None


def _chosen(
    args: tuple[Any, ...], mask: Tensor, draw: Draw, out: Any, func: Any
) -> Application | None:
    """Return what ``where`` drops: the side that is not the smaller one, or not all zero, stays."""
    one, other = args[1], args[2]
    sizes = one.numel(), other.numel()
    true_drops = sizes[0] < sizes[1] or (sizes[0] == sizes[1] and not _any(one))
    x = other if true_drops else one
    p = _true(draw) if true_drops else draw.false
    share = _share(mask != 0) if true_drops else _share(mask == 0)
    return Application(draw, x, mask, p, share, out, func)


def _blurred(func: Any, draw: Draw, out: Tensor) -> Draw | None:
    """Return what is known of a random tensor that has met one that is not random."""
    if func in _JOIN and draw.law != "index":
        law: Law = "bits" if draw.law == "bits" else "normal"
        return replace(draw, law=law, true=None, scale=None)
    if func in _SCATTER and draw.law == "index" and _is_mask(out):
        return Draw(draw.number, "bits", draw.size, scale=None)
    return None


def _chance(args: tuple[Any, ...], kwargs: dict[str, Any]) -> float | None:
    """Return the chance of a true bit, where all elements of ``bernoulli`` have the same."""
    chance = args[1] if len(args) > 1 else kwargs.get("p", args[0])
    if isinstance(chance, Tensor):
        if chance.is_meta or not chance.numel() or not chance.is_floating_point():
            return None
        first = chance[(0,) * chance.dim()]
        return float(first) if bool((chance == first).all()) else None
    return float(chance) if isinstance(chance, (int, float)) else None


def _true(draw: Draw) -> float | None:
    return None if draw.false is None else 1.0 - draw.false


def _aligned(indices: Any, mask: Tensor, x: Tensor) -> Tensor:
    """Return a mask that indexes some dims of a tensor so that it broadcasts over the others."""
    if not isinstance(indices, (list, tuple)):
        return mask
    before = next((i for i, one in enumerate(indices) if one is mask), 0)
    after_it = x.dim() - before - mask.dim()
    return mask.reshape((1,) * before + tuple(mask.shape) + (1,) * max(after_it, 0))


_weak: Any = StorageWeakRef


def _share(dropped: Tensor) -> float | None:
    return None if dropped.is_meta else int(dropped.sum()) / max(dropped.numel(), 1)


def _any(tensor: Tensor) -> bool:
    return tensor.is_meta or bool(tensor.any())


def _is_mask(tensor: Tensor) -> bool:
    return not tensor.is_meta and bool(((tensor == 0) | (tensor == 1)).all())


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _elements(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes() // tensor.element_size()


def _tensors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """Yield the tensors among the arguments of an op, those in lists too."""
    for value in (*args, *kwargs.values()) if kwargs else args:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from (one for one in value if isinstance(one, Tensor))
