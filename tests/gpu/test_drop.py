"""The kernels give the bits of the reference: every law, type, layout and address."""

from __future__ import annotations

import random
import warnings

import pytest
import torch
from torch._subclasses import FakeTensor, FakeTensorMode

import sitout
from sitout import MaskKey, nn
from sitout import functional as F
from sitout.backends import Address, _choice, explain, reference, use
from sitout.backends import triton as backend
from sitout.backends.triton import _drop, _launch
from sitout.masks import rate_data
from test_cpu import cases
from test_fused import ordered

# NumPy, on which the interpreter stands, warns of what a GPU does without a word.
pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
LAWS = ["dropout", "path", "alpha", "alpha_slope"]
KEY = MaskKey(seed=2**63 + 11, site=7, step=9, call=2**31 + 1)
X = torch.ones(3)


def on(device, x):
    """Return a tensor with its strides on another device."""
    if not isinstance(x, torch.Tensor) or x.device.type == device:
        return x
    flat = torch.empty(0, dtype=x.dtype).set_(x.untyped_storage()).to(device)
    return flat.as_strided(x.shape, x.stride(), x.storage_offset())


def address_on(device, address):
    return address.with_tensors([on(device, one) for one in address.tensors()])


def alike(made, wanted):
    """Whether values are equal to the bit, NaN to NaN."""
    return (
        made.dtype == wanted.dtype
        and torch.equal(made.isnan(), wanted.isnan())
        and torch.equal(made.nan_to_num(7.0), wanted.nan_to_num(7.0))
    )


def check(device, x, address, p, law="dropout"):
    wanted = reference.drop(x, address, p, law)
    here = on(device, x)
    made = backend.drop(here, address_on(device, address), on(device, p), law)
    assert made.stride() == torch.empty_like(here).stride()
    made = made.cpu()
    if law == "alpha":
        near = (ordered(made) - ordered(wanted)).abs() <= 1
        assert (near | made.isnan() & wanted.isnan()).all(), (x.shape, address, p)
    else:
        assert alike(made, wanted), (x.shape, x.stride(), x.dtype, address, p, law)


@pytest.mark.parametrize("seed", range(4))
def test_the_kernels_give_the_bits_of_the_reference(device, seed):
    for x, address, p, law in cases(seed, 30):
        if x.numel() < 1500:
            check(device, x, address, p, law)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [0, 1, 2, 7, 8, 9, 15, 17, 31, 101])
def test_sizes_around_the_lanes(device, n, dtype):
    check(device, torch.randn(n).to(dtype), Address(KEY), 0.3)
    check(device, torch.randn(3, n).to(dtype), Address(KEY), 0.001)


@pytest.mark.parametrize("p", [0.0, 2.0**-33, 2.0**-32, 1 / 64, 0.5, 63 / 64, 1 - 2.0**-32, 1.0])
@pytest.mark.parametrize("law", LAWS)
def test_rates_as_numbers_and_as_data(device, p, law):
    x = torch.randn(5, 19)
    check(device, x, Address(KEY), p, law)
    check(device, x, Address(KEY), rate_data(p), law)
    made = backend.drop(x.to(device), Address(KEY), rate_data(p), law)  # the rate is on the host
    assert torch.equal(made, backend.drop(x.to(device), Address(KEY), p, law))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_kind_of_number_is_scaled_and_rounded_alike(device, dtype):
    x = torch.randint(-(2**15), 2**15, (2048,), dtype=torch.int16)
    x = x.view(torch.float16 if dtype is torch.float16 else torch.bfloat16).to(dtype)
    for law in LAWS:
        check(device, x, Address(KEY), 0.1, law)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(4, 8), (3, 13), (2, 3, 5)])
def test_gaussian_noise_is_that_of_the_reference(device, shape, dtype):
    x = torch.randn(shape).to(dtype)
    for address in (Address(KEY), Address(KEY, (len(shape) - 1,)), Address(KEY, batch_dim=1)):
        for p in (0.3, rate_data(0.3)):
            made = backend.drop(x.to(device), address, on(device, p), "gaussian").cpu().double()
            wanted = reference.drop(x, address, p, "gaussian").double()
            eps = torch.finfo(dtype).eps
            assert ((made - wanted).abs() <= 2 * eps * wanted.abs() + 1e-7 * x.abs()).all()


def test_channels_last_transposed_and_sliced_tensors_keep_their_layout(device):
    x = torch.randn(2, 3, 4, 5)
    for one in (
        x.contiguous(memory_format=torch.channels_last),
        x.transpose(1, 3),
        x[:, 1:, :, ::2],
        x.movedim(0, -1),
        x.flip(0).as_strided((2, 3), (1, 2)),
    ):
        for shared in ((), (one.dim() - 1,), (0,)):
            check(device, one, Address(KEY, shared), 0.4)


def test_columns_beyond_32_bits_are_reached_by_offset(device):
    x = torch.randn(3, 20)
    for start in (2**32 - 5, 2**34 + 7, 2**35 - 20):
        address = Address(KEY, block=((start, 2**35),))
        for p in (0.3, 0.001) if start < 2**34 - 20 else (0.3,):
            check(device, x, address, p)


def test_what_is_dropped_does_not_leak(device):
    for value in (float("nan"), float("inf")):
        x = torch.full((4, 16), value, device=device)
        mask = backend.keep_mask(Address(KEY), 0.5, (4, 16), device)
        for law in ("dropout", "path", "alpha"):
            made = backend.drop(x, Address(KEY), 0.5, law)
            assert made[~mask].isfinite().all()
            assert not made[mask].isfinite().any()


def test_tensors_in_the_key_give_what_ints_give(device):
    x = torch.randn(6, 20, device=device)
    wanted = backend.drop(x, Address(MaskKey(17, 3, 5, 2)), 0.3, "dropout")
    fields = [torch.tensor(one, device=device) for one in (17, 3, 5, 2)]
    for number in range(16):
        mixed = [one if number >> at & 1 else int(one) for at, one in enumerate(fields)]
        assert torch.equal(backend.drop(x, Address(MaskKey(*mixed)), 0.3, "dropout"), wanted)
    made = backend.drop(x, Address(MaskKey(*(one.cpu() for one in fields))), 0.3, "dropout")
    assert torch.equal(made, wanted)


@pytest.mark.parametrize(
    ("address", "p"),
    [
        (Address(KEY, shared_dims=(2,)), 0.3),
        (Address(KEY, batch_dim=2), 0.3),
        (Address(KEY, rows=torch.arange(5)), 0.3),
        (Address(KEY, block=((0, 2),)), 0.3),
        (Address(MaskKey(step=torch.arange(5))), 0.3),
    ],
)
def test_errors_are_those_of_the_reference(device, address, p):
    x = torch.ones(4, 6, device=device)
    with pytest.raises(ValueError, match="must be") as wanted:
        reference.drop(x, address, p, "dropout")
    with pytest.raises(ValueError, match="must be") as made:
        backend.drop(x, address, p, "dropout")
    assert str(made.value) == str(wanted.value)


# Through the functions that users call


FUNCTIONS = {
    "dropout": (4, 9),
    "dropout1d": (3, 4, 5),
    "dropout2d": (2, 3, 3, 5),
    "alpha_dropout": (4, 9),
    "feature_alpha_dropout": (2, 3, 4),
    "gaussian_dropout": (4, 9),
    "drop_path": (7, 3),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_function_gives_the_value_and_the_gradient_of_the_reference(device, name, dtype):
    function, results = getattr(F, name), []
    x = torch.randn(FUNCTIONS[name], device=device, dtype=dtype)
    upstream = torch.randn_like(x)
    for which in ("triton", "reference"):
        one = x.clone().requires_grad_()
        with use(which):
            y = function(one, 0.4, key=KEY)
            results.append([y.detach(), *torch.autograd.grad(y, one, upstream)])
    for made, wanted in zip(*results, strict=True):
        if name == "gaussian_dropout":
            assert torch.allclose(made, wanted, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)
        else:
            assert torch.equal(made, wanted)


@pytest.mark.usefixtures("_forced")
def test_nothing_but_the_address_is_kept_for_backward(device):
    kept = []

    def keep(x):
        kept.append(x)
        return x

    x = torch.randn(4, 8, device=device, requires_grad=True)
    rows = torch.arange(4, device=device)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda one: one):
        F.dropout(x, 0.5, key=KEY)
        assert kept == []
        F.dropout(x, 0.5, key=KEY, rows=rows)
    assert [one.data_ptr() for one in kept] == [rows.data_ptr()]


@pytest.mark.usefixtures("_forced")
def test_double_backward_is_exact(device):
    x = torch.randn(1, 3, device=device, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda one: F.dropout(one, 0.5, key=KEY), x)


@pytest.mark.usefixtures("_forced")
def test_in_place_writes_where_the_input_was(device):
    x = torch.randn(4, 8, device=device)
    wanted = reference.drop(x, Address(KEY), 0.5, "dropout")
    place, version = x.data_ptr(), x._version
    y = F.dropout(x, 0.5, inplace=True, key=KEY)
    assert y is x
    assert x.data_ptr() == place
    assert x._version > version
    assert torch.equal(x, wanted)


@pytest.mark.usefixtures("_forced")
def test_in_place_is_seen_by_autograd(device):
    x = torch.randn(4, 8, device=device, requires_grad=True)
    y = x * 1.0
    z = F.dropout(y, 0.5, inplace=True, key=KEY)
    (grad,) = torch.autograd.grad(z.sum(), x)
    assert z is y
    assert torch.equal(grad != 0, z != 0)
    squared = x * 1.0
    made = squared**2
    F.dropout(squared, 0.5, inplace=True, key=KEY)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        made.sum().backward()


@pytest.mark.usefixtures("_forced")
def test_in_place_on_what_overlaps_itself_is_refused_as_by_torch(device):
    x = torch.randn(1, 8, device=device).expand(4, 8)
    with pytest.raises(RuntimeError, match="single memory location"):
        F.dropout(x, 0.5, inplace=True, key=KEY)


@pytest.mark.usefixtures("_forced")
def test_a_layer_takes_its_ticket_from_the_generator_of_torch(device):
    layer, x = nn.Dropout(0.5), torch.ones(64, device=device)
    torch.manual_seed(3)
    first, second = layer(x), layer(x)
    torch.manual_seed(3)
    assert torch.equal(layer(x), first)
    assert not torch.equal(first, second)


def test_the_backends_may_be_mixed_in_one_graph(device):
    x = torch.randn(7, 9, device=device, requires_grad=True)
    for first, second in (("triton", "reference"), ("reference", "triton")):
        with use(first):
            y = F.dropout(x, 0.3, key=MaskKey(1))
        with use(second):
            (grad,) = torch.autograd.grad(y.sum(), x)
        assert torch.equal(grad != 0, y != 0)


@pytest.mark.usefixtures("_forced")
def test_masks_are_made_by_the_kernels(device, monkeypatch):
    seen = []
    run = _drop.run
    monkeypatch.setattr(_drop, "run", lambda op, *rest: seen.append(op) or run(op, *rest))
    for p in (0.0, 0.3, 0.001, 1.0, rate_data(0.3, device), rate_data(0.3)):
        for options in ({}, {"shared_dims": (1,)}, {"batch_dim": 1}, {"block": [(3, 30)]}):
            made = sitout.backends.keep_mask(KEY, p, (5, 9), device=device, **options)
            wanted = sitout.masks.keep_mask(KEY, p, (5, 9), **options)
            assert made.dtype == torch.bool
            assert made.device.type == device
            assert torch.equal(made.cpu(), wanted)
    assert seen == ["mask"] * 24


# Who serves a tensor


def test_the_interpreter_serves_the_cpu_when_it_is_forced_and_only_then(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert explain(X).backend != "triton"
    with use("triton"):
        assert explain(X) == ("triton", "forced by sitout.backends.use('triton')")
        monkeypatch.delenv("TRITON_INTERPRET")
        with pytest.raises(ValueError, match=r"^The backend 'triton', forced by .* interpreter is"):
            explain(X)


class OnCuda:
    """Stands for a tensor on the first GPU."""

    is_cpu, is_cuda, device = False, True, torch.device("cuda", 0)


@pytest.fixture
def _a_gpu(monkeypatch):
    """Let a tensor on a GPU be plain, and the GPU be a new one."""
    monkeypatch.setattr(backend, "is_plain", lambda x: True)
    monkeypatch.setattr(backend, "_capability", lambda index: (9, 0))
    backend.is_here.cache_clear()
    yield
    backend.is_here.cache_clear()


@pytest.mark.usefixtures("_a_gpu")
def test_triton_serves_what_lies_on_a_gpu():
    assert explain(OnCuda()) == ("triton", "kernels that Triton compiles for cuda:0 serve it")
    assert _choice.select(OnCuda()) is backend


@pytest.mark.usefixtures("_a_gpu")
def test_a_missing_triton_is_said_once_and_the_reference_serves(monkeypatch):
    monkeypatch.setattr(backend, "find_spec", lambda name: None)
    with pytest.warns(UserWarning, match=r"Install it: pip install triton$"):
        assert _choice.select(OnCuda()) is reference
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert explain(OnCuda()).why.endswith("serves this tensor: Triton is not installed")


@pytest.mark.usefixtures("_a_gpu")
def test_an_old_gpu_is_served_by_the_reference(monkeypatch):
    monkeypatch.setattr(backend, "_capability", lambda index: (7, 0))
    assert "older than compute capability 7.5" in explain(OnCuda()).why


@pytest.mark.parametrize(
    "x",
    [
        torch.ones(2, dtype=torch.int64),
        torch.ones(2, dtype=torch.complex64).conj().imag,
        torch._efficientzerotensor(2),
        torch._to_functional_tensor(torch.ones(2)),
        torch.ones(2).to_sparse(),
    ],
    ids=["int", "negative", "zero", "functional", "sparse"],
)
def test_what_is_not_plain_is_not_served(monkeypatch, x):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert backend.serves(x) == "it is no plain dense tensor of a floating dtype"


@pytest.mark.usefixtures("_forced")
def test_batched_gradients_are_those_of_one_after_the_other(device):
    x = torch.randn(3, 8, device=device, requires_grad=True)
    upstream = torch.randn(4, 3, 8, device=device)
    y = F.dropout(x, 0.5, key=KEY)
    with use(None):
        (made,) = torch.autograd.grad(y, x, upstream, is_grads_batched=True, retain_graph=True)
    wanted = torch.stack([torch.autograd.grad(y, x, one, retain_graph=True)[0] for one in upstream])
    assert torch.equal(made, wanted)


def test_a_kernel_starts_on_the_device_of_its_tensors(monkeypatch):
    seen = []

    class Device:
        def __init__(self, device):
            self.device = device

        def __enter__(self):
            seen.append(self.device)

        def __exit__(self, *_):
            seen.append("left")

    class Kernel:
        def __getitem__(self, grid):
            return lambda *arguments, **more: seen.append((grid, arguments, more))

    monkeypatch.setattr(torch.cuda, "device", Device)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    _launch.launch(Kernel(), 5, torch.device("cuda", 2), "x", tile=4)
    assert len(seen) == 1  # it is there already
    seen.clear()
    _launch.launch(Kernel(), 5, torch.device("cuda", 3), "x", tile=4)
    (where, start, left) = seen
    assert (where, left) == (torch.device("cuda", 3), "left")
    assert start == ((5,), ("x",), {"tile": 4, "enable_fp_fusion": False})


def test_a_key_on_the_host_is_refused_while_a_graph_is_captured(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    cuda = torch.device("cuda", 0)
    for key in (MaskKey(step=torch.tensor(3)), MaskKey(step=torch.arange(3))):
        with pytest.raises(ValueError, match=r"while a CUDA graph is captured"):
            _launch.key_arguments(key, 3, cuda)
    assert _launch._split(MaskKey(2, 3, 5, 1), 3, cuda)[:3] == (2 ^ 1 << 32, 3, 5)


def test_a_rate_on_the_host_is_refused_while_a_graph_is_captured(monkeypatch):
    captures = []
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: bool(captures))
    cuda, rate = torch.device("cuda", 0), rate_data(0.25)
    assert _launch.rate_on_host(rate, cuda) == (16, 1 << 14)
    captures.append(True)
    assert _launch.rate_on_host(0.25, cuda) == 0.25
    with pytest.raises(ValueError, match=r"A rate as data must be on cuda:0 while a CUDA graph"):
        _launch.rate_on_host(rate, cuda)


def test_what_stands_for_no_pointer_is_made_in_another_thread():
    """Torch warms up graphs in this one, with a pool that the tensor would outlive."""
    with FakeTensorMode():  # of this thread
        here, made = torch.zeros(()), _launch._zero.__wrapped__(X.device)
    assert isinstance(here, FakeTensor)
    assert not isinstance(made, FakeTensor)
    assert made.item() == 0


def test_keys_on_the_host_and_on_the_device_are_one_kernel():
    """Else a capture would have to load the second one, which CUDA does not allow."""
    number = torch.tensor(3, device=X.device)
    for key in (7, MaskKey(2, 3, 5, 1), MaskKey(number, number, number, number)):
        *numbers, _ = _launch.key_arguments(key, 1, X.device)
        assert [type(one) for one in numbers] == [int] * 3 + [torch.Tensor] * 4
        assert {one.dtype for one in numbers[3:]} == {torch.int64}


def test_the_size_of_a_key_changes_no_type():
    draw = random.Random(0)
    for bits in (0, 1, 31, 32, 63, 64):
        key, *_ = _launch.key_arguments(draw.getrandbits(bits) | 1 << bits >> 1, 1, X.device)
        assert -(2**63) <= key < 2**63
