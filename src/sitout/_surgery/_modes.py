"""Function modes: what torch's dropping functions do while a model is in its forward."""

from __future__ import annotations

import threading
import warnings
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from .. import functional

if TYPE_CHECKING:
    from .._source import Call


class Family:
    """What the modes of one model have in common: one of them in force is enough.

    Attributes:
        starts: the activation checkpoint and whether gradients were on where a module began its
            forward, with its mode; of each thread, the innermost last.
    """

    def __init__(self) -> None:
        self.starts: dict[int, list[tuple[Mode, int, bool]]] = {}

    def __reduce__(self) -> Any:
        return type(self), ()

    def has(self, mode: object) -> bool:
        """Return whether a mode is one of these."""
        return isinstance(mode, Mode) and mode.family is self


class Mode(TorchFunctionMode):
    """What is in force while a module is in its forward. A copy of the module has its own."""

    def __init__(self, family: Family | None = None) -> None:
        super().__init__()
        self.family = family or Family()

    def __reduce__(self) -> Any:
        return type(self), (self.family,)

    def is_in_force(self) -> bool:
        """Return whether a mode of this family is."""
        return any(self.family.has(one) for one in _get_current_function_mode_stack())  # type: ignore[no-untyped-call]

    def starts(self, module: nn.Module) -> bool:
        """Return whether a forward of a module is to be watched."""
        return True

    def note(self, module: nn.Module, inside: bool) -> None:
        """Keep what holds where a module begins its forward."""

    def forget(self) -> None:
        """Drop what :meth:`note` has kept."""


class Zero(Mode):
    """Calls of dropping functions get a rate of 0."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _RATE_AT:
            args, kwargs = _without_rate(func, args, kwargs)
        return func(*args, **kwargs)


class Ours(Mode):
    """Calls of torch's dropout functions go to those of sitout, in training.

    Not in evaluation, for a mode keeps torch's transformers from their fast path.
    """

    def starts(self, module: nn.Module) -> bool:
        """Return whether the module trains."""
        return module.training

    def note(self, module: nn.Module, inside: bool) -> None:
        """Keep what holds where a module that trains begins its forward.

        Where a checkpoint repeats that forward, this mode is in force again.
        """
        if torch.compiler.is_compiling():
            return
        starts = self.family.starts.setdefault(threading.get_ident(), [])
        if not inside:
            starts.clear()
        if module.training or not starts:
            starts.append((self, _checkpoint(), torch.is_grad_enabled()))
        else:
            starts.append((self, *starts[-1][1:]))

    def forget(self) -> None:
        """Drop what :meth:`note` has kept."""
        if torch.compiler.is_compiling():
            return
        starts = self.family.starts.get(threading.get_ident())
        if starts and starts[-1][0] is self:
            starts.pop()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _OURS or self._is_repeated(func):
            return func(*args, **kwargs)
        return _drop(func, args, kwargs)

    def _is_repeated(self, func: Any) -> bool:
        """Return whether backward repeats this call, outside of the forward and so of this mode."""
        if torch.compiler.is_compiling():
            return False
        now = _checkpoint()
        starts = self.family.starts.get(threading.get_ident())
        start, grad = starts[-1][1:] if starts else (now, False)
        # A reentrant checkpoint runs its function without gradients.
        if now in (0, start) and (torch.is_grad_enabled() or not grad):
            return False
        warnings.warn(
            f"{func.__name__} in an activation checkpoint or under no_grad, within the forward of "
            "a model, stays torch's own: backward would repeat it with another mask. Use a layer "
            "of sitout.nn there, or checkpoint the whole model.",
            stacklevel=5,
        )
        return True


def _checkpoint() -> int:
    """Return the id of the activation checkpoint that is in force; 0 without one."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)
    is_one = hooks is not None and hooks[0].__module__ == "torch.utils.checkpoint"
    return id(hooks[0]) if is_one else 0


# Where the rate stands among the arguments, and its name.
_RATE_AT: dict[Any, tuple[int, str]] = {
    F.scaled_dot_product_attention: (4, "dropout_p"),
    F.multi_head_attention_forward: (10, "dropout_p"),
    torch.ops.sitout.drop.default: (8, "p"),
    **dict.fromkeys((torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu), (5, "dropout")),
    **dict.fromkeys(
        (
            *(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d),
            *(F.alpha_dropout, F.feature_alpha_dropout),
            *(torch.dropout, torch.dropout_, torch.native_dropout),
            *(torch.feature_dropout, torch.feature_dropout_),
            *(torch.alpha_dropout, torch.alpha_dropout_),
            *(torch.feature_alpha_dropout, torch.feature_alpha_dropout_),
            *(torch.ops.aten.dropout, torch.ops.aten.dropout.default),
            *(torch.ops.aten.native_dropout, torch.ops.aten.native_dropout.default),
        ),
        (1, "p"),
    ),
}


def _without_rate(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a call with 0 in the place of its rate."""
    at, name = _RATE_AT[func]
    if func is torch.ops.sitout.drop.default:
        args = (*args[:7], None, *args[8:])  # a rate as data goes before p
    elif name == "dropout" and not isinstance(args[3], bool):
        at += 1  # a packed sequence brings its batch sizes
    if len(args) > at:
        return (*args[:at], 0.0, *args[at + 1 :]), kwargs
    return args, {**kwargs, name: 0.0}


# Ours for theirs, by the number of dims where they are told apart by it; what training is where
# the call does not say; and whether it works in place.
_1D, _2D, _3D = functional.dropout1d, functional.dropout2d, functional.dropout3d
_BY_RANK = {3: _1D, 4: _2D, 5: _3D}
_OURS: dict[Any, tuple[Any, bool, bool]] = {
    F.dropout: (functional.dropout, True, False),
    F.dropout1d: ({2: _1D, 3: _1D}, True, False),
    F.dropout2d: ({4: _2D}, True, False),
    F.dropout3d: ({4: _3D, 5: _3D}, True, False),
    F.alpha_dropout: (functional.alpha_dropout, False, False),
    F.feature_alpha_dropout: (functional.feature_alpha_dropout, False, False),
    torch.dropout: (functional.dropout, True, False),
    torch.dropout_: (functional.dropout, True, True),
    torch.feature_dropout: (_BY_RANK, True, False),
    torch.feature_dropout_: (_BY_RANK, True, True),
    torch.alpha_dropout: (functional.alpha_dropout, True, False),
    torch.alpha_dropout_: (functional.alpha_dropout, True, True),
    torch.feature_alpha_dropout: (functional.feature_alpha_dropout, True, False),
    torch.feature_alpha_dropout_: (functional.feature_alpha_dropout, True, True),
}
_NAMES = {function.__name__ for function in _OURS}


def reaches(call: Call) -> bool:
    """Return whether a call in the source goes to ours."""
    return call.function in _NAMES and call.home.split(".")[0] == "torch"


def _drop(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Do what a function of torch does with ours; ranks that ours refuses stay with torch."""
    ours, trains, writes = _OURS[func]
    x, p, training, inplace = _arguments(*args, **kwargs)
    if isinstance(ours, dict):
        ours = ours.get(x.dim())
    if ours is None:
        return func(*args, **kwargs)
    return ours(x, p, trains if training is None else training, inplace or writes)


def _arguments(
    input: Tensor,  # noqa: A002
    p: float = 0.5,
    training: bool | None = None,
    inplace: bool = False,
    *,
    train: bool | None = None,
) -> tuple[Tensor, float, bool | None, bool]:
    """Take the arguments of ``F.dropout`` or ``torch.dropout``, by place or by name."""
    return input, p, training if train is None else train, inplace
