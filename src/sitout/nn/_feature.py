"""Dropout of whole channels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .. import functional
from ._base import Site

if TYPE_CHECKING:
    from torch import Tensor


class Dropout1d(Site, torch.nn.Dropout1d):
    """Drop whole channels of sequences in training; the identity in evaluation.

    A drop-in for :class:`torch.nn.Dropout1d`, of which it is a subclass.

    Args:
        p: drop rate, a fraction in [0, 1].
        inplace: write the result into the input.
        shared_dims: further dims along which one mask bit serves all.
        batch_dim: 0, or 1 for ``[C, N, ...]``.
        generator: drawn from instead of torch's default generator.

    Shape:
        ``[N, C, L]`` or ``[C, L]`` to the same shape.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: ``p`` is not in [0, 1].

    Example:
        >>> sitout.nn.Dropout1d(0.2)
        Dropout1d(p=0.2, inplace=False)

    Reference:
        Tompson et al. 2015, arXiv 1411.4280; see :func:`sitout.functional.dropout1d`.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x``, in training with some channels dropped."""
        key, rows = self._address()
        return functional.dropout1d(
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


class Dropout2d(Site, torch.nn.Dropout2d):
    """Drop whole channels of images in training; the identity in evaluation.

    A drop-in for :class:`torch.nn.Dropout2d`, of which it is a subclass.

    Args:
        p: drop rate, a fraction in [0, 1].
        inplace: write the result into the input.
        shared_dims: further dims along which one mask bit serves all.
        batch_dim: 0, or 1 for ``[C, N, ...]``.
        generator: drawn from instead of torch's default generator.

    Shape:
        ``[N, C, H, W]`` to the same shape.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: ``p`` is not in [0, 1].

    Example:
        >>> sitout.nn.Dropout2d(0.2)
        Dropout2d(p=0.2, inplace=False)

    Reference:
        Tompson et al. 2015, arXiv 1411.4280; see :func:`sitout.functional.dropout2d`.

    Differs:
        Three dims are refused: torch reads ``[C, H, W]`` as ``[N, C, L]``, warns, and drops along
        the wrong axis.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x``, in training with some channels dropped."""
        key, rows = self._address()
        return functional.dropout2d(
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


class Dropout3d(Site, torch.nn.Dropout3d):
    """Drop whole channels of volumes in training; the identity in evaluation.

    A drop-in for :class:`torch.nn.Dropout3d`, of which it is a subclass.

    Args:
        p: drop rate, a fraction in [0, 1].
        inplace: write the result into the input.
        shared_dims: further dims along which one mask bit serves all.
        batch_dim: 0, or 1 for ``[C, N, ...]``.
        generator: drawn from instead of torch's default generator.

    Shape:
        ``[N, C, D, H, W]`` or ``[C, D, H, W]`` to the same shape.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: ``p`` is not in [0, 1].

    Example:
        >>> sitout.nn.Dropout3d(0.2)
        Dropout3d(p=0.2, inplace=False)

    Reference:
        Tompson et al. 2015, arXiv 1411.4280; see :func:`sitout.functional.dropout3d`.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x``, in training with some channels dropped."""
        key, rows = self._address()
        return functional.dropout3d(
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
