"""A residual branch that runs on the samples that keep it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import _checks, backends
from ..backends import Explanation
from ..functional._call import FORMS
from ..functional._drop_residual import _plainly, residual, why_masked
from ._base import Site

if TYPE_CHECKING:
    from collections.abc import Callable


class ResidualDropPath(Site):
    """The site of a residual branch that runs on the samples that keep it.

    It holds the rate and the place. A block that is thinned asks it, see :meth:`add`. Called with
    the output of a branch, as a ``DropPath`` is, it has the same samples and weights, masked.

    Args:
        p: drop rate, a fraction in [0, 1].
        form: "thinned" or "masked"; "auto" takes the faster one.
        generator: drawn from instead of torch's default generator.

    Shape:
        ``[B, ...]`` to the same shape.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: ``p`` is not in [0, 1].

    Example:
        >>> sitout.nn.ResidualDropPath(0.1)
        ResidualDropPath(p=0.1)

    Reference:
        Huang et al. 2016, arXiv 1603.09382; see :func:`sitout.functional.drop_residual`.
    """

    _p_is_number = True

    def __init__(
        self, p: float, *, form: str = "auto", generator: torch.Generator | None = None
    ) -> None:
        super().__init__(p, generator=generator)
        self.form = _checks.choice(form, FORMS, f"`form` of {type(self).__name__}")

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of a branch with its weights: 0 for samples that sit out."""
        if not self.training or self._p == 0.0:
            return x
        return self._add(torch.zeros_like(x), _same, x, "masked")

    def add(
        self, x: Tensor, branch: Callable[[Tensor], Tensor], source: Tensor | None = None
    ) -> Tensor:
        """Return ``x + branch(source)``; in training the branch runs on some samples only.

        Args:
            x: ``[B, ...]``, the stream.
            branch: each sample for itself.
            source: ``[B, ...]``, what the branch takes; ``x`` if None.
        """
        return self._add(x, branch, source, self.form)

    def _add(
        self, x: Tensor, branch: Callable[[Tensor], Tensor], source: Tensor | None, form: str
    ) -> Tensor:
        key, rows = self._address()
        options = (source, form, key, rows, self.generator)
        ticker = None if key is None else self._ticker
        if ticker is None:
            return residual(x, branch, self._p, self.training, *options, _plainly, None)
        run, batch = ticker.run, ticker.batch()
        return residual(x, branch, self._p, self.training, *options, run, batch)

    def explain(self, x: Tensor, branch: object = None) -> Explanation:
        """Return which form a step takes, and why.

        Args:
            x: ``[B, ...]``, the stream.
            branch: what runs, where batch normalization in it counts.

        Example:
            >>> sitout.nn.ResidualDropPath(0.4).explain(torch.ones(32, 65, 384)).why
            '20 of 32 samples are computed'
        """
        if not self.training or self._p == 0.0:
            why = "p is 0" if self.training else "it is in evaluation mode"
            return Explanation("full", f"nothing sits out: {why}")
        if self.form != "auto":
            return Explanation(self.form, f"form={self.form!r} was asked for")
        why = why_masked(self._p, len(x), self._branch() if branch is None else branch)
        if why:
            return Explanation("masked", why)
        computed = backends.count_samples(self._p, len(x))
        return Explanation("thinned", f"{computed} of {len(x)} samples are computed")

    def _branch(self) -> object:
        return None

    def extra_repr(self) -> str:
        """Return what stands between the parentheses of ``repr``."""
        parts = [f"p={self.p}"]
        parts += [f"form={self.form!r}"] if self.form != "auto" else []
        parts += [f"generator={self.generator.device}"] if self.generator is not None else []
        return ", ".join(parts)


def _same(x: Tensor) -> Tensor:
    return x


class DropResidual(ResidualDropPath):
    """A residual block whose branch runs on the samples that keep it: ``x + branch(x)``.

    Args:
        branch: any module that takes ``[c, ...]`` to the same shape, each sample for itself. Batch
            normalization has the statistics of the kept samples; with fewer than 2 of these the
            branch runs on all.
        p: drop rate, a fraction in [0, 1].
        form: "thinned" or "masked"; "auto" takes the faster one.
        generator: drawn from instead of torch's default generator.

    Shape:
        ``[B, ...]`` to the same shape.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: ``p`` is not in [0, 1].

    Example:
        >>> block = sitout.nn.DropResidual(torch.nn.Linear(8, 8), p=0.4)
        >>> block(torch.ones(5, 8)).shape
        torch.Size([5, 8])

    Reference:
        Huang et al. 2016, arXiv 1603.09382; see :func:`sitout.functional.drop_residual`.
    """

    def __init__(
        self,
        branch: torch.nn.Module,
        p: float,
        *,
        form: str = "auto",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(p, form=form, generator=generator)
        given: object = branch
        if not isinstance(given, torch.nn.Module):
            what = "`branch` of DropResidual"
            raise TypeError(_checks.message(what, "a torch.nn.Module", given))
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x + branch(x)``; in training the branch runs on some samples only."""
        return self.add(x, self.branch)

    def _branch(self) -> object:
        return self.branch
