"""What a recorder notes of one site, and whom it tells."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from .._rates import is_number

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ._draws import Application
    from ._site import Via


@dataclass(eq=False)
class Place:
    """What was seen of one site in one forward."""

    key: tuple[object, ...]
    name: str
    module: nn.Module
    via: Via
    kind: str
    source: str | None
    asked: list[float] = field(default_factory=list)
    shape: tuple[int, ...] | None = None
    shared_dims: tuple[int, ...] | None = None
    calls: int = 0
    bits: int = 0
    dropped: float = 0.0
    on: bool = False
    modes: list[bool] = field(default_factory=list)
    draws: set[int] = field(default_factory=set)
    masks: list[bytes] = field(default_factory=list)
    wanted: bool = False
    function: str = ""

    @property
    def p(self) -> float | None:
        """The rate that was asked for; the largest if the calls differ."""
        return max(self.asked) if self.asked else None

    def ask(self, p: object) -> None:
        """Take note of a rate."""
        if is_number(p):
            self.asked.append(float(p))  # type: ignore[arg-type]


class Listener:
    """What may follow a forward step by step; does nothing."""

    def enter(self, name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Hear of a module that begins to run."""

    def open(self, place: Place, x: Tensor, inplace: bool) -> None:
        """Hear of a site that begins to drop from ``x``."""

    def op(self, func: Any, args: tuple[Any, ...], out: Any) -> None:
        """Hear of an op that has run."""

    def apply(self, place: Place, made: Application) -> None:
        """Hear of random bits that met a tensor."""


def shared_dims(shape: tuple[int, ...], mask: Tensor) -> tuple[int, ...]:
    """Return the dims of a tensor along which one bit of a mask serves all."""
    missing = len(shape) - mask.dim()
    sizes = (1,) * missing + tuple(mask.shape)
    strides = (0,) * missing + mask.stride()
    return tuple(
        dim for dim, size in enumerate(shape) if size > 1 and (sizes[dim] == 1 or strides[dim] == 0)
    )


def kind_of_mask(x: Tensor, mask: Tensor) -> str:
    """Return ``drop_path`` for one bit per sample or batch, else ``mask``."""
    shared = shared_dims(tuple(x.shape), mask)
    inner = {dim for dim in range(1, x.dim()) if x.shape[dim] > 1}
    return "drop_path" if inner and inner <= set(shared) else "mask"


def compare(place: Place, x: Tensor, out: Tensor) -> None:
    """Note what a layer that drew nothing has dropped all the same: it keeps its mask."""
    if out is x or x.shape != out.shape or x.is_meta or not x.is_floating_point():
        return
    with torch.no_grad():
        zeros = (out == 0) & (x > 0)  # a ReLU makes zeros of the others
        if bool(zeros.any()):
            place.on = True
            place.dropped += int(zeros.sum())
            place.bits += int((x > 0).sum())
