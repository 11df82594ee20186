"""What every layer holds: a rate, a place in the address space, and the options of its function."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .. import _checks

if TYPE_CHECKING:
    from collections.abc import Sequence


class Site(torch.nn.Module):
    """A place in a model where units sit out in training: the base of every layer here."""

    _p_below_one = False

    def __init__(
        self,
        p: float = 0.5,
        inplace: bool = False,
        *,
        shared_dims: Sequence[int] = (),
        batch_dim: int = 0,
    ) -> None:
        torch.nn.Module.__init__(self)
        owner = type(self).__name__
        self.p = p
        self.inplace = _checks.flag(inplace, "inplace", owner)
        self.shared_dims = _checks.dims(shared_dims, "shared_dims", owner)
        self.batch_dim = _checks.integer(batch_dim, "batch_dim", owner)

    @property
    def p(self) -> float:
        """The drop rate, a fraction in [0, 1]."""
        return self._p

    @p.setter
    def p(self, value: float) -> None:
        self._p = _checks.rate(value, type(self).__name__, below_one=self._p_below_one)

    def extra_repr(self) -> str:
        """Return what stands between the parentheses of ``repr``."""
        parts = [f"p={self.p}", f"inplace={self.inplace}"]
        if self.shared_dims:
            parts.append(f"shared_dims={self.shared_dims}")
        if self.batch_dim:
            parts.append(f"batch_dim={self.batch_dim}")
        return ", ".join(parts)
