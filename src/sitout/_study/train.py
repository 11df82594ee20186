"""One training run: from a setting and a seed to a network and its record."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from .._surgery import MaxNorm, thin
from . import measure, networks
from .arms import Regularization

if TYPE_CHECKING:
    from collections.abc import Iterator

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
        settings: ``learning_rate`` and the arm's own strengths.
        epochs: how many; early stopping may end sooner.
        batch_size: rows a step.
        optimizer: ``sgd`` (Nesterov momentum 0.9) or ``adam``.
        seed: of initial weights, batch order and masks.
        looks: epochs after which the errors are measured, besides the last.
    """

    settings: dict[str, float]
    epochs: int
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
        seconds: spent in training steps alone.
        epochs: that were run.
        chosen: the epoch whose network is kept.
    """

    looks: list[int] = field(default_factory=list)
    curves: dict[str, list[float]] = field(default_factory=dict)
    seconds: float = 0.0
    epochs: int = 0
    chosen: int = 0

    def validation(self, epoch: int) -> tuple[float, float]:
        """Return the validation error and loss after an epoch."""
        at = self.looks.index(epoch)
        return self.curves["validation_error"][at], self.curves["validation_loss"][at]


def train(
    make: Factory, task: Task, recipe: Recipe, *, train_curve: bool
) -> tuple[torch.nn.Module, Progress]:
    """Train one network.

    With equal seeds all arms start from the same weights and see the same batches. The learning
    rate falls linearly to 0, so that the network that is kept is not the whim of its last batches.

    Args:
        make: builds the network.
        task: the rows.
        recipe: how to train.
        train_curve: measure the errors on the training rows too.

    Returns:
        The network, in evaluation mode, and what happened. With a patience it is the network of
        the best validation error (ties: loss), else that of the last epoch.
    """
    how = Regularization.of(recipe.settings)
    torch.manual_seed(recipe.seed)
    network = networks.build(make, tuple(task.train.x.shape[1:]), task.outputs)
    set_rates(network, how, task.train.x[:2])
    if how.groups is not None:
        network = thin(network, groups=how.groups).model
    order = torch.Generator().manual_seed(recipe.seed + 1)
    torch.manual_seed(recipe.seed + 2)
    steps = _Steps(network, task.train, recipe, how, order)
    progress, best = Progress(), {}
    for epoch in range(1, recipe.epochs + 1):
        start = time.perf_counter()
        steps.epoch()
        progress.seconds += time.perf_counter() - start
        progress.epochs = epoch
        if how.patience or epoch in recipe.looks or epoch == recipe.epochs:
            _look(network, task, progress, epoch, train_curve)
        if how.patience and _is_best(progress):
            progress.chosen, best = epoch, _copy(network)
        if how.patience and epoch - progress.chosen >= how.patience:
            break
    if best:
        network.load_state_dict(best)
    else:
        progress.chosen = progress.epochs
    return network.eval(), progress


class _Steps:
    """The training steps of one network."""

    def __init__(
        self,
        network: torch.nn.Module,
        rows: Rows,
        recipe: Recipe,
        how: Regularization,
        order: torch.Generator,
    ) -> None:
        self.network, self.rows, self.size, self.order = network, rows, recipe.batch_size, order
        self.optimizer = _optimizer(network, recipe, how)
        total = recipe.epochs * len(_batch_sizes(len(rows.y), recipe.batch_size))
        self.decay = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: max(0.0, 1.0 - step / total)
        )
        self.bound = None if how.max_norm is None else _bound(network, how.max_norm)

    def epoch(self) -> None:
        """Visit every row once."""
        self.network.train()
        x, y = self.rows
        for batch in _batches(len(y), self.size, self.order):
            self.optimizer.zero_grad(set_to_none=True)
            loss = measure.loss_of(self.network(x[batch]), y[batch])
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            self.decay.step()
            if self.bound is not None:
                self.bound.step()


def _is_best(progress: Progress) -> bool:
    """Return whether the last look is the first of the lowest validation error (ties: loss)."""
    return min(progress.looks, key=progress.validation) == progress.looks[-1]


def _copy(network: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def set_rates(network: torch.nn.Module, how: Regularization, rows: Tensor) -> None:
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
        return torch.optim.Adam(groups, lr=rate, foreach=True)
    return torch.optim.SGD(groups, lr=rate, momentum=0.9, nesterov=True, foreach=True)


def _bound(network: torch.nn.Module, c: float) -> MaxNorm | None:
    """Return the bound on the weights into hidden units: of all layers but the last."""
    kinds = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
    hidden = [module for module in network.modules() if isinstance(module, kinds)][:-1]
    hidden = [module for module in hidden if "weight" in module._parameters]  # not computed
    if not hidden:
        return None
    return MaxNorm(network, c, lambda name, module: any(module is one for one in hidden))


def _batch_sizes(n: int, size: int) -> list[int]:
    """Return the sizes of an epoch's batches; a last batch of one row joins the one before."""
    sizes = [size] * (n // size) + [n % size] * (n % size > 0)
    if len(sizes) > 1 and sizes[-1] == 1:
        sizes[-2:] = [size + 1]
    return sizes


def _batches(n: int, size: int, order: torch.Generator) -> Iterator[Tensor]:
    """Yield the row numbers of one epoch."""
    yield from torch.split(torch.randperm(n, generator=order), _batch_sizes(n, size))


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
        progress.curves.setdefault(f"{name}_loss", []).append(measure.mean_loss(out, rows.y))
