"""sitout: dropout in which a unit that sits out costs nothing, for PyTorch.

``sitout.nn`` and ``sitout.functional`` hold the layers, ``sitout.masks`` the randomness behind
them. ``sitout.sites`` and ``sitout.audit`` show what any model drops and what is wrong with it,
``sitout.replace``, ``insert``, ``set_rate`` and ``disabled`` change it, and ``sitout.study``
measures whether dropout helps a network on given data.
"""

from . import backends, functional, masks, mc, nn, parallel, schedules
from ._audit import Audit, Finding, audit, audit_training
from ._sites import Site, Sites, sites
from ._study import Study, StudyError, study
from ._surgery import Change, MaxNorm, disabled, insert, replace, set_rate, thin
from ._version import __version__
from .clock import MaskClock
from .masks import MaskKey

__all__ = [
    "Audit",
    "Change",
    "Finding",
    "MaskClock",
    "MaskKey",
    "MaxNorm",
    "Site",
    "Sites",
    "Study",
    "StudyError",
    "__version__",
    "audit",
    "audit_training",
    "backends",
    "disabled",
    "functional",
    "insert",
    "masks",
    "mc",
    "nn",
    "parallel",
    "replace",
    "schedules",
    "set_rate",
    "sites",
    "study",
    "thin",
]
