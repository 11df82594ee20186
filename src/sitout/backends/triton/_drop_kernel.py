"""The one kernel of all that is done element by element: make the bits, and use them."""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]

from .._law import _SATURATION
from . import _fused_functions as functions
from . import _philox as philox

_SATURATED = tl.constexpr(_SATURATION)

_FREE = (
    *("rate", "threshold", "scale", "shift", "dropped", "key", "site", "step"),
    *("seed_at", "call_at", "site_at", "step_at", "steps", "rows"),
    *("total", "size", "first", "first_row"),
    *(f"{name}{at}" for name in "nmsxobyc" for at in range(4)),
)


@triton.jit
def _split(n, size, magic, shift):
    """Return n // size and n % size of uint32 n < 2^31, by Granlund and Montgomery's numbers."""
    quotient = (tl.umulhi(n, magic.to(tl.uint32)) + n) >> shift.to(tl.uint32)
    return quotient, (n - quotient * size.to(tl.uint32)).to(tl.int64)


@triton.jit
def _rate(rate, law: tl.constexpr):
    """Return bits, threshold, scale, shift and what is dropped of a rate given as data."""
    bits, threshold = tl.load(rate), tl.load(rate + 1)
    whole = (tl.full([], 1, tl.int64) << bits).to(tl.float64)
    held = threshold.to(tl.float64) / whole
    none = held == 1.0
    rest = tl.where(none, 1.0, 1.0 - held)
    shift = tl.full([], 0.0, tl.float64)
    dropped = shift
    scale = shift + 1.0
    if law == "gaussian":
        scale = tl.where(none, float("inf"), tl.sqrt(held / rest))
    elif law == "alpha" or law == "alpha_slope":
        root = tl.sqrt(rest * (1.0 + held * (_SATURATED * _SATURATED)))
        scale = tl.where(none, 0.0, 1.0 / root)
        if law == "alpha":
            shift = -scale * held * _SATURATED
            dropped = scale * _SATURATED + shift
    elif law == "dropout":
        scale = tl.where(none, 0.0, 1.0 / rest)
    return bits, threshold, scale, shift, dropped


@triton.jit
def _place(n, sizes, first, cols, dims: tl.constexpr, cut: tl.constexpr):
    """Return where the rows of tiles lie: cut of the innermost dim, index of the others, column."""
    n0, m0, s0, n1, m1, s1, n2, m2, s2 = sizes
    c1, c2, c3 = cols
    zero = (n * 0).to(tl.int64)
    k, i1, i2, i3 = zero, zero, zero, zero
    if cut:
        n, k = _split(n, n0, m0, s0)
    if dims > 1:
        n, i1 = _split(n, n1, m1, s1)
    if dims > 2:
        n, i2 = _split(n, n2, m2, s2)
    if dims == 1:
        i1 = n.to(tl.int64)
    elif dims == 2:
        i2 = n.to(tl.int64)
    elif dims == 3:
        i3 = n.to(tl.int64)
    elif not cut:
        k = n.to(tl.int64)
    return k, i1, i2, i3, first.to(tl.int64) + i1 * c1 + i2 * c2 + i3 * c3


@triton.jit
def _offset(i1, i2, i3, j, strides, flat: tl.constexpr):
    s0, s1, s2, s3 = strides
    outer = i1 * s1 + i2 * s2 + i3 * s3
    return outer * 8 + j if flat else outer + j * s0


@triton.jit
def _who(i1, i2, i3, inside, step, first_row, steps, rows, row_dim: tl.constexpr):
    """Return the row and the step of each row of tiles."""
    row = i1 * 0
    if row_dim == 1:
        row = i1
    elif row_dim == 2:
        row = i2
    elif row_dim == 3:
        row = i3
    row += first_row
    if steps is not None:
        step = tl.load(steps + row, mask=inside, other=0).to(tl.uint32)
    if rows is not None:
        row = tl.load(rows + row, mask=inside, other=0)
    return row, step


@triton.jit
def _narrow(eight, lane, row, step, site, k0, k1):
    w0, w1, w2, w3 = philox.words(eight, row, step, site, philox.narrow, k0, k1)
    return philox.half(w0, w1, w2, w3, lane)


@triton.jit
def _wide(eight, lane, row, step, site, k0, k1, lanes: tl.constexpr):
    if lanes:
        w0, w1, w2, w3 = philox.words(eight * 2, row, step, site, philox.wide, k0, k1)
        v0, v1, v2, v3 = philox.words(eight * 2 + 1, row, step, site, philox.wide, k0, k1)
        low = philox.pick(w0, w1, w2, w3, lane & 3)
        made = tl.where(lane < 4, low, philox.pick(v0, v1, v2, v3, lane & 3))
    else:
        block = eight * 2 + (lane >> 2)
        w0, w1, w2, w3 = philox.words(block, row, step, site, philox.wide, k0, k1)
        made = philox.pick(w0, w1, w2, w3, lane & 3)
    return made


@triton.jit
def _four(w0, w1, w2, w3, t):
    """Return four bits, set where a word is not below a threshold."""
    low = (w0 >= t).to(tl.int32) | (w1 >= t).to(tl.int32) << 1
    return low | (w2 >= t).to(tl.int32) << 2 | (w3 >= t).to(tl.int32) << 3


@triton.jit
def _eight(eight, lane, row, step, site, k0, k1, t, bits: tl.constexpr, lanes: tl.constexpr):
    """Return the bits of whole blocks, eight in each number; or one, where one is shared."""
    if not lanes:
        if bits == 16:
            value = _narrow(eight, lane, row, step, site, k0, k1)
        else:
            value = _wide(eight, lane, row, step, site, k0, k1, False)
        made = (value.to(t.dtype) >= t).to(tl.int32)
    elif bits == 16:
        w0, w1, w2, w3 = philox.words(eight, row, step, site, philox.narrow, k0, k1)
        w0, w1, w2, w3 = w0.to(t.dtype), w1.to(t.dtype), w2.to(t.dtype), w3.to(t.dtype)
        low = _four(w0 & 0xFFFF, w0 >> 16, w1 & 0xFFFF, w1 >> 16, t)
        made = low | _four(w2 & 0xFFFF, w2 >> 16, w3 & 0xFFFF, w3 >> 16, t) << 4
    else:
        w0, w1, w2, w3 = philox.words(eight * 2, row, step, site, philox.wide, k0, k1)
        low = _four(w0.to(t.dtype), w1.to(t.dtype), w2.to(t.dtype), w3.to(t.dtype), t)
        w0, w1, w2, w3 = philox.words(eight * 2 + 1, row, step, site, philox.wide, k0, k1)
        made = low | _four(w0.to(t.dtype), w1.to(t.dtype), w2.to(t.dtype), w3.to(t.dtype), t) << 4
    return made


@triton.jit
def _normals(eight, lane, row, step, site, k0, k1, lanes: tl.constexpr):
    if lanes:
        w = (eight + lane).to(tl.uint32)
        v = w
        for block in tl.static_range(4):
            w0, w1, w2, w3 = philox.words(eight * 4 + block, row, step, site, philox.normal, k0, k1)
            here = lane >> 1 == block
            w = tl.where(here, tl.where(lane & 1 == 0, w0, w2), w)
            v = tl.where(here, tl.where(lane & 1 == 0, w1, w3), v)
    else:
        block = eight * 4 + (lane >> 1)
        w0, w1, w2, w3 = philox.words(block, row, step, site, philox.normal, k0, k1)
        w = tl.where(lane & 1 == 0, w0, w2)
        v = tl.where(lane & 1 == 0, w1, w3)
    return philox.box_muller(w, v)


@triton.jit(do_not_specialize=_FREE)
def elementwise(
    x,
    other,
    bias,
    y,
    rate,
    threshold: tl.int64,
    scale: tl.float64,
    shift: tl.float64,
    dropped: tl.float64,
    key: tl.int64,
    site: tl.int64,
    step: tl.int64,
    seed_at,
    call_at,
    site_at,
    step_at,
    steps,
    rows,
    total: tl.int64,
    size: tl.int64,
    first: tl.int64,
    first_row: tl.int64,
    n0: tl.int64,
    m0: tl.int64,
    s0: tl.int64,
    n1: tl.int64,
    m1: tl.int64,
    s1: tl.int64,
    n2: tl.int64,
    m2: tl.int64,
    s2: tl.int64,
    x0: tl.int64,
    x1: tl.int64,
    x2: tl.int64,
    x3: tl.int64,
    o0: tl.int64,
    o1: tl.int64,
    o2: tl.int64,
    o3: tl.int64,
    b0: tl.int64,
    b1: tl.int64,
    b2: tl.int64,
    b3: tl.int64,
    y0: tl.int64,
    y1: tl.int64,
    y2: tl.int64,
    y3: tl.int64,
    c1: tl.int64,
    c2: tl.int64,
    c3: tl.int64,
    op: tl.constexpr,
    law: tl.constexpr,
    bits: tl.constexpr,
    tile: tl.constexpr,
    span: tl.constexpr,
    dims: tl.constexpr,
    row_dim: tl.constexpr,
    cut: tl.constexpr,
    lanes: tl.constexpr,
    aligned: tl.constexpr,
    flat: tl.constexpr,
    bias_flat: tl.constexpr,
    packed: tl.constexpr,
):
    """Do one operation on ``tile`` rows of ``span`` elements.

    Args:
        x: what is dropped from; None for "mask".
        other: the residual, or what a slope is taken at; None if there is none.
        bias: None if there is none.
        y: the result.
        rate: pointer to (bits, T); None where they are numbers.
        threshold: T.
        scale: of what is kept; of "gaussian" the standard deviation.
        shift: added to it.
        dropped: what stands where it is not kept.
        key: as for :func:`_philox.load_key`, like the next ones.
        site: without the kind.
        step: the same.
        seed_at: the same.
        call_at: the same.
        site_at: the same.
        step_at: the same.
        steps: pointer to one step a row, or None.
        rows: pointer to the position of each row; None for 0, 1, 2, ...
        total: rows of tiles.
        size: of the innermost dim; in vectors of 8 if ``flat``.
        first: column of the first element.
        first_row: its row.
        n0: cuts of the innermost dim; with ``m0`` and ``s0`` for division.
        m0: the same.
        s0: the same.
        n1: size of the first of the other dims, the fastest.
        m1: the same.
        s1: the same.
        n2: of the second.
        m2: the same.
        s2: the same.
        x0: stride of x along the innermost dim.
        x1: along the first other dim; in vectors of 8 if ``flat``, as for ``other`` and ``y``.
        x2: the same.
        x3: the same.
        o0: of ``other``.
        o1: the same.
        o2: the same.
        o3: the same.
        b0: of ``bias``.
        b1: the same.
        b2: the same.
        b3: the same.
        y0: of ``y``.
        y1: the same.
        y2: the same.
        y3: the same.
        c1: how far a dim moves the column.
        c2: the same.
        c3: the same.
        op: "scale", "affine", "noise", "mask", "add", an activation, or one with ``_slope``.
        law: whose constants a rate as data stands for.
        bits: of a lane; 0 where a rate as data says it.
        tile: rows of a tile.
        span: elements of such a row.
        dims: that it is counted along, besides the innermost.
        row_dim: which of these is that of the rows, 0 for none.
        cut: whether the innermost dim is longer than ``span``.
        lanes: whether each element has a bit of its own; else a row of a tile shares one.
        aligned: whether every run of the innermost dim begins a block.
        flat: whether all but the bias is read and written in whole vectors of 8.
        bias_flat: whether the bias depends on the innermost dim alone, and lies together.
        packed: whether the bits of a block are made in one place and handed on, where threads do
            not hold whole blocks, or where only the device knows how many bits a lane has.
    """
    n = (tl.program_id(0) * tile + tl.arange(0, tile)).to(tl.uint32)
    sizes, cols = (n0, m0, s0, n1, m1, s1, n2, m2, s2), (c1, c2, c3)
    inside = (n < total.to(tl.uint32))[:, None]
    k, i1, i2, i3, col = _place(n[:, None], sizes, first, cols, dims, cut)

    w = tl.arange(0, span)[None, :]
    eight = col >> 3
    j = k * span + w
    if lanes:
        lane = w
        eight += k
        if not aligned:
            j -= col & 7
    else:
        lane = (col & 7).to(tl.int32)
    within = inside
    if not flat:
        within = inside & (j >= 0) & (j < size)
    elif not lanes:
        within = inside & (j < size * 8)

    y_at = _offset(i1, i2, i3, j, (y0, y1, y2, y3), flat)
    dtype: tl.constexpr = tl.float64 if y.dtype.element_ty == tl.float64 else tl.float32
    if x is not None:
        x_at = _offset(i1, i2, i3, j, (x0, x1, x2, x3), flat)
        v = tl.load(x + x_at, mask=within, other=0.0).to(dtype)
    if other is not None:
        o_at = _offset(i1, i2, i3, j, (o0, o1, o2, o3), flat)
        u = tl.load(other + o_at, mask=within, other=0.0).to(dtype)
    if bias is not None:
        b_at = j + k * 0 if bias_flat else _offset(i1, i2, i3, j, (b0, b1, b2, b3), False)
        added = tl.load(bias + b_at, mask=within, other=0.0).to(dtype)

    number = threshold.to(tl.uint32)
    a = tl.full([1, 1], scale, tl.float64)
    b = tl.full([1, 1], shift, tl.float64)
    d = tl.full([1, 1], dropped, tl.float64)
    if rate is not None:
        told, number, a, b, d = _rate(rate, law)
    a, b, d = a.to(dtype), b.to(dtype), d.to(dtype)

    if op != "relu_slope":
        k0, k1, site, step = philox.load_key(key, site, step, seed_at, call_at, site_at, step_at)
        if packed:  # a thread makes the bits of a block, others use them
            k, i1, i2, i3, col = _place(n, sizes, first, cols, dims, cut)
            eight = (col >> 3) + k if lanes else col >> 3
            one = (col & 7).to(tl.int32)
            inside = n < total.to(tl.uint32)
            row, step = _who(i1, i2, i3, inside, step, first_row, steps, rows, row_dim)
            made = tl.zeros([tile], tl.int32)
            if rate is None:
                todo = total
                while todo > 0:  # once: what is made in a loop is not made anew by every thread
                    made = _eight(eight, one, row, step, site, k0, k1, number, bits, lanes)
                    todo = todo * 0
            elif told == 16:
                made = _eight(eight, one, row, step, site, k0, k1, number, 16, lanes)
            else:
                made = _eight(eight, one, row, step, site, k0, k1, number, 32, lanes)
            keep = (made[:, None] >> (w if lanes else w * 0) & 1) != 0
        else:
            row, step = _who(i1, i2, i3, inside, step, first_row, steps, rows, row_dim)
            if op == "noise":
                z = _normals(eight, lane, row, step, site, k0, k1, lanes).to(dtype)
            elif bits == 16:
                keep = _narrow(eight, lane, row, step, site, k0, k1) >= number
            else:
                keep = _wide(eight, lane, row, step, site, k0, k1, lanes) >= number

    if op == "mask":
        made = (keep & within).to(tl.uint8)
    elif op == "noise":
        made = v * (1.0 + a * z)
    elif op == "scale":
        made = tl.where(keep, v * a, 0.0)
    elif op == "affine":
        made = tl.where(keep, v * a + b, d)
    elif op == "add":
        made = tl.where(keep, u + v * a, u)
    elif op == "relu_slope":
        made = tl.where(u != 0.0, v * a, 0.0)
    elif op == "gelu_slope" or op == "gelu_tanh_slope" or op == "silu_slope":
        if bias is not None:
            u += added
        if op == "gelu_slope":
            steep = functions.slope(u, "gelu")
        elif op == "gelu_tanh_slope":
            steep = functions.slope(u, "gelu_tanh")
        else:
            steep = functions.slope(u, "silu")
        made = tl.where(keep, v * a * steep, 0.0)
    else:
        if bias is not None:
            v += added
        made = tl.where(keep, functions.value(v, op) * a, 0.0)
    tl.store(y + y_at, made.to(y.dtype.element_ty), mask=within)
