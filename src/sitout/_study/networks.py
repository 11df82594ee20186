"""The networks of a study: a built-in MLP, or the user's own factory; and their dropout sites."""

from __future__ import annotations

import hashlib
import math
import re
from collections import OrderedDict
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import _factory, nn
from .errors import StudyError

if TYPE_CHECKING:
    from collections.abc import Callable

    Factory = Callable[[tuple[int, ...], int], torch.nn.Module]


def mlp(shape: tuple[int, ...], outputs: int, width: int, layers: int) -> torch.nn.Module:
    """Return a ReLU network with dropout on its input and after each hidden activation.

    Args:
        shape: of one row.
        outputs: number of outputs.
        width: units in each hidden layer.
        layers: number of hidden layers.
    """
    parts: OrderedDict[str, torch.nn.Module] = OrderedDict()
    parts["flatten"] = torch.nn.Flatten()
    parts["input_dropout"] = nn.Dropout(0.0)
    size = math.prod(shape)
    for layer in range(1, layers + 1):
        parts[f"hidden{layer}"] = torch.nn.Linear(size, width)
        parts[f"relu{layer}"] = torch.nn.ReLU()
        parts[f"dropout{layer}"] = nn.Dropout(0.0)
        size = width
    parts["output"] = torch.nn.Linear(size, outputs)
    return torch.nn.Sequential(parts)


def is_built_in(network: str) -> bool:
    """Return whether ``network`` names a built-in network."""
    return network.startswith("mlp:")


def factory(network: str) -> Factory:
    """Return what builds the networks of a study.

    Args:
        network: ``mlp:WIDTHxLAYERS``, or ``package.module:factory`` with a callable
            ``factory(input_shape, outputs)`` that returns a module from ``[B, *input_shape]`` to
            ``[B, outputs]``.

    Raises:
        StudyError: it names neither.
    """
    match = re.fullmatch(r"mlp:(\d+)x(\d+)", network)
    if match and int(match[1]) and int(match[2]):
        width, layers = int(match[1]), int(match[2])
        return lambda shape, outputs: mlp(shape, outputs, width, layers)
    module, _, name = network.partition(":")
    if is_built_in(network) or not module or not name:
        raise StudyError(
            "The network (--net) must be mlp:WIDTHxLAYERS or package.module:factory. "
            f"Got {network!r}. For example: mlp:1024x2"
        )
    try:
        return _factory.named(network, "network (--net)")
    except _factory.FactoryError as error:
        raise StudyError(str(error)) from error


def build(make: Factory, shape: tuple[int, ...], outputs: int) -> torch.nn.Module:
    """Build a network and see that its output fits the task.

    Raises:
        StudyError: the factory fails, or gives no module from ``[B, *shape]`` to ``[B, outputs]``.
    """
    try:
        network = make(shape, outputs)
    except Exception as error:
        raise StudyError(
            f"The network's factory, called with (input_shape={shape}, outputs={outputs}), "
            f"raised {type(error).__name__}: {error}"
        ) from error
    if not isinstance(network, torch.nn.Module):
        raise StudyError(
            f"The network's factory must return a torch.nn.Module. Got {type(network).__name__}."
        )
    _check_output(network, shape, outputs)
    return network


def _check_output(network: torch.nn.Module, shape: tuple[int, ...], outputs: int) -> None:
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        with torch.no_grad():
            out = network(torch.zeros(2, *shape))
    except Exception as error:
        raise StudyError(
            f"The network must accept rows of shape {shape}. A forward of two rows raised "
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        ) from error
    finally:
        for module, mode in modes.items():
            module.training = mode
    if not isinstance(out, Tensor) or out.shape != (2, outputs):
        got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise StudyError(
            f"The network's output must fit the task: [B, {outputs}]. Two rows gave {got}. "
            f"Its factory was called with (input_shape={shape}, outputs={outputs})."
        )


def sites(network: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Return the dropout layers of a network, torch's or ours, by qualified name.

    Layers that are no site of units (:class:`sitout.nn.DropPath`) count for their rate too.
    """
    torchs = torch.nn.modules.dropout._DropoutNd
    ours = (nn.Dropout, nn.GaussianDropout, nn.DropPath, nn.ThinnedDropout, nn.ResidualDropPath)
    kinds = (torchs, *ours)
    return {name: module for name, module in network.named_modules() if isinstance(module, kinds)}


def seeded(make: Factory, shape: tuple[int, ...], outputs: int) -> torch.nn.Module:
    """Build a network from a fixed seed; see :func:`build`."""
    torch.manual_seed(0)
    return build(make, shape, outputs)


def check_independent(first: torch.nn.Module, second: torch.nn.Module) -> None:
    """Refuse a factory whose networks share weights or do not start alike from one seed.

    Raises:
        StudyError: its runs would not be independent, or not be paired.
    """
    states = first.state_dict(), second.state_dict()
    shared = {t.data_ptr() for t in states[0].values()} & {t.data_ptr() for t in states[1].values()}
    if first is second or shared - {0}:
        raise StudyError(
            "The network's factory must build a new network at each call. It gave the same weights "
            "twice, so one run would go on where another ended."
        )
    pairs = zip(states[0].values(), states[1].values(), strict=False)
    if states[0].keys() != states[1].keys() or not all(torch.equal(a, b) for a, b in pairs):
        raise StudyError(
            "The network's factory must draw its initial weights from torch's generator alone. "
            "After the same torch.manual_seed it built two different networks."
        )


def fingerprint(network: torch.nn.Module) -> str:
    """Return a short SHA-256 of a network's structure and weights."""
    digest = hashlib.sha256(repr(network).encode())
    for name, tensor in network.state_dict().items():
        digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def rates(network: torch.nn.Module) -> list[float]:
    """Return the rates of all sites."""
    return [float(site.p) for site in sites(network).values()]  # type: ignore[arg-type]


def stays_random(network: torch.nn.Module, shape: tuple[int, ...]) -> bool:
    """Return whether two forwards in training mode differ though all sites are set to 0."""
    for site in sites(network).values():
        setattr(site, "p", 0.0)  # noqa: B010
    torch.manual_seed(0)
    rows = torch.randn(8, *shape)
    with torch.no_grad():
        first, second = (network.train()(rows) for _ in range(2))
    return not torch.equal(first, second)


def input_sites(network: torch.nn.Module, rows: Tensor) -> set[str]:
    """Return the names of the sites that run before any layer with parameters.

    Args:
        network: in any mode; it is run once in evaluation mode.
        rows: a few rows, ``[B, *shape]``.
    """
    order: list[str | None] = []
    handles = []
    known = sites(network)
    for name, module in network.named_modules():
        weighted = any(True for _ in module.parameters(recurse=False))
        if name in known or weighted:
            label = name if name in known else None
            handles.append(
                module.register_forward_pre_hook(
                    lambda _module, _inputs, label=label: order.append(label)
                )
            )
    mode = network.training
    try:
        with torch.no_grad():
            network.eval()(rows)
    finally:
        network.train(mode)
        for handle in handles:
            handle.remove()
    before = order[: order.index(None)] if None in order else order
    return {name for name in before if name is not None}
