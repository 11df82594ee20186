"""The code of a thinned block: its residual branches become calls of the sites that drop them."""

from __future__ import annotations

import importlib
import linecache
import re
from functools import cache
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ._block_cuts import Cut


class Code:
    """A function whose source was made here. Equal sources are one function, as compilers like.

    Args:
        text: its definition; it reads what is not given to it from the block, its first argument.
        names: the globals of that.
    """

    def __init__(self, text: str, names: dict[str, Any]) -> None:
        self.text, self.names = text, names
        self.function = _function(text, tuple(names.items()))

    def __reduce__(self) -> Any:
        modules = {key: one.__name__ for key, one in self.names.items() if _is_module(one)}
        rest = {key: one for key, one in self.names.items() if key not in modules}
        return _code, (self.text, modules, rest)


def _is_module(value: object) -> bool:
    return isinstance(value, ModuleType)


def _code(text: str, modules: dict[str, str], rest: dict[str, Any]) -> Code:
    found = {key: importlib.import_module(name) for key, name in modules.items()}
    return Code(text, {**found, **rest})


@cache
def _function(text: str, names: tuple[tuple[str, Any], ...]) -> FunctionType:
    file = f"<sitout block {_function.cache_info().currsize}>"
    scope = dict(names)
    exec(compile(text, file, "exec"), scope)
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    made: FunctionType = scope["forward"]
    return made


def code_of(graph: fx.Graph) -> Code:
    """Return the function that a graph says, of the block and its placeholders."""
    made = graph.python_code("self")
    used = set(re.findall(r"\w+", made.src))
    return Code(made.src, {key: one for key, one in made.globals.items() if key in used})


class Branch:
    """The part of a block that is computed on the kept samples.

    Args:
        block: that it reads children and parameters from when it is called.
        code: of the block, what the branch takes, and ``extras``.
        inside: the names of the children that it calls, "" for any.
        extras: what else it reads.
    """

    def __init__(
        self, block: nn.Module, code: Code, inside: tuple[str, ...], extras: tuple[Any, ...] = ()
    ) -> None:
        self.block, self.code, self.inside, self.extras = block, code, inside, extras

    def on(self, *extras: Any) -> Branch:
        """Return the branch for what else it reads in this call."""
        return Branch(self.block, self.code, self.inside, extras)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.code.function(self.block, x, *self.extras)
        return out

    def modules(self) -> Iterator[nn.Module]:
        """Yield the modules that it may call."""
        for name in self.inside:
            yield from self.block.get_submodule(name).modules()


def thinned(
    block: nn.Module, graph: fx.Graph, cuts: Sequence[Cut]
) -> tuple[Code, tuple[Branch, ...]]:
    """Return the code of a block, of its inputs and its branches, and these.

    Args:
        block: whose forward it is.
        graph: of its forward.
        cuts: the branches.
    """
    made = fx.Graph()
    known: dict[fx.Node, fx.Node] = {}
    gone = _gone(graph, cuts)
    at = {cut.add: (i, cut) for i, cut in enumerate(cuts)}
    branches: list[fx.Node] = []
    for node in graph.nodes:
        if node.op != "placeholder" and not branches:
            branches = [made.placeholder(f"branch_{i}") for i in range(len(cuts))]
        if node in at:
            i, cut = at[node]
            known[node] = _call(made, cut, branches[i], known)
        elif node not in gone:
            known[node] = made.node_copy(node, known.__getitem__)
    return code_of(made), tuple(_branch(block, cut) for cut in cuts)


def _gone(graph: fx.Graph, cuts: Sequence[Cut]) -> set[fx.Node]:
    """Return the nodes that are in the branches alone."""
    inner = {node for cut in cuts for node in cut.nodes}
    sums = {cut.add for cut in cuts}
    gone: set[fx.Node] = set()
    for node in reversed(list(graph.nodes)):
        if node in inner and (gone | sums).issuperset(node.users):
            gone.add(node)
    return gone


def _call(made: fx.Graph, cut: Cut, branch: fx.Node, known: dict[fx.Node, fx.Node]) -> fx.Node:
    """Add the call of a site in the place of a sum."""
    if cut.extras:
        extras = tuple(known[one] for one in cut.extras)
        branch = made.create_node("call_method", "on", (branch, *extras))
    given = [known[cut.stream], branch]
    if cut.root is not cut.stream:
        given.append(known[cut.root])
    return made.create_node("call_module", f"{cut.site}.add", tuple(given))


def _branch(block: nn.Module, cut: Cut) -> Branch:
    made = fx.Graph()
    known = {node: made.placeholder(node.name) for node in (cut.root, *cut.extras)}
    for node in cut.nodes:
        if node is cut.drop:
            known[node] = known[node.all_input_nodes[0]]
        else:
            known[node] = made.node_copy(node, known.__getitem__)
    made.output(known[(cut.drop, *cut.tail)[-1]])
    nodes = [node for node in cut.nodes if node.op == "call_module" and node is not cut.drop]
    called = [str(node.target) for node in nodes]
    names = {name for name, _ in block.named_modules(remove_duplicate=False)}
    inside = tuple(dict.fromkeys(called)) if names.issuperset(called) else ("",)
    return Branch(block, code_of(made), inside)
