"""A residual branch that runs on the samples that keep it, and on no others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from .. import _checks, backends, masks
from . import _call
from ._thinned import key_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..masks import MaskKey


def drop_residual(
    x: Tensor,
    branch: Callable[[Tensor], Tensor],
    p: float,
    training: bool = True,
    *,
    source: Tensor | None = None,
    form: str = "auto",
    key: MaskKey | None = None,
    rows: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return ``x + branch(x)``, where the branch runs on some samples only and is scaled.

    Of n samples ceil(n (1 - p)) are computed, with weight 1 / (1 - p). If n (1 - p) is no whole
    number, one of them stands in for the fraction: it counts with that probability. So shapes do
    not change from step to step, and the expected rate is p for every batch size.

    Args:
        x: ``[B, ...]``, the stream.
        branch: takes ``[c, ...]`` to ``[c, ...]``, each sample for itself.
        p: drop rate, a fraction in [0, 1].
        training: without it the result is ``x + branch(x)``.
        source: ``[B, ...]``, what the branch takes where that is not ``x`` itself.
        form: "thinned" runs the branch on the kept samples, "masked" on all of them, with the same
            weights; "auto" takes the faster one.
        key: the address; if None a ticket is drawn.
        rows: int64 ``[B]``, the positions in the global batch: those of one group, from a multiple
            of B on. 0 .. B-1 if None.
        generator: to draw the ticket from.

    Returns:
        Like ``x``, a new tensor. Samples that sit out are those of ``x``, to the bit.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, ``rows`` are no such group, or the branch changes
            the shape.

    Example:
        >>> x = torch.ones(4, 2)
        >>> sitout.functional.drop_residual(x, torch.neg, 0.5, key=sitout.MaskKey(seed=0))
        tensor([[ 1.,  1.],
                [ 1.,  1.],
                [-1., -1.],
                [-1., -1.]])

    Reference:
        Huang et al. 2016, arXiv 1603.09382 (stochastic depth); Oquab et al. 2023, arXiv 2304.07193,
        section 4 (the branch runs on a subset).

    Differs:
        Oquab et al. compute a rounded-down number of samples, which makes p = 0.3 the rate 0 at
        batch 1 and 0.5 at batch 2.
    """
    options = (source, form, key, rows, generator)
    return residual(x, branch, p, training, *options, _plainly, None)


class Run(Protocol):
    """Runs a branch on the kept samples of a batch."""

    def __call__(
        self, branch: Callable[[Tensor], Tensor], x: Tensor, kept: Tensor, n: int
    ) -> Tensor:
        """Return what the branch makes of the samples ``x``, which are the kept ones of ``n``."""


def _plainly(branch: Callable[[Tensor], Tensor], x: Tensor, kept: Tensor, n: int) -> Tensor:
    return branch(x)


def residual(
    x: Tensor,
    branch: Callable[[Tensor], Tensor],
    p: float,
    training: bool,
    source: Tensor | None,
    form: str,
    key: MaskKey | None,
    rows: Tensor | None,
    generator: torch.Generator | None,
    run: Run,
    batch: int | None,
) -> Tensor:
    """Do what :func:`drop_residual` does, for a layer.

    Args:
        x: as of :func:`drop_residual`, like those up to ``generator``.
        branch: see there.
        p: see there.
        training: see there.
        source: see there.
        form: see there.
        key: see there.
        rows: see there.
        generator: see there.
        run: runs the branch on the kept samples.
        batch: samples of the whole batch, where ``x`` holds some of them: in a branch of a branch.
    """
    owner = "drop_residual"
    p = _checks.rate(p, owner)
    _checks.choice(form, _call.FORMS, f"`form` of {owner}")
    if not callable(branch):
        raise TypeError(_checks.message(f"`branch` of {owner}", "what takes a tensor", branch))
    source = x if source is None else source
    if _call.begin(x, p, "dropout", training, owner) is None:
        return x + _checked(branch(source), x)
    if p == 1.0:
        return x.clone()
    if x.dim() == 0 or len(source) != len(x):
        got = f"{tuple(x.shape)} and {tuple(source.shape)}"
        raise ValueError(_checks.message(f"The input of {owner}", "[B, ...] samples", got))
    group = _group(x, rows, batch)
    key = key_of(key, generator, x.device, owner)
    kept, weights = backends.draw_samples(key, p, len(x), group)
    if form == "masked" or (form == "auto" and why_masked(p, len(x), branch)):
        out = backends.take(_checked(branch(source), x), kept, None)
    else:
        some = source if len(kept) == len(source) else backends.take(source, kept, None)
        out = _checked(run(branch, some, kept, len(x)), x, len(kept))
    wide = torch.promote_types(x.dtype, out.dtype)  # as x + out has it, under autocast too
    return backends.add_rows(x.to(wide), out.to(wide), kept, weights)


def why_masked(p: float, n: int, branch: object) -> str:
    """Return why a branch should run on all samples; nothing if it should not.

    Args:
        p: drop rate, a fraction in (0, 1).
        n: samples.
        branch: a module or a function.
    """
    computed = backends.count_samples(p, n)
    least = backends.LEAST_SAMPLES
    if computed > (1.0 - least) * n:
        return f"{computed} of {n} samples would be computed; it pays from {least:.0%} left out"
    if computed < 2 and has_statistics(branch):
        return "batch statistics take at least 2 samples"
    return ""


def has_statistics(branch: object) -> bool:
    """Return whether a branch that tells its modules normalizes by the statistics of its batch."""
    modules = getattr(branch, "modules", None)
    if modules is None:
        return False
    kind = torch.nn.modules.batchnorm._BatchNorm
    return any(isinstance(one, kind) and one.training for one in modules())


def _checked(out: Tensor, x: Tensor, n: int | None = None) -> Tensor:
    wanted = x.shape if n is None else (n, *x.shape[1:])
    if out.shape != wanted:
        rule = f"of the shape of its input, {tuple(wanted)}"
        raise ValueError(_checks.message("The branch of drop_residual", rule, tuple(out.shape)))
    return out


def _group(x: Tensor, rows: Tensor | None, batch: int | None) -> Tensor:
    """Return the number of the group that the samples are, with no dims."""
    n = len(x)
    if rows is None:
        return torch.zeros((), dtype=torch.int64, device=x.device)
    rows = masks._check_rows(rows, n)
    if batch is not None or masks._is_frozen():
        rows = masks._moved(rows, x.device)
    group = rows[0] // (n if batch is None else batch)
    if batch is None:
        _check_group(rows, group * n)
    return masks._moved(group, x.device)


def _check_group(rows: Tensor, start: Tensor) -> None:
    """Refuse rows that are no group of their own: two ranks might have one subset."""
    n = len(rows)
    fits = (rows == start + torch.arange(n, device=rows.device)).all()
    rule = f"k * {n}, k * {n} + 1, ... for a batch of {n}"
    way_out = "Cut the global batch into equal parts, as sitout.parallel.rows does."
    if masks._is_frozen():
        text = _checks.message("`rows` of drop_residual", rule, "others", way_out)
        torch._assert_async(fits, text)
    elif not fits:
        raise ValueError(
            _checks.message("`rows` of drop_residual", rule, rows.tolist()[:8], way_out)
        )
