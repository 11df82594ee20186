"""The layers around a ThinnedDropout: those of torch, of which only the kept units are computed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import _checks, functional
from ._thinned import ThinnedDropout

if TYPE_CHECKING:
    from ..backends import Kept


class Thinned(torch.nn.Module):
    """What the layers around a site share: their places before and behind it.

    The sites are no children of theirs: each has its own place in the model.
    """

    _before: tuple[ThinnedDropout, int] | None = None
    _after: tuple[ThinnedDropout, int] | None = None

    def stand(self, before: ThinnedDropout | None, after: ThinnedDropout | None) -> None:
        """Take a place before one site, behind another one, or both.

        Args:
            before: the site whose kept units the layer computes.
            after: the site whose kept units it reads.

        Raises:
            TypeError: one of them is no ThinnedDropout.
        """
        for name, site in (("before", before), ("after", after)):
            given: object = site
            if given is not None and not isinstance(given, ThinnedDropout):
                what = f"`{name}` of {type(self).__name__}"
                raise TypeError(_checks.message(what, "a ThinnedDropout or None", given))
        if before is not None:
            self._before = before, 1 << before._sources
            before._sources += 1
        if after is not None:
            self._after = after, 1 << after._readers
            after._readers += 1

    def _units(self, x: Tensor, dim: int, n_in: int, n_out: int) -> tuple[Kept | None, Kept | None]:
        """Return which units there are in the input, and which are to be computed."""
        if not self._drops():
            return None, None
        if getattr(self, "_is_replica", False):
            rule, got = "outside of DataParallel, whose threads share it", "a replica"
            way_out = "Use DistributedDataParallel."
            raise RuntimeError(_checks.message(type(self).__name__, f"run {rule}", got, way_out))
        kept_in = None
        if self._after is not None:
            kept_in = self._after[0]._read(x, self._after[1])
        there = n_in if kept_in is None else kept_in.units.shape[1]
        if x.shape[dim] != there:
            raise self._unfit(x.shape[dim], there)
        if self._before is None:
            return kept_in, None
        return kept_in, self._before[0]._begin(x, n_out, self._before[1])

    def _drops(self) -> bool:
        """Return whether units sit out around the layer; its own mode does not matter."""
        places = (self._before, self._after)
        return any(place is not None and place[0]._drops() for place in places)

    def _unfit(self, got: int, wanted: int) -> ValueError:
        way_out = ""
        if self._after is not None:
            way_out = (
                "The layers of a chain must run one after the other, in one piece: a checkpoint "
                "must hold all of them, and what is in between must be elementwise."
            )
        what = f"The input of {type(self).__name__}"
        return ValueError(_checks.message(what, f"one of {wanted} units", got, way_out))

    def _passed(self, out: Tensor) -> Tensor:
        if self._before is not None:
            self._before[0]._made(out)
        return out


class ThinnedLinear(Thinned, torch.nn.Linear):
    """A linear layer next to a :class:`ThinnedDropout`: it skips the units that sit out.

    Args:
        in_features: size of each input.
        out_features: size of each output.
        bias: whether there is one.
        before: the site in front of which it stands: only the kept outputs are computed.
        after: the site behind which it stands: only the kept inputs are there, and are scaled.
        device: of the parameters.
        dtype: of the parameters.

    Shape:
        ``[B, ..., in_features]`` to ``[B, ..., out_features]``; in a step that is thinned, with the
        kept ones alone.

    Raises:
        TypeError: ``before`` or ``after`` is something else.

    Example:
        >>> drop = sitout.nn.ThinnedDropout(0.5, form="thinned")
        >>> first = sitout.nn.ThinnedLinear(4, 8, before=drop)
        >>> second = sitout.nn.ThinnedLinear(8, 2, after=drop)
        >>> hidden = drop(first(torch.ones(3, 4)).relu())
        >>> hidden.shape, second(hidden).shape
        (torch.Size([3, 4]), torch.Size([3, 2]))

    Reference:
        Graham et al. 2015, arXiv 1502.02478; see :func:`sitout.functional.thinned_linear`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        before: ThinnedDropout | None = None,
        after: ThinnedDropout | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self.stand(before, after)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Apply the layer."""
        kept_in, kept_out = self._units(input, -1, self.in_features, self.out_features)
        if kept_in is None and kept_out is None:
            return self._passed(super().forward(input))
        x = input if input.dim() > 1 else input[None]
        out = functional.thinned_linear(
            x, self.weight, self.bias, kept_in=kept_in, kept_out=kept_out
        )
        return self._passed(out if input.dim() > 1 else out[0])
