"""Files: is it there, what is in it, and how does it come apart."""

from __future__ import annotations

import zipfile
import zlib
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from sitout._checks import nearest
from sitout.data._csv import check_names, read_csv
from sitout.data._fault import DataError, fault, listed, reason

if TYPE_CHECKING:
    from collections.abc import Collection

SUFFIXES = (".csv", ".tsv", ".parquet", ".npz")


def check_file(path: Path, names: Collection[str] = ()) -> None:
    """Raise unless ``path`` is a readable file of a known kind that is not empty.

    Args:
        path: what the user gave.
        names: names of data sets that would have done as well.
    """
    try:
        if path.is_dir():
            raise fault(repr(str(path)), "be a file", "a directory")
        if path.suffix.lower() not in SUFFIXES:
            known = f"be one of {', '.join(sorted(names))}, or " if names else "be "
            rule = f"{known}a path that ends in {', '.join(SUFFIXES)}"
            what = "Source of load" if names else "File"
            raise fault(what, rule, repr(str(path)), nearest(str(path), names))
        if not path.exists():
            near = nearest(path.name, [*_beside(path), *names])
            raise fault("File", "exist", repr(str(path)), near or "There is no such file.")
        with path.open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise fault(repr(str(path)), "be readable", reason(error)) from error
    if empty:
        raise fault(repr(str(path)), "hold rows of data", "an empty file")


def _beside(path: Path) -> list[str]:
    return [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []


def read_table(path: Path, text: Collection[str] = ()) -> tuple[pd.DataFrame, list[str]]:
    """Read a .csv, .tsv or .parquet file.

    Args:
        path: a file that ``check_file`` has passed.
        text: columns to keep as they are written, even where they look like numbers.

    Returns:
        The table, its column names distinct strings, and notes on how it was read.
    """
    if path.suffix.lower() == ".parquet":
        frame, notes = _read_parquet(path), list[str]()
    else:
        frame, notes = read_csv(path, text)
    if not len(frame):
        got = f"the column names {listed(frame.columns)} and no row"
        raise fault(repr(str(path)), "hold rows of data", got)
    return frame, notes


def _read_parquet(path: Path) -> pd.DataFrame:
    if find_spec("pyarrow") is None:
        way_out = "Install it with: pip install pyarrow. Or save the table as .csv."
        raise DataError(f"Reading {str(path)!r} needs pyarrow, which is not installed. {way_out}")
    try:
        frame = pd.read_parquet(path, engine="pyarrow")
    except (OSError, ValueError, TypeError, NotImplementedError) as error:
        raise fault(
            repr(str(path)), "be a parquet file with distinct column names", reason(error)
        ) from error
    names = [str(name) for name in frame.columns]
    check_names(path, names)
    return frame.set_axis(names, axis="columns")


def read_npz(path: Path, wanted: tuple[str, ...]) -> list[npt.NDArray[Any]]:
    """Read the ``wanted`` arrays of a .npz file, without pickle."""
    if not zipfile.is_zipfile(path):
        way_out = "Write it with numpy.savez(path, X=X, y=y)."
        raise fault(repr(str(path)), "be an .npz archive", "something else", way_out)
    try:
        with np.load(path, allow_pickle=False) as archive:
            for name in wanted:
                if name not in archive.files:
                    rule = f"hold the array{'s' * (len(wanted) > 1)} {' and '.join(wanted)}"
                    raise fault(repr(str(path)), rule, listed(archive.files) or "none")
            return [archive[name] for name in wanted]
    except DataError:
        raise
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise fault(repr(str(path)), "hold plain arrays", reason(error)) from error
