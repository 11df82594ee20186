"""Dropout that keeps mean and variance, for self-normalising networks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .. import functional
from ._base import Site

if TYPE_CHECKING:
    from torch import Tensor


class AlphaDropout(Site, torch.nn.AlphaDropout):
    """Set elements to SELU's saturation value in training, keeping mean and variance.

    A drop-in for :class:`torch.nn.AlphaDropout`, of which it is a subclass.

    Args:
        p: drop rate, a fraction in [0, 1].
        inplace: write the result into the input.
        shared_dims: dims along which one mask bit serves all.
        batch_dim: the dim of the samples, 1 for ``[T, B, C]``.
        generator: drawn from instead of torch's default generator.

    Shape:
        ``[B, ...]`` to the same shape.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: ``p`` is not in [0, 1].

    Example:
        >>> sitout.nn.AlphaDropout(0.1)
        AlphaDropout(p=0.1, inplace=False)

    Reference:
        Klambauer et al. 2017, arXiv 1706.02515; see :func:`sitout.functional.alpha_dropout`.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x``, in training with some elements at saturation."""
        key, rows = self._address()
        return functional.alpha_dropout(
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


class FeatureAlphaDropout(Site, torch.nn.FeatureAlphaDropout):
    """Set channels to SELU's saturation value in training, keeping mean and variance.

    A drop-in for :class:`torch.nn.FeatureAlphaDropout`, of which it is a subclass.

    Args:
        p: drop rate, a fraction in [0, 1].
        inplace: write the result into the input.
        shared_dims: further dims along which one mask bit serves all.
        batch_dim: 0, or 1 for ``[C, N, ...]``.
        generator: drawn from instead of torch's default generator.

    Shape:
        ``[N, C, ...]`` to the same shape.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: ``p`` is not in [0, 1].

    Example:
        >>> sitout.nn.FeatureAlphaDropout(0.1)
        FeatureAlphaDropout(p=0.1, inplace=False)

    Reference:
        Klambauer et al. 2017, arXiv 1706.02515;
        see :func:`sitout.functional.feature_alpha_dropout`.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x``, in training with some channels at saturation."""
        key, rows = self._address()
        return functional.feature_alpha_dropout(
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
