"""Tables as text: separator, header, missing values."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from sitout.data._columns import as_numbers, to_numbers
from sitout.data._fault import DataError, fault, listed, reason

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

_WORDS = ["#N/A", "<NA>", "?", "-NaN", "-nan", "N/A", "NA", "NULL", "NaN", "n/a", "nan", "null"]
MISSING = ["", *_WORDS]
_HEAD = 1 << 16
_COMMA = re.compile(r'(?:^|[;\t|])"?[-+]?\d+,\d+"?(?=[;\t|\r\n])', re.MULTILINE)
_POINT = re.compile(r'(?:^|[;\t|])"?[-+]?\d+\.\d+"?(?=[;\t|\r\n])', re.MULTILINE)


class _Dialect(NamedTuple):
    sep: str
    decimal: str


def read_csv(path: Path, text: Collection[str] = ()) -> tuple[pd.DataFrame, list[str]]:
    """Read a .csv or .tsv file; the columns in ``text`` stay as they are written."""
    dialect = _dialect(path)
    with _one_line(path):
        names = [str(name).strip() for name in _read(path, dialect, None, str).iloc[0]]
        _check_header(path, names)
        keys = [name or f"\0{i}" for i, name in enumerate(names)]
        frame = _read(path, dialect, keys, dict.fromkeys(text, str))
    named = {
        key: frame[key] if key in text else _spelled(frame[key])
        for key, name in zip(keys, names, strict=True)
        if name
    }
    nameless = [f"Left out column {i + 1}: it has no name." for i, n in enumerate(names) if not n]
    return pd.DataFrame(named), [*_said(dialect, path), *nameless]


def _read(
    path: Path, dialect: _Dialect, names: list[str] | None, dtype: type[str] | dict[str, type[str]]
) -> pd.DataFrame:
    """Read the rows below the header under ``names``, or the header alone."""
    return pd.read_csv(
        path,
        sep=dialect.sep,
        decimal=dialect.decimal,
        header=None if names is None else 0,
        names=names,
        nrows=1 if names is None else None,
        dtype=dtype,
        na_values=[] if names is None else MISSING,
        keep_default_na=False,
        index_col=False,
        skipinitialspace=True,
        skip_blank_lines=names is None or len(names) > 1,
        encoding="utf-8-sig",
        low_memory=False,
    )


def _dialect(path: Path) -> _Dialect:
    with path.open("rb") as file:
        raw = file.read(_HEAD)
    if b"\0" in raw:
        way_out = "Save it as UTF-8 with plain columns."
        raise fault(repr(str(path)), "be UTF-8 text", "binary data or UTF-16", way_out)
    head = raw.decode("utf-8-sig", errors="replace").strip()
    if not head:
        raise fault(repr(str(path)), "hold rows of data", "an empty file")
    if path.suffix.lower() == ".tsv":
        sep = "\t"
    else:
        line = re.split("[\r\n]", re.sub('"[^"]*"', "", head))[0]
        sep = max(",;\t|", key=line.count)
    comma = sep != "," and _COMMA.search(head) and not _POINT.search(head)
    return _Dialect(sep, "," if comma else ".")


def _said(dialect: _Dialect, path: Path) -> list[str]:
    notes = []
    if dialect.sep != "," and path.suffix.lower() == ".csv":
        notes.append(f"Read with {dialect.sep!r} between the columns.")
    if dialect.decimal == ",":
        notes.append("Read with ',' as the decimal mark.")
    return notes


def check_names(path: Path, names: list[str]) -> None:
    """Raise if a column name stands twice."""
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        got = f"{listed(twice)} more than once"
        raise fault(f"Column names of {str(path)!r}", "be distinct", got, "Rename them.")


def _check_header(path: Path, names: list[str]) -> None:
    given = [name for name in names if name]
    numbers = to_numbers(pd.Series(given, dtype=object))
    counting = [[str(i + start) for i in range(len(given))] for start in (0, 1)]
    if not given or (given not in counting and not numbers.isna().any()):
        rule, got = "begin with a line of column names", listed(given, 5) or "blanks"
        raise fault(repr(str(path)), rule, got, "Add a header line.")
    check_names(path, given)


def _spelled(column: pd.Series[Any]) -> pd.Series[Any]:
    """Turn text that spells only numbers into numbers.

    Integers of more than 64 bits come from pandas as text, and words for missing beside them, too.
    """
    if as_numbers(column) is not None:
        return column
    column = column.mask(column.isin(MISSING))
    numbers = to_numbers(column)
    return column if (numbers.isna() & column.notna()).any() else numbers


@contextmanager
def _one_line(path: Path) -> Iterator[None]:
    """Turn whatever the parser raises into one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            yield
    except DataError:
        raise
    except UnicodeDecodeError as error:
        got = f"the byte 0x{error.object[error.start]:02x}"
        way_out = "Save it again as UTF-8."
        raise fault(repr(str(path)), "be UTF-8 text", got, way_out) from error
    except pd.errors.ParserWarning as error:
        got = "rows with more values than there are column names"
        raise fault(repr(str(path)), "have one value per column", got) from error
    except (ValueError, OverflowError) as error:
        got = reason(error).removeprefix("Error tokenizing data. C error: ")
        raise fault(repr(str(path)), "be a table", f"the parser error {got!r}") from error
