"""Layers of which only the kept units are computed: those of one group of rows after the other."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .. import masks
from . import _gathered, _moves, _op, cpu
from ._address import Address, Packed
from ._drop import is_direct
from ._kept import Kept, again, group_of, plain_linear
from ._masks import kept_units

_LEAST_RATE, _PER_ROOT = 0.08, 2.4  # fitted to what `sitout doctor` measures
_FEW_ROWS = 256  # of a product, that are written before the BLAS is at its speed


def least_rate(rows: int) -> float:
    """Return the drop rate from which it pays to gather the units that play.

    Gathered weights cost the same for one row as for many, so the rate falls with their number:
    0.6 at 16 rows, 0.21 at 128, and 0.08 from 900 on, as measured with float32 on a processor
    with AVX-512.

    Args:
        rows: of the matrices that are multiplied: samples of a group, times places.

    Example:
        >>> round(least_rate(128), 2)
        0.21
    """
    return max(_LEAST_RATE, _PER_ROOT / math.sqrt(max(rows, 1)))


def pays(p: float, rows: int) -> bool:
    """Return whether a drop rate is at least :func:`least_rate`; compiled code may ask.

    Args:
        p: drop rate, a fraction in [0, 1].
        rows: as of :func:`least_rate`.

    Example:
        >>> pays(0.5, 128), pays(0.05, 4096)
        (True, False)
    """
    return p >= _LEAST_RATE and rows * p * p >= _PER_ROOT**2


def draw(key: masks.MaskKey, p: float, n: int, groups: Tensor) -> Tensor:
    """Return which of ``n`` units play in each group, by the fixed law.

    Args:
        key: the address.
        p: drop rate, a fraction in [0, 1].
        n: number of units.
        groups: int64 ``[G]``, on the device of the result.

    Returns:
        int64 ``[G, k]``, ascending.

    Example:
        >>> draw(sitout.MaskKey(seed=0), 0.5, 6, torch.tensor([0, 1]))
        tensor([[2, 3, 4],
                [0, 3, 4]])
    """
    if _op.is_seen():
        packed = Address(key).pack(groups.device)
        drawn: Tensor = torch.ops.sitout.kept_units.default(
            packed.key, packed.counter, groups, p, n
        )
        return drawn
    if _moves.draws_on_gpu(groups):
        from .triton import _subsets

        return _subsets.kept_units(key, p, n, groups)
    if groups.is_cpu and cpu.is_memory(groups):
        each = groups.tolist()
        return torch.stack([kept_units(key, p, n, group=group) for group in each])
    return torch.stack(
        [masks.kept_units(key, p, n, group=g, device=groups.device) for g in groups.unbind()]
    )


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, kept_in: Kept | None, kept_out: Kept | None
) -> Tensor:
    """Apply the kept rows and columns of a weight to rows that hold the kept units alone.

    Args:
        x: ``[B, ..., m]``, or ``[B, ..., k]`` with the units that ``kept_in`` keeps.
        weight: ``[n, m]``.
        bias: ``[n]`` or None.
        kept_in: of the ``m`` units; their values are scaled. All of them if None.
        kept_out: of the ``n`` units. All of them if None.

    Returns:
        ``[B, ..., n]``, or ``[B, ..., k]`` with the units that ``kept_out`` keeps.

    Example:
        >>> kept = Kept(torch.tensor([[1]]), 2, 1)
        >>> linear(torch.ones(1, 1), torch.ones(3, 2), None, kept, None)
        tensor([[2., 2., 2.]])
    """
    if _is_direct(x, weight, bias) and _are_indices(kept_in, kept_out):
        out: Tensor = _linear(x, weight, bias, kept_in, kept_out)
        return out
    if _gathered.serves(x, weight, bias, kept_in, kept_out):
        return _gathered.linear(x, weight, bias, kept_in, kept_out)
    return plain_linear(x, weight, bias, kept_in, kept_out)


def _is_direct(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    return (
        is_direct(x)
        and cpu.is_plain(weight)
        and x.dtype == weight.dtype
        and (bias is None or (cpu.is_plain(bias) and bias.dtype == x.dtype))
        and not torch.is_autocast_enabled("cpu")
        and x.dim() >= 2
        and x.numel() > 0
    )


def _are_indices(*kept: Kept | None) -> bool:
    return all(one is None or _moves.is_index(one.units) for one in kept)


def keep(x: Tensor, kept: Kept, dim: int, batch_dim: int) -> Tensor:
    """Return ``x`` with the kept units scaled, and 0 for the others.

    Args:
        x: ``[B, ..., n, ...]``.
        kept: of the ``n`` units.
        dim: of the units.
        batch_dim: of the rows.

    Example:
        >>> keep(torch.ones(2, 3), Kept(torch.tensor([[1]]), 3, 2), 1, 0)
        tensor([[0., 3., 0.],
                [0., 3., 0.]])
    """
    whole = len(kept.units) == 1 and kept.of is None
    served = x.dtype in (torch.float32, torch.float64) and x.is_contiguous() and x.numel() > 0
    if whole and served and is_direct(x) and _are_indices(kept):
        out: Tensor = _keep(x, kept, dim)
        return out
    groups = len(kept.units)
    mask = torch.zeros(groups, kept.n, dtype=torch.bool, device=x.device)
    mask = mask.scatter(1, kept.units, True)
    sizes = [1] * x.dim()
    sizes[dim] = kept.n
    if not whole:
        batch = x.shape[batch_dim]
        of = kept.of
        mask = mask.repeat_interleave(kept.step, 0)[:batch] if of is None else mask[of]
        if batch_dim > dim:
            mask = mask.t()
        sizes[batch_dim] = batch
    return torch.where(mask.view(sizes), x * kept.scale, 0.0)


class _Keep(torch.autograd.Function):
    """Scaled where kept: its own gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kept: Kept, dim: int) -> Tensor:
        ctx.save_for_backward(kept.units)
        ctx.kept, ctx.dim = kept, dim
        return cpu.keep_cols(x, kept.units[0], dim, kept.scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        kept = ctx.kept._replace(units=ctx.saved_tensors[0])
        return keep(grad, kept, ctx.dim, 0), None, None


def _apart(x: Tensor, kept: Kept) -> list[Tensor]:
    """Return the rows of each group as matrices."""
    return [part.reshape(-1, x.shape[-1]) for part in kept.parts(x)]


def _product(a: Tensor, b: Tensor, scale: float, bias: Tensor | None = None) -> Tensor:
    """Return scale (a b) + bias without a pass for the scale: the BLAS has it for nothing."""
    n = b.shape[1]
    plus = a.new_empty(1) if bias is None else bias
    beta = 0 if bias is None else 1
    if n % 8 == 0 or len(a) < _FEW_ROWS:
        return torch.addmm(plus, a, b, beta=beta, alpha=scale)
    # The BLAS writes rows that begin at no multiple of 8 at two thirds of its speed.
    wide = a.new_empty(len(a), -(-n // 16) * 16)[:, :n]
    return torch.addmm(plus, a, b, beta=beta, alpha=scale, out=wide).contiguous()


class _Linear(torch.autograd.Function):
    """Gathered weights are not kept for backward: to gather them again costs less than memory."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        kept_in: Kept | None,
        kept_out: Kept | None,
    ) -> Tensor:
        units_in = None if kept_in is None else kept_in.units
        units_out = None if kept_out is None else kept_out.units
        ctx.save_for_backward(x, weight, bias, units_in, units_out)
        ctx.kept = kept_in, kept_out
        kept: Any = kept_in or kept_out
        scale = 1.0 if kept_in is None else kept_in.scale
        made = []
        for i, part in enumerate(_apart(x, kept)):
            rows, cols = group_of(kept_out, i), group_of(kept_in, i)
            some = cpu.take(weight, rows, cols).t()
            some_bias = bias if bias is None or rows is None else cpu.take(bias, rows, None)
            made.append(_product(part, some, scale, some_bias))
        out = made[0] if len(made) == 1 else torch.cat(made)
        # No view: what is in place behind it may write into it.
        shaped: Tensor = torch.ops.aten._unsafe_view.default(out, (*x.shape[:-1], out.shape[-1]))
        return shaped

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, units_in, units_out = ctx.saved_tensors
        kept_in, kept_out = ctx.kept
        if kept_in is not None:
            kept_in = kept_in._replace(units=units_in)
        if kept_out is not None:
            kept_out = kept_out._replace(units=units_out)
        needed = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled() or not _is_direct(grad, weight, bias):
            return (*again(grad, (x, weight, bias), kept_in, kept_out, needed), None, None)
        return (*_gradients(grad, x, weight, bias, kept_in, kept_out, needed), None, None)


def _gradients(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    kept_in: Kept | None,
    kept_out: Kept | None,
    needed: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    kept: Any = kept_in or kept_out
    scale = 1.0 if kept_in is None else kept_in.scale
    pairs = list(zip(_apart(grad, kept), _apart(x, kept), strict=True))
    x_grad = w_grad = b_grad = None
    if needed[0]:
        made = [
            _product(out, cpu.take(weight, group_of(kept_out, i), group_of(kept_in, i)), scale)
            for i, (out, _) in enumerate(pairs)
        ]
        x_grad = (made[0] if len(made) == 1 else torch.cat(made)).view(x.shape)
    for i, (out, part) in enumerate(pairs):
        rows, cols = group_of(kept_out, i), group_of(kept_in, i)
        if needed[1]:
            w_grad = _added(w_grad, _product(out.t(), part, scale), rows, cols, weight.shape)
        if needed[2] and bias is not None:
            b_grad = _added(b_grad, out.sum(0), rows, None, bias.shape)
    return x_grad, w_grad, b_grad


def _added(
    total: Tensor | None, x: Tensor, rows: Tensor | None, cols: Tensor | None, shape: Any
) -> Tensor:
    """Return the total with ``x`` added in the kept rows and columns."""
    if total is not None and total.dtype in (torch.float32, torch.float64):
        cpu.spread_add_(total, x, rows, cols)
        return total
    whole = rows is None and cols is None
    spread = x if whole else cpu.spread(x, rows, cols, shape[0], shape[-1])
    return spread if total is None else total + spread


# As in _drop: without the half of ``apply`` that serves function transforms.
_linear: Any = super(torch.autograd.Function, _Linear).apply
_keep: Any = super(torch.autograd.Function, _Keep).apply


def _draw_kernel(key: Tensor, counter: Tensor | None, groups: Tensor, p: float, n: int) -> Tensor:
    return draw(Packed(key, counter, None, None, (), 0).unpack().mask_key, p, n, groups)


def _draw_fake(key: Tensor, counter: Tensor | None, groups: Tensor, p: float, n: int) -> Tensor:
    return groups.new_empty(groups.shape[0], masks._count_kept(p, n) if p < 1.0 else 0)


_op.register(
    "kept_units(Tensor key, Tensor? counter, Tensor groups, float p, int n) -> Tensor",
    _draw_kernel,
    _draw_fake,
)
