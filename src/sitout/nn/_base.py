"""What every layer holds: a rate, a place in the address space, and the options of its function."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, Self

import torch
from torch import Tensor

from .. import _checks, masks

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class AddressSource(Protocol):
    """What a clock leaves with a layer: it tells the address of each call."""

    def address(self, layer: torch.nn.Module) -> tuple[masks.MaskKey | None, Tensor | None]:
        """Return the key and the rows of this call, or None and None while no step is open."""

    def batch(self) -> int | None:
        """Return how many samples the batch has of which a thinned branch sees some."""

    def first(self, count: int) -> Tensor | None:
        """Return the positions of the first samples of the batch; None for 0, 1, 2, ..."""

    def run(self, branch: Callable[[Tensor], Tensor], x: Tensor, kept: Tensor, n: int) -> Tensor:
        """Run a branch on the kept samples of a batch, which keep their addresses."""


class Site(torch.nn.Module):
    """A place in a model where units sit out in training: the base of every layer here."""

    rate_data: Tensor | None
    _written: list[int]
    _ticker: AddressSource | None = None
    _p_below_one = False
    _seen: tuple[Tensor, int] | None = None  # the tensor that was written, in its state then
    _p_is_number = False  # whether the rate decides shapes, and so cannot be data

    def __init__(
        self,
        p: float = 0.5,
        inplace: bool = False,
        *,
        shared_dims: Sequence[int] = (),
        batch_dim: int = 0,
        generator: torch.Generator | None = None,
    ) -> None:
        torch.nn.Module.__init__(self)
        owner = type(self).__name__
        self.register_buffer("rate_data", None, persistent=False)
        self.p = p
        self.inplace = _checks.flag(inplace, "inplace", owner)
        self.shared_dims = _checks.dims(shared_dims, "shared_dims", owner)
        self.batch_dim = _checks.integer(batch_dim, "batch_dim", owner)
        self.generator = _checks.generator(generator, owner)

    @property
    def p(self) -> float:
        """The drop rate, a fraction in [0, 1]; of a schedulable layer the rate that holds."""
        if self.rate_data is None:
            return self._p
        bits, threshold = self._pair()
        return threshold / 2.0**bits

    @p.setter
    def p(self, value: float) -> None:
        owner, below_one = type(self).__name__, self._p_below_one
        rate = _checks.rate(value, owner, below_one=below_one)
        if self.rate_data is not None:
            self._write(self._as_data(rate))
        self._p = rate

    def schedulable_(self) -> Self:
        """Keep the rate as data from now on, so that setting ``p`` recompiles nothing.

        The rate moves into ``rate_data``, an int64 buffer ``[2]`` that no checkpoint holds. A
        change of ``p`` fills it in place, and compiled code reads it at each call. Such a layer
        draws a ticket at p = 0 and at p = 1 too.

        Returns:
            The layer.

        Raises:
            TypeError: the rate decides shapes, as of a thinned layer.

        Example:
            >>> layer = sitout.nn.Dropout(0.5).schedulable_()
            >>> layer.p = 0.25
            >>> layer.rate_data
            tensor([   16, 16384])
        """
        if self._p_is_number:
            way_out = "Set p; compiled code compiles anew for each rate."
            what = f"The rate of {type(self).__name__}"
            raise TypeError(_checks.message(what, "a number", "data", way_out))
        if self.rate_data is None:
            pair = self._as_data(self._p)
            self.rate_data = torch.empty(2, dtype=torch.int64, device="cpu")
            self._write(pair)
        return self

    def _as_data(self, rate: float) -> tuple[int, int]:
        if self._p_below_one:  # 1 - 2**-40 has 1 as the nearest rate that can be data
            _checks.rate(masks.effective_rate(rate), type(self).__name__, below_one=True)
        return masks._threshold(rate)

    def _write(self, pair: Sequence[int]) -> None:
        self._written = list(pair)
        with torch.no_grad():
            if self.rate_data is None:
                return
            # Not copy_, which would wait for a GPU.
            for place, value in zip(self.rate_data.unbind(), self._written, strict=True):
                place.fill_(value)
            if self.rate_data.is_cuda and not self.rate_data.is_inference():
                self._seen = self.rate_data, self.rate_data._version

    def _pair(self) -> list[int]:
        """Return what ``rate_data`` holds; on the meta device, what it held last."""
        data = self.rate_data
        if data is not None and not data.is_meta and not self._is_as_written(data):
            self._written = data.tolist()
        return self._written

    def _is_as_written(self, data: Tensor) -> bool:
        """Return whether a GPU, which one would wait for, has nothing new to say."""
        seen = self._seen
        return data.is_cuda and seen is not None and seen[0] is data and seen[1] == data._version

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move and cast as every module does; the rate survives ``to_empty`` too."""
        pair = None if self.rate_data is None else self._pair()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.rate_data is not None:
            self.rate_data = self.rate_data.long()  # Module.type() casts ints too
            self._write(self._written if pair is None else pair)
        return self

    def _rate(self) -> float | Tensor:
        data = self._buffers["rate_data"]  # sooner than self.rate_data
        return self._p if data is None else data

    def _address(self) -> tuple[masks.MaskKey | None, Tensor | None]:
        """Return the key and the rows of this call, or None and None in default mode."""
        if self._ticker is None or not self.training:
            return None, None
        return self._ticker.address(self)

    def extra_repr(self) -> str:
        """Return what stands between the parentheses of ``repr``."""
        parts = [f"p={self.p}", f"inplace={self.inplace}"]
        if self.shared_dims:
            parts.append(f"shared_dims={self.shared_dims}")
        if self.batch_dim:
            parts.append(f"batch_dim={self.batch_dim}")
        if self.generator is not None:
            parts.append(f"generator={self.generator.device}")
        return ", ".join(parts)
