"""The known answers of the mask specification, reproduced to the bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sitout import masks
from sitout.masks import MaskKey, keep_mask, kept_samples, kept_units, normals

VECTORS = json.loads((Path(__file__).parent / "vectors" / "masks.json").read_text())


def key_of(case):
    return MaskKey(case["seed"], case["site"], case["step"], case["call"])


def tensor_key_of(case):
    """The same address in int64 tensors; a seed of 2**63 or more wraps to a negative number."""
    seed = case["seed"] - (1 << 64 if case["seed"] >= 1 << 63 else 0)
    fields = (seed, case["site"], case["step"], case["call"])
    return MaskKey(*(torch.tensor(field, dtype=torch.int64) for field in fields))


def bits(mask):
    return "".join(str(int(bit)) for bit in mask.flatten())


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
@pytest.mark.parametrize("as_tensor", [False, True])
def test_philox_gives_the_known_answers(counter, key, answer, as_tensor):
    args = [torch.tensor(word) if as_tensor else word for word in (*counter, *key)]
    assert " ".join(f"{int(word):08x}" for word in masks._philox(*args)) == answer


@pytest.mark.parametrize("make_key", [key_of, tensor_key_of])
@pytest.mark.parametrize("case", VECTORS["words"])
def test_words(case, make_key):
    rows, blocks = torch.tensor([case["row"]]), torch.tensor([case["block"]])
    words = masks._words(make_key(case), case["kind"], rows, blocks)
    assert [f"{int(word):08x}" for word in words] == case["words"]


@pytest.mark.parametrize("make_key", [key_of, tensor_key_of])
@pytest.mark.parametrize("case", VECTORS["keep"])
def test_keep(case, make_key):
    rows = torch.tensor(case["rows"])
    listed = isinstance(case["cols"], list)
    n = len(case["cols"]) if listed else case["cols"]
    cols = torch.tensor(case["cols"]) if listed else torch.arange(n)
    made = [keep_mask(make_key(case), case["p"], (len(rows), n), rows=rows, cols=cols)]
    if not listed:
        made.append(keep_mask(make_key(case), case["p"], (len(rows), n), rows=rows))
    assert masks._threshold(case["p"]) == (case["bits"], case["threshold"])
    for mask in made:
        assert [bits(row) for row in mask] == case["keep"]


@pytest.mark.parametrize("case", VECTORS["tensors"])
def test_tensors(case):
    mask = keep_mask(
        key_of(case),
        case["p"],
        case["shape"],
        shared_dims=case["shared_dims"],
        batch_dim=case["batch_dim"],
        rows=None if case["rows"] is None else torch.tensor(case["rows"]),
        block=case["block"],
    )
    assert bits(mask.expand(case["shape"])) == case["keep"]


@pytest.mark.parametrize("case", VECTORS["kept_units"])
def test_kept_units(case):
    units = kept_units(key_of(case), case["p"], case["n"], group=case["group"])
    assert units.tolist() == case["kept"]


@pytest.mark.parametrize("case", VECTORS["kept_samples"])
def test_kept_samples(case):
    listed, weight = kept_samples(key_of(case), case["p"], case["n"], group=case["group"])
    assert listed.tolist() == case["listed"]
    assert weight.tolist() == case["weight"]


@pytest.mark.parametrize("case", VECTORS["normals"])
def test_normals(case):
    rows = torch.tensor(case["rows"])
    z = normals(key_of(case), (len(rows), case["cols"]), rows=rows)
    wanted = torch.tensor(case["z"], dtype=torch.float64)
    assert torch.allclose(z, wanted, rtol=0, atol=1e-12)  # the file has twelve decimals
