"""What the rules look at: a model as it was found, and what a few forwards of it have shown."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from .._rates import Rate, compiled, rates
from .._sites._place import Listener, Place
from .._sites._probe import Probe, merged, probing
from .._sites._recorder import Recorder, plain
from ._flow import SCALE, Flow

if TYPE_CHECKING:
    from torch import nn

    from .._sites import Site

_RANDOM = ("bernoulli", "rand", "uniform", "normal", "multinomial", "exponential", "dropout")


@dataclass(eq=False)
class Evidence:
    """Everything that an audit knows of a model.

    Attributes:
        model: the model, without a compiler's or data parallel wrapper.
        compiled: name of the module that is compiled; None if none is.
        modes: of every module when the audit began.
        rates: every place where a rate lives.
        runs: what the forwards have shown; None without inputs.
    """

    model: nn.Module
    compiled: str | None
    modes: dict[str, bool]
    rates: list[Rate]
    runs: Runs | None = None

    @classmethod
    def of(cls, given: nn.Module, model: nn.Module) -> Evidence:
        """Look at a model, before anything runs."""
        modes = {plain(name): module.training for name, module in model.named_modules()}
        return cls(model, compiled(given), modes, list(rates(model)))

    def module(self, name: str) -> nn.Module | None:
        """Return the module of a plain name; None for one that was made in a forward."""
        return self._modules.get(name)

    @cached_property
    def _modules(self) -> dict[str, nn.Module]:
        return {plain(name): module for name, module in self.model.named_modules()}


@dataclass(eq=False)
class Runs:
    """Two forwards in training and two in evaluation.

    Attributes:
        train: the first training forward.
        again: the second; its random numbers follow on those of the first.
        evaluation: an evaluation forward.
        flow: what the first training forward does with its data.
        sites: as the probe reports them.
        differs: whether two evaluation forwards on the same inputs give different results.
        random_ops: random operations of an evaluation forward, with the module that calls each.
        scalings: modules that multiply by a number in evaluation, with the number.
        batch: (site, dims that hold samples) of drop paths; found by running twice the batch.
        rewritten: names of the parameters that a forward changed.
        changed: paths of the Python attributes that a forward changed.
    """

    train: Recorder
    again: Recorder
    evaluation: Recorder
    flow: Flow
    sites: list[Site]
    differs: bool
    random_ops: list[tuple[str, str]]
    scalings: list[tuple[str, float]]
    batch: list[tuple[Place, set[int]]]
    rewritten: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)

    def site_of(self, place: Place) -> Site | None:
        """Return the site that a place became."""
        return self._by_key.get(place.key)

    @cached_property
    def _by_key(self) -> dict[tuple[object, ...], Site]:
        keys = dict.fromkeys([*self.train.places, *self.evaluation.places])
        return dict(zip(keys, self.sites, strict=False))


def run(model: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> Runs:
    """Run a model as the rules need it; it is afterwards as it was."""
    with probing(model) as probe:
        flow = Flow()
        train = flow.recorder = _recorder(probe, flow)
        probe.run(inputs, kwargs, training=True, recorder=train)
        again = probe.run(inputs, kwargs, training=True, recorder=_recorder(probe))
        rewritten = probe.snapshot.rewritten()
        seen = _EvalOps()
        evaluation = _recorder(probe, seen)
        seen.recorder = evaluation
        probe.run(inputs, kwargs, training=False, recorder=evaluation)
        other = probe.run(inputs, kwargs, training=False)
        runs = Runs(
            train=train,
            again=again,
            evaluation=evaluation,
            flow=flow,
            sites=merged(model, train, evaluation),
            differs=_differs(evaluation.output, other.output),
            random_ops=seen.random,
            scalings=seen.scalings,
            batch=_batch_dims(probe, inputs, kwargs, train),
            rewritten=rewritten,
        )
        evaluation.output = other.output = train.output = again.output = None
    runs.changed = probe.changed
    return runs


def _recorder(probe: Probe, listener: Listener | None = None) -> Recorder:
    return Recorder(probe.model, probe.snapshot, thorough=True, listener=listener)


class _EvalOps(Listener):
    """Notes the random operations of a forward, and the numbers that it multiplies by."""

    def __init__(self) -> None:
        self.random: list[tuple[str, str]] = []
        self.scalings: list[tuple[str, float]] = []
        self.recorder: Recorder | None = None

    def op(self, func: Any, args: tuple[Any, ...], out: Any) -> None:
        """Note one op."""
        name = str(func).removesuffix(".default")
        stack = self.recorder.stack if self.recorder else []
        where = stack[-1].name if stack else ""
        if any(name.startswith(f"aten.{word}") for word in _RANDOM):
            self.random.append((name, where))
        number = args[1] if len(args) > 1 else None
        if func in SCALE and isinstance(number, (int, float)) and number:
            self.scalings.append((where, number if "mul" in name else 1.0 / number))


def _differs(one: Any, other: Any) -> bool:
    pairs = zip(tree_leaves(one), tree_leaves(other), strict=False)
    return any(
        not torch.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True)
        for a, b in pairs
        if isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape
    )


def _batch_dims(
    probe: Probe, inputs: tuple[Any, ...], kwargs: dict[str, Any], train: Recorder
) -> list[tuple[Place, set[int]]]:
    """Return the drop paths, each with the dims that grow with the batch.

    A model that cannot run on twice the batch, or whose samples depend on one another, tells
    nothing.
    """
    places = [place for place in train.places.values() if place.kind == "drop_path" and place.on]
    found: list[tuple[Place, set[int]]] = []
    if not places:
        return found
    with suppress(Exception):
        more = _twice(probe, inputs, kwargs)
        if more is None:
            return found
        doubled = probe.run(*more, training=True, recorder=Recorder(probe.model, probe.snapshot))
        for place in places:
            other = doubled.places.get(place.key)
            if other is not None and place.shape and other.shape:
                pairs = enumerate(zip(place.shape, other.shape, strict=True))
                found.append((place, {dim for dim, (a, b) in pairs if a != b}))
    return found


def _twice(
    probe: Probe, inputs: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Return the inputs with twice the samples; None where no dim is found to hold samples.

    Samples do not act on one another: along their dim, more of them leave the first results in
    evaluation as they were.
    """
    leaves, spec = tree_flatten((inputs, kwargs))
    first = next((leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim()), None)
    if first is None:
        return None
    for dim in range(min(2, first.dim())):
        size = first.shape[dim]
        more = tree_unflatten([_extended(leaf, dim, size) for leaf in leaves], spec)
        with suppress(Exception):
            small = _output(probe.run(inputs, kwargs, training=False))
            large = _output(probe.run(*more, training=False))
            if large.shape[dim] == 2 * size and torch.allclose(
                large.narrow(dim, 0, size), small, rtol=1e-3, atol=1e-4
            ):
                return more  # type: ignore[no-any-return]
    return None


def _extended(leaf: Any, dim: int, size: int) -> Any:
    if not isinstance(leaf, Tensor) or leaf.dim() <= dim or leaf.shape[dim] != size:
        return leaf
    return torch.cat([leaf, leaf.flip(dim).roll(1, -1)], dim)


def _output(recorder: Recorder) -> Tensor:
    return next(leaf for leaf in tree_leaves(recorder.output) if isinstance(leaf, Tensor))
