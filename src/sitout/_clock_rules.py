"""What a clock takes: its rules, and the messages of those who break them."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any
from warnings import warn

import torch
from torch import Tensor

from . import _checks
from ._ticker import Ticker
from .masks import SPEC_VERSION
from .nn._base import Site

if TYPE_CHECKING:
    from collections.abc import Mapping

SEEDS = STEPS = ROWS = 1 << 32
_HOLDERS = (torch.nn.MultiheadAttention, torch.nn.RNNBase)  # dropout is a float attribute of them


def check_state(state: Mapping[str, Any]) -> tuple[int, dict[str, int], list[tuple[int, int]]]:
    """Return the seed, the sites and the used steps of what ``state_dict`` gave.

    Raises:
        ValueError: it is something else, or of another version of the mask specification.
    """
    what = "The state of MaskClock"
    try:
        version, seed = state["spec"], natural(state["seed"], "seed", "MaskClock", SEEDS)
        sites = {str(name): operator.index(number) for name, number in state["sites"].items()}
        used = [(operator.index(first), operator.index(last)) for first, last in state["used"]]
    except (KeyError, TypeError, ValueError, AttributeError):
        rule = "what state_dict() gave, with spec, seed, sites and used"
        got = list(state)[:5] if isinstance(state, dict) else type(state).__name__
        raise ValueError(_checks.message(what, rule, got)) from None
    if version != SPEC_VERSION:
        rule = f"of version {SPEC_VERSION} of the mask specification"
        raise ValueError(_checks.message(what, rule, version))
    if sorted(sites.values()) != list(range(len(sites))):
        rule, got = "one whose sites are numbered 0, 1, 2, ...", sorted(sites.values())[:5]
        raise ValueError(_checks.message(what, rule, got))
    return seed, sites, used


def number_of(site: str | int, sites: Mapping[str, int]) -> int:
    """Return the number of a site that is given by its name or number; a name goes first.

    Raises:
        ValueError: there is no such site.
    """
    if isinstance(site, str) and site not in sites and site.isdecimal():
        site = int(site)
    if isinstance(site, str):
        return sites[_checks.choice(site, sites, "`site`")]
    if site not in sites.values():
        raise ValueError(_checks.message("`site`", f"a name, or in [0, {len(sites)})", site))
    return site


def check_positions(rows: object) -> None:
    """Check the positions of a batch's samples.

    Raises:
        TypeError: they are no int64 tensor.
        ValueError: they are not ``[B]``, or out of range.
    """
    if not isinstance(rows, Tensor) or rows.dtype != torch.int64:
        got = rows.dtype if isinstance(rows, Tensor) else rows
        raise TypeError(_checks.message("`rows`", "an int64 tensor", got))
    if rows.dim() != 1:
        rule = "[B], one position a sample"
        raise ValueError(_checks.message("`rows`", rule, tuple(rows.shape)))
    if rows.device.type == "cpu" and len(rows):  # elsewhere it would wait for the device
        first, last = int(rows.min()), int(rows.max())
        if first < 0 or last >= ROWS:
            got = f"{first} to {last}"
            raise ValueError(_checks.message("`rows`", "in [0, 2**32)", got))


def check_free(name: str, layer: Site) -> None:
    """Check that a layer may get its address from a new clock.

    Raises:
        ValueError: it has a generator of its own.
        RuntimeError: it belongs to another clock, which has a step open.
    """
    if layer.generator is not None:
        what, rule = f"`generator` of the layer {name!r}", "None under a MaskClock"
        raise ValueError(_checks.message(what, rule, layer.generator))
    if isinstance(layer._ticker, Ticker) and layer._ticker.state.block is not None:
        raise RuntimeError(
            f"A MaskClock must not take over the layer {name!r} while another one has a step open. "
            "End that block first."
        )


def natural(value: object, name: str, owner: str, end: int) -> int:
    number = _checks.integer(value, name, owner)
    if not 0 <= number < end:
        raise ValueError(_checks.message(f"`{name}` of {owner}", "in [0, 2**32)", number))
    return number


def warn_of_others(model: torch.nn.Module) -> None:
    """Warn of torch's own dropout, which no clock reaches."""
    others = []
    for name, module in model.named_modules():
        rate = module.dropout if isinstance(module, _HOLDERS) else getattr(module, "p", 0.0)
        kind = isinstance(module, (*_HOLDERS, torch.nn.modules.dropout._DropoutNd))
        if kind and not isinstance(module, Site) and rate > 0.0:
            others.append(name or type(module).__name__)
    if others:
        warn(
            f"MaskClock does not reach {some(others)}: torch's own dropout draws from torch's "
            "generator. Use the layers of sitout.nn there, or set its rate to 0.",
            stacklevel=3,
        )


def some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(repr(name) for name in names[:3]) + more
