"""What a study needs to know of its data."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from sitout.data._columns import as_numbers, as_text

Features = pd.DataFrame | npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class DataSet:
    """Features, a target, and what was inferred on the way from the file to them.

    Attributes:
        name: the name of the set, or of the file without its suffix.
        task: ``"classification"`` or ``"regression"``.
        features: a table [N, d] of float64 and text columns, which may have missing values, or an
            array [N, ...] without.
        target: [N], int64 class codes or float64 in the unit of the file.
        classes: the labels in code order; empty for regression.
        target_name: the column that the target came from.
        test_rows: int64 indices [n] of a published test split, or None.
        scale: the fixed divisor of every feature; None: standardise by the training rows.
        notes: what was inferred or left out, one sentence each.
        fingerprint: sha256 over features, column names, target and labels, in hexadecimal; the
            same content has the same value in every process and on every machine.

    Example:
        >>> from sitout.data import load
        >>> wine = load("wine")
        >>> wine.n_rows, wine.classes, wine.features.shape
        (178, ('class_0', 'class_1', 'class_2'), (178, 13))
    """

    name: str
    task: str
    features: Features
    target: npt.NDArray[Any]
    classes: tuple[str, ...] = ()
    target_name: str = "target"
    test_rows: npt.NDArray[np.int64] | None = None
    scale: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def n_rows(self) -> int:
        """The number of rows N."""
        return len(self.target)

    @cached_property
    def fingerprint(self) -> str:
        """Sha256 over features, column names, target and labels, in hexadecimal."""
        parts = [*_parts(self.features), _plain(self.target), _words([*self.classes])]
        digest = hashlib.sha256()
        for part in parts:
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
        return digest.hexdigest()


def _parts(features: Features) -> list[bytes]:
    if not isinstance(features, pd.DataFrame):
        return [_words([str(n) for n in features.shape]), _plain(features)]
    parts = [_words([str(name) for name in features.columns])]
    for name in features.columns:
        numbers = as_numbers(features[name])
        text = _words([*as_text(features[name])]) if numbers is None else _plain(numbers)
        parts.append(text)
    return parts


def _words(words: list[str | None]) -> bytes:
    return json.dumps(words).encode()


def _plain(values: npt.NDArray[Any]) -> bytes:
    """The type and the little-endian bytes of an array, with one pattern for NaN."""
    if values.dtype.kind == "f":
        values = np.where(np.isnan(values), np.nan, values)
    plain = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
    return plain.dtype.str.encode() + plain.tobytes()
