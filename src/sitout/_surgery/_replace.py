"""replace: the dropout layers of a model become those of sitout."""

from __future__ import annotations

import torch
from torch import nn

from .. import _checks
from .._rates import kind_of
from ..nn._base import Site as Layer
from . import _hooks, _modes, _unreached
from ._change import Change, Edit, check_model
from ._counterpart import counterpart
from ._swap import swap


def replace(model: nn.Module, *, functional: bool = False) -> Change:
    """Put a layer of sitout in the place of each dropout layer of a model.

    It serves the six dropout layers of torch, ``DropPath`` of timm, ``StochasticDepth`` of
    torchvision and the ``...DropPath`` classes of Hugging Face. Rate, mode, ``inplace``, hooks and
    attributes go with the place, a shared layer stays shared, and parameters are not touched: the
    ``state_dict`` and the outputs in evaluation are the same to the bit.

    ``Change.unreached`` lists what drops elsewhere: float attributes that a kernel of torch reads,
    function calls that the source of a forward shows, layers with a forward of their own, and
    layers that a module also holds outside of its children, as in ``self.drops = [self.drop]``.

    Args:
        model: any module. If it is a dropout layer itself, ``Change.model`` is the new one.
        functional: send the calls of ``F.dropout``, ``F.dropout1d``, ``torch.dropout`` and the like
            to ``sitout.functional`` too, in this process, while the model runs its forward in
            training mode, or a part of it that makes such calls does.
            ``scaled_dot_product_attention`` and the recurrent kernels drop by themselves and stay.
            So do calls in a method that is no forward, such as the ``training_step`` of Lightning,
            unless a forward calls it; and where :func:`sitout.disabled` is opened within a
            forward, calls of that forward itself go on dropping.

    Returns:
        What was changed, with its ``undo``.

    Raises:
        TypeError: ``model`` is no module, or a rate no number.
        ValueError: there is nothing to replace, or a rate is not in [0, 1].
        RuntimeError: :func:`sitout.disabled` is in force.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.5))
        >>> with sitout.replace(model) as change:
        ...     model[1], change.sites
        (Dropout(p=0.5, inplace=False), ['1'])
        >>> type(model[1]) is torch.nn.Dropout
        True

    Differs:
        A layer of sitout refuses what torch's takes with a warning or by mistake:
        ``Dropout2d`` on three dims.
    """
    check_model(model, "replace")
    _checks.flag(functional, "functional", "replace")
    if functional and isinstance(model, torch.jit.ScriptModule):
        what, rule = "`model` of replace with functional=True", "not scripted"
        way_out = "Compiled TorchScript calls no Python: replace before torch.jit.script."
        raise TypeError(_checks.message(what, rule, type(model).__name__, way_out))
    modules = dict(model.named_modules(remove_duplicate=False))
    beside = _unreached.held_beside(model)
    made: dict[int, Layer] = {}
    for name, module in modules.items():
        if id(module) in made or id(module) in beside or isinstance(module, Layer):
            continue
        if not _is_held(modules, name):
            new = counterpart(module, name)
            made.update({} if new is None else {id(module): new})
    called, unreached = _survey(model, set(made), functional, beside)
    sites = [name for name, module in modules.items() if id(module) in made]
    if not sites and not called:
        raise _nothing(model, unreached)
    edits = swap(modules, made)
    if functional:
        remove = _hooks.install(model, _modes.Ours, _is_reached)
        edits.append(Edit("the hooks of the model", (), remove))
    return Change("replace", made.get(id(model), model), sites + called, unreached, edits, model)


def _is_held(modules: dict[str, nn.Module], name: str) -> bool:
    """Return whether a layer was compiled by itself: its wrapper would go on calling the old."""
    parent, _, last = name.rpartition(".")
    return last == "_orig_mod" and hasattr(modules[parent], "_torchdynamo_orig_callable")


def _survey(
    model: nn.Module, known: set[int], functional: bool, beside: dict[int, str]
) -> tuple[list[str], list[str]]:
    """Return the calls that go to ours, and a line for each thing that stays as it is."""
    called: dict[str, None] = {}
    left: list[tuple[str, str]] = []
    done = set(known)
    for name, module in model.named_modules():
        if id(module) in known or isinstance(module, (Layer, torch.jit.ScriptModule)):
            continue
        found = _found_in(module)
        mine = [line for line, is_reached in found if functional and is_reached]
        rest = [line for line, _ in found if line not in mine]
        called.update(dict.fromkeys(mine))
        if kind_of(module) is None:
            left += [(line, name) for line in rest]
        elif mine and not rest:
            done.add(id(module))
    left += _unreached.other_layers(model, done, beside)
    left += _unreached.floats(model)
    left += _unreached.borrowed(model, known)
    return list(called), _unreached.grouped(left)


def _is_reached(module: nn.Module) -> bool:
    """Return whether a forward may call what a mode sends to ours."""
    return any(is_reached for _, is_reached in _found_in(module))


def _found_in(module: nn.Module) -> list[tuple[str, bool]]:
    """Return a line for each call of a forward, and whether a mode reaches it."""
    calls = _unreached.dropping_calls(module)
    unread = _unreached.unread(module)
    found = [(_unreached.line_of(call, module), _modes.reaches(call)) for call in calls]
    return [*found, (unread, True)] if unread else found


def _nothing(model: nn.Module, unreached: list[str]) -> ValueError:
    seen = "; ".join(unreached[:3]) + ("; ..." if unreached[3:] else "")
    way_out = f"Out of its reach: {seen}." if seen else "No dropout was found in it."
    rule = "one with a dropout layer of torch, timm, torchvision or Hugging Face"
    return ValueError(_checks.message("`model` of replace", rule, type(model).__name__, way_out))
