"""The trained network of a study, at work on new rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import safetensors
import safetensors.torch
import torch

from .. import _checks
from ..data import DataError, Preprocess, read_rows
from . import measure, networks, sampled
from .arms import Regularization
from .errors import StudyError
from .store import read_json
from .train import set_rates

if TYPE_CHECKING:
    import os
    from collections.abc import Callable


@dataclass(frozen=True)
class Trained:
    """A network and what it needs to read rows.

    Attributes:
        network: in evaluation mode, its sites at the rates of its training.
        preprocess: rows to tensors.
        settings: what stands in ``settings.json``.
    """

    network: torch.nn.Module
    preprocess: Preprocess
    settings: dict[str, Any]


def load(folder: str | os.PathLike[str], arm: str | None = None) -> Trained:
    """Load a trained network of a study.

    Args:
        folder: of the study, or its ``best``, which holds one arm alone.
        arm: whose network of repeat 0; the one in ``best`` if None.

    Raises:
        StudyError: it holds no such network.
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
    if arm is not None and arm != settings.get("arm"):
        settings, weights = _of_arm(Path(folder), arm, settings)
    try:
        preprocess = Preprocess.from_dict(fitted)
        named, shape, outputs = (settings[key] for key in ("network", "input_shape", "outputs"))
        how = Regularization.of(settings["settings"])
    except (DataError, KeyError) as error:
        raise StudyError(
            f"The files in {best} must be those that a study wrote. {error}"
        ) from error
    network = networks.build(networks.factory(named), tuple(shape), outputs)
    set_rates(network, how, torch.zeros(2, *shape))
    try:
        network.load_state_dict(safetensors.torch.load_file(weights))
    except (RuntimeError, safetensors.SafetensorError) as error:
        first = str(error).splitlines()[0]
        raise StudyError(f"{weights} must hold the weights of {named}. {first}") from error
    return Trained(network.eval(), preprocess, settings)


def _of_arm(folder: Path, arm: str, settings: dict[str, Any]) -> tuple[dict[str, Any], Path]:
    """Return the settings and the weights of an arm's network of repeat 0.

    All arms share the split of a repeat, so what ``best`` says of the rows holds for it too.
    """
    known = settings.get("request", {}).get("arms", [])
    if arm not in known:
        rule = f"one of {', '.join(known)}"
        raise StudyError(_checks.message("`arm` (--arm)", rule, arm))
    run = folder / "runs" / f"{arm}-repeat-00"
    record, weights = read_json(run.with_suffix(".json")), run.with_suffix(".safetensors")
    if record is None or not weights.is_file():
        raise StudyError(
            f"The folder must be that of the whole study for --arm {arm}. {folder} lacks "
            f"runs/{weights.name} or its .json; it has the arm {settings.get('arm')} alone."
        )
    kept = {key: record[key] for key in ("settings", "validation_error", "validation_loss")}
    return {**settings, "arm": arm, **kept}, weights


def predict(
    folder: str | os.PathLike[str],
    rows: str | os.PathLike[str],
    *,
    arm: str | None = None,
    samples: int | None = None,
    seed: int = 0,
    say: Callable[[str], None] = lambda line: None,
) -> pd.DataFrame:
    """Predict the target of new rows.

    Args:
        folder: of a finished study.
        rows: path of a CSV, TSV, Parquet or npz file with the columns that the study learned from.
        arm: whose network; the one in ``best`` if None.
        samples: predict with dropout left on, so many times; None for once without dropout.
        seed: of the samples.
        say: called with a line that names the arm.

    Returns:
        One row a row: the predicted value or class and, for classes, their probabilities. With
        samples also ``std``, or ``entropy`` and ``mutual_information`` in nats.

    Raises:
        StudyError: the folder holds no such network, the rows do not fit it, or it drops nothing.
    """
    trained = load(folder, arm)
    try:
        x = trained.preprocess.transform(read_rows(str(rows), trained.preprocess))
    except DataError as error:
        raise StudyError(str(error)) from error
    drawn = "no samples" if samples is None else f"{samples} samples"
    found = _plain(trained, x) if samples is None else sampled.table(trained, x, samples, seed)
    say(f"The network of the arm {trained.settings['arm']}, {drawn}.")
    return found


def _plain(trained: Trained, x: torch.Tensor) -> pd.DataFrame:
    """Return predictions without dropout."""
    out = measure.predict(trained.network, x)
    if trained.settings["task"] == "classification":
        out = out.softmax(1)
    return sampled.predictions(trained, out)
