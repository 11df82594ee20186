"""Rules on what happens in evaluation, and on what a forward leaves behind."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ._rule import Hit, at, rate, rule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .._sites import Site
    from .._sites._place import Place
    from ._evidence import Evidence, Runs
    from ._finding import Severity

_MEANT = re.compile(r"(?i)^mc_?drop|monte_?carlo|bayes|always_?on|persistent_?drop|(?-i:MAE)")
_HAND_MADE = ("mask", "drop_path", "layer_drop", "subset")


def _active(evidence: Evidence) -> Iterator[Site]:
    """Yield the sites that drop in evaluation by new random bits."""
    runs = evidence.runs
    for key, place in (runs.evaluation.places if runs else {}).items():
        site = runs.site_of(place) if runs else None
        anew = runs is not None and _draws_anew(runs, place)
        if place.on and (anew or place.via != "module") and site is not None and key:
            yield site


def _draws_anew(runs: Runs, place: Place) -> bool:
    """Return whether a place of an evaluation draws numbers, not only uses those of training."""
    known: set[int] = set()
    for recorder in (runs.train, runs.again):
        before = recorder.places.get(place.key)
        known |= before.draws if before is not None else set()
    return any(number < 0 or number not in known for number in place.draws)


@rule("A1", "always-on-dropout", "error")
def always_on(evidence: Evidence) -> Iterator[Hit]:
    """Dropout that evaluation does not switch off."""
    for site in _active(evidence):
        if site.kind in ("attention", "outside") or site.via == "mask":
            continue
        severity: Severity | None = "note" if _MEANT.search(site.type) else None
        if site.via == "call":
            message = f"A call of dropout ({rate(site.p)}) drops in evaluation too."
            fix = "Pass training=self.training; its default is True."
        elif "<" in site.name:
            message = "A dropout layer is made inside forward: it is always in training mode."
            fix = "Make it in __init__ as a child of the module."
        else:
            message = f"{site.type} ({rate(site.p)}) drops in evaluation too."
            fix = "Let it follow self.training, and leave train() and eval() to torch."
        yield at(site, message, fix, severity)


@rule("A2", "ungated-attention-dropout", "error")
def ungated_attention(evidence: Evidence) -> Iterator[Hit]:
    """Attention dropout that evaluation does not switch off."""
    for site in _active(evidence):
        if site.kind == "attention":
            yield at(
                site,
                f"Attention drops ({rate(site.p)}) in evaluation too.",
                "Pass dropout_p=self.p if self.training else 0.0: the function knows no mode.",
            )


@rule("A3", "stochastic-in-evaluation", "error")
def stochastic_in_evaluation(evidence: Evidence) -> Iterator[Hit]:
    """Anything else that makes two evaluations differ."""
    runs = evidence.runs
    if runs is None:
        return
    active = list(_active(evidence))
    for site in active:
        if site.via == "mask" and site.kind != "outside":
            message = f"A random mask ({site.kind}, {rate(site.p)}) is at work in evaluation too."
            severity: Severity | None = "note" if _MEANT.search(site.type) else None
            yield at(site, message, "Make it depend on self.training.", severity)
    if runs.differs and not active:
        ops = [f"{op} in {name or 'the model'}" for op, name in dict.fromkeys(runs.random_ops)]
        ops += [f"{name}, outside of torch" for name in runs.evaluation.outside]
        where = runs.random_ops[0][1] if runs.random_ops else ""
        source = f" Random operations: {', '.join(ops[:3])}." if ops else ""
        yield Hit(
            where,
            f"Two evaluations of the same input give different results.{source}",
            "Gate the randomness by self.training, or give it a generator of its own.",
            severity="error" if ops else "warning",
        )


@rule("A28", "mask-is-kept", "error")
def mask_is_kept(evidence: Evidence) -> Iterator[Hit]:
    """A mask that is drawn once and used again."""
    runs = evidence.runs
    if runs is None:
        return
    fix = "Draw it anew in every training forward, and use none in evaluation."
    for key, place in runs.train.places.items():
        site = runs.site_of(place)
        if site is None or not place.on or (place.via == "call" and place.kind == "attention"):
            continue
        later = runs.again.places.get(key)
        kept = [path for path in runs.changed if path.rpartition(".")[0] == place.name]
        if later is not None and later.draws:
            again = repeats(place.masks, later.masks)
        else:
            again = bool(place.draws) and (kept != [] or (later is not None and later.on))
        if again:
            held = f" It lies in {kept[0]}." if kept else ""
            yield at(site, f"The second training forward has the mask of the first.{held}", fix)
    for place in runs.evaluation.places.values():
        site = runs.site_of(place)
        anew = _draws_anew(runs, place)
        if site is not None and place.on and not anew and place.via == "module":
            yield at(site, f"{site.type} goes on dropping in evaluation, by a mask it keeps.", fix)


def repeats(masks: list[bytes], later: list[bytes]) -> bool:
    """Return whether a mask of 64 bits or more, neither all kept nor all dropped, comes again."""
    telling = {mask for mask in masks if len(mask) >= 64 and 8 < sum(mask) < len(mask) - 8}
    return any(mask in telling for mask in later)


@rule("A29", "weights-are-rewritten", "error")
def weights_are_rewritten(evidence: Evidence) -> Iterator[Hit]:
    """A forward that changes the weights, as some DropConnect does."""
    for name in evidence.runs.rewritten if evidence.runs else []:
        yield Hit(
            name.rpartition(".")[0],
            f"A training forward changes the parameter {name} for good.",
            "Compute with a masked copy of the weight: F.linear(x, dropout(self.weight)).",
        )
