"""The command that predicts new rows with dropout left on, on studies of both kinds."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_diabetes, load_wine
from typer.testing import CliRunner

import sitout
from sitout._study.predict import load
from sitout._study.store import read_json
from sitout.cli import app

SMALL = {"network": "mlp:12x1", "trials": 1, "epochs": 4}


def conducted(folder, data, arms):
    sitout.study(data, arms=arms, out=folder, **SMALL)
    return folder


@pytest.fixture(scope="module")
def wine(tmp_path_factory):
    folder = conducted(tmp_path_factory.mktemp("wine") / "s", "wine", ["none", "dropout"])
    load_wine(as_frame=True).data.iloc[::9].to_csv(folder / "new.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def diabetes(tmp_path_factory):
    folder = conducted(tmp_path_factory.mktemp("diabetes") / "s", "diabetes", ["dropout"])
    frame = load_diabetes(as_frame=True).data.iloc[::20]
    frame.to_csv(folder / "new.csv", index=False)
    np.savez(folder / "strange.npz", X=frame.to_numpy())
    return folder


def command(folder, *arguments, rows="new.csv"):
    return CliRunner().invoke(app, ["predict", str(folder), str(folder / rows), *arguments])


def table(folder, *arguments):
    done = command(folder, *arguments)
    assert done.exit_code == 0, done.stderr
    return pd.read_csv(io.StringIO(done.stdout))


SAMPLED = ["--arm", "dropout", "--samples", "20"]


def test_classes_come_with_mean_probabilities_entropy_and_mutual_information(wine):
    found = table(wine, *SAMPLED)
    labels = [f"p(class_{i})" for i in range(3)]
    assert list(found) == ["target", *labels, "entropy", "mutual_information"]
    probabilities = found[labels].to_numpy()
    entropy = -(probabilities * np.log(probabilities)).sum(1)
    assert np.allclose(found["entropy"], entropy, atol=1e-4)
    assert (found["mutual_information"] > 0).all()
    assert (found["mutual_information"] < found["entropy"]).all()
    assert list(found["target"]) == [labels[i][2:-1] for i in probabilities.argmax(1)]


def test_numbers_come_with_their_deviation_in_the_unit_of_the_target(diabetes):
    found = table(diabetes, *SAMPLED)
    assert list(found) == ["target", "std"]
    trained = load(diabetes, "dropout")
    rows = trained.preprocess.transform(pd.read_csv(diabetes / "new.csv"))
    made = sitout.mc.predict(trained.network, rows, samples=20)
    unit = trained.preprocess.target_sd
    assert unit > 50
    assert np.allclose(found["std"], made.std[:, 0] * unit, rtol=1e-4)
    mean = trained.preprocess.target_mean + unit * made.mean[:, 0].numpy()
    assert np.allclose(found["target"], mean, rtol=1e-4)


def test_a_network_is_loaded_with_the_rates_of_its_training(wine):
    settings = read_json(wine / "runs" / "dropout-repeat-00.json")["settings"]
    network = load(wine, "dropout").network
    assert network.input_dropout.p == settings["input_rate"]
    assert network.dropout1.p == settings["hidden_rate"] > 0
    assert load(wine, "none").network.dropout1.p == 0


def test_the_best_arm_by_name_is_the_one_in_best(wine):
    best = load(wine)
    named = load(wine, best.settings["arm"])
    other = load(wine, ({"none", "dropout"} - {best.settings["arm"]}).pop())
    for key, weight in best.network.state_dict().items():
        assert torch.equal(weight, named.network.state_dict()[key])
    assert not torch.equal(best.network.output.weight, other.network.output.weight)
    record = read_json(wine / "runs" / f"{best.settings['arm']}-repeat-00.json")
    assert best.settings["settings"] == record["settings"]


def test_the_same_command_writes_the_same_and_another_seed_does_not(diabetes):
    first, again, other = (table(diabetes, *SAMPLED, *more) for more in ([], [], ["--seed", "1"]))
    assert first.equals(again)
    assert not np.allclose(first["std"], other["std"])


def test_it_says_which_arm_it_uses(wine):
    best = load(wine).settings["arm"]
    assert command(wine).stderr == (f"sitout predict: The network of the arm {best}, no samples.\n")
    assert "arm dropout, 20 samples" in command(wine, *SAMPLED).stderr


@pytest.mark.parametrize("ending", ["csv", "parquet", "npz"])
def test_the_ending_of_out_says_which_kind_of_file_it_is(wine, tmp_path, ending):
    path = tmp_path / f"found.{ending}"
    done = command(wine, *SAMPLED, "--out", str(path))
    assert (done.exit_code, done.stdout) == (0, "")
    if ending == "npz":
        found = pd.DataFrame(dict(np.load(path)))
    else:
        found = (pd.read_csv if ending == "csv" else pd.read_parquet)(path)
    expected = table(wine, *SAMPLED)
    assert list(found) == list(expected)
    assert list(found["target"]) == list(expected["target"])
    assert np.allclose(found.iloc[:, 1:], expected.iloc[:, 1:], atol=1e-6)


def without(path, column):
    frame = pd.read_csv(path).drop(columns=column)
    frame.to_csv(path.with_name("lacks.csv"), index=False)
    return "lacks.csv"


FAULTS = [
    (["--arm", "none", "--samples", "20"], "Choose --arm dropout."),
    (["--arm", "l2"], "one of none, dropout"),
    (["--arm", "dropout", "--samples", "1"], "2 or more"),
    ([*SAMPLED, "--seed", "-1"], "in [0, 2**32)"),
    ([*SAMPLED, "--out", "found.xlsx"], ".csv, .parquet, .npz"),
]


@pytest.mark.parametrize(("arguments", "says"), FAULTS)
def test_what_does_not_fit_is_one_line_and_exit_code_2(wine, arguments, says):
    done = command(wine, *arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_missing_column_is_named_in_one_line(wine):
    done = command(wine, *SAMPLED, rows=without(wine / "new.csv", "ash"))
    assert (done.exit_code, done.stdout) == (2, "")
    assert "'ash'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_array_for_a_table_is_refused_in_one_line(diabetes):
    done = command(diabetes, *SAMPLED, rows="strange.npz")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1


def test_rows_are_needed_for_samples(wine):
    pd.read_csv(wine / "new.csv").iloc[:0].to_csv(wine / "none.csv", index=False)
    done = command(wine, *SAMPLED, rows="none.csv")
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1


def test_a_copy_of_best_alone_has_its_own_arm_and_no_other(wine):
    arm = load(wine / "best").settings["arm"]
    assert load(wine / "best", arm).settings["arm"] == arm
    other = ({"none", "dropout"} - {arm}).pop()
    with pytest.raises(sitout.StudyError, match="the whole study"):
        load(wine / "best", other)


def test_a_network_of_the_users_is_sampled_at_its_scaled_rates(tmp_path):
    options = {"network": "networks_for_tests:convolutional", "trials": 1, "epochs": 1}
    sitout.study("digits", train_size=100, arms=["dropout"], out=tmp_path, **options)
    trained = load(tmp_path)
    scale = trained.settings["settings"]["rate_scale"]
    assert trained.network[3].p == pytest.approx(0.2 * scale)
    sitout.data.load("digits").features[:5].to_csv(tmp_path / "new.csv", index=False)
    assert (table(tmp_path, "--samples", "10")["mutual_information"] > 0).all()
