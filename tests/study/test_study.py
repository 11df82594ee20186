"""The main job, end to end: resume, faults, and the trained network at work."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import sitout
from sitout._study import networks
from sitout._study.predict import load, predict
from sitout._study.store import read_json
from sitout.cli import app

HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(HERE), "COLUMNS": "100"}
# Long enough to be caught in the middle, small enough for a test.
SMALL = ["--net", "mlp:12x1", "--trials", "2", "--epochs", "60", "--arms", "none,dropout"]


def command(*arguments):
    return [sys.executable, "-m", "sitout", "study", *arguments]


def run(*arguments, cwd):
    return subprocess.run(
        command(*arguments), cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )


def numbers(folder):
    """Everything in a report but times and places."""
    report = json.loads((Path(folder) / "report.json").read_text())
    for key in ("seconds", "out"):
        del report[key]
    for arm in report["arms"]:
        del arm["seconds_per_epoch"]
    return report


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    done = run("wine", *SMALL, "--jobs", "2", "--out", "s", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "s", done


def test_a_study_prints_its_verdicts_and_writes_its_files(undisturbed):
    folder, done = undisturbed
    report = json.loads((folder / "report.json").read_text())
    for text in (report["verdict"], report["verdict_best_other"], "none", "dropout"):
        assert text in done.stdout
    assert "wine: 98 training, 36 validation and 44 test rows" in done.stderr
    assert report["verdict"] in (folder / "report.html").read_text()
    assert {file.name for file in (folder / "best").iterdir()} == {
        "model.safetensors",
        "preprocess.json",
        "settings.json",
    }


@pytest.mark.parametrize("runs_before_the_kill", [0, 3, 9])
def test_killed_at_any_moment_it_resumes_and_ends_with_the_same_numbers(
    undisturbed, tmp_path, runs_before_the_kill
):
    """kill -9 loses at most the runs in flight; the processes that it leaves end by themselves."""
    arguments = ("wine", *SMALL, "--jobs", "2", "--out", "s")
    process = subprocess.Popen(
        command(*arguments), cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.DEVNULL
    )
    runs = tmp_path / "s" / "runs"
    deadline = time.monotonic() + 120
    while len(list(runs.glob("*.json"))) < runs_before_the_kill or not (tmp_path / "s").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {file.name: file.stat().st_mtime_ns for file in runs.glob("*.json")}
    assert len(kept) < 20, "the kill came too late to test anything"
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert numbers(tmp_path / "s") == numbers(undisturbed[0])
    for name, written in kept.items():
        assert (runs / name).stat().st_mtime_ns == written, f"{name} was run again"
    assert not list((tmp_path / "s").rglob("*.part"))


def heed_ctrl_c():
    """Undo what a job in the background inherits: there Ctrl-C is ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_ctrl_c_says_what_is_kept_and_how_to_go_on(tmp_path):
    process = subprocess.Popen(
        command("wine", *SMALL, "--jobs", "2", "--out", "s"),
        cwd=tmp_path,
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=heed_ctrl_c,
    )
    runs = tmp_path / "s" / "runs"
    deadline = time.monotonic() + 120
    while len(list(runs.glob("*.json"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert re.search(r"Stopped\. \d+ of 20 runs are on disk in s; the same command resumes\.", said)
    assert "Traceback" not in said


def test_numbers_do_not_depend_on_the_number_of_processes(undisturbed, tmp_path):
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    found = sitout.study(
        "wine",
        network="mlp:12x1",
        trials=2,
        epochs=60,
        arms=["none", "dropout"],
        jobs=1,
        out=tmp_path,
    )
    assert numbers(tmp_path) == numbers(undisturbed[0])
    assert json.loads((tmp_path / "report.json").read_text()) == json.loads(found.to_json())
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


def test_arms_are_paired_and_tuned_alike(undisturbed):
    """Equal splits in every repeat; equal learning rates in the first half of the trials."""
    folder, _ = undisturbed
    records = {
        arm: [read_json(folder / "runs" / f"{arm}-repeat-{r:02}.json") for r in range(8)]
        for arm in ("none", "dropout")
    }
    splits = [[record["split"] for record in records[arm]] for arm in records]
    assert splits[0] == splits[1]
    assert len(set(splits[0])) == 8
    report = json.loads((folder / "report.json").read_text())
    first = [arm["trials"][0]["settings"]["learning_rate"] for arm in report["arms"]]
    assert first[0] == first[1]
    assert [len(arm["trials"]) for arm in report["arms"]] == [2, 2]


def test_a_trial_never_reads_test_rows(undisturbed):
    folder, _ = undisturbed
    for file in (folder / "runs").glob("*-trial-*.json"):
        assert not any("test" in key for key in read_json(file))


def test_the_trained_network_predicts_new_rows(undisturbed, tmp_path):
    folder, _ = undisturbed
    from sklearn.datasets import load_wine

    frame = load_wine(as_frame=True).data
    frame.iloc[:20].to_csv(tmp_path / "new.csv", index=False)
    result = CliRunner().invoke(app, ["predict", str(folder), str(tmp_path / "new.csv")])
    assert result.exit_code == 0
    (tmp_path / "out.csv").write_text(result.stdout)
    table = pd.read_csv(tmp_path / "out.csv")
    assert len(table) == 20
    assert np.allclose(table.filter(like="p(").sum(axis=1), 1.0, atol=1e-5)
    assert (table["target"] == "class_0").mean() > 0.5  # the first rows are of class 0


def test_the_best_network_is_the_one_that_was_measured(undisturbed):
    """Its validation error, computed anew from best/, is the one in the report."""
    folder, _ = undisturbed
    trained = load(folder)
    data = sitout.data.load("wine")
    split = sitout.data.make_splits(data, seed=0).repeat(0)
    assert not set(split.validation) & set(split.train)
    labels = np.array(data.classes)[data.target[split.validation]]
    data.features.iloc[split.validation].to_csv(folder / "validation.csv", index=False)
    predicted = predict(folder, folder / "validation.csv")["target"].to_numpy()
    assert (predicted != labels).mean() == trained.settings["validation_error"]


FAULTS = [
    (["nope"], "nope"),
    (["nope.csv"], "must exist"),
    (["table.csv"], "--target"),
    (["table.csv", "--target", "pirce"], "price"),
    (["empty.csv", "--target", "y"], "empty"),
    (["constant.csv", "--target", "y"], "two values or more. Got '1.5'"),
    (["one_class.csv", "--target", "y"], "two values or more. Got 'yes'"),
    (["infinite.csv", "--target", "y"], "infinit"),
    (["few.csv", "--target", "y"], "50"),
    (["wine", "--task", "clustering"], "classification or regression"),
    (["wine", "--train-size", "5000"], "5000"),
    (["wine", "--arms", "none,dropuot"], "Did you mean 'dropout'?"),
    (["wine", "--repeats", "3"], "8 or more"),
    (["wine", "--budget", "soon"], "10m"),
    (["wine", "--budget", "1s", "--net", "mlp:2048x3"], "Give more"),
    (["wine", "--jobs", "0"], "1 or more"),
    (["wine", "--net", "networks_for_tests:one_output_short"], "[B, 3]"),
    (["wine", "--net", "networks_for_tests:wrong_input"], "rows of shape (13,)"),
    (["wine", "--net", "networks_for_tests:without_dropout"], "dropout layers with p > 0"),
    (["wine", "--net", "networks_for_tests:no_module"], "torch.nn.Module"),
    (["wine", "--net", "networks_for_tests:raising"], "out of ideas"),
    (["wine", "--net", "networks_for_tests:nope"], "nope"),
    (["wine", "--net", "no_such_module:net"], "no_such_module"),
    (["wine", "--net", "networks_for_tests:always_the_same"], "a new network at each call"),
    (["wine", "--net", "networks_for_tests:seeded_elsewhere"], "torch's generator alone"),
    (["wine", "--out", "table.csv/below"], "table.csv"),
    (["mnist", "--data-dir", "nowhere"], "nowhere"),
]


@pytest.fixture(scope="module")
def folder_of_faults(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"a": rng.normal(size=80), "price": rng.normal(size=80)})
    table.to_csv(folder / "table.csv", index=False)
    (folder / "empty.csv").write_text("")
    table.assign(y=1.5).to_csv(folder / "constant.csv", index=False)
    table.assign(y="yes").to_csv(folder / "one_class.csv", index=False)
    y = rng.normal(size=80)
    table.assign(y=y, a=[np.inf] + [0.1] * 79).to_csv(folder / "infinite.csv", index=False)
    table.assign(y=y).head(20).to_csv(folder / "few.csv", index=False)
    return folder


@pytest.mark.parametrize(
    ("arguments", "words"),
    FAULTS,
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_a_fault_is_one_clear_line_and_exit_code_2(folder_of_faults, monkeypatch, arguments, words):
    monkeypatch.chdir(folder_of_faults)
    quick = [] if "--budget" in arguments else ["--trials", "2", "--epochs", "4"]
    result = CliRunner().invoke(app, ["study", *arguments, *quick])
    assert result.exit_code == 2, result.output
    said = [line for line in result.stderr.splitlines() if line.startswith("sitout study:")]
    assert len(said) == 1
    assert words in said[0]
    assert result.stderr.splitlines()[-1] == said[0]
    assert "Traceback" not in result.output


def test_debug_shows_the_traceback(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["study", "nope.csv", "--debug"])
    assert isinstance(result.exception, sitout.StudyError)


def test_a_full_disk_is_one_line_and_what_had_finished_is_kept(tmp_path):
    """A file size limit stands in for a full disk: the first large file cannot be written."""
    import resource

    arguments = ("wine", *SMALL[2:], "--net", "mlp:600x2", "--jobs", "2", "--out", "s")
    stopped = subprocess.run(
        command(*arguments),
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000)),
    )
    assert stopped.returncode == 2, stopped.stderr
    assert "Cannot write" in stopped.stderr.splitlines()[-1]
    assert "Traceback" not in stopped.stderr
    kept = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "s/runs").glob("*.json")}
    assert kept
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for name, written in kept.items():
        assert (tmp_path / "s/runs" / name).stat().st_mtime_ns == written


def test_the_same_folder_refuses_another_study(undisturbed):
    folder, _ = undisturbed
    done = run("wine", *SMALL, "--seed", "5", "--out", str(folder), cwd=folder.parent)
    assert done.returncode == 2
    assert "seed: 0 there, 5 now" in done.stderr


def test_json_goes_to_standard_output_and_nothing_else(undisturbed):
    folder, _ = undisturbed
    done = run("wine", *SMALL, "--jobs", "1", "--out", str(folder), "--json", cwd=folder.parent)
    assert json.loads(done.stdout)["verdict"]
    assert "20/20" in done.stderr


def test_a_network_of_the_user_s_own(tmp_path):
    found = sitout.study(
        "digits",
        network="networks_for_tests:convolutional",
        train_size=100,
        optimizer="adam",
        trials=1,
        epochs=2,
        arms=["none", "dropout", "max-norm"],
        out=tmp_path,
    )
    dropout = next(arm for arm in found.arms if arm.name == "dropout")
    assert "rate_scale" in dropout.settings
    assert dropout.worst_unit.site in {"3", "5"}
    assert dropout.silencing.mean[-1] > dropout.silencing.mean[0]
    assert len(predict(tmp_path, _digits(tmp_path))) == 10


def _digits(folder):
    data = sitout.data.load("digits")
    data.features.iloc[:10].to_csv(folder / "rows.csv", index=False)
    return folder / "rows.csv"


def test_a_network_that_stays_random_is_told_of(tmp_path):
    said = []
    sitout.study(
        "wine",
        network="networks_for_tests:functional_dropout",
        trials=1,
        epochs=1,
        arms=["none", "dropout"],
        out=tmp_path,
        say=said.append,
    )
    assert any("stays random" in line for line in said)


def test_one_dropout_layer_at_two_places_is_measured_at_the_first(tmp_path):
    found = sitout.study(
        "wine",
        network="networks_for_tests:one_dropout_twice",
        trials=1,
        epochs=1,
        arms=["dropout"],
        out=tmp_path,
    )
    assert found.arms[0].worst_unit.unit < 8


def test_another_network_of_the_same_name_does_not_resume_a_study(tmp_path, monkeypatch):
    import networks_for_tests

    def once():
        network = "networks_for_tests:normalised"
        sitout.study("wine", network=network, trials=1, epochs=1, arms=["none"], out=tmp_path)

    once()
    monkeypatch.setattr(networks_for_tests, "normalised", networks_for_tests.without_dropout)
    with pytest.raises(sitout.StudyError, match="architecture"):
        once()


def test_two_studies_cannot_use_one_folder_at_once(tmp_path):
    from sitout._study.store import only_one

    with only_one(tmp_path), pytest.raises(sitout.StudyError, match="one study at a time"):
        sitout.study("wine", network="mlp:4x1", trials=1, epochs=1, out=tmp_path)


def test_progress_is_told_after_each_run_in_one_process_too(tmp_path):
    on_disk = []
    sitout.study(
        "wine",
        network="mlp:4x1",
        trials=1,
        epochs=1,
        arms=["none"],
        out=tmp_path,
        report=lambda event: on_disk.append(len(list((tmp_path / "runs").glob("*.json")))),
    )
    assert on_disk == list(range(1, 10))


def test_regression_is_measured_in_the_unit_of_the_target(tmp_path):
    found = sitout.study(
        "diabetes",
        network="mlp:8x1",
        trials=1,
        epochs=4,
        arms=["none", "dropout"],
        out=tmp_path,
    )
    spread = float(np.std(sitout.data.load("diabetes").target))
    assert 0.5 * spread < found.arms[0].test_error.mean < 1.5 * spread
    assert "units of" in found.verdict


def test_one_arm_alone_is_a_study_without_a_verdict(tmp_path):
    found = sitout.study("wine", network="mlp:4x1", trials=1, epochs=1, arms=["l2"], out=tmp_path)
    assert found.verdict.startswith("No verdict on dropout")
    assert found.best == "l2"


@pytest.mark.skipif("SITOUT_DATA" not in os.environ, reason="needs the folder SITOUT_DATA")
def test_a_published_test_split_is_the_same_in_all_repeats(tmp_path):
    found = sitout.study(
        "fashion-mnist",
        network="mlp:8x1",
        train_size=200,
        trials=1,
        epochs=2,
        arms=["none", "dropout"],
        out=tmp_path,
    )
    assert found.data.fixed_test
    assert found.data.test_rows == 10_000
    (difference,) = [arm.versus_none for arm in found.arms if arm.versus_none]
    over_repeats = np.std(difference.values, ddof=1) / 8**0.5
    half = (difference.high - difference.low) / 2
    assert half > over_repeats  # the rows' own luck is in the interval too


def test_a_data_set_brings_its_own_target(tmp_path):
    with pytest.raises(sitout.StudyError, match="must be None for a DataSet"):
        sitout.study(sitout.data.load("wine"), target="target", out=tmp_path)


def test_networks_that_are_no_network_are_refused():
    with pytest.raises(sitout.StudyError, match="mlp:WIDTHxLAYERS"):
        networks.factory("resnet")
