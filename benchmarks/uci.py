"""MC dropout on the nine UCI regression sets of Gal & Ghahramani 2016, beside what they report.

    python benchmarks/uci.py run                     # all sets, 5 splits; goes on where it was
    python benchmarks/uci.py run yacht --splits 20   # one set, all splits
    python benchmarks/uci.py table                   # ours beside the published figures
    python benchmarks/uci.py quick                   # three sets, three splits, a smaller grid
    python benchmarks/uci.py pace --splits 20        # how long would each set take here?

For each split p and tau are chosen on the last fifth of its training rows by log-likelihood; then a
network is trained on all its training rows, and judged on its test rows by 10,000 passes. All
splits and settings of a set train at once (`uci_stack.py`).

A run that is interrupted or killed leaves a file `<out>-<set>.ckpt`, and goes on from it to the
same result, bit for bit. Finished rows are not trained again.

Reference: Gal & Ghahramani 2016, arXiv 1506.02142.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import uci_table
from uci_passes import Passes
from uci_run import CHOOSE, FINAL, Plan, Store, parts_of, run_set
from uci_sets import SETS
from uci_stack import Stack

RESULTS = Path(__file__).parent / "results" / "uci.json"
QUICK, QUICK_SPLITS = ("boston", "concrete", "yacht"), 3
QUICK_PLAN = Plan(scale=0.25, passes=1000, rates=(0, 2), taus=(1,))


def quick(store: Store, plan: Plan = QUICK_PLAN) -> None:
    """Run three small sets on a smaller grid for fewer epochs."""
    for name in QUICK:
        run_set(name, plan, QUICK_SPLITS, store)


def pace(name: str, plan: Plan, count: int) -> float:
    """Return about how many minutes of one core a set takes, from a little of each kind of work."""
    wanted, total = range(min(count, SETS[name].splits)), 0.0
    parts = parts_of(name, wanted)
    tried = [plan.members(name, split, at) for at, split in enumerate(wanted)]
    one_each = [each[at % len(each)] for at, each in enumerate(tried)]
    for stage, members in ((CHOOSE, list(chain(*tried))), (FINAL, one_each)):
        stack = Stack(members, parts[stage], SETS[name].hidden, stage, plan.seed)
        total += _whole(stack, "epoch", plan.epochs(name))
        total += _whole(Passes(stack), "done", plan.passes)
    return total / 60


def _whole(what: Any, count: str, end: int, seconds: float = 1.5) -> float:
    """Return how long it takes to advance to an end, from some seconds of it."""
    what.advance(end)
    start, begin, spent = getattr(what, count), time.process_time(), 0.0
    while spent < seconds and getattr(what, count) < end:
        what.advance(end)
        spent = time.process_time() - begin
    return spent / max(1, getattr(what, count) - start) * end


def main() -> None:
    """Run, or show what there is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("run", "table", "quick", "pace"))
    parser.add_argument("sets", nargs="*", metavar="set", help=", ".join(SETS))
    parser.add_argument("--splits", type=int, default=5, help="the first so many; there are 20")
    parser.add_argument("--epochs-scale", type=float, default=1.0)
    parser.add_argument("--passes", type=int, default=Plan.passes)
    parser.add_argument("--seed", type=int, default=Plan.seed)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_intermixed_args()
    if unknown := set(asked.sets) - set(SETS):
        parser.error(f"No set is named {', '.join(sorted(unknown))}. There are: {', '.join(SETS)}.")
    if min(asked.splits, asked.passes, asked.threads) < 1 or asked.epochs_scale <= 0:
        parser.error("--splits, --passes, --threads and --epochs-scale must be positive.")
    torch.set_num_threads(asked.threads)
    if asked.what == "quick" and asked.out is None:
        with tempfile.TemporaryDirectory() as folder:
            return _quick(Store(Path(folder, "uci.json")))
    store = Store(asked.out or RESULTS)
    plan = Plan(scale=asked.epochs_scale, passes=asked.passes, seed=asked.seed)
    names = asked.sets or list(SETS)
    if asked.what == "quick":
        return _quick(store)
    for name in names:
        if asked.what == "run":
            run_set(name, plan, asked.splits, store)
        elif asked.what == "pace":
            print(f"{name}: {pace(name, plan, asked.splits):.1f} minutes", flush=True)
    if asked.what != "pace":
        print(uci_table.text([row for row in store.rows() if row["set"] in names]))
    return None


def _quick(store: Store) -> None:
    quick(store)
    print(uci_table.text(store.rows()))


if __name__ == "__main__":
    main()
