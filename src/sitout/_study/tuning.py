"""Tuning: Optuna proposes settings, one trial after the other within an arm.

The study's storage can be opened with optuna-dashboard. What a proposal depends on, the finished
trials and a seed for each, is on disk, so that an interrupted study goes on as if it had not been.
"""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

import optuna
from optuna.trial import TrialState
from sqlalchemy.exc import SQLAlchemyError

from . import arms
from .errors import StudyError
from .plan import seed_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from .plan import Plan, Request


@contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (optuna.exceptions.StorageInternalError, SQLAlchemyError) as error:
        cause = str(error.__cause__ or error).splitlines()[0]
        raise StudyError(
            f"Cannot write {path}: {cause}. Make room or choose another --out, then run the same "
            "command again: what had finished is kept."
        ) from error


class Tuner:
    """Proposes the settings of one arm.

    Args:
        path: of the storage, shared by all arms.
        arm: its name.
        request: what was asked for.
        plan: how many trials there will be.
        built_in: whether the network is a built-in one.
    """

    def __init__(
        self, path: Path, arm: str, request: Request, plan: Plan, *, built_in: bool
    ) -> None:
        self.path, self.arm, self.request, self.plan = path, arm, request, plan
        self.built_in = built_in
        self.trial: optuna.Trial | None = None
        self.spread_trials = (plan.trials + 1) // 2
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with _storage_errors(path):
            self.study = optuna.create_study(
                study_name=arm, storage=f"sqlite:///{path}", load_if_exists=True
            )
            for trial in self.study.get_trials(states=(TrialState.RUNNING,), deepcopy=False):
                self.study.tell(trial.number, state=TrialState.FAIL)

    def settings(self, number: int) -> dict[str, float]:
        """Return the settings of a trial, whether it has finished before or is proposed now.

        In the first half the learning rates are spread evenly and the numbers of epochs take
        turns, the same for all arms, and the
        strengths are drawn at random; the second half learns from the finished trials (TPE,
        Bergstra et al. 2011).
        """
        with _storage_errors(self.path), warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            finished = self.study.get_trials(states=(TrialState.COMPLETE,), deepcopy=False)
            if number < len(finished):
                return dict(finished[number].params)
            optimizer, epochs = self.request.optimizer, self.plan.epochs
            sampler: optuna.samplers.BaseSampler = optuna.samplers.TPESampler(
                seed=seed_of(self.request.seed, self.arm, number),
                n_startup_trials=self.spread_trials,
            )
            if number < self.spread_trials:
                fixed = arms.spread(number, optimizer=optimizer, epochs=epochs)
                sampler = optuna.samplers.PartialFixedSampler(fixed, sampler)
            self.study.sampler = sampler
            self.trial = self.study.ask()
            arms.suggest(
                self.trial,
                self.arm,
                optimizer=optimizer,
                epochs=epochs,
                built_in=self.built_in,
            )
        return dict(self.trial.params)

    def tell(self, error: float, loss: float) -> None:
        """Record what became of the trial that was proposed last, if it is new."""
        if self.trial is None:
            return
        with _storage_errors(self.path):
            self.trial.set_user_attr("loss", loss)
            self.study.tell(self.trial, error)
        self.trial = None
