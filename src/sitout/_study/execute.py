"""All runs of a study, in one process or side by side; what is on disk is not run again."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections import deque
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from loky import ProcessPoolExecutor
from loky.process_executor import BrokenProcessPool

from .errors import StudyError
from .networks import is_built_in
from .plan import SHORTLIST, runs, trained
from .run import Ground, Spec, run
from .tuning import Tuner

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

    Record = dict[str, Any]
    Chain = Generator[list[Spec], list[Record], list[Record]]


@dataclass(frozen=True)
class Event:
    """A run has finished.

    Attributes:
        name: of the run.
        error: its error, on test rows or, in tuning, validation rows.
        done: runs that have finished.
        total: runs of the study.
        resumed: whether it had finished before this start.
        seconds_left: estimate; None while there is none.
    """

    name: str
    error: float
    done: int
    total: int
    resumed: bool
    seconds_left: float | None


@dataclass
class ArmRuns:
    """What became of an arm's runs.

    Attributes:
        name: of the arm.
        trials: records, in order.
        repeats: records, in order.
    """

    name: str
    trials: list[Record] = field(default_factory=list)
    repeats: list[Record] = field(default_factory=list)


def _chain(ground: Ground, arm: ArmRuns) -> Chain:
    """Yield the runs that an arm needs next, and take their records: trials, then repeats."""
    tuner = Tuner(
        ground.folder / "trials.sqlite3",
        arm.name,
        ground.request,
        ground.plan,
        built_in=is_built_in(ground.request.network),
    )
    for number in range(ground.plan.trials):
        settings = tuner.settings(number)
        (record,) = yield [Spec("trial", arm.name, number, [settings])]
        tuner.tell(record["error"], record["loss"])
        arm.trials.append(record)
    ranked = sorted(arm.trials, key=lambda record: (record["error"], record["loss"]))
    shortlist = [record["spec"]["settings"][0] for record in ranked[:SHORTLIST]]
    arm.repeats = yield [
        Spec("repeat", arm.name, number, shortlist) for number in range(ground.request.repeats)
    ]
    return arm.repeats


def execute(ground: Ground, jobs: int, report: Callable[[Event], None]) -> list[ArmRuns]:
    """Run everything that is not on disk yet.

    Args:
        ground: what all runs share.
        jobs: processes; 1 stays in this one.
        report: called after each run.

    Raises:
        StudyError: a run failed.
        KeyboardInterrupt: Ctrl-C; its text says what is on disk.
    """
    arms = [ArmRuns(name) for name in ground.request.arms]
    count = _Count(ground, jobs, report)
    try:
        with _pool(ground, jobs) as pool:
            _drive([_chain(ground, arm) for arm in arms], ground, pool, count)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"Stopped. {count.done} of {count.total} runs are on disk in {ground.folder}; "
            "the same command resumes."
        ) from None
    return arms


def _drive(
    chains: list[Chain],
    ground: Ground,
    pool: _Inline | _Processes,
    count: _Count,
) -> None:
    """Keep every chain supplied with records until all have ended."""
    waiting: dict[Future[Record], tuple[_Step, int]] = {}

    def advance(chain: Chain, records: list[Record] | None) -> None:
        while True:
            try:
                specs = next(chain) if records is None else chain.send(records)
            except StopIteration:
                return
            step = _Step(chain, [ground.record_of(spec) for spec in specs])
            for at, (spec, known) in enumerate(zip(specs, step.records, strict=True)):
                if known is None:
                    waiting[pool.submit(spec)] = (step, at)
                else:
                    count.add(spec, known, resumed=True)
            if None in step.records:
                return
            records = step.complete()

    for chain in chains:
        advance(chain, None)
    while waiting:
        for future in pool.finished(waiting):
            step, at = waiting.pop(future)
            record = future.result()
            step.records[at] = record
            count.add(Spec(**record["spec"]), record, resumed=False)
            if None not in step.records:
                advance(step.chain, step.complete())


@dataclass
class _Step:
    """What a chain waits for."""

    chain: Chain
    records: list[Record | None]

    def complete(self) -> list[Record]:
        return [record for record in self.records if record is not None]


class _Count:
    """Counts runs and estimates the time left."""

    def __init__(self, ground: Ground, jobs: int, report: Callable[[Event], None]) -> None:
        self.total = runs(ground.request, ground.plan)
        self.jobs, self.report = jobs, report
        self.done = self.fresh = self.weight = 0
        self.ahead = trained(ground.request, ground.plan)
        self.start = time.monotonic()

    def add(self, spec: Spec, record: Record, *, resumed: bool) -> None:
        networks = len(spec.settings)
        self.done += 1
        self.ahead -= networks
        self.fresh += not resumed
        self.weight += 0 if resumed else networks
        left = None
        if self.fresh >= 2 * self.jobs:
            left = (time.monotonic() - self.start) / self.weight * self.ahead
        error = record["error"] if spec.stage == "trial" else record["test_error"]
        self.report(Event(spec.name, error, self.done, self.total, resumed, left))


class _Inline:
    """Runs in this process, one at a time, when a result is waited for."""

    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        self.queue: deque[tuple[Future[Record], Spec]] = deque()

    def submit(self, spec: Spec) -> Future[Record]:
        future: Future[Record] = Future()
        self.queue.append((future, spec))
        return future

    def finished(self, _: Iterable[Future[Record]]) -> Iterable[Future[Record]]:
        future, spec = self.queue.popleft()
        future.set_result(_guarded(spec, self.ground))
        return [future]


class _Processes:
    """Runs in processes of their own."""

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        self.pool = pool

    def submit(self, spec: Spec) -> Future[Record]:
        future: Future[Record] = self.pool.submit(_in_worker, spec)
        return future

    def finished(self, waiting: Iterable[Future[Record]]) -> Iterable[Future[Record]]:
        return wait(waiting, return_when=FIRST_COMPLETED).done


@contextmanager
def _pool(ground: Ground, jobs: int) -> Iterator[_Inline | _Processes]:
    """Give a place for runs, each on one thread: the numbers do not depend on ``jobs``."""
    if jobs == 1:
        with one_thread():
            yield _Inline(ground)
        return
    pool = ProcessPoolExecutor(
        jobs, timeout=None, initializer=_start_worker, initargs=(ground, os.getpid(), sys.path)
    )
    try:
        yield _Processes(pool)
    except BrokenProcessPool as error:
        raise StudyError(
            "A training process was killed, perhaps for want of memory. Run the same command "
            "again to resume, with fewer --jobs if it repeats."
        ) from error
    finally:
        pool.shutdown(wait=True, kill_workers=True)


@contextmanager
def one_thread() -> Iterator[None]:
    """Within the block, torch computes on one thread and its generator is left alone."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def named(name: str) -> Iterator[None]:
    """Name a run in whatever it raises.

    Raises:
        StudyError: the run failed.
    """
    try:
        yield
    except StudyError:
        raise
    except Exception as error:
        said = next((line for line in str(error).splitlines() if line.strip()), "")
        raise StudyError(f"The run {name} raised {type(error).__name__}: {said}") from error


def _guarded(spec: Spec, ground: Ground) -> Record:
    with named(spec.name):
        return run(spec, ground)


_ground: Ground | None = None


def _start_worker(ground: Ground, parent: int, path: list[str]) -> None:
    """Prepare a process: one thread, no Ctrl-C of its own, and gone when its parent is gone."""
    global _ground
    _ground = ground
    sys.path[:] = path
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _in_worker(spec: Spec) -> Record:
    if _ground is None:
        raise StudyError("A training process was not prepared.")
    return _guarded(spec, _ground)
