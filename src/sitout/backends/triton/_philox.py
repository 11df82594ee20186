"""The mask function inside kernels: from an address to words, and from words to lanes.

A tile of addresses is ``[n, 1]``; its lanes are ``[n, 8]``, ``[n, 4]`` or ``[n, 2]``, made of the
words by selection, so that nothing moves between threads where a thread holds a row of the tile.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]

narrow = tl.constexpr(0)
wide = tl.constexpr(1)
subset = tl.constexpr(2)
normal = tl.constexpr(3)
count = tl.constexpr(4)


@triton.jit
def load_key(key, site, step, seed_at, call_at, site_at, step_at):
    """Return the two words of the key, the site and the step, each a uint32 without dims.

    Args:
        key: seed XOR call << 32, of what is known on the host; any int.
        site: 0 where ``site_at`` is given.
        step: 0 where ``step_at`` is given.
        seed_at: pointer to an int64, or None; what it holds is added to what the host says, like
            the next ones.
        call_at: pointer to an int64, or None.
        site_at: pointer to an int64, or None.
        step_at: pointer to an int64, or None.
    """
    key = key.to(tl.int64)
    if seed_at is not None:
        key ^= tl.load(seed_at)
    if call_at is not None:
        key ^= tl.load(call_at) << 32
    site = site.to(tl.uint32)
    if site_at is not None:
        site = (site + tl.load(site_at).to(tl.uint32)) & 0xFFFFFFF
    step = step.to(tl.uint32)
    if step_at is not None:
        step += tl.load(step_at).to(tl.uint32)
    return key.to(tl.uint32), (key >> 32).to(tl.uint32), site, step


@triton.jit
def words(block, row, step, site, kind, k0, k1):
    """Return the four words of each address, uint32.

    Args:
        block: block index, any ints; the low 32 bits count, here and below.
        row: any ints that go with it.
        step: the same.
        site: uint32, 28 bits.
        kind: narrow, wide, subset, normal or count.
        k0: low word of the key, uint32.
        k1: high word of the key, uint32.
    """
    which = site | (tl.zeros([], tl.uint32) + kind) << 28
    return tl.philox_impl(block.to(tl.uint32), row.to(tl.uint32), step.to(tl.uint32), which, k0, k1)


@triton.jit
def pick(w0, w1, w2, w3, index):
    """Return the word of an index 0 to 3."""
    return tl.where(index < 2, tl.where(index == 0, w0, w1), tl.where(index == 2, w2, w3))


@triton.jit
def half(w0, w1, w2, w3, lane):
    """Return the 16-bit lane of an index 0 to 7: low half first."""
    return pick(w0, w1, w2, w3, lane >> 1) >> ((lane & 1) * 16).to(tl.uint32) & 0xFFFF


@triton.jit
def box_muller(w, v):
    """Return the standard normal number of two words, in float64 (Box and Muller 1958)."""
    u1 = (w.to(tl.float64) + 1.0) * (1.0 / 4294967296.0)
    u2 = v.to(tl.float64) * (1.0 / 4294967296.0)
    return tl.sqrt(-2.0 * tl.log(u1)) * cosine(u2)


@triton.jit
def cosine(u):
    """Return cos(2 pi u) of a float64 in [0, 1), as the compiled core does.

    With v = abs(u - 1/2) it is sin(2 pi (v - 1/4)), an odd function on [-pi/2, pi/2].
    """
    angle = (tl.abs(u - 0.5) - 0.25) * 6.283185307179586
    square = angle * angle
    series = square * (-1.0 / 25852016738884976640000.0) + 1.0 / 51090942171709440000.0
    series = series * square - 1.0 / 121645100408832000.0
    series = series * square + 1.0 / 355687428096000.0
    series = series * square - 1.0 / 1307674368000.0
    series = series * square + 1.0 / 6227020800.0
    series = series * square - 1.0 / 39916800.0
    series = series * square + 1.0 / 362880.0
    series = series * square - 1.0 / 5040.0
    series = series * square + 1.0 / 120.0
    series = series * square - 1.0 / 6.0
    return angle * (series * square + 1.0)
