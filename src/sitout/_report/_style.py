"""The look of the charts: one colour per arm, and a frame without ornament."""

from __future__ import annotations

from html import escape
from typing import Any

_COLOURS = {
    "none": "#80868e",
    "dropout": "#2f6bd8",
    "l2": "#0f8f6c",
    "max-norm": "#cf7a0c",
    "early-stopping": "#b4559c",
    "dropout+max-norm": "#3aa5dc",
    "thinned": "#c23b4b",
    "thinned+max-norm": "#8d6b94",
}
_FONT = '-apple-system, BlinkMacSystemFont, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'


def colour(arm: str) -> str:
    """Return the colour of an arm, as ``#rrggbb``: the same in all charts, light and dark.

    They are variants of the palette of Okabe and Ito (2008), which colour-blind readers can
    tell apart, darkened until each stands out from white as well as from black.
    """
    return _COLOURS.get(arm, "#8a6d3b")


def faint(arm: str) -> str:
    """Return the colour of an arm's bands, as ``rgba(...)``."""
    red, green, blue = (int(colour(arm)[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, 0.1)"


def text(words: str, longest: int = 40) -> str:
    """Return user text for a chart: markup is escaped, what is too long is cut."""
    return escape(words if len(words) <= longest else words[: longest - 1] + "…", quote=False)


def frame(title: str, *, x: dict[str, Any], y: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return a plotly layout. The page's style sheet colours text and grid, light or dark.

    Args:
        title: of the horizontal axis.
        x: settings of the horizontal axis.
        y: settings of the vertical axis.
        more: further layout settings.
    """
    axis = {
        "fixedrange": True,
        "zeroline": False,
        "ticks": "",
        "showline": False,
        "ticklabelstandoff": 6,
        "automargin": True,
    }
    return {
        "template": "none",
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": _FONT, "size": 13},
        "margin": {"l": 0, "r": 14, "t": 34, "b": 0},
        "xaxis": {
            **axis,
            "title": {"text": title, "font": {"size": 13}, "standoff": 14},
            **x,
        },
        "yaxis": {**axis, **y},
        "showlegend": False,
        "dragmode": False,
        "hovermode": "closest",
        "autosize": True,
        **more,
    }


def caption(words: str) -> dict[str, Any]:
    """Return an annotation above the upper left corner: the title of a vertical axis."""
    return {
        "text": words,
        "showarrow": False,
        "xref": "paper",
        "yref": "paper",
        "x": 0,
        "y": 1,
        "xanchor": "left",
        "yanchor": "bottom",
        "yshift": 10,
    }
