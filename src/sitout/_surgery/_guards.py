"""Which conditions in the code of a user only guard it: an assert, or what raises."""

from __future__ import annotations

import ast
import linecache
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

_MACHINERY = ("torch.fx.", "sitout._surgery.")


def outcome(frame: FrameType | None) -> bool | None:
    """Return what a condition must be for the code to go on; None if it decides something else.

    Args:
        frame: of what asks for its truth; the first one around it that follows no forward has the
            condition.
    """
    while frame is not None and frame.f_globals.get("__name__", "").startswith(_MACHINERY):
        frame = frame.f_back
    if frame is None:
        return None
    line = frame.f_lineno
    guards = [
        (test, wanted)
        for test, wanted in _guards(frame.f_code.co_filename)
        if test.lineno <= line <= (test.end_lineno or test.lineno)
    ]
    if not guards:
        return None
    test, wanted = guards[-1]
    negated = isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)
    return wanted is not negated


@lru_cache(maxsize=64)
def _guards(file: str) -> list[tuple[ast.expr, bool]]:
    """Return the tests of a file that must hold, or must not, for its code to go on."""
    try:
        tree = ast.parse("".join(linecache.getlines(file)))
    except SyntaxError:
        return []
    found: list[tuple[ast.expr, bool]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):
            found.append((node.test, True))
        elif isinstance(node, ast.If) and isinstance(node.body[0], ast.Raise):
            found.append((node.test, False))
    return sorted(found, key=lambda guard: guard[0].lineno)
