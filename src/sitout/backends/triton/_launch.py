"""The one place where a kernel is started, and what it is told of an address."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ... import _checks, masks

if TYPE_CHECKING:
    from collections.abc import Callable

    from ...masks import MaskKey

_LO32, _LO64 = 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF


def launch(kernel: Any, programs: int, device: torch.device, *arguments: Any, **more: Any) -> None:
    """Start a kernel on a device, in its current stream.

    Sums and products are rounded one by one, in kernels as in torch; where one rounding is wanted,
    a kernel says ``tl.fma``.

    Args:
        kernel: made by ``triton.jit``.
        programs: how many, less than 2^31.
        device: of the tensors; a CPU is for the interpreter.
        arguments: of the kernel.
        more: of the kernel, and ``num_warps``.
    """
    start: Callable[..., object] = kernel[(programs,)]
    if device.type == "cpu":
        start(*arguments, **more)
    elif device.index == torch.cuda.current_device():  # to change it takes microseconds
        start(*arguments, enable_fp_fusion=False, **more)
    else:
        with torch.cuda.device(device):
            start(*arguments, enable_fp_fusion=False, **more)


def key_arguments(key: MaskKey | int, n_rows: int, device: torch.device) -> tuple[Any, ...]:
    """Return an address's key as the arguments that :func:`_philox.load_key` takes, and the steps.

    What lies on the device is read there, when the kernel runs; nobody waits for it. Where there is
    nothing to read stands a 0: with pointers and without them would be two kernels, and one that is
    first loaded while a CUDA graph is captured makes the capture fail.

    Args:
        key: as in :class:`sitout.backends.Address`.
        n_rows: how many rows there are, of which each may have a step.
        device: of the kernel.

    Returns:
        key, site, step, seed_at, call_at, site_at, step_at, steps; the last may be None, and in a
        trace the four before it.

    Raises:
        ValueError: as :func:`_split`.
    """
    *numbers, seed_at, call_at, site_at, step_at, steps = _split(key, n_rows, device)
    places = [seed_at, call_at, site_at, step_at]
    if not masks._is_traced():
        places = [_zero(device) if one is None else one for one in places]
    return (*numbers, *places, steps)


@cache
def _zero(device: torch.device) -> Tensor:
    """Return a 0 on a device, which every stream may read.

    Another thread makes it, once in a process: in this one torch may be warming up a graph, whose
    pool no tensor may outlive.
    """

    def make() -> Tensor:
        made = torch.zeros((), dtype=torch.int64, device=device)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return made

    with ThreadPoolExecutor(1) as other:
        return other.submit(make).result()


def _split(key: MaskKey | int, n_rows: int, device: torch.device) -> tuple[Any, ...]:
    """Return what :func:`key_arguments` does, with None where there is nothing.

    Raises:
        ValueError: there is not one step a row; or the key lies on the CPU while a CUDA graph is
            captured, which would hold its value for ever.
    """
    if isinstance(key, int):
        return _signed(key), 0, 0, None, None, None, None, None
    seed, call, site, step = key.seed, key.call, key.site, key.step
    if type(seed) is type(site) is type(step) is type(call) is int:
        return _signed(seed ^ call << 32), site, step, None, None, None, None, None
    steps = None
    if isinstance(step, Tensor) and step.dim() == 1:
        if len(step) != n_rows:
            what, rule = "`step` of MaskKey", f"one a row, [{n_rows}]"
            raise ValueError(_checks.message(what, rule, len(step)))
        steps, step = rows_on(step, device), 0
    (seed, seed_at), (call, call_at), (site, site_at), (step, step_at) = (
        _number_or_place(one, device) for one in (seed, call, site, step)
    )
    packed = _signed((seed ^ call << 32) & _LO64)
    return packed, site & 0xFFFFFFF, step & _LO32, seed_at, call_at, site_at, step_at, steps


def rows_on(values: Tensor, device: torch.device) -> Tensor:
    """Return one number a row, as a kernel on a device reads them."""
    if values.device != device:
        check_no_capture(values, device)
        values = masks._moved(values, device)
    return values.contiguous()


def rate_on_host(p: float | Tensor, device: torch.device) -> float | tuple[int, int]:
    """Return a rate that does not lie on the device of a kernel, as the host knows it."""
    if not isinstance(p, Tensor):
        return p
    check_no_capture(p, device, "A rate as data")
    bits, threshold = p.tolist()
    return bits, threshold


def _number_or_place(value: int | Tensor, device: torch.device) -> tuple[int, Tensor | None]:
    if not isinstance(value, Tensor):
        return value, None
    if value.device == device:
        return 0, value
    if value.is_cpu:
        check_no_capture(value, device)
        return int(value), None
    return 0, value.to(device)


def check_no_capture(
    value: Tensor, device: torch.device, what: str = "A tensor in the address of a mask"
) -> None:
    """Refuse a tensor whose values a CUDA graph would hold for ever.

    Args:
        value: what the host is about to read, or to move.
        device: of the kernel.
        what: it is.

    Raises:
        ValueError: it lies on the CPU, and a graph is being captured.
    """
    if value.is_cpu and device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        rule = f"on {device} while a CUDA graph is captured, which would replay its value for ever"
        raise ValueError(_checks.message(what, rule, value.device))


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
