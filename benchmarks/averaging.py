"""Test error of a mean over dropped-out networks, against how many there are, on MNIST.

    make averaging                          # trains, predicts, writes the rows and the picture
    python benchmarks/averaging.py plot     # the picture of the rows that are there

This is the experiment of Srivastava et al. 2014, JMLR 15, section 7.5 and figure 11: one network is
trained with dropout; k networks are drawn from it at test time and their class probabilities
averaged. Weight scaling, the network without dropout, stands beside. As theirs, k draws are taken
with replacement from a store of them, a hundred times for each k.

Differs: 784-1024-1024-2048-10 as in their code, but Adam for a few epochs instead of a million
steps of SGD with max-norm, and a store of 400 draws instead of 1,000.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from speed.plot import svg
from speed.setting import setting
from torch import Tensor, nn
from torch.nn import functional as F

import sitout
from sitout.data import load

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "averaging.json"
PICTURE = ROOT / "docs" / "images" / "averaging.svg"
STORE, REPEATS = 400, 100
COUNTS = (1, 2, 3, 5, 7, 10, 15, 20, 30, 40, 50, 60, 80, 100, 120, 150, 200)
EPOCHS, BATCH, RATE = 15, 256, 1e-3


def trained(x: Tensor, y: Tensor) -> nn.Module:
    """Return the network, trained on all rows."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [sitout.nn.Dropout(0.2)]
    for n_in, n_out in ((784, 1024), (1024, 1024), (1024, 2048)):
        layers += [nn.Linear(n_in, n_out), nn.ReLU(), sitout.nn.Dropout(0.5)]
    net = nn.Sequential(*layers, nn.Linear(2048, 10))
    optimizer = torch.optim.Adam(net.parameters(), RATE, fused=True)
    steps = EPOCHS * (len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 - step / steps)
    for epoch in range(EPOCHS):
        for index in torch.randperm(len(x)).split(BATCH)[: len(x) // BATCH]:
            optimizer.zero_grad()
            loss = F.cross_entropy(net(x[index]), y[index])
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1} of {EPOCHS}: loss {loss.item():.3f}", flush=True)
    return net.eval()


def errors(probabilities: Tensor, y: Tensor) -> list[dict[str, float]]:
    """Return the error in percent for each count: its mean and standard deviation.

    Args:
        probabilities: of the store, ``[T, B, K]``.
        y: the classes, ``[B]``.
    """
    generator, rows = torch.Generator().manual_seed(0), []
    for count in COUNTS:
        drawn = torch.randint(len(probabilities), (REPEATS, count), generator=generator)
        found = torch.stack([_error(probabilities[one].mean(0), y) for one in drawn])
        rows.append({"samples": count, "mean": found.mean().item(), "std": found.std().item()})
        print(rows[-1], flush=True)
    return rows


def _error(scores: Tensor, y: Tensor) -> Tensor:
    return 100.0 * (scores.argmax(1) != y).double().mean()


def measured() -> dict[str, Any]:
    """Train, draw the store, and return the row."""
    data = load("mnist")
    x = torch.as_tensor(data.features).float().flatten(1) / 255.0
    y = torch.as_tensor(data.target).long()
    net = trained(x[:60_000], y[:60_000])
    x, y = x[60_000:], y[60_000:]
    with torch.no_grad():
        scaled = _error(net(x), y).item()
    print(f"weight scaling: {scaled:.2f} %", flush=True)
    batches = torch.utils.data.DataLoader(x, batch_size=250)  # the store is of their rows
    made = sitout.mc.predict(
        net, batches, samples=STORE, outputs="logits", statistics=("mean",), return_samples=True
    )
    assert made.samples is not None
    return {
        "weight_scaling": scaled,
        "store": STORE,
        "repeats": REPEATS,
        "epochs": EPOCHS,
        "all": _error(made.mean, y).item(),
        "errors": errors(made.samples.softmax(-1), y),
        **setting(),
    }


def draw(row: dict[str, Any]) -> str:
    """Return the picture as SVG."""
    points = [(one["samples"], one["mean"], one["std"]) for one in row["errors"]]

    def fill(axes: Any) -> None:
        look = {"color": "#2060b0", "marker": "o", "capsize": 3, "label": "mean of k"}
        axes.errorbar(*zip(*points, strict=True), **look)
        scaled = row["weight_scaling"]
        axes.axhline(scaled, color="#c44e52", linestyle="--", label="weight scaling")
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("networks drawn, k")
        axes.set_ylabel("test error on MNIST, percent")
        axes.set_title("Mean over dropped-out networks: 100 sets of k, their mean and deviation")

    return svg(fill)


def main() -> None:
    """Measure, or only draw."""
    if sys.argv[1:] not in ([], ["plot"]):
        raise SystemExit((__doc__ or "").partition("\n\nThis is")[0])
    if not sys.argv[1:]:
        RESULTS.write_text(json.dumps(measured(), indent=1) + "\n")
    PICTURE.write_text(draw(json.loads(RESULTS.read_text())))


if __name__ == "__main__":
    main()
