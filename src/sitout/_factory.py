"""What ``package.module:factory`` names: a callable that the user wrote, and what it builds."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from . import _checks

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class FactoryError(ValueError):
    """A factory cannot be used: one line that says why, and the way out."""


def named(target: str, what: str) -> Callable[..., Any]:
    """Return the callable that ``package.module:factory`` names; the current folder counts too.

    Args:
        target: dotted name of a module, a colon, and a name in it.
        what: the factory is, for the message: "network (--net)".

    Raises:
        FactoryError: the module cannot be imported, or has no such callable.
    """
    module, _, name = target.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found = importlib.import_module(module)
    except (Exception, SystemExit) as error:
        raise FactoryError(
            f"The {what} must be in a module that can be imported from this folder. "
            f"Importing {module!r} raised {type(error).__name__}: {_line(error)}"
        ) from error
    made = getattr(found, name, None)
    if not callable(made):
        raise FactoryError(f"The {what} must name a callable in {module!r}. Got {name!r}.")
    return made  # type: ignore[no-any-return]


def model_of(
    target: str, shapes: Sequence[Sequence[int]] = ()
) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    """Build a model, and what its forward takes.

    Args:
        target: ``package.module:factory``, a callable without arguments. It returns a model, or
            a model and its inputs: a tensor, a tuple for several, or a dict of keywords.
        shapes: of float inputs to draw, from a fixed seed, for a factory that returns none.

    Returns:
        The model, the positional and the keyword arguments of its forward.

    Raises:
        FactoryError: it names no such factory, or there are inputs from both sides.
    """
    make = named(target, f"factory {target!r}")
    try:
        made = make()
    except Exception as error:
        raise FactoryError(
            f"The factory {target!r} must build a model when it is called without arguments. "
            f"It raised {type(error).__name__}: {_line(error)}"
        ) from error
    if isinstance(made, nn.Module):
        generator = torch.Generator().manual_seed(0)
        return made, tuple(torch.randn(*shape, generator=generator) for shape in shapes), {}
    model, inputs = made if isinstance(made, tuple) and len(made) == 2 else (None, None)
    if not isinstance(model, nn.Module) or not isinstance(inputs, (Tensor, tuple, list, Mapping)):
        rule = "a torch.nn.Module, or (model, inputs) with a tensor, a tuple or a dict as inputs"
        got = [type(one) for one in made] if isinstance(made, tuple) else type(made)
        raise FactoryError(_checks.message(f"What {target!r} returns", rule, got))
    if shapes:
        raise FactoryError(f"The factory {target!r} gives inputs itself. Leave --input out.")
    if isinstance(inputs, Mapping):
        return model, (), dict(inputs)
    return model, (inputs,) if isinstance(inputs, Tensor) else tuple(inputs), {}


def _line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")
