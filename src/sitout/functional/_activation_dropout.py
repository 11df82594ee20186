"""An activation and dropout behind it, in one pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from .. import _checks, backends
from . import _call

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from ..backends import Activation
    from ..masks import MaskKey


def activation_dropout(
    x: Tensor,
    activation: Activation,
    p: float | Tensor = 0.5,
    training: bool = True,
    *,
    bias: Tensor | None = None,
    key: MaskKey | None = None,
    rows: Tensor | None = None,
    block: Sequence[tuple[int, int]] | None = None,
    shared_dims: Sequence[int] = (),
    batch_dim: int = 0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Drop from an activation of ``x + bias``: one pass on the CPU, instead of two or three.

    The mask is that of ``dropout(activation(x + bias), p)`` at the same address.

    Args:
        x: ``[B, ...]``, a floating dtype.
        activation: "relu", "gelu", "gelu_tanh" (its approximation by tanh) or "silu".
        p: drop rate, a fraction in [0, 1]; or as data.
        training: without it nothing is dropped.
        bias: added before the activation, broadcastable to the shape of ``x``.
        key: as in :func:`dropout`, like the options below.
        rows: int64 ``[B]``.
        block: one (start, full size) per non-batch dim of the mask.
        shared_dims: dims along which one mask bit serves all.
        batch_dim: the dim of the samples.
        generator: as in :func:`dropout`.

    Returns:
        Like ``x``. With "relu" the backward pass needs neither mask nor address: a unit was kept
        where the result is not 0. So the result may not be written into before backward.

    Raises:
        TypeError: as :func:`dropout`.
        ValueError: there is no such activation, ``bias`` does not fit, or as :func:`dropout`.

    Example:
        >>> x = torch.tensor([-1.0, -1.0, 1.0, 1.0])
        >>> sitout.functional.activation_dropout(x, "relu", 0.5, key=sitout.MaskKey(seed=1))
        tensor([0., 0., 0., 2.])

    Reference:
        Hendrycks & Gimpel 2016, arXiv 1606.08415 (gelu, silu).
    """
    owner = "activation_dropout"
    if activation not in (*backends.ACTIVATIONS,):
        _checks.choice(activation, backends.ACTIVATIONS, f"`activation` of {owner}")
    if bias is not None and isinstance(x, Tensor):
        _check_bias(x, bias, owner)
    options = (key, rows, block, shared_dims, batch_dim, generator)
    address = _call.quick_address(x, p, training, options)
    direct = True
    if address is None:
        p = _checks.rate_or_data(p, owner)
        begun = _call.begin(x, p, "dropout", training, owner)
        if begun is None:
            return backends.ACTIVATIONS[activation](x if bias is None else x + bias)
        address = _call.address(x, p, "dropout", owner, _call.Options(*options), begun)
        direct = begun
    return backends.activate_and_drop(x, bias, activation, address, p, direct)


def _check_bias(x: Tensor, bias: object, owner: str) -> None:
    what = f"`bias` of {owner}"
    if not isinstance(bias, Tensor):
        raise TypeError(_checks.message(what, "a tensor or None", bias))
    sizes = zip(reversed(bias.shape), reversed(x.shape), strict=False)
    if bias.dim() > x.dim() or any(one not in (1, full) for one, full in sizes):
        rule = f"broadcastable to the shape of the input, {tuple(x.shape)}"
        raise ValueError(_checks.message(what, rule, tuple(bias.shape)))
