"""Intervals, paired differences and verdicts."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from sitout._study import analyse
from sitout._study.analyse import Units, compare, holm, measure

ARMS = 5
REPEATS = 8
STUDIES = 400


def at_most(rate, n):
    """Return the largest count that a true ``rate`` gives in ``n`` tries, but for 1 in 1,000."""
    return int(stats.binom.ppf(0.999, n, rate))


def test_measure_is_the_t_interval():
    values = [3.0, 4.0, 4.5, 2.0]
    found = measure(values)
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert found.mean == pytest.approx(np.mean(values))
    assert (found.low, found.high) == pytest.approx((low, high))


def test_a_comparison_is_the_paired_t_test():
    rng = np.random.default_rng(0)
    none, arm = rng.normal(0.10, 0.01, REPEATS), rng.normal(0.09, 0.01, REPEATS)
    (found,) = compare("none", [arm.tolist()], none.tolist())
    wanted = stats.ttest_rel(arm, none)
    assert found.p_value == pytest.approx(wanted.pvalue)
    assert found.p_holm == found.p_value
    assert (found.low, found.high) == pytest.approx(tuple(wanted.confidence_interval(0.95)))
    assert found.improved == np.mean(arm < none)


def test_holm_is_holm():
    # The example of Holm's step-down: 0.01 * 4, 0.013 * 3 (not below the first), 0.03 * 2, 0.04.
    assert holm([0.03, 0.01, 0.04, 0.013]) == pytest.approx([0.06, 0.04, 0.06, 0.04])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def small_test_sets(rng, arms):
    """Errors of arms that are identical in law: the same chance of error on 45 test rows."""
    hard = rng.uniform(0.02, 0.08, REPEATS)
    return [(rng.binomial(45, hard) / 45).tolist() for _ in range(arms)]


def skewed_errors(rng, arms):
    """Regression errors with a heavy right tail, correlated within a repeat."""
    split = rng.lognormal(0.0, 0.3, REPEATS)
    return [(split * rng.lognormal(0.0, 0.2, REPEATS)).tolist() for _ in range(arms)]


@pytest.mark.parametrize("draw", [small_test_sets, skewed_errors])
def test_at_most_5_percent_of_400_studies_with_identical_arms_say_helps(draw):
    rng = np.random.default_rng(17)
    said = 0
    for _ in range(STUDIES):
        none, *arms = draw(rng, 1 + ARMS)
        said += any(one.outcome == "helps" for one in compare("none", arms, none))
    assert said <= 0.05 * STUDIES


def test_at_most_5_percent_say_helps_on_fixed_test_rows():
    """Test rows that all networks share: the rows' own luck must not look like a benefit.

    Each arm has a fixed effect on each row, which averages to zero over the population of rows.
    """
    rng = np.random.default_rng(5)
    said = 0
    for _ in range(STUDIES):
        rows = 300
        base = rng.uniform(0.0, 0.3, rows)
        tables = []
        for _ in range(1 + ARMS):
            chance = np.clip(base + rng.normal(0.0, 0.1, rows) * (base > 0.1), 0.0, 1.0)
            tables.append((rng.uniform(size=(REPEATS, rows)) < chance).astype(float))
        errors = [table.mean(axis=1).tolist() for table in tables]
        found = compare("none", errors[1:], errors[0], tables[1:], tables[0])
        said += any(one.outcome == "helps" for one in found)
    assert said <= 0.05 * STUDIES


def test_a_real_effect_is_seen_as_often_as_promised():
    """A true effect of ``smallest_effect`` is detected in 80 % of the studies."""
    rng = np.random.default_rng(3)
    sd = 0.01
    strict = stats.t.ppf(1 - 0.025 / ARMS, REPEATS - 1) + stats.t.ppf(0.8, REPEATS - 1)
    effect = strict * sd / math.sqrt(REPEATS)
    seen = 0
    for _ in range(STUDIES):
        none = rng.normal(0.1, 0.02, REPEATS)
        arms = [none + rng.normal(-effect * (at == 0), sd, REPEATS) for at in range(ARMS)]
        found = compare("none", [arm.tolist() for arm in arms], none.tolist())
        seen += found[0].outcome == "helps"
    assert at_most(0.2, STUDIES) >= STUDIES - seen >= STUDIES * 0.08


def test_intervals_cover_the_truth_in_95_percent_of_the_studies():
    rng = np.random.default_rng(4)
    missed = 0
    for _ in range(STUDIES):
        none = rng.normal(0.1, 0.02, REPEATS)
        arm = none + rng.normal(-0.004, 0.01, REPEATS)
        (found,) = compare("none", [arm.tolist()], none.tolist())
        missed += not found.low <= -0.004 <= found.high
    assert stats.binom.ppf(0.001, STUDIES, 0.05) <= missed <= at_most(0.05, STUDIES)


def test_no_difference_at_all_is_no_benefit():
    (found,) = compare("none", [[0.1] * REPEATS], [0.1] * REPEATS)
    assert found.outcome == "no detectable benefit"
    assert (found.mean, found.low, found.high, found.p_value) == (0.0, 0.0, 0.0, 1.0)


def test_the_same_difference_in_every_repeat_falls_back_on_the_sign_test():
    (found,) = compare("none", [[0.0] * REPEATS], [0.25] * REPEATS)
    assert found.p_value == 2 * 0.5**REPEATS
    assert found.outcome == "helps"


def test_a_curve_counts_the_repeats_that_reached_a_point():
    found = analyse.curve([1, 2, 3], [[0.5, 0.4, 0.3], [0.7, 0.6]])
    assert found.repeats == [2, 2, 1]
    assert found.mean == pytest.approx([0.6, 0.5, 0.3])
    assert found.low[2] == found.high[2] == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("arm", "head"),
    [
        (0.03, "Dropout helps here: test error 3.0"),
        (0.07, "Dropout harms here: test error 7.0"),
        (0.05, "No detectable benefit of dropout here: test error 5.0"),
    ],
)
def test_the_verdict_says_effect_interval_and_what_could_be_seen(arm, head):
    wobble = np.array([0.001, -0.001] * (REPEATS // 2))
    none, errors = (0.05 + wobble).tolist(), (arm + np.roll(wobble, 1)).tolist()
    (difference,) = compare("none", [errors], none)
    units = Units("classification", "y")
    sentence = analyse.verdict(difference, measure(errors), measure(none), units)
    assert sentence.startswith(head)
    assert "points" in sentence
    assert f"over {REPEATS} repeats" in sentence
    assert ("smallest effect that this study could see" in sentence) == (arm == 0.05)
    assert f"difference {units.number(difference.mean)} points [" in sentence


def test_a_regression_verdict_speaks_the_unit_of_the_target():
    (difference,) = compare("none", [[2.0, 2.1] * 4], [3.0, 3.2] * 4)
    units = Units("regression", "price")
    sentence = analyse.verdict(difference, measure([2.0, 2.1]), measure([3.0, 3.2]), units)
    assert "difference -1.05 units of price [" in sentence
    assert "%" not in sentence.replace("95 %", "")


def test_row_errors_survive_packing():
    errors = np.array([0, 1, 1, 0, 0, 0, 0, 0, 1, 0, 1], dtype=float)
    packed = np.packbits(errors > 0).tobytes().hex()
    record = {"test_rows": packed, "rows": [1, 1, len(errors)]}
    assert analyse.row_errors(record).tolist() == errors.tolist()
