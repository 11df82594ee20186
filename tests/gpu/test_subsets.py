"""Subsets and moves of kept rows and columns, made by kernels: those of the specification."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl

import sitout
from sitout import backends, masks
from sitout.backends.triton import _moves, _rows, _subsets
from sitout.masks import MaskKey

KEY = MaskKey(seed=2**64 - 5, site=2**28 - 1, step=2**32 - 1, call=7)
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
interpreted = pytest.mark.skipif(torch.cuda.is_available(), reason="a kernel is replaced")


def wanted_units(key, p, n, groups):
    return torch.stack([masks.kept_units(key, p, n, group=group) for group in groups])


def on_device(key, device):
    """Return a key whose fields are tensors."""
    fields = {
        name: torch.tensor(value if value < 2**63 else value - 2**64, device=device)
        for name, value in vars(key).items()
    }
    return MaskKey(**fields)


@pytest.mark.parametrize(
    ("n", "p"), [(1, 0.5), (2, 0.3), (5, 0.3), (128, 0.001), (129, 0.3), (641, 0.999)]
)
def test_units_are_those_of_the_specification(device, n, p):
    groups = [0, 2**32 - 1]
    made = _subsets.kept_units(KEY, p, n, torch.tensor(groups, device=device))
    assert made.device.type == device
    assert torch.equal(made.cpu(), wanted_units(KEY, p, n, groups))


@pytest.mark.parametrize("n", [4099, _subsets.LARGEST])
def test_many_units_are_those_of_the_specification(device, n):
    made = _subsets.kept_units(KEY, 0.5, n, torch.tensor([3], device=device))
    assert torch.equal(made.cpu(), wanted_units(KEY, 0.5, n, [3]))


@pytest.mark.parametrize(("p", "n"), [(0.0, 5), (1.0, 5), (0.5, 0), (0.25, 9)])
def test_units_that_no_kernel_draws_are_those_of_the_specification(monkeypatch, device, p, n):
    monkeypatch.setattr(_subsets, "LARGEST", 8)
    monkeypatch.setattr(_subsets, "launch", None)
    made = _subsets.kept_units(KEY, p, n, torch.tensor([0, 1], device=device))
    assert torch.equal(made.cpu(), wanted_units(KEY, p, n, [0, 1]))
    listed, weights = _subsets.kept_samples(KEY, p, n, torch.tensor(1, device=device))
    wanted = masks.kept_samples(KEY, p, n, group=1)
    assert torch.equal(listed.cpu(), wanted[0])
    assert torch.equal(weights.cpu(), wanted[1])


@pytest.mark.parametrize(("n", "p"), [(1, 0.1), (3, 0.5), (8, 0.75), (33, 0.1)])
def test_samples_and_their_weights_are_those_of_the_specification(device, n, p):
    for group in (0, 7):
        made = _subsets.kept_samples(KEY, p, n, torch.tensor(group, device=device))
        for ours, theirs in zip(made, masks.kept_samples(KEY, p, n, group=group), strict=True):
            assert ours.dtype == theirs.dtype
            assert torch.equal(ours.cpu(), theirs)


def test_the_last_sample_plays_as_often_as_its_fraction_says(device):
    draws = [
        _subsets.kept_samples(MaskKey(seed=seed), 0.5, 3, torch.tensor(0, device=device))[1]
        for seed in range(8)
    ]
    lost = sum(bool((one == 0.0).any()) for one in draws)
    wanted = [masks.kept_samples(MaskKey(seed=seed), 0.5, 3)[1] for seed in range(8)]
    assert lost == sum(bool((one == 0.0).any()) for one in wanted)
    assert 0 < lost < 8


def test_a_key_of_tensors_is_read_where_it_lies(device):
    groups = torch.tensor([0, 1], device=device)
    made = _subsets.kept_units(on_device(KEY, device), 0.5, 20, groups)
    assert torch.equal(made.cpu(), wanted_units(KEY, 0.5, 20, [0, 1]))
    mixed = MaskKey(KEY.seed, torch.tensor(KEY.site, device=device), KEY.step, KEY.call)
    assert torch.equal(_subsets.kept_units(mixed, 0.5, 20, groups), made)


@triton.jit
def few_words(block, row, step, site, kind, k0, k1):
    at = block.to(tl.uint32), row.to(tl.uint32)
    w0, w1, w2, w3 = tl.philox_impl(at[0], at[1], step, site, k0, k1)
    return w0 & 1, w1 & 1, w2 & 1, w3 & 1


@interpreted
@pytest.mark.parametrize("n", [2, 30, 128])
def test_of_equal_words_the_first_index_plays(monkeypatch, n):
    monkeypatch.setattr(_subsets, "words", few_words)
    groups = torch.tensor([0])
    blocks = torch.arange(-(-n // 4))
    words = masks._philox(blocks, *[torch.zeros_like(blocks)] * 3, 0, 0)
    bits = torch.stack(words, 1).flatten()[:n] & 1
    k = masks._count_kept(0.4, n)
    wanted = bits.sort(stable=True).indices[:k].sort().values
    assert torch.equal(_subsets.kept_units(MaskKey(), 0.4, n, groups)[0], wanted)


# The moves


def subset(groups, n, k, device):
    if k is None:
        return None
    made = [torch.randperm(n)[:k].sort().values for _ in range(groups)]
    return torch.stack(made).to(device)


MOVES = [
    ((7,), 3, None),
    ((5, 13), 2, None),
    ((5, 13), None, 13),
    ((9, 301), 4, 150),
    ((23, 600), 17, 300),
    ((4, 5, 3), 2, 4),
    ((3, 7, 1, 2), None, 1),
]
every_move = pytest.mark.parametrize(("shape", "r", "c"), MOVES, ids=str)
every_groups = pytest.mark.parametrize("groups", [1, 3])


def indexed(x, rows, cols, g):
    x = x if rows is None else x[rows[g]]
    return x if cols is None else x[:, cols[g]]


@every_move
@every_groups
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_kept_rows_and_columns_are_gathered_to_the_bit(device, dtype, shape, r, c, groups):
    x = torch.randn(shape, device=device).to(dtype)
    rows = subset(groups, shape[0], r, device)
    cols = subset(groups, shape[-1] if len(shape) < 2 else shape[1], c, device)
    wanted = torch.stack([indexed(x, rows, cols, g) for g in range(groups)])
    assert torch.equal(_moves.take(x, rows, cols), wanted)
    wide = _moves.take(x, rows, cols, 8)
    assert torch.equal(wide, wanted)
    if wide.dim() == 3:
        assert wide.stride(1) % 8 == 0


@every_dtype
@every_move
@every_groups
def test_spreading_adds_up_what_the_groups_have(device, dtype, shape, r, c, groups):
    rows = subset(groups, shape[0], r, device)
    cols = subset(groups, shape[-1] if len(shape) < 2 else shape[1], c, device)
    like = indexed(torch.zeros(shape, device=device), rows, cols, 0)
    x = torch.randint(-4, 5, (groups, *like.shape), device=device).to(dtype)  # exact sums
    wanted = torch.zeros(shape, dtype=dtype, device=device)
    for g in range(groups):
        at = torch.arange(shape[0], device=device) if rows is None else rows[g]
        if cols is None:
            wanted[at] += x[g]
        else:
            wanted[at[:, None], cols[g]] += x[g]
    made = _moves.spread(x, rows, cols, shape[0], shape[1] if len(shape) > 1 else 0)
    assert made.dtype == dtype
    assert torch.equal(made, wanted)


def test_a_gradient_is_spread_in_the_dtype_of_its_weight(device):
    rows = subset(1, 5, 2, device)
    x = torch.randn(1, 2, 3, device=device).bfloat16()
    made = _moves.spread(x, rows, None, 5, 0, torch.float32)
    assert made.dtype == torch.float32
    assert torch.equal(made[rows[0]], x[0].float())


@every_dtype
@pytest.mark.parametrize("shape", [(1, 2), (7, 4, 9), (5, 3, 4, 4), (2, 2051), (11, 2)], ids=str)
def test_rows_are_added_in_one_pass_and_rounded_once(monkeypatch, device, dtype, shape):
    monkeypatch.setattr(_rows, "_CHUNK", 4)
    c = -(-shape[0] // 2)
    rows = torch.randperm(shape[0])[:c].sort().values.to(device)
    weights = torch.full((c,), 1 / 0.7, dtype=torch.float64, device=device)
    x, branch = torch.randn(shape).to(dtype), torch.randn(c, *shape[1:]).to(dtype)
    x, branch = x.to(device), branch.to(device)
    if c > 1:
        weights[0], branch[0] = 0.0, torch.nan
    wide = torch.promote_types(dtype, torch.float32)
    wanted, played = x.to(wide, copy=True), weights != 0
    wanted[rows[played]] += branch.to(wide)[played] * weights[played].to(wide).view(
        -1, *[1] * (len(shape) - 1)
    )
    made = _rows.add_rows(x, branch, rows, weights)
    assert torch.equal(made, wanted.to(dtype))
    grad = torch.randn(shape, device=device).to(dtype)
    back = _rows.take_weighted(grad, rows, weights)
    shaped = weights.to(wide).view(-1, *[1] * (len(shape) - 1))
    assert torch.equal(back, (grad[rows].to(wide) * shaped).to(dtype))


def test_the_layout_of_the_stream_is_kept(device):
    x = torch.randn(4, 3, 5, 5, device=device).contiguous(memory_format=torch.channels_last)
    rows = torch.tensor([1, 3], device=device)
    weights = torch.tensor([2.0, 0.5], dtype=torch.float64, device=device)
    branch = x[rows].contiguous(memory_format=torch.channels_last)
    made = _rows.add_rows(x, branch, rows, weights)
    assert made.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(made, _rows.add_rows(x.contiguous(), branch.contiguous(), rows, weights))
    strided = _rows.add_rows(x, branch.contiguous(), rows, weights)
    assert torch.equal(made, strided)
    assert torch.equal(_rows.take_weighted(x, rows, weights)[0], 2.0 * x[1])


def test_no_row_and_an_empty_stream(device):
    none, nothing = torch.empty(0, dtype=torch.int64, device=device), torch.empty(0, device=device)
    x = torch.randn(3, 4, device=device)
    made = _rows.add_rows(x, x[:0], none, nothing.double())
    assert torch.equal(made, x)
    assert made is not x
    assert _rows.take_weighted(x, none, nothing.double()).shape == (0, 4)
    assert _rows.add_rows(x[:, :0], x[:0, :0], none, nothing.double()).shape == (3, 0)


# What leads there


@pytest.mark.usefixtures("_forced")
def test_the_public_moves_reach_the_kernels(device, monkeypatch):
    x = torch.randn(6, 8, device=device, requires_grad=True)
    rows = torch.tensor([1, 4], device=device)
    launched = []
    launch = _moves.launch
    monkeypatch.setattr(_moves, "launch", lambda *a, **k: (launched.append(a[0]), launch(*a, **k)))
    y = backends.take(x, rows, None)
    (grad,) = torch.autograd.grad(y, x, torch.ones_like(y), create_graph=True)
    assert launched == [_moves.gather, _moves.invert, _moves.scatter]
    assert torch.equal(y, x[rows])
    assert torch.equal(grad, torch.zeros_like(x).index_fill(0, rows, 1.0))


@pytest.mark.usefixtures("_forced")
def test_the_public_draws_reach_the_kernels(device, monkeypatch):
    groups = torch.tensor([0, 5], device=device)
    wanted = wanted_units(KEY, 0.5, 10, [0, 5])
    assert torch.equal(backends.draw(KEY, 0.5, 10, groups).cpu(), wanted)
    sitout.backends.draw_samples(KEY, 0.5, 10, groups[0])
    monkeypatch.setattr(_subsets, "launch", None)
    for draw in (backends.draw, backends.draw_samples):
        with pytest.raises(TypeError, match="not callable"):
            draw(KEY, 0.5, 10, groups if draw is backends.draw else groups[0])


# Ahead of time


_AHEAD = Path(__file__).parent / "ahead_subsets.py"


def test_every_kernel_compiles_ahead_of_time_and_no_register_spills():
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, _AHEAD], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    found = [line.split() for line in done.stdout.splitlines()]
    assert len(found) == 16
    for name, arch, registers, spilled in found:
        assert arch in ("80", "90")
        assert 0 < int(registers) <= 255, name
        assert int(spilled) == 0, name
