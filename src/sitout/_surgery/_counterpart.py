"""The layer of sitout that does what a layer of torch, timm, torchvision or Hugging Face does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from .. import _checks
from .. import nn as sitout_nn

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..nn._base import Site


def counterpart(module: nn.Module, name: str) -> Site | None:
    """Return a new layer that drops as a module does, with its mode, hooks and attributes.

    Args:
        module: any. It is left as it is.
        name: its qualified name, for errors.

    Returns:
        None if the module is no dropout layer, or one whose forward is not known.

    Raises:
        TypeError: its rate is no number.
        ValueError: its rate is not in [0, 1].
    """
    make = None if _has_more(module) else _maker(_home(module))
    if make is None:
        return None
    rate: Any = module.drop_prob if hasattr(module, "drop_prob") else module.p
    layer = make(_checks.rate(rate, f"{type(module).__name__} at {name!r}"), module)
    carry(layer, module)
    return layer


def carry(layer: nn.Module, module: nn.Module) -> None:
    """Give a new layer the mode, hooks and attributes of the one whose place it takes."""
    layer.training = module.training
    # The very hooks, so that a handle which someone holds still removes its own.
    mine, theirs = vars(layer), vars(module)
    mine.update({key: value for key, value in theirs.items() if "hook" in key})
    extra = {key for key in theirs if not key.startswith("_")} - set(mine) - _TOLD
    mine.update({key: theirs[key] for key in extra})


_TOLD = {"p", "drop_prob", "mode", "scale_by_keep", "inplace"}


def _has_more(module: nn.Module) -> bool:
    """Return whether a module holds what its counterpart would lose."""
    return bool(
        module._parameters
        or any(buffer is not None for buffer in module._buffers.values())
        or module._modules
        or "forward" in vars(module)
    )


def _home(module: nn.Module) -> type:
    """Return the class that a module has its forward from."""
    return next(made for made in type(module).__mro__ if "forward" in vars(made))


def _maker(home: type) -> Callable[[float, Any], Site] | None:
    if home in _MAKERS:
        return _MAKERS[home]
    package, name = home.__module__.split(".")[0], home.__name__
    if package == "torchvision" and name == "StochasticDepth":
        return _stochastic_depth
    if (package == "timm" and name == "DropPath") or (
        package == "transformers" and name.endswith("DropPath")
    ):
        return _drop_path
    return None


def _with_inplace(made: Callable[[float, bool], Site]) -> Callable[[float, Any], Site]:
    return lambda p, module: made(p, bool(module.inplace))


def _without_inplace(made: Callable[[float], Site]) -> Callable[[float, Any], Site]:
    """Leave ``inplace`` out: the forwards of torch's alpha dropout pass over it."""
    return lambda p, module: made(p)


def _drop_path(p: float, module: Any) -> Site:
    return sitout_nn.DropPath(p, bool(getattr(module, "scale_by_keep", True)))


def _stochastic_depth(p: float, module: Any) -> Site:
    return sitout_nn.DropPath(p, shared_dims=(0,) if module.mode == "batch" else ())


_MAKERS: dict[type, Callable[[float, Any], Site]] = {
    nn.Dropout: _with_inplace(sitout_nn.Dropout),
    nn.Dropout1d: _with_inplace(sitout_nn.Dropout1d),
    nn.Dropout2d: _with_inplace(sitout_nn.Dropout2d),
    nn.Dropout3d: _with_inplace(sitout_nn.Dropout3d),
    nn.AlphaDropout: _without_inplace(sitout_nn.AlphaDropout),
    nn.FeatureAlphaDropout: _without_inplace(sitout_nn.FeatureAlphaDropout),
}
