"""The GPU backend: kernels in Triton, for tensors on a CUDA device.

The package triton is loaded when the first kernel is needed. Without a GPU its interpreter runs the
same kernels on the CPU, for tests: set ``TRITON_INTERPRET=1`` and force the backend. Results are
those of the reference ("Values" in the specification).
"""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING
from warnings import warn

import torch
from torch import Tensor

from .. import cpu

if TYPE_CHECKING:
    from .._address import Address
    from .._law import Law

__all__ = ["drop", "fuse", "is_here", "is_interpreted", "is_plain", "keep_mask", "serves"]

_OLDEST = (7, 5)  # compute capability; for older ones nothing was ever compiled
# What torch's dispatcher sees in a tensor that is more than its memory.
_WRAPPED = cpu._keys(
    *("Python", "Functionalize", "FuncTorchBatched", "FuncTorchGradWrapper"),
    *("Negative", "Conjugate", "ZeroTensor"),
)

_dispatch_keys = torch._C._dispatch_keys


@cache
def is_here() -> bool:
    """Return whether the package triton is installed; warn, once, where it is not.

    Example:
        >>> isinstance(is_here(), bool)
        True
    """
    found = find_spec("triton") is not None
    if not found:
        warn(
            "sitout finds no Triton, so dropout on a GPU is done in plain torch, which is slow and "
            "keeps masks in memory while it works. Install it: pip install triton",
            stacklevel=2,
        )
    return found


def is_interpreted() -> bool:
    """Return whether Triton's interpreter is asked for, which runs kernels on the CPU.

    Example:
        >>> isinstance(is_interpreted(), bool)
        True
    """
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")


def is_plain(x: Tensor) -> bool:
    """Return whether ``x`` is nothing but memory of a type that the kernels know.

    Args:
        x: any tensor, on any device.

    Example:
        >>> is_plain(torch.ones(2)), is_plain(torch.ones(2, dtype=torch.int64))
        (True, False)
    """
    return (
        type(x) in cpu._CLASSES
        and x.dtype in cpu._TYPES
        and x.layout is torch.strided
        and not x.is_meta
        and not _dispatch_keys(x).raw_repr() & _WRAPPED
        and not torch._C._functorch.is_legacy_batchedtensor(x)
    )


def serves(x: Tensor) -> str:
    """Return why the kernels cannot take ``x``, or nothing if they can.

    Args:
        x: any tensor.

    Example:
        >>> serves(torch.ones(2, device="meta"))
        'it is not on a CUDA device'
    """
    if x.is_cpu:
        if not is_interpreted():
            return "it is on the CPU, and Triton's interpreter is off (TRITON_INTERPRET=1)"
    elif not x.is_cuda:
        return "it is not on a CUDA device"
    if not is_plain(x):
        return "it is no plain dense tensor of a floating dtype"
    if x.is_cuda and _capability(x.device.index) < _OLDEST:
        return "its device is older than compute capability 7.5"
    return "" if is_here() else "Triton is not installed"


@cache
def _capability(device: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def drop(
    x: Tensor, address: Address, p: float | Tensor, law: Law, out: Tensor | None = None
) -> Tensor:
    """Do what :func:`sitout.backends.reference.drop` does, in one kernel.

    Args:
        x: ``[B, ...]``, of any strides; they are kept.
        address: of the mask.
        p: drop rate, a fraction in [0, 1], or as data.
        law: as in the reference.
        out: where the result is written, a new tensor if None; it may be ``x``.

    Returns:
        Like ``x``.
    """
    from . import _drop

    return _drop.run(law, x, torch.empty_like(x) if out is None else out, address, p)


def fuse(
    op: str,
    x: Tensor,
    address: Address,
    p: float | Tensor,
    *,
    other: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Do what :func:`sitout.backends.cpu.fuse` does, in one kernel.

    Args:
        op: as there.
        x: ``[B, ...]``.
        address: of the mask.
        p: drop rate, a fraction in [0, 1], or as data.
        other: of the shape of ``x``.
        bias: broadcastable to the shape of ``x``.

    Returns:
        Like ``x``.
    """
    from . import _drop

    return _drop.run(op, x, torch.empty_like(x), address, p, other, bias)


def keep_mask(
    address: Address,
    p: float | Tensor,
    shape: tuple[int, ...],
    device: torch.device | str | None = None,
) -> Tensor:
    """Return what :func:`sitout.masks.keep_mask` does, made by a kernel.

    Args:
        address: of the mask.
        p: drop rate, a fraction in [0, 1], or as data.
        shape: of the tensor that is masked.
        device: where it is made; the current CUDA device if None, in the interpreter the CPU.

    Returns:
        bool, broadcastable to ``shape``.
    """
    from . import _drop

    return _drop.keep_mask(address, p, shape, device or ("cpu" if is_interpreted() else "cuda"))
