"""mc.compare: whether Monte Carlo predicts better than one pass without dropout."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .. import _checks
from .._sites import _probe
from . import _scores
from ._arms import OWNER, Arm, check_finite, is_normal, like, scored
from ._batch import Batch
from ._comparison import Comparison
from ._predict import _Asked, _output, _Run
from ._switch import dropping

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from .._where import Where

    Pair = tuple[Any, Tensor]

ROWS = 256


def compare(
    model: nn.Module,
    data: tuple[Tensor, Tensor] | Iterable[Pair],
    *,
    samples: int = 50,
    outputs: str = "logits",
    noise_std: float | None = None,
    calibrate: tuple[Tensor, Tensor] | None = None,
    masks: str = "independent",
    locked_dims: Sequence[int] = (),
    seed: int = 0,
    where: Where = None,
    class_dim: int = 1,
    select: Callable[[Any], Tensor] | None = None,
    memory: str | int | None = None,
    resamples: int = 2000,
) -> Comparison:
    """Measure a Monte-Carlo prediction beside the deterministic one, on the same rows.

    Deterministic is one pass in evaluation mode. Classes: accuracy, negative log-likelihood (NLL)
    and Brier score of the probabilities, of Monte Carlo the mean ones, and the expected
    calibration error (ECE) of the highest of them, in 15 bins of equal width. Values: root mean
    square error, NLL and the coverage of the central 50, 90 and 95 % intervals. There the
    prediction is a normal distribution, and of Monte Carlo the even mixture of one for each sample.

    The interval of a difference is the middle 95 % of a bootstrap over rows, the same rows for
    both. It holds for this network: another training run may come out otherwise. Several verdicts
    stand side by side, each at 95 %. With fewer than 30 rows there is no other verdict than "no
    detectable difference".

    Args:
        model: any module; it is left as it is.
        data: inputs and targets, two tensors, or an iterable of such pairs as a ``DataLoader``;
            it is read once. Classes are int64 ``[B, ...]``, values have the shape of the output.
        samples: how many, T.
        outputs: what the model returns, as for :func:`predict`: "logits", "probabilities",
            "values" or "mean_and_log_variance".
        noise_std: for outputs="values": the standard deviation of the noise in the targets.
        calibrate: or rows that were not trained on, and are not in ``data``: the noise is what
            makes them likeliest, fitted for both predictions apart.
        masks: as for :func:`predict`.
        locked_dims: as for :func:`predict`.
        seed: of the masks and of the bootstrap.
        where: as for :func:`predict`.
        class_dim: as for :func:`predict`.
        select: as for :func:`predict`.
        memory: as for :func:`predict`.
        resamples: of the bootstrap.

    Returns:
        The metrics, their differences and verdicts. Printed, it is a table.

    Raises:
        TypeError: ``model`` is no module, or an argument has the wrong type.
        ValueError: as for :func:`predict`; targets do not fit the output; the output is not
            finite; something drops in evaluation too; or the noise is not known.
        ImportError: torchmetrics is not installed.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(4, 2))
        >>> rows = torch.randn(20, 4), torch.arange(20) % 2
        >>> sitout.mc.compare(model, rows, samples=10)["accuracy"].verdict
        'no detectable difference'

    Reference:
        Gal and Ghahramani 2016, arXiv 1506.02142 (NLL of the mixture); Guo et al. 2017, arXiv
        1706.04599 (ECE); Brier 1950, Mon. Weather Rev. 78 (summed over classes); Efron and
        Tibshirani 1993, An Introduction to the Bootstrap.
    """
    root = _probe.unwrapped(model, OWNER)
    asked = _Asked(
        samples=samples,
        outputs="values" if is_normal(outputs) else outputs,
        statistics=("mean",),
        quantiles=(),
        masks=masks,
        locked_dims=tuple(locked_dims),
        seed=seed,
        where=where,
        class_dim=class_dim,
        batch_dim=0,
        select=select or _output,
        memory=memory,
        stop=None,
        return_samples=is_normal(outputs),
    )
    if _checks.integer(resamples, "resamples", OWNER) < 100:
        raise ValueError(_checks.message(f"`resamples` of {OWNER}", "100 or more", resamples))
    stds = _noise(root, asked, outputs, noise_std, calibrate)
    arms = Arm(outputs), Arm(outputs)
    for y, both in _predicted(root, asked, data):
        for arm, made, std in zip(arms, both, stds or (0.0, 0.0), strict=True):
            arm.add(made, y, std, class_dim)
    if len(arms[0]) < 2:
        raise ValueError(_checks.message(f"`data` of {OWNER}", "two rows or more", len(arms[0])))
    found = scored(*arms, resamples, seed)
    return Comparison(found, len(arms[0]), samples, stds)


def _pairs(data: Any) -> Iterator[Pair]:
    """Yield inputs and targets, in batches."""
    if isinstance(data, (tuple, list)) and len(data) == 2 and isinstance(data[0], Tensor):
        x, y = data
        if not isinstance(y, Tensor) or len(x) != len(y):
            rule = "two tensors of as many rows, or an iterable of such pairs"
            got = [tuple(one.shape) if isinstance(one, Tensor) else one for one in data]
            raise ValueError(_checks.message(f"`data` of {OWNER}", rule, got))
        yield from zip(torch.split(x, ROWS), torch.split(y, ROWS), strict=True)
        return
    for one in data:
        if not isinstance(one, (tuple, list)) or len(one) != 2 or not isinstance(one[1], Tensor):
            rule = "an inputs and a targets tensor"
            raise TypeError(_checks.message(f"A batch of `data` of {OWNER}", rule, type(one)))
        yield one[0], one[1]


def _predicted(
    model: nn.Module, asked: _Asked, data: Any
) -> Iterator[tuple[Tensor, tuple[Tensor, Tensor]]]:
    """Yield the targets and both predictions of each batch.

    These are probabilities ``[B, C, ...]``, or outputs ``[T, B, ...]``, with T = 1 for the first.
    """
    row = 0
    for x, y in _pairs(data):
        named = isinstance(x, dict)
        args = () if named else x if isinstance(x, tuple) else (x,)
        batch = Batch.of(args, x if named else {}, 0)
        run = _Run(model, asked, batch, row)
        for site in run.sites:
            if site.active_in_eval:
                rule = "one that drops nothing in evaluation"
                got = f"{site.name or 'the root'}, which does"
                raise ValueError(_checks.message(f"`model` of {OWNER}", rule, got))
        with dropping(model, []):
            plain = asked.select(batch.call(model)).detach()
        check_finite(plain)
        made = run.predict()
        if is_normal(asked.outputs):
            assert made.samples is not None
            both = plain.unsqueeze(0), made.samples
        else:
            logits = asked.outputs == "logits"
            both = plain.double().softmax(asked.class_dim) if logits else plain, made.mean
        yield y.to(plain.device), both
        row += batch.rows


def _noise(
    model: nn.Module, asked: _Asked, outputs: str, std: float | None, calibrate: Any
) -> tuple[float, float] | None:
    """Return the noise of both predictions, or None where it is not asked for."""
    given = (std is not None) + (calibrate is not None)
    if given != (outputs == "values"):
        rule = "given, one of them, with outputs='values', and with no other"
        what = f"`noise_std` or `calibrate` of {OWNER}"
        got = f"{given} of them, outputs={outputs!r}"
        raise ValueError(_checks.message(what, rule, got))
    if std is not None:
        if not 0.0 < std < math.inf:
            raise ValueError(_checks.message(f"`noise_std` of {OWNER}", "above 0", std))
        return float(std), float(std)
    if calibrate is None:
        return None
    parts = [(y, *both) for y, both in _predicted(model, asked, calibrate)]
    y = torch.cat([one[0] for one in parts])
    fitted = []
    for at in (1, 2):
        made = torch.cat([one[at] for one in parts], 1)
        fitted.append(_scores.noise(made, like(y, made[0])))
    if not all(0.0 < one < math.inf for one in fitted):
        rule = "rows that the model does not predict exactly, with finite outputs"
        raise ValueError(_checks.message(f"`calibrate` of {OWNER}", rule, fitted))
    return fitted[0], fitted[1]
