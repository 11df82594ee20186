"""The audit of training steps: what really drops while a model trains."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from .. import _checks
from .._rates import compiled, is_number, rates
from .._sites._place import Place
from .._sites._probe import unwrapped
from .._sites._recorder import Recorder, plain
from .._sites._site import short
from ..nn._base import Site as Layer
from ._finding import Audit, Finding
from ._rule import rate
from ._rules_eval import repeats
from ._rules_rates import doubt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import nn


def audit_training(model: nn.Module, step_fn: Callable[[], object], *, steps: int = 3) -> Audit:
    """Watch some training steps of a model for mistakes with dropout.

    Found are rates above 0 that never drop, modules that a trainer or ``eval()`` left in
    evaluation mode, rates that do not hold, masks that come again in another step, and rates that
    change under ``torch.compile`` where each new one is compiled anew.

    The steps are real: the model is trained by them. Compiled parts run eagerly meanwhile.

    Args:
        model: that ``step_fn`` trains.
        step_fn: one training step: forward, backward, optimizer; called without arguments.
        steps: how many steps to watch, at least 1; masks are compared from 2 on.

    Returns:
        The findings, the worst first; falsy when there are none.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: ``steps`` is below 1, or no step ran the model.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.Dropout(0.5))
        >>> _ = model[1].eval()  # what a trainer may leave behind
        >>> def step():
        ...     model(torch.randn(4, 8)).sum().backward()
        >>> found = sitout.audit_training(model, step)
        >>> print(found.findings[0].rule, found.findings[0].site)
        A5 1
    """
    root = unwrapped(model, "audit_training")
    if not callable(step_fn):
        raise TypeError(_checks.message("`step_fn` of audit_training", "callable", step_fn))
    if _checks.integer(steps, "steps", "audit_training") < 1:
        raise ValueError(_checks.message("`steps` of audit_training", "1 or more", steps))
    watched = [_Watched.of(root, step_fn) for _ in range(steps)]
    if not any(one.ran for one in watched):
        what, rule = "`step_fn` of audit_training", "a step that runs the model"
        raise ValueError(_checks.message(what, rule, step_fn))
    findings = [*_silent(root, watched), *_doubtful(watched), *_repeated(watched)]
    return Audit([*findings, *_recompiled(model, watched)])


@dataclass(eq=False)
class _Watched:
    """One step: the places that it ran, and the rates at its end."""

    places: dict[tuple[object, ...], Place]
    rates: dict[str, Any]
    ran: bool

    @classmethod
    def of(cls, model: nn.Module, step_fn: Callable[[], object]) -> _Watched:
        entered: list[bool] = []
        recorder = Recorder(model, thorough=True)
        with ExitStack() as stack:
            handle = model.register_forward_pre_hook(lambda *_: entered.append(True))
            stack.callback(handle.remove)
            if "torch._dynamo" in sys.modules:  # else nothing is compiled
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            stack.enter_context(recorder.watching())
            step_fn()
        held = {plain(one.path): one.p for one in rates(model)}
        return cls(recorder.places, held, bool(entered))


def _all(watched: list[_Watched]) -> dict[tuple[object, ...], list[Place]]:
    found: dict[tuple[object, ...], list[Place]] = {}
    for one in watched:
        for key, place in one.places.items():
            found.setdefault(key, []).append(place)
    return found


def _finding(number: str, title: str, place: Place, message: str, fix: str) -> Finding:
    return Finding(number, title, "error", place.name, short(place.source), message, fix)


def _silent(model: nn.Module, watched: list[_Watched]) -> Iterator[Finding]:
    """Yield sites that are configured and never drop."""
    for places in _all(watched).values():
        place = places[0]
        p = place.p
        if any(one.on or one.wanted for one in places) or not p:
            continue
        module = "its module is in evaluation mode" if not any(place.modes) else "it is off"
        yield _finding(
            *("A5", "never-active", place),
            f"{rate(p)} never drops in {len(watched)} training steps: {module}.",
            "Call model.train() before the steps; Lightning >= 2.2 keeps the modes it finds.",
        )


def _doubtful(watched: list[_Watched]) -> Iterator[Finding]:
    """Yield sites whose rate is not the one that was asked for, over all steps."""
    for places in _all(watched).values():
        place = places[0]
        if len({one.p for one in places}) == 1:
            place.bits = sum(one.bits for one in places)
            place.dropped = sum(one.dropped for one in places)
        problem = doubt(place)
        if problem:
            fix = "Use another implementation or backend; see sitout.replace."
            yield _finding("A23", "rate-does-not-hold", place, problem, fix)


def _repeated(watched: list[_Watched]) -> Iterator[Finding]:
    """Yield sites with a mask that comes again in a later step."""
    for places in _all(watched).values():
        pairs = [(a, b) for i, a in enumerate(places) for b in places[i + 1 :]]
        if any(repeats(a.masks, b.masks) or (a.draws and b.on and not b.draws) for a, b in pairs):
            yield _finding(
                *("A28", "mask-is-kept", places[0]),
                "A mask of one step comes again in another.",
                "Draw it anew in every step; do not seed inside of the step.",
            )


def _recompiled(model: nn.Module, watched: list[_Watched]) -> Iterator[Finding]:
    """Yield rates that change from step to step in a compiled model, as floats."""
    if compiled(model) is None:
        return
    for one in rates(unwrapped(model, "audit_training")):
        seen = {step.rates.get(plain(one.path)) for step in watched}
        held = [value for value in seen if is_number(value)]
        data = isinstance(one.module, Layer) and one.module.rate_data is not None
        if len(held) > 1 and not data:
            yield Finding(
                "A17",
                "rate-changes-under-compile",
                "warning",
                plain(one.name),
                None,
                f"{plain(one.path)} changes in a compiled model ({len(held)} values in "
                f"{len(watched)} steps): each value is compiled anew, and torch gives up after 8.",
                "Use sitout.replace and sitout.schedules.RateScheduler: a rate as data.",
            )
