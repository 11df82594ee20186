"""The study: does dropout help this network on this data, against the other regularizers?"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from .._optional import needs
from .arms import ARMS
from .errors import StudyError
from .plan import Request, seconds_of
from .results import Study

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..data import DataSet
    from .execute import Event

__all__ = ["ARMS", "Study", "StudyError", "study"]


def study(
    data: str | os.PathLike[str] | DataSet,
    *,
    target: str | None = None,
    task: str | None = None,
    arms: Sequence[str] = ARMS,
    repeats: int = 8,
    budget: str | float = "10m",
    jobs: int = 1,
    out: str | os.PathLike[str] | None = None,
    network: str = "mlp:1024x2",
    train_size: int | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    trials: int | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    optimizer: str = "sgd",
    seed: int = 0,
    say: Callable[[str], None] = lambda line: None,
    report: Callable[[Event], None] = lambda event: None,
) -> Study:
    """Measure whether dropout helps a network on some data, beside the other regularizers.

    Each arm is tuned with the same number of trials, which leave it a shortlist of two settings.
    Every repeat draws its own split, initial weights and batch order, the same for all arms, trains
    the shortlist, chooses by its own validation rows, and reads its test rows once. The folder
    ``out`` receives ``report.html``, ``report.json`` and ``best/``; a study that was stopped goes
    on where it was when it is called again with the same arguments.

    Args:
        data: ``digits``, ``breast_cancer``, ``wine``, ``diabetes``, ``mnist``, ``fashion-mnist``;
            or the path of a CSV, TSV, Parquet or npz file; or a :class:`sitout.data.DataSet`.
        target: the column to predict; needed for CSV, TSV and Parquet.
        task: ``classification`` or ``regression``; inferred if None.
        arms: some of ``none``, ``dropout``, ``l2``, ``max-norm``, ``early-stopping``,
            ``dropout+max-norm``, and ``thinned`` and ``thinned+max-norm``, which leave out of a
            step what sits out: see :func:`sitout.thin`.
        repeats: at least 8.
        budget: wall time to plan for, as ``"10m"`` or in seconds.
        jobs: networks trained side by side; with ``trials`` and ``epochs`` given, the numbers do
            not depend on it.
        out: folder; ``sitout-study-<data>`` if None.
        network: ``mlp:WIDTHxLAYERS``, or ``package.module:factory`` with a callable
            ``factory(input_shape, outputs)`` that returns a :class:`torch.nn.Module` from
            ``[B, *input_shape]`` to ``[B, outputs]``; its dropout layers are the sites.
        train_size: train on a stratified subset of so many rows.
        data_dir: folder of ``mnist`` and ``fashion-mnist``; the environment variable
            ``SITOUT_DATA`` if None.
        trials: settings per arm that tuning tries; the budget decides if None.
        epochs: at most so many; the budget decides if None.
        batch_size: rows a step; 32 below 2,000 training rows and 128 from there on if None.
        optimizer: ``sgd`` (Nesterov momentum 0.9) or ``adam``.
        seed: of splits, weights, batches and masks.
        say: called with lines of plain text.
        report: called after each training run.

    Returns:
        What was found. Its fields are those of ``report.json``.

    Raises:
        ImportError: the extra ``study`` is not installed.
        StudyError: something does not fit; one line says what and the way out.
        KeyboardInterrupt: it was stopped with Ctrl-C; what had finished is on disk.

    Example:
        >>> from tempfile import mkdtemp
        >>> found = sitout.study(
        ...     "wine", arms=["none", "dropout"], network="mlp:8x1", trials=1, epochs=2,
        ...     out=mkdtemp(),
        ... )
        >>> [arm.name for arm in found.arms]
        ['none', 'dropout']
        >>> found.outcome in ("helps", "harms", "no detectable benefit")
        True

    Reference:
        Bouthillier et al. 2021, arXiv 2103.03098 (what a repeat has to redraw); Holm 1979.
    """
    with needs("study", "sitout.study"):
        from .conduct import conduct, read, versions
    if isinstance(data, str | os.PathLike):
        data = read(data, target=target, task=task, data_dir=data_dir)
    elif (target, task, data_dir) != (None, None, None):
        raise StudyError(
            "`target`, `task` and `data_dir` must be None for a DataSet, which holds them. "
            f"Got {(target, task, data_dir)!r}."
        )
    request = Request(
        data=data.name,
        fingerprint=data.fingerprint,
        target=data.target_name,
        task=data.task,
        network=network,
        arms=tuple(arms),
        repeats=repeats,
        budget=seconds_of(budget),
        train_size=train_size,
        trials=trials,
        epochs=epochs,
        batch_size=batch_size,
        optimizer=optimizer,
        seed=seed,
        versions=versions(),
    )
    return conduct(data, request, jobs=jobs, out=out, say=say, report=report)
