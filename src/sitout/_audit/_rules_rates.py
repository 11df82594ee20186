"""Rules on rates: what was asked for, and what holds."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

from .._rates import is_number
from .._sites._place import Place
from .._sites._recorder import plain
from ._rule import Hit, at, rate, rule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._evidence import Evidence, Runs
    from ._finding import Severity

_SURE = 15.0  # exp(-15): one false alarm in two million sites
_BLOCKS = 20  # fewer say little about a rate
_UNSCALED = ("alpha", "feature_alpha", "gaussian", "subset", "drop_block", "layer_drop", "rnn")


@rule("A6", "rnn-dropout-in-one-layer", "warning")
def rnn_in_one_layer(evidence: Evidence) -> Iterator[Hit]:
    """Dropout between the layers of a recurrent network that has one."""
    for one in evidence.rates:
        module = one.module
        if isinstance(module, nn.RNNBase) and module.num_layers == 1 and module.dropout > 0:
            yield Hit(
                plain(one.name),
                f"dropout={module.dropout:.4g} acts between layers, and this "
                f"{type(module).__name__} has one.",
                "Put a dropout layer behind it, or use num_layers=2.",
            )


@rule("A22", "rate-out-of-range", "error")
def rate_out_of_range(evidence: Evidence) -> Iterator[Hit]:
    """A rate that is none, or that looks like a keep probability."""
    for one in evidence.rates:
        name, p = plain(one.name), one.p
        if not is_number(p) or not 0.0 <= p <= 1.0:  # NaN is in no interval
            message = f"{plain(one.path)} must be a number in [0, 1]. It is {p!r}."
            yield Hit(name, message, "Give the fraction to drop.")
        elif p == 1.0:
            message = f"{plain(one.path)} is 1: nothing is left."
            yield Hit(name, message, "Give the fraction to drop.", severity="warning")
        elif p > 0.7:
            message = f"{plain(one.path)} is {p:.4g}: is it the fraction to keep?"
            fix = f"p is the fraction to drop; to keep {p:.4g} give {1.0 - p:.4g}."
            yield Hit(name, message, fix, severity="note")


@rule("A23", "rate-does-not-hold", "error")
def rate_does_not_hold(evidence: Evidence) -> Iterator[Hit]:
    """A rate that is asked for and not found in what was dropped."""
    runs = evidence.runs
    for place in runs.train.places.values() if runs else ():
        site = runs.site_of(place) if runs else None
        problem = doubt(place)
        if site is not None and problem:
            yield at(site, problem, "Use another implementation or backend; see sitout.replace.")


def doubt(place: Place) -> str:
    """Return what speaks against the rate of a place; "" if nothing does."""
    if place.wanted and not place.on and not _is_rounded_away(place):
        return f"{rate(place.p)} is asked for in training, and nothing drops."
    if place.kind in ("subset", "drop_block", "layer_drop", "gaussian") or not place.bits:
        return ""
    if place.p is None or len(set(place.asked)) != 1 or not place.on:
        return ""
    seen = place.dropped / place.bits
    if place.bits * _distance(seen, min(max(seen, place.p - 1e-4), place.p + 1e-4)) < _SURE:
        return ""
    return f"{rate(place.p)} is asked for, but {seen:.4g} of {place.bits} drop."


def _is_rounded_away(place: Place) -> bool:
    """Return whether a choice of tokens leaves out none because the rate asks for less than one."""
    tokens = place.shape[1] if place.shape and len(place.shape) > 1 else 0
    return place.kind == "subset" and (place.p or 0.0) * tokens < 1.0


def _distance(seen: float, p: float) -> float:
    """Return how far a share is from a rate: n bits show it by chance with less than exp(-n d).

    Reference:
        Chernoff 1952, Annals of Mathematical Statistics 23:493-507: the tail of the binomial.
    """
    pairs = ((seen, p), (1.0 - seen, 1.0 - p))
    return sum(a * math.log(a / b) if b > 0.0 else math.inf for a, b in pairs if a > 0.0)


@rule("A25", "not-scaled", "warning")
def not_scaled(evidence: Evidence) -> Iterator[Hit]:
    """A mask that does not make up for what it drops."""
    runs = evidence.runs
    for place, (factor, scaled) in runs.flow.factors.items() if runs else ():
        site = runs.site_of(place) if runs else None
        p = place.p
        if site is None or p is None or not 0.02 <= p < 1.0 or place.kind in _UNSCALED:
            continue
        if doubt(place) or site.active_in_eval or not getattr(place.module, "scale_by_keep", True):
            continue  # another rule, or a user's wish
        if isinstance(place.module, torch.jit.ScriptModule) or len(set(place.asked)) != 1:
            continue  # its numbers are tensors; or several calls are one place
        always = runs.scalings if runs else []
        factor *= math.prod(number for where, number in scaled if (where, number) not in always)
        in_eval = 1.0 - p if runs and _makes_up_for_it(runs, place) else 1.0
        if math.isclose(factor * (1.0 - p), in_eval, rel_tol=0.02):
            continue
        once_more = f", and evaluation multiplies by {in_eval:.4g}" if in_eval < 1.0 else ""
        yield at(
            site,
            f"What {rate(p)} keeps is multiplied by {factor:.4g} instead of "
            f"{in_eval / (1.0 - p):.4g}{once_more}: the means of the two modes differ.",
            "Divide by 1 - p in training, once, or use sitout.nn.Dropout.",
        )


def _makes_up_for_it(runs: Runs, place: Place) -> bool:
    """Return whether evaluation, and it alone, multiplies by the share that training keeps."""
    near = (place.name, place.name.rpartition(".")[0])
    return any(
        where in near and math.isclose(number, 1.0 - (place.p or 0.0), rel_tol=0.01)
        for where, number in runs.scalings
        if (where, number) not in runs.flow.scalings
    )


@rule("A30", "dropblock-does-not-fit", "error")
def dropblock_does_not_fit(evidence: Evidence) -> Iterator[Hit]:
    """Blocks that do not fit the feature map, or overlap so that the rate does not hold."""
    runs = evidence.runs
    for place in runs.train.places.values() if runs else ():
        size = getattr(place.module, "block_size", None)
        site = runs.site_of(place) if runs else None
        if place.kind != "drop_block" or not isinstance(size, int) or not place.shape or not site:
            continue
        height, width = place.shape[-2:]
        if size > min(height, width):
            message = f"A block of {size} does not fit into {height} x {width}."
            weight: Severity | None = "note" if _makes_blocks_smaller(place) else None
            fix = "Take a smaller block_size, or leave DropBlock out here."
            yield at(site, message, fix, weight)
            continue
        share, p = place.dropped / max(place.bits, 1), place.p or 0.0
        p *= getattr(place.module, "gamma_scale", 1.0)  # of timm
        blocks = share * place.bits / size**2
        if blocks >= _BLOCKS and not p / 1.5 <= share <= p * 1.5:
            message = f"{rate(p)} is asked for, but {share:.4g} of {height} x {width} drop."
            fix = "Take a smaller block_size, or a rate that gives what you mean."
            yield at(site, message, fix, "warning")


def _makes_blocks_smaller(place: Place) -> bool:
    """Return whether a layer cuts blocks to the size of the feature map."""
    return type(place.module).__module__.startswith(("timm.", "torchvision."))
