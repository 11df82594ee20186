"""From which drop rate on it pays, on this machine, not to compute what sits out."""

from __future__ import annotations

from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..backends import LEAST_SAMPLES, least_rate
from ..nn import DropResidual, ThinnedMLP

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_ROWS = [32, 128, 512]
_WIDTH = 768  # of the input, the hidden layer and the output
_RATES = [0.05, 0.1, 0.2, 0.3, 0.5]
_BATCH, _TOKENS, _FEATURES = 32, 33, 192
_LEFT_OUT = [1, 2, 3, 4, 8]  # samples
_LEAST, _MOST = 1, 25  # rounds, after one that does not count
_WORTH = 1.15  # times as fast: for less than that nobody is advised to change anything


class Crossover(NamedTuple):
    """Where thinning begins to pay.

    Attributes:
        layer: that chooses between the two forms.
        of: "rows a group", or "samples".
        number: of these.
        assumed: the drop rate from which the layer takes the thinned form.
        gains: drop rates, ascending, and how many times as fast as the masked form it is there.
    """

    layer: str
    of: str
    number: int
    assumed: float
    gains: list[tuple[float, float]]

    @property
    def measured(self) -> float | None:
        """The lowest rate from which thinning is not slower; None if it is at the highest one.

        Example:
            >>> gains = [(0.1, 0.8), (0.2, 1.2)]
            >>> Crossover("ThinnedDropout", "rows a group", 32, 0.32, gains).measured
            0.15
        """
        slower = [i for i, (_, gain) in enumerate(self.gains) if gain < 1.0]
        if not slower:
            return self.gains[0][0]
        if slower[-1] == len(self.gains) - 1:
            return None
        (low, below), (high, above) = self.gains[slower[-1] : slower[-1] + 2]
        return round(low + (high - low) * (1.0 - below) / (above - below), 4)

    def told(self) -> str:
        """Return the rate that was measured; what lies outside of those tried is not known."""
        (low, _), *_, (high, _) = self.gains
        if self.measured is None:
            return f"above {high:.2f}"
        return f"{self.measured:.2f}{' or less' * (self.measured == low)}"

    def advice(self) -> tuple[float, str]:
        """Return how many times as fast the other form is where the layer is mistaken, and a line.

        Example:
            >>> gains = [(0.1, 0.8), (0.2, 1.2), (0.5, 1.9)]
            >>> one = Crossover("ThinnedDropout", "rows a group", 32, 0.32, gains)
            >>> one.advice()[1].partition(": ")[0]
            'Give ThinnedDropout form="thinned" for p from 0.15 to 0.32 at 32 rows a group'
        """
        measured = self.gains[-1][0] if self.measured is None else self.measured
        low, high = sorted([self.assumed, measured])
        form = "thinned" if measured < self.assumed else "masked"
        between = [
            gain if form == "thinned" else 1.0 / gain
            for rate, gain in self.gains
            if low <= rate < high or (rate == high and self.measured is None)
        ]
        most = max(between, default=1.0)
        where = f"for p from {low:.2f} to {high:.2f} at {self.number} {self.of}"
        gain = f"up to {most:.1f} times as fast here as what it takes by itself"
        return most, f'Give {self.layer} form="{form}" {where}: {gain}.'


class _Case(NamedTuple):
    """A network in masked form, where the rate does not matter, and thinned at several rates."""

    layer: str
    of: str
    number: int
    assumed: float
    rates: list[float]
    masked: torch.nn.Module
    thinned: list[torch.nn.Module]
    x: Tensor

    def gains(self) -> list[float]:
        """Return how many times as fast the thinned form is at each rate."""
        base = _seconds(self.masked, self.x)
        return [base / _seconds(one, self.x) for one in self.thinned]


def measure(seconds: float) -> list[Crossover]:
    """Return where thinning pays with as many threads as torch has; the generator is left as found.

    Args:
        seconds: in all.

    Example:
        >>> [one.number for one in measure(0.0)]
        [32, 128, 512, 32]
    """
    with torch.random.fork_rng(devices=[]):
        cases = [*map(_units, _ROWS), _samples()]
        found = _in_turns(cases, seconds)
    return [
        Crossover(*case[:4], list(zip(case.rates, gains, strict=True)))
        for case, gains in zip(cases, found, strict=True)
    ]


def _units(rows: int) -> _Case:
    def chain(rate: float, form: str) -> torch.nn.Module:
        return ThinnedMLP(_WIDTH, [_WIDTH], _WIDTH, rate, form=form)

    assumed, x = least_rate(rows), torch.randn(rows, _WIDTH)
    return _case(chain, _RATES, x, "ThinnedDropout", "rows a group", rows, assumed)


def _samples() -> _Case:
    n, hidden = _FEATURES, 4 * _FEATURES
    layers = [torch.nn.Linear(n, hidden), torch.nn.GELU(), torch.nn.Linear(hidden, n)]
    branch = torch.nn.Sequential(*layers)

    def block(rate: float, form: str) -> torch.nn.Module:
        return DropResidual(branch, rate, form=form)

    rates, x = [count / _BATCH for count in _LEFT_OUT], torch.randn(_BATCH, _TOKENS, n)
    return _case(block, rates, x, "DropResidual", "samples", _BATCH, LEAST_SAMPLES)


def _case(
    make: Callable[[float, str], torch.nn.Module],
    rates: list[float],
    x: Tensor,
    layer: str,
    of: str,
    number: int,
    assumed: float,
) -> _Case:
    masked, thinned = make(rates[-1], "masked"), [make(rate, "thinned") for rate in rates]
    return _Case(layer, of, number, assumed, rates, masked, thinned, x)


def _in_turns(cases: Sequence[_Case], seconds: float) -> list[list[float]]:
    """Return the gains of each case, medians: what else the machine does falls on all alike."""
    rounds: list[list[list[float]]] = []
    end = perf_counter() + seconds
    for number in range(_MOST + 1):
        if number > _LEAST and perf_counter() > end:
            break
        rounds.append([case.gains() for case in cases])
    by_case = zip(*rounds[1:], strict=True)
    return [[median(gains) for gains in zip(*found, strict=True)] for found in by_case]


def _seconds(model: torch.nn.Module, x: Tensor) -> float:
    """Return how long a step forward and backward takes in the middle of a network."""
    x = x.detach().requires_grad_()
    start = perf_counter()
    y = model(x)
    torch.autograd.grad(y, [x, *model.parameters()], y.detach())
    return perf_counter() - start


def table(found: Sequence[Crossover]) -> list[str]:
    """Return the rows as aligned lines, with a title, and a line of advice if it is worth it."""
    titles = ["layer", "at", "pays from p", "assumed"]
    rows = [
        [one.layer, f"{one.number} {one.of}", one.told(), f"{one.assumed:.2f}"] for one in found
    ]
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    lines = ["  ".join(map(str.rjust, row, widths)) for row in [titles, *rows]]
    most, advice = max(one.advice() for one in found)
    title = "drop rate from which the thinned form is as fast as the masked, forward + backward:"
    return [title, *lines, *([advice] if most >= _WORTH else [])]
