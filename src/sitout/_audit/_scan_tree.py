"""What a syntax tree says of itself: parameters, arguments, and what binds a name."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, NamedTuple, TypeGuard

if TYPE_CHECKING:
    from collections.abc import Iterator

Function = ast.FunctionDef | ast.AsyncFunctionDef
Scope = Function | ast.Module


class Bound(NamedTuple):
    """A statement that gives a name a value; None where the value cannot be seen."""

    value: ast.expr | None
    by: ast.AST


def methods(cls: ast.ClassDef) -> dict[str, Function]:
    """Return the methods of a class, without those of its bases."""
    return {node.name: node for node in cls.body if isinstance(node, Function)}


def parameters(function: Function) -> list[str]:
    """Return the names of all parameters."""
    given = function.args
    several = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
    return [one.arg for one in several if one is not None]


def argument(call: ast.Call, position: int, name: str) -> ast.expr | None:
    """Return an argument of a call; None where it is not given."""
    for keyword in call.keywords:
        if keyword.arg == name:
            return keyword.value
    return call.args[position] if position < len(call.args) else None


def hides_arguments(call: ast.Call) -> bool:
    """Return whether a call has ``*args`` or ``**kwargs``, so that nobody sees what it gets."""
    starred = any(isinstance(one, ast.Starred) for one in call.args)
    return starred or any(keyword.arg is None for keyword in call.keywords)


def is_own(node: ast.AST) -> TypeGuard[ast.Attribute]:
    """Return whether a node is ``self.x``."""
    return isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "self"


def inside(scope: Scope) -> Iterator[ast.AST]:
    """Yield the nodes of a scope, without those of the functions and classes in it."""
    todo: list[ast.AST] = list(scope.body)
    for node in todo:
        yield node
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
            todo.extend(ast.iter_child_nodes(node))


def bindings(scope: Scope) -> Iterator[tuple[str, ast.expr | None, ast.AST]]:
    """Yield every name that a scope binds, its value where that is seen, and the statement."""
    for node in inside(scope):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                yield from _pairs(target, node.value, node)
        elif isinstance(node, (ast.AnnAssign, ast.AugAssign, ast.NamedExpr)):
            if node.value is not None:
                yield from _pairs(node.target, node.value, node)
        elif isinstance(node, (ast.For, ast.AsyncFor, ast.comprehension)):
            yield from _pairs(node.target, None, node)
        elif isinstance(node, ast.withitem) and node.optional_vars is not None:
            yield from _pairs(node.optional_vars, None, node)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name, None, node


def _pairs(
    target: ast.expr, value: ast.expr | None, by: ast.AST
) -> Iterator[tuple[str, ast.expr | None, ast.AST]]:
    if isinstance(target, ast.Name):
        yield target.id, value, by
    elif isinstance(target, (ast.Tuple, ast.List)):
        values: list[ast.expr | None] = [None] * len(target.elts)
        if isinstance(value, (ast.Tuple, ast.List)) and len(value.elts) == len(target.elts):
            values = list(value.elts)
        for one, its in zip(target.elts, values, strict=True):
            yield from _pairs(one, its, by)
    elif isinstance(target, ast.Starred):
        yield from _pairs(target.value, None, by)
