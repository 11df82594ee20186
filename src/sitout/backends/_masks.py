"""Masks and subsets themselves, made by the kernels of the device that they lie on."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import _checks, masks
from . import _choice, cpu, triton
from ._address import Address

if TYPE_CHECKING:
    from collections.abc import Sequence


def keep_mask(
    key: masks.MaskKey,
    p: float | Tensor,
    shape: Sequence[int],
    *,
    shared_dims: Sequence[int] = (),
    batch_dim: int = 0,
    rows: Tensor | None = None,
    block: Sequence[tuple[int, int]] | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return what :func:`sitout.masks.keep_mask` returns, made by one kernel.

    Args:
        key: the address.
        p: drop rate, a fraction in [0, 1]; or as data.
        shape: of the tensor that is masked, ``[B, ...]``.
        shared_dims: dims along which one mask bit serves all; the mask has size 1 there.
        batch_dim: the dim whose index is the row (rank 2 and more).
        rows: int64, one global position per index of ``batch_dim``; 0, 1, 2, ... if None.
        block: for a shard, one (start, full size) per non-batch dim of the mask.
        device: where the mask is made.

    Returns:
        bool, broadcastable to ``shape``.

    Raises:
        TypeError: as :func:`sitout.masks.keep_mask`.
        ValueError: as :func:`sitout.masks.keep_mask`.

    Example:
        >>> keep_mask(sitout.MaskKey(seed=0), 0.5, (2, 8)).int()
        tensor([[1, 0, 1, 1, 1, 1, 1, 1],
                [1, 0, 0, 1, 0, 0, 0, 0]], dtype=torch.int32)
    """
    p = _checks.rate_or_data(p, "keep_mask")
    batch_dim = _checks.integer(batch_dim, "batch_dim", "a mask")
    maker = _maker(device, key)
    if maker is None or (maker is cpu and len(shape) > cpu.MAX_DIMS):
        return masks.keep_mask(
            *(key, p, shape),
            shared_dims=shared_dims,
            batch_dim=batch_dim,
            rows=rows,
            block=block,
            device=device,
        )
    shared = _checks.dims(shared_dims, "shared_dims", "keep_mask")
    cut = None if block is None else _checks.pairs(block, "block", "keep_mask")
    address = Address(key, shared, batch_dim, rows, cut)
    if maker is triton:
        return triton.keep_mask(address, p, tuple(shape), device)
    return cpu.keep_mask(address, p, tuple(shape))


def kept_units(
    key: masks.MaskKey,
    p: float,
    n: int,
    *,
    group: int | Tensor = 0,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return what :func:`sitout.masks.kept_units` returns, some ten times as fast on the CPU.

    Args:
        key: the address.
        p: drop rate, a fraction in [0, 1].
        n: number of units.
        group: the group of rows that shares the subset.
        device: where the result is made.

    Returns:
        int64 ``[k]``, ascending.

    Raises:
        ValueError: ``p`` is not in [0, 1] or ``n`` is negative.

    Example:
        >>> kept_units(sitout.MaskKey(seed=0), 0.5, 10)
        tensor([2, 3, 4, 7, 8])
    """
    p, n = _checks.rate(p, "kept_units"), masks._check_count(n, "kept_units")
    if p in (0.0, 1.0) or n == 0 or not _serves(device, key):
        return masks.kept_units(key, p, n, group=group, device=device)
    return cpu.first(key, n, masks._count_kept(p, n), int(group))[0]


def kept_samples(
    key: masks.MaskKey,
    p: float,
    n: int,
    *,
    group: int | Tensor = 0,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """Return what :func:`sitout.masks.kept_samples` returns, some ten times as fast on the CPU.

    Args:
        key: the address.
        p: drop rate, a fraction in [0, 1].
        n: number of samples (or heads, layers, tokens).
        group: the group of rows that shares the subset.
        device: where the result is made.

    Returns:
        The samples, int64 ``[c]``, ascending, and their weights, float64 ``[c]``.

    Raises:
        ValueError: ``p`` is not in [0, 1] or ``n`` is negative.

    Example:
        >>> kept_samples(sitout.MaskKey(seed=0), 0.5, 4)
        (tensor([2, 3]), tensor([2., 2.], dtype=torch.float64))
    """
    p, n = _checks.rate(p, "kept_samples"), masks._check_count(n, "kept_samples")
    if p in (0.0, 1.0) or n == 0 or not _serves(device, key):
        return masks.kept_samples(key, p, n, group=group, device=device)
    q = n * (1.0 - p)
    listed, last = cpu.first(key, n, math.ceil(q), int(group))
    weights = torch.full(listed.shape, 1.0 / (1.0 - p), dtype=torch.float64)
    if q != math.floor(q) and cpu.count_word(key, int(group)) >= masks._fraction(q):
        weights[listed == last] = 0.0
    return listed, weights


def _serves(device: torch.device | str, key: masks.MaskKey) -> bool:
    """Return whether the core makes subsets for a device at this key."""
    return torch.device(device).type == "cpu" and _maker(device, key) is cpu


def _maker(device: torch.device | str, key: masks.MaskKey) -> Any:
    """Return the backend whose kernels make masks on a device at this key; None if none does."""
    if not isinstance(key, masks.MaskKey):
        raise TypeError(_checks.message("`key`", "a MaskKey", key))
    if torch.device(device).type not in ("cpu", "cuda") or torch.compiler.is_compiling():
        return None
    if torch._C._are_functorch_transforms_active() or torch._C._len_torch_dispatch_stack():
        return None
    backend = _choice.select(torch.empty(0, device=device))
    fields = [field for field in vars(key).values() if isinstance(field, Tensor)]
    if backend is cpu and all(map(cpu.is_memory, fields)):
        return cpu
    if backend is triton and all(type(field) is Tensor for field in fields):
        return triton
    return None
