"""Where the kernels of Triton run: on a GPU, or in the interpreter, on the CPU."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import sitout

collect_ignore_glob = [] if find_spec("triton") else ["test_*.py"]


_SAID_ONCE = (  # by torch, on a GPU, of itself
    *("Synchronization debug mode", "TensorFloat32 tensor cores", "The CUDA Graph is empty"),
    "Attempting to run cuBLAS, but there was no current CUDA context",
)


def pytest_collection_modifyitems(items):
    """Let what torch says the first time fail no test here."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            for said in _SAID_ONCE:
                item.add_marker(pytest.mark.filterwarnings(f"ignore:{said}"))


@pytest.fixture
def device():
    """Return the device of the tensors in a test."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def _forced():
    """Serve every tensor by Triton."""
    with sitout.backends.use("triton"):
        yield


@pytest.fixture(autouse=True)
def _rounding(monkeypatch):
    """Let the interpreter round to bfloat16 as a GPU does: it cuts off what does not fit."""
    if not sitout.backends.triton.is_interpreted():
        return
    import triton.language as tl
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def rounding(data, source, target, mode):
        types = source.scalar, target.scalar
        if types == (tl.float32, tl.bfloat16):
            wide = torch.from_numpy(data.copy()).view(torch.float32)
            return wide.bfloat16().view(torch.uint16).numpy()
        if types == (tl.bfloat16, tl.float32):
            return torch.from_numpy(data.copy()).view(torch.bfloat16).float().numpy()
        return convert(data, source, target, mode)

    monkeypatch.setattr(interpreter, "_convert_float", rounding)
