"""Thinned layers: what sits out in a step is not computed in that step."""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import _checks, backends, functional
from ..backends import Explanation
from ..functional._call import FORMS
from ._base import Site

if TYPE_CHECKING:
    from ..backends import Kept


@dataclass
class _Draw:
    """The units of one call, from the layer before the site to the last one behind it.

    Args:
        kept: the units.
        thin: whether the others are not computed, or set to 0.
        thread: that drew them; 0 in compiled code.
        again: they were drawn in backward, where a checkpoint repeats a forward.
        begun: a bit for each layer before the site that has asked.
        read: a bit for each layer behind it.
        out: of the layer before the site, where somebody still holds it.
        place: the rank of its input, and the number of rows: what the groups hang on.
    """

    kept: Kept
    thin: bool
    thread: int = 0
    again: bool = False
    begun: int = 0
    read: int = 0
    out: weakref.ref[Tensor] | None = None
    place: tuple[int, int] = (0, 0)

    def check_place(self, x: Tensor, batch_dim: int) -> None:
        """Refuse a layer of the chain whose rows are others: they would be grouped otherwise."""
        here = _place(x, batch_dim)
        if len(self.kept.units) > 1 and here != self.place:
            what, rule = "The inputs of the layers of a chain", "of the same rank and rows"
            way_out = "With groups=1 they may differ."
            got = " and ".join(f"{rank} dims with {rows} rows" for rank, rows in (self.place, here))
            raise ValueError(_checks.message(what, rule, got, way_out))


class ThinnedDropout(Site):
    """Whole units sit out for a group of rows; the layers around this one do not compute them.

    It stands where a ``Dropout`` would, and draws which units play. A thinned layer before it
    computes only these, and one behind it reads only these::

        drop = sitout.nn.ThinnedDropout(0.5)
        net = torch.nn.Sequential(
            sitout.nn.ThinnedLinear(784, 2048, before=drop),
            torch.nn.ReLU(),
            drop,
            sitout.nn.ThinnedLinear(2048, 10, after=drop),
        )

    What stands in between has to be elementwise. By itself, and where to gather would take longer
    than it saves, it sets what sits out to 0: :meth:`explain` says which. Both forms have the same
    units and, to rounding, the same values. In evaluation it is the identity.

    Args:
        p: drop rate, a fraction in [0, 1].
        groups: how many groups of rows a batch has; each draws its own units. 1 is the fastest.
        group_size: rows of a group, instead of ``groups``: the group of a row is
            ``row // group_size``, so that micro-batches add up to the batch.
        dim: of the units: -1 behind a linear layer, 1 behind a convolution.
        batch_dim: the dim of the samples, 1 for ``[T, B, C]``.
        form: "thinned" or "masked"; "auto" takes the faster one.
        generator: drawn from instead of torch's default generator.

    Shape:
        ``[B, ..., n]`` to the same shape.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.

    Example:
        >>> sitout.nn.ThinnedDropout(0.5, groups=4)
        ThinnedDropout(p=0.5, groups=4)

    Reference:
        Graham et al. 2015, arXiv 1502.02478 (one subset a batch); Srivastava et al. 2014, JMLR 15
        (one a sample).

    Differs:
        The number of units that play is fixed, k = n - round(p n), so their indicators are slightly
        negatively correlated. With one group all rows of a batch train the same thinned network.
    """

    _p_is_number = True

    def __init__(
        self,
        p: float = 0.5,
        *,
        groups: int = 1,
        group_size: int | None = None,
        dim: int = -1,
        batch_dim: int = 0,
        form: str = "auto",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(p, batch_dim=batch_dim, generator=generator)
        owner = type(self).__name__
        for name, value in (("groups", groups), ("group_size", group_size)):
            if value is not None and _checks.integer(value, name, owner) < 1:
                raise ValueError(_checks.message(f"`{name}` of {owner}", "1 or more", value))
        self.groups, self.group_size = groups, group_size
        self.dim = _checks.integer(dim, "dim", owner)
        self.form = _checks.choice(form, FORMS, f"`form` of {owner}")
        self._sources = self._readers = 0  # how many layers stand before and behind it
        self._norms = 0  # batch normalizations before it, which take all rows at once
        self._now: _Draw | None = None
        self._first = 0  # the turn of the layer that draws

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x``; in training with 0 for what sits out, unless that was not computed."""
        if not self._drops():
            return x
        now = self._now
        if now is not None and now.thin:
            return x
        self._check_whole(now)
        self._hold(None)
        rows = _with_rows(x, self.batch_dim)
        kept = self._draw(rows, rows.shape[self.dim]) if now is None else now.kept
        out = functional.thinned_dropout(rows, kept, dim=self.dim, batch_dim=self.batch_dim)
        return out.view(x.shape) if rows is not x else out

    def explain(self, x: Tensor) -> Explanation:
        """Return which form a step takes, and why.

        Args:
            x: the input of the layer before: ``[B, ..., m]``, or ``[N, C, *]``.

        Example:
            >>> sitout.nn.ThinnedDropout(0.05).explain(torch.ones(512, 784)).backend
            'masked'
        """
        if not self._drops():
            why = "p is 0" if self.training else "it is in evaluation mode"
            return Explanation("full", f"nothing sits out: {why}")
        if not (self._sources and self._readers):
            return Explanation("masked", "no thinned layer stands before it, or none behind it")
        x = _with_rows(x, self.batch_dim)
        if self._groups_of(x) > 1 and self._needs_one_group():
            return Explanation("masked", self._needs_one_group())
        if self._p == 1.0:
            return Explanation("masked", "nobody plays at p = 1: there is nothing to gather")
        if self.form != "auto":
            return Explanation(self.form, f"form={self.form!r} was asked for")
        form = "thinned" if self._is_thin(x) else "masked"
        rows = self._rows_of_a_group(x)
        least = backends.least_rate(rows)
        why = f"p = {self.p:g}; with {rows} rows a group it pays from {least:.2g} on"
        return Explanation(form, why)

    def extra_repr(self) -> str:
        """Return what stands between the parentheses of ``repr``."""
        parts = [f"p={self.p}"]
        size = self.group_size
        parts += [f"groups={self.groups}"] if size is None else [f"group_size={size}"]
        parts += [f"dim={self.dim}"] if self.dim != -1 else []
        parts += [f"batch_dim={self.batch_dim}"] if self.batch_dim else []
        parts += [f"form={self.form!r}"] if self.form != "auto" else []
        parts += [f"generator={self.generator.device}"] if self.generator is not None else []
        return ", ".join(parts)

    def _drops(self) -> bool:
        return self.training and self._p != 0.0

    def _goes_with(self, kept: Kept) -> bool:
        """Return whether layers can take the rows of each group as they stand."""
        return len(kept.units) == 1 or (kept.together and not self._needs_one_group())

    def _needs_one_group(self) -> str:
        """Return why layers cannot take several groups; nothing if they can."""
        if self.batch_dim != 0:
            return f"the rows of a group stand apart in dim {self.batch_dim}"
        return "batch normalization takes all groups at once" if self._norms else ""

    def _is_thin(self, x: Tensor) -> bool:
        """Return whether a step is in thinned form; compiled code asks without a number of rows."""
        if not (self._sources and self._readers) or self._p == 1.0:
            return False
        if self.form != "auto":
            return self.form == "thinned"
        return backends.pays(self._p, self._rows_of_a_group(x))

    def _groups_of(self, x: Tensor) -> int:
        batch = x.shape[self.batch_dim]
        return self.groups if self.group_size is None else -(-batch // self.group_size)

    def _rows_of_a_group(self, x: Tensor) -> int:
        """Return how many rows a product of matrices has: places count as rows do."""
        features = x.shape[self.dim]
        return x.numel() // max(features, 1) // max(self._groups_of(x), 1)

    def _rows_of_the_clock(self) -> int | None:
        """Return the rows of a group; in a thinned branch those of the whole batch are counted."""
        batch = None if self._ticker is None or not self.training else self._ticker.batch()
        if self.group_size is not None or batch is None:
            return self.group_size
        return max(-(-batch // self.groups), 1)

    def _is_one_group(self) -> bool:
        """Return whether the layer is in a thinned branch, and the batch of that is one group.

        Then any of its samples tells which; the first ones are where the host can read them.
        """
        if self.groups > 1 or self.group_size is not None or self._ticker is None:
            return False
        return self._ticker.batch() is not None

    def _draw(self, x: Tensor, n: int) -> Kept:
        key, rows = self._address()
        if rows is not None and self._is_one_group():
            rows = self._ticker.first(len(rows))  # type: ignore[union-attr]
        return functional.keep_units(
            x,
            n,
            self._p,
            groups=self.groups,
            group_size=self._rows_of_the_clock(),
            batch_dim=self.batch_dim,
            key=key,
            rows=rows,
            generator=self.generator,
        )

    def _begin(self, x: Tensor, n: int, turn: int) -> Kept | None:
        """Return the units that a layer before this one computes; None for all.

        Args:
            x: its input.
            n: how many units there are.
            turn: the bit of the layer.
        """
        if not self._drops():
            self._now = None
            return None
        now, again = self._now, _in_backward()
        if now is None or now.begun & turn or now.again != again:
            self._check_read()
            if again and turn != self._first:
                raise _torn()
            if not torch.compiler.is_compiling():
                self._first = turn
            rows = _with_rows(x, self.batch_dim)
            kept = self._draw(rows, n)
            thin = self._is_thin(rows) and self._goes_with(kept)
            now = _Draw(kept, thin, _thread(), again, place=_place(rows, self.batch_dim))
            self._hold(now)
        now.begun |= turn
        if not now.thin:
            return None
        now.check_place(_with_rows(x, self.batch_dim), self.batch_dim)
        return now.kept

    def _check_read(self) -> None:
        """Refuse a second call before the first one was read: its units would be forgotten.

        What nobody holds any more is of a forward that failed.
        """
        now = self._now
        if now is None or now.out is None or now.again or torch.compiler.is_compiling():
            return
        if now.out() is not None and not _in_backward():
            self._now = None
            raise RuntimeError(
                "A layer before a ThinnedDropout must not be called again before the layer behind "
                "it was. Got a second call. Call all of the chain for one input after the other; "
                "after an interrupted forward, call again."
            )

    def _check_whole(self, now: _Draw | None) -> None:
        """Refuse a checkpoint that repeats the site without the layer that drew its units."""
        if now is not None:
            self._check_thread(now)
        elif self._sources and _in_backward():
            raise _torn()

    def _check_thread(self, now: _Draw) -> None:
        """Refuse what another thread has drawn: its units are not those of this input."""
        here = _thread()
        if here and now.thread not in (0, here):
            what, way_out = "A ThinnedDropout", "Give each thread a copy of the model."
            rule, got = "run by one thread at a time", "another one in between"
            raise RuntimeError(_checks.message(what, rule, got, way_out))

    def _made(self, out: Tensor) -> None:
        """Remember what a layer before this one gave."""
        now = self._now
        if now is not None and now.thin and not torch.compiler.is_compiling():
            now.out = weakref.ref(out)

    def _peek(self) -> Kept | None:
        """Return the units that a layer within the chain finds in its input; None for all."""
        now = self._now
        return now.kept if now is not None and now.thin and self._drops() else None

    def _read(self, x: Tensor, turn: int) -> Kept | None:
        """Return the units that a layer behind this one finds in its input ``x``; None for all."""
        now = self._now
        if now is None or not self._drops():
            return None
        self._check_thread(now)
        now.read |= turn
        if now.read == (1 << self._readers) - 1:
            self._hold(None)
        if not now.thin:
            return None
        now.check_place(_with_rows(x, self.batch_dim), self.batch_dim)
        return now.kept

    def _hold(self, now: _Draw | None) -> None:
        """Leave the units of a call to the next layer."""
        if torch.compiler.is_compiling():
            # In a checkpoint dynamo refuses to change an attribute, since backward would do so
            # again. Here it does not: the graph that is repeated holds the units.
            torch._dynamo.utils._disable_side_effect_safety_checks_for_current_subtracer(
                self._set, now
            )
        else:
            self._now = now

    def _set(self, now: _Draw | None) -> None:
        self._now = now

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_now": None}


def _place(x: Tensor, batch_dim: int) -> tuple[int, int]:
    """Return what the groups of a tensor hang on: its rank, and the number of rows."""
    return x.dim(), x.shape[batch_dim]


def _with_rows(x: Tensor, batch_dim: int) -> Tensor:
    """Return ``x``; one sample without a dim of rows, ``[n]``, gets one."""
    return x if x.dim() > 1 else x[(None,) * max(batch_dim + 1, 1)]


def _torn() -> RuntimeError:
    return RuntimeError(
        "A checkpoint around a ThinnedDropout must hold all layers before it. Got one without the "
        "layer that drew its units. Checkpoint all of the chain, or none of it."
    )


def _thread() -> int:
    return 0 if torch.compiler.is_compiling() else threading.get_ident()


def _in_backward() -> bool:
    """Return whether autograd is running, and repeats a forward; never in compiled code."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
