"""The nine UCI regression sets of Gal & Ghahramani 2016: settings, splits, published figures.

Reference: Gal & Ghahramani 2016, arXiv 1506.02142; the search over a grid that the authors ran
again in 2018, github.com/yaringal/DropoutUncertaintyExps; Lakshminarayanan et al. 2017,
arXiv 1612.01474.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

RATES = (0.005, 0.01, 0.05, 0.1)
Index = np.ndarray
Numbers = tuple[float, float]


@dataclass(frozen=True)
class Setup:
    """How a set is trained on.

    Attributes:
        taus: precisions of the noise that are tried, in units of the target ** -2.
        features: how many columns are features; the target is the next one. The file of naval has
            a second target behind it, which nobody uses.
        hidden: units.
        epochs: of a run.
        splits: how many there are.
    """

    taus: tuple[float, float, float]
    features: int
    hidden: int = 50
    epochs: int = 4000
    splits: int = 20


SETS = {
    "boston": Setup((0.1, 0.15, 0.2), 13),
    "concrete": Setup((0.025, 0.05, 0.075), 8),
    "energy": Setup((0.25, 0.5, 0.75), 8),
    "kin8nm": Setup((150.0, 200.0, 250.0), 8),
    "naval": Setup((3e4, 4e4, 5e4), 16),
    "power": Setup((0.05, 0.1, 0.15), 4),
    "protein": Setup((0.025, 0.05, 0.075), 9, hidden=100, epochs=2000, splits=5),
    "wine-red": Setup((2.5, 3.0, 3.5), 11),
    "yacht": Setup((0.25, 0.5, 0.75), 6),
}


class Published(NamedTuple):
    """What others report, each as mean and spread; the ensembles' log-likelihood is minus NLL.

    Attributes:
        first: the paper of 2016, +- standard deviation over the splits.
        grid: the search of 2018, +- standard error: mean over the files of its splits.
        ensembles: deep ensembles, the mean alone.
        single: RMSE of one stochastic pass in the search of 2018; "standard" in its code.
    """

    first: tuple[Numbers, Numbers]
    grid: tuple[Numbers, Numbers]
    ensembles: Numbers
    single: float


PUBLISHED = {
    "boston": Published(
        ((2.97, 0.85), (-2.46, 0.25)), ((2.904, 0.177), (-2.402, 0.042)), (3.28, -2.41), 3.61
    ),
    "concrete": Published(
        ((5.23, 0.53), (-3.04, 0.09)), ((4.826, 0.161), (-2.937, 0.025)), (6.03, -3.06), 5.45
    ),
    "energy": Published(
        ((1.66, 0.19), (-1.99, 0.09)), ((0.539, 0.014), (-1.212, 0.005)), (2.09, -1.38), 0.967
    ),
    "kin8nm": Published(
        ((0.10, 0.00), (0.95, 0.03)), ((0.0789, 0.0006), (1.136, 0.007)), (0.09, 1.20), 0.0916
    ),
    "naval": Published(
        ((0.01, 0.00), (3.80, 0.05)), ((0.00074, 0.00005), (4.450, 0.002)), (0.00, 5.63), 0.00173
    ),
    "power": Published(
        ((4.02, 0.18), (-2.80, 0.05)), ((4.014, 0.037), (-2.808, 0.009)), (4.11, -2.79), 4.18
    ),
    "protein": Published(
        ((4.36, 0.04), (-2.89, 0.01)), ((4.274, 0.021), (-2.871, 0.001)), (4.71, -2.83), 4.39
    ),
    "wine-red": Published(
        ((0.62, 0.04), (-0.93, 0.06)), ((0.622, 0.008), (-0.928, 0.013)), (0.64, -0.94), 0.657
    ),
    "yacht": Published(
        ((1.11, 0.38), (-1.55, 0.12)), ((0.666, 0.049), (-1.250, 0.015)), (1.58, -1.18), 1.23
    ),
}


def folder() -> Path | None:
    """Return where the files are, ``$SITOUT_DATA/uci``, or None if they are not there."""
    root = os.environ.get("SITOUT_DATA")
    found = Path(root, "uci") if root else None
    return found if found is not None and found.is_dir() else None


def read(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return features ``[N, d]`` and target ``[N]`` of a set."""
    where = folder()
    if where is None:
        raise FileNotFoundError("Set SITOUT_DATA to the folder that has 'uci' in it.")
    table, d = np.loadtxt(where / f"{name}.txt.gz"), SETS[name].features
    return table[:, :d], table[:, d]


def splits(rows: int, count: int) -> list[tuple[Index, Index]]:
    """Return the published splits, each as the rows that train and the rows that test."""
    state, end = np.random.RandomState(1), round(0.9 * rows)
    orders = [state.choice(range(rows), rows, replace=False) for _ in range(count)]
    return [(order[:end], order[end:]) for order in orders]


def halves(train: Index) -> tuple[Index, Index]:
    """Return the first 80 % of a split's training rows, and the rest, which validates."""
    end = int(0.8 * len(train))
    return train[:end], train[end:]


class Part(NamedTuple):
    """Rows that train and rows that judge, standardised on those that train.

    Attributes:
        x: ``[n, d]``.
        y: ``[n]``.
        judge_x: ``[k, d]``.
        judge_y: ``[k]``, float64, in the target's own units.
        mean: of the target.
        std: of the target.
    """

    x: torch.Tensor
    y: torch.Tensor
    judge_x: torch.Tensor
    judge_y: torch.Tensor
    mean: float
    std: float


def part(x: np.ndarray, y: np.ndarray, train: Index, judge: Index, dtype: torch.dtype) -> Part:
    """Standardise; a feature that is constant in the training rows counts as 0 there."""
    mean, std, constant = x[train].mean(0), x[train].std(0), np.ptp(x[train], 0) == 0
    mean[constant], std[constant] = x[train[0], constant], 1.0
    middle, scale = y[train].mean(), y[train].std()
    parts = (x[train] - mean) / std, (y[train] - middle) / scale, (x[judge] - mean) / std
    a, b, c = (torch.as_tensor(each).to(dtype) for each in parts)
    return Part(a, b, c, torch.as_tensor(y[judge]), float(middle), float(scale))
