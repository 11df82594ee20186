import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sitout.data import DataSet, Preprocess, load, make_splits, read_rows

TRAIN = np.arange(40)


@pytest.fixture
def mixed():
    """60 rows of a number, a number with gaps, text with gaps and truth values."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "a": rng.normal(50, 9, 60),
            "gap": np.where(np.arange(60) % 5 == 0, np.nan, rng.normal(size=60)),
            "kind": ["r", "g", "b", None, "g", "r"] * 10,
            "truth": [True, False] * 30,
        }
    )
    return DataSet("mixed", "regression", frame, rng.normal(300, 40, 60), target_name="y")


@pytest.fixture
def images():
    """60 rows [2, 3] of floats."""
    rng = np.random.default_rng(1)
    return DataSet(
        "i", "classification", rng.normal(7, 3, (60, 2, 3)), np.arange(60) % 2, ("u", "v")
    )


def again(preprocess):
    return Preprocess.from_dict(json.loads(json.dumps(preprocess.to_dict(), allow_nan=False)))


# Tables


def test_numbers_are_standardised_by_the_training_rows(mixed):
    x = Preprocess.fit(mixed, TRAIN).transform(mixed.features)
    column = mixed.features["a"].to_numpy()
    wanted = (column - column[:40].mean()) / column[:40].std()
    assert x.dtype == torch.float32
    assert np.array_equal(x[:, 0].numpy(), wanted.astype(np.float32))


def test_gaps_take_the_training_median_and_an_indicator(mixed):
    preprocess = Preprocess.fit(mixed, TRAIN)
    assert preprocess.shape == (1 + 2 + 3 + 1,)
    x = preprocess.transform(mixed.features).numpy()
    gap = mixed.features["gap"].to_numpy()
    filled = np.where(np.isnan(gap), np.nanmedian(gap[:40]), gap)
    wanted = (filled - filled[:40].mean()) / filled[:40].std()
    np.testing.assert_allclose(x[:, 1], wanted, rtol=1e-6)
    assert np.array_equal(x[:, 2], np.isnan(gap).astype(np.float32))


def test_gaps_that_training_has_not_seen_take_the_median_without_an_indicator(mixed):
    full = np.flatnonzero(~mixed.features["gap"].isna())
    preprocess = Preprocess.fit(mixed, full)
    assert preprocess.shape == (1 + 1 + 3 + 1,)
    values = mixed.features["gap"].to_numpy()[full]
    wanted = (np.median(values) - values.mean()) / values.std()
    np.testing.assert_allclose(preprocess.transform(mixed.features)[0, 1], wanted, rtol=1e-6)


def test_text_becomes_one_column_per_training_value_and_unknown_is_zeros(mixed):
    preprocess = Preprocess.fit(mixed, TRAIN)
    new = mixed.features.head(5).assign(kind=["b", "g", "r", None, "never seen"])
    hot = preprocess.transform(new)[:, 3:6]
    assert hot.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("task", ["regression", "classification"])
def test_nothing_is_learnt_from_rows_outside_training(mixed, images, task):
    for data in (mixed, images):
        features, target = data.features.copy(), data.target.copy()
        if isinstance(features, pd.DataFrame):
            features.loc[40:, "a"] = 1e6
            features.loc[40:, "gap"] = np.nan
            features.loc[40:, "kind"] = "other"
        else:
            features[40:] = 1e6
        target[40:] = 0
        changed = replace(data, features=features, target=target)
        fitted = Preprocess.fit(data, TRAIN).to_dict()
        assert fitted == Preprocess.fit(changed, TRAIN).to_dict()
        assert fitted != Preprocess.fit(changed, np.arange(60)).to_dict()


@pytest.mark.parametrize("rows", [TRAIN, np.array([3]), np.array([0, 5])])
def test_a_json_round_trip_changes_no_bit(mixed, images, rows):
    for data in (mixed, images, replace(images, scale=255.0), load("digits")):
        preprocess = Preprocess.fit(data, rows)
        copy = again(preprocess)
        assert copy.to_dict() == preprocess.to_dict()
        assert copy.shape == preprocess.shape
        x = preprocess.transform(data.features)
        assert torch.equal(copy.transform(data.features), x)
        assert x.isfinite().all()
        assert torch.equal(copy.target(data.target), preprocess.target(data.target))


def test_digits_are_only_divided():
    digits = load("digits")
    x = Preprocess.fit(digits, TRAIN).transform(digits.features)
    assert np.array_equal(x.numpy() * 16, digits.features.to_numpy())


def test_columns_may_come_in_any_order_and_with_others(mixed):
    preprocess = Preprocess.fit(mixed, TRAIN)
    shuffled = mixed.features[["truth", "kind", "a", "gap"]].assign(more="x")
    assert torch.equal(preprocess.transform(shuffled), preprocess.transform(mixed.features))


def test_a_column_that_training_never_saw_a_value_of_is_harmless(mixed):
    rows = np.flatnonzero(mixed.features["gap"].isna())
    x = Preprocess.fit(mixed, rows).transform(mixed.features)
    assert x.isfinite().all()
    assert (x[rows, 1] == 0).all()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(-1e307, 1e307), min_size=1, max_size=9))
def test_training_rows_of_numbers_up_to_1e307_become_finite(values):
    n = len(values)
    for features in (pd.DataFrame({"a": values}), np.array(values)[:, None]):
        data = DataSet("d", "regression", features, np.array(values))
        preprocess = Preprocess.fit(data, np.arange(n))
        x = preprocess.transform(features)
        assert x.isfinite().all()
        assert x.abs().max() <= math.sqrt(n) + 1e-3
        back = preprocess.untarget(preprocess.target(data.target))
        assert np.isfinite(back).all()


@pytest.mark.parametrize("value", [0.1, 0.3, 1e300, 1e-300, -7e15])
def test_a_constant_column_becomes_zeros_and_a_new_value_is_not_blown_up(value):
    data = DataSet("d", "regression", pd.DataFrame({"a": [value] * 999}), np.arange(999.0))
    preprocess = Preprocess.fit(data, np.arange(999))
    assert preprocess.to_dict()["features"]["columns"][0]["sd"] == 1.0
    if abs(value) < 1e9:
        new = pd.DataFrame({"a": [value + 1]})
        np.testing.assert_allclose(preprocess.transform(new), [[1.0]], rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: f.rename(columns={"gap": "gape"}), ["'gap'", "'gape'", "Did you mean 'gape'?"]),
        (lambda f: f[["a"]], ["have the column 'gap'", "Got 'a'"]),
        (lambda f: pd.concat([f, f[["a"]]], axis=1), ["'a' once", "2 times"]),
        (lambda f: f.assign(a=["1", "x"] * 30), ["'a'", "numbers", "'x' in data row 2"]),
        (lambda f: f.assign(a=np.inf), ["'a'", "finite", "60"]),
        (lambda f: f.assign(a=1e300), ["'a'", "finite", "too large"]),
        (lambda f: f.to_numpy(), ["table with the columns 'a', 'gap'", "array object [60, 4]"]),
        (lambda f: None, ["table with the columns", "NoneType"]),
    ],
)
def test_a_table_that_does_not_fit_says_why_in_one_line(mixed, refused, change, words):
    preprocess = Preprocess.fit(mixed, TRAIN)
    with refused(*words):
        preprocess.transform(change(mixed.features))


# Arrays


def test_arrays_are_standardised_feature_by_feature(images):
    preprocess = Preprocess.fit(images, TRAIN)
    x = preprocess.transform(images.features)
    train = images.features[:40]
    wanted = (images.features - train.mean(0)) / train.std(0)
    assert preprocess.shape == (2, 3)
    np.testing.assert_allclose(x, wanted, rtol=1e-5, atol=1e-6)


def test_bytes_are_divided_by_255_in_blocks_of_any_size():
    x = np.random.default_rng(0).integers(0, 256, (4099, 1, 2, 2), dtype=np.uint8)
    data = DataSet("d", "classification", x, np.arange(4099) % 2, ("u", "v"), scale=255.0)
    got = Preprocess.fit(data, TRAIN).transform(x)
    assert got.shape == (4099, 1, 2, 2)
    assert np.array_equal(got.numpy(), (x / 255).astype(np.float32))


@pytest.mark.parametrize("n", [0, 1])
def test_few_or_no_rows_are_transformed(images, mixed, n):
    assert Preprocess.fit(images, TRAIN).transform(images.features[:n]).shape == (n, 2, 3)
    assert Preprocess.fit(mixed, TRAIN).transform(mixed.features[:n]).shape == (n, 7)


@pytest.mark.parametrize(
    ("features", "words"),
    [
        (np.zeros((2, 6)), ["[2, 3]", "float64 [2, 6]"]),
        (np.zeros((2, 3)), ["[2, 3]", "float64 [2, 3]"]),
        (np.full((4, 2, 3), np.nan), ["finite", "24 NaN"]),
        (np.full((1, 2, 3), -np.inf), ["finite"]),
        (np.full((1, 2, 3), "x"), ["numbers", "<U1"]),
        (pd.DataFrame({"a": [1]}), ["array", "table with the columns 'a'"]),
    ],
)
def test_an_array_that_does_not_fit_says_why_in_one_line(images, refused, features, words):
    preprocess = Preprocess.fit(images, TRAIN)
    with refused(*words):
        preprocess.transform(features)


# Targets


def test_a_target_is_standardised_by_the_training_rows_and_comes_back(mixed):
    preprocess = Preprocess.fit(mixed, TRAIN)
    y = preprocess.target(mixed.target)
    train = mixed.target[:40]
    assert y.dtype == torch.float32
    np.testing.assert_allclose(y, (mixed.target - train.mean()) / train.std(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(preprocess.untarget(y), mixed.target, rtol=1e-6)
    assert preprocess.untarget(y[:, None]).shape == (60, 1)


def test_classes_stay_codes_and_come_back_as_labels(images):
    preprocess = Preprocess.fit(images, TRAIN)
    y = preprocess.target(images.target)
    assert y.dtype == torch.int64
    assert y.tolist() == images.target.tolist()
    assert preprocess.untarget(y[:3]).tolist() == ["u", "v", "u"]


def test_a_fit_needs_rows_and_a_feature(mixed, images, refused):
    with refused("Training rows", "at least one", "none"):
        Preprocess.fit(images, np.array([], dtype=np.int64))
    empty = pd.DataFrame({"c": ["x"] * 10 + [None] * 50}, dtype=object)
    with refused("at least one feature", "missing"):
        Preprocess.fit(replace(mixed, features=empty), np.arange(20, 60))


@pytest.mark.parametrize(
    "state",
    [
        {},
        None,
        {"features": {}},
        {"features": {"columns": [{"x": 1}]}, "classes": [], "target_mean": 0, "target_sd": 1},
        {"features": {"shape": [1], "mean": ["q"], "sd": [1]}, "classes": []},
    ],
)
def test_a_state_that_is_none_is_refused(refused, state):
    with refused("Preprocess.to_dict"):
        Preprocess.from_dict(state)


# read_rows


def test_rows_read_back_transform_as_they_were_fitted(write):
    text = "a,zip,truth,y\n" + "".join(
        f"{i if i % 7 else ''},0{i % 3}{'x' * (i == 1)},{['true', '', 'False'][i % 3]},{i % 2}\n"
        for i in range(60)
    )
    path = write(text)
    data = load(path, target="y")
    preprocess = Preprocess.fit(data, np.arange(60))
    wanted = preprocess.transform(data.features)
    assert torch.equal(preprocess.transform(read_rows(path, preprocess)), wanted)
    for rows in (slice(0, 1), slice(2, 3), slice(7, 8), slice(3, 20)):
        lines = text.splitlines()
        part = write("\n".join([lines[0], *lines[1:][rows]]), "part.csv")
        assert torch.equal(preprocess.transform(read_rows(part, preprocess)), wanted[rows])


def test_a_lone_column_keeps_its_blank_line_as_a_missing_value(write):
    data = DataSet("d", "regression", pd.DataFrame({"a": np.arange(60.0)}), np.arange(60.0))
    preprocess = Preprocess.fit(data, TRAIN)
    rows = read_rows(write("a\n1\n\n3\n"), preprocess)
    assert rows["a"].isna().tolist() == [False, True, False]


@pytest.mark.parametrize("header", ["p,q,r,s,t,u", "0,1,2,3,4,5", ",p,q,r,s,t,u"])
def test_a_table_becomes_rows_of_the_fitted_shape(images, write, header):
    lead = "0," if header.startswith(",") else ""
    rows = read_rows(write(f"{header}\n{lead}1,2,3,4,5,6\n"), Preprocess.fit(images, TRAIN))
    assert rows.tolist() == [[[1, 2, 3], [4, 5, 6]]]


def test_arrays_are_read_without_a_target(images, tmp_path):
    np.savez(tmp_path / "new.npz", X=images.features)
    preprocess = Preprocess.fit(images, TRAIN)
    rows = read_rows(tmp_path / "new.npz", preprocess)
    assert torch.equal(preprocess.transform(rows), preprocess.transform(images.features))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ["empty"]),
        ("p,q,r,s,t,u\n", ["rows of data"]),
        ("p,q,r,s,t\n1,2,3,4,5\n", ["6 columns", "[2, 3]", "Got 5"]),
        ("p,q,r,s,t,u\n1,2,3,4,5,6\n1,2,3,4,5,x\n", ["'u'", "numbers", "'x' in data row 2"]),
        ("p,q,r,s,t,u\n1,2,3,4,5,\n", ["'u'", "finite", "1 missing"]),
        ("p,q,r,s,t,u\n1,2,3,4,5,inf\n", ["'u'", "finite", "1 missing or infinite"]),
        ("1.5,2,3,4,5,6\n1,2,3,4,5,6\n", ["line of column names"]),
    ],
)
def test_rows_that_do_not_fit_an_array_say_why_in_one_line(images, write, refused, content, words):
    path = write(content)
    with refused(*words):
        read_rows(path, Preprocess.fit(images, TRAIN))


def test_rows_that_are_not_there_are_refused(images, mixed, write, tmp_path, refused):
    preprocess = Preprocess.fit(images, TRAIN)
    write("a\n1\n", "new.csv")
    with refused("exist", "Did you mean 'new.csv'?"):
        read_rows(tmp_path / "now.csv", preprocess)
    with refused("File", ".npz", "'mnist'"):
        read_rows("mnist", preprocess)
    with refused("directory"):
        read_rows(tmp_path, preprocess)
    np.savez(tmp_path / "bare.npz", y=np.zeros(3))
    with refused("array X", "Got 'y'"):
        read_rows(tmp_path / "bare.npz", preprocess)
    np.savez(tmp_path / "x.npz", X=np.zeros((3, 4)))
    table = Preprocess.fit(mixed, TRAIN)
    with refused("table with the columns", "[3, 4]"):
        table.transform(read_rows(tmp_path / "x.npz", table))


def test_mnist_is_split_and_scaled_as_published(image_dir):
    data = load("mnist", data_dir=image_dir)
    split = make_splits(data, seed=0, train_size=1000).repeat(0)
    preprocess = Preprocess.fit(data, split.train)
    x = preprocess.transform(data.features[split.test])
    assert (len(split.train), len(split.validation), x.shape) == (1000, 1000, (10_000, 1, 28, 28))
    assert (x.min(), x.max()) == (0, 1)
