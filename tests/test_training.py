"""A run under a clock is one run, however it is carried out: ``benchmarks/same_run.py``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "same_run.py"


@pytest.fixture(scope="module")
def figures():
    """Every way against eager; in a process of its own, for torch.compile is in it."""
    done = subprocess.run(
        [sys.executable, SCRIPT], capture_output=True, text=True, check=True, timeout=600
    )
    lines = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    return {way: json.loads(line) for way, line in lines.items()}


def test_every_mask_is_the_same_in_every_way(figures):
    assert set(figures) == {"checkpoint", "resume", "micro", "processes", "compile"}
    for way, row in figures.items():
        assert row["masks"] == 50 * 7, way
        assert row["masks identical"], way


@pytest.mark.parametrize("way", ["checkpoint", "resume"])
def test_what_is_repeated_or_resumed_has_the_same_losses_to_the_bit(figures, way):
    assert figures[way]["losses identical"]


@pytest.mark.parametrize("way", ["micro", "processes", "compile"])
def test_what_sums_in_another_order_has_the_same_losses_but_for_rounding(figures, way):
    assert figures[way]["largest relative difference"] < 1e-5
