"""Surgery: replace, insert, set and silence the dropout of a model, and take it all back."""

from ._change import Change
from ._disabled import disabled
from ._insert import insert
from ._max_norm import MaxNorm
from ._replace import replace
from ._set_rate import set_rate
from ._thin import thin

__all__ = ["Change", "MaxNorm", "disabled", "insert", "replace", "set_rate", "thin"]
