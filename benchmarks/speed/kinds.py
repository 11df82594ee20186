"""The kinds of cases: each checks itself at the gate, and measures its rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import gate
from .measure import Contender, interleave, nothing, ratios, spread, threads

FORWARD, RECORDED, BOTH = "forward", "forward, recorded", "forward + backward"
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": Tensor.contiguous,
    "channels last": partial(Tensor.contiguous, memory_format=torch.channels_last),
    "transposed": Tensor.t,
}
Call = Callable[..., Any]
Row = dict[str, Any]


class NotRunError(Exception):
    """Why a contender cannot run here."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """What all kinds have in common.

    Attributes:
        name: of the case.
        op: the stem of the function, ``dropout`` or ``drop_path``.
        shape: of the input.
        dtype: of the input.
        passes: what a call does: FORWARD without gradients, RECORDED for them, or BOTH.
        threads: of torch, while it runs.
        layout: of the input in memory.
        device: of the input.
    """

    name: str
    op: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    passes: str = FORWARD
    threads: int = 1
    layout: str = "contiguous"
    device: str = "cpu"

    def check(self) -> str:
        """Return what is wrong at the gate, or nothing."""
        raise NotImplementedError

    def measure(self, rounds: int) -> list[Row]:
        """Return a row for each baseline."""
        raise NotImplementedError

    def row(self, contender: str, baseline: str, **found: Any) -> Row:
        """Return a row: what was done, by whom, and what was found."""
        return {
            "case": self.name,
            "op": self.op,
            "passes": self.passes,
            "shape": self.shape,
            "dtype": str(self.dtype).removeprefix("torch."),
            "layout": self.layout,
            "device": self.device,
            "threads": self.threads,
            "contender": contender,
            "baseline": baseline,
            **found,
        }

    def times(self, contender: str, baseline: str, found: dict[str, list[float]]) -> Row:
        """Return a row of times in microseconds, and how many times as fast as the baseline."""
        seconds, others = found[contender], found[baseline]
        return self.row(
            contender,
            baseline,
            rounds=len(seconds),
            contender_us=_microseconds(seconds),
            baseline_us=_microseconds(others),
            ratio=spread(ratios(others, seconds))._asdict(),
        )

    def synchronize(self) -> Callable[[], None]:
        """Return what waits for the device."""
        return torch.cuda.synchronize if self.device.startswith("cuda") else nothing


def _microseconds(seconds: list[float]) -> dict[str, float]:
    return spread([1e6 * value for value in seconds])._asdict()


@dataclass(frozen=True, kw_only=True)
class Timed(Case):
    """A call of ours beside others on the same tensors, and beside a plain copy of the same bytes.

    Attributes:
        ours: what is timed, a function of the inputs.
        baselines: what it is timed beside, by their names.
        wanted: what it must equal; the reference backend runs it. None for ``ours`` itself.
        more: the shapes of further inputs: a residual, a bias.
        close: how near to ``wanted`` it must be.
    """

    ours: Call
    baselines: dict[str, Call] = field(default_factory=dict)
    wanted: Call | None = None
    more: tuple[tuple[int, ...], ...] = ()
    close: str = gate.TO_THE_BIT

    def check(self) -> str:
        inputs, grad = self.tensors()
        ours = self._call(self.ours, inputs, grad)
        wanted = self._call(self.wanted or self.ours, inputs, grad)
        with threads(self.threads):
            return gate.compare(ours, wanted, self.close)

    def measure(self, rounds: int) -> list[Row]:
        inputs, grad = self.tensors()
        calls = {"sitout": self.ours, **self.baselines}
        contenders = {name: self._call(call, inputs, grad) for name, call in calls.items()}
        floor, contenders[floor] = self._floor(inputs[0].detach(), grad)
        missing = self._missing(contenders)
        found = interleave(
            [Contender(*pair, self.threads) for pair in contenders.items()],
            rounds,
            synchronize=self.synchronize(),
        )
        rows = [self.times("sitout", name, found) for name in found if name != "sitout"]
        return rows + [self.row("sitout", name, not_run=why) for name, why in missing.items()]

    def tensors(self) -> tuple[list[Tensor], Tensor]:
        """Return the inputs, and a gradient."""
        torch.manual_seed(0)
        options: Any = {"dtype": self.dtype, "device": self.device}
        x = LAYOUTS[self.layout](torch.randn(self.shape, **options))
        inputs = [x, *(torch.randn(shape, **options) for shape in self.more)]
        grad = torch.randn_like(x)
        return [each.requires_grad_(self.passes != FORWARD) for each in inputs], grad

    def _call(self, function: Call, inputs: list[Tensor], grad: Tensor) -> Call:
        if self.passes != BOTH:
            return partial(function, *inputs)

        def both() -> tuple[Tensor, ...]:
            y = function(*inputs)
            return y, *torch.autograd.grad(y, inputs, grad)

        return both

    def _floor(self, x: Tensor, grad: Tensor) -> tuple[str, Call]:
        if self.passes == BOTH:
            return "two clones", lambda: (x.clone(), grad.clone())
        return "clone", x.clone

    def _missing(self, contenders: dict[str, Call]) -> dict[str, str]:
        """Call each contender once; take out those that cannot run, and return why."""
        missing = {}
        for name, call in list(contenders.items()):
            try:
                with threads(self.threads):
                    call()
            except NotRunError as why:
                missing[name] = str(why)
                del contenders[name]
        return missing


@dataclass(frozen=True, kw_only=True)
class Scaling(Timed):
    """What two threads gain over one, for ours and for a plain copy."""

    def measure(self, rounds: int) -> list[Row]:
        (x,), _ = self.tensors()
        calls = {"sitout": self.ours, "clone": Tensor.clone}
        contenders = [
            Contender(f"{name} {count}", partial(call, x), count)
            for name, call in calls.items()
            for count in (1, self.threads)
        ]
        found = interleave(contenders, rounds, synchronize=self.synchronize())
        gains = [ratios(found[f"{name} 1"], found[f"{name} {self.threads}"]) for name in calls]
        row = self.row(
            "sitout",
            "clone",
            rounds=rounds,
            contender_us=_microseconds(found[f"sitout {self.threads}"]),
            baseline_us=_microseconds(found[f"clone {self.threads}"]),
            contender_gain=spread(gains[0])._asdict(),
            baseline_gain=spread(gains[1])._asdict(),
            ratio=spread(ratios(*gains))._asdict(),
        )
        return [row]
