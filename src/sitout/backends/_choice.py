"""Which kernel serves a tensor, and why; forcing another one."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple, Self

from .. import _checks
from . import reference

if TYPE_CHECKING:
    from types import ModuleType

    from torch import Tensor

_BACKENDS: dict[str, ModuleType] = {"reference": reference}


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


def explain(x: Tensor) -> Explanation:
    """Return which backend serves ``x``, and why.

    Args:
        x: any tensor.

    Raises:
        ValueError: ``SITOUT_BACKEND`` names no backend.

    Example:
        >>> explain(torch.ones(2)).backend
        'reference'
    """
    if use._forced:
        return Explanation(use._forced, f"forced by sitout.backends.use({use._forced!r})")
    wanted = os.environ.get("SITOUT_BACKEND")
    if wanted:
        name = _checks.choice(wanted, _BACKENDS, "the environment variable SITOUT_BACKEND")
        return Explanation(name, "forced by the environment variable SITOUT_BACKEND")
    return Explanation(
        "reference", f"no compiled backend serves {x.device.type} tensors in this version"
    )


def select(x: Tensor) -> ModuleType:
    """Return the module that serves ``x``.

    Args:
        x: any tensor.

    Example:
        >>> select(torch.ones(2)) is reference
        True
    """
    return _BACKENDS[explain(x).backend]
