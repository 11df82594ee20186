"""What goes into a model: its tensors, and which of them hold the rows of a batch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from .. import _checks

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ._state import State


@dataclass(frozen=True)
class Batch:
    """The arguments of one call of a model.

    Args:
        leaves: what the arguments hold.
        spec: how they hold it.
        dim: of the rows.
        rows: how many there are.
    """

    leaves: tuple[Any, ...]
    spec: TreeSpec
    dim: int
    rows: int

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: Mapping[str, Any], dim: int) -> Batch:
        """Return the batch of some arguments; the first tensor tells how many rows it has.

        Raises:
            ValueError: there is no tensor with such a dim.
        """
        leaves, spec = tree_flatten((args, dict(kwargs)))
        tensors = [one for one in leaves if isinstance(one, Tensor)]
        first = next((one for one in tensors if one.dim() > dim), None)
        if first is None or len(first) == 0:
            got = [tuple(one.shape) for one in tensors]
            rule = f"tensors of which the first with rows has some, in dim {dim}"
            raise ValueError(_checks.message("`inputs` of mc.predict", rule, got))
        return cls(tuple(leaves), spec, dim, first.shape[dim])

    def tensors(self) -> list[Tensor]:
        """Return all tensors."""
        return [one for one in self.leaves if isinstance(one, Tensor)]

    def holds_rows(self, one: object) -> bool:
        """Return whether something is a tensor with the rows of the batch."""
        return isinstance(one, Tensor) and one.dim() > self.dim and one.shape[self.dim] == self.rows

    def take(self, indices: list[int]) -> Batch:
        """Return the batch of some rows, in tensors of its own."""
        leaves = []
        for one in self.leaves:
            if self.holds_rows(one):
                one = one.index_select(self.dim, torch.tensor(indices, device=one.device))
            elif isinstance(one, Tensor):
                one = one.clone()
            leaves.append(one)
        return replace(self, leaves=tuple(leaves), rows=len(indices))

    def copied(self) -> Batch:
        """Return the batch in tensors of its own, which a forward may write to."""
        leaves = [one.clone() if isinstance(one, Tensor) else one for one in self.leaves]
        return replace(self, leaves=tuple(leaves))

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments."""
        args, kwargs = tree_unflatten(list(self.leaves), self.spec)
        return args, kwargs

    def call(self, model: nn.Module) -> Any:
        """Return what a model makes of it."""
        args, kwargs = self.arguments()
        return model(*args, **kwargs)

    def form(self, state: State) -> tuple[object, ...]:
        """Return what a plan hangs on: everything but the values of tensors."""
        told: list[object] = [str(self.spec), self.dim]
        for one in self.leaves:
            if isinstance(one, Tensor):
                told.append((tuple(one.shape), one.dtype, one.device, self.holds_rows(one)))
            else:
                told.append(state.of(one))
        return tuple(told)
