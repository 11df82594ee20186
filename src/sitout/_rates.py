"""Where the drop rates of a model live: which attributes of which modules, and of what kind."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from . import nn as sitout_nn
from ._source import kept_by_class, reads
from .nn._base import Site as Layer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# The first class that fits says the kind; a subclass goes before its base.
_KINDS: tuple[tuple[type[nn.Module], str], ...] = (
    (sitout_nn.GaussianDropout, "gaussian"),
    (sitout_nn.DropPath, "drop_path"),
    (sitout_nn.DropPathAdd, "drop_path"),
    (sitout_nn.ResidualDropPath, "drop_path"),
    (sitout_nn.FeatureAlphaDropout, "feature_alpha"),
    (sitout_nn.AlphaDropout, "alpha"),
    (nn.FeatureAlphaDropout, "feature_alpha"),
    (nn.AlphaDropout, "alpha"),
    (nn.Dropout1d, "dropout1d"),
    (nn.Dropout2d, "dropout2d"),
    (nn.Dropout3d, "dropout3d"),
    (nn.modules.dropout._DropoutNd, "dropout"),
    (Layer, "dropout"),
)
_NAMED_KINDS = (
    (re.compile(r"(?i)drop_?path|stochastic_?depth"), "drop_path"),
    (re.compile(r"(?i)drop_?block"), "drop_block"),
    (re.compile(r"(?i)layer_?drop"), "layer_drop"),
    (re.compile(r"(?i)(patch|token)_?drop"), "subset"),
    (re.compile(r"(?i)alpha_?drop"), "alpha"),
    (re.compile(r"(?i)gaussian_?drop"), "gaussian"),
    (re.compile(r"(?i)dropout2d|spatial_?drop"), "dropout2d"),
    (re.compile(r"(?i)drop"), "dropout"),
)
_RATE_ATTRIBUTES = (
    *("p", "drop_prob", "prob", "dropout_p", "drop_p", "dropout_prob"),
    *("drop_rate", "dropout_rate", "dropout", "rate"),
)
_RATE_NAME = re.compile(r"(?i)^(?!num_|n_|use_|is_).*(drop|sd_prob)")
_NO_RATE = re.compile(
    r"(?i)(^|_)(keep|seed|every|idx|index|last|start|end|steps?|epochs?|layers)(_|$)"
)


@dataclass(eq=False)
class Rate:
    """A place where a drop rate lives: an attribute of a module, or of the module's config.

    Args:
        name: qualified name of the module, "" for the root.
        module: that holds it.
        attribute: ``p``, ``drop_prob``, ``dropout``, ``config.layerdrop``, ...
        kind: of the dropout that it feeds.
        is_layer: the module does nothing but drop; else the rate is a float attribute of a module
            that does more, as in ``MultiheadAttention`` or ``LSTM``.
    """

    name: str
    module: nn.Module
    attribute: str
    kind: str
    is_layer: bool

    @property
    def path(self) -> str:
        """The qualified name of the attribute: ``encoder.layers.0.self_attn.dropout``."""
        return f"{self.name}.{self.attribute}" if self.name else self.attribute

    @property
    def p(self) -> Any:
        """What stands there, a number for a tensor without dims; not checked."""
        holder, attribute = self._holder()
        value = getattr(holder, attribute)
        return value.item() if isinstance(value, Tensor) and is_number(value) else value

    @p.setter
    def p(self, value: Any) -> None:
        holder, attribute = self._holder()
        setattr(holder, attribute, value)

    @property
    def key(self) -> tuple[int, str]:
        """What two names of one place have in common."""
        holder, attribute = self._holder()
        return id(holder), attribute

    def keep(self) -> Callable[[], None]:
        """Return what puts the very object back that stands there now.

        Where that is an attribute of the class, its object has none of its own again.
        """
        holder, attribute = self._holder()
        own = getattr(holder, "__dict__", {})
        if attribute not in own and is_number(_of_class(holder, attribute)):
            return partial(own.pop, attribute, None)
        return partial(setattr, holder, attribute, getattr(holder, attribute))

    def _holder(self) -> tuple[Any, str]:
        *first, attribute = self.attribute.split(".")
        return (getattr(self.module, first[0]) if first else self.module), attribute


def kind_of(module: nn.Module) -> str | None:
    """Return the kind of a module that does nothing but drop; None for every other module.

    Known are the layers of torch and sitout, their subclasses, and by name those of timm,
    torchvision, Hugging Face and whoever calls them alike: no parameters, no children, "drop" in
    the name of the class, and a rate.
    """
    for known, kind in _KINDS:
        if isinstance(module, known):
            return kind
    if module._modules or module._parameters or rate_attribute(module) is None:
        return None
    return next((kind for name, kind in _NAMED_KINDS if name.search(type(module).__name__)), None)


def rate_attribute(module: nn.Module) -> str | None:
    """Return the attribute of a dropout layer that holds its rate."""
    if isinstance(module, (Layer, nn.modules.dropout._DropoutNd)):
        return "p"
    return next((name for name in _RATE_ATTRIBUTES if is_number(vars(module).get(name))), None)


def rates(model: nn.Module) -> Iterator[Rate]:
    """Yield every place of a model where a rate lives, each once, under its first name.

    A float attribute counts where its name speaks of dropout and the forward of its module reads
    it, or a method that the forward calls.
    """
    seen = set()
    for rate in readings(model):
        if rate.key not in seen:
            seen.add(rate.key)
            yield rate


def readings(model: nn.Module) -> Iterator[Rate]:
    """Yield the rates of every module: one of a shared config comes with each that reads it."""
    for name, module in model.named_modules():
        yield from _rates_of(name, module)


def _rates_of(name: str, module: nn.Module) -> Iterator[Rate]:
    kind = kind_of(module)
    attribute = rate_attribute(module)
    if kind is not None and attribute is not None:
        yield Rate(name, module, attribute, kind, True)
        return
    if isinstance(module, nn.MultiheadAttention):
        yield Rate(name, module, "dropout", "attention", False)
        return
    if isinstance(module, nn.RNNBase):
        yield Rate(name, module, "dropout", "rnn", False)
        return
    made: Any = type(module)
    for path in _rate_paths(made):
        first, _, last = path.rpartition(".")
        holder = getattr(module, first, None) if first else module
        if not isinstance(holder, nn.Module) or not first:
            own = getattr(holder, "__dict__", {})
            value = own[last] if last in own else _of_class(holder, last)
            if is_number(value) and 0.0 <= value <= 1.0:  # by its name alone it might be a count
                yield Rate(name, module, path, _kind_of_name(last), False)


def _of_class(holder: object, attribute: str) -> Any:
    """Return an attribute that the class of an object has, without a call; None if it has none."""
    return inspect.getattr_static(type(holder), attribute, None)


@kept_by_class
def _rate_paths(made: Any) -> tuple[str, ...]:
    """Return what the forward of a class reads: ``attention_dropout``, ``config.layerdrop``."""
    paths = (path for path in reads(made) if path.count(".") <= 1)
    lasts = {path: path.split(".")[-1] for path in paths}
    return tuple(
        sorted(
            path
            for path, last in lasts.items()
            if _RATE_NAME.search(last) and not _NO_RATE.search(last)
        )
    )


def _kind_of_name(attribute: str) -> str:
    if "layer" in attribute and "drop" in attribute:
        return "layer_drop"
    if "path" in attribute or "sd_prob" in attribute or "connect" in attribute:
        return "drop_path"
    return "attention" if "att" in attribute else "dropout"


def is_number(value: object) -> bool:
    """Return whether a value may be a rate: a real number or such a tensor without dims, no bool.

    A tensor that is learned is none.
    """
    if isinstance(value, Tensor):
        return value.dim() == 0 and value.is_floating_point() and not value.requires_grad
    return isinstance(value, Real) and not isinstance(value, bool)


def compiled(model: nn.Module) -> str | None:
    """Return the name of the first module that is compiled, "" for the root; None if none is."""
    for name, module in model.named_modules():
        if hasattr(module, "_orig_mod") or module._compiled_call_impl is not None:
            return str(name)
    return None


def readers(model: nn.Module, rate: Rate) -> list[nn.Module]:
    """Return the parent of a layer where its forward reads the rate of the layer as a number.

    As the attention of transformers and timm does, which hands it to a fused kernel.
    """
    parent, _, child = rate.name.rpartition(".")
    if not rate.is_layer or not child:
        return []
    try:
        owner: Any = model.get_submodule(parent)
    except AttributeError:  # the model has changed since
        return []
    return [owner] if f"{child}.{rate.attribute}" in reads(type(owner)) else []
