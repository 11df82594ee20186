"""Thinned layers on a GPU: values, gradients and units of the CPU, and nobody waits in a step."""

from __future__ import annotations

import copy

import pytest
import torch

import sitout
from sitout import MaskClock, backends, masks, nn
from sitout import functional as F
from sitout.backends import Kept, _gathered, _kept
from sitout.backends.triton import _rows
from sitout.masks import MaskKey

KEY = MaskKey(seed=3, site=1, step=5)
WAITS = ("item", "tolist", "__bool__", "__int__", "__float__", "__index__", "nonzero", "unique")
WAITS += ("cpu", "numpy", "masked_select", "__contains__")


@pytest.fixture
def nobody_waits(monkeypatch, device):
    """Return a function from whose call on whatever makes the host wait for the device fails."""
    if device == "cuda":
        yield lambda: torch.cuda.set_sync_debug_mode("error")
        torch.cuda.set_sync_debug_mode("default")
        return
    from triton.runtime.interpreter import GridExecutor

    run, inside = GridExecutor.__call__, []  # a kernel, where the interpreter reads as a GPU does

    def running(*arguments, **options):
        inside.append(True)
        try:
            return run(*arguments, **options)
        finally:
            inside.pop()

    def refuse():
        monkeypatch.setattr(GridExecutor, "__call__", running)
        for name in WAITS:
            monkeypatch.setattr(torch.Tensor, name, refusing(name, getattr(torch.Tensor, name)))

    def refusing(name, real):
        def refused(*arguments, **options):
            assert inside, f"Tensor.{name} waits for the device"
            return real(*arguments, **options)

        return refused

    yield refuse


forced = pytest.mark.usefixtures("_forced")


def subset(groups, n, k):
    return torch.stack([torch.randperm(n)[:k].sort().values for _ in range(groups)])


LINEARS = [
    # rows, places, step, sizes, kept of 7 inputs, kept of 11 outputs
    (1, (), 1, None, 4, 5),
    (7, (), 7, None, 0, 5),
    (7, (2,), 3, None, 4, 0),
    (8, (), 4, None, 3, 3),
    (10, (), 99, (3, 3, 4), 4, 5),
    (300, (), 300, None, 4, 5),
    (600, (), 299, None, 0, 5),
]


@forced
@pytest.mark.parametrize(("rows", "places", "step", "sizes", "k_in", "k_out"), LINEARS)
@pytest.mark.parametrize("has_bias", [True, False])
def test_a_linear_layer_is_that_of_the_groups_one_by_one(
    device, rows, places, step, sizes, k_in, k_out, has_bias
):
    groups = len(sizes) if sizes else -(-rows // step)
    of = None if sizes is None else torch.zeros(rows, dtype=torch.int64)
    kept = [
        Kept(subset(groups, n, k).to(device), n, step, of, sizes) if k else None
        for n, k in ((7, k_in), (11, k_out))
    ]
    options = {"dtype": torch.float64, "device": device, "requires_grad": True}
    x = torch.randn(rows, *places, k_in or 7, **options)
    weight, bias = torch.randn(11, 7, **options), torch.randn(11, **options)
    inputs = [x, weight, *([bias] if has_bias else [])]
    given = x, weight, bias if has_bias else None, *kept
    wanted = _kept.plain_linear(*given)
    grad = torch.randn_like(wanted)
    assert _gathered.serves(*given)
    made = backends.linear(*given)
    torch.testing.assert_close(made, wanted)
    gradients = torch.autograd.grad(wanted, inputs, grad)
    for create in (False, True):
        ours = torch.autograd.grad(made, inputs, grad, retain_graph=True, create_graph=create)
        for one, other in zip(ours, gradients, strict=True):
            torch.testing.assert_close(one, other)


@forced
def test_the_products_of_equal_groups_are_one(device, monkeypatch):
    called = []
    real = torch.baddbmm
    monkeypatch.setattr(torch, "baddbmm", lambda *a, **k: (called.append(a), real(*a, **k))[1])
    monkeypatch.setattr(torch, "addmm", None)
    kept = Kept(subset(4, 11, 5).to(device), 11, 2)
    weight = torch.randn(11, 7, device=device, requires_grad=True)
    x = torch.randn(8, 7, device=device, requires_grad=True)
    backends.linear(x, weight, None, None, kept).sum().backward()
    assert len(called) == 3
    assert all(product[1].shape[0] == 4 for product in called)


@forced
def test_rows_that_begin_at_no_multiple_are_copied_for_large_products(device):
    x = torch.randn(300, 5, device=device)
    assert _gathered._wide(x).stride(0) == 8
    assert torch.equal(_gathered._wide(x), x)
    assert _gathered._wide(x[:200]).stride(0) == 5
    assert _gathered._wide(x[:, :4].contiguous()).stride(0) == 4


@forced
def test_under_autocast_the_products_are_in_its_dtype_and_gradients_in_that_of_the_weight(device):
    kept = Kept(subset(2, 12, 6).to(device), 12, 3)
    weight = torch.randn(12, 8, device=device, requires_grad=True)
    bias = torch.randn(12, device=device, requires_grad=True)
    x = torch.randn(6, 8, device=device, requires_grad=True)
    with torch.autocast(device, torch.bfloat16):
        made = backends.linear(x, weight, bias, None, kept)
        wanted = _kept.plain_linear(x, weight, bias, None, kept)
    assert made.dtype == wanted.dtype == torch.bfloat16
    torch.testing.assert_close(made, wanted)
    ours = torch.autograd.grad(made.float().sum(), (x, weight, bias), create_graph=True)
    theirs = torch.autograd.grad(wanted.float().sum(), (x, weight, bias))
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2)


class Blocks(torch.nn.Module):
    """Two residual blocks whose branches are thinned in both ways."""

    def __init__(self):
        super().__init__()
        branches = [nn.ThinnedMLP(6, [20], 6, 0.5, form="thinned") for _ in range(2)]
        self.blocks = torch.nn.Sequential(*(nn.DropResidual(one, 0.4) for one in branches))

    def forward(self, x):
        return self.blocks(x)


def mlp(**options):
    return nn.ThinnedMLP(6, [20, 20], 6, 0.5, form="thinned", **options)


NETS = {
    "one group": mlp,
    "three groups": lambda: mlp(groups=3),
    "groups of a size": lambda: mlp(group_size=4),
    "masked": lambda: nn.ThinnedMLP(6, [20], 6, 0.5, form="masked"),
    "samples and units": Blocks,
}
BATCH = 10


def step(net, x):
    for parameter in net.parameters():
        parameter.grad = None
    y = net(x)
    y.square().sum().backward()
    return [y.detach(), *(parameter.grad for parameter in net.parameters())]


@forced
@pytest.mark.parametrize(
    ("name", "has_rows"), [*((name, True) for name in NETS), ("one group", False)]
)
def test_a_step_under_a_clock_is_that_of_the_cpu(device, name, has_rows):
    torch.manual_seed(0)
    net = NETS[name]()
    x = torch.randn(BATCH, 6)
    rows = torch.arange(BATCH) + 2 * BATCH if has_rows else None
    if name == "groups of a size" and has_rows:
        rows = torch.arange(BATCH) + 2 * 4
    made = []
    for where, backend in ((device, "triton"), ("cpu", "cpu")):
        here = copy.deepcopy(net).to(where)
        clock = MaskClock(here, seed=4)
        with sitout.backends.use(backend), clock.at(7, rows):
            made.append([one.cpu() for one in step(here, x.to(where))])
    for ours, theirs in zip(*made, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@forced
@pytest.mark.parametrize("name", ["three groups", "masked", "samples and units"])
def test_nobody_waits_in_a_step(device, name, nobody_waits, monkeypatch):
    if device == "cpu":  # on a GPU a ticket is no tensor
        tickets = iter(range(100))
        monkeypatch.setattr(masks, "draw_key", lambda *_: MaskKey(seed=next(tickets)))
    net = NETS[name]().to(device)
    x = torch.randn(BATCH, 6, device=device)
    clock = MaskClock(net, seed=4)
    if device == "cuda":
        step(net, x)  # compiles
    nobody_waits()
    step(net, x)
    with clock.at(0):
        step(net, x)


def test_the_one_that_waits_is_found(device, nobody_waits):
    x = torch.ones(2, device=device)
    nobody_waits()
    with pytest.raises((AssertionError, RuntimeError)):
        x.sum().item()


@pytest.mark.parametrize("name", NETS)
def test_rows_of_the_host_are_read_there(name):
    """On meta nothing can be read, so what is read is what the host has."""
    net = NETS[name]().to("meta")
    clock = MaskClock(net, seed=4)
    x = torch.empty(BATCH, 6, device="meta")
    rows = torch.arange(BATCH) + (8 if name == "groups of a size" else BATCH)
    with clock.at(0, rows=rows):
        assert all(made.is_meta for made in step(net, x))
    apart = torch.tensor([0, 1] * (BATCH // 2))  # of groups whose rows do not stand together
    if "sam" not in name:
        with clock.at(1, rows=apart):
            step(net, x)


def test_the_rows_of_a_device_are_refused_by_the_meta_device():
    net = mlp().to("meta")
    with pytest.raises((NotImplementedError, RuntimeError)), MaskClock(net).at(0, rows=ROWS_AWAY):
        net(torch.empty(4, 6, device="meta"))


ROWS_AWAY = torch.empty(4, dtype=torch.int64, device="meta")


@forced
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_sum_of_a_thinned_branch_is_one_pass_forward_and_one_backward(
    device, monkeypatch, dtype
):
    launched = []
    launch = _rows.launch
    monkeypatch.setattr(_rows, "launch", lambda *a, **k: (launched.append(a[0]), launch(*a, **k)))
    x = torch.randn(8, 5, device=device).to(dtype).requires_grad_()
    made = F.drop_residual(x, torch.tanh, 0.3, key=KEY)
    made.sum().backward()
    assert launched == [_rows.add, _rows.gather]
    mine = x.grad.cpu()
    with sitout.backends.use("reference"):
        there = x.detach().cpu().requires_grad_()
        wanted = F.drop_residual(there, torch.tanh, 0.3, key=KEY)
        wanted.sum().backward()
    one_ulp = 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(made.detach().cpu(), wanted.detach(), rtol=one_ulp, atol=1e-6)
    torch.testing.assert_close(mine, there.grad, rtol=one_ulp, atol=1e-6)


@forced
def test_the_sum_has_a_second_gradient(device):
    x = torch.randn(3, 1, dtype=torch.float64, device=device, requires_grad=True)

    def run(x):
        return F.drop_residual(x, torch.sin, 0.5, key=KEY)

    assert torch.autograd.gradgradcheck(run, (x,))


@pytest.mark.parametrize(("name", "has_rows"), [("one group", False), ("samples and units", True)])
def test_compiled_code_draws_by_the_ops(device, name, has_rows):
    torch._dynamo.reset()
    torch.manual_seed(0)
    net = NETS[name]().to(device)
    x = torch.randn(BATCH, 6, device=device)
    rows = (torch.arange(BATCH) + BATCH).to(device) if has_rows else None
    clock = MaskClock(net, seed=4)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    with clock.at(0, rows):
        wanted = step(net, x)
    with clock.at(1, rows):
        other = step(net, x)
    again = MaskClock(net, seed=4)
    with sitout.backends.use("triton"), again.at(0, rows):
        made = [compiled(x).detach()]
    torch.testing.assert_close(made[0], wanted[0], rtol=1e-4, atol=1e-5)
    with sitout.backends.use("triton"), again.at(1, rows):
        torch.testing.assert_close(compiled(x).detach(), other[0], rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()
