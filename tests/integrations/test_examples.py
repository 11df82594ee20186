"""The examples run as they stand, and end at the rates that they speak of."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from zoo import has

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
NEEDS = {
    "plain_loop": ["sklearn"],
    "lightning_callback": ["lightning", "sklearn"],
    "huggingface_callback": ["transformers", "accelerate"],
}


def test_every_example_is_tried_here():
    assert {path.stem for path in EXAMPLES.glob("*.py")} >= {*NEEDS}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NEEDS)
def test_an_example_runs_and_its_schedule_ends(name, capsys):
    if missing := [package for package in NEEDS[name] if not has(package)]:
        pytest.skip(f"{missing[0]} is not installed")
    left = runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    scheduler = left["scheduler"] if "scheduler" in left else left["callback"].scheduler
    assert scheduler.last_step == scheduler.total
    assert capsys.readouterr().out
