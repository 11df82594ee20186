"""Which kernel serves a tensor: one mask specification, several implementations.

``reference`` is the specification in plain torch, right on every device. Dispatch follows the
tensor, never the process.
"""

from . import reference
from ._address import Address
from ._choice import Explanation, explain, select, use
from ._drop import drop

__all__ = ["Address", "Explanation", "drop", "explain", "reference", "select", "use"]
