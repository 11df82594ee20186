"""The CPU backend: the compiled core, for tensors in the memory of this machine.

Python decides where each element lies in the address space; the core makes its bit and its value.
Results are those of the reference ("Values" in the specification).
"""

from __future__ import annotations

import math
import os
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple
from warnings import warn

import torch
from torch import Tensor

from .. import _checks, _optional, masks
from ._law import constants, sigma

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._address import Address
    from ._law import Law

__all__ = [
    "add_rows",
    "core",
    "count_word",
    "drop",
    "first",
    "fuse",
    "is_memory",
    "is_plain",
    "keep_cols",
    "keep_mask",
    "serves",
    "spread",
    "spread_add_",
    "take",
]

_TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
_CODES = {**_TYPES, torch.bool: 4}
_OPS = (
    "scale",
    "affine",
    "add",
    "relu",
    "gelu",
    "gelu_tanh",
    "silu",
    "relu_slope",
    "gelu_slope",
    "gelu_tanh_slope",
    "silu_slope",
    "noise",
    "mask",
)
_OP = {name: number for number, name in enumerate(_OPS)}  # as in core.h
_OP |= {
    "dropout": _OP["scale"],
    "path": _OP["scale"],
    "alpha": _OP["affine"],
    "alpha_slope": _OP["scale"],
    "gaussian": _OP["noise"],
    "path_add": _OP["add"],
}
_LAW: dict[str, Law] = {  # of an operation, where it is not dropout
    "path": "path",
    "path_add": "path",
    "alpha": "alpha",
    "alpha_slope": "alpha_slope",
    "gaussian": "gaussian",
}
MAX_DIMS = 16
_optional.core()  # loaded with the package, so that a child forked later knows that it is one
_LO32, _LO64 = 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF
_CLASSES = (Tensor, torch.nn.Parameter)

_dispatch_keys = torch._C._dispatch_keys


def _keys(*names: str) -> int:
    """Return torch's dispatch keys of these names as one number."""
    keys = torch._C.DispatchKeySet.from_raw_repr(0)
    for name in names:
        keys = keys.add(getattr(torch._C.DispatchKey, name))
    return int(keys.raw_repr())


# What torch's dispatcher sees in a tensor that is nothing but its memory: no wrapper, no pending
# negation, no batch. One made in inference mode has two keys less.
_PLAIN = {
    _keys("CPU", "AutocastCPU"),
    _keys("CPU", "AutocastCPU", "ADInplaceOrView", "AutogradCPU"),
}


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


def is_memory(x: Tensor) -> bool:
    """Return whether ``x`` is nothing but memory of the CPU, so that its address can be read.

    Args:
        x: any tensor.

    Example:
        >>> is_memory(torch.ones(2)), is_memory(torch.ones(2, device="meta"))
        (True, False)
    """
    return type(x) in _CLASSES and _dispatch_keys(x).raw_repr() in _PLAIN


def is_plain(x: Tensor) -> bool:
    """Return whether the core, if there is one, can take ``x``.

    Args:
        x: any tensor.

    Example:
        >>> is_plain(torch.ones(2)), is_plain(torch.ones(2, device="meta"))
        (True, False)
    """
    return (
        type(x) in _CLASSES
        and x.dtype in _TYPES
        and _dispatch_keys(x).raw_repr() in _PLAIN
        and x.dim() <= MAX_DIMS
    )


def serves(x: Tensor) -> str:
    """Return why the core cannot take ``x``, or nothing if it can.

    Args:
        x: any tensor.

    Example:
        >>> serves(torch.ones(2, device="meta"))
        'it is not in the memory of the CPU'
    """
    if not x.is_cpu:
        return "it is not in the memory of the CPU"
    if core() is None:
        return "the compiled core was not built"
    if is_plain(x):
        return ""
    if type(x) not in _CLASSES:
        return f"its type is {type(x).__name__}"
    if x.dtype not in _TYPES or x.dim() > MAX_DIMS or x.layout != torch.strided:
        return f"it is {x.dtype} with {x.dim()} dims in layout {x.layout}"
    return "its values are not in its memory as they are"


def drop(
    x: Tensor, address: Address, p: float | Tensor, law: Law, out: Tensor | None = None
) -> Tensor:
    """Do what :func:`sitout.backends.reference.drop` does, in the compiled core.

    Args:
        x: ``[B, ...]``, of any strides; they are kept.
        address: of the mask.
        p: drop rate, a fraction in [0, 1], or as data.
        law: as in the reference.
        out: where the result is written, a new tensor if None; it may be ``x``.

    Returns:
        Like ``x``.

    Example:
        >>> address = sitout.backends.Address(sitout.MaskKey(seed=1))
        >>> drop(torch.ones(4), address, 0.5, "dropout")
        tensor([0., 2., 0., 2.])
    """
    if out is None:
        out = torch.empty_like(x)
    return _run(law, x, out, address, p)


def fuse(
    op: str,
    x: Tensor,
    address: Address,
    p: float | Tensor,
    *,
    other: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Do one of the core's operations on several tensors of one dtype.

    Args:
        op: "add" (``other`` + dropped ``x``) or "path_add" (unscaled); the name of an activation f
            (dropped f(``x`` + ``bias``)); or the name with ``_slope`` (dropped ``x`` times
            f'(``other`` + ``bias``), for relu kept where ``other``, the output, is not 0).
        x: ``[B, ...]``.
        address: of the mask.
        p: drop rate, a fraction in [0, 1], or as data.
        other: of the shape of ``x``.
        bias: broadcastable to the shape of ``x``.

    Returns:
        Like ``x``.

    Example:
        >>> address = sitout.backends.Address(sitout.MaskKey(seed=1))
        >>> fuse("relu", torch.tensor([-1.0, -1.0, 1.0, 1.0]), address, 0.5)
        tensor([0., 0., 0., 2.])
    """
    return _run(op, x, torch.empty_like(x), address, p, other, bias)


def keep_mask(address: Address, p: float | Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return what :func:`sitout.masks.keep_mask` does, made in the compiled core.

    Args:
        address: of the mask.
        p: drop rate, a fraction in [0, 1], or as data.
        shape: of the tensor that is masked.

    Returns:
        bool, broadcastable to ``shape``.

    Example:
        >>> keep_mask(sitout.backends.Address(sitout.MaskKey(seed=1)), 0.5, (4,))
        tensor([False,  True, False,  True])
    """
    shared = {_checks.dim(dim, len(shape), "shared_dims") for dim in address.shared_dims}
    sizes = [1 if dim in shared else size for dim, size in enumerate(shape)]
    return _run("mask", None, torch.empty(sizes, dtype=torch.bool, device="cpu"), address, p)


def first(key: masks.MaskKey, n: int, k: int, group: int) -> tuple[Tensor, int]:
    """Return the ``k`` of ``n`` candidates that come first in the order of the specification.

    Args:
        key: the address.
        n: how many candidates there are.
        k: how many are wanted, 1 to ``n``.
        group: the group of rows that shares the subset.

    Returns:
        int64 ``[k]``, ascending; and which of them comes last in that order.

    Example:
        >>> first(sitout.MaskKey(seed=0), 10, 5, 0)
        (tensor([2, 3, 4, 7, 8]), 2)
    """
    out = torch.empty(k, dtype=torch.int64, device="cpu")
    last = core().first(out.data_ptr(), n, k, group & _LO32, *_one_key(key))
    return out, last


def take(x: Tensor, rows: Tensor | None, cols: Tensor | None) -> Tensor:
    """Return the kept rows and columns; see :func:`sitout.backends.take`.

    Example:
        >>> take(torch.arange(6.0).view(2, 3), torch.tensor([1]), torch.tensor([0, 2]))
        tensor([[3., 5.]])
    """
    x = x.contiguous()
    out = x.new_empty(_kept_shape(x.shape, rows, cols))
    grid = _grid(x.shape, rows, cols)
    core().take(out.data_ptr(), x.data_ptr(), grid, x.element_size(), torch.get_num_threads())
    return out


def spread(x: Tensor, rows: Tensor | None, cols: Tensor | None, n_rows: int, n_cols: int) -> Tensor:
    """Return ``x`` in the kept rows and columns of zeros; see :func:`sitout.backends.spread`.

    Example:
        >>> spread(torch.ones(1, 2), torch.tensor([1]), torch.tensor([0, 2]), 2, 3)
        tensor([[0., 0., 0.],
                [1., 0., 1.]])
    """
    x = x.contiguous()
    shape = (len(x) if rows is None else n_rows, *x.shape[1:])
    if cols is not None:
        shape = (shape[0], n_cols, *shape[2:])
    out = x.new_empty(shape)
    grid = _grid(shape, rows, cols)
    core().spread(out.data_ptr(), x.data_ptr(), grid, x.element_size(), torch.get_num_threads())
    return out


def spread_add_(out: Tensor, x: Tensor, rows: Tensor | None, cols: Tensor | None) -> None:
    """Add ``x`` to the kept rows and columns of ``out``, which is contiguous.

    Example:
        >>> out = torch.zeros(2, 3)
        >>> spread_add_(out, torch.ones(1, 2), torch.tensor([1]), torch.tensor([0, 2]))
        >>> out
        tensor([[0., 0., 0.],
                [1., 0., 1.]])
    """
    add = core().spread_add_float32 if x.dtype == torch.float32 else core().spread_add_float64
    grid = _grid(out.shape, rows, cols)
    add(out.data_ptr(), x.contiguous().data_ptr(), grid, torch.get_num_threads())


def keep_cols(x: Tensor, cols: Tensor, dim: int, scale: float) -> Tensor:
    """Return ``x`` with the kept indices of a dim scaled, and 0 for the others.

    Example:
        >>> keep_cols(torch.ones(2, 3), torch.tensor([1]), 1, 3.0)
        tensor([[0., 3., 0.],
                [0., 3., 0.]])
    """
    x = x.contiguous()
    out = torch.empty_like(x)
    keep = core().keep_cols_float32 if x.dtype == torch.float32 else core().keep_cols_float64
    shape = (math.prod(x.shape[:dim]), x.shape[dim], math.prod(x.shape[dim + 1 :]))
    grid = _grid(shape, None, cols)
    keep(out.data_ptr(), x.data_ptr(), grid, scale, torch.get_num_threads())
    return out


def add_rows(x: Tensor, branch: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """Return ``x`` with the weighted rows of a branch added to its kept rows.

    Args:
        x: ``[B, ...]``, float32 or float64.
        branch: ``[c, ...]``.
        rows: int64 ``[c]``, ascending.
        weights: float64 ``[c]``; a row of weight 0 is not read.

    Example:
        >>> rows, weights = torch.tensor([1]), torch.tensor([2.0], dtype=torch.float64)
        >>> add_rows(torch.zeros(2, 2), torch.ones(1, 2), rows, weights)
        tensor([[0., 0.],
                [2., 2.]])
    """
    x, branch = x.contiguous(), branch.contiguous()
    out = torch.empty_like(x)
    add = core().add_rows_float32 if x.dtype == torch.float32 else core().add_rows_float64
    grid = _grid(x.shape, rows, None)
    tensors = (out, x, branch, weights)
    add(*(one.data_ptr() for one in tensors), grid, torch.get_num_threads())
    return out


def _kept_shape(
    shape: tuple[int, ...], rows: Tensor | None, cols: Tensor | None
) -> tuple[int, ...]:
    kept = (shape[0] if rows is None else len(rows), *shape[1:])
    return kept if cols is None else (kept[0], len(cols), *kept[2:])


def _grid(shape: tuple[int, ...], rows: Tensor | None, cols: Tensor | None) -> Any:
    """Return a tensor as rows, columns and what is within these, with the kept ones."""
    n_cols = shape[1] if cols is not None else math.prod(shape[1:])
    inner = math.prod(shape[2:]) if cols is not None else 1
    row, kept_rows = (0, 0) if rows is None else (rows.data_ptr(), len(rows))
    col, kept_cols = (0, 0) if cols is None else (cols.data_ptr(), len(cols))
    return core().grid(shape[0], n_cols, inner, row, kept_rows, col, kept_cols)


def count_word(key: masks.MaskKey, group: int) -> int:
    """Return the word that decides on the sample that stands in for a fraction.

    Args:
        key: the address.
        group: the group of rows that shares the subset.

    Example:
        >>> count_word(sitout.MaskKey(seed=0), 0) < 2**32
        True
    """
    packed, site, step = _one_key(key)
    words = masks._philox(
        *(0, group & _LO32, step, site | masks._COUNT << 28), packed & _LO32, packed >> 32
    )
    return words[0]


def _one_key(key: masks.MaskKey) -> tuple[int, int, int]:
    packed, site, step, steps = _key(key, 1)
    return packed, site, step if steps is None else int(steps) & _LO32


def _run(
    op: str,
    x: Tensor | None,
    out: Tensor,
    address: Address,
    p: float | Tensor,
    other: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    shape = out.shape
    strides: tuple[tuple[int, ...], ...] = (x.stride() if x is not None else (), out.stride())
    if other is not None or bias is not None:
        strides += (other.stride() if other is not None else (),)
        strides += (bias.expand(shape).stride() if bias is not None else (),)
    job = _prepare(
        op,
        tuple(p.tolist()) if isinstance(p, Tensor) else p,
        torch.bool if x is None else x.dtype,
        shape,
        strides,
        address.shared_dims,
        address.batch_dim,
        address.block,
    )
    ticket, rows = address.key, address.rows
    key, site, step, steps = (
        (ticket, 0, 0, None) if type(ticket) is int else _key(address.mask_key, job.n_rows)
    )
    if rows is not None:
        rows = _rows(rows, job)
    if job.run is None:  # there is nothing to compute
        return out.zero_() if op not in ("add", "path_add") or other is None else out.copy_(other)
    job.run(
        0 if x is None else x.data_ptr(),
        0 if other is None else other.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        out.data_ptr(),
        key,
        site,
        step,
        0 if steps is None else steps.data_ptr(),
        0 if rows is None else rows.data_ptr(),
        torch.get_num_threads(),
    )
    return out


class _Job(NamedTuple):
    """What is worth keeping between calls.

    Args:
        run: of the core; None where all sits out or the tensor is empty.
        n_rows: how many positions the rows of an address must have.
        takes_rows: whether they count; those of a shared batch dim do not.
    """

    run: Callable[..., None] | None
    n_rows: int
    takes_rows: bool


@lru_cache(1024)
def _prepare(
    op: str,
    p: float | tuple[int, int],
    dtype: torch.dtype,
    shape: tuple[int, ...],
    strides: tuple[tuple[int, ...], ...],
    shared_dims: tuple[int, ...],
    batch_dim: int,
    block: tuple[tuple[int, int], ...] | None,
) -> _Job:
    """Prepare a job for tensors of a shape, and strides: of x, the result, and the further ones."""
    cols, first, row_dim, takes_rows = _columns(shape, shared_dims, batch_dim, block)
    rate = _rate(op, p)
    n_rows = 1 if row_dim < 0 else shape[row_dim]
    if rate is None or 0 in shape:
        return _Job(None, n_rows, takes_rows)
    x, out, other, bias = (*strides, (), ())[:4]
    tensors = (x, other, bias, out)
    made = core().Prepared(_OP[op], _CODES[dtype], shape, *tensors, cols, row_dim, first, *rate)
    return _Job(made.run, n_rows, takes_rows)


def _rate(op: str, p: float | tuple[int, int]) -> tuple[float, ...] | None:
    """Return bits, threshold and the constants of a law, or None where all sits out."""
    law: Law = _LAW.get(op, "dropout")
    if isinstance(p, tuple) and not (p[0] in (16, 32) and 0 <= p[1] <= 1 << p[0]):
        rule = "(bits, T) with 16 or 32 bits and 0 <= T <= 2**bits, as rate_data makes it"
        raise ValueError(_checks.message("`p` as data", rule, p))
    bits, threshold = p if isinstance(p, tuple) else masks._threshold(p)
    rate = threshold / 2.0**bits if isinstance(p, tuple) else p
    if law == "gaussian":
        return 16, 0, float(sigma(rate)) if rate < 1.0 else math.inf, 0.0, 0.0
    if threshold == 1 << bits:
        return None
    return bits, threshold, *map(float, constants(law, rate))


def _rows(rows: Tensor, job: _Job) -> Tensor | None:
    if not job.takes_rows:
        return None
    return masks._check_rows(rows, job.n_rows).to("cpu").contiguous()


def _columns(
    shape: tuple[int, ...],
    shared_dims: tuple[int, ...],
    batch_dim: int,
    block: tuple[tuple[int, int], ...] | None,
) -> tuple[tuple[int, ...], int, int, bool]:
    """Return how far each dim moves the column, the first column, and the dim of the rows.

    Last comes whether an address's rows count: those of a shared batch dim do not.
    """
    rank = len(shape)
    shared = {_checks.dim(dim, rank, "shared_dims") for dim in shared_dims}
    batch = _checks.dim(batch_dim, max(rank, 1), "batch_dim")
    if rank < 2:
        batch = -1
    row_dim = -1 if batch in shared else batch
    rest = [dim for dim in range(rank) if dim != batch]
    sizes = tuple(1 if dim in shared else shape[dim] for dim in rest)
    parts = tuple((0, size) for size in sizes)
    if block is not None:
        parts = masks._check_block(sizes, block)
    cols, first = [0] * rank, 0
    stride = 1
    for dim, (start, full) in zip(reversed(rest), reversed(parts), strict=True):
        cols[dim] = 0 if dim in shared else stride
        first += start * stride
        stride *= full
    return tuple(cols), first, row_dim, row_dim >= 0 or batch < 0


def _key(key: masks.MaskKey, n_rows: int) -> tuple[int, int, int, Tensor | None]:
    """Return seed XOR call << 32, the site, the step, and the steps if there is one a row."""
    seed, site, step, call = key.seed, key.site, key.step, key.call
    if type(seed) is type(site) is type(step) is type(call) is int:
        return seed ^ call << 32, site, step, None
    seed, call = int(seed), int(call)
    packed, site = (seed ^ call << 32) & _LO64, int(site) & 0xFFFFFFF
    if isinstance(step, Tensor) and step.dim() == 1:
        if len(step) != n_rows:
            what, rule = "`step` of MaskKey", f"one a row, [{n_rows}]"
            raise ValueError(_checks.message(what, rule, len(step)))
        return packed, site, 0, step.to("cpu").contiguous()
    return packed, site, int(step) & _LO32, None
