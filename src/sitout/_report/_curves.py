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
    factor, value, suffix = _written(per_cent)
    traces, shown = [], []
    for arm in study.arms:
        for rows, words, solid in (
            ("train", "training", False),
            ("validation", "validation", True),
        ):
            curve = arm.learning[f"{rows}_{measure}"]
            shown.append(curve)
            hover = f"{words} rows, epoch %{{x}}: {value}"
            traces += _traces(arm, curve, factor, hover, solid=solid)
    longest = max(curve.x[-1] for curve in shown)
    top = factor * _ceiling(shown, longest / 5)
    plain = measure == "loss" or per_cent
    layout = frame(
        "epochs",
        x={"showgrid": False, "rangemode": "tozero", "dtick": 1 if longest <= 10 else None},
        y={"ticksuffix": suffix, "nticks": 6, "range": [0, top]},
        annotations=[caption(measure if plain else f"error, {text(study.unit)}")],
        hoverdistance=40,
    )
    return go.Figure(traces, layout)


def silencing(study: Study) -> go.Figure | None:
    """Return validation error by the share of silenced units, or None without hidden units."""
    per_cent = Numbers.of(study).per_cent
    factor, value, suffix = _written(per_cent)
    traces = []
    for arm in study.arms:
        if arm.silencing:
            hover = f"%{{x}} silenced: {value}"
            traces += _traces(arm, arm.silencing, factor, hover, across=100.0)
    if not traces:
        return None
    layout = frame(
        "hidden units silenced",
        x={"ticksuffix": " %", "hoverformat": ".0f", "showgrid": False, "nticks": 6},
        y={"ticksuffix": suffix, "nticks": 6, "rangemode": "tozero"},
        annotations=[caption("validation error" + ("" if per_cent else f", {text(study.unit)}"))],
        hoverdistance=40,
    )
    return go.Figure(traces, layout)


def _written(per_cent: bool) -> tuple[float, str, str]:
    """Return the factor on what is drawn, plotly's format of a value, and its suffix."""
    return (100.0, "%{y:.2f} %", " %") if per_cent else (1.0, "%{y:.3~g}", "")


def _traces(
    arm: Arm,
    curve: Curve,
    factor: float,
    hover: str,
    *,
    solid: bool = True,
    across: float = 1.0,
) -> list[go.Scatter]:
    """Return the band, the line, and a ring on the last point that all repeats reached."""
    x = [across * value for value in curve.x]
    low, mean, high = ([factor * v for v in vs] for vs in (curve.low, curve.mean, curve.high))
    everyone = max(curve.repeats)
    fewer = ["" if n == everyone else f" ({n} repeats)" for n in curve.repeats]
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
            line={"color": ink, "width": 2.5, "dash": "solid"}
            if solid
            else {"color": ink, "width": 1.75, "dash": "dash"},
            marker={"color": ink, "size": 9, "symbol": "circle" if solid else "circle-open"},
            customdata=fewer,
            hovertemplate=f"{text(arm.name)}, {hover}%{{customdata}}<extra></extra>",
            meta=meta,
        ),
    ]
    last = curve.repeats.count(everyone) - 1
    if any(fewer):
        ring = {"color": ink, "size": 9, "symbol": "circle-open", "line": {"width": 2}}
        at = {"x": [x[last]], "y": [mean[last]], "mode": "markers", "marker": ring}
        traces.append(go.Scatter(**at, hoverinfo="skip", meta=meta))
    return traces


def _ceiling(curves: list[Curve], first: float) -> float:
    """Return the upper end of the vertical axis: what lies before epoch ``first`` may leave it."""
    seen = [high for c in curves for epoch, high in zip(c.x, c.high, strict=True) if epoch >= first]
    return 1.05 * max(seen) or 1.0
