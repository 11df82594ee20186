"""Watches the forwards of a model: which module runs, what it calls, and what drops there."""

from __future__ import annotations

import threading
import warnings
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .. import backends
from .._rates import is_number, kind_of, rate_attribute
from ..backends._address import Packed
from ..backends._op import _OP as DROP
from ..nn import ThinnedDropout
from ._calls import CALLS, OWN, Asked, asked, dropped_from, dropping_argument
from ._draws import NORMAL, PICK, Application, Draws, dropped_share
from ._flow import Draw
from ._place import Listener, Place, compare, kind_of_mask, shared_dims
from ._snapshot import writes
from ._stack import call_line, origin, own_function, parents

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._site import Via
    from ._snapshot import Snapshot

aten = torch.ops.aten
_NATIVE = (aten.native_dropout.default, aten._fused_dropout.default)
_FAST = (aten._transformer_encoder_layer_fwd.default, aten._native_multi_head_attention.default)
_LISTS = (Tensor.tolist, Tensor.numpy)
_TELLING = 64  # bits; fewer come again by chance
# Inside of these a function mode would switch torch's fast path off.
_FAST_MODULES = (nn.TransformerEncoder, nn.TransformerEncoderLayer, nn.MultiheadAttention)


@dataclass(eq=False)
class _Running:
    """A module whose forward is running."""

    module: nn.Module
    name: str
    place: Place | None = None
    x: Tensor | None = None
    off: Any = None


class Recorder:
    """Notes every place that drops while :meth:`watching`.

    Args:
        model: whose modules give the names.
        snapshot: that copies what an op is about to write to; None if nothing is to be restored.
        thorough: keep the first bits of each mask, and call a fused kernel that is said to drop
            a second time to see whether it does.
        listener: told of every step, for those who follow the data; None for nobody.

    Attributes:
        places: by what tells them apart, in the order in which they first ran.
        fast: names of the modules that took torch's fast path.
        output: of the forward, once it has run.
        draws: random tensors on their way to a mask; a probe has one for all its forwards.
        outside: modules of random numbers that are not torch's and were drawn from.
    """

    def __init__(
        self,
        model: nn.Module,
        snapshot: Snapshot | None = None,
        *,
        thorough: bool = False,
        listener: Listener | None = None,
    ) -> None:
        self.places: dict[tuple[object, ...], Place] = {}
        self.output: Any = None
        self.outside: list[str] = []
        self.fast: set[str] = set()
        self.listener = listener
        self.stack: list[_Running] = []
        self._names: dict[int, list[str]] = {}
        for name, module in model.named_modules(remove_duplicate=False):
            self._names.setdefault(id(module), []).append(plain(name))
        self._kinds: dict[int, str | None] = {}
        self._snapshot, self._hash, self._twice = snapshot, thorough, thorough
        self.draws = Draws()
        self._decided: set[int] = set()  # draws of one number that have decided what code runs
        self._own = 0  # numbers of the draws of fused ops, downwards
        self._scope: Place | None = None  # the site that is running: what it calls belongs to it
        self._thread = threading.get_ident()

    @contextmanager
    def watching(self) -> Iterator[Recorder]:
        """Watch what this thread runs inside the block."""
        with ExitStack() as stack:
            self._thread = threading.get_ident()
            hooks = nn.modules.module
            for handle in (
                hooks.register_module_forward_pre_hook(self._enter),
                hooks.register_module_forward_hook(self._leave, always_call=True),
            ):
                stack.callback(handle.remove)
            stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", ".*when there are global hooks on modules")
            stack.enter_context(_Functions(self))
            stack.enter_context(_Ops(self))
            stack.callback(self._unwind)
            yield self

    def _unwind(self) -> None:
        while self.stack:
            self._close(self.stack.pop())
        self._scope = None

    # What the hooks see.

    def _enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if threading.get_ident() != self._thread:
            return
        running = _Running(module, self._name(module))
        self.stack.append(running)
        if self.listener is not None:
            self.listener.enter(running.name, module, args)
        fast = isinstance(module, _FAST_MODULES) and not module.training
        if not torch.is_grad_enabled():
            if fast:
                running.off = torch._C.DisableTorchFunction()
            elif any(above.off is not None for above in self.stack[:-1]):
                running.off = torch._C._EnableTorchFunction()
            if running.off is not None:
                running.off.__enter__()
        if self._scope is not None:
            return
        if id(module) not in self._kinds:
            self._kinds[id(module)] = kind_of(module)
        kind = self._kinds[id(module)]
        if kind is not None:
            key = ("module", running.name)
            place = self._place(key, running.name, module, "module", kind, self.stack[:-1])
            p = getattr(module, rate_attribute(module) or "p", None)
            running.place, self._scope = place, place
            flat = (arg for arg in args if isinstance(arg, Tensor) and not arg.is_nested)
            running.x = x = next(flat, None)
            call = Asked(p, module.training, getattr(module, "inplace", False))
            self._open(place, args, call, None if x is None else tuple(x.shape))

    def _leave(self, module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        if threading.get_ident() != self._thread:
            return
        while self.stack:  # those above it ended in an exception without a call of this hook
            running = self.stack.pop()
            self._close(running, out)
            if running.module is module:
                return

    def _close(self, running: _Running, out: Any = None) -> None:
        if running.off is not None:
            running.off.__exit__(None, None, None)
        place = running.place
        if place is None:
            return
        self._scope = None
        if not place.draws and isinstance(out, Tensor) and running.x is not None:
            compare(place, running.x, out)

    # What the modes see.

    def function(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a function of torch's API; a dropping one is a site, unless it belongs to one."""
        kind = CALLS.get(func)
        if func in _LISTS and self.stack:
            made = self.draws.read(args[0])
            if made is not None:
                self._apply(made)
        if kind is None or not self.stack:
            return func(*args, **kwargs)
        call = asked(func, args, kwargs, self.stack[-1].module)
        place, opened = self._scope, False
        if place is None:
            place, opened = self._called(kind, getattr(func, "__name__", kind)), True
            self._open(place, args, call, dropped_from(func, args))
            self._scope = place
        try:
            if call.training and call.p == 1.0:
                place.on = True
            return func(*args, **kwargs)
        finally:
            if opened:
                self._scope = None

    def op(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an op; note what it draws and where random bits meet a tensor."""
        if self._snapshot is not None:
            for value in writes(func, args, kwargs):
                self._snapshot.before_write(value, in_forward=bool(self.stack))
        out = func(*args, **kwargs)
        if self.stack:
            out = self._note(func, args, kwargs, out)
        if self.listener is not None:
            self.listener.op(func, args, out)
        return out

    def _note(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
        """Note what an op drops; return its result, in a probe of a decision the likelier one.

        So every layer runs that LayerDrop would leave out now and then.
        """
        if self._scope is None and torch._C._current_graph_task_id() != -1:
            return out  # the forward computes a gradient, and meets its masks again on the way back
        if func is DROP:
            self._note_own(args)
        elif func in _NATIVE:
            if args[2] is not False and args[1]:
                self._own -= 1
                draw = Draw(self._own, "bits", args[0].numel(), 1.0 - args[1])
                share = dropped_share(out[1] == 0) if not out[1].is_nested else None
                self._apply(Application(draw, args[0], out[1], args[1], share, out[0], func))
        elif func in _FAST:
            self.fast.add(self.stack[-1].name)
        else:
            p = dropping_argument(func, args, kwargs)
            if p:
                place = self._scope or self._called("attention", func._schema.name.split("::")[1])
                if self._scope is None:
                    self._open(place, args, Asked(p, True), None)
                place.on = True
                if self._twice:
                    place.on = not _same(out, func(*args, **kwargs))
                return out
            made = self.draws.see(func, args, kwargs, out)
            if made is not None:
                self._apply(made)
                if made.x is None and made.draw.true is not None and self._snapshot is not None:
                    return type(out)(made.draw.true >= 0.5)
            elif func in NORMAL and self._scope is not None and self._scope.kind == "gaussian":
                self._scope.on = True
        return out

    def _note_own(self, args: tuple[Any, ...]) -> None:
        """Note what the op of this package drops: its mask is known from its address."""
        x, *packed, rate, p, law = args
        place = self._scope
        if place is None:
            function = own_function()
            place = self._called(OWN.get(function, "dropout"), function)
            rate_held = p if rate is None else int(rate[1]) / 2 ** int(rate[0])
            self._open(place, args, Asked(rate_held, True), tuple(x.shape))
        place.on = True
        if law == "gaussian":
            place.kind = "gaussian"
            return
        address = Packed(*packed).unpack()
        mask = backends.keep_mask(
            *(address.mask_key, p if rate is None else rate, x.shape),
            shared_dims=address.shared_dims,
            batch_dim=address.batch_dim,
            rows=address.rows,
            block=address.block,
            device=x.device,
        )
        self._own -= 1
        place.draws.add(self._own)
        draw = Draw(self._own, "bits", mask.numel())
        dropped = 1.0 - int(mask.sum()) / max(mask.numel(), 1)
        self._measure(place, Application(draw, x, mask, None, dropped, None, DROP))

    # Where it belongs.

    def _apply(self, made: Application) -> None:
        if self._scope is None and made.draw.scale is None and made.dropped == 0.0:
            return  # it need not be a mask; in a site that drops it is one, and nothing fell to it
        if made.x is None and made.draw.size == 1:
            if made.draw.number in self._decided:
                return  # one random number that several lines read
            self._decided.add(made.draw.number)
        place = self._scope or self._by_hand(made)
        fresh = made.draw.number not in place.draws
        if self._scope is None:
            if fresh:
                place.calls += 1
            place.ask(made.p)
        place.draws.add(made.draw.number)
        if made.p is None or made.p > 0.0:
            place.on = True
        if fresh and made.x is not None:
            self._measure(place, made)
        if self.listener is not None:
            self.listener.apply(place, made)

    def _by_hand(self, made: Application) -> Place:
        """Return the place of a mask that no known module or function makes."""
        running = self.stack[-1]
        kind = "layer_drop" if made.x is None else "subset" if made.func in PICK else "mask"
        module = running.module
        if not module._modules and not module._parameters and made.x is not None:
            key: tuple[object, ...] = ("module", running.name)
            place = self._place(key, running.name, module, "module", kind, self.stack[:-1])
        else:
            source = call_line(parents(self.stack))
            key = ("mask", running.name, source)
            place = self._place(key, running.name, module, "mask", kind, None, source)
        if kind == "mask" and made.mask is not None and made.x is not None:
            place.kind = kind_of_mask(made.x, made.mask)
        place.modes.append(running.module.training)
        return place

    def _measure(self, place: Place, made: Application) -> None:
        x, mask = made.x, made.mask
        if x is not None and x.is_nested:
            return
        if x is not None and (place.shape is None or place.kind in ("attention", "rnn")):
            place.shape = tuple(x.shape)
        if mask is not None and x is not None:
            added = x.dim() - len(place.shape or x.shape)  # dims that the function puts in front
            shared = shared_dims(tuple(x.shape), mask)
            if added == 0 or place.shape == tuple(x.shape[added:]):  # else of another call
                place.shared_dims = tuple(dim - added for dim in shared if dim >= added)
            if made.dropped is not None:
                bits = min(made.draw.size, mask.numel())  # the mask may be a slice of the draw
                if isinstance(place.module, ThinnedDropout):
                    bits = mask.numel()  # all of a subset come from one ticket
                place.bits += bits
                place.dropped += made.dropped * bits
            if self._hash and made.draw.size >= _TELLING:
                some = mask.reshape(-1)[:: max(1, mask.numel() // 4096)]
                place.masks.append(bytes((some != 0).cpu().numpy()))

    def _called(self, kind: str, function: str) -> Place:
        """Return the place of a function call in the code of the module that is running."""
        running = self.stack[-1]
        module = running.module
        if isinstance(module, (nn.MultiheadAttention, nn.RNNBase)) and kind in ("attention", "rnn"):
            key: tuple[object, ...] = ("module", running.name)
            place = self._place(key, running.name, module, "attribute", kind, self.stack[:-1])
        else:
            source = call_line(parents(self.stack))
            key = ("call", running.name, function, source, origin())
            place = self._place(key, running.name, module, "call", kind, None, source)
        place.function = function
        return place

    def _place(
        self,
        key: tuple[object, ...],
        name: str,
        module: nn.Module,
        via: Via,
        kind: str,
        above: list[_Running] | None,
        source: str | None = None,
    ) -> Place:
        place = self.places.get(key)
        if place is None:
            if above is not None:
                source = call_line(parents(above))
            place = Place(key, name, module, via, kind, source)
            if any(id(running.module) in self._names for running in self.stack):
                self.places[key] = place  # else it is of another model
        return place

    def _open(
        self, place: Place, args: tuple[Any, ...], call: Asked, shape: tuple[int, ...] | None
    ) -> None:
        place.calls += 1
        place.ask(call.p)
        place.modes.append(place.module.training)
        x = next((arg for arg in args if isinstance(arg, Tensor)), None)
        place.shape = place.shape or shape
        if call.training and is_number(call.p) and call.p > 0.0:
            place.wanted = True
            if self.listener is not None and x is not None:
                self.listener.open(place, x, call.inplace)

    def _name(self, module: nn.Module) -> str:
        """Return the name of a module; of several the one under the module that runs it."""
        names = self._names.get(id(module))
        above = self.stack[-1].name if self.stack else ""
        if names is None:
            return f"{above}.<{type(module).__name__}>".removeprefix(".")
        if len(names) > 1:
            for running in reversed(self.stack):
                under = f"{running.name}." if running.name else ""
                inside = [name for name in names if name.startswith(under)]
                if inside:  # its own child, or else the first
                    return min(inside, key=lambda name: "." in name[len(under) :])
        return names[0]


class _Functions(TorchFunctionMode):
    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return self._recorder.function(func, args, kwargs or {})


class _Ops(TorchDispatchMode):
    supports_higher_order_operators = True

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._recorder = recorder

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return self._recorder.op(func, args, kwargs or {})


def _same(one: Any, other: Any) -> bool:
    pairs = zip(tree_leaves(one), tree_leaves(other), strict=True)
    return all(
        torch.equal(a, b) for a, b in pairs if isinstance(a, Tensor) and a.is_floating_point()
    )


def plain(name: str) -> str:
    """Return a qualified name without what a compiler adds to it."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")
