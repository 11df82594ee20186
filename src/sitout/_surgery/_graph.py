"""What the forward of a module does in training, as a graph: for finding, never for running."""

from __future__ import annotations

import inspect
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .._rates import kind_of
from .._sites._snapshot import Snapshot, writes
from .._source import calls, methods
from ._tracer import Tracer, is_wrapper, why_shut

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch.fx import Graph, Node

_LISTS = (nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class Trace:
    """What one method of a module does.

    Args:
        name: qualified name of the module.
        module: whose method was followed.
        method: its name.
        graph: of the calls.
        modules: that its nodes call.
        tensors: parameters and buffers that its nodes read.
        opened: ids of the modules that were followed into.
    """

    name: str
    module: nn.Module
    method: str
    graph: Graph
    modules: dict[Node, nn.Module]
    tensors: dict[Node, Tensor]
    opened: set[int]


@dataclass
class Traces:
    """What could be followed in a model, and why the rest could not.

    Args:
        found: each part of the model once, from the root on.
        closed: a reason for each module that was not followed into, by id.
    """

    found: list[Trace] = field(default_factory=list)
    closed: dict[int, str] = field(default_factory=dict)


def traces(model: nn.Module) -> Traces:
    """Follow every part of a model that may drop: the largest parts that can be followed.

    Where a forward cannot be, its methods are tried by themselves, then its children.
    """
    result, seen = Traces(), set[int]()
    worth = _worth(model)
    todo = [("", model)]
    while todo:
        name, module = todo.pop(0)
        if id(module) in seen or id(module) not in worth:
            continue
        seen.add(id(module))
        why = why_shut(module)
        if why:
            result.closed[id(module)] = why
            continue
        opened = {id(module)}
        if not (isinstance(module, _LISTS) or is_wrapper(module)):
            found = _follow_all(name, module, result.closed)
            result.found += found
            opened.update(*(one.opened for one in found if one.method == "forward"))
        todo += _rest(name, module, opened)
    return result


def _worth(model: nn.Module) -> set[int]:
    """Return the ids of the modules that drop, and of those around them."""
    named = dict(model.named_modules(remove_duplicate=False))
    found = set[int]()
    for name, module in named.items():
        if kind_of(module) or calls(type(module)) or isinstance(module, torch.jit.ScriptModule):
            found.update(id(named[path]) for path in around(name))
            found.add(id(module))
    return found


def around(name: str) -> list[str]:
    """Return the names of the modules around one: "", "a" and "a.b" for "a.b.c"."""
    parts = name.split(".") if name else []
    return [".".join(parts[:i]) for i in range(len(parts))]


def _rest(name: str, module: nn.Module, opened: set[int]) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules under an opened one that were not opened with it."""
    for child, inner in module.named_children():
        path = f"{name}.{child}" if name else child
        if id(inner) in opened or isinstance(inner, _LISTS):
            yield from _rest(path, inner, opened)
        elif inner._modules or kind_of(inner) is None:
            yield path, inner


def _follow_all(name: str, module: nn.Module, closed: dict[int, str]) -> list[Trace]:
    """Return the trace of a forward, or those of the methods that it calls."""
    with _as_in_training(module):
        made = _follow(name, module, "forward")
        if isinstance(made, Trace):
            return [made]
        closed[id(module)] = made
        names = {one.name for one in methods(type(module))} - {"forward"}
        tried = [_follow(name, module, method) for method in sorted(names)]
    return [one for one in tried if isinstance(one, Trace)]


@contextmanager
def _as_in_training(module: nn.Module) -> Iterator[None]:
    """Let a module train while its Python code runs, and give back all that this changes."""
    snapshot = Snapshot(module)
    try:
        with warnings.catch_warnings(), torch.no_grad(), _Writes(snapshot):
            warnings.simplefilter("ignore")
            module.train()
            yield
    finally:
        snapshot.restore()


class _Writes(TorchDispatchMode):
    """Keeps a copy of what an op is about to write to."""

    def __init__(self, snapshot: Snapshot) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._snapshot = snapshot

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        for tensor in writes(func, args, kwargs or {}):
            self._snapshot.before_write(tensor, in_forward=True)
        return func(*args, **(kwargs or {}))


def _follow(name: str, module: nn.Module, method: str) -> Trace | str:
    """Follow a method; return why it cannot be followed."""
    made: Any = type(module)
    if method in vars(module):
        return f"{made.__name__}.{method} was replaced on the instance"
    if not inspect.isfunction(inspect.getattr_static(made, method, None)):
        return f"{made.__name__}.{method} is no function"
    problem = ""
    for buffers in (True, False):
        tracer = Tracer(module, method, buffers)
        try:
            graph = tracer.trace(module)
        except Exception as error:  # of the user's code, which sees no tensors
            text = (str(error).splitlines() or [type(error).__name__])[0].partition(". ")[0]
            problem = problem or f"{made.__name__}.{method} cannot be followed ({text[:100]})"
            continue
        _mark_stored(graph, module)
        return Trace(name, module, method, graph, tracer.called, tracer.read, tracer.opened)
    return problem


def stored_in_an_attribute(x: Any) -> Any:
    """Stand in a graph for an attribute that takes a value."""
    return x


def _mark_stored(graph: Graph, module: nn.Module) -> None:
    """Let the graph show what a forward left in attributes, and in lists and dicts there."""
    held: list[Any] = [value for one in module.modules() for value in vars(one).values()]
    for value in list(held):
        if isinstance(value, dict):
            held += value.values()
        elif isinstance(value, (list, tuple, set)):
            held += value
    for proxy in held:
        if isinstance(proxy, fx.Proxy) and proxy.node.graph is graph:
            graph.call_function(stored_in_an_attribute, (proxy.node,))
