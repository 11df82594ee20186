"""Quantiles of samples that come one after the other, for every element of an output."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

_EXACT, _FEW = 64, 5
_LARGE = 1 << 18  # elements of an output of which 64 samples are not held


class Quantiles:
    """Holds the first samples, of which quantiles are exact; then five markers for each level.

    They are 64, or 5 of an output of more than 2^18 elements.

    Args:
        levels: fractions in (0, 1).

    Reference:
        Jain and Chlamtac 1985, Comm. ACM 28: the P2 algorithm, which moves markers along a
        parabola.
    """

    def __init__(self, levels: Sequence[float]) -> None:
        self.levels = tuple(levels)
        self._first: list[Tensor] = []
        self._heights: list[Tensor] = []  # [5, ...] for each level
        self._places: list[Tensor] = []
        self._count, self._exact = 0, _EXACT

    def update(self, samples: Tensor) -> None:
        """Take samples, ``[c, ...]``."""
        if samples[0].numel() > _LARGE:
            self._exact = _FEW
        for sample in samples.detach().to(torch.promote_types(samples.dtype, torch.float32)):
            self._count += 1
            if self._count <= self._exact:
                self._first.append(sample.clone())
                if self._count == self._exact:
                    self._begin()
            else:
                for level, heights, places in zip(
                    self.levels, self._heights, self._places, strict=True
                ):
                    self._move(level, heights, places, sample)

    def result(self) -> Tensor:
        """Return the quantiles, ``[levels, ...]``."""
        if self._count <= self._exact:
            stack = torch.stack(self._first)
            return torch.quantile(stack, stack.new_tensor(self.levels), dim=0)
        return torch.stack([heights[2] for heights in self._heights])

    def _begin(self) -> None:
        """Put the markers into the sorted first samples."""
        ordered = torch.stack(self._first).sort(0).values
        last = self._exact - 1
        for level in self.levels:
            at = [0, level / 2 * last, level * last, (1 + level) / 2 * last, last]
            places = [min(max(round(one), i), last - 4 + i) for i, one in enumerate(at)]
            self._heights.append(ordered[places].clone())
            start = ordered.new_tensor(places) + 1
            shape = (5, *[1] * (ordered.dim() - 1))
            self._places.append(start.view(shape).expand_as(self._heights[-1]).clone())

    def _move(self, level: float, heights: Tensor, places: Tensor, x: Tensor) -> None:
        """Let one more sample move the markers of a level."""
        self._first = []
        torch.minimum(heights[0], x, out=heights[0])
        torch.maximum(heights[4], x, out=heights[4])
        for i in range(1, 5):
            places[i] += x < heights[i] if i < 4 else 1
        n = self._count - 1
        wanted = (0.0, level / 2 * n, level * n, (1 + level) / 2 * n)
        for i in (1, 2, 3):
            gap = 1.0 + wanted[i] - places[i]
            up = (gap >= 1) & (places[i + 1] - places[i] > 1)
            down = (gap <= -1) & (places[i - 1] - places[i] < -1)
            step = up.to(x.dtype) - down.to(x.dtype)
            heights[i].copy_(torch.where(step == 0, heights[i], _between(heights, places, i, step)))
            places[i] += step


def _between(q: Tensor, n: Tensor, i: int, d: Tensor) -> Tensor:
    """Return the height of a marker one place on: on a parabola, or else on a line."""
    above, below = n[i + 1] - n[i], n[i] - n[i - 1]
    curved = q[i] + d / (n[i + 1] - n[i - 1]) * (
        (below + d) * (q[i + 1] - q[i]) / above + (above - d) * (q[i] - q[i - 1]) / below
    )
    ahead = torch.where(d > 0, q[i + 1], q[i - 1])
    apart = torch.where(d > 0, above, -below)
    straight = q[i] + d * (ahead - q[i]) / torch.where(apart == 0, 1.0, apart)
    inside = (q[i - 1] < curved) & (curved < q[i + 1])
    return torch.where(inside, curved, straight)
