"""The two forms of features: a table of columns, or an array."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any, Self, TypeGuard

import numpy as np
import numpy.typing as npt
import pandas as pd

from sitout._checks import nearest
from sitout.data._columns import as_numbers, as_text
from sitout.data._encoders import Category, Floats, Number
from sitout.data._fault import fault, listed
from sitout.data._scaling import center_and_spread, standardised

_BLOCK = 4096


@dataclass(frozen=True)
class Table:
    """Columns side by side."""

    columns: tuple[Number | Category, ...]

    @classmethod
    def fit(cls, frame: pd.DataFrame, scale: float | None) -> Self:
        """Fit on the training rows [n, d]."""
        columns: list[Number | Category] = []
        for name in frame.columns:
            numbers = as_numbers(frame[name])
            if numbers is None:
                columns.append(Category.fit(str(name), as_text(frame[name])))
            else:
                columns.append(Number.fit(str(name), numbers, scale))
        return cls(tuple(columns))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a transformed row."""
        return (sum(column.width for column in self.columns),)

    def transform(self, features: object) -> Floats:
        """Return float32 [n, d]; columns that were not fitted are ignored."""
        names = [column.name for column in self.columns]
        if not isinstance(features, pd.DataFrame):
            rule = f"be a table with the columns {listed(names)}"
            raise fault("Features", rule, _look(features))
        given = [str(name) for name in features.columns]
        _check_columns(names, given)
        frame = features.set_axis(given, axis="columns")
        return np.hstack([column.transform(frame[column.name]) for column in self.columns])

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {"columns": [asdict(column) for column in self.columns]}

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> Self:
        """Return the table that ``to_dict`` described."""
        return cls(tuple(_column(column) for column in state["columns"]))


def _check_columns(names: list[str], given: list[str]) -> None:
    counts = Counter(given)
    for name in names:
        if not counts[name]:
            hint = nearest(name, given)
            raise fault("Features", f"have the column {name!r}", listed(given) or "none", hint)
        if counts[name] > 1:
            raise fault("Features", f"have the column {name!r} once", f"it {counts[name]} times")


def _column(state: dict[str, Any]) -> Number | Category:
    if "levels" in state:
        return Category(state["name"], tuple(state["levels"]))
    return Number(**state)


@dataclass(frozen=True, eq=False)
class Grid:
    """An array: every feature standardised, or one divisor for all."""

    shape: tuple[int, ...]
    mean: npt.NDArray[np.float64]
    sd: npt.NDArray[np.float64]

    @classmethod
    def fit(cls, array: npt.NDArray[Any], scale: float | None) -> Self:
        """Fit on the training rows ``[n, *shape]``."""
        shape = tuple(array.shape[1:])
        if scale is not None:
            return cls(shape, np.zeros(1), np.full(1, scale))
        return cls(shape, *center_and_spread(array.reshape(len(array), -1)))

    def transform(self, features: object) -> Floats:
        """Return float32 ``[n, *shape]``."""
        if not _is_grid(features, self.shape):
            rule = f"be an array of numbers in rows of shape {list(self.shape)}"
            raise fault("Features", rule, _look(features))
        flat = features.reshape(len(features), math.prod(self.shape))
        out = np.empty(flat.shape, np.float32)
        for start in range(0, len(flat), _BLOCK):
            rows = slice(start, start + _BLOCK)
            out[rows] = standardised(flat[rows], self.mean, self.sd, "Features")
        return out.reshape(features.shape)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {"shape": list(self.shape), "mean": self.mean.tolist(), "sd": self.sd.tolist()}

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> Self:
        """Return the grid that ``to_dict`` described."""
        mean, sd = (np.array(state[key], dtype=np.float64) for key in ("mean", "sd"))
        return cls(tuple(state["shape"]), mean, sd)


def _is_grid(features: object, shape: tuple[int, ...]) -> TypeGuard[npt.NDArray[Any]]:
    return (
        isinstance(features, np.ndarray)
        and features.dtype.kind in "biuf"
        and features.ndim == 1 + len(shape)
        and features.shape[1:] == shape
    )


def _look(features: object) -> str:
    if isinstance(features, np.ndarray):
        return f"an array {features.dtype} {list(features.shape)}"
    if isinstance(features, pd.DataFrame):
        return f"a table with the columns {listed(features.columns)}"
    return f"a {type(features).__name__}"
