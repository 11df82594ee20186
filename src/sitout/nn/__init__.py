"""The layers: each holds a rate and a mode, and its forward is one functional call."""

from ._alpha import AlphaDropout, FeatureAlphaDropout
from ._drop_path import DropPath
from ._dropout import Dropout
from ._feature import Dropout1d, Dropout2d, Dropout3d
from ._gaussian import GaussianDropout

__all__ = [
    "AlphaDropout",
    "DropPath",
    "Dropout",
    "Dropout1d",
    "Dropout2d",
    "Dropout3d",
    "FeatureAlphaDropout",
    "GaussianDropout",
]
