"""A made-up study with plausible numbers, for the tests of the report."""

import math
import random
from dataclasses import replace

import pytest

from sitout._study.results import (
    Arm,
    Curve,
    DataSummary,
    Difference,
    Measure,
    Study,
    Trial,
    WorstUnit,
)

# name: train error, test error, strengths, epochs
ARMS = {
    "none": (0.0002, 0.1184, {}, 60),
    "dropout": (0.0121, 0.1046, {"hidden_rate": 0.5, "input_rate": 0.1}, 60),
    "l2": (0.0043, 0.1131, {"weight_decay": 0.001}, 60),
    "max-norm": (0.0007, 0.1189, {"max_norm": 3.0}, 60),
    "early-stopping": (0.0098, 0.1167, {"patience": 4.0}, 60),
    "dropout+max-norm": (
        0.0135,
        0.1031,
        {"hidden_rate": 0.5, "input_rate": 0.1, "max_norm": 3.0},
        60,
    ),
}


def measure(values):
    mean = sum(values) / len(values)
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / max(1, len(values) - 1))
    half = 2.36 * spread / math.sqrt(len(values))
    return Measure(mean, mean - half, mean + half, values)


def curve(x, means, width, repeats):
    bands = [width * m + 1e-4 for m in means]
    low = [max(0.0, m - b) for m, b in zip(means, bands, strict=True)]
    high = [m + b for m, b in zip(means, bands, strict=True)]
    return Curve(x, means, low, high, repeats)


def learning(name, train, test, epochs, repeats):
    x = [float(e) for e in range(1, epochs + 1)]
    reached = [repeats] * epochs
    if name == "early-stopping":
        reached = [repeats if e <= 14 else max(2, repeats - int(e - 14) // 2) for e in x]
        x, reached = x[:26], reached[:26]
    slow = {"dropout": 9.0, "dropout+max-norm": 7.0, "l2": 5.6}.get(name, 5.0)
    fall = [math.exp(-e / slow) for e in x]
    rise = [0.0 if "dropout" in name else 0.002 * math.log1p(e / 12) for e in x]
    wiggle = [1 + 0.01 * math.sin(2.9 * e) for e in x]
    error_v = [(test + 0.45 * f + r) * w for f, r, w in zip(fall, rise, wiggle, strict=True)]
    error_t = [(train + 0.42 * f) * w for f, w in zip(fall, wiggle, strict=True)]
    return {
        "train_error": curve(x, error_t, 0.12, reached),
        "validation_error": curve(x, error_v, 0.06, reached),
        "train_loss": curve(x, [3.2 * v for v in error_t], 0.12, reached),
        "validation_loss": curve(
            x, [3.4 * v + 12 * r for v, r in zip(error_v, rise, strict=True)], 0.06, reached
        ),
    }


def difference(values, others):
    deltas = [a - b for a, b in zip(values, others, strict=True)]
    m = measure(deltas)
    p = 1.0 if m.low <= 0 <= m.high else 0.0004
    outcome = "no detectable benefit" if p > 0.05 else "helps" if m.mean < 0 else "harms"
    improved = sum(d < 0 for d in deltas) / len(deltas)
    return Difference(
        "none", m.mean, m.low, m.high, deltas, improved, p, min(1.0, 3 * p), 0.0052, outcome
    )


def arm(name, repeats, epochs, none_errors, rng):
    train, test, strengths, usual = ARMS[name]
    tests = [test + shared + rng.gauss(0, 0.0016) for shared in none_errors]
    trains = [max(0.0, train * (1 + rng.gauss(0, 0.1))) for _ in tests]
    settings = {"learning_rate": 0.001, "epochs": float(epochs or usual), **strengths}
    trials = [
        Trial(
            i,
            {**settings, "learning_rate": 0.0003 * 2**i if i != 2 else 0.001},
            test + 0.01 * abs(i - 2),
            0.4 + 0.05 * abs(i - 2),
        )
        for i in range(6)
    ]
    shares = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    steep = {"dropout": 1.1, "dropout+max-norm": 1.0, "l2": 1.8, "max-norm": 2.1}.get(name, 2.4)
    broken = [test + (0.88 - test) * (1 - math.exp(-((steep * q) ** 3.2))) for q in shares]
    return Arm(
        name=name,
        settings=settings,
        chosen=[settings] * 8,
        trials=trials,
        train_error=measure(trains),
        validation_error=measure([t + rng.gauss(0, 0.002) for t in tests]),
        test_error=measure(tests),
        train_loss=measure([3 * t for t in trains]),
        validation_loss=measure([3.4 * t for t in tests]),
        test_loss=measure([3.4 * t for t in tests]),
        gap=measure([a - b for a, b in zip(tests, trains, strict=True)]),
        seconds_per_epoch=measure([0.031 + rng.gauss(0, 0.001) for _ in tests]),
        learning=learning(name, train, test, epochs or usual, repeats),
        silencing=curve(shares, broken, 0.07, [repeats] * 10),
        worst_unit=WorstUnit(
            "hidden.1",
            37,
            measure(
                [(0.002 if "dropout" in name else 0.011) + rng.gauss(0, 0.0008) for _ in tests]
            ),
        ),
        versus_none=None,
    )


def build(names=tuple(ARMS), *, repeats=8, epochs=None, seed=1):
    """Return a study of classification with the arms ``names``."""
    rng = random.Random(seed)
    shared = [rng.gauss(0, 0.004) for _ in range(repeats)]
    arms = [arm(name, repeats, epochs, shared, rng) for name in names]
    none = next((a for a in arms if a.name == "none"), None)
    if none:
        arms = [
            replace(a, versus_none=difference(a.test_error.values, none.test_error.values))
            if a is not none
            else a
            for a in arms
        ]
    dropout = next((a.versus_none for a in arms if a.name == "dropout"), None)
    verdict = "No verdict on dropout: it needs the arms none and dropout."
    if dropout:
        verdict = (
            f"Dropout {dropout.outcome} here: test error 10.37 % with it, 11.74 % without, "
            f"{-100 * dropout.mean:.2f} points lower [{-100 * dropout.high:.2f}, "
            f"{-100 * dropout.low:.2f}] (95 % interval over 8 repeats; Holm-adjusted p = 0.0012; "
            "lower in 8 of 8)."
        )
    data = DataSummary(
        name="Fashion-MNIST (1,000 training rows)",
        task="classification",
        target="article",
        classes=[f"label {i}" for i in range(10)],
        features=784,
        train_rows=1000,
        validation_rows=1000,
        test_rows=10000,
        fixed_test=True,
        notes=["Pixels were divided by 255.", "No row was left out."],
        fingerprint="9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        splits=[f"{7919 * (i + 3) % 2**32:08x}" for i in range(repeats)],
    )
    return Study(
        verdict=verdict,
        verdict_best_other="Dropout does better than l2, the other arm of lowest validation "
        "error: test error 0.85 points lower [0.65, 1.05] (p = 0.0004).",
        outcome=dropout.outcome if dropout else "",
        unit="points",
        data=data,
        network="mlp:512x2, adam, batches of 128, at most 60 epochs",
        arms=arms,
        best="dropout+max-norm" if "dropout+max-norm" in names else names[0],
        plan={
            "arms": list(names),
            "repeats": repeats,
            "trials": 6,
            "hidden": [512, 512],
            "batch_size": 128,
            "seed": 0,
            "network": "mlp",
            "budget": None,
        },
        versions={
            "sitout": "0.1.0",
            "masks": "1",
            "python": "3.11.7",
            "torch": "2.10.0",
            "numpy": "2.4.6",
        },
        seconds=412.7,
        out="sitout-study",
    )


def regression(names=("none", "dropout", "l2"), *, unit="units of strength"):
    """Return a study of regression in which dropout brings nothing."""
    found = build(names)
    arms = [replace(a, versus_none=a.versus_none and faint(a.versus_none)) for a in found.arms]
    data = replace(
        found.data, name="concrete.csv", task="regression", target="strength", classes=[]
    )
    verdict = (
        "No detectable benefit of dropout here: test error 0.1036 with it, 0.1174 without, 0.0001 "
        f"{unit} lower [-0.00164, 0.00184] (95 % interval over 8 repeats; Holm-adjusted p = 1; "
        f"lower in 4 of 8); smallest effect that this study could see: 0.0052 {unit}."
    )
    outcome = "no detectable benefit"
    return replace(found, arms=arms, data=data, verdict=verdict, outcome=outcome, unit=unit)


def faint(versus):
    values = [v - versus.mean - 0.0001 for v in versus.values]
    m, outcome = measure(values), "no detectable benefit"
    found = {"mean": m.mean, "low": m.low, "high": m.high, "values": values, "outcome": outcome}
    return replace(versus, p_value=0.61, p_holm=1.0, improved=0.5, **found)


@pytest.fixture(scope="session")
def make_study():
    return build


@pytest.fixture(scope="session")
def make_regression():
    return regression


@pytest.fixture(scope="session")
def study():
    return build()
