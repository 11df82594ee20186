"""The reference backend: the specification's values in plain torch, on any device.

Nothing is kept for backward but the address: backward makes the mask again. Each op is linear in
its input up to a constant, so its backward is the same op on the gradient, and every higher
derivative is exact.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import masks
from ._address import Address

__all__ = ["masked", "noise"]


def masked(
    x: Tensor, address: Address, p: float, scale: float, shift: float = 0.0, dropped: float = 0.0
) -> Tensor:
    """Return ``scale * x + shift`` where the mask keeps, and ``dropped`` elsewhere.

    Args:
        x: ``[B, ...]``, a floating dtype.
        address: of the mask.
        p: drop rate, a fraction in [0, 1].
        scale: factor of kept values.
        shift: added to kept values.
        dropped: what dropped values become; they are selected, never multiplied.

    Returns:
        Like ``x``. Computed in float32 for float16 and bfloat16, then rounded once.

    Example:
        >>> masked(torch.ones(4), Address(MaskKey(seed=1)), 0.5, 2.0)
        tensor([0., 2., 0., 2.])
    """
    out: Tensor = _Masked.apply(x, address, p, scale, shift, dropped)  # type: ignore[no-untyped-call]
    return out


def noise(x: Tensor, address: Address, sigma: float) -> Tensor:
    """Return ``x * (1 + sigma z)``, z standard normal at the address.

    Args:
        x: ``[B, ...]``, a floating dtype.
        address: of the normals.
        sigma: standard deviation of the factor.

    Returns:
        Like ``x``.

    Example:
        >>> noise(torch.ones(1, 2), Address(MaskKey(seed=0)), 0.1)
        tensor([[1.0274, 0.9101]])
    """
    out: Tensor = _Noise.apply(x, address, sigma)  # type: ignore[no-untyped-call]
    return out


def _compute_dtype(x: Tensor) -> torch.dtype:
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype


class _Masked(torch.autograd.Function):
    @staticmethod
    def forward(
        x: Tensor, address: Address, p: float, scale: float, shift: float, dropped: float
    ) -> Tensor:
        keep = masks.keep_mask(
            address.key,
            p,
            x.shape,
            shared_dims=address.shared_dims,
            batch_dim=address.batch_dim,
            rows=address.rows,
            block=address.block,
            device=x.device,
        )
        out = x.to(_compute_dtype(x)) * scale
        if shift:
            out = out + shift
        return out.masked_fill_(keep.logical_not(), dropped).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.address, ctx.p, ctx.scale, _, _ = inputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return masked(grad, ctx.address, ctx.p, ctx.scale), None, None, None, None, None


class _Noise(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, address: Address, sigma: float) -> Tensor:
        z = masks.normals(
            address.key,
            x.shape,
            shared_dims=address.shared_dims,
            batch_dim=address.batch_dim,
            rows=address.rows,
            block=address.block,
            device=x.device,
        )
        dtype = _compute_dtype(x)
        return (x.to(dtype) * (1.0 + sigma * z.to(dtype))).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.address, ctx.sigma = inputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return noise(grad, ctx.address, ctx.sigma), None, None
