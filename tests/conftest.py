"""What every test starts from: one seed, and no memory that may be read before it is written."""

from __future__ import annotations

import os
import random

import numpy as np
import pytest
import torch

from sitout.backends import cpu

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read where Triton is imported, later


@pytest.fixture(autouse=True)
def _seed():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _poison():
    """Fill new memory with NaN, or the largest int, so that an unwritten element cannot pass."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=cpu.core().targets().split())
def target(request):
    """Run a test once on each instruction set of this machine."""
    before = cpu.core().target()
    cpu.core().use_target(request.param)
    yield request.param
    cpu.core().use_target(before)
