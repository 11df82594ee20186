import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sitout.data import DataSet, load, make_splits
from sitout.data._draw import draw, shares


def classes(*counts, test=None, labels=None):
    """A data set with this many rows of each class, its classes interleaved at random."""
    target = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    names = labels or tuple(f"c{i}" for i in range(len(counts)))
    x = np.zeros((len(target), 2))
    return DataSet("d", "classification", x, target, names, test_rows=test)


def numbers(n, test=None):
    return DataSet("d", "regression", np.zeros((n, 2)), np.arange(n, dtype=float), test_rows=test)


def parts(split):
    return split.train, split.validation, split.test


def published(n):
    return np.arange(n - 200, n, dtype=np.int64)


HASHES = ["cfd7e3e2e481b9cf", "994c72311dbbce70", "6d05173f246ec1e8"]
EVERY = [
    (classes(600, 300, 100), None),
    (classes(600, 300, 100), 50),
    (classes(600, 300, 100, test=published(1000)), None),
    (classes(600, 300, 100, test=published(1000)), 50),
    (numbers(997), None),
    (numbers(997), 101),
    (numbers(997, test=published(997)), 101),
    (classes(*[5] * 10), None),
]


@pytest.mark.parametrize(("data", "train_size"), EVERY)
def test_the_parts_of_a_split_are_sorted_disjoint_rows_of_the_data(data, train_size):
    splits = make_splits(data, seed=3, train_size=train_size)
    for split in [splits.tuning(), *(splits.repeat(r) for r in range(5))]:
        for rows in parts(split):
            assert rows.dtype == np.int64
            assert (np.diff(rows) > 0).all()
        every = np.concatenate(parts(split))
        assert len(np.unique(every)) == len(every)
        assert every.min() >= 0
        assert every.max() < data.n_rows


@pytest.mark.parametrize(("data", "train_size"), EVERY)
def test_no_repeat_tests_on_a_row_that_tuning_validated_on(data, train_size):
    splits = make_splits(data, seed=3, train_size=train_size)
    tuning, repeats = splits.tuning(), [splits.repeat(r) for r in range(20)]
    assert np.array_equal(tuning.validation, splits.validation)
    tested = np.concatenate([split.test for split in repeats])
    assert not np.isin(tested, splits.validation).any()
    assert {len(split.validation) for split in repeats} == {len(splits.validation)}
    assert len({split.validation.tobytes() for split in repeats}) == 20


@pytest.mark.parametrize("train_size", [None, 50, 550])
def test_a_random_split_covers_every_row_but_idle_ones_of_tuning(train_size):
    splits = make_splits(classes(600, 300, 100), seed=1, train_size=train_size)
    split = splits.repeat(4)
    idle = np.setdiff1d(np.arange(1000), np.concatenate(parts(split)))
    assert np.isin(idle, splits.validation).all()
    assert len(idle) == 0 or train_size is not None
    assert len(split.validation) == (50 if train_size == 50 else 200)
    assert len(split.train) == (train_size or 550)


def test_a_published_test_is_every_repeats_test_and_is_not_drawn_from():
    data = classes(600, 300, 100, test=published(1000))
    splits = make_splits(data, seed=1)
    assert splits.fixed_test
    assert not make_splits(classes(60, 60), seed=1).fixed_test
    assert len(splits.validation) == 160
    for r in range(10):
        split = splits.repeat(r)
        assert np.array_equal(split.test, published(1000))
        assert len(split.train) == 576
        assert not np.isin(split.train, split.test).any()
    assert len(make_splits(data, seed=1, train_size=77).repeat(0).train) == 77


def test_tuning_draws_its_own_training_rows_and_has_no_test_rows():
    splits = make_splits(numbers(500), seed=1)
    tuning = splits.tuning()
    assert len(tuning.test) == 0
    assert len(tuning.train) == len(splits.repeat(0).train)
    assert all(not np.array_equal(tuning.train, splits.repeat(r).train) for r in range(20))


@pytest.mark.parametrize("train_size", [None, 50])
def test_every_part_keeps_the_shares_of_the_classes(train_size):
    data = classes(600, 300, 100)
    splits = make_splits(data, seed=5, train_size=train_size)
    for r in range(5):
        for rows in parts(splits.repeat(r)):
            counts = np.bincount(data.target[rows], minlength=3)
            assert np.abs(counts - len(rows) * np.array([0.6, 0.3, 0.1])).max() <= max(
                3, len(rows) / 100
            )


def test_every_part_has_every_class_even_where_each_has_5_rows():
    data = classes(*[5] * 10)
    splits = make_splits(data, seed=0)
    for r in range(20):
        for rows in parts(splits.repeat(r)):
            assert len(np.unique(data.target[rows])) == 10


def test_repeats_differ_and_every_row_outside_validation_is_tested_on_in_time():
    splits = make_splits(classes(100, 50), seed=2)
    repeats = [splits.repeat(r) for r in range(60)]
    assert len({split.hash for split in repeats}) == 60
    tested = np.unique(np.concatenate([split.test for split in repeats]))
    assert len(tested) == 150 - len(splits.validation)


def test_a_split_depends_on_seed_and_repeat_alone():
    data = classes(100, 50)
    once, again = make_splits(data, seed=2), make_splits(data, seed=2)
    assert once.repeat(7).hash == again.repeat(7).hash
    assert once.tuning().hash == again.tuning().hash
    other = make_splits(data, seed=3)
    assert not np.array_equal(other.validation, once.validation)
    assert other.repeat(7).hash != once.repeat(7).hash


def test_splits_are_these_on_every_machine():
    splits = make_splits(load("wine"), seed=17)
    hashes = [splits.tuning().hash, splits.repeat(0).hash, splits.repeat(1).hash]
    assert hashes == HASHES
    script = (
        "from sitout.data import load, make_splits;"
        "print(make_splits(load('wine'), seed=17).repeat(1).hash)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == HASHES[2]


def test_validation_and_a_joined_test_have_at_most_10000_rows():
    data = numbers(60_000)
    splits = make_splits(data, seed=0, train_size=1000)
    assert [len(rows) for rows in parts(splits.repeat(0))] == [1000, 1000, 10_000]
    whole = make_splits(data, seed=0).repeat(0)
    assert [len(rows) for rows in parts(whole)] == [35_000, 10_000, 15_000]


@pytest.mark.parametrize(
    ("data", "options", "words"),
    [
        (numbers(49), {}, ["at least 50 rows", "Got 49"]),
        (numbers(249, test=published(249)), {}, ["at least 50 rows", "Got 49"]),
        (classes(96, 4), {}, ["5 rows", "4 of class 'c1'", "Merge it or drop it."]),
        (classes(96, 4, labels=("1", "2.5")), {}, ["'2.5'", "--task regression"]),
        (classes(100), {"train_size": 9}, ["train_size", "at least 10", "Got 9"]),
        (classes(100), {"train_size": 56}, ["at most 55", "available", "Got 56"]),
        (classes(*[10] * 12), {"train_size": 11}, ["at least 12", "one per class of 12", "Got 11"]),
        (classes(100), {"train_size": 20.0}, ["integer", "Got 20.0"]),
        (classes(100), {"train_size": True}, ["integer", "Got True"]),
        (classes(100), {"train_size": "20"}, ["integer", "Got '20'"]),
        (classes(100), {"seed": -1}, ["`seed`", "Got -1"]),
        (classes(100), {"seed": True}, ["`seed`", "Got True"]),
        (classes(100), {"seed": 1.0}, ["`seed`", "Got 1.0"]),
    ],
)
def test_a_plan_that_cannot_be_made_says_why_in_one_line(refused, data, options, words):
    with refused(*words):
        make_splits(data, **{"seed": 0, **options})


@pytest.mark.parametrize("r", [-1, True, 1.0, "0", None])
def test_a_repeat_is_a_whole_number_from_0(refused, r):
    splits = make_splits(numbers(60), seed=0)
    with refused("`r` of repeat", repr(r)):
        splits.repeat(r)


def test_the_rows_available_can_be_taken_to_the_last():
    split = make_splits(classes(100), seed=0, train_size=55).repeat(0)
    assert [len(rows) for rows in parts(split)] == [55, 20, 25]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_shares_add_up_fit_and_leave_no_class_out(data):
    counts = np.array(data.draw(st.lists(st.integers(1, 10_000), min_size=1, max_size=40)))
    k = data.draw(st.integers(0, int(counts.sum())))
    given_out = shares(counts, k)
    assert given_out.sum() == k
    assert (given_out <= counts).all()
    assert (given_out >= (k >= len(counts))).all()
    quota = k * counts / counts.sum()
    if (quota >= 1).all():
        assert (np.abs(given_out - quota) < 1).all()


def test_every_row_of_a_class_is_drawn_equally_often():
    rows, strata = np.arange(40), np.repeat([0, 1], [30, 10])
    draws = 4000
    counts = np.zeros(40)
    for seed in range(draws):
        drawn, left = draw(rows, strata, 12, np.random.SeedSequence(seed))
        counts[drawn] += 1
        assert len(drawn) + len(left) == 40
    # Each row is drawn with probability 0.3; five standard deviations over 40 rows.
    assert np.abs(counts / draws - 0.3).max() < 5 * np.sqrt(0.3 * 0.7 / draws)
