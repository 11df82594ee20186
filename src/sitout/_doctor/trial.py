"""The core against the reference: random cases on every target, equal to the bit."""

from __future__ import annotations

import math
import random
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..backends import Address, cpu, reference
from ..masks import MaskKey, rate_data

if TYPE_CHECKING:
    from ..backends._law import Law

_INTS = {
    torch.float32: torch.int32,
    torch.float64: torch.int64,
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
}
_LAWS: list[Law] = ["dropout", "path", "alpha", "alpha_slope"]
_RATES = [2**-33, 2**-32, 0.001, 1 / 64 - 1e-9, 1 / 64, 0.1, 0.3, 0.5, 63 / 64, 1 - 1e-9, 1.0]
_SIZES = [1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 100, 129]
_LEAST = 20  # cases, on a machine of any speed
_LARGE = 300_007  # elements: enough for several threads


class Case(NamedTuple):
    """Arguments of a backend's ``drop``."""

    x: Tensor
    address: Address
    p: float | Tensor
    law: Law


class Difference(NamedTuple):
    """The first element that differs, and all that it takes to see it again."""

    target: str
    case: int
    law: str
    p: str
    dtype: str
    shape: list[int]
    strides: list[int]
    address: str
    place: list[int]
    x: str
    core: str
    reference: str

    def __str__(self) -> str:
        """Return it in lines, the last ones in Python."""
        lines = [f"{name} = {value}" for name, value in self._asdict().items()]
        again = [
            "from sitout._doctor.trial import case",
            "from sitout.backends import cpu, reference",
            f"cpu.core().use_target({self.target!r})",
            f"cpu.drop(*case({self.case})), reference.drop(*case({self.case}))",
        ]
        return "\n  ".join(["DIFFERENT", *lines, "To see it again:", *again])


class Trial(NamedTuple):
    """What the comparison came to: how many cases on which targets, and the first difference."""

    cases: int
    targets: list[str]
    difference: Difference | None

    def __str__(self) -> str:
        """Return the verdict."""
        if self.difference is not None:
            return str(self.difference)
        targets = f"{len(self.targets)} target{'s' * (len(self.targets) != 1)}"
        return f"{self.cases} cases on {targets}: all equal"


def run(seconds: float) -> Trial:
    """Compare for so long, or up to the first difference; the target found is left in use.

    Example:
        >>> run(0.0).difference is None
        True
    """
    core = cpu.core()
    targets, before = core.targets().split(), core.target()
    number, end = 0, perf_counter() + seconds
    try:
        while number < _LEAST or perf_counter() < end:
            one = case(number)
            wanted = reference.drop(*one)
            for target in targets:
                core.use_target(target)
                difference = _difference(target, number, one, wanted)
                if difference is not None:
                    return Trial(number + 1, targets, difference)
            number += 1
    finally:
        core.use_target(before)
    return Trial(number, targets, None)


def _difference(target: str, number: int, case: Case, wanted: Tensor) -> Difference | None:
    x, address, p, law = case
    made: Tensor | None = None
    try:
        made = cpu.drop(*case)
        if (made.dtype, made.shape) == (wanted.dtype, wanted.shape):
            places = _unequal(made, wanted).nonzero()
            if len(places) == 0:
                return None
            index = tuple(places[0].tolist())
            values = [repr(tensor[index].item()) for tensor in (x, made, wanted)]
        else:
            index, values = (), ["", f"{made.dtype} {[*made.shape]}", "like x"]
    except Exception as error:  # a broken core may fail in any way
        index, values = (), ["", f"{type(error).__name__}: {error}", "no error"]
    return Difference(
        target,
        number,
        law,
        _one_line(p),
        str(x.dtype).removeprefix("torch."),
        list(x.shape),
        list(x.stride()),
        _one_line(address),
        list(index),
        *values,
    )


def _unequal(made: Tensor, wanted: Tensor) -> Tensor:
    """Return where two tensors differ in a bit; one NaN is like another."""
    ints = _INTS[made.dtype]
    return (made.view(ints) != wanted.view(ints)) & ~(made.isnan() & wanted.isnan())


def _one_line(value: object) -> str:
    return " ".join(repr(value).split())


def case(number: int) -> Case:
    """Return a case: the same for the same number, wherever torch is the same.

    Example:
        >>> case(4).law
        'path'
    """
    draw = random.Random(number)
    rank = draw.choice([0, 1, 1, 2, 2, 2, 3, 3, 4, 5])
    shape = [draw.choice(_SIZES) for _ in range(rank)]
    while math.prod(shape) > 20_000:
        shape[draw.randrange(rank)] = draw.choice([0, 1, 2, 3])
    if number % 20 == 0:
        rank, shape = 1, [_LARGE]
    x = _laid_out(draw, _values(draw, shape))
    shared = tuple(dim for dim in range(rank) if draw.random() < 0.2)
    batch = draw.randrange(rank) if rank > 1 and draw.random() < 0.4 else 0
    n_rows = x.shape[batch] if rank > 1 and batch not in shared else 1
    positions = torch.tensor([draw.getrandbits(32) for _ in range(n_rows)], dtype=torch.int64)
    rows = positions if draw.random() < 0.3 else None
    step = positions.flip(0) if draw.random() < 0.2 else draw.getrandbits(32)
    key = MaskKey(draw.getrandbits(64), draw.getrandbits(28), step, draw.getrandbits(32))
    sizes = [
        1 if dim in shared else x.shape[dim] for dim in range(rank) if rank < 2 or dim != batch
    ]
    block = None
    if draw.random() < 0.3:
        starts = [draw.choice([0, 1, 5, 33]) for _ in sizes]
        more = [draw.choice([0, 3, 64]) for _ in sizes]
        block = tuple((a, a + n + b) for a, n, b in zip(starts, sizes, more, strict=True))
    rate = draw.choice(_RATES)
    p = rate_data(rate) if draw.random() < 0.2 else rate
    return Case(x, Address(key, shared, batch, rows, block), p, draw.choice(_LAWS))


def _values(draw: random.Random, shape: list[int]) -> Tensor:
    """Return numbers of the usual size, or any bits: subnormal, infinite and NaN too."""
    dtype, ints = draw.choice(list(_INTS.items()))
    generator = torch.Generator().manual_seed(draw.getrandbits(32))
    if draw.random() < 0.5:
        usual = torch.randint(-(2**20), 2**20, shape, generator=generator)
        return (usual.double() / 2**18).to(dtype)
    least = torch.iinfo(ints).min
    return torch.randint(least, -least - 1, shape, dtype=ints, generator=generator).view(dtype)


def _laid_out(draw: random.Random, x: Tensor) -> Tensor:
    """Return the same shape with strides of any kind."""
    how = draw.randrange(6) if x.dim() else 5
    if how == 0:
        return torch.stack([x, x], -1)[..., 0]
    if how == 1:
        order = draw.sample(range(x.dim()), x.dim())
        return x.permute(order).contiguous().permute([order.index(dim) for dim in range(x.dim())])
    if how == 2:
        start = x.shape[-1] // 2
        return torch.cat([x, x], -1)[..., start : start + x.shape[-1]]
    return x[:1].expand(x.shape) if how == 3 else x
