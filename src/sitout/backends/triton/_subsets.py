"""Which units or samples play, for all groups at once: the smallest by (word, index).

One program serves a group. A thread holds the four words of a block. Nothing is sorted: the word of
the last one that plays is found bit by bit, and those up to it are listed in their order.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING

import torch
import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]
from torch import Tensor

from ... import masks
from ._launch import key_arguments, launch
from ._philox import count, load_key, subset, words

if TYPE_CHECKING:
    from ...masks import MaskKey

LARGEST = 16384  # candidates that one program holds in its registers
_VARIES = ("key", "site", "step", "n", "k", "fraction", "weight")


@triton.jit
def _total(a, b, c, d):
    return tl.sum(a.to(tl.int32) + b + c + d, 0)


@triton.jit(do_not_specialize=_VARIES)
def first(
    units, weights, groups,
    key: tl.int64, site: tl.int32, step: tl.int64, seed_at, call_at, site_at, step_at,
    n: tl.int32, k: tl.int32, fraction: tl.int64, weight: tl.int64,
    blocks: tl.constexpr, shift: tl.constexpr,
):  # fmt: skip
    """List the k smallest of n candidates, ascending.

    Args:
        units: int64 ``[G, k]``, the result.
        weights: float64 ``[G, k]``, or None.
        groups: int64 ``[G]``, the rows of the address.
        key: as in load_key, like the next six.
        site: see there.
        step: see there.
        seed_at: see there.
        call_at: see there.
        site_at: see there.
        step_at: see there.
        n: candidates.
        k: of them that are listed.
        fraction: what a count stays below where the last one plays; 2**32 or more if it does.
        weight: the bits of a float64, the weight of all that play.
        blocks: a power of two, at least n / 4.
        shift: bits of an index.
    """
    g = tl.program_id(0).to(tl.int64)
    row = tl.load(groups + g)
    k0, k1, site, step = load_key(key, site, step, seed_at, call_at, site_at, step_at)
    block = tl.arange(0, blocks)
    w0, w1, w2, w3 = words(block, row, step, site, subset, k0, k1)
    index = block * 4
    most = tl.full([], 0xFFFFFFFF, tl.uint32)  # behind all others, as the indices are
    w0, w1 = tl.where(index < n, w0, most), tl.where(index + 1 < n, w1, most)
    w2, w3 = tl.where(index + 2 < n, w2, most), tl.where(index + 3 < n, w3, most)

    last = tl.zeros([], tl.uint32)
    bit = tl.full([], 1 << 31, tl.uint32)
    for _ in range(32):
        more = last | bit
        last = tl.where(_total(w0 < more, w1 < more, w2 < more, w3 < more) < k, more, last)
        bit = bit >> 1
    # Of those with the same word the first play.
    rest = k - _total(w0 < last, w1 < last, w2 < last, w3 < last)
    t0, t1, t2, t3 = w0 == last, w1 == last, w2 == last, w3 == last
    end = tl.zeros([], tl.int32)
    step_up = tl.full([], 1 << (shift - 1), tl.int32)
    for _ in range(shift):
        more_at = end | step_up
        b0, b1 = t0 & (index < more_at), t1 & (index + 1 < more_at)
        b2, b3 = t2 & (index + 2 < more_at), t3 & (index + 3 < more_at)
        end = tl.where(_total(b0, b1, b2, b3) < rest, more_at, end)
        step_up = step_up >> 1

    p0 = ((w0 < last) | (t0 & (index <= end))).to(tl.int32)
    p1 = ((w1 < last) | (t1 & (index + 1 <= end))).to(tl.int32)
    p2 = ((w2 < last) | (t2 & (index + 2 <= end))).to(tl.int32)
    p3 = ((w3 < last) | (t3 & (index + 3 <= end))).to(tl.int32)
    play = p0 + p1 + p2 + p3
    at = g * k + (tl.cumsum(play, 0) - play)
    _put(units, at, p0, p1, p2, p3, index, index + 1, index + 2, index + 3)
    if weights is not None:
        number = words(row * 0, row, step, site, count, k0, k1)[0].to(tl.int64)
        full = weight.to(tl.float64, bitcast=True)
        part = tl.where(number < fraction, full, 0.0)
        v0, v1 = tl.where(index == end, part, full), tl.where(index + 1 == end, part, full)
        v2, v3 = tl.where(index + 2 == end, part, full), tl.where(index + 3 == end, part, full)
        _put(weights, at, p0, p1, p2, p3, v0, v1, v2, v3)


@triton.jit
def _put(out, at, p0, p1, p2, p3, v0, v1, v2, v3):
    """Store the values of those that play, one behind the other."""
    tl.store(out + at, v0, mask=p0 > 0)
    tl.store(out + (at + p0), v1, mask=p1 > 0)
    tl.store(out + (at + p0 + p1), v2, mask=p2 > 0)
    tl.store(out + (at + p0 + p1 + p2), v3, mask=p3 > 0)


def kept_units(key: MaskKey, p: float, n: int, groups: Tensor) -> Tensor:
    """Return what :func:`sitout.masks.kept_units` returns, for all groups at once.

    Args:
        key: the address.
        p: drop rate, a fraction in [0, 1].
        n: number of units.
        groups: int64 ``[G]``, on the device of the result.

    Returns:
        int64 ``[G, k]``, ascending.
    """
    if p in (0.0, 1.0) or not 0 < n <= LARGEST:
        each = [masks.kept_units(key, p, n, group=g, device=g.device) for g in groups.unbind()]
        return torch.stack(each)
    units = groups.new_empty(len(groups), masks._count_kept(p, n))
    _list(units, None, groups, key, n, 0, 0.0)
    return units


def kept_samples(key: MaskKey, p: float, n: int, group: Tensor) -> tuple[Tensor, Tensor]:
    """Return what :func:`sitout.masks.kept_samples` returns.

    Args:
        key: the address.
        p: drop rate, a fraction in [0, 1].
        n: number of samples.
        group: int64 with no dims, on the device of the result.

    Returns:
        int64 ``[c]``, ascending, and float64 ``[c]``.
    """
    if p in (0.0, 1.0) or not 0 < n <= LARGEST:
        return masks.kept_samples(key, p, n, group=group, device=group.device)
    q = n * (1.0 - p)
    units = group.new_empty(math.ceil(q))
    weights = group.new_empty(math.ceil(q), dtype=torch.float64)
    fraction = 1 << 32 if q == math.floor(q) else masks._fraction(q)
    _list(units[None], weights, group.reshape(1), key, n, fraction, 1.0 / (1.0 - p))
    return units, weights


def _list(
    units: Tensor,
    weights: Tensor | None,
    groups: Tensor,
    key: MaskKey,
    n: int,
    fraction: int,
    weight: float,
) -> None:
    blocks = max(triton.next_power_of_2(-(-n // 4)), 32)
    (bits,) = struct.unpack("q", struct.pack("d", weight))
    *arguments, steps = key_arguments(key, 1, groups.device)
    if steps is not None:
        arguments[-1] = steps
    launch(
        *(first, len(groups), groups.device, units, weights, groups.contiguous()),
        *arguments,
        *(n, units.shape[1], fraction, bits),
        blocks=blocks,
        shift=(4 * blocks).bit_length() - 1,
        num_warps=min(max(blocks // 64, 1), 16),
    )
