"""Dropout, the residual sum and the normalization behind it: by one kernel, or one by one."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from . import triton
from ._drop import drop, kernels
from ._fused import drop_and_add

if TYPE_CHECKING:
    from ._address import Address

_WIDEST = 8192  # elements of a row: more of them do not fit into registers


class Norm(NamedTuple):
    """What is done to a sum.

    Args:
        shape: the last dims, which are normalized together.
        eps: added to the variance, or to the mean square; None for what torch takes.
        rms: divide by the root of the mean square, and leave the mean as it is.
    """

    shape: tuple[int, ...]
    eps: float | None = None
    rms: bool = False

    @property
    def step(self) -> float:
        """What is added, for types of up to 32 bits."""
        default = torch.finfo(torch.float32).eps if self.rms else 1e-5
        return default if self.eps is None else self.eps

    def of(self, total: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """Return what torch makes of a sum."""
        shape = list(self.shape)
        if self.rms:
            return F.rms_norm(total, shape, weight, self.eps)
        return F.layer_norm(total, shape, weight, bias, self.step)


def drop_add_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    norm: Norm,
    address: Address,
    p: float | Tensor,
    direct: bool,
) -> tuple[Tensor, Tensor]:
    """Drop from ``x``, add the result to ``residual``, and normalize the sum.

    Args:
        x: ``[B, ..., C]``, a floating dtype.
        residual: of the same shape.
        weight: of the normalized shape, or None.
        bias: of the normalized shape, or None.
        norm: what is done to the sum.
        address: of the mask.
        p: drop rate, a fraction in [0, 1], or as data.
        direct: whether ``x`` may go straight to the core, see :func:`is_direct`.

    Returns:
        The normalized sum, and the sum.
    """
    call = _call(x, residual, (weight, bias), norm, address, p, direct)
    if call is None:
        total = drop_and_add(x, residual, address, p, "dropout", direct)
        return norm.of(total, weight, bias), total
    x, residual = x.contiguous(), residual.contiguous()
    affine = [None if one is None else one.contiguous() for one in (weight, bias)]
    given = [one for one in (x, residual, *affine) if one is not None]
    made: tuple[Tensor, Tensor]
    if torch.is_grad_enabled() and any(one.requires_grad for one in given):
        made = _apply(x, residual, *affine, norm, call)
    else:
        made = _kernels().forward(x, residual, *affine, call, False)[:2]
    return made


def _call(
    x: Tensor,
    residual: Tensor,
    affine: tuple[Tensor | None, ...],
    norm: Norm,
    address: Address,
    p: float | Tensor,
    direct: bool,
) -> Any:
    """Return the :class:`triton._norm.Call` of the kernels, or None where they do not serve."""
    if kernels(x, direct) is not triton:
        return None
    more = [one for one in affine if one is not None]
    if not all(one.device == x.device and _is_narrow(one) for one in (x, residual, *more)):
        return None
    made = torch.promote_types(x.dtype, residual.dtype)
    out = torch.float32 if x.is_cuda and torch.is_autocast_enabled("cuda") else made
    if made not in (x.dtype, residual.dtype):  # bfloat16 and float16
        return None
    if out == made and any(one.dtype != made for one in more):  # torch's to refuse
        return None
    if math.prod(norm.shape) > _WIDEST:
        return None
    options = address.shared_dims, address.batch_dim, address.block
    where = _kernels().place(tuple(x.shape), len(norm.shape), *options)
    if where is None:
        return None
    return _kernels().Call(norm.rms, norm.step, where, (made, out), address, p)


def _is_narrow(x: Tensor) -> bool:
    if torch._C._functorch.is_legacy_batchedtensor(x):  # of torch.autograd.grad(is_grads_batched)
        return False
    return triton.is_plain(x) and x.dtype != torch.float64


def _kernels() -> Any:
    """Return the module of the kernels, which imports the package triton."""
    from .triton import _norm

    return _norm


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        norm: Norm,
        call: Any,
    ) -> tuple[Tensor, Tensor]:
        out, total, *numbers = _kernels().forward(x, residual, weight, bias, call, True)
        ctx.save_for_backward(total, weight, bias, *numbers, *call.address.tensors())
        # A scheduler may change the rate before backward.
        ctx.call = call._replace(p=call.p.clone()) if isinstance(call.p, Tensor) else call
        ctx.norm, ctx.dtypes = norm, (x.dtype, residual.dtype)
        ctx.set_materialize_grads(False)
        return out, total

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor | None, total_grad: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        total, weight, bias, mean, rstd, *tensors = ctx.saved_tensors
        call = ctx.call._replace(address=ctx.call.address.with_tensors(tensors))
        grads = [None if one is None else one.contiguous() for one in (grad, total_grad)]
        if torch.is_grad_enabled() or grad is None or not all(map(_goes_direct, grads)):
            made = _differentiable(grad, total_grad, (total, weight, bias), ctx.norm, call.dtypes)
            x_grad = drop(made[0].to(ctx.dtypes[0]), call.address, call.p, "dropout")
            return x_grad, made[0].to(ctx.dtypes[1]), *made[1:], None, None
        wanted = ctx.needs_input_grad[2:4]
        x_grad, residual_grad, sums = _kernels().backward(
            *grads, total, weight, (mean, rstd), call, ctx.dtypes, any(wanted)
        )
        affine = [
            sums[at].view(one.shape).to(one.dtype) if wanted[at] else None
            for at, one in enumerate((weight, bias))
        ]
        return x_grad, residual_grad, *affine, None, None


def _goes_direct(grad: Tensor | None) -> bool:
    return grad is None or (_is_narrow(grad) and kernels(grad, False) is triton)


def _differentiable(
    grad: Tensor | None,
    total_grad: Tensor | None,
    given: tuple[Tensor | None, ...],
    norm: Norm,
    dtypes: tuple[torch.dtype, torch.dtype],
) -> tuple[Any, ...]:
    """Return the gradients of sum, weight and bias; where gradients are on, as functions of all."""
    if grad is None:
        return total_grad, None, None
    create = torch.is_grad_enabled()
    with torch.enable_grad():
        # Views: the graph that the tensors come from, and their hooks, are the caller's to walk.
        inputs = [
            one.view_as(one) if create and one.requires_grad else one.detach().requires_grad_()
            for one in given
            if one is not None
        ]
        wide = iter(one.to(dtypes[1]) for one in inputs)
        total, weight, bias = (None if one is None else next(wide) for one in given)
        out = norm.of(total, weight, bias)  # type: ignore[arg-type]
        made = iter(torch.autograd.grad(out, inputs, grad, create_graph=create))
    first, *affine = (None if one is None else next(made) for one in given)
    return first if total_grad is None else first + total_grad, *affine  # type: ignore[operator]


# As in _drop: without the half of ``apply`` that serves function transforms.
_apply: Any = super(torch.autograd.Function, _Norm).apply
