"""Random tensors on their way to a mask: what each is, after every op that it goes through."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from ._flow import BERNOULLI, LOGIC, Draw, Law, after, overloads
from ._meet import PICK, WHERE, Application, Meeting, application, blurred, decision, dropped_share

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["NORMAL", "PICK", "Application", "Draw", "Draws", "dropped_share"]

_UNIFORM = overloads("rand", "rand_like", "uniform*")
NORMAL = overloads("randn", "randn_like", "normal*")
_INDEX = overloads("randperm")
_INTEGER = overloads("randint", "randint_like")
_DRAWS = _UNIFORM | NORMAL | _INDEX | _INTEGER | BERNOULLI
_CONSTANT = overloads(
    *("ones", "zeros", "full", "ones_like", "zeros_like", "full_like"),
    *("new_ones", "new_zeros", "new_full", "scalar_tensor"),
)
_COPY = overloads("copy_")
_OVERWRITE = overloads("copy_", "fill_", "zero_")


class Draws:
    """Follows random tensors through the forwards of a probe, by the memory that they lie in."""

    def __init__(self) -> None:
        self._held: dict[int, tuple[StorageWeakRef, Draw]] = {}
        self._constants: dict[int, StorageWeakRef] = {}
        self._count = 0

    def see(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
        """Take note of an op that has run; return the :class:`Application` that it is, if any."""
        if func in _DRAWS:
            self._draw(func, args, kwargs, out)
            return None
        if func in _CONSTANT:
            self._constants[_storage(out)] = _weak(out.untyped_storage())
        if not self._held:
            return None
        random = [(value, self.of(value)) for value in _tensors(args, kwargs)]
        known = [(value, draw) for value, draw in random if draw is not None]
        if not known:
            return None
        others = [value for value, draw in random if draw is None]
        many = [value for value in others if value.numel() > 1]
        constant = all(map(self._is_constant, many)) if many else func in WHERE
        met = Meeting(func, args, *known[0], others, constant, out)
        made = application(met)
        if made is None:
            self._follow(met)
        elif isinstance(out, Tensor):
            self._forget(out)  # no longer a mere mask
        return made

    def read(self, value: object) -> Application | None:
        """Return what it is that Python reads the numbers of a tensor."""
        draw = self.of(value)
        return None if draw is None else decision(draw, None)

    def of(self, value: object) -> Draw | None:
        """Return what is known of a tensor; None if it is not random."""
        if not isinstance(value, Tensor) or value.layout != torch.strided:
            return None
        found = self._held.get(_storage(value))
        if found is None or found[0].expired():  # type: ignore[no-untyped-call]
            return None
        return found[1]

    def _is_constant(self, value: Tensor) -> bool:
        found = self._constants.get(_storage(value)) if value.layout == torch.strided else None
        return found is not None and not found.expired()  # type: ignore[no-untyped-call]

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

    def _follow(self, met: Meeting) -> None:
        """Hold what is known of the results of an op that applies nothing."""
        mixed = met.func not in LOGIC and any(value.numel() > 1 for value in met.others)
        for tensor in _tensors((met.out,), {}):
            found: Draw | None
            if met.func in _COPY and self.of(met.args[1]) is not None:
                found = self.of(met.args[1])
            elif met.func in _OVERWRITE:
                whole = tensor.untyped_storage().nbytes() <= tensor.numel() * tensor.element_size()
                found = None if whole else met.draw
            elif mixed or met.constant:
                found = blurred(met, tensor)
            else:
                # Beside another random number, nothing is known of the outcome.
                args = tuple(one if self.of(one) is None else met.mine for one in met.args)
                found = after(met.func, args, met.mine, met.draw, tensor)
            if found is None:
                self._forget(tensor)
            else:
                self._hold(tensor, found)


def _chance(args: tuple[Any, ...], kwargs: dict[str, Any]) -> float | None:
    """Return the chance of a true bit, where all elements of ``bernoulli`` have the same."""
    chance = args[1] if len(args) > 1 else kwargs.get("p", args[0])
    if isinstance(chance, Tensor):
        if chance.is_meta or not chance.numel() or not chance.is_floating_point():
            return None
        first = chance[(0,) * chance.dim()]
        return float(first) if bool((chance == first).all()) else None
    return float(chance) if isinstance(chance, (int, float)) else None


_weak: Any = StorageWeakRef


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _tensors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """Yield the tensors among the arguments of an op, those in lists too."""
    for value in (*args, *kwargs.values()) if kwargs else args:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from (one for one in value if isinstance(one, Tensor))
