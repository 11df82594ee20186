"""Time several contenders in one run, interleaved, so that a noisy machine hits all of them."""

from __future__ import annotations

import ctypes
import gc
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

AT_LEAST = 2e-3


class Contender(NamedTuple):
    """What is timed.

    Attributes:
        name: unique among those timed together.
        call: takes nothing; what it returns is dropped.
        threads: of torch, while it runs.
    """

    name: str
    call: Callable[[], Any]
    threads: int = 1


class Spread(NamedTuple):
    """The middle half of what was measured."""

    median: float
    q1: float
    q3: float


def spread(values: Sequence[float]) -> Spread:
    """Return the median and the quartiles, to four digits.

    Args:
        values: two or more.
    """
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(*(float(f"{value:.4g}") for value in (median, q1, q3)))


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Return the ratio within each round."""
    return [a / b for a, b in zip(above, below, strict=True)]


def nothing() -> None:
    """Wait for a device that is never behind."""


def interleave(
    contenders: Sequence[Contender],
    rounds: int,
    *,
    synchronize: Callable[[], None] = nothing,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Return the seconds that a call of each contender took, one number a round.

    In each round every contender runs once, in a new order: one call that is not timed, then as
    many as take ``AT_LEAST``. Memory that is freed serves the next call, as in a training run, but
    glibc fetches blocks above 32 MiB anew: the clones of such tensors pay for that too.

    Args:
        contenders: each has been called once, so that it is compiled.
        rounds: how often.
        synchronize: returns when the device is done.
        clock: seconds.
    """
    found: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    order = random.Random(0)
    with _undisturbed():
        repeats = {each.name: _repeats(each, synchronize, clock) for each in contenders}
        for _ in range(rounds):
            for each in order.sample(contenders, len(contenders)):
                count = repeats[each.name]
                found[each.name].append(_seconds(each, count, synchronize, clock) / count)
    return found


def _repeats(
    contender: Contender, synchronize: Callable[[], None], clock: Callable[[], float]
) -> int:
    count = 1
    while (seconds := _seconds(contender, count, synchronize, clock)) < AT_LEAST:
        count *= 2 if seconds <= AT_LEAST / 10 else 1 + int(AT_LEAST / seconds)
    return count


def _seconds(
    contender: Contender, count: int, synchronize: Callable[[], None], clock: Callable[[], float]
) -> float:
    call = contender.call
    with threads(contender.threads):
        call()
        synchronize()
        start = clock()
        for _ in range(count):
            call()
        synchronize()
        return clock() - start


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch run on so many threads within a block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Collect no garbage within a block, and give no memory back to the system."""
    torch.empty(31 << 20, dtype=torch.uint8)  # once freed, glibc reuses all that is smaller
    _give_nothing_back()
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _give_nothing_back() -> None:
    """Have glibc keep what is freed at the top of its heap: whether it does is else chance."""
    trim_threshold = -1
    mallopt = getattr(ctypes.CDLL(None) if os.name == "posix" else None, "mallopt", None)
    if mallopt is not None:
        mallopt(trim_threshold, 2**31 - 1)
