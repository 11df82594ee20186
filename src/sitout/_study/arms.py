"""The arms: what each regularizer may choose from, and what its settings mean in training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import optuna

ARMS = ("none", "dropout", "l2", "max-norm", "early-stopping", "dropout+max-norm")
"""What a study compares unless told."""
KNOWN = (*ARMS, "thinned", "thinned+max-norm")
"""What it can compare."""
LEARNING_RATES = {"sgd": (0.005, 0.2), "adam": (1e-4, 1e-2)}
HIDDEN_RATES = (0.1, 0.2, 0.3, 0.4, 0.5)
RATE_SCALES = (0.5, 0.75, 1.0, 1.5)
GROUPS = (1, 4)

_GOLDEN = (5**0.5 - 1) / 2


def spread(number: int, *, optimizer: str, epochs: tuple[int, ...]) -> dict[str, float]:
    """Return the learning rate and number of epochs of trial ``number``, the same for all arms.

    Multiples of the golden ratio modulo 1 spread evenly over the range of learning rates, on a log
    scale, however many there are.
    """
    low, high = LEARNING_RATES[optimizer]
    rate = low * (high / low) ** ((0.5 + number * _GOLDEN) % 1.0)
    return {"learning_rate": rate, "epochs": epochs[-1 - number % len(epochs)]}


@dataclass(frozen=True)
class Regularization:
    """What an arm does to training.

    Attributes:
        input_rate: drop rate of the sites that see the network's input.
        hidden_rate: drop rate of the other sites of a built-in network.
        rate_scale: factor on the rates that the user's own network was built with.
        weight_decay: L2 penalty on weights (not biases), as torch's optimizers take it.
        max_norm: bound on the norm of each hidden unit's incoming weights; None for no bound.
        patience: epochs without a better validation error before the training stops; None: never.
        groups: of rows a batch, each with a thinned network of its own; None where all is computed.
    """

    input_rate: float = 0.0
    hidden_rate: float = 0.0
    rate_scale: float = 0.0
    weight_decay: float = 0.0
    max_norm: float | None = None
    patience: int | None = None
    groups: int | None = None

    @classmethod
    def of(cls, settings: dict[str, float]) -> Regularization:
        """Return what the settings that a trial chose stand for."""
        known = {name: settings[name] for name in cls.__dataclass_fields__ if name in settings}
        for name in {"patience", "groups"} & set(known):
            known[name] = int(known[name])
        return cls(**known)  # type: ignore[arg-type]


def suggest(
    trial: optuna.Trial, arm: str, *, optimizer: str, epochs: tuple[int, ...], built_in: bool
) -> None:
    """Let ``trial`` choose the learning rate, the number of epochs and the arm's own strengths.

    Args:
        trial: of Optuna.
        arm: its name.
        optimizer: ``sgd`` or ``adam``.
        epochs: choices for their number.
        built_in: whether the network is a built-in one, whose sites have no rates of their own.
    """
    low, high = LEARNING_RATES[optimizer]
    trial.suggest_float("learning_rate", low, high, log=True)
    trial.suggest_categorical("epochs", epochs)
    parts = arm.split("+")
    drops = "dropout" in parts or "thinned" in parts
    if drops and built_in:
        trial.suggest_categorical("input_rate", (0.0, 0.1, 0.2))
        trial.suggest_categorical("hidden_rate", HIDDEN_RATES)
    elif drops:
        trial.suggest_categorical("rate_scale", RATE_SCALES)
    if "thinned" in parts:
        trial.suggest_categorical("groups", GROUPS)
    if "l2" in parts:
        trial.suggest_float("weight_decay", 1e-5, 3e-2, log=True)
    if "max-norm" in parts:
        trial.suggest_float("max_norm", 0.5, 4.0, log=True)
    if "early-stopping" in parts:
        trial.suggest_categorical("patience", (2, 4, 8))
