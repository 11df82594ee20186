"""What the probe reports: a place where units can sit out, and the list of them."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

Via = Literal["module", "attribute", "call", "mask"]

_Z = 1.959963984540054  # 97.5 % of the normal distribution
_ENOUGH = 100


@dataclass(frozen=True)
class Measured:
    """A drop rate as it was seen.

    Attributes:
        rate: the share of the independent bits that dropped, a fraction in [0, 1].
        low: lower end of its 95 % interval.
        high: upper end.
        bits: how many independent bits there were.

    Example:
        >>> from sitout._sites import Measured
        >>> Measured.of(10, 100)
        Measured(rate=0.1, low=0.055..., high=0.174..., bits=100)
    """

    rate: float
    low: float
    high: float
    bits: int

    @classmethod
    def of(cls, dropped: int, bits: int) -> Measured | None:
        """Return the rate with its interval; None of fewer than 100 bits.

        Reference:
            Wilson 1927, JASA 22:209-212: the score interval.
        """
        if bits < _ENOUGH:
            return None
        rate, low, high = dropped / bits, *wilson(dropped, bits, _Z)
        return cls(rate, low, high, bits)


def wilson(dropped: int, bits: int, z: float) -> tuple[float, float]:
    """Return the ends of the score interval of a share, ``z`` standard deviations wide."""
    rate, scale = dropped / bits, 1.0 + z * z / bits
    middle = (rate + z * z / (2 * bits)) / scale
    half = z / scale * math.sqrt(rate * (1.0 - rate) / bits + z * z / (4 * bits * bits))
    return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True)
class Site:
    """A place in a model where units can sit out, as the probe saw it.

    Attributes:
        name: qualified name of the module that drops, or in whose code the drop stands; "" is the
            root.
        type: class of that module.
        via: how: ``module`` (it does nothing but drop), ``attribute`` (a float of a module that
            does more, as in ``MultiheadAttention`` or ``LSTM``), ``call`` (of a function such as
            ``F.dropout``), ``mask`` (random numbers that the code turns into a mask or decision).
        kind: ``dropout``, ``dropout1d``, ``dropout2d``, ``dropout3d``, ``alpha``,
            ``feature_alpha``, ``gaussian``, ``drop_path``, ``drop_block``, ``attention``, ``rnn``,
            ``layer_drop`` (a random number decides whether code runs), ``subset`` (a random
            choice of indices), ``mask``, ``outside`` (random numbers of Python or numpy).
        p: drop rate that was asked for, a fraction; None if it is not known. Where the calls
            differ, the largest.
        measured: drop rate that was seen in training, if there were enough elements.
        shape: of what is dropped from; None if nothing ran.
        shared_dims: dims along which one mask bit serves all; None if no mask was seen.
        calls: how many times it ran in the training forward.
        active_in_train: units sat out in the training forward.
        active_in_eval: units sat out in the evaluation forward, too.
        source: ``file.py:12``, the line of the call; None for code without a file.
        rate_at: the attribute that holds the rate, ``encoder.layers.0.self_attn.dropout``.
        note: what else there is to say.

    Example:
        >>> [site] = sitout.sites(torch.nn.Dropout(0.5), torch.ones(4, 64))
        >>> site.kind, site.p, site.shape, site.active_in_train, site.active_in_eval
        ('dropout', 0.5, (4, 64), True, False)
    """

    name: str
    type: str
    via: Via
    kind: str
    p: float | None
    measured: Measured | None
    shape: tuple[int, ...] | None
    shared_dims: tuple[int, ...] | None
    calls: int
    active_in_train: bool
    active_in_eval: bool
    source: str | None
    rate_at: str | None
    note: str = ""


class Sites(list[Site]):
    """The sites of a model, in the order in which they first ran; prints as a table.

    Args:
        sites: what it holds.
        changed: Python attributes that the forward changed, by their paths; they were given their
            old values back. An attribute too.

    Example:
        >>> sites = sitout.sites(torch.nn.Sequential(torch.nn.ReLU()), torch.ones(2, 3))
        >>> print(sites)
        No site: nothing in this model drops anything.
    """

    def __init__(self, sites: list[Site], changed: list[str]) -> None:
        super().__init__(sites)
        self.changed = changed

    def to_json(self) -> str:
        """Return the sites and the changed attributes as JSON."""
        return json.dumps({"sites": [asdict(site) for site in self], "changed": self.changed})

    def __str__(self) -> str:
        if not self:
            return "No site: nothing in this model drops anything."
        rows = [_HEADER, *(_row(site) for site in self)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADER))]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        if self.changed:
            lines.append(f"The forward changes {', '.join(self.changed)}.")
        return "\n".join(lines)


_HEADER = (
    *("site", "kind", "p", "measured", "shape", "shared", "calls", "train", "eval"),
    *("source", "note"),
)


def _row(site: Site) -> tuple[str, ...]:
    seen = site.measured
    return (
        site.name or "(root)",
        site.kind if site.via in ("module", "attribute") else f"{site.kind} ({site.via})",
        "?" if site.p is None else f"{site.p:.4g}",
        "" if seen is None else f"{seen.rate:.3f} [{seen.low:.3f}, {seen.high:.3f}]",
        "" if site.shape is None else "x".join(map(str, site.shape)) or "scalar",
        "" if not site.shared_dims else ",".join(map(str, site.shared_dims)),
        str(site.calls),
        "on" if site.active_in_train else "off",
        "ON" if site.active_in_eval else "off",
        short(site.source),
        site.note,
    )


def short(source: str | None) -> str:
    """Return the last two parts of the path of a source line: ``bert/modeling_bert.py:12``."""
    return "" if source is None else "/".join(Path(source).parts[-2:])
