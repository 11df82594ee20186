"""Dropout, the residual sum behind it and the normalization of that, as one layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from .. import _checks, functional
from ._base import Site

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


class DropoutAddLayerNorm(Site, torch.nn.LayerNorm):
    """Add ``x``, in training with some elements dropped, to a residual, and normalize the sum.

    It stands for ``norm(residual + dropout(x))``, has the same masks, and is one kernel on a GPU.
    It is a :class:`torch.nn.LayerNorm`, with the same parameters under the same names.

    Args:
        normalized_shape: the last dims of the input, which are normalized together.
        p: drop rate, a fraction in [0, 1].
        eps: added to the variance.
        elementwise_affine: whether there is a weight.
        bias: whether there is a bias besides.
        prenorm: return the sum too, which goes on beside a block that normalizes its input.
        shared_dims: dims along which one mask bit serves all.
        batch_dim: the dim of the samples, 1 for ``[T, B, C]``.
        generator: drawn from instead of torch's default generator.
        device: of the parameters.
        dtype: of the parameters.

    Shape:
        ``[B, ..., C]`` and the same again, to the same shape; with ``prenorm`` two of it.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: ``p`` is not in [0, 1].

    Example:
        >>> layer = sitout.nn.DropoutAddLayerNorm(2, 0.1)
        >>> layer
        DropoutAddLayerNorm((2,), eps=1e-05, elementwise_affine=True, bias=True, p=0.1)
        >>> layer.eval()(torch.tensor([1.0, 2.0]), torch.ones(2)).detach()
        tensor([-1.0000,  1.0000])

    Reference:
        See :func:`sitout.functional.dropout_add_layer_norm`.
    """

    prenorm: bool

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        p: float = 0.5,
        *,
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        prenorm: bool = False,
        shared_dims: Sequence[int] = (),
        batch_dim: int = 0,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(p, shared_dims=shared_dims, batch_dim=batch_dim, generator=generator)
        given: Any = normalized_shape
        options: dict[str, Any] = {"bias": bias, "device": device, "dtype": dtype}
        torch.nn.LayerNorm.__init__(self, given, eps, elementwise_affine, **options)
        _complete(self, prenorm)

    def forward(  # type: ignore[override]
        self, x: Tensor, residual: Tensor
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return the normalized sum of ``residual`` and what is kept of ``x``."""
        key, rows = self._address()
        return functional.dropout_add_layer_norm(
            x,
            residual,
            self.weight,
            self.bias,
            self._rate(),
            self.training,
            normalized_shape=self.normalized_shape,
            eps=self.eps,
            prenorm=self.prenorm,
            key=key,
            rows=rows,
            shared_dims=self.shared_dims,
            batch_dim=self.batch_dim,
            generator=self.generator,
        )

    def extra_repr(self) -> str:
        """Return what stands between the parentheses of ``repr``."""
        return _shown(self, torch.nn.LayerNorm.extra_repr(self))


class DropoutAddRMSNorm(Site, torch.nn.RMSNorm):
    """Add ``x``, in training with some elements dropped, to a residual; scale the sum to size 1.

    As :class:`DropoutAddLayerNorm`; the sum is divided by the root of its mean square. It is a
    :class:`torch.nn.RMSNorm`, with the same parameter under the same name.

    Args:
        normalized_shape: the last dims of the input, which are normalized together.
        p: drop rate, a fraction in [0, 1].
        eps: added to the mean square; None for a step of the type that computes.
        elementwise_affine: whether there is a weight.
        prenorm: return the sum too, which goes on beside a block that normalizes its input.
        shared_dims: dims along which one mask bit serves all.
        batch_dim: the dim of the samples, 1 for ``[T, B, C]``.
        generator: drawn from instead of torch's default generator.
        device: of the parameters.
        dtype: of the parameters.

    Shape:
        ``[B, ..., C]`` and the same again, to the same shape; with ``prenorm`` two of it.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: ``p`` is not in [0, 1].

    Example:
        >>> layer = sitout.nn.DropoutAddRMSNorm(2, 0.1, prenorm=True).eval()
        >>> normalized, total = layer(torch.ones(2), torch.ones(2))
        >>> normalized.detach(), total
        (tensor([1., 1.]), tensor([2., 2.]))

    Reference:
        See :func:`sitout.functional.dropout_add_rms_norm`.
    """

    prenorm: bool

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        p: float = 0.5,
        *,
        eps: float | None = None,
        elementwise_affine: bool = True,
        prenorm: bool = False,
        shared_dims: Sequence[int] = (),
        batch_dim: int = 0,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(p, shared_dims=shared_dims, batch_dim=batch_dim, generator=generator)
        given: Any = normalized_shape
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        torch.nn.RMSNorm.__init__(self, given, eps, elementwise_affine, **options)
        _complete(self, prenorm)

    def forward(  # type: ignore[override]
        self, x: Tensor, residual: Tensor
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return the normalized sum of ``residual`` and what is kept of ``x``."""
        key, rows = self._address()
        return functional.dropout_add_rms_norm(
            x,
            residual,
            self.weight,
            self._rate(),
            self.training,
            normalized_shape=self.normalized_shape,
            eps=self.eps,
            prenorm=self.prenorm,
            key=key,
            rows=rows,
            shared_dims=self.shared_dims,
            batch_dim=self.batch_dim,
            generator=self.generator,
        )

    def extra_repr(self) -> str:
        """Return what stands between the parentheses of ``repr``."""
        return _shown(self, torch.nn.RMSNorm.extra_repr(self))


def _complete(layer: Any, prenorm: object) -> None:
    """Give a layer what its twin's constructor has taken from it: that begins a module anew."""
    layer.register_buffer("rate_data", None, persistent=False)
    layer.prenorm = _checks.flag(prenorm, "prenorm", type(layer).__name__)


def _shown(layer: Any, norm: str) -> str:
    parts = f"{norm}, {Site.extra_repr(layer)}".replace(", inplace=False", "")
    return f"{parts}, prenorm=True" if layer.prenorm else parts
