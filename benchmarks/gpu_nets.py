"""The networks of `gpu.py`, and a training step of them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sitout

STEP = "forward + backward + SGD"


def step(
    device: str,
    dtype: torch.dtype,
    network: nn.Module,
    shape: tuple[int, ...],
    *,
    learns: bool = False,
) -> Callable[[], Any]:
    """Return a forward and a backward of a network, and a step of SGD if it learns."""
    network = network.to(device, dtype)
    x = torch.randn(shape, device=device, dtype=dtype)
    parameters = list(network.parameters())
    if not learns:
        x.requires_grad_()
        return lambda: torch.autograd.grad(network(x).float().sum(), [x, *parameters])
    labels = torch.zeros(shape[:1], dtype=torch.int64, device=device)
    optimizer = torch.optim.SGD(parameters, lr=1e-3, momentum=0.9, fused=True)

    def run() -> None:
        optimizer.zero_grad()
        F.cross_entropy(network(x).float(), labels).backward()
        optimizer.step()

    return run


def differs(device: str) -> str:
    """Return whether a small thinned network differs from its masked form."""
    made = []
    for form in ("thinned", "masked"):
        torch.manual_seed(0)
        net = sitout.nn.ThinnedMLP(17, [40, 40], 5, 0.5, form=form, groups=2).to(device).double()
        x = torch.randn(13, 17, device=device, dtype=torch.float64)
        clock = sitout.MaskClock(net, seed=1)
        with clock.at(0):
            y = net(x)
        made.append([y, *torch.autograd.grad(y.square().sum(), [*net.parameters()])])
    near = all(torch.allclose(a, b, atol=1e-9) for a, b in zip(*made, strict=True))
    return "" if near else "the thinned form is not the masked one"


def mlp(
    n_in: int, hidden: list[int], n_out: int, dropout: Callable[[], nn.Module] | None
) -> nn.Module:
    """Return a multilayer perceptron with a dropout layer after each activation, or without."""
    layers: list[nn.Module] = []
    for before, behind in pairwise([n_in, *hidden]):
        layers += [nn.Linear(before, behind), nn.ReLU(), *([dropout()] if dropout else [])]
    return nn.Sequential(*layers, nn.Linear(hidden[-1], n_out))


def feed_forward(narrow: int, wide: int, p: float, *, thinned: bool) -> nn.Module:
    """Return the feed-forward part of a transformer's block."""
    if thinned:
        return sitout.nn.ThinnedMLP(narrow, [wide], narrow, p, activation=nn.GELU, form="thinned")
    return nn.Sequential(nn.Linear(narrow, wide), nn.GELU(), nn.Dropout(p), nn.Linear(wide, narrow))


class Attention(nn.Module):
    """Attention of a tensor to itself."""

    def __init__(self, width: int, heads: int, p: float = 0.0, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.p, self.causal = heads, p, causal
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Attend."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        p = self.p if self.training else 0.0
        made = F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=self.causal)
        return self.out(made.transpose(1, 2).flatten(2))


class TorchPath(nn.Module):
    """Drop path as it is usually written in torch: x times a mask over the samples."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Drop samples."""
        keep = x.new_empty(len(x), 1, 1).bernoulli_(1.0 - self.p).div_(1.0 - self.p)
        return x * keep


class Block(nn.Module):
    """A block of a vision transformer, whose branches lose samples in one of three ways."""

    def __init__(self, width: int, heads: int, p: float, way: str) -> None:
        super().__init__()
        attention = nn.Sequential(nn.LayerNorm(width), Attention(width, heads))
        hidden = [nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)]
        branches = [attention, nn.Sequential(nn.LayerNorm(width), *hidden)]
        if way == "thinned":
            branches = [sitout.nn.DropResidual(one, p, form="thinned") for one in branches]
        self.branches = nn.ModuleList(branches)
        make = sitout.nn.DropPath if way == "masked" else TorchPath
        self.paths = None if way == "thinned" else nn.ModuleList(make(p) for _ in branches)

    def forward(self, x: Tensor) -> Tensor:
        """Run both branches."""
        if self.paths is None:
            for block in self.branches:
                x = block(x)
            return x
        for branch, path in zip(self.branches, self.paths, strict=True):
            x = x + path(branch(x))
        return x


def blocks(width: int, heads: int, count: int, p: float, way: str) -> nn.Module:
    """Return blocks of a vision transformer; ``way`` is "thinned", "masked" or "torch"."""
    return nn.Sequential(*(Block(width, heads, p, way) for _ in range(count)))


class GptBlock(nn.Module):
    """A block of GPT-2."""

    def __init__(self, width: int, heads: int, p: float) -> None:
        super().__init__()
        attention = Attention(width, heads, p, causal=True)
        self.first = nn.Sequential(nn.LayerNorm(width), attention, nn.Dropout(p))
        hidden = [nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)]
        self.second = nn.Sequential(nn.LayerNorm(width), *hidden, nn.Dropout(p))

    def forward(self, x: Tensor) -> Tensor:
        """Run both branches."""
        x = x + self.first(x)
        return x + self.second(x)


class Gpt(nn.Module):
    """A small GPT-2 that returns its loss on the words that it is given."""

    def __init__(self, words: int, places: int, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(places, width)
        self.drop = nn.Dropout(0.1)
        self.blocks = nn.Sequential(*(GptBlock(width, heads, 0.1) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)

    def forward(self, words: Tensor) -> Tensor:
        """Return the loss."""
        x = self.drop(self.words(words) + self.places.weight)
        x = self.norm(self.blocks(x))
        return F.cross_entropy((x @ self.words.weight.t()).flatten(0, 1), words.flatten())


def gpt(words: int, places: int, width: int, heads: int, layers: int, ours: bool) -> nn.Module:
    """Return a GPT-2, with layers of sitout or of torch."""
    network = Gpt(words, places, width, heads, layers)
    return sitout.replace(network).model if ours else network
