"""Dropout in one pass with what stands before or behind it: an activation, or a residual sum."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from . import cpu
from ._address import Address
from ._drop import drop, is_direct, kernels
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
        the address. Where no compiled kernel serves, it is done one after the other.

    Example:
        >>> address = sitout.backends.Address(sitout.MaskKey(seed=1))
        >>> activate_and_drop(torch.tensor([-1.0, 2.0]), None, "relu", address, 0.5, True)
        tensor([0., 4.])
    """
    backend = kernels(x, direct)
    if backend is None or (bias is not None and not _goes_with(bias, x, backend)):
        return _one_by_one(x, bias, activation, address, p)
    out: Tensor = _activate(x, bias, (activation, address, p, backend))
    return out


def _goes_with(other: Tensor, x: Tensor, backend: Any) -> bool:
    same = other.dtype == x.dtype and (backend is cpu or other.device == x.device)
    return same and backend.is_plain(other)


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
    backend = kernels(x, direct)
    if backend is None or not _goes_with(residual, x, backend):
        return residual + drop(x, address, p, law)
    out: Tensor = _add(x, residual, (address, p, law, backend))
    return out


class _Activate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, call: tuple[Any, ...]) -> Tensor:
        activation, address, p, backend = call
        out: Tensor = backend.fuse(activation, x, address, p, bias=bias)
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
            backend = _kernels_of_gradient(grad, x)
            if backend is None:
                return _differentiable(grad, x, bias, activation, address, p)
            x_grad = backend.fuse(f"{activation}_slope", grad, address, p, other=x, bias=bias)
        b_grad = None if shape is None or not ctx.needs_input_grad[1] else x_grad.sum_to_size(shape)
        return x_grad, b_grad, None


def _relu_backward(grad: Tensor, out: Tensor, address: Address, p: float | Tensor) -> Tensor:
    backend = _kernels_of_gradient(grad, out)
    if backend is not None:
        made: Tensor = backend.fuse("relu_slope", grad, address, p, other=out)
        return made
    wide = grad.float() if grad.dtype in (torch.float16, torch.bfloat16) else grad
    scale = constants("dropout", p)[0]
    scaled = wide * (scale.to(wide) if isinstance(scale, Tensor) else scale)  # rounded once
    return torch.where(out != 0, scaled, 0.0).to(grad.dtype)


def _kernels_of_gradient(grad: Tensor, kept: Tensor) -> Any:
    """Return the backend that computes a gradient at once; None where it is differentiated."""
    if torch.is_grad_enabled() or grad.dtype != kept.dtype:
        return None
    return kernels(grad, is_direct(grad))


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
        address, p, law, backend = call
        ctx.save_for_backward(*address.tensors())
        ctx.call = address, p.clone() if isinstance(p, Tensor) else p, law
        op = "add" if law == "dropout" else "path_add"
        out: Tensor = backend.fuse(op, x, address, p, other=residual)
        return out

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
