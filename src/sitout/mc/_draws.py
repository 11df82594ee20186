"""Draws at an address: (seed, site, sample, row); a site is the n-th draw of the forward."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from .. import backends, masks
from ..backends import Address
from ..backends._drop import drop
from ..masks import MaskKey
from ._tape import ALMOST_1, DROP, aten, chance, uniform_bounds

if TYPE_CHECKING:
    from collections.abc import Sequence

At = tuple[int, int] | None
"""The dim of the rows, and how many of its indices belong to one row; None without such a dim."""


class _Form(NamedTuple):
    """A shape in which each index of ``dim`` has one address."""

    sizes: tuple[int, ...]
    dim: int
    shared: tuple[int, ...]
    rows: Tensor | None
    step: int | Tensor


@dataclass(frozen=True)
class Addresses:
    """Where the draws of one run are: samples times rows, the samples first.

    Args:
        seed: of all masks.
        samples: the numbers of the samples that run together.
        rows: int64 ``[B]``, the position of each row; zeros where all rows have one mask.
        locked: dims along which one mask bit serves all.
    """

    seed: int
    samples: range
    rows: Tensor
    locked: tuple[int, ...] = ()

    def drop(
        self, site: int, x: Tensor, at: At, p: float | Tensor, law: Any, dims: Sequence[int] = ()
    ) -> Tensor:
        """Return ``x`` after dropout.

        Args:
            site: which draw of the forward it is.
            x: the samples one after the other.
            at: where its rows are.
            p: drop rate, a fraction in [0, 1], or as data.
            law: see :func:`sitout.backends.reference.drop`.
            dims: along which one mask bit serves all.
        """
        form = self._form(tuple(x.shape), at, dims)
        key = MaskKey(self.seed, site, form.step)
        address = Address(key, form.shared, form.dim, form.rows)
        return drop(x.reshape(form.sizes), address, p, law).view(x.shape)

    def keep(
        self, site: int, shape: Sequence[int], at: At, p: float, dims: Sequence[int] = ()
    ) -> Tensor:
        """Return a mask of a shape, True where an element is kept.

        Args:
            site: as for :meth:`drop`.
            shape: of the samples one after the other.
            at: as for :meth:`drop`.
            p: as for :meth:`drop`.
            dims: as for :meth:`drop`.
        """
        form = self._form(tuple(shape), at, dims)
        made = backends.keep_mask(
            MaskKey(self.seed, site, form.step),
            p,
            form.sizes,
            shared_dims=form.shared,
            batch_dim=form.dim,
            rows=form.rows,
            device=self.rows.device,
        )
        return made.expand(form.sizes).reshape(tuple(shape))

    def first_row(self, site: int, width: int, p: float) -> Tensor:
        """Return the mask of the first row of the first sample, bool ``[width]``.

        Args:
            site: as for :meth:`drop`.
            width: how many columns.
            p: as for :meth:`drop`.
        """
        key = MaskKey(self.seed, site, self.samples[0])
        rows = self.rows[:1]
        keep = backends.keep_mask(key, p, (1, width), rows=rows, device=self.rows.device)
        return keep[0]

    def uniform(self, site: int, shape: Sequence[int], at: At) -> Tensor:
        """Return numbers in [0, 1), float32: below p where the mask of p in wide words drops.

        Args:
            site: as for :meth:`drop`.
            shape: of the samples one after the other.
            at: as for :meth:`drop`.
        """
        form = self._form(tuple(shape), at, ())
        key = MaskKey(self.seed, site, form.step)
        place = masks._place(form.sizes, (), form.dim, form.rows, None, self.rows.device)
        words = masks._words(key, masks._WIDE, place.rows, masks._blocks(place, 4))
        numbers = torch.stack(words, -1).flatten(1)[:, : math.prod(form.sizes) // len(place.rows)]
        return (place.arrange(numbers) >> 8).float().mul_(2.0**-24).reshape(tuple(shape))

    def _form(self, shape: tuple[int, ...], at: At, dims: Sequence[int]) -> _Form:
        shared = {
            dim % len(shape) for dim in (*dims, *self.locked) if -len(shape) <= dim < len(shape)
        }
        if at is None:  # of a weight: one mask for all rows
            return _Form(shape, 0, tuple(shared), None, self.samples[0])
        dim, span = at
        samples = torch.arange(self.samples.start, self.samples.stop, device=self.rows.device)
        behind = tuple(one + 1 for one in shared if one > dim)
        before = tuple(one for one in shared if one < dim)
        if dim in shared:
            sizes = (*shape[:dim], len(samples), shape[dim] // len(samples), *shape[dim + 1 :])
            return _Form(sizes, dim, (*before, dim + 1, *behind), samples * 0, samples)
        rows, step = self.rows.repeat(len(samples)), samples.repeat_interleave(len(self.rows))
        if span == 1 and len(shape) > 1:
            return _Form(shape, dim, tuple(shared), rows, step)
        sizes = (*shape[:dim], len(rows), span, *shape[dim + 1 :])
        return _Form(sizes, dim, (*before, *behind), rows, step)


@dataclass(frozen=True)
class AllPlay:
    """Draws in which all play in the first sample, as on a tape, and every other one in the rest.

    Args:
        samples: those that run together; the first is number 0.
        device: of the masks.
    """

    samples: range
    device: torch.device

    def drop(self, site: int, x: Tensor, at: At, *_: object) -> Tensor:
        """Return ``x`` where its elements play, and 0 elsewhere."""
        return x * self._plays(x.shape, at).to(x.dtype)

    def keep(self, site: int, shape: Sequence[int], at: At, *_: object) -> Tensor:
        """Return a mask."""
        return self._plays(shape, at)

    def uniform(self, site: int, shape: Sequence[int], at: At) -> Tensor:
        """Return numbers that are nearly 1, or 0."""
        return self._plays(shape, at) * ALMOST_1

    def _plays(self, shape: Sequence[int], at: At) -> Tensor:
        if at is None:
            return torch.ones(tuple(shape), dtype=torch.bool, device=self.device)
        sizes = [*shape]
        sizes[at[0]] //= len(self.samples)
        odd = (torch.arange(math.prod(sizes), device=self.device) % 2 == 1).view(sizes)
        return torch.cat([odd | (sample == 0) for sample in self.samples], at[0])


Draws = Addresses | AllPlay


def draw(
    where: Draws, site: int, at: At, func: Any, args: Sequence[Any], kwargs: Any
) -> list[Tensor]:
    """Do what an op that draws does, with bits at an address.

    Args:
        where: the addresses of the run.
        site: which draw of the forward it is.
        at: where the rows of its first tensor, or of its result, are.
        func: the op.
        args: its arguments.
        kwargs: likewise.
    """
    x = args[0]
    if func is DROP:
        shared_dims, rate, p, law = args[5], *args[7:10]
        return [where.drop(site, x, at, p if rate is None else rate, law, shared_dims)]
    if func in (aten.bernoulli_.float, aten.bernoulli.p):
        keep = where.keep(site, x.shape, at, 1.0 - chance(args))
        return [x.copy_(keep) if func is aten.bernoulli_.float else keep.to(x.dtype)]
    if func is aten.native_dropout.default:
        keep = where.keep(site, x.shape, at, args[1])
        return [torch.where(keep, x * (1.0 / (1.0 - args[1])), 0.0), keep]
    if func is aten.uniform_.default:
        low, high = uniform_bounds(args)
        return [x.copy_(where.uniform(site, x.shape, at)).mul_(high - low).add_(low)]
    made = func(*args, **kwargs)
    return [made.copy_(where.uniform(site, made.shape, at))]
