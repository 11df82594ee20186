"""Dropout, the residual sum behind it and the normalization of that, as one operation."""

from __future__ import annotations

from numbers import Real
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .. import _checks
from ..backends._norm import Norm, drop_add_norm
from . import _call

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from ..masks import MaskKey


def dropout_add_layer_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    p: float | Tensor = 0.5,
    training: bool = True,
    *,
    normalized_shape: int | Sequence[int] | None = None,
    eps: float = 1e-5,
    prenorm: bool = False,
    key: MaskKey | None = None,
    rows: Tensor | None = None,
    block: Sequence[tuple[int, int]] | None = None,
    shared_dims: Sequence[int] = (),
    batch_dim: int = 0,
    generator: torch.Generator | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Return ``layer_norm(residual + dropout(x, p))``: one kernel on a GPU.

    It is :func:`dropout_add`, then :func:`torch.nn.functional.layer_norm`. That is how it is done
    where the kernel does not serve: on a CPU, in compiled code, in float64, for tensors of unlike
    dtypes (but for ``x`` and ``residual``, and under autocast), for rows of more than 8,192
    elements, and for a mask that varies along a row in another way than from column to column.

    Args:
        x: ``[B, ..., C]``, a floating dtype; what is dropped from.
        residual: of the same shape.
        weight: of the normalized shape, ``[C]``; None for 1.
        bias: of the normalized shape, ``[C]``; None for 0.
        p: drop rate, a fraction in [0, 1]; or as data.
        training: without it nothing is dropped.
        normalized_shape: the last dims of ``x``, which are normalized together; those of
            ``weight`` if None, and the last dim alone without a weight.
        eps: added to the variance.
        prenorm: return the sum too, which goes on beside a block that normalizes its input.
        key: as in :func:`dropout`, like the options below.
        rows: int64 ``[B]``.
        block: one (start, full size) per non-batch dim of the mask.
        shared_dims: dims along which one mask bit serves all.
        batch_dim: the dim of the samples.
        generator: as in :func:`dropout`.

    Returns:
        The normalized sum; with ``prenorm`` that and the sum itself. The kernel keeps for backward
        the sum, two numbers a row and the address, no mask.

    Raises:
        TypeError: an argument has the wrong type, or as :func:`dropout`.
        ValueError: the shapes do not fit, or as :func:`dropout`.

    Example:
        >>> x, residual, key = torch.ones(4), torch.ones(4), sitout.MaskKey(seed=1)
        >>> sitout.functional.dropout_add_layer_norm(x, residual, p=0.5, key=key, eps=0.0)
        tensor([-1.,  1., -1.,  1.])

    Reference:
        Ba et al. 2016, arXiv 1607.06450. ``prenorm`` is what flash-attention calls it; see Xiong
        et al. 2020, arXiv 2002.04745.
    """
    owner = "dropout_add_layer_norm"
    options = (key, rows, block, shared_dims, batch_dim, generator)
    norm = Norm(_shape(x, weight, bias, normalized_shape, owner), _eps(eps, owner))
    return _run(x, residual, weight, bias, p, training, norm, prenorm, owner, options)


def dropout_add_rms_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None = None,
    p: float | Tensor = 0.5,
    training: bool = True,
    *,
    normalized_shape: int | Sequence[int] | None = None,
    eps: float | None = None,
    prenorm: bool = False,
    key: MaskKey | None = None,
    rows: Tensor | None = None,
    block: Sequence[tuple[int, int]] | None = None,
    shared_dims: Sequence[int] = (),
    batch_dim: int = 0,
    generator: torch.Generator | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Return ``rms_norm(residual + dropout(x, p))``: one kernel on a GPU.

    It is :func:`dropout_add`, then :func:`torch.nn.functional.rms_norm`, done as
    :func:`dropout_add_layer_norm`.

    Args:
        x: ``[B, ..., C]``, a floating dtype; what is dropped from.
        residual: of the same shape.
        weight: of the normalized shape, ``[C]``; None for 1.
        p: drop rate, a fraction in [0, 1]; or as data.
        training: without it nothing is dropped.
        normalized_shape: as in :func:`dropout_add_layer_norm`.
        eps: added to the mean square; if None, the smallest step above 1 of float32, or of float64
            for float64.
        prenorm: return the sum too, as in :func:`dropout_add_layer_norm`.
        key: as in :func:`dropout`, like the options below.
        rows: int64 ``[B]``.
        block: one (start, full size) per non-batch dim of the mask.
        shared_dims: dims along which one mask bit serves all.
        batch_dim: the dim of the samples.
        generator: as in :func:`dropout`.

    Returns:
        The normalized sum; with ``prenorm`` that and the sum itself. The kernel keeps for backward
        the sum, one number a row and the address, no mask.

    Raises:
        TypeError: an argument has the wrong type, or as :func:`dropout`.
        ValueError: the shapes do not fit, or as :func:`dropout`.

    Example:
        >>> x, residual, key = torch.ones(4), torch.zeros(4), sitout.MaskKey(seed=1)
        >>> sitout.functional.dropout_add_rms_norm(x, residual, p=0.5, key=key, prenorm=True)
        (tensor([0.0000, 1.4142, 0.0000, 1.4142]), tensor([0., 2., 0., 2.]))

    Reference:
        Zhang & Sennrich 2019, arXiv 1910.07467, equation 4.
    """
    owner = "dropout_add_rms_norm"
    options = (key, rows, block, shared_dims, batch_dim, generator)
    shape = _shape(x, weight, None, normalized_shape, owner)
    norm = Norm(shape, None if eps is None else _eps(eps, owner), rms=True)
    return _run(x, residual, weight, None, p, training, norm, prenorm, owner, options)


def _run(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    p: float | Tensor,
    training: bool,
    norm: Norm,
    prenorm: bool,
    owner: str,
    options: tuple[Any, ...],
) -> Tensor | tuple[Tensor, Tensor]:
    _call.check_residual(x, residual, owner)
    address = _call.quick_address(x, p, training, options)
    direct = True
    if address is None:
        p = _checks.rate_or_data(p, owner)
        begun = _call.begin(x, p, "dropout", training, owner)
        if begun is None:
            total = residual + x
            out = norm.of(total, weight, bias)
            return (out, total) if prenorm else out
        address = _call.address(x, p, "dropout", owner, _call.Options(*options), begun)
        direct = begun
    out, total = drop_add_norm(x, residual, weight, bias, norm, address, p, direct)
    return (out, total) if prenorm else out


def _eps(eps: object, owner: str) -> float:
    if isinstance(eps, bool) or not isinstance(eps, Real):
        raise TypeError(_checks.message(f"`eps` of {owner}", "a number", eps))
    return float(eps)


def _shape(
    x: object, weight: object, bias: object, normalized_shape: object, owner: str
) -> tuple[int, ...]:
    """Return the dims that are normalized together."""
    if not isinstance(x, Tensor):
        raise TypeError(_checks.message(f"The input of {owner}", "a tensor", type(x).__name__))
    if isinstance(normalized_shape, int):
        normalized_shape = (normalized_shape,)
    if normalized_shape is not None:
        shape = _checks.dims(normalized_shape, "normalized_shape", owner)
    else:
        shape = tuple(weight.shape if isinstance(weight, Tensor) else x.shape[-1:])
    if not shape or x.shape[-len(shape) :] != shape:
        rule = f"the last dims of the input, {tuple(x.shape)}"
        raise ValueError(_checks.message(f"`normalized_shape` of {owner}", rule, shape))
    _check_parameter(weight, "weight", shape, owner)
    _check_parameter(bias, "bias", shape, owner)
    return shape


def _check_parameter(given: object, name: str, shape: tuple[int, ...], owner: str) -> None:
    what = f"`{name}` of {owner}"
    if given is None:
        return
    if not isinstance(given, Tensor):
        way_out = "Give the rate by its name: p=."
        raise TypeError(_checks.message(what, "a tensor or None", given, way_out))
    if given.shape != shape:
        rule = f"of the normalized shape, {shape}"
        raise ValueError(_checks.message(what, rule, tuple(given.shape)))
