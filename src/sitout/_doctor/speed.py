"""How long a forward pass takes beside torch's, and beside a copy."""

from __future__ import annotations

from statistics import median
from time import perf_counter, perf_counter_ns
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..functional import dropout

if TYPE_CHECKING:
    from collections.abc import Callable

_P = 0.1
_N = 2**20
_LEAST, _MOST = 3, 50  # rounds

_RUNS: dict[str, Callable[[Tensor], Tensor]] = {
    "torch": lambda x: torch.nn.functional.dropout(x, _P),
    "sitout": lambda x: dropout(x, _P),
    "clone": torch.clone,
}


class Speed(NamedTuple):
    """Times in ns per element, medians."""

    dtype: str
    threads: int
    torch: float
    sitout: float
    clone: float

    def ratios(self) -> dict[str, float]:
        """Return how many times as long torch takes as sitout, and sitout as a copy."""
        return {
            "torch_over_sitout": self.torch / self.sitout,
            "sitout_over_clone": self.sitout / self.clone,
        }


def measure(seconds: float) -> list[Speed]:
    """Return the speed with one thread and with all, and leave threads and generator as found.

    Args:
        seconds: for each row.

    Example:
        >>> measure(0.0)[0].dtype
        'float32'
    """
    threads = torch.get_num_threads()
    try:
        with torch.random.fork_rng(devices=[]):
            return [
                _measured(dtype, number, seconds)
                for dtype in (torch.float32, torch.bfloat16)
                for number in sorted({1, threads})
            ]
    finally:
        torch.set_num_threads(threads)


def _measured(dtype: torch.dtype, threads: int, seconds: float) -> Speed:
    """Take turns, so that what else the machine does falls on all alike."""
    torch.set_num_threads(threads)
    x = torch.ones(_N, dtype=dtype)
    times: dict[str, list[int]] = {name: [] for name in _RUNS}
    end = perf_counter() + seconds
    for number in range(_MOST + 1):
        if number > _LEAST and perf_counter() > end:
            break
        for name, run in _RUNS.items():
            start = perf_counter_ns()
            run(x)
            times[name].append(perf_counter_ns() - start)
    per_element = {name: median(taken[1:]) / _N for name, taken in times.items()}
    return Speed(str(dtype).removeprefix("torch."), threads, **per_element)


def table(speed: list[Speed]) -> list[str]:
    """Return the rows as aligned lines, with a title."""
    titles = ["dtype", "threads", "torch", "sitout", "clone", "torch/sitout", "sitout/clone"]
    rows = [
        [
            one.dtype,
            str(one.threads),
            *(f"{time:.2f}" for time in (one.torch, one.sitout, one.clone)),
            *(f"{ratio:.1f}" for ratio in one.ratios().values()),
        ]
        for one in speed
    ]
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    lines = ["  ".join(map(str.rjust, row, widths)) for row in [titles, *rows]]
    return [f"ns per element, forward, {_N} elements, p = {_P}, medians:", *lines]
