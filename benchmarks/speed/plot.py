"""The picture that the README shows: time per element over the size of the tensor."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

from .kinds import Row

FAMILY = "dropout-float32-2^"
STYLES = {
    "torch": ("torch, eager", "#c44e52", "o"),
    "torch.compile": ("torch.compile", "#dd8452", "s"),
    "sitout": ("sitout", "#2060b0", "D"),
    "clone": ("a plain copy: clone()", "#707070", "^"),
}


def lines(rows: Sequence[Row]) -> dict[str, list[tuple[int, float]]]:
    """Return for each contender of the family its sizes, and nanoseconds per element."""
    found: dict[str, dict[int, float]] = {name: {} for name in STYLES}
    for row in rows:
        if row["case"].startswith(FAMILY) and "ratio" in row:
            (size,) = row["shape"]
            for name, key in ((row["contender"], "contender_us"), (row["baseline"], "baseline_us")):
                found[name][size] = 1e3 * row[key]["median"] / size
    return {name: sorted(points.items()) for name, points in found.items()}


def draw(rows: Sequence[Row]) -> str:
    """Return the picture as SVG.

    Args:
        rows: of a run that holds the family.
    """

    def fill(axes: Any) -> None:
        for name, points in lines(rows).items():
            if points:
                label, color, marker = STYLES[name]
                axes.plot(*zip(*points, strict=True), label=label, color=color, marker=marker)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("elements of the tensor")
        axes.set_ylabel("nanoseconds per element")
        axes.set_title("Forward dropout of float32 on one CPU thread: lower is faster")

    return svg(fill)


def svg(fill: Callable[[Any], None]) -> str:
    """Return a picture of one pair of axes: the same file for the same content.

    Args:
        fill: draws into the axes.
    """
    import matplotlib as mpl
    from matplotlib import figure

    # Text stays text, and the same rows give the same file.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "sitout", "font.size": 11}):
        picture = figure.Figure(figsize=(7.5, 4.5), layout="constrained")
        axes = picture.subplots()
        fill(axes)
        axes.grid(which="major", color="#dddddd")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
        held = io.StringIO()
        picture.savefig(held, format="svg", metadata={"Date": None})
    return held.getvalue()
