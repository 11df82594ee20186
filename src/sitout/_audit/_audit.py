"""The audit of a model: every rule, once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._sites._probe import unwrapped
from . import _rules_data, _rules_eval, _rules_modes, _rules_rates, _rules_repeat
from ._evidence import Evidence, run
from ._finding import Audit
from ._rule import RULES

if TYPE_CHECKING:
    from torch import nn

_ALL = (_rules_data, _rules_eval, _rules_modes, _rules_rates, _rules_repeat)


def audit(model: nn.Module, *inputs: Any, **kwargs: Any) -> Audit:
    """Look for mistakes with dropout in a model.

    Without inputs only the rules that need no forward are applied. With inputs the model runs some
    times in training and in evaluation; it is then what it was, see :func:`sitout.sites`.

    Args:
        model: any module, in the state in which you use it: its modes are looked at too.
        inputs: what the model takes: a batch of two or more, small.
        kwargs: keywords that the model takes.

    Returns:
        The findings, the worst first; falsy when there are none. Print it for a report.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: the batch has one sample and a BatchNorm cannot train on it.

    Example:
        >>> class Net(torch.nn.Module):
        ...     def forward(self, x):
        ...         return torch.nn.functional.dropout(x, 0.5)
        >>> found = sitout.audit(Net(), torch.ones(4, 8))
        >>> [(finding.rule, finding.severity) for finding in found.findings]
        [('A1', 'error')]
        >>> bool(sitout.audit(torch.nn.Dropout(0.5), torch.ones(4, 8)))
        False
    """
    root = unwrapped(model, "audit")
    evidence = Evidence.of(model, root)
    if inputs or kwargs:
        evidence.runs = run(root, inputs, kwargs)
    return Audit(finding for _, check in RULES for finding in check(evidence))
