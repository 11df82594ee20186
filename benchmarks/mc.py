"""How much faster a Monte-Carlo prediction is than the plain loop of whole passes.

    python benchmarks/mc.py                    # all cases
    python benchmarks/mc.py --only ViT MLP     # some of them
    python benchmarks/mc.py --save             # writes results/mc.json

The plain loop switches the dropout modules of torch to training and stacks the outputs. In each
round both run once, in turns. The first prediction, which finds the sites and makes the plan, is
told in plain passes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from speed.setting import ROOT, setting
from torch import Tensor, nn

import sitout

sys.path.insert(0, str(ROOT / "tests"))
import zoo

zoo.define_torchvision_ops()
RESULTS = ROOT / "benchmarks" / "results"


@dataclass(frozen=True)
class Case:
    """A network, what it takes, and how it is asked.

    Attributes:
        name: of the case.
        make: returns the network and its input.
        samples: how many.
        options: of ``mc.predict``.
        least: how many times as fast it must be; 0 where only memory counts.
    """

    name: str
    make: Callable[[], tuple[nn.Module, Tensor]]
    samples: int
    options: dict[str, Any]
    least: float


def head() -> tuple[nn.Module, Tensor]:
    """Return a convolutional network with dropout in its head only."""
    layers: list[nn.Module] = []
    for n_in, n_out in ((3, 32), (32, 64), (64, 128)):
        layers += [nn.Conv2d(n_in, n_out, 3, padding=1), nn.BatchNorm2d(n_out), nn.ReLU()]
        layers += [nn.MaxPool2d(2)]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(128, 10)]
    return nn.Sequential(*layers), torch.randn(32, 3, 32, 32)


def resnet() -> tuple[nn.Module, Tensor]:
    """Return torchvision's ResNet-18 with dropout before the classifier."""
    import torchvision

    model = torchvision.models.resnet18(num_classes=10)
    model.fc = nn.Sequential(nn.Dropout(0.5), model.fc)
    return model, torch.randn(8, 3, 64, 64)


def vit() -> tuple[nn.Module, Tensor]:
    """Return a vision transformer with dropout everywhere: there is no part that runs once."""
    import timm

    model = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=64,
        patch_size=8,
        num_classes=10,
        drop_rate=0.1,
        pos_drop_rate=0.1,
        proj_drop_rate=0.1,
        attn_drop_rate=0.1,
        drop_path_rate=0.1,
    )
    return model, torch.randn(8, 3, 64, 64)


def perceptron() -> tuple[nn.Module, Tensor]:
    """Return three hidden layers of 1,024 units with dropout of a half."""
    layers: list[nn.Module] = []
    for n_in in (784, 1024, 1024):
        layers += [nn.Linear(n_in, 1024), nn.ReLU(), nn.Dropout(0.5)]
    return nn.Sequential(*layers, nn.Linear(1024, 10)), torch.randn(256, 784)


def segmentation() -> tuple[nn.Module, Tensor]:
    """Return a network of large outputs, 21 x 512 x 512, with dropout before the last layer."""
    body = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Dropout2d(0.3), nn.Conv2d(8, 21, 1)]
    return nn.Sequential(*body), torch.randn(1, 3, 512, 512)


FEW = {"statistics": ("mean", "entropy", "mutual_information")}
CASES = [
    Case("conv net, dropout in the head", head, 50, {"outputs": "logits"}, 15.0),
    Case("ResNet-18, dropout before the classifier", resnet, 50, {"outputs": "logits"}, 25.0),
    Case("ViT, dropout everywhere", vit, 50, {"outputs": "logits"}, 1.3),
    Case("MLP 3 x 1024, shared masks", perceptron, 100, {"masks": "shared"}, 2.5),
    Case("segmentation, 21 x 512 x 512", segmentation, 50, {"outputs": "logits", **FEW}, 0.0),
]


def loop(model: nn.Module, x: Tensor, samples: int) -> Tensor:
    """Return the outputs of whole passes, as one would write it by hand."""
    model.eval()
    for module in model.modules():
        if "drop" in type(module).__name__.lower():
            module.train()
    with torch.no_grad():
        return torch.stack([model(x) for _ in range(samples)])


def timed(case: Case, rounds: int) -> dict[str, Any]:
    """Return the times of a case, and how often it is as fast as the loop."""
    torch.manual_seed(0)
    model, x = case.make()
    model.eval()
    with torch.no_grad():
        model(x)
        begin = time.perf_counter()
        for _ in range(3):
            model(x)
        one_pass = (time.perf_counter() - begin) / 3
    begin = time.perf_counter()
    made = sitout.mc.predict(model, x, samples=case.samples, **case.options)
    first = time.perf_counter() - begin
    ours, theirs = [], []
    for _ in range(rounds):
        begin = time.perf_counter()
        loop(model, x, case.samples)
        middle = time.perf_counter()
        sitout.mc.predict(model, x, samples=case.samples, **case.options)
        ours.append(time.perf_counter() - middle)
        theirs.append(middle - begin)
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    usual = statistics.median(ours)
    return {
        "case": case.name,
        "samples": case.samples,
        "loop_seconds": statistics.median(theirs),
        "seconds": usual,
        "ratio": [statistics.median(ratios), min(ratios), max(ratios)],
        "least": case.least,
        "plan_in_passes": max(first - usual, 0.0) / one_pass,
        "told": made.explain(),
    }


def main() -> int:
    """Run the cases."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=[], metavar="WORD")
    parser.add_argument("--save", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    rows = []
    for case in CASES:
        if asked.only and not any(word in case.name for word in asked.only):
            continue
        rows.append({**timed(case, asked.rounds), **setting()})
        shown = {key: rows[-1][key] for key in ("case", "loop_seconds", "seconds", "ratio")}
        print(shown, f"plan: {rows[-1]['plan_in_passes']:.1f} passes", rows[-1]["told"], flush=True)
    if asked.save:
        (RESULTS / "mc.json").write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
