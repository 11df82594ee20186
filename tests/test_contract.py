"""One battery of laws for every layer in ``sitout.nn``.

A layer joins by a row in ``battery.CASES``; a name in ``sitout.nn.__all__`` without a row is a
failure. What torch's transforms make of the layers stands in ``test_transforms.py``.
"""

from __future__ import annotations

import copy
import io
import math
import pickle
import re

import pytest
import torch

from battery import (
    CASES,
    FUSED,
    MASKED,
    NAMES,
    SELECTING,
    THINNED,
    P,
    agree,
    alpha_constants,
    assert_same,
    every_layer,
    every_selecting_layer,
    every_shape,
    make,
    mask_of,
    sample,
    slope,
    ticket,
    value,
)
from sitout import nn
from sitout.masks import effective_rate, keep_mask


def test_every_layer_has_a_row():
    assert sorted(nn.__all__) == sorted([*NAMES, *FUSED.values(), *THINNED])


def test_new_memory_holds_nan():
    """Else the laws below could be met by memory that nobody has written."""
    for made in (torch.empty(3), torch.empty_like(torch.ones(2)), torch.ones(1).new_empty(3)):
        assert made.isnan().all()


# Values


@every_shape
def test_a_layer_gives_the_value_of_its_kind_at_the_ticket_that_it_draws(name, shape):
    x, key = sample(name, shape), ticket()
    y = make(name)(x)
    assert y.shape == x.shape
    assert_same(name, y, value(name, key, x))


@every_shape
def test_the_gradient_is_the_derivative_at_the_same_address(name, shape):
    x, upstream = sample(name, shape, requires_grad=True), torch.randn(shape)
    key = ticket()
    make(name)(x).backward(upstream)
    if x.numel():
        assert_same(name, x.grad, (upstream * slope(name, key, x)).to(x.dtype) + 0.0)
    else:
        assert x.grad.shape == x.shape


@every_selecting_layer
def test_a_unit_is_dropped_at_the_effective_rate(name):
    x = torch.ones(CASES[name].statistics)
    y, rate, n = make(name)(x), effective_rate(P), x.numel()
    gone = alpha_constants()[2] * alpha_constants()[0] + alpha_constants()[1]
    dropped = y == (0.0 if CASES[name].kind == "mask" else torch.tensor(gone))
    assert abs(float(dropped.double().mean()) - rate) < 6 * math.sqrt(rate * (1 - rate) / n)


@pytest.mark.parametrize("p", [0.01, 0.5, 0.9])
@pytest.mark.parametrize("name", MASKED)
def test_a_mask_keeps_the_expectation(name, p):
    x = torch.ones(CASES[name].statistics, dtype=torch.float64)
    error = math.sqrt(effective_rate(p) / (1 - effective_rate(p)) / x.numel())
    assert abs(float(make(name, p)(x).mean()) - 1) < 6 * error


@pytest.mark.parametrize("p", [0.05, 0.5])
@pytest.mark.parametrize("name", [name for name in NAMES if CASES[name].kind == "alpha"])
def test_alpha_keeps_mean_0_and_variance_1_of_normal_input(name, p):
    x = torch.randn(CASES[name].statistics, dtype=torch.float64)
    y, n = make(name, p)(x), x.numel()
    a, b, saturation = alpha_constants(p)
    kept = 3 * a**4 + 6 * a**2 * b**2 + b**4  # the fourth moment of a normal, scaled and shifted
    rate = effective_rate(p)
    fourth = (1 - rate) * kept + rate * (a * saturation + b) ** 4
    assert abs(float(y.mean())) < 6 / math.sqrt(n)
    assert abs(float(y.square().mean()) - 1) < 6 * math.sqrt((fourth - 1) / n)


@pytest.mark.parametrize("p", [0.01, 0.5, 0.9])
@pytest.mark.parametrize("name", [name for name in NAMES if CASES[name].kind == "noise"])
def test_noise_has_mean_1_and_the_variance_of_dropout(name, p):
    x = torch.ones(CASES[name].statistics, dtype=torch.float64)
    y, n, variance = make(name, p)(x), x.numel(), p / (1 - p)
    assert abs(float(y.mean()) - 1) < 6 * math.sqrt(variance / n)
    observed = float((y - 1).square().mean())
    assert abs(observed - variance) < 6 * variance * math.sqrt(2 / n)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("inplace", [False, True])
@every_layer
def test_a_dtype_is_kept_and_half_precision_is_rounded_once(name, dtype, inplace):
    x, key = sample(name, dtype=dtype), ticket()
    wanted, exact = value(name, key, x).to(dtype), value(name, key, x.double())
    y = make(name, inplace=inplace)(x.clone())
    assert y.dtype == dtype
    if CASES[name].kind == "mask":
        assert torch.equal(y, wanted)
    elif dtype in (torch.float16, torch.bfloat16):
        # Half an ulp for the one rounding, and what float32 loses before it.
        before = 16 * torch.finfo(torch.float32).eps * (1 + x.double().abs())
        bound = torch.finfo(dtype).eps / 2 * exact.abs() + before
        assert ((y.double() - exact).abs() <= bound).all()
    else:
        assert agree(y, wanted)


@every_layer
def test_gradients_of_gradients_are_right(name):
    first = CASES[name].shapes[0]
    x = sample(name, (2, 5, *(2, 1, 1)[: len(first) - 2]), dtype=torch.float64, requires_grad=True)
    layer = make(name)

    def f(x):
        torch.manual_seed(11)
        return layer(x)

    assert torch.autograd.gradcheck(f, x)
    assert torch.autograd.gradgradcheck(f, x)
    # The layer is linear: only its product with a function of x has a second derivative.
    assert torch.autograd.gradgradcheck(lambda x: f(x.sin()) * f(x), x)


# The identity


def assert_identity_without_a_draw(layer, x):
    state, before = torch.get_rng_state(), x.clone()
    y = layer(x)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(y.nan_to_num(7.0), before.nan_to_num(7.0))
    assert y.dtype == x.dtype


@every_shape
def test_in_evaluation_a_layer_is_the_identity(name, shape):
    for dtype in (torch.float32, torch.int64):
        assert_identity_without_a_draw(make(name).eval(), sample(name, shape).to(dtype))
        assert_identity_without_a_draw(make(name, inplace=True).eval(), sample(name, shape))


@every_shape
def test_at_p_0_a_layer_is_the_identity(name, shape):
    assert_identity_without_a_draw(make(name, 0.0), sample(name, shape))


@every_selecting_layer
def test_at_a_rate_that_rounds_to_0_a_layer_is_the_identity(name):
    assert_identity_without_a_draw(make(name, 2.0**-34), sample(name))


@every_layer
def test_the_identity_passes_nan_infinity_and_the_gradient(name):
    x = sample(name).index_fill(1, torch.tensor([0]), math.nan)
    x[..., -1:] = math.inf
    x.requires_grad_()
    for layer in (make(name).eval(), make(name, 0.0)):
        assert_identity_without_a_draw(layer, x.detach())
        (grad,) = torch.autograd.grad(layer(x).sum(), x)
        assert torch.equal(grad, torch.ones_like(x))


@every_shape
def test_an_empty_input_draws_nothing_and_any_other_one_does(name, shape):
    x, state = sample(name, shape), torch.get_rng_state()
    make(name)(x)
    assert torch.equal(torch.get_rng_state(), state) == (x.numel() == 0)


# What is dropped


@pytest.mark.parametrize("p", [1.0, 1 - 2.0**-34])
@every_selecting_layer
def test_at_p_1_all_is_zero_and_nothing_is_drawn(name, p):
    x = sample(name)
    x[0], x[1, 0], x[1, 1] = math.nan, math.inf, -math.inf
    x.requires_grad_()
    state = torch.get_rng_state()
    y = make(name, p)(x)
    y.backward(torch.full_like(y, math.nan))
    assert torch.equal(torch.get_rng_state(), state)
    for zeros in (y, x.grad):
        assert not zeros.any()
        assert not zeros.signbit().any()


@pytest.mark.parametrize("name", [name for name in NAMES if name not in SELECTING])
def test_noise_has_no_p_1(name):
    with pytest.raises(ValueError, match=rf"^`p` of {name} must be .* \[0, 1\)\. Got 1\.0\.$"):
        make(name, 1.0)
    layer = make(name)
    with pytest.raises(ValueError, match=r"\[0, 1\)\. Got 1\.$"):
        layer.p = 1


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("inplace", [False, True])
@every_selecting_layer
def test_nan_and_infinity_in_a_dropped_unit_do_not_leak(name, poison, inplace):
    clean, upstream, key = sample(name), sample(name), ticket()
    mask = mask_of(name, key, clean.shape)
    assert 0 < int(mask.sum()) < mask.numel()
    state, results = torch.get_rng_state(), []
    for fill in (0.0, poison):
        torch.set_rng_state(state)
        x = clean.masked_fill(~mask, fill).requires_grad_()
        y = make(name, inplace=inplace)(x.clone())
        y.backward(upstream.masked_fill(~mask, fill))
        results.append((y.detach(), x.grad))
    for a, b in zip(*results, strict=True):
        assert a.isfinite().all()
        assert torch.equal(a, b)
    assert not results[1][1][~mask].any()


@pytest.mark.parametrize("name", [name for name in NAMES if name not in SELECTING])
def test_nan_stays_in_its_element_of_noise(name):
    x = sample(name)
    x[0, 0] = math.nan
    assert torch.equal(make(name)(x).isnan(), x.isnan())


@pytest.mark.parametrize("name", MASKED)
def test_a_dropped_unit_is_a_positive_zero(name):
    x, key = -sample(name).abs(), ticket()
    y = make(name)(x)
    assert not y[~mask_of(name, key, x.shape)].signbit().any()


# Randomness


@every_layer
def test_the_seed_of_torch_repeats_and_the_next_call_differs(name):
    layer, x = make(name), sample(name)
    torch.manual_seed(3)
    first, second = layer(x), layer(x)
    torch.manual_seed(3)
    assert torch.equal(layer(x), first)
    assert torch.equal(layer(x), second)
    assert not torch.equal(first, second)
    torch.manual_seed(4)
    assert not torch.equal(layer(x), first)


@every_layer
def test_two_layers_in_a_row_draw_two_masks(name):
    x = sample(name)
    a, b = make(name), make(name)
    assert not torch.equal(a(x), b(x))


# Memory


def held(holder, depth=0):
    """Yield the tensors that an object holds: in its attributes, tuples, lists and dicts."""
    if isinstance(holder, torch.Tensor):
        yield holder
    elif depth < 6 and not isinstance(holder, (str, bytes, type, int, float)):
        children = list(getattr(holder, "__dict__", {}).values())
        if isinstance(holder, dict):
            children += holder.values()
        elif isinstance(holder, (tuple, list)):
            children += holder
        for child in children:
            yield from held(child, depth + 1)


def graph_of(y):
    """Return every node of a graph but the ends at its leaves."""
    nodes, todo = [], [y.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in nodes or "AccumulateGrad" in node.name():
            continue
        nodes.append(node)
        todo += [before for before, _ in node.next_functions]
    return nodes


@pytest.mark.parametrize("inplace", [False, True])
@every_shape
def test_nothing_is_saved_for_backward_but_the_address(name, shape, inplace):
    x = sample(name, shape, requires_grad=True)
    saved = []

    def pack(tensor):
        saved.append(tensor)
        return tensor

    layer = make(name, inplace=inplace)
    x = x.clone() if inplace else x
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = layer(x)
    for node in graph_of(y):
        saved += held(vars(node) if hasattr(node, "__dict__") else {})
        saved += [getattr(node, slot) for slot in dir(node) if slot.startswith("_saved_")]
        saved += list(getattr(node, "saved_tensors", ()))
    storages = {tensor.untyped_storage() for tensor in held(saved)}
    sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}
    assert sum(sizes.values()) <= 16


def test_the_search_for_saved_tensors_finds_them():
    """A layer that keeps its mask, in a tensor saved or as an attribute, is seen."""

    class Keeps(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, how):
            if how == "saved":
                ctx.save_for_backward(x > 0)
            else:
                ctx.mask = {"mask": [(x > 0,)]}
            return x * 2

        @staticmethod
        def backward(ctx, grad):
            return grad, None

    for how in ("saved", "attribute"):
        y = Keeps.apply(torch.ones(100, requires_grad=True), how)
        (node,) = graph_of(y)
        found = [*held(vars(node)), *node.saved_tensors]
        assert [tensor.numel() for tensor in found] == [100]


@every_shape
def test_inplace_equals_out_of_place_and_returns_its_input(name, shape):
    x, upstream = sample(name, shape, requires_grad=True), torch.randn(shape)
    state, results = torch.get_rng_state(), []
    for inplace in (False, True):
        torch.set_rng_state(state)
        given = x.clone()
        y = make(name, inplace=inplace)(given)
        assert not inplace or y is given
        (grad,) = torch.autograd.grad(y, x, upstream)
        results.append((y.detach(), grad))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@every_layer
def test_out_of_place_leaves_its_input_alone(name):
    for p in (P, 0.0, *([1.0] if name in SELECTING else [])):
        x = sample(name)
        before = x.clone()
        make(name, p)(x)
        assert torch.equal(x, before)


def layouts(x):
    """Yield ``x`` in other layouts, dense ones first: (tensor, whether it is dense)."""
    yield x.transpose(0, 1).contiguous().transpose(0, 1), True
    yield x.permute(*reversed(range(x.dim()))).contiguous().permute(*reversed(range(x.dim()))), True
    if x.dim() == 4:
        yield x.contiguous(memory_format=torch.channels_last), True
    if x.dim() == 5:
        yield x.contiguous(memory_format=torch.channels_last_3d), True
    yield torch.stack([x, -x], dim=-1)[..., 0], False
    yield torch.cat([x, x], dim=1)[:, : x.shape[1]], False


@every_layer
def test_a_layout_changes_no_bit_and_is_kept(name):
    plain = sample(name)
    state = torch.get_rng_state()
    wanted = make(name)(plain)
    for x, dense in layouts(plain):
        assert x.stride() != plain.stride()
        torch.set_rng_state(state)
        leaf = x.detach().requires_grad_()
        y = make(name)(leaf)
        (grad,) = torch.autograd.grad(y, leaf, torch.ones_like(y))
        assert torch.equal(y, wanted)
        assert torch.equal(grad, slope_of_ones(name, state, plain))
        if dense:
            assert y.stride() == x.stride() == grad.stride()
        torch.set_rng_state(state)
        given = x.clone() if dense else x
        assert torch.equal(make(name, inplace=True)(given), wanted)


def slope_of_ones(name, state, x):
    torch.set_rng_state(state)
    leaf = x.detach().requires_grad_()
    return torch.autograd.grad(make(name)(leaf).sum(), leaf)[0]


@every_layer
def test_an_expanded_input_has_a_mask_of_its_full_shape(name):
    shape = CASES[name].shapes[0]
    x, key = torch.randn(shape[-1]).expand(shape), ticket()
    assert_same(name, make(name)(x), value(name, key, x))


@every_layer
def test_an_input_without_values_gives_a_result_without_values(name):
    x = sample(name, device="meta")
    y = make(name)(x)
    assert (y.device, y.shape, y.dtype) == (x.device, x.shape, x.dtype)


# Options


@every_layer
def test_a_shared_batch_dim_drops_the_whole_batch_alike(name):
    x = torch.ones(CASES[name].shapes[0])
    y = make(name, shared_dims=(0,))(x)
    assert torch.equal(y, y[:1].expand_as(y))


@pytest.mark.parametrize("dim", [2, -1])
@every_layer
def test_one_unit_serves_along_a_shared_dim(name, dim):
    x, key = torch.ones(CASES[name].shapes[0]), ticket()
    y = make(name, shared_dims=[dim])(x)
    assert torch.equal(y, y.narrow(dim, 0, 1).expand_as(y))
    case, shape = CASES[name], tuple(x.shape)
    if case.kind == "mask":
        shared = (*case.shared(len(shape)), dim)
        assert torch.equal(y != 0, keep_mask(key, P, shape, shared_dims=shared).expand(shape))


@every_layer
def test_the_samples_may_lie_along_another_dim(name):
    x = sample(name)
    state = torch.get_rng_state()
    wanted = make(name)(x)
    torch.set_rng_state(state)
    turned = make(name, batch_dim=1)(x.transpose(0, 1))
    assert torch.equal(turned.transpose(0, 1), wanted)


@every_layer
def test_an_input_of_integers_is_refused_in_training_with_the_way_out(name):
    with pytest.raises(TypeError, match=r"floating dtype in training\. Got torch.int64\. Convert"):
        make(name)(torch.ones(CASES[name].shapes[0], dtype=torch.int64))


@pytest.mark.parametrize("name", [name for name in NAMES if CASES[name].refused])
def test_a_shape_without_the_units_of_a_layer_is_refused_in_both_modes(name):
    for layer in (make(name), make(name).eval()):
        with pytest.raises(ValueError, match=r"^The input of .* must be \[N, C.* Got \(3.* use "):
            layer(torch.ones(CASES[name].refused))


# The object


@every_layer
def test_a_layer_is_a_module_of_its_torch_twin_with_nothing_to_store(name):
    layer, twin = make(name), getattr(torch.nn, name, torch.nn.Module)
    assert isinstance(layer, twin)
    assert type(layer).__module__.startswith("sitout.nn")
    assert layer.state_dict() == {}
    assert list(layer.parameters()) == list(layer.buffers()) == []
    layer.load_state_dict(twin().state_dict())


@every_layer
def test_a_layer_takes_the_arguments_of_its_torch_twin(name):
    if not hasattr(torch.nn, name):
        pytest.skip("no twin")
    twin = getattr(torch.nn, name)
    assert repr(getattr(nn, name)()) == repr(twin())
    assert repr(getattr(nn, name)(0.2, True)) == repr(twin(0.2, True))
    assert repr(getattr(nn, name)(p=0.25, inplace=True)) == repr(twin(p=0.25, inplace=True))


@every_layer
def test_repr_names_every_option_that_was_set(name):
    shown = repr(make(name, 0.25, inplace=True, shared_dims=[1], batch_dim=1))
    options = "p=0.25, inplace=True, shared_dims=(1,), batch_dim=1"
    assert shown.startswith(f"{name}({options}")
    assert repr(make(name, 0.25)).startswith(f"{name}(p=0.25, inplace=False")
    assert "shared_dims" not in repr(make(name))


def saved_and_loaded(layer):
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x)), saved_and_loaded]
)
@every_layer
def test_a_copy_is_the_same_layer(name, copied):
    layer = make(name, 0.25, shared_dims=(1,), batch_dim=0).train()
    twin = copied(layer)
    assert type(twin) is type(layer)
    assert repr(twin) == repr(layer)
    x = sample(name)
    torch.manual_seed(3)
    y = layer(x)
    torch.manual_seed(3)
    assert torch.equal(twin(x), y)
    twin.p = 0.5
    assert (layer.p, twin.p) == (0.25, 0.5)
    assert copied(layer.eval()).training is False


@every_layer
def test_the_rate_may_be_set_and_holds_from_then_on(name):
    layer, x = make(name), sample(name)
    layer.p = 0
    assert layer.p == 0.0
    assert isinstance(layer.p, float)
    assert torch.equal(layer(x), x)
    layer.p = 0.75
    key = ticket()
    assert_same(name, layer(x), value(name, key, x, 0.75))


def one_line(argument, name, got):
    return rf"^`{argument}` of {name} must be [^\n]+\. Got {re.escape(got)}\.$"


BAD_RATES = [1.7, -0.1, math.nan, math.inf, True, "0.5", None, 0.5j, [0.5]]


@pytest.mark.parametrize("p", BAD_RATES, ids=repr)
@every_layer
def test_a_bad_rate_is_refused_at_construction_and_when_set(name, p):
    interval = "[0, 1]" if name in SELECTING else "[0, 1)"
    line = f"`p` of {name} must be a number in {interval}. Got {p!r}."
    error = ValueError if type(p) is float else TypeError
    with pytest.raises(error, match=f"^{re.escape(line)}$"):
        make(name, p)
    layer = make(name)
    with pytest.raises(error, match=f"^{re.escape(line)}$"):
        layer.p = p
    assert layer.p == P


@pytest.mark.parametrize("p", [torch.tensor(0.5), torch.rand(2, 2), torch.tensor([0.5])])
@every_layer
def test_a_tensor_is_no_rate_and_is_refused_in_one_line(name, p):
    with pytest.raises(TypeError, match=rf"^`p` of {name} must be [^\n]+\. Got tensor[^\n]*\.$"):
        make(name, p)


@pytest.mark.parametrize(
    ("argument", "given"),
    [
        ("inplace", 1),
        ("inplace", None),
        ("shared_dims", "0"),
        ("shared_dims", 0),
        ("shared_dims", None),
        ("batch_dim", 1.0),
        ("batch_dim", True),
        ("batch_dim", None),
    ],
)
@every_layer
def test_a_bad_option_is_refused_at_construction(name, argument, given):
    with pytest.raises(TypeError, match=one_line(argument, name, repr(given))):
        make(name, **{argument: given})


@pytest.mark.parametrize("given", [(0.5,), ("0",), (0, True), [None]])
@every_layer
def test_a_bad_shared_dim_is_refused_at_construction(name, given):
    with pytest.raises(TypeError, match=one_line("shared_dims", name, repr(given[-1]))):
        make(name, shared_dims=given)


def test_drop_path_checks_its_own_option_and_shows_it():
    with pytest.raises(TypeError, match=one_line("scale_by_keep", "DropPath", "1")):
        nn.DropPath(0.5, scale_by_keep=1)
    assert repr(nn.DropPath(0.5, False)) == "DropPath(p=0.5, inplace=False, scale_by_keep=False)"
    x = torch.randn(30, 2)
    assert {0.0, 1.0} == set((nn.DropPath(0.5, False)(x) / x).flatten().tolist())
