"""Many small networks trained as one: a dropout network for every split and every setting.

Each member is the network of Gal & Ghahramani 2016: dropout, d -> hidden with ReLU, dropout,
hidden -> 1. Its loss is the mean squared error of the standardised target plus
l^2 (1 - p) / (2 N tau) times the sum of the squared weights (not biases) of both layers. That is
what `W_regularizer=l2(reg)` means in the authors' Keras code; its gradient is 2 reg W and goes into
Adam with the rest. tau enters it in the target's own units, as it does there.

What makes it fast on one core (milliseconds for 60 members, 128 rows, 13 features, 50 units):

- Hidden values lie as [member, unit, row]. A batch of 128 rows is then the long side of both
  products, and weights as [member, d, hidden] make their gradient one product without a copy. The
  gradient is written out below: it is 0.9, by autograd 1.9, and with [member, row, unit] 3.0.
- Members of one p lie side by side, and each call of `sitout.functional.dropout` serves up to 16
  of them: 0.14 for the hidden masks. One call with uniform numbers and a threshold per member takes
  2 for the numbers alone, torch's dropout 3.7. Blocks of this size also stay in the L2 cache.
- Input masks are drawn for several steps at once.

Masks are addressed by the member's number, the step and the place, and orders of rows by number and
epoch. So a member trains alike whichever others are in the stack, and after an interruption.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from uci_sets import Part

from sitout.functional import dropout
from sitout.masks import MaskKey, effective_rate

BATCH, LENGTH_SCALE, TOGETHER, STRETCH = 128, 1e-2, 16, 32
ADAM: dict[str, Any] = {"lr": 1e-3, "eps": 1e-7}  # as Keras has it


class Member(NamedTuple):
    """One network.

    Attributes:
        number: the row of its masks, below 512; no two in a place are the same.
        part: which of the parts it trains on.
        p: drop rate of inputs and hidden units.
        tau: precision of the noise.
    """

    number: int
    part: int
    p: float
    tau: float


class Block(NamedTuple):
    """Members side by side that have one p.

    Attributes:
        at: where they are in the stack.
        p: drop rate.
        rows: their numbers.
        weights: their parameters, views of the stack's: w1, b1, w2, b2.
        grads: likewise.
    """

    at: slice
    p: float
    rows: Tensor
    weights: list[Tensor]
    grads: list[Tensor]


class Stack:
    """Members and their training.

    Args:
        members: in any order; those of the same p are put side by side.
        parts: their data; as many batches an epoch in each.
        hidden: units.
        place: what it is for, below 32: others have other masks.
        seed: of all masks, orders and initial weights.
    """

    def __init__(
        self, members: Sequence[Member], parts: Sequence[Part], hidden: int, place: int, seed: int
    ) -> None:
        batches = {-(-len(part.y) // BATCH) for part in parts}
        if len(batches) > 1:
            raise ValueError(f"All parts must have as many batches. Got {sorted(batches)}.")
        self.members = sorted(members, key=lambda member: (member.p, member.number))
        self.parts, self.place, self.seed = parts, place, seed
        self.steps, self.epoch = batches.pop(), 0
        self.which = torch.tensor([member.part for member in self.members])
        self.x, self.y = together([part.x for part in parts]), together([part.y for part in parts])
        self.dtype = self.x.dtype
        self.weights = self._initial(self.x.shape[-1], hidden)
        self.grads = [torch.zeros_like(weight) for weight in self.weights]
        for weight, grad in zip(self.weights, self.grads, strict=True):
            weight.grad = grad
        self.optimizer = torch.optim.Adam(self.weights, fused=True, **ADAM)
        self.blocks = list(self._blocks())
        self.share, self.decay = self._share(), self._decay()

    def _initial(self, d: int, hidden: int) -> list[Tensor]:
        """Draw weights as Glorot & Bengio 2010 do, uniformly; biases are 0."""

        def uniform(generator: torch.Generator, *shape: int) -> Tensor:
            limit = (6.0 / sum(shape)) ** 0.5
            return limit * (2.0 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1.0)

        generators = [self._generator(member, 0) for member in self.members]
        w1 = torch.stack([uniform(one, d, hidden) for one in generators]).to(self.dtype)
        w2 = torch.stack([uniform(one, 1, hidden) for one in generators]).to(self.dtype)
        return [w1, w1.new_zeros(len(w1), hidden, 1), w2, w1.new_zeros(len(w1), 1, 1)]

    def _generator(self, member: Member, number: int) -> torch.Generator:
        """Return a generator of a member's own; torch's counts seeds modulo 2 ** 32."""
        address = ((self.seed * 32 + self.place) * 512 + member.number) * 8192 + number
        return torch.Generator().manual_seed(address % 2**32)

    def _blocks(self) -> Iterator[Block]:
        rates = [member.p for member in self.members]
        for p in sorted(set(rates)):
            first, count = rates.index(p), rates.count(p)
            size = -(-count // -(-count // TOGETHER))
            for start in range(first, first + count, size):
                at = slice(start, min(start + size, first + count))
                rows = torch.tensor([member.number for member in self.members[at]])
                weights, grads = ([one[at] for one in each] for each in (self.weights, self.grads))
                yield Block(at, p, rows, weights, grads)

    def _share(self) -> Tensor:
        """Return ``[M, steps, 1, B]``: 2 over the rows of the batch, 0 where there is no row."""
        rows = torch.tensor([len(self.parts[member.part].y) for member in self.members])
        there = torch.arange(self.steps * BATCH) < rows[:, None]
        there = there.view(len(rows), self.steps, 1, BATCH).to(self.dtype)
        return 2.0 * there / there.sum(-1, keepdim=True)

    def _decay(self) -> Tensor:
        each = [
            LENGTH_SCALE**2 * (1.0 - one.p) / (len(self.parts[one.part].y) * one.tau)
            for one in self.members
        ]
        return torch.tensor(each, dtype=self.dtype)[:, None, None]

    @torch.no_grad()
    def advance(self, until: int) -> None:
        """Train for some epochs more, at most up to an epoch."""
        epochs = min(max(1, STRETCH // self.steps), until - self.epoch)
        x, y = self._batches(epochs)
        for batch in range(epochs * self.steps):
            step = self.epoch * self.steps + batch
            for block in self.blocks:
                share = self.share[block.at, batch % self.steps]
                self._gradient(block, step, x[block.at, batch], y[block.at, batch], share)
            for of in (0, 2):  # weights, not biases
                self.grads[of].addcmul_(self.weights[of], self.decay)
            self.optimizer.step()
        self.epoch += epochs

    def _batches(self, epochs: int) -> tuple[Tensor, Tensor]:
        """Return the rows of the next epochs: ``[M, n, B, d]`` with dropout, ``[M, n, 1, B]``."""
        length = self.x.shape[1]
        index = self.which[:, None, None] * length
        index = index.repeat(1, epochs, self.steps * BATCH)
        for m, member in enumerate(self.members):
            n = len(self.parts[member.part].y)
            for e in range(epochs):
                generator = self._generator(member, self.epoch + e + 1)
                index[m, e, :n] += torch.randperm(n, generator=generator)
        flat = index.flatten()
        x = self.x.flatten(0, 1).index_select(0, flat).view(len(index), -1, BATCH, self.x.shape[2])
        for block in self.blocks:
            self._drop(x[block.at], block, 0, self.epoch)
        return x, self.y.flatten().index_select(0, flat).view(len(index), -1, 1, BATCH)

    def _drop(self, x: Tensor, block: Block, site: int, step: int, call: int = 0) -> Tensor:
        key = MaskKey(self.seed, self.place * 4 + site, step, call)
        return dropout(x, block.p, inplace=True, key=key, rows=block.rows)

    def _gradient(self, block: Block, step: int, x: Tensor, y: Tensor, share: Tensor) -> None:
        """Write the gradient of a block for one batch; what is left out of it is the decay."""
        w1, b1, w2, b2 = block.weights
        of_w1, of_b1, of_w2, of_b2 = block.grads
        hidden = self._drop(torch.baddbmm(b1, w1.mT, x.mT).relu_(), block, 1, step)
        error = torch.baddbmm(b2, w2, hidden).sub_(y).mul_(share)
        torch.bmm(error, hidden.mT, out=of_w2)
        torch.sum(error, 2, keepdim=True, out=of_b2)
        back = (w2 / (1.0 - effective_rate(block.p))).mT * error
        # Where a unit sat out or was off, its value is 0, and so is what goes back through it.
        back = torch.ops.aten.threshold_backward(back, hidden, 0)
        torch.bmm(x.mT, back.mT, out=of_w1)
        torch.sum(back, 2, keepdim=True, out=of_b1)

    def sample(self, block: Block, x: Tensor, number: int, call: int) -> Tensor:
        """Return one stochastic prediction for each row of ``[G, n, d]``, which it overwrites."""
        w1, b1, w2, b2 = block.weights
        x = self._drop(x, block, 2, number, call)
        hidden = torch.baddbmm(b1, w1.mT, x.mT).relu_()
        return torch.baddbmm(b2, w2, self._drop(hidden, block, 3, number, call))[:, 0]

    def state(self) -> dict[str, Any]:
        """Return all that training goes on from."""
        return {
            "weights": self.weights,
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        for weight, saved in zip(self.weights, state["weights"], strict=True):
            weight.copy_(saved)
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch = state["epoch"]


def together(parts: Sequence[Tensor]) -> Tensor:
    """Stack tensors that differ in their first size; the shorter ones end in zeros."""
    return torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True)
