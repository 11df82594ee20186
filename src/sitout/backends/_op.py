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
    from collections.abc import Sequence

_NAME = "sitout::drop"
_LIBRARY = torch.library.Library("sitout", "DEF")  # type: ignore[no-untyped-call]
_LIBRARY.define(  # type: ignore[no-untyped-call]
    "drop(Tensor x, Tensor key, Tensor? counter, Tensor? rows, SymInt[]? block, int[] shared_dims, "
    "int batch_dim, Tensor? rate, float p, str law) -> Tensor"
)
_OP = torch.ops.sitout.drop.default


def drop(x: Tensor, address: Address, p: float | Tensor, law: Law) -> Tensor:
    """Call the op; see :func:`sitout.backends.reference.drop`."""
    rate, number = (p, 0.0) if isinstance(p, Tensor) else (None, p)
    out: Tensor = _OP(x, *address.pack(), rate, number, law)
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


torch.library.impl(_NAME, "CompositeExplicitAutograd", _kernel, lib=_LIBRARY)
torch.library.register_fake(_NAME, _fake, lib=_LIBRARY)
torch.library.register_autograd(_NAME, _backward, setup_context=_setup_context, lib=_LIBRARY)
