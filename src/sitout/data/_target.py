"""The target column: a task, and codes or numbers."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from sitout.data._columns import as_numbers, as_text, is_dates, is_truth, label
from sitout.data._fault import fault
from sitout.data._table import check_finite

Task = Literal["classification", "regression"]
MOST_CLASSES = 1000
FEW_CLASSES = 20
ROWS_PER_CLASS = 5


class Target(NamedTuple):
    """Codes or numbers [N], and what they mean."""

    task: Task
    values: npt.NDArray[Any]
    classes: tuple[str, ...]
    notes: list[str]


def read_target(column: pd.Series[Any], task: Task | None) -> Target:
    """Encode a target column [N] without missing values.

    Args:
        column: numbers or labels; its name is used in messages.
        task: what the user asked for, or None to infer it.

    Raises:
        DataError: the column is empty, constant, infinite, holds dates, has too many classes,
            or holds text where regression was asked for.
    """
    what = f"Target {column.name!r}"
    if not len(column):
        raise fault(what, "have a value in some row", "missing values only")
    check_finite(str(column.name), column)
    numbers = None if is_truth(column) else as_numbers(column)
    if numbers is None and is_dates(column):
        raise fault(what, "hold numbers or labels", "dates")
    values = as_text(column) if numbers is None else numbers
    distinct, codes = np.unique(values, return_inverse=True)
    if len(distinct) == 1:
        raise fault(what, "have two values or more", f"{label(distinct[0])!r} in every row")
    inferred, why = _infer(numbers, distinct)
    notes = [] if task else [f"{what} holds {why}: {inferred} (override it with --task)."]
    if (task or inferred) == "regression":
        if numbers is None:
            way_out = "Use --task classification, or mend the column."
            raise fault(what, "hold numbers for regression", repr(label(distinct[0])), way_out)
        return Target("regression", numbers, (), notes)
    if len(distinct) > MOST_CLASSES:
        way_out = "Use --task regression." if numbers is not None else "Is it an identifier?"
        got = f"{len(distinct)} distinct values"
        raise fault(what, f"have at most {MOST_CLASSES} classes", got, way_out)
    classes = tuple(label(value) for value in distinct)
    return Target("classification", codes.astype(np.int64), classes, notes)


def _infer(numbers: npt.NDArray[np.float64] | None, distinct: npt.NDArray[Any]) -> tuple[Task, str]:
    count = len(distinct)
    if numbers is None:
        return "classification", f"{count} distinct labels"
    whole = bool((distinct == np.floor(distinct)).all())
    kind = "whole numbers" if whole else "numbers"
    if whole and count <= FEW_CLASSES and len(numbers) >= ROWS_PER_CLASS * count:
        return "classification", f"{count} distinct {kind}"
    return "regression", f"{count} distinct {kind}"
