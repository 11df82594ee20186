"""What `sitout.sites` costs: its time in plain forward passes, and the memory that it leaves.

    python benchmarks/sites_overhead.py                      # all models, in a few minutes
    python benchmarks/sites_overhead.py --only timm-vit      # one of them
    python benchmarks/sites_overhead.py --save               # writes results/sites.json and .md

A plain forward is half of two: one in training mode with gradients on, one in evaluation mode
with gradients off. They and the probe take turns, and a ratio is taken within a round. The model
runs on one thread.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import sitout
from speed.kinds import Row
from speed.measure import spread
from speed.setting import ROOT, setting

sys.path.insert(0, str(ROOT / "tests"))
import zoo

RESULTS = ROOT / "benchmarks" / "results"
MOST = 5.0
NOTE = """\
`python benchmarks/sites_overhead.py --save` writes this page; `sites.json` holds the same rows. A
plain forward is half of two: one in training mode with gradients on, one in evaluation mode with
gradients off. They and the probe take turns, on one thread; a ratio is taken within a round.
Figures are medians, with the quartiles in brackets. Tensors and memory are those after the rounds
less those before, once garbage is collected; the memory is the resident set of the process."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the models that are asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=sorted(zoo.LARGE), metavar="NAME", default=[])
    parser.add_argument("--rounds", type=int, default=15, help="by default 15")
    parser.add_argument("--save", action="store_true", help="write the results")
    options = parser.parse_args(arguments)
    if options.save and options.only:
        parser.error("what is saved is one run of all models: give --save or --only")
    torch.set_num_threads(1)
    said, rows = setting(), []
    print("model | sites | plain, ms | probe, ms | plain forwards | tensors | MiB")
    for name in options.only or zoo.LARGE:
        if zoo.has(zoo.package(name)):
            rows.append({**measured(name, options.rounds), **said})
            print(" | ".join(cells(rows[-1])), flush=True)
    over = [row["case"] for row in rows if row["ratio"]["median"] >= MOST]
    print(f"{MOST:g} plain forwards or more: {', '.join(over) or 'none'}")
    if options.save:
        _save(rows)
    return 1 if over else 0


def measured(name: str, rounds: int) -> Row:
    """Return the row of a model.

    Args:
        name: of the model in the zoo.
        rounds: how often the plain forwards and the probe run.
    """
    model, args, kwargs = zoo.build_large(name)

    def plain() -> None:
        model.train()
        model(*args, **kwargs)
        model.eval()
        with torch.no_grad():
            model(*args, **kwargs)

    def probe() -> None:
        sitout.sites(model, *args, **kwargs)

    for _ in range(2):
        plain()
        probe()
    before = _alive()
    plains, probes = [], []
    for _ in range(rounds):
        turns: list[tuple[Callable[[], None], list[float]]] = [(plain, plains), (probe, probes)]
        for run, times in random.sample(turns, 2):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
    after = _alive()
    plains = [seconds / 2 for seconds in plains]
    ratios = [one / other for one, other in zip(probes, plains, strict=True)]
    return {
        "case": name,
        "sites": len(sitout.sites(model, *args, **kwargs)),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "inputs": [list(one.shape) for one in (*args, *kwargs.values()) if isinstance(one, Tensor)],
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "plain_ms": spread([1e3 * seconds for seconds in plains])._asdict(),
        "probe_ms": spread([1e3 * seconds for seconds in probes])._asdict(),
        "ratio": spread(ratios)._asdict(),
        "tensors_left": after[0] - before[0],
        "mib_left": round((after[1] - before[1]) / 2**20, 2),
    }
