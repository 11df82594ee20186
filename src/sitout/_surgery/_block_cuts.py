"""Where the residual branches of a block are cut out of the graph of its forward."""

from __future__ import annotations

import operator
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import fx, nn

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_ADDS = {"call_function": (operator.add, operator.iadd, torch.add), "call_method": ("add", "add_")}
_SHAPES = ("shape", "ndim", "dtype", "device")
_SIZES = ("size", "dim", "ndimension")
_IN_PLACE = (operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.setitem)
_SCALES = ("Scale", "LayerScale", "LayerScale2d")
_TURNS = ("transpose", "permute", "swapaxes", "swapdims", "movedim", "moveaxis", "t", "rearrange")


@dataclass(frozen=True)
class Cut:
    """A branch that is cut out of a graph.

    Args:
        drop: the call of the drop path at its end.
        tail: what scales the output of that, in order.
        add: the sum with the stream.
        stream: that.
        root: what the branch takes.
        nodes: of the branch, in order, with the drop and the tail.
        extras: what it takes besides, the same for all samples.
    """

    drop: fx.Node
    tail: tuple[fx.Node, ...]
    add: fx.Node
    stream: fx.Node
    root: fx.Node
    nodes: tuple[fx.Node, ...]
    extras: tuple[fx.Node, ...]

    @property
    def site(self) -> str:
        """The name of the drop path."""
        return str(self.drop.target)


def cuts(
    block: nn.Module, graph: fx.Graph, sites: Sequence[str]
) -> tuple[list[Cut], dict[str, str]]:
    """Return the branches of a block that can be cut out, and why others can not, by their sites.

    Args:
        block: whose forward it is.
        graph: of its forward.
        sites: the names of its drop paths.
    """
    _prune(graph)
    found = []
    if any(not node.users and _writes_by_itself(node) for node in graph.nodes):
        return [], dict.fromkeys(sites, "its block changes a tensor in place")
    whys = dict.fromkeys(sites, "its block does not call it")
    for drop in graph.nodes:
        if drop.op == "call_module" and drop.target in sites:
            cut = _cut(block, drop, sites)
            if isinstance(cut, Cut):
                found.append(cut)
            else:
                whys[drop.target] = cut
    called = [str(one.target) for one in graph.nodes if one.op == "call_module"]
    for site, count in Counter(cut.site for cut in found).items():
        if count == called.count(site):
            del whys[site]
        else:
            whys[site] = f"in {called.count(site) - count} of its calls {whys[site]}"
    return found, whys


def _prune(graph: fx.Graph) -> None:
    """Take away what unpacks a tuple and is not used, as ``x, _ = attention(x)`` leaves it."""
    for node in reversed(list(graph.nodes)):
        if node.target in (operator.getitem, getattr) and not node.users:
            graph.erase_node(node)


def _cut(block: nn.Module, drop: fx.Node, sites: Sequence[str]) -> Cut | str:
    """Return the branch at the end of which a drop path is called, or why it cannot be cut out."""
    tail = _tail(block, drop)
    add = _user((drop, *tail)[-1])
    stream = None if add is None else _other(add, (drop, *tail)[-1])
    if add is None or stream is None or len(drop.args) != 1 or len(drop.all_input_nodes) != 1:
        return "its output does not go into a sum with the stream, and only there"
    why = ""
    for root in _roots(stream):
        nodes, extras = _cone([drop, *tail], root)
        cut = Cut(drop, tail, add, stream, root, nodes, extras)
        problem = _problem(block, cut, sites)
        if not problem:
            return cut
        why = why or problem
    return why


def _user(node: fx.Node) -> fx.Node | None:
    """Return what alone uses a node."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def _other(add: fx.Node, one: fx.Node) -> fx.Node | None:
    """Return what a node is added to; None if it is not."""
    others = [other for other in add.args if other is not one]
    if add.target not in _ADDS.get(add.op, ()) or add.kwargs or len(others) != 1:
        return None
    stream = others[0]
    if not isinstance(stream, fx.Node):
        return None
    writes = add.target is operator.iadd or add.target == "add_"
    return None if writes and add.args[0] is stream and _is_seen(stream, add) else stream


def _is_seen(stream: fx.Node, add: fx.Node) -> bool:
    """Return whether somebody reads a stream after a sum was written into it."""
    nodes = list(add.graph.nodes)
    at = nodes.index(add)
    return stream.op == "placeholder" or any(nodes.index(user) > at for user in stream.users)


def _tail(block: nn.Module, drop: fx.Node) -> tuple[fx.Node, ...]:
    """Return what scales the output of a drop path: zeros stay zeros there."""
    found = [drop]
    user = _user(drop)
    while user is not None and _is_scale(block, user, found[-1]):
        found.append(user)
        user = _user(user)
    return tuple(found[1:])


def _is_scale(block: nn.Module, node: fx.Node, x: fx.Node) -> bool:
    """Return whether a node is ``x`` times a number or a parameter, or a layer that is."""
    if node.op == "call_module":
        made = type(_child(block, node))
        of_timm = made.__module__.startswith("timm.") and made.__name__ in _SCALES
        return (made is nn.Identity or of_timm) and node.args == (x,)
    if node.target not in (operator.mul, torch.mul) or node.kwargs:
        return False
    others = [one for one in node.args if one is not x]
    return len(others) == 1 and all(
        one.op == "get_attr" if isinstance(one, fx.Node) else True for one in others
    )


def _roots(stream: fx.Node) -> Iterator[fx.Node]:
    """Yield what a branch may take: the stream, or what a shortcut makes that from."""
    yield stream
    if stream.op == "call_module" and stream.args and isinstance(stream.args[0], fx.Node):
        yield stream.args[0]


def _cone(
    ends: Sequence[fx.Node], root: fx.Node
) -> tuple[tuple[fx.Node, ...], tuple[fx.Node, ...]]:
    """Return what nodes depend on up to the root, in order, and what comes from elsewhere."""
    order = list(root.graph.nodes)
    first = order[0]
    behind = {root}
    for node in order:
        if behind.intersection(node.all_input_nodes):
            behind.add(node)
    inner: set[fx.Node] = set()
    extras: set[fx.Node] = set()
    todo = list(ends)
    while todo:
        node = todo.pop()
        if node is root or node in inner or node in extras:
            continue
        other = node.op == "placeholder" and node is not first
        if node not in behind and (other or _is_length(node)):
            extras.add(node)
        else:
            inner.add(node)
            todo += node.all_input_nodes
    nodes = tuple(one for one in order if one in inner)
    return nodes, tuple(one for one in order if one in extras)


def _is_length(node: fx.Node) -> bool:
    """Return whether a node is the size of a tensor in another dim than that of the samples."""
    if len(node.args) != 2 or not isinstance(node.args[1], int) or node.args[1] < 1:
        return False
    if node.op == "call_method":
        return node.target == "size"
    return node.target is operator.getitem and _is_shape(node.args[0])


def _is_shape(node: object) -> bool:
    if not isinstance(node, fx.Node):
        return False
    return (node.target == "size" and len(node.args) == 1) or (
        node.target is getattr and node.args[1] == "shape"
    )


def _problem(block: nn.Module, cut: Cut, sites: Sequence[str]) -> str:
    """Return why a branch cannot be cut out; "" if it can."""
    nodes = set(cut.nodes)
    calls = [one for one in cut.nodes if one.op == "call_module"]
    last = (cut.drop, *cut.tail)[-1]
    if any(one.op == "placeholder" for one in nodes):
        return "its branch takes more than the stream that it is added to"
    if not any(cut.root in one.all_input_nodes for one in nodes):
        return "its branch takes nothing of the stream that it is added to"
    if all(one is cut.drop or one in cut.tail for one in calls):
        return "its branch calls no module"
    if sum(one.target in sites for one in calls) > 1:
        return "another drop path is in its branch"
    for node in cut.nodes:
        outside = not nodes.issuperset(node.users) and node is not last
        if outside and node.op != "get_attr" and not _is_size(node, nodes):
            return f"its block uses {node.name} outside of its branch too"
        if cut.root in node.all_input_nodes and _writes(block, node):
            return f"its branch changes the stream in place, in {node.name}"
    turns = any(str(getattr(one.target, "__name__", one.target)) in _TURNS for one in cut.nodes)
    for one in calls:
        if not turns and getattr(_child(block, one), "batch_first", True) is False:
            return f"{one.target} mixes the dim along which it drops (batch_first=False)"
    return ""


def _is_size(node: fx.Node, inner: set[fx.Node]) -> bool:
    """Return whether a node is made of sizes of what comes before a branch."""
    if node.op == "placeholder":
        return node not in inner
    shape = node.target is getattr and node.args[1] in _SHAPES
    if shape or (node.op == "call_method" and node.target in _SIZES):
        return not inner.intersection(node.all_input_nodes)
    home = getattr(node.target, "__module__", "") if node.op == "call_function" else ""
    inputs = node.all_input_nodes
    return home == "_operator" and bool(inputs) and all(_is_size(one, inner) for one in inputs)


def _child(block: nn.Module, node: fx.Node) -> nn.Module | None:
    """Return the module that a node calls; None where it is a method of the block."""
    try:
        return block.get_submodule(str(node.target))
    except AttributeError:
        return None


def _writes(block: nn.Module, node: fx.Node) -> bool:
    """Return whether a node changes its input in place."""
    if node.op == "call_module":
        return _writes_first(_child(block, node))
    return _writes_by_itself(node)


def _writes_by_itself(node: fx.Node) -> bool:
    name = str(getattr(node.target, "__name__", node.target))
    private = name.endswith("__")
    told = node.kwargs.get("inplace") is True or node.target in _IN_PLACE
    called = node.op in ("call_function", "call_method")
    return called and (told or (name.endswith("_") and not private))


def _writes_first(module: nn.Module | None) -> bool:
    while isinstance(module, nn.Sequential) and len(module):
        module = module[0]
    return getattr(module, "inplace", False) is True
