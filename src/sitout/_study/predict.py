"""The trained network of a study, at work on new rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import safetensors
import safetensors.torch
import torch

from ..data import DataError, Preprocess, read_rows
from . import measure, networks
from .errors import StudyError
from .store import read_json

if TYPE_CHECKING:
    import os


@dataclass(frozen=True)
class Trained:
    """A network and what it needs to read rows.

    Attributes:
        network: in evaluation mode.
        preprocess: rows to tensors.
        settings: what stands in ``settings.json``.
    """

    network: torch.nn.Module
    preprocess: Preprocess
    settings: dict[str, Any]


def load(folder: str | os.PathLike[str]) -> Trained:
    """Load the trained network of a study.

    Args:
        folder: of the study, or its ``best``.

    Raises:
        StudyError: it holds no trained network.
    """
    best = Path(folder)
    best = best / "best" if (best / "best").is_dir() else best
    settings, fitted = read_json(best / "settings.json"), read_json(best / "preprocess.json")
    weights = best / "model.safetensors"
    if settings is None or fitted is None or not weights.is_file():
        raise StudyError(
            f"The folder must be that of a finished study. {folder} holds no trained network "
            "(best/settings.json, best/preprocess.json, best/model.safetensors)."
        )
    try:
        preprocess = Preprocess.from_dict(fitted)
        named, shape, outputs = (settings[key] for key in ("network", "input_shape", "outputs"))
    except (DataError, KeyError) as error:
        raise StudyError(
            f"The files in {best} must be those that a study wrote. {error}"
        ) from error
    network = networks.build(networks.factory(named), tuple(shape), outputs)
    try:
        network.load_state_dict(safetensors.torch.load_file(weights))
    except (RuntimeError, safetensors.SafetensorError) as error:
        first = str(error).splitlines()[0]
        raise StudyError(f"{weights} must hold the weights of {named}. {first}") from error
    return Trained(network.eval(), preprocess, settings)


def predict(folder: str | os.PathLike[str], rows: str | os.PathLike[str]) -> pd.DataFrame:
    """Predict the target of new rows.

    Args:
        folder: of a finished study.
        rows: path of a CSV, Parquet or npz file with the columns that the study learned from.

    Returns:
        One row a row: the predicted value or class and, for classes, their probabilities.

    Raises:
        StudyError: the folder holds no trained network, or the rows do not fit it.
    """
    trained = load(folder)
    try:
        x = trained.preprocess.transform(read_rows(str(rows), trained.preprocess))
    except DataError as error:
        raise StudyError(str(error)) from error
    out = measure.predict(trained.network, x)
    target = trained.settings["target"]
    if trained.settings["task"] == "regression":
        return pd.DataFrame({target: trained.preprocess.untarget(out.squeeze(1))})
    table = pd.DataFrame(
        out.softmax(1).numpy(), columns=[f"p({label})" for label in trained.settings["classes"]]
    )
    table.insert(0, target, trained.preprocess.untarget(out.argmax(1)))
    return table
