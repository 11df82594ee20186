"""A rate as data does what the same rate does as a float, and may change without a recompile."""

from __future__ import annotations

import copy
import io
import math
import pickle
import re

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from battery import FUSED, OF_SUBSETS, THINNED
from sitout import functional as F
from sitout import masks, nn
from sitout.masks import MaskKey, effective_rate, keep_mask, rate_data

KEY = MaskKey(seed=2**40 + 7, site=4, step=9, call=1)
TINY = 2.0**-40
EDGES = [0.0, 2.0**-34, 2.0**-33, 1 / 64 - TINY, 1 / 64, 1 / 64 + TINY, 0.1, 0.5]
EDGES += [63 / 64, 63 / 64 + TINY, 1 - 2.0**-33, 1.0]

FUNCTIONS = {name: getattr(F, name) for name in F.__all__ if name not in {*FUSED, *OF_SUBSETS}}
# Both in the order of their names.
LAYERS = dict(zip(FUNCTIONS, sorted({*nn.__all__} - {*FUSED.values(), *THINNED}), strict=True))
SHAPES = dict.fromkeys(FUNCTIONS, (19, 5, 3))
SHAPES |= {"dropout2d": (19, 5, 3, 2), "dropout3d": (19, 5, 3, 2, 1)}
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]

every_name = pytest.mark.parametrize("name", FUNCTIONS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def layer_of(name, p):
    return getattr(nn, LAYERS[name])(p).schedulable_()


def same(a, b):
    """Whether two tensors have the same bits: 0 is not -0 here, but NaN is NaN."""
    words = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    alike = (a.view(words) == b.view(words)) | (a.isnan() & b.isnan())
    return a.dtype == b.dtype and a.shape == b.shape and bool(alike.all())


def state_after(draw):
    torch.manual_seed(1)
    draw()
    return torch.get_rng_state().tolist()


# Masks

STEPS = MaskKey(KEY.seed, KEY.site, torch.tensor([5, 0, 2**32 - 1]), KEY.call)
PLACES = [(KEY, (3, n), {}) for n in (0, 1, 7, 8, 9, 13, 101)]
PLACES += [(KEY, shape, {}) for shape in [(), (101,), (0, 5), (2, 3, 5)]]
PLACES += [(STEPS, (3, 13), {}), (STEPS, (3, 2, 13), {"block": [(5, 9), (3, 31)]})]
PLACES += [(KEY, (3, 13), {"rows": torch.tensor([7, 2**32 - 1, 0])})]
PLACES += [(KEY, (3, 13), {"block": [(2**34 - 6, 2**35)]}), (KEY, (3, 0), {"block": [(4, 9)]})]
PLACES += [(KEY, (3, 5), {"cols": torch.tensor([8, 0, 2**33 + 1, 8, 7])})]
PLACES += [(KEY, (3, 5, 7), {"shared_dims": (1,)}), (KEY, (3, 5, 7), {"shared_dims": (0, 2)})]
PLACES += [(KEY, (5, 3, 7), {"batch_dim": 1}), (KEY, (5, 7, 3), {"batch_dim": -1})]


@pytest.mark.parametrize("p", EDGES)
def test_a_mask_by_data_is_the_mask_by_the_float(p):
    for key, shape, options in PLACES:
        made, wanted = (keep_mask(key, rate, shape, **options) for rate in (rate_data(p), p))
        assert torch.equal(made, wanted)


@pytest.mark.parametrize("bits", [16, 32])
def test_an_element_is_dropped_iff_its_lane_is_below_the_threshold_in_the_data(bits):
    words = masks._words(KEY, int(bits == 32), torch.tensor([0]), torch.arange(3))
    lanes = masks._spread(masks._halves(words) if bits == 16 else words, 12)[0]
    for col, lane in enumerate(lanes.tolist()):
        assert keep_mask(KEY, torch.tensor([bits, lane]), (1, col + 1))[0, col]
        assert not keep_mask(KEY, torch.tensor([bits, lane + 1]), (1, col + 1))[0, col]


@pytest.mark.parametrize("p", [-0.1, 1.7, math.inf, math.nan, "0.5", None, True, 0.5j])
def test_a_rate_that_becomes_data_is_a_number_from_0_to_1(p):
    line = f"`p` of rate_data must be a number in [0, 1]. Got {p!r}."
    with pytest.raises((TypeError, ValueError), match=f"^{re.escape(line)}$"):
        rate_data(p)


WRONG = [rate_data(0.5).double(), rate_data(0.5).int(), torch.tensor([16, 5, 7]), torch.tensor(0.5)]
WRONG += [torch.tensor(1), torch.tensor([[16, 5]]), torch.ones(100, 3)]
OWNERS = FUNCTIONS | {"keep_mask": lambda x, p: keep_mask(KEY, p, x.shape)}


@pytest.mark.parametrize("p", WRONG, ids=lambda p: f"{p.dtype}{list(p.shape)}")
@pytest.mark.parametrize("owner", OWNERS)
def test_any_other_tensor_is_no_rate(owner, p):
    line = f"`p` of {owner} must be a number, or int64 [2] as sitout.masks.rate_data(p) makes it."
    with pytest.raises(TypeError, match=f"^{re.escape(line)} Got .*$") as error:
        OWNERS[owner](torch.randn(SHAPES.get(owner, (2, 2))), p)
    assert "\n" not in str(error.value)


# Functions


@every_dtype
@every_name
def test_values_and_gradients_by_data_are_those_by_the_float(name, dtype):
    """To the bit; in float64 the constants of alpha may differ in their last bit."""
    gaussian = name == "gaussian_dropout"  # of which a float is not rounded, and has no 1
    for p in EDGES[:-2] if gaussian else EDGES:
        x, upstream = torch.randn(2, *SHAPES[name], dtype=dtype)
        x, runs = x.requires_grad_(), []
        for rate in (rate_data(p), effective_rate(p) if gaussian else p):
            y = FUNCTIONS[name](x, rate, key=KEY)
            runs.append((y.detach(), torch.autograd.grad(y, x, upstream)[0]))
        for made, wanted, terms in zip(*runs, (x.abs() + 1.7581, upstream.abs()), strict=True):
            if "alpha" in name and dtype == torch.float64 and p < 1 - TINY:
                slope = ((1 - p) * (1 + p * 1.7581**2)) ** -0.5
                assert ((made - wanted).abs() <= 2.0**-51 * slope * terms).all()
            else:
                assert same(made, wanted)


@every_name
@pytest.mark.parametrize("p", [0.0, 0.01, 0.3, 0.99])
def test_gradients_of_gradients_by_data_are_right(name, p):
    x = torch.randn(2, 3, *SHAPES[name][2:], dtype=torch.float64, requires_grad=True)
    rate = rate_data(p)
    assert torch.autograd.gradcheck(lambda x: FUNCTIONS[name](x, rate, key=KEY) ** 2, x)
    assert torch.autograd.gradgradcheck(lambda x: FUNCTIONS[name](x, rate, key=KEY) ** 2, x)


@every_dtype
@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name != "gaussian_dropout"])
def test_by_data_at_1_all_is_zero_whatever_comes_in(name, dtype):
    for p, value in [(1.0, math.nan), (1.0, math.inf), (1 - 2.0**-33, math.nan), (1.0, -1.0)]:
        x = torch.full(SHAPES[name], value, dtype=dtype, requires_grad=True)
        y = FUNCTIONS[name](x, rate_data(p))
        (grad,) = torch.autograd.grad(y, x, x.detach())
        assert same(y.detach(), torch.zeros_like(x))
        assert same(grad, torch.zeros_like(x))


@every_dtype
@every_name
def test_by_data_at_0_every_bit_stays_and_the_gradient_too(name, dtype):
    for p in (0.0, 2.0**-34):
        x = torch.randn(SHAPES[name], dtype=dtype)
        x[0], x[1], x[2] = math.nan, math.inf, 0.0 if "alpha" in name else -0.0
        y = FUNCTIONS[name](x.requires_grad_(), rate_data(p))
        (grad,) = torch.autograd.grad(y, x, x.detach())
        assert same(y.detach(), x.detach())
        assert same(grad, x.detach())


@every_name
@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
def test_a_rate_as_data_draws_a_ticket_whatever_it_is(name, p):
    x, rate = torch.randn(SHAPES[name]), rate_data(p)
    one, none = state_after(masks.draw_key), state_after(int)
    assert state_after(lambda: FUNCTIONS[name](x, rate)) == one != none
    assert state_after(lambda: FUNCTIONS[name](x[:0], rate)) == none
    assert state_after(lambda: FUNCTIONS[name](x, rate, False)) == none
    assert state_after(lambda: FUNCTIONS[name](x, rate, key=KEY)) == none


# Layers


@every_name
def test_a_schedulable_layer_holds_its_rate_in_one_buffer_that_no_checkpoint_has(name):
    layer = getattr(nn, LAYERS[name])(0.1)
    assert layer.rate_data is None
    place = layer.schedulable_().rate_data.data_ptr()
    for p in [0.1, *(EDGES[:-2] if name == "gaussian_dropout" else EDGES)]:
        layer.p = p
        assert layer.p == effective_rate(p)
        assert torch.equal(layer.rate_data, rate_data(p))
        assert layer.schedulable_().rate_data.data_ptr() == place
        assert layer.state_dict() == {}


def saved(layer):
    torch.save(layer, file := io.BytesIO())
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


CHANGES = [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer)), saved]
CHANGES += [lambda layer: torch.nn.Sequential(layer).half()[0], lambda layer: layer.double()]
CHANGES += [lambda layer: layer.to("meta").to_empty(device="cpu")]
CHANGES += [lambda layer: layer.to_empty(device="cpu")]


@every_name
@pytest.mark.parametrize("change", CHANGES)
def test_a_rate_as_data_survives_every_cast_move_and_copy(name, change):
    for p in (0.1, 2.0**-32, 0.99):
        layer = layer_of(name, 0.5)
        layer.p = p
        made = change(layer)
        assert same(made.rate_data, rate_data(p))
        made.p = 0.25
        assert made.p == 0.25
        assert layer.p == (0.25 if made is layer else effective_rate(p))


@every_name
def test_a_bad_rate_is_refused_and_changes_nothing(name):
    layer = layer_of(name, 0.1)
    beyond = [1.0, 1 - TINY] if name == "gaussian_dropout" else []
    for p in [-0.1, 1.7, math.nan, "0.5", None, True, rate_data(0.5), *beyond]:
        with pytest.raises((TypeError, ValueError), match=f"^`p` of {LAYERS[name]} must be "):
            layer.p = p
        assert same(layer.rate_data, rate_data(0.1))


def test_noise_whose_rate_is_1_as_data_is_not_schedulable():
    with pytest.raises(ValueError, match=r"^`p` of GaussianDropout must be a number in \[0, 1\)\."):
        nn.GaussianDropout(1 - TINY).schedulable_()


@every_name
def test_a_rate_that_changes_before_backward_changes_no_gradient(name):
    layer, x, grads = layer_of(name, 0.3), torch.randn(SHAPES[name], requires_grad=True), []
    for later in (0.3, 0.0, 0.9):
        torch.manual_seed(1)
        layer.p = 0.3
        y = layer(x)
        layer.p = later
        grads += torch.autograd.grad(y.sum(), x)
    assert not same(grads[0], torch.ones_like(x))
    assert all(same(grad, grads[0]) for grad in grads)


@pytest.mark.filterwarnings("ignore:<class 'torch.autograd.function.Function'> should not be inst")
@every_name
def test_two_hundred_rates_make_one_graph_with_the_bits_of_eager(name):
    torch._dynamo.reset()
    layer, x, runs = layer_of(name, 0.3), torch.randn(SHAPES[name], requires_grad=True), []
    rates = [0.0, 0.001, 0.999 if name == "gaussian_dropout" else 1.0, *torch.rand(197).tolist()]
    counter = CompileCounterWithBackend("aot_eager")
    for run in (layer, torch.compile(layer, backend=counter, fullgraph=True)):
        torch.manual_seed(3)
        runs.append([])
        for p in rates:
            layer.p = p
            y = run(x)
            runs[-1] += [y.detach(), *torch.autograd.grad(y.square().sum(), x)]
    assert counter.frame_count == 1
    assert all(map(same, *runs))


def test_a_rate_that_cannot_be_data_leaves_the_layer_as_it_was():
    layer = nn.GaussianDropout(1 - 2**-40)
    with pytest.raises(ValueError, match=r"^`p` of GaussianDropout must be .* Got 1\.0\.$"):
        layer.schedulable_()
    assert layer.rate_data is None
    assert layer.p == 1 - 2**-40


def test_the_buffer_and_not_the_layer_says_what_holds():
    """As after DistributedDataParallel has sent the rate of its first process to the others."""
    layer = nn.Dropout(0.1).schedulable_()
    layer.rate_data.copy_(rate_data(0.7))
    assert layer.p == effective_rate(0.7)
    assert layer.to("meta").p == effective_rate(0.7)
    assert layer.to_empty(device="cpu").rate_data.tolist() == rate_data(0.7).tolist()
    assert layer.type(torch.float64).rate_data.tolist() == rate_data(0.7).tolist()
    assert layer.rate_data.dtype == torch.int64
