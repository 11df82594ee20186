"""The results as a table for a terminal, and as plain lines for everything else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sitout._optional import needs

from ._format import Numbers, p_value

with needs("study", "the report of sitout.study"):
    from rich import box
    from rich.table import Table
    from rich.text import Text

if TYPE_CHECKING:
    from sitout._study.results import Arm, Study

_STYLES = {"helps": "green", "harms": "red"}


def table(study: Study) -> Table:
    """Return the arms as a table for a terminal of 80 columns or more.

    Errors are in per cent and differences in points, or both in the target's unit.
    """
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for number, title in enumerate(_titles(study)):
        shown.add_column(Text(title), justify="right" if number else "left", no_wrap=True)
    for arm in study.arms:
        outcome = arm.versus_none.outcome if arm.versus_none else ""
        *cells, effect, p = _cells(arm, Numbers.of(study))
        bold = "bold" if arm.name == "dropout" else ""
        shown.add_row(
            *map(Text, cells), Text(effect, _STYLES.get(outcome, "")), Text(p), style=bold
        )
    return shown


def plain(study: Study) -> str:
    """Return the same as aligned lines of text, without colour or rules."""
    titles = [title.replace("\n", " ") for title in _titles(study)]
    rows = [titles, *(_cells(arm, Numbers.of(study)) for arm in study.arms)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *cells in rows:
        padded = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *padded]).rstrip())
    return "\n".join(lines)


def _titles(study: Study) -> list[str]:
    unit = study.unit if len(study.unit) <= 12 else study.unit[:11] + "…"
    return ["arm", "test\nerror", "train\nerror", "gap", f"minus none,\n{unit} [95 %]", "Holm p"]


def _cells(arm: Arm, numbers: Numbers) -> list[str]:
    errors = [numbers.error(arm.test_error.mean), numbers.error(arm.train_error.mean)]
    gap = numbers.amount(arm.gap.mean)
    versus = arm.versus_none
    if versus is None:
        return [arm.name, *errors, gap, "", ""]
    interval = numbers.interval(versus.low, versus.high)
    effect = f"{numbers.difference(versus.mean)} {interval}"
    return [arm.name, *errors, gap, effect, p_value(versus.p_holm)]
