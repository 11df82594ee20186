"""Stochastic depth: a residual branch sits out for whole samples."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import _checks
from . import _call

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor

    from ..masks import MaskKey


def drop_path(
    x: Tensor,
    p: float | Tensor,
    training: bool = True,
    inplace: bool = False,
    *,
    scale_by_keep: bool = True,
    key: MaskKey | None = None,
    rows: Tensor | None = None,
    shared_dims: Sequence[int] = (),
    batch_dim: int = 0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Drop the branch ``x`` of a residual block for each sample with probability ``p``.

    Args:
        x: ``[B, ...]``, the output of the branch before it is added to the stream.
        p: drop rate, a fraction in [0, 1].
        training: without it the function is the identity.
        inplace: write the result into ``x``.
        scale_by_keep: scale the kept samples by 1 / (1 - p).
        key: as in :func:`dropout`, like the options below.
        rows: int64 ``[B]``.
        shared_dims: the batch dim in it makes the whole batch drop together.
        batch_dim: the dim of the samples, 1 for ``[T, B, C]``.
        generator: as in :func:`dropout`.

    Returns:
        Like ``x``. A tensor with no dims counts as one sample.

    Raises:
        TypeError: as :func:`dropout`.
        ValueError: as :func:`dropout`.

    Example:
        >>> sitout.functional.drop_path(torch.ones(3, 2), 0.5, key=sitout.MaskKey(seed=1))
        tensor([[0., 0.],
                [2., 2.],
                [2., 2.]])

    Reference:
        Huang et al. 2016, arXiv 1603.09382 (there the whole batch, unscaled; the scaling is that
        of inverted dropout).
    """
    p = _checks.rate_or_data(p, "drop_path")
    if not _call.active(x, p, "dropout", training, "drop_path"):
        return x
    wide = x.unsqueeze(-1) if x.dim() == 1 else x
    batch = _checks.dim(batch_dim, max(x.dim(), 1), "batch_dim")
    shared = [_checks.dim(dim, x.dim(), "shared_dims") for dim in shared_dims]
    shared += [dim for dim in range(wide.dim()) if dim != batch]
    options = _call.Options(key, rows, None, shared, batch, generator)
    out = _call.drop(wide, p, "dropout" if scale_by_keep else "path", "drop_path", options)
    return _call.write(x, out.view_as(x), inplace)
