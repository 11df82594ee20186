"""What every function does before it reaches a backend, stated once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import _checks, masks
from ..backends import Address

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor


def active(x: Tensor, p: float, training: bool) -> bool:
    """Return whether there is anything to do: the identity draws no ticket."""
    return training and masks.effective_rate(p) > 0.0 and x.numel() > 0


def address(
    x: Tensor,
    owner: str,
    *,
    draws: bool = True,
    key: masks.MaskKey | None,
    rows: Tensor | None,
    block: Sequence[tuple[int, int]] | None,
    shared_dims: Sequence[int],
    batch_dim: int,
    generator: torch.Generator | None,
) -> Address:
    """Return the address of this call; in default mode it is drawn, unless nothing hangs on it.

    Raises:
        TypeError: ``x`` is not of a real floating dtype.
        ValueError: both ``key`` and ``generator`` were given.
    """
    if not x.is_floating_point():
        raise TypeError(
            _checks.message(
                f"The input of {owner}",
                "of a floating dtype in training",
                x.dtype,
                "Convert it with x.float().",
            )
        )
    if key is None:
        key = masks.draw_key(x.device, generator) if draws else masks.MaskKey()
    elif generator is not None:
        raise ValueError(
            _checks.message(
                f"The randomness of {owner}", "given as `key` or as `generator`", "both"
            )
        )
    cut = None if block is None else tuple((int(start), int(full)) for start, full in block)
    return Address(key, tuple(shared_dims), batch_dim, rows, cut)


def scale_of(p: float) -> float:
    """Return what kept values are multiplied with: 1 / (1 - p_eff), in binary64; 0 at p = 1."""
    rate = masks.effective_rate(p)
    return 0.0 if rate == 1.0 else 1.0 / (1.0 - rate)


def write(x: Tensor, out: Tensor, inplace: bool) -> Tensor:
    """Return ``out``, or ``x`` holding its values."""
    return x.copy_(out) if inplace else out


def with_spatial(shared_dims: Sequence[int], rank: int) -> tuple[int, ...]:
    """Return the shared dims of a mask ``[N, C, 1, ...]``, with those asked for besides."""
    return (*shared_dims, *range(2, rank))


def check_channel_batch_dim(batch_dim: int, unbatched: bool, owner: str) -> None:
    """Refuse a batch dim among the spatial ones, or one that an unbatched input does not have.

    Raises:
        ValueError: there is one.
    """
    if batch_dim not in ((0,) if unbatched else (0, 1)):
        rule = "0 for an input without a batch dim" if unbatched else "0 or 1 ([C, N, ...])"
        raise ValueError(_checks.message(f"`batch_dim` of {owner}", rule, batch_dim))
