"""The gate: nothing is timed before it has given what the reference backend gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

import sitout

TO_THE_BIT, ONE_ULP, ROUNDING = "to the bit", "within 1 ulp", "within rounding"
_INTS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def _same_bits(made: Tensor, wanted: Tensor) -> Tensor:
    ints = _INTS[made.itemsize]
    return made.view(ints) == wanted.view(ints)


def _one_ulp(made: Tensor, wanted: Tensor) -> Tensor:
    return torch.nextafter(wanted, made) == made


def _rounding(made: Tensor, wanted: Tensor) -> Tensor:
    largest = wanted.abs().max().item()
    return torch.isclose(made, wanted, rtol=1e-5, atol=1e-6 * largest)


_AGREE = {TO_THE_BIT: _same_bits, ONE_ULP: _one_ulp, ROUNDING: _rounding}


def compare(ours: Callable[[], Any], wanted: Callable[[], Any], close: str) -> str:
    """Return how ours differs from what is wanted, or nothing.

    Both start from the same state of torch's generator, so they draw the same keys.

    Args:
        ours: returns a tensor or several.
        wanted: the same, run by the reference backend.
        close: how near they must be.
    """
    try:
        torch.manual_seed(0)
        made = _listed(ours())
        torch.manual_seed(0)
        with sitout.backends.use("reference"):
            expected = _listed(wanted())
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return difference(made, expected, close)


def _listed(results: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [results] if isinstance(results, Tensor) else list(results)


def difference(made: Sequence[Tensor], wanted: Sequence[Tensor], close: str) -> str:
    """Return the first difference between two lists of tensors, or nothing.

    Args:
        made: the results.
        wanted: what they must be.
        close: how near.
    """
    if len(made) != len(wanted):
        return f"{len(made)} results in place of {len(wanted)}"
    for number, (ours, theirs) in enumerate(zip(made, wanted, strict=True)):
        ours, theirs = ours.detach(), theirs.detach()
        told = f"{tuple(ours.shape)} {ours.dtype}"
        if told != f"{tuple(theirs.shape)} {theirs.dtype}":
            return f"result {number} is {told}, not {tuple(theirs.shape)} {theirs.dtype}"
        wrong = ~_AGREE[close](ours, theirs)
        if wrong.any():
            most = (ours.double() - theirs.double()).abs()[wrong].max().item()
            count = f"{int(wrong.sum())} of {wrong.numel()} elements"
            return f"result {number}: {count} are not {close} the reference's; by up to {most:.3g}"
    return ""
