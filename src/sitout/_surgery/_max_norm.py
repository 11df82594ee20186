"""MaxNorm: a bound on the incoming weights of each unit."""

from __future__ import annotations

import math
import warnings
from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .. import _checks
from .._where import Where, fitting, nothing_found, plain_name

_ROWS = (
    *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.Embedding, nn.EmbeddingBag),
)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_BY_NAME = (nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase)


class MaxNorm:
    """Keep the norm of the incoming weights of each unit at most ``c``, after each step.

    Which weights come into one unit:

    - ``Linear`` ``[out, in]``: a row.
    - ``Conv1d``, ``Conv2d``, ``Conv3d`` ``[out, in / groups, *kernel]``: all of an output channel.
    - ``ConvTranspose1d``, ``2d``, ``3d`` ``[in, out / groups, *kernel]``: all of an output channel
      from the input channels of its group.
    - ``Embedding``, ``EmbeddingBag`` ``[number, dim]``: the vector of one entry, as ``max_norm``
      there has it.
    - ``Conv1D`` of Hugging Face (GPT-2) ``[in, out]``: a column.

    ``MultiheadAttention``, ``RNN``, ``LSTM``, ``GRU`` and their cells are bounded only where
    ``where`` fits them: a row of their input projection, and of each recurrent matrix by itself.

    Weights within the bound stay as they are, to the bit. So do those with ``requires_grad=False``.
    A tied weight is bounded once. Norms of half precision are computed in float32.

    Args:
        model: any module.
        c: the largest norm, above 0. Srivastava et al. use 2 to 4.
        where: which modules: a glob on the qualified name, a type, a predicate of (name, module),
            or several of these. Those of the list above if None.

    Attributes:
        sites: the names of the bounded weights.
        unreached: a line for each weight that is computed from others (parametrized, pruned,
            weight norm), so that it cannot be bounded in place.

    Raises:
        TypeError: ``model`` is no module, ``c`` no number, or ``where`` something else.
        ValueError: ``c`` is not above 0 and finite, or nothing fits ``where``.

    Warns:
        UserWarning: there are such weights.

    Example:
        >>> model = torch.nn.Linear(2, 2, bias=False)
        >>> _ = model.weight.data.copy_(torch.tensor([[3.0, 4.0], [0.3, 0.4]]))
        >>> sitout.MaxNorm(model, 1.0).step()
        >>> model.weight.data
        tensor([[0.6000, 0.8000],
                [0.3000, 0.4000]])

    Reference:
        Srivastava et al. 2014, JMLR 15:1929-1958, section 5.1; Hinton et al. 2012, arXiv 1207.0580.
    """

    def __init__(self, model: nn.Module, c: float, where: Where = None) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(_checks.message("`model` of MaxNorm", "a torch.nn.Module", model))
        self.c = _checked(c)
        self.sites: list[str] = []
        self.unreached: list[str] = []
        self._weights: list[_Weight] = []
        self._find(model, where)
        if not self._weights:
            found = (name for name, module in model.named_modules() if _names(module))
            names = (plain_name(model, name) for name in found)
            raise nothing_found(where, "MaxNorm", "a module with weights to bound", names)
        if self.unreached:
            warnings.warn(
                f"MaxNorm does not bound {self.unreached[0]}"
                f"{' and others, see unreached' if self.unreached[1:] else ''}: it is computed "
                "from other parameters at each forward.",
                stacklevel=2,
            )

    def _find(self, model: nn.Module, where: Where) -> None:
        """Find the weights, each once."""
        fits, seen = fitting(model, where, "MaxNorm"), set()
        for name, module in model.named_modules(remove_duplicate=False):
            by_name = where is not None or not isinstance(module, _BY_NAME)
            for weight in _names(module) if by_name and fits(name, module) else ():
                path = f"{name}.{weight}" if name else weight
                parameter = module._parameters.get(weight)
                if parameter is None:
                    self.unreached.append(path)
                elif id(parameter) not in seen:
                    seen.add(id(parameter))
                    self.sites.append(path)
                    self._weights.append(_Weight(module, weight))

    @torch.no_grad()
    def step(self) -> None:
        """Scale down the weights of each unit whose norm exceeds the bound, in place.

        Call it after ``optimizer.step()``.

        Example:
            >>> model = torch.nn.Embedding(1, 4, _weight=torch.ones(1, 4))
            >>> sitout.MaxNorm(model, 1.0).step()
            >>> model.weight.data
            tensor([[0.5000, 0.5000, 0.5000, 0.5000]])
        """
        for module, name in self._weights:
            weight = module._parameters[name]
            if weight is not None and weight.requires_grad:
                _bound(*_units(module, weight), self.c)

    def __repr__(self) -> str:
        return f"MaxNorm(c={self.c}, sites={len(self.sites)})"


class _Weight(NamedTuple):
    module: nn.Module
    name: str


def _checked(c: object) -> float:
    what, rule = "`c` of MaxNorm", "a number above 0, and finite"
    if isinstance(c, bool) or not isinstance(c, Real):
        raise TypeError(_checks.message(what, rule, c))
    if not 0.0 < float(c) < math.inf:
        raise ValueError(_checks.message(what, rule, c))
    return float(c)


def _is_conv1d(module: nn.Module) -> bool:
    """Return whether a module is the transposed linear layer of Hugging Face."""
    made = type(module)
    return made.__name__ == "Conv1D" and made.__module__.startswith("transformers.")


def _names(module: nn.Module) -> list[str]:
    """Return the names of the incoming weights of a module."""
    if isinstance(module, (*_ROWS, *_TRANSPOSED)) or _is_conv1d(module):
        return ["weight"]
    if isinstance(module, nn.RNNCellBase):
        return ["weight_ih", "weight_hh"]
    if isinstance(module, nn.RNNBase):
        return [name for name in module._flat_weights_names if name.startswith("weight")]
    if isinstance(module, nn.MultiheadAttention):
        names = ["q_proj_weight", "k_proj_weight", "v_proj_weight"]
        return ["in_proj_weight"] if module._qkv_same_embed_dim else names
    return []


def _units(module: nn.Module, weight: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """Return a view of a weight, and the dims over which the weights of one unit lie."""
    if isinstance(module, _TRANSPOSED):
        groups, per_group = module.groups, weight.shape[0] // module.groups
        grouped = weight.view(groups, per_group, *weight.shape[1:])
        return grouped, (1, *range(3, grouped.dim()))
    if _is_conv1d(module):
        return weight, (0,)
    return weight, tuple(range(1, weight.dim()))


def _bound(weight: Tensor, dims: tuple[int, ...], c: float) -> None:
    exact = weight.float() if weight.dtype.itemsize < 4 else weight
    norms = torch.linalg.vector_norm(exact, dim=dims, keepdim=True)
    if norms.isinf().any():  # their squares are beyond the largest float
        exact, norms = _in_range(exact, norms, dims, c)
    scale = c / norms.clamp_min(c)  # exactly 1 within the bound
    if exact is weight:
        weight.mul_(scale)
    else:
        weight.copy_(exact * scale)


def _in_range(
    weight: Tensor, norms: Tensor, dims: tuple[int, ...], c: float
) -> tuple[Tensor, Tensor]:
    """Return a weight and its norms, where units whose norm overflows are at the bound already."""
    peak = weight.abs().amax(dims, keepdim=True)
    unit = weight / peak
    bounded = unit * (c / torch.linalg.vector_norm(unit, dim=dims, keepdim=True))
    far = norms.isinf()
    return torch.where(far, bounded, weight), norms.masked_fill(far, c)
