"""Every layer as a function: tensors in, tensor out, the key explicit."""

from ._activation_dropout import activation_dropout
from ._alpha import alpha_dropout, feature_alpha_dropout
from ._drop_path import drop_path, drop_path_add
from ._drop_residual import drop_residual
from ._dropout import dropout
from ._dropout_add import dropout_add
from ._dropout_add_norm import dropout_add_layer_norm, dropout_add_rms_norm
from ._feature import dropout1d, dropout2d, dropout3d
from ._gaussian import gaussian_dropout
from ._thinned import (
    keep_units,
    thinned_batch_norm,
    thinned_conv,
    thinned_dropout,
    thinned_linear,
)

__all__ = [
    "activation_dropout",
    "alpha_dropout",
    "drop_path",
    "drop_path_add",
    "drop_residual",
    "dropout",
    "dropout1d",
    "dropout2d",
    "dropout3d",
    "dropout_add",
    "dropout_add_layer_norm",
    "dropout_add_rms_norm",
    "feature_alpha_dropout",
    "gaussian_dropout",
    "keep_units",
    "thinned_batch_norm",
    "thinned_conv",
    "thinned_dropout",
    "thinned_linear",
]
