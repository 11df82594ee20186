"""The functions of torch that drop: what they are called with."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_sdpa = F.scaled_dot_product_attention

CALLS: dict[Any, str] = {
    F.dropout: "dropout",
    F.dropout1d: "dropout1d",
    F.dropout2d: "dropout2d",
    F.dropout3d: "dropout3d",
    F.alpha_dropout: "alpha",
    F.feature_alpha_dropout: "feature_alpha",
    torch.dropout: "dropout",
    torch.dropout_: "dropout",
    torch.feature_dropout: "dropout2d",
    torch.feature_dropout_: "dropout2d",
    torch.alpha_dropout: "alpha",
    torch.alpha_dropout_: "alpha",
    torch.feature_alpha_dropout: "feature_alpha",
    torch.feature_alpha_dropout_: "feature_alpha",
    torch.native_dropout: "dropout",
    _sdpa: "attention",
    F.multi_head_attention_forward: "attention",
    torch.lstm: "rnn",
    torch.gru: "rnn",
    torch.rnn_tanh: "rnn",
    torch.rnn_relu: "rnn",
}
"""The kind of dropout behind each function of torch that drops."""

OWN = {
    "alpha_dropout": "alpha",
    "drop_path": "drop_path",
    "drop_path_add": "drop_path",
    "dropout1d": "dropout1d",
    "dropout2d": "dropout2d",
    "dropout3d": "dropout3d",
    "feature_alpha_dropout": "feature_alpha",
    "gaussian_dropout": "gaussian",
}
"""The kind of dropout behind the functions of this package; of the others ``dropout``."""

_PYTHON = {
    func: list(inspect.signature(func).parameters.values())
    for func in (
        *(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout),
        *(F.feature_alpha_dropout, F.multi_head_attention_forward),
    )
}
_RATES = ("p", "dropout_p")
_ARGUMENTS = frozenset({"dropout_p", "p_dropout", "dropout_prob"})
_DROPPING: dict[Any, tuple[int, str] | None] = {}


class Asked(NamedTuple):
    """What a dropping function is called with.

    Args:
        p: drop rate; anything, it is not checked.
        training: whether it is to drop.
        inplace: whether it is to write into its input.
    """

    p: Any
    training: bool
    inplace: bool = False


def asked(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], module: nn.Module) -> Asked:
    """Return what a function of :data:`CALLS` is called with.

    Args:
        func: the function.
        args: its positional arguments.
        kwargs: its keywords.
        module: whose code calls it.
    """
    if CALLS[func] == "rnn":
        if isinstance(module, nn.RNNBase):
            return Asked(module.dropout if module.num_layers > 1 else 0.0, module.training)
        return Asked(None, False)
    if func is _sdpa:
        p = args[4] if len(args) > 4 else kwargs.get("dropout_p", 0.0)
        return Asked(p, True)
    parameters = _PYTHON.get(func)
    if parameters is None:  # torch.dropout(input, p, train)
        p = args[1] if len(args) > 1 else kwargs.get("p")
        train = bool(args[2] if len(args) > 2 else kwargs.get("train"))
        return Asked(p, train, func.__name__.endswith("_"))
    given = dict(zip((parameter.name for parameter in parameters), args, strict=False)) | kwargs
    values = {one.name: given.get(one.name, one.default) for one in parameters}
    p = next(values[name] for name in _RATES if name in values)
    return Asked(p, bool(values.get("training", True)), bool(values.get("inplace", False)))


def dropped_from(func: Any, args: tuple[Any, ...]) -> tuple[int, ...] | None:
    """Return the shape that a function of :data:`CALLS` drops from: its first tensor, or scores.

    Args:
        func: the function.
        args: its positional arguments.
    """
    tensors = [arg for arg in args[:2] if isinstance(arg, Tensor)]
    if not tensors or any(tensor.is_nested for tensor in tensors):
        return None
    shape = tuple(tensors[0].shape)
    if func is _sdpa:
        return (*shape[:-1], tensors[1].shape[-2]) if len(tensors) > 1 else None
    return None if func is F.multi_head_attention_forward else shape


def dropping_argument(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float | None:
    """Return the rate that an op such as a fused attention is called with; None if it has none."""
    if func not in _DROPPING:
        schema = getattr(func, "_schema", None)
        arguments = [] if schema is None else schema.arguments
        _DROPPING[func] = next(
            ((i, one.name) for i, one in enumerate(arguments) if one.name in _ARGUMENTS), None
        )
    place = _DROPPING[func]
    if place is None:
        return None
    value = args[place[0]] if place[0] < len(args) else kwargs.get(place[1])
    return float(value) if isinstance(value, (int, float)) else None
