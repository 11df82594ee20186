"""A shard knows its place in the whole, in real process groups.

The processes of a group run this very file as a script, and leave what they saw in a folder.
"""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DistributedSampler

import sitout
from sitout.masks import MaskKey, keep_mask, rate_data
from sitout.parallel import block, rows

SIZES = {"contiguous": [0, 1, 2, 3, 5, 6, 8, 9], "distributed": [0, 1, 2, 3, 5, 6, 8, 9]}
KEY = MaskKey(seed=3, site=1, step=4)
BATCH, STEPS = 8, {"contiguous": 0, "distributed": 1}


def network():
    """Return a model of small whole numbers: no sum is rounded, and none is 0."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(7, 16),
        sitout.nn.Dropout(0.5),
        torch.nn.Linear(16, 5),
        sitout.nn.Dropout(0.1),
    )
    for layer in (model[0], model[2]):
        torch.nn.init.constant_(layer.bias, 0.5)
        layer.weight.data = torch.randint(-3, 4, layer.weight.shape).float()
    return model, torch.randint(-3, 4, (BATCH, 7)).float()


def run(model, clock, x, step, positions):
    """Return what the two dropout layers and the model give at a step."""
    seen = []
    layers = [layer for layer in model.modules() if isinstance(layer, sitout.nn.Dropout)]
    hooks = [layer.register_forward_hook(lambda *args: seen.append(args[-1])) for layer in layers]
    with clock.at(step, rows=positions):
        seen.append(model(x))
    for hook in hooks:
        hook.remove()
    return [y.detach() for y in seen]


# What each process does


def places(group=None):
    return {
        "contiguous": {n: rows(n, group=group) for n in SIZES["contiguous"]},
        "distributed": {n: rows(n, order="distributed", group=group) for n in SIZES["distributed"]},
        "block": {n: block(n, group=group) for n in SIZES["contiguous"]},
    }


def work(rank, size):
    made = {"world": places(), "mesh": places(init_device_mesh("cpu", (size,)))}
    grid = init_device_mesh("cpu", (1, size), mesh_dim_names=("data", "model"))
    made["grid"] = {name: places(grid[name]) for name in ("data", "model")}
    ends = distributed.new_group([0, size - 1])
    made["ends"] = places(ends) if rank in (0, size - 1) else None
    alone, made["stranger"] = distributed.new_group([0]), []
    for place in (rows, block) if rank else ():
        try:
            place(8, group=alone)
        except ValueError as error:
            made["stranger"].append(str(error))
    x = torch.ones(3, 13).chunk(size, dim=1)[rank]
    made["columns"] = sitout.functional.dropout(x, 0.3, key=KEY, block=[block(13)])

    model, x = network()
    wrapped = DistributedDataParallel(model)
    clock = sitout.MaskClock(wrapped, seed=17)
    try:
        with clock.at(0):
            pass
    except ValueError as error:
        made["without rows"] = str(error)
    for order, step in STEPS.items():
        mine = rows(BATCH, order=order)
        made[order] = run(wrapped, clock, x[mine], step, mine)

    layer = model[1].schedulable_()
    wrapped = DistributedDataParallel(model)
    layer.p = 0.01 if rank == 0 else 0.7
    wrapped(x)
    made["rate"] = layer.rate_data
    return made


def main(rank, size, folder):
    store = distributed.FileStore(str(folder / "store"), size)
    distributed.init_process_group(
        "gloo", timeout=timedelta(seconds=60), store=store, rank=rank, world_size=size
    )
    torch.save(work(rank, size), folder / f"{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.fixture(scope="module", params=[2, 3])
def group(request, tmp_path_factory):
    """Return what each process of a group saw, by its rank."""
    folder, size = tmp_path_factory.mktemp("group"), request.param
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(size), str(folder)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    try:
        for process in processes:
            process.wait(timeout=200)
    finally:
        for process in processes:
            process.kill()
        errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * size, "\n".join(errors)
    return [torch.load(folder / f"{rank}.pt") for rank in range(size)]


def check(shards):
    """Check the places that the processes of a group have, in order."""
    size = len(shards)
    for n in SIZES["contiguous"]:
        parts = [*torch.arange(n).chunk(size), *[torch.arange(0)] * size][:size]
        assert all(map(torch.equal, (shard["contiguous"][n] for shard in shards), parts))
        assert torch.equal(torch.cat([s["contiguous"][n] for s in shards]), torch.arange(n))
        stops = itertools.accumulate(map(len, parts), initial=0)
        assert [shard["block"][n] for shard in shards] == [(s, n) for s in stops][:-1]
    for n in SIZES["distributed"]:
        for rank, shard in enumerate(shards):
            dealt = shard["distributed"][n]
            assert torch.equal(dealt, torch.arange(n)[rank::size])
            if n % size == 0:
                sampler = DistributedSampler(range(n), size, rank, shuffle=False, drop_last=False)
                assert dealt.tolist() == list(sampler)


# The laws


def test_one_process_has_everything():
    assert not distributed.is_initialized()
    check([places()])


def test_the_processes_of_a_group_share_the_rows_as_chunk_and_the_sampler_do(group):
    check([made["world"] for made in group])


def test_a_device_mesh_counts_the_processes_along_its_dim(group):
    check([made["mesh"] for made in group])
    check([made["grid"]["model"] for made in group])
    for made in group:
        check([made["grid"]["data"]])


def test_a_group_counts_its_own_processes(group):
    check([group[0]["ends"], group[-1]["ends"]])


def test_a_process_outside_of_a_group_is_told_so(group):
    line = "`group` of a shard must be one that this process belongs to. Got 'another one'."
    assert [made["stranger"] for made in group] == [[], *[[line] * 2] * (len(group) - 1)]


def test_the_columns_of_all_shards_are_those_of_the_whole(group):
    made = torch.cat([made["columns"] for made in group], dim=1)
    assert torch.equal(made != 0, keep_mask(KEY, 0.3, (3, 13)))


def test_a_clock_in_a_group_asks_for_rows_and_names_the_function(group):
    line = (
        f"`rows` must be given in a process group of {len(group)}. Got None. "
        "Every process would drop the same units: pass rows=sitout.parallel.rows(B)."
    )
    assert [made["without rows"] for made in group] == [line] * len(group)


@pytest.mark.parametrize("order", STEPS)
def test_under_a_clock_the_processes_give_the_rows_of_the_whole(group, order):
    model, x = network()
    clock = sitout.MaskClock(model, seed=17)
    step = STEPS[order]
    whole = run(model, clock, x, step, None)
    for site, p, y in zip(("1", "3"), (0.5, 0.1), whole[:2], strict=True):
        assert torch.equal(y != 0, keep_mask(clock.key(site, step), p, y.shape))
    for made in group:
        mine = made["world"][order][BATCH]
        for part, y in zip(made[order], whole, strict=True):
            assert torch.equal(part == 0, y[mine] == 0)
            assert torch.equal(part, y[mine])


def test_all_processes_have_the_scheduled_rate_of_the_first(group):
    for made in group:
        assert torch.equal(made["rate"], rate_data(0.01))


# Errors


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: rows(True), "`batch` of rows must be an int. Got True."),
        (lambda: rows(4.0), "`batch` of rows must be an int. Got 4.0."),
        (lambda: rows("4"), "`batch` of rows must be an int. Got '4'."),
        (lambda: rows(-1), "`batch` of rows must be 0 or more. Got -1."),
        (lambda: block(True), "`full` of block must be an int. Got True."),
        (lambda: block(4.0), "`full` of block must be an int. Got 4.0."),
        (lambda: block(-1), "`full` of block must be 0 or more. Got -1."),
        (
            lambda: rows(4, order="distribute"),
            "`order` of rows must be one of contiguous, distributed. Got 'distribute'. "
            "Did you mean 'distributed'?",
        ),
        (
            lambda: rows(4, order="zigzag"),
            "`order` of rows must be one of contiguous, distributed. Got 'zigzag'.",
        ),
    ],
)
def test_a_bad_argument_is_refused_in_one_line(call, line):
    with pytest.raises((TypeError, ValueError), match=f"^{re.escape(line)}$"):
        call()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
