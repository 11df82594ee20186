"""Dropout on, all else off: a model as it is while it predicts."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from .. import _checks
from .._rates import compiled
from .._sites import _probe
from .._where import fitting, nothing_found

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from .._sites import Site
    from .._where import Where


def sites_of(model: nn.Module, args: Any, kwargs: Any, where: Where) -> list[Site]:
    """Return the sites of a model that drop in training, of those that ``where`` names.

    Raises:
        ValueError: there is none, with the reason.
    """
    found = [one for one in _probe.sites(model, *args, **kwargs) if one.kind != "outside"]
    if not found:
        what, rule = "`model` of mc.predict", "one in which something drops"
        way_out = "sitout.insert(model, p, where) puts dropout into it."
        raise ValueError(_checks.message(what, rule, "no site", way_out))
    fits = fitting(model, where, "mc.predict")
    chosen = [one for one in found if fits(one.name, model.get_submodule(one.name))]
    if not chosen:
        raise nothing_found(where, "mc.predict", "a site", [one.name for one in found])
    on = [one for one in chosen if _drops(one)]
    if not on:
        told = ", ".join(f"{one.name or 'the root'} (p = {_told(one)})" for one in chosen[:3])
        what, rule = "`model` of mc.predict", "one of whose sites drops with p > 0"
        way_out = "sitout.set_rate(model, p) changes the rates."
        raise ValueError(_checks.message(what, rule, told, way_out))
    return on


def _drops(site: Site) -> bool:
    """Return whether a site drops: of few bits with a small rate all may have played."""
    seen = site.active_in_train or site.active_in_eval
    return seen or (site.calls > 0 and site.p is not None and site.p > 0.0)


def _told(site: Site) -> str:
    return "?" if site.p is None else f"{site.p:g}, {site.note or 'it did not drop'}"


@contextmanager
def dropping(model: nn.Module, sites: list[Site]) -> Iterator[None]:
    """Let the modules of some sites be in training mode, and all others in evaluation.

    Only the module itself: none of its children. The fast paths of torch's transformers, which
    have no dropout, are off, and compiled parts run eagerly.

    Args:
        model: any module.
        sites: those that drop.
    """
    modes = [(module, module.training) for module in model.modules()]
    fast = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        if compiled(model) is not None:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.random.fork_rng())
        try:
            torch.backends.mha.set_fastpath_enabled(False)
            model.eval()
            for site in sites:
                model.get_submodule(site.name).training = True
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            for module, mode in modes:
                module.training = mode
