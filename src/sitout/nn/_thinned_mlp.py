"""A multilayer perceptron made of thinned layers."""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch

from .. import _checks
from ..functional._thinned import check_count
from ._thinned import ThinnedDropout
from ._thinned_layers import ThinnedLinear

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class ThinnedMLP(torch.nn.Sequential):
    """A multilayer perceptron whose hidden units sit out together, and are not computed.

    Args:
        in_features: size of each input.
        hidden_features: of each hidden layer.
        out_features: size of each output.
        p: drop rate of hidden units, a fraction in [0, 1].
        activation: makes an elementwise module.
        bias: whether the linear layers have one.
        groups: as of :class:`ThinnedDropout`, like the next two.
        group_size: rows of a group.
        form: "auto", "thinned" or "masked".

    Shape:
        ``[B, ..., in_features]`` to ``[B, ..., out_features]``.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: there is no hidden layer, or one has so few units that no count of them comes
            within 0.01 of ``p``.

    Example:
        >>> net = sitout.nn.ThinnedMLP(784, [2048, 2048], 10, p=0.5)
        >>> net(torch.ones(512, 784)).shape
        torch.Size([512, 10])

    Reference:
        Graham et al. 2015, arXiv 1502.02478; see :class:`ThinnedDropout`.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: Sequence[int],
        out_features: int,
        p: float = 0.5,
        *,
        activation: Callable[[], torch.nn.Module] = torch.nn.ReLU,
        bias: bool = True,
        groups: int = 1,
        group_size: int | None = None,
        form: str = "auto",
    ) -> None:
        hidden = [_checks.integer(n, "hidden_features", "ThinnedMLP") for n in hidden_features]
        if not hidden:
            what, rule = "`hidden_features` of ThinnedMLP", "at least one number of units"
            raise ValueError(_checks.message(what, rule, hidden_features))
        super().__init__()
        sites: list[ThinnedDropout | None] = [None]
        for n in hidden:
            sites.append(ThinnedDropout(p, groups=groups, group_size=group_size, form=form))
            check_count(float(p), n, "ThinnedMLP")
        sizes = [in_features, *hidden, out_features]
        for at, (n_in, n_out) in enumerate(pairwise(sizes)):
            before = sites[at + 1] if at < len(hidden) else None
            self.append(ThinnedLinear(n_in, n_out, bias, before=before, after=sites[at]))
            if before is not None:
                self.append(activation())
                self.append(before)

    def __getitem__(self, idx: slice | int) -> Any:
        """Return a layer, or some of them one after the other."""
        if isinstance(idx, slice):
            return torch.nn.Sequential(OrderedDict(list(self._modules.items())[idx]))
        return super().__getitem__(idx)
