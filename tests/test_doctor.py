"""``sitout doctor``: it tells what there is, sees a wrong kernel, and leaves all as it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial

import pytest
import torch
from typer.testing import CliRunner

from sitout import _doctor, _optional, backends, cli
from sitout._doctor import crossover, machine, trial
from sitout._doctor.crossover import Crossover
from sitout._doctor.speed import Speed
from sitout.backends import _choice, cpu, reference

TARGETS = cpu.core().targets().split()
LAST = TARGETS[-1]


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(cli, "run_doctor", partial(_doctor.doctor, seconds=0.01))
    for name, size in {"_WIDTH": 20, "_TOKENS": 3, "_FEATURES": 8}.items():
        monkeypatch.setattr(crossover, name, size)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several wait long for each other where other tests run too
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def anew(monkeypatch):
    """Let the core be looked for again, and leave it as it was."""
    target = cpu.core().target()
    cpu.core.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    cpu.core.cache_clear()
    cpu.core().use_target(target)


@pytest.fixture
def without_core(anew):
    anew.setattr(_optional, "core", lambda: None)


def told(*options):
    done = CliRunner().invoke(cli.app, ["doctor", *options])
    return done.exit_code, done.stdout, done.stderr


def rows(text):
    """Return what stands beside each name."""
    lines = text.split("\n\n")[0].splitlines()
    return dict(line.split("  ", 1) for line in lines if not line.startswith(" "))


def test_a_sound_core_passes_and_all_is_told():
    code, out, err = told()
    found = {name: value.strip() for name, value in rows(out).items()}
    assert (code, err) == (0, "")
    assert found["torch"] == torch.__version__
    assert found["core"] == ", ".join(TARGETS)
    assert found["target"].startswith(f"{cpu.core().target()}: ")
    assert found["backend"].startswith("cpu: the compiled core serves it")
    cases, _, verdict = found["self-test"].partition(" cases on ")
    assert int(cases) >= 20
    assert verdict.startswith(f"{len(TARGETS)} target")
    assert verdict.endswith(": all equal")


def test_json_holds_the_same_and_both_ratios():
    code, out, _ = told("--json")
    found = json.loads(out)
    assert (code, found["trial"]["difference"]) == (0, None)
    assert found["trial"]["targets"] == found["core"]["targets"] == TARGETS
    assert [one["dtype"] for one in found["speed"][:: len(found["speed"]) // 2]] == [
        "float32",
        "bfloat16",
    ]
    for one in found["speed"]:
        assert one["torch_over_sitout"] == one["torch"] / one["sitout"]
        assert one["sitout_over_clone"] == one["sitout"] / one["clone"] > 0
    assert Speed("float32", 1, 8.0, 2.0, 1.0).ratios() == {
        "torch_over_sitout": 4.0,
        "sitout_over_clone": 2.0,
    }


def test_the_cases_cover_what_the_core_serves():
    cases = [trial.case(number) for number in range(400)]
    assert {one.x.dtype for one in cases} == set(trial._INTS)
    assert {one.law for one in cases} == set(trial._LAWS)
    assert {one.x.dim() for one in cases} == set(range(6))
    for seen in (
        lambda one: not one.x.is_contiguous(),
        lambda one: one.x.storage_offset() > 0,
        lambda one: 0 in one.x.stride(),
        lambda one: one.x.numel() == 0,
        lambda one: one.x.isnan().any(),
        lambda one: one.x.numel() >= 2 * 2**16,  # enough for two threads
        lambda one: one.address.rows is not None,
        lambda one: one.address.block is not None,
        lambda one: one.address.shared_dims,
        lambda one: one.address.batch_dim,
        lambda one: isinstance(one.address.key.step, torch.Tensor),
        lambda one: isinstance(one.p, torch.Tensor),
    ):
        assert sum(map(bool, map(seen, cases))) >= 5


def one_bit_off(y):
    bits = y.contiguous().view(trial._INTS[y.dtype]).clone()
    bits.view(-1)[-1:] ^= 1
    return bits.view(y.dtype)


def fails(y):
    raise RuntimeError("broken")


def test_the_crossover_stands_beside_what_the_layers_assume():
    found = json.loads(told("--json")[1])["crossover"]
    assert [(one["layer"], one["number"]) for one in found] == [
        *(("ThinnedDropout", rows) for rows in (32, 128, 512)),
        ("DropResidual", 32),
    ]
    for one in found:
        rows, assumed, rates = one["number"], one["assumed"], [rate for rate, _ in one["gains"]]
        units = one["layer"] == "ThinnedDropout"
        assert assumed == (backends.least_rate(rows) if units else backends.LEAST_SAMPLES)
        assert rates == sorted(rates)
        assert rates[0] <= assumed <= rates[-1]
        assert all(gain > 0 for _, gain in one["gains"])
        assert one["measured"] is None or rates[0] <= one["measured"] < rates[-1]
    out = told()[1].split("\n\n")[-1].splitlines()
    assert out[0].startswith("drop rate from which the thinned form is as fast as the masked")
    for line, rows in zip(out[2:6], (32, 128, 512), strict=False):
        assert f"  {rows} rows a group  " in line
        assert line.endswith(f"{backends.least_rate(rows):.2f}")
    assert "DropResidual" in out[5]


def pays_from(rate):
    """Return a clock by which the gain rises with the drop rate, and is 1 at a certain one."""

    def seconds(model, x):
        (site,) = (one for one in model.modules() if hasattr(one, "form"))
        return 1.0 if site.form == "masked" else 1.0 / (1.0 + 4.0 * max(site.p - rate, -0.2))

    return seconds


@pytest.mark.parametrize("rate", [0.07, 0.125, 0.3])
def test_the_crossover_is_the_rate_at_which_both_forms_take_as_long(monkeypatch, rate):
    monkeypatch.setattr(crossover, "_seconds", pays_from(rate))
    found = crossover.measure(0.0)
    measured = [one.measured for one in found]
    assert measured[:3] == pytest.approx([rate] * 3, abs=1e-4)
    assert measured[3] == (None if rate == 0.3 else pytest.approx(rate, abs=1e-4))
    assert found[0].told() == f"{rate:.2f}"


def test_what_lies_outside_of_the_rates_tried_is_not_known(monkeypatch):
    for rate, measured, told_of in [(0.0, 0.05, "0.05 or less"), (0.9, None, "above 0.50")]:
        monkeypatch.setattr(crossover, "_seconds", pays_from(rate))
        one = crossover.measure(0.0)[0]
        assert (one.measured, one.told()) == (measured, told_of)


def gains(*values):
    return list(zip([0.05, 0.1, 0.2, 0.3, 0.5], values, strict=True))


@pytest.mark.parametrize(
    ("found", "advice"),
    [
        (gains(0.5, 0.6, 0.8, 0.9, 1.4), ""),  # as assumed, nearly
        (gains(0.9, 1.02, 1.1, 1.14, 1.4), ""),  # it would help a little
        (
            gains(0.8, 1.2, 1.3, 1.5, 1.9),
            'Give ThinnedDropout form="thinned" for p from 0.07 to 0.30 at 32 rows a group: '
            "up to 1.3 times as fast here as what it takes by itself.",
        ),
        (
            gains(0.5, 0.5, 0.5, 0.5, 0.8),
            'Give ThinnedDropout form="masked" for p from 0.30 to 0.50 at 32 rows a group: '
            "up to 2.0 times as fast here as what it takes by itself.",
        ),
    ],
)
def test_a_form_is_advised_where_it_is_much_faster_than_the_one_assumed(found, advice):
    right = Crossover("DropResidual", "samples", 32, 0.05, gains(1.1, 1.2, 1.3, 1.4, 1.5))
    one = Crossover("ThinnedDropout", "rows a group", 32, 0.3, found)
    lines = crossover.table([right, one])
    assert lines[-1] == advice if advice else lines[-1].startswith("ThinnedDropout  32 rows")


def test_the_most_mistaken_layer_is_the_one_that_is_told():
    some = Crossover("DropResidual", "samples", 32, 0.3, gains(1.1, 1.2, 1.3, 1.4, 1.5))
    most = Crossover("ThinnedDropout", "rows a group", 8, 0.3, gains(1.1, 1.2, 1.9, 2.0, 2.1))
    assert "1.9 times" in crossover.table([some, most])[-1]
    assert "1.9 times" in crossover.table([most, some])[-1]


def test_what_a_form_takes_is_measured_in_turns_and_the_first_round_is_left_out(monkeypatch):
    calls = []

    def seconds(model, x):
        (site,) = (one for one in model.modules() if hasattr(one, "form"))
        calls.append((len(x), site.form, site.p))
        return 100.0 if len(calls) <= 6 else 1.0  # the masked form and 5 rates

    monkeypatch.setattr(crossover, "_seconds", seconds)
    found = crossover.measure(0.0)
    assert [gain for _, gain in found[0].gains] == [1.0] * 5
    half = len(calls) // 2
    assert calls[:half] == calls[half:]
    assert calls[:6] == [
        (32, "masked", 0.5),
        *((32, "thinned", rate) for rate in (0.05, 0.1, 0.2, 0.3, 0.5)),
    ]


def test_a_step_that_is_measured_reaches_input_and_parameters():
    class Spy(torch.nn.Linear):
        def forward(self, x):
            x.register_hook(seen.append)
            self.weight.register_hook(seen.append)
            return super().forward(x)

    seen, spy = [], Spy(3, 2)
    assert crossover._seconds(spy, torch.randn(4, 3)) > 0
    assert sorted(tuple(grad.shape) for grad in seen) == [(2, 3), (4, 3)]
    assert spy.weight.grad is None


@pytest.mark.parametrize(
    ("harm", "law"),
    [
        (one_bit_off, "dropout"),
        (one_bit_off, "path"),
        (lambda y: torch.where(y == 0, -0.0, y), "dropout"),  # equal as numbers, not as bits
        (lambda y: y.double().float(), "alpha"),
        (lambda y: y[None], "path"),
        (fails, "alpha_slope"),
    ],
)
def test_a_wrong_kernel_is_reported_with_all_that_shows_it_again(monkeypatch, harm, law):
    right = cpu.drop

    def drop(x, address, p, own):
        y = right(x, address, p, own)
        return harm(y) if own == law and y.numel() and cpu.core().target() == LAST else y

    before = cpu.core().target()
    monkeypatch.setattr(cpu, "drop", drop)
    code, out, err = told()
    assert (code, err) == (1, "sitout doctor: the core differs from the reference.\n")
    assert cpu.core().target() == before
    assert "DIFFERENT" in out
    code, out, _ = told("--json")
    found = json.loads(out)["trial"]["difference"]
    assert (code, found["target"], found["law"]) == (1, LAST, law)
    x, _, p, _ = trial.case(found["case"])
    assert (found["shape"], found["strides"]) == ([*x.shape], [*x.stride()])
    assert found["p"].split() == repr(p).split()
    if harm is one_bit_off:
        assert found["core"] != found["reference"]
        assert found["x"] == repr(x[tuple(found["place"])].item())


def test_the_lines_of_python_show_the_difference(monkeypatch):
    right = cpu.drop
    monkeypatch.setattr(cpu, "drop", lambda x, *rest: right(x, *rest) + 1)
    before = cpu.core().target()
    *first, last = str(trial.run(0.0).difference).splitlines()[-4:]
    names = {}
    try:
        exec("\n".join(line.strip() for line in first), names)
        made, wanted = eval(last.strip(), names)
    finally:
        cpu.core().use_target(before)
    assert (made - wanted).nan_to_num(1.0).min() > 0


def test_a_nan_is_like_another_and_minus_zero_is_not_zero():
    made, wanted = torch.tensor([0.0, 1.0, float("nan")]), torch.tensor([-0.0, 1.0, -float("nan")])
    assert trial._unequal(made, wanted).tolist() == [True, False, False]


def test_target_threads_and_generator_are_left_as_found():
    before, threads = cpu.core().target(), torch.get_num_threads()
    state = torch.get_rng_state()
    try:
        cpu.core().use_target(LAST)
        torch.set_num_threads(3)
        found = _doctor.doctor(seconds=0.0)
        assert (cpu.core().target(), torch.get_num_threads()) == (LAST, 3)
    finally:
        cpu.core().use_target(before)
        torch.set_num_threads(threads)
    assert torch.equal(torch.get_rng_state(), state)
    assert found.machine.threads == 3
    assert {one.threads for one in found.speed} == {1, 3}
    assert found.core.target == LAST
    assert len(found.crossover) == 4
    if TARGETS[0] != LAST:
        assert found.core.why == "chosen by use_target()"


def test_without_the_core_it_says_how_to_get_it(without_core):
    for _ in range(2):  # the backend itself warns once
        code, out, err = told()
        assert (code, err.count("\n")) == (0, 1)
        assert err.startswith("sitout doctor: sitout was installed without its compiled core")
        assert "pip install" in err
        assert rows(out)["self-test"].strip() == "left out: there is no core to compare"
        assert rows(out)["backend"].strip().startswith("reference: ")
    found = json.loads(told("--json")[1])
    assert (found["core"]["targets"], found["core"]["target"], found["trial"]) == ([], None, None)
    assert len(found["speed"]) >= 2
    assert len(found["crossover"]) == 4


def test_a_variable_that_names_a_target_or_a_backend_is_named(anew):
    anew.setenv("SITOUT_TARGET", LAST)
    anew.setattr(_choice, "_ENVIRONMENT", "reference")
    code, out, _ = told()
    found = {name: value.strip() for name, value in rows(out).items()}
    assert code == 0
    assert found["target"] == f"{LAST}: as the environment variable SITOUT_TARGET says"
    assert found["backend"] == "reference: forced by the environment variable SITOUT_BACKEND"
    assert found["self-test"].endswith("all equal")


@pytest.mark.parametrize("name", ["SITOUT_TARGET", "SITOUT_BACKEND"])
def test_a_variable_that_names_nothing_is_one_line_and_exit_code_2(anew, name):
    anew.setenv(name, "nonsense")
    if name == "SITOUT_BACKEND":  # read once, at the import
        anew.setattr(_choice, "_ENVIRONMENT", "nonsense")
    code, out, err = told()
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"sitout doctor: the environment variable {name} must be one of ")
    assert "Got 'nonsense'." in err


def test_a_backend_that_cannot_serve_without_a_core_is_one_line_and_exit_code_2(without_core, anew):
    anew.setattr(_choice, "_ENVIRONMENT", "cpu")
    code, out, err = told()
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.endswith("cannot serve a tensor: the compiled core was not built.\n")


def test_ctrl_c_ends_it_with_130_and_restores_the_target(monkeypatch):
    before = cpu.core().target()

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cpu, "drop", stop)
    assert told() == (130, "", "Stopped.\n")
    assert cpu.core().target() == before


def test_a_gpu_is_named_with_what_serves_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    real = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, device: real(*shape, device="meta"))
    told_of = machine.look().cuda
    assert told_of.startswith("Some GPU: reference, for no compiled kernel serves this tensor: ")
    monkeypatch.setattr(_choice, "_ENVIRONMENT", "cpu")
    assert machine.look().cuda.startswith("Some GPU: The backend 'cpu', forced by ")


def test_the_reference_is_not_compared_with_itself(monkeypatch):
    monkeypatch.setattr(reference, "drop", lambda x, *_: torch.full_like(x, 7.0))
    assert trial.run(0.0).difference is not None


def test_the_function_needs_no_package_of_the_command():
    code = (
        "import sys\n"
        "for name in ('typer', 'rich', 'pandas', 'sklearn', 'scipy'): sys.modules[name] = None\n"
        "from sitout._doctor import doctor\n"
        "print(doctor(seconds=0).text())"
    )
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env
    )
    assert "all equal" in done.stdout
