"""The compiled core gives the bits of the reference: every target, type, layout and address."""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
import threading

import pytest
import torch

from sitout import MaskKey, functional, nn
from sitout.backends import Address, cpu, reference, use
from sitout.masks import rate_data

TARGETS = cpu.core().targets().split()
SIZES = [1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 100, 129]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
EDGES = [2**-33, 2**-32, 0.001, 1 / 64 - 1e-9, 1 / 64, 0.1, 0.3, 0.5, 63 / 64, 1 - 1e-9, 1.0]
LAWS = ["dropout", "path", "alpha", "alpha_slope"]


def same(x, address, p, law):
    made, wanted = (backend.drop(x, address, p, law) for backend in (cpu, reference))
    assert made.dtype == wanted.dtype
    return torch.equal(made.nan_to_num(7.0), wanted.nan_to_num(7.0)) and torch.equal(
        made.isnan(), wanted.isnan()
    )


def layouts(draw, x):
    """Return ``x`` with the same shape and other strides."""
    rank = x.dim()
    if rank < 2:
        return torch.stack([x, -x], -1)[..., 0] if draw.random() < 0.3 else x
    how = draw.randrange(5)
    if how == 0:
        order = draw.sample(range(rank), rank)
        return x.permute(order).contiguous().permute([order.index(dim) for dim in range(rank)])
    if how == 1:
        return torch.stack([x, -x], -1)[..., 0]
    if how == 2:
        half = x.shape[1] // 2
        return torch.cat([x, x], 1)[:, half : half + x.shape[1]]
    return x[:1].expand(x.shape) if how == 3 else x


def cases(seed, count):
    """Yield random tensors, addresses, rates and laws."""
    draw = random.Random(seed)
    for _ in range(count):
        rank = draw.choice([0, 1, 1, 2, 2, 2, 3, 3, 4, 5])
        shape = [draw.choice(SIZES) for _ in range(rank)]
        while math.prod(shape) > 20_000:
            shape[draw.randrange(rank)] = draw.choice([0, 1, 2, 3])
        x = layouts(draw, torch.randn(shape).to(draw.choice(DTYPES)))
        shared = tuple(dim for dim in range(rank) if draw.random() < 0.2)
        batch = draw.randrange(rank) if rank > 1 and draw.random() < 0.4 else 0
        n_rows = x.shape[batch] if rank > 1 and batch not in shared else 1
        rows = torch.randint(2**32, (n_rows,)) if draw.random() < 0.3 else None
        step = torch.randint(2**32, (n_rows,)) if draw.random() < 0.2 else draw.getrandbits(32)
        block = None
        if draw.random() < 0.3:
            rest = [dim for dim in range(rank) if not (rank > 1 and dim == batch)]
            sizes = [1 if dim in shared else x.shape[dim] for dim in rest]
            starts = [draw.choice([0, 1, 5, 33]) for _ in sizes]
            block = tuple(
                (a, a + n + draw.choice([0, 3, 64])) for a, n in zip(starts, sizes, strict=True)
            )
        key = MaskKey(draw.getrandbits(64), draw.getrandbits(28), step, draw.getrandbits(32))
        p = draw.choice(EDGES)
        p = rate_data(p) if draw.random() < 0.2 else p
        yield x, Address(key, shared, batch, rows, block), p, draw.choice(LAWS)


@pytest.mark.parametrize("seed", range(4))
def test_the_core_gives_the_bits_of_the_reference(target, seed):
    for x, address, p, law in cases(seed, 250):
        assert same(x, address, p, law), (x.shape, x.stride(), x.dtype, address, p, law)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("law", LAWS)
def test_every_value_of_a_half_and_every_kind_of_number_is_scaled_and_rounded_alike(
    target, law, dtype
):
    x = torch.arange(2**16, dtype=torch.int32).to(torch.int16)
    x = x.view(torch.float16 if dtype is torch.float16 else torch.bfloat16)
    x = x if x.dtype == dtype else x.to(dtype)
    for p in (0.1, 0.5, 0.97):
        assert same(x, Address(MaskKey(3, 1, 2)), p, law)


@pytest.mark.parametrize("n", [2**20 + 3, 2**20, 4096 * 3 + 1])
def test_the_number_of_threads_changes_no_bit(n):
    x, address = torch.randn(n), Address(MaskKey(5))
    wanted, before = cpu.drop(x, address, 0.3, "dropout"), torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            assert torch.equal(cpu.drop(x, address, 0.3, "dropout"), wanted)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(reference.drop(x, address, 0.3, "dropout"), wanted)


def test_columns_beyond_32_bits_are_reached_by_offset(target):
    x = torch.randn(3, 100)
    for start in (2**32 - 50, 2**34 + 7, 2**35 - 100):
        address = Address(MaskKey(5, 1), block=((start, 2**35),))
        for p in (0.3, 0.001) if start < 2**34 - 100 else (0.3,):
            assert same(x, address, p, "dropout")


def test_many_threads_of_python_may_call_at_once():
    x, address = torch.randn(300_000), Address(MaskKey(5))
    wanted, made = cpu.drop(x, address, 0.3, "dropout"), {}

    def work(number):
        made[number] = [cpu.drop(x, address, 0.3, "dropout") for _ in range(10)]

    workers = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(torch.equal(y, wanted) for part in made.values() for y in part)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_goes_on_alone():
    x, address = torch.randn(300_000), Address(MaskKey(5))
    wanted = cpu.drop(x, address, 0.3, "dropout")
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)  # torch's own pool does not survive a fork
        os._exit(0 if torch.equal(cpu.drop(x, address, 0.3, "dropout"), wanted) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_layer_is_served_by_the_core_forward_and_backward(monkeypatch):
    seen = []
    run = cpu._run

    def watched(op, x, *rest):
        seen.append((op, x.dtype))
        return run(op, x, *rest)

    monkeypatch.setattr(cpu, "_run", watched)
    x = torch.randn(4, 5, requires_grad=True)
    nn.Dropout(0.5)(x).sum().backward()
    nn.AlphaDropout(0.5)(x.detach().double())
    assert seen == [("dropout", torch.float32)] * 2 + [("alpha", torch.float64)]


def test_the_environment_names_a_target_or_is_told_which_there_are():
    code = "from sitout.backends import cpu; print(cpu.core().target())"
    for name in TARGETS:
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "SITOUT_TARGET": name},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == name
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "SITOUT_TARGET": "mmx"},
        capture_output=True,
        text=True,
    )
    assert f"SITOUT_TARGET must be one of {', '.join(TARGETS)}. Got 'mmx'." in done.stderr


def test_without_the_core_the_package_works_and_says_so_once():
    code = (
        "import sys; sys.modules['sitout._core'] = None\n"
        "import torch, sitout\n"
        "for _ in range(3): sitout.functional.dropout(torch.ones(3), key=sitout.MaskKey(1))\n"
        "print(sitout.backends.explain(torch.ones(3)).why)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("serves this tensor: the compiled core was not built")
    assert done.stderr.count("was installed without its compiled core") == 1


@pytest.mark.parametrize(
    "change",
    [
        *({0: -1}, {0: 13}, {0: 12}, {1: 9}, {1: 4}, {2: [1] * 17}, {2: [-4]}, {2: [0]}),
        *({3: [1, 1]}, {6: [1, 1]}, {7: []}, {9: -1}, {9: 2**35}, {10: 8}, {11: 2**16}),
        *({11: -1}, {11: 2**32}),
    ],
    ids=str,
)
def test_the_core_refuses_a_job_whose_parts_do_not_fit(change):
    good = [0, 0, [4], [1], [], [], [1], [1], -1, 0, 16, 9, 2.0, 0.0, 0.0]
    cpu.core().Prepared(*good)
    for place, value in change.items():
        good[place] = value
    with pytest.raises((ValueError, TypeError)):
        cpu.core().Prepared(*good)


@pytest.mark.parametrize(
    ("op", "change"),
    [(0, {0: 0}), (0, {3: 0}), (2, {1: 0}), (8, {1: 0}), (0, {4: 2**64}), (0, {5: -1})],
    ids=str,
)
def test_the_core_refuses_to_run_without_what_it_needs(op, change):
    x = torch.ones(4)
    job = cpu.core().Prepared(op, 0, [4], [1], [1], [], [1], [1], -1, 0, 16, 9, 2.0, 0.0, 0.0)
    good = [x.data_ptr(), x.data_ptr(), 0, x.data_ptr(), 1, 2, 3, 0, 0, 1]
    job.run(*good)
    for place, value in change.items():
        good[place] = value
    with pytest.raises((ValueError, TypeError)):
        job.run(*good)


def test_the_core_and_the_reference_may_be_mixed_in_one_graph():
    x = torch.randn(7, 9, requires_grad=True)
    for first, second in (("cpu", "reference"), ("reference", "cpu")):
        with use(first):
            y = functional.dropout(x, 0.3, key=MaskKey(1))
        with use(second):
            (grad,) = torch.autograd.grad(y.sum(), x)
        assert torch.equal(grad != 0, y != 0)
