"""The committed table of equal and different masks says what the experiments find."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def load():
    """Return the benchmark, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("same_mask", ROOT / "benchmarks" / "same_mask.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["same_mask"] = module
    spec.loader.exec_module(module)
    return module


same_mask = load()
COMMITTED = json.loads((same_mask.RESULTS / "same-mask.json").read_text())["rows"]
QUICK = [row for row in same_mask.TABLE if not row.needs]


def test_the_table_has_a_line_for_every_experiment():
    assert [(row["wanted"], row["what"]) for row in COMMITTED] == [
        (row.wanted, row.what) for row in same_mask.TABLE
    ]


def test_the_page_shows_the_committed_table():
    page = same_mask.RESULTS / "same-mask.md"
    assert page.read_text() == same_mask.to_markdown(COMMITTED)


@pytest.mark.parametrize("row", QUICK, ids=lambda row: row.what)
def test_an_experiment_finds_the_committed_answers(row):
    found = same_mask.answers(row)
    assert found == next(line for line in COMMITTED if line["what"] == row.what)


def test_a_changed_answer_is_told():
    changed = [{**COMMITTED[0], "torch": "else"}, *COMMITTED[1:]]
    assert same_mask.differences(COMMITTED, COMMITTED) == []
    assert len(same_mask.differences(changed, COMMITTED)) == 1
