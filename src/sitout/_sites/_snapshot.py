"""A model as it was: what the probe must give back, and what the forward changed."""

from __future__ import annotations

import random
from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..nn._base import Site as Layer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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
        self._modes = [(module, module.training) for module in self.modules]
        self.buffers = [(b, b.detach().clone()) for b in model.buffers() if not b.is_meta]
        self.written: dict[str, tuple[Tensor, Tensor]] = {}
        self.in_forward: set[str] = set()
        self._watched: dict[int, list[tuple[str, Tensor]]] = {}
        self._grads = [(p, p.grad) for p in model.parameters()]
        tensors = _tensors_of(model)
        held = [*(tensor for _, tensor in tensors), *model.buffers()]
        self._data = [(tensor, tensor.data) for tensor in held if _is_plain(tensor)]
        for name, tensor in tensors:
            if _is_plain(tensor):
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
        changed = self._tensors_changed()
        changed += [
            f"{self.names[id(module)]}.{key}".removeprefix(".")
            for module, held in zip(self.modules, self.attributes, strict=True)
            for key in held.restore(module)
        ]
        for module, mode in self._modes:
            if module.training is not mode:  # a ScriptModule holds it elsewhere
                module.training = mode
        with torch.no_grad():
            for tensor, data in self._data:
                if _place(tensor) != _place(data):
                    tensor.data = data
            for parameter, grad in self._grads:
                if parameter.grad is not grad:
                    parameter.grad = grad
            # Through .data no version changes, so that a graph made before stays valid.
            for tensor, copy in [*self.buffers, *self.written.values()]:
                tensor.data.copy_(copy)
        for give_back in self._generators:
            give_back()
        return list(dict.fromkeys(changed))

    def _tensors_changed(self) -> list[str]:
        """Return the paths of the plain attributes whose tensors have other values."""
        known = {id(one) for pair in self._grads for one in pair}
        return [
            name.partition("[")[0]
            for name, (tensor, copy) in self.written.items()
            if id(tensor) not in known and not _equal(tensor, copy)
        ]

    def rewritten(self) -> list[str]:
        """Return the names of the parameters whose values the forward changed."""
        parameters = {id(parameter) for parameter in self.model.parameters()}
        return [
            name
            for name, (tensor, copy) in self.written.items()
            if name in self.in_forward and id(tensor) in parameters
            if not _equal(tensor, copy)
        ]


class _Attributes:
    """The ``__dict__`` of a module: what it held, and what its tables and containers held."""

    def __init__(self, module: nn.Module) -> None:
        self.held = dict(vars(module))
        self.contents = {
            key: [(one, _content(one)) for one in found if not isinstance(one, tuple)]
            for key, value in self.held.items()
            if (found := _containers(value, deep=key not in _INTERNAL))
        }

    def restore(self, module: nn.Module) -> list[str]:
        """Give the old values back; return the names of the user's attributes that had others."""
        now, held, changed = vars(module), self.held, {}
        for key in [*held, *(key for key in now if key not in held)]:
            if key not in now or key not in held or now[key] is not held[key]:
                changed[key] = not _same(now.get(key, _NONE), held.get(key, _NONE))
        for key, contents in self.contents.items():
            for value, content in contents:
                if _differs(value, content):
                    changed[key] = True
                    _refill(value, content)
        if changed:
            now.clear()
            now.update(held)
        own = isinstance(module, Layer)  # what a layer of ours notes for itself is no finding
        return [key for key, told in changed.items() if told and key not in _INTERNAL and not own]


_NONE = object()
_CONTAINERS = (dict, list, set, deque, tuple, np.ndarray)
_INTERNAL = frozenset(vars(nn.Module()))


def _containers(value: Any, *, deep: bool = True) -> list[Any]:
    """Return the containers that a value is, and with ``deep`` those that it holds."""
    found: list[Any] = []
    todo, seen = [value], set()
    while todo:
        one = todo.pop()
        if id(one) in seen or not isinstance(one, _CONTAINERS):
            continue
        seen.add(id(one))
        if isinstance(one, np.ndarray) or len(one) <= _MANY:
            found.append(one)
            todo += _values(one) if deep else ()
    return found


def _values(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return ()
    return value.values() if isinstance(value, dict) else value


def _same(one: Any, other: Any) -> bool:
    """Return whether a new value is as good as the old one."""
    if isinstance(one, (list, tuple)) and type(one) is type(other):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, (int, float, str)) and type(one) is type(other):
        return bool(one == other)
    return one is other


def _content(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.copy()
    return list(value.items()) if isinstance(value, dict) else list(value)


def _differs(value: Any, content: Any) -> bool:
    if isinstance(value, np.ndarray):
        return bool(value.tobytes() != content.tobytes())
    now = _content(value)
    if len(now) != len(content):
        return True
    if isinstance(value, dict):
        return any(a is not c or b is not d for (a, b), (c, d) in zip(now, content, strict=True))
    return any(a is not b for a, b in zip(now, content, strict=True))


def _refill(value: Any, content: Any) -> None:
    if isinstance(value, np.ndarray):
        value[...] = content
        return
    value.clear()
    if isinstance(value, (list, deque)):
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
                found.append((f"{name}.{key}".removeprefix("."), value))
            elif key not in _INTERNAL:
                held = [one for many in _containers(value) for one in _values(many)]
                tensors = (one for one in held if isinstance(one, Tensor))
                path = f"{name}.{key}".removeprefix(".")
                found += [(f"{path}[{i}]", tensor) for i, tensor in enumerate(tensors)]
    return found


def _equal(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors hold the same; NaN is NaN."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bool(((one == other) | (one.isnan() & other.isnan())).all())


def _is_plain(tensor: Tensor) -> bool:
    return not tensor.is_meta and tensor.layout == torch.strided


def _place(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


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


_WRITES: dict[Any, tuple[tuple[int, str], ...]] = {}


def writes(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """Yield the tensors that an op writes to, as its schema says."""
    places = _WRITES.get(func)
    if places is None:
        schema = getattr(func, "_schema", None)
        arguments = schema.arguments if schema is not None and schema.is_mutable else []
        places = _WRITES[func] = tuple(
            (index, argument.name)
            for index, argument in enumerate(arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        )
    for index, name in places:
        value = args[index] if index < len(args) else kwargs.get(name)
        yield from (
            one
            for one in (value if isinstance(value, list) else [value])
            if isinstance(one, Tensor)
        )
