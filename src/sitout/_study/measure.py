"""What is measured on a trained network: errors, and how it plays with units silenced."""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from ..masks import MaskKey, kept_units
from . import networks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Edit = Callable[[Tensor], Tensor]

FRACTIONS = tuple(tenth / 10 for tenth in range(10))
_DRAWS = 3
_SHORTLIST = 16
_CHUNK = 4096


def predict(network: torch.nn.Module, x: Tensor) -> Tensor:
    """Return the outputs in evaluation mode, ``[N, outputs]``; a non-finite one counts as 0."""
    mode = network.training
    network.eval()
    with torch.no_grad():
        out = torch.cat([network(chunk) for chunk in torch.split(x, _CHUNK)])
    network.train(mode)
    return torch.nan_to_num(out, nan=0.0, posinf=0.0, neginf=0.0)


def loss_of(out: Tensor, y: Tensor) -> Tensor:
    """Return the mean loss: cross-entropy in nats, or the squared error of standardised targets.

    Args:
        out: ``[B, classes]`` or ``[B, 1]``.
        y: int64 ``[B]`` of classes, or float32 ``[B]``.
    """
    if y.is_floating_point():
        return F.mse_loss(out.squeeze(1), y)
    return F.cross_entropy(out, y)


def mean_loss(out: Tensor, y: Tensor) -> float:
    """Return the mean loss in binary64, in which no float32 output overflows."""
    return float(loss_of(out.double(), y.double() if y.is_floating_point() else y))


def row_errors(out: Tensor, y: Tensor) -> Tensor:
    """Return one error a row: 0 or 1 for a class, the squared error of a standardised target."""
    if y.is_floating_point():
        return (out.squeeze(1) - y).double().square()
    return (out.argmax(1) != y).double()


def error_of(out: Tensor, y: Tensor, unit: float) -> float:
    """Return the share of misclassified rows, or the root mean squared error.

    Args:
        out: ``[N, outputs]``.
        y: ``[N]``.
        unit: standard deviation of the target, in its unit; 1 for classes.
    """
    mean = float(row_errors(out, y).mean())
    return math.sqrt(mean) * unit if y.is_floating_point() else mean


@contextmanager
def _edited(network: torch.nn.Module, edits: dict[str, Edit]) -> Iterator[None]:
    """Within the block, pass the output of each named site through its edit."""
    modules = dict(network.named_modules())
    handles = [
        modules[name].register_forward_hook(lambda _m, _i, out, edit=edit: edit(out))
        for name, edit in edits.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _unit_dim(module: torch.nn.Module, out: Tensor) -> int:
    """Return the dim of the units: channels of images and of channel layers, else the last."""
    by_channel = isinstance(module, (torch.nn.Dropout1d, torch.nn.Dropout2d, torch.nn.Dropout3d))
    return 1 if out.dim() > 1 and (by_channel or out.dim() >= 4) else -1


def _activations(network: torch.nn.Module, x: Tensor, names: list[str]) -> dict[str, Tensor]:
    """Return the outputs of the named sites."""
    found: dict[str, Tensor] = {}

    def note(name: str) -> Edit:
        def edit(out: Tensor) -> Tensor:
            found.setdefault(name, out)
            return out

        return edit

    with _edited(network, {name: note(name) for name in names}):
        predict(network, x[:2])
    return found


def hidden_units(network: torch.nn.Module, x: Tensor) -> dict[str, tuple[int, int]]:
    """Return, for each site behind a layer with parameters, (dim of the units, their number)."""
    before = networks.input_sites(network, x[:2])
    modules = networks.sites(network)
    shown = _activations(network, x, [name for name in modules if name not in before])
    dims = {name: _unit_dim(modules[name], out) for name, out in shown.items()}
    return {name: (dims[name], out.shape[dims[name]]) for name, out in shown.items()}


def _gate(factor: Tensor, dim: int) -> Edit:
    """Return an edit that multiplies the units, which lie along ``dim``, by ``factor``.

    Where a layer serves at two places of different width, the second is left alone.
    """

    def edit(out: Tensor) -> Tensor:
        if out.shape[dim] != len(factor):
            return out
        shape = [1] * out.dim()
        shape[dim] = -1
        return out * factor.view(shape)

    return edit


def silencing(
    network: torch.nn.Module, x: Tensor, y: Tensor, unit: float, seed: int
) -> list[float] | None:
    """Return the error at each of ``FRACTIONS`` of silenced hidden units.

    At every hidden site the same fraction of units, drawn at random, is set to 0, and the others
    are scaled up as in training.

    Args:
        network: a trained one.
        x: rows, ``[N, *shape]``.
        y: their targets, ``[N]``.
        unit: standard deviation of the target, in its unit; 1 for classes.
        seed: of the draws: equal seeds silence the same units.

    Returns:
        Mean errors over a few draws, or None where there is no hidden site.
    """
    units = hidden_units(network, x)
    if not units:
        return None
    return [_silenced(network, x, y, unit, units, q, seed) for q in FRACTIONS]


def _silenced(
    network: torch.nn.Module,
    x: Tensor,
    y: Tensor,
    unit: float,
    units: dict[str, tuple[int, int]],
    q: float,
    seed: int,
) -> float:
    errors = []
    for draw in range(_DRAWS if q else 1):
        edits: dict[str, Edit] = {}
        for number, (name, (dim, n)) in enumerate(units.items()):
            kept = kept_units(MaskKey(seed=seed, site=number, step=draw), q, n)
            factor = torch.zeros(n).index_fill_(0, kept, n / len(kept))
            edits[name] = _gate(factor, dim)
        with _edited(network, edits):
            errors.append(error_of(predict(network, x), y, unit))
    return sum(errors) / len(errors)


def worst_unit(
    network: torch.nn.Module, x: Tensor, y: Tensor, unit: float
) -> tuple[str, int, float] | None:
    """Find the hidden unit whose silence hurts most.

    Every other row chooses it: a gradient ranks all units by the first-order change of the loss,
    and the exact loss decides among the first few. The rows between estimate the harm, so that it
    is not flattered by the choice.

    Args:
        network: a trained one.
        x: rows, ``[N, *shape]``.
        y: their targets, ``[N]``.
        unit: standard deviation of the target, in its unit; 1 for classes.

    Returns:
        Name of the site, index of the unit, rise of the error; None where there is no hidden site.
    """
    units = hidden_units(network, x)
    if not units:
        return None
    chosen_on, judged_on = slice(0, None, 2), slice(1, None, 2)
    shortlist = _shortlist(network, x[chosen_on], y[chosen_on], units)
    losses = {
        (name, index): float(
            loss_of(_without(network, x[chosen_on], name, index, units), y[chosen_on])
        )
        for name, index in shortlist
    }
    name, index = max(losses, key=lambda at: losses[at])
    before = error_of(predict(network, x[judged_on]), y[judged_on], unit)
    after = error_of(_without(network, x[judged_on], name, index, units), y[judged_on], unit)
    return name, index, after - before


def _shortlist(
    network: torch.nn.Module, x: Tensor, y: Tensor, units: dict[str, tuple[int, int]]
) -> list[tuple[str, int]]:
    """Return the units whose silence raises the loss most, to first order."""
    gates = {name: torch.ones(n, requires_grad=True) for name, (_, n) in units.items()}
    edits = {name: _gate(gates[name], dim) for name, (dim, _) in units.items()}
    mode = network.training
    network.eval()
    with _edited(network, edits):
        loss = loss_of(network(x[:_CHUNK]), y[:_CHUNK])
    network.train(mode)
    grads = torch.autograd.grad(loss, list(gates.values()))
    owners = [(name, index) for name, gate in gates.items() for index in range(len(gate))]
    rises = -torch.cat(grads)
    return [owners[at] for at in rises.topk(min(_SHORTLIST, len(owners))).indices.tolist()]


def _without(
    network: torch.nn.Module, x: Tensor, name: str, index: int, units: dict[str, tuple[int, int]]
) -> Tensor:
    """Return the outputs with one unit at 0."""
    dim, n = units[name]
    gate = torch.ones(n).index_fill_(0, torch.tensor([index]), 0.0)
    with _edited(network, {name: _gate(gate, dim)}):
        return predict(network, x)
