"""The functions and layers that the scan knows, and where each takes its rate and its mode."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable


class Drop(NamedTuple):
    """A function that drops.

    Attributes:
        p: the position of its rate.
        training: the position of its mode.
        mode: the name of that argument.
        rate: the name of the other.
        default: the mode, if it is not given.
    """

    p: int
    training: int
    mode: str = "training"
    rate: str = "p"
    default: bool = True


_PLAIN = ("dropout", "dropout1d", "dropout2d", "dropout3d")
_ALPHA = ("alpha_dropout", "feature_alpha_dropout")
_SITOUT = (*_PLAIN, *_ALPHA, "gaussian_dropout", "drop_path")
_TORCH = (*_ALPHA, "dropout", "feature_dropout", "native_dropout")
DROPS = {
    **{f"torch.nn.functional.{name}": Drop(1, 2) for name in _PLAIN},
    **{f"torch.nn.functional.{name}": Drop(1, 2, default=False) for name in _ALPHA},
    **{f"torch.{name}{end}": Drop(1, 2, "train") for name in _TORCH for end in ("", "_")},
    "torch.nn.functional.multi_head_attention_forward": Drop(10, 13, rate="dropout_p"),
    **{f"sitout.functional.{name}": Drop(1, 2) for name in _SITOUT},
    "sitout.functional.dropout_add": Drop(2, 3),
    "sitout.functional.dropout_add_layer_norm": Drop(4, 5),
    "sitout.functional.dropout_add_rms_norm": Drop(3, 4),
    "sitout.functional.drop_path_add": Drop(2, 3),
    "sitout.functional.activation_dropout": Drop(2, 3),
    "timm.layers.drop_path": Drop(1, 2, rate="drop_prob", default=False),
    "torchvision.ops.stochastic_depth": Drop(1, 3),
    "torchvision.ops.drop_block2d": Drop(1, 5),
    "torchvision.ops.drop_block3d": Drop(1, 5),
    "torch_geometric.utils.dropout_adj": Drop(2, 5),
    "torch_geometric.utils.dropout_edge": Drop(1, 3),
    "torch_geometric.utils.dropout_node": Drop(1, 3),
    "torch_geometric.utils.dropout_path": Drop(1, 6),
}

_LAYER_NAMES = (*(f"Dropout{dims}" for dims in ("", "1d", "2d", "3d")), "AlphaDropout")
LAYERS = {
    *(f"torch.nn.{name}" for name in (*_LAYER_NAMES, "FeatureAlphaDropout")),
    *(f"sitout.nn.{name}" for name in (*_LAYER_NAMES, "FeatureAlphaDropout", "DropPath")),
    "timm.layers.DropPath",
    "torchvision.ops.StochasticDepth",
}

# By the last part of the name: flash_attn is imported from many places. Position, name of the rate.
ATTENTION = {
    "scaled_dot_product_attention": (4, "dropout_p"),
    "flash_attn_func": (3, "dropout_p"),
    "flash_attn_qkvpacked_func": (1, "dropout_p"),
    "flash_attn_kvpacked_func": (2, "dropout_p"),
    "flash_attn_varlen_func": (7, "dropout_p"),
    "flash_attn_varlen_qkvpacked_func": (3, "dropout_p"),
    "flash_attn_varlen_kvpacked_func": (6, "dropout_p"),
    "memory_efficient_attention": (4, "p"),
}


def last_parts(names: Iterable[str]) -> frozenset[str]:
    """Return the last parts of dotted names."""
    return frozenset(name.rpartition(".")[2] for name in names)
