"""Convolutions, and batch normalization between them, of which kept channels are computed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import _checks, functional
from ._thinned_layers import Thinned

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._thinned import ThinnedDropout


class _Conv(Thinned, torch.nn.modules.conv._ConvNd):
    """What thinned convolutions of all dims share."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: str | int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        bias: bool = True,
        *,
        before: ThinnedDropout | None = None,
        after: ThinnedDropout | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        sizes = (kernel_size, stride, padding, dilation)
        super().__init__(  # type: ignore[call-arg]
            *(in_channels, out_channels, *sizes, 1, bias),  # type: ignore[arg-type]
            device=device,
            dtype=dtype,
        )
        self.stand(before, after)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Apply the layer."""
        if self._drops() and input.dim() != self.weight.dim():
            what, shape = f"The input of {type(self).__name__}", tuple(input.shape)
            rule = f"[N, C, ...] with {self.weight.dim()} dims where units sit out"
            raise ValueError(_checks.message(what, rule, shape))
        kept_in, kept_out = self._units(input, 1, self.in_channels, self.out_channels)
        if kept_in is None and kept_out is None:
            return self._passed(super().forward(input))
        out = functional.thinned_conv(
            input,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            kept_in=kept_in,
            kept_out=kept_out,
        )
        return self._passed(out)


class ThinnedConv1d(_Conv, torch.nn.Conv1d):
    """A 1-D convolution next to a :class:`ThinnedDropout`; see :class:`ThinnedConv2d`.

    Example:
        >>> drop = sitout.nn.ThinnedDropout(0.5, dim=1)
        >>> sitout.nn.ThinnedConv1d(3, 8, 3, before=drop)(torch.ones(2, 3, 9)).shape[2]
        7
    """


class ThinnedConv2d(_Conv, torch.nn.Conv2d):
    """A 2-D convolution next to a :class:`ThinnedDropout`: it skips the channels that sit out.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        kernel_size: as of ``torch.nn.Conv2d``, like the next three.
        stride: in elements.
        padding: in elements, or "same" or "valid"; with zeros.
        dilation: in elements.
        bias: whether there is one.
        before: the site in front of which it stands: only the kept channels are computed.
        after: the site behind which it stands: only the kept channels are there, and are scaled.
        device: of the parameters.
        dtype: of the parameters.

    Shape:
        ``[N, C, H, W]`` to ``[N, D, H', W']``; in a step that is thinned, with the kept channels
        alone.

    Raises:
        TypeError: ``before`` or ``after`` is something else.

    Example:
        >>> drop = sitout.nn.ThinnedDropout(0.5, dim=1, form="thinned")
        >>> first = sitout.nn.ThinnedConv2d(3, 8, 3, before=drop)
        >>> second = sitout.nn.ThinnedConv2d(8, 4, 3, after=drop)
        >>> second(drop(first(torch.ones(2, 3, 9, 9)).relu())).shape
        torch.Size([2, 4, 5, 5])

    Reference:
        Tompson et al. 2015, arXiv 1411.4280; see :func:`sitout.functional.thinned_conv`.
    """


class ThinnedConv3d(_Conv, torch.nn.Conv3d):
    """A 3-D convolution next to a :class:`ThinnedDropout`; see :class:`ThinnedConv2d`.

    Example:
        >>> drop = sitout.nn.ThinnedDropout(0.5, dim=1)
        >>> sitout.nn.ThinnedConv3d(3, 8, 3, before=drop)(torch.ones(2, 3, 5, 5, 5)).shape[2:]
        torch.Size([3, 3, 3])
    """


class _BatchNorm(Thinned, torch.nn.modules.batchnorm._BatchNorm):
    """What thinned batch normalizations of all dims share."""

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        before: ThinnedDropout | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            *(num_features, eps, momentum, affine, track_running_stats), device=device, dtype=dtype
        )
        self.within(before)

    def within(self, site: ThinnedDropout | None) -> None:
        """Take a place between a site and the layer before it.

        Raises:
            ValueError: the running statistics are means over all steps: a channel has not had all.
        """
        given: object = self.momentum
        if site is not None and given is None:
            what, way_out = f"`momentum` of {type(self).__name__}", "Set it to 0.1, say."
            raise ValueError(_checks.message(what, "a number", None, way_out))
        self._before = None if site is None else (site, 0)
        if site is not None:
            site._norms += 1

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Apply the layer."""
        kept = None if self._before is None else self._before[0]._peek()
        if kept is None:
            return super().forward(input)
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        return functional.thinned_batch_norm(
            input,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            kept,
            self.momentum or 0.0,
            self.eps,
            self.training or self.running_mean is None,
        )


class ThinnedBatchNorm1d(_BatchNorm, torch.nn.BatchNorm1d):
    """Batch normalization in front of a :class:`ThinnedDropout`; see :class:`ThinnedBatchNorm2d`.

    Example:
        >>> drop = sitout.nn.ThinnedDropout(0.5)
        >>> sitout.nn.ThinnedBatchNorm1d(8, before=drop)(torch.randn(4, 8)).shape
        torch.Size([4, 8])
    """


class ThinnedBatchNorm2d(_BatchNorm, torch.nn.BatchNorm2d):
    """Batch normalization between a thinned layer and the :class:`ThinnedDropout` behind it.

    The kept channels have the statistics that they have in the full network. With more than one
    group of rows all channels are computed, and the site sets some to 0. The running statistics of
    a channel are those of the steps in which it plays.

    Args:
        num_features: channels.
        eps: added to the variance.
        momentum: of the running statistics.
        affine: whether there are a weight and a bias.
        track_running_stats: whether there are running statistics.
        before: the site in front of which it stands.
        device: of the parameters.
        dtype: of the parameters.

    Shape:
        ``[N, C, H, W]`` to the same shape; in a step that is thinned, the kept channels alone.

    Example:
        >>> drop = sitout.nn.ThinnedDropout(0.5, dim=1)
        >>> sitout.nn.ThinnedBatchNorm2d(8, before=drop)(torch.randn(4, 8, 3, 3)).shape
        torch.Size([4, 8, 3, 3])

    Reference:
        Ioffe and Szegedy 2015, arXiv 1502.03167; see :func:`sitout.functional.thinned_batch_norm`.
    """


class ThinnedBatchNorm3d(_BatchNorm, torch.nn.BatchNorm3d):
    """Batch normalization in front of a :class:`ThinnedDropout`; see :class:`ThinnedBatchNorm2d`.

    Example:
        >>> drop = sitout.nn.ThinnedDropout(0.5, dim=1)
        >>> sitout.nn.ThinnedBatchNorm3d(8, before=drop)(torch.randn(4, 8, 2, 2, 2)).shape
        torch.Size([4, 8, 2, 2, 2])
    """
