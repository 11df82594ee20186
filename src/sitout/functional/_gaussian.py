"""Multiplicative Gaussian noise in place of a mask."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import _call

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor

    from ..masks import MaskKey


def gaussian_dropout(
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
    """Multiply by noise of mean 1 and the variance that dropout at rate ``p`` has.

    Args:
        x: ``[B, ...]``, a floating dtype.
        p: drop rate with the same variance p / (1 - p), a fraction in [0, 1); as data it cannot be
            checked, and 1 gives infinity.
        training: without it the function is the identity.
        inplace: write the result into ``x``.
        key: as in :func:`dropout`, like the options below.
        rows: int64 ``[B]``.
        block: one (start, full size) per non-batch dim of the noise.
        shared_dims: dims along which one number serves all.
        batch_dim: the dim of the samples.
        generator: as in :func:`dropout`.

    Returns:
        Like ``x``.

    Raises:
        TypeError: as :func:`dropout`.
        ValueError: ``p`` is not in [0, 1), or as :func:`dropout`.

    Example:
        >>> sitout.functional.gaussian_dropout(torch.ones(1, 2), 0.5, key=sitout.MaskKey(seed=0))
        tensor([[1.2744, 0.1005]])

    Reference:
        Srivastava et al. 2014, JMLR 15:1929-1958, section 10.
    """
    owner = "gaussian_dropout"
    options = (key, rows, block, shared_dims, batch_dim, generator)
    return _call.run(x, p, "gaussian", training, inplace, owner, options)
