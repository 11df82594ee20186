"""set_rate: other drop rates, wherever they live."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from .. import _checks
from .._rates import Rate, rates, readings
from .._where import Where, fitting, matcher, nothing_found, plain_name
from ..nn._base import Site as Layer
from . import _unreached
from ._change import Change, Edit, check_model, is_at

Rates = float | Tensor | Iterable[float] | Callable[[str, Any], float]
Fits = Callable[[nn.Module | Rate], bool]


def set_rate(model: nn.Module, p: Rates, where: Where = None) -> Change:
    """Set the drop rates of a model: of its layers, and those that are float attributes.

    Layers are those of sitout, torch, timm, torchvision and Hugging Face. Float attributes are
    ``MultiheadAttention.dropout``, ``LSTM.dropout``, and what the forward of a class reads by a
    name of dropout: ``attention_dropout``, ``config.layerdrop``. Of a config that
    several modules read, ``where`` has to fit all of these, and other models that were made with
    the same config object get the rate too.

    ``Change.unreached`` lists the rates of such a config that were left for that reason, and the
    function calls whose rate is none of these: it stands in the source, ``F.dropout(x, 0.5)``, in a
    dict, or outside of the module.

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
    chosen, partly = _chosen(model, every, fits)
    if not chosen:
        raise _nothing(model, where, every, partly)
    values = [_checked(rate, value) for rate, value in zip(chosen, _values(p, chosen), strict=True)]
    keys = {rate.key for rate in every}
    calls = (
        (f"{_unreached.line_of(call, module)}, {call.text}", name)
        for name, module in model.named_modules()
        if not isinstance(module, Layer) and fits(module)
        for call in _unreached.unfed(module, keys)
    )
    unreached = _unreached.grouped([*partly, *calls])
    edits: list[Edit] = []
    try:
        edits.extend(_put(model, rate, value) for rate, value in zip(chosen, values, strict=True))
    except BaseException:  # a place of somebody else's may refuse a value
        for edit in reversed(edits):
            edit.undo()
        raise
    return Change("set_rate", model, [rate.path for rate in chosen], unreached, edits)


def _put(model: nn.Module, rate: Rate, value: float) -> Edit:
    """Set one rate."""
    back = rate.keep()
    rate.p = value
    left = rate.p

    def holds() -> bool:
        return is_at(model, rate.name, rate.module) and bool(rate.p == left)

    return Edit(rate.path, (rate.key, (id(rate.module), rate.attribute)), back, holds)


def _chosen(
    model: nn.Module, every: list[Rate], fits: Fits
) -> tuple[list[Rate], list[tuple[str, str]]]:
    """Return the rates that fit, and a line for each of which only some of its readers do."""
    readers: dict[tuple[int, str], list[Rate]] = {}
    for one in readings(model):
        readers.setdefault(one.key, []).append(one)
    chosen, partly = [], []
    for rate in every:
        others = [one for one in readers[rate.key] if not (fits(one.module) or fits(one))]
        if not others:
            chosen.append(rate)
        elif len(others) < len(readers[rate.key]):
            what = f"{rate.attribute} (p={rate.p}), shared with modules that `where` does not fit"
            partly += [(what, one.name) for one in others]
    return chosen, partly


def _nothing(
    model: nn.Module, where: Where, every: list[Rate], partly: list[tuple[str, str]]
) -> ValueError:
    if partly:
        rule, line = "that of all modules that share a rate", _unreached.grouped(partly)[0]
        return ValueError(_checks.message("`where` of set_rate", rule, where, f"Left: {line}."))
    names = []
    for rate in every:
        plain = plain_name(model, rate.name)
        names += [plain, f"{plain}.{rate.attribute}".removeprefix(".")]
    return nothing_found(where, "set_rate", "a drop rate", names)


def _fitting(model: nn.Module, where: Where) -> Fits:
    """Return what tells whether a module fits by one of its names, or a rate by its path."""
    is_one = isinstance(where, str) or not isinstance(where, Iterable)
    several: list[Any] = [where] if is_one else list(where)  # type: ignore[arg-type]
    fits = fitting(model, None if where is None else several, "set_rate")
    # A predicate or a type says something of modules; a path is asked of the globs alone.
    globs = matcher([one for one in several if isinstance(one, str)], "set_rate")
    inside = {
        id(module)
        for name, module in model.named_modules(remove_duplicate=False)
        if fits(name, module)
    }

    def is_meant(one: nn.Module | Rate) -> bool:
        if not isinstance(one, Rate):
            return id(one) in inside
        plain = plain_name(model, one.name)
        paths = {one.path, f"{plain}.{one.attribute}".removeprefix(".")}
        return any(globs(path, one.module) for path in paths)

    return is_meant


def _values(p: Any, chosen: list[Rate]) -> list[Any]:
    """Return one value for each site."""
    if callable(p):
        return [p(rate.path, rate.p) for rate in chosen]
    if isinstance(p, Tensor):
        p = p.tolist()
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
    value = value.item() if isinstance(value, Tensor) and value.dim() == 0 else value
    below_one = isinstance(layer, Layer) and layer._p_below_one
    found = _checks.rate(value, f"set_rate at {rate.path!r}", below_one=below_one)
    if isinstance(layer, Layer) and layer.rate_data is not None:
        layer._as_data(found)  # of a Gaussian layer it refuses what rounds to 1
    return found
