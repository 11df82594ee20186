"""Charts of curves: error or loss by epoch, and error by the share of silenced units."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from sitout._optional import needs

from ._format import Numbers
from ._style import caption, colour, faint, frame, text

with needs("study", "the report of sitout.study"):
    import plotly.graph_objects as go

if TYPE_CHECKING:
    from sitout._study.results import Arm, Curve, Study


def learning(study: Study, measure: Literal["error", "loss"]) -> go.Figure:
    """Return the learning curves: dashed on the training rows, solid on the validation rows.

    Args:
        study: with the curves ``train_<measure>`` and ``validation_<measure>`` in every arm.
        measure: what is drawn; errors in per cent or the target's unit, losses as they are.
    """
    per_cent = measure == "error" and Numbers.of(study).per_cent
    factor, unit = (100.0, " %") if per_cent else (1.0, "")
    traces, shown = [], []
    for arm in study.arms:
        for rows, dash in (("train", "dash"), ("validation", "solid")):
            curve = arm.learning[f"{rows}_{measure}"]
            shown.append(curve)
            label = f"{text(arm.name)}, {'training' if rows == 'train' else rows}"
            traces += _traces(arm, curve, factor, unit, dash=dash, label=label)
    name = f"error, {text(study.unit)}" if unit == "" and measure == "error" else measure
    layout = frame(
        x={"title": "epochs", "showgrid": False, "rangemode": "tozero"},
        y={"ticksuffix": unit, "nticks": 6, "range": [0, factor * _ceiling(shown)]},
        annotations=[caption(name)],
        hovermode="x unified",
    )
    return go.Figure(traces, layout)


def silencing(study: Study) -> go.Figure | None:
    """Return validation error by the share of silenced units, or None without hidden units."""
    factor, unit = (100.0, " %") if Numbers.of(study).per_cent else (1.0, "")
    traces = []
    for arm in study.arms:
        if arm.silencing:
            traces += _traces(arm, arm.silencing, factor, unit, label=text(arm.name), across=100)
    if not traces:
        return None
    layout = frame(
        x={"title": "hidden units silenced", "ticksuffix": " %", "showgrid": False, "nticks": 11},
        y={"ticksuffix": unit, "nticks": 6, "rangemode": "tozero"},
        annotations=[caption("validation error" + ("" if unit else f", {text(study.unit)}"))],
        hovermode="x unified",
    )
    return go.Figure(traces, layout)


def _traces(
    arm: Arm,
    curve: Curve,
    factor: float,
    unit: str,
    *,
    label: str,
    dash: str = "solid",
    across: float = 1.0,
) -> list[go.Scatter]:
    """Return band, pale line over all points, and line over the points all repeats reached."""
    x = [across * value for value in curve.x]
    low, mean, high = ([factor * v for v in vs] for vs in (curve.low, curve.mean, curve.high))
    reached = sum(n == max(curve.repeats) for n in curve.repeats)
    look: dict[str, Any] = {
        "mode": "lines+markers" if len(x) == 1 else "lines",
        "line": {"color": colour(arm.name), "width": 1.75 if dash == "dash" else 2.5, "dash": dash},
        "meta": {"arm": arm.name},
        "name": label,
    }
    band = {"fill": "toself", "fillcolor": faint(arm.name), "line": {"width": 0}, "mode": "lines"}
    return [
        go.Scatter(
            x=x + x[::-1], y=high + low[::-1], hoverinfo="skip", meta={"arm": arm.name}, **band
        ),
        go.Scatter(
            x=x,
            y=mean,
            opacity=0.4,
            customdata=curve.repeats,
            hovertemplate=f"%{{y:.3~g}}{unit} <i>(%{{customdata}} repeats)</i>",
            **look,
        ),
        go.Scatter(x=x[:reached], y=mean[:reached], hoverinfo="skip", **look),
    ]


def _ceiling(curves: list[Curve]) -> float:
    """Return the upper end of the vertical axis: the first tenth of the epochs may leave it."""
    return 1.05 * max(max(curve.high[len(curve.x) // 10 :]) for curve in curves) or 1.0
