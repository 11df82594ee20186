"""How much memory samples may take."""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch

from .. import _checks

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def budget(memory: str | int | None, device: torch.device) -> int:
    """Return a number of bytes.

    Args:
        memory: "2GB", "500 MB", a number of bytes, or None for a quarter of what is free.
        device: of the samples.

    Raises:
        ValueError: it is not such a size.
    """
    if memory is None:
        return _free(device) // 4
    if isinstance(memory, int) and not isinstance(memory, bool) and memory > 0:
        return memory
    text = memory if isinstance(memory, str) else ""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*", text, re.IGNORECASE)
    if found is None or float(found[1]) == 0.0:
        rule = "a number of bytes, or a size such as '2GB'"
        raise ValueError(_checks.message("`memory` of mc.predict", rule, memory))
    return int(float(found[1]) * _UNITS[found[2].upper()])


def _free(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with Path("/proc/meminfo").open() as file:
            [kib] = [line.split()[1] for line in file if line.startswith("MemAvailable")]
        return int(kib) << 10
    except (OSError, ValueError):
        pages = getattr(os, "sysconf", lambda _: 0)
        return int(pages("SC_PAGE_SIZE") * pages("SC_PHYS_PAGES")) or 4 << 30
