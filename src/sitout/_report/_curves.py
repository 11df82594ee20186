"""Charts of curves: error or loss by epoch, and error by the share of silenced units."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

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
        for rows, solid in (("train", False), ("validation", True)):
            curve = arm.learning[f"{rows}_{measure}"]
            shown.append(curve)
            label = f"{text(arm.name)}, {'validation' if solid else 'training'}"
            traces += _traces(arm, curve, factor, unit, label=label, solid=solid)
    name = f"error, {text(study.unit)}" if unit == "" and measure == "error" else measure
    longest = max(len(curve.x) for curve in shown)
    layout = frame(
        "epochs",
        x={"showgrid": False, "rangemode": "tozero", "dtick": 1 if longest <= 10 else None},
        y={"ticksuffix": unit, "nticks": 6, "range": [0, factor * _ceiling(shown, longest // 5)]},
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
        "hidden units silenced",
        x={"ticksuffix": " %", "showgrid": False, "nticks": 6},
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
    solid: bool = True,
    across: float = 1.0,
) -> list[go.Scatter]:
    """Return the band, the line, and a ring on the last point that all repeats reached."""
    x = [across * value for value in curve.x]
    low, mean, high = ([factor * v for v in vs] for vs in (curve.low, curve.mean, curve.high))
    value = f"%{{y:{'.2f' if unit else '.3~g'}}}{unit}"
    all_of_them = max(curve.repeats)
    fewer = ["" if n == all_of_them else f" ({n} repeats)" for n in curve.repeats]
    ink, meta = colour(arm.name), {"arm": arm.name}
    traces = [
        go.Scatter(
            x=x + x[::-1],
            y=high + low[::-1],
            mode="lines",
            line={"width": 0},
            fill="toself",
            fillcolor=faint(arm.name),
            hoverinfo="skip",
            meta=meta,
        ),
        go.Scatter(
            x=x,
            y=mean,
            mode="lines" if len(x) > 1 else "markers",
            line={
                "color": ink,
                "width": 2.5 if solid else 1.75,
                "dash": "solid" if solid else "dash",
            },
            marker={"color": ink, "size": 9, "symbol": "circle" if solid else "circle-open"},
            name=label,
            customdata=fewer,
            hovertemplate=value + "%{customdata}",
            meta=meta,
        ),
    ]
    last = curve.repeats.count(all_of_them) - 1
    if any(fewer):
        ring = {"color": ink, "size": 9, "symbol": "circle-open", "line": {"width": 2}}
        at = {"x": [x[last]], "y": [mean[last]], "mode": "markers", "marker": ring}
        traces.append(go.Scatter(**at, hoverinfo="skip", meta=meta))
    return traces


def _ceiling(curves: list[Curve], first: int) -> float:
    """Return the upper end of the vertical axis: what lies before epoch ``first`` may leave it."""
    return 1.05 * max(max(curve.high[first:] or curve.high[-1:]) for curve in curves) or 1.0
