"""The machine, and what serves a tensor on it."""

from __future__ import annotations

import os
import platform
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from .._version import __version__
from ..backends import cpu, explain

if TYPE_CHECKING:
    from collections.abc import Mapping

# What the kernels ask of a processor, as torch calls it.
_FEATURES = ["avx2", "fma3", "f16c", "avx512_f", "avx512_bw", "avx512_vl", "avx512_dq", "neon"]


class DoctorError(ValueError):
    """A setting does not fit: one line that says which, and the way out."""


class Machine(NamedTuple):
    """Versions, processor, threads; and the GPU with what serves it, or None."""

    sitout: str
    torch: str
    python: str
    platform: str
    cpu: str
    features: list[str]
    threads: int
    cuda: str | None


class Core(NamedTuple):
    """The compiled core, and what serves a tensor in the memory of the CPU.

    Attributes:
        targets: the instruction sets that it runs here, the best one first; none without a core.
        target: the one in use.
        why: it is in use; or what to do about a missing core.
        backend: that serves the tensor.
        backend_why: it does.
    """

    targets: list[str]
    target: str | None
    why: str
    backend: str
    backend_why: str


def look() -> Machine:
    """Return what machine this is.

    Example:
        >>> look().torch == torch.__version__
        True
    """
    # torch before 2.12 does not tell.
    able: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return Machine(
        sitout=__version__,
        torch=str(torch.__version__),
        python=platform.python_version(),
        platform=platform.platform(),
        cpu=str(able.get("cpu_name") or platform.processor() or platform.machine()),
        features=[name.replace("_", "") for name in _FEATURES if able.get(name)],
        threads=torch.get_num_threads(),
        cuda=_cuda(),
    )


def _cuda() -> str | None:
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    try:
        serves = explain(torch.empty(0, device="cuda"))
    except ValueError as error:  # a backend is forced that cannot serve it
        return f"{name}: {error}"
    return f"{name}: {serves.backend}, for {serves.why}"


def which() -> Core:
    """Return which kernels there are, and why one of them was chosen.

    Raises:
        DoctorError: an environment variable names what there is not.

    Example:
        >>> "scalar" in which().targets
        True
    """
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            found = cpu.core()
            if found is None and not told:  # it warns once, and is asked again
                cpu.core.__wrapped__()
            serves = explain(torch.empty(0))
    except ValueError as error:
        raise DoctorError(str(error)) from error
    if found is None:
        return Core([], None, str(told[0].message), *serves)
    targets, target = found.targets().split(), found.target()
    return Core(targets, target, _why(targets, target), *serves)


def _why(targets: list[str], target: str) -> str:
    if os.environ.get("SITOUT_TARGET") == target:
        return "as the environment variable SITOUT_TARGET says"
    return "the best one for this machine" if target == targets[0] else "chosen by use_target()"
