"""Dropout in one pass with what stands before or behind it: an activation, or a residual sum."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from . import cpu
from ._address import Address
from ._drop import drop, is_direct
from ._law import constants

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._law import Law

Activation = Literal["relu", "gelu", "gelu_tanh", "silu"]


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": _gelu_tanh,
    "silu": F.silu,
}


def activate_and_drop(
    x: Tensor,
    bias: Tensor | None,
    activation: Activation,
    address: Address,
    p: float | Tensor,
    direct: bool,
) -> Tensor:
    """Drop from an activation of ``x + bias``.

    Args:
        x: ``[B, ...]``, a floating dtype.
        bias: broadcastable to the shape of ``x``, or None.
        activation: "relu", "gelu", "gelu_tanh" or "silu".
        address: of the mask.
        p: drop rate, a fraction in [0, 1], or as data.
        direct: whether ``x`` may go straight to the core, see :func:`is_direct`.

    Returns:
        Like ``x``. For backward relu keeps this result alone; the others keep ``x``, ``bias`` and
        the address. Where the compiled core does not serve, it is done one after the other.

    Example:
        >>> address = sitout.backends.Address(sitout.MaskKey(seed=1))
        >>> activate_and_drop(torch.tensor([-1.0, 2.0]), None, "relu", address, 0.5, True)
        tensor([0., 4.])
    """
    if not direct or (bias is not None and not _goes_with(bias, x)):
        return _one_by_one(x, bias, activation, address, p)
    out: Tensor = _activate(x, bias, (activation, address, p))
    return out


def _goes_with(other: Tensor, x: Tensor) -> bool:
    return other.dtype == x.dtype and cpu.is_plain(other)


def _one_by_one(
    x: Tensor, bias: Tensor | None, activation: Activation, address: Address, p: float | Tensor
) -> Tensor:
    made = ACTIVATIONS[activation](x if bias is None else x + bias)
    return drop(made, address, p, "dropout")


def drop_and_add(
    x: Tensor, residual: Tensor, address: Address, p: float | Tensor, law: Law, direct: bool
) -> Tensor:
    """Drop from ``x`` and add the result to ``residual``.

    Args:
        x: ``[B, ...]``, a floating dtype.
        residual: of the same shape.
        address: of the mask.
        p: drop rate, a fraction in [0, 1], or as data.
        law: "dropout" or "path".
        direct: whether ``x`` may go straight to the core, see :func:`is_direct`.

    Returns:
        The sum. Nothing but the address is kept for backward.

    Example:
        >>> address = sitout.backends.Address(sitout.MaskKey(seed=1))
        >>> drop_and_add(torch.ones(4), torch.ones(4), address, 0.5, "dropout", True)
        tensor([1., 3., 1., 3.])
    """
    if not direct or not _goes_with(residual, x):
        return residual + drop(x, address, p, law)
    out: Tensor = _add(x, residual, (address, p, law))
    return out


class _Activate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, call: tuple[Any, ...]) -> Tensor:
        activation, address, p = call
        out = cpu.fuse(activation, x, address, p, bias=bias)
        p = p.clone() if isinstance(p, Tensor) else p
        if activation == "relu":  # where the result is not 0 says it all
            ctx.call = activation, Address(0), p
            ctx.shape = None if bias is None else bias.shape
            ctx.save_for_backward(out)
        else:
            ctx.call = activation, address, p
            ctx.save_for_backward(x, bias, *address.tensors())
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        activation, address, p = ctx.call
        if activation == "relu":
            (out,) = ctx.saved_tensors
            x_grad, shape = _relu_backward(grad, out, address, p), ctx.shape
        else:
            x, bias, *tensors = ctx.saved_tensors
            address, shape = address.with_tensors(tensors), None if bias is None else bias.shape
            if torch.is_grad_enabled() or not is_direct(grad) or grad.dtype != x.dtype:
                return _differentiable(grad, x, bias, activation, address, p)
            x_grad = cpu.fuse(f"{activation}_slope", grad, address, p, other=x, bias=bias)
        b_grad = None if shape is None or not ctx.needs_input_grad[1] else x_grad.sum_to_size(shape)
        return x_grad, b_grad, None


def _relu_backward(grad: Tensor, out: Tensor, address: Address, p: float | Tensor) -> Tensor:
    if not torch.is_grad_enabled() and is_direct(grad) and grad.dtype == out.dtype:
        return cpu.fuse("relu_slope", grad, address, p, other=out)
    wide = grad.float() if grad.dtype in (torch.float16, torch.bfloat16) else grad
    scaled = wide * float(constants("dropout", p)[0])  # rounded once, as by the core
    return torch.where(out != 0, scaled, 0.0).to(grad.dtype)


def _differentiable(
    grad: Tensor,
    x: Tensor,
    bias: Tensor | None,
    activation: Activation,
    address: Address,
    p: float | Tensor,
) -> tuple[Tensor | None, ...]:
    """Return the gradients; where gradients are on, as functions of all three tensors."""
    create = torch.is_grad_enabled()
    with torch.enable_grad():
        # Views: the graph that x and bias come from, and their hooks, are the caller's to walk.
        inputs = [
            one.view_as(one) if create and one.requires_grad else one.detach().requires_grad_()
            for one in ([x] if bias is None else [x, bias])
        ]
        out = _one_by_one(inputs[0], None if bias is None else inputs[1], activation, address, p)
        made = torch.autograd.grad(out, inputs, grad, create_graph=create)
    return (*made, None) if bias is not None else (*made, None, None)


class _Add(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor, call: tuple[Any, ...]) -> Tensor:
        address, p, law = call
        ctx.save_for_backward(*address.tensors())
        ctx.call = address, p.clone() if isinstance(p, Tensor) else p, law
        return cpu.fuse("add" if law == "dropout" else "path_add", x, address, p, other=residual)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        address, p, law = ctx.call
        x_grad = None
        if ctx.needs_input_grad[0]:
            x_grad = drop(grad, address.with_tensors(ctx.saved_tensors), p, law)
        return x_grad, grad, None


# As in _drop: without the half of ``apply`` that serves function transforms.
_activate: Any = super(torch.autograd.Function, _Activate).apply
_add: Any = super(torch.autograd.Function, _Add).apply
