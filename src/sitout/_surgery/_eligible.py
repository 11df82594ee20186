"""Which layers can be thinned, and why others cannot."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Any

from torch import nn

from .. import _checks
from .. import nn as sitout_nn
from .._rates import is_number
from .._source import methods, path_of, reads
from ..functional._thinned import check_count
from ..nn._base import Site as Layer
from ..nn._thinned_layers import Thinned
from . import _unreached
from ._counterpart import _has_more, _home
from ._elementwise import has_hooks, only_asks
from ._graph import around

if TYPE_CHECKING:
    from ._graph import Trace

Grouping = tuple[int, int | None]

# What a layer becomes. A layer that has a place at one site takes another one at a second.
TWINS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: sitout_nn.ThinnedLinear,
    nn.Conv1d: sitout_nn.ThinnedConv1d,
    nn.Conv2d: sitout_nn.ThinnedConv2d,
    nn.Conv3d: sitout_nn.ThinnedConv3d,
    sitout_nn.ThinnedLinear: sitout_nn.ThinnedLinear,
    sitout_nn.ThinnedConv1d: sitout_nn.ThinnedConv1d,
    sitout_nn.ThinnedConv2d: sitout_nn.ThinnedConv2d,
    sitout_nn.ThinnedConv3d: sitout_nn.ThinnedConv3d,
    nn.BatchNorm1d: sitout_nn.ThinnedBatchNorm1d,
    nn.BatchNorm2d: sitout_nn.ThinnedBatchNorm2d,
    nn.BatchNorm3d: sitout_nn.ThinnedBatchNorm3d,
}
# The layers behind which each dropout drops whole units.
_SPATIAL: dict[type[nn.Module], int] = {
    nn.Dropout: 0,
    nn.Dropout1d: 1,
    nn.Dropout2d: 2,
    nn.Dropout3d: 3,
    sitout_nn.Dropout: 0,
    sitout_nn.Dropout1d: 1,
    sitout_nn.Dropout2d: 2,
    sitout_nn.Dropout3d: 3,
}
CONVS = nn.modules.conv._ConvNd
LAYERS = (nn.Linear, CONVS)
NORMS = nn.modules.batchnorm._BatchNorm


class Held:
    """Who holds what in a model: names, parameters, and modules outside of the children."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.names: dict[int, list[str]] = {}
        self._holders: dict[int, set[int]] = {}
        for name, module in model.named_modules(remove_duplicate=False):
            self.names.setdefault(id(module), []).append(name)
            for parameter in module._parameters.values():
                self._holders.setdefault(id(parameter), set()).add(id(module))
        self._beside = _unreached.held_beside(model)

    def name(self, module: nn.Module) -> str:
        """Return the first name of a module."""
        return self.names[id(module)][0]

    def why_shared(self, module: nn.Module) -> str:
        """Return by whom a module is held too; "" where by nobody."""
        names, name = self.names[id(module)], self.name(module)
        if len(names) > 1:
            return f"{name} is {names[1]} too. Give each place a module of its own"
        if id(module) in self._beside:
            return f"{name} is held in {self._beside[id(module)]} too"
        for key, parameter in module._parameters.items():
            if parameter is not None and len(self._holders[id(parameter)]) > 1:
                return f"{name}.{key} belongs to another module too"
        return ""

    def why_read(self, module: nn.Module, trace: Trace) -> str:
        """Return whose code reads or calls a module beside the one call that was followed."""
        name, made = self.name(module), type(trace.module).__name__
        if sum(one is module for one in trace.modules.values()) > 1:
            return f"{name} is called more than once"
        own = {id(tensor) for tensor in (*module._parameters.values(), *module._buffers.values())}
        for node, tensor in trace.tensors.items():
            if id(tensor) in own and not all(map(only_asks, node.users)):
                return f"{made} reads {name}.{str(node.target).rpartition('.')[2]} by itself"
        if trace.method != "forward" and _is_called_beside(trace, _under(trace.name, name)):
            return f"{name} is called more than once"
        above = around(trace.name)
        for path in [*above, trace.name] if trace.method != "forward" else above:
            reader = self.model.get_submodule(path)
            for one in reads(type(reader)) if not _is_torchs(reader) else ():
                called = path == trace.name and one == _under(path, name)
                if f"{one}.".startswith(f"{_under(path, name)}.") and not called:
                    return f"{type(reader).__name__} reads {name} by itself"
        return ""


def _under(path: str, name: str) -> str:
    """Return a qualified name as the module at a path says it."""
    return name[len(path) + 1 :] if path else name


def _is_called_beside(trace: Trace, path: str) -> bool:
    """Return whether the code around a method that was followed calls what this calls, too."""
    paths = {
        one.name: [path_of(node.func) for node in ast.walk(one.tree) if isinstance(node, ast.Call)]
        for one in methods(type(trace.module))
    }
    inside, todo = set[str](), [trace.method]
    while todo:
        name = todo.pop()
        if name in paths and name not in inside:
            inside.add(name)
            todo += paths[name]
    counts = {name: called.count(path) for name, called in paths.items()}
    return sum(counts.values()) > 1 or any(counts[name] for name in counts.keys() - inside)


def _is_torchs(module: nn.Module) -> bool:
    """Return whether a forward is torch's: its fast paths, which read weights, do not train."""
    return type(module).forward.__module__.startswith("torch.nn.modules.")


def spatial_dims(module: nn.Module) -> int:
    """Return how many dims of places a layer has: 0 for a linear one."""
    return module.weight.dim() - 2 if isinstance(module, CONVS) else 0


def width(module: nn.Module, *, reads: bool = False) -> int:
    """Return how many units a layer has, or how many it reads."""
    some: Any = module
    if isinstance(module, CONVS):
        return int(some.in_channels if reads else some.out_channels)
    return int(some.in_features if reads else some.out_features)


def why_not_layer(module: nn.Module, name: str) -> str:
    """Return why a layer cannot be thinned; "" if it can."""
    some: Any = module
    if type(module) not in TWINS:
        return f"{name} is a {type(module).__name__}, whose forward may do more"
    if "forward" in vars(module):
        return f"{name} has a forward of its own"
    if has_hooks(module):
        return f"{name} has hooks, which would see the kept units alone"
    if isinstance(module, CONVS) and some.groups != 1:
        return f"{name} has groups={some.groups}"
    if isinstance(module, CONVS) and some.padding_mode != "zeros":
        return f"{name} has padding_mode={some.padding_mode!r}"
    return ""


def why_not_place(module: nn.Module, name: str, side: str, grouping: Grouping) -> str:
    """Return why a layer that is thinned already can take no other place; "" if it can.

    Args:
        module: any layer.
        name: its qualified name.
        side: "_before" or "_after", where it would stand.
        grouping: ``groups`` and ``group_size`` of the site there.
    """
    if not isinstance(module, Thinned):
        return ""
    if getattr(module, side) is not None:
        return f"{name} is thinned already"
    other = module._after or module._before
    if other is not None and (other[0].groups, other[0].group_size) != grouping:
        return f"{name} has other groups at its other side"
    return ""


def why_not_norm(module: Any, name: str, dropout: nn.Module, n: int, grouped: bool) -> str:
    """Return why the kept channels cannot be normalized; "" if they can."""
    why = why_not_layer(module, name)
    if why:
        return why
    if grouped:
        return f"{name} has the statistics of the batch, so groups must be 1"
    if module.momentum is None:
        return f"{name} averages all steps (momentum=None), and channels miss some"
    if module.training is not dropout.training:
        return f"{name} is frozen: it is in evaluation mode where the dropout trains"
    if module.num_features != n:
        return f"{name} normalizes {module.num_features} channels, not the {n} units"
    return ""


def why_not_dropout(module: nn.Module, name: str) -> str:
    """Return why a dropout layer cannot become a site; "" if it can."""
    some: Any = module
    if _home(module) not in _SPATIAL:
        return f"{type(module).__name__} has no thinned form"
    if isinstance(module, Layer) and module.rate_data is not None:
        return f"the rate of {name} is data, and a thinned layer has a number"
    if _has_more(module):
        return f"{name} holds more than a rate"
    if not is_number(some.p) or not 0.0 <= some.p <= 1.0:
        return f"p = {some.p} is no rate in [0, 1]"
    options = ("shared_dims", "batch_dim", "generator") if isinstance(module, Layer) else ()
    if any(getattr(module, option) for option in options):
        return f"{name} has options of its own: {', '.join(options)}"
    return ""


def why_not_drop(dropout: nn.Module, source: nn.Module, n: int) -> str:
    """Return why a dropout drops no whole units of the layer before it, or not so many."""
    some: Any = dropout
    dims = spatial_dims(source)
    if _SPATIAL[_home(dropout)] != dims:
        units, wanted = "features", "Dropout"
        if dims:
            units, wanted = "channels", f"Dropout{dims}d"
        return f"{type(dropout).__name__} drops no whole {units}: make it {wanted}"
    try:
        check_count(_checks.rate(some.p, "thin"), n, "thin")
    except ValueError as error:
        return str(error).removesuffix(".")
    return ""
