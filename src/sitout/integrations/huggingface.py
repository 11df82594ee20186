"""For the ``Trainer`` of transformers: schedules, max-norm and the guard as a callback."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from warnings import warn

from .._clock_rules import some
from .._optional import needs
from ._driver import Driver

with needs("huggingface", "sitout.integrations.huggingface"):
    from transformers import TrainerCallback

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import TrainerControl, TrainerState, TrainingArguments

    from .._where import Where
    from ..schedules import RateScheduler

__all__ = ["DropoutCallback"]


class DropoutCallback(TrainerCallback):
    """Schedules the dropout of a model in ``transformers.Trainer``, and sees that it is on.

    - The schedule goes on by one with each step of the optimizer, so once for all micro-batches of
      an accumulated one. It follows ``state.global_step``, and so goes on where a checkpoint was.
    - The max-norm holds after each step of the optimizer.
    - The guard raises at the end of the first step if dropout is silent. It sees what runs inside
      of the forward of the model.

    - A rate that lives in ``model.config``, as LayerDrop does in some models, is saved with the
      config as it is at that step. To go on with ``relative=True``, build the model from the
      config of the start; the callback warns otherwise, for it cannot know the rate of the start.

    The rates stay as they are when the run ends. A later ``train`` with this callback begins with
    the rates from before it.

    Args:
        schedule: one of ``sitout.schedules``, or any function (step, total) -> p; None leaves the
            rates alone.
        where: which rates are driven and guarded, as in :class:`sitout.schedules.RateScheduler`.
        max_norm: largest L2 norm of the incoming weights of a unit, see :class:`sitout.MaxNorm`;
            None for no limit.
        guard: raise if dropout is silent, see :func:`sitout.integrations.guard`.
        total: optimizer steps in the run; ``state.max_steps`` if None.
        relative: the schedule gives a factor of the rates that are there.

    Raises:
        TypeError: an argument is not of its kind.
        ValueError: one is out of range.
        RuntimeError: in the first step: dropout is silent.

    Example:
        >>> from sitout.integrations.huggingface import DropoutCallback
        >>> callback = DropoutCallback(sitout.schedules.ramp(0.1), relative=False)
        >>> trainer = Trainer(model, args, callbacks=[callback])  # doctest: +SKIP
    """

    def __init__(
        self,
        schedule: Callable[[int, int], float] | None = None,
        *,
        where: Where = None,
        max_norm: float | None = None,
        guard: bool = True,
        total: int | None = None,
        relative: bool = False,
    ) -> None:
        self._driver = Driver(schedule, where, max_norm, guard, total, relative)

    @property
    def scheduler(self) -> RateScheduler | None:
        """What sets the rates of the run; None before it, and without a schedule."""
        return self._driver.scheduler

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Find the rates, and set those of the first step."""
        model, total, step = kwargs["model"], state.max_steps, state.global_step
        self._driver.begin(model, total, step, compiled=args.torch_compile)
        held = self._driver.in_config()
        if step and held:
            warn(
                f"DropoutCallback goes on at step {step} with a relative schedule, and takes "
                f"{some(held)} for the rate of the start. If the model was built from the config "
                "of a checkpoint, it is not: build it from the first config.",
                stacklevel=2,
            )

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """Watch the first step."""
        self._driver.before_step(one_forward=True)

    def on_substep_end(self, *args: Any, **kwargs: Any) -> None:
        """Check the first step, at the end of its first micro-batch."""
        self._driver.after_step()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check the first step, limit the norms, and go on by one."""
        self._driver.after_step()
        self._driver.advance(state.global_step)

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """Take the hooks of the guard away."""
        self._driver.close()
