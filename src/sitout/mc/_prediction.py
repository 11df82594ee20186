"""What a Monte-Carlo prediction returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .. import _checks, _optional

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True)
class Prediction:
    """The statistics of Monte-Carlo samples, on the device of the outputs.

    Which there are hangs on ``outputs`` and ``statistics`` of :func:`predict`; asking for another
    one says how to get it. All entropies are in nats.

    Args:
        statistics: by their names.
        count: how many samples each row had, int64 ``[B]``.
        samples: all of them, ``[T, B, ...]``, where they were asked for; else None.
        how: what ran how often, a sentence for each batch shape.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(4, 2))
        >>> made = sitout.mc.predict(model, torch.ones(3, 4), samples=20)
        >>> made.mean.shape, made.std.shape
        (torch.Size([3, 2]), torch.Size([3, 2]))
    """

    statistics: Mapping[str, Tensor]
    count: Tensor
    samples: Tensor | None = None
    how: tuple[str, ...] = field(default=(), repr=False)

    @property
    def mean(self) -> Tensor:
        """The mean of the outputs, which are values, probabilities, or predicted means."""
        return self._statistic("mean")

    @property
    def std(self) -> Tensor:
        """Their standard deviation; with an aleatoric head that of both parts together."""
        return self._statistic("std")

    @property
    def entropy(self) -> Tensor:
        """The entropy of the mean probabilities, all that is uncertain. Without the class dim."""
        return self._statistic("entropy")

    @property
    def expected_entropy(self) -> Tensor:
        """The mean entropy of the samples, what is uncertain in the data."""
        return self._statistic("expected_entropy")

    @property
    def mutual_information(self) -> Tensor:
        """The difference of the two, what the network does not know."""
        return self._statistic("mutual_information")

    @property
    def variation_ratio(self) -> Tensor:
        """The share of the samples that vote for another class than most do."""
        return self._statistic("variation_ratio")

    @property
    def epistemic(self) -> Tensor:
        """The standard deviation of the predicted means."""
        return self._statistic("epistemic")

    @property
    def aleatoric(self) -> Tensor:
        """The root of the mean predicted variance."""
        return self._statistic("aleatoric")

    @property
    def quantiles(self) -> Tensor:
        """The quantiles that were asked for, ``[levels, B, ...]``."""
        return self._statistic("quantiles")

    def explain(self) -> str:
        """Return what ran how often, and what that saves."""
        return "\n".join(self.how)

    def save(self, path: str | Path) -> None:
        """Write the statistics to ``.npz``, or one row each to ``.parquet``.

        Args:
            path: a file; its ending says which kind. A file that is there is replaced.

        Raises:
            ValueError: another ending.
            ImportError: for Parquet without pandas and pyarrow.
        """
        path = Path(path)
        arrays = {name: one.detach().cpu().numpy() for name, one in self.statistics.items()}
        arrays["count"] = self.count.cpu().numpy()
        if path.suffix == ".npz":
            if self.samples is not None:
                arrays["samples"] = self.samples.detach().cpu().numpy()
            with path.open("wb") as file:
                np.savez_compressed(file, allow_pickle=False, **arrays)
        elif path.suffix == ".parquet":
            self._to_parquet(path, arrays)
        else:
            rule = "a path that ends in .npz or .parquet"
            raise ValueError(_checks.message("`path` of Prediction.save", rule, str(path)))

    def _to_parquet(self, path: Path, arrays: dict[str, np.ndarray]) -> None:
        with _optional.needs("study", "Prediction.save to Parquet"):
            import pandas as pd

            import_module("pyarrow")  # pandas would say it in ten lines
        columns: dict[str, np.ndarray] = {}
        for name, one in arrays.items():
            flat = one.reshape(len(one), -1) if name != "quantiles" else _by_row(one)
            several = flat.shape[1] > 1
            for i in range(flat.shape[1]):
                columns[f"{name}_{i}" if several else name] = flat[:, i]
        pd.DataFrame(columns).to_parquet(path)

    def _statistic(self, name: str) -> Tensor:
        if name not in self.statistics:
            raise AttributeError(
                f"A Prediction has {', '.join(self.statistics)}, and no {name}. {_way_out(name)}"
            )
        return self.statistics[name]


def _way_out(name: str) -> str:
    if name == "quantiles":
        return "Pass quantiles=(0.05, 0.95) to mc.predict."
    if name in ("epistemic", "aleatoric"):
        return "Pass outputs='mean_and_log_variance' to mc.predict."
    if name == "variation_ratio":
        return "Pass outputs='logits' and statistics=('mean', 'variation_ratio') to mc.predict."
    if name == "std":
        return "Name it in statistics= of mc.predict."
    return "Pass outputs='logits' or outputs='probabilities' to mc.predict."


def _by_row(quantiles: np.ndarray) -> np.ndarray:
    return np.moveaxis(quantiles, 0, -1).reshape(quantiles.shape[1], -1)


def joined(parts: Sequence[Prediction]) -> Prediction:
    """Return the predictions of several batches as one."""
    if len(parts) == 1:
        return parts[0]
    names = parts[0].statistics
    along = {name: 1 if name == "quantiles" else 0 for name in names}
    made = {name: torch.cat([one.statistics[name] for one in parts], along[name]) for name in names}
    stacks = [one.samples for one in parts if one.samples is not None]
    return Prediction(
        made,
        torch.cat([one.count for one in parts]),
        torch.cat(stacks, 1) if stacks else None,
        tuple(dict.fromkeys(line for one in parts for line in one.how)),
    )
