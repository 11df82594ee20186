"""Dropout of whole channels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from .. import _checks
from . import _call

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from ..masks import MaskKey

_SHAPES = {1: "[N, C, L] or [C, L]", 2: "[N, C, H, W]", 3: "[N, C, D, H, W] or [C, D, H, W]"}
_RANKS = {1: (2, 3), 2: (4,), 3: (4, 5)}


def _way_out(owner: str, rank: int) -> str:
    if owner.endswith("2d") and rank == 3:
        return (
            "For [N, C, L] use dropout1d / Dropout1d; for one image [C, H, W] pass x.unsqueeze(0)."
        )
    fits = [n for n, ranks in _RANKS.items() if rank in ranks]
    if fits:
        return f"For {_SHAPES[fits[0]]} use dropout{fits[0]}d / Dropout{fits[0]}d."
    return "For single elements use dropout / Dropout."


def _dropout_nd(
    x: Tensor,
    p: float | Tensor,
    training: bool,
    inplace: bool,
    n: int,
    options: _call.Options,
) -> Tensor:
    owner = f"dropout{n}d"
    p = _checks.rate_or_data(p, owner)
    if isinstance(x, Tensor) and x.dim() not in _RANKS[n]:
        what, way_out = f"The input of {owner}", _way_out(owner, x.dim())
        raise ValueError(_checks.message(what, _SHAPES[n], tuple(x.shape), way_out))
    direct = _call.begin(x, p, "dropout", training, owner)
    if direct is None:
        return x
    unbatched = x.dim() == n + 1
    batched = x.unsqueeze(0) if unbatched else x
    _call.check_channel_batch_dim(options.batch_dim, unbatched, owner)
    shared = _call.with_spatial(options.shared_dims, batched.dim())
    options = options._replace(shared_dims=shared)
    out = _call.drop(batched, p, "dropout", owner, options, direct, inplace)
    return x if inplace else out.squeeze(0) if unbatched else out


def dropout1d(
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
    """Drop whole channels of sequences.

    Args:
        x: ``[N, C, L]`` or, of one sample, ``[C, L]``.
        p: drop rate, a fraction in [0, 1].
        training: without it the function is the identity.
        inplace: write the result into ``x``.
        key: as in :func:`dropout`, like the options below.
        rows: int64 ``[N]``.
        block: one (start, full size) for each of C and L, the latter (0, 1).
        shared_dims: further dims along which one mask bit serves all.
        batch_dim: 0, or 1 for ``[C, N, L]``.
        generator: as in :func:`dropout`.

    Returns:
        Like ``x``.

    Raises:
        TypeError: as :func:`dropout`.
        ValueError: ``x`` has another number of dims, or as :func:`dropout`.

    Example:
        >>> sitout.functional.dropout1d(torch.ones(1, 2, 3), key=sitout.MaskKey(seed=0))
        tensor([[[2., 2., 2.],
                 [0., 0., 0.]]])

    Reference:
        Tompson et al. 2015, arXiv 1411.4280 ("SpatialDropout").
    """
    options = _call.Options(key, rows, block, shared_dims, batch_dim, generator)
    return _dropout_nd(x, p, training, inplace, 1, options)


def dropout2d(
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
    """Drop whole channels of images.

    Args:
        x: ``[N, C, H, W]``.
        p: drop rate, a fraction in [0, 1].
        training: without it the function is the identity.
        inplace: write the result into ``x``.
        key: as in :func:`dropout`, like the options below.
        rows: int64 ``[N]``.
        block: one (start, full size) for each of C, H and W, the latter two (0, 1).
        shared_dims: further dims along which one mask bit serves all.
        batch_dim: 0, or 1 for ``[C, N, H, W]``.
        generator: as in :func:`dropout`.

    Returns:
        Like ``x``.

    Raises:
        TypeError: as :func:`dropout`.
        ValueError: ``x`` has another number of dims, or as :func:`dropout`.

    Example:
        >>> y = sitout.functional.dropout2d(torch.ones(1, 2, 2, 2), key=sitout.MaskKey(seed=0))
        >>> y.flatten(2)
        tensor([[[2., 2., 2., 2.],
                 [0., 0., 0., 0.]]])

    Reference:
        Tompson et al. 2015, arXiv 1411.4280 ("SpatialDropout").

    Differs:
        Three dims are refused: torch reads ``[C, H, W]`` as ``[N, C, L]``, warns, and drops along
        the wrong axis.
    """
    options = _call.Options(key, rows, block, shared_dims, batch_dim, generator)
    return _dropout_nd(x, p, training, inplace, 2, options)


def dropout3d(
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
    """Drop whole channels of volumes.

    Args:
        x: ``[N, C, D, H, W]`` or, of one sample, ``[C, D, H, W]``.
        p: drop rate, a fraction in [0, 1].
        training: without it the function is the identity.
        inplace: write the result into ``x``.
        key: as in :func:`dropout`, like the options below.
        rows: int64 ``[N]``.
        block: one (start, full size) for each of C, D, H and W, the latter three (0, 1).
        shared_dims: further dims along which one mask bit serves all.
        batch_dim: 0, or 1 for ``[C, N, D, H, W]``.
        generator: as in :func:`dropout`.

    Returns:
        Like ``x``.

    Raises:
        TypeError: as :func:`dropout`.
        ValueError: ``x`` has another number of dims, or as :func:`dropout`.

    Example:
        >>> y = sitout.functional.dropout3d(torch.ones(1, 2, 1, 1, 2), key=sitout.MaskKey(seed=0))
        >>> y.flatten(2)
        tensor([[[2., 2.],
                 [0., 0.]]])

    Reference:
        Tompson et al. 2015, arXiv 1411.4280 ("SpatialDropout").
    """
    options = _call.Options(key, rows, block, shared_dims, batch_dim, generator)
    return _dropout_nd(x, p, training, inplace, 3, options)
