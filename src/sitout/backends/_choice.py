"""Which kernel serves a tensor, and why; forcing another one."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple, Self

from .. import _checks
from . import cpu, reference, triton

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    import torch
    from torch import Tensor

_BACKENDS: dict[str, ModuleType] = {"reference": reference, "cpu": cpu, "triton": triton}
_SERVES: dict[str, Callable[[Tensor], str]] = {"cpu": cpu.serves, "triton": triton.serves}
_ENVIRONMENT = os.environ.get("SITOUT_BACKEND")  # looking again at each call would be slow


class Explanation(NamedTuple):
    """Which backend serves a tensor, and why.

    Args:
        backend: its name.
        why: one sentence.

    Example:
        >>> Explanation("reference", "it is the only one").backend
        'reference'
    """

    backend: str
    why: str


class use:  # noqa: N801
    """Force a backend from now on, or within a ``with`` block, which restores what was before.

    The environment variable ``SITOUT_BACKEND`` does the same for a whole process.

    Args:
        name: of the backend; None forces none.

    Raises:
        ValueError: no backend bears the name.

    Example:
        >>> with use("reference"):
        ...     explain(torch.ones(2)).why
        "forced by sitout.backends.use('reference')"
    """

    _forced: str | None = None

    def __init__(self, name: str | None) -> None:
        if name is not None:
            name = _checks.choice(name, _BACKENDS, "the backend given to use()")
        self._before, use._forced = use._forced, name

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        use._forced = self._before


def explain(x: Tensor, layer: torch.nn.Module | None = None) -> Explanation:
    """Return which backend serves ``x``, and why; of a thinned layer, which form a step takes.

    Args:
        x: any tensor; for a layer, the input of what is thinned.
        layer: a :class:`sitout.nn.ThinnedDropout`, or a :class:`sitout.nn.DropResidual`.

    Raises:
        TypeError: ``layer`` has one form only.
        ValueError: ``SITOUT_BACKEND`` names no backend, or one that is forced cannot serve ``x``.

    Example:
        >>> explain(torch.ones(2, device="meta")).backend
        'reference'
    """
    if layer is not None:
        if not hasattr(layer, "explain"):
            rule = "a thinned layer, or None"
            raise TypeError(_checks.message("`layer` of explain", rule, type(layer).__name__))
        found: Explanation = layer.explain(x)  # type: ignore[operator]
        return found
    if use._forced:
        return _forced(x, use._forced, f"sitout.backends.use({use._forced!r})")
    wanted = _ENVIRONMENT
    if wanted:
        name = _checks.choice(wanted, _BACKENDS, "the environment variable SITOUT_BACKEND")
        return _forced(x, name, "the environment variable SITOUT_BACKEND")
    reason = triton.serves(x) if x.is_cuda else cpu.serves(x)
    if reason:
        return Explanation("reference", f"no compiled kernel serves this tensor: {reason}")
    if x.is_cuda:
        return Explanation("triton", f"kernels that Triton compiles for {x.device} serve it")
    return Explanation("cpu", f"the compiled core serves it, with {cpu.core().target()}")


def _forced(x: Tensor, name: str, who: str) -> Explanation:
    reason = _SERVES[name](x) if name in _SERVES else ""
    if reason:
        raise ValueError(f"The backend {name!r}, forced by {who}, cannot serve a tensor: {reason}.")
    return Explanation(name, f"forced by {who}")


def select(x: Tensor) -> ModuleType:
    """Return the module that serves ``x``.

    Args:
        x: any tensor.

    Example:
        >>> select(torch.ones(2, device="meta")) is reference
        True
    """
    if is_forced():
        return _BACKENDS[explain(x).backend]
    if x.is_cuda:
        return reference if triton.serves(x) else triton
    return reference if cpu.serves(x) else cpu


def is_forced() -> bool:
    """Return whether a backend is forced, by :class:`use` or by the environment."""
    return use._forced is not None or bool(_ENVIRONMENT)


def is_core_in() -> bool:
    """Return whether there is a compiled core, and no other backend is forced."""
    return (use._forced or _ENVIRONMENT or "cpu") == "cpu" and cpu.core() is not None
