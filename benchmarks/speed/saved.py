"""What is kept for backward: counted, not timed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .kinds import NotRunError, Row, Timed


@dataclass(frozen=True, kw_only=True)
class Saved(Timed):
    """The bytes that a call keeps for backward, beyond its inputs and its output."""

    def measure(self, rounds: int) -> list[Row]:
        """Return a row for each baseline; there are no rounds."""
        inputs, _ = self.tensors()
        ours, rows = kept(self.ours, inputs), []
        for name, call in self.baselines.items():
            try:
                found = {"baseline_keeps": kept(call, inputs)}
            except NotRunError as why:
                found = {"not_run": str(why)}
            rows.append(self.row("sitout", name, contender_keeps=ours, **found))
        return rows


def kept(call: Callable[..., Tensor], inputs: Sequence[Tensor]) -> dict[str, Any]:
    """Return what a call keeps that is neither input nor output.

    Args:
        call: a function of the inputs.
        inputs: some of them require a gradient.

    Returns:
        The bytes per element of the output, the bytes of addresses (int64 without dims), which do
        not grow with the tensor, and a name for each tensor.
    """
    packed: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        packed.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = call(*inputs)
    alive = {_place(tensor) for tensor in (*inputs, y)}
    tensors = {_place(tensor): tensor for tensor in (*packed, *_on_nodes(y.grad_fn))}
    new = [tensor for place, tensor in tensors.items() if place not in alive]
    sizes = [(_is_address(tensor), tensor.untyped_storage().nbytes()) for tensor in new]
    return {
        "bytes_per_element": sum(size for address, size in sizes if not address) / y.numel(),
        "address_bytes": sum(size for address, size in sizes if address),
        "tensors": [f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}" for t in new],
    }


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _is_address(tensor: Tensor) -> bool:
    return tensor.dtype == torch.int64 and tensor.dim() == 0


def _on_nodes(node: Any) -> Iterator[Tensor]:
    """Yield the tensors that hang on the nodes of a graph, where no hook sees them."""
    if node is None:
        return
    yield from _tensors_in(getattr(node, "__dict__", {}))
    for following, _ in node.next_functions:
        yield from _on_nodes(following)


def _tensors_in(held: Any) -> Iterator[Tensor]:
    if isinstance(held, Tensor):
        yield held
    elif isinstance(held, dict):
        yield from _tensors_in(tuple(held.values()))
    elif isinstance(held, (list, tuple)):
        for each in held:
            yield from _tensors_in(each)
    elif hasattr(held, "__dataclass_fields__"):
        yield from _tensors_in([getattr(held, name) for name in held.__dataclass_fields__])
