"""The data sets that have a name."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from sklearn import datasets

from sitout.data import _idx
from sitout.data._dataset import DataSet

if TYPE_CHECKING:
    from pathlib import Path

    from sitout.data._target import Task


class Named(NamedTuple):
    """What is known of a set before it is read."""

    task: Task
    scale: float | None = None
    classes: tuple[str, ...] = ()


_CLOTHES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
NAMED = {
    "breast_cancer": Named("classification"),
    "diabetes": Named("regression"),
    "digits": Named("classification", scale=16.0),
    "fashion-mnist": Named("classification", 255.0, _CLOTHES),
    "mnist": Named("classification", 255.0, tuple("0123456789")),
    "wine": Named("classification"),
}


def read_named(name: str, data_dir: str | Path | None) -> DataSet:
    """Read a set of ``NAMED``."""
    return _images(name, data_dir) if name in _idx.ORIGIN else _built_in(name)


def _built_in(name: str) -> DataSet:
    known = NAMED[name]
    bunch = getattr(datasets, f"load_{name}")(as_frame=True)
    codes = known.task == "classification"
    return DataSet(
        name=name,
        task=known.task,
        features=bunch.data.astype(np.float64),
        target=bunch.target.to_numpy(np.int64 if codes else np.float64),
        classes=tuple(str(label) for label in bunch.target_names) if codes else (),
        scale=known.scale,
    )


def _images(name: str, data_dir: str | Path | None) -> DataSet:
    known, folder = NAMED[name], _idx.find(name, data_dir)
    x, y = _idx.read_pair(folder, "train")
    x_test, y_test = _idx.read_pair(folder, "test")
    rows = len(y) + len(y_test)
    return DataSet(
        name=name,
        task=known.task,
        features=np.concatenate([x, x_test]),
        target=np.concatenate([y, y_test]).astype(np.int64),
        classes=known.classes,
        test_rows=np.arange(len(y), rows, dtype=np.int64),
        scale=known.scale,
    )
