"""The chart of paired differences: every arm against ``none``, repeat by repeat."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sitout._optional import needs

from ._format import MINUS, Numbers
from ._style import colour, frame, text

with needs("study", "the report of sitout.study"):
    import plotly.graph_objects as go

if TYPE_CHECKING:
    from sitout._study.results import Arm, Difference, Study

_ROW = 68  # px


def differences(study: Study) -> go.Figure | None:
    """Return one row per arm: a line for the interval, a dot for each repeat; None without rows."""
    rows = [(arm, arm.versus_none) for arm in study.arms if arm.versus_none]
    if not rows:
        return None
    numbers = Numbers.of(study, minus=MINUS)
    traces, notes = [], _sides()
    for row, (arm, difference) in enumerate(rows):
        traces += _traces(arm, difference, -row, numbers)
        notes += _labels(arm, difference, -row, numbers)
    layout = frame(
        f"test error minus none, {text(study.unit)} (left is better)",
        x={
            "range": _range([d for _, d in rows], numbers),
            "zeroline": True,
            "zerolinewidth": 1.5,
            "nticks": 8,
        },
        y={"visible": False, "range": [0.5 - len(rows), 0.5]},
        annotations=notes,
        shapes=[_rule(0.5 - row) for row in range(1, len(rows))],
        margin={"l": 0, "r": 0, "t": 34, "b": 0},
        height=_ROW * len(rows) + 90,
    )
    return go.Figure(traces, layout)


def _traces(arm: Arm, difference: Difference, row: int, numbers: Numbers) -> list[go.Scatter]:
    ink = colour(arm.name)
    ends = [numbers.scaled(difference.low), numbers.scaled(difference.high)]
    values = [numbers.scaled(value) for value in difference.values]
    name = text(arm.name)
    repeats = [
        f"{name}, repeat {i}: {numbers.difference(v)}" for i, v in enumerate(difference.values)
    ]
    return [
        go.Scatter(
            x=values,
            y=[row - 0.32] * len(values),
            mode="markers",
            marker={"color": ink, "size": 8, "opacity": 0.45, "line": {"width": 0}},
            hovertext=repeats,
            hoverinfo="text",
        ),
        go.Scatter(
            x=ends,
            y=[row - 0.1] * 2,
            mode="lines",
            line={"color": ink, "width": 3},
            hoverinfo="skip",
        ),
        go.Scatter(
            x=[numbers.scaled(difference.mean)],
            y=[row - 0.1],
            mode="markers",
            marker={"color": ink, "size": 13},
            hovertext=[f"{name}, mean: {numbers.difference(difference.mean)}"],
            hoverinfo="text",
        ),
    ]


def _labels(arm: Arm, difference: Difference, row: int, numbers: Numbers) -> list[dict[str, Any]]:
    """Return the arm's name at the left end of its row, effect and interval at the right end."""
    interval = numbers.interval(difference.low, difference.high)
    base = {"y": row, "yshift": 17, "xref": "paper", "showarrow": False, "borderpad": 1}
    return [
        {**base, "x": 0, "xanchor": "left", "xshift": -2, "text": f"<b>{text(arm.name)}</b>"},
        {
            **base,
            "x": 1,
            "xanchor": "right",
            "text": f"<b>{numbers.difference(difference.mean)}</b>  {interval}",
        },
    ]


def _rule(y: float) -> dict[str, Any]:
    ends = {"x0": 0, "x1": 1, "xref": "paper", "y0": y, "y1": y}
    return {"type": "line", "layer": "below", "line": {"width": 1}, **ends}


def _sides() -> list[dict[str, Any]]:
    base = {"x": 0, "y": 1, "yref": "paper", "yanchor": "bottom", "yshift": 8, "showarrow": False}
    return [
        {**base, "xanchor": "right", "xshift": -8, "text": "← better"},
        {**base, "xanchor": "left", "xshift": 8, "text": "worse →"},
    ]


def _range(rows: list[Difference], numbers: Numbers) -> list[float]:
    """Return the ends of the horizontal axis, with room on both sides of zero."""
    found = [numbers.scaled(v) for d in rows for v in (*d.values, d.low, d.high)]
    low, high = min(*found, 0.0), max(*found, 0.0)
    span = high - low or 1.0
    return [min(low - 0.05 * span, -0.25 * span), max(high + 0.05 * span, 0.25 * span)]
