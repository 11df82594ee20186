"""The registry: every case that ``make bench`` runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import sitout
from sitout import functional

from . import baselines, gate
from .baselines import Compiled
from .kinds import BOTH, RECORDED, Case, Scaling, Timed
from .saved import Saved
from .step import Step

Call = Callable[..., Tensor]
TOKENS, PATCHES, IMAGES, HIDDEN = (32, 128, 768), (64, 197, 384), (32, 64, 56, 56), (128, 2048)


def registry() -> dict[str, Case]:
    """Return all cases by their names, in the order in which they are reported."""
    timed = [*sizes(), *dropout(), *laws(), *residuals(), *activations(), *compiled()]
    step = Step(name="mlp-step", op="mlp", shape=(128, 512), threads=2)
    return {case.name: case for case in (*timed, *scaling(), *saved(), step)}


def beside_torch(name: str, ours: Call, theirs: Call, *shape: int, **options: Any) -> Timed:
    """Return a case of one function at p = 0.5, with torch's as a baseline."""
    options = {"op": name.partition("-")[0], **options}
    return Timed(name=name, shape=shape, ours=ours, baselines={"torch": theirs}, **options)


def sizes() -> Iterator[Case]:
    """Yield plain dropout by size: what the plot shows."""
    for bits in (8, 14, 16, 20, 22, 24):
        yield Timed(
            name=f"dropout-float32-2^{bits}",
            op="dropout",
            shape=(1 << bits,),
            ours=functional.dropout,
            baselines={"torch": F.dropout, "torch.compile": Compiled(F.dropout)},
        )


def dropout() -> Iterator[Case]:
    """Yield plain dropout by dtype, with backward, in small, by layout, with a shared mask."""
    ours, theirs = functional.dropout, F.dropout
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        name = str(dtype).removeprefix("torch.")
        yield beside_torch(f"dropout-{name}-2^20", ours, theirs, 1 << 20, dtype=dtype)
    for bits in (22, 24):
        yield beside_torch(f"dropout-backward-2^{bits}", ours, theirs, 1 << bits, passes=BOTH)
    yield beside_torch("dropout-small", ours, theirs, 256, passes=RECORDED)
    layer, their_layer = sitout.nn.Dropout(0.5), torch.nn.Dropout(0.5)
    options: dict[str, Any] = {"passes": RECORDED, "wanted": ours}
    yield beside_torch("dropout-small-layer", layer, their_layer, 256, **options)
    yield beside_torch("dropout-channels-last", ours, theirs, *IMAGES, layout="channels last")
    yield beside_torch("dropout-transposed", ours, theirs, 1024, 1024, layout="transposed")
    yield beside_torch("dropout-small-rows", ours, theirs, 65536, 16)
    yield beside_torch("dropout-shared", shared, baselines.shared, *TOKENS)


def shared(x: Tensor) -> Tensor:
    """Drop with one mask for all time steps of ``[B, T, C]``."""
    return functional.dropout(x, shared_dims=(1,))


def laws() -> Iterator[Case]:
    """Yield whole channels, alpha dropout and Gaussian dropout."""
    ours, theirs = functional.dropout2d, F.dropout2d
    yield beside_torch("dropout2d", ours, theirs, *IMAGES)
    yield beside_torch("dropout2d-channels-last", ours, theirs, *IMAGES, layout="channels last")
    ours, theirs = functional.alpha_dropout, baselines.alpha
    yield beside_torch("alpha_dropout", ours, theirs, 1 << 20, close=gate.ONE_ULP)
    ours, theirs = functional.gaussian_dropout, baselines.gaussian
    yield beside_torch("gaussian_dropout", ours, theirs, 1 << 20, close=gate.ROUNDING)


def residuals() -> Iterator[Case]:
    """Yield drop path, and dropout and drop path with the sum that follows."""

    def drop(x: Tensor, residual: Tensor) -> Tensor:
        return residual + functional.dropout(x, 0.1)

    def path(x: Tensor, residual: Tensor) -> Tensor:
        return residual + functional.drop_path(x, 0.2)

    yield Timed(
        name="drop_path",
        op="drop_path",
        shape=PATCHES,
        passes=BOTH,
        ours=lambda x: functional.drop_path(x, 0.2),
        baselines={"timm": baselines.timm_drop_path},
    )
    yield Timed(
        name="dropout_add",
        op="dropout_add",
        shape=TOKENS,
        more=(TOKENS,),
        passes=BOTH,
        ours=lambda x, residual: functional.dropout_add(x, residual, 0.1),
        baselines={
            "sitout, two calls": drop,
            "torch": lambda x, residual: residual + F.dropout(x, 0.1),
        },
        wanted=drop,
        close=gate.ONE_ULP,
    )
    yield Timed(
        name="drop_path_add",
        op="drop_path_add",
        shape=PATCHES,
        more=(PATCHES,),
        passes=BOTH,
        ours=lambda x, residual: functional.drop_path_add(x, residual, 0.2),
        baselines={
            "sitout, two calls": path,
            "timm": lambda x, residual: residual + baselines.timm_drop_path(x),
        },
        wanted=path,
        close=gate.ONE_ULP,
    )


def activations() -> Iterator[Case]:
    """Yield each activation with dropout, without a bias and with one."""
    for name, function in baselines.ACTIVATIONS.items():
        yield activation(name, function)
        yield activation(name, function, more=(HIDDEN[1:],))


def activation(name: str, function: Call, more: tuple[tuple[int, ...], ...] = ()) -> Timed:
    """Return the case of an activation; the bias, if any, is the second input."""

    def ours(x: Tensor, bias: Tensor | None = None) -> Tensor:
        return functional.activation_dropout(x, name, 0.5, bias=bias)

    def two(x: Tensor, bias: Tensor | None = None) -> Tensor:
        return functional.dropout(function(x if bias is None else x + bias))

    def theirs(x: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.dropout(function(x if bias is None else x + bias))

    return Timed(
        name=f"activation_dropout-{name}{'-bias' if more else ''}",
        op="activation_dropout",
        shape=HIDDEN,
        more=more,
        passes=BOTH,
        ours=ours,
        baselines={"sitout, two calls": two, "torch": theirs},
        wanted=two,
        close=gate.ROUNDING,
    )


def compiled() -> Iterator[Case]:
    """Yield dropout in compiled code. There Inductor draws the keys, so ``wanted`` is compiled."""
    for bits in (20, 22):
        yield Timed(
            name=f"compiled-2^{bits}",
            op="dropout",
            shape=(1 << bits,),
            ours=Compiled(functional.dropout),
            baselines={
                "torch.compile": Compiled(F.dropout),
                "sitout, eager": functional.dropout,
            },
        )


def scaling() -> Iterator[Case]:
    """Yield what a second thread gains."""
    for bits in (20, 22, 24):
        options: dict[str, Any] = {"op": "dropout", "threads": 2, "ours": functional.dropout}
        yield Scaling(name=f"threads-2^{bits}", shape=(1 << bits,), **options)


def saved() -> Iterator[Case]:
    """Yield what is kept for backward, by dropout and by what is fused with it."""
    plain = beside_torch("dropout", functional.dropout, F.dropout, 1 << 20, passes=BOTH)
    for case in (plain, *residuals(), *activations()):
        same = {each.name: getattr(case, each.name) for each in dataclasses.fields(case)}
        yield Saved(**{**same, "name": f"saved-{case.name}"})
