"""set_rate: other drop rates, wherever they live."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from .. import _checks
from .._rates import Rate, rates
from .._where import Where, matcher, nothing_found
from ..nn._base import Site as Layer
from . import _unreached
from ._change import Change, Edit, check_model

if TYPE_CHECKING:
    from torch import nn

Rates = float | Iterable[float] | Callable[[str, Any], float]


def set_rate(model: nn.Module, p: Rates, where: Where = None) -> Change:
    """Set the drop rates of a model: of its layers, and those that are float attributes.

    Layers are those of sitout, torch, timm, torchvision and Hugging Face. Float attributes are
    ``MultiheadAttention.dropout``, ``LSTM.dropout``, and what the forward of a class reads by a
    name of dropout: ``attention_dropout``, ``config.layerdrop``. ``Change.unreached`` lists the
    function calls whose rate stands in the source, ``F.dropout(x, 0.5)``.

    A rate that compiled code has read is compiled anew. A layer of sitout that is
    ``schedulable_`` compiles nothing.

    Args:
        model: any module.
        p: a rate in [0, 1] for all; or one for each site in the order of ``Change.sites``, as for
            stochastic depth that grows with depth; or a function of the path and the old rate.
        where: which of them: a glob on the qualified name of the module or on the path of the
            rate (``"*.attn*"``, ``"*.attention_dropout"``), a type, a predicate of (name, module),
            or several of these. All if None.

    Returns:
        What was changed; its ``undo`` brings the old rates back.

    Raises:
        TypeError: a rate is no number, or ``where`` something else.
        ValueError: a rate is not in [0, 1], or 1 for Gaussian dropout; there are more or fewer
            rates than sites; or nothing fits ``where``.
        RuntimeError: :func:`sitout.disabled` is in force.

    Example:
        >>> model = torch.nn.TransformerEncoderLayer(16, 2, 32)
        >>> sitout.set_rate(model, 0.2, "self_attn").sites
        ['self_attn.dropout']
        >>> sitout.set_rate(model, lambda path, p: p / 2, "dropout*").sites
        ['dropout.p', 'dropout1.p', 'dropout2.p']
        >>> model.self_attn.dropout, model.dropout.p
        (0.2, 0.05)
    """
    check_model(model, "set_rate")
    fits = _fitting(model, where)
    every = list(rates(model))
    chosen = [rate for rate in every if fits(rate.module) or fits(rate)]
    if not chosen:
        names = [name for rate in every for name in (rate.name, rate.path)]
        raise nothing_found(where, "set_rate", "a drop rate", names)
    values = [_checked(rate, value) for rate, value in zip(chosen, _values(p, chosen), strict=True)]
    unreached = _unreached.grouped(
        (f"{_unreached.line_of(call, module)}, {call.text}", name)
        for name, module in model.named_modules()
        if not isinstance(module, Layer) and fits(module)
        for call in _unreached.dropping_calls(module)
        if _unreached.is_literal(call)
    )
    edits: list[Edit] = []
    try:
        edits.extend(_put(rate, value) for rate, value in zip(chosen, values, strict=True))
    except BaseException:  # a place of somebody else's may refuse a value
        for edit in reversed(edits):
            edit.undo()
        raise
    return Change("set_rate", model, [rate.path for rate in chosen], unreached, edits)


def _put(rate: Rate, value: float) -> Edit:
    """Set one rate."""
    before = rate.p

    def back() -> None:
        rate.p = before

    rate.p = value
    return Edit(rate.path, (rate.key, (id(rate.module), rate.attribute)), back)


def _fitting(model: nn.Module, where: Where) -> Callable[[nn.Module | Rate], bool]:
    """Return what tells whether a module fits by one of its names, or a rate by its path."""
    is_one = isinstance(where, str) or not isinstance(where, Iterable)
    several: list[Any] = [where] if is_one else list(where)  # type: ignore[arg-type]
    fits = matcher(None if where is None else several, "set_rate")
    # A predicate or a type says something of modules; a path is asked of the globs alone.
    globs = matcher([one for one in several if isinstance(one, str)], "set_rate")
    inside = {
        id(module)
        for name, module in model.named_modules(remove_duplicate=False)
        if fits(name, module)
    }
    return lambda one: globs(one.path, one.module) if isinstance(one, Rate) else id(one) in inside


def _values(p: Any, chosen: list[Rate]) -> list[Any]:
    """Return one value for each site."""
    if callable(p):
        return [p(rate.path, rate.p) for rate in chosen]
    if isinstance(p, str) or not isinstance(p, Iterable):
        return [p] * len(chosen)
    values = list(p)
    if len(values) != len(chosen):
        sites = ", ".join(repr(rate.path) for rate in chosen[:3]) + (", ..." if chosen[3:] else "")
        rule, got = f"one rate, or {len(chosen)}, one for each site", f"{len(values)} rates"
        raise ValueError(_checks.message("`p` of set_rate", rule, got, f"The sites are {sites}."))
    return values


def _checked(rate: Rate, value: Any) -> float:
    """Return a rate that the place takes."""
    layer = rate.module
    below_one = isinstance(layer, Layer) and layer._p_below_one
    found = _checks.rate(value, f"set_rate at {rate.path!r}", below_one=below_one)
    if isinstance(layer, Layer) and layer.rate_data is not None:
        layer._as_data(found)  # of a Gaussian layer it refuses what rounds to 1
    return found
