"""The entrance to the kernels: directly, through the registered op, or in differentiable torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import _choice, _op, reference
from ._law import slope

if TYPE_CHECKING:
    from ._address import Address
    from ._law import Law


def drop(x: Tensor, address: Address, p: float | Tensor, law: Law) -> Tensor:
    """Drop by one of the laws, on the backend that serves ``x``.

    An eager tensor goes straight to the kernel. Compilers, exporters, fake tensors and dispatch
    modes see the op ``sitout::drop``. Function transforms and forward-mode differentiation see
    plain torch operations.

    Args:
        x: ``[B, ...]``, a floating dtype.
        address: of the mask.
        p: drop rate, a fraction in [0, 1], or as data.
        law: see :func:`sitout.backends.reference.drop`.

    Returns:
        Like ``x``. Nothing but the address is kept for backward.

    Example:
        >>> address = sitout.backends.Address(sitout.MaskKey(seed=1))
        >>> drop(torch.ones(4), address, 0.5, "dropout")
        tensor([0., 2., 0., 2.])
    """
    if torch._C._are_functorch_transforms_active():
        return reference.drop(x, address, p, law)
    if torch.compiler.is_compiling():
        return _op.drop(x, address, p, law)
    if forward_ad._current_level >= 0:  # an op cannot have a rule for forward mode
        return reference.drop(x, address, p, law)
    if _is_watched():
        return _op.drop(x, address, p, law)
    out: Tensor = _Drop.apply(x, address, p, law)  # type: ignore[no-untyped-call]
    return out


def _is_watched() -> bool:
    """Return whether a dispatch or function mode is to see what is called."""
    return torch._C._len_torch_dispatch_stack() > 0 or torch._C._len_torch_function_stack() > 0


class _Drop(torch.autograd.Function):
    # With a setup_context of its own, torch would look at the signature again at every call.
    @staticmethod
    def forward(ctx: Any, x: Tensor, address: Address, p: float | Tensor, law: Law) -> Tensor:
        # A scheduler may change the rate before backward; autograd watches over the address.
        ctx.p = p.clone() if isinstance(p, Tensor) else p
        ctx.address, ctx.law = address, slope(law)
        ctx.save_for_backward(*address.tensors())
        out: Tensor = _choice.select(x).drop(x, address, p, law)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        address = ctx.address.with_tensors(ctx.saved_tensors)
        return drop(grad, address, ctx.p, ctx.law), None, None, None
