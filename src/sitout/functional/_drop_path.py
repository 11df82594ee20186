"""Stochastic depth: a residual branch sits out for whole samples."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import _checks, backends
from . import _call

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor

    from ..backends._law import Law
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
    law = _law(scale_by_keep)
    direct = _call.begin(x, p, law, training, "drop_path")
    if direct is None:
        return x
    wide = x.unsqueeze(-1) if x.dim() == 1 else x
    options = _options(x, key, rows, shared_dims, batch_dim, generator)
    out = _call.drop(wide, p, law, "drop_path", options, direct, inplace)
    return x if inplace else out.view_as(x)


def drop_path_add(
    x: Tensor,
    residual: Tensor,
    p: float | Tensor,
    training: bool = True,
    *,
    scale_by_keep: bool = True,
    key: MaskKey | None = None,
    rows: Tensor | None = None,
    shared_dims: Sequence[int] = (),
    batch_dim: int = 0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return ``residual + drop_path(x, p)``: one pass on the CPU, instead of two.

    Args:
        x: ``[B, ...]``, the output of the branch.
        residual: the stream, of the same shape.
        p: drop rate, a fraction in [0, 1].
        training: without it the result is ``residual + x``.
        scale_by_keep: scale the kept samples by 1 / (1 - p).
        key: as in :func:`dropout`, like the options below.
        rows: int64 ``[B]``.
        shared_dims: the batch dim in it makes the whole batch drop together.
        batch_dim: the dim of the samples, 1 for ``[T, B, C]``.
        generator: as in :func:`dropout`.

    Returns:
        The sum, a new tensor.

    Raises:
        TypeError: as :func:`dropout`.
        ValueError: the shapes differ, or as :func:`dropout`.

    Example:
        >>> x, stream = torch.ones(3, 2), torch.ones(3, 2)
        >>> sitout.functional.drop_path_add(x, stream, 0.5, key=sitout.MaskKey(seed=1))
        tensor([[1., 1.],
                [3., 3.],
                [3., 3.]])

    Reference:
        Huang et al. 2016, arXiv 1603.09382, equation 2; see :func:`drop_path`.
    """
    owner = "drop_path_add"
    p = _checks.rate_or_data(p, owner)
    law = _law(scale_by_keep)
    _call.check_residual(x, residual, owner)
    direct = _call.begin(x, p, law, training, owner)
    if direct is None:
        return residual + x
    wide, stream = (x[:, None], residual[:, None]) if x.dim() == 1 else (x, residual)
    options = _options(x, key, rows, shared_dims, batch_dim, generator)
    address = _call.address(wide, p, law, owner, options, direct)
    return backends.drop_and_add(wide, stream, address, p, law, direct).view_as(x)


def _law(scale_by_keep: bool) -> Law:
    return "dropout" if scale_by_keep else "path"


def _options(
    x: Tensor,
    key: MaskKey | None,
    rows: Tensor | None,
    shared_dims: Sequence[int],
    batch_dim: int,
    generator: torch.Generator | None,
) -> _call.Options:
    """Return the options of a mask with one bit a sample; a vector gets a second dim."""
    rank = x.dim()
    batch = _checks.dim(batch_dim, max(rank, 1), "batch_dim")
    shared = [_checks.dim(dim, rank, "shared_dims") for dim in shared_dims]
    shared += [dim for dim in range(2 if rank == 1 else rank) if dim != batch]
    return _call.Options(key, rows, None, shared, batch, generator)
