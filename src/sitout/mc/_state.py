"""What a plan hangs on, as something to compare: the state of a model, and arguments."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any
from weakref import ref

import numpy as np
import torch
from torch import Tensor, nn

_PLAIN = (int, bool, str, bytes, type(None))
_OWN = frozenset(vars(nn.Module()))  # what torch keeps in a module, asked in ways of their own
_SMALL = 1 << 20  # bytes of an array whose values are compared
_MANY = 1000  # of a longer list, a data set for one, only the length is compared
_DEEP = 3  # objects within objects that are looked into: a configuration, and parts of it


class State:
    """Tells what is there; what it tells by its place in memory may not go, else it means nothing.

    That place could be taken by something else, which would pass for it.
    """

    def __init__(self) -> None:
        self._there: list[Callable[[], object]] = []
        self._seen: set[int] = set()

    def holds(self) -> bool:
        """Return whether all is still there that was told by its place."""
        return all(one() is not None for one in self._there)

    def of_model(self, model: nn.Module) -> int:
        """Return a number that is another one after any change that a forward may hang on."""
        told: list[object] = [torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")]
        for name, module in model.named_modules():
            told += [name, id(module), type(module), type(module).forward, module.training]
            told += [*module._forward_hooks, *module._forward_pre_hooks]  # their numbers
            own = [(key, value) for key, value in vars(module).items() if key not in _OWN]
            told += [(key, self.of(value)) for key, value in own]
        for tensor in (*model.parameters(), *model.buffers()):
            told.append(self.of(tensor))
        return hash(tuple(told))

    def of(self, value: Any, depth: int = 0) -> Hashable:
        """Return what tells a value from others, and from itself after a change.

        Args:
            value: anything.
            depth: of the object in which it was found.
        """
        kind = type(value)
        if kind in _PLAIN:
            return kind, value
        if isinstance(value, (float, complex)):
            return kind, repr(value)  # a NaN is like itself
        if isinstance(value, Tensor):
            self._note(value)
            version = -1 if value.is_inference() else value._version
            return id(value), version, value.dtype, value.device
        if isinstance(value, (nn.Module, type)):
            return id(value)
        if id(value) in self._seen:
            return id(value)
        self._seen.add(id(value))
        if isinstance(value, np.ndarray):
            self._note(value)
            known = value.nbytes <= _SMALL and not value.dtype.hasobject
            return id(value), value.shape, value.dtype.str, value.tobytes() if known else b""
        if isinstance(value, (list, tuple, set, frozenset, Mapping)) and len(value) > _MANY:
            return id(value), len(value)
        if isinstance(value, (list, tuple, set, frozenset)):
            return kind, tuple([self.of(one, depth) for one in value])
        if isinstance(value, Mapping):
            return kind, tuple([(self.of(k, depth), self.of(v, depth)) for k, v in value.items()])
        self._note(value)
        held = getattr(value, "__dict__", None)
        if not isinstance(held, dict) or depth >= _DEEP:
            return id(value)
        return id(value), tuple([(key, self.of(one, depth + 1)) for key, one in held.items()])

    def _note(self, value: Any) -> None:
        try:
            self._there.append(ref(value))
        except TypeError:  # it cannot be watched, so it is kept
            self._there.append(lambda: value)
