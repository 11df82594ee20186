"""The page: one HTML file with everything in it, so that it opens anywhere, without a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sitout._optional import needs

from . import _format
from ._curves import learning, silencing
from ._differences import differences
from ._style import colour

with needs("study", "the report of sitout.study"):
    import plotly.graph_objects as go
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from plotly.offline import get_plotlyjs

if TYPE_CHECKING:
    from sitout._study.results import Study


def html(study: Study) -> str:
    """Return a study as one self-contained HTML page of about 5 MB (the chart library is inside).

    Errors of classification are written in per cent and their differences in points; errors of
    regression in the target's unit. The page loads nothing: a content security policy in its
    head forbids it to.

    Args:
        study: with any number of arms; charts that have nothing to show are left out.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    charts = _charts(study)
    return environment.get_template("report.html.j2").render(
        study=study,
        numbers=_format.Numbers.of(study, minus=_format.MINUS),
        p_value=_format.p_value,
        seconds=_format.seconds,
        settings=_format.settings,
        colour=colour,
        charts=charts,
        figures=_script(charts),
        plotly=get_plotlyjs(),
        counts=_counts(study),
        at_first=_at_first(study),
    )


def _charts(study: Study) -> dict[str, dict[str, go.Figure]]:
    """Return the charts by name; each has one or more figures, of which one is on view."""
    charts = {
        "differences": {"error": differences(study)},
        "learning": {"error": learning(study, "error"), "loss": learning(study, "loss")},
        "silencing": {"error": silencing(study)},
    }
    return {name: figures for name, figures in charts.items() if figures["error"] is not None}


def _script(charts: dict[str, dict[str, go.Figure]]) -> str:
    """Return the figures as JSON that cannot close the script element it stands in."""
    plain = {
        n: {m: f.to_plotly_json() for m, f in figures.items()} for n, figures in charts.items()
    }
    return json.dumps(plain, allow_nan=False).replace("<", "\\u003c")


def _counts(study: Study) -> dict[str, Any]:
    """Return how many repeats and trials there were, and if any stopped early."""
    trials = [len(arm.trials) for arm in study.arms]
    repeats = len(study.arms[0].test_error.values)
    return {
        "repeats": repeats,
        "trials": (min(trials), max(trials)),
        "tried": sum(trials),
        "early": any(len(set(c.repeats)) > 1 for arm in study.arms for c in arm.learning.values()),
    }


def _at_first(study: Study) -> set[str]:
    """Return the arms whose learning curves are on view at first: more would hide each other."""
    names = [arm.name for arm in study.arms]
    return {"none", "dropout", study.best} & set(names) if len(names) > 3 else set(names)
