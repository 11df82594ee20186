"""What ``sitout doctor`` tells: the machine, what serves it, whether that is right, what pays."""

from __future__ import annotations

import json
from typing import NamedTuple

from . import crossover
from .crossover import Crossover
from .machine import Core, DoctorError, Machine, look, which
from .speed import Speed, measure, table
from .trial import Trial, run

__all__ = ["Diagnosis", "DoctorError", "doctor"]


class Diagnosis(NamedTuple):
    """What was found.

    Attributes:
        machine: versions, processor, threads.
        core: which kernels there are, and why one of them was chosen.
        trial: the core against the reference; None without a core.
        speed: of a forward pass, beside torch's.
        crossover: the drop rates from which it pays not to compute what sits out.
    """

    machine: Machine
    core: Core
    trial: Trial | None
    speed: list[Speed]
    crossover: list[Crossover]

    @property
    def wrong(self) -> bool:
        """Whether the core gave another result than the reference."""
        return self.trial is not None and self.trial.difference is not None

    def text(self) -> str:
        """Return all of it for a reader."""
        machine, core = self.machine, self.core
        rows = [
            ("sitout", machine.sitout),
            ("torch", machine.torch),
            ("python", machine.python),
            ("platform", machine.platform),
            ("processor", f"{machine.cpu} ({', '.join(machine.features) or 'features unknown'})"),
            ("threads", str(machine.threads)),
            ("cuda", machine.cuda or "none"),
            ("core", ", ".join(core.targets) or "none"),
            ("target", f"{core.target or 'none'}: {core.why}"),
            ("backend", f"{core.backend}: {core.backend_why}"),
            ("self-test", str(self.trial or "left out: there is no core to compare")),
        ]
        width = max(len(name) for name, _ in rows)
        lines = [f"{name:{width}}  {value}" for name, value in rows]
        return "\n".join([*lines, "", *table(self.speed), "", *crossover.table(self.crossover)])

    def to_json(self) -> str:
        """Return all of it for a program."""
        trial = None
        if self.trial is not None:
            difference = self.trial.difference
            trial = {
                **self.trial._asdict(),
                "difference": None if difference is None else difference._asdict(),
            }
        found = {
            "machine": self.machine._asdict(),
            "core": self.core._asdict(),
            "trial": trial,
            "speed": [{**one._asdict(), **one.ratios()} for one in self.speed],
            "crossover": [{**one._asdict(), "measured": one.measured} for one in self.crossover],
        }
        return json.dumps(found)


def doctor(*, seconds: float = 1.0) -> Diagnosis:
    """Look at the machine, test the core against the reference, and measure.

    Args:
        seconds: for the test; measuring takes about four times as long, half of it for a forward
            pass, the other half for where thinning pays.

    Raises:
        DoctorError: ``SITOUT_TARGET`` or ``SITOUT_BACKEND`` names what there is not.

    Example:
        >>> doctor(seconds=0.05).wrong
        False
    """
    core = which()
    return Diagnosis(
        look(),
        core,
        run(seconds) if core.targets else None,
        measure(seconds / 2),
        crossover.measure(2 * seconds),
    )
