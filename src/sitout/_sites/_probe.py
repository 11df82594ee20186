"""The probe: it runs a model in training and in evaluation, and lists what drops where."""

from __future__ import annotations

import math
import random
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.utils._pytree import tree_map

from .. import _checks
from .._rates import Rate, compiled, is_number, rates, readers
from .._source import statement
from ..nn import ResidualDropPath, ThinnedDropout
from ._draws import Draws
from ._place import Place
from ._recorder import Recorder, plain
from ._site import Measured, Site, Sites
from ._snapshot import Snapshot

if TYPE_CHECKING:
    from collections.abc import Iterator

_LAZY = (UninitializedParameter, UninitializedBuffer)
_WRAPPERS = ("DistributedDataParallel", "DataParallel", "OptimizedModule")


def sites(model: nn.Module, *inputs: Any, **kwargs: Any) -> Sites:
    """List every place of a model where units sit out, by running it.

    The model runs once in training mode and once in evaluation mode. Weights, buffers, gradients,
    modes, hooks, Python attributes and random generators are then what they were, also after an
    exception. A wrapper such as ``torch.compile`` or ``DistributedDataParallel`` is left aside.

    Found are layers (of torch, sitout, timm, torchvision, Hugging Face and whatever acts alike),
    calls of torch's functions, float attributes of attention and recurrent layers, fused attention
    kernels, and masks that code makes by hand from random numbers.

    Args:
        model: any module.
        inputs: what the model takes, as in ``model(*inputs)``: a batch of two or more, small. The
            probe works on copies.
        kwargs: keywords that the model takes.

    Returns:
        The sites in the order in which they first ran, then those that are configured and did not
        run. Print it for a table.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: the batch has one sample and a BatchNorm cannot train on it; or the model has
            lazy layers that have not run yet.

    Example:
        >>> layer = torch.nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1)
        >>> for site in sitout.sites(layer, torch.randn(5, 8, 16)):
        ...     print(site.name, site.kind, site.p, site.shape, site.active_in_eval)
        self_attn attention 0.1 (8, 2, 5, 5) False
        dropout1 dropout 0.1 (5, 8, 16) False
        dropout dropout 0.1 (5, 8, 32) False
        dropout2 dropout 0.1 (5, 8, 16) False
    """
    root = unwrapped(model, "sites")
    with probing(root) as probe:
        train = probe.run(inputs, kwargs, training=True)
        evaluation = probe.run(inputs, kwargs, training=False)
    return Sites(merged(root, train, evaluation), probe.changed)


class Probe:
    """Runs a model under a :class:`Recorder`, inside of :func:`probing`.

    Attributes:
        changed: paths of the Python attributes that the forwards changed; known at the end.
        rewritten: names of the parameters that they changed; known at the end.
    """

    def __init__(self, model: nn.Module, snapshot: Snapshot) -> None:
        self.model, self.snapshot = model, snapshot
        self._draws = Draws()
        self.changed: list[str] = []
        self.rewritten: list[str] = []

    def run(
        self,
        inputs: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        training: bool,
        recorder: Recorder | None = None,
    ) -> Recorder:
        """Run one forward on copies of the inputs; return what it recorded.

        Args:
            inputs: of the model.
            kwargs: of the model.
            training: the mode, and whether gradients are on.
            recorder: with listeners; a fresh one if None.
        """
        recorder = recorder or Recorder(self.model, self.snapshot)
        recorder.draws = self._draws
        before = _outside()
        with torch.inference_mode(False), torch.set_grad_enabled(training), recorder.watching():
            inputs, kwargs = _copied((inputs, kwargs))
            self.model.train(training)
            try:
                recorder.output = self.model(*inputs, **kwargs)
            except ValueError as error:
                if "more than 1 value per channel" not in str(error):
                    raise
                what, rule = "The batch", "of two samples or more, for a BatchNorm trains on it"
                shapes = [tuple(one.shape) for one in inputs if isinstance(one, Tensor)]
                raise ValueError(_checks.message(what, rule, shapes)) from error
        after = _outside()
        recorder.outside = [name for name in before if before[name] != after[name]]
        return recorder


@contextmanager
def probing(model: nn.Module) -> Iterator[Probe]:
    """Keep what forwards may change, and give it back at the end of the block."""
    probe = Probe(model, snapshot := Snapshot(model))
    with ExitStack() as stack:
        if compiled(model) is not None:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            with _as_masks(model):
                yield probe
        finally:
            probe.rewritten = snapshot.rewritten()
            probe.changed = snapshot.restore()


@contextmanager
def _as_masks(model: nn.Module) -> Iterator[None]:
    """Let what is thinned compute everything and set some to 0, so that it can be seen.

    A thinned block runs the forward of its class, which calls the site as a layer.
    """
    sites = [one for one in model.modules() if isinstance(one, (ThinnedDropout, ResidualDropPath))]
    forms = [site.form for site in sites]
    blocks = [vars(one) for one in model.modules() if _is_thinned_block(one)]
    forwards = [block.pop("forward") for block in blocks]
    try:
        for site in sites:
            site.form = "masked"
        yield
    finally:
        for site, form in zip(sites, forms, strict=True):
            site.form = form
        for block, forward in zip(blocks, forwards, strict=True):
            block["forward"] = forward


def _is_thinned_block(module: nn.Module) -> bool:
    return type(vars(module).get("forward")).__name__ == "ThinnedForward"


def unwrapped(model: object, owner: str) -> nn.Module:
    """Return the model without the wrappers of a compiler or of data parallelism.

    Raises:
        TypeError: it is no module.
        ValueError: it has lazy layers that have not run yet.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(_checks.message(f"`model` of {owner}", "a torch.nn.Module", model))
    while type(model).__name__ in _WRAPPERS:
        model = model._modules.get("_orig_mod") or model._modules["module"]
        assert model is not None
    tensors = [*model.named_parameters(), *model.named_buffers()]
    lazy = [name for name, tensor in tensors if isinstance(tensor, _LAZY)]
    if lazy:
        way_out = "Run the model once: lazy layers learn their shapes from their first inputs."
        raise ValueError(_checks.message(f"`model` of {owner}", "initialized", lazy, way_out))
    return model


def _copied(inputs: Any) -> Any:
    """Return copies of all inputs; what is one object stays one."""
    copies: dict[int, Any] = {}

    def copy(one: Any) -> Any:
        if id(one) not in copies:
            copies[id(one)] = _copy(one)
        return copies[id(one)]

    return tree_map(copy, inputs)


def _copy(one: Any) -> Any:
    if isinstance(one, Tensor):
        copy = one.detach().clone().requires_grad_(one.requires_grad)
        return copy if one.is_leaf else copy.clone()  # which may be written to
    if isinstance(one, torch.Generator):
        return one.clone_state()
    if isinstance(one, nn.Module):
        return one
    try:
        return deepcopy(one)
    except Exception:  # such as a tensor that is no leaf inside of an object
        return one


def _outside() -> dict[str, object]:
    numbers: Any = np.random.get_state(legacy=False)
    state = numbers["state"]
    return {"random": random.getstate(), "numpy.random": (state["pos"], state["key"].tobytes())}


def merged(model: nn.Module, train: Recorder, evaluation: Recorder) -> list[Site]:
    """Return the sites that two recorders saw, then those that did not run."""
    known = list(rates(model))
    feeding = _Feeding(model, known)
    found = []
    for key in dict.fromkeys([*train.places, *evaluation.places]):
        found.append(
            _site(train.places.get(key), evaluation.places.get(key), feeding, evaluation.fast)
        )
    found += [_outside_site(model, name, train, evaluation) for name in train.outside]
    for rate in known:
        if rate.key not in feeding.used and is_number(rate.p) and rate.p > 0.0:
            found.append(_silent(rate))
    return found


class _Feeding:
    """Which rate feeds which place."""

    def __init__(self, model: nn.Module, known: list[Rate]) -> None:
        self.used: set[tuple[int, str]] = set()
        self._own = {(id(rate.module), rate.is_layer): rate for rate in reversed(known)}
        self._by_name: dict[str, list[Rate]] = {}
        for rate in known:
            if rate.is_layer:  # a layer whose parent reads its rate as a number
                if readers(model, rate):
                    parent = plain(rate.name).rpartition(".")[0]
                    self._by_name.setdefault(parent, []).append(rate)
            else:
                self._by_name.setdefault(plain(rate.name), []).append(rate)
        self._by_key = {rate.key: rate for rate in known}

    def __call__(self, place: Place) -> str | None:
        """Return the path of the attribute that holds the rate of a place, if there is one."""
        if place.via in ("module", "attribute"):
            rate = self._own.get((id(place.module), place.via == "module"))
            return None if rate is None else self._use(rate, place.name)
        near = self._by_name.get(place.name, []) + self._of_others(place)
        asked = -1.0 if place.p is None else place.p
        same = [rate for rate in near if is_number(rate.p) and math.isclose(rate.p, asked)]
        line = statement(type(place.module), place.source) if same else None
        if line is not None:
            read = [rate for rate in same if _relative(place, rate) in line.reads]
            if not read and any(math.isclose(number, asked) for number in line.numbers):
                return None  # it is called with a literal number
            same = read or same
        same.sort(key=lambda rate: rate.kind != place.kind)
        return self._use(same[0], plain(same[0].name)) if same else None

    def _use(self, rate: Rate, name: str) -> str:
        self.used.add(rate.key)
        return f"{name}.{rate.attribute}".removeprefix(".")

    def _of_others(self, place: Place) -> list[Rate]:
        """Return the rates that a module shares with one that was named before: of its config."""
        own = [rate for rate in rates(place.module) if not rate.name and not rate.is_layer]
        return [self._by_key[rate.key] for rate in own if rate.key in self._by_key]


def _relative(place: Place, rate: Rate) -> str:
    """Return the path of a rate as the code of a place reads it: ``dropout.p``."""
    if not rate.is_layer:
        return rate.attribute
    return plain(rate.path).removeprefix(f"{place.name}." if place.name else "")


def _site(train: Place | None, evaluation: Place | None, feeding: _Feeding, fast: set[str]) -> Site:
    place = train or evaluation
    assert place is not None
    notes = []
    if train is not None and len(set(train.asked)) > 1:
        notes.append(f"p from {min(train.asked):.4g} to {max(train.asked):.4g}")
    if any(_is_under(place.name, name) for name in fast):
        notes.append("evaluation takes torch's fast path")
    return Site(
        name=place.name,
        type=type(place.module).__name__,
        via=place.via,
        kind=place.kind,
        p=place.p,
        measured=Measured.of(round(train.dropped), train.bits) if train is not None else None,
        shape=place.shape,
        shared_dims=place.shared_dims,
        calls=0 if train is None else train.calls,
        active_in_train=train is not None and train.on,
        active_in_eval=evaluation is not None and evaluation.on,
        source=place.source,
        rate_at=feeding(place),
        note="; ".join(notes),
    )


def _is_under(name: str, root: str) -> bool:
    return not root or name == root or name.startswith(f"{root}.")


def _silent(rate: Rate) -> Site:
    return Site(
        name=plain(rate.name),
        type=type(rate.module).__name__,
        via="module" if rate.is_layer else "attribute",
        kind=rate.kind,
        p=float(rate.p),
        measured=None,
        shape=None,
        shared_dims=None,
        calls=0,
        active_in_train=False,
        active_in_eval=False,
        source=None,
        rate_at=plain(rate.path),
        note="did not run",
    )


def _outside_site(model: nn.Module, name: str, train: Recorder, evaluation: Recorder) -> Site:
    return Site(
        name="",
        type=type(model).__name__,
        via="mask",
        kind="outside",
        p=None,
        measured=None,
        shape=None,
        shared_dims=None,
        calls=1,
        active_in_train=name in train.outside,
        active_in_eval=name in evaluation.outside,
        source=None,
        rate_at=None,
        note=f"draws from {name}, which torch.manual_seed does not govern",
    )
