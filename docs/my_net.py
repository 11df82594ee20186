"""A network of your own for `sitout study`: a small residual network for tables."""

import torch
from torch import Tensor, nn

from sitout.nn import Dropout, DropPath


class Block(nn.Module):
    """A residual block: its branch sits out for some samples, its units for some steps."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 2 * width),
            nn.ReLU(),
            Dropout(0.2),
            nn.Linear(2 * width, width),
        )
        self.drop_path = DropPath(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.branch(x))


def residual(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Return a network from `[B, *input_shape]` to `[B, outputs]`."""
    features = torch.Size(input_shape).numel()
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(features, 64),
        Block(64),
        Block(64),
        nn.LayerNorm(64),
        nn.Linear(64, outputs),
    )
