"""A training step of a small network: what dropout adds to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sitout

from . import gate
from .kinds import Case, Row
from .measure import Contender, interleave, ratios, spread, threads

P, CLASSES = 0.5, 10
PLAIN, AGAIN = "without dropout", "without dropout, again"
AFTER: dict[str, Callable[[], list[nn.Module]]] = {
    PLAIN: lambda: [nn.ReLU()],
    AGAIN: lambda: [nn.ReLU()],
    "sitout.nn.Dropout": lambda: [nn.ReLU(), sitout.nn.Dropout(P)],
    "sitout.nn.ActivationDropout": lambda: [sitout.nn.ActivationDropout("relu", P)],
    "torch.nn.Dropout": lambda: [nn.ReLU(), nn.Dropout(P)],
}


@dataclass(frozen=True, kw_only=True)
class Step(Case):
    """A step of SGD of a network with two hidden layers, as wide as the input ``[B, C]``."""

    passes: str = "training step"

    def check(self) -> str:
        """Compare the loss and all gradients of each network of ours with the reference's."""
        told = []
        with threads(self.threads):
            for name in AFTER:
                if name.startswith("sitout"):
                    ours, wanted = (
                        partial(self._loss_and_gradients, each)
                        for each in (name, "sitout.nn.Dropout")
                    )
                    told.append(gate.compare(ours, wanted, gate.ROUNDING))
        return "; ".join(filter(None, told))

    def measure(self, rounds: int) -> list[Row]:
        """Return a row for each network, with the percent that it adds to the plain one."""
        x, target = self._batch()
        contenders = [
            Contender(name, _stepper(self._network(name), x, target), self.threads)
            for name in AFTER
        ]
        found = interleave(contenders, rounds, synchronize=self.synchronize())
        rows = []
        for name in found:
            if name != PLAIN:
                added = [100 * (ratio - 1) for ratio in ratios(found[name], found[PLAIN])]
                row = self.times(name, PLAIN, found)
                rows.append({**row, "added_percent": spread(added)._asdict()})
        return rows

    def _batch(self) -> tuple[Tensor, Tensor]:
        torch.manual_seed(0)
        x = torch.randn(self.shape, device=self.device)
        return x, torch.randint(CLASSES, self.shape[:1], device=self.device)

    def _network(self, name: str) -> nn.Module:
        """Return a network; all start from the same weights."""
        torch.manual_seed(0)
        width, after = self.shape[1], AFTER[name]
        hidden = [[nn.Linear(width, width), *after()] for _ in range(2)]
        return nn.Sequential(*hidden[0], *hidden[1], nn.Linear(width, CLASSES)).to(self.device)

    def _loss_and_gradients(self, name: str) -> tuple[Tensor, ...]:
        network, (x, target) = self._network(name), self._batch()
        loss = F.cross_entropy(network(x), target)
        return loss, *torch.autograd.grad(loss, list(network.parameters()))


def _stepper(network: nn.Module, x: Tensor, target: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(network(x), target).backward()
        optimizer.step()

    return step
