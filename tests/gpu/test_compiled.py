"""What Triton makes of the kernels for real GPUs, none of which has to be here."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "kernels.py"
MINE = "^(?!.*(norm|kept|subsets))"  # the others are compiled in tests of their own


@pytest.fixture(scope="module")
def kernels():
    spec = importlib.util.spec_from_file_location("kernels_for_tests", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def rows(kernels):
    """Every kernel in bfloat16, for both targets: {(case, target): row}."""
    made = kernels.rows(pattern=MINE, dtypes=["bfloat16"])
    return {(row["case"], row["target"]): row for row in made}


@pytest.fixture(scope="module")
def wider(kernels):
    """The main kernel in the wider types, for the newer target: {dtype: row}."""
    made = kernels.rows([90], "^dropout$", ["float32", "float64"])
    return {row["dtype"]: row for row in made}


def test_every_case_compiles_for_both_targets(kernels, rows):
    cases = {case for case in kernels.cases() if re.match(MINE, case)}
    assert set(rows) == {(case, target) for case in cases for target in (80, 90)}
    assert len(cases) >= 19


def test_no_kernel_spills(rows, wider):
    assert {key for key, row in rows.items() if row["local"]} == set()
    assert not any(row["local"] for row in wider.values())


def test_registers_leave_room_for_many_threads(rows):
    """A device holds 65536 registers for 2048 threads: with 64 each, half of them run at once."""
    light = [row for (case, _), row in rows.items() if case in ("dropout", "alpha", "add", "mask")]
    assert all(row["registers"] <= 40 for row in light)
    assert all(row["registers"] <= 72 for row in rows.values())


@pytest.mark.parametrize("target", [80, 90])
def test_dropout_moves_whole_vectors_and_makes_each_word_once(rows, target):
    row = rows["dropout", target]
    vectors = row["loads"]["128"]  # of a thread: eight elements each
    assert row["loads"] == {"128": vectors, "64": 4}  # and the four numbers of an address
    assert row["stores"] == {"128": vectors}
    assert row["shared"] == row["barriers"] == 0
    assert row["mul_hi"] == 20 * vectors + 1  # two a round, and one that knows the row
    assert row["instructions"] <= 180 * vectors


@pytest.mark.parametrize("target", [80, 90])
def test_wherever_memory_allows_it_vectors_are_whole(rows, target):
    ragged = {"dropout, odd rows", "dropout, across memory", "mask"}
    for case in {case for case, _ in rows} - ragged:
        row = rows[case, target]
        assert set(row["stores"]) == {"128"}, case
        assert {*row["loads"]} <= {"128", "64"}, case  # what the address holds has 64 bits
        assert row["loads"]["128"] >= row["stores"]["128"], case


def test_wider_types_move_whole_vectors_without_shared_memory(wider):
    for row in wider.values():
        assert (set(row["loads"]), set(row["stores"])) == ({"128", "64"}, {"128"})
        assert row["shared"] == row["barriers"] == 0


@pytest.mark.parametrize("target", [80, 90])
def test_odd_rows_do_not_make_each_word_anew_for_every_element(rows, target):
    row = rows["dropout, odd rows", target]
    elements = sum(row["stores"].values())
    assert row["mul_hi"] <= elements / 8 * 20 + elements + 2
    assert row["shared"] <= 1024


VARIANTS = """
import sys
import torch, triton
sys.path.insert(0, sys.argv[1])
import kernels
from sitout import MaskKey
from sitout.backends import Address, triton as backend
from sitout.backends.triton import _drop

triton.runtime.driver.set_active(kernels._Driver(90))
made = set()
def launch(kernel, programs, device, *arguments, **more):
    made.add(kernel.warmup(*arguments, grid=(programs,), enable_fp_fusion=False, **more).hash)
_drop.launch = launch

def drop(shape=(64, 1024), key=7, p=0.3, rows=None):
    x = torch.empty(shape, dtype=torch.bfloat16)
    backend.drop(x, Address(key, rows=rows), p, "dropout")

for key in (0, 1, 16, 2**31, 2**63, 2**64 - 1, MaskKey(1, 2, 3), MaskKey(2**40, 0, 2**31, 5)):
    drop(key=key)
for p in (0.1, 0.5, 0.9):
    drop(p=p)
for shape in ((2, 16), (128, 2048), (1000, 4096), (16, 65536), (64, 8, 32)):
    drop(shape)
print(len(made))
made.clear()
fields = torch.arange(9)
for at in range(8):  # wherever a number lies in memory
    drop(key=MaskKey(fields[at], at, fields[at + 1], at), rows=torch.arange(65)[1:])
print(len(made))
"""


def test_neither_key_nor_rate_nor_shape_compiles_a_kernel_anew():
    environment = {key: one for key, one in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", VARIANTS, FILE.parent],
        env=environment,
        capture_output=True,
        check=True,
        text=True,
    )
    assert done.stdout.split() == ["1", "1"]


def test_the_table_has_a_line_for_each_row(kernels, rows):
    lines = kernels.table(list(rows.values())).splitlines()
    assert len(lines) == len(rows) + 1
    assert lines[0].split()[:3] == ["case", "dtype", "target"]
