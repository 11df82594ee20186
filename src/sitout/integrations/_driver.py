"""What the callbacks of all trainers share: the schedule, the max-norm and the guard of a run."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, Any

import torch

from .. import _checks, _where
from .._surgery import MaxNorm
from ..schedules import RateScheduler
from ..schedules._places import as_data, can_be_data, places
from ..schedules._schedule import number
from ..schedules._scheduler import check_schedule, check_total
from ._guard import Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn

    from .._where import Where

_OWNER = "DropoutCallback"


class Driver:
    """Drives one model at a time: it is told when a run begins and what the trainer has done.

    Args:
        schedule: as in :class:`sitout.schedules.RateScheduler`, or None.
        where: which rates are driven and guarded.
        max_norm: largest norm of the incoming weights of a unit, or None.
        guard: whether to raise if dropout is silent in the first step.
        total: optimizer steps in the run; as the trainer says if None.
        relative: as in :class:`sitout.schedules.RateScheduler`.

    Attributes:
        scheduler: of the run; None before it, and without a schedule.
    """

    def __init__(
        self,
        schedule: Callable[[int, int], float] | None,
        where: Where,
        max_norm: float | None,
        guard: bool,
        total: int | None,
        relative: bool,
    ) -> None:
        self._schedule = None if schedule is None else check_schedule(schedule, _OWNER)
        _where.matcher(where, _OWNER)
        self._where = where
        self._limit = (
            None
            if max_norm is None
            else number(max_norm, "max_norm", _OWNER, "a finite number above 0", above=True)
        )
        self._guard = _checks.flag(guard, "guard", _OWNER)
        self._total = None if total is None else check_total(total, _OWNER)
        self._relative = _checks.flag(relative, "relative", _OWNER)
        self.scheduler: RateScheduler | None = None
        self._model: nn.Module | None = None
        self._max_norm: MaxNorm | None = None
        self._watch: Watch | None = None
        self._guarded = False
        self._step = 0

    @property
    def needs_total(self) -> bool:
        """Whether the trainer is to say how many steps there are."""
        return self._schedule is not None and self._total is None

    def prepare(self, model: nn.Module) -> None:
        """Make the rates data that will be, before anything copies the model and its buffers."""
        if self._schedule is not None:
            for rate in places(model, self._where, _OWNER).values():
                if can_be_data(model, rate):
                    as_data(rate, torch.device("cpu"))

    def begin(
        self,
        model: nn.Module,
        total: float,
        step: int,
        state: Mapping[str, Any] | None = None,
        *,
        compiled: bool = False,
    ) -> None:
        """Begin a run, or go on with one.

        Args:
            model: that trains.
            total: optimizer steps in the run, as the trainer says; not asked if it is given.
            step: optimizer steps that have been made.
            state: of the scheduler, from a checkpoint.
            compiled: all of the model is, although it does not show.

        Raises:
            ValueError: the trainer does not say how many steps there are, or nothing fits.
        """
        self.close()
        if self.scheduler is not None and self._model is model:
            self.scheduler.undo()  # an earlier run left it at the end of its schedule
        self.scheduler = None
        self._model, self._compiled, self._guarded = model, compiled, not self._guard
        self._step = step
        self._max_norm = None if self._limit is None else MaxNorm(model, self._limit)
        if self._schedule is None:
            return
        steps = _steps(total) if self._total is None else self._total
        self.scheduler = RateScheduler(
            model, self._schedule, steps, self._where, relative=self._relative
        )
        self.scheduler._all_compiled = compiled
        if state:
            self.scheduler.load_state_dict(state)
        self.scheduler.seek(step)

    def in_config(self) -> list[str]:
        """Return the paths of relative rates that are saved with the config of the model."""
        if self.scheduler is None or not self._relative:
            return []
        return [path for path in self.scheduler.rates() if "config" in path.split(".")[:-1]]

    def before_step(self, *, one_forward: bool = False) -> None:
        """Watch the first training step."""
        if self._model is None or self._guarded or self._watch is not None:
            return
        self._watch = Watch(
            self._model,
            self._where,
            driven=() if self.scheduler is None else self.scheduler._driven(),
            compiled=self._compiled,
            one_forward=one_forward,
        )

    def after_step(self) -> None:
        """Raise if dropout was silent in the first training step.

        Raises:
            RuntimeError: it was.
        """
        if self._watch is not None:
            watch, self._watch, self._guarded = self._watch, None, True
            watch.check()

    def advance(self, step: int) -> None:
        """Where the optimizer has made a step, limit the norms and set the next rates.

        Args:
            step: optimizer steps that have been made.
        """
        if step == self._step:
            return
        self._step = step
        if self._max_norm is not None:
            self._max_norm.step()
        if self.scheduler is not None:
            self.scheduler.seek(step)

    def close(self) -> None:
        """Take the hooks of the guard away."""
        if self._watch is not None:
            self._watch.close()
            self._watch = None


def _steps(total: float) -> int:
    """Return the steps of a run, as its trainer says.

    Raises:
        ValueError: it says that there is no end, or that it does not know.
    """
    if not isfinite(total) or total < 1:
        way_out = "Pass total=, the optimizer steps of the run, or give the trainer a limit."
        rule = "given where the trainer does not know its steps"
        raise ValueError(_checks.message(f"`total` of {_OWNER}", rule, total, way_out))
    return int(total)
