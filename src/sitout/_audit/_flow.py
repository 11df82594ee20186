"""Follows the data of one training forward: what reaches a dropout, and what a dropout reaches."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from .._sites._flow import overloads
from .._sites._place import Listener

if TYPE_CHECKING:
    from types import FrameType

    from .._sites._draws import Application
    from .._sites._place import Place
    from .._sites._recorder import Recorder

_weak: Any = StorageWeakRef
_SELU = 1.6732632423543772


_ELU = overloads("elu", "elu_")
_WEIGHTS = overloads("addmm", "mm", "bmm", "baddbmm", "convolution", "_convolution", "linear")
SCALE = overloads("mul", "mul_", "div", "div_")
_ADD = overloads("add", "add_")
_SUM = overloads("sum", "mean", "index_add", "index_add_", "scatter_add", "scatter_add_")
_SHAPE = overloads(
    *("view", "_unsafe_view", "reshape", "transpose", "permute", "unsqueeze", "squeeze", "expand"),
    *("clone", "_to_copy", "detach", "alias", "t", "slice", "select", "contiguous"),
)


@dataclass(frozen=True)
class _Fact:
    """What is known of a tensor.

    Args:
        selu: it came out of a SELU.
        dropped: sites that it went through, with the number of weights since, and whether it was
            added to something else of its shape since.
        masked: the site whose mask was the last thing that it met.
        factor: of its kept elements by that mask.
        scaled: the numbers that it was multiplied by besides, each with the module that did it.
        written: the site that has dropped in place in it.
    """

    selu: bool = False
    dropped: tuple[tuple[Place, int, bool], ...] = ()
    masked: Place | None = None
    factor: float = 1.0
    scaled: tuple[tuple[str, float], ...] = ()
    written: Place | None = None


_NOTHING = _Fact()


@dataclass(eq=False)
class Flow(Listener):
    """What one training forward shows about its sites; the sites are places of the recorder.

    Attributes:
        after_selu: how often a site dropped from the output of a SELU, and from something else.
        before_norm: (site, name of a BatchNorm that it feeds, what lies between; "" for nothing).
        rows: (site, name of a layer over the last dim that follows): it dropped along a dim that
            is no channel.
        saved: (site, op) that drops in place in what the op saved for its gradient.
        reused: sites that drop in place in a tensor that is added to the result.
        factors: what a mask made by hand multiplies the kept elements by, and the numbers that
            they are multiplied by just before and after, each with the module that does it.
        recorder: that knows which module is running.
        no_rng: sites inside a checkpoint that does not restore the random generators.
        scalings: modules that multiply by a number, with the number.
    """

    after_selu: dict[Place, list[bool]] = field(default_factory=dict)
    before_norm: list[tuple[Place, str, str]] = field(default_factory=list)
    rows: list[tuple[Place, str]] = field(default_factory=list)
    saved: list[tuple[Place, str]] = field(default_factory=list)
    reused: list[Place] = field(default_factory=list)
    factors: dict[Place, tuple[float, tuple[tuple[str, float], ...]]] = field(default_factory=dict)
    recorder: Recorder | None = None
    no_rng: list[Place] = field(default_factory=list)
    scalings: list[tuple[str, float]] = field(default_factory=list)
    _facts: dict[int, tuple[Any, _Fact]] = field(default_factory=dict)
    _applied: Tensor | None = None
    _opened: Tensor | None = None
    _given: Tensor | None = None

    def of(self, value: object) -> _Fact:
        """Return what is known of a tensor."""
        if not isinstance(value, Tensor) or value.layout != torch.strided:
            return _NOTHING
        found = self._facts.get(value.untyped_storage()._cdata)
        return _NOTHING if found is None or found[0].expired() else found[1]

    def _learn(self, value: object, fact: _Fact) -> None:
        if isinstance(value, Tensor) and value.layout == torch.strided:
            storage = value.untyped_storage()
            if fact == _NOTHING:
                self._facts.pop(storage._cdata, None)
            else:
                self._facts[storage._cdata] = (_weak(storage), fact)

    def enter(self, name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        """See what a norm or a layer over the last dim gets."""
        x = next((arg for arg in args if isinstance(arg, Tensor)), None)
        if x is None:
            return
        if not name:
            self._given = x
        dropped = self.of(x).dropped
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for place, weights, summed in dropped:
                between = "one layer of weights" if weights else "a sum" if summed else ""
                self.before_norm.append((place, name, between))
        elif isinstance(module, (nn.Linear, nn.LayerNorm)) and x.dim() >= 3:
            self.rows += [
                (place, name)
                for place, weights, _ in dropped
                if not weights
                and place.kind in ("dropout1d", "dropout2d", "dropout3d", "feature_alpha")
                and place.shape == tuple(x.shape)
            ]

    def open(self, place: Place, x: Tensor, inplace: bool) -> None:
        """See what a site drops from."""
        if x is not self._given:  # else nobody knows where it comes from
            self.after_selu.setdefault(place, []).append(self.of(x).selu)
        self._opened = x
        if _is_checkpointed_without_rng() and place not in self.no_rng:
            self.no_rng.append(place)
        if inplace:
            op = _saver(x)
            if op is not None:
                self.saved.append((place, op))
            self._learn(x, replace(self.of(x), written=place))

    def apply(self, place: Place, made: Application) -> None:
        """See what a mask does to the tensor that it meets."""
        if not isinstance(made.out, Tensor):
            return
        before = self.of(made.x)
        factor, scaled = 1.0, () if before.masked is not None else before.scaled
        if made.mask is not None and made.func in SCALE and made.mask.numel():
            factor = float(made.mask.max())
        if factor:  # else all units dropped, and nothing shows the factor
            self.factors[place] = factor, scaled
        dropped = (*before.dropped, (place, 0, False))
        fact = _Fact(False, dropped, place, factor, scaled, before.written)
        self._learn(made.out, fact)
        self._applied = made.out

    def op(self, func: Any, args: tuple[Any, ...], out: Any) -> None:
        """Carry what is known of the inputs of an op over to its result."""
        if self._applied is not None and out is self._applied:
            self._applied = None
            return
        if func in _ELU:
            is_selu = len(args) > 1 and abs(float(args[1]) - _SELU) < 1e-6
            self._learn(out, _Fact(selu=is_selu, dropped=self.of(args[0]).dropped))
            return
        tensors = [arg for arg in args if isinstance(arg, Tensor)]
        number = args[1] if len(args) > 1 and isinstance(args[1], (int, float)) else None
        if func in SCALE and number:
            self._scale(args[0], out, number if "mul" in str(func) else 1.0 / number)
            return
        facts = [self.of(tensor) for tensor in tensors]
        if not any(fact != _NOTHING for fact in facts):
            return
        if func in _SHAPE:
            self._learn(out, facts[0])
            return
        if func in _ADD and len(tensors) > 1 and tensors[0].data_ptr() == tensors[1].data_ptr():
            written = facts[0].written
            if written is not None and written not in self.reused:
                self.reused.append(written)
        if tensors[0] is out and facts[0].masked is not None:
            return  # in place, as alpha dropout adds its shift
        same = func in _ADD and len({tensor.numel() for tensor in tensors}) < len(tensors)
        summed = same or func in _SUM
        self._learn(out, _Fact(dropped=_onwards(facts, func in _WEIGHTS, summed)))

    def _scale(self, x: Any, out: Any, number: float) -> None:
        """Take note of a factor, before a mask or after it."""
        fact = self.of(x)
        if x is self._opened and fact.masked is not None:  # the next site begins, by a number
            fact = replace(fact, masked=None, scaled=())
        where = self.recorder.stack[-1].name if self.recorder and self.recorder.stack else ""
        self.scalings.append((where, number))
        fact = replace(fact, scaled=(*fact.scaled, (where, number)), selu=False)
        if fact.masked in self.factors:
            self.factors[fact.masked] = fact.factor, fact.scaled
        self._learn(out, fact)


def _onwards(
    facts: list[_Fact], weights: bool, summed: bool
) -> tuple[tuple[Place, int, bool], ...]:
    """Return the sites behind a result; those two weights away are forgotten."""
    found: dict[Place, tuple[int, bool]] = {}
    for fact in facts:
        for place, between, before in fact.dropped:
            passed = between + weights, before or summed
            if passed[0] <= 1:
                found[place] = min(passed, found.get(place, passed))
    return tuple((place, *way) for place, way in found.items())


def _saver(x: Tensor) -> str | None:
    """Return the op that made a tensor and saved it, its own result, for the gradient."""
    made = x.grad_fn
    for name in dir(made) if made is not None else ():
        if name.startswith("_saved_result") or name == "_saved_output":
            saved = getattr(made, name)
            if isinstance(saved, Tensor) and saved.data_ptr() == x.data_ptr():
                return type(made).__name__.removesuffix("0").removesuffix("Backward")
    return None


def _is_checkpointed_without_rng() -> bool:
    """Return whether what runs now is inside a checkpoint with ``preserve_rng_state=False``."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_name == "checkpoint" and code.co_filename.endswith("utils/checkpoint.py"):
            return frame.f_locals.get("preserve") is False
        frame = frame.f_back
    return False
