"""The CPU backend: the compiled core, for tensors in the memory of this machine.

Python decides where each element lies in the address space; the core makes its bit and its value.
Results are those of the reference, to the bit.
"""

from __future__ import annotations

import os
from functools import cache
from typing import TYPE_CHECKING, Any
from warnings import warn

import torch
from torch import Tensor

from .. import _checks, _optional, masks
from . import reference
from ._law import constants, held

if TYPE_CHECKING:
    from ._address import Address
    from ._law import Law

__all__ = ["core", "drop", "serves"]

_TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
_MAX_DIMS = 16
_LO32, _LO64 = 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF


@cache
def core() -> Any:
    """Return the compiled core, or None where the package was installed without it.

    Raises:
        ValueError: the environment variable ``SITOUT_TARGET`` names no instruction set of this
            machine.

    Example:
        >>> "scalar" in core().targets()
        True
    """
    found = _optional.core()
    if found is None:
        warn(
            "sitout was installed without its compiled core, so dropout on the CPU is slow. "
            "Install a C++ compiler (Debian: g++), then sitout again: pip install "
            "--force-reinstall --no-deps --no-cache-dir sitout",
            stacklevel=2,
        )
    wanted = os.environ.get("SITOUT_TARGET")
    if found is not None and wanted:
        what = "the environment variable SITOUT_TARGET"
        found.use_target(_checks.choice(wanted, found.targets().split(), what))
    return found


def serves(x: Tensor) -> str:
    """Return why the core cannot take ``x``, or nothing if it can.

    Args:
        x: any tensor.

    Example:
        >>> serves(torch.ones(2, device="meta"))
        'it is not in the memory of the CPU'
    """
    if x.device.type != "cpu":
        return "it is not in the memory of the CPU"
    if core() is None:
        return "the compiled core was not built"
    if type(x) is not Tensor and type(x) is not torch.nn.Parameter:
        return f"its type is {type(x).__name__}"
    if x.dtype not in _TYPES or x.dim() > _MAX_DIMS or x.layout != torch.strided:
        return f"it is {x.dtype} with {x.dim()} dims in layout {x.layout}"
    if x.is_neg() or x._is_zerotensor() or torch._C._functorch.is_legacy_batchedtensor(x):
        return "its values are not in its memory as they are"
    return ""


def drop(x: Tensor, address: Address, p: float | Tensor, law: Law) -> Tensor:
    """Do what :func:`sitout.backends.reference.drop` does, in the compiled core.

    Args:
        x: ``[B, ...]``, of any strides; they are kept.
        address: of the mask.
        p: drop rate, a fraction in [0, 1], or as data.
        law: as in the reference.

    Returns:
        Like ``x``.

    Example:
        >>> address = sitout.backends.Address(sitout.MaskKey(seed=1))
        >>> drop(torch.ones(4), address, 0.5, "dropout")
        tensor([0., 2., 0., 2.])
    """
    if law == "gaussian":
        return reference.drop(x, address, p, law)
    if isinstance(p, Tensor):
        bits, threshold = p.tolist()
        p = float(threshold / 2.0**bits)
    else:
        bits, threshold = masks._threshold(p)
    out = torch.empty_like(x)
    if held(p) == 1.0:
        return out.zero_()
    cols, col, row_dim, rows = _columns(x, address)
    key, site, step, steps = _key(address.key, 1 if row_dim < 0 else x.shape[row_dim])
    core().drop(
        x.data_ptr(),
        out.data_ptr(),
        _TYPES[x.dtype],
        x.shape,
        x.stride(),
        out.stride(),
        cols,
        row_dim,
        col,
        key,
        site,
        step,
        0 if steps is None else steps.data_ptr(),
        0 if rows is None else rows.data_ptr(),
        bits,
        threshold,
        *constants(law, p),
        torch.get_num_threads(),
    )
    return out


def _columns(x: Tensor, address: Address) -> tuple[list[int], int, int, Tensor | None]:
    """Return how each dim moves the column, the first column, the dim of the rows, and the rows."""
    rank, shape = x.dim(), x.shape
    shared = {_checks.dim(dim, rank, "shared_dims") for dim in address.shared_dims}
    batch = _checks.dim(address.batch_dim, max(rank, 1), "batch_dim")
    if rank < 2:
        batch = -1
    row_dim = -1 if batch in shared else batch
    rows = None
    if address.rows is not None and (row_dim >= 0 or batch < 0):
        rows = masks._check_rows(address.rows, 1 if row_dim < 0 else shape[row_dim])
        rows = rows.to("cpu").contiguous()
    rest = [dim for dim in range(rank) if dim != batch]
    sizes = tuple(1 if dim in shared else shape[dim] for dim in rest)
    block = tuple((0, size) for size in sizes)
    if address.block is not None:
        block = masks._check_block(sizes, address.block)
    cols, first = [0] * rank, 0
    stride = 1
    for dim, (start, full) in zip(reversed(rest), reversed(block), strict=True):
        cols[dim] = 0 if dim in shared else stride
        first += start * stride
        stride *= full
    return cols, first, row_dim, rows


def _key(key: masks.MaskKey, n_rows: int) -> tuple[int, int, int, Tensor | None]:
    """Return seed XOR call << 32, the site, the step, and the steps if there is one a row."""
    seed, call = int(key.seed), int(key.call)
    packed, site = (seed ^ call << 32) & _LO64, int(key.site) & 0xFFFFFFF
    if isinstance(key.step, Tensor) and key.step.dim() == 1:
        if len(key.step) != n_rows:
            what, rule = "`step` of MaskKey", f"one a row, [{n_rows}]"
            raise ValueError(_checks.message(what, rule, len(key.step)))
        return packed, site, 0, key.step.to("cpu").contiguous()
    return packed, site, int(key.step) & _LO32, None
