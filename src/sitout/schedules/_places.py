"""The rates of a model that a user means: found by name, set, and looked for in compiled code."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from .. import _checks, _where
from .._rates import Rate, rates, readers
from ..masks import effective_rate
from ..nn._base import Site as Layer

if TYPE_CHECKING:
    import torch
    from torch import nn

    from .._where import Where


def places(model: nn.Module, where: Where, owner: str) -> dict[str, Rate]:
    """Return the rates that a user means by their paths, without what wrappers add to these.

    A place fits if its module does, by any of its names, or if a glob fits its path.

    Raises:
        TypeError: ``where`` is nothing that tells modules apart.
        ValueError: no rate fits.
    """
    fits, globs = _where.matcher(where, owner), _globs(where, owner)
    names = _names(model)
    found: dict[str, Rate] = {}
    seen: list[str] = []
    for rate in rates(model):
        plain = _path(_where.plain_name(model, rate.name), rate.attribute)
        path = rate.path if plain in seen else plain
        seen.append(path)
        known = dict.fromkeys(names[id(rate.module)])
        if any(
            fits(name, rate.module) or globs(_path(name, rate.attribute), rate.module)
            for name in known
        ):
            found[path] = rate
    if not found:
        raise _where.nothing_found(where, owner, "a drop rate", seen)
    return found


def _globs(where: Where, owner: str) -> Callable[[str, nn.Module], bool]:
    """Return what is asked of the path of a rate: a type or a predicate is about modules."""
    several = [where] if isinstance(where, str) or not isinstance(where, Iterable) else where
    return _where.matcher([one for one in several if isinstance(one, str)], owner)


def _path(name: str, attribute: str) -> str:
    return f"{name}.{attribute}" if name else attribute


def _names(model: nn.Module) -> dict[int, list[str]]:
    """Return the names of every module, with and without what wrappers add."""
    names: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).extend([_where.plain_name(model, name), name])
    return names


def check(rate: Rate, value: object, owner: str) -> float:
    """Return the rate that a place may have.

    Raises:
        TypeError: it is no number.
        ValueError: it is outside of [0, 1], or of [0, 1) where the place has noise.
    """
    gaussian = rate.kind == "gaussian"
    made = _checks.rate(value, owner, below_one=gaussian)
    if gaussian:  # 1 - 2**-40 has 1 as the nearest rate that can be data
        _checks.rate(effective_rate(made), owner, below_one=True)
    return made


def can_be_data(model: nn.Module, rate: Rate) -> bool:
    """Return whether a rate can be data, which compiled code reads anew.

    It is that of a sitout layer, does not decide shapes, and no other module reads it: as a number
    it would have to leave the graph.
    """
    layer = rate.module
    is_free = isinstance(layer, Layer) and not layer._p_is_number
    return is_free and not readers(model, rate)


def as_data(rate: Rate, device: torch.device) -> None:
    """Make the rate of a layer data, on the device of the model."""
    layer = rate.module
    if isinstance(layer, Layer):
        layer.schedulable_().to(device)


def in_compiled_code(model: nn.Module, found: Iterable[tuple[str, Rate]]) -> list[str]:
    """Return the paths of the places that are compiled, or part of what is."""
    return [path for path, rate in found if any(map(_is_compiled, above(model, rate.name)))]


def above(model: nn.Module, name: str) -> list[nn.Module]:
    """Return the modules on the way from the root to a name, as far as it leads now."""
    way = [model]
    for part in name.split(".") if name else []:
        module = way[-1]._modules.get(part)
        if module is None:
            module = getattr(way[-1], part, None)  # a wrapper passes on what it does not have
        if module is None:
            break
        way.append(module)
    return way


def _is_compiled(module: nn.Module) -> bool:
    if "_orig_mod" in module._modules or module._compiled_call_impl is not None:
        return True
    return vars(module).get("_compiler_ctx") is not None  # Lightning's mark of a compiled module
