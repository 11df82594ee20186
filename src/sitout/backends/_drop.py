"""The entrance to the kernels: directly, through the registered op, or in differentiable torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import _choice, _op, cpu, reference, triton
from ._law import slope

if TYPE_CHECKING:
    from types import ModuleType

    from ._address import Address
    from ._law import Law

    # the address, the rate, the law, the backend, and whether x is written into
    Call = tuple[Address, float | Tensor, Law, Any, bool]

_transforms = torch._C._are_functorch_transforms_active
_dispatch_modes = torch._C._len_torch_dispatch_stack
_function_modes = torch._C._len_torch_function_stack
_tracing = torch._C._get_tracing_state


def drop(x: Tensor, address: Address, p: float | Tensor, law: Law, inplace: bool = False) -> Tensor:
    """Drop by one of the laws, on the backend that serves ``x``.

    An eager tensor goes straight to a kernel. Compilers, exporters, fake tensors and dispatch
    modes see the op ``sitout::drop``. Function transforms and forward-mode differentiation see
    plain torch operations.

    Args:
        x: ``[B, ...]``, a floating dtype.
        address: of the mask.
        p: drop rate, a fraction in [0, 1], or as data.
        law: see :func:`sitout.backends.reference.drop`.
        inplace: write the result into ``x``.

    Returns:
        Like ``x``. Nothing but the address is kept for backward.

    Example:
        >>> address = sitout.backends.Address(sitout.MaskKey(seed=1))
        >>> drop(torch.ones(4), address, 0.5, "dropout")
        tensor([0., 2., 0., 2.])
    """
    if is_direct(x):
        return drop_directly(x, address, p, law, inplace)
    out: Tensor
    if _transforms():
        out = reference.drop(x, address, p, law)
    elif torch.compiler.is_compiling():
        out = _op.drop(x, address, p, law)
    elif forward_ad._current_level >= 0:  # an op cannot have a rule for forward mode
        out = reference.drop(x, address, p, law)
    elif _is_watched():
        out = _op.drop(x, address, p, law)
    else:
        backend = _choice.select(x)
        if backend is triton:
            return drop_directly(x, address, p, law, inplace, triton)
        call = (address, p, law, backend, False)
        out = _Drop.apply(x, call)  # type: ignore[no-untyped-call]
    return x.copy_(out) if inplace else out


def drop_directly(
    x: Tensor,
    address: Address,
    p: float | Tensor,
    law: Law,
    inplace: bool = False,
    backend: Any = cpu,
) -> Tensor:
    """Do what :func:`drop` does, by the kernels of a backend that may take ``x`` at once.

    Args:
        x: ``[B, ...]``, a floating dtype.
        address: of the mask.
        p: drop rate, a fraction in [0, 1], or as data.
        law: as in :func:`drop`.
        inplace: write the result into ``x``.
        backend: whose kernels to call: the core's where :func:`is_direct` is true, else Triton's.

    Returns:
        Like ``x``.

    Example:
        >>> address = sitout.backends.Address(sitout.MaskKey(seed=1))
        >>> drop_directly(torch.ones(4), address, 0.5, "dropout")
        tensor([0., 2., 0., 2.])
    """
    if not (x.requires_grad and torch.is_grad_enabled()):
        if not inplace:
            return backend.drop(x, address, p, law)  # type: ignore[no-any-return]
        # What overlaps itself, or was made in inference mode, is torch's to refuse.
        if x.is_inference() or not (x.is_contiguous() or _is_dense(x)):
            return x.copy_(backend.drop(x, address, p, law))
        torch.autograd.graph.increment_version(x)
        return backend.drop(x, address, p, law, x)  # type: ignore[no-any-return]
    # Autograd lets a function write into what is no view and no leaf.
    here = inplace and not (x.is_leaf or x._is_view())
    out: Tensor = _apply(x, (address, p, law, backend, here))
    return x.copy_(out) if inplace and not here else out


def _is_dense(x: Tensor) -> bool:
    """Return whether the elements lie side by side in some order of the dims, each once."""
    dims = sorted(
        (stride, size) for stride, size in zip(x.stride(), x.shape, strict=True) if size != 1
    )
    along = 1
    for stride, size in dims:
        if stride != along:
            return False
        along *= size
    return True


def is_direct(x: Tensor) -> bool:
    """Return whether the compiled core may be called at once: a plain tensor, and nobody watches.

    Args:
        x: any tensor.

    Example:
        >>> is_direct(torch.ones(2)), is_direct(torch.ones(2, device="meta"))
        (True, False)
    """
    if torch.compiler.is_compiling() or _transforms() or _dispatch_modes() or _function_modes():
        return False
    return (
        forward_ad._current_level < 0
        and _choice.is_core_in()
        and cpu.is_plain(x)
        and _tracing() is None
    )


def kernels(x: Tensor, direct: bool) -> ModuleType | None:
    """Return the backend whose kernels may be called at once, as nobody watches; None if none may.

    Args:
        x: any tensor.
        direct: what :func:`is_direct` says of it.

    Example:
        >>> kernels(torch.ones(2, device="meta"), False) is None
        True
    """
    if direct:
        return cpu
    if not (x.is_cuda or _choice.is_forced()) or torch.compiler.is_compiling() or _transforms():
        return None
    if _is_watched() or forward_ad._current_level >= 0 or _tracing() is not None:
        return None
    return triton if _choice.select(x) is triton else None


def _is_watched() -> bool:
    """Return whether a dispatch or function mode is to see what is called."""
    return bool(_dispatch_modes() or _function_modes())


class _Drop(torch.autograd.Function):
    # With a setup_context of its own, torch would look at the signature again at every call.
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, call: tuple[Address, float | Tensor, Law, Any, bool]
    ) -> Tensor:
        address, p, law, backend, here = call
        if type(address.key) is not int or address.rows is not None:
            ctx.save_for_backward(*address.tensors())  # autograd watches over them
        # A scheduler may change the rate before backward.
        ctx.call = address, p.clone() if isinstance(p, Tensor) else p, law
        out: Tensor
        if here:
            ctx.mark_dirty(x)
            out = backend.drop(x, address, p, law, x)
        else:
            out = backend.drop(x, address, p, law)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        address, p, law = ctx.call
        return drop(grad, address.with_tensors(ctx.saved_tensors), p, slope(law)), None


# ``apply`` without the half that serves function transforms: those do not come here.
_apply: Any = super(torch.autograd.Function, _Drop).apply
