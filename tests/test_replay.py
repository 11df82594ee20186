"""``sitout replay``: which units sat out where, from the state of a clock alone."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from sitout import MaskClock, nn
from sitout._replay import ReplayError, replay
from sitout.cli import app
from sitout.masks import effective_rate


@pytest.fixture
def run():
    """A model of several kinds of layers, its clock, and what each layer gave at step 3."""
    layers = {
        "drop": nn.Dropout(0.5),
        "late": nn.Dropout(0.25, batch_dim=1),
        "channels": nn.Dropout2d(0.3),
        "path": nn.DropPath(0.4),
    }
    model = torch.nn.ModuleDict(layers)
    inputs = {"drop": (4, 9), "late": (3, 4, 5), "channels": (4, 6, 2, 2), "path": (4, 3, 2)}
    clock = MaskClock(model, seed=17)
    with clock.at(3):
        kept = {name: model[name](torch.ones(shape)) != 0 for name, shape in inputs.items()}
    return clock, kept


@pytest.fixture
def state(run, tmp_path):
    file = tmp_path / "checkpoint.pt"
    torch.save({"model": {"w": torch.ones(2)}, "more": {"clock": run[0].state_dict()}}, file)
    return file


def told(*arguments):
    done = CliRunner().invoke(app, ["replay", *map(str, arguments)])
    return done.exit_code, done.stdout, done.stderr


def asked(state, site, shape, p, *more):
    return told(state, "--site", site, "--step", 3, "--shape", shape, "--p", p, *more)


@pytest.mark.parametrize(
    ("site", "p", "shape", "options"),
    [
        ("drop", 0.5, "4,9", []),
        ("late", 0.25, "3,4,5", ["--batch-dim", 1]),
        ("channels", 0.3, "4,6,2,2", ["--shared-dims", "2,3"]),
        ("path", 0.4, "4,3,2", ["--shared-dims", "1,2"]),
    ],
)
def test_a_replay_prints_the_units_that_sat_out_in_the_run(run, state, site, p, shape, options):
    kept = run[1][site]
    rows = kept.movedim(1, 0) if site == "late" else kept
    rows = rows[..., 0, 0] if site in ("channels", "path") else rows
    code, out, _ = asked(state, site, shape, p, *options)
    head, *lines = out.splitlines()
    number = run[0].sites[site]
    assert code == 0
    assert head.startswith(
        f"layer {site!r} (site {number}), step 3, call 0, seed 17, p = {effective_rate(p):g}"
    )
    assert head.endswith(f": {int((~rows).sum())} of {rows.numel()} sat out")
    for row, (line, units) in enumerate(zip(lines, rows, strict=True)):
        if site == "path":
            assert line == f"row {row}: {'played' if units else 'sat out'}"
        else:
            out = [",".join(map(str, unit)) for unit in (~units).nonzero().tolist()]
            assert line == f"row {row}: " + ("sat out: " + " ".join(out) if out else "all played")


def test_a_replay_as_json_names_the_units_of_the_rows_that_are_asked_for(run, state):
    for rows, wanted in (("1:3", (1, 2)), ("3,0", (3, 0))):
        code, out, _ = asked(state, "drop", "4,9", 0.5, "--rows", rows, "--json")
        found = json.loads(out)
        units = {str(row): (~run[1]["drop"][row]).nonzero().flatten().tolist() for row in wanted}
        assert code == 0
        assert found.pop("sat_out") == units
        assert found == {"name": "drop", "seed": 17, "site": 0, "step": 3, "call": 0, "p": 0.5}


def test_a_state_may_be_a_mapping_or_any_file_that_holds_it(run, state, tmp_path):
    alone, text = tmp_path / "clock.pt", tmp_path / "clock.json"
    torch.save(run[0].state_dict(), alone)
    text.write_text(json.dumps(run[0].state_dict()))
    for held in (run[0].state_dict(), state, str(alone), text):
        found = replay(held, "drop", 3, (4, 9), 0.5)
        assert torch.equal(found.keep, run[1]["drop"])


def test_a_number_names_a_site_where_no_layer_bears_it_as_its_name(state):
    assert asked(state, 0, "4,9", 0.5) == asked(state, "drop", "4,9", 0.5)
    model = torch.nn.Sequential(torch.nn.Tanh(), nn.Dropout(), nn.Dropout())
    held = MaskClock(model).state_dict()
    assert replay(held, "1", 0, (2, 3), 0.5).key.site == 0
    assert replay(held, 1, 0, (2, 3), 0.5).key.site == 1
    assert replay(held, "0", 0, (2, 3), 0.5).name == "1"


def test_another_call_is_another_mask(state):
    first, second = (asked(state, "drop", "4,9", 0.5, "--call", call)[1] for call in (0, 1))
    assert first.splitlines()[1:] != second.splitlines()[1:]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--site": "dorp"}, "`site` must be one of drop, late, channels, path. Got 'dorp'. Did"),
        ({"--site": "9"}, "`site` must be a name, or in [0, 4). Got 9."),
        ({"--step": "-1"}, "`step` of MaskKey must be in [0, 2**32). Got -1."),
        ({"--p": "1.5"}, "`p` of keep_mask must be a number in [0, 1]. Got 1.5."),
        ({"--shape": "4,x"}, "--shape must be ints with commas between. Got '4,x'."),
        ({"--shape": "-4,3"}, "`shape` must be made of sizes of 0 or more. Got (-4, 3)."),
        ({"--rows": "1:x"}, "--rows must be ints with commas between. Got 'x'."),
        ({"--rows": "1:2:3"}, "--rows must be "),
        ({"--rows": "3:"}, "--rows must be like 8:16 or 3,5,9. Got '3:'."),
        ({"--rows": "-1,2"}, "`rows` must be in [0, 2**32). Got '-1 to 2'."),
        ({"--shared-dims": "5"}, "`shared_dims` must be within the 2 dims of the tensor. Got 5."),
        ({"--batch-dim": "2"}, "`batch_dim` must be within the 2 dims of the tensor. Got 2."),
    ],
)
def test_what_does_not_fit_is_one_line_and_exit_code_2(state, change, message):
    options = {"--site": "drop", "--step": "3", "--shape": "4,9", "--p": "0.5", **change}
    code, out, err = told(state, *(part for pair in options.items() for part in pair))
    assert (code, out) == (2, "")
    assert err.startswith(f"sitout replay: {message}")
    assert err.count("\n") == 1


def test_a_file_without_a_state_is_one_line_and_exit_code_2(tmp_path):
    class Own:
        pass

    files = {name: tmp_path / name for name in ("none.pt", "text.pt", "own.pt", "list.json")}
    files["text.pt"].write_text("hello")
    files["list.json"].write_text("[1, 2]")
    torch.save({"w": torch.ones(2)}, files["own.pt"])
    for name, message in {
        "none.pt": "Cannot read ",
        "text.pt": "The state must be a file that torch.save wrote from plain dicts",
        "list.json": f"{files['list.json']} must be a file that holds clock.state_dict(). Got",
        "own.pt": f"{files['own.pt']} must be a file that holds clock.state_dict(). Got ['w'].",
    }.items():
        code, out, err = asked(files[name], "drop", "4,9", 0.5)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert err.startswith(f"sitout replay: {message}")
    assert asked(tmp_path, "drop", "4,9", 0.5)[0] == 2
    with pytest.raises(ReplayError, match=r"^Cannot read "):
        replay(tmp_path / "none.pt", "drop", 0, (2,), 0.5)
