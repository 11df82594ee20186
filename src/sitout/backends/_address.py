"""The address of a mask over a tensor, as it travels through autograd and torch's op registry."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..masks import MaskKey

if TYPE_CHECKING:
    from collections.abc import Sequence

_LO32 = 0xFFFFFFFF
_CPU = torch.device("cpu")


class Address(NamedTuple):
    """Everything that decides a mask but the rate and the shape.

    Args:
        key: seed, site, step and call; or a ticket: an int stands for ``MaskKey(seed=ticket)``.
        shared_dims: dims along which one mask bit serves all.
        batch_dim: the dim whose index is the row.
        rows: int64 global positions, or None for 0, 1, 2, ...
        block: a shard's (start, full size) per non-batch dim, or None.

    Example:
        >>> Address(MaskKey(seed=1)).batch_dim
        0
    """

    key: MaskKey | int
    shared_dims: tuple[int, ...] = ()
    batch_dim: int = 0
    rows: Tensor | None = None
    block: tuple[tuple[int, int], ...] | None = None

    @property
    def mask_key(self) -> MaskKey:
        """The key, a ticket too."""
        return MaskKey(seed=self.key) if isinstance(self.key, int) else self.key

    def tensors(self) -> list[Tensor]:
        """Return the tensors that the address holds."""
        if type(self.key) is int and self.rows is None:
            return []
        key = self.mask_key
        fields = (key.seed, key.site, key.step, key.call, self.rows)
        return [field for field in fields if isinstance(field, Tensor)]

    def with_tensors(self, tensors: Sequence[Tensor]) -> Address:
        """Return the same address with other tensors in the places of its own."""
        if not tensors:
            return self
        held = iter(tensors)
        key, rows = self.mask_key, self.rows
        fields = (key.seed, key.site, key.step, key.call, rows)
        *own, last = [next(held) if isinstance(field, Tensor) else field for field in fields]
        return self._replace(key=MaskKey(*own), rows=last)  # type: ignore[arg-type]

    def pack(self, device: torch.device | None = None) -> Packed:
        """Return the address in the types that a registered op may take.

        Args:
            device: of the tensor that is masked. Where it is a GPU, ints become numbers there: one
                on the CPU would keep a compiled graph from being a CUDA graph.
        """
        where = device if device is not None and device.type == "cuda" else _CPU
        mask_key = self.mask_key
        seed, site, step, call = mask_key.seed, mask_key.site, mask_key.step, mask_key.call
        # The mask function takes seed XOR call << 32, so two numbers hold the four fields.
        key = seed if _is_zero(call) else seed ^ (call << 32)
        counter = step & _LO32 if _is_zero(site) else step & _LO32 | (site & 0xFFFFFFF) << 32
        block = None if self.block is None else [size for pair in self.block for size in pair]
        return Packed(
            _tensor(key, where),
            None if _is_zero(counter) else _tensor(counter, where),
            self.rows,
            block,
            list(self.shared_dims),
            self.batch_dim,
        )


class Packed(NamedTuple):
    """An :class:`Address` as arguments of a registered op.

    Args:
        key: int64 with no dims: seed XOR call << 32.
        counter: int64 with no dims or ``[B]``: site << 32 | step; None for 0.
        rows: as in the address.
        block: start, full size, start, full size, ...
        shared_dims: as in the address.
        batch_dim: as in the address.
    """

    key: Tensor
    counter: Tensor | None
    rows: Tensor | None
    block: Sequence[int] | None
    shared_dims: Sequence[int]
    batch_dim: int

    def unpack(self) -> Address:
        """Return the address."""
        key = MaskKey(seed=self.key)
        if self.counter is not None:
            site = self.counter.reshape(-1)[0] >> 32
            key = MaskKey(seed=self.key, site=site, step=self.counter & _LO32)
        block = self.block
        pairs = None if block is None else tuple(zip(block[::2], block[1::2], strict=True))
        return Address(key, tuple(self.shared_dims), self.batch_dim, self.rows, pairs)


def _is_zero(value: int | Tensor) -> bool:
    return not isinstance(value, Tensor) and value == 0


def _tensor(value: int | Tensor, device: torch.device) -> Tensor:
    if isinstance(value, Tensor):
        return value
    signed = value if value < 1 << 63 else value - (1 << 64)
    return torch.full((), signed, dtype=torch.int64, device=device)
