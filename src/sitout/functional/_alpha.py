"""Dropout that keeps mean and variance, for self-normalising networks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from .. import _checks
from . import _call

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from ..masks import MaskKey


def alpha_dropout(
    x: Tensor,
    p: float | Tensor = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    key: MaskKey | None = None,
    rows: Tensor | None = None,
    block: Sequence[tuple[int, int]] | None = None,
    shared_dims: Sequence[int] = (),
    batch_dim: int = 0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Set dropped elements to SELU's saturation value, then restore mean 0 and variance 1.

    Args:
        x: ``[B, ...]``, a floating dtype, with mean 0 and variance 1 for the promise to hold.
        p: drop rate, a fraction in [0, 1]; at 1 the result is zeros.
        training: without it the function is the identity.
        inplace: write the result into ``x``.
        key: as in :func:`dropout`, like the options below.
        rows: int64 ``[B]``.
        block: one (start, full size) per non-batch dim of the mask.
        shared_dims: dims along which one mask bit serves all.
        batch_dim: the dim of the samples.
        generator: as in :func:`dropout`.

    Returns:
        Like ``x``.

    Raises:
        TypeError: as :func:`dropout`.
        ValueError: as :func:`dropout`.

    Example:
        >>> sitout.functional.alpha_dropout(torch.zeros(4), 0.5, key=sitout.MaskKey(seed=1))
        tensor([-0.7792,  0.7792, -0.7792,  0.7792])

    Reference:
        Klambauer et al. 2017, arXiv 1706.02515, section "New dropout technique".

    Differs:
        ``training`` is True by default, as in the other functions; it is False in
        ``torch.nn.functional.alpha_dropout``.
    """
    options = (key, rows, block, shared_dims, batch_dim, generator)
    return _call.run(x, p, "alpha", training, inplace, "alpha_dropout", options)


def feature_alpha_dropout(
    x: Tensor,
    p: float | Tensor = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    key: MaskKey | None = None,
    rows: Tensor | None = None,
    block: Sequence[tuple[int, int]] | None = None,
    shared_dims: Sequence[int] = (),
    batch_dim: int = 0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Set whole channels to SELU's saturation value, then restore mean 0 and variance 1.

    Args:
        x: ``[N, C, ...]``, a floating dtype.
        p: drop rate, a fraction in [0, 1]; at 1 the result is zeros.
        training: without it the function is the identity.
        inplace: write the result into ``x``.
        key: as in :func:`dropout`, like the options below.
        rows: int64 ``[N]``.
        block: one (start, full size) per non-batch dim of the mask ``[N, C, 1, ...]``.
        shared_dims: further dims along which one mask bit serves all.
        batch_dim: 0, or 1 for ``[C, N, ...]``.
        generator: as in :func:`dropout`.

    Returns:
        Like ``x``.

    Raises:
        TypeError: as :func:`dropout`.
        ValueError: ``x`` has fewer than two dims, or as :func:`dropout`.

    Example:
        >>> x = torch.zeros(1, 2, 3)
        >>> sitout.functional.feature_alpha_dropout(x, 0.5, key=sitout.MaskKey(seed=0))
        tensor([[[ 0.7792,  0.7792,  0.7792],
                 [-0.7792, -0.7792, -0.7792]]])

    Reference:
        Klambauer et al. 2017, arXiv 1706.02515.

    Differs:
        ``training`` is True by default, as in the other functions.
    """
    owner = "feature_alpha_dropout"
    p = _checks.rate_or_data(p, owner)
    if isinstance(x, Tensor) and x.dim() < 2:
        way_out = "For single elements use alpha_dropout / AlphaDropout."
        raise ValueError(
            _checks.message(f"The input of {owner}", "[N, C, ...]", tuple(x.shape), way_out)
        )
    direct = _call.begin(x, p, "alpha", training, owner)
    if direct is None:
        return x
    _call.check_channel_batch_dim(batch_dim, False, owner)
    shared = _call.with_spatial(shared_dims, x.dim())
    options = _call.Options(key, rows, block, shared, batch_dim, generator)
    return _call.drop(x, p, "alpha", owner, options, direct, inplace)
