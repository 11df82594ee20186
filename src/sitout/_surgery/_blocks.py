"""The residual blocks of a model whose drop path can become a branch that runs on some samples."""

from __future__ import annotations

from dataclasses import dataclass
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .. import nn as sitout_nn
from .._rates import kind_of
from ..nn import ResidualDropPath
from . import _unreached
from ._block_forward import ThinnedForward
from ._block_plan import cut_out, inputs_of, parameters_of
from ._block_trace import LeftAsItIsError
from ._change import Edit
from ._counterpart import carry, counterpart
from ._swap import _hang, _mode_giver

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_LISTS = (nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class Block:
    """A drop path whose branch can run on the kept samples only.

    Args:
        site: its qualified name.
        owner: the qualified name of the module whose forward calls it.
        module: that module.
        child: the name of the drop path in there.
        p: its rate.
    """

    site: str
    owner: str
    module: nn.Module
    child: str
    p: float

    def install(self, form: str) -> list[Edit]:
        """Put a :class:`sitout.nn.ResidualDropPath` in the place, and a forward into the block.

        Args:
            form: of the site.
        """
        parent = self.module.get_submodule(self.child.rpartition(".")[0])
        last = self.child.rpartition(".")[2]
        old: Any = parent._modules[last]
        new = _site(old, self.p, form)
        whole = Edit(self.site, ((id(old), None), (id(new), None)), _mode_giver(new, old))
        return [whole, _hang(parent, last, self.site, new), self._stand()]

    def _stand(self) -> Edit:
        """Let the forward of the block know the site."""
        names = vars(self.module)
        before = names.get("forward")
        forward = before if isinstance(before, ThinnedForward) else ThinnedForward(self.module)
        names["forward"] = forward
        sites = forward.sites
        forward.stand((*sites, self.child))

        def back() -> None:
            forward.stand(sites)
            if before is None:
                del names["forward"]
            else:
                names["forward"] = before

        name = f"{self.owner}.forward".lstrip(".")
        place = (id(self.module), "forward")
        return Edit(name, (place,), back, lambda: names.get("forward") is forward)


def find_blocks(
    model: nn.Module, fits: Callable[[str, nn.Module], bool]
) -> tuple[list[Block], list[str]]:
    """Return the drop paths of a model whose branches can run on the kept samples only.

    Args:
        model: any module. It is left as it is.
        fits: whether a drop path is meant, by its qualified name and the module.

    Returns:
        What can be installed, and a line for each drop path that has to stay, with the reason.

    Raises:
        TypeError: a rate is no number.
        ValueError: a rate is not in [0, 1].
    """
    beside = _unreached.held_beside(model)
    shared = _shared(model)
    whys: dict[str, str] = {}
    owners: dict[str, dict[str, float]] = {}
    for name, module in model.named_modules():
        if kind_of(module) == "drop_path" and fits(name, module):
            owner, child = _owner(model, name)
            try:
                whys[name] = ""
                _check_place(name, module, beside, shared)
                _check_owner(model, owner)
                owners.setdefault(owner, {})[child] = _rate(module, name)
            except LeftAsItIsError as why:
                whys[name] = str(why)
    found: dict[str, Block] = {}
    for owner, rates in owners.items():
        whys.update(_look(model, owner, rates, found))
    lines = [f"{name}: {why}" for name, why in whys.items() if why]
    return [found[name] for name in whys if name in found], lines


def _look(
    model: nn.Module, owner: str, rates: dict[str, float], found: dict[str, Block]
) -> dict[str, str]:
    """Add what can be installed in one module to what was found; return why the rest can not."""
    module = model.get_submodule(owner)
    names = {child: f"{owner}.{child}".lstrip(".") for child in rates}
    whys: dict[str, str] = {}
    for inputs, fixed in _calls(module):
        try:
            _, cuts, reasons = cut_out(module, list(rates), inputs, fixed)
        except LeftAsItIsError as why:
            cuts, reasons = [], dict.fromkeys(rates, str(why))
        for child in {cut.site for cut in cuts}:
            found[names[child]] = Block(names[child], owner, module, child, rates[child])
        mine = {names[child]: reasons.get(child, "") for child in rates}
        whys = {name: min(why, whys.get(name, why), key=bool) for name, why in mine.items()}
        if not reasons:
            break
    return whys


def _calls(module: nn.Module) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Yield how a block may be called: with what it needs, or with all that may be a tensor."""
    own = parameters_of(module)
    needed, more = inputs_of(module), inputs_of(module, optional=True)
    for inputs in (needed, more) if more != needed else (needed,):
        yield inputs, {name: value for name, value in own.items() if name not in inputs}


def _owner(model: nn.Module, name: str) -> tuple[str, str]:
    """Return the name of the module whose forward calls a child, and the name of that in there."""
    parts = name.split(".")
    at = len(parts) - 1
    while at and isinstance(model.get_submodule(".".join(parts[:at])), _LISTS):
        at -= 1
    return ".".join(parts[:at]), ".".join(parts[at:])


def _shared(model: nn.Module) -> set[int]:
    """Return the ids of the modules that stand in several places."""
    places: dict[int, set[tuple[int, str]]] = {}
    for module in model.modules():
        for child, one in module._modules.items():
            places.setdefault(id(one), set()).add((id(module), child))
    return {one for one, where in places.items() if len(where) > 1}


def _check_place(name: str, module: nn.Module, beside: dict[int, str], shared: set[int]) -> None:
    """Refuse a drop path that something else holds too, or that is no more than called."""
    if not name:
        raise LeftAsItIsError("it is the model itself")
    if id(module) in beside:
        raise LeftAsItIsError(f"it is held in {beside[id(module)]} too")
    if id(module) in shared:
        raise LeftAsItIsError("it stands in several places")
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:
        raise LeftAsItIsError("it has hooks, which nothing would call")


def _check_owner(model: nn.Module, owner: str) -> None:
    """Refuse a block whose forward is not that of its class, or cannot be changed any more."""
    module = model.get_submodule(owner)
    own = vars(module).get("forward")
    usual = isinstance(own, ThinnedForward) or own in (None, _usual(module))
    if isinstance(module, torch.jit.ScriptModule):
        raise LeftAsItIsError("its block is scripted")
    if module._compiled_call_impl is not None or owner.split(".")[-1] == "_orig_mod":
        raise LeftAsItIsError("its block is compiled; thin it before that")
    if not usual:
        raise LeftAsItIsError("its block has a forward of its own")
    parameters_of(module)


def _usual(module: nn.Module) -> object:
    forward: Any = type(module).forward
    return MethodType(forward, module)


def _rate(module: nn.Module, name: str) -> float:
    """Return the rate of a drop path whose law can be kept."""
    if isinstance(module, ResidualDropPath):
        raise LeftAsItIsError("it is thinned already")
    layer: Any = module if type(module) is sitout_nn.DropPath else counterpart(module, name)
    if not isinstance(layer, sitout_nn.DropPath):
        raise LeftAsItIsError(f"what {type(module).__name__} does is not known")
    if layer.shared_dims:
        raise LeftAsItIsError("the whole batch drops together")
    if layer.batch_dim != 0:
        raise LeftAsItIsError(f"its samples are in dim {layer.batch_dim}")
    if not layer.scale_by_keep:
        raise LeftAsItIsError("it does not scale what it keeps")
    if layer.rate_data is not None:
        raise LeftAsItIsError("its rate is data, and decides no shapes")
    return float(layer.p)


def _site(old: nn.Module, p: float, form: str) -> ResidualDropPath:
    """Return the layer that stands for a drop path, with its mode and attributes."""
    new = ResidualDropPath(p, form=form, generator=getattr(old, "generator", None))
    carry(new, old)
    return new
