"""What a study will do, decided before the first run and kept: resuming decides nothing anew."""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from .. import _checks
from . import networks
from .arms import KNOWN, LEARNING_RATES
from .errors import StudyError
from .store import read_json, write_json

if TYPE_CHECKING:
    from pathlib import Path

MIN_REPEATS = 8
SHORTLIST = 2
"""Of an arm's trials so many settings go into the repeats, each of which chooses among them."""
_LADDER = (60, 30, 15)
_TRIALS = (4, 16)
_UNITS = {"s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True)
class Request:
    """What was asked for: the same request in the same folder resumes a study.

    Attributes:
        data: name or path.
        fingerprint: of the data's content.
        target: the target's column.
        task: ``classification`` or ``regression``.
        network: ``mlp:WIDTHxLAYERS`` or ``package.module:factory``.
        arms: in order.
        repeats: number of paired repeats.
        budget: seconds of wall time that the plan is made for.
        train_size: rows to train on, or None for all.
        trials: settings per arm that tuning tries, or None to let the budget decide.
        epochs: at most so many, or None to let the budget decide.
        batch_size: rows a step, or None to let the number of training rows decide.
        optimizer: ``sgd`` or ``adam``.
        seed: of everything.
        versions: of what can change a number.
        architecture: what identifies the network behind its name; known once it has been built.
    """

    data: str
    fingerprint: str
    target: str
    task: str
    network: str
    arms: tuple[str, ...]
    repeats: int
    budget: float
    train_size: int | None
    trials: int | None
    epochs: int | None
    batch_size: int | None
    optimizer: str
    seed: int
    versions: dict[str, str]
    architecture: str = ""


@dataclass(frozen=True)
class Plan:
    """What the request leaves open.

    Attributes:
        trials: settings per arm that tuning tries.
        epochs: choices for the number of epochs, ascending, the same for all arms.
        batch_size: rows a step.
    """

    trials: int
    epochs: tuple[int, ...]
    batch_size: int


def seconds_of(budget: str | float) -> float:
    """Return a duration in seconds.

    Args:
        budget: as ``90s``, ``10m``, ``1h30m``; or a number of seconds.

    Raises:
        StudyError: it is no duration.
    """
    if isinstance(budget, int | float) and not isinstance(budget, bool) and 0 < budget < math.inf:
        return float(budget)
    parts = re.findall(r"(\d+(?:\.\d+)?)([smh])", str(budget))
    total = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if "".join(number + unit for number, unit in parts) != str(budget) or total <= 0:
        rule = "a time such as 90s, 10m or 1h30m"
        raise StudyError(_checks.message("The budget (--budget)", rule, budget))
    return total


def check(request: Request) -> None:
    """Refuse what cannot be done, before anything is trained.

    Raises:
        StudyError: an argument is out of range.
    """
    for arm in request.arms:
        try:
            _checks.choice(arm, KNOWN, "An arm (--arms)")
        except ValueError as error:
            raise StudyError(str(error)) from None
    if len(set(request.arms)) < len(request.arms) or not request.arms:
        raise StudyError(_checks.message("The arms (--arms)", "named once each", request.arms))
    if request.optimizer not in LEARNING_RATES:
        known = " or ".join(LEARNING_RATES)
        raise StudyError(_checks.message("The optimizer (--optimizer)", known, request.optimizer))
    bounds = {"repeats": MIN_REPEATS, "trials": 1, "epochs": 1, "batch_size": 1}
    for name, low in bounds.items():
        value = getattr(request, name)
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int) or value < low
        ):
            option = "--" + name.replace("_", "-")
            raise StudyError(_checks.message(f"`{name}` ({option})", f"{low} or more", value))
    networks.factory(request.network)


def runs(request: Request, plan: Plan) -> int:
    """Return how many runs the study has: trials and repeats."""
    return len(request.arms) * (plan.trials + request.repeats)


def trained(request: Request, plan: Plan) -> int:
    """Return how many networks the study trains."""
    return len(request.arms) * (plan.trials + request.repeats * min(SHORTLIST, plan.trials))


def choose(request: Request, batch_size: int, seconds_per_epoch: float, jobs: int) -> Plan:
    """Spend the budget: on epochs first, then on trials.

    Args:
        request: what was asked for.
        batch_size: rows a step.
        seconds_per_epoch: one network takes so long, measured.
        jobs: networks trained side by side.

    Raises:
        StudyError: the budget is too small for the smallest honest plan.
    """
    arms, low, high = len(request.arms), *_TRIALS
    needed = 0.0
    for epochs in (request.epochs,) if request.epochs else _LADDER:
        run = max(seconds_per_epoch, 1e-6) * epochs * 1.15
        repeats = request.repeats * min(SHORTLIST, request.trials or SHORTLIST)
        affordable = request.budget * jobs * 0.9 / run / arms - repeats
        trials = request.trials or min(int(affordable), high)
        trained = repeats + (request.trials or low)
        needed = run * arms * trained / jobs / 0.9
        if (request.trials and request.epochs) or (needed <= request.budget and trials >= 1):
            choices = {max(1, epochs // 4), max(1, epochs // 2), epochs}
            return Plan(trials, tuple(sorted(choices)), batch_size)
    raise StudyError(
        f"The budget (--budget) must be enough for {request.repeats} repeats and "
        f"{request.trials or low} trials of {arms} arms: about {clock(needed)}. Got "
        f"{clock(request.budget)}. Give more, or fewer --arms, a smaller --train-size or --net."
    )


def seed_of(seed: int, purpose: str, number: int) -> int:
    """Return a 32-bit seed derived from the study's: unrelated for unrelated purposes."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}/{number}".encode()).digest()[:4])


def clock(seconds: float) -> str:
    """Return a duration for people: ``45s``, ``3m20s``, ``2h05m``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}m{rest:02}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02}m"


def kept(folder: Path, request: Request) -> Plan | None:
    """Return the plan that an earlier start of the same study made in ``folder``, if any.

    Raises:
        StudyError: the folder holds another study.
    """
    found = read_json(folder / "plan.json")
    if found is None:
        return None
    asked, now = found["request"], _plain(request)
    changed = [name for name in now if asked.get(name) != now[name]]
    if changed:
        listed = "; ".join(
            f"{name}: {asked.get(name)!r} there, {now[name]!r} now" for name in changed
        )
        raise StudyError(
            f"{folder} must hold no other study. It holds one with {listed}. "
            "Choose another --out, or delete the folder to start anew."
        )
    plan = Plan(**found["plan"])
    return replace(plan, epochs=tuple(plan.epochs))


def keep(folder: Path, request: Request, plan: Plan) -> None:
    """Write the plan down, before the first run.

    Raises:
        StudyError: the disk refused.
    """
    write_json(folder / "plan.json", {"request": _plain(request), "plan": asdict(plan)})


def _plain(request: Request) -> dict[str, Any]:
    return {**asdict(request), "arms": list(request.arms)}
