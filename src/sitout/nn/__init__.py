"""The layers: each holds a rate and a mode, and its forward is one functional call."""

from ._activation_dropout import ActivationDropout
from ._alpha import AlphaDropout, FeatureAlphaDropout
from ._drop_path import DropPath, DropPathAdd
from ._dropout import Dropout
from ._dropout_add import DropoutAdd
from ._feature import Dropout1d, Dropout2d, Dropout3d
from ._gaussian import GaussianDropout

__all__ = [
    "ActivationDropout",
    "AlphaDropout",
    "DropPath",
    "DropPathAdd",
    "Dropout",
    "Dropout1d",
    "Dropout2d",
    "Dropout3d",
    "DropoutAdd",
    "FeatureAlphaDropout",
    "GaussianDropout",
]
