"""What every function does before it reaches a backend, stated once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from .. import _checks, backends, masks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..backends._law import Law

FORMS = ("auto", "thinned", "masked")  # of what may leave out what sits out


def begin(x: Tensor, p: float | Tensor, law: Law, training: bool, owner: str) -> bool | None:
    """Return None if there is nothing to do: the identity draws no ticket.

    Otherwise return whether ``x`` may go straight to the core, for :func:`drop`.

    Raises:
        TypeError: in training, ``x`` is no tensor that a mask can be laid over.
    """
    if not training or _holds(p, 0.0, law):
        return None
    direct = isinstance(x, Tensor) and backends.is_direct(x)
    if not direct:
        _check_input(x, owner)
    return direct if x.numel() > 0 else None


def _holds(p: float | Tensor, rate: float, law: Law) -> bool:
    """Return whether the rate that holds is known to be this one, 0 or 1."""
    if type(p) is float and 0.25 <= p <= 0.75:
        return False
    if isinstance(p, Tensor):
        return False  # only the device knows
    return (p if law == "gaussian" else masks.effective_rate(p)) == rate


def _check_input(x: object, owner: str) -> None:
    what = f"The input of {owner}"
    if not isinstance(x, Tensor):
        got, way_out = type(x).__name__, ""
        if isinstance(x, torch.fx.Proxy):
            got = "a symbolic trace in training"
            way_out = "Trace the model in evaluation, or use torch.export."
        raise TypeError(_checks.message(what, "a tensor", got, way_out))
    if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        rule, way_out = "no trace in training", "Trace in evaluation, or use torch.export."
        raise TypeError(_checks.message(what, rule, "torch.jit.trace", way_out))
    if x.is_nested:
        rule, way_out = "one tensor of one shape", "Apply it to each of x.unbind()."
        raise TypeError(_checks.message(what, rule, "a nested tensor", way_out))
    if x.layout != torch.strided:
        rule, way_out = "dense", "Apply it to x.to_dense() or to the values."
        raise TypeError(_checks.message(what, rule, x.layout, way_out))
    if type(x).__module__.startswith("torch.distributed.tensor"):
        rule, way_out = "a local tensor", "Pass x.to_local(), with rows= and block= of the shard."
        raise TypeError(_checks.message(what, rule, type(x).__name__, way_out))
    if not x.is_floating_point():
        way_out = "" if x.is_complex() else "Convert it with x.float()."
        rule = "of a floating dtype in training"
        raise TypeError(_checks.message(what, rule, x.dtype, way_out))


class Options(NamedTuple):
    """The keywords that all functions share: where the mask comes from and what shares its bits."""

    key: masks.MaskKey | None
    rows: Tensor | None
    block: Sequence[tuple[int, int]] | None
    shared_dims: Sequence[int]
    batch_dim: int
    generator: torch.Generator | None


def quick_address(
    x: Tensor, p: float | Tensor, training: bool, options: tuple[Any, ...]
) -> backends.Address | None:
    """Return the address of what most calls are, some microseconds sooner; None for all others.

    It is that of a call in default mode with no option, whose ``x`` may go straight to the core.
    """
    key, rows, block, shared, batch_dim, generator = options
    if (
        training
        and key is rows is block is generator is None
        and type(shared) is tuple
        and not shared
        and type(batch_dim) is int
        and type(p) is float
        and 0.02 <= p <= 0.98
        and backends.is_direct(x)
        and x.numel()
    ):
        return backends.Address(masks._draw_ticket(), (), batch_dim)
    return None


def run(
    x: Tensor,
    p: float | Tensor,
    law: Law,
    training: bool,
    inplace: bool,
    owner: str,
    options: tuple[Any, ...],
) -> Tensor:
    """Do all of a call whose input is as its mask is laid: check, draw, drop.

    Raises:
        TypeError: as :func:`begin` and :func:`drop`.
        ValueError: as :func:`drop`.
    """
    where = quick_address(x, p, training, options)
    if where is not None:
        return backends.drop_directly(x, where, p, law, inplace)
    p = _checks.rate_or_data(p, owner, below_one=law == "gaussian")
    direct = begin(x, p, law, training, owner)
    if direct is None:
        return x
    return drop(x, p, law, owner, Options(*options), direct, inplace)


def drop(
    x: Tensor,
    p: float | Tensor,
    law: Law,
    owner: str,
    options: Options,
    direct: bool,
    inplace: bool = False,
) -> Tensor:
    """Drop from ``x`` at the address of this call.

    Raises:
        TypeError: an option has the wrong type.
        ValueError: both a key and a generator were given, or a block is not made of pairs.
    """
    where = address(x, p, law, owner, options, direct)
    if direct:
        return backends.drop_directly(x, where, p, law, inplace)
    return backends.drop(x, where, p, law, inplace)


def address(
    x: Tensor, p: float | Tensor, law: Law, owner: str, options: Options, direct: bool
) -> backends.Address:
    """Return the address of this call.

    In default mode it is drawn, unless all sits out and nothing hangs on it.

    Raises:
        TypeError: as :func:`drop`.
        ValueError: as :func:`drop`.
    """
    key, rows, block, shared, batch_dim, generator = options
    if type(shared) is not tuple or shared:
        shared = _checks.dims(shared, "shared_dims", owner)
    if block is not None:
        block = _checks.pairs(block, "block", owner)
    _checks.integer(batch_dim, "batch_dim", "a mask")
    if generator is not None:
        _checks.generator(generator, owner)
        if key is not None:
            what, rule = f"The randomness of {owner}", "given as `key` or as `generator`"
            raise ValueError(_checks.message(what, rule, "both"))
    if key is None:
        if _holds(p, 1.0, law):
            key = masks.MaskKey()
        elif direct and generator is None:
            return backends.Address(masks._draw_ticket(), shared, batch_dim, rows, block)
        else:
            _check_draw(owner, generator)
            key = masks.draw_key(x.device, generator)
    elif not isinstance(key, masks.MaskKey):
        raise TypeError(_checks.message(f"`key` of {owner}", "a MaskKey", key))
    return backends.Address(key, shared, batch_dim, rows, block)


def _check_draw(owner: str, generator: torch.Generator | None) -> None:
    """Refuse a draw that would be another one in backward, or would be made once for all calls."""
    if not torch.compiler.is_compiling():
        if generator is not None and torch._C._current_graph_task_id() != -1:
            what, rule = f"`generator` of {owner}", "None where a forward is repeated in backward"
            way_out = "A checkpoint restores torch's own generator only: use a MaskClock, or key=."
            raise RuntimeError(_checks.message(what, rule, "a Generator", way_out))
        return
    if generator is not None:
        what, rule = f"`generator` of {owner}", "None in compiled code"
        way_out = "Draw outside: key=sitout.masks.draw_key(generator=...)."
        raise ValueError(_checks.message(what, rule, "a Generator", way_out))
    budget = torch._functorch.config.activation_memory_budget
    if budget < 1.0 and torch.is_grad_enabled():
        # The partitioner repeats draws in backward: https://github.com/pytorch/pytorch/issues/190758
        what = "torch._functorch.config.activation_memory_budget"
        rule = f"1 for {owner} without a key"
        way_out = "Torch would draw another mask in backward: use a MaskClock, or pass key=."
        raise RuntimeError(_checks.message(what, rule, budget, way_out))


def check_residual(x: Tensor, residual: object, owner: str) -> None:
    """Refuse what is no tensor of the shape of ``x``.

    Raises:
        TypeError: it is no tensor.
        ValueError: it has another shape.
    """
    what = f"`residual` of {owner}"
    if not isinstance(residual, Tensor):
        raise TypeError(_checks.message(what, "a tensor", residual))
    if isinstance(x, Tensor) and residual.shape != x.shape:
        rule = f"of the shape of the input, {tuple(x.shape)}"
        raise ValueError(_checks.message(what, rule, tuple(residual.shape)))


def with_spatial(shared_dims: Sequence[int], rank: int) -> tuple[int, ...]:
    """Return the shared dims of a mask ``[N, C, 1, ...]``, with those asked for besides."""
    return (*shared_dims, *range(2, rank))


def check_channel_batch_dim(batch_dim: int, unbatched: bool, owner: str) -> None:
    """Refuse a batch dim among the spatial ones, or one that an unbatched input does not have.

    Raises:
        ValueError: there is one.
    """
    if batch_dim not in ((0,) if unbatched else (0, 1)):
        rule = "0 for an input without a batch dim" if unbatched else "0 or 1 ([C, N, ...])"
        raise ValueError(_checks.message(f"`batch_dim` of {owner}", rule, batch_dim))
