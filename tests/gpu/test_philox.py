"""The known answers of the mask specification, straight from the kernels."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl

from sitout import MaskKey
from sitout.backends import Address
from sitout.backends import triton as backend
from sitout.backends.triton import _philox
from sitout.backends.triton._launch import key_arguments, launch

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "masks.json").read_text())


@triton.jit
def all_words(
    out,
    block: tl.int64,
    row: tl.int64,
    kind: tl.constexpr,
    key: tl.int64,
    site: tl.int64,
    step: tl.int64,
    seed_at,
    call_at,
    site_at,
    step_at,
):
    k0, k1, site, step = _philox.load_key(key, site, step, seed_at, call_at, site_at, step_at)
    blocks = tl.zeros([1, 1], tl.int64) + block
    w0, w1, w2, w3 = _philox.words(blocks, row, step, site, kind, k0, k1)
    word, half = tl.arange(0, 4)[None, :], tl.arange(0, 8)[None, :]
    tl.store(out + word, _philox.pick(w0, w1, w2, w3, word).to(tl.int64))
    tl.store(out + 4 + half, _philox.half(w0, w1, w2, w3, half).to(tl.int64))


@triton.jit
def all_normals(out, w, v, n: tl.constexpr):
    at = tl.arange(0, n)
    made = _philox.box_muller(tl.load(w + at).to(tl.uint32), tl.load(v + at).to(tl.uint32))
    tl.store(out + at, made)


def words_of(key, block, row, kind, device):
    out = torch.empty(12, dtype=torch.int64, device=device)
    *arguments, _ = key_arguments(key, 1, out.device)
    launch(all_words, 1, out.device, out, block, row, kind, *arguments)
    return out[:4].tolist(), out[4:].tolist()


def key_of(case):
    return MaskKey(case["seed"], case["site"], case["step"], case["call"])


def tensor_key_of(case, device):
    fields = (case["seed"], case["site"], case["step"], case["call"])
    signed = (field - (1 << 64) if field >> 63 else field for field in fields)
    return MaskKey(*(torch.tensor(one, dtype=torch.int64, device=device) for one in signed))


def bits(mask):
    return "".join(str(int(bit)) for bit in mask.flatten())


@pytest.mark.parametrize("case", VECTORS["words"])
def test_words_and_halves(case, device):
    rest = case["block"], case["row"], case["kind"], device
    wanted = [int(word, 16) for word in case["words"]]
    for key in (key_of(case), tensor_key_of(case, device), tensor_key_of(case, "cpu")):
        made, halves = words_of(key, *rest)
        assert made == wanted
        assert halves == [half for word in wanted for half in (word & 0xFFFF, word >> 16)]


@pytest.mark.parametrize("case", [one for one in VECTORS["keep"] if isinstance(one["cols"], int)])
def test_keep(case, device):
    rows = torch.tensor(case["rows"], device=device)
    for key in (key_of(case), tensor_key_of(case, device)):
        shape = len(rows), case["cols"]
        made = backend.keep_mask(Address(key, rows=rows), case["p"], shape, device)
        assert [bits(row) for row in made] == case["keep"]


@pytest.mark.parametrize("case", VECTORS["tensors"])
def test_tensors(case, device):
    rows = None if case["rows"] is None else torch.tensor(case["rows"])
    block = None if case["block"] is None else tuple(map(tuple, case["block"]))
    address = Address(key_of(case), tuple(case["shared_dims"]), case["batch_dim"], rows, block)
    shape = tuple(case["shape"])
    mask = backend.keep_mask(address, case["p"], shape, device)
    assert bits(mask.expand(shape)) == case["keep"]
    x = torch.ones(shape, device=device)
    assert torch.equal(backend.drop(x, address, case["p"], "path") == 1, mask.expand(shape))


@pytest.mark.parametrize("case", VECTORS["normals"])
def test_normals(case, device):
    rows = torch.tensor(case["rows"])
    x = torch.ones(len(rows), case["cols"], dtype=torch.float64, device=device)
    made = backend.drop(x, Address(key_of(case), rows=rows), 0.5, "gaussian") - 1  # sigma is 1
    wanted = torch.tensor(case["z"], dtype=torch.float64, device=device)
    assert torch.allclose(made, wanted, rtol=0, atol=1e-12)  # the file has twelve decimals


def test_normals_at_the_ends_of_the_words(device):
    ends = torch.tensor([0, 1, 2**31, 2**32 - 2, 2**32 - 1, 2**30, 3 * 2**30, 12345])
    w, v = ends.repeat_interleave(8).to(device), ends.repeat(8).to(device)
    made = torch.empty(64, dtype=torch.float64, device=device)
    launch(all_normals, 1, made.device, made, w, v, 64)
    u1, u2 = (w + 1).double() / 2.0**32, v.double() / 2.0**32
    wanted = torch.sqrt(-2.0 * torch.log(u1)) * torch.cos(2.0 * torch.pi * u2)
    assert torch.allclose(made, wanted, rtol=1e-14, atol=1e-14)
