"""Whether evaluation turns a drop off: by a branch around its call, or through its rate."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING, Literal

from ._scan_source import Source
from ._scan_tree import Function, is_own, methods, parameters

if TYPE_CHECKING:
    from collections.abc import Iterable

# off: zero. gated: it depends on the mode. open: it does not. outside: someone else's attribute,
# which nobody here sees. unknown: a caller's matter, or more than a scan can see.
State = Literal["off", "gated", "open", "outside", "unknown"]

_MODE = re.compile(
    r"(?:is|in)?train(?:ing|s)?|deterministic|eval(?:uat\w*)?|inference|test(?:ing)?"
)
_TRAINING = re.compile(r"(?:is|in)?train(?:ing|s)?")
_ENDS = (ast.Return, ast.Raise, ast.Continue, ast.Break)
_DEPTH = 3


def speaks_of(pattern: re.Pattern[str], name: str) -> bool:
    """Return whether a word of a name matches: ``is_training``, ``forwardTrain``."""
    words = re.split(r"_+|(?<=[a-z0-9])(?=[A-Z])", name)
    return any(pattern.fullmatch(word.lower()) for word in words)


def asks_mode(source: Source, node: ast.AST, depth: int = _DEPTH) -> bool:
    """Return whether an expression depends on the mode, itself or through names and methods."""
    for part in ast.walk(node):
        if isinstance(part, ast.Constant) and part.value == "training":  # getattr(self, "training")
            return True
        name = getattr(part, "id", None) or getattr(part, "attr", None)
        if isinstance(name, str) and speaks_of(_MODE, name):
            return True
        if depth and isinstance(part, ast.Name) and _name_asks_mode(source, part, depth - 1):
            return True
        if depth and _attribute_asks_mode(source, part, depth - 1):
            return True
    return False


def _name_asks_mode(source: Source, name: ast.Name, depth: int) -> bool:
    scope, bound = source.lookup(name)
    if not isinstance(scope, Function):
        return False
    return any(
        value is not None and (asks_mode(source, value, depth) or _in_a_branch(source, by, depth))
        for value, by in bound
    )


def _attribute_asks_mode(source: Source, attribute: ast.AST, depth: int) -> bool:
    """Return whether a property or an assignment of ``self.x`` depends on the mode."""
    cls = source.class_of(attribute)
    if cls is None or not is_own(attribute):
        return False
    for one in source.family(cls):
        method = methods(one).get(attribute.attr)
        if method is not None and asks_mode(source, method, depth):
            return True
    return any(
        asks_mode(source, value, depth) or _in_a_branch(source, by, depth)
        for value, by in assigned(source, attribute)
    )


def assigned(source: Source, attribute: ast.Attribute) -> list[tuple[ast.expr, ast.AST]]:
    """Return what the class around ``self.x``, or a base in the file, assigns to it, and where."""
    cls = source.class_of(attribute)
    found: list[tuple[ast.expr, ast.AST]] = []
    for node in (node for one in (source.family(cls) if cls else []) for node in ast.walk(one)):
        if isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign)) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            named = [target.attr for target in targets if is_own(target)]
            found += [(node.value, node)] * (attribute.attr in named)
    return found


def is_gated(source: Source, node: ast.AST, depth: int = _DEPTH) -> bool:
    """Return whether a call runs only where the mode allows it.

    It does under ``if self.training:``, after ``if not self.training: return``, and in a function
    that only such places call, or whose name says so.
    """
    if _in_a_branch(source, node, depth):
        return True
    function = source.function_of(node)
    while function is not None:
        if speaks_of(_TRAINING, function.name) or _is_called_gated(source, function, depth):
            return True
        function = source.function_of(function)
    return False


def _is_called_gated(source: Source, function: Function, depth: int) -> bool:
    if not depth or function.name.startswith("__") or function.name == "forward":
        return False
    uses = source.callers(function)
    return bool(uses) and all(is_gated(source, use, depth - 1) for use in uses)


def _in_a_branch(source: Source, node: ast.AST, depth: int = _DEPTH) -> bool:
    return any(
        _opens(source, child, parent, depth) or _follows_an_exit(source, child, parent, depth)
        for child, parent in source.around(node)
    )


def _opens(source: Source, child: ast.AST, parent: ast.AST, depth: int) -> bool:
    """Return whether a branch that the mode decides leads from a node to its child."""
    if isinstance(parent, (ast.If, ast.IfExp, ast.While)) and child is not parent.test:
        if not asks_mode(source, parent.test, depth):
            return False
        body = parent.body if isinstance(parent.body, list) else [parent.body]
        return child in body or not _is_a_part(parent.test)
    if isinstance(parent, ast.BoolOp) and child in parent.values:
        before = parent.values[: parent.values.index(child)]
        return any(asks_mode(source, value, depth) for value in before)
    return False


def _follows_an_exit(source: Source, child: ast.AST, parent: ast.AST, depth: int) -> bool:
    """Return whether a statement before the child leaves the block where the mode says so."""
    for name in ("body", "orelse", "finalbody"):
        block = getattr(parent, name, None)
        if isinstance(block, list) and child in block:
            return any(_leaves(source, one, depth) for one in block[: block.index(child)])
    return False


def _leaves(source: Source, statement: ast.stmt, depth: int) -> bool:
    if isinstance(statement, ast.Assert):
        return asks_mode(source, statement.test, depth)
    if not isinstance(statement, ast.If) or _is_a_part(statement.test):
        return False
    last = [block[-1] for block in (statement.body, statement.orelse) if block]
    return any(isinstance(one, _ENDS) for one in last) and asks_mode(source, statement.test, depth)


def _is_a_part(test: ast.expr) -> bool:
    """Return whether a test is ``something and self.training``: its else says nothing."""
    return isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And)


def state(source: Source, rate: ast.expr, depth: int = _DEPTH) -> State:
    """Return whether evaluation turns a rate off."""
    if asks_mode(source, rate):
        return "gated"
    if isinstance(rate, ast.Constant):
        return "off" if not rate.value else "open"
    if isinstance(rate, ast.Name):
        return _state_of_name(source, rate, depth)
    if isinstance(rate, ast.Attribute):
        return _state_of_attribute(source, rate)
    parts = _parts(rate)
    return "unknown" if parts is None else _joined(state(source, part, depth) for part in parts)


def _parts(rate: ast.expr) -> list[ast.expr] | None:
    """Return the expressions that a rate is made of; None where it cannot be told."""
    if isinstance(rate, ast.IfExp):
        return [rate.body, rate.orelse]
    if isinstance(rate, ast.BoolOp):
        return rate.values
    if isinstance(rate, ast.BinOp):
        return [rate.left, rate.right]
    if isinstance(rate, ast.Call) and getattr(rate.func, "id", "") in ("float", "max", "min"):
        return rate.args
    return None


def _joined(states: Iterable[State]) -> State:
    """Return the state of what is made of several: only the weakest claim holds."""
    found = set(states)
    order: tuple[State, ...] = ("gated", "unknown", "outside", "open")
    return next((one for one in order if one in found), "off")


def _state_of_name(source: Source, name: ast.Name, depth: int) -> State:
    _, bound = source.lookup(name)
    if not bound or not depth or any(value is None for value, _ in bound):
        return "unknown"
    return _joined(state(source, value, depth - 1) for value, _ in bound if value is not None)


def _state_of_attribute(source: Source, rate: ast.Attribute) -> State:
    cls, root = source.class_of(rate), rate
    while isinstance(root.value, ast.Attribute):
        root = root.value
    if cls is None or not is_own(root):
        function = source.function_of(rate)
        given = function is not None and getattr(root.value, "id", "") in parameters(function)
        return "outside" if given else "unknown"
    known = [method for one in source.family(cls) for method in methods(one).items()]
    switches = [method for name, method in known if name in ("train", "eval")]
    if any(root.attr == getattr(node, "attr", "") for one in switches for node in ast.walk(one)):
        return "gated"
    values = [value for value, _ in assigned(source, root)]
    if not values or root.attr in dict(known):
        return "outside"  # a base in another file knows it, or a property
    zero = all(isinstance(value, ast.Constant) and not value.value for value in values)
    return "off" if zero and root is rate else "open"
