"""One run of a study, in whatever process: from its name to its record on disk."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import safetensors.torch
import torch

from ..data import Preprocess
from . import measure, networks, store
from .plan import seed_of
from .train import Progress, Recipe, Rows, Task, some, train

if TYPE_CHECKING:
    from pathlib import Path

    from ..data import DataSet, Split, Splits
    from .plan import Plan, Request

Looks = tuple[int, ...]
_CURVE_POINTS = 12
_SILENCED_ROWS = 2000


@dataclass(frozen=True)
class Spec:
    """Which run.

    Attributes:
        stage: ``trial`` or ``repeat``.
        arm: its name.
        number: of the trial or the repeat.
        settings: what the arm trains with: one setting in a trial, the shortlist in a repeat.
    """

    stage: str
    arm: str
    number: int
    settings: list[dict[str, float]]

    @property
    def name(self) -> str:
        """The name of its files."""
        return f"{self.arm}-{self.stage}-{self.number:02}"


@dataclass(frozen=True)
class Ground:
    """What all runs of a study share.

    Attributes:
        data: the rows.
        splits: their roles.
        request: what was asked for.
        plan: what was decided.
        folder: of the study.
    """

    data: DataSet
    splits: Splits
    request: Request
    plan: Plan
    folder: Path

    def record_of(self, spec: Spec) -> dict[str, Any] | None:
        """Return the record of a run that has finished, else None."""
        record = store.read_json(self.folder / "runs" / f"{spec.name}.json")
        return record if record and record["spec"] == asdict(spec) else None


def run(spec: Spec, ground: Ground) -> dict[str, Any]:
    """Train what the run asks for and write its record.

    Raises:
        StudyError: the network does not fit the task, or the disk refused.
    """
    record = (_trial if spec.stage == "trial" else _repeat)(spec, ground)
    store.write_json(ground.folder / "runs" / f"{spec.name}.json", record)
    return record


def _recipe(spec: Spec, ground: Ground, settings: dict[str, float], looks: Looks) -> Recipe:
    request = ground.request
    number = spec.number if spec.stage == "repeat" else 0
    return Recipe(
        settings=settings,
        epochs=int(settings["epochs"]),
        batch_size=ground.plan.batch_size,
        optimizer=request.optimizer,
        seed=seed_of(request.seed, spec.stage, number),
        looks=looks,
    )


def task_of(ground: Ground, split: Split) -> tuple[Task, Preprocess]:
    """Return the rows of a split, prepared by what its training rows say."""
    preprocess = Preprocess.fit(ground.data, split.train)
    task = Task(
        train=rows_of(ground.data, split.train, preprocess),
        validation=rows_of(ground.data, split.validation, preprocess),
        unit=preprocess.target_sd,
        outputs=outputs_of(ground.data),
    )
    return task, preprocess


def outputs_of(data: DataSet) -> int:
    """Return the number of outputs that the task needs."""
    return max(1, len(data.classes))


def rows_of(data: DataSet, rows: np.ndarray[Any, Any], preprocess: Preprocess) -> Rows:
    """Return some rows, prepared."""
    features = (
        data.features[rows] if isinstance(data.features, np.ndarray) else data.features.iloc[rows]
    )
    return Rows(preprocess.transform(features), preprocess.target(data.target[rows]))


def _trial(spec: Spec, ground: Ground) -> dict[str, Any]:
    """Train on the tuning split.

    All trials share that split, its weights and its batch order: they differ by settings alone.
    """
    task, _ = task_of(ground, ground.splits.tuning())
    make = networks.factory(ground.request.network)
    recipe = _recipe(spec, ground, spec.settings[0], ())
    _, progress = train(make, task, recipe, train_curve=False)
    error, loss = progress.validation(progress.chosen)
    return {"spec": asdict(spec), "error": error, "loss": loss, "seconds": progress.seconds}


def _repeat(spec: Spec, ground: Ground) -> dict[str, Any]:
    """Train the shortlist on the split of a repeat, choose by its validation rows, then test.

    Only the chosen network reads the test rows, once.
    """
    split = ground.splits.repeat(spec.number)
    task, preprocess = task_of(ground, split)
    chosen, seconds = _chosen(spec, ground, task)
    network, progress = chosen.network, chosen.progress
    test = rows_of(ground.data, split.test, preprocess)
    out = measure.predict(network, test.x)
    record = {
        "spec": asdict(spec),
        "settings": chosen.settings,
        "split": split.hash,
        "rows": [len(split.train), len(split.validation), len(split.test)],
        "features": int(np.prod(preprocess.shape)),
        **_errors(network, task),
        "test_error": measure.error_of(out, test.y, task.unit),
        "test_loss": measure.mean_loss(out, test.y),
        "test_rows": _row_errors(out, test, ground),
        "seconds": seconds,
        "seconds_per_epoch": progress.seconds / progress.epochs,
        "learning": _learning(progress),
        **_silence(network, task, seed_of(ground.request.seed, "silence", spec.number)),
    }
    if spec.number == 0:
        weights = {name: t.contiguous().clone() for name, t in network.state_dict().items()}
        path = ground.folder / "runs" / f"{spec.name}.safetensors"
        store.write_bytes(path, safetensors.torch.save(weights))
    return record


class _Trained(NamedTuple):
    """A network, and what its validation rows say of it."""

    value: tuple[float, float]
    settings: dict[str, float]
    network: torch.nn.Module
    progress: Progress


def _chosen(spec: Spec, ground: Ground, task: Task) -> tuple[_Trained, float]:
    """Train every setting of the shortlist; return the best network and the seconds of all."""
    make, trained = networks.factory(ground.request.network), []
    for settings in spec.settings:
        recipe = _recipe(spec, ground, settings, _looks(ground.plan.epochs))
        network, progress = train(make, task, recipe, train_curve=True)
        value = progress.validation(progress.chosen)
        trained.append(_Trained(value, settings, network, progress))
    seconds = sum(one.progress.seconds for one in trained)
    return min(trained, key=lambda one: one.value), seconds


def _looks(choices: Looks) -> Looks:
    """Return about a dozen epochs, the choices among them: one grid for runs of any length."""
    stride = max(1, round(choices[-1] / _CURVE_POINTS))
    return tuple(sorted({1, *range(stride, choices[-1] + 1, stride), *choices}))


def _errors(network: torch.nn.Module, task: Task) -> dict[str, float]:
    found = {}
    for name, rows in (("train", task.train), ("validation", task.validation)):
        out = measure.predict(network, rows.x)
        found[f"{name}_error"] = measure.error_of(out, rows.y, task.unit)
        found[f"{name}_loss"] = measure.mean_loss(out, rows.y)
    return found


def _row_errors(out: torch.Tensor, test: Rows, ground: Ground) -> str | None:
    """Return which test rows of a published split are wrong, a bit a row, as hex."""
    if not ground.splits.fixed_test or test.y.is_floating_point():
        return None
    return np.packbits(measure.row_errors(out, test.y).numpy() > 0).tobytes().hex()


def _learning(progress: Progress) -> dict[str, list[float]]:
    """Return the curves up to the epoch whose network is kept."""
    n = progress.looks.index(progress.chosen) + 1
    curves = {name: values[:n] for name, values in progress.curves.items()}
    return {"epochs": [float(epoch) for epoch in progress.looks[:n]], **curves}


def _silence(network: torch.nn.Module, task: Task, seed: int) -> dict[str, Any]:
    x, y = some(task.validation, _SILENCED_ROWS)
    worst = measure.worst_unit(network, x, y, task.unit)
    return {
        "silencing": measure.silencing(network, x, y, task.unit, seed),
        "worst_unit": None if worst is None else list(worst),
    }
