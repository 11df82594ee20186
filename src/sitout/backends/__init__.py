"""Which kernel serves a tensor: one mask specification, several implementations.

``reference`` is the specification in plain torch, right on every device. Dispatch follows the
tensor, never the process.
"""

from . import reference
from ._address import Address
from ._choice import Explanation, explain, select, use
from ._drop import drop, drop_directly, is_direct
from ._fused import ACTIVATIONS, Activation, activate_and_drop, drop_and_add
from ._kept import Kept, some_of
from ._masks import keep_mask, kept_samples, kept_units
from ._moves import spread, take
from ._residual import LEAST_SAMPLES, add_rows, count_samples, draw_samples
from ._thin import draw, keep, least_rate, linear, pays

__all__ = [
    "ACTIVATIONS",
    "LEAST_SAMPLES",
    "Activation",
    "Address",
    "Explanation",
    "Kept",
    "activate_and_drop",
    "add_rows",
    "count_samples",
    "draw",
    "draw_samples",
    "drop",
    "drop_and_add",
    "drop_directly",
    "explain",
    "is_direct",
    "keep",
    "keep_mask",
    "kept_samples",
    "kept_units",
    "least_rate",
    "linear",
    "pays",
    "reference",
    "select",
    "some_of",
    "spread",
    "take",
    "use",
]
