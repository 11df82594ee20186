"""Our figures on the UCI sets beside the published ones."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from uci_sets import PUBLISHED, SETS, Numbers

Row = dict[str, Any]
NOTE = """\
Ours: mean over the splits +- standard error. 2016: the paper, +- standard deviation over splits;
2018: the authors' search over a grid, all its splits, +- standard error; ensembles: Deep Ensembles.
"apart" is ours minus 2018 over the root of the summed squares of both standard errors.
Weight scaling is one pass without dropout; its log-likelihood is that of a Gaussian, with the same
tau, or with the precision of its errors on the validation rows ("fitted")."""


def mean(rows: Sequence[Row], field: str) -> Numbers:
    """Return the mean over rows and its standard error, which is nan for one row."""
    each = [row[field] for row in rows]
    spread = statistics.stdev(each) if len(each) > 1 else math.nan
    return statistics.mean(each), spread / math.sqrt(len(each))


def apart(ours: Numbers, published: Numbers) -> float:
    """Return by how many standard errors two means differ."""
    return (ours[0] - published[0]) / math.hypot(ours[1], published[1])


def groups(rows: Sequence[Row]) -> list[list[Row]]:
    """Return the rows of each set and plan, in the order of the sets."""
    found: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: (list(SETS).index(row["set"]), row["split"])):
        found.setdefault(f"{row['set']} {row['plan']}", []).append(row)
    return list(found.values())


def _shown(numbers: Numbers) -> str:
    digits = 5 if abs(numbers[0]) < 0.01 else 4 if abs(numbers[0]) < 0.2 else 3
    return f"{numbers[0]:.{digits}f} +- {numbers[1]:.{digits}f}"


def _line(rows: Sequence[Row], which: int) -> list[str]:
    name, field = rows[0]["set"], ("rmse", "ll")[which]
    ours, published = mean(rows, field), PUBLISHED[name]
    said = [name, str(len(rows)), str(rows[0]["epochs"]), _shown(ours)]
    said += [_shown(published.first[which]), _shown(published.grid[which])]
    said += [f"{apart(ours, published.grid[which]):+.1f}", f"{published.ensembles[which]:g}"]
    if which == 0:
        said += [_shown(mean(rows, "single_rmse")), f"{published.single:g}"]
        return [*said, _shown(mean(rows, "scaled_rmse"))]
    return [*said, _shown(mean(rows, "scaled_ll")), _shown(mean(rows, "fitted_ll"))]


def _table(title: str, more: Sequence[str], rows: Sequence[Row], which: int) -> str:
    head = ["set", "splits", "epochs", "ours", "2016", "2018", "apart", "ensembles", *more]
    lines = [head, ["---"] * len(head), *(_line(group, which) for group in groups(rows))]
    return "\n".join([f"## {title}", "", *("| " + " | ".join(line) + " |" for line in lines)])


def text(rows: Sequence[Row]) -> str:
    """Return both tables."""
    more = ["single pass", "single pass, 2018", "weight scaling"]
    rmse = _table("RMSE, lower is better", more, rows, 0)
    more = ["weight scaling", "weight scaling, fitted"]
    return "\n\n".join([NOTE, rmse, _table("Log-likelihood, higher is better", more, rows, 1)])
