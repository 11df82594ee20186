"""The benchmark suite: its gate, its clockwork, and what it writes; nothing depends on time."""

from __future__ import annotations

import dataclasses
import gc
import importlib
import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

import sitout
from sitout import functional

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
baselines, cases, gate, kinds, measure, plot, report, saved, targets = (
    importlib.import_module(f"speed.{name}")
    for name in (
        "baselines",
        "cases",
        "gate",
        "kinds",
        "measure",
        "plot",
        "report",
        "saved",
        "targets",
    )
)
run = importlib.import_module("run")
networks = importlib.import_module("thinning_cases")
# By its path: tests have a module of this name too.
_spec = importlib.util.spec_from_file_location(
    "bench_thinning", Path(run.__file__).parent / "thinning.py"
)
thinning = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(thinning)

KNOWN = cases.registry()
EAGER = [name for name in KNOWN if not name.startswith("compiled")]


def shrunk(case):
    """Return a case on a tensor of a few elements."""

    def small(shape):
        return tuple(min(size, 17) for size in shape)

    more = {"more": tuple(small(shape) for shape in case.more)} if hasattr(case, "more") else {}
    return dataclasses.replace(case, shape=small(case.shape), **more)


def tiny(name="tiny", **options):
    options = {"ours": functional.dropout, "wanted": functional.dropout, **options}
    return kinds.Timed(name=name, op="dropout", shape=(5, 7), **options)


@pytest.fixture
def runner(monkeypatch, tmp_path):
    """Return a function that runs given cases, with results in ``tmp_path`` and no picture."""

    def call(*arguments, known=()):
        held = {case.name: case for case in known}
        monkeypatch.setattr(cases, "registry", lambda: held)
        return run.main(arguments)

    monkeypatch.setattr(run, "ROOT", tmp_path)
    monkeypatch.setattr(run, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(run, "PICTURE", tmp_path / "picture.svg")
    monkeypatch.setattr(plot, "draw", lambda rows: "<svg/>")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "timm" else name)
    monkeypatch.setattr(measure, "AT_LEAST", 1e-6)
    return call


class Clock:
    """A clock that only contenders move."""

    def __init__(self):
        self.now = 0.0
        self.calls = []

    def __call__(self):
        return self.now

    def contender(self, name, seconds, threads=1):
        def call():
            self.calls.append((name, torch.get_num_threads(), gc.isenabled()))
            self.now += seconds() if callable(seconds) else seconds

        return measure.Contender(name, call, threads)


@pytest.mark.parametrize("name", EAGER)
def test_a_case_passes_the_gate_on_a_small_tensor(name):
    assert shrunk(KNOWN[name]).check() == ""


@pytest.mark.parametrize("passes", [kinds.FORWARD, kinds.RECORDED, kinds.BOTH])
@pytest.mark.parametrize("close", [gate.TO_THE_BIT, gate.ONE_ULP, gate.ROUNDING])
def test_the_gate_sees_wrong_values(passes, close):
    wrong = tiny(ours=lambda x: 1.001 * functional.dropout(x), passes=passes, close=close)
    assert "result 0" in wrong.check()
    assert close in wrong.check()


def test_the_gate_sees_a_wrong_gradient():
    def wrong(x):
        return functional.dropout(x).detach() + 0.0 * x

    assert "result 1" in tiny(ours=wrong, passes=kinds.BOTH, close=gate.ROUNDING).check()


def test_the_gate_sees_another_mask():
    assert "result 0" in tiny(ours=torch.nn.functional.dropout, close=gate.ROUNDING).check()


def test_the_gate_sees_another_dtype_or_shape():
    assert "float64" in tiny(ours=lambda x: functional.dropout(x).double()).check()
    assert "(35,)" in tiny(ours=lambda x: functional.dropout(x).flatten()).check()


def test_an_error_is_a_red_gate():
    assert tiny(ours=lambda x: functional.no_such_function(x)).check().startswith("AttributeError")


def test_the_gate_tells_one_unit_in_the_last_place_from_two():
    x = torch.randn(99)
    up = torch.nextafter(x, torch.tensor(torch.inf))
    two_up = torch.nextafter(up, torch.tensor(torch.inf))
    assert gate.difference([up], [x], gate.ONE_ULP) == ""
    assert gate.difference([two_up], [x], gate.ONE_ULP).startswith("result 0: 99 of 99")
    assert gate.difference([up], [x], gate.TO_THE_BIT).startswith("result 0: 99 of 99")


def test_the_gate_tells_zero_from_minus_zero_where_bits_count():
    assert gate.difference([torch.zeros(3)], [-torch.zeros(3)], gate.TO_THE_BIT)


def test_a_red_gate_times_and_writes_nothing(runner, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(kinds, "interleave", None)
    wrong = tiny("wrong", ours=lambda x: 2.0 * x)
    assert runner("--save", known=[tiny(), wrong]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "red" in said.err
    assert "wrong: result 0" in said.err
    assert list(tmp_path.iterdir()) == []


def test_a_green_run_writes_rows_that_say_where_they_come_from(runner, tmp_path):
    case = tiny(baselines={"torch": torch.nn.functional.dropout})
    assert runner("--save", "--rounds", "3", known=[case]) == 0
    rows = json.loads((tmp_path / "results" / "cpu.json").read_text())
    assert [row["baseline"] for row in rows] == ["torch", "clone"]
    for row in rows:
        assert row["machine"]["cores"] >= 1
        assert row["versions"]["torch"] == torch.__version__
        assert {"op", "shape", "dtype", "device", "threads", "commit", "date"} <= set(row)
        assert row["ratio"]["q1"] <= row["ratio"]["median"] <= row["ratio"]["q3"]
    page = (tmp_path / "results" / "cpu.md").read_text()
    assert page.count("| tiny |") == 2
    assert (tmp_path / "picture.svg").read_text() == "<svg/>"


def test_without_save_nothing_is_written(runner, tmp_path):
    assert runner("--rounds", "3", known=[tiny()]) == 0
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_run_writes_nothing(runner, tmp_path, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(kinds, "interleave", interrupted)
    assert runner("--save", known=[tiny()]) == 130
    assert capsys.readouterr().err == "Interrupted: nothing was written.\n"
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_name_is_told_with_the_nearest(runner, capsys):
    assert runner("--only", "tinny", known=[tiny()]) == 2
    assert capsys.readouterr().err == "No case is named tinny. The nearest: tiny.\n"


def test_a_part_of_the_cases_cannot_be_saved(runner, capsys):
    assert runner("--only", "tiny", "--save", known=[tiny()]) == 2
    assert "one run of all cases" in capsys.readouterr().err


def test_a_pattern_names_several_cases(runner, capsys):
    known = [tiny("one"), tiny("other"), tiny("two")]
    assert runner("--only", "o*", "--rounds", "3", known=known) == 0
    assert "green for 2 cases" in capsys.readouterr().out


def test_a_baseline_that_cannot_run_is_told_and_never_counted(runner, capsys, tmp_path):
    case = tiny(passes=kinds.BOTH, baselines={"timm": baselines.timm_drop_path})
    baselines.timm_layer.cache_clear()
    assert runner("--save", "--rounds", "3", known=[case]) == 0
    assert "timm (not run: timm is not installed)" in capsys.readouterr().out
    rows = json.loads((tmp_path / "results" / "cpu.json").read_text())
    (row,) = [row for row in rows if row["baseline"] == "timm"]
    assert row["not_run"] == "timm is not installed"
    assert "ratio" not in row


def test_times_are_those_of_a_call_and_the_repeats_fill_a_timing():
    clock = Clock()
    contenders = [clock.contender("long", 1.0), clock.contender("short", 2.0**-12)]
    found = measure.interleave(contenders, 4, clock=clock)
    assert found == {"long": [1.0] * 4, "short": [2.0**-12] * 4}
    calls = [name for name, *_ in clock.calls]
    assert calls.count("long") == 2 * 5
    # Once in each round, and once before, there is a call that is not timed.
    assert calls.count("short") >= 5 * (1 + measure.AT_LEAST * 2**12)


def test_each_round_times_every_contender_once_in_an_order_that_changes():
    clock = Clock()
    contenders = [clock.contender(name, 1.0) for name in "abc"]
    measure.interleave(contenders, 8, clock=clock)
    calls = [name for name, *_ in clock.calls][len(contenders) * 2 :: 2]
    rounds = [tuple(calls[start : start + 3]) for start in range(0, len(calls), 3)]
    assert len(rounds) == 8
    assert all(sorted(each) == ["a", "b", "c"] for each in rounds)
    assert len(set(rounds)) > 1


def test_contenders_run_on_their_threads_with_no_garbage_collected():
    clock, before = Clock(), torch.get_num_threads()
    contenders = [clock.contender("one", 1.0), clock.contender("two", 1.0, threads=2)]
    measure.interleave(contenders, 3, clock=clock)
    assert set(clock.calls) == {("one", 1, False), ("two", 2, False)}
    assert torch.get_num_threads() == before
    assert gc.isenabled()


def test_a_slow_round_leaves_the_ratio_as_it_is():
    ours, theirs = [1.0, 5.0, 1.0, 40.0, 1.0], [3.0, 15.0, 3.0, 120.0, 3.0]
    assert measure.spread(measure.ratios(theirs, ours)) == (3.0, 3.0, 3.0)


def test_the_spread_is_the_median_and_the_quartiles():
    assert measure.spread([5.0, 1.0, 4.0, 2.0, 3.0]) == (3.0, 2.0, 4.0)


def test_what_is_kept_is_counted_beyond_input_and_output():
    x = torch.randn(8, requires_grad=True)
    assert saved.kept(torch.exp, [x])["tensors"] == []
    assert saved.kept(torch.sin, [x])["tensors"] == []
    assert saved.kept(lambda x: x.exp().sin(), [x])["bytes_per_element"] == 4
    held = saved.kept(lambda x: x.double().sin().float(), [x])
    assert held == {"bytes_per_element": 8, "address_bytes": 0, "tensors": ["float64 [8]"]}


class Hoarder(torch.autograd.Function):
    """Keeps a tensor where no hook sees it."""

    @staticmethod
    def forward(ctx, x):
        ctx.held = {"key": sitout.MaskKey(seed=torch.tensor(1)), "mask": [torch.ones(8).bool()]}
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad


def test_what_hangs_on_a_node_is_counted_too_and_an_address_apart():
    held = saved.kept(Hoarder.apply, [torch.randn(8, requires_grad=True)])
    assert (held["bytes_per_element"], held["address_bytes"]) == (1, 8)
    assert sorted(held["tensors"]) == ["bool [8]", "int64 []"]


def test_every_target_names_a_case_and_a_baseline():
    for target in targets.TARGETS:
        case = KNOWN[target.case]
        known = {"clone", "two clones", *getattr(case, "baselines", ())}
        assert target.baseline in known | {"without dropout"}


def row(**found):
    return {"case": "threads-2^20", "contender": "sitout", "baseline": "clone", **found}


@pytest.mark.parametrize(("gain", "word"), [(1.4, "not met"), (1.5, "met")])
def test_a_target_is_met_from_its_limit_on(gain, word):
    found = row(contender_gain={"median": gain, "q1": gain, "q3": gain})
    told = {verdict.word for verdict in targets.verdicts([found]) if verdict.found}
    assert told == {word}


def test_what_was_not_measured_is_not_met():
    words = {verdict.word for verdict in targets.verdicts([row(not_run="no reason")])}
    assert words == {"not measured"}


def test_the_plot_shows_nanoseconds_per_element():
    middle = {"q1": 0.0, "q3": 0.0}
    times = {"contender_us": {"median": 1.0, **middle}, "baseline_us": {"median": 4.0, **middle}}
    common = {"case": plot.FAMILY + "8", "shape": [256], "contender": "sitout", "ratio": {}}
    found = plot.lines([{**common, **times, "baseline": "torch"}])
    assert found["sitout"] == [(256, 1e3 / 256)]
    assert found["torch"] == [(256, 4e3 / 256)]
    assert found["clone"] == []


@pytest.fixture
def thin(monkeypatch, tmp_path):
    """Return the benchmark of thinning, with results in ``tmp_path`` and timings of one call."""
    monkeypatch.setattr(thinning, "ROOT", tmp_path)
    monkeypatch.setattr(thinning, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(measure, "AT_LEAST", 1e-6)
    return thinning


def test_all_cases_of_thinning_run_and_say_where_they_come_from(thin, tmp_path, capsys):
    known = networks.registry(networks.QUICK)
    assert thin._run(list(known.values()), 3, thin.TARGETS, save=True) == 0
    assert f"green for {len(known)} cases" in capsys.readouterr().out
    rows = json.loads((tmp_path / "results" / "thinning.json").read_text())
    assert list(dict.fromkeys(row["case"] for row in rows)) == list(known)
    for row in rows:
        assert {"machine", "versions", "commit", "date", "threads", "shape"} <= set(row)
        assert ("ratio" in row) != ("held" in row)
    page = (tmp_path / "results" / "thinning.md").read_text()
    assert "not measured" not in page
    assert page.count("\n| vit-path-0.4 | 8 x 5 x 32 | forward + backward |") == 2


def test_a_quick_run_of_thinning_times_tiny_networks_and_writes_nothing(thin, tmp_path, capsys):
    assert thin.main(["--quick", "--only", "mlp-512-0.5", "held-*"]) == 0
    said = capsys.readouterr().out
    assert "mlp-512-0.5 | 32 x 784 | forward + backward | sitout | torch.nn.Dropout" in said
    assert "at least 3.5 times" not in said
    assert list(tmp_path.iterdir()) == []


def test_every_target_of_thinning_names_a_network_and_one_beside_it():
    known = networks.registry(networks.QUICK)
    for target in thinning.TARGETS:
        case = known[target.case]
        if isinstance(case, networks.Net):
            assert target.contender in case.ours
            assert target.baseline in case.others
        else:
            assert (target.contender, target.baseline) == (networks.OURS, networks.PLAIN)


@pytest.mark.parametrize("wrong", ["value", "gradient", "nan"])
def test_a_thinned_network_that_differs_from_its_masked_form_is_not_timed(thin, capsys, wrong):
    harm = {
        "value": lambda y: 1.01 * y,
        "gradient": lambda y: y.detach() + 0.5 * (y - y.detach()),
        "nan": lambda y: y / 0.0,
    }[wrong]

    class Net(sitout.nn.ThinnedMLP):
        def forward(self, x):
            y = super().forward(x)
            return harm(y) if self[2].form == "thinned" else y

    right = networks.registry(networks.QUICK)["mlp-512-0.5"]
    made = {"sitout": lambda form: Net(784, [64], 10, form=form)}
    torch.manual_seed(0)
    case = dataclasses.replace(right, ours=made)
    assert thin._run([case], 3, [], save=True) == 1
    assert "mlp-512-0.5: sitout, torch.float64: result" in capsys.readouterr().err


def test_a_step_of_thinning_trains_and_leaves_no_gradient_where_none_is_asked():
    case = networks.registry(networks.QUICK)["mlp-128-step-0.5"]
    made = []

    def make():
        made.append(case.ours["sitout"]("auto"))
        return made[-1]

    step = case._call(make)
    before = made[0][0].weight.clone()
    step()
    assert not torch.equal(made[0][0].weight, before)
    dataclasses.replace(case, learns=False)._call(make)()
    assert all(parameter.grad is None for parameter in made[1].parameters())


def test_what_thinned_layers_hold_falls_with_the_rate():
    (row,) = networks.Held(
        name="held", op="thinned_linear", shape=(512, 784), hidden=256, p=0.75
    ).measure(0)
    assert row["baseline_bytes"] == 3 * 512 * 256 * 4  # after each ReLU
    assert row["held"] == pytest.approx(0.25, rel=0.1)
    assert row["off_percent"] == pytest.approx(100 * abs(row["held"] / 0.25 - 1))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--only", "mlp"], "No case is named mlp. There are: mlp-512-0.5, "),
        (["--save", "--quick"], "What is saved is one run of all cases in full size"),
        (["--save", "--only", "cnn-0.5"], "What is saved is one run of all cases in full size"),
        (["--rounds", "2"], "--rounds must be an integer of at least 3. Got 2."),
        (["--threads", "0"], "--threads must be 1 or more. Got 0."),
    ],
)
def test_thinning_that_cannot_run_as_asked_is_one_line(thin, capsys, options, said):
    assert thin.main(options) == 2
    err = capsys.readouterr().err
    assert err.startswith(said)
    assert err.count("\n") == 1
