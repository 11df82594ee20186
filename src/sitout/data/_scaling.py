"""Mean, spread and float32, safe for every finite float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sitout.data._fault import counted, fault

Doubles = npt.NDArray[np.float64]


def center_and_spread(values: npt.NDArray[Any]) -> tuple[Doubles, Doubles]:
    """Return mean and standard deviation over axis 0; the spread of a constant is 1.

    The values are divided by their largest magnitude first, so that no square overflows and a
    constant is exactly one.
    """
    values = values.astype(np.float64)
    top = np.abs(values).max(axis=0)
    unit = values / np.where(top > 0, top, 1.0)
    spread = unit.std(axis=0) * top
    return unit.mean(axis=0) * top, np.where(spread > 0, spread, 1.0)


def standardised(
    values: npt.NDArray[Any], mean: Doubles | float, sd: Doubles | float, what: str
) -> npt.NDArray[np.float32]:
    """Return ``(values - mean) / sd`` as float32, or raise if a result is not finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        cast = ((values - mean) / sd).astype(np.float32)
    bad = cast.size - int(np.isfinite(cast).sum())
    if bad:
        raise fault(what, "be finite", counted(bad, "NaN, infinite or too large value"))
    return cast
