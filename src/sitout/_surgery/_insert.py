"""insert: a dropout layer behind or before modules of a model."""

from __future__ import annotations

import warnings
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .. import _checks
from .. import nn as sitout_nn
from .._rates import compiled
from .._source import reads
from .._where import Where, fitting, nothing_found
from ._change import Change, Edit, check_model
from ._hooks import keep_from_dynamo

if TYPE_CHECKING:
    from collections.abc import Callable

_UNCALLED = nn.modules.linear.NonDynamicallyQuantizableLinear  # MultiheadAttention.out_proj
_LOOPS = {"children", "named_children", "modules", "named_modules", "_modules"}
_LISTS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


def insert(
    model: nn.Module,
    p: float,
    where: Where,
    *,
    position: str = "after",
    layer: Callable[[float], nn.Module] = sitout_nn.Dropout,
) -> Change:
    """Add a dropout layer behind the output, or before the input, of some modules.

    The layer becomes a child of the module, so it follows ``train()`` and ``eval()``, a
    :class:`sitout.MaskClock` finds it, and no parameter changes its name. A hook calls it. Of an
    ``nn.Sequential`` the last or the first of its children takes it, which comes to the same.

    The layer gets the output if it is a tensor, the first item if it is a tuple or a list (as of
    ``nn.LSTM`` and ``nn.MultiheadAttention``); before a module, the first argument. Other outputs
    raise in the forward.

    Insert first, then compile: code that was compiled before does not see new hooks. A layer
    within ``nn.TransformerEncoder`` keeps that from its fast path, with results that may differ by
    a rounding in evaluation.

    Args:
        model: any module.
        p: drop rate, a fraction in [0, 1].
        where: a glob on the qualified name (``"encoder.*.mlp.fc1"``; ``*`` matches dots too), a
            type, a predicate of (name, module), or several of these.
        position: ``"after"`` or ``"before"``.
        layer: makes a layer from its rate, such as ``sitout.nn.DropPath``.

    Returns:
        The names of the new layers, and ``undo``.

    Raises:
        TypeError: ``where`` is None or something else, or ``layer`` makes no module.
        ValueError: ``p`` is not in [0, 1], nothing fits ``where``, or what fits is a container
            that has no forward of its own, or a module whose forward goes over its children; or
            the model is compiled.
        RuntimeError: :func:`sitout.disabled` is in force.

    Warns:
        UserWarning: ``where`` fits the ``out_proj`` of ``nn.MultiheadAttention``, whose forward is
            never called. It is left out.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
        >>> sitout.insert(model, 0.1, "0").sites
        ['0.dropout_after']
        >>> list(model.state_dict())
        ['0.weight', '0.bias', '1.weight', '1.bias']
    """
    check_model(model, "insert")
    _checks.choice(position, ("after", "before"), "`position` of insert")
    _checks.rate(p, "insert")
    _check_eager(model)
    made = [(name, module, _made(layer, p)) for name, module in _targets(model, where, position)]
    sites, edits = [], []
    for name, module, new in made:
        child = _free_name(module, f"{type(new).__name__.lower()}_{position}")
        sites.append(f"{name}.{child}" if name else child)
        edits.append(_add(module, child, new, position, sites[-1]))
    return Change("insert", model, sites, [], edits)


def _check_eager(model: nn.Module) -> None:
    name = compiled(model)
    if name is not None:
        rule, way_out = "free of compiled modules", "Compiled code sees no new hooks: insert first."
        got = f"{type(model.get_submodule(name)).__name__} at {name!r}"
        raise ValueError(_checks.message("`model` of insert", rule, got, way_out))


def _targets(model: nn.Module, where: Where, position: str) -> list[tuple[str, nn.Module]]:
    """Return the modules that get a layer, each once, with its first name."""
    if where is None:
        rule = "a glob, a type of module, a predicate (name, module) -> bool, or several of them"
        raise TypeError(_checks.message("`where` of insert", rule, where))
    fits = fitting(model, where, "insert")
    named = dict(model.named_modules(remove_duplicate=False))
    found: dict[int, tuple[str, nn.Module]] = {}
    uncalled = []
    for name, module in named.items():
        if fits(name, module) and isinstance(module, _UNCALLED):
            uncalled.append(name)
        elif fits(name, module):
            name, module = _called(model, name, module, position)
            found.setdefault(id(module), (name, module))
    if uncalled:
        warnings.warn(
            f"insert leaves out {uncalled[0]!r}{' and others' if uncalled[1:] else ''}: "
            "nn.MultiheadAttention reads its weights and never calls it. Insert after the "
            "attention itself.",
            stacklevel=3,
        )
    if not found:
        raise nothing_found(where, "insert", "a module that is called", named)
    return list(found.values())


def _called(model: nn.Module, name: str, module: nn.Module, position: str) -> tuple[str, nn.Module]:
    """Return the module that takes the layer: of a Sequential one of its children.

    Raises:
        ValueError: it has no forward that takes a hook, or would take it elsewhere too.
    """
    problem = ""
    while isinstance(module, _LISTS) and not problem:
        children = list(module._modules.items())
        if not children or type(module).forward is not nn.Sequential.forward:
            problem = "whose children are called by others. Say its children"
            break
        child, inner = children[-1 if position == "after" else 0]
        name = f"{name}.{child}" if name else child
        if inner is None or _places(model, inner) > 1:
            problem = "that has other places too. Give each place a module of its own"
        module = inner or module
    if _goes_over_children(module):
        problem = "whose forward goes over its children, and so would call the layer too. Say these"
    if isinstance(module, torch.jit.ScriptModule):
        problem = "that is scripted. Insert before torch.jit.script"
    if problem:
        rule, got = "that of modules that take a hook", f"{type(module).__name__} at {name!r}"
        raise ValueError(_checks.message("`where` of insert", rule, got, f"It is one {problem}."))
    return name, module


def _goes_over_children(module: nn.Module) -> bool:
    """Return whether the layer, which becomes a child, would be called as one."""
    made = type(module)
    return not made.forward.__module__.startswith("torch.nn.") and bool(_LOOPS & reads(made))


def _places(model: nn.Module, module: nn.Module) -> int:
    return sum(child is module for parent in model.modules() for child in parent._modules.values())


def _made(layer: Callable[[float], nn.Module], p: float) -> nn.Module:
    made: object = layer(p)
    if not isinstance(made, nn.Module):
        what, rule = "`layer` of insert", "what makes a torch.nn.Module from a rate"
        raise TypeError(_checks.message(what, rule, layer))
    return made


def _free_name(module: nn.Module, name: str) -> str:
    names = [name, *(f"{name}_{n}" for n in range(2, len(module._modules) + 3))]
    return next(one for one in names if not hasattr(module, one))


def _add(module: nn.Module, child: str, layer: nn.Module, position: str, site: str) -> Edit:
    """Give a module the layer as a child, and the hook that calls it.

    The hook knows the name alone, so that in a copy it calls the layer of the copy.
    """
    module.add_module(child, layer.train(module.training))
    if position == "after":
        handle = module.register_forward_hook(partial(_after, child))
    else:
        handle = module.register_forward_pre_hook(partial(_before, child), with_kwargs=True)

    def back() -> None:
        handle.remove()
        del module._modules[child]

    places = ((id(module), child), (id(layer), None))
    return Edit(site, places, back, lambda: module._modules.get(child) is layer)


def _after(child: str, module: nn.Module, args: Any, output: Any) -> Any:
    """Forward hook: drop from the output."""
    layer: Any = module._modules[child]
    if isinstance(output, Tensor):
        return layer(output)
    if isinstance(output, (tuple, list)) and output and isinstance(output[0], Tensor):
        items = (layer(output[0]), *output[1:])
        return type(output)(*items) if hasattr(output, "_fields") else type(output)(items)
    raise _unfit("output", module, output)


def _before(child: str, module: nn.Module, args: Any, kwargs: Any) -> Any:
    """Forward pre-hook: drop from the first argument."""
    layer: Any = module._modules[child]
    if args and isinstance(args[0], Tensor):
        return (layer(args[0]), *args[1:]), kwargs
    first = next(iter(kwargs), "")
    if not args and isinstance(kwargs.get(first), Tensor):
        return args, {**kwargs, first: layer(kwargs[first])}
    raise _unfit("input", module, args[0] if args else kwargs)


keep_from_dynamo(_after)
keep_from_dynamo(_before)


def _unfit(side: str, module: nn.Module, got: object) -> TypeError:
    what = f"The {side} of {type(module).__name__}, which has an inserted layer,"
    rule = "a tensor, or a tuple that starts with one" if side == "output" else "a tensor"
    way_out = "Insert at a module inside or around it."
    return TypeError(_checks.message(what, rule, type(got).__name__, way_out))
