"""Which kernel serves a tensor: one mask specification, several implementations.

``reference`` is the specification in plain torch, right on every device. Dispatch follows the
tensor, never the process.
"""

from . import reference
from ._address import Address
from ._choice import Explanation, explain, select, use
from ._drop import drop, drop_directly, is_direct
from ._fused import ACTIVATIONS, Activation, activate_and_drop, drop_and_add
from ._masks import keep_mask, kept_samples, kept_units

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "Address",
    "Explanation",
    "activate_and_drop",
    "drop",
    "drop_and_add",
    "drop_directly",
    "explain",
    "is_direct",
    "keep_mask",
    "kept_samples",
    "kept_units",
    "reference",
    "select",
    "use",
]
