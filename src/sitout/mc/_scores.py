"""Sums over rows from which scores of predictions, and their intervals, are made."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

BINS = 15
LEVELS = (0.5, 0.9, 0.95)
_TINY = torch.finfo(torch.float32).tiny
_WEIGHTS = 1 << 22  # counts of resampled rows held at once
Z = 1.959963984540054


@dataclass(frozen=True)
class Metric:
    """How a score is made from sums.

    Args:
        label: its name for a reader.
        fold: takes the sums of the columns, ``[..., k]``, and of the elements, ``[...]``, to the
            score.
        sign: 1 where less is better, -1 where more is.
        level: of a coverage: what it should be.
    """

    label: str
    fold: Callable[[Tensor, Tensor], Tensor]
    sign: int = 1
    level: float | None = None

    def loss(self, sums: Tensor, count: Tensor) -> Tensor:
        """Return what a difference is of: the score, or how far a coverage is from its level."""
        value = self.fold(sums, count)
        return value if self.level is None else (value - self.level).abs()


def _mean(sums: Tensor, count: Tensor) -> Tensor:
    return sums[..., 0] / count


METRICS = {
    "accuracy": Metric("accuracy", _mean, -1),
    "nll": Metric("NLL", _mean),
    "ece": Metric("ECE", lambda sums, count: sums.abs().sum(-1) / count),
    "brier": Metric("Brier", _mean),
    "rmse": Metric("RMSE", lambda sums, count: _mean(sums, count).sqrt()),
    **{
        f"coverage_{100 * one:.0f}": Metric(f"coverage of {100 * one:.0f} %", _mean, 1, one)
        for one in LEVELS
    },
}


def of_classes(p: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Return the columns of probabilities.

    The error of calibration has a column for each bin of the confidence, of equal width, closed
    below, and one for a confidence of exactly 1, as torchmetrics has it: sums of confidence minus
    hit. A probability below the least normal float32 counts as that.

    Args:
        p: ``[B, C, ...]``.
        y: int64 ``[B, ...]``.

    Returns:
        float64 ``[B, k]`` by the names of :data:`METRICS`, and ``count``.
    """
    p = p.double()
    # torchmetrics takes a probability that is above 1 by a rounding for a logit.
    confidence, guess = p.clamp(0.0, 1.0).max(1)
    hit = (guess == y).double()
    likelihood = p.gather(1, y.unsqueeze(1)).squeeze(1)
    edges = torch.linspace(0, 1, BINS + 1, device=p.device)
    confidence = confidence.float()
    bins = torch.bucketize(confidence, edges, right=True) - 1
    gaps = torch.zeros(len(p), BINS + 1, dtype=torch.float64, device=p.device)
    gaps.scatter_add_(
        1, bins.flatten(1) if bins.dim() > 1 else bins[:, None], _rows(confidence.double() - hit)
    )
    return {
        "accuracy": _summed(hit),
        "nll": _summed(-likelihood.clamp_min(_TINY).log()),
        "ece": gaps,
        "brier": _summed(p.square().sum(1) - 2.0 * likelihood + 1.0),
        "count": _summed(torch.ones_like(hit)),
    }


def of_values(mean: Tensor, log_variance: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Return the columns of an even mixture of normal distributions, one sample after the other.

    An element is in the central interval of a level where the distribution function of the
    mixture there is within it. Outputs of a row are scored each for itself.

    Args:
        mean: ``[T, B, ...]``.
        log_variance: broadcasts to it.
        y: ``[B, ...]``.

    Returns:
        float64 ``[B, k]`` by the names of :data:`METRICS`, and ``count``.
    """
    y = y.double()
    log = torch.full_like(y, -math.inf)
    below, center = torch.zeros_like(y), torch.zeros_like(y)
    for m, v in zip(mean, log_variance.expand_as(mean), strict=True):
        m, v = m.double(), v.double()
        z = (y - m) * (-0.5 * v).exp()
        log = torch.logaddexp(log, -0.5 * (z.square() + v + math.log(2.0 * math.pi)))
        below += torch.special.ndtr(z)
        center += m
    below, center = below / len(mean), center / len(mean)
    made = {"rmse": _summed((y - center).square()), "nll": _summed(math.log(len(mean)) - log)}
    for level in LEVELS:
        inside = (below - 0.5).abs() <= 0.5 * level
        made[f"coverage_{100 * level:.0f}"] = _summed(inside.double())
    return {**made, "count": _summed(torch.ones_like(y))}


def _rows(one: Tensor) -> Tensor:
    return one.reshape(len(one), -1)


def _summed(one: Tensor) -> Tensor:
    return _rows(one).sum(1, keepdim=True)


def noise(mean: Tensor, y: Tensor) -> float:
    """Return the standard deviation of the noise under which the targets are likeliest.

    Args:
        mean: of the samples, ``[T, B, ...]``; T = 1 gives the root mean square of the residuals.
        y: ``[B, ...]``.
    """
    mean, y = mean.double(), y.double()
    most = float((mean - y).square().mean().sqrt())
    if len(mean) == 1 or most == 0.0:
        return most

    def nll(log_std: float) -> float:
        return float(of_values(mean, mean.new_tensor(2.0 * log_std), y)["nll"].mean())

    # With more noise than the samples are off, the mixture only gets flatter.
    low, high = math.log(most) - 7.0, math.log(most)
    for _ in range(3):
        grid = [low + (high - low) * i / 16 for i in range(17)]
        best = min(range(17), key=lambda i: nll(grid[i]))
        low, high = grid[max(best - 1, 0)], grid[min(best + 1, 16)]
    return math.exp(grid[best])


def bootstrap(
    losses: Callable[[Tensor], Tensor], first: Tensor, second: Tensor, resamples: int, seed: int
) -> Tensor:
    """Return the differences of statistics, second minus first, over resampled rows.

    Args:
        losses: takes sums ``[R, K]`` to statistics ``[R, m]``.
        first: columns, float64 ``[N, K]``.
        second: those of the same rows.
        resamples: how often N rows are drawn from the N.
        seed: of these draws.

    Returns:
        ``[resamples, m]``.
    """
    n, made = len(first), []
    generator = torch.Generator().manual_seed(seed)
    step = max(1, _WEIGHTS // n)
    for start in range(0, resamples, step):
        many = min(step, resamples - start)
        drawn = torch.randint(n, (many, n), generator=generator)
        weights = torch.zeros(many, n, dtype=torch.float64)
        weights.scatter_add_(1, drawn, torch.ones(many, n, dtype=torch.float64))
        # Two products of one shape: equal columns give equal sums, to the last bit.
        made.append(losses(weights @ second) - losses(weights @ first))
    return torch.cat(made)


def wilson(share: float, n: int) -> tuple[float, float]:
    """Return the 95 % interval of a share of n rows (Wilson 1927, J. Am. Stat. Assoc. 22)."""
    center = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return center - half, center + half
