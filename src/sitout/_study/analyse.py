"""From records to conclusions: intervals, paired differences, verdicts."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from .results import Curve, Difference, Measure, Outcome

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

LEVEL = 0.05
POWER = 0.8


def measure(values: Sequence[float]) -> Measure:
    """Return the mean of one value a repeat and its 95 % t-interval over the repeats."""
    found = np.asarray(values, dtype=np.float64)
    mean = float(found.mean())
    half = 0.0
    if len(found) > 1:
        spread = float(found.std(ddof=1)) / math.sqrt(len(found))
        half = float(stats.t.ppf(1 - LEVEL / 2, len(found) - 1)) * spread
    return Measure(mean, mean - half, mean + half, [float(value) for value in found])


def curve(x: Sequence[float], values: Sequence[Sequence[float]]) -> Curve:
    """Return the mean and band of curves of which some may end early.

    Args:
        x: the axis of the longest.
        values: one curve a repeat.
    """
    at = [measure([one[i] for one in values if i < len(one)]) for i in range(len(x))]
    return Curve(
        x=[float(value) for value in x],
        mean=[one.mean for one in at],
        low=[one.low for one in at],
        high=[one.high for one in at],
        repeats=[len(one.values) for one in at],
    )


@dataclass(frozen=True)
class _Spread:
    """Standard error of a mean difference, and the degrees of freedom behind it."""

    error: float
    freedom: float


def _spread(differences: Floats, rows: Floats | None) -> _Spread:
    """Return the spread over repeats and, with ``rows``, over test rows as well.

    Both factors are crossed; their variances add (an upper bound, as in the pigeonhole bootstrap
    of Owen 2007), with Satterthwaite's degrees of freedom.

    Args:
        differences: one a repeat, ``[R]``.
        rows: by repeat and test row, ``[R, rows]``.
    """
    n = len(differences)
    over_repeats = float(differences.var(ddof=1)) / n
    if rows is None:
        return _Spread(math.sqrt(over_repeats), n - 1)
    by_row = rows.mean(axis=0)
    over_rows = float(by_row.var(ddof=1)) / len(by_row)
    total = over_repeats + over_rows
    if total == 0.0:
        return _Spread(0.0, n - 1)
    freedom = total**2 / (over_repeats**2 / (n - 1) + over_rows**2 / (len(by_row) - 1))
    return _Spread(math.sqrt(total), freedom)


def _p_value(mean: float, spread: _Spread, n: int) -> float:
    """Return the two-sided p-value of no difference.

    Where all repeats differ by the same amount there is no spread to divide by, and the sign test
    takes over.
    """
    if spread.error > 0.0:
        return float(2 * stats.t.sf(abs(mean) / spread.error, spread.freedom))
    return 1.0 if mean == 0.0 else 2.0 * 0.5**n


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number (Holm 1979, Scand. J. Statist. 6:65-70)."""
    order = sorted(range(len(p_values)), key=lambda at: p_values[at])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, at in enumerate(order):
        highest = max(highest, min(1.0, p_values[at] * (len(p_values) - rank)))
        adjusted[at] = highest
    return adjusted


def _outcome(mean: float, p_value: float) -> Outcome:
    if p_value > LEVEL or mean == 0.0:
        return "no detectable benefit"
    return "helps" if mean < 0 else "harms"


def compare(
    than: str,
    arms: Sequence[Sequence[float]],
    reference: Sequence[float],
    rows: Sequence[Floats] | None = None,
    reference_rows: Floats | None = None,
) -> list[Difference]:
    """Compare arms with a reference, paired by repeat, and adjust for their number.

    Args:
        than: name of the reference.
        arms: test errors, one sequence an arm, one value a repeat.
        reference: test errors of the reference, one a repeat.
        rows: where the test rows are fixed: errors by repeat and row, ``[R, rows]`` an arm.
        reference_rows: likewise of the reference.

    Returns:
        One difference an arm.
    """
    found = []
    for at, errors in enumerate(arms):
        difference = np.asarray(errors, dtype=np.float64) - np.asarray(reference, dtype=np.float64)
        by_row = None if rows is None or reference_rows is None else rows[at] - reference_rows
        found.append(_difference(than, difference, _spread(difference, by_row), len(arms)))
    adjusted = holm([one.p_value for one in found])
    return [
        replace(one, p_holm=p, outcome=_outcome(one.mean, p))
        for one, p in zip(found, adjusted, strict=True)
    ]


def _difference(than: str, values: Floats, spread: _Spread, comparisons: int) -> Difference:
    mean = float(values.mean())
    half = float(stats.t.ppf(1 - LEVEL / 2, spread.freedom)) * spread.error
    strict = float(stats.t.ppf(1 - LEVEL / 2 / comparisons, spread.freedom))
    p_value = _p_value(mean, spread, len(values))
    return Difference(
        than=than,
        mean=mean,
        low=mean - half,
        high=mean + half,
        values=[float(value) for value in values],
        improved=float((values < 0).mean()),
        p_value=p_value,
        p_holm=p_value,
        smallest_effect=(strict + float(stats.t.ppf(POWER, spread.freedom))) * spread.error,
        outcome=_outcome(mean, p_value),
    )


@dataclass(frozen=True)
class Units:
    """How errors and differences are printed.

    Attributes:
        task: ``classification`` or ``regression``.
        target: name of the target.
    """

    task: str
    target: str

    @property
    def unit(self) -> str:
        """The unit of a difference."""
        return "points" if self.task == "classification" else f"units of {self.target}"

    def error(self, value: float) -> str:
        """Return an error with its unit."""
        return f"{100 * value:.2f} %" if self.task == "classification" else f"{value:.4g}"

    def number(self, value: float) -> str:
        """Return a difference without its unit."""
        shown = f"{100 * value:.2f}" if self.task == "classification" else f"{value:.3g}"
        return "0.00" if shown == "-0.00" else shown

    def difference(self, difference: Difference) -> str:
        """Return a difference with its interval, in its unit."""
        low, high = self.number(difference.low), self.number(difference.high)
        return f"{self.number(difference.mean)} {self.unit} [{low}, {high}]"


def verdict(difference: Difference, dropout: Measure, none: Measure, units: Units) -> str:
    """Return the first sentence: does dropout help here."""
    n = len(difference.values)
    head = {
        "helps": "Dropout helps here",
        "harms": "Dropout harms here",
        "no detectable benefit": "No detectable benefit of dropout here",
    }[difference.outcome]
    sentence = (
        f"{head}: test error {units.error(dropout.mean)} with it, {units.error(none.mean)} "
        f"without; difference {units.difference(difference)} (95 % interval over {n} repeats; "
        f"Holm-adjusted p = {difference.p_holm:.2g}; better in "
        f"{round(difference.improved * n)} of {n})"
    )
    if difference.outcome == "no detectable benefit" and difference.smallest_effect > 0.0:
        seen = units.number(difference.smallest_effect)
        sentence += f"; smallest effect that this study could see: {seen} {units.unit}"
    return sentence + "."


def verdict_best_other(difference: Difference, units: Units) -> str:
    """Return the second sentence: dropout against the best other arm."""
    head = {
        "helps": "Dropout does better than",
        "harms": "Dropout does worse than",
        "no detectable benefit": "No detectable difference between dropout and",
    }[difference.outcome]
    return (
        f"{head} {difference.than}, the other regularizer of lowest validation error: "
        f"difference in test error {units.difference(difference)} (p = {difference.p_value:.2g})."
    )


def row_errors(record: dict[str, Any]) -> Floats:
    """Return the errors of one run's fixed test rows, ``[rows]``."""
    bits = np.frombuffer(bytes.fromhex(record["test_rows"]), dtype=np.uint8)
    return np.unpackbits(bits)[: record["rows"][2]].astype(np.float64)
