"""One column of a table to float32: fitted on training rows, plain numbers inside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pandas as pd

from sitout.data._columns import as_numbers, as_text, first_stray, to_numbers
from sitout.data._fault import fault
from sitout.data._scaling import center_and_spread, standardised

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Number:
    """A numeric column: standardised, with a 0/1 column beside it if values were missing."""

    name: str
    fill: float
    mean: float
    sd: float
    indicator: bool

    @classmethod
    def fit(cls, name: str, values: npt.NDArray[np.float64], scale: float | None) -> Self:
        """Fit on the training rows [n]; a ``scale`` takes the place of mean and deviation."""
        missing = np.isnan(values)
        fill = float(np.median(values[~missing])) if not missing.all() else 0.0
        if scale is not None:
            mean, sd = 0.0, scale
        else:
            mean, sd = map(float, center_and_spread(np.where(missing, fill, values)))
        return cls(name, fill, mean, sd, bool(missing.any()))

    @property
    def width(self) -> int:
        """Columns that it becomes."""
        return 1 + self.indicator

    def transform(self, column: pd.Series[Any]) -> Floats:
        """Return float32 [n, width]."""
        values = self._numbers(column)
        missing = np.isnan(values)
        filled = np.where(missing, self.fill, values)
        parts = [standardised(filled, self.mean, self.sd, f"Column {self.name!r}")]
        if self.indicator:
            parts.append(missing.astype(np.float32))
        return np.stack(parts, axis=1)

    def _numbers(self, column: pd.Series[Any]) -> npt.NDArray[np.float64]:
        values = as_numbers(column)
        if values is not None:
            return values
        stray = first_stray(column)
        if stray is not None:
            got = f"{stray.value!r} in data row {stray.row + 1}"
            raise fault(f"Column {self.name!r}", "hold numbers, as it did in training", got)
        spelled = to_numbers(pd.Series(as_text(column), dtype=object))
        return np.asarray(spelled, dtype=np.float64)


@dataclass(frozen=True)
class Category:
    """A text column: one 0/1 column per level; missing and unknown are zeros."""

    name: str
    levels: tuple[str, ...]

    @classmethod
    def fit(cls, name: str, text: npt.NDArray[np.object_]) -> Self:
        """Fit on the training rows [n]."""
        return cls(name, tuple(sorted({value for value in text if value is not None})))

    @property
    def width(self) -> int:
        """Columns that it becomes."""
        return len(self.levels)

    def transform(self, column: pd.Series[Any]) -> Floats:
        """Return float32 [n, width]."""
        text = pd.Index(as_text(column), dtype=object)
        codes = pd.Index(self.levels, dtype=object).get_indexer(text)
        hot: Floats = (codes[:, None] == np.arange(self.width)).astype(np.float32)
        return hot
