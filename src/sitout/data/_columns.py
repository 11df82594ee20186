"""What a column holds: numbers, dates or text."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from pandas.api import types

_NUMBERS = {"boolean", "decimal", "floating", "integer", "mixed-integer-float"}
_DATE = re.compile(r"(\d{4}[-/]\d{1,2}[-/]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.]\d{4})([T ]\d.*)?")


def as_numbers(column: pd.Series[Any]) -> npt.NDArray[np.float64] | None:
    """Return the column as float64 [n], missing as NaN, or None where it holds no numbers.

    Truth values count as the numbers 0 and 1; categories and dates are no numbers.
    """
    if isinstance(column.dtype, pd.CategoricalDtype):
        return None
    if types.is_numeric_dtype(column.dtype) or (
        types.is_object_dtype(column.dtype) and types.infer_dtype(column, skipna=True) in _NUMBERS
    ):
        return column.to_numpy(np.float64, na_value=np.nan)
    return None


def as_text(column: pd.Series[Any]) -> npt.NDArray[np.object_]:
    """Return the column as an object array [n] of str, missing and empty as None."""
    text = np.full(len(column), None, dtype=object)
    present = column.notna().to_numpy()
    text[present] = [label(value) or None for value in column[present]]
    return text


def is_truth(column: pd.Series[Any]) -> bool:
    """Say whether the column holds truth values."""
    return types.infer_dtype(column, skipna=True) == "boolean"


def is_dates(column: pd.Series[Any]) -> bool:
    """Say whether the column holds dates, times of day with a date, or durations."""
    if types.is_datetime64_any_dtype(column.dtype) or types.is_timedelta64_dtype(column.dtype):
        return True
    present = column.dropna()
    return len(present) > 0 and all(_DATE.fullmatch(label(value)) for value in present)


def label(value: object) -> str:
    """Return the text of one value; a whole float reads as an integer."""
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value)


class Stray(NamedTuple):
    """Text among numbers: its first row and value, how many, and their share of what is present."""

    row: int
    value: str
    total: int
    share: float


def first_stray(column: pd.Series[Any]) -> Stray | None:
    """Return what in a text column spells no number, or None if nothing does."""
    text = pd.Series(as_text(column), dtype=object)
    stray = np.flatnonzero((to_numbers(text).isna() & text.notna()).to_numpy())
    if not len(stray):
        return None
    share = len(stray) / int(text.notna().sum())
    return Stray(int(stray[0]), str(text.iloc[stray[0]]), len(stray), share)


def to_numbers(text: pd.Series[Any]) -> pd.Series[float]:
    """Return the numbers that the text spells, and NaN where it spells none."""
    return pd.to_numeric(text, errors="coerce").astype(np.float64)
