"""One UCI set from its file to its rows: choose p and tau, train again, judge; and go on later."""

from __future__ import annotations

import datetime
import json
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from speed.setting import machine, versions
from uci_passes import Passes, Score, gaussian_ll
from uci_sets import RATES, SETS, Part, halves, part, read, splits
from uci_stack import Member, Stack

CHOOSE, FINAL = 0, 1
STAGES = ("choose", "final")


@dataclass(frozen=True)
class Plan:
    """What a row depends on beside its set and split.

    Attributes:
        scale: times the published number of epochs.
        passes: both for the choice and for the test.
        seed: of masks, orders and initial weights.
        rates: which of the published p are tried, by position.
        taus: which of the set's tau are tried, by position.
    """

    scale: float = 1.0
    passes: int = 10_000
    seed: int = 0
    rates: tuple[int, ...] = (0, 1, 2, 3)
    taus: tuple[int, ...] = (0, 1, 2)

    def epochs(self, name: str) -> int:
        """Return the epochs of each run on a set."""
        return max(1, round(self.scale * SETS[name].epochs))

    def members(self, name: str, split: int, at: int) -> list[Member]:
        """Return the settings that are tried on a split, the ``at``-th part of a stack."""
        grid = [(i, j) for i in self.rates for j in self.taus]
        taus = SETS[name].taus
        return [Member(12 * split + 3 * i + j, at, RATES[i], taus[j]) for i, j in grid]

    def fields(self) -> dict[str, Any]:
        """Return what rows of this plan are known by, as a file gives it back."""
        return json.loads(json.dumps(asdict(self)))


class Store:
    """Rows that are finished, on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rows(self) -> list[dict[str, Any]]:
        """Return all rows."""
        return json.loads(self.path.read_text()) if self.path.exists() else []

    def missing(self, name: str, plan: Plan, count: int) -> list[int]:
        """Return which of the first splits have no row yet."""
        key = {"set": name, "plan": plan.fields()}
        have = {row["split"] for row in self.rows() if key.items() <= row.items()}
        return [split for split in range(min(count, SETS[name].splits)) if split not in have]

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Add rows, one a line."""
        lines = ",\n".join(json.dumps(row) for row in self.rows() + rows)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write(self.path, lambda new: new.write_text(f"[\n{lines}\n]\n"))


def write(path: Path, save: Callable[[Path], object]) -> None:
    """Write a file in one piece: it is the old one or the new one, whenever the process ends."""
    new = path.with_name(path.name + ".new")
    save(new)
    new.replace(path)


class Keeper:
    """Keeps the state of a run on disk: every few minutes, and when it is told to stop.

    Args:
        path: of the file.
        run: what makes the run this one; a file of another run is an error.
        every: seconds.
    """

    def __init__(self, path: Path, run: dict[str, Any], every: float = 180.0) -> None:
        self.path, self.run, self.every = path, run, every
        self.told, self.last = 0, time.monotonic()

    def __enter__(self) -> Keeper:
        both = (signal.SIGINT, signal.SIGTERM)
        self.before = {each: signal.signal(each, self._tell) for each in both}
        return self

    def __exit__(self, *error: object) -> None:
        for each, handler in self.before.items():
            signal.signal(each, handler)
        if self.told and error[0] is None:  # told when there was nothing left to keep
            raise SystemExit(128 + self.told)

    def _tell(self, number: int, _: object) -> None:
        self.told = number

    def held(self) -> dict[str, Any]:
        """Return the state that was kept last, or an empty one."""
        if not self.path.exists():
            return {}
        held = torch.load(self.path, weights_only=True)
        if held["run"] != self.run:
            told = f"{self.path} is of another run. Go on with the same options, or remove it."
            raise SystemExit(told)
        return held

    def look(self, state: Callable[[], dict[str, Any]]) -> None:
        """Keep the state if it is time to, and leave if told to."""
        if self.told or time.monotonic() - self.last > self.every:
            held = {**state(), "run": self.run}
            write(self.path, lambda new: torch.save(held, new))
            self.last = time.monotonic()
        if self.told:
            raise SystemExit(128 + self.told)


def parts_of(name: str, wanted: Sequence[int]) -> tuple[list[Part], list[Part]]:
    """Return the data of the first stage and of the second, for each split."""
    x, y = read(name)
    every = splits(len(y), SETS[name].splits)
    choose = [part(x, y, *halves(every[split][0]), torch.float32) for split in wanted]
    return choose, [part(x, y, *every[split], torch.float32) for split in wanted]


class Work:
    """All splits of a set that are wanted, from the first weights to their rows.

    Args:
        name: of the set.
        wanted: splits.
        plan: settings.
        keeper: of the state.
    """

    def __init__(self, name: str, wanted: list[int], plan: Plan, keeper: Keeper) -> None:
        self.name, self.wanted, self.plan, self.keeper = name, wanted, plan, keeper
        self.held, self.said = keeper.held(), time.monotonic()
        self.spent, self.begin = self.held.get("seconds", 0.0), time.process_time()
        self.parts = parts_of(name, wanted)

    def seconds(self) -> float:
        """Return the processor time that it took, before interruptions too."""
        return self.spent + time.process_time() - self.begin

    def rows(self) -> list[dict[str, Any]]:
        """Do all that is left to do, and return the row of each split."""
        tried = [self.plan.members(self.name, split, at) for at, split in enumerate(self.wanted)]
        chosen = self.held.get("chosen")
        if chosen is None:
            scores = self._stage(CHOOSE, list(chain(*tried)), None)
            best = [max(each, key=lambda member: scores[member.number].ll) for each in tried]
            chosen = {one.number: scores[one.number]._asdict() for one in best}
        members = [one for each in tried for one in each if one.number in chosen]
        final = self._stage(FINAL, members, chosen)
        return [self._row(one, chosen[one.number], final[one.number]) for one in members]

    def _stage(self, stage: int, members: list[Member], chosen: Any) -> dict[int, Score]:
        """Train and judge all members of a stage."""
        place = 2 * list(SETS).index(self.name) + stage
        stack = Stack(members, self.parts[stage], SETS[self.name].hidden, place, self.plan.seed)
        passes = Passes(stack)
        if self.held.get("stage") == STAGES[stage]:
            stack.load(self.held["stack"])
            passes.load(self.held["passes"])

        def state() -> dict[str, Any]:
            now = {"stage": STAGES[stage], "chosen": chosen, "seconds": self.seconds()}
            return {**now, "stack": stack.state(), "passes": passes.state()}

        self._until(stack, "epoch", self.plan.epochs(self.name), state)
        self._until(passes, "done", self.plan.passes, state)
        return passes.scores()

    def _until(self, what: Any, count: str, end: int, state: Callable[[], Any]) -> None:
        """Advance to an end; say how far it is twice a minute."""
        while getattr(what, count) < end:
            what.advance(end)
            if time.monotonic() - self.said > 30.0:
                self.said = time.monotonic()
                said = f"{self.name}: {type(what).__name__.lower()} {getattr(what, count)} of {end}"
                print(f"{said}, {self.seconds():.0f} s", flush=True)
            self.keeper.look(state)

    def _row(self, member: Member, validation: dict[str, float], test: Score) -> dict[str, Any]:
        split = member.number // 12
        fitted = validation["scaled_rmse"] ** -2
        part = self.parts[FINAL][self.wanted.index(split)]
        return {
            "set": self.name,
            "split": split,
            "p": member.p,
            "tau": member.tau,
            "validation_ll": validation["ll"],
            **test._asdict(),
            "fitted_tau": fitted,
            "fitted_ll": gaussian_ll(test.scaled_rmse, fitted),
            "rows": [len(part.y), len(part.judge_y)],
            "epochs": self.plan.epochs(self.name),
            "passes": self.plan.passes,
            "seconds": round(self.seconds() / len(self.wanted), 2),
            "together": len(self.wanted),
            "plan": self.plan.fields(),
            "threads": torch.get_num_threads(),
            "machine": machine(),
            "versions": versions(),
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        }


def run_set(name: str, plan: Plan, count: int, store: Store, every: float = 180.0) -> None:
    """Train what is missing of the first splits of a set, and store its rows."""
    wanted = store.missing(name, plan, count)
    if not wanted:
        return
    about = {"torch": str(torch.__version__), "threads": torch.get_num_threads()}
    run = {**plan.fields(), "set": name, "splits": wanted, **about}
    path = store.path.with_name(f"{store.path.stem}-{name}.ckpt")
    with Keeper(path, run, every) as keeper:
        store.add(Work(name, wanted, plan, keeper).rows())
        path.unlink(missing_ok=True)
