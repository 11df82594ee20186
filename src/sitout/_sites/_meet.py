"""Where random bits, or random indices, meet a tensor that is not random: there something drops."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ._flow import Draw, Law, overloads


@dataclass(frozen=True)
class Application:
    """Random bits, or a random choice of indices, meet a tensor that is not random.

    Args:
        draw: where the bits come from.
        x: what is dropped from; None where a random bit decides what code runs.
        mask: as it is applied; None for a decision or a choice of indices.
        p: the chance to drop, as far as the ops tell; None if they do not.
        dropped: the share that drops here, a fraction; None for a decision.
        out: the result; None for a decision.
        func: the op.
    """

    draw: Draw
    x: Tensor | None
    mask: Tensor | None
    p: float | None
    dropped: float | None
    out: Any
    func: Any


@dataclass(frozen=True)
class Meeting:
    """An op with random tensors and others among its arguments.

    Args:
        func: the op.
        args: its arguments.
        mine: the first random tensor.
        draw: what is known of it.
        others: the tensors that are not random.
        constant: whether these hold nothing but numbers that the code has filled in: a mask to be.
        out: the result.
    """

    func: Any
    args: tuple[Any, ...]
    mine: Tensor
    draw: Draw
    others: list[Tensor]
    constant: bool
    out: Any


_MUL = overloads("mul*")
_ADD = overloads("add*", "sub*")
_FILL = overloads("masked_fill*")
WHERE = overloads("where")
PICK = overloads("index", "gather", "index_select", "masked_select")
_PUT = overloads("index_put*", "_index_put_impl_")
_SCATTER = overloads("scatter*", "index_fill*", "gather") | _PUT
_JOIN = overloads("cat", "stack")
_READ = overloads("_local_scalar_dense")
_FAR = 1e4  # added to a score, minus so much leaves nothing of it
_MOST = 1e30


def application(met: Meeting) -> Application | None:
    """Return what an op drops; None if it drops nothing."""
    func, draw, mask = met.func, met.draw, met.mine
    if func in _READ:
        return decision(draw, func)
    if not met.others or met.constant:
        return None
    if func in PICK:
        return _picked(met)
    if draw.law != "bits":
        return None
    if func.name().startswith("aten::_scaled_dot_product"):
        return _attended(met)
    x = max(met.others, key=Tensor.numel)
    if func in _MUL and x.numel() > 1:
        share = dropped_share(mask == 0)
        made = Application(draw, x, mask, draw.false, share, met.out, func)
        return made if draw.drops else None
    if func in _ADD and met.out.shape == x.shape:
        return _far(met, x)
    if func in WHERE and met.args[0] is mask:
        return _chosen(met)
    put = func in _PUT and met.args[0] is met.others[0] and mask.dtype.itemsize == 1
    if put or (func in _FILL and met.args[1] is mask):
        x = met.others[0]
        wide = _aligned(met.args[1], mask, x) if put else mask
        return Application(draw, x, wide, _true(draw), dropped_share(mask != 0), met.out, func)
    return None


def decision(draw: Draw, func: Any) -> Application | None:
    """Return what it is that code reads a random number: it decides by it.

    That the rarer outcome leaves something out is taken for granted.
    """
    if draw.law not in ("bits", "uniform"):
        return None
    chance = draw.true if draw.threshold is None else draw.threshold
    p = None if chance is None else min(chance, 1.0 - chance)
    return Application(draw, None, None, p, None, None, func)


def blurred(met: Meeting, out: Tensor) -> Draw | None:
    """Return what is known of a random tensor that has met one that is not random."""
    draw, func = met.draw, met.func
    law: Law = "bits" if draw.law == "bits" else "normal"
    if func in _JOIN and draw.law != "index":
        return replace(draw, law=law, true=None, scale=None)
    if func in _FILL | _SCATTER and met.args[0] is met.mine and func not in PICK:
        return draw if draw.law == "bits" else replace(draw, law=law)  # some are overwritten
    if not met.constant:
        return None
    if func in _SCATTER and draw.law == "index":
        return Draw(draw.number, "bits", draw.size, scale=None)
    if draw.law != "bits":
        return None
    if func in WHERE and met.args[0] is met.mine:
        return _two_values(met, met.args[1], met.args[2])
    if func in _FILL or func in _PUT:
        kept = out[_aligned(met.args[1], met.mine, out).expand_as(out).logical_not()]
        filled = met.args[2]
        single = kept.numel() and bool((kept == kept[0]).all())
        return _two_values(met, filled, kept[0]) if single else replace(draw, true=None, scale=None)
    return replace(draw, true=None, scale=None)


def _two_values(met: Meeting, true: Any, false: Any) -> Draw:
    """Return the bits that stand for one number where a mask is true, and for another elsewhere."""
    numbers = [_number(value) for value in (true, false)]
    draw = Draw(met.draw.number, "bits", met.draw.size, _true(met.draw), met.draw.threshold)
    if numbers[0] is None or numbers[1] is None:
        return replace(draw, true=None, scale=None)
    return replace(draw, scale=numbers[0] - numbers[1], shift=numbers[1])


def _number(value: Any) -> float | None:
    """Return the number that fills a tensor, none of them too large to calculate with."""
    if isinstance(value, Tensor):
        if value.is_meta or not value.numel():
            return None
        first = value.reshape(-1)[0]
        if not bool((value == first).all()):
            return None
        value = float(first)
    return min(max(float(value), -_MOST), _MOST)


def _attended(met: Meeting) -> Application | None:
    """Return what a random mask drops from the scores of a fused attention."""
    query, key, *_ = met.args
    try:
        scores = met.mine.expand((*query.shape[:-1], key.shape[-2]))
    except RuntimeError:
        return None
    return _far(met, scores)


def _far(met: Meeting, x: Tensor) -> Application | None:
    """Return what is dropped by adding a huge negative number, as to the scores of an attention."""
    draw = met.draw
    if draw.scale is None:
        return None
    values = draw.shift, draw.scale + draw.shift
    if not (min(values) <= -_FAR and max(values) > -_FAR):
        return None
    true_drops = values[1] < values[0]
    p = draw.true if draw.true is None or true_drops else 1.0 - draw.true
    return Application(draw, x, met.mine, p, dropped_share(met.mine <= -_FAR), met.out, met.func)


def _picked(met: Meeting) -> Application | None:
    """Return what a random index or boolean mask leaves out; a mere shuffle leaves out nothing."""
    x, mask, draw, out = met.others[0], met.mine, met.draw, met.out
    if met.args[0] is not x:
        return None
    if draw.law == "bits" and mask.dtype.itemsize == 1:
        wide = _aligned(met.args[1], mask, x)
        return Application(draw, x, wide, draw.false, dropped_share(mask == 0), out, met.func)
    if draw.law != "index" or not isinstance(out, Tensor) or x.numel() == 0:
        return None
    left = 1.0 - out.numel() / x.numel()
    p = left if draw.false is None else draw.false
    return Application(draw, x, None, p, left, out, met.func) if left > 0.0 else None


def _chosen(met: Meeting) -> Application:
    """Return what ``where`` drops: a single number, or else the side that is all zero."""
    draw, (mask, one, other) = met.draw, met.args[:3]
    sizes = one.numel(), other.numel()
    true_drops = sizes[0] < sizes[1] or (sizes[0] == sizes[1] and _zero(one))
    x = other if true_drops else one
    p = _true(draw) if true_drops else draw.false
    share = dropped_share(mask != 0) if true_drops else dropped_share(mask == 0)
    return Application(draw, x, mask, p, share, met.out, met.func)


def _true(draw: Draw) -> float | None:
    return None if draw.false is None else 1.0 - draw.false


def _aligned(indices: Any, mask: Tensor, x: Tensor) -> Tensor:
    """Return a mask that indexes some dims of a tensor so that it broadcasts over the others."""
    if not isinstance(indices, (list, tuple)):
        return mask
    before = next((i for i, one in enumerate(indices) if one is mask), 0)
    behind = max(x.dim() - before - mask.dim(), 0)
    return mask.reshape((1,) * before + tuple(mask.shape) + (1,) * behind)


def dropped_share(dropped: Tensor) -> float | None:
    """Return the share of true elements; None on the meta device."""
    return None if dropped.is_meta else int(dropped.sum()) / max(dropped.numel(), 1)


def _zero(tensor: Tensor) -> bool:
    return not tensor.is_meta and not bool(tensor.any())
