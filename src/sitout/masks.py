"""The mask specification, version 1, in plain torch integers.

Everything random in sitout is a pure function of an address: who (``seed``, ``site``), when
(``step``, ``call``) and where (``row``, ``col``). Philox4x32-10 (Salmon et al. 2011, SC'11) maps
an address to 32-bit words, words to lanes, lanes to mask bits. All functions here take integers or
int64 tensors and run on any device; every other backend must reproduce their bits.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from . import _checks

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "SPEC_VERSION",
    "MaskKey",
    "draw_key",
    "effective_rate",
    "keep_mask",
    "kept_samples",
    "kept_units",
    "normals",
    "rate_data",
]

SPEC_VERSION = 1
"""The version of the mask specification; a change of any bit is a new version."""

_NARROW, _WIDE, _SUBSET, _NORMAL, _COUNT, _TICKET = 0, 1, 2, 3, 4, 15
_LO32, _LO64 = 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF
_LEAST, _MOST = -(2**63), 2**63 - 1  # of a ticket
_FIELD_BITS = {"seed": 64, "site": 28, "step": 32, "call": 32}

Word = TypeVar("Word", int, Tensor, "int | Tensor")


@dataclass(frozen=True)
class MaskKey:
    """The part of an address that a whole mask shares.

    Each field is an int or an int64 tensor with no dims; ``step`` may also be ``[B]``, one a row.

    Args:
        seed: one per run, 64 bits; or a ticket drawn at one call.
        site: the place in the model, 28 bits.
        step: the optimizer step, or the sample's number in Monte-Carlo inference, 32 bits.
        call: how many times the site has run before within this step, 32 bits.

    Raises:
        TypeError: a field is neither an int nor an int64 tensor.
        ValueError: an int does not fit its field, or a tensor has the wrong number of dims.

    Example:
        >>> MaskKey(seed=17, site=3, step=100)
        MaskKey(seed=17, site=3, step=100, call=0)
    """

    seed: int | Tensor = 0
    site: int | Tensor = 0
    step: int | Tensor = 0
    call: int | Tensor = 0

    def __post_init__(self) -> None:
        seed, site, step, call = self.seed, self.site, self.step, self.call
        if type(seed) is type(site) is type(step) is type(call) is int and (
            0 <= seed < 1 << 64
            and 0 <= site < 1 << 28
            and 0 <= step < 1 << 32
            and 0 <= call < 1 << 32
        ):
            return
        for name, bits in _FIELD_BITS.items():
            _check_field(name, bits, getattr(self, name))


def _check_field(name: str, bits: int, value: object) -> None:
    what = f"`{name}` of MaskKey"
    if isinstance(value, Tensor):
        dims = (0, 1) if name == "step" else (0,)
        if value.dtype != torch.int64:
            raise TypeError(_checks.message(what, "an int or an int64 tensor", value.dtype))
        if value.dim() not in dims:
            rule = "a tensor with no dims" + (" or [B]" if name == "step" else "")
            raise ValueError(_checks.message(what, rule, tuple(value.shape)))
    elif isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(_checks.message(what, "an int or an int64 tensor", value))
    elif not 0 <= value < 1 << bits:
        raise ValueError(_checks.message(what, f"in [0, 2**{bits})", value))


def _philox(
    c0: Word, c1: Word, c2: Word, c3: Word, k0: Word, k1: Word
) -> tuple[Word, Word, Word, Word]:
    """Philox4x32 with 10 rounds, on ints or on int64 tensors that hold 32-bit words.

    An int64 product wraps modulo 2**64, so its bit pattern is that of the unsigned product, and
    masking after the arithmetic shift gives the high word.
    """
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1 = (p1 >> 32 & _LO32) ^ c1 ^ k0, p1 & _LO32
        c2, c3 = (p0 >> 32 & _LO32) ^ c3 ^ k1, p0 & _LO32
        k0, k1 = k0 + 0x9E3779B9 & _LO32, k1 + 0xBB67AE85 & _LO32
    return c0, c1, c2, c3


def _words(key: MaskKey, kind: int | Tensor, rows: Tensor, blocks: Tensor) -> tuple[Tensor, ...]:
    """Return the four words of every block, each ``[len(rows), n]``.

    A field in a tensor that is wider than its place in the address counts modulo its width.

    Args:
        key: the address of the mask.
        kind: what the words are for.
        rows: int64 ``[R]``.
        blocks: block indices, int64 ``[n]``.
    """
    step = key.step
    if isinstance(step, Tensor):
        step = step.to(rows.device)
        if step.dim() == 1:
            if len(step) != len(rows):
                raise ValueError(
                    _checks.message("`step` of MaskKey", f"one a row, [{len(rows)}]", len(step))
                )
            step = step[:, None]
    words: tuple[Any, ...] = _philox(
        blocks[None, :] & _LO32,
        rows[:, None] & _LO32,
        step & _LO32,
        key.site & 0xFFFFFFF | kind << 28,
        key.seed & _LO32,
        (key.seed >> 32 ^ key.call) & _LO32,
    )
    return words


def _halves(words: tuple[Tensor, ...]) -> list[Tensor]:
    """Return eight 16-bit lanes a block: low half first."""
    return [half for word in words for half in (word & 0xFFFF, word >> 16)]


def _spread(lanes: Sequence[Tensor], cols: Tensor | int) -> Tensor:
    """Put lanes, each ``[R, blocks]``, in the order of their columns: ``[R, cols]``.

    Args:
        lanes: what each lane of a block holds.
        cols: how many columns from 0 on; or int64 ``[n]`` if each column has a block to itself.
    """
    stacked = torch.stack(tuple(lanes), dim=-1)
    if isinstance(cols, int):
        return stacked.flatten(1)[:, :cols]
    lane = (cols % len(lanes)).expand(stacked.shape[:-1]).unsqueeze(-1)
    return stacked.gather(-1, lane).squeeze(-1)


def _threshold(p: float) -> tuple[int, int]:
    """Return (bits, T): an element is dropped iff its lane of ``bits`` bits is less than T."""
    bits = 16 if 1 / 64 <= p <= 63 / 64 else 32
    return bits, math.floor(p * 2.0**bits + 0.5)


def effective_rate(p: float) -> float:
    """Return the rate that holds when ``p`` is asked for: the nearest one that has a mask.

    Args:
        p: drop rate, a fraction in [0, 1].

    Returns:
        T / 2**16 for 1/64 <= p <= 63/64, else T / 2**32, in binary64.

    Raises:
        TypeError: ``p`` is no real number.
        ValueError: ``p`` is not in [0, 1].

    Example:
        >>> effective_rate(0.5)
        0.5
        >>> effective_rate(0.1)
        0.100006103515625
    """
    bits, threshold = _threshold(_checks.rate(p, "effective_rate"))
    return threshold / 2.0**bits


def rate_data(p: float, device: torch.device | str = "cpu") -> Tensor:
    """Return a rate as data, for code that must not depend on its value, such as a compiled graph.

    Args:
        p: drop rate, a fraction in [0, 1].
        device: where the tensor is made.

    Returns:
        int64 ``[2]``: (bits, T). An element is dropped iff its lane of so many bits is less than
        T. :func:`keep_mask` and the functions of ``sitout.functional`` take it as ``p``.

    Raises:
        TypeError: ``p`` is no real number.
        ValueError: ``p`` is not in [0, 1].

    Example:
        >>> rate_data(0.25)
        tensor([   16, 16384])
    """
    return torch.tensor(_threshold(_checks.rate(p, "rate_data")), device=device)


class _Place(NamedTuple):
    """Where the elements of a mask lie in the address space."""

    shape: tuple[int, ...]  # of the mask: the tensor's, with 1 in the shared dims
    batch_dim: int | None  # the dim that holds rows; None where row 0 holds everything
    rows: Tensor  # int64 [R]
    cols: Tensor | int  # int64 [prod of the other dims], or their number if they are 0, 1, 2, ...

    def arrange(self, mask: Tensor) -> Tensor:
        """Bring ``[R, cols]`` into the shape of the mask."""
        if self.batch_dim is None:
            return mask.reshape(self.shape)
        rest = self.shape[: self.batch_dim] + self.shape[self.batch_dim + 1 :]
        return mask.reshape(len(self.rows), *rest).movedim(0, self.batch_dim)


def _place(
    shape: Sequence[int],
    shared_dims: Sequence[int],
    batch_dim: int,
    rows: Tensor | None,
    block: Sequence[tuple[int, int]] | None,
    device: torch.device | str,
) -> _Place:
    """Find the rows and columns of a mask ("From a tensor to an address")."""
    rank = len(shape)
    shared = {_checks.dim(dim, rank, "shared_dims") for dim in shared_dims}
    mask = tuple(1 if dim in shared else size for dim, size in enumerate(shape))
    index = _checks.dim(batch_dim, max(rank, 1), "batch_dim")
    batch = index if rank > 1 else None
    n_rows = 1 if batch is None else mask[batch]
    if rows is None or (batch is not None and batch in shared):
        rows = torch.arange(n_rows, device=device)
    else:
        rows = _moved(_check_rows(rows, n_rows), device)
    rest = tuple(size for dim, size in enumerate(mask) if dim != batch)
    cols = math.prod(rest) if block is None else _cut(rest, block, device)
    return _Place(mask, batch, rows, cols)


def _check_int64(value: object, what: str) -> None:
    if not isinstance(value, Tensor) or value.dtype != torch.int64:
        got = value.dtype if isinstance(value, Tensor) else value
        raise TypeError(_checks.message(what, "an int64 tensor", got))


def _check_rows(rows: Tensor, n_rows: int) -> Tensor:
    _check_int64(rows, "`rows`")
    if rows.shape != (n_rows,):
        raise ValueError(
            _checks.message(
                "`rows`",
                f"one position per index of the batch dim, [{n_rows}]",
                tuple(rows.shape),
                "For a tensor flattened to [B*T, C] pass rows.repeat_interleave(T).",
            )
        )
    return rows


def _cut(
    sizes: tuple[int, ...], block: Sequence[tuple[int, int]], device: torch.device | str
) -> Tensor:
    """Return the columns, in the whole tensor, of a shard's elements: int64 ``[prod(sizes)]``."""
    block = _check_block(sizes, block)
    cols = torch.zeros(1, dtype=torch.int64, device=device)
    for size, (start, full) in zip(sizes, block, strict=True):
        along = torch.arange(start, start + size, device=device)
        cols = (cols[:, None] * full + along).flatten()
    return cols


def _check_block(
    sizes: tuple[int, ...], block: Sequence[tuple[int, int]]
) -> tuple[tuple[int, int], ...]:
    """Return a block that fits the non-batch dims of a mask."""
    block = _checks.pairs(block, "block", "a mask")
    if len(block) != len(sizes) or any(
        not 0 <= start <= start + size <= full
        for size, (start, full) in zip(sizes, block, strict=True)
    ):
        raise ValueError(
            _checks.message(
                "`block`",
                f"one (start, full size) per non-batch dim of the mask, which has sizes {sizes}, "
                "with start + size <= full size",
                list(block),
            )
        )
    if math.prod(max(full, 1) for _, full in block) > 1 << 35:
        rule = "of a whole with at most 2**35 columns, the width of the address"
        raise ValueError(_checks.message("`block`", rule, list(block)))
    return block


def keep_mask(
    key: MaskKey,
    p: float | Tensor,
    shape: Sequence[int],
    *,
    shared_dims: Sequence[int] = (),
    batch_dim: int = 0,
    rows: Tensor | None = None,
    block: Sequence[tuple[int, int]] | None = None,
    cols: Tensor | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return the mask at an address: True where an element is kept.

    Args:
        key: the address.
        p: drop rate, a fraction in [0, 1]; or as data, see :func:`rate_data`.
        shape: of the tensor that is masked, ``[B, ...]``.
        shared_dims: dims along which one mask bit serves all; the mask has size 1 there.
        batch_dim: the dim whose index is the row (rank 2 and more).
        rows: int64, one global position per index of ``batch_dim``; 0, 1, 2, ... if None.
        block: for a shard, one (start, full size) per non-batch dim of the mask.
        cols: int64, the column of each element of a row, instead of ``block``.
        device: where the mask is made.

    Returns:
        bool, broadcastable to ``shape``.

    Raises:
        TypeError: ``rows`` or ``cols`` is no int64 tensor, or a dim is no int.
        ValueError: ``p``, a dim, ``rows``, ``block`` or ``cols`` does not fit ``shape``.

    Example:
        >>> keep_mask(MaskKey(seed=0), 0.5, (2, 8)).int()
        tensor([[1, 0, 1, 1, 1, 1, 1, 1],
                [1, 0, 0, 1, 0, 0, 0, 0]], dtype=torch.int32)

    Reference:
        Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3" (Philox).
    """
    p = _checks.rate_or_data(p, "keep_mask")
    place = _place(shape, shared_dims, batch_dim, rows, block, device)
    if cols is not None:
        place = _with_cols(place, cols, block, device)
    if isinstance(p, Tensor):
        return place.arrange(_keep_by_data(key, p.to(device), place))
    bits, threshold = _threshold(p)
    if threshold == 0:
        return torch.ones(place.shape, dtype=torch.bool, device=device)
    if threshold == 1 << bits:
        return torch.zeros(place.shape, dtype=torch.bool, device=device)
    narrow = bits == 16
    words = _words(
        key, _NARROW if narrow else _WIDE, place.rows, _blocks(place, 8 if narrow else 4)
    )
    lanes = _halves(words) if narrow else words
    return place.arrange(_spread([lane >= threshold for lane in lanes], place.cols))


def _keep_by_data(key: MaskKey, rate: Tensor, place: _Place) -> Tensor:
    """Return the mask ``[R, cols]`` of a rate whose number of bits is known to the device alone."""
    bits, threshold = rate.unbind()
    narrow = (bits == 16).long()  # a narrow lane is half a word, a wide one a whole word
    if isinstance(place.cols, Tensor):
        cols = place.cols
        words = _words(key, _WIDE - narrow, place.rows, cols >> narrow >> 2)
        word = torch.stack(words, dim=-1)
        index = (cols >> narrow & 3).expand(word.shape[:-1])
        word = word.gather(-1, index.unsqueeze(-1)).squeeze(-1)
    else:
        cols = torch.arange(place.cols, device=place.rows.device)
        words = _words(key, _WIDE - narrow, place.rows, _blocks(place, 4))
        word = torch.stack(words, dim=-1).flatten(1)[:, cols >> narrow]
    lane = word >> (cols & narrow) * 16 & (1 << bits) - 1
    return lane >= threshold


def _blocks(place: _Place, lanes: int) -> Tensor:
    """Return the block index of every column, or of every block where the columns are whole."""
    if isinstance(place.cols, Tensor):
        return place.cols // lanes
    return torch.arange((place.cols + lanes - 1) // lanes, device=place.rows.device)


def _with_cols(place: _Place, cols: Tensor, block: object, device: torch.device | str) -> _Place:
    n = place.cols if isinstance(place.cols, int) else len(place.cols)
    if block is not None:
        raise ValueError(_checks.message("`cols`", "given without `block`", "both"))
    _check_int64(cols, "`cols`")
    if cols.shape != (n,):
        rule = f"one column per element of a row, [{n}]"
        raise ValueError(_checks.message("`cols`", rule, tuple(cols.shape)))
    return place._replace(cols=cols.to(device))


def normals(
    key: MaskKey,
    shape: Sequence[int],
    *,
    shared_dims: Sequence[int] = (),
    batch_dim: int = 0,
    rows: Tensor | None = None,
    block: Sequence[tuple[int, int]] | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return the standard normal numbers at an address (Box and Muller 1958).

    Args:
        key: the address.
        shape: of the tensor, ``[B, ...]``.
        shared_dims: dims along which one number serves all.
        batch_dim: the dim whose index is the row.
        rows: as in :func:`keep_mask`.
        block: as in :func:`keep_mask`.
        device: where they are made; it must support float64.

    Returns:
        float64, broadcastable to ``shape``.

    Raises:
        TypeError: as :func:`keep_mask`.
        ValueError: as :func:`keep_mask`.

    Example:
        >>> normals(MaskKey(seed=0), (1, 2))
        tensor([[ 0.2744, -0.8995]], dtype=torch.float64)
    """
    place = _place(shape, shared_dims, batch_dim, rows, block, device)
    w0, w1, w2, w3 = _words(key, _NORMAL, place.rows, _blocks(place, 2))
    return place.arrange(_spread([_box_muller(w0, w1), _box_muller(w2, w3)], place.cols))


def _box_muller(w: Tensor, v: Tensor) -> Tensor:
    u1, u2 = (w + 1).double() / 2.0**32, v.double() / 2.0**32
    return torch.sqrt(-2.0 * torch.log(u1)) * torch.cos(2.0 * math.pi * u2)


def _row(group: int | Tensor, device: torch.device | str) -> Tensor:
    """Return the row of a group, ``[1]``; a copy of an int would wait for a device."""
    if isinstance(group, Tensor):
        return group.to(device, torch.int64).reshape(1)
    return torch.full((1,), group, dtype=torch.int64, device=device)


def _order(key: MaskKey, n: int, group: int | Tensor, device: torch.device | str) -> Tensor:
    """Return 0 .. n-1 in the order of (word, index)."""
    words = _words(key, _SUBSET, _row(group, device), torch.arange((n + 3) // 4, device=device))
    return _spread(words, n)[0].sort(stable=True).indices


def _check_count(n: object, owner: str) -> int:
    if isinstance(n, bool) or not isinstance(n, int) or n < 0:
        raise ValueError(_checks.message(f"`n` of {owner}", "an int of 0 or more", n))
    return n


def _count_kept(p: float, n: int) -> int:
    """Return how many of ``n`` units play by the fixed law, for 0 < p < 1."""
    return min(n, max(1, n - math.floor(p * n + 0.5)))


def kept_units(
    key: MaskKey, p: float, n: int, *, group: int | Tensor = 0, device: torch.device | str = "cpu"
) -> Tensor:
    """Return which of ``n`` units play, by the fixed law: always the same number of them.

    Args:
        key: the address.
        p: drop rate, a fraction in [0, 1].
        n: number of units.
        group: the group of rows that shares the subset.
        device: where the result is made.

    Returns:
        int64 ``[k]``, ascending; k = n - round(p n), but at least 1 for p < 1 and n > 0. Kept units
        are scaled by n / k; the rate that holds is 1 - k / n. Within a group the indicators are
        exchangeable and slightly negatively correlated.

    Raises:
        ValueError: ``p`` is not in [0, 1] or ``n`` is negative.

    Example:
        >>> kept_units(MaskKey(seed=0), 0.5, 10)
        tensor([2, 3, 4, 7, 8])
    """
    p, n = _checks.rate(p, "kept_units"), _check_count(n, "kept_units")
    if p == 1.0 or n == 0:
        return torch.empty(0, dtype=torch.int64, device=device)
    if p == 0.0:
        return torch.arange(n, device=device)
    return _order(key, n, group, device)[: _count_kept(p, n)].sort().values


def _fraction(q: float) -> int:
    """Return what a count stays below where the sample that stands in for a fraction plays."""
    return math.floor((q - math.floor(q)) * 2.0**32 + 0.5)


def kept_samples(
    key: MaskKey, p: float, n: int, *, group: int | Tensor = 0, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Return which of ``n`` samples are computed and their weights, by the exact law.

    The expectation of the weights is exactly 1 for every ``n`` and ``p`` < 1, and the shapes depend
    on ``n`` and ``p`` alone.

    Args:
        key: the address.
        p: drop rate, a fraction in [0, 1].
        n: number of samples (or heads, layers, tokens).
        group: the group of rows that shares the subset.
        device: where the result is made.

    Returns:
        The samples, int64 ``[c]``, ascending, c = ceil(n (1 - p)); and their weights, float64
        ``[c]``, which are 1 / (1 - p), or 0 for the one sample that stands in for a fraction and
        lost its draw.

    Raises:
        ValueError: ``p`` is not in [0, 1] or ``n`` is negative.

    Example:
        >>> kept_samples(MaskKey(seed=0), 0.5, 4)
        (tensor([2, 3]), tensor([2., 2.], dtype=torch.float64))
    """
    p, n = _checks.rate(p, "kept_samples"), _check_count(n, "kept_samples")
    if p == 1.0 or n == 0:
        empty = torch.empty(0, dtype=torch.int64, device=device)
        return empty, empty.double()
    q = n * (1.0 - p)
    chosen = _order(key, n, group, device)[: math.ceil(q)]
    weights = torch.full(chosen.shape, 1.0 / (1.0 - p), dtype=torch.float64, device=device)
    if q != math.floor(q):
        row = _row(group, device)
        count = _words(key, _COUNT, row, torch.zeros_like(row))[0].flatten()
        weights = torch.cat([weights[:-1], weights[-1:] * (count < _fraction(q))])
    listed, order = chosen.sort()
    return listed, weights[order]


def draw_key(
    device: torch.device | str = "cpu", generator: torch.Generator | None = None
) -> MaskKey:
    """Draw the key of one call in default mode: torch's own generator governs it.

    Args:
        device: of the tensor that is masked.
        generator: drawn from instead of torch's default generator.

    Returns:
        A key whose seed is a 64-bit ticket. On CUDA in eager mode the ticket is computed from the
        generator's seed and offset, without a launch; elsewhere it is one ``torch.randint``. A
        meta tensor draws nothing.

    Raises:
        RuntimeError: a CUDA graph is captured, and ``generator`` is not on the GPU: all replays
            would have one mask.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> first, second = draw_key(), draw_key()
        >>> bool(first.seed == second.seed)
        False
    """
    device = torch.device(device)
    source = device if generator is None else generator.device
    if "cuda" in (source.type, device.type) and not _is_traced():
        captured = _is_captured()
        if source.type == "cuda" and not captured:
            return MaskKey(seed=_cuda_ticket(generator or _default_generator(source)))
        if captured and source.type != "cuda":
            what, rule = "`generator` in the capture of a CUDA graph", "one of the GPU"
            way_out = "All replays would have one mask."
            raise RuntimeError(_checks.message(what, rule, source.type, way_out))
    if device.type == "meta":
        source = device
    elif generator is None and source.type != "cuda":
        source = torch.device("cpu")
    return MaskKey(seed=torch.randint(_LEAST, _MOST, (), generator=generator, device=source))


def _is_captured() -> bool:
    """Return whether a CUDA graph is captured: what the host reads now would hold for all replays.

    It touches no GPU in a process that has not done so itself.

    Example:
        >>> _is_captured()
        False
    """
    if torch.compiler.is_compiling() or not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return False
    return torch.cuda.is_current_stream_capturing()


def _is_frozen() -> bool:
    """Return whether the host sees this call once, and others follow without it.

    So it is in compiled code, and where a CUDA graph is captured.

    Example:
        >>> _is_frozen()
        False
    """
    return torch.compiler.is_compiling() or _is_captured()


def _is_traced() -> bool:
    """Return whether a number would be a constant of a graph, or one for all samples of a vmap."""
    if torch.compiler.is_compiling():
        return True
    if torch._C._are_functorch_transforms_active():
        from torch._functorch.pyfunctorch import (
            VmapInterpreter,
            retrieve_all_functorch_interpreters,
        )

        levels = retrieve_all_functorch_interpreters()
        return any(isinstance(level, VmapInterpreter) for level in levels)
    kinds = torch._C._TorchDispatchModeKey
    return torch._C._len_torch_dispatch_stack() > 0 and any(
        torch._C._get_dispatch_mode(kind) is not None for kind in (kinds.FAKE, kinds.PROXY)
    )


def _moved(numbers: Tensor, device: torch.device | str) -> Tensor:
    """Return numbers on a device. Nobody waits, and a copy to a GPU has read them at its return."""
    device = torch.device(device)
    early = device.type == "cuda" and numbers.is_cpu and not numbers.is_pinned()
    return numbers.to(device, non_blocking=early)


def _default_generator(device: torch.device) -> torch.Generator:
    torch.cuda.init()  # type: ignore[no-untyped-call]  # there are none before
    index = torch.cuda.current_device() if device.index is None else device.index
    generator: torch.Generator = torch.cuda.default_generators[index]
    return generator


class _Ticket(threading.local):
    """A tensor for each thread that tickets are drawn into: randint would make one for each."""

    def __init__(self) -> None:
        with torch.inference_mode(False):
            self.value = torch.zeros((), dtype=torch.int64, device="cpu")


_ticket = _Ticket()


def _draw_ticket() -> int:
    """Draw the seed that :func:`draw_key` draws for the CPU, as an int; quick, for eager calls."""
    drawn: int = _ticket.value.random_(_LEAST, _MOST).item()  # type: ignore[assignment]
    return drawn & _LO64


def _cuda_ticket(generator: torch.Generator) -> int:
    """Return the next ticket of a CUDA generator and advance its offset."""
    offset, seed = generator.get_offset(), generator.initial_seed()
    generator.set_offset(offset + 4)
    counter = (offset & _LO32, offset >> 32 & _LO32, 0, _TICKET << 28)
    low, high, _, _ = _philox(*counter, seed & _LO32, seed >> 32 & _LO32)
    return low | high << 32
