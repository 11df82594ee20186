"""Dropout of single elements, or of whatever shares a mask bit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .. import functional
from ._base import Site

if TYPE_CHECKING:
    from torch import Tensor


class Dropout(Site, torch.nn.Dropout):
    """Drop each element with probability ``p`` in training; the identity in evaluation.

    A drop-in for :class:`torch.nn.Dropout`, of which it is a subclass.

    Args:
        p: drop rate, a fraction in [0, 1].
        inplace: write the result into the input.
        shared_dims: dims along which one mask bit serves all: ``(1,)`` on ``[B, T, C]`` locks the
            mask over time, ``(0,)`` over the batch.
        batch_dim: the dim of the samples, 1 for ``[T, B, C]``.
        generator: drawn from instead of torch's default generator.

    Shape:
        ``[B, ...]`` to the same shape.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: ``p`` is not in [0, 1].

    Example:
        >>> layer = sitout.nn.Dropout(0.25)
        >>> layer
        Dropout(p=0.25, inplace=False)
        >>> layer.eval()(torch.ones(3))
        tensor([1., 1., 1.])

    Reference:
        Srivastava et al. 2014, JMLR 15:1929-1958; see :func:`sitout.functional.dropout`.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x``, in training with some elements dropped."""
        key, rows = self._address()
        return functional.dropout(
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
