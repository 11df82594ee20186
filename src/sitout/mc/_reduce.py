"""Statistics of samples that come one after the other, in the memory of some outputs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import _checks
from ._quantiles import Quantiles

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

KINDS = ("values", "logits", "probabilities", "mean_and_log_variance")
STATISTICS = {
    "values": ("mean", "std"),
    "logits": ("mean", "std", "entropy", "expected_entropy", "mutual_information"),
    "mean_and_log_variance": ("mean", "std", "epistemic", "aleatoric"),
}
STATISTICS["probabilities"] = STATISTICS["logits"]
OPTIONAL = {"logits": ("variation_ratio",), "probabilities": ("variation_ratio",)}
_TILE = 1 << 18


class Reducer:
    """Takes samples ``[c, B, ...]`` and holds what the statistics of all so far hang on.

    Args:
        kind: what the outputs are, one of :data:`KINDS`.
        statistics: which are wanted.
        class_dim: of an output ``[B, ...]``: of the classes, or of mean and log variance.
        levels: of the quantiles.

    Attributes:
        count: samples so far.
        differ: whether two of them were not equal.
    """

    def __init__(
        self, kind: str, statistics: Sequence[str], class_dim: int, levels: Sequence[float]
    ) -> None:
        self.kind, self.statistics, self.class_dim = kind, statistics, class_dim
        self.levels = tuple(levels)
        self.count, self.differ = 0, False
        self._held: dict[str, Tensor] = {}
        self._quantiles = Quantiles(self.levels) if levels else None
        self._shape: tuple[int, ...] = ()

    def update(self, samples: Tensor) -> None:
        """Take samples.

        Args:
            samples: ``[c, B, ...]``, a floating dtype; left as they are.
        """
        self._shape = tuple(samples.shape[1:])
        if self._is_split() and not -len(self._shape) <= self.class_dim < len(self._shape):
            rule = f"a dim of the output, {list(self._shape)}"
            raise ValueError(_checks.message("`class_dim` of mc.predict", rule, self.class_dim))
        flat = samples.reshape(len(samples), *self._sizes())
        begin = not self._held
        if begin:
            self._make(flat)
        for tile in _tiles(flat.shape):
            self._take(flat[(slice(None), *tile)], tile, begin)
        if self._quantiles is not None:
            self._quantiles.update(self._told(samples))
        self.count += len(samples)

    def width(self) -> float:
        """Return half the width of the 95 % interval of the mean, at its widest."""
        if self.count < 2:
            return math.inf
        variance = self._held["m2"].max().item() / (self.count - 1)
        return 1.96 * math.sqrt(variance / self.count)

    def results(self) -> dict[str, Tensor]:
        """Return the statistics by their names; once, for what they are made of goes."""
        count, held = self.count, self._held
        mean = held["mean"]
        made = {"mean": mean}
        if "m2" in held:
            made["std"] = held.pop("m2").div_(max(count - 1, 1)).sqrt_()
        if self.kind in ("logits", "probabilities"):
            expected = held["entropy"] / count
            entropy = torch.empty_like(expected)
            for before, _, behind in _tiles((1, *mean.shape)):
                entropy[before, behind] = _entropy(mean[before, :, behind], 1)
            made |= {"entropy": entropy, "expected_entropy": expected}
            made["mutual_information"] = (entropy - expected).clamp_min_(0.0)
            if "votes" in held:
                made["variation_ratio"] = 1.0 - held["votes"].amax(1).float() / count
        if self.kind == "mean_and_log_variance":
            made["aleatoric"] = (held["variance"] / count).sqrt_()
            if "std" in made:
                made["epistemic"] = made["std"]
                made["std"] = (made["epistemic"] ** 2 + made["aleatoric"] ** 2).sqrt_()
        wanted = {name: self._shaped(made[name]) for name in self.statistics}
        if self._quantiles is not None:
            wanted["quantiles"] = self._quantiles.result()
        return wanted

    def _is_split(self) -> bool:
        return self.kind != "values"

    def _sizes(self) -> tuple[int, int, int]:
        """Return the sizes before, of and behind the dim of the classes."""
        shape = self._shape
        if not self._is_split():
            return math.prod(shape[:1]), 1, math.prod(shape[1:])
        dim = self.class_dim % len(shape)
        return math.prod(shape[:dim]), shape[dim], math.prod(shape[dim + 1 :])

    def _shaped(self, made: Tensor) -> Tensor:
        shape = list(self._shape)
        if self._is_split():
            dim = self.class_dim % len(shape)
            if made.dim() == 2 or self.kind == "mean_and_log_variance":
                del shape[dim]
        return made.reshape(shape)

    def _make(self, flat: Tensor) -> None:
        _, before, classes, behind = flat.shape
        if flat.is_complex():
            way_out = "Pass select=lambda out: torch.view_as_real(out) to mc.predict."
            raise TypeError(_checks.message("The output", "of real numbers", flat.dtype, way_out))
        dtype = torch.promote_types(flat.dtype, torch.float32)
        whole = (before, classes, behind)
        if self.kind == "mean_and_log_variance":
            if classes != 2:
                rule = f"of size 2 in dim {self.class_dim}: mean and log variance"
                raise ValueError(_checks.message("The output", rule, list(self._shape)))
            whole = (before, 1, behind)
            self._held["variance"] = flat.new_zeros(whole, dtype=dtype)
        self._held["mean"] = flat.new_zeros(whole, dtype=dtype)
        if "std" in self.statistics or "epistemic" in self.statistics:
            self._held["m2"] = flat.new_zeros(whole, dtype=dtype)
        if self.kind in ("logits", "probabilities"):
            self._held["entropy"] = flat.new_zeros(before, behind, dtype=dtype)
            if "variation_ratio" in self.statistics:
                self._held["votes"] = flat.new_zeros(whole, dtype=torch.int32)

    def _take(self, part: Tensor, tile: tuple[slice, slice, slice], begin: bool) -> None:
        """Take a tile of the samples, ``[c, before, classes, behind]``."""
        held = self._held
        part = part.to(held["mean"].dtype)
        if self.kind == "mean_and_log_variance":
            held["variance"][tile] += part[:, :, 1:].exp().sum(0)
            part = part[:, :, :1]
            tile = (tile[0], slice(None), tile[2])
        if self.kind == "logits":
            part = part.softmax(2)
        if self.kind in ("logits", "probabilities"):
            held["entropy"][tile[0], tile[2]] += _entropy(part, 2).sum(0)
        if "votes" in held:
            chosen = part.argmax(2).movedim(0, 1)
            held["votes"][tile].scatter_add_(1, chosen, torch.ones_like(chosen, dtype=torch.int32))
        mean = held["mean"][tile]
        first = part[0] if begin else mean
        self.differ = self.differ or bool((part != first).any())
        # Two sets of samples become one: Chan, Golub and LeVeque 1983, Am. Stat. 37, eq. 1.5.
        many, had = len(part), self.count
        here = part.mean(0) if many > 1 else part[0]
        if many > 1 and not self.differ:
            here = part[0]  # a mean of equal numbers may be off by a rounding
        delta = here - mean
        if "m2" in held:
            between = delta.square() * (had * many / (had + many))
            held["m2"][tile] += between + (part - here).square().sum(0) if many > 1 else between
        mean += delta * (many / (had + many)) if had else delta

    def _told(self, samples: Tensor) -> Tensor:
        """Return what the quantiles are of: values, probabilities, or means."""
        if self.kind == "logits":
            return samples.softmax(self.class_dim % len(self._shape) + 1)
        if self.kind == "mean_and_log_variance":
            return samples.select(self.class_dim % len(self._shape) + 1, 0)
        return samples


def _tiles(shape: Sequence[int]) -> Iterator[tuple[slice, slice, slice]]:
    """Yield the parts of ``[c, before, classes, behind]`` that are worked on at once."""
    count, before, classes, behind = shape
    step = max(1, _TILE // max(1, count * classes))
    every = slice(None)
    if before >= behind:
        step = max(1, step // max(1, behind))
        yield from ((slice(i, i + step), every, every) for i in range(0, before, step))
    else:
        step = max(1, step // max(1, before))
        yield from ((every, every, slice(i, i + step)) for i in range(0, behind, step))


def _entropy(p: Tensor, dim: int) -> Tensor:
    """Return the entropy in nats along a dim."""
    entropy: Tensor = torch.special.entr(p).sum(dim)
    return entropy
