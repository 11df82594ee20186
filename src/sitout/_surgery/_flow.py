"""Which attributes of ``self`` a value in a forward comes from, over local names and arguments."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Any

from .._source import methods, path_of

if TYPE_CHECKING:
    from torch import nn

    from .._source import Call, Method


def sources(made: type[nn.Module], call: Call, value: ast.expr) -> frozenset[str]:
    """Return the paths that a value in a call comes from: ``self.rate``, also by way of ``p``.

    Args:
        made: the class whose forward makes the call.
        call: that the value stands in.
        value: an expression in it.
    """
    all_of_it = methods(made)
    home = next((one for one in all_of_it if _holds(one, call)), None)
    paths, todo, seen = set[str](), [(home, value)], set[tuple[str, str]]()
    while todo:
        method, expression = todo.pop()
        for node in ast.walk(expression):
            paths.add(path_of(node))
            if method is None or not isinstance(node, ast.Name) or node.id == "self":
                continue
            if (method.name, node.id) not in seen:
                seen.add((method.name, node.id))
                todo += [(method, one) for one in _assigned(method, node.id)]
                todo += _given(method, node.id, all_of_it)
    return frozenset(paths - {""})


def _holds(method: Method, call: Call) -> bool:
    last = getattr(method.tree, "end_lineno", 0)
    lines = [node.end_lineno or 0 for node in ast.walk(method.tree) if isinstance(node, ast.stmt)]
    inside = method.line <= call.line < method.line + max(last, *lines)
    return inside and method.file == call.file


def _assigned(method: Method, name: str) -> list[ast.expr]:
    """Return what a local name is set to in a method."""
    found: list[ast.expr] = []
    for node in ast.walk(method.tree):
        targets: list[Any] = list(getattr(node, "targets", []))
        if isinstance(node, (ast.AnnAssign, ast.NamedExpr, ast.AugAssign, ast.For)):
            targets.append(node.target)
        inner = [one for target in targets for one in ast.walk(target)]
        value = getattr(node, "iter" if isinstance(node, ast.For) else "value", None)
        if value is not None and any(isinstance(one, ast.Name) and one.id == name for one in inner):
            found.append(value)
    return found


def _given(method: Method, name: str, callers: list[Method]) -> list[tuple[Method, ast.expr]]:
    """Return what other methods hand to an argument of a method."""
    tree: Any = next((one for one in ast.walk(method.tree) if isinstance(one, ast.FunctionDef)), 0)
    names = [one.arg for one in (*tree.args.posonlyargs, *tree.args.args)] if tree else []
    names = names[1:] if names[:1] == ["self"] else names
    found = []
    for caller in callers:
        for node in ast.walk(caller.tree):
            if isinstance(node, ast.Call) and path_of(node.func) == method.name:
                found += [(caller, word.value) for word in node.keywords if word.arg == name]
                at = names.index(name) if name in names else len(node.args)
                found += [(caller, one) for one in node.args[at : at + 1]]
    return found
