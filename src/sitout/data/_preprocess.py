"""From data in its own units to tensors, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from sitout.data._fault import fault
from sitout.data._layouts import Grid, Table
from sitout.data._scaling import center_and_spread, standardised

if TYPE_CHECKING:
    from sitout.data._dataset import DataSet, Features


@dataclass(frozen=True, eq=False)
class Preprocess:
    """What was learnt of the training rows of one repeat, and nothing of any other row.

    - A numeric column: missing values take the training median, then (x - mean) / sd; a 0/1 column
      beside it says where values were missing, if the training rows had any.
    - A text column: one 0/1 column per value of the training rows; missing and unknown are zeros.
    - An array: (x - mean) / sd for every feature.
    - A set with a fixed ``scale``: x / scale.
    - A regression target: (y - mean) / sd.

    Attributes:
        features: how features become float32.
        classes: the labels in code order; empty for regression.
        target_mean: in the unit of the target; 0 for classes.
        target_sd: likewise; 1 for classes.

    Example:
        >>> import numpy as np
        >>> from sitout.data import Preprocess, load
        >>> diabetes = load("diabetes")
        >>> preprocess = Preprocess.fit(diabetes, np.arange(300))
        >>> x = preprocess.transform(diabetes.features)
        >>> y = preprocess.target(diabetes.target)
        >>> x.shape, preprocess.untarget(y)[:3].round()
        (torch.Size([442, 10]), array([151.,  75., 141.]))
    """

    features: Table | Grid
    classes: tuple[str, ...] = ()
    target_mean: float = 0.0
    target_sd: float = 1.0

    @classmethod
    def fit(cls, data: DataSet, rows: npt.NDArray[np.int64]) -> Self:
        """Fit on the given training ``rows`` of ``data``.

        Args:
            data: the data set.
            rows: int64 [n], n >= 1.

        Raises:
            DataError: there are no rows, or they leave no feature.
        """
        if not len(rows):
            raise fault("Training rows of Preprocess.fit", "be at least one", "none")
        layout: Table | Grid
        if isinstance(data.features, pd.DataFrame):
            layout = Table.fit(data.features.iloc[rows], data.scale)
        else:
            layout = Grid.fit(data.features[rows], data.scale)
        if not np.prod(layout.shape):
            raise fault("Training rows", "hold at least one feature", "missing values only")
        if data.task == "classification":
            return cls(layout, data.classes)
        mean, sd = center_and_spread(data.target[rows])
        return cls(layout, (), float(mean), float(sd))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a transformed row."""
        return self.features.shape

    def transform(self, features: Features) -> torch.Tensor:
        """Return features as float32 ``[n, *shape]``.

        Args:
            features: a table with the columns of the fitted one in any order and maybe others, or
                an array ``[n, *shape]`` where an array was fitted.

        Raises:
            DataError: a column is missing, holds text in the place of numbers, or a value is
                infinite; or the array has another shape.
        """
        return torch.from_numpy(self.features.transform(features))

    def target(self, y: npt.NDArray[Any]) -> torch.Tensor:
        """Return a target [n] as int64 class codes, or as standardised float32."""
        if self.classes:
            return torch.from_numpy(y.astype(np.int64))
        return torch.from_numpy(standardised(y, self.target_mean, self.target_sd, "Target"))

    def untarget(self, tensor: torch.Tensor) -> npt.NDArray[Any]:
        """Return the labels of class codes, or standardised values in the unit of the target."""
        values: npt.NDArray[Any] = tensor.detach().cpu().numpy()
        if self.classes:
            return np.take(np.array(self.classes), values)
        return self.target_mean + self.target_sd * values.astype(np.float64)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types, from which ``from_dict`` rebuilds every bit."""
        return {
            "features": self.features.to_dict(),
            "classes": list(self.classes),
            "target_mean": self.target_mean,
            "target_sd": self.target_sd,
        }

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> Self:
        """Return the ``Preprocess`` that ``to_dict`` described.

        Raises:
            DataError: it describes none.
        """
        try:
            features = state["features"]
            layout = (Table if "columns" in features else Grid).from_dict(features)
            classes = tuple(state["classes"])
            return cls(layout, classes, float(state["target_mean"]), float(state["target_sd"]))
        except (KeyError, TypeError, ValueError) as error:
            got = f"{type(error).__name__}: {error}"
            raise fault("State of Preprocess", "come from Preprocess.to_dict", got) from error
