"""Which units play in each group of rows, and a linear layer of these in plain torch."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from . import _moves


class Kept(NamedTuple):
    """Which units play, for each group of rows.

    Args:
        units: int64 ``[G, k]``, ascending.
        n: how many units there are.
        step: rows of a group; the last one may have fewer.
        of: int64 ``[B]``, the group of each row (an index into ``units``), where groups are not
            ``step`` rows one after the other; else None.
        sizes: rows of each group, where those stand one after the other all the same.

    Example:
        >>> Kept(torch.tensor([[0, 2]]), 4, 8).scale
        2.0
    """

    units: Tensor
    n: int
    step: int
    of: Tensor | None = None
    sizes: tuple[int, ...] | None = None

    @property
    def scale(self) -> float:
        """Return what a kept unit is multiplied by, n / k; or n where nobody plays."""
        return self.n / max(self.units.shape[1], 1)

    def parts(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the rows of each group."""
        if len(self.units) == 1:
            return (x,)
        sizes = self.step if self.sizes is None else list(self.sizes)
        parts: tuple[Tensor, ...] = x.split(sizes)  # type: ignore[no-untyped-call]
        return parts

    @property
    def together(self) -> bool:
        """Whether the rows of each group stand one after the other."""
        return self.of is None or self.sizes is not None


def group_of(kept: Kept | None, i: int) -> Tensor | None:
    return None if kept is None else kept.units[i]


def plain_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, kept_in: Kept | None, kept_out: Kept | None
) -> Tensor:
    kept = kept_in or kept_out
    if kept is None:
        return F.linear(x, weight, bias)
    made = [
        F.linear(part, *some_of(weight, bias, kept_in, kept_out, i))
        for i, part in enumerate(kept.parts(x))
    ]
    return torch.cat(made) if len(made) > 1 else made[0]


def some_of(
    weight: Tensor, bias: Tensor | None, kept_in: Kept | None, kept_out: Kept | None, i: int
) -> tuple[Tensor, Tensor | None]:
    """Return the kept rows and columns of a weight in group ``i``, scaled, and of its bias.

    Args:
        weight: ``[n, m, ...]``.
        bias: ``[n]`` or None.
        kept_in: of the ``m`` units.
        kept_out: of the ``n`` units.
        i: index of the group.

    Example:
        >>> kept = Kept(torch.tensor([[1]]), 2, 1)
        >>> some_of(torch.ones(3, 2), None, None, kept, 0)[0].shape
        torch.Size([1, 2])
    """
    rows = group_of(kept_out, i)
    some = _moves.take(weight, rows, group_of(kept_in, i))
    if kept_in is not None and kept_in.scale != 1.0:
        some = some * kept_in.scale
    return some, None if bias is None else _moves.take(bias, rows, None)


def again(
    grad: Tensor,
    inputs: tuple[Tensor | None, ...],
    kept_in: Kept | None,
    kept_out: Kept | None,
    needed: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """Return the gradients as functions of all tensors, for a second backward."""
    create = torch.is_grad_enabled()
    with torch.enable_grad():
        # Views: the graph that they come from, and their hooks, are the caller's to walk.
        x, weight, bias = (
            one if one is None else one.view_as(one) if create else one.detach().requires_grad_()
            for one in inputs
        )
        out = plain_linear(x, weight, bias, kept_in, kept_out)  # type: ignore[arg-type]
        asked: Any = [one for one, wanted in zip((x, weight, bias), needed, strict=True) if wanted]
        made = iter(torch.autograd.grad(out, asked, grad, create_graph=create))
    return tuple(next(made) if wanted else None for wanted in needed)
