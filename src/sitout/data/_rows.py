"""New rows for a fitted preprocess."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from sitout.data._columns import as_numbers, first_stray
from sitout.data._encoders import Category
from sitout.data._fault import counted, fault
from sitout.data._layouts import Grid
from sitout.data._load import check_grid
from sitout.data._read import check_file, read_npz, read_table

if TYPE_CHECKING:
    from sitout.data._dataset import Features
    from sitout.data._preprocess import Preprocess


def read_rows(path: str | Path, like: Preprocess) -> Features:
    """Read rows to predict; a target is not needed, and ignored in a table.

    Args:
        path: a .csv, .tsv, .parquet or .npz file; an .npz holds ``X`` [n, ...].
        like: the fitted preprocess that will transform the rows. Where it was fitted on arrays, a
            table needs exactly one numeric column per feature, in their order.

    Returns:
        A table [n, ...] or an array ``[n, *shape]``, for ``like.transform``.

    Raises:
        DataError: the file cannot be read or does not fit.

    Example:
        >>> import numpy as np
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from sitout.data import Preprocess, load, read_rows
        >>> wine = load("wine")
        >>> preprocess = Preprocess.fit(wine, np.arange(100))
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder, "new.csv")
        ...     wine.features.head(3).to_csv(path, index=False)
        ...     rows = read_rows(path, preprocess)
        >>> preprocess.transform(rows).shape
        torch.Size([3, 13])
    """
    path = Path(path)
    check_file(path)
    layout = like.features
    if path.suffix.lower() == ".npz":
        (x,) = read_npz(path, ("X",))
        check_grid(path, x)
        return x
    if isinstance(layout, Grid):
        frame, _ = read_table(path)
        return _grid(path, frame, layout.shape)
    text = [column.name for column in layout.columns if isinstance(column, Category)]
    return read_table(path, text)[0]


def _grid(path: Path, frame: pd.DataFrame, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    if frame.shape[1] != math.prod(shape):
        rule = f"have {math.prod(shape)} columns, one per feature of {list(shape)}"
        raise fault(repr(str(path)), rule, str(frame.shape[1]))
    columns = [_numbers(frame[name]) for name in frame.columns]
    return np.stack(columns, axis=1).reshape(len(frame), *shape)


def _numbers(column: pd.Series[Any]) -> npt.NDArray[np.float64]:
    numbers = as_numbers(column)
    if numbers is None:
        stray = first_stray(column)
        got = f"{stray.value!r} in data row {stray.row + 1}" if stray else "text"
        raise fault(f"Column {column.name!r}", "hold numbers", got)
    bad = len(numbers) - int(np.isfinite(numbers).sum())
    if bad:
        got = counted(bad, "missing or infinite value")
        raise fault(f"Column {column.name!r}", "be finite in every row", got)
    return numbers
