"""The way from a call that drops to the layers around it, in the graph of a forward."""

from __future__ import annotations

from operator import getitem
from typing import TYPE_CHECKING

from . import _eligible as rules
from ._elementwise import POOLS, name_of, only_asks, operands

if TYPE_CHECKING:
    from torch import nn
    from torch.fx import Node

    from ._graph import Trace


class Walk:
    """The way from a call that drops, back to the layers before it and on to those behind it.

    Args:
        trace: that the call is of.
        held: the names of the model.
        site: the call.

    Attributes:
        before: the layers whose units drop.
        norms: the batch normalizations in between.
        behind: the layers that read the units.
        pool: what pools in between; "" for nothing.
        problem: the first thing that is in the way.
    """

    def __init__(self, trace: Trace, held: rules.Held, site: Node) -> None:
        self.before: list[nn.Module] = []
        self.norms: list[nn.Module] = []
        self.behind: list[nn.Module] = []
        self.pool = self.problem = ""
        self._trace, self._held = trace, held
        self._back(site)
        self._on(site)

    def names(self, modules: list[nn.Module]) -> list[str]:
        """Return the names of modules."""
        return list(dict.fromkeys(self._held.name(module) for module in modules))

    def _stop(self, problem: str) -> None:
        self.problem = self.problem or problem

    def _back(self, site: Node) -> None:
        inside, todo = {site}, list(site.all_input_nodes[:1])
        while todo:
            node = todo.pop()
            if node in inside:
                continue
            inside.add(node)
            module = self._trace.modules.get(node)
            if isinstance(module, rules.LAYERS):
                self.before.append(module)
                continue
            if isinstance(module, rules.NORMS):
                self.norms.append(module)
                values = node.all_input_nodes[:1]
            else:
                values = self._operands(node, behind=False) or []
            if not values:
                inside.discard(node)
                self._stop(f"{self._say(node)} stands before it, and is not elementwise")
            todo += values
        self.before.reverse()
        for node in inside - {site}:
            for user in node.users:
                if user not in inside and not only_asks(user):
                    self._stop(f"{self._say(user)} reads {self._say(node)} too")

    def _on(self, site: Node) -> None:
        inside = {site}
        for node in self._trace.graph.nodes:
            values = [value for value in node.all_input_nodes if value in inside]
            if not values or only_asks(node):
                continue
            module = self._trace.modules.get(node)
            if isinstance(module, rules.LAYERS) and len(node.all_input_nodes) == 1:
                self.behind.append(module)
                continue
            taken = self._operands(node, behind=True)
            if taken and all(value in inside for value in taken):
                inside.add(node)
            else:
                self._stop(self._why_not_behind(node, inside))
        if not self.behind:
            self._stop("no layer behind it reads it")

    def _why_not_behind(self, node: Node, inside: set[Node]) -> str:
        if node.target is getattr:
            return f"its {node.args[1]} is read, where other units may be missing"
        taken = self._operands(node, behind=False)
        if taken and inside.issuperset(taken):
            return f"{self._say(node)} behind it does not keep the scale of the units"
        return f"{self._say(node)} reads it, and is no layer that can skip units"

    def _operands(self, node: Node, *, behind: bool) -> list[Node] | None:
        if name_of(self._trace, node) in POOLS:
            self.pool = self.pool or self._say(node)
        return operands(self._trace, node, behind=behind)

    def _say(self, node: Node) -> str:
        """Return what a node is, in words."""
        module = self._trace.modules.get(node)
        if module is not None:
            return f"{self._held.name(module)} ({type(module).__name__})"
        if node.op == "placeholder":
            return f"the argument {node.target!r} of {type(self._trace.module).__name__}"
        if node.op == "output":
            return f"the result of {type(self._trace.module).__name__}"
        if node.op == "get_attr":
            return str(node.target)
        if node.target is getitem:
            return f"an item of {self._say(node.all_input_nodes[0])}"
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        return f"{name}()"
