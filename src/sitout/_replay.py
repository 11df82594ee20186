"""Which units sat out where: a mask of a past step, made again from the state of a clock."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from . import _checks
from ._clock_rules import check_positions, check_state, number_of
from .masks import MaskKey, effective_rate, keep_mask

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


class ReplayError(ValueError):
    """A mask cannot be made as asked: one line that says why, and the way out."""


class Replay(NamedTuple):
    """A mask that was used.

    Attributes:
        name: of the site, as the model calls it.
        key: the address.
        p: the rate that holds.
        rows: int64 ``[R]``, the positions of the rows.
        keep: bool ``[R, ...]``, the rows first, without the dims in which one bit serves all.
    """

    name: str
    key: MaskKey
    p: float
    rows: Tensor
    keep: Tensor

    def lines(self) -> Iterator[str]:
        """Yield what a reader wants to know: one line for the site, and one for each row."""
        key, n, out = self.key, self.keep.numel(), int(self.keep.logical_not().sum())
        yield (
            f"layer {self.name!r} (site {key.site}), step {key.step}, call {key.call}, "
            f"seed {key.seed}, p = {self.p:g}: {out} of {n} sat out"
        )
        for row, keep in zip(self.rows.tolist(), self.keep, strict=True):
            yield f"row {row}: {_told(keep)}"

    def to_json(self) -> str:
        """Return the address and, for each row, the indices of the units that sat out."""
        out = {
            str(row): keep.logical_not().nonzero().squeeze(-1).tolist()
            for row, keep in zip(self.rows.tolist(), self.keep, strict=True)
        }
        key = self.key
        address = {"seed": key.seed, "site": key.site, "step": key.step, "call": key.call}
        return json.dumps({"name": self.name, **address, "p": self.p, "sat_out": out})


def replay(
    state: str | Path | Mapping[str, Any],
    site: str | int,
    step: int,
    shape: Sequence[int],
    p: float,
    *,
    call: int = 0,
    rows: Tensor | None = None,
    shared_dims: Sequence[int] = (),
    batch_dim: int = 0,
) -> Replay:
    """Make the mask again that a layer used under a clock.

    Args:
        state: what ``state_dict()`` of the clock gave, or a file that holds it: written by
            ``torch.save``, at any depth of a dict, or JSON.
        site: the qualified name of the layer, or its number.
        step: the optimizer step.
        shape: of the layer's input, ``[B, ...]``; with ``rows`` its B does not count.
        p: drop rate, a fraction in [0, 1].
        call: how many times the layer had run before within the step.
        rows: int64 ``[R]``, the positions of the samples to show; 0 .. B-1 if None.
        shared_dims: dims along which one mask bit serves all, those of the layer's kind included.
        batch_dim: the dim of the samples.

    Raises:
        ReplayError: the file cannot be read, the site is unknown, or an option does not fit.
    """
    held = _read(Path(state)) if isinstance(state, (str, Path)) else state
    if any(size < 0 for size in shape):
        raise ReplayError(_checks.message("`shape`", "made of sizes of 0 or more", tuple(shape)))
    try:
        seed, sites, _ = check_state(held)
        if rows is not None:
            check_positions(rows)
            row_dim = batch_dim % len(shape) if len(shape) > 1 else -1
            shape = [len(rows) if dim == row_dim else size for dim, size in enumerate(shape)]
        number = number_of(site, sites)
        key = MaskKey(seed, number, step, call)
        keep = keep_mask(key, p, shape, shared_dims=shared_dims, batch_dim=batch_dim, rows=rows)
        rate = effective_rate(p)
    except (TypeError, ValueError) as error:
        raise ReplayError(str(error)) from error
    except (RuntimeError, OverflowError, MemoryError) as error:
        what, rule = "`shape`", "of a mask that fits into memory"
        raise ReplayError(_checks.message(what, rule, tuple(shape))) from error
    batch = batch_dim % keep.dim() if keep.dim() > 1 else None
    keep = keep.unsqueeze(0) if batch is None else keep.movedim(batch, 0)
    if rows is None or len(rows) != len(keep):
        rows = torch.arange(len(keep))
    units = [size for size in keep.shape[1:] if size != 1]
    name = next(name for name, own in sites.items() if own == number)
    return Replay(name, key, rate, rows, keep.reshape(len(keep), *units))


def _told(keep: Tensor) -> str:
    if keep.dim() == 0:
        return "played" if keep else "sat out"
    out = keep.logical_not().nonzero().tolist()
    if not out:
        return "all played"
    return "sat out: " + " ".join(",".join(map(str, index)) for index in out)


def _read(path: Path) -> Mapping[str, Any]:
    """Return the state of a clock that a file holds."""
    try:
        if path.suffix == ".json":
            held = json.loads(path.read_text())
        else:
            held = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ReplayError(f"Cannot read {path}: {error.strerror or error}.") from error
    except Exception as error:  # a file of another kind may fail in any way
        rule = "a file that torch.save wrote from plain dicts and tensors, or JSON"
        way_out = "Save it with torch.save(clock.state_dict(), path)."
        raise ReplayError(_checks.message("The state", rule, str(path), way_out)) from error
    found = _find(held)
    if found is None:
        what, rule = f"{path}", "a file that holds clock.state_dict()"
        got = sorted(held)[:5] if isinstance(held, dict) else type(held).__name__
        raise ReplayError(_checks.message(what, rule, got))
    return found


def _find(held: object) -> Mapping[str, Any] | None:
    """Return the first dict, at any depth, that looks like the state of a clock."""
    if not isinstance(held, dict):
        return None
    if {"spec", "seed", "sites", "used"} <= set(held):
        return held
    return next((state for state in map(_find, held.values()) if state is not None), None)
