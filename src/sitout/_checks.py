"""Argument rules, and the one form of an error message: who, rule, what was given, way out."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from difflib import get_close_matches
from numbers import Real

import torch


def message(what: str, rule: str, got: object, way_out: str = "") -> str:
    """Return ``"<what> must be <rule>. Got <got>. <way out>"``, in one line."""
    shown = " ".join(line.strip() for line in repr(got).splitlines())
    return f"{what} must be {rule}. Got {shown}.{' ' + way_out if way_out else ''}"


def rate(p: object, owner: str, *, below_one: bool = False) -> float:
    """Return ``p`` as a float, or raise if it is no drop rate.

    Raises:
        TypeError: ``p`` is a bool or no real number.
        ValueError: ``p`` is NaN, or outside [0, 1] (outside [0, 1) with ``below_one``).
    """
    interval = "[0, 1)" if below_one else "[0, 1]"
    what, rule = f"`p` of {owner}", f"a number in {interval}"
    if type(p) is not float and (isinstance(p, bool) or not isinstance(p, Real)):
        raise TypeError(message(what, rule, p))
    # With dynamic=True a compiler takes a float for a symbol; __float__ asks for its value.
    value = float(p).__float__()
    if not 0.0 <= value <= 1.0 or (below_one and value == 1.0):  # NaN is in no interval
        raise ValueError(message(what, rule, p))
    return value


def rate_or_data(p: object, owner: str, *, below_one: bool = False) -> float | torch.Tensor:
    """Return ``p`` as a float, or as it is where it is a rate as data: int64 ``[2]``.

    Raises:
        TypeError: it is another tensor, or as :func:`rate`.
        ValueError: as :func:`rate`.
    """
    if type(p) is float and 0.0 <= p < 1.0:
        return p
    if not isinstance(p, torch.Tensor):
        return rate(p, owner, below_one=below_one)
    if p.dtype != torch.int64 or p.shape != (2,):
        rule = "a number, or int64 [2] as sitout.masks.rate_data(p) makes it"
        raise TypeError(message(f"`p` of {owner}", rule, p))
    return p


def flag(value: object, name: str, owner: str) -> bool:
    """Return ``value`` if it is a bool.

    Raises:
        TypeError: it is not.
    """
    if not isinstance(value, bool):
        raise TypeError(message(f"`{name}` of {owner}", "True or False", value))
    return value


def generator(value: object, owner: str) -> torch.Generator | None:
    """Return ``value`` if it is a generator or None.

    Raises:
        TypeError: it is not.
    """
    if value is not None and not isinstance(value, torch.Generator):
        raise TypeError(message(f"`generator` of {owner}", "a torch.Generator or None", value))
    return value


def integer(value: object, name: str, owner: str) -> int:
    """Return ``value`` if it is an int and no bool.

    Raises:
        TypeError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(message(f"`{name}` of {owner}", "an int", value))
    return value


def dims(value: object, name: str, owner: str) -> tuple[int, ...]:
    """Return ``value`` as a tuple of ints.

    Raises:
        TypeError: it is no sequence of ints.
    """
    if type(value) is tuple and not value:
        return ()
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise TypeError(message(f"`{name}` of {owner}", "a sequence of ints", value))
    return tuple(integer(dim, name, owner) for dim in value)


def pairs(value: object, name: str, owner: str) -> tuple[tuple[int, int], ...]:
    """Return ``value`` as a tuple of pairs of ints.

    Raises:
        ValueError: it is no sequence of such pairs.
    """
    try:
        made = tuple((first, second) for first, second in value)  # type: ignore[attr-defined]
        # Not operator.index throughout: it would make a constant of a compiler's symbol.
        return tuple((_index(first), _index(second)) for first, second in made)
    except (TypeError, ValueError):
        rule = "a sequence of (start, full size) pairs of ints"
        raise ValueError(message(f"`{name}` of {owner}", rule, value)) from None


def _index(value: object) -> int:
    if isinstance(value, bool):
        raise TypeError
    return value if isinstance(value, int) else operator.index(value)  # type: ignore[arg-type]


def dim(value: object, rank: int, name: str) -> int:
    """Return ``value``, one of ``rank`` dims, counted from the front.

    Raises:
        TypeError: it is no int.
        ValueError: there is no such dim.
    """
    index = integer(value, name, "a mask")
    if not -rank <= index < rank:
        raise ValueError(message(f"`{name}`", f"within the {rank} dims of the tensor", index))
    return index % rank


def choice(value: str, known: Iterable[str], what: str) -> str:
    """Return ``value`` if it is one of ``known``.

    Raises:
        ValueError: it is not; the message lists what is known and the nearest name.
    """
    known = list(known)
    if value in known:
        return value
    names = ", ".join(name or "''" for name in known)
    raise ValueError(message(what, f"one of {names}", value, nearest(value, known)))


def nearest(name: object, known: Iterable[str]) -> str:
    """Return ``"Did you mean 'x'?"`` where a known name is near, else an empty string."""
    close = closest(name, known, 1) if isinstance(name, str) else []
    return f"Did you mean {close[0]!r}?" if close else ""


def closest(name: str, known: Iterable[str], most: int = 3) -> list[str]:
    """Return the known names that are near, the nearest first."""
    return get_close_matches(name, list(known), n=most)
