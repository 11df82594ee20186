"""Optional imports with an install hint: the only try/except ImportError in the package."""

from __future__ import annotations

from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def needs(extra: str, who: str) -> Iterator[None]:
    """Give a failed import inside the block the command that mends it.

    Args:
        extra: the extra of sitout that brings the package.
        who: the public name that needs it.

    Raises:
        ImportError: a package of the extra is missing; the message names it and the remedy.
    """
    try:
        yield
    except ImportError as error:
        if (error.name or "").split(".")[0] == "sitout":
            raise
        raise ImportError(
            f"{who} needs {error.name or 'a package'}, which is not installed. "
            f"Install it with: pip install 'sitout[{extra}]'",
            name=error.name,
        ) from error


@contextmanager
def needs_or_exit(extra: str, who: str) -> Iterator[None]:
    """Like :func:`needs`, for a command: end it with one line instead of a traceback."""
    try:
        with needs(extra, who):
            yield
    except ImportError as error:
        raise SystemExit(str(error)) from error


def core() -> Any:
    """Return the compiled core of the CPU backend, or None where it was not built."""
    try:
        return import_module("sitout._core")
    except ImportError:
        return None
