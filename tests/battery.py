"""What the batteries know of each layer: its inputs, its kind, and the values that it must give."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from sitout import nn
from sitout.masks import MaskKey, effective_rate, keep_mask, normals

P = 0.3


@dataclass(frozen=True)
class Case:
    """What the battery has to know of a layer.

    Args:
        kind: "mask" (a unit is kept and scaled, or 0), "alpha" (it is kept or at saturation, then
            all go through a x + b) or "noise" (it is multiplied by a number).
        shapes: valid inputs, the first batched and of rank 3 or more, with dims of several sizes.
        shared: the rank of the mask -> the dims along which one unit serves all.
        view: the shape of an input -> that of the tensor whose mask it has.
        refused: an input shape that the layer refuses, if there is one.
        statistics: a shape of many units.
    """

    kind: str
    shapes: tuple[tuple[int, ...], ...]
    shared: Callable[[int], tuple[int, ...]] = lambda rank: ()
    view: Callable[[tuple[int, ...]], tuple[int, ...]] = lambda shape: shape
    refused: tuple[int, ...] | None = None
    statistics: tuple[int, ...] = (149, 211)


def spatial(rank):
    return tuple(range(2, rank))


def all_but_the_first(rank):
    return tuple(range(1, rank))


def batched_to(*ranks):
    return lambda shape: shape if len(shape) in ranks else (1, *shape)


def one_a_row(shape):
    return (*shape, 1) if len(shape) == 1 else shape


ELEMENTS = ((3, 5, 7), (), (1,), (7,), (17,), (0,), (3, 0), (0, 5), (13, 9), (2, 3, 5, 7), (1, 1))
CASES = {
    "AlphaDropout": Case("alpha", ELEMENTS),
    "DropPath": Case(
        "mask",
        ((23, 5, 7), (), (1,), (17,), (0,), (3, 0), (0, 5), (13, 9), (2, 3, 5, 7), (1, 1)),
        all_but_the_first,
        one_a_row,
        statistics=(30011, 1),
    ),
    "Dropout": Case("mask", ELEMENTS),
    "Dropout1d": Case(
        "mask",
        ((3, 17, 4), (17, 4), (1, 1, 1), (0, 5, 3), (2, 5, 0), (2, 0, 3)),
        spatial,
        batched_to(3),
        refused=(3,),
        statistics=(149, 211, 1),
    ),
    "Dropout2d": Case(
        "mask",
        ((3, 17, 4, 2), (1, 1, 1, 1), (0, 5, 3, 2), (2, 5, 0, 3), (2, 0, 3, 1)),
        spatial,
        refused=(3, 17, 4),
        statistics=(149, 211, 1, 1),
    ),
    "Dropout3d": Case(
        "mask",
        ((3, 17, 4, 2, 3), (17, 4, 2, 3), (1, 1, 1, 1, 1), (0, 5, 3, 2, 1), (2, 5, 0, 3, 1)),
        spatial,
        batched_to(5),
        refused=(3, 17, 4),
        statistics=(149, 211, 1, 1, 1),
    ),
    "FeatureAlphaDropout": Case(
        "alpha",
        ((3, 17, 4), (13, 9), (2, 7, 3, 2), (1, 1), (0, 5, 3), (2, 5, 0)),
        spatial,
        refused=(3,),
        statistics=(149, 211, 1),
    ),
    "GaussianDropout": Case("noise", ELEMENTS),
}
NAMES = sorted(CASES)
# Those that do one thing more besides; test_fused compares them with what they stand for.
FUSED = {
    "activation_dropout": "ActivationDropout",
    "drop_path_add": "DropPathAdd",
    "dropout_add": "DropoutAdd",
    "dropout_add_layer_norm": "DropoutAddLayerNorm",
    "dropout_add_rms_norm": "DropoutAddRMSNorm",
}
# Those whose units sit out together and are not computed; test_thinned and test_drop_residual
# compare them with the dense networks.
THINNED = {
    "DropResidual",
    "ResidualDropPath",
    "ThinnedBatchNorm1d",
    "ThinnedBatchNorm2d",
    "ThinnedBatchNorm3d",
    "ThinnedConv1d",
    "ThinnedConv2d",
    "ThinnedConv3d",
    "ThinnedDropout",
    "ThinnedLinear",
    "ThinnedMLP",
}
# Functions of a subset or of a branch: they take no rate alone.
OF_SUBSETS = (
    *("drop_residual", "keep_units"),
    *("thinned_batch_norm", "thinned_conv", "thinned_dropout", "thinned_linear"),
)
MASKED = [name for name in NAMES if CASES[name].kind == "mask"]
SELECTING = [name for name in NAMES if CASES[name].kind != "noise"]

every_layer = pytest.mark.parametrize("name", NAMES)
every_selecting_layer = pytest.mark.parametrize("name", SELECTING)
every_shape = pytest.mark.parametrize(
    ("name", "shape"),
    [(name, shape) for name in NAMES for shape in CASES[name].shapes],
    ids=str,
)


def make(name, p=P, **options):
    return getattr(nn, name)(p, **options)


def sample(name, shape=None, **options):
    return torch.randn(CASES[name].shapes[0] if shape is None else shape, **options)


def ticket():
    """Return the key that the next call of a layer will draw, and leave the generator as it is."""
    state = torch.get_rng_state()
    key = MaskKey(seed=torch.randint(-(2**63), 2**63 - 1, ()))
    torch.set_rng_state(state)
    return key


def mask_of(name, key, shape, p=P):
    """Return the mask at an address, in the shape of the input."""
    case, shape = CASES[name], tuple(shape)
    view = case.view(shape)
    mask = keep_mask(key, p, view, shared_dims=case.shared(len(view)))
    return mask.expand(view).reshape(shape)


def noise_of(name, key, shape, p=P):
    return 1 + math.sqrt(p / (1 - p)) * normals(key, shape)


def alpha_constants(p=P):
    rate, saturation = effective_rate(p), -1.6732632423543772 * 1.0507009873554805
    a = ((1 - rate) * (1 + rate * saturation**2)) ** -0.5
    return a, -a * rate * saturation, saturation


def scale_of(p=P):
    return 1 / (1 - effective_rate(p))


def value(name, key, x, p=P):
    """Return what a layer makes of ``x`` at an address, in float32, or float64 for float64."""
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    if CASES[name].kind == "noise":
        return wide * noise_of(name, key, x.shape, p).to(wide.dtype)
    mask = mask_of(name, key, x.shape, p)
    if CASES[name].kind == "mask":
        return torch.where(mask, wide * scale_of(p), 0.0)
    a, b, saturation = alpha_constants(p)
    return torch.where(mask, a * wide + b, a * saturation + b)


def slope(name, key, x, p=P):
    """Return the derivative of a layer with respect to its input."""
    if CASES[name].kind == "noise":
        return noise_of(name, key, x.shape, p).to(x.dtype)
    mask = mask_of(name, key, x.shape, p)
    return mask * (scale_of(p) if CASES[name].kind == "mask" else alpha_constants(p)[0])


def agree(made, wanted, dtype=None):
    """Bit-equal for masks; within the rounding of 1 + sigma z, or of a x + b, for the others."""
    eps = torch.finfo(dtype or made.dtype).eps
    return torch.allclose(made.double(), wanted.double(), rtol=4 * eps, atol=4 * eps)


def assert_same(name, made, wanted):
    assert made.dtype == wanted.dtype
    if CASES[name].kind == "mask":
        assert torch.equal(made, wanted)
    else:
        assert agree(made, wanted)
