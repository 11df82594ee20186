"""What a study found: plain records that are the fields of ``report.json``. No torch here."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

Outcome = Literal["helps", "harms", "no detectable benefit"]


@dataclass(frozen=True)
class Measure:
    """A number measured once in every repeat.

    Attributes:
        mean: over the repeats.
        low: lower end of the 95 % t-interval over the repeats.
        high: its upper end.
        values: one a repeat, in order.
    """

    mean: float
    low: float
    high: float
    values: list[float]


@dataclass(frozen=True)
class Curve:
    """A measure along an axis, each list as long as ``x``; the band is the 95 % t-interval.

    Attributes:
        x: where it was measured (epochs, or fractions of silenced units).
        mean: over the repeats.
        low: lower end of the band.
        high: upper end of the band.
        repeats: at each point, how many repeats reached it (runs may stop early).
    """

    x: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]
    repeats: list[int]


@dataclass(frozen=True)
class Trial:
    """One training run of the tuning stage.

    Attributes:
        number: 0, 1, ... within the arm.
        settings: what was tried (``learning_rate``, ``epochs`` and the arm's own strengths).
        error: on the validation rows of tuning.
        loss: likewise.
    """

    number: int
    settings: dict[str, float]
    error: float
    loss: float


@dataclass(frozen=True)
class Difference:
    """Test error of one arm minus that of another, paired by repeat: negative is better.

    Attributes:
        than: the name of the other arm.
        mean: over the repeats, in the unit of the error.
        low: lower end of the 95 % interval over repeats (and test rows where those are fixed).
        high: its upper end.
        values: one a repeat.
        improved: share of the repeats in which the error is strictly lower.
        p_value: two-sided, unadjusted.
        p_holm: adjusted over all arms that are compared with ``none`` (Holm 1979);
            equal to ``p_value`` for a single comparison.
        smallest_effect: the smallest true difference that a study like this one detects with
            a probability of 80 %.
        outcome: "helps" and "harms" need ``p_holm <= 0.05``.
    """

    than: str
    mean: float
    low: float
    high: float
    values: list[float]
    improved: float
    p_value: float
    p_holm: float
    smallest_effect: float
    outcome: Outcome


@dataclass(frozen=True)
class WorstUnit:
    """The hidden unit whose silence hurts most: chosen on half of the validation rows.

    Attributes:
        site: qualified name of the dropout site, in repeat 0.
        unit: its index there, in repeat 0.
        harm: rise of the error on the other half of the rows when it alone is silenced.
    """

    site: str
    unit: int
    harm: Measure


@dataclass(frozen=True)
class Arm:
    """One regularizer setting and what became of its networks.

    Errors are fractions of misclassified rows, or the root mean squared error in the target's
    unit. Losses are mean cross-entropies in nats, or mean squared errors of the standardised
    target.

    Attributes:
        name: ``none``, ``dropout``, ``l2``, ``max-norm``, ``early-stopping``,
            ``dropout+max-norm``, ``thinned`` or ``thinned+max-norm``.
        settings: what the repeats chose most often.
        chosen: what each repeat chose, in order.
        trials: every setting that tuning tried.
        train_error: of the retrained networks, in evaluation mode.
        validation_error: likewise.
        test_error: likewise; test rows are read once per network.
        train_loss: likewise.
        validation_loss: likewise.
        test_loss: likewise.
        gap: test error minus train error: how far the network overfits.
        seconds_per_epoch: of training alone, without measuring.
        learning: curves by epoch: ``train_error``, ``validation_error``, ``train_loss``,
            ``validation_loss``.
        silencing: validation error by the fraction of hidden units silenced.
        worst_unit: None where the network has no hidden site.
        versus_none: None for ``none`` itself.
    """

    name: str
    settings: dict[str, float]
    chosen: list[dict[str, float]]
    trials: list[Trial]
    train_error: Measure
    validation_error: Measure
    test_error: Measure
    train_loss: Measure
    validation_loss: Measure
    test_loss: Measure
    gap: Measure
    seconds_per_epoch: Measure
    learning: dict[str, Curve]
    silencing: Curve | None
    worst_unit: WorstUnit | None
    versus_none: Difference | None


@dataclass(frozen=True)
class DataSummary:
    """The data of a study.

    Attributes:
        name: of the data set or file.
        task: ``classification`` or ``regression``.
        target: name of the target.
        classes: labels in code order; empty for regression.
        features: number of inputs of the network, after encoding.
        train_rows: in one repeat.
        validation_rows: in one repeat; as many served tuning and are never tested on.
        test_rows: in one repeat.
        fixed_test: whether the test rows are a published split, equal in all repeats.
        notes: what was inferred or left out, a sentence each.
        fingerprint: SHA-256 of the content.
        splits: a short SHA-256 of the row numbers of each repeat's split.
    """

    name: str
    task: str
    target: str
    classes: list[str]
    features: int
    train_rows: int
    validation_rows: int
    test_rows: int
    fixed_test: bool
    notes: list[str]
    fingerprint: str
    splits: list[str]


@dataclass(frozen=True)
class Study:
    """A finished study. Its fields are those of ``report.json``.

    Attributes:
        verdict: does dropout help here: one sentence with effect and interval.
        verdict_best_other: dropout against the other arm of lowest mean validation error.
        outcome: of dropout against ``none`` ("" where either was not an arm).
        unit: of differences as printed: "points" (of per cent) or "units of <target>".
        data: what it was run on.
        network: one line that says what was trained.
        arms: in the order asked for.
        best: name of the arm whose network of repeat 0 has the lowest validation loss.
        plan: every setting that decides the numbers: a second run with these gives them again
            (where the budget decided ``trials`` and ``epochs``, pass those that stand here).
        versions: of sitout, the mask specification, Python and the packages that matter.
        seconds: time spent training, summed over all runs.
        out: folder of the report, the runs and the trained network.

    Example:
        >>> import json
        >>> from tempfile import mkdtemp
        >>> found = sitout.study(
        ...     "wine", arms=["none"], network="mlp:4x1", trials=1, epochs=1, out=mkdtemp()
        ... )
        >>> json.loads(found.to_json())["best"]
        'none'
    """

    verdict: str
    verdict_best_other: str
    outcome: str
    unit: str
    data: DataSummary
    network: str
    arms: list[Arm]
    best: str
    plan: dict[str, Any]
    versions: dict[str, str]
    seconds: float
    out: str

    def to_json(self) -> str:
        """Return the study as JSON text, as it stands in ``report.json``."""
        return json.dumps(asdict(self), indent=1, allow_nan=False)
