"""One training run: from a setting and a seed to a network and its record."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from . import measure, networks
from .arms import Regularization

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .networks import Factory


class Rows(NamedTuple):
    """Rows ready for a network, and their targets.

    Attributes:
        x: float32 ``[N, *shape]``.
        y: int64 ``[N]`` of classes, or float32 ``[N]``, standardised.
    """

    x: Tensor
    y: Tensor


def some(rows: Rows, most: int) -> Rows:
    """Return at most ``most`` rows, evenly spread: files are often sorted by class."""
    stride = -(-len(rows.y) // most)
    return Rows(rows.x[::stride], rows.y[::stride])


@dataclass(frozen=True)
class Task:
    """Everything that the runs of one split share.

    Attributes:
        train: what is learned from.
        validation: what tuning and early stopping look at.
        unit: standard deviation of the target, in its unit; 1 for classes.
        outputs: of the network.
    """

    train: Rows
    validation: Rows
    unit: float
    outputs: int


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        settings: what tuning chose: ``learning_rate`` and the arm's own strengths.
        epochs: choices for their number, ascending; the last is the most.
        batch_size: rows a step.
        optimizer: ``sgd`` (Nesterov momentum 0.9) or ``adam`` (AdamW).
        seed: of initial weights, batch order and masks.
        looks: epochs after which the errors are measured, besides the choices.
    """

    settings: dict[str, float]
    epochs: tuple[int, ...]
    batch_size: int
    optimizer: str
    seed: int
    looks: tuple[int, ...]


@dataclass
class Progress:
    """What happened during training.

    Attributes:
        looks: epochs at which the errors were measured.
        curves: ``train_error``, ``train_loss``, ``validation_error``, ``validation_loss``.
        states: the network's weights at each epoch that may be chosen; with a patience, at the
            best one alone.
        seconds: spent in training steps alone.
        epochs: that were run.
    """

    looks: list[int] = field(default_factory=list)
    curves: dict[str, list[float]] = field(default_factory=dict)
    states: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    seconds: float = 0.0
    epochs: int = 0

    def validation(self, epoch: int) -> tuple[float, float]:
        """Return the validation error and loss after an epoch."""
        at = self.looks.index(epoch)
        return self.curves["validation_error"][at], self.curves["validation_loss"][at]

    def best(self, among: Iterable[int] | None = None) -> int:
        """Return the epoch of lowest validation error (ties: loss, then the earliest)."""
        return min(self.looks if among is None else among, key=self.validation)


def train(
    make: Factory, task: Task, recipe: Recipe, *, train_curve: bool
) -> tuple[torch.nn.Module, Progress]:
    """Train one network.

    With equal seeds all arms start from the same weights and see the same batches.

    Args:
        make: builds the network.
        task: the rows.
        recipe: how to train.
        train_curve: measure the errors on the training rows too.

    Returns:
        The network after its last epoch, in evaluation mode, and what happened.
    """
    how = Regularization.of(recipe.settings)
    torch.manual_seed(recipe.seed)
    network = networks.build(make, tuple(task.train.x.shape[1:]), task.outputs)
    _set_rates(network, how, task.train.x[:2])
    optimizer = _optimizer(network, recipe, how)
    bounded = _bounded_weights(network) if how.max_norm else []
    order = torch.Generator().manual_seed(recipe.seed)
    torch.manual_seed(recipe.seed + 1)
    progress, best = Progress(), 0
    for epoch in range(1, recipe.epochs[-1] + 1):
        start = time.perf_counter()
        network.train()
        for batch in _batches(len(task.train.y), recipe.batch_size, order):
            optimizer.zero_grad(set_to_none=True)
            loss = measure.loss_of(network(task.train.x[batch]), task.train.y[batch])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            for weight in bounded:
                _project(weight, how.max_norm or math.inf)
        progress.seconds += time.perf_counter() - start
        progress.epochs = epoch
        if how.patience or epoch in recipe.epochs or epoch in recipe.looks:
            _look(network, task, progress, epoch, train_curve)
        if how.patience:
            if progress.best() == epoch:
                best, progress.states = epoch, {epoch: _copy(network)}
            if epoch - best >= how.patience:
                break
        elif epoch in recipe.epochs:
            progress.states[epoch] = _copy(network)
    return network.eval(), progress


def _copy(network: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def _set_rates(network: torch.nn.Module, how: Regularization, rows: Tensor) -> None:
    """Give every site the rate of the arm: built-in sites by kind, the user's by a factor."""
    before = networks.input_sites(network, rows)
    for name, site in networks.sites(network).items():
        own = float(site.p)  # type: ignore[arg-type]
        chosen = how.input_rate if name in before else how.hidden_rate
        rate = chosen if own == 0.0 else min(own * how.rate_scale, 0.9)
        setattr(site, "p", rate)  # noqa: B010


def _optimizer(
    network: torch.nn.Module, recipe: Recipe, how: Regularization
) -> torch.optim.Optimizer:
    parameters = list(network.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": how.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    rate = recipe.settings["learning_rate"]
    if recipe.optimizer == "adam":
        return torch.optim.AdamW(groups, lr=rate, foreach=True)
    return torch.optim.SGD(groups, lr=rate, momentum=0.9, nesterov=True, foreach=True)


def _bounded_weights(network: torch.nn.Module) -> list[Tensor]:
    """Return the weights into hidden units: of all linear and convolution layers but the last."""
    kinds = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
    return [module.weight for module in network.modules() if isinstance(module, kinds)][:-1]


def _project(weight: Tensor, bound: float) -> None:
    """Scale down the incoming weights of each unit whose norm exceeds ``bound``, in place."""
    with torch.no_grad():
        norms = weight.flatten(1).norm(dim=1)
        factor = (bound / norms.clamp_min(bound)).view(-1, *[1] * (weight.dim() - 1))
        weight.mul_(factor)


def _batches(n: int, size: int, order: torch.Generator) -> Iterator[Tensor]:
    """Yield the row numbers of one epoch; a last batch of one row joins the one before."""
    batches = list(torch.split(torch.randperm(n, generator=order), size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    yield from batches


_CURVE_ROWS = 2000


def _look(
    network: torch.nn.Module, task: Task, progress: Progress, epoch: int, with_train: bool
) -> None:
    """Measure the errors after an epoch."""
    progress.looks.append(epoch)
    named = {"validation": task.validation}
    if with_train:
        named["train"] = some(task.train, _CURVE_ROWS)
    for name, rows in named.items():
        out = measure.predict(network, rows.x)
        error = measure.error_of(out, rows.y, task.unit)
        progress.curves.setdefault(f"{name}_error", []).append(error)
        progress.curves.setdefault(f"{name}_loss", []).append(float(measure.loss_of(out, rows.y)))
