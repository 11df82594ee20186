"""The layers: each holds a rate and a mode, and its forward is one functional call."""

from ._activation_dropout import ActivationDropout
from ._alpha import AlphaDropout, FeatureAlphaDropout
from ._drop_path import DropPath, DropPathAdd
from ._drop_residual import DropResidual, ResidualDropPath
from ._dropout import Dropout
from ._dropout_add import DropoutAdd
from ._dropout_add_norm import DropoutAddLayerNorm, DropoutAddRMSNorm
from ._feature import Dropout1d, Dropout2d, Dropout3d
from ._gaussian import GaussianDropout
from ._thinned import ThinnedDropout
from ._thinned_conv import (
    ThinnedBatchNorm1d,
    ThinnedBatchNorm2d,
    ThinnedBatchNorm3d,
    ThinnedConv1d,
    ThinnedConv2d,
    ThinnedConv3d,
)
from ._thinned_layers import ThinnedLinear
from ._thinned_mlp import ThinnedMLP

__all__ = [
    "ActivationDropout",
    "AlphaDropout",
    "DropPath",
    "DropPathAdd",
    "DropResidual",
    "Dropout",
    "Dropout1d",
    "Dropout2d",
    "Dropout3d",
    "DropoutAdd",
    "DropoutAddLayerNorm",
    "DropoutAddRMSNorm",
    "FeatureAlphaDropout",
    "GaussianDropout",
    "ResidualDropPath",
    "ThinnedBatchNorm1d",
    "ThinnedBatchNorm2d",
    "ThinnedBatchNorm3d",
    "ThinnedConv1d",
    "ThinnedConv2d",
    "ThinnedConv3d",
    "ThinnedDropout",
    "ThinnedLinear",
    "ThinnedMLP",
]
