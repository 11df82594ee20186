"""Rules on randomness that is repeated, compiled or not torch's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._rule import Hit, at, rule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._evidence import Evidence
    from ._finding import Severity


@rule("A15", "checkpoint-without-rng", "error")
def checkpoint_without_rng(evidence: Evidence) -> Iterator[Hit]:
    """Dropout that is repeated in backward with another mask."""
    runs = evidence.runs
    for place in runs.flow.no_rng if runs else ():
        site = runs.site_of(place) if runs else None
        if site is not None and place.on:
            yield at(
                site,
                "A checkpoint with preserve_rng_state=False repeats it in backward with another "
                "mask: the gradients are wrong.",
                "Leave preserve_rng_state at True, or use a MaskClock with "
                "context_fn=clock.recompute.",
            )


@rule("A16", "randomness-in-control-flow", "note")
def control_flow(evidence: Evidence) -> Iterator[Hit]:
    """Random decisions in Python code."""
    for site in evidence.runs.sites if evidence.runs else []:
        severity: Severity | None = "warning" if evidence.compiled is not None else None
        if site.kind == "layer_drop" and site.via == "mask":
            yield at(
                site,
                "A random number decides what code runs: torch.compile breaks its graph there.",
                "Multiply the branch by a mask instead: sitout.nn.DropPath.",
                severity,
            )
        elif site.kind == "outside":
            module = site.note.split()[2].rstrip(",")
            yield at(
                site,
                f"The forward draws from {module}: torch.manual_seed, checkpoints and compiled "
                "code do not know of it.",
                "Draw from torch's generator.",
                severity,
            )
