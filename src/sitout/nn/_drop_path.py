"""Stochastic depth: a residual branch sits out for whole samples."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import _checks, functional
from ._base import Site

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor


class DropPath(Site):
    """Drop a residual branch for whole samples in training; the identity in evaluation.

    Use it on the output of a branch: ``x + drop_path(branch(x))``.

    Args:
        p: drop rate, a fraction in [0, 1].
        scale_by_keep: scale the kept samples by 1 / (1 - p).
        inplace: write the result into the input.
        shared_dims: ``(0,)`` makes the whole batch drop together.
        batch_dim: the dim of the samples, 1 for ``[T, B, C]``.
        generator: drawn from instead of torch's default generator.

    Shape:
        ``[B, ...]`` to the same shape.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: ``p`` is not in [0, 1].

    Example:
        >>> sitout.nn.DropPath(0.1)
        DropPath(p=0.1, inplace=False, scale_by_keep=True)

    Reference:
        Huang et al. 2016, arXiv 1603.09382; see :func:`sitout.functional.drop_path`.

    Differs:
        timm's ``DropPath`` takes ``drop_prob``, 0 by default; here the rate has to be named.
    """

    def __init__(
        self,
        p: float,
        scale_by_keep: bool = True,
        *,
        inplace: bool = False,
        shared_dims: Sequence[int] = (),
        batch_dim: int = 0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(
            p, inplace, shared_dims=shared_dims, batch_dim=batch_dim, generator=generator
        )
        self.scale_by_keep = _checks.flag(scale_by_keep, "scale_by_keep", "DropPath")

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x``, in training with zeros for some samples."""
        key, rows = self._address()
        return functional.drop_path(
            x,
            self._rate(),
            self.training,
            self.inplace,
            scale_by_keep=self.scale_by_keep,
            key=key,
            rows=rows,
            shared_dims=self.shared_dims,
            batch_dim=self.batch_dim,
            generator=self.generator,
        )

    def extra_repr(self) -> str:
        """Return what stands between the parentheses of ``repr``."""
        return f"{super().extra_repr()}, scale_by_keep={self.scale_by_keep}"


class DropPathAdd(Site):
    """Add a residual branch to its stream, in training without it for some samples.

    It stands for ``residual + drop_path(x)``, has the same masks, and takes one pass on the CPU.

    Args:
        p: drop rate, a fraction in [0, 1].
        scale_by_keep: scale the kept samples by 1 / (1 - p).
        shared_dims: ``(0,)`` makes the whole batch drop together.
        batch_dim: the dim of the samples, 1 for ``[T, B, C]``.
        generator: drawn from instead of torch's default generator.

    Shape:
        ``[B, ...]`` and the same again, to the same shape.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: ``p`` is not in [0, 1].

    Example:
        >>> sitout.nn.DropPathAdd(0.1)
        DropPathAdd(p=0.1, scale_by_keep=True)

    Reference:
        Huang et al. 2016, arXiv 1603.09382; see :func:`sitout.functional.drop_path_add`.
    """

    def __init__(
        self,
        p: float,
        scale_by_keep: bool = True,
        *,
        shared_dims: Sequence[int] = (),
        batch_dim: int = 0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(p, shared_dims=shared_dims, batch_dim=batch_dim, generator=generator)
        self.scale_by_keep = _checks.flag(scale_by_keep, "scale_by_keep", "DropPathAdd")

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """Return the sum of ``residual`` and, in training for some samples only, ``x``."""
        key, rows = self._address()
        return functional.drop_path_add(
            x,
            residual,
            self._rate(),
            self.training,
            scale_by_keep=self.scale_by_keep,
            key=key,
            rows=rows,
            shared_dims=self.shared_dims,
            batch_dim=self.batch_dim,
            generator=self.generator,
        )

    def extra_repr(self) -> str:
        """Return what stands between the parentheses of ``repr``."""
        shown = super().extra_repr().replace(", inplace=False", "")
        return f"{shown}, scale_by_keep={self.scale_by_keep}"
