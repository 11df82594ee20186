"""From the records of all runs to a :class:`Study`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from . import analyse
from .analyse import Units
from .measure import FRACTIONS
from .results import Arm, DataSummary, Difference, Study, Trial, WorstUnit

if TYPE_CHECKING:
    from .execute import ArmRuns
    from .results import Curve
    from .run import Ground

_BAND_REPEATS = 3  # a curve ends where fewer repeats go on
_CURVES = ("train_error", "validation_error", "train_loss", "validation_loss")


def summarise(ground: Ground, finished: list[ArmRuns]) -> Study:
    """Return what the runs say.

    Args:
        ground: what all runs shared.
        finished: the runs of every arm.
    """
    by_name = {one.name: one for one in finished}
    versus_none = _versus(by_name, "none", [one for one in by_name if one != "none"])
    arms = [_arm(one, versus_none.get(one.name)) for one in finished]
    units = Units(ground.data.task, ground.data.target_name)
    request = ground.request
    return Study(
        verdict=_verdict(arms, units),
        verdict_best_other=_verdict_best_other(arms, by_name, units),
        outcome=versus_none["dropout"].outcome if "dropout" in versus_none else "",
        unit=units.unit,
        data=_data(ground, finished[0]),
        network=f"{request.network}, {request.optimizer}, batches of {ground.plan.batch_size}, "
        f"at most {max(ground.plan.epochs)} epochs",
        arms=arms,
        best=min(arms, key=lambda arm: arm.validation_loss.values[0]).name,
        plan=_plan(ground),
        versions=request.versions,
        seconds=sum(
            record["seconds"] for one in finished for record in (*one.trials, *one.repeats)
        ),
        out=str(ground.folder),
    )


def _plan(ground: Ground) -> dict[str, Any]:
    request, plan = ground.request, ground.plan
    return {
        "data": request.data,
        "target": request.target,
        "task": request.task,
        "network": request.network,
        "optimizer": request.optimizer,
        "batch_size": plan.batch_size,
        "train_size": request.train_size,
        "arms": list(request.arms),
        "repeats": request.repeats,
        "trials": plan.trials,
        "epochs": list(plan.epochs),
        "seed": request.seed,
        "budget_seconds": request.budget,
    }


def _values(one: ArmRuns, key: str) -> list[float]:
    return [record[key] for record in one.repeats]


def _versus(by_name: dict[str, ArmRuns], than: str, names: list[str]) -> dict[str, Difference]:
    """Compare the named arms with another; without that arm there is nothing to compare."""
    if than not in by_name or not names:
        return {}
    rows = reference_rows = None
    if by_name[than].repeats[0]["test_rows"] is not None:
        rows = [_rows(by_name[name]) for name in names]
        reference_rows = _rows(by_name[than])
    found = analyse.compare(
        than,
        [_values(by_name[name], "test_error") for name in names],
        _values(by_name[than], "test_error"),
        rows,
        reference_rows,
    )
    return dict(zip(names, found, strict=True))


def _rows(one: ArmRuns) -> analyse.Floats:
    return np.stack([analyse.row_errors(record) for record in one.repeats])


def _arm(one: ArmRuns, versus_none: Difference | None) -> Arm:
    measured = {
        f"{rows}_{what}": analyse.measure(_values(one, f"{rows}_{what}"))
        for rows in ("train", "validation", "test")
        for what in ("error", "loss")
    }
    gaps = [record["test_error"] - record["train_error"] for record in one.repeats]
    pace = _values(one, "seconds_per_epoch")
    chosen = [record["settings"] for record in one.repeats]
    return Arm(
        name=one.name,
        settings=max(chosen, key=chosen.count),
        chosen=chosen,
        trials=[_trial(at, record) for at, record in enumerate(one.trials)],
        **measured,
        gap=analyse.measure(gaps),
        seconds_per_epoch=analyse.measure(pace),
        learning=_learning(one),
        silencing=_silencing(one),
        worst_unit=_worst_unit(one),
        versus_none=versus_none,
    )


def _trial(number: int, record: dict[str, Any]) -> Trial:
    return Trial(number, record["spec"]["settings"][0], record["error"], record["loss"])


def _learning(one: ArmRuns) -> dict[str, Curve]:
    curves = [record["learning"] for record in one.repeats]
    lengths = sorted((len(curve["epochs"]) for curve in curves), reverse=True)
    n = lengths[min(_BAND_REPEATS, len(lengths)) - 1]
    epochs = max((curve["epochs"] for curve in curves), key=len)[:n]
    return {name: analyse.curve(epochs, [curve[name][:n] for curve in curves]) for name in _CURVES}


def _silencing(one: ArmRuns) -> Curve | None:
    if one.repeats[0]["silencing"] is None:
        return None
    return analyse.curve(FRACTIONS, _silences(one))


def _silences(one: ArmRuns) -> list[list[float]]:
    return [record["silencing"] for record in one.repeats]


def _worst_unit(one: ArmRuns) -> WorstUnit | None:
    worst = [record["worst_unit"] for record in one.repeats]
    if worst[0] is None:
        return None
    return WorstUnit(worst[0][0], worst[0][1], analyse.measure([harm for _, _, harm in worst]))


def _data(ground: Ground, one: ArmRuns) -> DataSummary:
    first = one.repeats[0]
    train, validation, test = first["rows"]
    return DataSummary(
        name=ground.data.name,
        task=ground.data.task,
        target=ground.data.target_name,
        classes=list(ground.data.classes),
        features=first["features"],
        train_rows=train,
        validation_rows=validation,
        test_rows=test,
        fixed_test=ground.splits.fixed_test,
        notes=list(ground.data.notes),
        fingerprint=ground.data.fingerprint,
        splits=[record["split"] for record in one.repeats],
    )


def _named(arms: list[Arm], name: str) -> Arm | None:
    return next((arm for arm in arms if arm.name == name), None)


def _verdict(arms: list[Arm], units: Units) -> str:
    dropout, none = _named(arms, "dropout"), _named(arms, "none")
    if dropout is None or none is None or dropout.versus_none is None:
        return "No verdict on dropout: it needs the arms none and dropout."
    return analyse.verdict(dropout.versus_none, dropout.test_error, none.test_error, units)


def _verdict_best_other(arms: list[Arm], by_name: dict[str, ArmRuns], units: Units) -> str:
    others = [arm for arm in arms if arm.name not in ("none", "dropout")]
    if not others or "dropout" not in by_name:
        return "No comparison with other regularizers: it needs the arm dropout and another one."
    best = min(others, key=lambda arm: arm.validation_error.mean)
    difference = _versus(by_name, best.name, ["dropout"])["dropout"]
    return analyse.verdict_best_other(difference, units)
