"""Scores of two predictions of the same rows, from their sums over rows."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .. import _checks, _optional
from . import _scores
from ._comparison import NO_DIFFERENCE, Score

Columns = dict[str, Tensor]

OWNER = "mc.compare"
_FEW = 30  # rows, of which a bootstrap is too narrow
_ROUNDING = 1e-5  # a relative difference that float32 may make


def is_normal(outputs: str) -> bool:
    """Return whether a prediction is a normal distribution, not probabilities of classes."""
    return outputs in ("values", "mean_and_log_variance")


def check_finite(made: Tensor) -> None:
    """Refuse a prediction that no score is made of.

    Raises:
        ValueError: it has infinities or NaN.
    """
    if not bool(made.isfinite().all()):
        raise ValueError(_checks.message(f"Outputs in {OWNER}", "finite", "infinities or NaN"))


def like(y: Tensor, out: Tensor) -> Tensor:
    """Return targets in the shape of the output, which may have dims of size 1 more or less.

    Raises:
        ValueError: they do not fit.
    """
    if [len(y), *(n for n in y.shape[1:] if n != 1)] != [
        len(out),
        *(n for n in out.shape[1:] if n != 1),
    ]:
        rule = f"of the shape of the output, {list(out.shape)}"
        raise ValueError(_checks.message(f"The targets of {OWNER}", rule, list(y.shape)))
    return y.reshape(out.shape)


class Arm:
    """The columns of one kind of prediction, and the metrics of torchmetrics."""

    def __init__(self, outputs: str) -> None:
        self.outputs = outputs
        self.parts: list[Columns] = []
        self.known: dict[str, Any] = {}

    def __len__(self) -> int:
        return sum(len(one["count"]) for one in self.parts)

    def add(self, made: Tensor, y: Tensor, std: float, class_dim: int) -> None:
        """Take a batch."""
        check_finite(made)
        if not is_normal(self.outputs):
            columns = self._of_classes(made.movedim(class_dim, 1), y)
        elif self.outputs == "values":
            columns = self._of_values(made, made.new_tensor(2.0 * math.log(std)), y)
        else:
            dim = class_dim % (made.dim() - 1) + 1
            if made.shape[dim] != 2:
                rule, shape = f"of size 2 in dim {class_dim}", list(made.shape[1:])
                raise ValueError(_checks.message(f"Outputs in {OWNER}", rule, shape))
            columns = self._of_values(made.select(dim, 0), made.select(dim, 1), y)
        self.parts.append({name: one.cpu() for name, one in columns.items()})

    def _of_classes(self, p: Tensor, y: Tensor) -> Columns:
        classes = p.shape[1]
        if y.is_floating_point() or y.shape != p[:, 0].shape:
            rule = f"int64, {list(p[:, 0].shape)}, for outputs={self.outputs!r}"
            got = f"{y.dtype}, {list(y.shape)}"
            raise ValueError(_checks.message(f"The targets of {OWNER}", rule, got))
        if not bool(((y >= 0) & (y < classes)).all()):
            rule, ends = f"in [0, {classes})", (int(y.min()), int(y.max()))
            raise ValueError(_checks.message(f"The targets of {OWNER}", rule, ends))
        if not self.known:
            self.known = _known_of_classes(classes)
        for one in self.known.values():
            one.to(p.device).update(p.clamp(0.0, 1.0), y)
        return _scores.of_classes(p, y)

    def _of_values(self, mean: Tensor, log_variance: Tensor, y: Tensor) -> Columns:
        y = like(y, mean[0]).double()
        if not self.known:
            self.known = _known_of_values()
        center = mean.double().mean(0)
        self.known["rmse"].to(y.device).update(center.flatten(), y.flatten())
        return _scores.of_values(mean, log_variance, y)

    def columns(self) -> Columns:
        """Return the columns of all rows."""
        return {name: torch.cat([one[name] for one in self.parts]) for name in self.parts[0]}

    def value(self, name: str, columns: Columns) -> float:
        """Return a metric of all rows."""
        if name in self.known:
            return float(self.known[name].compute())
        sums = columns[name].sum(0), columns["count"].sum()
        return float(_scores.METRICS[name].fold(*sums))


def _known_of_classes(classes: int) -> dict[str, Any]:
    with _optional.needs("mc", OWNER):
        from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError
    return {
        "accuracy": MulticlassAccuracy(classes, average="micro"),
        "ece": MulticlassCalibrationError(classes, n_bins=_scores.BINS, norm="l1"),
    }


def _known_of_values() -> dict[str, Any]:
    with _optional.needs("mc", OWNER):
        from torchmetrics import MeanSquaredError
    return {"rmse": MeanSquaredError(squared=False).set_dtype(torch.float64)}


def scored(plain: Arm, carlo: Arm, resamples: int, seed: int) -> tuple[Score, ...]:
    """Return the metrics of both, with the intervals of their differences."""
    pair = plain.columns(), carlo.columns()
    names = [name for name in pair[0] if name != "count"]
    widths = [one.shape[1] for one in pair[0].values()]

    def losses(sums: Tensor) -> Tensor:
        parts = dict(zip(pair[0], torch.split(sums, widths, -1), strict=True))
        total = parts["count"][..., 0]
        return torch.stack([_scores.METRICS[name].loss(parts[name], total) for name in names], -1)

    whole = [torch.cat(list(one.values()), 1) for one in pair]
    drawn = _scores.bootstrap(losses, whole[0], whole[1], resamples, seed)
    low, high = drawn.quantile(drawn.new_tensor([0.025, 0.975]), dim=0).tolist()
    values = [(plain.value(name, pair[0]), carlo.value(name, pair[1])) for name in names]
    return tuple(
        _score(name, *value, (low[at], high[at]), len(plain))
        for at, (name, value) in enumerate(zip(names, values, strict=True))
    )


def _score(
    name: str, plain: float, carlo: float, interval: tuple[float, float], rows: int
) -> Score:
    metric, (low, high) = _scores.METRICS[name], interval
    difference, intervals = carlo - plain, None
    if metric.level is not None:
        difference = abs(carlo - metric.level) - abs(plain - metric.level)
        intervals = _scores.wilson(plain, rows), _scores.wilson(carlo, rows)
    verdict = NO_DIFFERENCE
    least = _ROUNDING * max(abs(plain), abs(carlo))
    if rows >= _FEW and (low > 0.0 or high < 0.0) and abs(difference) > least:
        verdict = "better" if (high < 0.0) == (metric.sign > 0) else "worse"
    return Score(name, metric.label, plain, carlo, difference, low, high, verdict, intervals)
