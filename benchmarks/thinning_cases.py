"""The networks of `thinning.py`: ours beside others that start from the same weights."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from speed.kinds import BOTH, Case, Row
from speed.measure import Contender, interleave, threads
from speed.saved import kept
from speed.setting import ROOT
from torch import Tensor, nn
from torch.nn import functional as F

import sitout

sys.path.insert(0, str(ROOT / "tests"))
import zoo  # what torchvision's import asks for, before timm imports it

OURS, GROUPS, FORM = "sitout", "sitout, 4 groups", "the masked form"
TORCH, FLAT, PLAIN = "torch.nn.Dropout", "sitout.nn.Dropout", "without dropout"
TORCH_2D, TIMM = "torch.nn.Dropout2d", "timm"
STEP = "forward + backward + SGD"
CLASSES, PARTS = 10, 3
# The norm of a difference, in norms of what is wanted. In float32 a ReLU whose input is 0 but for
# rounding may let a gradient pass in one form and not in the other.
CLOSE = {torch.float64: 1e-9, torch.float32: 1e-2}

Make = Callable[[], nn.Module]
MakeForm = Callable[[str], nn.Module]


class Sizes(NamedTuple):
    """How large the networks are and what goes in; the names of the cases tell the full ones."""

    hidden: int = 2048
    batches: tuple[int, int] = (512, 128)
    vit: tuple[int, int, int] = (32, 65, 384)
    heads: int = 6
    depth: int = 12
    images: tuple[int, int, int, int] = (16, 256, 16, 16)
    threads: int = 2


QUICK = Sizes(64, (32, 16), (8, 5, 32), 2, 2, (4, 16, 6, 6), 1)


def registry(sizes: Sizes) -> dict[str, Case]:
    """Return all cases by their names; those of timm only where it is installed."""
    cases: list[Case] = [*perceptrons(sizes)]
    cases += transformers(sizes) if zoo.has("timm") else []
    cases += [convolutions(sizes), *held(sizes)]
    return {case.name: case for case in cases}


@dataclass(frozen=True, kw_only=True)
class Net(Case):
    """A training step of networks of ours, each beside all others.

    Attributes:
        ours: what makes a network with thinned layers from their form, by names.
        others: what makes the networks beside it.
        classes: of the labels; without any the output is given a gradient, and the input gets one.
        learns: whether SGD with momentum takes a step.
    """

    ours: dict[str, MakeForm]
    others: dict[str, Make]
    classes: int = 0
    learns: bool = False

    def check(self) -> str:
        """Compare the thinned form with the masked: output or loss, and all gradients."""
        told = []
        with threads(self.threads):
            for name, make in self.ours.items():
                for dtype, close in CLOSE.items():
                    forms = [self._results(make(form), dtype) for form in ("thinned", "masked")]
                    wrong = difference(*forms, close)
                    told += [f"{name}, {dtype}: {wrong}"] if wrong else []
        return "; ".join(told)

    def measure(self, rounds: int) -> list[Row]:
        """Return a row for each network of ours beside each of the others.

        The networks are made anew after a third of the rounds, and in another order: where their
        tensors lie in memory makes equal networks differ by some percent.
        """
        makes: dict[str, Make] = {name: partial(make, "auto") for name, make in self.ours.items()}
        makes |= self.others
        found: dict[str, list[float]] = {name: [] for name in makes}
        for part in range(PARTS):
            names = random.Random(part).sample(list(makes), len(makes))
            contenders = [Contender(name, self._call(makes[name]), self.threads) for name in names]
            for name, seconds in interleave(contenders, -(-rounds // PARTS)).items():
                found[name] += seconds
        return [self.times(name, other, found) for name in self.ours for other in self.others]

    def _results(self, network: nn.Module, dtype: torch.dtype) -> list[Tensor]:
        torch.manual_seed(1)
        return self._forward_and_backward(network.to(dtype), *self._batch(dtype))

    def _batch(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """Return the input, and the labels or the gradient of the output."""
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(self.shape, generator=generator, dtype=dtype)
        if self.classes:
            return x, torch.randint(self.classes, self.shape[:1], generator=generator)
        return x.requires_grad_(), torch.randn(self.shape, generator=generator, dtype=dtype)

    def _forward_and_backward(self, network: nn.Module, x: Tensor, given: Tensor) -> list[Tensor]:
        y = network(x)
        if self.classes:
            loss = F.cross_entropy(y, given)
            return [loss, *torch.autograd.grad(loss, [*network.parameters()])]
        return [y, *torch.autograd.grad(y, [x, *network.parameters()], given)]

    def _call(self, make: Make) -> Callable[[], Any]:
        torch.manual_seed(0)
        network, batch = make(), self._batch()
        if not self.learns:
            return lambda: self._forward_and_backward(network, *batch)
        optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, fused=True)

        def step() -> None:
            optimizer.zero_grad()
            F.cross_entropy(network(batch[0]), batch[1]).backward()
            optimizer.step()

        return step


def difference(made: list[Tensor], wanted: list[Tensor], close: float) -> str:
    """Return the first tensor that is not near what is wanted, or nothing.

    Args:
        made: the results of the thinned form.
        wanted: those of the masked one.
        close: the norm of a difference that is still near, in norms of what is wanted.
    """
    for number, (ours, theirs) in enumerate(zip(made, wanted, strict=True)):
        far = (ours - theirs).norm().item()
        if not far <= close * theirs.norm().item():
            return f"result {number} is not the masked form's: {far:.3g} away"
    return ""


def perceptrons(sizes: Sizes) -> Iterator[Case]:
    """Yield the multilayer perceptron by batch and rate."""
    for name, batch, learns in (
        ("mlp-512", sizes.batches[0], False),
        ("mlp-128-step", sizes.batches[1], True),
    ):
        for p in (0.5, 0.2, 0.05):
            yield perceptron(f"{name}-{p}", sizes, batch, p, learns)


def perceptron(name: str, sizes: Sizes, batch: int, p: float, learns: bool) -> Net:
    """Return a case of 784-hidden-hidden-hidden-10; at p = 0.05 the question is another one."""
    few, hidden = p < 0.1, sizes.hidden
    ours = {OURS: partial(thinned_mlp, hidden, p)}
    others: dict[str, Make] = {
        TORCH: partial(mlp, hidden, partial(nn.Dropout, p)),
        FLAT: partial(mlp, hidden, partial(sitout.nn.Dropout, p)),
        PLAIN: partial(mlp, hidden, None),
    }
    if few:
        others[FORM] = partial(thinned_mlp, hidden, p, "masked")
    else:
        ours[GROUPS] = partial(thinned_mlp, hidden, p, groups=4)
    return Net(
        name=name,
        op="thinned_linear",
        shape=(batch, 784),
        passes=STEP if learns else BOTH,
        threads=sizes.threads,
        ours=ours,
        others=others,
        classes=CLASSES,
        learns=learns,
    )


def thinned_mlp(hidden: int, p: float, form: str, groups: int = 1) -> nn.Module:
    """Return the network of thinned layers."""
    torch.manual_seed(0)
    return sitout.nn.ThinnedMLP(784, [hidden] * 3, CLASSES, p, form=form, groups=groups)


def mlp(hidden: int, dropout: Make | None) -> nn.Module:
    """Return the same network with another dropout layer, or without any."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise([784, *[hidden] * 3]):
        layers += [nn.Linear(n_in, n_out), nn.ReLU(), *([dropout()] if dropout else [])]
    return nn.Sequential(*layers, nn.Linear(hidden, CLASSES))


def transformers(sizes: Sizes) -> Iterator[Case]:
    """Yield blocks of a vision transformer, with drop path alone, and with feed-forward dropout."""
    for path, units in ((0.4, 0.0), (0.4, 0.5), (0.05, 0.0)):
        make = partial(blocks, sizes, path, units)
        others: dict[str, Make] = {TIMM: make, PLAIN: partial(blocks, sizes, 0.0, 0.0)}
        if path < 0.1:
            others[FORM] = partial(thinned, make, "masked")
        yield Net(
            name=f"vit-path-{path}" + (f"-units-{units}" if units else ""),
            op="drop_residual",
            shape=sizes.vit,
            passes=BOTH,
            threads=sizes.threads,
            ours={OURS: partial(thinned, make)},
            others=others,
        )


def blocks(sizes: Sizes, path: float, units: float) -> nn.Module:
    """Return timm's blocks of a ViT-S.

    Args:
        sizes: of the network.
        path: drop rate of both branches of each block.
        units: drop rate of the hidden units of the feed-forward part.
    """
    from timm.models.vision_transformer import Block

    torch.manual_seed(0)
    some = [
        Block(sizes.vit[2], sizes.heads, mlp_ratio=4.0, qkv_bias=True, drop_path=path)
        for _ in range(sizes.depth)
    ]
    for block in some:
        block.mlp.drop1.p = units
    return nn.Sequential(*some)


def thinned(make: Make, form: str) -> nn.Module:
    """Return a network in which `sitout.thin` has replaced dropout."""
    return sitout.thin(make(), form=form).model


def convolutions(sizes: Sizes) -> Net:
    """Return a wide convolutional network with whole channels dropped between its layers."""
    channels = sizes.images[1]
    make = partial(convolutional, channels, partial(nn.Dropout2d, 0.5))
    return Net(
        name="cnn-0.5",
        op="thinned_conv",
        shape=sizes.images,
        passes=BOTH,
        threads=sizes.threads,
        ours={OURS: partial(thinned, make)},
        others={
            TORCH_2D: make,
            "sitout.nn.Dropout2d": partial(
                convolutional, channels, partial(sitout.nn.Dropout2d, 0.5)
            ),
            PLAIN: partial(convolutional, channels, None),
        },
    )


def convolutional(channels: int, dropout: Make | None) -> nn.Module:
    """Return four 3x3 convolutions with ReLU and dropout between them."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(3):
        layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU()]
        layers += [dropout()] if dropout else []
    return nn.Sequential(*layers, nn.Conv2d(channels, channels, 3, padding=1))


@dataclass(frozen=True, kw_only=True)
class Held(Case):
    """What the hidden layers hold for backward, beside the network without dropout.

    Attributes:
        hidden: units of a layer.
        p: drop rate.
    """

    hidden: int
    p: float

    def check(self) -> str:
        """Nothing is timed: the values have been compared where it is."""
        return ""

    def measure(self, rounds: int) -> list[Row]:
        """Return one row; there are no rounds."""
        ours = self._bytes(thinned_mlp(self.hidden, self.p, "auto"))
        theirs = self._bytes(mlp(self.hidden, None))
        share, wanted = ours / theirs, 1.0 - self.p
        found = {"contender_bytes": ours, "baseline_bytes": theirs, "p": self.p}
        off = 100.0 * abs(share / wanted - 1.0)
        return [self.row(OURS, PLAIN, **found, held=share, off_percent=off)]

    def _bytes(self, network: nn.Module) -> int:
        """Count what is neither input, output nor parameter."""
        x = torch.randn(self.shape)
        y = network(x)
        inputs = [x, *network.parameters()]
        return round(kept(lambda *_: network(x), inputs)["bytes_per_element"] * y.numel())


def held(sizes: Sizes) -> Iterator[Case]:
    """Yield what is held for backward, by rate."""
    for p in (0.3, 0.5, 0.8):
        yield Held(
            name=f"held-{p}",
            op="thinned_linear",
            shape=(sizes.batches[0], 784),
            passes=BOTH,
            threads=sizes.threads,
            hidden=sizes.hidden,
            p=p,
        )
