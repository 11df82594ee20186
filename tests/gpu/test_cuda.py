"""What only a GPU can show: captured graphs, streams, devices, memory, and that nobody waits."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

import sitout
from sitout import MaskClock, masks, nn
from sitout import functional as F
from sitout.backends.triton import _moves
from sitout.masks import MaskKey

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

KEY = MaskKey(seed=11, site=3, step=5, call=2)
SHAPE = (32, 250)


@pytest.fixture(autouse=True)
def _no_poison():
    """Filling new memory is work of its own, and cuBLAS asks for a variable then."""
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def x():
    return torch.randn(SHAPE, device="cuda")


def mlp(form="thinned", **options):
    net = nn.ThinnedMLP(250, [512, 512], 250, 0.5, form=form, **options)
    return net.cuda()


def mixed():
    """Return a network with one layer of each kind that takes a plain tensor."""
    block = torch.nn.Sequential(torch.nn.Linear(250, 250), nn.Dropout(0.3))
    return torch.nn.Sequential(
        nn.Dropout(0.5),
        torch.nn.Linear(250, 250),
        nn.DropPath(0.2),
        nn.AlphaDropout(0.1),
        nn.GaussianDropout(0.1),
        nn.DropResidual(block, 0.4, form="thinned"),
        nn.ThinnedMLP(250, [500], 250, 0.5, form="thinned"),
    ).cuda()


def both(net, x):
    """Return the output and the gradient of the input, in memory that no replay writes to."""
    x = x.detach().requires_grad_()
    y = net(x)
    (grad,) = torch.autograd.grad(y.square().sum(), x)
    return y.detach().clone(), grad.clone()


def captured(run):
    """Return a graph of a call, and its result, which each replay writes anew."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()
    return graph, out


# Tickets


def test_the_default_generator_governs_the_mask_and_moves_by_four(x):
    generator = torch.cuda.default_generators[x.get_device()]
    torch.manual_seed(3)
    before = generator.get_offset()
    first, second = F.dropout(x), F.dropout(x)
    assert generator.get_offset() == before + 8
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    key = masks.draw_key("cuda")
    with sitout.backends.use("reference"):
        assert torch.equal(F.dropout(x, key=key), first)
    assert torch.equal(F.dropout(x), second)


def test_a_checkpoint_repeats_the_mask(x):
    x.requires_grad_()
    torch.manual_seed(0)
    (plain,) = torch.autograd.grad(F.dropout(x).sum(), x)
    torch.manual_seed(0)
    y = checkpoint(F.dropout, x, use_reentrant=False)
    torch.rand(5, device="cuda")
    (again,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(plain, again)


def test_vmap_draws_as_torch_rules(x):
    same = torch.func.vmap(F.dropout, randomness="same")(torch.ones_like(x))
    assert torch.equal(same, same[:1].expand_as(same))
    different = torch.func.vmap(F.dropout, randomness="different")(torch.ones_like(x))
    assert not torch.equal(different, different[:1].expand_as(different))
    with pytest.raises(RuntimeError, match="randomness"):
        torch.func.vmap(F.dropout, randomness="error")(x)


# Captured graphs


def test_each_replay_has_a_fresh_mask(x):
    ones = torch.ones(4096, device="cuda")
    graph, out = captured(lambda: F.dropout(ones, 0.5))
    made = []
    for _ in range(4):
        graph.replay()
        made.append(out.clone())
    for one in made:
        assert 0.4 < one.count_nonzero().item() / one.numel() < 0.6
    assert len({tuple(one.tolist()) for one in made}) == 4


def test_two_calls_in_a_capture_have_two_masks():
    ones = torch.ones(4096, device="cuda")
    graph, (first, second) = captured(lambda: (F.dropout(ones), F.dropout(ones)))
    graph.replay()
    assert not torch.equal(first, second)


def test_replays_of_thinned_layers_have_fresh_units():
    net = mlp()
    x = torch.randn(SHAPE, device="cuda")
    graph, out = captured(lambda: net(x).detach())
    graph.replay()
    first = out.clone()
    graph.replay()
    assert not torch.equal(first, out)


@pytest.mark.parametrize("has_rows", [False, True])
def test_a_replay_under_a_clock_is_the_eager_step(x, has_rows):
    net = mixed()
    clock = MaskClock(net, seed=4)
    twin = copy.deepcopy(net)
    other = MaskClock(twin, seed=4)
    at = [torch.arange(32) + 32 * step if has_rows else None for step in range(3)]
    with torch.no_grad():
        with clock.at(0, at[0]):
            graph, out = captured(lambda: net(x))
        for step in (1, 2):
            with clock.at(step, at[step]):
                graph.replay()
            with other.at(step, at[step]):
                torch.testing.assert_close(out, twin(x))


def test_graphed_callables_have_fresh_masks_and_their_gradients(x):
    net = torch.nn.Sequential(torch.nn.Linear(250, 250), nn.Dropout(0.5), nn.DropPath(0.2)).cuda()
    twin = copy.deepcopy(net)
    clock, other = MaskClock(net, seed=4), MaskClock(twin, seed=4)
    sample = torch.randn(SHAPE, device="cuda", requires_grad=True)
    with clock.at(0):
        graphed = torch.cuda.make_graphed_callables(net, (sample,))
    for step in (1, 2):
        with clock.at(step):
            made = both(graphed, x)
        with other.at(step):
            for ours, theirs in zip(made, both(twin, x), strict=True):
                torch.testing.assert_close(ours, theirs)


def test_graphed_callables_without_a_clock_draw_anew(x):
    net = torch.nn.Sequential(torch.nn.Linear(250, 250), nn.Dropout(0.5)).cuda()
    sample = torch.randn(SHAPE, device="cuda", requires_grad=True)
    graphed = torch.cuda.make_graphed_callables(net, (sample,))
    first, second = both(graphed, x), both(graphed, x)
    assert not torch.equal(first[0], second[0])
    plain = net[0](x)
    kept = first[0] != 0
    torch.testing.assert_close(first[0], torch.where(kept, 2.0 * plain, 0.0))


def test_a_block_is_not_opened_in_a_capture():
    layer = torch.nn.Sequential(torch.nn.Linear(4, 4), nn.Dropout(0.5)).cuda()
    clock = MaskClock(layer)
    graph = torch.cuda.CUDAGraph()
    with (
        pytest.raises(RuntimeError, match="must be outside of the capture"),
        torch.cuda.graph(graph),
        clock.at(0),
    ):
        pass


# Streams and devices


def test_a_kernel_runs_in_the_current_stream(x):
    wanted = F.dropout(x, key=KEY)
    stream = torch.cuda.Stream()
    for _ in range(20):
        big = torch.randn(2048, 2048, device="cuda")
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            y = x + 0.0 * (big @ big)[0, 0]
            made = F.dropout(y, key=KEY)
            kept = made != 0
        stream.synchronize()
        assert torch.equal(kept, wanted != 0)
        torch.testing.assert_close(made, wanted)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two GPUs")
def test_devices_have_equal_masks_and_tickets_of_their_own():
    x = torch.randn(SHAPE)
    there, here = x.to("cuda:1"), x.to("cuda:0")
    with torch.cuda.device(0):
        made = F.dropout(there, key=KEY)
        assert made.device == there.device
        assert torch.equal(made.cpu(), F.dropout(here, key=KEY).cpu())
    offsets = [one.get_offset() for one in torch.cuda.default_generators[:2]]
    F.dropout(there)
    after = [one.get_offset() for one in torch.cuda.default_generators[:2]]
    assert after == [offsets[0], offsets[1] + 4]
    net = mlp().to("cuda:1")
    net(there).sum().backward()


# Memory


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_is_held_for_backward(dtype):
    x = torch.randn(1 << 20, device="cuda", dtype=dtype, requires_grad=True)
    F.dropout(x).sum().backward()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    y = F.dropout(x)
    assert torch.cuda.memory_allocated() - before == y.numel() * y.element_size()


def test_a_thinned_layer_holds_what_plays():
    def held(net):
        x = torch.randn(4096, 256, device="cuda")
        net(x).sum().backward()
        before = torch.cuda.memory_allocated()
        y = net(x)
        return torch.cuda.memory_allocated() - before - y.untyped_storage().nbytes()

    thin = nn.ThinnedMLP(256, [2048], 256, 0.75, form="thinned").cuda()
    full = torch.nn.Sequential(
        torch.nn.Linear(256, 2048), torch.nn.ReLU(), torch.nn.Linear(2048, 256)
    ).cuda()
    assert held(thin) <= 0.3 * held(full)


def test_more_elements_than_an_int32_counts():
    n = 2**31 + 4096
    if torch.cuda.mem_get_info()[0] < 5 * n:
        pytest.skip("too little memory")
    x = torch.ones(1, n, device="cuda", dtype=torch.bfloat16)
    made = F.dropout(x, 0.5, key=KEY, inplace=True)[:, -999:].clone()
    del x
    wanted = F.dropout(torch.ones_like(made), 0.5, key=KEY, block=((n - 999, n),))
    assert torch.equal(made, wanted)


# Compiled code


def test_compiled_code_is_one_graph_with_the_masks_of_eager_code(x):
    torch._dynamo.reset()
    net = mixed()
    twin = copy.deepcopy(net)
    clock, other = MaskClock(net, seed=4), MaskClock(twin, seed=4)
    counter = CompileCounterWithBackend("inductor")
    compiled = torch.compile(net, backend=counter, fullgraph=True)
    for step in range(3):
        with clock.at(step):
            made = both(compiled, x)
        with other.at(step):
            for ours, theirs in zip(made, both(twin, x), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    assert counter.frame_count == 1


def test_compiled_code_draws_a_ticket_for_each_call(x):
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: (F.dropout(x), F.dropout(x)), fullgraph=True)
    made = [*compiled(x), *compiled(x)]
    for at, one in enumerate(made):
        assert not any(torch.equal(one, other) for other in made[:at])


@pytest.mark.parametrize("has_clock", [False, True])
def test_the_graphs_of_reduce_overhead_have_fresh_masks(x, has_clock):
    torch._dynamo.reset()
    net = torch.nn.Sequential(torch.nn.Linear(250, 250), nn.Dropout(0.5)).cuda()
    clock = MaskClock(net, seed=4)
    twin = copy.deepcopy(net)
    other = MaskClock(twin, seed=4)
    compiled = torch.compile(net, mode="reduce-overhead", fullgraph=True)
    made = []
    for step in range(5):
        torch.compiler.cudagraph_mark_step_begin()
        if not has_clock:
            made.append(compiled(x).detach().clone())
            continue
        with clock.at(step):
            made.append(compiled(x).detach().clone())
        with other.at(step):
            torch.testing.assert_close(made[-1], twin(x).detach(), rtol=1e-3, atol=1e-3)
    for at, one in enumerate(made):
        assert not any(torch.equal(one, before) for before in made[:at])


FIRST = """
import torch
from sitout import nn

net = torch.compile(torch.nn.Sequential(torch.nn.Linear(250, 250), nn.Dropout(0.5)).cuda(),
                    mode="reduce-overhead", fullgraph=True)
x = torch.randn(32, 250, device="cuda")
for _ in range(3):
    torch.compiler.cudagraph_mark_step_begin()
    net(x)
"""


def test_a_graph_of_reduce_overhead_may_be_the_first_that_runs():
    """What is kept for the process must not lie in its pool."""
    subprocess.run([sys.executable, "-c", FIRST], check=True)


def test_there_may_be_more_groups_than_a_grid_has_rows():
    kept = torch.randint(3, (70_000, 1), device="cuda")
    x = torch.randn(3, 5, device="cuda")
    assert torch.equal(_moves.take(x, kept, None), x[kept])


@pytest.mark.parametrize("masks", ["independent", "shared"])
def test_a_prediction_has_the_samples_of_the_cpu(masks):
    layers = [torch.nn.Linear(20, 4096), torch.nn.ReLU(), torch.nn.Dropout(0.5)]
    net = torch.nn.Sequential(*layers, torch.nn.Linear(4096, 3)).eval()
    x = torch.randn(600, 20)
    made = []
    for device in ("cpu", "cuda"):
        asked = net.to(device), x.to(device)
        one = sitout.mc.predict(*asked, samples=3, masks=masks, return_samples=True)
        assert "no plan" not in one.explain()
        made.append(one.samples.cpu())
    torch.testing.assert_close(*made, rtol=1e-2, atol=1e-2)  # TF32 may be on


# Nobody waits


@pytest.fixture
def no_waiting():
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("has_rows", [False, True])
def test_nobody_waits_in_a_step(x, no_waiting, has_rows):
    net = mixed()
    clock = MaskClock(net, seed=4)
    rows = torch.arange(len(x)) + len(x) if has_rows else None
    with clock.at(0, rows):
        both(net, x)  # compiles
    no_waiting()
    with clock.at(1, rows):
        both(net, x)
    both(net, x)


@pytest.mark.parametrize("groups", [1, 3, 4])
def test_nobody_waits_in_a_step_of_groups(x, no_waiting, groups):
    net = mlp(groups=groups)
    clock = MaskClock(net, seed=4)
    both(net, x)
    no_waiting()
    with clock.at(0, rows=torch.arange(len(x)) + len(x)):
        both(net, x)


def test_nobody_waits_for_a_scheduled_rate(x, no_waiting):
    net = torch.nn.Sequential(torch.nn.Linear(250, 250), nn.Dropout(0.5)).cuda()
    scheduler = sitout.schedules.RateScheduler(net, sitout.schedules.linear(0.5, 0.1), total=9)
    both(net, x)
    no_waiting()
    for _ in range(3):
        both(net, x)
        scheduler.step()


# Thinned layers, with the libraries that a GPU has


@pytest.mark.parametrize("groups", [1, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_thinned_network_is_its_masked_form(groups, dtype):
    made = []
    x = torch.randn(600, 250, device="cuda", dtype=dtype)
    for form in ("thinned", "masked"):
        torch.manual_seed(0)
        net = nn.ThinnedMLP(250, [509, 400], 250, 0.3, form=form, groups=groups).cuda().to(dtype)
        with MaskClock(net, seed=1).at(0):
            made.append(both(net, x))
    for ours, theirs in zip(*made, strict=True):
        near = 1e-2 if dtype == torch.float32 else 0.1  # TF32 may be on
        assert (ours - theirs).norm() <= near * theirs.norm()


def test_under_autocast_a_thinned_network_trains():
    net = nn.ThinnedMLP(250, [512], 250, 0.5, form="thinned").cuda()
    x = torch.randn(SHAPE, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        y = net(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert all(one.grad.dtype == torch.float32 for one in net.parameters())
