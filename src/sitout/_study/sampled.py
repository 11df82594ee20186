"""The trained network of a study with its dropout left on, and predictions as a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from .. import _checks, mc
from . import networks
from .errors import StudyError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from .predict import Trained

ENDINGS = (".csv", ".parquet", ".npz")
_ROWS = 1024  # that are predicted together


def predictions(trained: Trained, out: Tensor) -> pd.DataFrame:
    """Return what was predicted, one row a row.

    Args:
        trained: the network and what it needs.
        out: probabilities ``[N, classes]``, or standardised values ``[N, 1]``.
    """
    target = trained.settings["target"]
    if trained.settings["task"] == "regression":
        return pd.DataFrame({target: trained.preprocess.untarget(out.squeeze(1))})
    labels = trained.settings["classes"]
    table = pd.DataFrame(out.numpy(), columns=[f"p({label})" for label in labels])
    table.insert(0, target, trained.preprocess.untarget(out.argmax(1)))
    return table


def table(trained: Trained, x: Tensor, samples: int, seed: int) -> pd.DataFrame:
    """Return predictions that are means over samples, and how far these are apart.

    Args:
        trained: the network and what it needs.
        x: float32 ``[N, *shape]``.
        samples: how many, at least 2.
        seed: of their masks.

    Returns:
        For a number its mean, and ``std`` in the unit of the target; for a class the mean
        probabilities, and ``entropy`` and ``mutual_information`` in nats.

    Raises:
        StudyError: the network drops nothing, or a column of the result has the target's name.
    """
    _check(trained, len(x), samples, seed)
    classes = trained.settings["task"] == "classification"
    try:
        made = mc.predict(
            trained.network,
            iter(torch.split(x, _ROWS)),
            samples=samples,
            outputs="logits" if classes else "values",
            seed=seed,
        )
    except (RuntimeError, ValueError) as error:
        raise StudyError(f"The arm {trained.settings['arm']} cannot be sampled. {error}") from error
    columns = {"std": made.std.squeeze(1) * trained.preprocess.target_sd} if not classes else {}
    if classes:
        columns = {"entropy": made.entropy, "mutual_information": made.mutual_information}
    found = predictions(trained, made.mean)
    for name, values in columns.items():
        if name in found:
            what, rule = "The target", "named otherwise than a column of the result"
            raise StudyError(_checks.message(what, rule, name))
        found[name] = values.numpy()
    return found


def _check(trained: Trained, rows: int, samples: int, seed: int) -> None:
    """Refuse what cannot be sampled, before anything runs."""
    if samples < 2:
        raise StudyError(_checks.message("`samples` (--samples)", "2 or more", samples))
    if not 0 <= seed < 1 << 32:
        raise StudyError(_checks.message("`seed` (--seed)", "in [0, 2**32)", seed))
    if not rows:
        raise StudyError("The rows must be one or more for --samples. Got none.")
    rates = networks.rates(trained.network)
    if not rates or any(rates):  # without layers, dropout may be a function call
        return
    arms = trained.settings["request"]["arms"]
    drop = [arm for arm in arms if "dropout" in arm or "thinned" in arm]
    way_out = f"Choose --arm {' or '.join(drop)}." if drop else "No arm of this study does."
    raise StudyError(
        f"The arm must be one that drops for --samples. Got {trained.settings['arm']!r}, whose "
        f"rates are 0. {way_out}"
    )


def check_ending(path: Path) -> None:
    """Refuse a file that :func:`write` cannot write.

    Raises:
        StudyError: of that ending.
    """
    if path.suffix.lower() not in ENDINGS:
        rule = f"a file that ends in {', '.join(ENDINGS)}"
        raise StudyError(_checks.message("`out` (--out)", rule, str(path)))


def write(found: pd.DataFrame, path: Path) -> None:
    """Write predictions as CSV or Parquet, or as an npz of one array a column.

    Args:
        found: the predictions.
        path: of a file; its ending says which kind.

    Raises:
        StudyError: the system refused, or the ending is another one.
    """
    check_ending(path)
    ending = path.suffix.lower()
    try:
        if ending == ".csv":
            found.to_csv(path, index=False)
        elif ending == ".parquet":
            found.to_parquet(path, index=False)
        else:
            numbers = found.select_dtypes("number").columns
            arrays = {
                str(name): found[name].to_numpy() if name in numbers else found[name].to_numpy(str)
                for name in found
            }
            with path.open("wb") as file:
                np.savez_compressed(file, allow_pickle=False, **arrays)
    except OSError as error:
        raise StudyError(f"Cannot write {path}: {error.strerror or error}.") from error
