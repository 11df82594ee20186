"""What every function does before it reaches a backend, stated once."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, NamedTuple

from .. import _checks, masks
from ..backends import Address

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor


def active(x: Tensor, p: float, training: bool) -> bool:
    """Return whether there is anything to do: the identity draws no ticket."""
    return training and masks.effective_rate(p) > 0.0 and x.numel() > 0


class Options(NamedTuple):
    """The keywords that all functions share: where the mask comes from and what shares its bits."""

    key: masks.MaskKey | None
    rows: Tensor | None
    block: Sequence[tuple[int, int]] | None
    shared_dims: Sequence[int]
    batch_dim: int
    generator: torch.Generator | None


def address(x: Tensor, owner: str, options: Options, *, draws: bool = True) -> Address:
    """Return the address of this call; in default mode it is drawn, unless nothing hangs on it.

    Raises:
        TypeError: ``x`` is not of a real floating dtype, or an option has the wrong type.
        ValueError: both a key and a generator were given, or a block is not made of pairs.
    """
    if not x.is_floating_point():
        way_out = "" if x.is_complex() else "Convert it with x.float()."
        rule = "of a floating dtype in training"
        raise TypeError(_checks.message(f"The input of {owner}", rule, x.dtype, way_out))
    key, rows, block, shared_dims, batch_dim, generator = options
    shared = _checks.dims(shared_dims, "shared_dims", owner)
    cut = None if block is None else _pairs(block, owner)
    if key is not None and not isinstance(key, masks.MaskKey):
        raise TypeError(_checks.message(f"`key` of {owner}", "a MaskKey", key))
    if key is not None and generator is not None:
        what, rule = f"The randomness of {owner}", "given as `key` or as `generator`"
        raise ValueError(_checks.message(what, rule, "both"))
    if key is None:
        key = masks.draw_key(x.device, generator) if draws else masks.MaskKey()
    return Address(key, shared, batch_dim, rows, cut)


def _pairs(block: Sequence[tuple[int, int]], owner: str) -> tuple[tuple[int, int], ...]:
    try:
        return tuple((operator.index(start), operator.index(full)) for start, full in block)
    except (TypeError, ValueError):
        rule = "a sequence of (start, full size) pairs of ints"
        raise ValueError(_checks.message(f"`block` of {owner}", rule, block)) from None


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
