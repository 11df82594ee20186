"""disabled: for the time of a block nothing drops."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from .. import _checks
from .._rates import rates
from . import _hooks, _modes
from ._change import Held, silent
from ._unreached import has_code

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from .._rates import Rate

_lock = threading.Lock()


@contextmanager
def disabled(model: nn.Module) -> Iterator[nn.Module]:
    """Let nothing drop in a model within a block, in training mode too.

    All rates are 0: those of layers, and those that are float attributes. Calls of dropping
    functions in the forward of the model, or of a part of it that is called by itself, get a rate
    of 0 too, also where it stands in the source, as in ``F.dropout(x, 0.5)`` and
    ``scaled_dot_product_attention(dropout_p=0.1)``. At the end everything is as before, also after
    an exception. Modes are left alone: ``model.train()`` within the block brings no dropout back.
    Blocks may be nested.

    What it does not reach: masks that a forward makes by hand from ``torch.rand`` with a rate in
    the source, kernels of other packages that are called with one, such calls in a method that is
    no forward, as in the ``training_step`` of Lightning, and those of the very forward that opens
    the block by ``disabled(self)``.

    A model without dropout is fine. One whose forward is its own code and holds
    ``torch.nn.TransformerEncoder`` leaves its fast path for the time, so that its outputs in
    evaluation may differ by a rounding. Where activation checkpoints repeat the forward, backward
    belongs into the block. Compiled code is compiled once more. A copy that is made in the block
    keeps the rates of 0.

    Args:
        model: any module.

    Yields:
        The model.

    Raises:
        TypeError: ``model`` is no module, or part of it is scripted.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Dropout(0.5)).train()
        >>> with sitout.disabled(model):
        ...     model(torch.ones(3))
        tensor([1., 1., 1.])
        >>> model[0].p
        0.5
    """
    _check(model)
    held: list[tuple[int, str]] = []
    remove = None
    try:
        _silence(list(rates(model)), held)
        # A mode where none is needed would keep torch's transformers from their fast path.
        if any(has_code(module) for module in model.modules()):
            remove = _hooks.install(model, _modes.Zero, has_code)
        yield model
    finally:
        if remove is not None:
            remove()
        _release(held)


def _check(model: object) -> None:
    if not isinstance(model, torch.nn.Module):
        raise TypeError(_checks.message("`model` of disabled", "a torch.nn.Module", model))
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            got, way_out = f"{module.original_name} at {name!r}", "Use model.eval()."
            raise TypeError(_checks.message("`model` of disabled", "not scripted", got, way_out))


def _silence(places: list[Rate], keys: list[tuple[int, str]]) -> None:
    """Set rates to 0, and note the keys of their places."""
    with _lock:
        for rate in places:
            held = silent.setdefault(rate.key, Held(rate, rate.keep()))
            held.blocks += 1
            keys.append(rate.key)
            if held.blocks == 1:
                rate.p = 0.0


def _release(keys: list[tuple[int, str]]) -> None:
    """Bring back the rates that no other block holds."""
    with _lock:
        for key in keys:
            held = silent[key]
            held.blocks -= 1
            if held.blocks == 0:
                silent.pop(key).back()
