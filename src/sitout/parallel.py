"""A shard's place in the whole: from a process group to the rows and blocks of its tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.distributed.device_mesh import DeviceMesh

from . import _checks

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup

__all__ = ["block", "rows"]


def rows(
    batch: int,
    *,
    order: str = "contiguous",
    group: ProcessGroup | DeviceMesh | None = None,
) -> Tensor:
    """Return which rows of the global batch this process holds.

    Pass them to :meth:`sitout.MaskClock.at`, and every sample has the mask that it would have in
    one process.

    Args:
        batch: samples in the global batch, over all processes.
        order: "contiguous" (the first process has the first rows, cut as ``torch.chunk`` does) or
            "distributed" (every n-th row, as ``torch.utils.data.DistributedSampler`` deals them).
        group: of the processes that share the batch; all of them if None. Without a process group
            there is one process.

    Returns:
        int64 ``[b]``, on the CPU.

    Raises:
        TypeError: ``batch`` is no int.
        ValueError: ``batch`` is negative, ``order`` unknown, or the process not in the group.

    Example:
        >>> rows(4)
        tensor([0, 1, 2, 3])
    """
    if _checks.integer(batch, "batch", "rows") < 0:
        raise ValueError(_checks.message("`batch` of rows", "0 or more", batch))
    _checks.choice(order, ("contiguous", "distributed"), "`order` of rows")
    rank, size = _place(group)
    if order == "distributed":
        return torch.arange(batch)[rank::size]
    start, stop = _cut(batch, rank, size)
    return torch.arange(start, stop)


def block(full: int, *, group: ProcessGroup | DeviceMesh | None = None) -> tuple[int, int]:
    """Return this process's part of a dim, as the functions take it in ``block=``.

    Args:
        full: size of the dim in the whole tensor, which is cut as ``torch.chunk`` does.
        group: of the processes that share the tensor; all of them if None.

    Returns:
        (start, full size).

    Raises:
        TypeError: ``full`` is no int.
        ValueError: ``full`` is negative, or the process not in the group.

    Example:
        >>> block(512)
        (0, 512)
    """
    if _checks.integer(full, "full", "block") < 0:
        raise ValueError(_checks.message("`full` of block", "0 or more", full))
    return _cut(full, *_place(group))[0], full


def _place(group: ProcessGroup | DeviceMesh | None) -> tuple[int, int]:
    """Return (rank, size)."""
    distributed = torch.distributed
    if not distributed.is_available() or not distributed.is_initialized():
        return 0, 1
    members = group.get_group() if isinstance(group, DeviceMesh) else group
    rank = distributed.get_rank(members)
    if rank < 0:
        what, rule = "`group` of a shard", "one that this process belongs to"
        raise ValueError(_checks.message(what, rule, "another one"))
    return rank, distributed.get_world_size(members)


def _cut(full: int, rank: int, size: int) -> tuple[int, int]:
    each = -(-full // size)
    return min(rank * each, full), min((rank + 1) * each, full)
