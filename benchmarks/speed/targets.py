"""What must be shown, and whether the rows show it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from .kinds import Row
from .measure import Spread
from .step import AGAIN, PLAIN


class Figure(NamedTuple):
    """A number of a row.

    Attributes:
        read: takes it from the row.
        at_most: a limit is the largest that is allowed, not the smallest.
        unit: of the number; "{}" stands for the baseline.
    """

    read: Callable[[Row], Spread]
    at_most: bool
    unit: str


def _inverse(values: dict[str, float]) -> Spread:
    return Spread(1 / values["median"], 1 / values["q3"], 1 / values["q1"])


def _kept(row: Row) -> Spread:
    return Spread(*[row["contender_keeps"]["bytes_per_element"]] * 3)


FASTER = Figure(lambda row: Spread(**row["ratio"]), False, "times as fast as {}")
SLOWER = Figure(lambda row: _inverse(row["ratio"]), True, "times the time of {}")
GAIN = Figure(lambda row: Spread(**row["contender_gain"]), False, "times as fast as 1 thread")
SHARE = Figure(lambda row: Spread(**row["ratio"]), False, "of the gain of {}")
KEPT = Figure(_kept, True, "bytes per element beyond the address")
ADDED = Figure(lambda row: Spread(**row["added_percent"]), True, "% more than {}")


class Target(NamedTuple):
    """One thing to show.

    Attributes:
        what: in words.
        case: whose row tells.
        baseline: of that row.
        figure: of that row.
        limit: of the figure.
        contender: of that row.
    """

    what: str
    case: str
    baseline: str
    figure: Figure
    limit: float
    contender: str = "sitout"


TARGETS = [
    Target("float32 forward, 2^20", "dropout-float32-2^20", "torch", FASTER, 20),
    Target("float32 forward, 2^20", "dropout-float32-2^20", "clone", SLOWER, 3),
    Target("bfloat16 forward, 2^20", "dropout-bfloat16-2^20", "torch", FASTER, 18),
    Target("bfloat16 forward, 2^20", "dropout-bfloat16-2^20", "clone", SLOWER, 8),
    Target("float32 with backward, 2^22", "dropout-backward-2^22", "two clones", SLOWER, 1.4),
    Target("float32 with backward, 2^24", "dropout-backward-2^24", "two clones", SLOWER, 1.4),
    Target("2 threads, 2^20", "threads-2^20", "clone", GAIN, 1.5),
    Target("2 threads, 2^22", "threads-2^22", "clone", SHARE, 0.9),
    Target("2 threads, 2^24", "threads-2^24", "clone", SHARE, 0.9),
    Target("256 elements, function", "dropout-small", "torch", SLOWER, 1),
    Target("256 elements, layer", "dropout-small-layer", "torch", SLOWER, 1),
    Target("saved for backward", "saved-dropout", "torch", KEPT, 0),
    Target("relu and dropout fused", "activation_dropout-relu", "sitout, two calls", FASTER, 1.3),
    Target("3-layer MLP, Dropout", "mlp-step", PLAIN, ADDED, 8, "sitout.nn.Dropout"),
    Target(
        "3-layer MLP, ActivationDropout", "mlp-step", PLAIN, ADDED, 8, "sitout.nn.ActivationDropout"
    ),
]


class Verdict(NamedTuple):
    """What was to be shown, what was found, and whether that is enough: four short texts."""

    what: str
    rule: str
    found: str
    word: str


def verdicts(rows: Sequence[Row], wanted: Sequence[Target] = TARGETS) -> list[Verdict]:
    """Return a verdict for each target that is wanted."""
    known = {(row["case"], row["contender"], row["baseline"]): row for row in rows}
    return [_verdict(target, known) for target in wanted]


def _verdict(target: Target, known: dict[tuple[str, str, str], Row]) -> Verdict:
    figure, baseline = target.figure, target.baseline
    unit = figure.unit.format(baseline)
    rule = f"at {'most' if figure.at_most else 'least'} {target.limit:g} {unit}"
    row = known.get((target.case, target.contender, baseline))
    if row is None or "not_run" in row:
        return Verdict(target.what, rule, "", "not measured")
    found = figure.read(row)
    met = found.median <= target.limit if figure.at_most else found.median >= target.limit
    text = interval(found)
    twin = known.get((target.case, AGAIN, baseline))
    if figure is ADDED and twin is not None:
        text += f"; the same network twice: {interval(ADDED.read(twin))}"
    return Verdict(target.what, rule, text, "met" if met else "not met")


def interval(values: Spread) -> str:
    """Return "2.1 [1.9, 2.4]": the median and the quartiles."""
    return f"{values.median:.3g} [{values.q1:.3g}, {values.q3:.3g}]"
