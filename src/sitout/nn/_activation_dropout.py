"""An activation and dropout behind it, in one pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import _checks, backends, functional
from ._base import Site

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor

    from ..backends import Activation


class ActivationDropout(Site):
    """Apply an activation and, in training, drop from its result.

    It stands for ``torch.nn.Sequential(torch.nn.ReLU(), sitout.nn.Dropout(p))`` and the like, has
    the same masks, and takes one pass on the CPU. With "relu" its result is kept for backward, so
    the next layer may not write into it (``inplace=True``).

    Args:
        activation: "relu", "gelu", "gelu_tanh" or "silu".
        p: drop rate, a fraction in [0, 1].
        shared_dims: dims along which one mask bit serves all.
        batch_dim: the dim of the samples, 1 for ``[T, B, C]``.
        generator: drawn from instead of torch's default generator.

    Shape:
        ``[B, ...]`` to the same shape.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: there is no such activation, or ``p`` is not in [0, 1].

    Example:
        >>> layer = sitout.nn.ActivationDropout("relu", 0.5)
        >>> layer
        ActivationDropout('relu', p=0.5)
        >>> layer.eval()(torch.tensor([-1.0, 2.0]))
        tensor([0., 2.])

    Reference:
        See :func:`sitout.functional.activation_dropout`.
    """

    def __init__(
        self,
        activation: Activation,
        p: float = 0.5,
        *,
        shared_dims: Sequence[int] = (),
        batch_dim: int = 0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(p, shared_dims=shared_dims, batch_dim=batch_dim, generator=generator)
        what = "`activation` of ActivationDropout"
        _checks.choice(activation, backends.ACTIVATIONS, what)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation of ``x``, in training with some elements dropped."""
        key, rows = self._address()
        return functional.activation_dropout(
            x,
            self.activation,
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
        return f"{self.activation!r}, {super().extra_repr()}".replace(", inplace=False", "")
