"""A study from request to report: data, plan, runs, conclusions, files."""

from __future__ import annotations

import os
import platform
import re
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .. import __version__, _report, masks
from ..data import DataError, DataSet, Preprocess, load, make_splits
from . import networks, plan as plans, store
from .errors import StudyError
from .execute import execute, one_thread
from .plan import Plan, Request
from .run import Ground, outputs_of, seed_of, task_of
from .summary import summarise
from .train import Recipe, train

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .execute import Event
    from .results import Study

_PACKAGES = ("torch", "numpy", "scikit-learn", "pandas", "optuna")
_CALIBRATION_EPOCHS = 2
_SMALL = 2000


def conduct(
    data: str | os.PathLike[str] | DataSet,
    *,
    target: str | None,
    task: str | None,
    arms: Sequence[str],
    repeats: int,
    budget: str | float,
    jobs: int,
    out: str | os.PathLike[str] | None,
    network: str,
    train_size: int | None,
    data_dir: str | os.PathLike[str] | None,
    trials: int | None,
    epochs: int | None,
    batch_size: int | None,
    optimizer: str,
    seed: int,
    say: Callable[[str], None],
    report: Callable[[Event], None],
) -> Study:
    """Conduct a study; see :func:`sitout.study`.

    Args:
        say: called with a line of plain text when there is something to know.
        report: called after each training run.

    Raises:
        StudyError: it cannot be done as asked.
        StudyInterrupted: Ctrl-C.
    """
    try:
        loaded = data if isinstance(data, DataSet) else load(
            os.fspath(data), target=target, task=task, data_dir=data_dir  # type: ignore[arg-type]
        )
        splits = make_splits(loaded, seed=seed, train_size=train_size)
    except DataError as error:
        raise StudyError(str(error)) from error
    n_train = len(splits.repeat(0).train)
    request = Request(
        data=loaded.name,
        fingerprint=loaded.fingerprint,
        target=loaded.target_name,
        task=loaded.task,
        network=network,
        arms=tuple(arms),
        repeats=repeats,
        budget=plans.seconds_of(budget),
        train_size=train_size,
        trials=trials,
        epochs=epochs,
        batch_size=(32 if n_train < _SMALL else 128) if batch_size is None else batch_size,
        optimizer=optimizer,
        seed=seed,
        versions=_versions(),
    )
    plans.check(request)
    if isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1:
        raise StudyError(f"`jobs` (--jobs) must be 1 or more. Got {jobs!r}.")
    folder = Path(out) if out is not None else Path(f"sitout-study-{_slug(loaded.name)}")
    ground = _ground(request, loaded, splits, folder, jobs, say)
    for note in loaded.notes:
        say(note)
    say(_announcement(ground, jobs))
    began = time.monotonic()
    finished = execute(ground, jobs, report)
    study = summarise(ground, finished)
    _write(ground, study)
    say(f"Finished in {plans.clock(time.monotonic() - began)}.")
    return study


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", Path(name).stem).strip("-.") or "data"


def _versions() -> dict[str, str]:
    return {
        "sitout": __version__,
        "mask specification": str(masks.SPEC_VERSION),
        "python": platform.python_version(),
        **{name: version(name) for name in _PACKAGES},
    }


def _ground(
    request: Request,
    data: DataSet,
    splits: Any,
    folder: Path,
    jobs: int,
    say: Callable[[str], None],
) -> Ground:
    """Return what the runs share, with the plan of an earlier start or a new one."""
    _check_network(request, Ground(data, splits, request, Plan(1, (1,)), folder))
    plan = plans.kept(folder, request)
    if plan is None:
        seconds = 0.0
        if request.trials is None or request.epochs is None:
            say("Timing the network ...")
            seconds = _seconds_per_epoch(Ground(data, splits, request, Plan(1, (1,)), folder))
        plan = plans.choose(request, seconds, jobs)
        plans.keep(folder, request, plan)
    return Ground(data, splits, request, plan, folder)


def _check_network(request: Request, ground: Ground) -> None:
    """Build the network once: it must fit the task and have sites where an arm needs them.

    Raises:
        StudyError: it does not.
    """
    shape = Preprocess.fit(ground.data, ground.splits.tuning().train).shape
    with one_thread():
        network = networks.build(
            networks.factory(request.network), shape, outputs_of(ground.data)
        )
    rates = [float(site.p) for site in networks.sites(network).values()]  # type: ignore[arg-type]
    wants = [arm for arm in request.arms if "dropout" in arm]
    if wants and not networks.is_built_in(request.network) and not any(rates):
        raise StudyError(
            f"The network must have dropout layers with p > 0 for the arm {wants[0]!r}. "
            f"{request.network} has {len(rates)} dropout layers, none of them active. "
            "Give them the rates that you would use, or leave the arm out of --arms."
        )


def _seconds_per_epoch(ground: Ground) -> float:
    """Train the dearest arm for a moment and return its seconds per epoch."""
    task, _ = task_of(ground, ground.splits.tuning())
    arm = "dropout" if any("dropout" in arm for arm in ground.request.arms) else "none"
    settings = {"learning_rate": 1e-3}
    if arm == "dropout":
        settings |= {"input_rate": 0.1, "hidden_rate": 0.3, "rate_scale": 1.0}
    recipe = Recipe(
        settings,
        _CALIBRATION_EPOCHS,
        ground.request.batch_size,
        ground.request.optimizer,
        seed_of(ground.request, "calibration", 0),
        (),
    )
    with one_thread():
        _, progress = train(
            networks.factory(ground.request.network), task, recipe, train_curve=False
        )
    return progress.seconds / progress.epochs


def _announcement(ground: Ground, jobs: int) -> str:
    request, plan = ground.request, ground.plan
    split = ground.splits.repeat(0)
    return (
        f"{request.data}: {len(split.train)} training, {len(split.validation)} validation and "
        f"{len(split.test)} test rows. {len(request.arms)} arms x ({plan.trials} trials + "
        f"{request.repeats} repeats) = {plans.runs(request, plan)} networks ({request.network}, "
        f"at most {plan.epochs[-1]} epochs), {jobs} at a time, into {ground.folder}/"
    )


def _write(ground: Ground, study: Study) -> None:
    """Write the reports and the trained network."""
    folder = ground.folder
    store.write_bytes(folder / "report.json", study.to_json().encode())
    store.write_bytes(folder / "report.html", _report.html(study).encode())
    split = ground.splits.repeat(0)
    preprocess = Preprocess.fit(ground.data, split.train)
    arm = next(arm for arm in study.arms if arm.name == study.best)
    weights = folder / "runs" / f"{arm.name}-repeat-00.safetensors"
    if not weights.exists():
        raise StudyError(f"{weights} must be there. Delete its .json too and run again.")
    store.write_bytes(folder / "best" / "model.safetensors", weights.read_bytes())
    store.write_json(folder / "best" / "preprocess.json", preprocess.to_dict())
    store.write_json(
        folder / "best" / "settings.json",
        {
            "arm": arm.name,
            "settings": arm.settings,
            "network": ground.request.network,
            "input_shape": list(preprocess.shape),
            "outputs": outputs_of(ground.data),
            "task": ground.data.task,
            "target": ground.data.target_name,
            "classes": list(ground.data.classes),
            "validation_error": arm.validation_error.values[0],
            "validation_loss": arm.validation_loss.values[0],
            "request": {**asdict(ground.request), "arms": list(ground.request.arms)},
        },
    )
