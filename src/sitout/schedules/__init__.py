"""Rates that change while a model trains: a rate as a function of the step, and who sets it.

A schedule is ``schedule(step, total) -> p``, a pure function. :class:`RateScheduler` puts its
values into a model, without compiling anything anew where the layers are sitout's.
"""

from ._curves import (
    constant,
    cosine,
    curriculum,
    early,
    flat_cos,
    late,
    linear,
    over_depth,
    ramp,
)
from ._schedule import Schedule
from ._scheduler import RateScheduler

__all__ = [
    "RateScheduler",
    "Schedule",
    "constant",
    "cosine",
    "curriculum",
    "early",
    "flat_cos",
    "late",
    "linear",
    "over_depth",
    "ramp",
]
