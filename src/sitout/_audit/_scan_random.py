"""The rules of the scan about randomness that is not what it seems."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

from ._scan_source import Mistake, Source
from ._scan_tree import Function, argument, inside, methods

if TYPE_CHECKING:
    from collections.abc import Iterator

_CHECKPOINTS = frozenset({"checkpoint", "checkpoint_sequential", "checkpoint_wrapper"})
_CHECKPOINT = re.compile(r"torch\..*\.checkpoint(_sequential|_wrapper)?")
_DRAWS = frozenset({"random", "uniform", "rand", "random_sample", "binomial"})
_PYTHON = re.compile(r"random\.(random|uniform)|numpy\.random\.\w+")
_KEEP = re.compile(r"(?i)keep|prob|drop|surviv|rate|^p$")
_WIDE = re.compile(r"torch\.(float|float32|float64|double)")


def without_rng(source: Source) -> Iterator[Mistake]:
    """Find checkpoints whose recomputation draws other masks than the forward."""
    for call, called in source.calls(_CHECKPOINTS | {"partial"}):
        function = call.func
        if called == "functools.partial" and call.args:
            function = call.args[0]
        kept = argument(call, len(call.args), "preserve_rng_state")
        if not isinstance(kept, ast.Constant) or kept.value is not False:
            continue
        if any(keyword.arg == "context_fn" for keyword in call.keywords):
            continue
        if _CHECKPOINT.fullmatch(source.resolve(function)):
            message = (
                f"`{ast.unparse(function)}` has `preserve_rng_state=False`: what drops inside "
                "drops other units when it is recomputed, so its gradients are wrong."
            )
            fix = "Leave it out, or give `context_fn=clock.recompute` of a sitout.MaskClock."
            yield Mistake(call, "warning", message, fix)


def python_randomness(source: Source) -> Iterator[Mistake]:
    """Find forwards that ask Python's or numpy's generator what to run."""
    for call, name in source.calls(_DRAWS):
        cls, function = source.class_of(call), source.function_of(call)
        if not _PYTHON.fullmatch(name) or cls is None or function is None:
            continue
        if not source.is_module(cls) or function not in _run_by_forward(cls):
            continue
        if _decides(source, call, function):
            message = (
                f"`{ast.unparse(call.func)}` decides in the forward what runs: torch's seed, "
                "checkpoints and compilers do not know of it."
            )
            fix = "Draw with `torch.rand(())`, or use a layer that drops."
            yield Mistake(call, "note", message, fix)


def _run_by_forward(cls: ast.ClassDef) -> list[Function]:
    """Return the methods that the forward of a class reaches over ``self``, and itself."""
    known = methods(cls)
    todo = [method for name, method in known.items() if name.startswith(("forward", "__call__"))]
    for method in todo:
        for node in ast.walk(method):
            if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "self":
                called = known.get(node.attr)
                if called is not None and called not in todo:
                    todo.append(called)
    return todo


def _decides(source: Source, call: ast.Call, function: Function) -> bool:
    """Return whether a number is compared, at once or under a local name."""
    if _is_compared(source, call):
        return True
    parent = source.parents[call]
    if not isinstance(parent, ast.Assign) or not isinstance(parent.targets[0], ast.Name):
        return False
    name = parent.targets[0].id
    uses = (node for node in inside(function) if isinstance(node, ast.Name) and node.id == name)
    return any(_is_compared(source, use) for use in uses)


def _is_compared(source: Source, node: ast.expr) -> bool:
    for child, parent in source.around(node):
        if isinstance(parent, ast.Compare):
            return True
        if isinstance(parent, (ast.If, ast.IfExp)) and child is parent.test:
            return True
        if isinstance(parent, ast.stmt):
            return False
    return False


def floor_of_keep_plus_rand(source: Source) -> Iterator[Mistake]:
    """Find masks made by flooring, in the dtype of the input, a keep rate plus noise."""
    for call in source.nodes:
        if not isinstance(call, ast.Call):
            continue
        floored = _floored(source, call)
        if floored is not None and _is_keep_plus_rand(source, floored):
            message = (
                "`floor(keep + rand)` in half precision keeps too much, because the sum is "
                "rounded up to 1: keep = 0.999 comes out as 1.0039 in bfloat16."
            )
            fix = "Draw the mask with `bernoulli_(keep)`, or the noise with `dtype=torch.float32`."
            yield Mistake(call, "note", message, fix)


def _floored(source: Source, call: ast.Call) -> ast.expr | None:
    """Return what a call floors: ``x`` of ``torch.floor(x)``, ``x.floor()`` or ``x.floor_()``."""
    if not isinstance(call.func, ast.Attribute) or call.func.attr not in ("floor", "floor_"):
        return None
    if source.resolve(call.func.value) == "torch":
        return call.args[0] if call.args else None
    return call.func.value


def _is_keep_plus_rand(source: Source, node: ast.expr) -> bool:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        pair = (node.left, node.right), (node.right, node.left)
        return any(_is_narrow_noise(source, one) and _is_keep(other) for one, other in pair)
    if not isinstance(node, ast.Name):
        return False
    _, bound = source.lookup(node)
    added = [value for value, by in bound if isinstance(by, ast.AugAssign) and value is not None]
    started = [
        value for value, by in bound if not isinstance(by, ast.AugAssign) and value is not None
    ]
    if any(_is_narrow_noise(source, value) for value in added):
        return any(map(_is_keep, started))
    sums = [value for value in started if isinstance(value, ast.BinOp)]
    return any(_is_keep_plus_rand(source, value) for value in sums)


def _is_narrow_noise(source: Source, node: ast.expr) -> bool:
    """Return whether noise is drawn in a dtype that may be half precision."""
    if not isinstance(node, ast.Call):
        return False
    name = source.resolve(node.func)
    dtype = next((keyword.value for keyword in node.keywords if keyword.arg == "dtype"), None)
    if dtype is None:
        return name == "torch.rand_like"
    return name in ("torch.rand", "torch.rand_like") and not _WIDE.fullmatch(source.resolve(dtype))


def _is_keep(node: ast.expr) -> bool:
    """Return whether an expression is named like a rate, or is one minus something."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub):
        return isinstance(node.left, ast.Constant)
    name = getattr(node, "id", None) or getattr(node, "attr", None)
    return isinstance(name, str) and _KEEP.search(name) is not None
