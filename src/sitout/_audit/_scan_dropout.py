"""The rules of the scan about drops that evaluation does not turn off."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

from ._scan_gate import is_gated, state
from ._scan_known import ATTENTION, DROPS, LAYERS, last_parts
from ._scan_source import Mistake, Source
from ._scan_tree import Function, argument, hides_arguments, inside, parameters

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._finding import Severity

_MEANT = re.compile(r"(?<![A-Z])MC|(?i:\bmc_|_mc\b|_mc_|monte_?carlo|bayes|always)")
_MEANT_COMMENT = re.compile(r"(?i)\beval|\binference|\balways|monte.?carlo|\bmc\b|bayes|on purpose")
_TORCH = "scaled_dot_product_attention"


def always_on(source: Source) -> Iterator[Mistake]:
    """Find calls of dropping functions that evaluation does not turn off."""
    for call, called in source.calls(last_parts(DROPS)):
        drop = DROPS.get(called)
        if drop is None or hides_arguments(call):
            continue
        mode, rate = argument(call, drop.training, drop.mode), argument(call, drop.p, drop.rate)
        if not (drop.default if mode is None else _is_true(source, mode)):
            continue
        severity = None if is_gated(source, call) else _severity(source, call, rate)
        if severity is None:
            continue
        what = f"has no `{drop.mode}=`" if mode is None else f"has `{drop.mode}=True`"
        message = f"`{ast.unparse(call.func)}` {what}, so it drops in evaluation too."
        meant = mode is not None and _is_meant(source, call)
        fix = _remedy(source, call, drop.mode)
        yield Mistake(call, "note" if meant else severity, message, fix)


def _is_true(source: Source, mode: ast.expr) -> bool:
    if isinstance(mode, ast.Name):
        _, bound = source.lookup(mode)
        values = [value for value, _ in bound]
        return bool(values) and all(isinstance(v, ast.Constant) and v.value is True for v in values)
    return isinstance(mode, ast.Constant) and mode.value is True


def _severity(source: Source, call: ast.Call, rate: ast.expr | None) -> Severity | None:
    """Return how grave it is that a call has no mode; None where its rate is turned off."""
    if rate is not None and state(source, rate) in ("off", "gated"):
        return None
    function = source.function_of(call)
    if function is not None and isinstance(rate, ast.Name) and rate.id in parameters(function):
        given = list(_turned_off(source, function, rate.id))
        if any(given):
            return None
        if not given and function.name != "forward":  # nobody here knows what it gets
            return "warning"
    if in_module(source, call):
        return "error"
    around = (parent for _, parent in source.around(call) if isinstance(parent, Function))
    return None if any(one.name.startswith("test") for one in around) else "warning"


def _turned_off(source: Source, function: Function, parameter: str) -> Iterator[bool]:
    """Yield of each call of a function in the file whether evaluation turns its argument off."""
    names = [name for name in parameters(function) if name != "self"]
    for use in source.callers(function):
        call = source.parents[use]
        if isinstance(call, ast.Call) and call.func is use:
            given = argument(call, names.index(parameter), parameter)
            yield given is not None and state(source, given) in ("off", "gated")


def in_module(source: Source, node: ast.AST, depth: int = 3) -> bool:
    """Return whether code belongs to a module, or to a function that only modules call."""
    cls = source.class_of(node)
    if cls is not None:
        return source.is_module(cls)
    function = source.function_of(node)
    uses = source.callers(function) if function else []
    return bool(uses and depth) and all(in_module(source, use, depth - 1) for use in uses)


def _is_meant(source: Source, node: ast.expr) -> bool:
    """Return whether a name around a node, or a comment at it, says that it drops in evaluation."""
    named = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    names = [parent.name for _, parent in source.around(node) if isinstance(parent, named)]
    if any(_MEANT.search(name) for name in names):
        return True
    near = source.lines[max(0, node.lineno - 3) : node.end_lineno]
    return any(_MEANT_COMMENT.search(line.partition("#")[2]) for line in near)


def _remedy(source: Source, call: ast.Call, keyword: str) -> str:
    if in_module(source, call):
        return f"Pass `{keyword}=self.training`; if it is meant, write `# sitout: ignore[A1]`."
    return f"Take `{keyword}` from the caller; if it is meant, write `# sitout: ignore[A1]`."


def made_in_forward(source: Source) -> Iterator[Mistake]:
    """Find dropout layers that a forward makes anew, which no ``eval()`` can reach."""
    for call, layer in source.calls(last_parts(LAYERS)):
        function = source.function_of(call)
        if layer not in LAYERS or function is None or function.name == "__init__":
            continue
        severity = (
            None if is_gated(source, call) else _severity(source, call, argument(call, 0, "p"))
        )
        if severity is not None and _is_run(source, call, function):
            name = ast.unparse(call.func)
            message = f"`{name}` is made where it runs: new, in training mode, it always drops."
            fix = "Make it where the model is built, so that `eval()` reaches it."
            yield Mistake(call, severity, message, fix)


def _is_run(source: Source, call: ast.Call, function: Function) -> bool:
    """Return whether a new layer is called at once, or in a module under a local name."""
    parent = source.parents[call]
    if isinstance(parent, ast.Call) and parent.func is call:
        return True
    if not isinstance(parent, ast.Assign) or not in_module(source, call):
        return False
    names = [one.id for one in parent.targets if isinstance(one, ast.Name)]
    uses = [node for node in inside(function) if isinstance(node, ast.Name) and node.id in names]
    loads = [node for node in uses if isinstance(node.ctx, ast.Load)]
    runs = (isinstance(p := source.parents[node], ast.Call) and p.func is node for node in loads)
    return len(uses) == len(loads) + 1 and bool(loads) and all(runs)


def ungated_attention(source: Source) -> Iterator[Mistake]:
    """Find attention whose drop rate does not depend on the mode."""
    for call, called in source.calls(ATTENTION):
        name = called.rpartition(".")[2]
        if hides_arguments(call) or (name == _TORCH and called != f"torch.nn.functional.{name}"):
            continue
        position, keyword = ATTENTION[name]
        rate = argument(call, position, keyword)
        found = "off" if rate is None else state(source, rate)
        if rate is None or found not in ("open", "outside") or is_gated(source, call):
            continue
        shown = " ".join(ast.unparse(rate).split())
        message = f"`{name}` gets `{keyword}={shown}`, which evaluation does not turn off."
        fix = f"Pass `{keyword}={shown} if self.training else 0.0`."
        sure = found == "open" and in_module(source, call)
        yield Mistake(call, "error" if sure else "warning", message, fix)
