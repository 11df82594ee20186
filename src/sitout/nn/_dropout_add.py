"""Dropout and the residual sum behind it, in one pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import functional
from ._base import Site

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor


class DropoutAdd(Site):
    """Add ``x``, in training with some elements dropped, to a residual.

    It stands for ``residual + dropout(x)``, has the same masks, and takes one pass on the CPU.

    Args:
        p: drop rate, a fraction in [0, 1].
        shared_dims: dims along which one mask bit serves all.
        batch_dim: the dim of the samples, 1 for ``[T, B, C]``.
        generator: drawn from instead of torch's default generator.

    Shape:
        ``[B, ...]`` and the same again, to the same shape.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: ``p`` is not in [0, 1].

    Example:
        >>> layer = sitout.nn.DropoutAdd(0.1)
        >>> layer
        DropoutAdd(p=0.1)
        >>> layer.eval()(torch.ones(2), torch.ones(2))
        tensor([2., 2.])

    Reference:
        See :func:`sitout.functional.dropout_add`.
    """

    def __init__(
        self,
        p: float = 0.5,
        *,
        shared_dims: Sequence[int] = (),
        batch_dim: int = 0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(p, shared_dims=shared_dims, batch_dim=batch_dim, generator=generator)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """Return the sum of ``residual`` and what is kept of ``x``."""
        key, rows = self._address()
        return functional.dropout_add(
            x,
            residual,
            self._rate(),
            self.training,
            key=key,
            rows=rows,
            shared_dims=self.shared_dims,
            batch_dim=self.batch_dim,
            generator=self.generator,
        )

    def extra_repr(self) -> str:
        """Return what stands between the parentheses of ``repr``."""
        return super().extra_repr().replace(", inplace=False", "")
