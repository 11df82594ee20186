"""What a clock leaves with the layers of its model: the address of each call."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from .masks import MaskKey, _is_captured, _moved

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

Contexts = tuple[AbstractContextManager[Any], AbstractContextManager[Any]]
Calls = dict["Ticker", tuple[int, int]]


@dataclass(frozen=True)
class Block:
    """What ``at`` of a clock says.

    Args:
        step: of the optimizer.
        rows: the positions of the samples, where the host can read them without waiting.
        there: the same on the device of the model.
    """

    step: int
    rows: Tensor | None
    there: Tensor | None


@dataclass(frozen=True)
class Part:
    """The samples of a batch that a thinned branch sees."""

    rows: Tensor
    batch: int  # samples of the batch


class State:
    """What a clock shares with its tickers.

    Eager code reads the seed and the step as ints. Compiled code and captured CUDA graphs read
    tensors that are filled in place, for an int that changes would be compiled anew each time.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.step = 0  # what the tensor below holds
        self.seed_tensor = torch.tensor(seed, device="cpu")
        self.step_tensor = torch.tensor(0, device="cpu")
        self.block: Block | None = None
        self.part: Part | None = None
        self.captured: dict[int, Tensor] = {}  # the rows that CUDA graphs read, by their number
        self.tickers: list[Ticker] = []
        self.recomputing = False
        self.orphan = False  # whether the clock is gone, or stayed behind when the model was copied
        self.taken = ""  # the name of a layer that a later clock has taken over

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy holds: no open block, for nobody could close it."""
        closed: dict[str, Any] = {"block": None, "part": None, "captured": {}}
        return {**vars(self), **closed, "recomputing": False, "orphan": True}

    def set_seed(self, seed: int) -> None:
        """Take another seed."""
        self.seed = seed
        self.seed_tensor.fill_(seed)

    def place(self, device: torch.device) -> None:
        """Move the tensors to a device."""
        if self.step_tensor.device != device:
            self.seed_tensor = _moved(self.seed_tensor, device)
            self.step_tensor = _moved(self.step_tensor, device)
            for ticker in self.tickers:
                ticker.site_tensor = _moved(ticker.site_tensor, device)

    def calls(self) -> Calls:
        """Return how many times each layer has run within the block: in all, and in a capture."""
        return {ticker: (ticker.calls, ticker.captured) for ticker in self.tickers}

    def begin(self, step: int, rows: Tensor | None) -> None:
        """Open a block of a step and a copy of the rows."""
        own = there = None if rows is None else rows.clone()
        if own is not None and self.step_tensor.is_cuda:
            there = _moved(own, self.step_tensor.device)
            if len(own) in self.captured:
                self.captured[len(own)].copy_(there)
        elif own is None:
            for n, held in self.captured.items():
                torch.arange(n, out=held)
        self.enter(Block(step, own, there), {})

    def hold(self, there: Tensor | None) -> Tensor | None:
        """Return rows of a capture, in memory that later blocks write to for its replays."""
        return None if there is None else self.captured.setdefault(len(there), there)

    def enter(self, block: Block | None, calls: Calls) -> None:
        """Open a block, or with None close it, as if the layers had run so many times."""
        # A step that stays is not written: autograd would say that the address has changed.
        if block is not None and block.step != self.step:
            self.step_tensor.fill_(block.step)
            self.step = block.step
        self.block = block
        for ticker in self.tickers:
            ticker.calls = ticker.captured = 0
        for ticker, counts in calls.items():
            ticker.calls, ticker.captured = counts


class Ticker:
    """The place of one layer in the model, and how many times it has run within the block."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.name = ""
        self.site = 0
        self.site_tensor = torch.zeros((), dtype=torch.int64, device=state.step_tensor.device)
        self.calls = 0
        self.captured = 0  # in the capture of CUDA graphs, whose replays are first calls again

    def renumber(self, name: str, site: int) -> None:
        """Take a name, and the number that belongs to it."""
        self.name = name
        self.site = site
        self.site_tensor.fill_(site)

    def address(self, layer: torch.nn.Module) -> tuple[MaskKey | None, Tensor | None]:
        """Return the key and the rows of a call of the layer; None and None if no block is open.

        Raises:
            RuntimeError: the call cannot be told from another one, or would be frozen in a graph.
        """
        state = self.state
        if state.orphan:
            return None, None
        block = state.block
        self._check_repeat()
        if block is None:
            return None, None
        captured = _is_captured()
        self._check(layer, captured)
        call = self._count(captured)
        if captured or torch.compiler.is_compiling():
            key = MaskKey(state.seed_tensor, self.site_tensor, state.step_tensor, call)
        else:
            key = MaskKey(state.seed, self.site, block.step, call)
        if state.part is not None:
            return key, state.part.rows
        return key, self._rows(block, getattr(layer, "_p_is_number", False), captured)

    def _rows(self, block: Block, on_host: bool, captured: bool) -> Tensor | None:
        """Return the rows of a block, where they decide shapes such as the host can read."""
        if captured:
            return self.state.hold(block.there)
        if block.there is not None and block.there.is_cuda:
            # The stream that reads them may be another than that of the block, which frees them.
            block.there.record_stream(torch.cuda.current_stream(block.there.device))
        return block.rows if on_host and not torch.compiler.is_compiling() else block.there

    def batch(self) -> int | None:
        """Return how many samples the batch has of which a thinned branch sees some."""
        part = self.state.part
        return None if part is None else part.batch

    def first(self, count: int) -> Tensor | None:
        """Return the positions of the first samples of the block; None for 0, 1, 2, ...

        Args:
            count: of the samples.
        """
        block = self.state.block
        rows = None if block is None else self._rows(block, True, _is_captured())
        return None if rows is None else rows[:count]

    def run(self, branch: Callable[[Tensor], Tensor], x: Tensor, kept: Tensor, n: int) -> Tensor:
        """Run a branch on the kept samples of a batch, which keep their addresses.

        Args:
            branch: a module or a function.
            x: the samples, ``[c, ...]``.
            kept: int64 ``[c]``, which they are.
            n: samples of the batch.
        """
        state = self.state
        block = state.block
        if block is None or state.orphan:
            return branch(x)
        whole = state.part
        rows = self._rows(block, False, _is_captured()) if whole is None else whole.rows
        here = kept if rows is None else rows.to(kept.device)[kept]
        state.part = Part(here, n if whole is None else whole.batch)
        try:
            return branch(x)
        finally:
            state.part = whole

    def _count(self, captured: bool) -> int:
        """Return how many times the layer has run within the block, and count this call."""
        if torch.compiler.is_compiling():
            # In a checkpoint dynamo refuses to change an attribute, since backward would not do
            # so again. Here it must not: the graph that is repeated holds the number.
            call: int = (
                torch._dynamo.utils._disable_side_effect_safety_checks_for_current_subtracer(
                    self._next, False
                )
            )
            return call
        return self._next(captured)

    def _next(self, captured: bool) -> int:
        if captured:
            self.captured += 1
            return self.captured - 1
        self.calls += 1
        return self.calls - 1

    def _check(self, layer: torch.nn.Module, captured: bool) -> None:
        """Refuse what would give a wrong mask in silence."""
        problem = None
        if getattr(layer, "_is_replica", False):
            problem = (
                "a replica of DataParallel, which does not know its rows. Use "
                "DistributedDataParallel with rows=sitout.parallel.rows(B)"
            )
        elif torch.compiler.is_compiling():
            if torch.compiler.is_exporting():
                problem = (
                    "an export, which would freeze the mask. Export in evaluation, or outside of at"
                )
            elif torch._C._are_functorch_transforms_active():
                problem = (
                    "a function transform in compiled code. Leave torch.compile out, or pass key= "
                    "to the function"
                )
            elif _loop():
                problem = (
                    f"{_loop()}, which would use one mask for all of its iterations. Write a loop, "
                    "or pass key= to the function"
                )
        elif captured and not self.state.step_tensor.is_cuda:
            problem = (
                "the capture of a CUDA graph, by a clock whose model has no parameter on the GPU. "
                "Make the clock of a model that has one"
            )
        elif _is_traced():
            problem = "a trace, which would freeze the mask. Trace in evaluation, or outside of at"
        elif _randomness() not in ("none", "same"):
            problem = (
                f"vmap with randomness={_randomness()!r}, where a clock gives every example the "
                "same mask. Say randomness='same', or leave the block for default mode"
            )
        if problem:
            raise self._refusal(problem)

    def _check_repeat(self) -> None:
        """Refuse a forward in backward that does not know the address of the first one."""
        if _in_backward() and not self.state.recomputing:
            raise self._refusal(
                "a forward that is repeated in backward. Pass use_reentrant=False and "
                "context_fn=clock.recompute to torch.utils.checkpoint.checkpoint"
            )

    def _refusal(self, problem: str) -> RuntimeError:
        return RuntimeError(
            "A layer under a MaskClock must run where its call has an address. Got "
            f"{self.name!r} in {problem}."
        )


def _in_backward() -> bool:
    """Return whether autograd is running; compiled code asks when it is traced, and never again."""
    return torch._C._current_graph_task_id() != -1


def _loop() -> str:
    """Return the operator, such as ``torch.cond``, whose body a compiler is tracing, if any."""
    from torch._dynamo.symbolic_convert import InstructionTranslator

    tracer: Any = InstructionTranslator.current_tx().output.current_tracer
    while tracer is not None:
        name = str(getattr(tracer, "description", None))
        if any(word in name for word in ("cond", "scan", "map_impl", "while_loop")):
            return name
        tracer = tracer.parent
    return ""


# What torch.compiler.assume_constant_result does, which loads the whole compiler.
_in_backward._dynamo_marked_constant = True  # type: ignore[attr-defined]
_loop._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _is_traced() -> bool:
    """Return whether make_fx is at work, which takes an int for a constant."""
    return torch._C._len_torch_dispatch_stack() > 0 and get_proxy_mode() is not None


def _randomness() -> str:
    """Return what the vmaps around a call say of randomness, or "none" outside of vmap."""
    if not torch._C._are_functorch_transforms_active():
        return "none"
    from torch._functorch.pyfunctorch import VmapInterpreter, retrieve_all_functorch_interpreters

    modes = {
        level.randomness()
        for level in retrieve_all_functorch_interpreters()
        if isinstance(level, VmapInterpreter)
    }
    return next(iter(modes - {"same"}), "same" if modes else "none")


def recompute_of(state: State) -> Callable[[], Contexts]:
    """Return the ``context_fn`` of a clock; a plain function, for torch.compile takes no other."""

    def recompute() -> Contexts:
        if torch.compiler.is_compiling():  # the graph itself repeats the address
            contexts: Contexts = create_selective_checkpoint_contexts(  # type: ignore[no-untyped-call]
                _always_recompute
            )
            return contexts
        return nullcontext(), _Again(state)

    return recompute


def _always_recompute(*_: object, **__: object) -> CheckpointPolicy:
    return CheckpointPolicy.PREFER_RECOMPUTE


class _Again:
    """Bring a clock back to where it was when this was made; any number of times."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._block, self._calls, self._part = state.block, state.calls(), state.part
        self._undo: list[Callable[[], None]] = []

    def __enter__(self) -> None:
        state = self._state
        before = state.block, state.part, state.calls(), state.recomputing
        self._undo.append(partial(_restore, state, *before))
        _restore(state, self._block, self._part, self._calls, True)

    def __exit__(self, *_: object) -> None:
        self._undo.pop()()


def _restore(
    state: State,
    block: Block | None,
    part: Part | None,
    calls: Calls,
    recomputing: bool,
) -> None:
    state.enter(block, calls)
    state.part = part
    state.recomputing = recomputing
