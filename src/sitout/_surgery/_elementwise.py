"""Which calls act on each unit by itself, and which of these keep its scale."""

from __future__ import annotations

import operator
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import Node

from ._tracer import is_known_activation

if TYPE_CHECKING:
    from ._graph import Trace

# f(s x) = s f(x) for s > 0: it may stand behind the site too, where kept units are not yet scaled.
_KEEPING = {
    *("relu", "leaky_relu", "abs", "neg", "contiguous", "clone", "positive"),
    *("to", "type_as", "float", "half", "bfloat16", "double"),
}
_UNARY = {
    *("gelu", "silu", "mish", "elu", "selu", "celu", "sigmoid", "tanh", "relu6", "hardtanh"),
    *("hardswish", "hardsigmoid", "softplus", "softsign", "logsigmoid", "tanhshrink", "softshrink"),
    *("hardshrink", "threshold", "exp", "expm1", "erf", "sin", "cos", "square", "sqrt", "log1p"),
    *("clamp", "clamp_min", "clamp_max", "pow", "reciprocal", "atan", "sign"),
}
_SUMS = {"add", "sub"}
_PRODUCTS = {"mul", "div", "truediv", "multiply", "true_divide", "divide"}
POOLS = {
    f"{kind}_pool{dims}d"
    for kind in ("max", "avg", "adaptive_max", "adaptive_avg")
    for dims in (1, 2, 3)
}
_HOMES: tuple[Any, ...] = (operator, torch, F, torch._C._nn)
_NAMES = _KEEPING | _UNARY | _SUMS | _PRODUCTS | POOLS
_FUNCTIONS = {
    id(function): name
    for home in _HOMES
    for name in _NAMES
    for spelt in (name, f"{name}_", f"i{name}")
    if callable(function := getattr(home, spelt, None))
}

_LAYERS: dict[type[nn.Module], str] = {
    **dict.fromkeys((nn.ReLU, nn.LeakyReLU, nn.Identity), "relu"),
    **dict.fromkeys(
        (
            *(nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.LogSigmoid),
            *(nn.Tanh, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.ReLU6, nn.Softplus),
            *(nn.Softsign, nn.Softshrink, nn.Hardshrink, nn.Tanhshrink, nn.Threshold),
        ),
        "tanh",
    ),
    **dict.fromkeys(
        (
            *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
            *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
            *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
        ),
        "max_pool2d",
    ),
}
_TOLD = ("dtype", "device", "layout", "requires_grad", "is_cuda")


def name_of(trace: Trace, node: Node) -> str:
    """Return what a node calls by the name in the tables here; "" for what is in none."""
    if node.op == "call_module":
        module = trace.modules[node]
        if has_hooks(module):
            return ""
        if type(module) is nn.PReLU and module.num_parameters == 1:
            return "relu"
        return "tanh" if is_known_activation(module) else _LAYERS.get(type(module), "")
    if node.op == "call_method":
        name = str(node.target)
        bare = name.removesuffix("_")
        return bare if bare in _NAMES and bare not in POOLS else ""
    return _FUNCTIONS.get(id(node.target), "") if node.op == "call_function" else ""


def has_hooks(module: nn.Module) -> bool:
    """Return whether something is called before or behind the forward of a module."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def operands(trace: Trace, node: Node, *, behind: bool) -> list[Node] | None:
    """Return the values that a call takes unit by unit; None if it does something else.

    Args:
        trace: that the node is of.
        node: a call.
        behind: whether it stands behind the site, so that it has to keep the scale.
    """
    name = name_of(trace, node)
    if not name:
        return None
    named = [node.kwargs[key] for key in ("input", "x") if key in node.kwargs]
    rest = [value for key, value in node.kwargs.items() if key not in ("input", "x")]
    first, *others = [*node.args, *named] or [None]
    if name in _SUMS | _PRODUCTS:
        return _of_two(name, first, others, rest, behind)
    if not isinstance(first, Node) or (behind and name not in _KEEPING | POOLS):
        return None
    is_cast = name in ("to", "type_as")
    return [first] if is_cast or not any(_holds_node(one) for one in [*others, *rest]) else None


def _of_two(
    name: str, first: Any, others: list[Any], rest: list[Any], behind: bool
) -> list[Node] | None:
    """Return the values of a sum or a product, of which one may be a number."""
    if len(others) != 1 or rest:
        return None
    pair = [first, others[0]]
    nodes = [one for one in pair if isinstance(one, Node)]
    if not nodes or not all(isinstance(one, (Node, Real)) for one in pair):
        return None
    if behind and name in _SUMS and len(nodes) == 1:
        return None
    if behind and name in _PRODUCTS and len(nodes) == 2:
        return None
    if behind and "div" in name and nodes[0] is not first:
        return None
    return nodes


def _holds_node(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return any(_holds_node(one) for one in value)
    return isinstance(value, Node)


def only_asks(node: Node) -> bool:
    """Return whether a call asks a value for its dtype or its device, and not for its units."""
    if node.op == "call_function" and node.target is getattr:
        return node.args[1] in _TOLD
    return node.op == "call_method" and node.target in ("is_floating_point", "dim")
