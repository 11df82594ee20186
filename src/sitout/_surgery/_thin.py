"""thin: what sits out in a step is not computed in that step."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from .. import _checks
from .._rates import kind_of
from .._where import Where, fitting, nothing_found
from ..functional._call import FORMS
from ..nn import ResidualDropPath, ThinnedDropout
from ..nn._thinned_conv import _BatchNorm
from ..nn._thinned_layers import Thinned
from ._blocks import find_blocks
from ._chains import Asked, Chain, find_chains
from ._change import Change, Edit, check_model
from ._counterpart import carry
from ._eligible import TWINS
from ._swap import swap

if TYPE_CHECKING:
    from collections.abc import Iterable

_LAZY = (UninitializedParameter, UninitializedBuffer)


def thin(
    model: nn.Module,
    groups: int = 1,
    *,
    group_size: int | None = None,
    form: str = "auto",
    where: Where = None,
) -> Change:
    """Let whole units sit out together, and compute none of them.

    A chain of a linear layer, elementwise functions, a dropout layer and the linear layers behind
    it becomes one in which a training step computes only the units that play: rows of the first
    weight, columns of the next. It serves networks of several hidden layers, the feed-forward part
    of transformers, gated ones too, and convolutions with ``Dropout1d`` to ``Dropout3d``, with
    batch normalization of the kept channels and pools in between. A residual block with drop path
    becomes one whose branch runs on the samples that keep it.

    Units sit out for a group of rows now, where a dropout layer drops each element by itself: see
    :class:`sitout.nn.ThinnedDropout`. The forwards stay the user's own, parameters keep their
    identity, names and order, and in evaluation the outputs are the same to the bit. Checkpoints,
    optimizers and a :class:`sitout.MaskClock` go on.

    The chains are found by following the forwards in training mode with the default arguments, as
    ``torch.fx`` does. ``Change.unreached`` has a line for each dropout that stays, with the reason.

    Args:
        model: any module.
        groups: how many groups of rows a batch has; each draws its own units. 1 is the fastest.
        group_size: rows of a group, instead of ``groups``.
        form: "thinned" or "masked"; "auto" takes the faster one at each step.
        where: which dropout layers: a glob on the qualified name, a type, a predicate of (name,
            module), or several of these. All if None.

    Returns:
        What was changed, with its ``undo``. ``Change.sites`` are the names of the layers that say
        which units play.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, ``where`` fits no dropout layer, the model has
            lazy layers that have not run yet, or there is nothing to thin.
        RuntimeError: :func:`sitout.disabled` is in force.

    Example:
        >>> first, last = torch.nn.Linear(8, 64), torch.nn.Linear(64, 2)
        >>> model = torch.nn.Sequential(first, torch.nn.ReLU(), torch.nn.Dropout(0.5), last)
        >>> sitout.thin(model).sites
        ['2']
        >>> model[2], type(model[3]).__name__
        (ThinnedDropout(p=0.5, groups=1), 'ThinnedLinear')

    Reference:
        Graham et al. 2015, arXiv 1502.02478 (units of a batch); Huang et al. 2016, arXiv 1603.09382
        (residual branches).
    """
    _check(model, groups, group_size, form)
    fits = _all if where is None else fitting(model, where, "thin")
    asked = Asked(fits, groups, group_size)
    every = find_chains(model, asked)
    blocks, left = find_blocks(model, fits)
    chains = [one for one in every if not one.problem]
    unreached = [*_lines(one for one in every if one.problem and _is_worth(one)), *left]
    if not chains and not blocks:
        raise _nothing(model, where, fits, unreached)
    edits = _swapped(model, chains, asked, form)
    try:
        for block in blocks:
            edits += block.install(form)
    except BaseException:
        for edit in reversed(edits):
            edit.undo()
        raise
    sites = [*(one.site for one in chains), *(one.site for one in blocks)]
    return Change("thin", model, sites, unreached, edits)


def _all(name: str, module: nn.Module) -> bool:
    return True


def _check(model: object, groups: object, group_size: object, form: str) -> None:
    check_model(model, "thin")
    for name, value in (("groups", groups), ("group_size", group_size)):
        if value is None and name == "group_size":
            continue
        if _checks.integer(value, name, "thin") < 1:
            raise ValueError(_checks.message(f"`{name}` of thin", "1 or more", value))
    _checks.choice(form, FORMS, "`form` of thin")
    assert isinstance(model, nn.Module)
    tensors = [*model.named_parameters(), *model.named_buffers()]
    lazy = [name for name, tensor in tensors if isinstance(tensor, _LAZY)]
    if lazy:
        way_out = "Run the model once: lazy layers learn their shapes from their first inputs."
        raise ValueError(_checks.message("`model` of thin", "initialized", lazy, way_out))


def _is_worth(chain: Chain) -> bool:
    """Return whether a user may want to know why a dropout stays: it drops, or is near a layer."""
    return bool(chain.before) or chain.dropout is None or getattr(chain.dropout, "p", 1.0) != 0.0


def _lines(chains: Iterable[Chain]) -> list[str]:
    """Return a line for each chain that stays; those of alike blocks in one."""
    alike: dict[str, list[str]] = {}
    for chain in chains:
        line = str(chain)
        alike.setdefault(re.sub(r"\d+", "0", line), []).append(line)
    return [
        lines[0] if len(lines) == 1 else f"{lines[0]} (and {len(lines) - 1} alike)"
        for lines in alike.values()
    ]


def _nothing(model: nn.Module, where: Where, fits: Any, unreached: list[str]) -> ValueError:
    thinned = 0
    drops = []
    for name, module in model.named_modules():
        thinned += isinstance(module, (ThinnedDropout, ResidualDropPath)) and fits(name, module)
        drops += [name] if kind_of(module) else []
    if where is not None and not any(fits(name, model.get_submodule(name)) for name in drops):
        return nothing_found(where, "thin", "a dropout layer", drops)
    seen = "; ".join(unreached[:3]) + ("; ..." if unreached[3:] else "")
    way_out = f"Left: {seen}." if seen else "No dropout layer between layers was found in it."
    if thinned:
        way_out = f"Its {thinned} sites are thinned already. {way_out if seen else ''}".rstrip()
    rule = (
        "one with a chain of a layer, an elementwise function, a dropout layer and a layer, or a "
        "residual block with drop path"
    )
    return ValueError(_checks.message("`model` of thin", rule, type(model).__name__, way_out))


def _swapped(model: nn.Module, chains: list[Chain], asked: Asked, form: str) -> list[Edit]:
    """Hang thinned layers in the places of those of all chains."""
    modules = dict(model.named_modules(remove_duplicate=False))
    made: dict[int, Any] = {}

    def twin(name: str) -> Any:
        old = modules[name]
        return made.setdefault(id(old), _twin(old))

    for chain in chains:
        site = _site(chain, asked, form)
        made[id(chain.dropout)] = site
        for name in chain.before:
            twin(name).stand(before=site, after=None)
        for name in chain.norms:
            twin(name).within(site)
        for name in chain.behind:
            twin(name).stand(before=None, after=site)
    return swap(modules, made)


def _site(chain: Chain, asked: Asked, form: str) -> ThinnedDropout:
    dropout: Any = chain.dropout
    site = ThinnedDropout(
        float(dropout.p),
        groups=asked.groups,
        group_size=asked.group_size,
        dim=chain.dim,
        batch_dim=chain.batch_dim,
        form=form,
    )
    carry(site, dropout)
    return site


def _twin(old: nn.Module) -> Thinned | _BatchNorm:
    """Return a thinned layer with the very parameters, buffers and hooks of another one.

    The tables are shared, so what one gets, by ``to`` or ``load_state_dict``, the other one has.
    """
    made: Any = TWINS[type(old)]
    new: Any = made.__new__(made)
    new.__dict__ = dict(vars(old))
    return new  # type: ignore[no-any-return]
