"""Thinned linear layers on a GPU: one kernel gathers the weights of all groups.

Groups of equal size are one batched product. Nothing here waits for the GPU: how many units play,
and how many rows a group has, is known without looking at the data.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from . import _moves, triton
from ._kept import again

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._kept import Kept

_ALIGNMENT = 16  # bytes: a matrix product on a GPU is at its speed where rows begin at multiples
_FEW_ROWS = 256  # of a product that is not worth a copy for that


class _Span(NamedTuple):
    """Groups one after the other that have the same number of rows."""

    first: int
    groups: int
    start: int  # the first row of the first group
    rows: int  # of each group


def serves(
    x: Tensor, weight: Tensor, bias: Tensor | None, kept_in: Kept | None, kept_out: Kept | None
) -> bool:
    """Return whether :func:`linear` can do what :func:`sitout.backends.linear` is asked for.

    Args:
        x: as there, like the rest.
        weight: see there.
        bias: see there.
        kept_in: see there.
        kept_out: see there.

    Example:
        >>> serves(torch.ones(2, 3), torch.ones(4, 3), None, None, None)
        False
    """
    if x.dim() < 2 or not x.numel() or (kept_in is None and kept_out is None):
        return False
    units = [None if kept is None else kept.units for kept in (kept_in, kept_out)]
    if _moves.movers(x, *units) is not triton or not all(
        one is None or one.numel() for one in units
    ):
        return False
    others = [weight] if bias is None else [weight, bias]
    return all(triton.is_plain(one) and one.device == x.device for one in others) and (
        _autocast(x) is not None or all(one.dtype == x.dtype for one in others)
    )


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, kept_in: Kept | None, kept_out: Kept | None
) -> Tensor:
    """Do what :func:`sitout.backends.linear` does, where :func:`serves` says so.

    Args:
        x: as there, like the rest.
        weight: see there.
        bias: see there.
        kept_in: see there.
        kept_out: see there.

    Returns:
        ``[B, ..., n]``, or ``[B, ..., k]`` with the units that ``kept_out`` keeps.
    """
    wanted = _autocast(x)
    if wanted is not None:
        x = x.to(wanted)
    made: Tensor = _linear(x, weight, bias, kept_in, kept_out)
    return made


def _autocast(x: Tensor) -> torch.dtype | None:
    kind = x.device.type
    if x.dtype == torch.float64 or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


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
        units_in, units_out = _units(kept_in), _units(kept_out)
        ctx.save_for_backward(x, weight, bias, units_in, units_out)
        ctx.kept = kept_in, kept_out
        some = _gather(weight, units_out, units_in, x)
        some_bias = None
        if bias is not None and units_out is not None:
            some_bias = _gather(bias, units_out, None, x)
        elif bias is not None:
            some_bias = bias.to(x.dtype).expand(len(some), -1)
        wide = _wide(x)
        scale = _scale(kept_in)
        made = [
            _product(part, some[span.first :][: span.groups].mT, scale, _of(some_bias, span))
            for span, part in _parts(wide, kept_in or kept_out, x.shape)
        ]
        return _whole(made, (*x.shape[:-1], some.shape[1]))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, units_in, units_out = ctx.saved_tensors
        kept_in, kept_out = ctx.kept
        kept_in = kept_in and kept_in._replace(units=units_in)
        kept_out = kept_out and kept_out._replace(units=units_out)
        needed = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():
            mixed = weight.dtype != x.dtype
            with torch.autocast(x.device.type, x.dtype if mixed else None, enabled=mixed):
                grads = again(grad, (x, weight, bias), kept_in, kept_out, needed)
            return (*grads, None, None)
        kept, scale = kept_in or kept_out, _scale(kept_in)
        pairs = list(zip(_parts(_wide(grad), kept, x.shape), _matrices(x, kept), strict=True))
        x_grad = w_grad = b_grad = None
        if needed[0]:
            some = _gather(weight, units_out, units_in, x)
            made = [
                _product(out, some[span.first :][: span.groups], scale, None)
                for (span, out), _ in pairs
            ]
            x_grad = _whole(made, x.shape)
        if needed[1]:
            made = [_product(out.mT, part, scale, None) for (_, out), part in pairs]
            w_grad = _spread(_stacked(made), units_out, units_in, weight)
        if needed[2] and bias is not None:
            sums = _stacked([out.sum(1, dtype=_exact(out)) for (_, out), _ in pairs])
            b_grad = _spread(sums[:, :, None], units_out, None, bias[:, None])[:, 0]
        return x_grad, w_grad, b_grad, None, None


def _units(kept: Kept | None) -> Tensor | None:
    return None if kept is None else kept.units


def _scale(kept_in: Kept | None) -> float:
    return 1.0 if kept_in is None else kept_in.scale


def _of(some: Tensor | None, span: _Span) -> Tensor | None:
    return None if some is None else some[span.first :][: span.groups, None]


def _exact(x: Tensor) -> torch.dtype:
    """Return the dtype that sums are made in."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _width(x: Tensor) -> int:
    """Return the elements that rows of a matrix should begin at multiples of."""
    return _ALIGNMENT // x.element_size()


def _gather(weight: Tensor, rows: Tensor | None, cols: Tensor | None, x: Tensor) -> Tensor:
    """Return the kept part of a weight for each group ``[G, r, c]``, of the dtype of ``x``."""
    from .triton import _moves as kernels

    if rows is None and cols is None:
        return weight[None]
    return kernels.take(weight, rows, cols, _width(x)).to(x.dtype)


def _spread(x: Tensor, rows: Tensor | None, cols: Tensor | None, like: Tensor) -> Tensor:
    """Return the gradients of all groups, added up in a tensor of the shape of ``like``."""
    from .triton import _moves as kernels

    return kernels.spread(x, rows, cols, like.shape[0], like.shape[1], like.dtype)


def _spans(kept: Kept, batch: int) -> Iterator[_Span]:
    """Yield the groups, those of the same number of rows together."""
    groups = len(kept.units)
    if groups == 1:
        sizes = [batch]
    elif kept.sizes is not None:
        sizes = list(kept.sizes)
    else:
        sizes = [min(kept.step, batch - start) for start in range(0, batch, kept.step)]
    first = start = 0
    for size, same in groupby(sizes):
        count = len(list(same))
        yield _Span(first, count, start, size)
        first, start = first + count, start + count * size


def _parts(wide: Tensor, kept: Any, shape: torch.Size) -> Iterator[tuple[_Span, Tensor]]:
    """Yield the rows of each span, ``[groups, rows, n]``.

    Args:
        wide: ``[rows of all, n]``.
        kept: the subset.
        shape: of the tensor whose first dim is grouped.
    """
    places = len(wide) // max(shape[0], 1)  # rows of a matrix for each row of a group
    for span in _spans(kept, shape[0]):
        count = span.groups * span.rows * places
        part = wide[span.start * places :][:count]
        yield span, part.view(span.groups, span.rows * places, -1)


def _matrices(x: Tensor, kept: Any) -> list[Tensor]:
    return [part for _, part in _parts(_wide(x), kept, x.shape)]


def _wide(x: Tensor) -> Tensor:
    """Return ``[rows, n]`` whose rows begin where products are fast; a copy if need be."""
    flat, n = x.reshape(-1, x.shape[-1]), x.shape[-1]
    width = _width(x)
    if len(flat) < _FEW_ROWS or (flat.stride(0) % width == 0 and flat.stride(1) == 1):
        return flat
    made = flat.new_empty(len(flat), -(-n // width) * width)[:, :n]
    return made.copy_(flat)


def _product(a: Tensor, b: Tensor, scale: float, bias: Tensor | None) -> Tensor:
    """Return scale (a b) + bias of each group; the product has the scale for nothing."""
    n, width = b.shape[2], _width(a)
    plus = a.new_empty(1, 1, 1) if bias is None else bias
    beta = 0 if bias is None else 1
    out = None
    if n % width and a.shape[1] >= _FEW_ROWS:
        out = a.new_empty(*a.shape[:2], -(-n // width) * width)[:, :, :n]
    if len(a) > 1:
        return torch.baddbmm(plus, a, b, beta=beta, alpha=scale, out=out)
    flat = None if out is None else out[0]
    return torch.addmm(plus[0, 0], a[0], b[0], beta=beta, alpha=scale, out=flat)[None]


def _stacked(made: list[Tensor]) -> Tensor:
    return made[0] if len(made) == 1 else torch.cat(made)


def _whole(made: list[Tensor], shape: Any) -> Tensor:
    """Return the rows of all spans as one tensor, which is no view: what is behind may write."""
    flat = [part.flatten(0, 1) for part in made]
    out = _stacked(flat).contiguous()
    shaped: Tensor = torch.ops.aten._unsafe_view.default(out, shape)
    return shaped


# As in _drop: without the half of ``apply`` that serves function transforms.
_linear: Any = super(torch.autograd.Function, _Linear).apply
