"""Tickets on a GPU, and what a clock gives there: the host's side, with a device that is not there.

What needs a device that is there is in `test_cuda.py`.
"""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import sitout
from sitout import masks, nn
from sitout._ticker import State
from sitout.masks import MaskKey

LAST = 2**64 - 1


class FakeGenerator:
    """What the rule of the ticket asks of a CUDA generator."""

    device = torch.device("cuda", 0)

    def __init__(self, seed, offset=0):
        self.manual_seed(seed, offset)

    def manual_seed(self, seed, offset=0):
        self.seed, self.offset = seed, offset

    def initial_seed(self):
        return self.seed

    def get_offset(self):
        return self.offset

    def set_offset(self, offset):
        assert offset % 4 == 0
        self.offset = offset


class FakeCuda:
    """Two devices, the second of which is current."""

    def __init__(self, monkeypatch):
        self.generators = FakeGenerator(1), FakeGenerator(2, 8)
        self.captures = False
        self.drawn = []
        self._randint = torch.randint
        monkeypatch.setattr(torch.cuda, "default_generators", self.generators)
        monkeypatch.setattr(torch.cuda, "init", lambda: None)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: self.captures)

    def watch(self, monkeypatch):
        """Note each draw, made on the CPU in place of the device."""

        def randint(low, high, size, *, generator, device):
            self.drawn.append((low, high, generator, torch.device(device)))
            return self._randint(low, high, size)

        monkeypatch.setattr(torch, "randint", randint)


@pytest.fixture
def cuda(monkeypatch):
    return FakeCuda(monkeypatch)


def by_the_rule(seed, offset):
    """Return words 0 and 1 of kind 15 at the counter (offset lo, offset hi, 0, 15 << 28)."""
    counter = offset % 2**32, offset >> 32, 0, 15 << 28
    low, high, _, _ = masks._philox(*counter, seed % 2**32, seed >> 32)
    return low + (high << 32)


@pytest.mark.parametrize("seed", [0, 2**32 + 5, LAST])
@pytest.mark.parametrize("offset", [0, 12, 2**32 - 4, 2**40])
def test_each_call_takes_the_next_ticket_and_moves_the_offset_by_four(cuda, seed, offset):
    cuda.generators[1].manual_seed(seed, offset)
    made = [masks.draw_key("cuda").seed for _ in range(3)]
    assert made == [by_the_rule(seed, offset + 4 * call) for call in range(3)]
    assert cuda.generators[1].offset == offset + 12
    assert len(set(made)) == 3


def test_each_device_has_its_own_tickets(cuda):
    assert masks.draw_key("cuda:0") == MaskKey(seed=by_the_rule(1, 0))
    assert masks.draw_key("cuda:1") == MaskKey(seed=by_the_rule(2, 8))
    assert masks.draw_key(torch.device("cuda", 0)) == MaskKey(seed=by_the_rule(1, 4))
    assert masks.draw_key("cuda") == MaskKey(seed=by_the_rule(2, 12))
    assert [one.offset for one in cuda.generators] == [8, 16]


def test_equal_seeds_and_restored_states_give_equal_tickets(cuda):
    def tickets():
        return [masks.draw_key("cuda:0") for _ in range(3)]

    first = tickets()
    after = tickets()
    cuda.generators[0].manual_seed(1)
    assert tickets() == first
    assert tickets() == after != first


def test_a_ticket_on_cuda_leaves_the_generator_of_the_cpu_alone(cuda):
    state = torch.get_rng_state()
    masks.draw_key("cuda")
    assert torch.equal(torch.get_rng_state(), state)


def test_a_generator_of_the_gpu_goes_before_the_default_one(cuda):
    own = FakeGenerator(7, 20)
    for device in ("cuda:0", "cuda:1", "cpu"):
        wanted = by_the_rule(7, own.offset)
        assert masks.draw_key(device, own) == MaskKey(seed=wanted)
    assert own.offset == 32
    assert [one.offset for one in cuda.generators] == [0, 8]


def test_a_generator_of_the_cpu_gives_the_ticket_of_a_tensor_on_a_gpu(cuda):
    made = masks.draw_key("cuda", torch.Generator().manual_seed(3)).seed
    wanted = torch.randint(-(2**63), 2**63 - 1, (), generator=torch.Generator().manual_seed(3))
    assert torch.equal(made, wanted)
    assert [one.offset for one in cuda.generators] == [0, 8]


def test_in_a_capture_the_device_draws_so_that_replays_differ(cuda, monkeypatch):
    cuda.captures = True
    cuda.watch(monkeypatch)
    assert isinstance(masks.draw_key("cuda:0").seed, torch.Tensor)
    assert cuda.drawn == [(-(2**63), 2**63 - 1, None, torch.device("cuda", 0))]
    assert [one.offset for one in cuda.generators] == [0, 8]
    own = FakeGenerator(7)
    masks.draw_key("cuda:1", own)
    assert cuda.drawn[1][2:] == (own, own.device)
    assert own.offset == 0


def test_in_a_capture_a_generator_of_the_cpu_is_refused(cuda):
    cuda.captures = True
    with pytest.raises(RuntimeError, match="All replays would have one mask"):
        masks.draw_key("cuda", torch.Generator())
    assert isinstance(masks.draw_key("cpu", torch.Generator()).seed, torch.Tensor)


def test_under_vmap_the_device_draws_as_torch_rules(cuda, monkeypatch):
    cuda.watch(monkeypatch)

    def draw(x):
        return x + masks.draw_key("cuda:0").seed

    torch.func.vmap(draw, randomness="same")(torch.zeros(2, dtype=torch.int64))
    assert len(cuda.drawn) == 1
    assert cuda.generators[0].offset == 0
    torch.func.grad(lambda x: x * int(isinstance(masks.draw_key("cuda:0").seed, int)))(
        torch.ones(())
    )
    assert cuda.generators[0].offset == 4  # no vmap: an int, as in eager


def test_what_is_traced_has_the_draw_as_a_node(cuda):
    def draw(x):
        return x + masks.draw_key("cuda:0").seed

    with FakeTensorMode():
        x = torch.zeros((), dtype=torch.int64, device="cuda:0")
        assert masks.draw_key("cuda:0").seed.device == x.device
        graph = make_fx(draw)(x).graph
    (drawn,) = (node for node in graph.nodes if "randint" in str(node.target))
    assert drawn.kwargs["device"] == torch.device("cuda", 0)
    assert cuda.generators[0].offset == 0


def test_meta_draws_nothing(cuda):
    assert masks.draw_key("meta").seed.is_meta
    assert [one.offset for one in cuda.generators] == [0, 8]


# The clock


@pytest.fixture
def on_fake_gpu():
    """Let tensors claim to be on a GPU; those of the CPU made before stay as they are."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


class Still(torch.nn.Module):
    """A layer with a tensor that tells the device."""

    def __init__(self):
        super().__init__()
        self.register_buffer("where", torch.zeros(1, device="cuda"))
        self.drop = nn.Dropout(0.5)


@pytest.mark.usefixtures("on_fake_gpu")
def test_in_a_capture_the_address_is_on_the_device_and_eager_code_has_ints(cuda):
    model = Still()
    clock = sitout.MaskClock(model, seed=17)
    with clock.at(3):
        assert model.drop._address()[0] == MaskKey(17, 0, 3, 0)
        cuda.captures = True
        key, _ = model.drop._address()
        again, _ = model.drop._address()
        cuda.captures = False
        assert model.drop._address()[0] == MaskKey(17, 0, 3, 1)
    for field in (key.seed, key.site, key.step):
        assert field.is_cuda
    assert key.step is clock._state.step_tensor
    assert (key.call, again.call) == (0, 1)  # replays are first calls in their blocks


def test_a_clock_that_is_not_on_the_gpu_refuses_a_capture(cuda):
    model = nn.Dropout(0.5)
    clock = sitout.MaskClock(model)
    with clock.at(0):
        cuda.captures = True
        with pytest.raises(RuntimeError, match="a clock whose model has no parameter on the GPU"):
            model._address()
        cuda.captures = False


def test_a_block_is_not_opened_in_a_capture(cuda):
    clock = sitout.MaskClock(nn.Dropout(0.5))
    cuda.captures = True
    with pytest.raises(RuntimeError, match="must be outside of the capture"), clock.at(0):
        pass
    cuda.captures = False
    with clock.at(0):
        pass


@pytest.fixture
def moved(monkeypatch):
    """Note what is moved to the fake GPU, and whether it is waited for."""
    found = []

    def to(x, device, non_blocking=False):
        found.append(non_blocking)
        return torch.zeros(x.shape, dtype=x.dtype, device=device)

    monkeypatch.setattr(torch.Tensor, "to", to)
    return found


@pytest.mark.usefixtures("on_fake_gpu")
def test_rows_are_moved_to_the_device_once_a_block_and_nobody_waits(moved):
    state = State(0)
    state.place(torch.device("cuda"))
    rows = torch.zeros(4, dtype=torch.int64)
    state.begin(0, rows)
    block = state.block
    assert moved == [True] * 3  # the seed and the step, once and for all, and the rows
    assert block.rows.is_cpu
    assert block.there.is_cuda
    assert block.rows is not rows


@pytest.mark.usefixtures("on_fake_gpu", "moved")
def test_rows_of_a_capture_are_written_to_by_later_blocks(cuda, monkeypatch):
    copied = []
    state = State(0)
    state.place(torch.device("cuda"))
    state.begin(0, torch.zeros(4, dtype=torch.int64))
    cuda.captures = True
    held = state.hold(state.block.there)
    cuda.captures = False
    assert held is state.block.there
    monkeypatch.setattr(torch.Tensor, "copy_", lambda to, of: copied.append((to, of)))
    state.begin(1, torch.zeros(3, dtype=torch.int64))
    assert copied == []
    state.begin(2, torch.zeros(4, dtype=torch.int64))
    assert copied[0][0] is held
    assert copied[0][1] is state.block.there is not held


def test_on_the_cpu_rows_are_copied_once():
    state = State(0)
    state.begin(0, torch.arange(4))
    assert state.block.rows is state.block.there


# Rates as data


@pytest.mark.usefixtures("on_fake_gpu")
def test_a_rate_that_was_written_is_known_without_asking_the_device():
    layer = nn.Dropout(0.5)
    layer.rate_data = torch.zeros(2, dtype=torch.int64, device="cuda")
    layer.p = 0.25
    assert layer.p == 0.25
    layer.rate_data.add_(1)  # somebody else wrote: a broadcast of buffers
    with pytest.raises(torch._subclasses.fake_tensor.DataDependentOutputException):
        _ = layer.p


def test_a_replay_without_rows_does_not_read_those_of_an_earlier_block():
    state = State(0)
    state.captured[3] = torch.tensor([7, 8, 9])  # as a capture with these rows leaves it
    state.begin(1, None)
    assert state.captured[3].tolist() == [0, 1, 2]
