"""One door for every source of data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from sitout._checks import choice, nearest
from sitout.data._dataset import DataSet
from sitout.data._fault import DataError, counted, fault, listed
from sitout.data._named import NAMED, read_named
from sitout.data._read import check_file, read_npz, read_table
from sitout.data._table import clean
from sitout.data._target import Task, read_target


def load(
    source: str | Path,
    *,
    target: str | None = None,
    task: Task | None = None,
    data_dir: str | Path | None = None,
) -> DataSet:
    """Load a named data set, a table or a file of arrays.

    Args:
        source: one of

            - ``breast_cancer``, ``diabetes``, ``digits``, ``wine``: built into scikit-learn;
            - ``mnist``, ``fashion-mnist``: the published IDX files, [70000, 1, 28, 28], the last
              10,000 rows the published test rows;
            - a path that ends in .csv, .tsv or .parquet: a table with a header;
            - a path that ends in .npz: arrays ``X`` [N, ...] and ``y`` [N].
        target: the column to predict; needed for a table, and only there.
        task: ``"classification"`` or ``"regression"``; inferred from the target of a file if None:
            labels, truth values, and whole numbers with at most 20 distinct values and at
            least 5 rows per value on average are classes, other numbers are not.
        data_dir: the folder that holds ``mnist/`` and ``fashion-mnist/``; by default the
            environment variable ``SITOUT_DATA``.

    Returns:
        The data; ``notes`` says what was inferred or left out. In text files an empty cell, ``?``,
        ``NA``, ``N/A``, ``NaN`` and ``null`` are missing values.

    Raises:
        DataError: the data cannot be read or used; one line says why, and the way out.

    Example:
        >>> from sitout.data import load
        >>> digits = load("digits")
        >>> digits.task, digits.features.shape, digits.scale
        ('classification', (1797, 64), 16.0)
    """
    if task is not None:
        _check_task(task)
    if str(source) in NAMED:
        _check_named(str(source), target, task)
        return read_named(str(source), data_dir)
    path = Path(source)
    check_file(path, NAMED)
    if path.suffix.lower() != ".npz":
        return _from_table(path, target, task)
    if target is not None:
        way_out = "The target is the array y."
        raise fault("`target` of load", "be left out for an .npz file", repr(target), way_out)
    return _from_arrays(path, task)


def _check_task(task: str) -> None:
    try:
        choice(task, ("classification", "regression"), "`task` of load")
    except ValueError as error:
        raise DataError(str(error)) from None


def _check_named(name: str, target: str | None, task: str | None) -> None:
    if target is not None:
        way_out = "A named set has its own target."
        raise fault(f"`target` of {name}", "be left out", repr(target), way_out)
    if task not in (None, NAMED[name].task):
        raise fault(f"`task` of {name}", f"be {NAMED[name].task!r}", repr(task), "Leave it out.")


def _from_table(path: Path, name: str | None, task: Task | None) -> DataSet:
    frame, notes = read_table(path)
    columns = [str(column) for column in frame.columns]
    if name not in columns:
        way_out = f"The columns are {listed(columns)}."
        if name is not None:
            way_out = f"{nearest(name, columns)} {way_out}".strip()
        rule = f"name a column of {str(path)!r}"
        raise fault("Target (--target)", rule, repr(name) if name else "none", way_out)
    present, dropped = _present(frame[name])
    frame = frame[present]
    found = read_target(frame[name], task)
    features, left_out = clean(frame.drop(columns=[name]))
    notes += [*dropped, *found.notes, *left_out]
    if features.empty:
        why = " ".join(note for note in notes if note.startswith("Left out"))
        rule = "have at least one column besides the target"
        raise fault(f"Features of {str(path)!r}", rule, "none", why)
    return DataSet(
        name=path.stem,
        task=found.task,
        features=features,
        target=found.values,
        classes=found.classes,
        target_name=name,
        notes=tuple(notes),
    )


def _present(target: pd.Series[Any]) -> tuple[npt.NDArray[np.bool_], list[str]]:
    missing = (target.isna() | target.eq("")).to_numpy(bool)
    count = int(missing.sum())
    return ~missing, [f"Dropped {counted(count, 'row')} without a target."] if count else []


def _from_arrays(path: Path, task: Task | None) -> DataSet:
    x, y = read_npz(path, ("X", "y"))
    _check_arrays(path, x, y)
    column = pd.Series(y.reshape(len(y)), name="y")
    present, dropped = _present(column)
    found = read_target(column[present], task)
    return DataSet(
        name=path.stem,
        task=found.task,
        features=x[present],
        target=found.values,
        classes=found.classes,
        target_name="y",
        scale=255.0 if x.dtype == np.uint8 and x.ndim >= 3 else None,
        notes=(*dropped, *found.notes),
    )


def _check_arrays(path: Path, x: npt.NDArray[Any], y: npt.NDArray[Any]) -> None:
    check_grid(path, x)
    if y.dtype.kind not in "biufUS" or y.ndim not in (1, 2) or y.size != len(y):
        raise fault(f"y of {str(path)!r}", "hold one number or label per row", _look(y))
    if len(x) != len(y):
        got = f"{len(x)} and {len(y)} rows"
        raise fault(f"X and y of {str(path)!r}", "have the same length", got)


def check_grid(path: Path, x: npt.NDArray[Any]) -> None:
    """Raise unless ``x`` is a finite array [N, ...] of numbers with rows and features."""
    if x.dtype.kind not in "biuf" or x.ndim < 2 or not x.size:
        rule = "hold numbers [N, ...] with rows and features"
        raise fault(f"X of {str(path)!r}", rule, _look(x))
    bad = 0 if x.dtype.kind != "f" else x.size - int(np.isfinite(x).sum())
    if bad:
        got, way_out = counted(bad, "NaN or infinite value"), "Mend or drop these rows."
        raise fault(f"X of {str(path)!r}", "be finite", got, way_out)


def _look(array: npt.NDArray[Any]) -> str:
    return f"{array.dtype} {list(array.shape)}"
