"""Three forms of dropout in compiled code, with the arguments of the op ``sitout::drop``.

`sitout.backends._op.FORM` says which one is used. Ours is "op": a graph calls it and cannot see
into it. With "triton" the graph holds the kernel itself. With "inductor" it holds the integer
arithmetic of the reference, which Inductor fuses with what stands around it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sitout.backends import _op, reference
from sitout.backends._address import Packed
from sitout.backends._law import slope

Form = Callable[..., Tensor]


@contextmanager
def form(name: str) -> Iterator[None]:
    """Compile with one of the forms within a block.

    Args:
        name: "op", "triton" or "inductor".
    """
    before, _op.FORM = _op.FORM, FORMS[name]()
    try:
        yield
    finally:
        _op.FORM = before


def as_op() -> Form:
    """Return the form that a graph cannot see into."""
    return _op._OP


def as_kernel() -> Form:
    """Return the form whose kernel stands in the graph.

    Raises:
        RuntimeError: kernels are interpreted, so there is none.
    """
    import triton
    from torch.library import triton_op, wrap_triton

    from sitout.backends.triton import _drop

    if "sitout_forms::drop" in _MADE:
        return _MADE["sitout_forms::drop"]
    if not isinstance(_drop._drop_kernel.elementwise, triton.JITFunction):
        raise RuntimeError("the kernels are interpreted (TRITON_INTERPRET=1)")

    def launch(kernel: Any, programs: int, device: torch.device, *args: Any, **more: Any) -> None:
        wrap_triton(kernel)[(programs,)](*args, **more)

    @triton_op("sitout_forms::drop", mutates_args=())
    def drop(x: Tensor, key: Tensor, p: float, law: str) -> Tensor:
        address = Packed(key, None, None, None, [], 0).unpack()
        direct, _drop.launch = _drop.launch, launch  # type: ignore[assignment]
        try:
            return _drop.run(law, x, torch.empty_like(x), address, p)
        finally:
            _drop.launch = direct

    def context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, key, ctx.p, ctx.law = inputs
        ctx.save_for_backward(key)

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return drop(grad, *ctx.saved_tensors, ctx.p, slope(ctx.law)), None, None, None

    drop.register_autograd(backward, setup_context=context)

    def call(x: Tensor, key: Tensor, *more: Any) -> Tensor:
        p, law = _plain(more)
        made: Tensor = drop(x, key, p, law)
        return made

    _MADE["sitout_forms::drop"] = call
    return call


def as_arithmetic() -> Form:
    """Return the form that Inductor makes a kernel of; backward makes the mask again."""

    def call(x: Tensor, key: Tensor, *more: Any) -> Tensor:
        p, law = _plain(more)
        made: Tensor = _Arithmetic.apply(x, key, p, law)
        return made

    return call


class _Arithmetic(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, key: Tensor, p: float, law: str) -> Tensor:
        ctx.save_for_backward(key)
        ctx.p, ctx.law = p, law
        return _computed(x, key, p, law)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (key,) = ctx.saved_tensors
        return _computed(grad, key, ctx.p, slope(ctx.law)), None, None, None


def _computed(x: Tensor, key: Tensor, p: float, law: Any) -> Tensor:
    return reference.drop(x, Packed(key, None, None, None, [], 0).unpack(), p, law)


def _plain(more: tuple[Any, ...]) -> tuple[float, str]:
    """Return rate and law of a call that has nothing else: the others measure the same."""
    counter, rows, block, shared, batch_dim, rate, p, law = more
    if not (counter is rows is block is rate is None and not shared and batch_dim == 0):
        raise ValueError("The forms that are measured take a plain call.")
    return p, law


FORMS: dict[str, Callable[[], Form]] = {
    "op": as_op,
    "triton": as_kernel,
    "inductor": as_arithmetic,
}
_MADE: dict[str, Form] = {}


if __name__ == "__main__":
    sys.exit("This file is a part of benchmarks/gpu.py.")
