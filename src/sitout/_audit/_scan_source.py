"""One Python file as the rules of the scan see it: its calls, and what its names mean."""

from __future__ import annotations

import ast
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from ._scan_tree import Bound, Function, Scope, bindings, is_own, methods, parameters

if TYPE_CHECKING:
    from collections.abc import Container, Iterator

    from ._finding import Severity

# Bases that make a module of their class, beside those of torch.nn and those called "...Module".
_MODULES = frozenset({"MessagePassing", "PreTrainedModel", "GradientCheckpointingLayer"})


class Mistake(NamedTuple):
    """What a rule has against a file, at the call that makes the mistake."""

    call: ast.expr
    severity: Severity
    message: str
    fix: str


class Source:
    """A file that is never run.

    Args:
        file: its name for the reader.
        text: what stands in it.

    Raises:
        SyntaxError: it is no Python of this version.
    """

    def __init__(self, file: str, text: str) -> None:
        self.file = file
        self.lines = text.split("\n")
        self.tree = ast.parse(text)
        self._bound: dict[Scope, dict[str, list[Bound]]] = {}

    @cached_property
    def parents(self) -> dict[ast.AST, ast.AST]:
        """The node around each node."""
        found: dict[ast.AST, ast.AST] = {}
        todo: list[ast.AST] = [self.tree]
        for node in todo:
            for name in node._fields:  # ast.iter_child_nodes takes three times as long
                value = getattr(node, name, None)
                for child in value if isinstance(value, list) else (value,):
                    if isinstance(child, ast.AST) and child._fields:
                        found[child] = node
                        todo.append(child)
        return found

    @cached_property
    def nodes(self) -> list[ast.AST]:
        """Every node of the file but the root and the leaves that say nothing."""
        return list(self.parents)

    @cached_property
    def _calls(self) -> list[ast.Call]:
        return [node for node in self.nodes if isinstance(node, ast.Call)]

    def calls(self, names: Container[str]) -> Iterator[tuple[ast.Call, str]]:
        """Yield the calls of imported functions, with the full name.

        Args:
            names: the last parts of the full names that are wanted.
        """
        for call in self._calls:
            if isinstance(call.func, ast.Attribute):
                worth = call.func.attr in names
            else:
                name = getattr(call.func, "id", "")
                worth = name in self._aliases or self.imports.get(name, "").split(".")[-1] in names
            full = self.resolve(call.func) if worth else ""
            if full.rpartition(".")[2] in names:
                yield call, full

    @cached_property
    def _aliases(self) -> set[str]:
        """Names that are given to what has one: ``dropout = F.dropout``."""
        found = (node for node in self.nodes if type(node) is ast.Assign)
        named = (one for one in found if isinstance(one.value, (ast.Name, ast.Attribute)))
        return {target.id for one in named for target in one.targets if type(target) is ast.Name}

    @cached_property
    def classes(self) -> dict[str, ast.ClassDef]:
        """All classes, by name."""
        return {node.name: node for node in self.nodes if isinstance(node, ast.ClassDef)}

    @cached_property
    def uses(self) -> dict[str, list[ast.expr]]:
        """The places that read a name, or an attribute of that name."""
        found: dict[str, list[ast.expr]] = {}
        for node in self.nodes:
            if isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Load):
                name = node.id if isinstance(node, ast.Name) else node.attr
                found.setdefault(name, []).append(node)
        return found

    @cached_property
    def imports(self) -> dict[str, str]:
        """What each imported name stands for: ``F`` for ``torch.nn.functional``."""
        found = {}
        for node in self.nodes:
            if isinstance(node, ast.Import):
                for alias in node.names:
                    root = alias.name.split(".")[0]
                    found[alias.asname or root] = alias.name if alias.asname else root
            elif isinstance(node, ast.ImportFrom):
                base = "." * node.level + (node.module or "")
                for alias in node.names:
                    found[alias.asname or alias.name] = f"{base}.{alias.name}"
        return found

    def around(self, node: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
        """Yield every node around a node, from the inside out, with the child that leads to it."""
        while (parent := self.parents.get(node)) is not None:
            yield node, parent
            node = parent

    def function_of(self, node: ast.AST) -> Function | None:
        """Return the innermost function around a node."""
        return next((f for _, f in self.around(node) if isinstance(f, Function)), None)

    def class_of(self, node: ast.AST) -> ast.ClassDef | None:
        """Return the innermost class around a node."""
        return next((c for _, c in self.around(node) if isinstance(c, ast.ClassDef)), None)

    def scopes(self, node: ast.AST) -> Iterator[Scope]:
        """Yield the functions around a node, from the inside out, and the file."""
        for _, parent in self.around(node):
            if isinstance(parent, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Module)):
                yield parent

    def bound(self, scope: Scope) -> dict[str, list[Bound]]:
        """Return what a function, or the file outside of all, binds its names to."""
        if scope not in self._bound:
            found: dict[str, list[Bound]] = {}
            for name, value, by in bindings(scope):
                found.setdefault(name, []).append(Bound(value, by))
            self._bound[scope] = found
        return self._bound[scope]

    def lookup(self, name: ast.Name) -> tuple[Scope | None, list[Bound]]:
        """Return the scope that a name belongs to and what it is bound to there.

        A parameter counts as bound by its function, to a value that cannot be seen.
        """
        for scope in self.scopes(name):
            found = self.bound(scope).get(name.id, [])
            if isinstance(scope, Function) and name.id in parameters(scope):
                return scope, [Bound(None, scope), *found]
            if found:
                return scope, found
        return None, []

    def callers(self, function: Function) -> list[ast.expr]:
        """Return the places of the file that use a function, or a method over ``self``."""
        cls, uses = self.class_of(function), self.uses.get(function.name, [])
        if cls is None:
            return [use for use in uses if isinstance(use, ast.Name)]
        own = [(use, self.class_of(use)) for use in uses if is_own(use)]
        return [use for use, around in own if around and cls in self.family(around)]

    def resolve(self, node: ast.AST, depth: int = 2) -> str:
        """Return the full dotted name of an expression: ``torch.nn.functional.dropout``; or "".

        A name that starts with a dot was imported from the package of the file.
        """
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if not isinstance(node, ast.Name):
            return ""
        if node.id not in self.imports and node.id not in self._aliases:
            return ""
        scope, bound = self.lookup(node)
        root = ""
        if not isinstance(scope, Function) and node.id in self.imports:
            root = self.imports[node.id]
        elif len(bound) == 1 and depth and isinstance(bound[0].value, (ast.Name, ast.Attribute)):
            root = self.resolve(bound[0].value, depth - 1)
        return ".".join([root, *reversed(parts)]) if root else ""

    def family(self, cls: ast.ClassDef) -> list[ast.ClassDef]:
        """Return a class and its bases in this file."""
        found = [cls]
        for one in found:
            bases = [self.classes.get(base.id) for base in one.bases if isinstance(base, ast.Name)]
            found += [base for base in bases if base is not None and base not in found]
        return found

    def bases(self, cls: ast.ClassDef) -> list[str]:
        """Return the full names of the bases that are not in this file, of the whole family."""
        return [
            self.resolve(base) or ast.unparse(base)
            for one in self.family(cls)
            for base in one.bases
            if not (isinstance(base, ast.Name) and base.id in self.classes)
        ]

    def is_module(self, cls: ast.ClassDef | None) -> bool:
        """Return whether a class looks like a ``torch.nn.Module``."""
        if cls is None:
            return False
        bases = self.bases(cls)
        if any(base.split(".")[-1] == "Function" for base in bases):  # torch.autograd
            return False
        if any(_makes_module(base) for base in bases):
            return True
        for one in self.family(cls):
            if "forward" in methods(one) and any(map(_is_super_init, ast.walk(one))):
                return True
        return False


def _makes_module(base: str) -> bool:
    last = base.split(".")[-1]
    return (
        last.endswith(("Module", "PreTrainedModel"))
        or last in _MODULES
        or base.startswith(("torch.nn.", "sitout.nn."))
    )


def _is_super_init(node: ast.AST) -> bool:
    if not isinstance(node, ast.Attribute) or node.attr != "__init__":
        return False
    made = node.value
    return isinstance(made, ast.Call) and getattr(made.func, "id", "") == "super"
