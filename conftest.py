"""What every test and doctest finds."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import sitout
import sitout.masks
import zoo  # noqa: F401 (what torchvision's import asks for, before anything imports it)


@pytest.fixture(autouse=True)
def _names(doctest_namespace: dict[str, Any]) -> None:
    doctest_namespace.update(torch=torch, sitout=sitout, MaskKey=sitout.masks.MaskKey)
