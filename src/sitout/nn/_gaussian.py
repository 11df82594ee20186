"""Multiplicative Gaussian noise in place of a mask."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import functional
from ._base import Site

if TYPE_CHECKING:
    from torch import Tensor


class GaussianDropout(Site):
    """Multiply by Gaussian noise of mean 1 and variance p / (1 - p) in training.

    Args:
        p: drop rate, a fraction in [0, 1).
        inplace: write the result into the input.
        shared_dims: dims along which one number serves all.
        batch_dim: the dim of the samples, 1 for ``[T, B, C]``.
        generator: drawn from instead of torch's default generator.

    Shape:
        ``[B, ...]`` to the same shape.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: ``p`` is not in [0, 1).

    Example:
        >>> sitout.nn.GaussianDropout(0.3)
        GaussianDropout(p=0.3, inplace=False)

    Reference:
        Srivastava et al. 2014, JMLR 15:1929-1958, section 10;
        see :func:`sitout.functional.gaussian_dropout`.
    """

    _p_below_one = True

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x``, in training with noise on every element."""
        key, rows = self._address()
        return functional.gaussian_dropout(
            x,
            self._rate(),
            self.training,
            self.inplace,
            key=key,
            rows=rows,
            shared_dims=self.shared_dims,
            batch_dim=self.batch_dim,
            generator=self.generator,
        )
