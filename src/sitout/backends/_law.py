"""What a mask does to a value: the constants of each law ("Values" in the specification)."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

from .. import masks

Law = Literal["dropout", "path", "alpha", "alpha_slope", "gaussian"]
Number = float | Tensor

_SATURATION = -1.7580993408473766  # -lambda * alpha of SELU (Klambauer et al. 2017)


def slope(law: Law) -> Law:
    """Return the law of a gradient: each law is linear up to a constant, which falls away."""
    return "alpha_slope" if law == "alpha" else law


def held(p: Number) -> Number:
    """Return the rate that holds, in binary64: T / 2**bits."""
    if isinstance(p, Tensor):
        bits, threshold = p.unbind()
        return threshold.double() / (1 << bits).double()
    return masks.effective_rate(p)


def constants(law: Law, p: Number) -> tuple[Number, Number, Number]:
    """Return (scale, shift, dropped): kept values become ``scale * x + shift``.

    Args:
        law: any but "gaussian".
        p: drop rate, a fraction in [0, 1], or as data.

    Returns:
        In binary64. At p = 1 all is zero.
    """
    rate = held(p)
    if law == "path":
        return 1.0, 0.0, 0.0
    if not isinstance(rate, Tensor) and rate == 1.0:
        return 0.0, 0.0, 0.0
    if law == "dropout":
        return _zero_at_one(1.0 / (1.0 - rate), rate), 0.0, 0.0
    a = _zero_at_one(1.0 / _root((1.0 - rate) * (1.0 + rate * _SATURATION**2)), rate)
    if law == "alpha_slope":
        return a, 0.0, 0.0
    b = -a * rate * _SATURATION
    return a, b, a * _SATURATION + b


def _zero_at_one(value: Number, rate: Number) -> Number:
    if isinstance(value, Tensor) and isinstance(rate, Tensor):
        return value.masked_fill(rate == 1.0, 0.0)
    return value


def sigma(p: Number) -> Number:
    """Return the standard deviation of Gaussian dropout's factor: sqrt(p / (1 - p)).

    A float is taken as it is, a rate as data is the one that holds.
    """
    rate = held(p) if isinstance(p, Tensor) else p
    return _root(rate / (1.0 - rate))


def _root(value: Number) -> Number:
    """Return the square root; a power is rounded less well."""
    return value.sqrt() if isinstance(value, Tensor) else math.sqrt(value)
