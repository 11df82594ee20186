"""RateScheduler: it sets the rates of a model, step by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from warnings import warn

from torch import nn

from .. import _checks
from .._clock_rules import some
from .._surgery._change import check_loud
from ..clock import _device_of
from ..nn._base import Site as Layer
from ._places import as_data, can_be_data, check, in_compiled_code, places
from ._schedule import Schedule

if TYPE_CHECKING:
    from .._where import Where


class RateScheduler:
    """Sets the drop rates of a model to what a schedule says, as a learning rate scheduler does.

    The rates of step 0 hold at once. Call :meth:`step` after each optimizer step. Layers of sitout
    become schedulable, as by their ``schedulable_()``, so that a new rate compiles
    nothing anew. Those of torch, timm and others, rates that are attributes, as of
    ``MultiheadAttention`` and ``LSTM``, and rates of layers that another module reads, as fused
    attention does, are set as Python numbers. A rate that is held under several names is set once.

    The scheduler holds the modules that it finds. Make it after you have changed the model, and
    give it the compiled model if you compile.

    Args:
        model: whose rates change.
        schedule: one of ``sitout.schedules``, or any function (step, total) -> p. It is not asked
            for steps beyond ``total``.
        total: optimizer steps in the run.
        where: which rates: a glob on the name of the module or the path of the rate, a type of
            module, a predicate (name, module) -> bool, or several of these; all rates of the model
            if None, also those that are 0.
        relative: the schedule gives a factor in [0, 1], by which the rate that each place has now
            is multiplied. What is 0 stays 0.

    Raises:
        TypeError: ``model`` is no module, ``schedule`` no function, ``total`` no int, ``where``
            nothing of the above, or a rate no number.
        ValueError: ``total`` is below 1, no rate fits, or a rate is out of range.
        RuntimeError: inside of :func:`sitout.disabled`.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), sitout.nn.Dropout(0.5))
        >>> schedule = sitout.schedules.linear(0.5, 0.0)
        >>> scheduler = sitout.schedules.RateScheduler(model, schedule, total=4)
        >>> for _ in range(4):
        ...     print(model[1].p)  # here comes a training step
        ...     scheduler.step()
        0.5
        0.375
        0.25
        0.125
    """

    def __init__(
        self,
        model: nn.Module,
        schedule: Callable[[int, int], float],
        total: int,
        where: Where = None,
        *,
        relative: bool = False,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(_checks.message("`model` of RateScheduler", "a torch.nn.Module", model))
        self._schedule = check_schedule(schedule, "RateScheduler")
        self._total = check_total(total, "RateScheduler")
        self._relative = _checks.flag(relative, "relative", "RateScheduler")
        self._model = model
        self._places = places(model, where, "RateScheduler")
        self._check_loud("RateScheduler")
        self._base = {path: check(rate, rate.p, path) for path, rate in self._places.items()}
        self._was_data = {path: _is_data(rate.module) for path, rate in self._places.items()}
        self._others = [one for one in self._places.items() if not can_be_data(model, one[1])]
        self._all_compiled = self._warned = False
        self._step, self._rate = 0, 0.0
        self._go(0, first=True)

    @property
    def total(self) -> int:
        """Optimizer steps in the run."""
        return self._total

    @property
    def last_step(self) -> int:
        """The step whose rates hold now, which is how many steps have been made."""
        return self._step

    @property
    def rate(self) -> float:
        """What the schedule gives for :attr:`last_step`, a rate or with ``relative`` a factor."""
        return self._rate

    def rates(self) -> dict[str, float]:
        """Return the rates that hold now, read from the model, by their paths.

        Example:
            >>> model = torch.nn.Sequential(sitout.nn.Dropout(0.5), torch.nn.Dropout(0.1))
            >>> schedule = sitout.schedules.constant(0.5)
            >>> sitout.schedules.RateScheduler(model, schedule, 10, relative=True).rates()
            {'0.p': 0.25, '1.p': 0.05}
        """
        return {path: float(rate.p) for path, rate in self._places.items()}

    def step(self) -> None:
        """Go on by one step; call it after each step of the optimizer.

        Raises:
            TypeError: the schedule gave no number.
            ValueError: it gave one that is no rate. Nothing has changed then.
        """
        self._go(self._step + 1)

    def seek(self, step: int) -> None:
        """Go to a step, wherever the scheduler is now.

        Args:
            step: 0 or more. Beyond ``total`` the rates stay at their last value.

        Raises:
            TypeError: ``step`` is no int, or the schedule gave no number.
            ValueError: ``step`` is negative, or the schedule gave what is no rate.
        """
        if _checks.integer(step, "step", "seek") < 0:
            raise ValueError(_checks.message("`step` of seek", "0 or more", step))
        self._go(step)

    def undo(self) -> None:
        """Give every place the rate back that it had before, as a number if it was none as data.

        A later :meth:`step` or :meth:`seek` sets the rates again.
        """
        self._check_loud("undo of RateScheduler")
        for path, rate in self._places.items():
            if isinstance(rate.module, Layer) and not self._was_data[path]:
                rate.module.rate_data = None
            rate.p = self._base[path]

    def state_dict(self) -> dict[str, Any]:
        """Return the step, the total, the schedule and the rates before the first step.

        Numbers, strings and a dict of them: it fits into any checkpoint.
        """
        return {
            "step": self._step,
            "total": self._total,
            "schedule": _text(self._schedule),
            "relative": self._relative,
            "rates": dict(self._base),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another scheduler was; its rates hold at once.

        Args:
            state: what ``state_dict`` gave, of a scheduler with the same total, schedule and
                places.

        Raises:
            ValueError: it is something else. Nothing has changed then.
        """
        what = "The state of RateScheduler"
        mine = self.state_dict()
        if not isinstance(state, Mapping) or set(state) != set(mine):
            rule = "what state_dict() gave, with step, total, schedule, relative and rates"
            got = list(state)[:5] if isinstance(state, Mapping) else type(state).__name__
            raise ValueError(_checks.message(what, rule, got))
        for name in ("total", "relative", "schedule"):
            if state[name] != mine[name]:
                rule, way_out = f"one with {name} = {mine[name]!r}", f"Pass {name}= as it was."
                raise ValueError(_checks.message(what, rule, state[name], way_out))
        self._check_paths(state["rates"])
        step = _checks.integer(state["step"], "step", "the state of RateScheduler")
        before, self._base = self._base, dict(state["rates"])
        try:
            self.seek(step)
        except (TypeError, ValueError):
            self._base = before
            raise

    def _driven(self) -> list[str]:
        """Return the paths of the rates that the schedule can make positive."""
        return [path for path, p in self._base.items() if p > 0.0 or not self._relative]

    def __repr__(self) -> str:
        shown = _text(self._schedule) or getattr(self._schedule, "__name__", repr(self._schedule))
        return (
            f"RateScheduler({shown}, step {self._step} of {self._total}, {len(self._base)} rates)"
        )

    def _go(self, step: int, *, first: bool = False) -> None:
        """Set the rates of a step, all of them or none."""
        asked = min(step, self._total)
        owner = f"{_text(self._schedule) or 'the schedule'} at step {step}"
        value = _checks.rate(self._schedule(asked, self._total), owner)
        wanted = {}
        for path, rate in self._places.items():
            made = self._base[path] * value if self._relative else value
            wanted[path] = check(rate, made, f"{path} from {owner}")
        if not first and not self._warned:
            self._warn_of_compiled(wanted)
        self._check_loud("RateScheduler")
        numbers, device = dict(self._others), _device_of(self._model)
        before = {path: rate.p for path, rate in self._places.items()}
        try:
            for path, rate in self._places.items():
                if path not in numbers:
                    as_data(rate, device)
                rate.p = wanted[path]
        except Exception as error:
            for done, p in before.items():
                if done == path:
                    break
                self._places[done].p = p
            error.add_note(f"RateScheduler was about to set {path}; no rate has changed.")
            raise
        self._step, self._rate = step, value

    def _check_loud(self, owner: str) -> None:
        check_loud({id(rate.module) for rate in self._places.values()}, owner)

    def _warn_of_compiled(self, wanted: Mapping[str, float]) -> None:
        """Warn once of rates that are about to change and are part of a graph."""
        changed = [(path, rate) for path, rate in self._others if rate.p != wanted[path]]
        compiled = in_compiled_code(self._model, changed)
        if self._all_compiled:
            compiled = [path for path, _ in changed]
        if compiled:
            self._warned = True
            warn(recompiles(compiled), stacklevel=4)

    def _check_paths(self, paths: Mapping[str, float]) -> None:
        gone = [path for path in paths if path not in self._base]
        fresh = [path for path in self._base if path not in paths]
        if gone or fresh:
            parts = [f"{some(gone)} too"] if gone else []
            parts += [f"none for {some(fresh)}"] if fresh else []
            rule, got = "of a model with the same rates", " and ".join(parts)
            raise ValueError(f"The state of RateScheduler must be {rule}. Got {got}.")


def recompiles(paths: list[str]) -> str:
    """Return the warning of rates whose every new value compiles anew."""
    return (
        f"RateScheduler changes the rate of {some(paths)} in compiled code. Each new rate that is "
        "a number compiles anew, and torch gives up after 8. Call sitout.replace(model) before you "
        "compile, and leave out with where= the layers whose rate another module reads."
    )


def check_schedule(schedule: object, owner: str) -> Callable[[int, int], float]:
    """Return a schedule if it can be called.

    Raises:
        TypeError: it cannot.
    """
    if not callable(schedule):
        rule = "one of sitout.schedules, or a function (step, total) -> p"
        raise TypeError(_checks.message(f"`schedule` of {owner}", rule, schedule))
    return schedule


def check_total(total: object, owner: str) -> int:
    """Return the steps of a run.

    Raises:
        TypeError: it is no int.
        ValueError: it is below 1.
    """
    steps = _checks.integer(total, "total", owner)
    if steps < 1:
        raise ValueError(_checks.message(f"`total` of {owner}", "1 or more", steps))
    return steps


def _is_data(module: nn.Module) -> bool:
    return isinstance(module, Layer) and module.rate_data is not None


def _text(schedule: object) -> str:
    """Return what a checkpoint knows of a schedule; "" of a function of the user's."""
    return repr(schedule) if isinstance(schedule, Schedule) else ""
