"""The hooks that put a function mode in force while modules are in their forward."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.overrides import _get_current_function_mode, _pop_mode

from ._modes import Family

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._modes import Mode


def install(
    model: nn.Module, made: type[Mode], needs: Callable[[nn.Module], bool]
) -> Callable[[], None]:
    """Put modes in force while modules of a model are in their forward; return the way back.

    The root gets one, and each module that may be called beside the forward of the root and needs
    one. The hooks hold the mode and no module, so that a copy of the module has hooks of its own.

    Args:
        model: the root.
        made: makes the mode of a module.
        needs: whether a module calls what the mode changes.
    """
    family = Family()
    handles = []
    for module in _entries(model, needs):
        mode = made(family)
        before = partial(_enter, mode)
        handles.append(module.register_forward_pre_hook(before, prepend=True))
        handles.append(module.register_forward_hook(partial(_leave, mode), always_call=True))

    def remove() -> None:
        for handle in handles:
            handle.remove()
        # A forward that Ctrl-C has interrupted ran no hooks at its end.
        while family.has(_get_current_function_mode()):  # type: ignore[no-untyped-call]
            _pop_mode()  # type: ignore[no-untyped-call]

    return remove


def _entries(model: nn.Module, needs: Callable[[nn.Module], bool]) -> list[nn.Module]:
    """Return the root and the modules that get hooks of their own.

    A hook within ``nn.TransformerEncoderLayer`` would keep that from its fast path: what is around
    it gets one instead. So does a compiled module, for its code does not see hooks come and go.
    """
    modules = list(model.modules())
    layers = [one for one in modules if isinstance(one, nn.TransformerEncoderLayer)]
    closed = {id(inner) for layer in layers for inner in layer.modules()}
    needy = {id(one) for one in modules if needs(one)}
    found = []
    for module in modules:
        if module is not model and (id(module) in closed or _is_scripted(module)):
            continue
        around = _is_compiled(module) or any(id(one) in closed for one in _called(module))
        inner = {id(one) for one in module.modules()} if around else {id(module)}
        if module is model or inner & needy:
            found.append(module)
    return found


def _called(module: nn.Module) -> list[nn.Module]:
    """Return the children of a module, and of its lists in the place of these."""
    lists = (nn.ModuleList, nn.ModuleDict)
    found: list[nn.Module] = []
    for child in module.children() if not isinstance(module, lists) else ():
        found += child.children() if isinstance(child, lists) else [child]
    return found


def _is_scripted(module: nn.Module) -> bool:
    return isinstance(module, torch.jit.ScriptModule)


def _is_compiled(module: nn.Module) -> bool:
    return "_orig_mod" in module._modules or module._compiled_call_impl is not None


def _enter(mode: Mode, module: nn.Module, args: Any) -> None:
    """Forward pre-hook: put a mode in force where none of its family is.

    A mode that is the last one comes again, as its module does; then each end finds its own.
    """
    inside = mode.is_in_force()
    mode.note(module, inside)
    last = _get_current_function_mode() is mode  # type: ignore[no-untyped-call]
    if last or (not inside and mode.starts(module)):
        mode.__enter__()  # type: ignore[no-untyped-call]


def _leave(mode: Mode, module: nn.Module, args: Any, output: Any) -> None:
    mode.forget()
    if _get_current_function_mode() is mode:  # type: ignore[no-untyped-call]
        _pop_mode()  # type: ignore[no-untyped-call]


def keep_from_dynamo(function: Any) -> None:
    """Let a hook of a compiled root run as it is; within compiled code it is traced all the same.

    Dynamo would compile it by itself, anew for each model and each shape, and give up after 8.
    """
    frames = torch._C._dynamo.eval_frame
    skip = frames._FrameAction.SKIP
    frames.set_code_exec_strategy(function.__code__, frames._FrameExecStrategy(skip, skip))


keep_from_dynamo(_enter)
keep_from_dynamo(_leave)
