"""How much faster a Monte-Carlo prediction is than the plain loop of whole passes.

    python benchmarks/mc.py                    # all cases
    python benchmarks/mc.py --only ViT MLP     # some of them
    python benchmarks/mc.py --save             # writes results/mc.json

The plain loop switches the dropout modules of torch to training and stacks the outputs. In each
round both run once, in turns. What the first prediction takes longer than the next, since it finds
the sites and makes the plan, is told in plain passes: the median of three new models. Memory is the
most bytes of tensors that a call has at one time.
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
from speed.peak import peak
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
    """Return a network of large outputs, 21 x 512 x 512, with the head of an FCN (Long 2015)."""
    body = [nn.Conv2d(3, 32, 7, stride=4, padding=3), nn.ReLU()]
    body += [nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU()]
    head = [nn.Conv2d(64, 32, 3, padding=1), nn.ReLU(), nn.Dropout(0.1), nn.Conv2d(32, 21, 1)]
    whole = nn.Upsample(scale_factor=8, mode="bilinear")
    return nn.Sequential(*body, *head, whole), torch.randn(1, 3, 512, 512)


def pixelwise() -> tuple[nn.Module, Tensor]:
    """Return a network whose last convolution makes the outputs, 21 x 512 x 512, itself."""
    body = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Dropout2d(0.3), nn.Conv2d(8, 21, 1)]
    return nn.Sequential(*body), torch.randn(1, 3, 512, 512)


FEW = {"statistics": ("mean", "entropy", "mutual_information")}
CASES = [
    Case("conv net, dropout in the head", head, 50, {"outputs": "logits"}, 15.0),
    Case("ResNet-18, dropout before the classifier", resnet, 50, {"outputs": "logits"}, 25.0),
    Case("ViT, dropout everywhere", vit, 50, {"outputs": "logits"}, 1.3),
    Case("MLP 3 x 1024, shared masks", perceptron, 100, {"masks": "shared"}, 2.5),
    Case("segmentation, 21 x 512 x 512", segmentation, 50, {"outputs": "logits", **FEW}, 0.0),
    Case("the same, with std", segmentation, 50, {"outputs": "logits"}, 0.0),
    Case("convolution at 21 x 512 x 512", pixelwise, 50, {"outputs": "logits", **FEW}, 0.0),
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
    """Return the times of a case, how often it is as fast as the loop, and its memory."""
    torch.manual_seed(0)
    model, x = case.make()
    model.eval()
    made = sitout.mc.predict(model, x, samples=case.samples, **case.options)
    ours, theirs = [], []
    for _ in range(rounds):
        begin = time.perf_counter()
        loop(model, x, case.samples)
        middle = time.perf_counter()
        sitout.mc.predict(model, x, samples=case.samples, **case.options)
        ours.append(time.perf_counter() - middle)
        theirs.append(middle - begin)
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    return {
        "case": case.name,
        "samples": case.samples,
        "loop_seconds": statistics.median(theirs),
        "seconds": statistics.median(ours),
        "ratio": [statistics.median(ratios), min(ratios), max(ratios)],
        "least": case.least,
        "plan_in_passes": statistics.median(planned(case) for _ in range(3)),
        **memory(case, model, x),
        "told": made.explain(),
    }


def planned(case: Case) -> float:
    """Return how many plain passes the first prediction of a new model takes on top."""
    model, x = case.make()
    model.eval()
    with torch.no_grad():
        model(x)
        one_pass = statistics.median(_seconds(lambda: model(x)) for _ in range(5))
    first, *others = (
        _seconds(lambda: sitout.mc.predict(model, x, samples=2, **case.options)) for _ in range(4)
    )
    return max(first - statistics.median(others), 0.0) / one_pass


def _seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def memory(case: Case, model: nn.Module, x: Tensor) -> dict[str, int]:
    """Return the peak bytes of a prediction, of the loop, of one pass, and those of an output."""
    model.eval()
    with torch.no_grad():
        out = model(x)
        one_pass = peak(lambda: model(x))
    return {
        "peak": peak(lambda: sitout.mc.predict(model, x, samples=case.samples, **case.options)),
        "loop_peak": peak(lambda: loop(model, x, case.samples)),
        "pass_peak": one_pass,
        "output": out.nbytes,
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
        row = rows[-1]
        shown = {key: row[key] for key in ("case", "loop_seconds", "seconds", "ratio")}
        held = f"peak: {row['peak'] / row['output']:.2f} outputs, {row['peak'] / 2**20:.1f} MiB"
        print(shown, f"plan: {row['plan_in_passes']:.1f} passes;", held, row["told"], flush=True)
    if asked.save:
        (RESULTS / "mc.json").write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
