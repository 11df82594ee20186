"""Dropout of single elements, or of whatever shares a mask bit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import _call

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor

    from ..masks import MaskKey


def dropout(
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
    """Drop each element with probability ``p`` and scale the others by 1 / (1 - p).

    Args:
        x: ``[B, ...]``, a floating dtype. No mask of it is stored.
        p: drop rate, a fraction in [0, 1]; or as data, see :func:`sitout.masks.rate_data`.
        training: without it the function is the identity.
        inplace: write the result into ``x``.
        key: the address of the mask; if None it is drawn from torch's generator, so that
            ``torch.manual_seed`` governs it.
        rows: int64 ``[B]``, the global positions of the rows; 0, 1, 2, ... if None.
        block: for a shard, one (start, full size) per non-batch dim of the mask.
        shared_dims: dims along which one mask bit serves all: ``(1,)`` on ``[B, T, C]`` locks the
            mask over time (Gal & Ghahramani 2016, arXiv 1512.05287), ``(0,)`` over the batch.
        batch_dim: the dim of the samples, 1 for ``[T, B, C]``.
        generator: drawn from instead of torch's default generator.

    Returns:
        Like ``x``; ``x`` itself in evaluation, at p = 0 and with ``inplace``.

    Raises:
        TypeError: ``p`` is no real number, or ``x`` has no floating dtype.
        ValueError: ``p`` is not in [0, 1], or an option does not fit the shape of ``x``.

    Example:
        >>> sitout.functional.dropout(torch.ones(2, 4), 0.5, key=sitout.MaskKey(seed=0))
        tensor([[2., 0., 2., 2.],
                [2., 0., 0., 2.]])

    Reference:
        Srivastava et al. 2014, JMLR 15:1929-1958; Hinton et al. 2012, arXiv 1207.0580.

    Differs:
        Kept units are scaled in training instead of all units at prediction. A dropped unit is
        set to 0, not multiplied by it: NaN and infinity in it do not leak.
    """
    options = (key, rows, block, shared_dims, batch_dim, generator)
    return _call.run(x, p, "dropout", training, inplace, "dropout", options)
