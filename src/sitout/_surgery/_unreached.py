"""What drops in a model besides its layers, from the source of its classes: in readable lines."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .._rates import kind_of, rate_attribute, rates
from .._source import Call, calls, is_readable, reads
from ..nn._base import Site as Layer
from ._flow import sources

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_RATE_NAMES = ("p", "dropout_p", "drop_prob")
_ATTENTION = {
    "scaled_dot_product_attention": 4,
    "flash_attn_func": 3,
    "flash_attn_qkvpacked_func": 1,
    "flash_attn_varlen_func": 7,
}


def grouped(found: Iterable[tuple[str, str]]) -> list[str]:
    """Return one line for each thing that was found, with the modules that it was found at.

    Args:
        found: pairs of the thing and the qualified name of a module.
    """
    names: dict[str, list[str]] = {}
    for what, name in found:
        names.setdefault(what, []).append(name)
    return [f"{what}: {_at(some)}" for what, some in names.items()]


def _at(names: list[str]) -> str:
    first = repr(names[0]) if names[0] else "the model itself"
    return first if len(names) == 1 else f"{len(names)} modules, the first {first}"


def dropping_calls(module: nn.Module) -> list[Call]:
    """Return the calls in the forward of a module that can drop and are not sitout's own."""
    found = calls(type(module))
    return [call for call in found if not call.home.startswith("sitout.") and _can_drop(call)]


def has_code(module: nn.Module) -> bool:
    """Return whether a forward is neither torch's nor sitout's, and so may call anything."""
    home: str = type(module).forward.__module__
    return "forward" in vars(module) or not home.startswith(("torch.nn.modules.", "sitout.nn."))


def unfed(module: nn.Module, keys: set[tuple[int, str]]) -> list[Call]:
    """Return the dropping calls of a forward whose rate is none that lives in a known place.

    Such as one in the source, ``F.dropout(x, 0.5)``, or in a dict, ``self.cfg["dropout"]``.

    Args:
        module: any.
        keys: of the known places.
    """
    return [call for call in dropping_calls(module) if not _is_fed(module, call, keys)]


def _is_fed(module: nn.Module, call: Call, keys: set[tuple[int, str]]) -> bool:
    node, told = _rate(call)
    if node is None:
        return not told  # what **options hold is not known
    return any(_key(module, path) in keys for path in sources(type(module), call, node))


def _key(module: nn.Module, path: str) -> tuple[int, str]:
    """Return the key of the place that ``self.path`` reads, as :class:`Rate` has it."""
    holder: Any = module
    *first, attribute = path.split(".")
    for part in first:
        holder = getattr(holder, part, None)
    return id(holder), attribute


def _can_drop(call: Call) -> bool:
    node, told = _rate(call)
    if node is None:
        return not told or call.function not in _ATTENTION
    return not (isinstance(node, ast.Constant) and node.value == 0)


def _rate(call: Call) -> tuple[ast.expr | None, bool]:
    """Return the rate in a call, None for the default, and whether the source tells."""
    node = ast.parse(call.text, mode="eval").body
    if not isinstance(node, ast.Call):
        return None, False
    named = next((word.value for word in node.keywords if word.arg in _RATE_NAMES), None)
    at = _ATTENTION.get(call.function, 1)
    placed = node.args[at] if len(node.args) > at else None
    hidden = any(isinstance(one, ast.Starred) for one in node.args)
    hidden = hidden or any(word.arg is None for word in node.keywords)
    found = named if named is not None else placed
    return found, found is not None or not hidden


def line_of(call: Call, module: nn.Module) -> str:
    """Return ``dropout() in Net, net.py:12``."""
    return f"{call.function}() in {type(module).__name__}, {Path(call.file).name}:{call.line}"


def unread(module: nn.Module) -> str:
    """Return a line for a forward that may call anything and cannot be read; "" for others."""
    if not has_code(module) or is_readable(type(module)) or hasattr(module, "_orig_mod"):
        return ""
    return f"what {type(module).__name__} may call, for its source cannot be read"


def held_beside(model: nn.Module) -> dict[int, str]:
    """Return the ids of modules that one holds outside of its children too: ``Net.drops``."""
    bare = vars(nn.Module())
    found: dict[int, str] = {}
    for module in model.modules():
        for key, value in vars(module).items():
            if key not in bare:
                where = f"{type(module).__name__}.{key}"
                found.update({id(one): where for one in _modules_in(value)})
    return found


def _modules_in(value: object, depth: int = 4) -> Iterator[nn.Module]:
    """Yield the modules in a value, and in plain collections."""
    if isinstance(value, nn.Module):
        yield value
    elif isinstance(value, (list, tuple, set, frozenset, dict)) and depth:
        for one in value.values() if isinstance(value, dict) else value:
            yield from _modules_in(one, depth - 1)


def other_layers(
    model: nn.Module, known: set[int], beside: dict[int, str]
) -> Iterator[tuple[str, str]]:
    """Yield the layers that drop and have no counterpart, and what is scripted.

    Args:
        model: the root.
        known: the ids of the layers that have one.
        beside: where others are held outside of the children.
    """
    for name, module in model.named_modules():
        made = type(module).__name__
        if isinstance(module, torch.jit.ScriptModule):
            yield f"{module.original_name}, scripted", name
        elif not isinstance(module, Layer) and id(module) not in known and kind_of(module):
            p: Any = getattr(module, rate_attribute(module) or "", None)
            why = "no counterpart in sitout"
            if id(module) in beside:
                why = f"held in {beside[id(module)]} too"
            elif isinstance(module, nn.modules.dropout._DropoutNd):
                why = "a forward of its own"
            yield f"{made} (p={p}), {why}", name


def floats(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield the rates above 0 that are attributes, where no call in the source says their name."""
    for rate in rates(model):
        if not rate.is_layer and rate.p > 0 and not _is_in_a_call(rate.module, rate.attribute):
            owner = f"{type(rate.module).__name__}.{rate.attribute}"
            yield f"{owner} (p={rate.p}, {rate.kind}), a float attribute", rate.path


def _is_in_a_call(module: nn.Module, path: str) -> bool:
    said = re.compile(rf"\bself\.{re.escape(path)}\b")
    return any(said.search(call.text) for call in dropping_calls(module))


def borrowed(model: nn.Module, known: set[int]) -> Iterator[tuple[str, str]]:
    """Yield the modules that read the rate of a layer to drop in a function, as attention does."""
    for name, module in model.named_modules():
        read = reads(type(module))
        for child, layer in module._modules.items():
            path = f"{child}.{rate_attribute(layer)}" if layer is not None else ""
            if id(layer) in known and path in read and not _is_in_a_call(module, path):
                yield f"{type(module).__name__} hands {path} to a function", name
