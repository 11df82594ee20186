"""Where and with what a row was measured."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import sitout

ROOT = Path(__file__).parent.parent.parent
CODE = ("src", "csrc")


def setting() -> dict[str, Any]:
    """Return what every row says of its run: machine, versions, commit and date."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return {"machine": machine(), "versions": versions(), "commit": commit(), "date": today}


def machine() -> dict[str, Any]:
    """Return the processor, the cores of the machine, and the core's instruction set."""
    core = sitout.backends.cpu.core()
    return {
        "cpu": _model(),
        "cores": os.cpu_count(),
        "target": "reference" if core is None else core.target(),
        "os": platform.platform(terse=True),
    }


def _model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def versions() -> dict[str, str | None]:
    """Return the versions of all that takes part; None for what is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in ("torch", "sitout", "numpy", "timm"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def commit() -> str:
    """Return the commit of the code, with "+ changes" if the code is another one by now."""
    head = _git("rev-parse", "--short", "HEAD")
    if not head:
        return "unknown"
    return f"{head} + changes" if _git("status", "--porcelain", "--", *CODE) else head


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
