"""Every layer as a function: tensors in, tensor out, the key explicit."""

from ._alpha import alpha_dropout, feature_alpha_dropout
from ._drop_path import drop_path
from ._dropout import dropout
from ._feature import dropout1d, dropout2d, dropout3d
from ._gaussian import gaussian_dropout

__all__ = [
    "alpha_dropout",
    "drop_path",
    "dropout",
    "dropout1d",
    "dropout2d",
    "dropout3d",
    "feature_alpha_dropout",
    "gaussian_dropout",
]
