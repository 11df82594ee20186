"""For Lightning: schedules, max-norm and the guard as a callback of its trainer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._optional import needs
from ._driver import Driver

with needs("lightning", "sitout.integrations.lightning"):
    from lightning.pytorch import Callback

if TYPE_CHECKING:
    from collections.abc import Callable

    from lightning.pytorch import LightningModule, Trainer

    from .._where import Where
    from ..schedules import RateScheduler

__all__ = ["DropoutCallback"]


class DropoutCallback(Callback):
    """Schedules the dropout of a ``LightningModule``, limits norms, and sees that dropout is on.

    - The schedule goes on by one with each step of the optimizer, so once for all micro-batches of
      an accumulated one, and its state is part of every checkpoint.
    - The max-norm holds after each step of the optimizer.
    - The guard raises at the end of the first training batch if dropout is silent. Since 2.2
      Lightning keeps the modes that it finds, and a model that comes from ``from_pretrained``, or
      that has been evaluated, is in evaluation mode.

    The rates stay as they are when the run ends. A later ``fit`` with this callback begins with
    the rates from before it.

    Args:
        schedule: one of ``sitout.schedules``, or any function (step, total) -> p; None leaves the
            rates alone.
        where: which rates are driven and guarded, as in :class:`sitout.schedules.RateScheduler`.
            Names begin at the ``LightningModule``.
        max_norm: largest L2 norm of the incoming weights of a unit, see :class:`sitout.MaxNorm`;
            None for no limit.
        guard: raise if dropout is silent, see :func:`sitout.integrations.guard`.
        total: optimizer steps in the run; ``trainer.estimated_stepping_batches`` if None.
        relative: the schedule gives a factor of the rates that are there.

    Raises:
        TypeError: an argument is not of its kind.
        ValueError: one is out of range.
        RuntimeError: in the first training batch: dropout is silent.

    Example:
        >>> from sitout.integrations.lightning import DropoutCallback
        >>> callback = DropoutCallback(sitout.schedules.early(0.1), max_norm=3.0)
        >>> trainer = Trainer(callbacks=[callback])  # doctest: +SKIP
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
        self._key = self._generate_state_key(where=_word(where))
        self._state: dict[str, Any] = {}

    @property
    def scheduler(self) -> RateScheduler | None:
        """What sets the rates of the run; None before it, and without a schedule."""
        return self._driver.scheduler

    @property
    def state_key(self) -> str:
        """The name of the callback in a checkpoint; two of them have another ``where``."""
        return self._key

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the scheduler."""
        return {} if self.scheduler is None else self.scheduler.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state of the scheduler for the run that begins."""
        self._state = state_dict

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Make the rates data, so that a copy for weight averaging has the same buffers."""
        if stage == "fit":
            self._driver.prepare(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the rates, and set those of the first step."""
        total = trainer.estimated_stepping_batches if self._driver.needs_total else 0
        state, self._state = self._state, {}
        self._driver.begin(pl_module, total, trainer.global_step, state)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Watch the first batch."""
        self._driver.before_step()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Check the first batch; after a step of the optimizer limit the norms and go on."""
        self._driver.after_step()
        self._driver.advance(trainer.global_step)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Take the hooks of the guard away."""
        self._driver.close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the hooks of the guard away."""
        self._driver.close()


def _word(where: Where) -> str | None:
    """Return a name for what a user means that is the same in the next process."""
    if where is None or isinstance(where, str):
        return where
    if isinstance(where, type) or callable(where):
        return getattr(where, "__qualname__", type(where).__qualname__)
    return ", ".join(str(_word(one)) for one in where)
