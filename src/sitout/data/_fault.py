"""The one error of the data layer, and the pieces of its messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class DataError(ValueError):
    """Data that cannot be used: one line that says who, the rule, what was given and the way out.

    Example:
        >>> from sitout.data import DataError, load
        >>> try:
        ...     load("digit")
        ... except DataError as error:
        ...     print(error)
        Source of load must be one of breast_cancer, ... Got 'digit'. Did you mean 'digits'?
    """


def fault(what: str, rule: str, got: str, way_out: str = "") -> DataError:
    """Return the error ``"<what> must <rule>. Got <got>. <way out>"``.

    The twin of ``_checks.message`` for what is better described than shown.
    """
    return DataError(f"{what} must {rule}. Got {got}. {way_out}".rstrip())


def listed(names: Iterable[object], most: int = 20) -> str:
    """Return ``"'a', 'b' and 7 more"``: at most ``most`` names."""
    every = [repr(name) for name in names]
    more = f" and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(every[:most]) + more


def counted(count: int, noun: str) -> str:
    """Return ``"1 row"`` or ``"2 rows"``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def reason(error: Exception) -> str:
    """Return the first line of what a library says, without its full stop."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200].rstrip(".")
