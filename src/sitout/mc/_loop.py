"""Without a plan: the model runs for each sample, with draws at their addresses."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .._ticker import State, Ticker
from ..nn import ResidualDropPath, ThinnedDropout
from ._draws import draw
from ._memo import Memo
from ._tape import DROP, _is_draw

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ._batch import Batch
    from ._draws import Addresses, At


class Loop:
    """Does what a plan does, for a model that has none.

    Args:
        model: any module, whose dropout is on.
        batch: what it takes.
        select: returns the output that counts.
    """

    def __init__(self, model: nn.Module, batch: Batch, select: Callable[[Any], Tensor]) -> None:
        self.model, self.batch, self.select = model, batch, select
        self.drawn = bool(clocked(model))
        self.remembers = not self.drawn  # thinned layers draw where no op can be seen
        self.memo: Memo | None = None

    def sample(self, where: Addresses) -> Tensor:
        """Return the output of one sample."""
        mode = _Addressed(where, self.batch.rows)
        known = self.memo
        memo = known or Memo(self.model, lambda: mode.drawn)
        with _clocked(self.model, where), torch.random.fork_rng(), mode:
            # What has no address, a choice that the code makes from a number, hangs on the seed.
            torch.manual_seed(where.seed << 32 | where.samples[0])
            if not self.remembers:
                out = self.select(self.batch.copied().call(self.model))
            else:
                with memo.replaying() if known else memo.listening():
                    out = self.select(self.batch.copied().call(self.model))
        self.memo = memo
        self.drawn = self.drawn or mode.drawn
        return out


class _Addressed(TorchDispatchMode):
    """Gives the draws of a forward their addresses."""

    def __init__(self, where: Addresses, rows: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._where, self._rows, self._site, self.drawn = where, rows, 0, False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.drawn = True
        if not _is_draw(func, args) or (func is DROP and args[2] is not None):
            return func(*args, **kwargs)
        shape = tuple(args[0].shape) if isinstance(args[0], Tensor) else tuple(args[0])
        site, self._site = self._site, self._site + 1
        made = draw(self._where, site, self._at(shape), func, args, kwargs)
        return made[0] if len(made) == 1 else tuple(made)

    def _at(self, shape: tuple[int, ...]) -> At:
        """Return where the rows of a tensor must be."""
        for dim, size in enumerate(shape):
            if size == self._rows:
                return dim, 1
        if shape and shape[0] and shape[0] % self._rows == 0:
            return 0, shape[0] // self._rows
        return None


@contextmanager
def _clocked(model: nn.Module, where: Addresses) -> Iterator[None]:
    """Give the thinned layers of a model their addresses, as a clock does."""
    layers = clocked(model)
    before = [layer._ticker for layer in layers]
    state = State(where.seed)
    try:
        for number, layer in enumerate(layers):
            layer._ticker = Ticker(state)
            layer._ticker.renumber(str(number), number)
            state.tickers.append(layer._ticker)
        state.begin(where.samples[0], where.rows)
        yield
    finally:
        for layer, ticker in zip(layers, before, strict=True):
            layer._ticker = ticker


def clocked(model: nn.Module) -> list[ThinnedDropout | ResidualDropPath]:
    """Return the layers whose subsets no op draws: they take their address from a clock."""
    return [one for one in model.modules() if isinstance(one, (ThinnedDropout, ResidualDropPath))]
