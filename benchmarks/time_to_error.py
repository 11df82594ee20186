"""Time to equal test error: thinned layers against per-element dropout, on MNIST and Fashion-MNIST.

    python benchmarks/time_to_error.py run          # all of it; goes on where it was interrupted
    python benchmarks/time_to_error.py run mnist    # one of the cases
    python benchmarks/time_to_error.py pace         # measure the steps again, on a quiet machine
    python benchmarks/time_to_error.py table        # the figures of the rows that are there

Both arms are tuned on the same trials: the same learning rates and drop rates, and as many
epochs. What a setting is worth is its validation error at the end of a run from a seed of its own.
Then both arms train from the same seeds. An arm's time is that of its training steps alone, up to
the first look at which the validation error is down to the level of the pair: the larger of the two
final validation errors, so that both arms reach it. What a step takes is measured at the end, in
turns, so that what else the machine does falls on both arms alike.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

import sitout
from sitout.data import load

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "time-to-error.json"
BATCH, WIDTH, VALIDATION, TUNING_SEED = 512, 2048, 5000, 99
GROUPS = 4  # of rows a batch, in the thinned arm
ROUNDS, STEPS_A_ROUND = 15, 4


@dataclass(frozen=True)
class Case:
    """A data set, how many of its rows train, and for how many epochs.

    Attributes:
        data: its name.
        rows: for training.
        epochs: of every run.
        seeds: of the pairs.
        like: the case whose settings are taken over; "" to tune.
    """

    data: str
    rows: int
    epochs: int
    seeds: int
    like: str = ""


CASES = {
    "mnist": Case("mnist", 5000, 50, 5),
    "fashion": Case("fashion-mnist", 10_000, 25, 5),
    "mnist-60000": Case("mnist", 55_000, 5, 3, like="mnist"),
}
ARMS = ("dropout", "thinned")


@dataclass(frozen=True)
class Setting:
    """What tuning chooses.

    Attributes:
        learning_rate: of Adam; it rises over the first twentieth, then falls linearly to 0.
        input_p: drop rate of inputs, element by element in both arms.
        p: drop rate of hidden units.
        epochs: of a run.
    """

    learning_rate: float
    input_p: float
    p: float
    epochs: int


def trials(case: Case) -> list[Setting]:
    """Return the settings that both arms try."""
    tried = [(rate, p, 0.5) for p in (0.2, 0.0) for rate in (4e-3, 8e-3)]
    tried += [(rate, 0.0, 0.3) for rate in (4e-3, 2e-3)]
    return [Setting(*one, case.epochs) for one in tried]


def network(arm: str, setting: Setting) -> torch.nn.Module:
    """Return 784-2048-2048-10 with ReLU."""
    kinds = {"dropout": sitout.nn.Dropout, "torch.nn.Dropout": torch.nn.Dropout}
    if arm == "thinned":
        body: torch.nn.Module = sitout.nn.ThinnedMLP(
            784, [WIDTH, WIDTH], 10, setting.p, groups=GROUPS
        )
    else:
        layers: list[torch.nn.Module] = []
        for n in (784, WIDTH):
            layers += [torch.nn.Linear(n, WIDTH), torch.nn.ReLU(), kinds[arm](setting.p)]
        body = torch.nn.Sequential(*layers, torch.nn.Linear(WIDTH, 10))
    return torch.nn.Sequential(kinds.get(arm, sitout.nn.Dropout)(setting.input_p), body)


def rows_of(case: Case) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Return the rows that train, validate and test: the published test rows."""
    data = load(case.data)
    x = torch.as_tensor(data.features).float().flatten(1) / 255.0
    y = torch.as_tensor(data.target).long()
    order = torch.randperm(60_000, generator=torch.Generator().manual_seed(0))
    train, validation = order[VALIDATION : VALIDATION + case.rows], order[:VALIDATION]
    parts = {"train": train, "validation": validation, "test": torch.arange(60_000, 70_000)}
    return {name: (x[index], y[index]) for name, index in parts.items()}


def error(net: torch.nn.Module, rows: tuple[torch.Tensor, torch.Tensor]) -> float:
    """Return the error in percent."""
    net.eval()
    with torch.no_grad():
        wrong = sum(
            int((net(x).argmax(1) != y).sum())
            for x, y in zip(rows[0].split(1000), rows[1].split(1000), strict=True)
        )
    net.train()
    return 100.0 * wrong / len(rows[1])


def one_step(
    net: torch.nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor
) -> None:
    """Do a training step."""
    optimizer.zero_grad()
    F.cross_entropy(net(x), y).backward()
    optimizer.step()


def train(arm: str, setting: Setting, rows: dict[str, Any], seed: int) -> dict[str, Any]:
    """Train one network; return its errors at each epoch, and the seconds of each epoch's steps."""
    torch.manual_seed(seed)
    net = network(arm, setting)
    order = torch.Generator().manual_seed(seed)
    x, y = rows["train"]
    steps = len(y) // BATCH * setting.epochs
    optimizer = torch.optim.Adam(net.parameters(), setting.learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, 20 * (step + 1) / steps) * max(0.0, 1 - step / steps)
    )
    curve, seconds = [], []
    for _ in range(setting.epochs):
        begin = time.perf_counter()
        for index in torch.randperm(len(y), generator=order).split(BATCH):
            if len(index) < BATCH:
                continue
            one_step(net, optimizer, x[index], y[index])
            schedule.step()
        seconds.append(time.perf_counter() - begin)
        curve.append(error(net, rows["validation"]))
    return {"validation": curve, "seconds": seconds, "test": error(net, rows["test"])}


class Store:
    """Runs that have finished, on disk after each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.runs: list[dict[str, Any]] = []
        self.pace: dict[str, dict[str, Any]] = {}
        if path.exists():
            held = json.loads(path.read_text())
            self.runs, self.pace = held["runs"], held["pace"]

    def keep(self) -> None:
        """Write all down."""
        about = {"torch": torch.__version__, "threads": torch.get_num_threads(), "batch": BATCH}
        held = {**about, "pace": self.pace, "runs": self.runs}
        self.path.write_text(json.dumps(held, indent=1) + "\n")

    def run(self, name: str, arm: str, setting: Setting, rows: Any, seed: int) -> dict[str, Any]:
        """Return a run, trained now if it is not there."""
        key = {"case": name, "arm": arm, "seed": seed, **asdict(setting)}
        for one in self.runs:
            if all(one[field] == value for field, value in key.items()):
                return one
        done = {**key, **train(arm, setting, rows, seed)}
        self.runs.append(done)
        self.keep()
        shown = f"{name} {arm} seed {seed}: validation {done['validation'][-1]:.2f}"
        print(
            f"{shown}, test {done['test']:.2f}, {sum(done['seconds']):.0f} s", setting, flush=True
        )
        return done


def tuned(name: str, case: Case, arm: str, store: Store, rows: Any) -> Setting:
    """Return the setting of the lowest validation error."""
    runs = [store.run(name, arm, one, rows, TUNING_SEED) for one in trials(case)]
    best = min(runs, key=lambda run: run["validation"][-1])
    return setting_of(best)


def setting_of(run: dict[str, Any]) -> Setting:
    """Return the setting of a run."""
    return Setting(**{field: run[field] for field in Setting.__dataclass_fields__})


def run(name: str, store: Store) -> None:
    """Tune both arms and train the pairs of a case."""
    case = CASES[name]
    settings = {}
    for arm in ARMS:
        source = case.like or name
        like = CASES[source]
        found = tuned(source, like, arm, store, rows_of(like) if not case.like else None)
        epochs = case.epochs
        settings[arm] = Setting(**{**asdict(found), "epochs": epochs})
    rows = rows_of(case)
    for seed in range(case.seeds):
        for arm in ARMS:  # in turns, so that what else the machine does falls on both
            store.run(name, arm, settings[arm], rows, seed)


def pairs(name: str, store: Store) -> list[dict[str, dict[str, Any]]]:
    """Return the runs of both arms for each seed."""
    found = []
    for seed in range(CASES[name].seeds):
        both = {
            one["arm"]: one
            for one in store.runs
            if one["case"] == name and one["seed"] == seed != TUNING_SEED
        }
        found += [both] if len(both) == len(ARMS) else []
    return found


def measure(name: str, store: Store) -> None:
    """Measure what a step of each arm takes, in turns: seconds, and the ratio in each round."""
    found = pairs(name, store)[0]
    settings = {arm: setting_of(found[arm]) for arm in ARMS}
    settings["torch.nn.Dropout"] = settings["dropout"]
    rows = rows_of(CASES["mnist"])["train"]
    x, y = rows[0][:BATCH], rows[1][:BATCH]
    nets = {arm: network(arm, one) for arm, one in settings.items()}
    optimizers = {
        arm: torch.optim.Adam(net.parameters(), 1e-3, fused=True) for arm, net in nets.items()
    }
    times: dict[str, list[float]] = {arm: [] for arm in nets}
    for _ in range(ROUNDS + 2):
        for arm, net in nets.items():
            begin = time.perf_counter()
            for _ in range(STEPS_A_ROUND):
                one_step(net, optimizers[arm], x, y)
            times[arm].append((time.perf_counter() - begin) / STEPS_A_ROUND)
    taken = {arm: each[2:] for arm, each in times.items()}
    ratios = {
        arm: [a / b for a, b in zip(taken[arm], taken["thinned"], strict=True)]
        for arm in nets
        if arm != "thinned"
    }
    store.pace[name] = {
        "seconds": {arm: statistics.median(each) for arm, each in taken.items()},
        "ratio": {arm: statistics.quantiles(each, n=4) for arm, each in ratios.items()},
    }
    store.keep()


def epochs_to(run: dict[str, Any], level: float) -> int:
    """Return after how many epochs the validation error is down to a level.

    Args:
        run: one training run.
        level: in percent.
    """
    return 1 + next(i for i, value in enumerate(run["validation"]) if value <= level)


_T = {2: 4.303, 3: 3.182, 4: 2.776}  # 97.5 % of Student's t, by degrees of freedom


def summary(name: str, store: Store) -> dict[str, Any]:
    """Return the figures of a case."""
    found = pairs(name, store)
    pace = store.pace[name]
    steps = []
    for both in found:
        level = max(both[arm]["validation"][-1] for arm in ARMS)
        slow, fast = (epochs_to(both[arm], level) for arm in ARMS)
        steps.append(slow / fast)
    more = [both["thinned"]["test"] - both["dropout"]["test"] for both in found]
    half = _T[len(more) - 1] * statistics.stdev(more) / math.sqrt(len(more))
    return {
        "case": name,
        "seeds": len(found),
        **{f"{arm}_test": statistics.mean(both[arm]["test"] for both in found) for arm in ARMS},
        "difference": [statistics.mean(more) - half, statistics.mean(more) + half],
        "pace": pace,
        "steps_ratio": [statistics.median(steps), min(steps), max(steps)],
        "time_ratio": {
            arm: statistics.median(ratio[1] * one for one in steps)
            for arm, ratio in pace["ratio"].items()
        },
        "settings": {arm: asdict(setting_of(found[0][arm])) for arm in ARMS},
    }


def main() -> None:
    """Run, or show what there is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("run", "pace", "table"))
    parser.add_argument("cases", nargs="*", metavar="case", help=", ".join(CASES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    store = Store(asked.out)
    names = asked.cases or list(CASES)
    for name in names if asked.what == "run" else []:
        run(name, store)
    done = [name for name in names if len(pairs(name, store)) > 2]
    for name in done:
        if asked.what == "pace" or name not in store.pace:
            measure(name, store)
    json.dump([summary(name, store) for name in done], sys.stdout, indent=1)


if __name__ == "__main__":
    main()
