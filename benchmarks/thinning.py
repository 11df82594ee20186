"""How much faster training gets when units that sit out are not computed, beside masking them.

    python benchmarks/thinning.py                     # all cases, in about a quarter of an hour
    python benchmarks/thinning.py --only mlp-512-0.5  # one of them; 'mlp-*' for several
    python benchmarks/thinning.py --quick             # does it run? tiny networks, no figures
    python benchmarks/thinning.py --save              # writes results/thinning.json and .md

Before anything is timed, every network must give in thinned form what it gives in masked form, to
rounding, in float64 and in float32. If one does not, nothing is reported.
"""

from __future__ import annotations

import argparse
import fnmatch
import sys
from collections.abc import Iterator, Sequence

import thinning_cases as cases
from speed import report, targets
from speed.kinds import Case, Row
from speed.measure import Spread
from speed.report import Section
from speed.setting import ROOT, setting
from speed.targets import FASTER, SLOWER, Figure, Target
from thinning_cases import FLAT, FORM, PLAIN, TIMM, TORCH, TORCH_2D

RESULTS = ROOT / "benchmarks" / "results"
NOTE = """\
`make bench-thinning` writes this page; `thinning.json` holds the same rows in full. Every network
has passed the gate: thinned it gives the outputs and gradients of its masked form, to rounding. In
each round all networks of a case run once, in a new order, and a ratio is taken within a round.
Figures are medians, with the quartiles in brackets. A ratio above 1 means that sitout is faster;
losses are kept. All networks of a case start from the same weights, and are made anew, in another
order, after each third of the rounds: where tensors lie in memory makes equal networks differ. At
p = 0.05 ours masks, so that beside "the masked form" it is the same code: that ratio is the noise.

- `mlp-512`: 784-2048-2048-2048-10 with ReLU, 512 rows, cross entropy, forward + backward.
  `mlp-128-step`: the same with 128 rows and a step of SGD, momentum 0.9, `fused=True` for all.
  The number at the end is the drop rate. Ours is `ThinnedMLP`.
- `vit-path`: 12 blocks of timm's ViT-S/16 (384 features, 6 heads), 65 tokens, 32 samples, drop path
  at the given rate in each branch; `units`: with dropout of the hidden units of the feed-forward
  part too. Ours is `sitout.thin` of the same blocks.
- `cnn`: four 3x3 convolutions of 256 channels with ReLU and `Dropout2d` between them, 16 images of
  16x16. Ours is `sitout.thin` of the same network.
- `held`: what the network of `mlp-512` holds for backward beside input, output and parameters."""

OFF = Figure(lambda row: Spread(*[row["off_percent"]] * 3), True, "% off 1 - p of {}")
_MLP, _STEP, _VIT = "MLP, batch 512", "MLP, batch 128, SGD step", "ViT-S blocks"
TARGETS = [
    Target(f"{_MLP}, p = 0.5", "mlp-512-0.5", TORCH, FASTER, 3.5),
    Target(f"{_MLP}, p = 0.5", "mlp-512-0.5", PLAIN, FASTER, 3),
    Target(f"{_STEP}, p = 0.5", "mlp-128-step-0.5", TORCH, FASTER, 2.5),
    Target(f"{_STEP}, p = 0.5", "mlp-128-step-0.5", PLAIN, FASTER, 2),
    Target(f"{_VIT}, drop path 0.4", "vit-path-0.4", TIMM, FASTER, 1.5),
    Target(f"{_VIT}, units 0.5 too", "vit-path-0.4-units-0.5", TIMM, FASTER, 2.2),
    Target("wide CNN, Dropout2d 0.5", "cnn-0.5", TORCH_2D, FASTER, 2),
    *(Target(f"held for backward, p = {p}", f"held-{p}", PLAIN, OFF, 10) for p in (0.3, 0.5, 0.8)),
    *(
        Target(f"{what}, p = 0.05", name, baseline, SLOWER, 1.03)
        for what, name, layer in (
            (_MLP, "mlp-512-0.05", FLAT),
            (_STEP, "mlp-128-step-0.05", FLAT),
            (_VIT, "vit-path-0.05", TIMM),
        )
        for baseline in (FORM, layer)
    ),
]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cases that are asked for."""
    options = _parser().parse_args(arguments)
    sizes = cases.QUICK if options.quick else cases.Sizes(threads=options.threads)
    known = cases.registry(sizes)
    chosen = [
        case
        for name, case in known.items()
        if any(fnmatch.fnmatch(name, wanted) for wanted in options.only or ["*"])
    ]
    problem = _problem(options, known, chosen)
    if problem:
        print(problem, file=sys.stderr)
        return 2
    if not cases.zoo.has("timm"):
        print("The cases of vision transformers are left out: timm is not installed.")
    if options.quick:
        return _run(chosen, 3, [], save=False)
    return _run(chosen, options.rounds, TARGETS, options.save)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", default=[], help="these cases")
    parser.add_argument("--rounds", type=int, default=15, help="3 or more; by default 15")
    parser.add_argument("--threads", type=int, default=2, help="of torch; by default 2")
    parser.add_argument("--quick", action="store_true", help="tiny networks: does it run?")
    parser.add_argument("--save", action="store_true", help="write the results")
    return parser


def _problem(options: argparse.Namespace, known: dict[str, Case], chosen: Sequence[Case]) -> str:
    """Return why it cannot run as asked, or nothing."""
    if not chosen:
        return f"No case is named {' or '.join(options.only)}. There are: {', '.join(known)}."
    if options.rounds < 3:
        return f"--rounds must be an integer of at least 3. Got {options.rounds}."
    if options.threads < 1:
        return f"--threads must be 1 or more. Got {options.threads}."
    if options.save and (options.only or options.quick):
        return "What is saved is one run of all cases in full size: no --only, no --quick."
    if options.save and not cases.zoo.has("timm"):
        return "--save needs timm: pip install -c constraints.txt -e '.[bench]'"
    return ""


def _run(chosen: Sequence[Case], rounds: int, wanted: Sequence[Target], save: bool) -> int:
    red = [f"{case.name}: {told}" for case in chosen if (told := case.check())]
    if red:
        print("The gate is red, so nothing is timed.", *red, sep="\n", file=sys.stderr)
        return 1
    print(f"The gate is green for {len(chosen)} {'cases' if len(chosen) > 1 else 'case'}.")
    rows: list[Row] = []
    for line in lines(_measured(chosen, rounds, rows)):
        print(line, flush=True)
    found = [verdict for verdict in targets.verdicts(rows, wanted) if verdict.found]
    print("", *(" | ".join(verdict) for verdict in found), sep="\n")
    if save:
        _save(rows)
    return 0


def _measured(chosen: Sequence[Case], rounds: int, rows: list[Row]) -> Iterator[Row]:
    """Yield each row as soon as it is measured, and keep it."""
    said = setting()
    for case in chosen:
        for row in case.measure(rounds):
            rows.append({**row, **said})
            yield rows[-1]


def _ms(key: str) -> report.Read:
    return lambda row: f"{row[key]['median'] / 1e3:.3g}"


def _mib(key: str) -> report.Read:
    return lambda row: f"{row[key] / 2**20:.3g}"


_WHAT: dict[str, report.Read] = {"case": report._field("case"), "input": report._shape}
TIME = Section(
    "Time",
    "ratio",
    {
        **_WHAT,
        "passes": report._field("passes"),
        "network": report._field("contender"),
        "beside": report._field("baseline"),
        "its time, ms": _ms("baseline_us"),
        "ours, ms": _ms("contender_us"),
        "times as fast": lambda row: targets.interval(Spread(**row["ratio"])),
    },
)
HELD = Section(
    "Held for backward",
    "held",
    {
        **_WHAT,
        "beside, MiB": _mib("baseline_bytes"),
        "ours, MiB": _mib("contender_bytes"),
        "ours / beside": lambda row: f"{row['held']:.3f}",
        "1 - p": lambda row: f"{1.0 - row['p']:g}",
    },
)


def lines(rows: Iterator[Row]) -> Iterator[str]:
    """Yield the rows for a terminal, under a head where another table begins."""
    before = None
    for row in rows:
        section = HELD if HELD.key in row else TIME
        if section is not before:
            yield " | ".join(section.columns)
        before = section
        yield " | ".join(section.cells(row))


def to_markdown(rows: Sequence[Row]) -> str:
    """Return the page."""
    threads = f"{rows[0]['threads']} threads, float32."
    parts = ["# Thinning on the CPU", NOTE, f"{report._where(rows[0])} {threads}"]
    verdicts = targets.verdicts(rows, TARGETS)
    parts += ["## What must be shown", report._table(["what", "must be", "is", ""], verdicts)]
    for section in (TIME, HELD):
        body = [section.cells(row) for row in rows if section.key in row]
        parts += [f"## {section.title}", report._table(list(section.columns), body)]
    return "\n\n".join(parts) + "\n"


def _save(rows: Sequence[Row]) -> None:
    """Write rows and page; nothing is written before both are made."""
    texts = {"thinning.json": report.to_json(rows), "thinning.md": to_markdown(rows)}
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (RESULTS / name).write_text(text)
        print(f"Wrote {(RESULTS / name).relative_to(ROOT)}")


if __name__ == "__main__":
    sys.exit(main())
