"""MaxNorm: the right axis, and nothing else touched."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import sitout
from surgery.networks import MAKERS, make
from zoo import has

C = 0.75


def units_of(module):
    """Yield the incoming weights of each unit, one by one."""
    weight = module.weight.data
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        groups, out = module.groups, weight.shape[1]
        inputs = weight.shape[0] // groups
        for group in range(groups):
            for channel in range(out):
                yield weight[group * inputs : (group + 1) * inputs, channel]
    else:
        yield from weight


def norms(module):
    return torch.stack([unit.norm() for unit in units_of(module)])


MODULES = [
    nn.Linear(7, 5),
    nn.Conv1d(4, 6, 3),
    nn.Conv2d(4, 6, 3, groups=2),
    nn.Conv3d(2, 3, 2),
    nn.ConvTranspose1d(4, 6, 3),
    nn.ConvTranspose2d(4, 6, 3, groups=2),
    nn.ConvTranspose3d(2, 3, 2),
    nn.Embedding(6, 5),
    nn.EmbeddingBag(6, 5),
]


@pytest.fixture(params=MODULES, ids=repr)
def module(request):
    torch.manual_seed(0)
    made = request.param
    with torch.no_grad():
        made.weight.normal_()
        made.weight[..., :1] = 0.0
        unit = next(iter(units_of(made)))
        unit.mul_(0.5 * C / unit.norm())
    return made


def test_no_unit_exceeds_the_bound_and_those_below_it_keep_their_bits(module):
    before = [unit.clone() for unit in units_of(module)]
    sitout.MaxNorm(module, C).step()
    after = norms(module)
    assert (after <= C * (1 + 1e-6)).all()
    assert after.max() > C * (1 - 1e-6)
    for old, new in zip(before, units_of(module), strict=True):
        if old.norm() < C:
            assert torch.equal(old, new)
        else:
            assert torch.allclose(new, old * (C / old.norm()), rtol=1e-5)


def test_embeddings_are_bounded_as_their_own_max_norm_does():
    mine, theirs = nn.Embedding(6, 5), nn.Embedding(6, 5, max_norm=C)
    theirs.load_state_dict(mine.state_dict())
    sitout.MaxNorm(mine, C).step()
    theirs(torch.arange(6))
    assert torch.allclose(mine.weight, theirs.weight, atol=1e-5)


def test_zero_rows_are_safe():
    model = nn.Linear(3, 2)
    nn.init.zeros_(model.weight)
    sitout.MaxNorm(model, C).step()
    assert not model.weight.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_bounded_and_small_units_keep_their_bits(dtype):
    model = nn.Linear(300, 2, dtype=dtype)
    with torch.no_grad():
        model.weight[0] = 8000.0  # the norm is no number of float16
        model.weight[1] = 0.01
    below = model.weight[1].clone()
    sitout.MaxNorm(model, 2.0).step()
    assert model.weight[0].float().norm().item() == pytest.approx(2.0, rel=0.01)
    assert torch.equal(model.weight[1], below)


def test_frozen_weights_are_left_alone_until_they_thaw():
    model = nn.Linear(3, 2)
    nn.init.ones_(model.weight)
    model.weight.requires_grad_(False)
    bound = sitout.MaxNorm(model, C)
    bound.step()
    assert (model.weight == 1).all()
    model.weight.requires_grad_(True)
    bound.step()
    assert (norms(model) < 1).all()


def test_a_tied_weight_is_listed_once():
    model = nn.ModuleDict({"embed": nn.Embedding(6, 5), "head": nn.Linear(5, 6, bias=False)})
    model["head"].weight = model["embed"].weight
    assert sitout.MaxNorm(model, C).sites == ["embed.weight"]


def test_the_step_leaves_gradients_and_the_graph_alone():
    model = nn.Linear(3, 2)
    nn.init.ones_(model.weight)
    model(torch.ones(1, 3)).sum().backward()
    grad = model.weight.grad.clone()
    parameter = model.weight
    sitout.MaxNorm(model, C).step()
    assert model.weight is parameter
    assert torch.equal(model.weight.grad, grad)
    assert model.weight.is_leaf


def test_where_leaves_modules_out():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    assert sitout.MaxNorm(model, C, "0").sites == ["0.weight"]
    keep = sitout.MaxNorm(model, C, lambda name, module: module is not model[1])
    assert keep.sites == ["0.weight"]
    with pytest.raises(ValueError, match="There are '0', '1'"):
        sitout.MaxNorm(model, C, "head")


def test_recurrent_and_attention_weights_are_bounded_only_by_name():
    model = nn.ModuleDict(
        {
            "fc": nn.Linear(4, 4),
            "rnn": nn.LSTM(4, 4, proj_size=2),
            "cell": nn.GRUCell(4, 4),
            "att": nn.MultiheadAttention(4, 2, kdim=3, vdim=3),
            "self": nn.MultiheadAttention(4, 2),
        }
    )
    assert sitout.MaxNorm(model, C).sites == [
        "fc.weight",
        "att.out_proj.weight",
        "self.out_proj.weight",
    ]
    names = ["weight_ih_l0", "weight_hh_l0", "weight_hr_l0"]
    assert sitout.MaxNorm(model, C, "rnn").sites == [f"rnn.{name}" for name in names]
    assert sitout.MaxNorm(model, C, "cell").sites == ["cell.weight_ih", "cell.weight_hh"]
    assert sitout.MaxNorm(model, C, "att").sites == [
        f"att.{kind}_proj_weight" for kind in ("q", "k", "v")
    ]
    bound = sitout.MaxNorm(model, 0.01, "self")
    assert bound.sites == ["self.in_proj_weight"]
    bound.step()
    assert (model["self"].in_proj_weight.norm(dim=1) <= 0.0100001).all()


@pytest.mark.parametrize("computed", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_a_computed_weight_is_listed_with_a_warning(computed):
    model = nn.Sequential(nn.Linear(3, 3), computed(nn.Linear(3, 3)))
    with pytest.warns(UserWarning, match=r"does not bound 1\.weight: it is computed"):
        bound = sitout.MaxNorm(model, C)
    assert (bound.sites, bound.unreached) == (["0.weight"], ["1.weight"])


@pytest.mark.parametrize("c", [0, -1.0, float("inf"), float("nan")])
def test_a_bound_that_is_none_is_refused(c):
    with pytest.raises(ValueError, match="`c` of MaxNorm must be a number above 0"):
        sitout.MaxNorm(nn.Linear(2, 2), c)


@pytest.mark.parametrize(("model", "c"), [("model", 1.0), (nn.Linear(2, 2), "2")])
def test_wrong_types_are_refused(model, c):
    with pytest.raises(TypeError, match="MaxNorm must be a"):
        sitout.MaxNorm(model, c)


def test_nothing_to_bound_is_an_error():
    with pytest.raises(ValueError, match="There is no module with weights to bound at all"):
        sitout.MaxNorm(nn.ReLU(), 1.0)


@pytest.mark.skipif(not has("transformers"), reason="transformers is not installed")
def test_columns_of_the_linear_layer_of_gpt2_are_bounded():
    model, call = make("GPT-2")
    sitout.MaxNorm(model, 0.01, "h.*").step()
    layer = model.h[0].mlp.c_fc
    assert tuple(layer.weight.shape) == (layer.weight.shape[0], layer.nf)
    assert torch.allclose(layer.weight.norm(dim=0), torch.full((layer.nf,), 0.01), rtol=1e-4)
    assert all(out.isfinite().all() for out in call())


@pytest.mark.parametrize("name", MAKERS)
def test_models_run_on_bounded_weights(name):
    model, call = make(name)
    if name == "nn.LSTM":
        assert sitout.MaxNorm(model, 0.1, nn.LSTM).sites[0] == "1.weight_ih_l0"
        return
    computed = name == "Wav2Vec2"
    with pytest.warns(UserWarning, match="pos_conv_embed") if computed else nullcontext():
        bound = sitout.MaxNorm(model, 0.1)
    bound.step()
    assert all(out.isfinite().all() for out in call())


def test_names_fit_without_what_wrappers_add():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    compiled = torch.compile(model, backend="eager")
    for where in ("0", "_orig_mod.0"):
        assert sitout.MaxNorm(compiled, 1.0, where).sites == ["_orig_mod.0.weight"]
    with pytest.raises(ValueError, match="'0'"):
        sitout.MaxNorm(compiled, 1.0, "0x")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_unit_whose_norm_overflows_keeps_its_direction(dtype):
    big = {torch.float64: 1e200}.get(dtype, 1e25)
    rows = [[3 * big, 4 * big], [3.0, 4.0], [0.25, 0.5], [0.0, 0.0]]
    layer = nn.Linear(2, 4, bias=False, dtype=dtype)
    layer.weight.data = torch.tensor(rows, dtype=dtype)
    sitout.MaxNorm(layer, 1.0).step()
    expected = torch.tensor([[0.6, 0.8], [0.6, 0.8], [0.25, 0.5], [0.0, 0.0]], dtype=dtype)
    assert torch.allclose(layer.weight, expected, rtol=1e-2 if dtype is torch.bfloat16 else 1e-6)
    assert torch.equal(layer.weight[2:], expected[2:])
