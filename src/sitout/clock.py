"""MaskClock: it numbers the sites of a model and gives every forward its address."""

from __future__ import annotations

from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Any, cast
from warnings import warn

import torch
from torch import Tensor

from . import _checks
from ._clock_rules import (
    SEEDS,
    STEPS,
    check_free,
    check_positions,
    check_state,
    natural,
    number_of,
    some,
    warn_of_others,
)
from ._ticker import State, Ticker, recompute_of
from ._where import plain_name
from .masks import SPEC_VERSION, MaskKey, _is_captured
from .nn._base import Site

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

__all__ = ["MaskClock"]


class MaskClock:
    """Gives every mask of a model the address (seed, site, step, call, row, col).

    Under a clock a mask depends on nothing else: not on how a batch is split over micro-batches or
    processes, on what ran before, on eager or compiled mode, or on whether a forward is repeated
    in a checkpoint or after a crash.

    The sites are numbered in the order of ``named_modules()`` when their names are first seen,
    without what wrappers add to them (``module.``, ``_orig_mod.``). A number belongs to a name. A
    layer that is used under several names has the first one; its calls in a block are counted.

    Args:
        model: whose ``sitout.nn`` layers take their address from the clock. They keep working in
            default mode outside of :meth:`at`.
        seed: of the run, an int in [0, 2**32).

    Attributes:
        recompute: pass it as ``context_fn`` to ``torch.utils.checkpoint.checkpoint`` (with
            ``use_reentrant=False``): the forward that is repeated in backward then has the
            address of the first one.

    Raises:
        TypeError: ``model`` is no module, or ``seed`` no int.
        ValueError: ``seed`` is out of range, ``model`` has no layer of ``sitout.nn``, or one of
            them has a generator of its own.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), sitout.nn.Dropout(0.5))
        >>> clock = sitout.MaskClock(model, seed=17)
        >>> with clock.at(0):
        ...     y = model(torch.randn(2, 4))
        >>> mask = sitout.masks.keep_mask(clock.key("1", step=0), 0.5, (2, 8))
        >>> bool(((y != 0) == mask).all())
        True
    """

    recompute: Callable[[], tuple[AbstractContextManager[Any], AbstractContextManager[Any]]]

    def __init__(self, model: torch.nn.Module, seed: int = 0) -> None:
        if not isinstance(model, torch.nn.Module):
            raise TypeError(_checks.message("`model` of MaskClock", "a torch.nn.Module", model))
        self._model = model
        self._sites: dict[str, int] = {}
        self._used: list[tuple[int, int]] = []
        self._state = State(natural(seed, "seed", "MaskClock", SEEDS))
        self.recompute = recompute_of(self._state)
        self._layout: list[object] = []
        warn_of_others(model)
        self._number()
        if not self._sites:
            what, rule = "`model` of MaskClock", "one with a layer of sitout.nn"
            raise ValueError(_checks.message(what, rule, f"{type(model).__name__} without any"))

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return self._state.seed

    @property
    def sites(self) -> dict[str, int]:
        """The numbers of the sites by their qualified names; a copy."""
        return dict(self._sites)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "recompute"}

    def __setstate__(self, attributes: dict[str, Any]) -> None:
        vars(self).update(attributes)
        self._state.orphan = False
        self.recompute = recompute_of(self._state)

    def __del__(self) -> None:
        if hasattr(self, "_state"):
            self._state.orphan = True

    def __repr__(self) -> str:
        return f"MaskClock(seed={self.seed}, sites={len(self._sites)})"

    @contextmanager
    def at(self, step: int, rows: Tensor | None = None) -> Iterator[None]:
        """Give every forward of the model inside the block the address of a step.

        Args:
            step: the optimizer step, an int in [0, 2**32). Each one once, in any order: the same
                step again needs ``rows``. A block that ends in an exception has not used its step.
            rows: int64 ``[B]``, the positions of the batch's samples in the global batch; 0 .. B-1
                if None. Needed for micro-batches and in several processes, see
                :func:`sitout.parallel.rows`.

        Raises:
            TypeError: ``step`` is no int, or ``rows`` no int64 tensor.
            ValueError: one of them is out of range, the step has been used, or ``rows`` is needed.
            RuntimeError: a block of this clock is open, a later clock has taken over a layer, or
                the block is opened in compiled code.

        Example:
            >>> model = sitout.nn.Dropout(0.5)
            >>> clock, x = sitout.MaskClock(model, seed=17), torch.ones(4, 8)
            >>> with clock.at(0):
            ...     whole = model(x)
            >>> parts = []
            >>> for rows in torch.arange(4).chunk(2):
            ...     with clock.at(0, rows=rows):
            ...         parts.append(model(x[rows]))
            >>> bool((torch.cat(parts) == whole).all())
            True
        """
        state = self._state
        step = self._check_block(step, rows)
        self._number()
        state.place(_device_of(self._model))
        state.begin(step, rows)
        try:
            yield
        finally:
            state.block = None
        self._used = _join(self._used, (step, step))

    def key(self, site: str | int, step: int, call: int = 0) -> MaskKey:
        """Return the key of a site at a step, past or to come.

        Args:
            site: the qualified name of the layer, or its number.
            step: the optimizer step.
            call: how many times the layer had run before within the block.

        Raises:
            ValueError: no site has the name or number.

        Example:
            >>> clock = sitout.MaskClock(torch.nn.Sequential(sitout.nn.Dropout(0.5)), seed=17)
            >>> clock.key("0", step=3)
            MaskKey(seed=17, site=0, step=3, call=0)
        """
        return MaskKey(self.seed, number_of(site, self._sites), step, call)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs: plain numbers and strings.

        Example:
            >>> clock = sitout.MaskClock(torch.nn.Sequential(sitout.nn.Dropout(0.5)), seed=17)
            >>> clock.state_dict()
            {'spec': 1, 'seed': 17, 'sites': {'0': 0}, 'used': []}
        """
        used = [list(span) for span in self._used]
        return {"spec": SPEC_VERSION, "seed": self.seed, "sites": self.sites, "used": used}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the seed, the numbers of the sites and the used steps of another clock.

        Args:
            state: from :meth:`state_dict`.

        Raises:
            ValueError: ``state`` is none, or of another version of the mask specification.
            RuntimeError: a block of this clock is open.

        Warns:
            UserWarning: sites of the state are missing in the model while the model has others,
                as after a layer was renamed: their masks are not those of the earlier run.
        """
        seed, sites, used = check_state(state)
        if self._state.block is not None:
            raise RuntimeError("load_state_dict of MaskClock must be called outside of at().")
        mine = self._sites
        gone = [name for name in sites if name not in mine]
        fresh = [name for name in mine if name not in sites]
        if gone and fresh:
            warn(
                f"The state of MaskClock has sites that the model has not ({some(gone)}), and the "
                f"model has others ({some(fresh)}). If layers were renamed, their masks are not "
                "those of the earlier run. Rename the sites in the state before loading it.",
                stacklevel=2,
            )
        self._used, self._sites = used, sites
        self._state.set_seed(seed)
        for name in fresh:
            self._sites[name] = len(self._sites)
        for ticker in self._state.tickers:
            ticker.renumber(ticker.name, self._sites[ticker.name])

    def _check_block(self, step: int, rows: Tensor | None) -> int:
        """Return the step of a block that may be opened."""
        state = self._state
        if torch.compiler.is_compiling():
            raise RuntimeError(
                "at of MaskClock must be outside of compiled code. Open the block around the call "
                "of the compiled model."
            )
        if _is_captured():
            raise RuntimeError(
                "at of MaskClock must be outside of the capture of a CUDA graph. Open the block "
                "around it, and around each replay."
            )
        if state.taken:
            raise RuntimeError(
                f"{self} must hold its layers. Got {state.taken!r} in the hands of a later "
                "MaskClock. Use that one, or make a new one."
            )
        if state.block is not None:
            raise RuntimeError(
                f"at of MaskClock must not be nested. Got step {step!r} inside of step "
                f"{state.block.step}. End the outer block first."
            )
        step = natural(step, "step", "at", STEPS)
        if rows is not None:
            check_positions(rows)
            return step
        if any(first <= step <= last for first, last in self._used):
            way_out = (
                "For micro-batches of one step pass rows=, the positions of the samples in the "
                "batch: for x, rows in zip(x.chunk(k), torch.arange(len(x)).chunk(k))."
            )
            what, rule = "`step` of at", "a new one, or come with `rows`"
            raise ValueError(_checks.message(what, rule, step, way_out))
        if _processes() > 1:
            way_out = "Every process would drop the same units: pass rows=sitout.parallel.rows(B)."
            what, rule = "`rows`", f"given in a process group of {_processes()}"
            raise ValueError(_checks.message(what, rule, None, way_out))
        return step

    def _number(self) -> None:
        """Give every layer the number of its name, and leave a ticker with those that have none."""
        state = self._state
        if _layout_of(self._model) == self._layout:
            return
        layers = _sites_of(self._model)
        fresh = {name: layer for name, layer in layers.items() if not _is_bound(layer, state)}
        for name, layer in fresh.items():
            check_free(name, layer)
        for name, layer in fresh.items():
            if isinstance(layer._ticker, Ticker):
                layer._ticker.state.taken = name
            layer._ticker = Ticker(state)
        for name, layer in layers.items():
            ticker = cast("Ticker", layer._ticker)
            ticker.renumber(name, self._sites.setdefault(name, len(self._sites)))
        state.tickers = [cast("Ticker", layer._ticker) for layer in layers.values()]
        self._layout = _layout_of(self._model)


def _processes() -> int:
    distributed = torch.distributed
    if not distributed.is_available() or not distributed.is_initialized():
        return 1
    return distributed.get_world_size()


def _device_of(model: torch.nn.Module) -> torch.device:
    held = next(chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if held is None or held.is_meta else held.device


def _layout_of(model: torch.nn.Module) -> list[object]:
    """Return what changes if a layer comes, goes or gets another name; asked at every block."""
    found: list[object] = []
    todo: list[torch.nn.Module | None] = [model]
    while todo:
        module = todo.pop()
        found.append(module)
        if isinstance(module, Site):
            found.append(module._ticker)
        if module is not None and module._modules:
            found += module._modules
            todo += module._modules.values()
    return found


def _sites_of(model: torch.nn.Module) -> dict[str, Site]:
    """Return the layers by their names, without what wrappers add where that leaves them apart."""
    layers: dict[str, Site] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, Site):
            plain = plain_name(model, name)
            layers[name if plain in layers else plain] = layer
    return layers


def _is_bound(layer: Site, state: State) -> bool:
    return isinstance(layer._ticker, Ticker) and layer._ticker.state is state


def _join(spans: list[tuple[int, int]], new: tuple[int, int]) -> list[tuple[int, int]]:
    """Return ascending, disjoint spans of ints that hold a new one too."""
    joined: list[tuple[int, int]] = []
    for first, last in sorted([*spans, new]):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(last, joined[-1][1]))
        else:
            joined.append((first, last))
    return joined
