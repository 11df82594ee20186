"""A study from request to report: data, plan, runs, conclusions, files."""

from __future__ import annotations

import copy
import os
import platform
import re
import time
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import torch

from .. import _checks, _report, masks
from .._surgery import thin
from .._version import __version__
from ..data import DataError, Preprocess, load, make_splits
from . import networks, store
from . import plan as plans
from .arms import GROUPS, HIDDEN_RATES, RATE_SCALES, Regularization
from .errors import StudyError
from .execute import execute, named, one_thread
from .plan import Plan, Request, seed_of
from .run import Ground, outputs_of, task_of
from .summary import summarise
from .train import Recipe, set_rates, train

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from ..data import DataSet, Splits
    from .execute import Event
    from .results import Study

_Task = Literal["classification", "regression"] | None
_PACKAGES = ("torch", "numpy", "scikit-learn", "pandas", "optuna")
_CALIBRATION_EPOCHS = 2
_SMALL = 2000


def read(
    source: str | os.PathLike[str],
    *,
    target: str | None,
    task: str | None,
    data_dir: str | os.PathLike[str] | None,
) -> DataSet:
    """Read the data of a study.

    Args:
        source: name or path.
        target: the column to predict.
        task: ``classification``, ``regression``, or None to infer it.
        data_dir: folder of data sets that are not built in.

    Raises:
        StudyError: there is no such data, or it cannot be learned from.
    """
    if task not in (None, "classification", "regression"):
        rule = "classification or regression"
        raise StudyError(_checks.message("The task (--task)", rule, task))
    kind = cast("_Task", task)
    folder = None if data_dir is None else os.fspath(data_dir)
    try:
        return load(os.fspath(source), target=target, task=kind, data_dir=folder)
    except DataError as error:
        raise StudyError(str(error)) from error


def conduct(
    data: DataSet,
    request: Request,
    *,
    jobs: int,
    out: str | os.PathLike[str] | None,
    say: Callable[[str], None],
    report: Callable[[Event], None],
) -> Study:
    """Conduct a study; see :func:`sitout.study`.

    Args:
        data: the rows.
        request: what was asked for.
        jobs: networks trained side by side.
        out: folder, or None for one named after the data.
        say: called with a line of plain text when there is something to know.
        report: called after each training run.

    Raises:
        StudyError: it cannot be done as asked.
        KeyboardInterrupt: Ctrl-C.
    """
    plans.check(request)
    if isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1:
        raise StudyError(_checks.message("`jobs` (--jobs)", "1 or more", jobs))
    try:
        splits = make_splits(data, seed=request.seed, train_size=request.train_size)
    except DataError as error:
        raise StudyError(str(error)) from error
    folder = Path(out) if out is not None else Path(f"sitout-study-{_slug(data.name)}")
    for note in data.notes:
        say(note)
    with store.only_one(folder):
        ground = _ground(request, data, splits, folder, jobs, say)
        say(_announcement(ground, jobs))
        began = time.monotonic()
        finished = execute(ground, jobs, report)
        study = summarise(ground, finished)
        _write(ground, study)
    say(f"Finished in {plans.clock(time.monotonic() - began)}.")
    return study


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", Path(name).stem).strip("-.") or "data"


def versions() -> dict[str, str]:
    """Return the versions of what can change a number."""
    return {
        "sitout": __version__,
        "mask specification": str(masks.SPEC_VERSION),
        "python": platform.python_version(),
        **{name: version(name) for name in _PACKAGES},
    }


def _ground(
    request: Request,
    data: DataSet,
    splits: Splits,
    folder: Path,
    jobs: int,
    say: Callable[[str], None],
) -> Ground:
    """Return what the runs share, with the plan of an earlier start or a new one."""
    small = len(splits.repeat(0).train) < _SMALL
    batch_size = request.batch_size or (32 if small else 128)
    ground = Ground(data, splits, request, Plan(1, (1,), batch_size), folder)
    request = replace(request, architecture=_check_network(ground, say))
    ground = replace(ground, request=request)
    plan = plans.kept(folder, request)
    if plan is None:
        seconds = 0.0
        if request.trials is None or request.epochs is None:
            say("Timing the network ...")
            seconds = _seconds_per_epoch(ground)
        plan = plans.choose(request, batch_size, seconds, jobs)
        plans.keep(folder, request, plan)
    return replace(ground, plan=plan)


def _check_network(ground: Ground, say: Callable[[str], None]) -> str:
    """Build the network twice: it must fit the task, start anew, and have sites where an arm needs.

    Returns:
        What identifies the network: a resumed study must not go on with another one.

    Raises:
        StudyError: it does not.
    """
    request, make = ground.request, networks.factory(ground.request.network)
    shape = Preprocess.fit(ground.data, ground.splits.tuning().train).shape
    with one_thread():
        first, second = (networks.seeded(make, shape, outputs_of(ground.data)) for _ in range(2))
        networks.check_independent(first, second)
        rates = networks.rates(first)
        wants = [arm for arm in request.arms if "dropout" in arm or "thinned" in arm]
        if wants and not networks.is_built_in(request.network) and not any(rates):
            raise StudyError(
                f"The network must have dropout layers with p > 0 for the arm {wants[0]!r}. "
                f"{request.network} has {len(rates)} dropout layers, none of them active. "
                "Give them the rates that you would use, or leave the arm out of --arms."
            )
        _check_chains(request, first, torch.zeros(2, *shape))
        if networks.stays_random(second, shape):
            say(
                "The network stays random in training when all its dropout layers are at 0, so in "
                "every arm, none too: a function such as F.dropout, or the dropout of an attention "
                "or recurrent layer. Put dropout layers in their place."
            )
        return networks.fingerprint(first)


def _check_chains(request: Request, network: torch.nn.Module, rows: Tensor) -> None:
    """Refuse an arm that thins where there is nothing to thin, or too few units for a rate.

    Raises:
        StudyError: there is not.
    """
    wants = [arm for arm in request.arms if "thinned" in arm]
    if not wants:
        return
    choices = [Regularization(rate_scale=scale) for scale in RATE_SCALES]
    if networks.is_built_in(request.network):
        choices = [Regularization(hidden_rate=rate) for rate in HIDDEN_RATES]
    try:
        for how in choices:
            sites = []
            for groups in GROUPS:
                trial = copy.deepcopy(network)
                set_rates(trial, how, rows)
                change = thin(trial, groups)
                sites.append(change.sites)
                with torch.no_grad():
                    change.model.train()(rows)
            if sites[0] != sites[-1]:
                raise ValueError("; ".join(change.unreached))
    except ValueError as error:
        raise StudyError(
            f"The network must be one that can be thinned for the arm {wants[0]!r}. {error}"
        ) from error


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
        ground.plan.batch_size,
        ground.request.optimizer,
        seed_of(ground.request.seed, "calibration", 0),
        (),
    )
    with one_thread(), named("first training run"):
        _, progress = train(
            networks.factory(ground.request.network), task, recipe, train_curve=False
        )
    return progress.seconds / progress.epochs


def _announcement(ground: Ground, jobs: int) -> str:
    request, plan = ground.request, ground.plan
    split = ground.splits.repeat(0)
    shortlist = min(plans.SHORTLIST, plan.trials)
    return (
        f"{request.data}: {len(split.train)} training, {len(split.validation)} validation and "
        f"{len(split.test)} test rows.\n{len(request.arms)} arms x ({plan.trials} trials + "
        f"{request.repeats} repeats of {shortlist}) = {plans.trained(request, plan)} networks "
        f"({request.network}, at most {plan.epochs[-1]} epochs), {jobs} at a time,\n"
        f"into {ground.folder}/"
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
            "settings": arm.chosen[0],
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
