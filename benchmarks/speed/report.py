"""Rows to a JSON file, to a page, and to lines on the terminal."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from .kinds import Row
from .measure import Spread
from .targets import interval, verdicts

NOTE = """\
`make bench` writes this page; `{name}.json` holds the same rows in full. Every case has passed the
gate: its values and gradients are the reference's. In each round all contenders of a case run once,
in a new order, and a ratio is taken within a round. Figures are medians, with the quartiles in
brackets. A ratio above 1 means that sitout is faster; losses are kept. `clone` is a plain copy of
the same bytes. Above 32 MiB it pays, as all do, for memory that the system hands out anew."""

Read = Callable[[Row], str]


class Section(NamedTuple):
    """A table of the rows that hold a certain key.

    Attributes:
        title: of the table.
        key: that its rows hold.
        columns: their heads, and what stands in the cell of a row.
    """

    title: str
    key: str
    columns: dict[str, Read]

    def cells(self, row: Row) -> list[str]:
        """Return a line of the table."""
        return [read(row) for read in self.columns.values()]


def _field(key: str) -> Read:
    return lambda row: str(row[key])


def _shape(row: Row) -> str:
    layout = "" if row["layout"] == "contiguous" else f", {row['layout']}"
    return f"{' x '.join(map(str, row['shape']))}{layout}"


def _baseline(row: Row) -> str:
    why = f" (not run: {row['not_run']})" if "not_run" in row else ""
    return f"{row['baseline']}{why}"


def _median(key: str) -> Read:
    def read(row: Row) -> str:
        if key not in row:
            return ""
        value = row[key]["median"]
        return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"

    return read


def _spread(key: str) -> Read:
    return lambda row: interval(Spread(**row[key])) if key in row else ""


def _kept(key: str) -> Read:
    return lambda row: f"{row[key]['bytes_per_element']:.4g}" if key in row else ""


def _address(row: Row) -> str:
    return str(row["contender_keeps"]["address_bytes"])


_WHAT: dict[str, Read] = {"case": _field("case"), "shape": _shape}
_MORE: dict[str, Read] = {key: _field(key) for key in ("dtype", "passes", "threads")}
_TIMES: dict[str, Read] = {
    "baseline": _baseline,
    "its time, us": _median("baseline_us"),
    "sitout, us": _median("contender_us"),
}
SECTIONS = [
    Section("Time", "", {**_WHAT, **_MORE, **_TIMES, "times as fast": _spread("ratio")}),
    Section(
        "Gain of a second thread",
        "contender_gain",
        {
            **_WHAT,
            "gain of sitout": _spread("contender_gain"),
            "gain of clone": _spread("baseline_gain"),
            "ratio": _spread("ratio"),
        },
    ),
    Section(
        "A training step",
        "added_percent",
        {
            **_WHAT,
            "threads": _field("threads"),
            "network": _field("contender"),
            "step, us": _median("contender_us"),
            "% more than without dropout": _spread("added_percent"),
        },
    ),
    Section(
        "Kept for backward, in bytes per element",
        "contender_keeps",
        {
            **_WHAT,
            "sitout": _kept("contender_keeps"),
            "its address, in all": _address,
            "baseline": _baseline,
            "of the baseline": _kept("baseline_keeps"),
        },
    ),
]


def section_of(row: Row) -> Section:
    """Return the table to which a row belongs: the first, unless another has its key."""
    return next((section for section in SECTIONS[1:] if section.key in row), SECTIONS[0])


def to_lines(rows: Iterable[Row]) -> Iterable[str]:
    """Yield the rows for a terminal, under a head where another table begins."""
    before = None
    for row in rows:
        section = section_of(row)
        if section is not before:
            yield " | ".join(section.columns)
        before = section
        yield " | ".join(section.cells(row))


def to_json(rows: Sequence[Row]) -> str:
    """Return the rows, one a line."""
    lines = ",\n".join(json.dumps(row) for row in rows)
    return f"[\n{lines}\n]\n"


def to_markdown(rows: Sequence[Row], name: str) -> str:
    """Return the page.

    Args:
        rows: of one run.
        name: of the files, without the ending.
    """
    first = rows[0]
    parts = [f"# Speed on the {first['device'].upper()}", NOTE.format(name=name), _where(first)]
    parts += ["## What must be shown", _table(["what", "must be", "is", ""], verdicts(rows))]
    for section in SECTIONS:
        body = [section.cells(row) for row in rows if section_of(row) is section]
        if body:
            parts += [f"## {section.title}", _table(list(section.columns), body)]
    return "\n\n".join(parts) + "\n"


def _where(row: Row) -> str:
    machine, versions = row["machine"], row["versions"]
    named = ", ".join(f"{name} {version or '(none)'}" for name, version in versions.items())
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['target']}, {machine['os']}. "
        f"{named}. Commit {row['commit']}, {row['date']}."
    )


def _table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
