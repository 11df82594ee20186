"""What the estimators for scikit-learn train: a network, its options, and its training."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch

from .. import _checks, nn
from .._optional import needs

with needs("sklearn", "sitout.integrations.sklearn"):
    from skorch.callbacks import Callback, EarlyStopping, LRScheduler
    from skorch.dataset import ValidSplit

if TYPE_CHECKING:
    from collections.abc import Sequence

_BATCHES = 50  # an epoch, where the user leaves it to us
_LEAST, _MOST = 16, 256  # rows a batch, likewise


class Perceptron(torch.nn.Sequential):
    """A fully connected network with dropout on its input and after each hidden layer.

    The activation is GELU, which is 0 nowhere but at 0: a row whose hidden units were all 0 would
    have samples that are all equal.

    Args:
        inputs: features of a row.
        outputs: numbers that it returns.
        hidden: units of each hidden layer.
        p: drop rate of hidden units.
        input_p: drop rate of inputs.
    """

    def __init__(
        self, inputs: int, outputs: int, hidden: Sequence[int], p: float, input_p: float
    ) -> None:
        parts: list[torch.nn.Module] = [nn.Dropout(input_p)]
        for before, after in pairwise((inputs, *hidden)):
            parts += [torch.nn.Linear(before, after), torch.nn.GELU(), nn.Dropout(p)]
        super().__init__(*parts, torch.nn.Linear((inputs, *hidden)[-1], outputs))

    @property
    def drops(self) -> bool:
        """Whether a rate is above 0."""
        return any(isinstance(one, nn.Dropout) and one.p > 0.0 for one in self)


@dataclass(frozen=True)
class Options:
    """What a user chose of the network and its training, checked.

    Attributes:
        owner: the public name, for messages.
        hidden: and the rest: as in ``DropoutClassifier``.
    """

    owner: str
    hidden: Any
    p: float
    input_p: float
    learning_rate: float
    max_epochs: int
    batch_size: int | str
    weight_decay: float
    early_stopping: bool
    validation_fraction: float
    patience: int
    samples: int
    device: str
    verbose: int

    def __post_init__(self) -> None:
        if not isinstance(self.hidden, tuple | list):
            what, rule = f"`hidden` of {self.owner}", "a tuple of widths, as (256, 256)"
            raise TypeError(_checks.message(what, rule, self.hidden))
        for width in self.hidden:
            self._at_least(1, width, "each width in `hidden`")
        for rate in (self.p, self.input_p):
            _checks.rate(rate, self.owner, below_one=True)
        for name in ("max_epochs", "patience"):
            self._at_least(1, getattr(self, name), f"`{name}`")
        self._at_least(2, self.samples, "`samples`")
        if self.batch_size != "auto":
            self._at_least(1, self.batch_size, "`batch_size`", " or 'auto'")
        _checks.flag(self.early_stopping, "early_stopping", self.owner)
        self._above("learning_rate", 0.0 < self.learning_rate < float("inf"), "positive")
        self._above("weight_decay", 0.0 <= self.weight_decay < float("inf"), "0 or more")
        self._above("validation_fraction", 0.0 < self.validation_fraction < 1.0, "in (0, 1)")

    def _at_least(self, least: int, value: object, what: str, other: str = "") -> None:
        if isinstance(value, bool) or not hasattr(value, "__index__") or value.__index__() < least:
            rule = f"an int of {least} or more{other}"
            raise ValueError(_checks.message(f"{what} of {self.owner}", rule, value))

    def _above(self, name: str, holds: bool, rule: str) -> None:
        if not holds:
            what = f"`{name}` of {self.owner}"
            raise ValueError(_checks.message(what, rule, getattr(self, name)))

    def net(self, inputs: int, outputs: int, rows: int, seed: int, stratified: bool) -> Any:
        """Return the keywords of a skorch ``NeuralNet``."""
        decay = LRScheduler(
            torch.optim.lr_scheduler.LinearLR,
            start_factor=1.0,
            end_factor=1.0 / self.max_epochs,
            total_iters=max(1, self.max_epochs - 1),
        )
        callbacks: list[tuple[str, Callback]] = [("decay", decay)]
        split = None
        if self.early_stopping:
            callbacks.append(("stop", EarlyStopping(patience=self.patience, load_best=True)))
            fraction = self.validation_fraction
            split = ValidSplit(fraction, stratified=stratified, random_state=seed)
        return {
            "module": Perceptron,
            "module__inputs": inputs,
            "module__outputs": outputs,
            "module__hidden": tuple(self.hidden),
            "module__p": self.p,
            "module__input_p": self.input_p,
            "optimizer": torch.optim.AdamW,
            "optimizer__weight_decay": self.weight_decay,
            "lr": self.learning_rate,
            "max_epochs": self.max_epochs,
            "batch_size": self._rows_a_batch(rows),
            "iterator_train__shuffle": True,
            "train_split": split,
            "callbacks": callbacks,
            "device": self.device,
            "verbose": self.verbose,
        }

    def _rows_a_batch(self, rows: int) -> int:
        if isinstance(self.batch_size, str):
            return min(max(rows // _BATCHES, _LEAST), _MOST)
        return self.batch_size


def trained(kind: Any, keywords: dict[str, Any], x: Any, y: Any, seed: int) -> Any:
    """Return a skorch net after training, in float64; torch's generators are left as they were.

    In float32 a row's prediction would hang, in its last bits, on the rows beside it.
    """
    device = torch.device(keywords["device"])
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        net = kind(**keywords).fit(x, y)
    net.module_.double().eval()
    return net
