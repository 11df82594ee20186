"""The cases of `gpu.py`: each is one line of what must be shown on a GPU."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import gpu_forms
import gpu_nets as nets
import torch
from speed.kinds import BOTH, FORWARD, Case, Row
from speed.saved import kept
from torch import Tensor
from torch.nn import functional as F

import sitout
from sitout import functional

OURS, TORCH, COMPILED, COPY = "sitout", "torch", "torch, compiled", "copy"
MASKED, GROUPS, PLAIN = "masked", "sitout, 4 groups", "without dropout"
FORMS = {"op": OURS + ", compiled", "triton": "sitout, triton_op", "inductor": "sitout, inductor"}
LEAST = 20e-3  # seconds of a timing
P = 0.1

Call = Callable[[], Any]


class Sizes(NamedTuple):
    """How large the cases are; the defaults are those that the targets are of."""

    device: str = "cuda"
    elements: int = 1 << 28
    chain: tuple[int, int] = (16384, 8192)
    norm: tuple[int, int] = (16384, 4096)
    mlp: tuple[int, int, int] = (8192, 784, 8192)
    vit: tuple[int, int, int] = (64, 197, 1024)
    heads: int = 16
    blocks: int = 8
    ffn: tuple[int, int, int] = (8192, 4096, 16384)
    gpt: tuple[int, int, int, int, int] = (16, 1024, 12, 768, 50304)
    backend: str = "inductor"  # of torch.compile
    hidden: int = 3  # layers of the perceptron


DRY = Sizes(
    *("cpu", 1 << 11, (4, 64), (3, 64), (12, 9, 20), (5, 2, 16), 2, 1, (4, 16, 40)),
    *((2, 8, 2, 16, 32), "aot_eager", 1),
)


def registry(sizes: Sizes) -> dict[str, Case]:
    """Return all cases by their names."""
    cases = [*elementwise(sizes), *chains(sizes), *norms(sizes), *thinned(sizes), peak(sizes)]
    return {case.name: case for case in cases}


@dataclass(frozen=True, kw_only=True)
class Race(Case):
    """Contenders that are timed in turns, in one run.

    Attributes:
        make: allocates what is needed, and returns what each contender does.
        ours: names of them, each beside all others.
        same: returns what differs between ours and what it must equal, or nothing.
    """

    make: Callable[[], dict[str, Call]]
    ours: tuple[str, ...] = (OURS,)
    same: Callable[[], str] = str

    def check(self) -> str:
        """Compare a small one of ours with what it must equal."""
        try:
            return self.same()
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    def measure(self, rounds: int) -> list[Row]:
        """Return a row for each of ours beside each of the others."""
        calls = self.make()
        missing = _warm(calls, 3 if self.device.startswith("cuda") else 1)
        found = take_turns(calls, rounds, self.device)
        others = [name for name in calls if name not in self.ours]
        rows = [self.times(name, other, found) for name in self.ours if name in found
                for other in others]  # fmt: skip
        return rows + [self.row(name, "", not_run=why) for name, why in missing.items()]


def _warm(calls: dict[str, Call], times: int) -> dict[str, str]:
    """Call each contender until it is compiled; take out those that cannot run, and say why."""
    missing = {}
    for name, call in list(calls.items()):
        try:
            for _ in range(times):
                call()
        except Exception as error:
            missing[name] = one_line(error)
            del calls[name]
    return missing


def take_turns(calls: dict[str, Call], rounds: int, device: str) -> dict[str, list[float]]:
    """Return the seconds that a call of each took, one number a round, in a new order each time."""
    on_gpu = device.startswith("cuda")
    seconds, least = (_on_gpu, LEAST) if on_gpu else (_on_cpu, 0.0)
    counts = {name: max(round(least / max(seconds(call, 1), 1e-9)), 1)
              for name, call in calls.items()}  # fmt: skip
    found: dict[str, list[float]] = {name: [] for name in calls}
    order = random.Random(0)
    gc.collect()
    for _ in range(rounds):
        for name in order.sample(list(calls), len(calls)):
            if on_gpu:
                calls[name]()
            found[name].append(seconds(calls[name], counts[name]) / counts[name])
    return found


def _on_gpu(call: Call, count: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(count):
        call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def _on_cpu(call: Call, count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        call()
    return time.perf_counter() - start


@dataclass(frozen=True, kw_only=True)
class Held(Case):
    """The bytes for each element that are held between forward and backward, beside the output.

    Attributes:
        calls: functions of one tensor.
    """

    calls: Callable[[], dict[str, Callable[[Tensor], Tensor]]]

    def check(self) -> str:
        """Nothing is timed: the values have been compared where it is."""
        return ""

    def measure(self, rounds: int) -> list[Row]:
        """Return a row for ours beside each of the others; there are no rounds."""
        found = {name: self._held(call) for name, call in self.calls().items()}
        ours, *others = found
        return [
            self.row(ours, other, held=found[ours], baseline_held=found[other],
                     saved=found[other] - found[ours])
            for other in others
        ]  # fmt: skip

    def _held(self, call: Callable[[Tensor], Tensor]) -> float:
        x = torch.randn(self.shape, dtype=self.dtype, device=self.device, requires_grad=True)
        if not self.device.startswith("cuda"):
            return float(kept(call, [x])["bytes_per_element"])
        call(x)  # compiles
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        y = call(x)
        held = torch.cuda.memory_allocated() - before - y.untyped_storage().nbytes()
        return round(held / y.numel(), 3)


def _bits(device: str, dtype: torch.dtype) -> str:
    """Return how ours differs from the reference, forward and backward, to the bit."""
    if device == "cpu" and dtype == torch.bfloat16:
        dtype = torch.float32  # the interpreter cuts off what does not fit into bfloat16
    made = []
    for backend in ("", "reference"):
        torch.manual_seed(0)
        x = torch.randn(37, 200, device=device).to(dtype).requires_grad_()
        with sitout.backends.use(backend or sitout.backends.use._forced):
            y = functional.dropout(x, P, key=sitout.MaskKey(seed=1))
            made.append([y, *torch.autograd.grad(y, x, torch.ones_like(y))])
    same = all(torch.equal(a, b) for a, b in zip(*made, strict=True))
    return "" if same else "the values are not the reference's"


def _passes(call: Callable[..., Tensor], x: Tensor, *more: Tensor) -> Call:
    """Return a forward and a backward of a function."""
    inputs = [x, *more]
    grad = torch.randn_like(x)
    return lambda: torch.autograd.grad(call(*inputs), inputs, grad)


def elementwise(sizes: Sizes) -> Iterator[Case]:
    """Yield dropout by itself: forward, both passes, and what is held."""
    common: dict[str, Any] = {"op": "dropout", "shape": (sizes.elements,), "device": sizes.device}

    def forward(dtype: torch.dtype) -> dict[str, Call]:
        x = torch.randn(sizes.elements, device=sizes.device, dtype=dtype)
        y = torch.empty_like(x)
        return {
            OURS: partial(functional.dropout, x, P),
            TORCH: partial(F.dropout, x, P),
            COPY: partial(y.copy_, x),
        }

    def both(dtype: torch.dtype) -> dict[str, Call]:
        x = torch.randn(sizes.elements, device=sizes.device, dtype=dtype, requires_grad=True)
        y = torch.empty_like(x)

        def copies() -> None:
            with torch.no_grad():
                y.copy_(x), y.copy_(x)

        return {
            OURS: _passes(partial(functional.dropout, p=P), x),
            TORCH: _passes(partial(F.dropout, p=P), x),
            "two copies": copies,
        }

    for name, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        same = partial(_bits, sizes.device, dtype)
        some = {**common, "dtype": dtype, "same": same}
        yield Race(name=f"forward-{name}", passes=FORWARD, make=partial(forward, dtype), **some)
        yield Race(name=f"backward-{name}", passes=BOTH, make=partial(both, dtype), **some)
    calls = {OURS: partial(functional.dropout, p=P), TORCH: partial(F.dropout, p=P)}
    held = {**common, "shape": (sizes.elements // 16,)}
    yield Held(name="held", dtype=torch.bfloat16, passes=BOTH, calls=lambda: calls, **held)


def _chain(drop: Callable[..., Tensor], x: Tensor) -> Tensor:
    return drop(x.relu(), P) * 1.25


def _compiled(sizes: Sizes, call: Callable[..., Tensor], form: str = "op") -> Callable[..., Tensor]:
    """Return a function that is compiled into one graph, with dropout in a form."""
    made: Any = torch.compile(call, fullgraph=True, backend=sizes.backend)

    def run(*inputs: Tensor) -> Tensor:
        with gpu_forms.form(form):
            out: Tensor = made(*inputs)
            return out

    return run


def one_line(error: Exception) -> str:
    """Return an error in one line; some have no text."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"


FAILED: dict[str, str] = {}  # forms of compiled code that did not run, and why


def _equal_forms(sizes: Sizes) -> str:
    """Return which compiled form has another mask than eager code at the same key."""
    torch._dynamo.reset()
    told = []
    ticket = torch.tensor(12345678901234, device=sizes.device)

    def call(x: Tensor, ticket: Tensor) -> Tensor:
        drop = partial(functional.dropout, key=sitout.MaskKey(seed=ticket))
        return _chain(drop, x)

    x = torch.randn(64, 128, device=sizes.device)
    with sitout.backends.use("reference"):
        wanted = call(x, ticket)
    for form in ("op", "inductor", *(["triton"] if sizes.device == "cuda" else [])):
        torch._dynamo.reset()
        try:
            made = _compiled(sizes, call, form)(x, ticket)
        except Exception as error:
            if form == "op":
                raise
            FAILED[form] = one_line(error)
            continue  # a form that nobody is served by may fail, and is left out
        if not torch.equal(made, wanted):
            told.append(f"the form {form} has other values")
    torch._dynamo.reset()
    return "; ".join(told)


def chains(sizes: Sizes) -> Iterator[Case]:
    """Yield relu, dropout and a product in compiled code: its time, and what it holds."""
    ours, theirs = partial(_chain, functional.dropout), partial(_chain, F.dropout)

    def calls() -> dict[str, Callable[[Tensor], Tensor]]:
        torch._dynamo.reset()
        made = {name: _compiled(sizes, partial(_chain, functional.dropout), form)
                for form, name in FORMS.items() if form not in FAILED}  # fmt: skip
        return {**made, COMPILED: _compiled(sizes, theirs)}

    def make() -> dict[str, Call]:
        x = torch.randn(sizes.chain, device=sizes.device, dtype=torch.bfloat16, requires_grad=True)
        made = {name: _passes(call, x) for name, call in calls().items()}
        return {**made, OURS: _passes(ours, x), TORCH: _passes(theirs, x)}

    def held() -> dict[str, Callable[[Tensor], Tensor]]:
        made = calls()
        return {FORMS["op"]: made[FORMS["op"]], COMPILED: made[COMPILED], TORCH: theirs}

    common: dict[str, Any] = {
        "op": "dropout",
        "passes": BOTH,
        "shape": sizes.chain,
        "dtype": torch.bfloat16,
        "device": sizes.device,
    }
    names = (OURS, *FORMS.values())
    same = partial(_equal_forms, sizes)
    yield Race(name="chain", make=make, ours=names, same=same, **common)
    yield Held(name="chain-held", calls=held, **common)


def norms(sizes: Sizes) -> Iterator[Case]:
    """Yield dropout, residual sum and layer normalization."""
    width = sizes.norm[1]

    def theirs(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(residual + F.dropout(x, P), (width,), weight, bias)

    def ours(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, **more: Any) -> Tensor:
        made = functional.dropout_add_layer_norm(x, residual, weight, bias, P, **more)
        assert isinstance(made, Tensor)
        return made

    def tensors(rows: int, dtype: torch.dtype) -> list[Tensor]:
        options: Any = {"device": sizes.device, "dtype": dtype, "requires_grad": True}
        shapes = [(rows, width), (rows, width), (width,), (width,)]
        return [torch.randn(shape, **options) for shape in shapes]

    def make() -> dict[str, Call]:
        torch._dynamo.reset()
        inputs = tensors(sizes.norm[0], torch.bfloat16)
        return {
            OURS: _passes(ours, *inputs),
            TORCH: _passes(theirs, *inputs),
            COMPILED: _passes(_compiled(sizes, theirs), *inputs),
        }

    def same() -> str:
        torch.manual_seed(0)
        inputs, key = tensors(5, torch.float32), sitout.MaskKey(seed=1)
        made = ours(*inputs, key=key)
        with sitout.backends.use("reference"):
            wanted = ours(*inputs, key=key)
        return "" if torch.allclose(made, wanted, atol=1e-5) else "the values are not near"

    yield Race(
        **{"name": "norm", "op": "dropout_add_layer_norm", "passes": BOTH, "shape": sizes.norm},
        **{"dtype": torch.bfloat16, "device": sizes.device, "make": make, "same": same},
    )


def thinned(sizes: Sizes) -> Iterator[Case]:
    """Yield networks of which what sits out is not computed."""
    common: dict[str, Any] = {"dtype": torch.bfloat16, "device": sizes.device}
    rows, n_in, units = sizes.mlp
    step = partial(nets.step, sizes.device, torch.bfloat16)
    dropout, width = partial(torch.nn.Dropout, 0.5), [units] * sizes.hidden

    def mlps() -> dict[str, Call]:
        shape = (rows, n_in)
        mlp = partial(sitout.nn.ThinnedMLP, n_in, width, 10, 0.5, form="thinned")
        return {
            OURS: step(mlp(), shape, learns=True),
            GROUPS: step(mlp(groups=4), shape, learns=True),
            TORCH: step(nets.mlp(n_in, width, 10, dropout), shape, learns=True),
            PLAIN: step(nets.mlp(n_in, width, 10, None), shape, learns=True),
        }

    def ffns() -> dict[str, Call]:
        _, narrow, wide = sizes.ffn
        make, shape = partial(nets.feed_forward, narrow, wide, 0.3), sizes.ffn[:2]
        return {OURS: step(make(thinned=True), shape), TORCH: step(make(thinned=False), shape)}

    def vits() -> dict[str, Call]:
        make = partial(nets.blocks, sizes.vit[2], sizes.heads, sizes.blocks, 0.4)
        return {
            OURS: step(make("thinned"), sizes.vit),
            MASKED: step(make("masked"), sizes.vit),
            TORCH: step(make("torch"), sizes.vit),
        }

    yield Race(
        **{"name": "mlp", "op": "thinned_linear", "passes": nets.STEP, "shape": (rows, n_in)},
        **{"make": mlps, "ours": (OURS, GROUPS), "same": partial(nets.differs, sizes.device)},
        **common,
    )
    named = {"name": "vit", "op": "drop_residual", "passes": BOTH, "shape": sizes.vit}
    yield Race(**named, make=vits, **common)
    named = {"name": "ffn", "op": "thinned_linear", "passes": BOTH, "shape": sizes.ffn[:2]}
    yield Race(**named, make=ffns, **common)


@dataclass(frozen=True, kw_only=True)
class Peak(Case):
    """The most memory that a training step of GPT-2 takes.

    Attributes:
        make: makes the network, with sitout's layers or with torch's.
        vocabulary: how many words there are.
        layers: of the network; its masks have a byte an element, one for the sum of the
            embeddings and two for each layer.
    """

    make: Callable[[bool], torch.nn.Module]
    vocabulary: int
    layers: int

    def check(self) -> str:
        """Nothing is timed."""
        return ""

    def measure(self, rounds: int) -> list[Row]:
        """Return one row; there are no rounds."""
        ours, theirs = self._peak(True), self._peak(False)
        batch, places, width = self.shape
        masks = (2 * self.layers + 1) * batch * places * width
        return [
            self.row(OURS, TORCH, peak_bytes=ours, baseline_peak_bytes=theirs, masks_bytes=masks,
                     saved=(theirs - ours) / masks)
        ]  # fmt: skip

    def _peak(self, ours: bool) -> int:
        torch.manual_seed(0)
        network = self.make(ours).to(self.device, self.dtype)
        words = torch.randint(self.vocabulary, self.shape[:2], device=self.device)
        on_gpu = self.device.startswith("cuda")
        for _ in range(2):  # the first makes the gradients, which stay
            if on_gpu:
                torch.cuda.reset_peak_memory_stats()
            network(words).backward()
        found = torch.cuda.max_memory_allocated() if on_gpu else 0
        del network, words
        gc.collect()
        if on_gpu:
            torch.cuda.empty_cache()
        return found


def peak(sizes: Sizes) -> Case:
    """Return the case of memory."""
    batch, places, layers, width, words = sizes.gpt
    heads = max(width // 64, 1)
    return Peak(
        name="gpt2-peak",
        op="dropout",
        shape=(batch, places, width),
        dtype=torch.bfloat16,
        passes=BOTH,
        device=sizes.device,
        make=partial(nets.gpt, words, places, width, heads, layers),
        vocabulary=words,
        layers=layers,
    )
