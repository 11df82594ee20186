"""A schedule: a formula, its constants, and the rules of what it is asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from numbers import Real

from .. import _checks


@dataclass(frozen=True, repr=False)
class Schedule:
    """A rate as a pure function of the step: ``schedule(step, total) -> p``.

    The functions of ``sitout.schedules`` make them. A schedule holds no state, equals another one
    with the same constants, and can be pickled. Any function of (step, total) will do in its place.

    Args:
        name: of the function that made it.
        constants: what that function took, as pairs of name and number.
        formula: gives the rate at a fraction of the run, from 0.0 to 1.0, and the constants.

    Example:
        >>> schedule = sitout.schedules.linear(0.0, 0.5)
        >>> schedule
        linear(start=0.0, end=0.5)
        >>> schedule(25, 100)
        0.125
    """

    name: str
    constants: tuple[tuple[str, float], ...]
    formula: Callable[..., float]

    def __call__(self, step: float, total: float) -> float:
        """Return the rate of a step.

        Args:
            step: of the run, from 0. The first optimizer step is step 0, the last total - 1.
            total: steps in the run. Beyond it the rate stays at its last value.

        Raises:
            TypeError: one of them is no real number.
            ValueError: ``step`` is negative, ``total`` is not positive, or one is not finite.
        """
        step = number(step, "step", self.name, "a finite number, 0 or more")
        total = number(total, "total", self.name, "a finite number above 0", above=True)
        return self.formula(min(step / total, 1.0), **dict(self.constants))

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{name}={value}' for name, value in self.constants)})"


def number(value: object, name: str, owner: str, rule: str, *, above: bool = False) -> float:
    """Return a number that is finite and not negative; with ``above`` not 0 either.

    Raises:
        TypeError: it is a bool or no real number.
        ValueError: it is out of range.
    """
    what = f"`{name}` of {owner}"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(_checks.message(what, rule, value))
    made = float(value)
    if not isfinite(made) or made < 0.0 or (above and made == 0.0):
        raise ValueError(_checks.message(what, rule, value))
    return made
