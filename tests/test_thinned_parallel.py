"""Ranks that keep different units and samples average their gradients right, in real processes.

The processes of a group run this very file as a script, and leave what they saw in a folder.
"""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

import sitout
from sitout.masks import kept_units
from sitout.parallel import rows

SIZE, BATCH, STEPS = 2, 12, 3
NETS = ("thinned", "masked", "groups", "residual")


def network(name):
    torch.manual_seed(0)
    if name == "residual":
        net = torch.nn.Sequential(
            sitout.nn.DropResidual(torch.nn.Linear(7, 7), 0.4),
            sitout.nn.DropResidual(torch.nn.Linear(7, 7), 0.3),
        )
    else:
        form = "masked" if name == "masked" else "thinned"
        groups = 3 if name == "groups" else 1
        net = sitout.nn.ThinnedMLP(7, [20, 20], 5, groups=groups, form=form)
    return net.double(), torch.randn(STEPS, BATCH, 7, dtype=torch.float64)


def step_of(model, net, clock, x, step, positions):
    """Return the gradients of the mean over the given rows."""
    net.zero_grad()
    with clock.at(step, rows=positions):
        model(x[step][positions]).square().mean().backward()
    return [one.grad.clone() for one in net.parameters()]


def work(rank, size):
    made = {}
    for name in NETS:
        net, x = network(name)
        model = DistributedDataParallel(net)
        clock = sitout.MaskClock(model, seed=17)
        mine = rows(BATCH)
        made[name] = [step_of(model, net, clock, x, step, mine) for step in range(STEPS)]
    return made


def main(rank, size, folder):
    store = distributed.FileStore(str(folder / "store"), size)
    distributed.init_process_group(
        "gloo", timeout=timedelta(seconds=60), store=store, rank=rank, world_size=size
    )
    torch.set_num_threads(1)
    torch.save(work(rank, size), folder / f"{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    """Return what each process of a group saw, by its rank."""
    folder = tmp_path_factory.mktemp("group")
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(SIZE), str(folder)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(SIZE)
    ]
    try:
        for process in processes:
            process.wait(timeout=200)
    finally:
        for process in processes:
            process.kill()
        errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * SIZE, "\n".join(errors)
    return [torch.load(folder / f"{rank}.pt") for rank in range(SIZE)]


@pytest.mark.parametrize("name", NETS)
def test_gradients_are_the_mean_of_those_of_each_process_alone(group, name):
    for step in range(STEPS):
        alone = []
        for part in torch.arange(BATCH).chunk(SIZE):
            net, x = network(name)
            clock = sitout.MaskClock(net, seed=17)
            alone.append(step_of(net, net, clock, x, step, part))
        assert not all(map(torch.equal, *alone))
        wanted = [torch.stack(grads).mean(0) for grads in zip(*alone, strict=True)]
        for made in group:
            for ours, theirs in zip(made[name][step], wanted, strict=True):
                assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-15)


def test_the_processes_keep_different_units(group):
    """Each has a gradient for its own, so the mean has more rows than one of them keeps."""
    net, _ = network("thinned")
    clock = sitout.MaskClock(net, seed=17)
    for step in range(STEPS):
        each = [kept_units(clock.key("2", step), 0.5, 20, group=rank) for rank in range(SIZE)]
        assert not torch.equal(*each)
        both = torch.cat(each).unique()
        for made in group:
            touched = made["thinned"][step][0].abs().sum(1).nonzero().flatten()
            assert set(touched.tolist()) <= set(both.tolist())
            assert len(touched) > 10


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
