"""What others offer for the same work, where it is more than one call of torch."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .kinds import NotRunError

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
}


class Compiled:
    """A function that Inductor compiles at its first call, for one shape.

    Args:
        function: of one tensor.
    """

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function = function
        self.compiled: Any = None

    def __call__(self, x: Tensor) -> Tensor:
        if self.compiled is not None:
            return self.compiled(x)
        torch._dynamo.config.recompile_limit = 64  # one for each shape; by default it is 8
        torch._inductor.config.compile_threads = 1  # no process stays behind to disturb the clock
        self.compiled = torch.compile(self.function, dynamic=False, fullgraph=True)
        try:
            return self.compiled(x)
        except Exception as error:
            raise NotRunError(f"torch.compile: {str(error).splitlines()[0]}") from error


@cache
def timm_layer(p: float) -> torch.nn.Module:
    """Return timm's ``DropPath``.

    Raises:
        NotRunError: timm is not installed.
    """
    if importlib.util.find_spec("timm") is None:
        raise NotRunError("timm is not installed")
    try:
        import timm.layers
    except RuntimeError:
        # torchvision's own ops are built for CUDA's torch; timm only needs their names.
        library = torch.library.Library("torchvision", "DEF")
        for op in ("nms", "qnms"):
            library.define(f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        timm_layer.library = library  # type: ignore[attr-defined]
        import timm.layers
    return timm.layers.DropPath(p)


def timm_drop_path(x: Tensor) -> Tensor:
    """Drop paths as timm does."""
    return timm_layer(0.2)(x)


def alpha(x: Tensor) -> Tensor:
    """Apply torch's alpha dropout, which is off by default."""
    return F.alpha_dropout(x, 0.5, training=True)


def gaussian(x: Tensor) -> Tensor:
    """Multiply by noise of mean 1, as the paper has it; at p = 0.5 sigma is 1."""
    return x * (1.0 + torch.randn_like(x))


def shared(x: Tensor) -> Tensor:
    """Drop with one mask for all time steps of ``[B, T, C]``."""
    return x * F.dropout(x.new_ones(x.shape[0], 1, x.shape[2]))
