"""What a prediction holds in memory: by what torch's allocator hands out, not by the clock."""

from __future__ import annotations

import gc
import importlib
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import sitout

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
peak = importlib.import_module("speed.peak").peak


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # more of them take scratch space in a convolution of torch
    yield
    torch.set_num_threads(before)


def segmenting():
    body = [nn.Conv2d(3, 16, 3, stride=4, padding=1), nn.ReLU(), nn.Dropout(0.1)]
    body += [nn.Conv2d(16, 21, 1), nn.Upsample(scale_factor=4, mode="bilinear")]
    return nn.Sequential(*body).eval(), torch.randn(1, 3, 512, 512)


def test_fifty_maps_of_classes_are_never_three_at_a_time():
    model, x = segmenting()
    options = {"outputs": "logits", "statistics": ("mean", "entropy", "mutual_information")}
    sitout.mc.predict(model, x, samples=2, **options)  # the plan
    held = peak(lambda: sitout.mc.predict(model, x, samples=50, **options))
    assert held < 3 * 21 * 512 * 512 * 4


def test_memory_does_not_grow_with_the_number_of_samples():
    model, x = segmenting()
    sitout.mc.predict(model, x, samples=2)
    few, many = (peak(lambda t=t: sitout.mc.predict(model, x, samples=t)) for t in (4, 20))
    assert many == few


def test_a_budget_bounds_the_samples_that_run_together():
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(256, 4096), nn.ReLU(), nn.Linear(4096, 4))
    x = torch.randn(64, 256)
    sitout.mc.predict(model, x, samples=2)
    few, many = (
        peak(lambda m=memory: sitout.mc.predict(model, x, samples=8, memory=m))
        for memory in ("4MB", "9MB")
    )
    results = 1 << 14
    assert few < 4 * 2**20 + results < many < 9 * 2**20 + results


def test_a_kept_plan_holds_no_activations():
    model, x = segmenting()
    before = live_bytes()
    sitout.mc.predict(model, x, samples=2, statistics=("mean",))
    assert live_bytes() - before < 2**16


def live_bytes():
    gc.collect()
    found = [one for one in gc.get_objects() if type(one) in (torch.Tensor, nn.Parameter)]
    found = [one for one in found if one.layout is torch.strided]
    return sum(
        {one.untyped_storage()._cdata: one.untyped_storage().nbytes() for one in found}.values()
    )
