"""A model as it was: what the probe must give back, and what the forward changed."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable

_MANY = 10_000


class Snapshot:
    """Holds what a forward may change, so that :meth:`restore` gives it back bit for bit.

    Buffers are copied at once: kernels write running statistics without saying so. Parameters,
    gradients and tensors that are plain attributes are copied when an op is about to write to
    them, see :meth:`before_write`.

    Args:
        model: whose state is kept.

    Attributes:
        written: what was written to by its name, with a copy of its old values.
        in_forward: the names of those that a forward wrote to, not ``train()`` or ``eval()``.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.names = {id(module): name for name, module in reversed([*model.named_modules()])}
        self.modules = list(model.modules())
        self.attributes = [_Attributes(module) for module in self.modules]
        self.buffers = [(b, b.detach().clone()) for b in model.buffers() if not b.is_meta]
        self.written: dict[str, tuple[Tensor, Tensor]] = {}
        self.in_forward: set[str] = set()
        self._watched: dict[int, list[tuple[str, Tensor]]] = {}
        self._data = [(p, p.data, p.grad) for p in model.parameters()]
        for name, tensor in _tensors_of(model):
            if not tensor.is_meta and tensor.layout == torch.strided:
                storage = tensor.untyped_storage()._cdata
                self._watched.setdefault(storage, []).append((name, tensor))
        self._generators = _generators(self.modules)

    def before_write(self, tensor: Tensor, *, in_forward: bool) -> None:
        """Copy what shares memory with a tensor that an op is about to write to."""
        if not self._watched or tensor.layout != torch.strided:
            return
        for name, held in self._watched.get(tensor.untyped_storage()._cdata, ()):
            if name not in self.written:
                self.written[name] = (held, held.detach().clone())
            if in_forward:
                self.in_forward.add(name)

    def restore(self) -> list[str]:
        """Give everything back; return the paths of the attributes that had changed."""
        changed = [
            f"{self.names[id(module)]}.{key}".removeprefix(".")
            for module, held in zip(self.modules, self.attributes, strict=True)
            for key in held.restore(module)
        ]
        with torch.no_grad():
            for parameter, data, grad in self._data:
                if parameter.data_ptr() != data.data_ptr():
                    parameter.data = data
                if parameter.grad is not grad:
                    parameter.grad = grad
            # Through .data no version changes, so that a graph made before stays valid.
            for tensor, copy in [*self.buffers, *self.written.values()]:
                tensor.data.copy_(copy)
        for give_back in self._generators:
            give_back()
        return changed

    def rewritten(self) -> list[str]:
        """Return the names of the parameters whose values the forward changed."""
        parameters = {id(parameter) for parameter in self.model.parameters()}
        return [
            name
            for name, (tensor, copy) in self.written.items()
            if name in self.in_forward and id(tensor) in parameters
            if not torch.equal(tensor, copy)
        ]


class _Attributes:
    """The ``__dict__`` of a module: what it held, and what its tables and containers held."""

    def __init__(self, module: nn.Module) -> None:
        self.held = dict(vars(module))
        self.contents = {
            key: _content(value) for key, value in self.held.items() if _is_container(value)
        }

    def restore(self, module: nn.Module) -> list[str]:
        """Give the old values back; return the names of the user's attributes that had others."""
        now, held, changed = vars(module), self.held, []
        for key in [*held, *(key for key in now if key not in held)]:
            if key not in now or key not in held or not _same(now[key], held[key]):
                changed.append(key)
        for key, content in self.contents.items():
            if _differs(held[key], content):
                changed.append(key)
                _refill(held[key], content)
        if changed:
            now.clear()
            now.update(held)
        return [key for key in changed if key not in _INTERNAL]


def _same(one: object, other: object) -> bool:
    plain = isinstance(one, (int, float, str)) and type(one) is type(other)
    return one is other or (plain and one == other)


_INTERNAL = frozenset(vars(nn.Module()))


def _is_container(value: object) -> bool:
    return isinstance(value, (dict, list, set)) and len(value) <= _MANY


def _content(value: Any) -> Any:
    return list(value.items()) if isinstance(value, dict) else list(value)


def _differs(value: Any, content: Any) -> bool:
    now = _content(value)
    if len(now) != len(content):
        return True
    if isinstance(value, dict):
        return any(a is not c or b is not d for (a, b), (c, d) in zip(now, content, strict=True))
    return any(a is not b for a, b in zip(now, content, strict=True))


def _refill(value: Any, content: Any) -> None:
    value.clear()
    if isinstance(value, list):
        value.extend(content)
    else:
        value.update(content)


def _tensors_of(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Return parameters, gradients and tensors that are plain attributes, with their names."""
    found: list[tuple[str, Tensor]] = []
    for name, parameter in model.named_parameters():
        found.append((name, parameter))
        if parameter.grad is not None:
            found.append((f"{name}.grad", parameter.grad))
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if isinstance(value, Tensor):
                found.append((f"{name}.{key}", value))
    return found


def _generators(modules: list[nn.Module]) -> list[Callable[[], object]]:
    """Return functions that bring every generator back to where it is now."""
    cpu, python, numbers = torch.get_rng_state(), random.getstate(), np.random.get_state()
    back: list[Callable[[], object]] = [
        lambda: torch.set_rng_state(cpu),
        lambda: random.setstate(python),
        lambda: np.random.set_state(numbers),
    ]
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        states = torch.cuda.get_rng_state_all()
        back.append(lambda: torch.cuda.set_rng_state_all(states))
    if torch.backends.mps.is_available():
        state = torch.mps.get_rng_state()
        back.append(lambda: torch.mps.set_rng_state(state))
    back += [
        _generator_back(value)
        for module in modules
        for value in vars(module).values()
        if isinstance(value, (torch.Generator, np.random.Generator, random.Random))
    ]
    return back


def _generator_back(generator: Any) -> Callable[[], object]:
    if isinstance(generator, torch.Generator):
        kept = generator.get_state()
        return lambda: generator.set_state(kept)
    if isinstance(generator, random.Random):
        state = generator.getstate()
        return lambda: generator.setstate(state)
    bits = generator.bit_generator.state
    return lambda: setattr(generator.bit_generator, "state", bits)
