"""Stochastic passes through a stack of networks, summed up as they come.

Of T passes over N rows only what the figures need is kept: for each row the sum of the predictions
and the logarithm of the summed likelihoods, in float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from uci_stack import Block, Stack, together

WIDTH, ROUND = 192, 50  # rows of a product; passes of a round


class Score(NamedTuple):
    """How a member does on the rows that judge, in the target's own units.

    Attributes:
        rmse: of the mean over the passes.
        ll: mean log-likelihood of the mixture over the passes.
        single_rmse: of the first pass alone.
        scaled_rmse: of weight scaling, the one pass without dropout.
        scaled_ll: mean log-likelihood of a Gaussian of precision tau around that.
    """

    rmse: float
    ll: float
    single_rmse: float
    scaled_rmse: float
    scaled_ll: float


def gaussian_ll(rmse: float, tau: float) -> float:
    """Return the mean log-likelihood of Gaussians of precision tau around predictions."""
    return 0.5 * math.log(tau / (2.0 * math.pi)) - 0.5 * tau * rmse**2


class Passes:
    """The passes of all members of a stack over the rows that judge them.

    Args:
        stack: trained.
    """

    def __init__(self, stack: Stack) -> None:
        parts = [stack.parts[i] for i in stack.which.tolist()]
        self.stack, self.done = stack, 0
        self.x = together([part.judge_x for part in stack.parts])
        self.y = together([part.judge_y for part in parts])
        self.there = together([torch.ones(len(part.judge_y)).double() for part in parts])
        self.mean, self.std, self.tau = (
            torch.tensor(each, dtype=torch.float64)[:, None]
            for each in (
                [part.mean for part in parts],
                [part.std for part in parts],
                [member.tau for member in stack.members],
            )
        )
        self.total, self.first = torch.zeros_like(self.y), torch.zeros_like(self.y)
        self.mass = torch.full_like(self.y, -math.inf)

    def _tiles(self) -> Iterator[tuple[int, slice]]:
        """Yield about equal parts of the rows, with numbers."""
        rows = self.y.shape[1]
        width = -(-rows // -(-rows // WIDTH))
        for number, start in enumerate(range(0, rows, width)):
            yield number, slice(start, min(start + width, rows))

    @torch.no_grad()
    def advance(self, until: int) -> None:
        """Do some passes more, at most up to a number."""
        count = min(ROUND, until - self.done)
        for block in self.stack.blocks:
            for tile, rows in self._tiles():
                self._add(block, rows, self._sample(block, tile, rows, count))
        self.done += count

    def _sample(self, block: Block, tile: int, rows: slice, count: int) -> Tensor:
        """Return ``[G, count, n]`` predictions in the target's units; short tiles share a call."""
        x = self.x[:, rows].index_select(0, self.stack.which[block.at])
        size, most, found = x.shape[1], max(1, WIDTH // x.shape[1]), []
        for start in range(0, count, most):
            some = min(most, count - start)
            one = self.stack.sample(block, x.repeat(1, some, 1), self.done + start, tile)
            found.append(one.view(len(x), some, size))
        predicted = torch.cat(found, 1).double()
        return predicted * self.std[block.at, None] + self.mean[block.at, None]

    def _add(self, block: Block, rows: slice, predicted: Tensor) -> None:
        if self.done == 0:
            self.first[block.at, rows] = predicted[:, 0]
        self.total[block.at, rows] += predicted.sum(1)
        log = (predicted - self.y[block.at, None, rows]).square_()
        log = torch.logsumexp(log.mul_(-0.5 * self.tau[block.at, None]), 1)
        self.mass[block.at, rows] = torch.logaddexp(self.mass[block.at, rows], log)

    def scores(self) -> dict[int, Score]:
        """Return the score of each member, by its number."""
        scaled = torch.cat([self._scaled(block) for block in self.stack.blocks])
        likelihood = self.mass - math.log(self.done) + 0.5 * torch.log(self.tau / (2.0 * math.pi))
        rmse = [self._rmse(each) for each in (self.total / self.done, self.first, scaled)]
        rows = torch.stack([rmse[0], self._mean(likelihood), *rmse[1:]], 1).tolist()
        return {
            member.number: Score(*row, gaussian_ll(row[-1], member.tau))
            for member, row in zip(self.stack.members, rows, strict=True)
        }

    @torch.no_grad()
    def _scaled(self, block: Block) -> Tensor:
        w1, b1, w2, b2 = block.weights
        x = self.x.index_select(0, self.stack.which[block.at])
        hidden = torch.baddbmm(b1, w1.mT, x.mT).relu_()
        out = torch.baddbmm(b2, w2, hidden)[:, 0].double()
        return out * self.std[block.at] + self.mean[block.at]

    def _mean(self, each: Tensor) -> Tensor:
        return (each * self.there).sum(1) / self.there.sum(1)

    def _rmse(self, predicted: Tensor) -> Tensor:
        return self._mean((predicted - self.y).square()).sqrt()

    def state(self) -> dict[str, Any]:
        """Return all that the passes go on from."""
        return {
            "done": self.done,
            "total": self.total,
            "mass": self.mass,
            "first": self.first,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        for name, saved in state.items():
            setattr(self, name, saved)
