"""Chains: layer, what is elementwise, dropout, layer. They are found here, and none is touched."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .._rates import kind_of
from .._source import DROPPING
from ..nn import ThinnedDropout
from . import _eligible as rules
from ._graph import around, traces
from ._walk import Walk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch.fx import Node

    from ._graph import Trace, Traces

_ENCODERS = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)


@dataclass
class Chain:
    """A dropout layer with the layers around it.

    Args:
        site: qualified name of the dropout layer.
        dropout: the layer; None where a function drops.
        before: names of the layers whose units drop.
        norms: names of the batch normalizations in between.
        behind: names of the layers that read the units.
        dim: of the units.
        batch_dim: of the samples.
        problem: why it has to stay as it is; "" if it can be thinned.
    """

    site: str
    dropout: nn.Module | None
    before: list[str] = field(default_factory=list)
    norms: list[str] = field(default_factory=list)
    behind: list[str] = field(default_factory=list)
    dim: int = -1
    batch_dim: int = 0
    problem: str = ""

    def __str__(self) -> str:
        parts = [", ".join(self.before), self.site, ", ".join(self.behind)]
        return f"{' -> '.join(part for part in parts if part)}: {self.problem}"


@dataclass(frozen=True)
class Asked:
    """What a user asked for.

    Args:
        fits: whether a dropout layer is meant, by its name.
        groups: of rows in a batch.
        group_size: rows of a group, instead of ``groups``.
    """

    fits: Callable[[str, nn.Module], bool]
    groups: int = 1
    group_size: int | None = None


def find_chains(model: nn.Module, asked: Asked) -> list[Chain]:
    """Return every dropout of a model that is meant, with what is known of its chain."""
    known = traces(model)
    held = rules.Held(model)
    calls = _calls(known.found)
    found = []
    for name, module in model.named_modules():
        kind = kind_of(module) if name else None
        passed = isinstance(module, ThinnedDropout) or kind in (None, "drop_path")
        if not passed and asked.fits(name, module):
            found.append(_of_layer(name, module, calls.get(id(module), []), known, held, asked))
    for trace in known.found:
        if asked.fits(trace.name, trace.module):
            found += _of_functions(trace, held)
    for name, module in model.named_modules():
        why = known.closed.get(id(module)) if isinstance(module, torch.jit.ScriptModule) else ""
        if why and asked.fits(name, module):
            found.append(Chain(name or "the model", None, problem=why))
    return found


def _calls(found: Iterable[Trace]) -> dict[int, list[tuple[Trace, Node]]]:
    """Return where each module is called, by its id."""
    calls: dict[int, list[tuple[Trace, Node]]] = {}
    for trace in found:
        for node, module in trace.modules.items():
            calls.setdefault(id(module), []).append((trace, node))
    return calls


def _of_layer(
    name: str,
    dropout: nn.Module,
    calls: list[tuple[Trace, Node]],
    known: Traces,
    held: rules.Held,
    asked: Asked,
) -> Chain:
    """Return the chain of a dropout layer, with the first problem that it has."""
    chain = Chain(name, dropout)
    if not calls:
        chain.problem = _why_unseen(held.model, name, known)
        return chain
    trace, node = calls[0]
    walk = Walk(trace, held, node)
    chain.before, chain.norms = walk.names(walk.before), walk.names(walk.norms)
    chain.behind = walk.names(walk.behind)
    chain.problem = (
        rules.why_not_dropout(dropout, name)
        or held.why_shared(dropout)
        or held.why_read(dropout, trace)
        or walk.problem
        or _why_not(chain, dropout, walk, trace, held, asked)
    )
    if not chain.problem:
        dims = rules.spatial_dims(walk.before[0])
        chain.dim = 1 if dims else -1
        chain.batch_dim = _batch_dim(held.model, name)
    return chain


def _why_not(
    chain: Chain,
    dropout: nn.Module,
    walk: Walk,
    trace: Trace,
    held: rules.Held,
    asked: Asked,
) -> str:
    """Return what is wrong with the layers of a chain; "" for nothing."""
    first, grouping = walk.before[0], (asked.groups, asked.group_size)
    layers = [(one, "_before") for one in walk.before] + [(one, "_after") for one in walk.behind]
    for one, side in layers:
        name = held.name(one)
        why = rules.why_not_layer(one, name) or rules.why_not_place(one, name, side, grouping)
        if why:
            return why
        n = rules.width(one, reads=side == "_after")
        if (rules.spatial_dims(one), n) != (rules.spatial_dims(first), rules.width(first)):
            return f"{name} and {chain.before[0]} do not have the same units"
    n = rules.width(first)
    for norm in walk.norms:
        grouped = grouping != (1, None)
        why = rules.why_not_norm(norm, held.name(norm), dropout, n, grouped)
        if why:
            return why
    every = [*walk.before, *walk.norms, *walk.behind]
    shared = (held.why_shared(one) or held.why_read(one, trace) for one in every)
    why = next(filter(None, shared), "") or rules.why_not_drop(dropout, first, n)
    if not why and walk.pool and not rules.spatial_dims(first):
        why = f"{walk.pool} pools the units themselves"
    return why


def _of_functions(trace: Trace, held: rules.Held) -> list[Chain]:
    """Return the chains in which a function drops, where a layer might."""
    found = []
    for node in trace.graph.nodes:
        name = getattr(node.target, "__name__", "") if node.op == "call_function" else ""
        if name in DROPPING and "dropout" in name and "attention" not in name:
            walk = Walk(trace, held, node)
            if not walk.problem:
                before, behind = walk.names(walk.before), walk.names(walk.behind)
                why = "a function has no place in the model: make it an nn.Dropout"
                found.append(Chain(f"a call of {name}", None, before, [], behind, problem=why))
    return found


def _why_unseen(model: nn.Module, name: str, known: Traces) -> str:
    """Return why no graph has a layer: the innermost module around it that was not followed."""
    for path in reversed(around(name)):
        why = known.closed.get(id(model.get_submodule(path)))
        if why:
            return why
    return "no forward that can be followed calls it"


def _batch_dim(model: nn.Module, name: str) -> int:
    """Return the dim of the samples: the second one in a transformer of torch by default."""
    parent: Any = model.get_submodule(name.rpartition(".")[0])
    return int(isinstance(parent, _ENCODERS) and not parent.self_attn.batch_first)
