"""The reference backend: the specification's values in plain torch, on any device.

It is written in differentiable operations, so torch's function transforms (vmap, grad, jvp) see
through it. Elsewhere it runs below autograd, and nothing is kept for backward but the address.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import masks
from ._address import Address
from ._law import Law, Number, constants, sigma

__all__ = ["drop"]


def drop(x: Tensor, address: Address, p: float | Tensor, law: Law) -> Tensor:
    """Return ``x`` with what the mask at an address drops replaced, by one of the laws.

    Args:
        x: ``[B, ...]``, a floating dtype.
        address: of the mask.
        p: drop rate, a fraction in [0, 1], or as data.
        law: "dropout" (kept values times 1 / (1 - p)), "path" (as they are), "alpha" or its
            gradient "alpha_slope", "gaussian" (all values times 1 + sigma z).

    Returns:
        Like ``x``. Computed in float32 for float16 and bfloat16, then rounded once. What is dropped
        is selected, never multiplied.

    Example:
        >>> drop(torch.ones(4), Address(MaskKey(seed=1)), 0.5, "dropout")
        tensor([0., 2., 0., 2.])
    """
    dtype = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype
    wide = x.to(dtype)
    if law == "gaussian":
        return (wide * _noise(x, address, sigma(p), dtype)).to(x.dtype)
    keep = masks.keep_mask(
        address.mask_key,
        p,
        x.shape,
        shared_dims=address.shared_dims,
        batch_dim=address.batch_dim,
        rows=address.rows,
        block=address.block,
        device=x.device,
    )
    scale, shift, dropped = (_as(number, dtype) for number in constants(law, p))
    out = wide * scale
    if isinstance(shift, Tensor) or shift:
        out = out + shift
    # In place keeps the layout of x, but vmap may not write many masks into one tensor.
    transformed = torch._C._are_functorch_transforms_active()
    fill = Tensor.masked_fill if transformed else Tensor.masked_fill_
    return fill(out, keep.logical_not(), dropped).to(x.dtype)


def _as(number: Number, dtype: torch.dtype) -> Number:
    return number.to(dtype) if isinstance(number, Tensor) else number


def _noise(x: Tensor, address: Address, deviation: Number, dtype: torch.dtype) -> Tensor:
    z = masks.normals(
        address.mask_key,
        x.shape,
        shared_dims=address.shared_dims,
        batch_dim=address.batch_dim,
        rows=address.rows,
        block=address.block,
        device=x.device,
    )
    return 1.0 + _as(deviation, dtype) * z.to(dtype)
