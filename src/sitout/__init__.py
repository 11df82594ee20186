"""sitout: dropout in which a unit that sits out costs nothing, for PyTorch.

``sitout.nn`` and ``sitout.functional`` hold the layers, ``sitout.masks`` the randomness behind
them, and ``sitout.study`` measures whether dropout helps a network on given data.
"""

from . import backends, functional, masks, nn, parallel
from ._audit import Audit, Finding, audit, audit_training
from ._sites import Site, sites
from ._study import Study, StudyError, study
from ._version import __version__
from .clock import MaskClock
from .masks import MaskKey

__all__ = [
    "Audit",
    "Finding",
    "MaskClock",
    "MaskKey",
    "Site",
    "Study",
    "StudyError",
    "__version__",
    "audit",
    "audit_training",
    "backends",
    "functional",
    "masks",
    "nn",
    "parallel",
    "sites",
    "study",
]
