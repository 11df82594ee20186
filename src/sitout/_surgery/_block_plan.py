"""What a thinned block does when it is called in one way, and what that relies on."""

from __future__ import annotations

import inspect
import types
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .._source import is_readable, kept_by_class, reads
from ..nn import ResidualDropPath
from ._block_code import Branch, Code, thinned
from ._block_cuts import Cut, cuts
from ._block_trace import LeftAsItIsError, methods, trace

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import fx

_PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device)
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType)  # a trace goes into them
_LISTS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


@dataclass
class Plan:
    """What a thinned block does when it is called in one way.

    Args:
        inputs: the parameters that the code takes, the stream first.
        fixed: what the other parameters have to be.
        reads: what the code relies on besides: attributes of the block.
        values: what these have to be.
        code: takes the inputs and the branches; None where the forward of the class has to run.
        branches: of the block.
        extras: the inputs that a branch reads besides the stream.
    """

    inputs: tuple[str, ...]
    fixed: dict[str, Any]
    reads: Code
    values: tuple[Any, ...]
    code: Code | None = None
    branches: tuple[Branch, ...] = ()
    extras: tuple[str, ...] = ()

    def fits(self, block: nn.Module, given: Mapping[str, Any]) -> bool:
        """Return whether a call is one that the plan was made for.

        Args:
            block: the module.
            given: all arguments by their names, with the defaults.
        """
        if len(given) != len(self.inputs) + len(self.fixed):
            return False
        for name in self.inputs:
            if name not in given or not is_input(given[name]):
                return False
        for name, value in self.fixed.items():
            if name not in given or not _is_same(given[name], value):
                return False
        if self.extras and not set(self.extras).isdisjoint(apart(given)):
            return False
        now = _values(self.reads, block)
        return len(now) == len(self.values) and all(map(_is_same, now, self.values))


def parameters_of(block: nn.Module) -> dict[str, Any]:
    """Return the parameters of a forward with their defaults, ``Parameter.empty`` for none.

    Raises:
        LeftAsItIsError: it takes no stream.
    """
    own = list(inspect.signature(type(block).forward).parameters.values())[1:]
    plain = [one for one in own if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    if not plain or plain[0].kind is inspect.Parameter.KEYWORD_ONLY:
        raise LeftAsItIsError("its forward takes no tensor by its place")
    return {one.name: one.default for one in plain}


def inputs_of(block: nn.Module, *, optional: bool = False) -> tuple[str, ...]:
    """Return the parameters of a forward that have to be given, and the first one.

    Args:
        block: the module.
        optional: with those that are None by default, where tensors may come.
    """
    own = parameters_of(block)
    first = next(iter(own))
    empty = inspect.Parameter.empty
    return tuple(
        name
        for name, default in own.items()
        if name == first or default is empty or (optional and default is None)
    )


def ways(given: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Yield what may be inputs of the code in a call, and what is fixed then.

    Numbers may be both: where a forward decides something by one, it has to be fixed.
    """
    for wanted in (is_input, _has_tensor):
        inputs = tuple(name for name, value in given.items() if wanted(value))
        fixed = {name: value for name, value in given.items() if name not in inputs}
        if all(map(is_plain, fixed.values())):
            yield inputs, fixed


def is_input(value: object) -> bool:
    """Return whether code may take a value as it comes: a tensor, an int, or several of these."""
    if isinstance(value, (tuple, list)):
        return all(map(is_input, value))
    return isinstance(value, Tensor) or type(value) in (int, torch.SymInt)


def _has_tensor(value: object) -> bool:
    if isinstance(value, (tuple, list)):
        return is_input(value) and any(map(_has_tensor, value))
    return isinstance(value, Tensor)


def is_plain(value: Any) -> bool:
    """Return whether a value is one that ``==`` tells from others."""
    if type(value) in (tuple, torch.Size):
        return all(map(is_plain, value))
    return type(value) in _PLAIN


def _is_same(one: object, other: object) -> bool:
    return one is other or (type(one) is type(other) and is_plain(one) and one == other)


def apart(given: Mapping[str, Any]) -> list[str]:
    """Return the arguments that may hold something for each sample, without the first one."""
    first, *names = given
    x = given[first]
    samples = len(x) if isinstance(x, Tensor) and x.dim() else 0
    return [name for name in names if _is_each(given[name], samples)]


def _is_each(value: Any, samples: int) -> bool:
    """Return whether a tensor may hold something for each sample."""
    if isinstance(value, (tuple, list)):
        return any(_is_each(one, samples) for one in value)
    if not isinstance(value, Tensor) or value.dim() == 0:
        return False
    return samples == 0 or len(value) % samples == 0


def plan_of(
    block: nn.Module,
    sites: Sequence[str],
    inputs: tuple[str, ...],
    fixed: Mapping[str, Any],
    apart: Sequence[str] = (),
) -> Plan:
    """Return what a block does in training when it is called in one way.

    Args:
        block: the module.
        sites: the names of its drop paths.
        inputs: the parameters of its forward that the code takes.
        fixed: what the others are.
        apart: the inputs that no branch may read: they hold something for each sample.

    Raises:
        LeftAsItIsError: no branch can be cut out.
    """
    present = [site for site in sites if isinstance(_at(block, site), ResidualDropPath)]
    if not present:
        raise LeftAsItIsError("something else is in the place of its drop path")
    graph, found, whys = cut_out(block, present, inputs, fixed)
    found = [cut for cut in found if not any(one.target in apart for one in cut.extras)]
    if not found:
        why = next(iter(whys.values()), f"its branches read {', '.join(apart)}")
        raise LeftAsItIsError(why)
    code, branches = thinned(block, graph, found)
    read = {one.target for cut in found for one in cut.extras}
    extras = tuple(name for name in inputs if name in read)
    return Plan(inputs, dict(fixed), *relied_on(block, sites), code, branches, extras)


def relied_on(block: nn.Module, sites: Sequence[str]) -> tuple[Code, tuple[Any, ...]]:
    """Return what reads the attributes that the code of a block relies on, and what they are."""
    terms = [f"isinstance(self.{_text(site)}, Site)" for site in sites]
    for path in sorted(_paths(block)):
        value = _at(block, path)
        own = path in vars(block) and isinstance(value, _FUNCTIONS)
        if path != "training" and (is_plain(value) or own):
            terms.append(f"self.{path}")
        elif isinstance(value, _LISTS):
            terms.append(f"len(self.{path})")
    text = f"def forward(self):\n    return ({', '.join(terms)},)\n"
    code = Code(text, {"Site": ResidualDropPath})
    return code, _values(code, block)


def _paths(block: nn.Module) -> set[str]:
    """Return the attributes that the forward of a block may read."""
    made: Any = type(block)
    if is_readable(made):
        return set(_read_by(made))
    names = [*vars(block), *block._modules]
    return {name for name in names if name.isidentifier() and not name.startswith("_")}


@kept_by_class
def _read_by(made: Any) -> frozenset[str]:
    return reads(made)


def _at(block: nn.Module, path: str) -> Any:
    value: Any = block
    for part in path.split("."):
        value = getattr(value, part, ...)
    return value


def _text(site: str) -> str:
    """Return a qualified name as an expression has it."""
    first, *rest = site.split(".")
    return first + "".join(f".{one}" if one.isidentifier() else f"[{one}]" for one in rest)


def _values(code: Code, block: nn.Module) -> tuple[Any, ...]:
    try:
        values: tuple[Any, ...] = code.function(block)
    except AttributeError:
        return ()
    return values


def cut_out(
    block: nn.Module, sites: Sequence[str], inputs: tuple[str, ...], fixed: Mapping[str, Any]
) -> tuple[fx.Graph, list[Cut], dict[str, str]]:
    """Return the graph of a block, the branches that can be cut out, and why others can not.

    Args:
        block: the module.
        sites: the names of its drop paths.
        inputs: the parameters of its forward that the code takes.
        fixed: what the others are.

    Raises:
        LeftAsItIsError: its forward cannot be traced.
    """
    best: tuple[fx.Graph, list[Cut], dict[str, str]] | None = None
    why = None
    for closed in (True, False) if methods(block) else (False,):
        try:
            graph = trace(block, inputs, fixed, closed=closed)
        except LeftAsItIsError as problem:
            why = why or problem
            continue
        found, whys = cuts(block, graph, sites)
        if best is None or len(found) > len(best[1]):
            best = graph, found, whys
        if not whys:
            break
    if best is None:
        raise why or LeftAsItIsError("")
    return best
