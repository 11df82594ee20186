"""The benchmark of GPUs: every case runs at toy size, and what must be shown has its row."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parent.parent.parent / "benchmarks"))
gpu, cases, forms = map(importlib.import_module, ("gpu", "gpu_cases", "gpu_forms"))

KNOWN = cases.registry(cases.DRY)
pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="`make gpu` runs the cases in full"),
    pytest.mark.usefixtures("_forced"),
    pytest.mark.filterwarnings(  # of a Function that dynamo makes an instance of
        "ignore:<class 'torch.autograd.function.Function'> should not be instantiated"
        ":DeprecationWarning"
    ),
]


@pytest.mark.parametrize("name", KNOWN)
def test_a_case_runs_and_has_the_rows_of_its_targets(name):
    torch._dynamo.reset()
    assert KNOWN[name].check() == ""
    rows = KNOWN[name].measure(2)
    assert all(gpu.line(row).startswith(f"{name} | ") for row in rows)
    missing = [row["contender"] for row in rows if "not_run" in row]
    assert missing == ([cases.FORMS["triton"]] if name == "chain" else [])
    for verdict in gpu.targets.verdicts(rows, [one for one in gpu.TARGETS if one.case == name]):
        assert verdict.found, verdict
    torch._dynamo.reset()


def test_every_line_of_the_issue_has_a_target():
    assert {target.case for target in gpu.TARGETS} <= set(KNOWN)
    assert len(gpu.TARGETS) == 12


def test_nothing_is_held_by_ours():
    (row,) = KNOWN["held"].measure(0)
    assert row["held"] == 0.0


def test_a_form_is_used_within_a_block_and_has_the_values_of_the_reference():
    before = forms._op.FORM
    with forms.form("inductor"):
        assert forms._op.FORM is not before
    assert forms._op.FORM is before is forms.as_op()
    assert cases._equal_forms(cases.DRY) == ""


def test_a_form_with_other_values_is_found(monkeypatch):
    wrong = lambda x, key, *more: forms.as_op()(x, key + 1, *more)  # noqa: E731
    monkeypatch.setitem(forms.FORMS, "inductor", lambda: wrong)
    assert cases._equal_forms(cases.DRY) == "the form inductor has other values"


def test_a_thinned_network_that_differs_is_found(monkeypatch):
    real = cases.nets.sitout.nn.ThinnedMLP.forward

    def wrong(self, x):
        return real(self, x) * (1.01 if self[2].form == "thinned" else 1.0)

    monkeypatch.setattr(cases.nets.sitout.nn.ThinnedMLP, "forward", wrong)
    assert "not the masked one" in KNOWN["mlp"].check()


def test_what_fails_is_told_and_is_no_success(capsys, monkeypatch):
    def broken():
        raise RuntimeError("no such kernel")

    case = cases.Race(name="x", op="x", shape=(1,), device="cpu", make=broken)
    assert gpu._run([case], 2, 1e9, [], save=False) == 1
    assert "x | 1 | float32 | sitout | not run: RuntimeError: no such kernel" in (
        capsys.readouterr().out
    )
    red = cases.Race(name="x", op="x", shape=(1,), device="cpu", make=dict, same=lambda: "wrong")
    assert gpu._run([red], 2, 1e9, [], save=False) == 1
    assert capsys.readouterr().err.endswith("x: wrong\n")


def test_rows_say_where_they_come_from_and_late_cases_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    assert gpu._run([KNOWN["held"]], 2, 1e9, gpu.TARGETS, save=True) == 0
    (row,) = json.loads((tmp_path / "results" / "gpu.json").read_text())
    assert {"machine", "versions", "commit", "date", "gpu", "case", "held"} <= set(row)
    assert "held for backward | at most 0 bytes an element held | 0" in capsys.readouterr().out
    assert gpu._run([KNOWN["held"]], 2, -1.0, [], save=False) == 0
    assert "not run: there was no time left" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--only", "nothing"], "No case is named nothing. There are: forward-bfloat16, "),
        (["--rounds", "1"], "--rounds must be an integer of at least 2. Got 1."),
        (["--save", "--dry"], "What is saved is one run of all cases in full size"),
        ([], "There is no GPU here."),
    ],
)
def test_what_cannot_run_as_asked_is_one_line(capsys, options, said):
    assert gpu.main(options) == 2
    assert capsys.readouterr().err.startswith(said)


def test_a_dry_run_is_a_command(capsys):
    assert gpu.main(["--dry", "--only", "forward-float32"]) == 0
    assert "forward-float32 | 2048 | float32 | sitout | " in capsys.readouterr().out
