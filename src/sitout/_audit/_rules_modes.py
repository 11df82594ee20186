"""Rules on modes: what is switched on and off, as the model was found and as it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from .._rates import Rate, is_number
from .._sites._recorder import plain
from ._rule import Hit, at, rate, rule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._evidence import Evidence

_BatchNorm = nn.modules.batchnorm._BatchNorm


def configured(evidence: Evidence) -> list[Rate]:
    """Return the rates above 0."""
    return [one for one in evidence.rates if is_number(one.p) and one.p > 0.0]


def _dropping(evidence: Evidence) -> list[str]:
    """Return the layers that were found in training mode in a model in evaluation mode."""
    if evidence.modes[""]:
        return []
    return [plain(one.name) for one in configured(evidence) if one.module.training and one.is_layer]


@rule("A4", "mixed-modes", "warning")
def mixed_modes(evidence: Evidence) -> Iterator[Hit]:
    """Dropout whose mode is not that of the model."""
    training = evidence.modes[""]
    fix = "Call model.train() or model.eval() on the whole model after the last change to it."
    for one in configured(evidence):
        name = plain(one.name)
        mode = evidence.modes.get(name, training)
        if training and not mode:
            message = f"It is in evaluation mode in a model that trains: {rate(one.p)} is off."
            yield Hit(name, message, fix)
        elif mode and not training:
            message = f"It is in training mode in a model that evaluates: {rate(one.p)} is on."
            yield Hit(name, message, fix)


@rule("A5", "never-active", "error")
def never_active(evidence: Evidence) -> Iterator[Hit]:
    """Dropout that is configured and does not drop in training."""
    for site in evidence.runs.sites if evidence.runs else []:
        place = evidence.runs.train.places.get(_key(evidence, site)) if evidence.runs else None
        if place is not None and place.calls and site.p and not (place.on or place.wanted):
            message = f"{rate(site.p)} is asked for, but it is switched off in training."
            fix = "Pass training=self.training, and let train() reach the module."
            yield at(site, message, fix)
        elif site.note == "did not run":
            message = "It has a rate above 0, but nothing ran it on these inputs."
            fix = "If that is not meant, see whether forward calls it."
            yield at(site, message, fix, "note")


def _key(evidence: Evidence, site: object) -> tuple[object, ...]:
    runs = evidence.runs
    places = runs.train.places.values() if runs else ()
    return next((one.key for one in places if runs and runs.site_of(one) is site), ())


@rule("A7", "missed-by-a-helper", "warning")
def missed_by_a_helper(evidence: Evidence) -> Iterator[Hit]:
    """Floats that a helper missed which walks over dropout layers."""
    layers = [one for one in evidence.rates if one.is_layer]
    floats = [one for one in configured(evidence) if not one.is_layer]
    dropping = _dropping(evidence)
    if dropping and not evidence.modes[""]:
        for one in floats:
            if not one.module.training:
                yield Hit(
                    plain(one.name),
                    f"Dropout layers were switched on for inference; {plain(one.path)} "
                    f"({rate(one.p)}) is a float and stays off.",
                    "Put the module that holds it in training mode too.",
                )
    elif layers and all(is_number(one.p) and one.p == 0.0 for one in layers):
        for one in floats:
            yield Hit(
                plain(one.name),
                f"Every dropout layer has p=0, but {plain(one.path)} is a float and still drops "
                f"({rate(one.p)}).",
                "If dropout was to be off, use sitout.disabled or sitout.set_rate(model, 0.0).",
                severity="note",
            )


@rule("A9", "batchnorm-trains-in-mc-dropout", "error")
def batchnorm_trains(evidence: Evidence) -> Iterator[Hit]:
    """BatchNorm left in training mode by whoever switched dropout on for inference."""
    if not _dropping(evidence):
        return
    for name, module in evidence.model.named_modules():
        if isinstance(module, _BatchNorm) and module.training and module.track_running_stats:
            yield Hit(
                plain(name),
                "It is in training mode in a model that evaluates with dropout on: each "
                "prediction changes its running statistics.",
                "Put only the dropout layers in training mode.",
            )
