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
import importlib.metadata
import resource
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from speed import report
from speed.kinds import Row
from speed.measure import Contender, Spread, interleave, ratios, spread
from speed.setting import ROOT, setting
from speed.targets import interval
from torch import Tensor

import sitout

sys.path.insert(0, str(ROOT / "tests"))
import zoo

RESULTS = ROOT / "benchmarks" / "results"
MOST = 5.0
NOTE = """\
`python benchmarks/sites_overhead.py --save` writes this page; `sites.json` holds the same rows. A
plain forward is half of two: one in training mode with gradients on, one in evaluation mode with
gradients off. They and `sitout.sites` take turns, on one thread, and a ratio is taken within a
round. Figures are medians, with the quartiles in brackets. Tensors are counted, and the resident
memory of the process is read, before the rounds and after them."""
HEAD = [
    *("model", "inputs", "parameters, millions", "sites", "plain forward, ms", "probe, ms"),
    *("plain forwards", "tensors", "resident, MiB"),
]


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
    said["versions"] |= _versions()
    print(" | ".join(HEAD))
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
    model, args, kwargs = zoo.build(name, large=True)

    def forwards() -> None:
        model.train()
        model(*args, **kwargs)
        model.eval()
        with torch.no_grad():
            model(*args, **kwargs)

    def probe() -> None:
        sitout.sites(model, *args, **kwargs)

    forwards()
    probe()
    before = _alive()
    found = interleave([Contender("forwards", forwards), Contender("probe", probe)], rounds)
    after = _alive()
    plain = [seconds / 2 for seconds in found["forwards"]]
    tensors = [one for one in (*args, *kwargs.values()) if isinstance(one, Tensor)]
    return {
        "case": name,
        "sites": len(sitout.sites(model, *args, **kwargs)),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "inputs": [list(one.shape) for one in tensors],
        "device": "cpu",
        "threads": 1,
        "rounds": rounds,
        "plain_ms": _ms(plain),
        "probe_ms": _ms(found["probe"]),
        "ratio": spread(ratios(found["probe"], plain))._asdict(),
        "tensors": [before[0], after[0]],
        "resident_mib": [before[1], after[1]],
    }


def _ms(seconds: Sequence[float]) -> dict[str, float]:
    return spread([1e3 * each for each in seconds])._asdict()


def _alive() -> tuple[int, float]:
    """Return how many tensors there are, and the resident memory in MiB."""
    gc.collect()
    count = sum(issubclass(type(each), Tensor) for each in gc.get_objects())
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return count, round(pages * resource.getpagesize() / 2**20, 1)


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in ("transformers", "torch_geometric"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def cells(row: Row) -> list[str]:
    """Return a line of the table."""
    return [
        row["case"],
        ", ".join(" x ".join(map(str, shape)) for shape in row["inputs"]),
        f"{row['parameters'] / 1e6:.3g}",
        str(row["sites"]),
        f"{row['plain_ms']['median']:.3g}",
        f"{row['probe_ms']['median']:.3g}",
        interval(Spread(**row["ratio"])),
        " to ".join(map(str, row["tensors"])),
        " to ".join(f"{each:.0f}" for each in row["resident_mib"]),
    ]


def _save(rows: Sequence[Row]) -> None:
    lines = [HEAD, ["---"] * len(HEAD), *map(cells, rows)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    texts = {
        "sites.json": report.to_json(rows),
        "sites.md": "\n\n".join(
            ["# What the probe costs", NOTE, report._where(rows[0]), table, ""]
        ),
    }
    for name, text in texts.items():
        (RESULTS / name).write_text(text.rstrip() + "\n")
        print(f"Wrote {(RESULTS / name).relative_to(ROOT)}")


if __name__ == "__main__":
    sys.exit(main())
