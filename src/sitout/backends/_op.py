"""The op ``sitout::drop``: what compilers, exporters, fake tensors and dispatch modes see.

It is a pure function of its arguments, so a graph may save, repeat or merge it without harm.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import _choice
from ._address import Address, Packed
from ._law import Law, slope

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_LIBRARY = torch.library.Library("sitout", "DEF")  # type: ignore[no-untyped-call]
_SCHEMA = (
    "drop(Tensor x, Tensor key, Tensor? counter, Tensor? rows, SymInt[]? block, int[] shared_dims, "
    "int batch_dim, Tensor? rate, float p, str law) -> Tensor"
)


def is_seen() -> bool:
    """Return whether a compiler is at work, which sees ops; function transforms see through them.

    Example:
        >>> is_seen()
        False
    """
    return torch.compiler.is_compiling() and not torch._C._are_functorch_transforms_active()


def register(schema: str, kernel: Callable[..., object], fake: Callable[..., object]) -> None:
    """Make an op of torch's registry of a function.

    Args:
        schema: name, arguments and result.
        kernel: computes it.
        fake: tells shapes and dtypes alone.
    """
    name = f"sitout::{schema.partition('(')[0]}"
    _LIBRARY.define(schema)  # type: ignore[no-untyped-call]
    torch.library.impl(name, "CompositeExplicitAutograd", kernel, lib=_LIBRARY)
    torch.library.register_fake(name, fake, lib=_LIBRARY)


def differentiate(name: str, backward: Callable[..., object], context: Callable[..., None]) -> None:
    """Give an op its gradient.

    Args:
        name: of the op.
        backward: takes the context and the gradient.
        context: keeps what that needs.
    """
    torch.library.register_autograd(
        f"sitout::{name}", backward, setup_context=context, lib=_LIBRARY
    )


def drop(x: Tensor, address: Address, p: float | Tensor, law: Law) -> Tensor:
    """Call the op; see :func:`sitout.backends.reference.drop`."""
    rate, number = (p, 0.0) if isinstance(p, Tensor) else (None, p)
    out: Tensor = FORM(x, *address.pack(x.device), rate, number, law)
    return out


def _kernel(
    x: Tensor,
    key: Tensor,
    counter: Tensor | None,
    rows: Tensor | None,
    block: Sequence[int] | None,
    shared_dims: Sequence[int],
    batch_dim: int,
    rate: Tensor | None,
    p: float,
    law: Law,
) -> Tensor:
    address = Packed(key, counter, rows, block, shared_dims, batch_dim).unpack()
    out: Tensor = _choice.select(x).drop(x, address, p if rate is None else rate, law)
    return out


def _fake(x: Tensor, *_: object) -> Tensor:
    return torch.empty_like(x)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, key, counter, rows, block, shared_dims, batch_dim, rate, p, law = inputs
    ctx.save_for_backward(key, counter, rows, rate)
    ctx.place, ctx.p, ctx.law = (block, shared_dims, batch_dim), p, slope(law)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    key, counter, rows, rate = ctx.saved_tensors
    x_grad = _OP(grad, key, counter, rows, *ctx.place, rate, ctx.p, ctx.law)
    return x_grad, *[None] * 9


register(_SCHEMA, _kernel, _fake)
differentiate("drop", _backward, _setup_context)
_OP = torch.ops.sitout.drop.default
# What compiled code has of dropout. `benchmarks/gpu_forms.py` holds two others with the same
# arguments, which `make gpu` measures beside it.
FORM: Callable[..., Tensor] = _OP
