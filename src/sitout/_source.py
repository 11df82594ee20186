"""What the source of a class says: which attributes its forward reads, which drops it calls."""

from __future__ import annotations

import ast
import inspect
import textwrap
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar, cast
from weakref import WeakKeyDictionary

from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")

DROPPING = frozenset(
    {
        *("dropout", "dropout_", "dropout1d", "dropout2d", "dropout3d", "native_dropout"),
        *("alpha_dropout", "alpha_dropout_", "feature_dropout", "feature_alpha_dropout"),
        *("drop_path", "stochastic_depth", "drop_block2d", "drop_block3d"),
        *("scaled_dot_product_attention", "flash_attn_func", "flash_attn_qkvpacked_func"),
        *("flash_attn_varlen_func", "dropout_edge", "dropout_node", "dropout_path"),
    }
)


# PyG's message passing calls the others by way of generated code.
_ROOTS = ("forward", "message", "edge_update", "aggregate", "update")


def kept_by_class(function: Callable[..., T]) -> Callable[..., T]:
    """Keep what a function of a class returns, for as long as the class lives."""
    kept: WeakKeyDictionary[Any, dict[tuple[Any, ...], T]] = WeakKeyDictionary()

    @wraps(function)
    def keeping(made: Any, *rest: Any) -> T:
        mine = kept.setdefault(made, {})
        if rest not in mine:
            mine[rest] = function(made, *rest)
        return mine[rest]

    return keeping


@dataclass(frozen=True)
class Call:
    """A call of a function that drops, in the source of a class.

    Args:
        function: its name, ``dropout``.
        home: the module that the function comes from, ``torch.nn.functional``.
        file: of the source.
        line: in the file.
        text: the call as it stands there.
    """

    function: str
    home: str
    file: str
    line: int
    text: str


@kept_by_class
def reads(made: type[nn.Module]) -> frozenset[str]:
    """Return the attributes of ``self`` that the forward of a class reads, by their paths.

    ``self.dropout`` gives ``dropout``, ``self.config.layerdrop`` gives ``config.layerdrop``. What
    the methods that it calls read counts too.
    """
    return frozenset(
        path_of(node) for _, node in _nodes(made) if isinstance(node, ast.Attribute)
    ) - {""}


def calls(made: type[nn.Module]) -> tuple[Call, ...]:
    """Return the calls of dropping functions in the forward of a class and its helper methods."""
    found = []
    for method, node in _nodes(made):
        if isinstance(node, ast.Call):
            target = _resolve(node.func, method.names)
            name = getattr(target, "__name__", "")
            if name in DROPPING and not inspect.isclass(target):
                line = method.line + node.lineno - 1
                home = getattr(target, "__module__", None) or ""
                found.append(Call(name, home, method.file, line, ast.unparse(node)))
    return tuple(found)


@dataclass(frozen=True)
class Statement:
    """A statement in the forward of a class, without the block under it.

    Args:
        file: of the source.
        first: line in the file.
        last: line in the file.
        reads: attributes of ``self`` that it reads, by their paths.
        numbers: literal numbers in it.
    """

    file: str
    first: int
    last: int
    reads: frozenset[str]
    numbers: frozenset[float]


def statement(made: type[nn.Module], source: str | None) -> Statement | None:
    """Return the innermost statement that stands at ``file.py:12`` in the forward of a class."""
    file, _, line = (source or "").rpartition(":")
    found = [
        one
        for one in (_statements(cast("Any", made)) if file else ())
        if one.file == file and one.first <= int(line) <= one.last
    ]
    return min(found, key=lambda one: one.last - one.first, default=None)


@kept_by_class
def _statements(made: Any) -> tuple[Statement, ...]:
    found = []
    for method, node in _nodes(made):
        if isinstance(node, ast.stmt) and not isinstance(node, ast.FunctionDef):
            first = node.lineno
            body = getattr(node, "body", None)
            last = node.end_lineno or first
            parts = list(ast.iter_child_nodes(node))
            if body:
                last = max(body[0].lineno - 1, first)
                parts = [part for part in parts if isinstance(part, ast.expr)]
            inner = [one for part in parts for one in ast.walk(part)]
            paths = {path_of(one) for one in inner if isinstance(one, ast.Attribute)}
            values = [one.value for one in inner if isinstance(one, ast.Constant)]
            numbers = {float(value) for value in values if isinstance(value, (int, float))}
            add = method.line - 1
            found.append(
                Statement(
                    *(method.file, first + add, last + add),
                    *(frozenset(paths - {""}), frozenset(numbers)),
                )
            )
    return tuple(found)


def is_readable(made: Any) -> bool:
    """Return whether the source of a forward can be read, not that of a class from a shell."""
    return _method(made, "forward") is not None


@dataclass(frozen=True)
class Method:
    """A method with its tree, whose line 1 is ``line`` of the file."""

    name: str
    tree: ast.AST
    file: str
    line: int
    names: dict[str, Any]


def methods(made: type[nn.Module]) -> list[Method]:
    """Return the forward of a class and every method that it reaches over ``self``."""
    return list({id(method): method for method, _ in _nodes(made)}.values())


def _nodes(made: type[nn.Module]) -> Iterator[tuple[Method, ast.AST]]:
    """Yield the nodes of the forward and of every method that it reaches over ``self``."""
    todo, seen = [*_ROOTS], {*_ROOTS}
    while todo:
        method = _method(cast("Any", made), todo.pop())
        if method is None:
            continue
        for node in ast.walk(method.tree):
            yield method, node
            path = path_of(node) if isinstance(node, ast.Attribute) else ""
            if path and path not in seen and inspect.isroutine(getattr(made, path, None)):
                seen.add(path)
                todo.append(path)


@kept_by_class
def _method(made: Any, name: str) -> Method | None:
    """Return a method with its tree; None if it is torch's own or has no source."""
    function = inspect.unwrap(getattr(made, name, None))  # type: ignore[arg-type]
    if not inspect.isfunction(function) or getattr(nn.Module, name, None) is function:
        return None
    try:
        lines, line = inspect.getsourcelines(function)
        tree = ast.parse(textwrap.dedent("".join(lines)))
    except (OSError, SyntaxError, TypeError):
        return None
    return Method(name, tree, inspect.getsourcefile(function) or "", line, function.__globals__)


def path_of(node: ast.AST) -> str:
    """Return ``a.b`` for the node of ``self.a.b``; "" if it does not start at ``self``."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if isinstance(node, ast.Name) and node.id == "self":
        return ".".join(reversed(parts))
    return ""


def _resolve(node: ast.AST, names: dict[str, Any]) -> Any:
    """Return what a dotted name stands for among the globals of its file; None if unknown."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return None
    found = names.get(node.id)
    for part in reversed(parts):
        found = getattr(found, part, None)
    return found
