"""The forward of a thinned block: in training, code whose branches run on the kept samples."""

from __future__ import annotations

import inspect
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from warnings import warn

import torch

from ._block_plan import Plan, apart, inputs_of, parameters_of, plan_of, relied_on, ways
from ._block_trace import LeftAsItIsError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

_MOST = 8


class ThinnedForward:
    """Stands as ``forward`` of a block: in training its branches run on the kept samples.

    In evaluation, and in a call that no code was made for, the forward of the class runs; there the
    sites drop the same samples in masked form. Code is made when the block is thinned, and again at
    a call with other arguments than tensors, or after an attribute of the block has changed.
    Compiled code cannot make any: there such a call is masked.

    Args:
        block: the module.
        sites: the names of its drop paths.
    """

    def __init__(self, block: nn.Module, sites: tuple[str, ...] = ()) -> None:
        self.block, self.sites = block, sites
        self.plans: list[Plan] = []
        self.parameters = parameters_of(block)
        self.names = tuple(self.parameters)
        self._made_for = _bytecode(block)

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if self._made_for != _bytecode(self.block):  # pickled with another version of the class
            vars(self).update(vars(ThinnedForward(self.block, self.sites)))

    @property
    def __signature__(self) -> inspect.Signature:
        own = inspect.signature(type(self.block).forward)
        return own.replace(parameters=list(own.parameters.values())[1:])

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        block = self.block
        if block.training and len(args) <= len(self.names):
            passed = {**dict(zip(self.names, args, strict=False)), **kwargs}
            given = {**self.parameters, **passed}
            plan = self._plan(given)
            if plan is not None and len(passed) == len(args) + len(kwargs):
                inputs = [given[name] for name in plan.inputs]
                return plan.code.function(block, *inputs, *plan.branches)  # type: ignore[union-attr]
        return type(block).forward(block, *args, **kwargs)

    def stand(self, sites: tuple[str, ...]) -> None:
        """Make the code for drop paths, and for a call with what a forward needs.

        Args:
            sites: their names.
        """
        self.sites, self.plans = sites, []
        inputs = inputs_of(self.block)
        fixed = {name: value for name, value in self.parameters.items() if name not in inputs}
        with suppress(LeftAsItIsError):  # another call may have code
            self.plans.append(plan_of(self.block, sites, inputs, fixed))
            extras = self.plans[0].extras
            if extras:
                self.plans.append(plan_of(self.block, sites, inputs, fixed, extras))

    def _plan(self, given: Mapping[str, Any]) -> Plan | None:
        """Return what to do in a call; None for the forward of the class."""
        plan = next((one for one in self.plans if one.fits(self.block, given)), None)
        if plan is None and not torch.compiler.is_compiling() and len(self.plans) < _MOST:
            plan = self._new(given)
        return None if plan is None or plan.code is None else plan

    def _new(self, given: Mapping[str, Any]) -> Plan | None:
        """Make what to do in a call that is a new one; None if it is no call that can be told."""
        failed, why = None, "it is called with more than tensors and numbers"
        for inputs, fixed in ways(given) if len(given) == len(self.names) else ():
            try:
                plan = plan_of(self.block, self.sites, inputs, fixed, apart(given))
            except LeftAsItIsError as problem:
                failed = failed or Plan(inputs, fixed, *relied_on(self.block, self.sites))
                why = str(problem)
            else:
                self.plans.append(plan)
                return plan
        self.plans += [failed] if failed else []
        warn(
            f"A thinned {type(self.block).__name__} runs its branches on all samples: {why}. "
            "What sits out is the same.",
            stacklevel=2,
        )
        return failed


def _bytecode(block: nn.Module) -> bytes:
    """Return what tells one version of a forward from another."""
    function: Any = inspect.unwrap(type(block).forward)
    made: bytes = function.__code__.co_code
    return made
