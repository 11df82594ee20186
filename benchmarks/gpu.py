"""How fast sitout is on a GPU, beside torch and a plain copy. `make gpu` runs it.

    python benchmarks/gpu.py                 # all cases, in about three minutes
    python benchmarks/gpu.py --only 'mlp*'   # some of them
    python benchmarks/gpu.py --save          # writes results/gpu.json
    python benchmarks/gpu.py --dry           # does it run? tiny cases on the CPU, no figures

Nothing is timed before all cases have given what the reference gives. With --dry the kernels run
in Triton's interpreter.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import gpu_cases as cases
import torch
from gpu_cases import COMPILED, COPY, FORMS, MASKED, OURS, TORCH
from speed import report, targets
from speed.kinds import Case, Row
from speed.measure import Spread
from speed.setting import ROOT, setting
from speed.targets import FASTER, Figure, Target

import sitout

RESULTS = ROOT / "benchmarks" / "results"
SHARE = Figure(lambda row: Spread(**row["ratio"]), False, "of the speed of {}")
HELD = Figure(lambda row: Spread(*[row["held"]] * 3), True, "bytes an element held")
LESS = Figure(lambda row: Spread(*[row["saved"]] * 3), False, "bytes an element less than {}")
MASKS = Figure(lambda row: Spread(*[row["saved"]] * 3), False, "times the masks below {}")
BY_OP = FORMS["op"]
TARGETS = [
    Target("bfloat16 forward, 2^28", "forward-bfloat16", COPY, SHARE, 0.92),
    Target("float32 forward, 2^28", "forward-float32", COPY, SHARE, 0.92),
    Target("bfloat16, forward + backward", "backward-bfloat16", TORCH, FASTER, 1.2),
    Target("held for backward", "held", TORCH, HELD, 0),
    Target("relu, dropout, scale, compiled", "chain", COMPILED, FASTER, 1, BY_OP),
    Target("the same, held", "chain-held", COMPILED, LESS, 1, BY_OP),
    Target("dropout + residual + LayerNorm", "norm", TORCH, FASTER, 1.5),
    Target("dropout + residual + LayerNorm", "norm", COMPILED, FASTER, 1),
    Target("MLP 3 x 8192, p = 0.5, thinned", "mlp", TORCH, FASTER, 3),
    Target("ViT-L blocks, drop path 0.4", "vit", MASKED, FASTER, 1.5),
    Target("FFN 4096/16384, p = 0.3, thinned", "ffn", TORCH, FASTER, 1.25),
    Target("GPT-2, peak memory", "gpt2-peak", TORCH, MASKS, 0.99),
]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cases that are asked for."""
    options = _parser().parse_args(arguments)
    known = cases.registry(cases.DRY if options.dry else cases.Sizes())
    chosen = [
        case
        for name, case in known.items()
        if any(fnmatch.fnmatch(name, wanted) for wanted in options.only or ["*"])
    ]
    problem = _problem(options, known, chosen)
    if problem:
        print(problem, file=sys.stderr)
        return 2
    if options.dry:
        with sitout.backends.use("triton") if _is_interpreted() else nullcontext():
            return _run(chosen, 2, 1e9, [], save=False)
    return _run(chosen, options.rounds, options.seconds, TARGETS, options.save)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", default=[], help="these cases")
    parser.add_argument("--rounds", type=int, default=11, help="2 or more; by default 11")
    parser.add_argument("--seconds", type=float, default=1e9, help="start no case after so long")
    parser.add_argument("--dry", action="store_true", help="tiny cases on the CPU: does it run?")
    parser.add_argument("--save", action="store_true", help="write the results")
    return parser


def _is_interpreted() -> bool:
    return bool(os.environ.get("TRITON_INTERPRET")) and not torch.cuda.is_available()


def _problem(options: argparse.Namespace, known: dict[str, Case], chosen: Sequence[Case]) -> str:
    """Return why it cannot run as asked, or nothing."""
    if not chosen:
        return f"No case is named {' or '.join(options.only)}. There are: {', '.join(known)}."
    if options.rounds < 2:
        return f"--rounds must be an integer of at least 2. Got {options.rounds}."
    if options.save and (options.only or options.dry):
        return "What is saved is one run of all cases in full size: no --only, no --dry."
    if not options.dry and not torch.cuda.is_available():
        return "There is no GPU here. --dry runs tiny cases on the CPU."
    return ""


def _run(
    chosen: Sequence[Case], rounds: int, seconds: float, wanted: Sequence[Target], save: bool
) -> int:
    start = time.monotonic()
    red = [f"{case.name}: {told}" for case in chosen if (told := case.check())]
    if red:
        print("The gate is red, so nothing is timed.", *red, sep="\n", file=sys.stderr)
        return 1
    print(f"The gate is green for {len(chosen)} {'cases' if len(chosen) > 1 else 'case'}.")
    for form, why in cases.FAILED.items():
        print(f"The compiled form {form!r} is left out: {why}")
    rows: list[Row] = []
    for row in _measured(chosen, rounds, start + seconds):
        rows.append(row)
        print(line(row), flush=True)
    names = {case.name for case in chosen}
    asked = [target for target in wanted if target.case in names]
    print("", *(" | ".join(verdict) for verdict in targets.verdicts(rows, asked)), sep="\n")
    if save:
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / "gpu.json").write_text(report.to_json(rows))
        print(f"Wrote {(RESULTS / 'gpu.json').relative_to(ROOT)}")
    return int(any(row.get("failed") for row in rows))


def _measured(chosen: Sequence[Case], rounds: int, end: float) -> Iterator[Row]:
    """Yield the rows of each case as soon as they are measured."""
    said = {**setting(), "gpu": gpu()}
    for case in chosen:
        if time.monotonic() > end:
            found = [case.row(OURS, "", not_run="there was no time left")]
        else:
            try:
                found = case.measure(rounds)
            except Exception as error:
                found = [case.row(OURS, "", not_run=cases.one_line(error), failed=True)]
        for row in found:
            yield {**row, **said}
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def gpu() -> dict[str, Any]:
    """Return what is known of the GPU and of what compiles for it."""
    found: dict[str, Any] = {"cuda": torch.version.cuda, "triton": _triton()}
    if torch.cuda.is_available():
        told = torch.cuda.get_device_properties(0)
        found |= {"name": told.name, "memory": told.total_memory}
        found |= {"capability": f"{told.major}.{told.minor}", "cores": told.multi_processor_count}
    return found


def _triton() -> str | None:
    try:
        import triton
    except ImportError:
        return None
    return str(triton.__version__)


def line(row: Row) -> str:
    """Return a row for a terminal."""
    what = [row["case"], " x ".join(map(str, row["shape"])), row["dtype"], row["contender"]]
    if "not_run" in row:
        return " | ".join([*what, f"not run: {row['not_run']}"])
    if "ratio" in row:
        times = [f"{row[key]['median'] / 1e3:.4g} ms" for key in ("contender_us", "baseline_us")]
        ratio = targets.interval(Spread(**row["ratio"]))
        return " | ".join([*what, times[0], f"{row['baseline']} {times[1]}", f"{ratio} times"])
    if "held" in row:
        told = f"{row['held']:g} bytes an element | {row['baseline']} {row['baseline_held']:g}"
        return " | ".join([*what, told])
    told = f"peak {row['peak_bytes'] / 2**20:.0f} MiB"
    theirs = f"{row['baseline']} {row['baseline_peak_bytes'] / 2**20:.0f} MiB"
    return " | ".join([*what, told, theirs, f"masks {row['masks_bytes'] / 2**20:.0f} MiB"])


if __name__ == "__main__":
    sys.exit(main())
