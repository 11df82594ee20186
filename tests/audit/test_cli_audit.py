"""``sitout audit``: exit codes, JSON, and one line for every wrong use."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from sitout import _audit
from sitout.cli import app

WRONG = """
import torch.nn.functional as F
from torch import nn
class Net(nn.Module):
    def forward(self, x):
        return F.dropout(x)
"""
RIGHT = WRONG.replace("(x)", "(x, training=self.training)")
# Names of modules are kept by Python; so no two tests may give different ones the same name.
FACTORIES = """
import torch
from torch import nn
class Twice(nn.Module):
    def forward(self, x, scale=None):
        seen.append((x, scale))
        return x * 2
seen = []
x = torch.ones(3, 4)
alone = Twice
def with_tensor(): return Twice(), x
def with_tuple(): return Twice(), (x, x)
def with_dict(): return Twice(), {"x": x, "scale": 2}
def with_text(): return Twice(), "x"
def nothing(): return None
def three(): return Twice(), x, x
def needs_an_argument(size): return Twice()
def raising(): raise RuntimeError("out of ideas\\nand of lines")
def stopping(): raise KeyboardInterrupt
number = 3
"""


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "wrong.py").write_text(WRONG)
    (tmp_path / "right.py").write_text(RIGHT)
    (tmp_path / "factories_for_audit.py").write_text(FACTORIES)
    yield
    sys.modules.pop("factories_for_audit", None)


@pytest.fixture
def given(monkeypatch):
    """Return what the command gives to the audit, which finds nothing."""
    calls = []

    def audit(model, *inputs, **kwargs):
        calls.append((type(model).__name__, inputs, kwargs))
        return _audit.Audit([])

    monkeypatch.setattr(_audit, "audit", audit)
    return calls


def told(*arguments):
    done = CliRunner().invoke(app, ["audit", *arguments])
    return done.exit_code, done.stdout, done.stderr


def factory(name):
    return f"factories_for_audit:{name}"


def test_an_error_in_the_source_is_shown_and_ends_with_1():
    code, out, err = told("wrong.py")
    assert (code, err) == (1, "")
    assert out.startswith("error A1 always-on-dropout: `F.dropout` has no `training=`")
    assert "  wrong.py:6\n" in out


def test_clean_source_ends_with_0():
    assert told("right.py") == (0, "No finding.\n", "")


def test_warnings_and_notes_end_with_0(tmp_path):
    (tmp_path / "script.py").write_text("import torch.nn.functional as F\nF.dropout(1)\n")
    (tmp_path / "broken.py").write_text("def f(:\n")
    code, out, err = told("script.py", "broken.py")
    assert (code, err) == (0, "")
    assert out.endswith("\n0 errors, 1 warning, 1 note.\n")


def test_files_and_folders_are_scanned_together(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "net.py").write_text(WRONG)
    code, out, _ = told("wrong.py", "right.py", "inner")
    assert code == 1
    assert "  inner/net.py:6\n  and 1 more place: wrong.py:6\n" in out


def test_json_is_all_that_stands_on_standard_output():
    code, out, err = told("wrong.py", "--json")
    found = json.loads(out)
    assert (code, err, found["errors"]) == (1, "", 1)
    assert [(one["rule"], one["site"]) for one in found["findings"]] == [("A1", "wrong.py:6")]


def test_a_folder_without_python_is_said_and_ends_with_0(tmp_path):
    (tmp_path / "empty").mkdir()
    assert told("empty") == (0, "No finding.\n", "sitout audit: there is no .py file in empty.\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.py"], "There is no such path."),
        (["right.py", "nowhere"], "'nowhere'"),
        (["no_such_module:net"], "No module named 'no_such_module'"),
        ([factory("nope")], "must name a callable in 'factories_for_audit'. Got 'nope'."),
        ([factory("number")], "must name a callable"),
        ([factory("nothing")], "(model, inputs)"),
        ([factory("three")], "(model, inputs)"),
        ([factory("with_text")], "(model, inputs)"),
        ([factory("needs_an_argument")], "without arguments"),
        ([factory("raising")], "RuntimeError: out of ideas"),
        ([factory("alone"), factory("alone")], "One package.module:factory"),
        ([factory("alone"), "right.py"], "One package.module:factory"),
        (["right.py", "--input", "2,3"], "--input goes with package.module:factory"),
        ([factory("with_tensor"), "--input", "2,3"], "Leave --input out."),
        ([factory("alone"), "--input", "2,x"], "--input must be a shape"),
        ([factory("alone"), "--input", "2,-1"], "--input must be a shape"),
        ([factory("alone"), "--input", ""], "--input must be a shape"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(arguments, words):
    code, out, err = told(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("sitout audit: ")
    assert err.count("\n") == 1
    assert words in err


def test_debug_shows_the_traceback():
    done = CliRunner().invoke(app, ["audit", factory("raising"), "--debug"])
    assert isinstance(done.exception.__cause__, RuntimeError)


def test_ctrl_c_ends_with_130():
    code, out, _ = told(factory("stopping"))
    assert (code, out) == (130, "")


@pytest.mark.parametrize(
    ("name", "count", "keywords"),
    [("with_tensor", 1, []), ("with_tuple", 2, []), ("with_dict", 0, ["x", "scale"])],
)
def test_the_inputs_of_the_factory_reach_the_audit(given, name, count, keywords):
    assert told(factory(name)) == (0, "No finding.\n", "")
    ((model, inputs, kwargs),) = given
    assert (model, len(inputs), list(kwargs)) == ("Twice", count, keywords)
    assert all(torch.equal(one, torch.ones(3, 4)) for one in inputs)


def test_shapes_become_the_same_floats_each_time(given):
    shapes = ["--input", "2,3,5", "--input", "4"]
    assert told(factory("alone"), *shapes) == (0, "No finding.\n", "")
    torch.rand(7)
    told(factory("alone"), *shapes)
    first, second = (inputs for _, inputs, _ in given)
    assert [tuple(one.shape) for one in first] == [(2, 3, 5), (4,)]
    assert all(map(torch.equal, first, second))
    assert first[0].is_floating_point()


def test_without_inputs_one_line_says_what_was_left_out(given):
    code, out, err = told(factory("alone"))
    assert (code, out, given) == (0, "No finding.\n", [("Twice", (), {})])
    assert err.count("\n") == 1
    assert "only the rules that need no forward are applied" in err


def test_a_model_is_audited_for_real(tmp_path):
    (tmp_path / "models_for_audit.py").write_text(f"{WRONG}make = Net\n{RIGHT}make_right = Net\n")
    code, out, err = told("models_for_audit:make", "--input", "4,8")
    assert (code, err) == (1, "")
    assert out.startswith("error A1 always-on-dropout: ")
    assert told("models_for_audit:make_right", "--input", "4,8") == (0, "No finding.\n", "")


def test_a_model_that_cannot_run_on_its_inputs_is_wrong_use(tmp_path):
    text = "import torch\ndef make(): return torch.nn.Linear(3, 3)\n"
    (tmp_path / "linear_for_audit.py").write_text(text)
    code, out, err = told("linear_for_audit:make", "--input", "2,4")
    assert (code, out) == (2, "")
    assert err.startswith("sitout audit: The model of 'linear_for_audit:make' must run on its ")
    assert err.count("\n") == 1


def test_a_hook_needs_torch_numpy_and_typer_alone():
    """The packages of the study are not looked for; typer brings rich on its own."""
    code = """
import sys
from pathlib import Path
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("jinja2", "loky", "optuna", "pandas", "plotly", "safetensors",
                                  "scipy", "sklearn", "rich"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.split(".")[0])
sys.meta_path.insert(0, Missing())
from sitout.__main__ import main
main()
"""
    for command, expected in (("audit", (1, "")), ("study", (1, "sitout study needs "))):
        done = subprocess.run(
            [sys.executable, "-c", code, command, "wrong.py"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr[: len("sitout study needs ")]) == expected


def test_a_full_disk_is_told_in_one_line():
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "sitout", "audit", __file__],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    told = "sitout: The disk is full. Free some space, and run the command again.\n"
    assert (done.returncode, done.stderr) == (1, told)
