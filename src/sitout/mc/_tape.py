"""The tape: what torch's dispatcher runs in one forward, with every draw set to "all play"."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from .._sites._calls import dropping_argument

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

aten = torch.ops.aten
DROP = torch.ops.sitout.drop.default
ALMOST_1 = 1.0 - 2.0**-24
_TICKETS = 2**63 - 1  # what layers of sitout draw their masks from: no mask is drawn here
_RANDOM = torch.Tag.nondeterministic_seeded


class UntraceableError(Exception):
    """A forward whose operations are not the same for all inputs; the message says why."""


class Ref(NamedTuple):
    """A tensor in the arguments of a step: the number of its value."""

    value: int


class Size(NamedTuple):
    """An int in the arguments of a step that is ``slope * rows + start``."""

    slope: int
    start: int

    def at(self, rows: int) -> int:
        """Return it for so many rows."""
        return self.slope * rows + self.start


@dataclass
class Step:
    """One operation.

    Args:
        func: an overload of an operator.
        args: its arguments, with a :class:`Ref` for each tensor.
        kwargs: likewise.
        outs: the numbers of the tensors that it returns.
        writes: the numbers of those that it writes into.
        draws: whether it draws a mask.
        told: a value of its input that it told the code, which may have taken a branch on it.
    """

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outs: list[int]
    writes: list[int]
    draws: bool
    told: object = None

    @cached_property
    def reads(self) -> list[int]:
        """The numbers of the tensors among its arguments."""
        found: list[int] = []
        each(lambda one: found.append(one.value) if isinstance(one, Ref) else None, self.args)
        each(lambda one: found.append(one.value) if isinstance(one, Ref) else None, self.kwargs)
        return found


def each(change: Callable[[Any], Any], held: Any) -> Any:
    """Return lists, tuples and dicts with a function applied to what they hold at the end."""
    if not isinstance(held, (list, tuple, dict)) or isinstance(held, (Ref, Size)):
        return change(held)
    if isinstance(held, dict):
        return {key: each(change, one) for key, one in held.items()}
    return type(held)([each(change, one) for one in held])


class Tape(TorchDispatchMode):
    """Records the steps of a forward.

    Args:
        inputs: the tensors that go in.

    Attributes:
        steps: what ran.
        shapes: of the values, by their numbers, as they were when they came up; the inputs come
            first.
        widths: bytes of an element of each.
        storages: what values that share memory have in common.
        constants: the values that no step made. Others are not held: they go when the forward lets
            them go.
        outputs: the numbers of the values that the forward returned.
    """

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps: list[Step] = []
        self.shapes: list[tuple[int, ...]] = []
        self.widths: list[int] = []
        self.storages: list[int] = []
        self.constants: dict[int, Tensor] = {}
        self.outputs: list[int] = []
        self._numbers: Any = WeakTensorKeyDictionary()
        self._memory: dict[int, StorageWeakRef] = {}  # so that no address is used again
        self._hanging = {self.storages[self.number(one)] for one in inputs}  # on inputs or draws

    def number(self, tensor: Tensor) -> int:
        """Return the number of a value."""
        number: int | None = self._numbers.get(tensor)
        if number is None:
            number = self._numbers[tensor] = len(self.shapes)
            self.shapes.append(tuple(tensor.shape))
            self.widths.append(tensor.element_size())
            memory = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
            self.storages.append(memory.cdata)
            self._memory.setdefault(memory.cdata, memory)
        return number

    def _ref(self, one: Any) -> Any:
        return Ref(self.number(one)) if isinstance(one, Tensor) else one

    def _read(self, one: Tensor) -> int:
        """Return the number of an argument, which is held if no step has made it."""
        known = len(self.shapes)
        number = self.number(one)
        if number == known:
            self.constants[number] = one
        return number

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        flat = tensors((args, kwargs))
        if any(type(one) not in (Tensor, torch.nn.Parameter) for one in flat):
            raise UntraceableError(f"{func} has a tensor of a class of its own")
        read = [self._read(one) for one in flat]
        hanging = any(self.storages[value] in self._hanging for value in read)
        if hanging and torch.Tag.dynamic_output_shape in func.tags:
            raise UntraceableError(f"the shape of a tensor hangs on values ({func})")
        is_draw = _is_draw(func, args)
        if not is_draw and _RANDOM in func.tags and _is_random(func, args, kwargs):
            raise UntraceableError(f"{func} draws what has no address")
        out = _as_if_all_played(func, args, kwargs) if is_draw else func(*args, **kwargs)
        made = tensors(out)
        outs = [self.number(one) for one in made]
        for value, one in zip(outs, made, strict=True):
            self.shapes[value] = tuple(one.shape)  # an op such as ``transpose_`` may have turned it
        writes = [self.number(one) for one in written(func, args, kwargs)]
        if hanging or is_draw:
            self._hanging |= {self.storages[value] for value in (*outs, *writes)}
        if func is DROP:  # whose address is given when it runs
            x, *_, shared_dims, batch_dim, rate, p, law = args
            args = (x, None, None, None, None, shared_dims, batch_dim, rate, p, law)
        step = Step(func, each(self._ref, args), each(self._ref, kwargs), outs, writes, is_draw)
        if hanging and torch.Tag.data_dependent_output in func.tags:
            step.told = out
        self.steps.append(step)
        return out


def tensors(held: Any) -> list[Tensor]:
    """Return the tensors in lists, tuples and dicts, in order."""
    if isinstance(held, Tensor):
        return [held]
    if isinstance(held, dict):
        held = held.values()
    elif not isinstance(held, (list, tuple)):
        return []
    return [one for part in held for one in tensors(part)]


def written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """Return the tensors that an op writes into."""
    return tensors(
        [args[at] if at < len(args) else kwargs.get(name) for at, name in _written_arguments(func)]
    )


@cache
def _written_arguments(func: Any) -> list[tuple[int, str]]:
    """Return places and names of the arguments that an op writes into."""
    return [
        (at, argument.name)
        for at, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]


_BITS = (aten.bernoulli_.float, aten.bernoulli.p)
_UNIFORM = (aten.rand.default, aten.rand_like.default, aten.uniform_.default)


def _is_draw(func: Any, args: tuple[Any, ...]) -> bool:
    if func is aten.native_dropout.default:
        return args[2] is not False and args[1] > 0.0
    return func in _BITS or func in _UNIFORM or func is DROP


def _is_random(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether an op that can draw does so here: not an attention without dropout."""
    if "generator" not in str(func._schema) and "dropout" in str(func._schema):
        return bool(dropping_argument(func, args, kwargs))
    return not is_ticket(func, args)


def is_ticket(func: Any, args: tuple[Any, ...]) -> bool:
    """Return whether an op draws the ticket of a layer of sitout."""
    return func.namespace == "aten" and "randint" in func._opname and _TICKETS in args[:2]


def _as_if_all_played(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if func is aten.bernoulli_.float:
        return args[0].fill_(1.0)
    if func is aten.bernoulli.p:
        return torch.ones_like(args[0])
    if func is aten.native_dropout.default:
        return args[0].clone(), torch.ones_like(args[0], dtype=torch.bool)
    if func is DROP:
        return args[0].clone()
    if func is aten.uniform_.default:
        low, high = uniform_bounds(args)
        return args[0].fill_(low + (high - low) * ALMOST_1)
    return func(*args, **kwargs).fill_(ALMOST_1)


def uniform_bounds(args: Sequence[Any]) -> tuple[float, float]:
    """Return between which numbers ``uniform_`` draws."""
    low = float(args[1]) if len(args) > 1 else 0.0
    high = float(args[2]) if len(args) > 2 else 1.0
    return low, high


def chance(args: Sequence[Any]) -> float:
    """Return the chance of a 1 that ``bernoulli_`` has; torch leaves the default of 0.5 out."""
    return float(args[1]) if len(args) > 1 else 0.5
