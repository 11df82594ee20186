"""Which modules a user means: by glob, type, predicate, or several of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase

from torch import nn

from . import _checks

One = str | type[nn.Module] | Callable[[str, nn.Module], bool]
Where = One | Iterable[One] | None

_WRAPPERS = ("module", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")


def matcher(where: Where, owner: str) -> Callable[[str, nn.Module], bool]:
    """Return the predicate on a qualified name and its module that ``where`` stands for.

    Args:
        where: a glob on the name (``*`` matches dots too), a type, a predicate of (name, module),
            several of these, of which one must hold, or None for all.
        owner: the public name that asks.

    Raises:
        TypeError: it is something else.
    """
    if where is None:
        return lambda name, module: True
    if isinstance(where, str):
        return lambda name, module: fnmatchcase(name, where)
    if isinstance(where, type):
        if issubclass(where, nn.Module):
            return lambda name, module: isinstance(module, where)
    elif callable(where):
        return where
    elif isinstance(where, Iterable):
        several = [matcher(one, owner) for one in where if one is not None]
        return lambda name, module: any(one(name, module) for one in several)
    rule = "a glob, a type of module, a predicate (name, module) -> bool, or several of them"
    raise TypeError(_checks.message(f"`where` of {owner}", rule, where))


def fitting(model: nn.Module, where: Where, owner: str) -> Callable[[str, nn.Module], bool]:
    """Return :func:`matcher`, of which a name may also fit without what wrappers add to it.

    Args:
        model: the root of the names.
        where: as for :func:`matcher`.
        owner: the public name that asks.
    """
    fits = matcher(where, owner)

    def fits_one(name: str, module: nn.Module) -> bool:
        plain = plain_name(model, name)
        return bool(fits(name, module) or (plain != name and fits(plain, module)))

    return fits_one


def nothing_found(where: Where, owner: str, what: str, names: Iterable[str]) -> ValueError:
    """Return the error for a ``where`` that no site of a model fits.

    Args:
        where: as the user gave it.
        owner: the public name that asks.
        what: that was looked for: "a module", "a drop rate".
        names: of all there are.
    """
    names = [name for name in dict.fromkeys(names) if name]
    way_out = f"There is no {what.removeprefix('a ')} at all."
    if names:
        near = _checks.closest(where, names) if isinstance(where, str) else []
        some = near or names[:3]
        way_out = f"The nearest are {', '.join(map(repr, some))}."
        if not near:
            way_out = f"There are {', '.join(map(repr, some))}{' ...' if names[3:] else ''}."
    return ValueError(_checks.message(f"`where` of {owner}", f"that of {what}", where, way_out))


def plain_name(model: nn.Module, name: str) -> str:
    """Return a qualified name without what wrappers add: the only child of its parent."""
    parts, module = [], model
    for part in name.split(".") if name else []:
        if part not in _WRAPPERS or len(module._modules) > 1:
            parts.append(part)
        module = module.get_submodule(part)
    return ".".join(parts)
