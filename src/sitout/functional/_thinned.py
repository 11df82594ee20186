"""Thinned layers: whole units sit out for a group of rows, and are not computed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import _checks, backends, masks
from ..backends import Kept
from . import _call

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..masks import MaskKey

_CONV = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}


def keep_units(
    x: Tensor,
    n: int,
    p: float = 0.5,
    *,
    groups: int = 1,
    group_size: int | None = None,
    batch_dim: int = 0,
    key: masks.MaskKey | None = None,
    rows: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Kept:
    """Draw which of ``n`` units play, for each group of rows, by the fixed law.

    In each group k = n - round(p n) units play, but at least one for p < 1. Their values are
    scaled by n / k where they are read.

    Args:
        x: ``[B, ...]``: its rows are grouped. Only the shape and the device count.
        n: number of units.
        p: drop rate, a fraction in [0, 1].
        groups: how many groups a batch has, of ceil(B / groups) rows each; the last may have fewer.
        group_size: rows of a group, instead of ``groups``.
        batch_dim: the dim of the samples.
        key: the address; if None a ticket is drawn.
        rows: int64 ``[B]``, the positions in the global batch: the group of a row is
            ``row // group_size``. 0 .. B-1 if None.
        generator: to draw the ticket from.

    Returns:
        The subset, for :func:`thinned_linear`, :func:`thinned_conv`, :func:`thinned_batch_norm`
        and :func:`thinned_dropout`.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, or k / n is not within 0.01 of 1 - p.

    Example:
        >>> x = torch.ones(4, 3)
        >>> sitout.functional.keep_units(x, 6, 0.5, groups=2, key=sitout.MaskKey(seed=0)).units
        tensor([[2, 3, 4],
                [0, 3, 4]])

    Reference:
        Graham et al. 2015, arXiv 1502.02478 (one subset for the batch).
    """
    owner = "keep_units"
    p, n = _checks.rate(p, owner), masks._check_count(n, owner)
    check_count(p, n, owner)
    batch = x.shape[_checks.dim(batch_dim, x.dim(), "batch_dim")]
    step = _step(batch, groups, group_size, owner)
    settled = key is None and _is_settled(x, p, n)
    key = masks.MaskKey() if settled else key_of(key, generator, x.device, owner)
    numbers, of, sizes = _groups(x.device, batch, step, rows)
    return Kept(backends.draw(key, p, n, numbers), n, step, of, sizes)


def _is_settled(x: Tensor, p: float, n: int) -> bool:
    """Return whether nothing hangs on the key, so that no ticket is drawn."""
    return p in (0.0, 1.0) or n == 0 or x.numel() == 0


def key_of(
    key: masks.MaskKey | None, generator: torch.Generator | None, device: torch.device, owner: str
) -> MaskKey:
    """Return the key of a call; without one, a ticket is drawn.

    Raises:
        TypeError: one of the two has the wrong type.
        ValueError: both were given.
    """
    _checks.generator(generator, owner)
    if key is None:
        _call._check_draw(owner, generator)
        return masks.draw_key(device, generator)
    if generator is not None:
        what, rule = f"The randomness of {owner}", "given as `key` or as `generator`"
        raise ValueError(_checks.message(what, rule, "both"))
    if not isinstance(key, masks.MaskKey):
        raise TypeError(_checks.message(f"`key` of {owner}", "a MaskKey", key))
    return key


def check_count(p: float, n: int, owner: str) -> None:
    """Refuse a number of units of which no count comes near the rate.

    Raises:
        ValueError: 1 - k / n differs from p by more than 0.01.
    """
    if p in (0.0, 1.0) or n == 0:
        return
    held = 1.0 - masks._count_kept(p, n) / n
    if abs(held - p) > 0.01:
        rule = f"within 0.01 of one that {n} units can have"
        way_out = f"The nearest is {held:.4g}; more units come nearer."
        raise ValueError(_checks.message(f"`p` of {owner}", rule, p, way_out))


def _step(batch: int, groups: int, group_size: int | None, owner: str) -> int:
    """Return how many rows a group has."""
    name, value = ("groups", groups) if group_size is None else ("group_size", group_size)
    if _checks.integer(value, name, owner) < 1:
        raise ValueError(_checks.message(f"`{name}` of {owner}", "1 or more", value))
    return value if group_size is not None else max(-(-batch // groups), 1)


def _groups(
    device: torch.device, batch: int, step: int, rows: Tensor | None
) -> tuple[Tensor, Tensor | None, tuple[int, ...] | None]:
    """Return the numbers of the groups, and the last two fields of :class:`Kept`."""
    if rows is None:
        return torch.arange(max(-(-batch // step), 1), device=device), None, None
    rows = masks._check_rows(rows, batch)
    if masks._is_frozen():
        rows = rows.to(device)
    numbers = rows // step  # where the rows are: on the host nobody waits for a GPU
    if batch == 0:
        return torch.zeros(1, dtype=torch.int64, device=device), None, None
    first = numbers[::step]
    together = numbers == first.repeat_interleave(step)[:batch]
    if masks._is_frozen():
        torch._assert_async(
            together.all(),
            "`rows` in compiled code must hold the rows of a group one after the other. Got "
            "others. Order the batch by rows, or leave torch.compile out.",
        )
        return first, None, None
    if together.all():
        return masks._moved(first, device), None, None
    present, of, counts = numbers.unique(  # type: ignore[no-untyped-call]
        return_inverse=True, return_counts=True
    )
    in_order = bool((numbers.diff() >= 0).all())
    sizes = tuple(counts.tolist()) if in_order else None
    return masks._moved(present, device), masks._moved(of, device), sizes


def thinned_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    kept_in: Kept | None = None,
    kept_out: Kept | None = None,
) -> Tensor:
    """Apply a linear layer of which only the kept units are computed, and only kept ones read.

    Args:
        x: ``[B, ..., m]``; with ``kept_in`` ``[B, ..., k]``, the values of the units kept before.
        weight: ``[n, m]``.
        bias: ``[n]``, or None.
        kept_in: which of the ``m`` units there are; their values are scaled by m / k.
        kept_out: which of the ``n`` units are computed.

    Returns:
        ``[B, ..., n]``; with ``kept_out`` ``[B, ..., k]``. Only the kept rows and columns of the
        weight get a gradient; it is dense.

    Raises:
        ValueError: the subsets do not fit the weight or each other, or the rows of a group do not
            stand together: :func:`thinned_dropout` serves these.

    Example:
        >>> x, weight = torch.ones(2, 3), torch.ones(4, 3)
        >>> kept = sitout.functional.keep_units(x, 4, 0.5)
        >>> sitout.functional.thinned_linear(x, weight, kept_out=kept)
        tensor([[3., 3.],
                [3., 3.]])

    Reference:
        Graham et al. 2015, arXiv 1502.02478.
    """
    _check_fit(x, kept_in, kept_out, weight, "thinned_linear")
    return backends.linear(x, weight, bias, kept_in, kept_out)


def thinned_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    *,
    kept_in: Kept | None = None,
    kept_out: Kept | None = None,
) -> Tensor:
    """Apply a convolution of which only the kept channels are computed, and only kept ones read.

    Args:
        x: ``[N, C, *]`` with 1, 2 or 3 spatial dims; with ``kept_in`` ``[N, k, *]``.
        weight: ``[D, C, *]``: there are no convolution groups.
        bias: ``[D]``, or None.
        stride: as of ``torch.nn.functional.conv2d``, like the next two.
        padding: in elements, or "same" or "valid".
        dilation: in elements.
        kept_in: which of the ``C`` channels there are; their values are scaled by C / k.
        kept_out: which of the ``D`` channels are computed.

    Returns:
        ``[N, D, *]``; with ``kept_out`` ``[N, k, *]``.

    Raises:
        ValueError: as :func:`thinned_linear`.

    Example:
        >>> x, weight = torch.ones(2, 3, 4, 4), torch.ones(4, 3, 1, 1)
        >>> kept = sitout.functional.keep_units(x, 4, 0.5)
        >>> sitout.functional.thinned_conv(x, weight, kept_out=kept).shape
        torch.Size([2, 2, 4, 4])

    Reference:
        Tompson et al. 2015, arXiv 1411.4280 (whole channels); Graham et al. 2015, arXiv 1502.02478.
    """
    _check_fit(x, kept_in, kept_out, weight, "thinned_conv")
    conv: Any = _CONV[weight.dim()]
    kept = kept_in or kept_out
    parts = (x,) if kept is None else kept.parts(x)
    made = []
    for i, part in enumerate(parts):
        some, some_bias = backends.some_of(weight, bias, kept_in, kept_out, i)
        made.append(conv(part, some, some_bias, stride, padding, dilation))
    return torch.cat(made) if len(made) > 1 else made[0]


def thinned_batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    kept: Kept,
    momentum: float = 0.1,
    eps: float = 1e-5,
    training: bool = True,
) -> Tensor:
    """Apply batch normalization to the kept channels.

    A channel that is kept has the statistics that it has in the full network. One that sits out
    has none: its running statistics stay as they are.

    Args:
        x: ``[N, k, *]``, the kept channels.
        running_mean: ``[C]``, written to at the kept channels; or None.
        running_var: ``[C]``, likewise; or None.
        weight: ``[C]``, or None.
        bias: ``[C]``, or None.
        kept: which of the ``C`` channels there are, in one group.
        momentum: of the running statistics.
        eps: added to the variance.
        training: without it ``x`` is normalized by the running statistics, which stay as they are.

    Returns:
        Like ``x``.

    Raises:
        ValueError: there is more than one group: the statistics are those of the whole batch.

    Example:
        >>> x = torch.randn(8, 3)
        >>> kept = sitout.functional.keep_units(x, 6, 0.5)
        >>> sitout.functional.thinned_batch_norm(x, None, None, None, None, kept).shape
        torch.Size([8, 3])

    Reference:
        Ioffe and Szegedy 2015, arXiv 1502.03167.
    """
    if len(kept.units) != 1 or kept.of is not None:
        rule, got = "of one group, as the statistics are", f"{len(kept.units)} groups"
        raise ValueError(_checks.message("`kept` of thinned_batch_norm", rule, got))
    units = kept.units[0]
    some = [None if one is None else one.index_select(0, units) for one in (weight, bias)]
    mean, var = (
        None if one is None else one.index_select(0, units) for one in (running_mean, running_var)
    )
    out = F.batch_norm(x, mean, var, *some, training, momentum, eps)  # type: ignore[arg-type, call-arg]
    if not training:
        return out
    for whole, part in ((running_mean, mean), (running_var, var)):
        if whole is not None and part is not None:
            whole.index_copy_(0, units, part)
    return out


def thinned_dropout(x: Tensor, kept: Kept, *, dim: int = -1, batch_dim: int = 0) -> Tensor:
    """Return ``x`` with the kept units scaled and the others 0: a thinned layer in masked form.

    It is what thinned layers do where to gather does not pay, and what they equal, to rounding,
    where it does.

    Args:
        x: ``[B, ..., n, ...]``.
        kept: the subset; see :func:`keep_units`.
        dim: of the units.
        batch_dim: the dim of the samples.

    Returns:
        Like ``x``. What sits out is selected, never multiplied.

    Raises:
        ValueError: ``x`` has another number of units than the subset.

    Example:
        >>> x = torch.ones(2, 4)
        >>> kept = sitout.functional.keep_units(x, 4, 0.5, key=sitout.MaskKey(seed=1))
        >>> sitout.functional.thinned_dropout(x, kept).count_nonzero()
        tensor(4)
    """
    dim = _checks.dim(dim, x.dim(), "dim")
    if x.shape[dim] != kept.n:
        rule = f"a tensor with the {kept.n} units of its subset in dim {dim}"
        raise ValueError(_checks.message("`x` of thinned_dropout", rule, tuple(x.shape)))
    return backends.keep(x, kept, dim, _checks.dim(batch_dim, x.dim(), "batch_dim"))


class _Side(NamedTuple):
    name: str
    kept: Kept | None
    n: int


def _covers(kept: Kept, rows: int) -> bool:
    """Return whether the groups have so many rows in all."""
    if kept.sizes is not None:
        return sum(kept.sizes) == rows
    return len(kept.units) == -(-rows // kept.step)


def _check_fit(
    x: Tensor, kept_in: Kept | None, kept_out: Kept | None, weight: Tensor, owner: str
) -> None:
    """Refuse subsets that are not those of a weight, or whose groups differ."""
    sides = _Side("kept_in", kept_in, weight.shape[1]), _Side("kept_out", kept_out, weight.shape[0])
    for name, kept, n in sides:
        if kept is not None and kept.n != n:
            rule = f"a subset of the {n} units of the weight"
            raise ValueError(_checks.message(f"`{name}` of {owner}", rule, f"one of {kept.n}"))
        if kept is not None and not kept.together:
            rule, got = "of groups whose rows stand together", "others"
            way_out = "Use thinned_dropout, or order the batch by rows."
            raise ValueError(_checks.message(f"`{name}` of {owner}", rule, got, way_out))
        groups = 1 if kept is None else len(kept.units)
        if kept is not None and groups != 1 and not _covers(kept, len(x)):
            rule = f"of one group, or of groups of {kept.step} rows for {len(x)} rows"
            raise ValueError(_checks.message(f"`{name}` of {owner}", rule, f"{groups} groups"))
    if kept_in is not None and kept_out is not None:
        shapes = [(len(kept.units), kept.step, kept.sizes) for kept in (kept_in, kept_out)]
        if shapes[0] != shapes[1] and max(count for count, _, _ in shapes) > 1:
            what, rule = f"The subsets of {owner}", "of the same groups"
            raise ValueError(_checks.message(what, rule, shapes))
