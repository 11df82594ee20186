"""One run of a study, in whatever process: from its name to its record on disk."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.torch
import torch

from ..data import Preprocess
from . import measure, networks, store
from .plan import TUNING_DRAWS, seed_of
from .train import Progress, Recipe, Rows, Task, some, train

if TYPE_CHECKING:
    from pathlib import Path

    from ..data import DataSet, Split, Splits
    from .plan import Plan, Request

_CURVE_POINTS = 20
_SILENCED_ROWS = 2000


@dataclass(frozen=True)
class Spec:
    """Which run.

    Attributes:
        stage: ``trial`` or ``repeat``.
        arm: its name.
        number: of the trial or the repeat.
        settings: what the arm trains with.
        epochs: at most.
    """

    stage: str
    arm: str
    number: int
    settings: dict[str, float]
    epochs: int

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
    """Train one network and write its record.

    Raises:
        StudyError: the network does not fit the task, or the disk refused.
    """
    record = (_trial if spec.stage == "trial" else _repeat)(spec, ground)
    store.write_json(ground.folder / "runs" / f"{spec.name}.json", record)
    return record


def _recipe(spec: Spec, ground: Ground, number: int, looks: tuple[int, ...]) -> Recipe:
    request = ground.request
    return Recipe(
        settings=spec.settings,
        epochs=spec.epochs,
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
    """Train on each tuning split and average; the best of the choices of epochs counts.

    All trials share these splits, their weights and batch orders: they differ by their settings
    alone.
    """
    choices = ground.plan.epochs
    draws = [_tuned(spec, ground, draw) for draw in range(TUNING_DRAWS)]
    mean = np.mean([seen for seen, _ in draws], axis=0).tolist()
    (error, loss), epochs = min(zip(mean, choices[-len(mean) :], strict=True))
    return {
        "spec": asdict(spec),
        "epochs": epochs,
        "error": error,
        "loss": loss,
        "seconds": sum(seconds for _, seconds in draws),
    }


def _tuned(spec: Spec, ground: Ground, draw: int) -> tuple[list[tuple[float, float]], float]:
    """Return the validation error and loss at each choice of epochs, and the seconds spent.

    Early stopping makes the choice itself: it has one error and loss, those of its best epoch.
    """
    task, _ = task_of(ground, ground.splits.tuning(draw))
    recipe = _recipe(spec, ground, draw, ground.plan.epochs)
    _, progress = train(networks.factory(ground.request.network), task, recipe, train_curve=False)
    curves = progress.curves
    seen = list(zip(curves["validation_error"], curves["validation_loss"], strict=True))
    return [min(seen)] if "patience" in spec.settings else seen, progress.seconds


def _repeat(spec: Spec, ground: Ground) -> dict[str, Any]:
    """Train on the split of a repeat and read its test rows, once."""
    split = ground.splits.repeat(spec.number)
    task, preprocess = task_of(ground, split)
    recipe = _recipe(spec, ground, spec.number, _looks(spec.epochs))
    network, progress = train(
        networks.factory(ground.request.network), task, recipe, train_curve=True
    )
    test = rows_of(ground.data, split.test, preprocess)
    out = measure.predict(network, test.x)
    record = {
        "spec": asdict(spec),
        "split": split.hash,
        "rows": [len(split.train), len(split.validation), len(split.test)],
        "features": int(np.prod(preprocess.shape)),
        **_errors(network, task),
        "test_error": measure.error_of(out, test.y, task.unit),
        "test_loss": float(measure.loss_of(out, test.y)),
        "test_rows": _row_errors(out, test, ground),
        "seconds": progress.seconds,
        "epochs": progress.epochs,
        "learning": _learning(progress, recipe.looks),
        **_silence(network, task, recipe),
    }
    if spec.number == 0:
        weights = {name: t.contiguous() for name, t in network.state_dict().items()}
        path = ground.folder / "runs" / f"{spec.name}.safetensors"
        store.write_bytes(path, safetensors.torch.save(weights))
    return record


def _looks(epochs: int) -> tuple[int, ...]:
    """Return about twenty epochs, the last among them."""
    stride = max(1, round(epochs / _CURVE_POINTS))
    return tuple(sorted({*range(stride, epochs + 1, stride), 1, epochs}))


def _errors(network: torch.nn.Module, task: Task) -> dict[str, float]:
    found = {}
    for name, rows in (("train", task.train), ("validation", task.validation)):
        out = measure.predict(network, rows.x)
        found[f"{name}_error"] = measure.error_of(out, rows.y, task.unit)
        found[f"{name}_loss"] = float(measure.loss_of(out, rows.y))
    return found


def _row_errors(out: torch.Tensor, test: Rows, ground: Ground) -> str | None:
    """Return which test rows of a published split are wrong, a bit a row, as hex."""
    if not ground.splits.fixed_test or test.y.is_floating_point():
        return None
    return np.packbits(measure.row_errors(out, test.y).numpy() > 0).tobytes().hex()


def _learning(progress: Progress, looks: tuple[int, ...]) -> dict[str, list[float]]:
    """Return the curves at ``looks``; early stopping looks at the validation rows more often."""
    kept = [at for at, epoch in enumerate(progress.looks) if epoch in looks]
    curves = {
        name: values if name.startswith("train") else [values[at] for at in kept]
        for name, values in progress.curves.items()
    }
    return {"epochs": [progress.looks[at] for at in kept], **curves}


def _silence(network: torch.nn.Module, task: Task, recipe: Recipe) -> dict[str, Any]:
    x, y = some(task.validation, _SILENCED_ROWS)
    worst = measure.worst_unit(network, x, y, task.unit)
    return {
        "silencing": measure.silencing(network, x, y, task.unit, recipe.seed),
        "worst_unit": None if worst is None else list(worst),
    }
