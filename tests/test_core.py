"""The compiled core at its edges: masks, awkward memory, in-place, processes, threads, nonsense."""

from __future__ import annotations

import ctypes
import hashlib
import math
import mmap
import os
import random
import signal
import threading
import time
from functools import cache

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sitout import MaskKey, backends, masks, nn
from sitout import functional as F
from sitout.backends import Address, cpu, reference, use
from sitout.masks import rate_data

KEY = MaskKey(seed=2**40 + 7, site=4, step=9, call=1)
TINY = 2.0**-40
RATES = [0.0, 2.0**-34, 2.0**-33, 2.0**-32, 1 / 64 - TINY, 1 / 64, 1 / 64 + TINY, 0.1, 0.5, 0.9]
RATES += [63 / 64 - TINY, 63 / 64, 63 / 64 + TINY, 1 - 2.0**-32, 1 - 2.0**-33, 1 - 2.0**-34, 1.0]
SIZES = [0, 1, 2, 3, 5, 7, 8, 9, 16, 17, 33, 64, 65, 100, 129]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
has_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
warns_of_threads = pytest.mark.filterwarnings(
    "ignore:This process .* is multi-thr:DeprecationWarning"
)


@pytest.fixture(autouse=True)
def _core_serves(monkeypatch):
    """Else the reference would be compared with itself."""
    monkeypatch.delenv("SITOUT_BACKEND", raising=False)
    assert backends.explain(torch.ones(2)).backend == "cpu"


@pytest.fixture
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


sets_threads = pytest.mark.usefixtures("_threads")


def signed(value):
    return value - (value >> 63 << 64)


def some_key(draw, n_rows):
    """Return a key of ints or tensors, some of whose fields are the largest that there are."""
    fields = {}
    for name, bits in {"seed": 64, "site": 28, "step": 32, "call": 32}.items():
        value = draw.choice([0, 1, 2 ** (bits - 1), 2**bits - 1, draw.getrandbits(bits)])
        fields[name] = torch.tensor(signed(value)) if draw.random() < 0.3 else value
    if draw.random() < 0.2:
        fields["step"] = torch.randint(2**32, (n_rows,))
    return MaskKey(**fields)


def some_masks(seed, count):
    """Yield keys, rates, shapes and options of keep_mask."""
    draw = random.Random(seed)
    for _ in range(count):
        rank = draw.randrange(6)
        shape = [draw.choice(SIZES) for _ in range(rank)]
        while math.prod(shape) > 8_000:
            shape[draw.randrange(rank)] = draw.choice([1, 2, 3])
        shared = tuple(dim for dim in range(rank) if draw.random() < 0.2)
        batch = draw.randrange(rank) if rank > 1 and draw.random() < 0.4 else 0
        n_rows = shape[batch] if rank > 1 and batch not in shared else 1
        given = tuple(dim - rank * draw.randrange(2) for dim in shared)
        options = {"shared_dims": given, "batch_dim": batch}
        if draw.random() < 0.3:
            options["rows"] = torch.randint(2**32, (n_rows,))
        if draw.random() < 0.3:
            rest = [dim for dim in range(rank) if rank < 2 or dim != batch]
            sizes = [1 if dim in shared else shape[dim] for dim in rest]
            starts = [draw.choice([0, 1, 5, 33, 1000 if len(sizes) < 3 else 40]) for _ in sizes]
            options["block"] = [(a, a + n + 7) for a, n in zip(starts, sizes, strict=True)]
        p = draw.choice(RATES)
        if draw.random() < 0.2:
            p = rate_data(p)
        elif draw.random() < 0.2:
            bits = draw.choice([16, 32])
            edges = [0, 1, 2 ** (bits - 1), 2**bits - 1, 2**bits, draw.getrandbits(bits)]
            p = torch.tensor([bits, draw.choice(edges)])
        yield some_key(draw, n_rows), p, tuple(shape), options


# Masks and subsets


@pytest.mark.parametrize("seed", range(2))
def test_a_mask_of_the_core_is_that_of_the_reference(target, seed):
    for key, p, shape, options in some_masks(seed, 250):
        made = backends.keep_mask(key, p, shape, **options)
        wanted = masks.keep_mask(key, p, shape, **options)
        assert made.dtype == torch.bool
        assert torch.equal(made, wanted), (key, p, shape, options)


@pytest.mark.parametrize("bits", [16, 32])
def test_an_element_is_dropped_iff_its_lane_is_below_the_threshold(target, bits):
    """Every lane of some blocks: at its own value it is kept, one above it is dropped."""
    words = masks._words(KEY, int(bits == 32), torch.tensor([0]), torch.arange(5))
    lanes = masks._spread(masks._halves(words) if bits == 16 else words, 20)[0]
    for col, lane in enumerate(lanes.tolist()):
        below, above = (
            backends.keep_mask(KEY, torch.tensor([bits, t]), (1, 20)) for t in (lane, lane + 1)
        )
        assert (bool(below[0, col]), bool(above[0, col])) == (True, False)
        assert torch.equal(below, (lanes >= lane)[None])


@pytest.mark.parametrize("p", [2.0**-40, 0.004, 0.1, 0.25, 0.5, 0.7, 0.99, 1 - 2.0**-40])
def test_subsets_of_the_core_are_those_of_the_reference(target, p):
    draw = random.Random(p)
    sizes = [*range(1, 70), 127, 128, 255, 256, 1023, 1024, 1025, 1028, 4096, 4999, 5000]
    for n in sizes:
        key = some_key(draw, 1)
        group = draw.choice([0, 1, 2**31, 2**32 - 1, draw.getrandbits(32)])
        group = draw.choice([group, torch.tensor(group), torch.tensor([group])])
        made, wanted = (m.kept_units(key, p, n, group=group) for m in (backends, masks))
        assert made.dtype == torch.int64
        assert torch.equal(made, wanted), (key, n, group)
        made, wanted = (m.kept_samples(key, p, n, group=group) for m in (backends, masks))
        assert torch.equal(made[0], wanted[0]), (key, n, group)
        assert made[1].dtype == wanted[1].dtype
        assert torch.equal(made[1], wanted[1]), (key, n, group)


def test_of_two_equal_words_the_one_with_the_lower_index_comes_first(target):
    """In 2**18 words some meet; the subset is cut between them."""
    n = 2**18
    words = masks._spread(
        masks._words(KEY, masks._SUBSET, torch.tensor([3]), torch.arange(n // 4)), n
    )[0]
    ranked, order = words.sort(stable=True)
    ties = (ranked[1:] == ranked[:-1]).nonzero()[:, 0].tolist()
    assert len(ties) > 2
    for tie in ties:
        k = tie + 1
        first, second = order[tie], order[tie + 1]
        assert first < second
        made = backends.kept_units(KEY, 1 - k / n, n, group=3)
        assert len(made) == k
        assert first in made
        assert second not in made
        listed, last = cpu.first(KEY, n, k, 3)
        assert torch.equal(listed, made)
        assert last == int(first)


@pytest.mark.parametrize("device", ["meta", torch.device("meta")])
def test_masks_on_another_device_are_made_there(device):
    assert backends.keep_mask(KEY, 0.5, (3, 4), device=device).is_meta
    assert backends.kept_units(KEY, 0.5, 8, device=device).is_meta
    listed, weights = backends.kept_samples(KEY, 0.5, 8, device=device)
    assert listed.is_meta
    assert weights.is_meta
    assert (listed.shape, weights.dtype) == ((4,), torch.float64)


@pytest.mark.parametrize(
    "mode",
    [lambda: torch.device("meta"), lambda: use("reference"), torch.inference_mode],
    ids=["device", "backend", "inference"],
)
def test_no_mode_changes_a_mask(mode):
    wanted = masks.keep_mask(KEY, 0.5, (9, 20)), masks.kept_units(KEY, 0.5, 50)
    with mode():
        made = backends.keep_mask(KEY, 0.5, (9, 20), device="cpu")
        units = backends.kept_units(KEY, 0.5, 50, device="cpu")
    assert torch.equal(made, wanted[0])
    assert torch.equal(units, wanted[1])


# Memory of every kind

LAST, LAST_3D = torch.channels_last, torch.channels_last_3d
FAR = {"block": ((2**32 - 100, 2**34),)}
ROWS = torch.tensor([2**32 - 1, 0, 2**31, 2**32 - 1, 12345])


def unaligned(shape, dtype):
    """Return a tensor whose memory begins one byte behind a boundary."""
    wide, n = torch.randn(shape).to(dtype), math.prod(shape)
    words = bytearray(1 + n * dtype.itemsize)
    made = torch.frombuffer(words, dtype=dtype, offset=1, count=n).view(shape)
    made.copy_(wide)
    assert made.data_ptr() % dtype.itemsize == 1
    return made


def shifted(shape, dtype):
    return torch.randn(math.prod(shape) + 1).to(dtype)[1:].view(shape)


def plain(shape, dtype):
    return torch.randn(shape).to(dtype)


PLACES = {
    "transposed": (lambda t: plain((1024, 700), t).t(), {}),
    "transposed, odd": (lambda t: plain((65, 513), t).t(), {}),
    "transposed, batch_dim=1": (lambda t: plain((513, 65), t).t(), {"batch_dim": 1}),
    "channels_last": (lambda t: plain((3, 3, 50, 51), t).contiguous(memory_format=LAST), {}),
    "channels_last, wide": (
        lambda t: plain((2, 130, 17, 19), t).contiguous(memory_format=LAST),
        {},
    ),
    "channels_last, feature": (
        lambda t: plain((2, 130, 17, 19), t).contiguous(memory_format=LAST),
        {"shared_dims": (2, 3)},
    ),
    "channels_last_3d": (
        lambda t: plain((2, 5, 7, 9, 11), t).contiguous(memory_format=LAST_3D),
        {},
    ),
    "expanded rows": (lambda t: plain((1, 300), t).expand(70, 300), {}),
    "expanded columns": (lambda t: plain((70, 1), t).expand(70, 300), {}),
    "one long row": (lambda t: plain((1, 20_000), t), {}),
    "long rows": (lambda t: plain((3, 20_000), t), {}),
    "short rows": (lambda t: plain((600, 3), t), {}),
    "long rows across": (lambda t: plain((20_000, 3), t).t(), {}),
    "locked over time": (lambda t: plain((5, 300, 70), t), {"shared_dims": (1,)}),
    "locked over time, batch_dim=1": (
        lambda t: plain((300, 5, 70), t),
        {"shared_dims": (0,), "batch_dim": 1},
    ),
    "one mask for the batch": (lambda t: plain((70, 500), t), {"shared_dims": (0,)}),
    "one bit for a row": (lambda t: plain((300, 170), t), {"shared_dims": (1,)}),
    "one bit for everything": (lambda t: plain((100_003,), t), {"shared_dims": (0,)}),
    "one bit for a matrix": (lambda t: plain((331, 307), t).t(), {"shared_dims": (0, 1)}),
    "columns beyond 2**32": (lambda t: plain((5, 1000), t), FAR),
    "columns to 2**34": (lambda t: plain((5, 1000), t), {"block": ((2**34 - 1000, 2**34),)}),
    "columns to 2**35": (lambda t: plain((5, 1000), t), {"block": ((2**35 - 1000, 2**35),)}),
    "columns of a large whole": (
        lambda t: plain((5, 13, 77), t).transpose(1, 2),
        {"block": ((2**20, 2**21), (3, 2**13))},
    ),
    "the largest rows": (lambda t: plain((5, 1000), t), {"rows": ROWS}),
    "the largest rows, turned": (
        lambda t: plain((1000, 5), t),
        {"rows": ROWS, "batch_dim": 1},
    ),
    "unaligned": (lambda t: unaligned((31, 331), t), {}),
    "unaligned, across": (lambda t: unaligned((31, 331), t).t(), {}),
    "behind a boundary": (lambda t: shifted((31, 331), t), {}),
    "many": (lambda t: plain((2**20 + 3,), t), {}),
}


@cache
def placed(place, dtype, p):
    """Return a tensor, its address and what the reference makes of it."""
    make, options = PLACES[place]
    torch.manual_seed(0)
    x, address = make(dtype), Address(KEY, **options)
    return x, address, reference.drop(x, address, p, "dropout")


@pytest.mark.parametrize("place", PLACES)
@sets_threads
def test_memory_of_every_kind_gives_the_bits_of_the_reference_on_any_number_of_threads(
    target, place
):
    for dtype in DTYPES:
        for p in (0.3,) if place == "columns to 2**35" else (0.3, 0.004):  # wide has 34 bits
            x, address, wanted = placed(place, dtype, p)
            for threads in (1, 2, 3, 7):
                torch.set_num_threads(threads)
                made = cpu.drop(x, address, p, "dropout")
                assert made.dtype == x.dtype
                assert torch.equal(made, wanted), (dtype, p, threads)
            assert bool((made == 0).any()) or p < 0.01 or 0 in address.shared_dims


@sets_threads
def test_the_number_of_threads_changes_no_noise_and_no_sum(target):
    x, residual, address = torch.randn(2**18 + 5), torch.randn(2**18 + 5), Address(KEY)
    made = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        noise = cpu.drop(x, address, 0.3, "gaussian")
        total = cpu.fuse("add", x, address, 0.3, other=residual)
        active = cpu.fuse("gelu", x, address, 0.3, bias=residual)
        mask = backends.keep_mask(KEY, 0.3, (2**18 + 5,)).float()
        made.append(torch.stack([noise, total, active, mask]))
    assert all(torch.equal(one, made[0]) for one in made[1:])
    wanted = reference.drop(x, address, 0.3, "gaussian")
    assert torch.allclose(made[0][0], wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(made[0][1], residual + reference.drop(x, address, 0.3, "dropout"))


LIBC = ctypes.CDLL(None) if os.name == "posix" else None


def fenced(x, at_end):
    """Return a copy of ``x`` next to a page of memory whose touch would kill this process."""
    size, page = x.numel() * x.element_size(), mmap.PAGESIZE
    room = (size + page - 1) // page * page
    memory = mmap.mmap(-1, page + room + page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for fence in (start, start + page + room):
        assert LIBC.mprotect(ctypes.c_void_p(fence), ctypes.c_size_t(page), 0) == 0
    offset = page + (room - size if at_end else 0)
    made = torch.frombuffer(memory, dtype=x.dtype, offset=offset, count=x.numel())
    return made.view(x.shape).copy_(x)


FENCED = [(n,) for n in (*range(1, 70), 127, 129, 255, 511, 513, 1023, 4097)]
FENCED += [(3, 5), (7, 1), (1, 7), (9, 65), (65, 9), (64, 64), (130, 17), (3, 1000), (1000, 3)]


@pytest.mark.skipif(LIBC is None, reason="there is no mprotect here")
@pytest.mark.parametrize("at_end", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_core_reads_and_writes_nothing_beside_its_tensors(target, dtype, at_end):
    """What it touches beside them kills the tests."""
    ops = ["dropout", "alpha", "gaussian", "add", "relu", "relu_slope", "gelu", "gelu_slope"]
    for number, shape in enumerate(FENCED):
        x, other, bias = (fenced(torch.randn(shape).to(dtype), at_end) for _ in range(3))
        rows = fenced(torch.arange(shape[0] if len(shape) > 1 else 1), at_end)
        address = Address(MaskKey(seed=number, step=fenced(rows * 5, at_end)), rows=rows)
        p, op = (0.3, 0.004)[number % 2], ops[number // 2 % len(ops)]
        out, mask = fenced(torch.zeros(shape).to(dtype), at_end), fenced(x > 9, at_end)
        for turn in (lambda t: t, lambda t: t.mT)[: len(shape)]:
            where = address if turn(x) is x else address._replace(batch_dim=1)
            made = cpu._run(op, turn(x), turn(out), where, p, turn(other), turn(bias))
            plain = [turn(one.clone()) for one in (x, other, bias)]
            wanted = cpu.fuse(op, plain[0], where, p, other=plain[1], bias=plain[2])
            assert torch.equal(made, wanted), (op, shape, p)
            cpu._run("mask", None, turn(mask), where, p)
            assert torch.equal(
                turn(mask),
                backends.keep_mask(
                    where.key, p, turn(x).shape, rows=rows, batch_dim=where.batch_dim
                ),
            )


@pytest.mark.skipif(LIBC is None, reason="there is no mprotect here")
def test_the_core_writes_no_subset_beside_its_memory(target):
    for n in (*range(1, 70), 1023, 1024, 1025):
        for k in {1, (n + 1) // 2, n}:
            out = fenced(torch.zeros(k, dtype=torch.int64), True)
            cpu.core().first(out.data_ptr(), n, k, 0, 1, 2, 3)
            assert torch.equal(out, cpu.first(MaskKey(1, 2, 3), n, k, 0)[0])


# In place


def test_in_place_returns_its_input_with_the_values_of_out_of_place(target):
    for place, (make, options) in PLACES.items():
        if place.startswith("expanded"):
            continue
        x = make(DTYPES[len(place) % 4])
        wanted, version = F.dropout(x, 0.3, key=KEY, **options), x._version
        assert F.dropout(x, 0.3, inplace=True, key=KEY, **options) is x
        assert torch.equal(x, wanted)
        assert x._version > version


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_in_place_counts_as_a_write_to_what_autograd_has_saved(context):
    weight, x = torch.randn(9, 20, requires_grad=True), torch.randn(9, 20)
    y = weight * x
    with context():
        F.dropout(x, 0.5, inplace=True, key=KEY)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_in_place_on_a_result_has_the_gradient_of_out_of_place(target):
    leaf, upstream = torch.randn(2, 9, 20)
    grads = []
    for inplace in (False, True):
        x = leaf.clone().requires_grad_()
        y = F.dropout(x * 3, 0.5, inplace=inplace, key=KEY)
        assert y.requires_grad
        grads.append(torch.autograd.grad(y.square(), x, upstream)[0])
    assert torch.equal(*grads)
    assert grads[0].any()


def test_in_place_on_a_view_of_a_result_has_the_gradient_of_the_whole(target):
    leaf = torch.randn(9, 20)
    grads = []
    for inplace in (False, True):
        x = leaf.clone().requires_grad_()
        whole = x * 3
        part = F.dropout(whole[2:5, ::2], 0.5, inplace=inplace, key=KEY)
        if not inplace:
            whole = whole.index_put((torch.arange(2, 5)[:, None], torch.arange(0, 20, 2)), part)
        grads.append(torch.autograd.grad(whole.square().sum(), x)[0])
        grads.append(whole.detach())
    assert torch.equal(grads[0], grads[2])
    assert torch.equal(grads[1], grads[3])


def test_in_place_on_a_view_writes_into_its_base_and_nowhere_else(target):
    base = torch.randn(9, 40)
    before, view = base.clone(), base[2:5, ::2]
    wanted = F.dropout(view, 0.5, key=KEY)
    assert F.dropout(view, 0.5, inplace=True, key=KEY) is view
    assert torch.equal(base[2:5, ::2], wanted)
    base[2:5, ::2] = before[2:5, ::2]
    assert torch.equal(base, before)
    assert base._version == view._version > 0


@pytest.mark.parametrize("view", [lambda x: x, lambda x: x[1:]], ids=["whole", "view"])
def test_in_place_on_a_leaf_that_requires_grad_is_refused_and_writes_nothing(view):
    x = torch.randn(9, 20, requires_grad=True)
    before = x.detach().clone()
    with pytest.raises(RuntimeError, match=r"leaf Variable that requires grad"):
        view(x).mul_(2)
    with pytest.raises(RuntimeError, match=r"leaf Variable that requires grad"):
        F.dropout(view(x), 0.5, inplace=True, key=KEY)
    assert torch.equal(x.detach(), before)
    with torch.no_grad():
        F.dropout(view(x), 0.5, inplace=True, key=KEY)
    assert torch.equal(view(x.detach()), F.dropout(view(before), 0.5, key=KEY))


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("backend", [None, "reference"])
def test_in_place_on_an_expanded_tensor_is_refused_as_torch_does_and_writes_nothing(
    backend, requires_grad
):
    base = torch.ones(1, 4, requires_grad=requires_grad) * 1
    with pytest.raises(RuntimeError, match="more than one element of the written-to tensor"):
        base.expand(3, 4).mul_(2)
    with (
        use(backend),
        pytest.raises(RuntimeError, match="more than one element of the written-to tensor"),
    ):
        F.dropout(base.expand(3, 4), 0.5, inplace=True, key=KEY)
    assert torch.equal(base.detach(), torch.ones(1, 4))


@pytest.mark.parametrize("backend", [None, "reference"])
def test_in_place_on_a_tensor_of_inference_mode_is_refused_outside_of_it_as_torch_does(backend):
    with torch.inference_mode():
        x = torch.ones(4, 5)
        inside = F.dropout(torch.ones(4, 5), 0.5, inplace=True, key=KEY)
    assert torch.equal(inside, F.dropout(torch.ones(4, 5), 0.5, key=KEY))
    with pytest.raises(RuntimeError, match="Inplace update to inference tensor"):
        x.mul_(2)
    with use(backend), pytest.raises(RuntimeError, match="Inplace update to inference tensor"):
        F.dropout(x, 0.5, inplace=True, key=KEY)


def test_a_layer_in_place_under_no_grad_and_inference_mode_writes_its_input():
    layer = nn.Dropout(0.5, inplace=True)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            x = torch.ones(4, 50)
            assert layer(x) is x
            assert bool((x == 0).any())
            assert bool((x == 2).any())


# Processes and threads


def finish(child, seconds=60):
    """Return the exit code of a child, or kill it and fail: what hangs must not hang the tests."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return pytest.fail("the child hangs")


@has_fork
@warns_of_threads
@sets_threads
@pytest.mark.parametrize("draws", [False, True])
def test_a_forked_child_goes_on_with_two_threads(draws):
    torch.set_num_threads(2)
    x = torch.randn(2**21)
    key = None if draws else KEY
    state = torch.get_rng_state()
    wanted = F.dropout(x, 0.3, key=key).numpy().tobytes()
    torch.set_rng_state(state)
    child = os.fork()
    if child == 0:
        try:
            # Torch's own pool does not survive a fork, so nothing here may fill new memory.
            torch.use_deterministic_algorithms(False)
            same = all(F.dropout(x, 0.3, key=KEY).shape == x.shape for _ in range(3))
            same = same and F.dropout(x, 0.3, key=key).numpy().tobytes() == wanted
            os._exit(0 if same and torch.get_num_threads() == 2 else 1)
        finally:
            os._exit(2)
    assert finish(child) == 0


@has_fork
@warns_of_threads
@sets_threads
def test_a_child_that_is_forked_while_others_drop_goes_on():
    """A thread in the middle of a call holds no lock that the child would wait for."""
    torch.set_num_threads(2)
    x, over = torch.randn(2**20), threading.Event()
    wanted = hashlib.sha256(F.dropout(x, 0.3, key=KEY).numpy()).digest()

    def work():
        while not over.is_set():
            F.dropout(x, 0.3, key=KEY)

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    try:
        for _ in range(5):
            child = os.fork()
            if child == 0:
                try:
                    torch.use_deterministic_algorithms(False)
                    made = F.dropout(x, 0.3, key=KEY).numpy()
                    os._exit(0 if hashlib.sha256(made).digest() == wanted else 1)
                finally:
                    os._exit(2)
            assert finish(child) == 0
    finally:
        over.set()
        for worker in workers:
            worker.join()


class Dropping(torch.utils.data.Dataset):
    """Each item is what dropout leaves of ones, at a key of its own and by a drawn ticket."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        x = torch.ones(300, 300)
        return index, F.dropout(x, 0.3, key=MaskKey(index)), F.dropout(x, 0.3)


@has_fork
@warns_of_threads
def test_workers_of_a_data_loader_drop_what_their_keys_say_and_draw_their_own_tickets():
    F.dropout(torch.randn(2**20), 0.3)
    loader = torch.utils.data.DataLoader(
        Dropping(), batch_size=3, num_workers=2, timeout=60, multiprocessing_context="fork"
    )
    drawn = []
    for indices, made, own in loader:
        for index, y in zip(indices.tolist(), made, strict=True):
            assert torch.equal(y, F.dropout(torch.ones(300, 300), 0.3, key=MaskKey(index)))
        drawn += [y.numpy().tobytes() for y in own]
    assert len(drawn) == len(set(drawn)) == 12


def in_threads(count, work):
    """Run ``work(number)`` in so many threads that start together; return what they return."""
    results, start = {}, threading.Barrier(count)

    def run(number):
        start.wait()
        results[number] = work(number)

    workers = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(results) == count
    return [results[number] for number in range(count)]


def test_threads_with_keys_sizes_and_types_of_their_own_get_the_results_of_the_reference():
    jobs = []
    for number in range(8):
        sizes = (3, 1000 * number + 7), (40_000 * number + 1,), (17, 129, number + 1)
        for shape in sizes:
            x = torch.randn(shape).to(DTYPES[number % 4])
            address = Address(MaskKey(number, number))
            jobs.append((number, x, address, reference.drop(x, address, 0.3, "dropout")))

    def work(number):
        mine = [job[1:] for job in jobs if job[0] == number]
        return [
            torch.equal(cpu.drop(x, address, 0.3, "dropout"), wanted)
            for _ in range(20)
            for x, address, wanted in mine
        ]

    assert all(same for part in in_threads(8, work) for same in part)


def test_the_draws_of_threads_are_those_of_one_thread_each_of_them_once():
    x = torch.ones(300)

    def draws(_):
        return [F.dropout(x, 0.5).numpy().tobytes() for _ in range(40)]

    torch.manual_seed(5)
    alone = draws(0) + draws(0) + draws(0) + draws(0) + draws(0) + draws(0)
    torch.manual_seed(5)
    together = [mask for part in in_threads(6, draws) for mask in part]
    assert len(set(together)) == 240
    assert sorted(together) == sorted(alone)


# Nonsense

INTS = [-(2**63), -(2**40), -2, -1, 0, 1, 2, 3, 7, 2**31, 2**32, 2**35, 2**63 - 1]
HUGE = [2**34, 2**35, 2**40, 2**62, 2**63 - 1, 2**63, 2**64, 10**30]
JUNK = [True, 1.5, "1", [1], b"1", 1j, object(), torch.ones(3), (None,)]
WRONG_RATES = [-0.1, 1.1, math.nan, math.inf, -math.inf, torch.tensor(0.5), torch.zeros(2), 2, None]
FIELDS = ["p", "key", "step", "rows", "block", "shared_dims", "batch_dim"]


def call_of(draw):
    """Return the shape of a call, its rate and its options, of which at most one does not fit."""
    shape = [
        draw.choice([1, 2, 3, 5, 8, 17, 65, draw.choice([0, 4])]) for _ in range(draw.randrange(5))
    ]
    while math.prod(shape) > 3000:
        shape.pop()
    rank = len(shape)
    batch = draw.randrange(rank) if rank > 1 and draw.random() < 0.5 else 0
    shared = [dim for dim in range(rank) if draw.random() < 0.2]
    n_rows = shape[batch] if rank > 1 and batch not in shared else 1
    sizes = [1 if d in shared else shape[d] for d in range(rank) if rank < 2 or d != batch]
    options = {"batch_dim": batch, "shared_dims": shared, "key": KEY}
    if draw.random() < 0.3:
        options["rows"] = torch.randint(-(2**63), 2**63 - 1, (n_rows,))
    if draw.random() < 0.3:
        starts = [draw.choice([0, 1, 7, 8, 1000]) for _ in sizes]
        options["block"] = [(a, a + size + 3) for a, size in zip(starts, sizes, strict=True)]
    if draw.random() < 0.3:
        step = torch.randint(-(2**63), 2**63 - 1, (n_rows,))
        options["key"] = MaskKey(seed=draw.getrandbits(64), step=step)
    p = draw.choice([0.3, 0.004, *RATES, *map(rate_data, RATES), 0, 1])
    fault = draw.choice([*FIELDS, "p", "block", "whole", "whole", ""])
    wrong = []
    if fault == "p":
        data = torch.tensor([draw.choice([16, 32, 0, -1, 5, 64, 2000]), draw.choice(INTS)])
        p = draw.choice([data, data, draw.choice(WRONG_RATES), draw.choice(JUNK)])
    elif fault == "step":
        options["key"] = MaskKey(step=torch.arange(draw.choice([0, n_rows + 1, n_rows + 7])))
    elif fault == "rows":
        wrong = [torch.zeros(n_rows), torch.zeros(n_rows, dtype=torch.int32), torch.tensor(3)]
        wrong += [torch.zeros(n_rows, 1).long(), torch.zeros(n_rows + 1).long(), [0] * n_rows]
    elif fault == "block":
        for count in (rank, len(sizes)):
            wrong.append([(draw.choice(INTS), draw.choice(INTS + HUGE)) for _ in range(count)])
        wrong += [[(1, 2, 3)], [(0.0, 5.0)] * len(sizes), [("0", "5")], [1, 2]]
    elif fault == "whole":  # it fits, but its columns may not
        fulls = [size + draw.choice([0, 5, *HUGE]) for size in sizes]
        spare = [full - size for full, size in zip(fulls, sizes, strict=True)]
        starts = [draw.choice([0, 1, n // 2, n]) for n in spare]
        options["block"] = [
            (min(a, n), full) for a, n, full in zip(starts, spare, fulls, strict=True)
        ]
    elif fault == "shared_dims":
        wrong = [[draw.choice(INTS)], [*shared, rank], [None], ["0"], [1.0], "01", [True]]
    elif fault == "batch_dim":
        wrong = [draw.choice(INTS), draw.choice(INTS), rank, None]
    elif fault == "key":
        wrong = [5, "key", torch.tensor(5)]
    if wrong:
        options[fault] = draw.choice([*wrong, *wrong, *JUNK])
    return tuple(shape), p, options


CALLS = st.randoms(use_true_random=True)  # seeds that are spread evenly, of which no one repeats


def layout_of(draw, x):
    """Return ``x`` with its last dims turned in memory, or as it is."""
    return x.mT.contiguous().mT if x.dim() > 1 and draw.random() < 0.5 else x


class Refused:
    """What stands for an error that says in one line what is wrong."""


def outcome(run):
    """Return the result, or Refused; what else comes is an error of the library."""
    try:
        return run()
    except (TypeError, ValueError) as error:
        lines = str(error).splitlines()
    assert len(lines) == 1, lines
    return Refused


def agrees(run, is_near=torch.equal):
    """The core refuses in one line, or gives what the reference gives; so does the reference."""
    made = outcome(run)
    again = outcome(run)
    with use("reference"):
        wanted = outcome(run)
    if made is Refused:
        return again is Refused
    return again is not Refused and wanted is not Refused and is_near(made, wanted)


def near(made, wanted):
    return made.dtype == wanted.dtype and torch.allclose(made, wanted, rtol=1e-5, atol=1e-5)


def nonsense(examples):
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


@nonsense(110)
@given(draw=CALLS)
def test_dropout_of_nonsense_is_refused_in_one_line_or_is_that_of_the_reference(draw):
    shape, p, options = call_of(draw)
    x = layout_of(draw, torch.randn(shape).to(draw.choice(DTYPES)))
    assert agrees(lambda: F.dropout(x, p, **options)), (shape, p, options)


@nonsense(110)
@given(draw=CALLS)
def test_a_mask_of_nonsense_is_refused_in_one_line_or_is_that_of_the_reference(draw):
    shape, p, options = call_of(draw)
    key = options.pop("key")
    assert agrees(lambda: backends.keep_mask(key, p, shape, **options)), (shape, p, options)


@nonsense(70)
@given(draw=CALLS)
def test_a_sum_of_nonsense_is_refused_in_one_line_or_is_that_of_the_reference(draw):
    shape, p, options = call_of(draw)
    x, fits = torch.randn(shape), draw.randrange(6)
    other = torch.randn(shape if fits else (*shape, 2))
    other = other.tolist() if fits == 1 else layout_of(draw, other)
    assert agrees(lambda: F.dropout_add(x, other, p, **options), near), (shape, p, options)


@nonsense(70)
@given(draw=CALLS)
def test_an_activation_of_nonsense_is_refused_in_one_line_or_is_that_of_the_reference(draw):
    shape, p, options = call_of(draw)
    x = layout_of(draw, torch.randn(shape))
    activation = draw.choice(["relu", "gelu", "gelu_tanh", "silu"] * 3 + ["elu", 3, None])
    biases = [None, torch.randn(shape[-1:]), torch.randn(()), torch.randn(shape)] * 3
    bias = draw.choice([*biases, torch.randn(4), torch.randn(*shape, 1), [1.0], 1.0])

    def run():
        return F.activation_dropout(x, activation, p, bias=bias, **options)

    assert agrees(run, near), (shape, p, options)


WHOLES = [2**35, 2**40, 2**62, 2**63 - 1, 2**63, 2**64, 10**30]


@pytest.mark.parametrize("whole", WHOLES)
@pytest.mark.parametrize("p", [0.5, 0.004, rate_data(0.5)], ids=str)
def test_a_shard_of_an_absurd_whole_is_refused_in_one_line_or_is_that_of_the_reference(p, whole):
    """Columns that would overflow 64 bits, or lie beyond the 35 bits that there are."""
    x = torch.randn(3, 5, 4)
    for start in (0, 1, whole // 2, whole - 5):
        for block in ([(start, whole), (0, 4)], [(0, 5), (start, whole)], [(start, whole)] * 2):
            assert agrees(lambda b=block: F.dropout(x, p, key=KEY, block=b)), block


@pytest.mark.parametrize("given", [True, False, 1.0, "1", [1], None])
def test_what_is_no_int_is_no_batch_dim_whoever_has_asked_before(given):
    """Python takes True for 1, and so does a cache."""
    x = torch.randn(3, 5, 4)
    for dim in (0, 1):
        F.dropout(x, 0.5, key=KEY, batch_dim=dim)
        backends.keep_mask(KEY, 0.5, x.shape, batch_dim=dim)
    message = r"^`batch_dim` of .* must be an int\. Got "
    with pytest.raises(TypeError, match=message):
        F.dropout(x, 0.5, key=KEY, batch_dim=given)
    with pytest.raises(TypeError, match=message):
        backends.keep_mask(KEY, 0.5, x.shape, batch_dim=given)
    with pytest.raises(TypeError, match=message):
        F.dropout(x, 0.5, batch_dim=given)
