"""Rules on what a dropout gets, and on what gets its result."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._rule import Hit, at, rate, rule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._evidence import Evidence

_ELEMENTS = ("dropout", "dropout1d", "dropout2d", "dropout3d", "mask", "gaussian")
_RANKS = {"dropout1d": (3, "[B, C, L]"), "dropout2d": (4, "[B, C, H, W]")}
_RANKS["dropout3d"] = (5, "[B, C, D, H, W]")


@rule("A8", "dropout-before-batchnorm", "warning")
def before_batchnorm(evidence: Evidence) -> Iterator[Hit]:
    """Dropout whose variance a BatchNorm takes for that of the data."""
    runs = evidence.runs
    for place, norm, between in dict.fromkeys(runs.flow.before_norm) if runs else ():
        site = runs.site_of(place) if runs else None
        if site is not None and place.kind in _ELEMENTS:
            way = f"through {between}" if between else "directly"
            yield at(
                site,
                f"It feeds the BatchNorm {norm!r} {way}, whose running variance is then that of "
                "dropped values.",
                "Put dropout behind the last BatchNorm.",
                "note" if between else None,
            )


@rule("A10", "channels-are-not-dim-1", "warning")
def channels(evidence: Evidence) -> Iterator[Hit]:
    """Channel dropout on a tensor whose dim 1 is no channel."""
    runs = evidence.runs
    for place in runs.train.places.values() if runs else ():
        site = runs.site_of(place) if runs else None
        rank = _RANKS.get(place.kind)
        if site is None or rank is None or not place.shape or len(place.shape) == rank[0]:
            continue
        message = (
            f"{site.type} takes {rank[1]} and gets {len(place.shape)} dims, {place.shape}: what "
            "it takes for a channel is something else."
        )
        yield at(site, message, "Use the layer that fits, or transpose.", "error")
    for place, name in dict.fromkeys(runs.flow.rows) if runs else ():
        site = runs.site_of(place) if runs else None
        if site is not None:
            message = (
                f"It drops along dim 1 of {place.shape}, but {name!r} takes the last dim for the "
                "channels: whole time steps or tokens are dropped."
            )
            yield at(site, message, "Transpose around it, or use shared_dims of sitout.nn.Dropout.")


@rule("A11", "drop-path-along-the-wrong-dim", "error")
def wrong_batch_dim(evidence: Evidence) -> Iterator[Hit]:
    """Stochastic depth that drops something other than samples."""
    runs = evidence.runs
    for place, grows in runs.batch if runs else ():
        site = runs.site_of(place) if runs else None
        if site is None or place.shape is None or place.shared_dims is None or not grows:
            continue
        own = {
            dim for dim, size in enumerate(place.shape) if dim not in place.shared_dims and size > 1
        }
        if own and not own & grows:
            message = (
                f"It drops along dim {min(own)} of {place.shape}, but the samples lie along dim "
                f"{min(grows)}."
            )
            yield at(
                site, message, "Give it the batch first, or use sitout.nn.DropPath(batch_dim=)."
            )


@rule("A13", "in-place-on-what-is-needed", "error")
def in_place(evidence: Evidence) -> Iterator[Hit]:
    """In-place dropout on a tensor that something else still needs."""
    runs = evidence.runs
    for place, op in dict.fromkeys(runs.flow.saved) if runs else ():
        site = runs.site_of(place) if runs else None
        if site is not None:
            message = f"It writes into the output of {op}, which needs it for its gradient."
            yield at(site, message, "Leave inplace=True out: backward would raise an error.")
    for place in runs.flow.reused if runs else ():
        site = runs.site_of(place) if runs else None
        if site is not None:
            message = "It writes into a tensor that is then added to its own dropped version."
            yield at(site, message, "Leave inplace=True out: the residual is dropped as well.")


@rule("A14", "dropout-and-selu", "warning")
def selu(evidence: Evidence) -> Iterator[Hit]:
    """Plain dropout after SELU, or alpha dropout after anything else."""
    runs = evidence.runs
    for place, after in runs.flow.after_selu.items() if runs else ():
        site = runs.site_of(place) if runs else None
        if site is None:
            continue
        if place.kind in ("dropout", "dropout1d", "dropout2d", "dropout3d") and any(after):
            message = f"Plain dropout ({rate(place.p)}) after SELU: mean and variance change."
            yield at(site, message, "Use AlphaDropout, which keeps both.")
        elif place.kind in ("alpha", "feature_alpha") and not any(after):
            message = "Alpha dropout drops to SELU's lower bound, but does not follow a SELU."
            yield at(site, message, "Use plain Dropout, or SELU before it.")
