"""What the forward of a residual block does: a graph in which every child is one node."""

from __future__ import annotations

import inspect
import random
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import fx, nn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence


class LeftAsItIsError(Exception):
    """A block cannot be thinned; the message says why."""


def trace(
    block: nn.Module, inputs: Sequence[str], fixed: Mapping[str, object], *, closed: bool
) -> fx.Graph:
    """Return the graph of the forward that the class of a block has, in training mode.

    Children are not looked into. The block, its modes and torch's random numbers are as before.

    Args:
        block: any module.
        inputs: the parameters of the forward that become placeholders, in this order.
        fixed: what the others are given.
        closed: methods of the block that get a placeholder are nodes too, as children are: what
            they do is decided by values, not by the graph.

    Raises:
        LeftAsItIsError: the graph would not say all that the forward does.
    """
    tracer = _Tracer(inputs, fixed)
    with _given_back(block) as changed, _no_draws(), _no_types(block):
        vars(block)["training"] = True
        if closed:
            vars(block).update(_closed(block, tracer))
        before = set(vars(block))
        graph = _traced(tracer, block)
        made = sorted(key for key in set(vars(block)) - before if key.startswith("_tensor_const"))
        for key in made:
            del vars(block)[key]
    if changed:
        raise LeftAsItIsError(f"its forward sets {changed[0]}")
    if made:
        raise LeftAsItIsError("its forward makes tensors from no input")
    return graph


def methods(block: nn.Module) -> dict[str, Callable[..., Any]]:
    """Return the methods that the classes of a block add to those of every module."""
    classes = type(block).__mro__
    mine = classes[: classes.index(nn.Module)]
    names = {key for made in mine for key in vars(made)} - set(dir(nn.Module)) - {"forward"}
    found = {key: inspect.getattr_static(block, key) for key in sorted(names)}
    kinds = (staticmethod, classmethod)
    return {
        key: getattr(block, key)
        for key, value in found.items()
        if inspect.isfunction(value) or isinstance(value, kinds)
    }


def _closed(block: nn.Module, tracer: _Tracer) -> dict[str, Callable[..., Any]]:
    def close(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def node(*args: Any, **kwargs: Any) -> Any:
            if _has_proxy((args, kwargs)):
                return tracer.create_proxy("call_module", name, args, kwargs)
            return method(*args, **kwargs)

        return node

    return {name: close(name, method) for name, method in methods(block).items()}


def _has_proxy(value: Any) -> bool:
    if isinstance(value, (tuple, list, dict)):
        return any(map(_has_proxy, value.values() if isinstance(value, dict) else value))
    return isinstance(value, fx.Proxy)


class _Tracer(fx.Tracer):
    """Looks into no child, and refuses what a graph does not hold."""

    proxy_buffer_attributes = True

    def __init__(self, inputs: Sequence[str], fixed: Mapping[str, object]) -> None:
        super().__init__()
        self._inputs, self._fixed = inputs, fixed
        self._mode = _mode()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        made = {name: self.create_proxy("placeholder", name, (), {}) for name in self._inputs}
        given = {**self._fixed, **made}
        return lambda root: root_fn(root, **given), [self.root]

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if _mode() != self._mode:
            raise LeftAsItIsError("its forward changes the grad or the autocast mode")
        return super().create_node(*args, **kwargs)


def _mode() -> tuple[bool, ...]:
    """Return what a ``with`` block in a forward may change, and a graph does not hold."""
    autocast = (torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda"))
    return (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), *autocast)


def _traced(tracer: _Tracer, block: nn.Module) -> fx.Graph:
    try:
        return tracer.trace(block)
    except LeftAsItIsError:
        raise
    except Exception as problem:  # whatever a forward does with what is no tensor
        said = " ".join(str(problem).split()).partition(". ")[0].partition("!")[0]
        raise LeftAsItIsError(f"its forward cannot be traced ({said[:90].strip()})") from None


@contextmanager
def _no_types(block: nn.Module) -> Iterator[None]:
    """Refuse a forward that asks whether an input is a tensor: what stands for it is none."""

    def ours(value: object, kinds: Any) -> bool:
        if isinstance(value, fx.Proxy):
            raise LeftAsItIsError("its forward asks for the type of a tensor")
        return isinstance(value, kinds)

    names: dict[str, Any] = getattr(inspect.unwrap(type(block).forward), "__globals__", {})
    own = "isinstance" in names
    if not own:
        names["isinstance"] = ours
    try:
        yield
    finally:
        if not own:
            del names["isinstance"]


@contextmanager
def _no_draws() -> Iterator[None]:
    """Refuse a forward that draws random numbers by itself: a graph would hold the first ones."""
    before = _random_states()
    drew = False
    try:
        yield
    finally:
        drew = any(map(_differ, before, _random_states()))
        torch.set_rng_state(before[0])
        random.setstate(before[1])
        np.random.set_state(before[2])
    if drew:
        raise LeftAsItIsError("its forward draws random numbers by itself")


def _random_states() -> tuple[Any, Any, Any]:
    return torch.get_rng_state(), random.getstate(), np.random.get_state()


def _differ(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return not torch.equal(one, other)
    if one[0] == "MT19937":
        return one[2:] != other[2:] or not np.array_equal(one[1], other[1])
    return bool(one != other)


@contextmanager
def _given_back(block: nn.Module) -> Iterator[list[str]]:
    """Give all attributes of a block and its children back; tell those that a forward has set.

    ``training`` and methods, which :func:`trace` sets, are not told.
    """
    kept = [(name, one, dict(vars(one))) for name, one in block.named_modules()]
    inner = {
        id(value): (value, _copy(value))
        for _, _, mine in kept
        for value in mine.values()
        if isinstance(value, (list, dict, set))
    }
    ours = {"training", *methods(block)}
    changed: list[str] = []
    try:
        yield changed
    finally:
        for value, before in inner.values():
            if not _is_same(value, before):
                changed.append("what a list, dict or set of it holds")
                _refill(value, before)
        for name, one, mine in kept:
            now = vars(one)
            keys = [key for key in {**mine, **now} if mine.get(key, ...) is not now.get(key, ...)]
            changed += [f"{name}.{key}".lstrip(".") for key in keys if name or key not in ours]
            now.clear()
            now.update(mine)


def _copy(value: Any) -> Any:
    return dict(value) if isinstance(value, dict) else type(value)(value)


def _is_same(value: Any, before: Any) -> bool:
    now = list(value.items() if isinstance(value, dict) else value)
    then = list(before.items() if isinstance(before, dict) else before)
    if len(now) != len(then):
        return False
    if isinstance(value, dict):
        return all(a[0] == b[0] and a[1] is b[1] for a, b in zip(now, then, strict=True))
    return all(a is b for a, b in zip(now, then, strict=True))


def _refill(value: Any, before: Any) -> None:
    value.clear()
    if isinstance(value, list):
        value.extend(before)
    else:
        value.update(before)
