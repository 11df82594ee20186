"""replace: what changes, what must not, and the way back."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sitout
from sitout import replace
from surgery.networks import MAKERS, Calls, Shared, make, same, same_tree, tree
from zoo import has


@pytest.fixture(params=MAKERS)
def case(request):
    return make(request.param)


def test_evaluation_is_the_same_to_the_bit_and_undo_gives_everything_back(case):
    model, call = case
    out = call()
    before = tree(model)
    state = model.state_dict(keep_vars=True)
    change = replace(model)
    after = model.state_dict(keep_vars=True)
    assert list(state) == list(after)
    assert all(state[name] is after[name] for name in state)
    assert same(call(), out)
    assert len(change.sites) > 0
    assert not same_tree(tree(model), before)
    change.undo()
    assert same_tree(tree(model), before)
    assert same(call(), out)


def test_evaluation_is_the_same_with_functional_too(case):
    model, call = case
    out = call()
    before = tree(model)
    with replace(model, functional=True):
        assert same(call(), out)
    assert same_tree(tree(model), before)


def test_no_layer_that_is_known_is_left(case):
    model, _ = case
    replace(model)
    known = {"DropPath", "StochasticDepth"}
    for module in model.modules():
        left = isinstance(module, nn.modules.dropout._DropoutNd) or type(module).__name__ in known
        assert not left or isinstance(module, sitout.nn._base.Site)


def test_training_runs_on_what_replace_put_in(case):
    model, call = case
    replace(model)
    model.train()
    assert all(tensor.isfinite().all() for tensor in call())


LAYERS = [
    (nn.Dropout(0.3, True), sitout.nn.Dropout),
    (nn.Dropout1d(0.3, True), sitout.nn.Dropout1d),
    (nn.Dropout2d(0.3), sitout.nn.Dropout2d),
    (nn.Dropout3d(0.3), sitout.nn.Dropout3d),
    (nn.AlphaDropout(0.3), sitout.nn.AlphaDropout),
    (nn.FeatureAlphaDropout(0.3), sitout.nn.FeatureAlphaDropout),
]


@pytest.mark.parametrize(("old", "made"), LAYERS, ids=lambda one: getattr(one, "__name__", ""))
def test_each_layer_of_torch_has_its_counterpart(old, made):
    model = nn.Sequential(copy.deepcopy(old))
    replace(model)
    assert type(model[0]) is made
    assert (model[0].p, model[0].inplace) == (0.3, old.inplace)


def test_alpha_dropout_stays_out_of_place_as_the_forward_of_torch_does():
    model = nn.Sequential(nn.AlphaDropout(0.5, inplace=True))
    replace(model)
    x = torch.ones(8)
    model(x)
    assert torch.equal(x, torch.ones(8))


@pytest.mark.skipif(not has("timm"), reason="timm is not installed")
def test_drop_path_of_timm_keeps_its_rate_and_its_scale():
    from timm.layers import DropPath

    model = nn.Sequential(DropPath(0.2, scale_by_keep=False), DropPath(0.0))
    replace(model)
    assert [type(layer) for layer in model] == [sitout.nn.DropPath] * 2
    assert [(layer.p, layer.scale_by_keep) for layer in model] == [(0.2, False), (0.0, True)]


@pytest.mark.skipif(not has("torchvision"), reason="torchvision is not installed")
def test_stochastic_depth_of_torchvision_keeps_its_mode():
    from torchvision.ops import StochasticDepth

    model = nn.Sequential(StochasticDepth(0.5, "row"), StochasticDepth(0.5, "batch"))
    replace(model)
    rows, batch = (layer(torch.ones(64, 2)) for layer in model)
    assert 0 < (rows == 0).all(1).sum() < 64
    assert set((rows == 0).sum(1).tolist()) == {0, 2}
    assert batch.unique().numel() == 1


@pytest.mark.skipif(not has("transformers"), reason="transformers is not installed")
def test_drop_path_of_hugging_face_is_replaced():
    from transformers.models.swin.modeling_swin import SwinDropPath

    model = nn.Sequential(SwinDropPath(0.2))
    replace(model)
    assert type(model[0]) is sitout.nn.DropPath
    assert model[0].p == 0.2


def test_a_shared_layer_stays_shared():
    model = Shared()
    change = replace(model)
    assert type(model.drop) is sitout.nn.Dropout
    assert model.drop is model.body[1] is model.heads[0]
    assert model.heads[1] is not model.drop
    assert change.sites == ["drop", "body.1", "heads.0", "heads.1"]


def test_children_keep_their_order():
    model = Shared()
    names = [name for name, _ in model.named_modules(remove_duplicate=False)]
    replace(model)
    assert [name for name, _ in model.named_modules(remove_duplicate=False)] == names


def test_a_root_that_is_a_layer_comes_back_as_another_one():
    root = nn.Dropout(0.3)
    with replace(root) as change:
        assert type(change.model) is sitout.nn.Dropout
        assert change.sites == [""]
        change.model.eval()
    assert change.model is root
    assert not root.training


def test_the_mode_of_each_layer_goes_both_ways():
    model = nn.Sequential(nn.Dropout(0.1), nn.Dropout(0.2))
    first, second = model
    first.eval()
    change = replace(model)
    assert [layer.training for layer in model] == [False, True]
    model[0].train()
    model[1].eval()
    change.undo()
    assert (first.training, second.training) == (True, False)


def test_hooks_and_attributes_go_with_the_place():
    model, seen = nn.Sequential(nn.Dropout(0.0)), []
    handle = model[0].register_forward_hook(lambda *_: seen.append("after"))
    model[0].register_forward_pre_hook(lambda *_: seen.append("before"))
    model[0].register_full_backward_hook(lambda *_: seen.append("backward"))
    model[0].note = "mine"
    replace(model)
    model(torch.ones(2, requires_grad=True)).sum().backward()
    assert seen == ["before", "after", "backward"]
    assert model[0].note == "mine"
    handle.remove()
    seen.clear()
    model(torch.ones(2))
    assert seen == ["before"]


class Own(nn.Dropout):
    def forward(self, x):
        return 2 * x


class Alias(nn.Dropout):
    pass


def test_only_a_known_forward_is_replaced():
    model = nn.Sequential(Own(0.5), Alias(0.4), nn.Dropout(0.3))
    change = replace(model)
    assert change.sites == ["1", "2"]
    assert type(model[0]) is Own
    assert change.unreached == ["Own (p=0.5), a forward of its own: '0'"]


def test_a_layer_with_a_patched_forward_or_parameters_is_left():
    model = nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.4), nn.Dropout(0.3))
    model[0].forward = lambda x: x
    model[1].scale = nn.Parameter(torch.ones(1))
    assert replace(model).sites == ["2"]
    assert list(model.state_dict()) == ["1.scale"]


def test_layers_of_sitout_are_left():
    model = nn.Sequential(sitout.nn.Dropout(0.5), nn.Dropout(0.5))
    mine = model[0]
    assert replace(model).sites == ["1"]
    assert model[0] is mine


@pytest.mark.parametrize("p", [float("nan"), 1.7])
def test_a_wrong_rate_is_refused_by_name_before_anything_changes(p):
    model = nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.5))
    model[1].p = p
    before = tree(model)
    with pytest.raises(ValueError, match=r"`p` of Dropout at '1' must be a number in \[0, 1\]"):
        replace(model)
    if p == p:
        assert same_tree(tree(model), before)
    assert type(model[0]) is nn.Dropout


def test_nothing_to_replace_says_what_drops_elsewhere():
    model = nn.Sequential(nn.LSTM(4, 4, 2, dropout=0.2))
    with pytest.raises(ValueError, match=r"LSTM.dropout \(p=0.2, rnn\), a float attribute: '0.dr"):
        replace(model)
    with pytest.raises(ValueError, match=r"Got 'Linear'. No dropout was found in it"):
        replace(nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module"):
        replace("model")


def test_floats_calls_and_layers_without_counterpart_are_listed_once_each():
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, 0.2, batch_first=True), 3)
    line = (
        "MultiheadAttention.dropout (p=0.2, attention), a float attribute: "
        "3 modules, the first 'layers.0.self_attn.dropout'"
    )
    assert replace(model).unreached == [line]


def test_a_rate_of_zero_in_a_float_is_not_listed():
    model = nn.Sequential(nn.Dropout(0.1), nn.LSTM(4, 4))
    assert replace(model).unreached == []


def test_a_call_and_the_float_that_feeds_it_are_one_line():
    model = nn.Sequential(Calls(), Calls())
    change = replace(model)
    lines = [line.partition(",")[0] for line in change.unreached]
    assert lines == ["dropout() in Calls", "dropout() in Calls"]
    assert all(line.endswith("2 modules, the first '0'") for line in change.unreached)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.1)

    def forward(self, x):
        p = self.drop.p if self.training else 0.0
        return helper(x, p)


class Attends(nn.Module):
    """Its attention does not drop: no line."""

    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.1)

    def forward(self, x):
        return self.drop(F.scaled_dot_product_attention(x, x, x, dropout_p=0.0))


def helper(x, p):
    return F.dropout(x, p)


def test_a_layer_whose_rate_another_function_reads_is_listed():
    assert replace(Attention()).unreached == [
        "Attention hands drop.p to a function: the model itself"
    ]


def test_attention_without_dropout_is_not_listed():
    assert replace(Attends()).unreached == []


@pytest.mark.skipif(not has("timm"), reason="timm is not installed")
def test_what_timm_drops_otherwise_is_listed():
    change = replace(make("timm ViT")[0])
    patch, attention = change.unreached
    assert patch.startswith("scaled_dot_product_attention() in Attention, attention.py:")
    assert attention == "PatchDropout (p=0.1), no counterpart in sitout: 'patch_drop'"


@pytest.mark.skipif(not has("transformers"), reason="transformers is not installed")
def test_what_hugging_face_drops_otherwise_is_listed():
    assert replace(make("T5")[0]).unreached[0].startswith("T5Attention.dropout (p=0.1, dropout)")
    lines = replace(make("Wav2Vec2")[0]).unreached
    assert any("Wav2Vec2Encoder.config.layerdrop (p=0.1, layer_drop)" in line for line in lines)
    lines = replace(make("BERT")[0]).unreached
    assert lines == [
        "BertSelfAttention hands dropout.p to a function: "
        "2 modules, the first 'encoder.layer.0.attention.self'"
    ]


def test_torch_seed_governs_and_no_number_is_drawn():
    model = nn.Sequential(nn.Dropout(0.5))
    state = torch.get_rng_state()
    replace(model).undo()
    assert torch.equal(torch.get_rng_state(), state)


def test_a_clock_reaches_what_was_put_in():
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    replace(model)
    clock = sitout.MaskClock(model, seed=3)
    assert clock.sites == {"1": 0}
    with clock.at(0):
        y = model(torch.ones(5, 4))
    assert torch.equal(y != 0, sitout.masks.keep_mask(clock.key("1", step=0), 0.5, (5, 4)))


def test_copies_and_pickles_keep_what_was_put_in():
    model = Shared()
    change = replace(model)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(copied.drop) is sitout.nn.Dropout
        assert copied.drop is copied.body[1]
    change.undo()
    assert type(model.drop) is nn.Dropout


@pytest.mark.parametrize("inner", [False, True])
def test_a_compiled_model_takes_new_layers_and_gives_them_back(inner):
    torch._dynamo.reset()
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Dropout(0.0))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    x = torch.randn(3, 4)
    out = compiled(x)
    change = replace(model if inner else compiled)
    assert change.sites == ["1" if inner else "_orig_mod.1"]
    sitout_layer = model[1]
    sitout_layer.p = 1.0
    assert not compiled(x).any()
    change.undo()
    assert torch.equal(compiled(x), out)


def test_a_layer_that_was_compiled_by_itself_is_left():
    model = nn.Sequential(torch.compile(nn.Dropout(0.5), backend="eager"), nn.Dropout(0.5))
    assert replace(model).sites == ["1"]


def test_scripted_parts_are_listed():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls it deprecated
        scripted = torch.jit.script(nn.Dropout(0.5))
    model = nn.Sequential(nn.Dropout(0.5), scripted)
    change = replace(model)
    assert change.sites == ["0"]
    assert change.unreached == ["Dropout, scripted: '1'"]


class Beside(nn.Module):
    """Calls its layer by way of what is no child."""

    def __init__(self, kind):
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.other = nn.Dropout(0.5)
        if kind is None:
            vars(self)["held"] = self.drop
        else:
            self.held = kind(self.drop)

    def forward(self, x):
        if isinstance(self.held, nn.Module):
            return self.held(x)
        return next(iter(self.held.values() if isinstance(self.held, dict) else self.held))(x)


KINDS = [lambda one: [one], lambda one: (one,), lambda one: {"a": one}, None]


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_that_is_held_outside_of_the_children_is_left_and_listed(kind):
    model = Beside(kind)
    layer = model.drop
    change = replace(model)
    assert model.drop is layer
    assert change.sites == ["other"]
    assert change.unreached == ["Dropout (p=0.5), held in Beside.held too: 'drop'"]
    model.eval()
    assert torch.equal(model(torch.ones(100)), torch.ones(100))


def test_nested_collections_are_looked_into():
    model = Beside(lambda one: {"a": [(one, 1)]})
    assert replace(model).sites == ["other"]


def test_a_layer_that_is_left_is_reached_by_its_call():
    change = replace(Beside(lambda one: [one]), functional=True)
    assert change.sites[1].startswith("dropout() in Dropout, dropout.py:")
    assert change.unreached == []
