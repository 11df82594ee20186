"""Dropout, residual sum and normalization in one pass over a row, and their gradients in one more.

A row is normalized by one program, as a tile ``[blocks, 8]``: a thread holds the eight lanes of a
call of Philox. Backward makes the mask again from its address. Each of its programs walks through
many rows and keeps sums for the gradients of weight and bias, which torch adds up.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]

from . import _philox as philox

# What changes from call to call must not compile anything anew.
_FREE = (
    *("key", "site", "step", "seed_at", "call_at", "site_at", "step_at", "steps", "rows"),
    *("rate_at", "threshold", "scale", "first", "outer_stride", "inner_stride", "inner"),
    *("n_batch", "n_rows", "n_cols", "eps"),
)


@triton.jit
def _lanes_narrow(block, lane, first, row, step, site, k0, k1, aligned: tl.constexpr):
    if aligned:
        at = block + (first >> 3).to(tl.uint32)
        w0, w1, w2, w3 = philox.words(at, row, step, site, philox.narrow, k0, k1)
        return philox.half(w0, w1, w2, w3, lane)
    col = first + (block * 8 + lane)
    w0, w1, w2, w3 = philox.words(col >> 3, row, step, site, philox.narrow, k0, k1)
    return philox.half(w0, w1, w2, w3, (col & 7).to(tl.int32))


@triton.jit
def _lanes_wide(block, lane, first, row, step, site, k0, k1, aligned: tl.constexpr):
    if aligned:
        at = block * 2 + (first >> 2).to(tl.uint32)
        w0, w1, w2, w3 = philox.words(at, row, step, site, philox.wide, k0, k1)
        v0, v1, v2, v3 = philox.words(at + 1, row, step, site, philox.wide, k0, k1)
        low, high = philox.pick(w0, w1, w2, w3, lane & 3), philox.pick(v0, v1, v2, v3, lane & 3)
        return tl.where(lane < 4, low, high)
    col = first + (block * 8 + lane)
    w0, w1, w2, w3 = philox.words(col >> 2, row, step, site, philox.wide, k0, k1)
    return philox.pick(w0, w1, w2, w3, (col & 3).to(tl.int32))


@triton.jit
def _load_rate(rate_at, bits: tl.constexpr, threshold, scale):
    """Return bits, threshold and scale: those given, or those of a rate as data (bits, T)."""
    width = tl.full([], bits, tl.int64)
    if rate_at is not None:
        width, threshold = tl.load(rate_at), tl.load(rate_at + 1)
        held = threshold.to(tl.float64) / (tl.full([], 1, tl.int64) << width).to(tl.float64)
        scale = tl.where(held < 1.0, 1.0 / tl.where(held < 1.0, 1.0 - held, 1.0), 0.0)
        scale = scale.to(tl.float32)
    return width, threshold, scale


@triton.jit
def _keep(
    m, block, lane, k0, k1, site, step, steps, rows, width, threshold,
    inner, n_batch, outer_stride, inner_stride, first, bits: tl.constexpr, aligned: tl.constexpr,
):  # fmt: skip
    """Return which elements of row ``m`` in memory are kept, ``[blocks, 8]``."""
    sample = m // inner % n_batch
    outer, within = (m // inner // n_batch).to(tl.int64), (m % inner).to(tl.int64)
    col = first + outer * outer_stride + within * inner_stride
    row = sample.to(tl.int64)
    if rows is not None:
        row = tl.load(rows + sample)
    if steps is not None:
        step = tl.load(steps + sample).to(tl.uint32)
    if bits == 16:
        lanes = _lanes_narrow(block, lane, col, row, step, site, k0, k1, aligned)
    elif bits == 32:
        lanes = _lanes_wide(block, lane, col, row, step, site, k0, k1, aligned)
    else:
        if width == 16:
            lanes = _lanes_narrow(block, lane, col, row, step, site, k0, k1, aligned)
        else:
            lanes = _lanes_wide(block, lane, col, row, step, site, k0, k1, aligned)
    return (lanes >= threshold.to(tl.uint32)) & (threshold <= 0xFFFFFFFF)  # 2**32: all sit out


@triton.jit
def _tile(m, n_cols, blocks: tl.constexpr, aligned: tl.constexpr):
    """Return block and lane, the elements of a row in memory, and which of them there are."""
    block, lane = tl.arange(0, blocks)[:, None], tl.arange(0, 8)[None, :]
    at = block * 8 + lane
    if aligned:  # said in a way in which the compiler sees it
        start, inside = m.to(tl.int64) * (n_cols // 8) * 8, block < n_cols // 8
        inside &= lane < 8
    else:
        start, inside = m.to(tl.int64) * n_cols, at < n_cols
    return block, lane, start + at, inside


@triton.jit
def _sum(x):
    return tl.sum(tl.sum(x, 1), 0)


@triton.jit(do_not_specialize=_FREE)
def forward(
    x, residual, weight, bias, out, total, mean_at, rstd_at,
    rate_at, threshold: tl.int64, scale: tl.float32,
    key: tl.int64, site: tl.int64, step: tl.int64, seed_at, call_at, site_at, step_at, steps, rows,
    inner: tl.int32, n_batch: tl.int32,
    outer_stride: tl.int64, inner_stride: tl.int64, first: tl.int64,
    n_cols: tl.int32, eps: tl.float32,
    rms: tl.constexpr, blocks: tl.constexpr, bits: tl.constexpr, aligned: tl.constexpr,
):  # fmt: skip
    """Normalize one row of ``residual + dropout(x)``.

    Args:
        x: ``[M, N]``.
        residual: ``[M, N]``.
        weight: ``[N]`` or None.
        bias: ``[N]`` or None.
        out: ``[M, N]``.
        total: ``[M, N]``, the sum.
        mean_at: float32 ``[M]`` or None.
        rstd_at: float32 ``[M]`` or None.
        rate_at: int64 ``[2]``, a rate as data, or None.
        threshold: what a lane stays below that is dropped.
        scale: of what is kept.
        key: as in :func:`_philox.load_key`, like the next six.
        site: see there.
        step: see there.
        seed_at: see there.
        call_at: see there.
        site_at: see there.
        step_at: see there.
        steps: int64 ``[n_batch]``, or None.
        rows: int64 ``[n_batch]``, or None for 0, 1, 2, ...
        inner: rows of memory behind one index of the batch dim.
        n_batch: number of samples.
        outer_stride: columns from one index of the dims before the batch dim to the next.
        inner_stride: columns from one index of the dims behind the batch dim to the next.
        first: the first column.
        n_cols: N.
        eps: added to the variance or the mean square.
        rms: whether the mean stays.
        blocks: a power of two, at least N / 8.
        bits: 16, 32, or 0 for a rate as data.
        aligned: whether N, both strides and the first column are multiples of 8.
    """
    m = tl.program_id(0)
    block, lane, at, inside = _tile(m, n_cols, blocks, aligned)
    k0, k1, site, step = philox.load_key(key, site, step, seed_at, call_at, site_at, step_at)
    width, threshold, scale = _load_rate(rate_at, bits, threshold, scale)
    keep = _keep(
        m, block, lane, k0, k1, site, step, steps, rows, width, threshold,
        inner, n_batch, outer_stride, inner_stride, first, bits, aligned,
    )  # fmt: skip
    dropped = tl.where(keep, tl.load(x + at, mask=inside, other=0.0).to(tl.float32) * scale, 0.0)
    h = dropped + tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    h = h.to(total.dtype.element_ty)  # what is normalized is the sum that is returned
    tl.store(total + at, h, mask=inside)
    h = h.to(tl.float32)
    n = n_cols.to(tl.float32)
    if not rms:
        mean = tl.div_rn(_sum(h), n)
        h = tl.where(inside, h - mean, 0.0)
        if mean_at is not None:
            tl.store(mean_at + m, mean)
    rstd = tl.div_rn(1.0, tl.sqrt_rn(tl.div_rn(_sum(h * h), n) + eps))
    if rstd_at is not None:
        tl.store(rstd_at + m, rstd)
    y = h * rstd
    col = block * 8 + lane
    if weight is not None:
        y *= tl.load(weight + col, mask=inside, other=0.0).to(tl.float32)
    if bias is not None:
        y += tl.load(bias + col, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, y.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=_FREE)
def backward(
    grad, total_grad, total, weight, mean_at, rstd_at, x_grad, residual_grad, sums,
    rate_at, threshold: tl.int64, scale: tl.float32,
    key: tl.int64, site: tl.int64, step: tl.int64, seed_at, call_at, site_at, step_at, steps, rows,
    inner: tl.int32, n_batch: tl.int32,
    outer_stride: tl.int64, inner_stride: tl.int64, first: tl.int64,
    n_rows: tl.int32, n_cols: tl.int32,
    rms: tl.constexpr, blocks: tl.constexpr, bits: tl.constexpr, aligned: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of every P-th row, where P programs run.

    In come ``grad`` of the normalized sum, ``total_grad`` of the sum where it is used besides, or
    None, and what :func:`forward` has stored. Out go ``x_grad``, ``residual_grad``, and ``sums``,
    float32 ``[2, P, N]``: parts of the gradients of weight and bias; or None.
    """
    program, n_programs = tl.program_id(0), tl.num_programs(0)
    k0, k1, site, step = philox.load_key(key, site, step, seed_at, call_at, site_at, step_at)
    width, threshold, scale = _load_rate(rate_at, bits, threshold, scale)
    block, lane, at, inside = _tile(program, n_cols, blocks, aligned)
    col = block * 8 + lane
    n = n_cols.to(tl.float32)
    w = tl.full([blocks, 8], 1.0, tl.float32)
    if weight is not None:
        w = tl.load(weight + col, mask=inside, other=0.0).to(tl.float32)
    weight_sum = tl.zeros([blocks, 8], tl.float32)
    bias_sum = tl.zeros([blocks, 8], tl.float32)
    for turn in tl.range(tl.cdiv(n_rows - program, n_programs)):
        m = program + turn * n_programs
        block, lane, at, inside = _tile(m, n_cols, blocks, aligned)
        dy = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
        h = tl.load(total + at, mask=inside, other=0.0).to(tl.float32)
        keep = _keep(
            m, block, lane, k0, k1, site, step, steps, rows, width, threshold,
            inner, n_batch, outer_stride, inner_stride, first, bits, aligned,
        )  # fmt: skip
        rstd = tl.load(rstd_at + m)
        if not rms:
            h -= tl.load(mean_at + m)
        normal = tl.where(inside, h * rstd, 0.0)
        weight_sum += dy * normal
        if not rms:
            bias_sum += dy
        dy *= w
        dh = dy - normal * tl.div_rn(_sum(dy * normal), n)
        if not rms:
            dh -= tl.div_rn(_sum(dy), n)
        dh *= rstd
        if total_grad is not None:
            dh += tl.load(total_grad + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(residual_grad + at, dh.to(residual_grad.dtype.element_ty), mask=inside)
        dx = tl.where(keep, dh * scale, 0.0)
        tl.store(x_grad + at, dx.to(x_grad.dtype.element_ty), mask=inside)
    if sums is not None:
        block, lane, at, inside = _tile(program, n_cols, blocks, aligned)
        tl.store(sums + at, weight_sum, mask=inside)
        if not rms:
            block, lane, at, inside = _tile(program + n_programs, n_cols, blocks, aligned)
            tl.store(sums + at, bias_sum, mask=inside)
