"""The address of a mask over a tensor, as it travels through autograd."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    from ..masks import MaskKey


class Address(NamedTuple):
    """Everything that decides a mask but the rate and the shape.

    Args:
        key: seed, site, step and call.
        shared_dims: dims along which one mask bit serves all.
        batch_dim: the dim whose index is the row.
        rows: int64 global positions, or None for 0, 1, 2, ...
        block: a shard's (start, full size) per non-batch dim, or None.

    Example:
        >>> Address(MaskKey(seed=1)).batch_dim
        0
    """

    key: MaskKey
    shared_dims: tuple[int, ...] = ()
    batch_dim: int = 0
    rows: Tensor | None = None
    block: tuple[tuple[int, int], ...] | None = None
