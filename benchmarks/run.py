"""The benchmark suite: how fast sitout is, beside torch, a plain copy and others.

    python benchmarks/run.py                    # all cases, in a few minutes; writes nothing
    python benchmarks/run.py --only mlp-step    # one case; 'dropout-*' for several
    python benchmarks/run.py --save             # what `make bench` does

Before anything is timed, every case must give what the reference backend gives. If one does not,
nothing is reported.
"""

from __future__ import annotations

import argparse
import difflib
import fnmatch
import importlib.util
import sys
from collections.abc import Iterator, Sequence

from speed import cases, plot, report, targets
from speed.kinds import Case, Row
from speed.setting import ROOT, setting

RESULTS = ROOT / "benchmarks" / "results"
PICTURE = ROOT / "docs" / "images" / "cpu-speed.svg"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cases that are asked for."""
    options = _parser().parse_args(arguments)
    known = cases.registry()
    if options.list:
        print("\n".join(known))
        return 0
    chosen, problem = _choose(known, options.only)
    problem = problem or _cannot_save(options)
    if problem:
        print(problem, file=sys.stderr)
        return 2
    try:
        return _run(chosen, options.rounds, options.save)
    except KeyboardInterrupt:
        print("Interrupted: nothing was written.", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", default=[], help="these cases")
    parser.add_argument("--list", action="store_true", help="print the names of the cases")
    parser.add_argument("--rounds", type=_rounds, default=31, help="3 or more; by default 31")
    parser.add_argument("--save", action="store_true", help="write the results and the picture")
    return parser


def _rounds(text: str) -> int:
    if not text.isdecimal() or int(text) < 3:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 3. Got {text}.")
    return int(text)


def _choose(known: dict[str, Case], wanted: Sequence[str]) -> tuple[list[Case], str]:
    """Return the cases of some names or patterns, or why there are none."""
    chosen: dict[str, Case] = {}
    for name in wanted or ["*"]:
        found = fnmatch.filter(known, name)
        if not found:
            near = difflib.get_close_matches(name, known, cutoff=0.3)
            way_out = f"The nearest: {', '.join(near)}." if near else "--list names them all."
            return [], f"No case is named {name}. {way_out}"
        chosen.update({each: known[each] for each in found})
    return list(chosen.values()), ""


def _cannot_save(options: argparse.Namespace) -> str:
    """Return why the results of this run could not be saved, or nothing."""
    if options.save and options.only:
        return "What is saved is one run of all cases: give --save or --only."
    if options.save and importlib.util.find_spec("matplotlib") is None:
        return "--save needs matplotlib: pip install -c constraints.txt -e '.[bench]'"
    return ""


def _run(chosen: Sequence[Case], rounds: int, save: bool) -> int:
    red = [f"{case.name}: {told}" for case in chosen if (told := case.check())]
    if red:
        print("The gate is red, so nothing is timed.", *red, sep="\n", file=sys.stderr)
        return 1
    print(f"The gate is green for {len(chosen)} {'cases' if len(chosen) > 1 else 'case'}.")
    rows: list[Row] = []
    for line in report.to_lines(_measured(chosen, rounds, rows)):
        print(line, flush=True)
    found = [verdict for verdict in targets.verdicts(rows) if verdict.found]
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


def _save(rows: Sequence[Row]) -> None:
    """Write rows, page and picture; nothing is written before all are made."""
    texts = {
        RESULTS / "cpu.json": report.to_json(rows),
        RESULTS / "cpu.md": report.to_markdown(rows, "cpu"),
        PICTURE: plot.draw(rows),
    }
    for file, text in texts.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        print(f"Wrote {file.relative_to(ROOT)}")


if __name__ == "__main__":
    sys.exit(main())
