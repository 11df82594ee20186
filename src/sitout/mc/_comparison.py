"""What a comparison of deterministic and Monte-Carlo predictions returns."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from .. import _checks

if TYPE_CHECKING:
    from collections.abc import Iterator

NO_DIFFERENCE = "no detectable difference"


@dataclass(frozen=True)
class Score:
    """One metric of both predictions.

    Attributes:
        name: "accuracy", "nll" in nats, "ece", "brier", "rmse", "coverage_90".
        label: the name for a reader.
        deterministic: the metric of one pass without dropout.
        monte_carlo: that of the samples.
        difference: Monte Carlo minus deterministic; of a coverage, of its distances to the level.
        low: of the 95 % interval of the difference.
        high: likewise.
        verdict: of Monte Carlo: "better", "worse" or "no detectable difference".
        intervals: of a coverage, the 95 % intervals (Wilson) of both; else None.
    """

    name: str
    label: str
    deterministic: float
    monte_carlo: float
    difference: float
    low: float
    high: float
    verdict: str
    intervals: tuple[tuple[float, float], tuple[float, float]] | None = None

    def __str__(self) -> str:
        """Return the verdict in one line."""
        end = "" if self.verdict == NO_DIFFERENCE else " with Monte Carlo"
        return (
            f"{self.label}: {self.verdict}{end}, {self.monte_carlo:.4g} against "
            f"{self.deterministic:.4g}; difference {self._difference()}"
        )

    def _difference(self) -> str:
        return f"{self.difference:+.4g} [{self.low:+.4g}, {self.high:+.4g}]"

    def cells(self) -> tuple[str, ...]:
        """Return the cells of its row."""
        shown = [f"{one:.4g}" for one in (self.deterministic, self.monte_carlo)]
        for at, (low, high) in enumerate(self.intervals or ()):
            shown[at] += f" [{low:.3f}, {high:.3f}]"
        return (self.label, *shown, self._difference(), self.verdict)


@dataclass(frozen=True)
class Comparison:
    """Metrics of a deterministic and a Monte-Carlo prediction of the same rows.

    ``print`` shows a table. ``comparison["nll"]`` is one metric, with ``deterministic``,
    ``monte_carlo``, ``difference``, ``low``, ``high`` and ``verdict``.

    Args:
        scores: one for each metric.
        rows: how many were predicted.
        samples: how many of each row.
        noise_std: of regression without a variance of its own: the noise that was added to the
            deterministic prediction and to each sample; else None.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(4, 2))
        >>> rows = torch.randn(20, 4), torch.arange(20) % 2
        >>> found = sitout.mc.compare(model, rows, samples=10)
        >>> [score.name for score in found]
        ['accuracy', 'nll', 'ece', 'brier']
    """

    scores: tuple[Score, ...]
    rows: int
    samples: int
    noise_std: tuple[float, float] | None = None

    def __iter__(self) -> Iterator[Score]:
        return iter(self.scores)

    def __getitem__(self, name: str) -> Score:
        names = [one.name for one in self.scores]
        return self.scores[names.index(_checks.choice(name, names, "A metric"))]

    @property
    def verdicts(self) -> tuple[str, ...]:
        """One line for each metric."""
        return tuple(str(one) for one in self.scores)

    def to_json(self) -> str:
        """Return all of it as JSON text."""
        return json.dumps(asdict(self), indent=1, allow_nan=False)

    def __str__(self) -> str:
        head = ("", "deterministic", "Monte Carlo", "difference [95 % interval]", "Monte Carlo is")
        table = [head, *(one.cells() for one in self.scores)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in table
        ]
        end = f"{self.rows} rows, {self.samples} samples. "
        end += "The intervals are over rows (paired bootstrap), not over training runs."
        if self.noise_std is not None:
            end += " Noise: {:.4g} and {:.4g}.".format(*self.noise_std)
        return "\n".join([*lines, end])
