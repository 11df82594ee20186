"""From a table as it was read to features that a network can take."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from sitout.data._columns import as_numbers, as_text, first_stray, is_dates
from sitout.data._fault import counted, fault

MOST_CATEGORIES = 100
FEW_CATEGORIES = 20


def clean(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Keep the columns that can be features, as float64 or as text.

    Returns:
        The features, and one note for each column that is left out or in doubt.

    Raises:
        DataError: a column holds infinite values.
    """
    kept: dict[str, Any] = {}
    notes: list[str] = []
    for name in frame.columns:
        column = frame[name]
        reason = _unfit(column)
        if reason:
            notes.append(f"Left out column {name!r}: {reason}.")
            continue
        kept[name] = _feature(column)
        notes += _doubt(column)
    return pd.DataFrame(kept, index=range(len(frame))), notes


def check_finite(name: str, column: pd.Series[Any]) -> None:
    """Raise if the column holds infinite values."""
    numbers = as_numbers(column)
    count = 0 if numbers is None else int(np.isinf(numbers).sum())
    if count:
        way_out = "Mend these rows, or leave the cells empty for missing values."
        raise fault(f"Column {name!r}", "be finite", counted(count, "infinite value"), way_out)


def _unfit(column: pd.Series[Any]) -> str:
    """Say why the column cannot be a feature, or nothing."""
    if column.isna().all():
        return "every value is missing"
    if as_numbers(column) is not None:
        return ""
    if is_dates(column):
        return "it holds dates"
    text = pd.Series(as_text(column), dtype=object)
    distinct, rows = text.nunique(), len(text)
    if distinct > MOST_CATEGORIES or (distinct > FEW_CATEGORIES and 2 * distinct > rows):
        example = _stray_number(column) or f"such as {text.dropna().iloc[0][:40]!r}"
        return f"text with {distinct} distinct values in {rows} rows, {example}"
    return ""


def _feature(column: pd.Series[Any]) -> Any:
    numbers = as_numbers(column)
    if numbers is None:
        return as_text(column)
    check_finite(str(column.name), column)
    return numbers


def _doubt(column: pd.Series[Any]) -> list[str]:
    stray = "" if as_numbers(column) is not None else _stray_number(column)
    return [f"Column {column.name!r} is read as categories: {stray}."] if stray else []


def _stray_number(column: pd.Series[Any]) -> str:
    """Say what keeps a column from being numbers, if most of it is."""
    stray = first_stray(column)
    if stray is None or stray.share > 0.5:
        return ""
    count = counted(stray.total, "such value")
    return f"most values are numbers, but {stray.value[:40]!r} is not ({count})"
