"""Activations and their slopes inside kernels, by the polynomials of the compiled core.

All is computed in float32, or in float64 for float64.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]

# Interpolates at Chebyshev points; see csrc/functions.h.
_POWER = tl.constexpr(
    (
        *(1.0, 1.00000003794329924, 0.500000004740139344, 0.166664145071695612),
        *(0.0416663516384445757, 0.00837521020087001641, 0.00139412131000063345),
    )
)
_TAIL = tl.constexpr(
    (
        *(0.221970613328169799, 0.329158979713893164, 0.346198768912523961),
        *(0.222082043241830869, 0.0290600998994007808, -0.0775413864313974239),
        *(-0.0365209248645056474, 0.0359011863606718345, 0.0199553438870560498),
        -0.0209560242365298755,
    )
)
_TAIL64 = tl.constexpr(
    (
        *(0.18882128260393787, 0.303948320985945879, 0.387137400742218879),
        *(0.373043715919388327, 0.241586299562797857, 0.0603215117247444722),
        *(-0.0556750777958805335, -0.0521861901404915071, 0.00853403225721914344),
        *(0.0295801367448801551, -0.000488413832105307503, -0.017993820752773618),
        *(0.000732165730223728503, 0.0121218923146511082, -0.00256054109818006741),
        *(-0.00835424134605633344, 0.00432017384675862529, 0.00505489671348914551),
        *(-0.00500569345457550154, -0.00191084538718276285, 0.00365009934575251229),
        *(-0.0000381133546010794496, -0.00101223502134415245),
    )
)


@triton.jit
def _polynomial(x, c: tl.constexpr, n: tl.constexpr):
    """Return c[0] + c[1] x + c[2] x^2 + ... of n coefficients."""
    made = tl.full(x.shape, c[n - 1], x.dtype)
    for k in tl.static_range(1, n):
        made = tl.fma(made, x, tl.full(x.shape, c[n - 1 - k], x.dtype))
    return made


@triton.jit
def _decay(v):
    """Return exp(v) for v <= 0; in float32 it is 0 where the result would be subnormal."""
    if v.dtype == tl.float64:
        made = tl.exp(v)
    else:
        n = tl.floor(v * 1.4426950408889634 + 0.5)
        r = tl.fma(n, tl.full(v.shape, -0.693359375, v.dtype), v)  # exact: n and this are short
        r = tl.fma(n, tl.full(v.shape, 2.1219444005469057e-04, v.dtype), r)
        power = _polynomial(r, _POWER, 7)
        small = tl.maximum(n, -126.0).to(tl.int32) << 23
        made = (power.to(tl.int32, bitcast=True) + small).to(tl.float32, bitcast=True)
        made = tl.where(v < -87.0, 0.0, made)
    return made


@triton.jit
def _inverse(x):
    """Return 1 / x, rounded once."""
    return 1.0 / x if x.dtype == tl.float64 else tl.div_rn(tl.full(x.shape, 1.0, x.dtype), x)


@triton.jit
def _normal(x):
    """Return the standard normal probability of less than x, and exp(-x^2 / 2)."""
    a = tl.abs(x)
    bell = _decay(a * a * -0.5)
    slow: tl.constexpr = 0.25 if x.dtype == tl.float64 else 0.3
    t = _inverse(tl.fma(a, tl.full(x.shape, slow, x.dtype), tl.full(x.shape, 1.0, x.dtype)))
    if x.dtype == tl.float64:
        tail = bell * (t * _polynomial(t - 0.5, _TAIL64, 23))
    else:
        tail = bell * (t * _polynomial(t - 0.5, _TAIL, 10))
    return tl.where(x < 0.0, tail, 1.0 - tail), bell


@triton.jit
def _logistic(x):
    """Return 1 / (1 + exp(-x)), and the same of -x, neither with a loss of digits."""
    e = _decay(-tl.abs(x))
    large = _inverse(1.0 + e)
    small = e * large
    return tl.where(x < 0.0, small, large), tl.where(x < 0.0, large, small)


@triton.jit
def value(x, activation: tl.constexpr):
    """Return relu, gelu, gelu_tanh or silu of x."""
    if activation == "relu":
        made = tl.where(x < 0.0, 0.0, x)
    elif activation == "gelu":
        below, _ = _normal(x)
        made = x * below
    elif activation == "gelu_tanh":
        # x times the logistic function of 2 sqrt(2 / pi) (x + 0.044715 x^3)
        bend = tl.fma(x * x, tl.full(x.shape, 0.044715, x.dtype), tl.full(x.shape, 1.0, x.dtype))
        below, _ = _logistic(x * 1.5957691216057308 * bend)
        made = x * below
    else:
        below, _ = _logistic(x)
        made = x * below
    return made


@triton.jit
def slope(x, activation: tl.constexpr):
    """Return the derivative of gelu, gelu_tanh or silu at x."""
    if activation == "gelu":
        below, bell = _normal(x)
        made = tl.fma(x, bell * 0.3989422804014327, below)
    elif activation == "gelu_tanh":
        square = x * x * 0.044715
        below, above = _logistic(x * 1.5957691216057308 * (square + 1.0))
        rise = tl.fma(square, tl.full(x.shape, 3.0, x.dtype), tl.full(x.shape, 1.0, x.dtype))
        # In this order 0 times what is large stays 0 as long as x^2 is finite.
        made = tl.fma(x * above * below, rise * 1.5957691216057308, below)
    else:
        below, above = _logistic(x)
        made = below * tl.fma(x, above, tl.full(x.shape, 1.0, x.dtype))
    return made
