"""Which line of a module's code is running."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .. import functional

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def parents(stack: Sequence[Any]) -> list[nn.Module]:
    """Return the running modules, the innermost first, without mere containers."""
    modules = [running.module for running in reversed(stack)]
    return [module for module in modules if not isinstance(module, _CONTAINERS)]


def call_line(modules: list[nn.Module]) -> str | None:
    """Return ``file.py:12``, the line that the innermost running module is at.

    Args:
        modules: the running modules, the innermost first.
    """
    if not modules:
        return None
    owner = modules[0]
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        is_method = code.co_argcount and code.co_varnames[0] == "self" and code not in _PLUMBING
        if is_method and frame.f_locals.get("self") is owner:
            return f"{code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return None


def origin() -> str:
    """Return ``file.py:12``, the line outside of torch and of this package that is running."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_PACKAGES):
        frame = frame.f_back
    return "" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"


def own_function() -> str:
    """Return the function of this package that is running: ``drop_path``."""
    found, frame = "dropout", sys._getframe(1)
    while frame is not None and frame.f_code not in _PLUMBING:
        if getattr(functional, frame.f_code.co_name, None) is not None:
            file = getattr(functional, frame.f_code.co_name).__code__.co_filename
            if file == frame.f_code.co_filename:
                found = frame.f_code.co_name
        frame = frame.f_back  # type: ignore[assignment]
    return found


_PACKAGES = (f"{Path(torch.__file__).parent}/", f"{Path(__file__).parents[1]}/")
_PLUMBING = {
    nn.Module._wrapped_call_impl.__code__,
    nn.Module._call_impl.__code__,
}
