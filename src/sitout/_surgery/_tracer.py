"""Follows the code of a forward with stand-ins for its tensors, as far as these go."""

from __future__ import annotations

import inspect
from functools import wraps
from operator import eq, ne
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.fx.proxy import ParameterProxy

from .._rates import kind_of
from ._guards import outcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.fx import Node, Proxy

_ACTIVATIONS = ("transformers.activations", "timm.layers.activations")
_WRAPPERS = ("torch.nn.parallel", "torch.distributed")


class Tracer(torch.fx.Tracer):
    """Follows a method into the modules that it calls, as far as these can be followed."""

    def __init__(self, root: nn.Module, method: str, buffers: bool) -> None:
        super().__init__()
        self.traced_func_name = method
        self.called: dict[Node, nn.Module] = {}
        self.read: dict[Node, Tensor] = {}
        self.opened = {id(root)}
        self._names = {id(one): name for name, one in reversed([*root.named_modules()])}
        self._tensors = {id(one): name for name, one in root.named_parameters()}
        if buffers:
            self._tensors.update({id(one): name for name, one in root.named_buffers()})
        floats = (one.dtype for one in root.parameters() if one.is_floating_point())
        self._dtype = next(floats, torch.get_default_dtype())

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """Make a value of each argument that has no default."""
        args: list[Any] = [self.root]
        named: dict[str, Any] = {}
        for one in list(inspect.signature(root_fn).parameters.values())[1:]:
            if one.default is not one.empty or one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD):
                continue
            made = self.create_proxy("placeholder", one.name, (), {})
            if one.kind is one.KEYWORD_ONLY:
                named[one.name] = made
            else:
                args.append(made)
        return wraps(root_fn)(lambda *given: root_fn(*given, **named)), args

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Follow a module; one that cannot be followed is a node."""
        if is_leaf(m):
            return self._call(m, args, kwargs)
        before = len(self.graph.nodes)
        try:
            out = forward(*args, **kwargs)
        except Exception:
            for node in reversed(list(self.graph.nodes)[before:]):
                if not node.users:
                    self.graph.erase_node(node)
                    self.called.pop(node, None)
            return self._call(m, args, kwargs)
        self.opened.add(id(m))
        return out

    def _call(self, m: nn.Module, args: Any, kwargs: Any) -> Any:
        name = self._names.get(id(m), f"<{type(m).__name__}>")
        made = self.create_proxy("call_module", name, args, kwargs)
        self.called[made.node] = m
        return made

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: Any) -> Any:
        """Note where a parameter or a buffer is read."""
        name = self._tensors.get(id(attr_val))
        if name is None:
            return attr_val
        made = self.create_proxy(
            *("get_attr", name, (), {}),
            proxy_factory_fn=lambda node: ParameterProxy(self, node, name, attr_val),
        )
        self.read[made.node] = attr_val
        return made

    def to_bool(self, obj: Proxy) -> bool:
        """Answer whether dtypes are equal, as outside of mixed precision, and that guards hold."""
        node = obj.node
        dtypes = [self._dtype_of(one) for one in node.args]
        if node.target in (eq, ne) and None not in dtypes:
            return (dtypes[0] == dtypes[1]) is (node.target is eq)
        guarded = outcome(inspect.currentframe())
        return super().to_bool(obj) if guarded is None else guarded

    def _dtype_of(self, value: Any) -> torch.dtype | None:
        if isinstance(value, torch.dtype):
            return value
        is_read = isinstance(value, torch.fx.Node) and value.target is getattr
        return self._dtype if is_read and value.args[1] == "dtype" else None


def is_leaf(module: nn.Module) -> bool:
    """Return whether a module is not followed into: what is known, and what must not be."""
    if why_shut(module) or is_wrapper(module) or kind_of(module) or is_known_activation(module):
        return True
    if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase)):
        return True
    home: str = type(module).forward.__module__
    return home.startswith(("torch.nn.", "sitout.")) and not isinstance(module, nn.Sequential)


def is_known_activation(module: nn.Module) -> bool:
    """Return whether a module is one of the elementwise functions of transformers or timm."""
    return type(module).__module__.startswith(_ACTIVATIONS) and not (
        module._parameters or module._buffers or module._modules
    )


def why_shut(module: nn.Module) -> str:
    """Return why nothing may change under a module; "" where it may."""
    made = type(module).__name__
    if isinstance(module, torch.jit.ScriptModule):
        return f"{module.original_name} is scripted. Thin before torch.jit.script"
    if "_orig_mod" in module._modules or module._compiled_call_impl is not None:
        return f"{made} is compiled. Thin first, then compile"
    return ""


def is_wrapper(module: nn.Module) -> bool:
    return type(module).__module__.startswith(_WRAPPERS)
