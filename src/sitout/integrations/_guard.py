"""The guard: is the dropout of a model active in a training step?"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import nn

from .. import _checks
from .._clock_rules import some
from .._rates import is_number, rates, readers
from ..schedules._places import above, in_compiled_code, places

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from .._rates import Rate
    from .._where import Where

_CAUSE = (
    "A call of eval() left it so, or a trainer that keeps the modes it finds, as Lightning does "
    "since 2.2. Call model.train() before training, or pass where= without what is to be silent."
)


@contextmanager
def guard(model: nn.Module, where: Where = None) -> Iterator[None]:
    """Raise if dropout that a model is configured with does not drop in a training step.

    Put it around the first step of a training loop. Guarded are the rates above 0: layers of
    torch, sitout, timm and others, and attributes such as ``MultiheadAttention.dropout``. At the
    end of the block each of them that has run must have run in training mode once, and at least
    one must have run at all. A frozen part may be in evaluation mode: a place is not guarded if the
    nearest module above it that has parameters has none that requires a gradient.

    While the block is open, guarded modules have a hook. In compiled code, where hooks would
    compile anew, the mode that the modules have at the end of the block counts instead.

    Args:
        model: that trains; the compiled one if you compile.
        where: which rates, as in :class:`sitout.schedules.RateScheduler`; all if None.

    Raises:
        RuntimeError: at the end of the block: dropout is silent.
        TypeError: ``model`` is no module, or ``where`` nothing that tells modules apart.
        ValueError: no rate fits ``where``.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.1)).eval()
        >>> with sitout.integrations.guard(model):
        ...     loss = model(torch.randn(2, 4)).sum()
        Traceback (most recent call last):
        RuntimeError: Configured dropout must be active in the first training step. Got '1.p' in ...
    """
    if not isinstance(model, nn.Module):
        raise TypeError(_checks.message("`model` of guard", "a torch.nn.Module", model))
    watch = Watch(model, where)
    try:
        yield
    finally:
        watch.close()
    watch.check()


class Watch:
    """Notes which places of a model run, and in which mode, until it is closed.

    Args:
        model: that trains.
        where: which rates; all if None.
        driven: paths of the rates that a schedule drives, which count at 0 too.
        compiled: all of the model is, although it does not show.
        one_forward: close when the forward of the model ends, also by an exception.
    """

    def __init__(
        self,
        model: nn.Module,
        where: Where = None,
        *,
        driven: Collection[str] = (),
        compiled: bool = False,
        one_forward: bool = False,
    ) -> None:
        self._handles: list[Any] = []
        self._modes: dict[str, list[bool]] = {}
        found = _configured(model, where, driven)
        hidden = [*found] if compiled else in_compiled_code(model, found.items())
        self._compiled = {path: found[path] for path in hidden}
        for path, rate in found.items():
            self._modes[path] = []
            if path not in self._compiled:
                self._handles += [
                    _note(m, self._modes[path]) for m in (rate.module, *readers(model, rate))
                ]
        if one_forward and self._handles:
            end = model.register_forward_hook(lambda *_: self.close(), always_call=True)
            self._handles.append(end)

    def close(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def check(self) -> None:
        """Close, and raise if dropout was silent.

        Raises:
            RuntimeError: it was.
        """
        self.close()
        for path, rate in self._compiled.items():
            self._modes[path].append(rate.module.training)
        silent = [path for path, modes in self._modes.items() if modes and not any(modes)]
        what = "Configured dropout must be active in the first training step."
        if silent:
            raise RuntimeError(f"{what} Got {some(silent)} in evaluation mode. {_CAUSE}")
        if self._modes and not any(self._modes.values()):
            raise RuntimeError(
                f"{what} Got no call of {some([*self._modes])}. Use it in the forward, or set its "
                "rate to 0. If the model is compiled, give the guard the compiled one."
            )


def _configured(model: nn.Module, where: Where, driven: Collection[str]) -> dict[str, Rate]:
    """Return the places whose dropout is to be active."""
    if where is None and next(rates(model), None) is None:  # nothing to guard
        return {}
    return {
        path: rate
        for path, rate in places(model, where, "guard").items()
        if (path in driven or (is_number(rate.p) and rate.p > 0)) and not _is_frozen(model, rate)
    }


def _is_frozen(model: nn.Module, rate: Rate) -> bool:
    """Return whether nothing learns in the nearest module around a place that has parameters."""
    for module in reversed(above(model, rate.name)):
        parameters = [*module.parameters()]
        if parameters:
            return not any(one.requires_grad for one in parameters)
    return False


def _note(module: nn.Module, modes: list[bool]) -> Any:
    """Note the mode of a module at each call."""
    return module.register_forward_pre_hook(lambda module, _: modes.append(module.training))
