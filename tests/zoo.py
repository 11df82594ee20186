"""Installed model packages that need a hand before they import on a build without their kernels."""

from __future__ import annotations

import importlib.util

import torch

_OPS = ("torchvision::nms", "torchvision::qnms")


def has(package: str) -> bool:
    """Return whether a package is installed, without importing it."""
    return importlib.util.find_spec(package) is not None


def define_torchvision_ops() -> None:
    """Define the two operators that torchvision's import asks for; the CPU build lacks them."""
    for name in _OPS:
        namespace, op = name.split("::")
        if not hasattr(getattr(torch.ops, namespace), op):
            torch.library.define(
                name, "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            )


if has("torchvision"):
    define_torchvision_ops()
