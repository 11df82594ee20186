"""Dropout, sum and norm as one operation: what torch's norm makes of dropout_add."""

from __future__ import annotations

import copy
import io
import math
import pickle
import re

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as TF
from torch.utils.checkpoint import checkpoint

import sitout
from sitout import MaskClock, MaskKey, nn
from sitout import functional as F
from sitout.masks import keep_mask, rate_data

KEY = MaskKey(seed=2**40 + 7, site=4, step=9, call=1)
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
NORMS = ["layer", "rms"]
FUNCTIONS = {"layer": F.dropout_add_layer_norm, "rms": F.dropout_add_rms_norm}
LAYERS = {"layer": nn.DropoutAddLayerNorm, "rms": nn.DropoutAddRMSNorm}
TWINS = {"layer": torch.nn.LayerNorm, "rms": torch.nn.RMSNorm}
SHAPES = [(4, 24), (3, 5, 13), (17,), (1, 1), (7, 1), (2, 3, 4, 5), (0, 5)]

every_norm = pytest.mark.parametrize("norm", NORMS)
torch_imports = pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")


@pytest.fixture
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def fused(norm, x, residual, weight=None, bias=None, p=0.3, *rest, **options):
    affine = (weight, bias) if norm == "layer" else (weight,)
    return FUNCTIONS[norm](x, residual, *affine, p, *rest, **{"prenorm": True} | options)


def composed(norm, x, residual, weight=None, bias=None, p=0.3, *rest, n_dims=1, eps=None, **more):
    total = F.dropout_add(x, residual, p, *rest, **more)
    shape = total.shape[-n_dims:]
    if norm == "rms":
        return TF.rms_norm(total, shape, weight, eps), total
    return TF.layer_norm(total, shape, weight, bias, 1e-5 if eps is None else eps), total


def inputs(shape, dtype=torch.float32, n_dims=1):
    """Return x, residual, weight and bias."""
    made = [torch.randn(shape) for _ in range(2)] + [torch.randn(shape[-n_dims:]) for _ in range(2)]
    return [one.to(dtype) for one in made]


def results(run, norm, given, **options):
    """Return the normalized sum, the sum, and the gradients of all that it depends on."""
    leaves = [one.detach().clone().requires_grad_() for one in given]
    outs = run(norm, *leaves, **options)
    upstream = [torch.linspace(-1, 2, one.numel()).view(one.shape).to(one.dtype) for one in outs]
    used = leaves if norm == "layer" else leaves[:3]
    return [*(one.detach() for one in outs), *torch.autograd.grad(outs, used, upstream)]


def assert_equal(made, wanted):
    assert len(made) == len(wanted)
    for one, other in zip(made, wanted, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one.nan_to_num(7.0), other.nan_to_num(7.0))


# The functions


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@every_norm
def test_it_is_the_norm_of_dropout_add_to_the_bit(norm, dtype):
    for shape in SHAPES:
        given = inputs(shape, dtype)
        made, wanted = (results(run, norm, given, key=KEY) for run in (fused, composed))
        assert_equal(made, wanted)


@pytest.mark.parametrize(
    "options",
    [
        {"p": rate_data(0.4)},
        {"p": 1.0},
        {"p": 0.0},
        {"p": 0.001, "batch_dim": 1},
        {"shared_dims": (1,), "rows": torch.tensor([5, 2])},
        {"block": [(2, 9), (0, 4), (5, 10)]},
        {"key": MaskKey(1, 2, torch.tensor([3, 4]))},
        {"eps": 0.5},
        {"training": False},
    ],
    ids=str,
)
@every_norm
def test_every_option_is_that_of_its_parts(norm, options):
    given = inputs((2, 3, 4, 5))
    options = {"key": KEY} | options
    rest = (options.pop("p", 0.3), options.pop("training", True))
    made, wanted = (run(norm, *given, *rest, **options) for run in (fused, composed))
    assert_equal(made, wanted)


@every_norm
def test_the_dims_that_are_normalized_follow_the_weight_or_are_given(norm):
    given = inputs((2, 3, 4, 5), n_dims=2)
    wanted = composed(norm, *given, key=KEY, n_dims=2)
    assert_equal(fused(norm, *given, key=KEY), wanted)
    bare = composed(norm, *given[:2], key=KEY, n_dims=2)
    assert_equal(fused(norm, *given[:2], key=KEY, normalized_shape=[4, 5]), bare)
    last = composed(norm, *given[:2], key=KEY)
    for shape in (5, (5,), torch.Size([5]), None):
        assert_equal(fused(norm, *given[:2], key=KEY, normalized_shape=shape), last)


@every_norm
def test_without_prenorm_the_sum_is_not_returned(norm):
    given = inputs((4, 6))
    for training in (False, True):
        y = fused(norm, *given, 0.3, training, key=KEY, prenorm=False)
        assert torch.equal(y, fused(norm, *given, 0.3, training, key=KEY)[0])


@pytest.mark.parametrize("p", [0.3, 0.01, rate_data(0.5)], ids=str)
@every_norm
def test_the_ticket_is_the_one_that_dropout_draws(norm, p):
    given, outs, states = inputs((90, 14)), [], []
    for run in (fused, composed):
        torch.manual_seed(11)
        outs.append([one for _ in range(2) for one in run(norm, *given, p)])
        states.append(torch.get_rng_state())
    assert torch.equal(*states)
    assert_equal(*outs)
    assert not torch.equal(outs[0][0], outs[0][2])


@every_norm
@pytest.mark.parametrize(("p", "training"), [(0.3, False), (0.0, True)])
def test_where_nothing_is_dropped_nothing_is_drawn(norm, p, training):
    given, state = inputs((9, 14)), torch.get_rng_state()
    y, total = fused(norm, *given, p, training)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(total, given[1] + given[0])
    assert_equal([y], composed(norm, *given, p, training)[:1])


@every_norm
def test_nothing_leaks_out_of_what_is_dropped(norm):
    given = inputs((9, 14))
    clean = results(fused, norm, given, key=KEY)
    given[0].masked_fill_(~keep_mask(KEY, 0.3, (9, 14)), math.nan)
    assert_equal(results(fused, norm, given, key=KEY), clean)


@every_norm
def test_derivatives_and_theirs_are_right(norm):
    given = [one.double().requires_grad_() for one in inputs((3, 4))]
    given = given if norm == "layer" else given[:3]

    def run(*given):
        return fused(norm, *given, key=KEY)

    assert torch.autograd.gradcheck(run, given)
    assert torch.autograd.gradgradcheck(run, given)


@torch_imports
@every_norm
def test_function_transforms_see_through(norm):
    x, residual, tangent = torch.randn(3, 5, 7, dtype=torch.float64)

    def made(x, residual):
        return fused(norm, x, residual, key=KEY)[0]

    def wanted(x, residual):
        return composed(norm, x, residual, key=KEY)[0]

    for transform in (
        lambda f: torch.func.grad(lambda *i: (f(*i) ** 3).sum(), argnums=(0, 1))(x, residual),
        lambda f: torch.func.jvp(f, (x, residual), (tangent, tangent))[1:],
        lambda f: (torch.func.vmap(f)(torch.stack([x, residual]), torch.stack([residual, x])),),
    ):
        for one, other in zip(transform(made), transform(wanted), strict=True):
            assert torch.allclose(one, other)


@pytest.mark.usefixtures("_fresh_dynamo")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@every_norm
def test_compiled_code_is_eager_code_in_one_graph(norm, backend):
    def run(*given):
        return *fused(norm, *given), *fused(norm, *given, key=KEY)

    compiled = torch.compile(run, backend=backend, fullgraph=True)
    made = []
    given = [one.double() for one in inputs((5, 7))]
    for f in (run, compiled):
        torch.manual_seed(3)
        leaves = [one.clone().requires_grad_() for one in given]
        outs = [y for _ in range(2) for y in f(*leaves)]
        total = sum((y * torch.linspace(0, 1, y.numel()).view(y.shape)).sum() for y in outs)
        made.append([*outs, *torch.autograd.grad(total, leaves[:3])])
    assert all(torch.allclose(one, two, rtol=1e-10) for one, two in zip(*made, strict=True))


@every_norm
def test_tensors_without_values_go_through_and_draw_nothing(norm):
    state = torch.get_rng_state()
    for context, device in ((FakeTensorMode(), "cpu"), (torch.no_grad(), "meta")):
        with context:
            x, residual = (torch.empty(3, 5, device=device) for _ in range(2))
            for y in fused(norm, x, residual):
                assert (y.shape, y.dtype, y.device.type) == (x.shape, x.dtype, device)
    assert torch.equal(torch.get_rng_state(), state)


# The layers


def drift(layer):
    """Give a layer parameters that are not those it begins with."""
    with torch.no_grad():
        for one in layer.parameters():
            one.normal_()
    return layer


@every_norm
def test_a_layer_is_its_twin_and_exchanges_checkpoints_with_it(norm):
    twin = drift(TWINS[norm]((3, 5), eps=0.125))
    layer = LAYERS[norm]((3, 5), 0.3, eps=0.125)
    assert isinstance(layer, TWINS[norm])
    assert isinstance(layer, nn._base.Site)
    layer.load_state_dict(twin.state_dict())
    assert layer.state_dict().keys() == twin.state_dict().keys()
    TWINS[norm]((3, 5)).load_state_dict(layer.state_dict())
    x, residual = torch.randn(2, 4, 3, 5)
    assert torch.equal(layer.eval()(x, residual), twin(residual + x))
    assert [*dict(layer.named_parameters())] == [*dict(twin.named_parameters())]


@every_norm
def test_a_layer_takes_what_its_twin_takes(norm):
    for options in (
        {"elementwise_affine": False},
        {"dtype": torch.bfloat16},
        {"device": "meta"},
        *([{"bias": False}] if norm == "layer" else []),
    ):
        layer, twin = LAYERS[norm](6, **options), TWINS[norm](6, **options)
        state, wanted = layer.state_dict(), twin.state_dict()
        assert {name: (one.dtype, one.device) for name, one in state.items()} == {
            name: (one.dtype, one.device) for name, one in wanted.items()
        }


@every_norm
def test_a_layer_is_its_function_with_and_without_a_clock(norm):
    layer = drift(LAYERS[norm](14, 0.3, prenorm=True, batch_dim=1, shared_dims=(2,)))
    x, residual = torch.randn(2, 9, 3, 14)
    given = (x, residual, layer.weight, getattr(layer, "bias", None))
    options = {"batch_dim": 1, "shared_dims": (2,)}
    torch.manual_seed(5)
    made = layer(x, residual)
    torch.manual_seed(5)
    assert_equal(made, fused(norm, *given, 0.3, **options))
    clock = MaskClock(layer, seed=17)
    with clock.at(6, rows=torch.arange(3) * 7):
        made = layer(x, residual), layer(x, residual)
    for call, outs in enumerate(made):
        rows = torch.arange(3) * 7
        wanted = fused(norm, *given, 0.3, key=clock.key("", 6, call), rows=rows, **options)
        assert_equal(outs, wanted)


@every_norm
def test_a_layer_shows_what_it_is(norm):
    shown = "(6,), eps=0.5, elementwise_affine=True, "
    shown += "bias=True, " * (norm == "layer")
    name = LAYERS[norm].__name__
    assert repr(LAYERS[norm](6, 0.25, eps=0.5)) == f"{name}({shown}p=0.25)"
    layer = LAYERS[norm](6, 0.25, eps=0.5, prenorm=True, batch_dim=1)
    assert repr(layer) == f"{name}({shown}p=0.25, batch_dim=1, prenorm=True)"


@every_norm
def test_a_rate_may_be_set_checked_scheduled_copied_and_moved(norm):
    layer = LAYERS[norm](6, 0.25)
    with pytest.raises(ValueError, match=rf"^`p` of {LAYERS[norm].__name__} must be a number"):
        layer.p = 1.5
    assert layer.p == 0.25
    names = [*layer.state_dict()]
    layer.schedulable_().p = 0.5
    assert [*layer.state_dict()] == names
    assert layer.rate_data.tolist() == [16, 2**15]
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), layer.half()):
        assert (other.p, other.prenorm, other.normalized_shape) == (0.5, False, (6,))
        assert other.rate_data.dtype == torch.int64


@every_norm
def test_the_tools_for_models_know_the_layer(norm):
    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.join = torch.nn.Linear(16, 16), LAYERS[norm](16, 0.3)

        def forward(self, x):
            return self.join(self.linear(x), x)

    model, x = Block(), torch.randn(64, 16)
    (site,) = sitout.sites(model, x)
    assert (site.name, site.kind, site.p, site.rate_at) == ("join", "dropout", 0.3, "join.p")
    assert (site.shape, site.active_in_train, site.active_in_eval) == ((64, 16), True, False)
    assert not sitout.audit(model, x)
    with sitout.set_rate(model, 0.125):
        assert model.join.p == 0.125
    assert model.join.p == 0.3
    wanted = copy.deepcopy(model).eval()(x)
    with sitout.disabled(model):
        assert torch.equal(model(x), wanted)
    with pytest.raises(ValueError, match="DropoutAdd"):
        sitout.thin(model)
    assert type(model.join) is LAYERS[norm]
    model.eval()
    assert sitout.mc.predict(model, x, samples=3).std.max() > 0


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("training", [False, True])
@every_norm
def test_an_exported_program_is_the_layer(norm, training, strict):
    layer, given = drift(LAYERS[norm](14)).train(training), tuple(torch.randn(2, 9, 14))
    file = io.BytesIO()
    torch.export.save(torch.export.export(layer, given, strict=strict), file)
    file.seek(0)
    run = torch.export.load(file).module()
    torch.manual_seed(5)
    made = run(*given)
    torch.manual_seed(5)
    assert torch.allclose(made, layer(*given), rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("_fresh_dynamo")
@every_norm
def test_a_compiled_layer_follows_its_clock(norm):
    layers = [LAYERS[norm](14, 0.3, prenorm=True) for _ in range(2)]
    x, residual = torch.randn(2, 9, 14)
    clocks = [MaskClock(layer, seed=17) for layer in layers]
    compiled = torch.compile(layers[0], backend="eager", fullgraph=True)
    for step in range(3):
        made = []
        for clock, run in zip(clocks, (compiled, layers[1]), strict=True):
            with clock.at(step):
                made.append(run(x, residual))
        assert_equal(*made)


@every_norm
def test_a_checkpoint_repeats_the_masks_of_its_forward(norm):
    layer, (x, residual) = drift(LAYERS[norm](14)), torch.randn(2, 9, 14)
    made = []
    for repeats in (False, True):
        torch.manual_seed(5)
        leaves = [one.clone().requires_grad_() for one in (x, residual)]
        y = checkpoint(layer, *leaves, use_reentrant=False) if repeats else layer(*leaves)
        torch.rand(7)
        y.pow(3).sum().backward()
        made.append([y.detach(), *(one.grad for one in leaves)])
    assert_equal(*made)


# What is refused


def line(message):
    return f"^{re.escape(message)}$"


@pytest.mark.parametrize("training", [False, True])
@every_norm
def test_what_does_not_fit_is_refused_in_one_line(norm, training):
    owner, x = FUNCTIONS[norm].__name__, torch.ones(3, 4)

    def refused(error, message, *given, **options):
        with pytest.raises(error, match=line(message)):
            fused(norm, *given, 0.5, training, **options)

    rule = "must be of the normalized shape, (4,). Got (3,)."
    options = {"normalized_shape": 4}
    refused(ValueError, f"`weight` of {owner} {rule}", x, x, torch.ones(3), None, **options)
    rule = "must be the last dims of the input, (3, 4). Got "
    what = f"`normalized_shape` of {owner}"
    refused(ValueError, f"{what} {rule}(3,).", x, x, torch.ones(3), None)
    for shape in ((), (3,), (4, 3), (1, 3, 4)):
        given = (x, x, None, None)
        refused(ValueError, f"{what} {rule}{shape}.", *given, normalized_shape=shape)
    refused(
        TypeError,
        f"{what} must be a sequence of ints. Got '4'.",
        x,
        x,
        None,
        None,
        normalized_shape="4",
    )
    rule = "must be the last dims of the input, (). Got ()."
    refused(ValueError, f"{what} {rule}", torch.ones(()), torch.ones(()), None, None)
    way_out = "Give the rate by its name: p=."
    rule = f"must be a tensor or None. Got 0.5. {way_out}"
    refused(TypeError, f"`weight` of {owner} {rule}", x, x, 0.5, None)
    rule = "must be of the shape of the input, (3, 4). Got (4,)."
    refused(ValueError, f"`residual` of {owner} {rule}", x, torch.ones(4), None, None)
    refused(TypeError, f"`residual` of {owner} must be a tensor. Got None.", x, None, None, None)
    refused(TypeError, f"The input of {owner} must be a tensor. Got 'list'.", [1.0], x, None, None)
    for eps in ("1", True):
        refused(
            TypeError, f"`eps` of {owner} must be a number. Got {eps!r}.", x, x, None, None, eps=eps
        )


def test_a_bias_of_another_shape_is_refused():
    x, rule = torch.ones(3, 4), "must be of the normalized shape, (4,). Got (1, 4)."
    with pytest.raises(ValueError, match=line(f"`bias` of dropout_add_layer_norm {rule}")):
        F.dropout_add_layer_norm(x, x, torch.ones(4), torch.ones(1, 4))
    with pytest.raises(TypeError, match=r"^`eps` of dropout_add_layer_norm must be a number"):
        F.dropout_add_layer_norm(x, x, eps=None)


@pytest.mark.parametrize("given", [-0.1, 1.5, math.nan, "0.5", None, True])
@every_norm
def test_a_rate_outside_of_0_to_1_is_refused(norm, given):
    x = torch.ones(3, 4)
    what = f"`p` of {FUNCTIONS[norm].__name__}"
    with pytest.raises((TypeError, ValueError), match=f"^{re.escape(what)} must be a number"):
        fused(norm, x, x, None, None, given)
    with pytest.raises((TypeError, ValueError), match=f"^`p` of {LAYERS[norm].__name__} must be"):
        LAYERS[norm](4, given)


@every_norm
def test_a_flag_that_is_no_bool_is_refused(norm):
    what = f"`prenorm` of {LAYERS[norm].__name__}"
    with pytest.raises(TypeError, match=line(f"{what} must be True or False. Got 1.")):
        LAYERS[norm](4, prenorm=1)
