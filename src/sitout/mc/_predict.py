"""mc.predict: what a network with its dropout left on says, many times over."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .. import _checks
from .._sites import _probe
from ._batch import Batch
from ._draws import Addresses
from ._loop import Loop
from ._make import NothingDrawnError, make
from ._memory import budget
from ._plan import Plan
from ._prediction import Prediction, joined
from ._program import OtherBranchError
from ._reduce import KINDS, OPTIONAL, STATISTICS, Reducer
from ._state import State
from ._switch import dropping, sites_of
from ._tape import UntraceableError
from ._work import gain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from .._sites import Site
    from .._where import Where

MASKS = ("independent", "shared", "locked")
_UNLIKELY = math.log(1e-6)
_KEPT = 8  # plans of a model
_PROBED = 2  # rows, of which the sites are found
_NEAR = 16 << 20  # bytes that are worked on at once: more of them leave the caches
_PAYS = 5e7  # operations of a sample from which on it pays to gather weights
_FEWEST, _ASKED = 30, 10  # samples before `stop` may end a prediction, and from one question on
_plans: WeakKeyDictionary[nn.Module, dict[object, tuple[Plan | str, State]]] = WeakKeyDictionary()


def predict(
    model: nn.Module,
    *inputs: Any,
    samples: int = 50,
    outputs: str = "values",
    statistics: Sequence[str] | None = None,
    quantiles: Sequence[float] = (),
    masks: str = "independent",
    locked_dims: Sequence[int] = (),
    seed: int = 0,
    where: Where = None,
    class_dim: int = 1,
    batch_dim: int = 0,
    select: Callable[[Any], Tensor] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    memory: str | int | None = None,
    stop: str | None = None,
    return_samples: bool = False,
    progress: bool = False,
) -> Prediction:
    """Predict with dropout left on: the mean of many samples, and how far they are apart.

    The model is left as it is. While it runs, all of it is in evaluation mode, but for the modules
    that drop; afterwards, also after an exception, everything is as before. What comes before the
    first dropout runs once for a batch, and the rest for several samples at a time.

    A draw has the address (seed, site, sample, row). So the result does not hang on how rows are
    batched or samples are chunked, and a second call gives the same one. It hangs on ``seed``.

    Args:
        model: any module.
        inputs: what the model takes, as in ``model(*inputs)``; tensors with the rows of a batch in
            ``batch_dim``. Or one iterable of batches, such as a ``DataLoader``: each a tensor, a
            tuple whose first item goes in, or a dict of keywords.
        samples: how many, T.
        outputs: what the model returns. "values", "logits", "probabilities", or
            "mean_and_log_variance" (two numbers along ``class_dim``, Kendall and Gal 2017).
        statistics: which to compute; by default all but ``variation_ratio``. Without "std" the
            memory of one output less is held.
        quantiles: fractions in (0, 1), exact for up to 64 samples.
        masks: "independent", one for each row and element; "shared", sample t is one function for
            all rows and batches; "locked", one bit along ``locked_dims``.
        locked_dims: of the tensors that are dropped from, for masks="locked".
        seed: an int in [0, 2**32).
        where: of which sites only: a glob on the name, a type, a predicate; see
            :func:`sitout.set_rate`.
        class_dim: of an output ``[B, ...]``: the dim of the classes.
        batch_dim: of the inputs: the dim of the rows, 1 for ``[T, B, C]``.
        select: takes what the model returns to the tensor that counts; by default a tensor, or
            ``.logits``.
        kwargs: keywords that the model takes.
        memory: that samples may take: "2GB", bytes, or a quarter of what is free.
        stop: "ci:0.01" ends before ``samples`` when the 95 % interval of each mean is narrower
            than 0.01 to both sides; asked after 30 samples, then after every tenth.
        return_samples: keep all samples, ``[T, B, ...]``.
        progress: show a bar on stderr.

    Returns:
        The statistics, float32 or wider, ``[B, ...]``.

    Raises:
        TypeError: ``model`` is no module, or an argument has the wrong type.
        ValueError: nothing drops, an argument is out of range, or one does not fit the output.
        RuntimeError: the dropout did not reach the output: no draw was made, or all samples are
            equal where this is less likely than 1e-6.

    Example:
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(4, 64), torch.nn.Dropout(0.5), torch.nn.Linear(64, 3)
        ... )
        >>> made = sitout.mc.predict(model, torch.randn(5, 4), samples=30, outputs="logits")
        >>> made.mean.shape, made.mutual_information.shape
        (torch.Size([5, 3]), torch.Size([5]))

    Reference:
        Gal and Ghahramani 2016, arXiv 1506.02142; Houlsby et al. 2011, arXiv 1112.5745 (mutual
        information); Kendall and Gal 2017, arXiv 1703.04977 (two parts of the variance).
    """
    root = _probe.unwrapped(model, "mc.predict")
    asked = _Asked(
        samples,
        outputs,
        statistics,
        tuple(quantiles),
        masks,
        tuple(locked_dims),
        seed,
        where,
        class_dim,
        batch_dim,
        select or _output,
        memory,
        stop,
        return_samples,
    )
    batches = _batches(inputs, kwargs or {}, batch_dim)
    parts, row = [], 0
    for batch in _shown(batches, progress):
        parts.append(_Run(root, asked, batch, row).predict())
        row += batch.rows
    if not parts:
        raise ValueError(_checks.message("`inputs` of mc.predict", "one batch or more", "none"))
    return joined(parts)


@dataclass(frozen=True)
class _Asked:
    """The options of :func:`predict`."""

    samples: int
    outputs: str
    statistics: Sequence[str] | None
    quantiles: tuple[float, ...]
    masks: str
    locked_dims: tuple[int, ...]
    seed: int
    where: Where
    class_dim: int
    batch_dim: int
    select: Callable[[Any], Tensor]
    memory: str | int | None
    stop: str | None
    return_samples: bool
    width: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        owner = "mc.predict"
        if _checks.integer(self.samples, "samples", owner) < 2:
            raise ValueError(_checks.message(f"`samples` of {owner}", "2 or more", self.samples))
        if not 0 <= _checks.integer(self.seed, "seed", owner) < 1 << 32:
            raise ValueError(_checks.message(f"`seed` of {owner}", "in [0, 2**32)", self.seed))
        _checks.choice(self.outputs, KINDS, f"`outputs` of {owner}")
        _checks.choice(self.masks, MASKS, f"`masks` of {owner}")
        if (self.masks == "locked") != bool(self.locked_dims):
            rule = "given with masks='locked', and with no other"
            raise ValueError(_checks.message(f"`locked_dims` of {owner}", rule, self.locked_dims))
        known = (*STATISTICS[self.outputs], *OPTIONAL.get(self.outputs, ()))
        for name in self.statistics or ():
            _checks.choice(name, known, f"`statistics` of {owner}")
        for level in self.quantiles:
            if not 0.0 < level < 1.0:
                raise ValueError(_checks.message(f"`quantiles` of {owner}", "in (0, 1)", level))
        if self.stop is not None:
            object.__setattr__(self, "width", _width(self.stop))

    def reducer(self) -> Reducer:
        """Return what takes the samples."""
        names = tuple(self.statistics or STATISTICS[self.outputs])
        if self.stop is not None and "std" not in names:
            names = (*names, "std")
        return Reducer(self.outputs, names, self.class_dim, self.quantiles)


def _width(stop: object) -> float:
    kind, _, number = stop.partition(":") if isinstance(stop, str) else ("", "", "")
    try:
        width = float(number)
    except ValueError:
        width = 0.0
    if kind != "ci" or not 0.0 < width < math.inf:
        rule = "'ci:' and half the width of the interval, as in 'ci:0.01'"
        raise ValueError(_checks.message("`stop` of mc.predict", rule, stop))
    return width


class _Run:
    """One batch."""

    def __init__(self, model: nn.Module, asked: _Asked, batch: Batch, first_row: int) -> None:
        self.model, self.asked, self.batch = model, asked, batch
        device = next((one.device for one in batch.tensors()), torch.device("cpu"))
        self.device = device
        rows = torch.arange(first_row, first_row + batch.rows, device=device)
        self.rows = torch.zeros_like(rows) if asked.masks == "shared" else rows
        self.sites, self.probed = _sites(model, asked.where, batch)

    def predict(self) -> Prediction:
        """Return the statistics of the batch."""
        reducer, stack = self.asked.reducer(), []
        with dropping(self.model, self.sites):
            plan, border = self._begun(self._plan())
            parts = self._samples(plan, border)
            for part in parts if self.asked.stop is None else _in_tens(parts):
                reducer.update(part)
                if self.asked.return_samples:
                    stack.append(part.clone())
                del part
                if self._is_enough(reducer):
                    break
        self._check_differ(reducer)
        count = torch.full((self.batch.rows,), reducer.count, device=self.device)
        return Prediction(
            reducer.results(), count, torch.cat(stack) if stack else None, (self._told(plan),)
        )

    def _is_enough(self, reducer: Reducer) -> bool:
        if self.asked.stop is None or reducer.count < _FEWEST or reducer.count % _ASKED:
            return False
        return reducer.width() <= self.asked.width

    def _plan(self) -> Plan | str:
        """Return the plan of the model for such a batch, or why it has none."""
        kept = _plans.setdefault(self.model, {})

        def key(state: State) -> object:
            return self.batch.form(state), self.asked.select, state.of_model(self.model)

        made, state = kept.get(key(State()), ("", State()))
        if not made or not state.holds():
            made = self._made()
            if len(kept) >= _KEPT:
                kept.pop(next(iter(kept)))
            state = State()  # of now: a forward may keep what it has computed
            kept[key(state)] = made, state
        return made

    def _made(self) -> Plan | str:
        try:
            return make(self.model, self.batch, self.asked.select)
        except NothingDrawnError:
            raise _nothing_drawn(self.sites) from None
        except UntraceableError as error:
            return str(error)
        except Exception as error:  # the loop raises it too if it is the fault of the call
            return f"it could not be put on tape ({type(error).__name__}: {error})"

    def _begun(self, plan: Plan | str) -> tuple[Plan | str, dict[int, Tensor]]:
        """Return the plan and what it computes once; why there is none if the batch is another."""
        if isinstance(plan, str):
            return plan, {}
        try:
            return plan, plan.prefix(self.batch.tensors(), self.batch.rows)
        except OtherBranchError:
            return "its forward takes another branch on the values of this batch", {}

    def _samples(self, plan: Plan | str, border: dict[int, Tensor]) -> Iterator[Tensor]:
        """Yield samples, ``[c, B, ...]``, until all are there."""
        asked, rows = self.asked, self.batch.rows
        if isinstance(plan, str):
            loop = Loop(self.model, self.batch, asked.select)
            for t in range(asked.samples):
                yield loop.sample(self._addresses(t, 1)).unsqueeze(0)
                if not loop.drawn:
                    raise _nothing_drawn(self.sites)
            return
        at = plan.program.batch_dim(plan.program.outputs[0])
        size = self._chunk(plan)
        if self._leaves_out(plan):
            for t in range(asked.samples):
                yield plan.one(border, rows, self._addresses(t, 1))[0].unsqueeze(0)
            return
        for t in range(0, asked.samples, size):
            many = min(size, asked.samples - t)
            # Nothing here holds on to a sample: it goes before the next one comes.
            yield _apart(plan.suffix(border, rows, self._addresses(t, many))[0], many, at)

    def _leaves_out(self, plan: Plan) -> bool:
        """Return whether units that sit out are not computed: all rows share them, and it pays."""
        return self.asked.masks == "shared" and plan.work_left_out(self.batch.rows) >= _PAYS

    def _addresses(self, first: int, many: int) -> Addresses:
        asked = self.asked
        return Addresses(asked.seed, range(first, first + many), self.rows, asked.locked_dims)

    def _chunk(self, plan: Plan) -> int:
        """Return how many samples run together: as many as the memory, or the caches, hold."""
        if not plan.expands:
            return 1
        rows = self.batch.rows
        one, two = plan.bytes_of(rows), plan.bytes_of(2 * rows)
        fixed, each = 2 * one - two, max(two - one, 1)
        fit = (budget(self.asked.memory, self.device) - fixed) // each
        if self.device.type == "cpu":
            fit = min(fit, _NEAR // each)
        return int(min(max(fit, 1), self.asked.samples))

    def _check_differ(self, reducer: Reducer) -> None:
        """Refuse samples that are all equal, where that is no chance."""
        if reducer.differ:
            return
        rows = 1 if self.asked.masks == "shared" else self.batch.rows
        locked = self.asked.locked_dims
        rows_of_a_site = rows / self.probed
        log = sum(_log_chance(site, rows_of_a_site, locked, reducer.count) for site in self.sites)
        told = f"All {reducer.count} samples of mc.predict are equal"
        if log < _UNLIKELY:
            raise RuntimeError(
                f"{told}, though {len(self.sites)} sites drop: by chance this would be less likely "
                "than 1e-6. The output does not hang on what they drop: it may be rounded, or an "
                "argmax, or their units may all be 0."
            )
        warnings.warn(
            f"{told}: so few bits are drawn that this may be chance. Take more samples or rows.",
            stacklevel=4,
        )

    def _told(self, plan: Plan | str) -> str:
        """Return what ran how often."""
        shapes = [tuple(one.shape) for one in self.batch.tensors()]
        if isinstance(plan, str):
            return (
                f"{shapes}: no plan, for {plan}. The model ran for each sample, but for modules "
                "that end before the first draw."
            )
        size, count = self._chunk(plan), self.asked.samples
        left_out = ""
        if self._leaves_out(plan):
            size = 1
            draws = len({*plan.packed.by.values()})
            left_out = f" Units that sit out are not computed, at {draws} sites."
        return (
            f"{shapes}: {len(plan.once)} of {len(plan.program.steps)} operations ran once, "
            f"{plan.share:.0%} of the work of a pass; {len(plan.each)} for each sample, {size} of "
            f"{count} samples at a time. Expected: {gain(plan.share, count):.1f} times as fast as "
            f"{count} passes. The plan took {plan.rows} rows.{left_out}"
        )


def _in_tens(parts: Iterator[Tensor]) -> Iterator[Tensor]:
    """Yield samples so that a part ends wherever `stop` asks whether they are enough."""
    count = 0
    for part in parts:
        yield from part.tensor_split(list(range(_ASKED - count % _ASKED, len(part), _ASKED)))
        count += len(part)


def _apart(out: Tensor, many: int, at: tuple[int, int] | None) -> Tensor:
    """Return samples that lie one after the other along a dim, ``[c, B, ...]``."""
    if many == 1 or at is None:
        return out.unsqueeze(0)
    split = (*out.shape[: at[0]], many, -1, *out.shape[at[0] + 1 :])
    return out.reshape(split).movedim(at[0], 0)


def _log_chance(site: Site, rows: float, locked: Sequence[int], samples: int) -> float:
    """Return the logarithm of the chance that all masks of a site are equal.

    Args:
        site: as the probe saw it.
        rows: that have a mask of their own, for each that the probe saw.
        locked: dims along which one bit serves all.
        samples: how many masks each row has.
    """
    if site.shape is None or not site.p:
        return 0.0
    shared = {*(site.shared_dims or ()), *(dim % max(len(site.shape), 1) for dim in locked)}
    bits = math.prod(size for dim, size in enumerate(site.shape) if dim not in shared)
    both = site.p**samples + (1.0 - site.p) ** samples
    return bits * rows * math.log(both) if both > 0.0 else -math.inf


_found: WeakKeyDictionary[nn.Module, dict[object, tuple[list[Site], int, State]]] = (
    WeakKeyDictionary()
)


def _sites(model: nn.Module, where: Where, batch: Batch) -> tuple[list[Site], int]:
    """Return the sites that drop, and on how many rows they were found.

    They are found once for a state of the model. One that does not run on a few rows, such as that
    of the nodes of a graph, runs on all of them.
    """
    kept = _found.setdefault(model, {})
    few = batch.take([i % batch.rows for i in range(_PROBED)])

    def key(state: State) -> object:
        return few.form(state), where if callable(where) else repr(where), state.of_model(model)

    found, rows, state = kept.get(key(State()), ([], 0, State()))
    if not found or not state.holds():
        found, rows = [], few.rows
        with suppress(Exception):  # what is wrong with the call is wrong with all rows too
            found = sites_of(model, *few.arguments(), where)
        if not found:
            found, rows = sites_of(model, *batch.arguments(), where), batch.rows
        if len(kept) >= _KEPT:
            kept.pop(next(iter(kept)))
        state = State()  # of now: the probe writes buffers, and gives them back
        kept[key(state)] = found, rows, state
    return found, rows


def _nothing_drawn(sites: list[Site]) -> RuntimeError:
    names = ", ".join(site.name or "the root" for site in sites[:3])
    return RuntimeError(
        f"No dropout of the model reaches its output. Its sites ({names}) drop in training, but "
        "not here: a branch for evaluation may leave them out."
    )


def _output(out: Any) -> Tensor:
    """Return the tensor that a model returns, alone or as ``.logits``."""
    made = out if isinstance(out, Tensor) else getattr(out, "logits", None)
    if isinstance(made, Tensor):
        return made
    way_out = "Pass select=lambda out: ... to mc.predict."
    raise TypeError(_checks.message("The output", "a tensor, or have .logits", type(out), way_out))


def _batches(inputs: tuple[Any, ...], kwargs: Mapping[str, Any], dim: int) -> Iterator[Batch]:
    """Yield the batches: the one that was given, or those of an iterable."""
    [first, *rest] = inputs or (None,)
    several = not rest and not isinstance(first, (Tensor, dict, list, tuple, type(None), str))
    if not several or not hasattr(first, "__iter__"):
        yield Batch.of(inputs, kwargs, dim)
        return
    if dim:
        what, way_out = "`batch_dim` of mc.predict", "Pass the batches one by one."
        raise ValueError(_checks.message(what, "0 for an iterable of batches", dim, way_out))
    for one in first:
        if isinstance(one, Mapping):
            yield Batch.of((), {**one, **kwargs}, dim)
        else:
            yield Batch.of((one[0] if isinstance(one, (list, tuple)) else one,), kwargs, dim)


def _shown(batches: Iterable[Batch], progress: bool) -> Iterable[Batch]:
    if not progress:
        return batches
    from .. import _optional

    with _optional.needs("study", "progress=True of mc.predict"):
        from rich.progress import track
    return track(batches, description="Batches")
