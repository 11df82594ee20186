"""The schedules: each a function of its constants, and the formula of a fraction of the run."""

from __future__ import annotations

from math import cos, expm1, pi
from typing import TYPE_CHECKING

from .. import _checks
from ._schedule import Schedule, number

if TYPE_CHECKING:
    from collections.abc import Callable


def constant(p: float) -> Schedule:
    """Return the schedule that is always p.

    Args:
        p: the rate.

    Raises:
        TypeError: ``p`` is no number.
        ValueError: it is outside of [0, 1].

    Example:
        >>> sitout.schedules.constant(0.1)(50, 100)
        0.1
    """
    return _made(_constant, p=_checks.rate(p, "constant"))


def linear(start: float, end: float) -> Schedule:
    """Return the schedule that goes in a straight line: ``start + (end - start) step / total``.

    Args:
        start: the rate at step 0.
        end: the rate at step ``total`` and later.

    Raises:
        TypeError: one of them is no number.
        ValueError: one of them is outside of [0, 1].

    Example:
        >>> schedule = sitout.schedules.linear(0.5, 0.0)
        >>> [schedule(step, 4) for step in range(5)]
        [0.5, 0.375, 0.25, 0.125, 0.0]
    """
    return _made(_linear, start=_rate(start, "start", "linear"), end=_rate(end, "end", "linear"))


def early(p: float, until: float = 0.1) -> Schedule:
    """Return early dropout: from p in a straight line to 0, then 0 for good.

    ``p (1 - step / (until total))`` before ``until total``, and 0 from there on. It is for models
    that underfit: those too small for their data, or trained for a short time.

    Args:
        p: the rate at step 0.
        until: the fraction of the run at which nothing drops any more, in (0, 1].

    Raises:
        TypeError: one of them is no number.
        ValueError: one of them is out of range.

    Example:
        >>> schedule = sitout.schedules.early(0.1, until=0.2)
        >>> [schedule(step, 10) for step in range(4)]
        [0.1, 0.05, 0.0, 0.0]

    Reference:
        Liu, Xu, Jin, Shen, Darrell 2023, Dropout Reduces Underfitting, arXiv 2303.01500. It decays
        over the first 50 of 300 epochs: ``until=50 / 300``.
    """
    return _made(_early, p=_checks.rate(p, "early"), until=_part(until, "until", "early"))


def late(p: float, start: float = 0.1) -> Schedule:
    """Return late dropout: 0 at first, then p.

    0 before ``start total``, and p from there on. It is for models that overfit, or that do not get
    off the ground with dropout.

    Args:
        p: the rate from then on.
        start: the fraction of the run at which dropping begins, in [0, 1].

    Raises:
        TypeError: one of them is no number.
        ValueError: one of them is outside of [0, 1].

    Example:
        >>> schedule = sitout.schedules.late(0.4, start=0.5)
        >>> [schedule(step, 4) for step in range(4)]
        [0.0, 0.0, 0.4, 0.4]

    Reference:
        Liu, Xu, Jin, Shen, Darrell 2023, Dropout Reduces Underfitting, arXiv 2303.01500. It begins
        after 50 of 300 epochs: ``start=50 / 300``.
    """
    return _made(_late, p=_checks.rate(p, "late"), start=_part(start, "start", "late", zero=True))


def flat_cos(p: float, end: float = 0.0, flat: float = 0.72) -> Schedule:
    """Return the schedule that is p for a time, then goes down half a cosine to its end.

    p up to ``flat total``. Behind, with x from 0 to 1 over what is left:
    ``end + (p - end) (1 + cos(pi x)) / 2``.

    Args:
        p: the rate at first.
        end: the rate at step ``total`` and later.
        flat: the fraction of the run for which p holds, in [0, 1].

    Raises:
        TypeError: one of them is no number.
        ValueError: one of them is outside of [0, 1].

    Example:
        >>> schedule = sitout.schedules.flat_cos(0.2, flat=0.5)
        >>> [round(schedule(step, 4), 9) for step in range(5)]
        [0.2, 0.2, 0.2, 0.1, 0.0]

    Reference:
        fastai 1, ``FlatCosAnnealScheduler`` (for learning rates; ``start_pct=0.72``).
    """
    flat = _part(flat, "flat", "flat_cos", zero=True)
    return _made(
        _flat_cos, p=_checks.rate(p, "flat_cos"), end=_rate(end, "end", "flat_cos"), flat=flat
    )


def ramp(p: float, until: float = 1.0) -> Schedule:
    """Return the schedule that goes up in a straight line from 0 to p, then stays.

    ``p step / (until total)`` before ``until total``, and p from there on.

    Args:
        p: the rate in the end.
        until: the fraction of the run at which p is reached, in (0, 1].

    Raises:
        TypeError: one of them is no number.
        ValueError: one of them is out of range.

    Example:
        >>> schedule = sitout.schedules.ramp(0.1, until=0.5)
        >>> [schedule(step, 4) for step in range(4)]
        [0.0, 0.05, 0.1, 0.1]

    Reference:
        Ghiasi, Lin, Le 2018, DropBlock, arXiv 1810.12890: the keep rate goes down linearly over
        the run.
    """
    return _made(_ramp, p=_checks.rate(p, "ramp"), until=_part(until, "until", "ramp"))


def cosine(start: float, end: float) -> Schedule:
    """Return half a cosine over the whole run.

    ``end + (start - end) (1 + cos(pi step / total)) / 2``.

    Args:
        start: the rate at step 0.
        end: the rate at step ``total`` and later.

    Raises:
        TypeError: one of them is no number.
        ValueError: one of them is outside of [0, 1].

    Example:
        >>> schedule = sitout.schedules.cosine(0.0, 0.5)
        >>> [round(schedule(step, 4), 3) for step in range(5)]
        [0.0, 0.073, 0.25, 0.427, 0.5]

    Reference:
        Loshchilov and Hutter 2017, SGDR, arXiv 1608.03983, equation 5 (for learning rates).
    """
    return _made(_cosine, start=_rate(start, "start", "cosine"), end=_rate(end, "end", "cosine"))


def curriculum(p: float, gamma: float = 10.0) -> Schedule:
    """Return curriculum dropout: from 0 up to p, fast at first.

    ``p (1 - exp(-gamma step / total))``. With gamma = 10 it ends within p / 22000 of p.

    Args:
        p: the rate that it approaches.
        gamma: how fast, a number above 0.

    Raises:
        TypeError: one of them is no number.
        ValueError: one of them is out of range.

    Example:
        >>> schedule = sitout.schedules.curriculum(0.5)
        >>> [round(schedule(step, 10), 3) for step in range(4)]
        [0.0, 0.316, 0.432, 0.475]

    Reference:
        Morerio, Cavazza, Volpi, Vidal, Murino 2017, Curriculum Dropout, arXiv 1703.06229. With
        theta the keep rate, ``theta(t) = (1 - theta) exp(-gamma t) + theta`` and gamma = 10 / T;
        gamma here is that times T.
    """
    gamma = number(gamma, "gamma", "curriculum", "a finite number above 0", above=True)
    return _made(_curriculum, p=_checks.rate(p, "curriculum"), gamma=gamma)


def over_depth(p: float, n: int, *, from_zero: bool = True) -> tuple[float, ...]:
    """Return n rates that rise in a straight line over the depth of a network.

    For the branches of a residual network, the first one first: those near the input carry more,
    and sit out less.

    Args:
        p: the rate of the last branch.
        n: branches.
        from_zero: the first one never sits out, ``p l / (n - 1)`` for l = 0 .. n - 1, as in timm;
            a single branch has the rate 0 then. Else ``p l / n`` for l = 1 .. n, as in the paper.

    Raises:
        TypeError: ``p`` is no number, ``n`` no int, or ``from_zero`` no bool.
        ValueError: ``p`` is outside of [0, 1], or ``n`` is below 1.

    Example:
        >>> sitout.schedules.over_depth(0.5, 5)
        (0.0, 0.125, 0.25, 0.375, 0.5)
        >>> sitout.schedules.over_depth(0.5, 5, from_zero=False)
        (0.1, 0.2, 0.3, 0.4, 0.5)

    Reference:
        Huang, Sun, Liu, Sedra, Weinberger 2016, Deep Networks with Stochastic Depth, arXiv
        1603.09382, equation 4.
    """
    p = _checks.rate(p, "over_depth")
    if _checks.integer(n, "n", "over_depth") < 1:
        raise ValueError(_checks.message("`n` of over_depth", "1 or more", n))
    if not _checks.flag(from_zero, "from_zero", "over_depth"):
        return tuple(p * (at / n) for at in range(1, n + 1))
    return tuple(p * (at / max(n - 1, 1)) for at in range(n))


def _made(formula: Callable[..., float], **constants: float) -> Schedule:
    return Schedule(formula.__name__.removeprefix("_"), tuple(constants.items()), formula)


def _rate(value: object, name: str, owner: str) -> float:
    """Return a rate that has another name than p."""
    return _part(value, name, owner, zero=True)


def _part(value: object, name: str, owner: str, *, zero: bool = False) -> float:
    """Return a number in (0, 1], or in [0, 1] with ``zero``."""
    rule = f"a number in {'[' if zero else '('}0, 1]"
    made = number(value, name, owner, rule, above=not zero)
    if made > 1.0:
        raise ValueError(_checks.message(f"`{name}` of {owner}", rule, value))
    return made


def _between(start: float, end: float, weight: float) -> float:
    """Return what lies between two rates; exactly start at 0 and end at 1."""
    return start * (1.0 - weight) + end * weight


def _half_cosine(at: float) -> float:
    return (1.0 - cos(pi * at)) / 2.0


def _constant(at: float, p: float) -> float:
    return p


def _linear(at: float, start: float, end: float) -> float:
    return _between(start, end, at)


def _early(at: float, p: float, until: float) -> float:
    return p * (1.0 - at / until) if at < until else 0.0


def _late(at: float, p: float, start: float) -> float:
    return p if at >= start else 0.0


def _flat_cos(at: float, p: float, end: float, flat: float) -> float:
    if at <= flat:
        return p
    return _between(p, end, _half_cosine((at - flat) / (1.0 - flat)))


def _ramp(at: float, p: float, until: float) -> float:
    return p * (at / until) if at < until else p


def _cosine(at: float, start: float, end: float) -> float:
    return _between(start, end, _half_cosine(at))


def _curriculum(at: float, p: float, gamma: float) -> float:
    return p * -expm1(-gamma * at)
