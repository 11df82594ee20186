"""insert: a layer behind or before modules, without a new name for any parameter."""

from __future__ import annotations

import copy
import pickle
from typing import NamedTuple

import pytest
import torch
from torch import nn

import sitout
from surgery.networks import MAKERS, make, same, same_tree, tree


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)

    def forward(self, x):
        return self.second(self.first(x))


X = torch.randn(5, 8)
# Not Linear: of nn.MultiheadAttention it would fit out_proj.
WHERE = {
    "nn.TransformerEncoder": "layers.*.linear?",
    "nn.Transformer": "*.linear1",
    "nn.LSTM": nn.LSTM,
    "timm ViT": nn.Linear,
    "BERT": nn.Linear,
    "GPT-2": "h.*.mlp",
}


@pytest.mark.parametrize("name", [name for name in WHERE if name in MAKERS])
def test_evaluation_and_names_stay_and_undo_gives_everything_back(name):
    model, call = make(name)
    out = call()
    before, state = tree(model), model.state_dict(keep_vars=True)
    change = sitout.insert(model, 0.5, WHERE[name])
    after = model.state_dict(keep_vars=True)
    assert list(after) == list(state)
    assert all(after[key] is state[key] for key in state)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(call(), out, strict=True))
    model.train()
    assert not same(call(), call())
    model.eval()
    change.undo()
    assert same_tree(tree(model), before)
    assert same(call(), out)


def test_after_drops_from_the_output():
    model = Net()
    change = sitout.insert(model, 0.5, "first")
    assert change.sites == ["first.dropout_after"]
    torch.manual_seed(0)
    out = model(X)
    torch.manual_seed(0)
    inner = nn.functional.linear(X, model.first.weight, model.first.bias)
    assert torch.equal(out, model.second(sitout.functional.dropout(inner, 0.5)))


@pytest.mark.parametrize("by_name", [False, True])
def test_before_drops_from_the_input(by_name):
    model = nn.Linear(8, 8)
    change = sitout.insert(model, 0.5, "", position="before")
    assert change.sites == ["dropout_before"]
    torch.manual_seed(0)
    out = model(input=X) if by_name else model(X)
    torch.manual_seed(0)
    dropped = sitout.functional.dropout(X, 0.5)
    assert torch.equal(out, nn.functional.linear(dropped, model.weight, model.bias))


def test_the_layer_follows_the_mode():
    model = Net().eval()
    sitout.insert(model, 0.5, "first")
    assert not model.first.dropout_after.training
    assert torch.equal(model(X), model(X))
    model.train()
    assert not torch.equal(model(X), model(X))


def test_twice_on_one_module_gives_two_layers_that_go_in_any_order():
    model = Net()
    before = tree(model)
    one = sitout.insert(model, 0.5, "first")
    two = sitout.insert(model, 0.25, "first", layer=nn.Dropout)
    assert (one.sites, two.sites) == (["first.dropout_after"], ["first.dropout_after_2"])
    assert model.first.dropout_after_2.p == 0.25
    one.undo()
    model(X)
    two.undo()
    assert same_tree(tree(model), before)


def test_a_shared_module_gets_one_layer():
    shared = nn.Linear(8, 8)
    model = nn.ModuleDict({"a": shared, "b": shared})
    assert sitout.insert(model, 0.5, "?").sites == ["a.dropout_after"]
    assert len(shared._forward_hooks) == 1


def test_another_layer_may_be_inserted():
    model = Net()
    change = sitout.insert(model, 0.5, "second", layer=sitout.nn.DropPath)
    assert change.sites == ["second.droppath_after"]
    assert ((model(X) == 0).sum(1) % 8 == 0).all()


class Pair(NamedTuple):
    x: torch.Tensor
    note: str


class Returns(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, x):
        return self.make(x)


@pytest.mark.parametrize(
    "make_output", [lambda x: (x, "note"), lambda x: [x, "note"], lambda x: Pair(x, "note")]
)
def test_of_a_tuple_the_first_tensor_drops(make_output):
    model = Returns(make_output)
    sitout.insert(model, 0.5, "")
    out = model(torch.ones(64))
    assert type(out) is type(make_output(X))
    assert out[1] == "note"
    assert 0 < int((out[0] == 0).sum()) < 64


@pytest.mark.parametrize("output", [{"x": X}, None, (), ("note", X)])
def test_an_output_that_is_no_tensor_is_refused_in_the_forward(output):
    model = Returns(lambda x: output)
    sitout.insert(model, 0.5, "")
    with pytest.raises(TypeError, match="The output of Returns, which has an inserted layer"):
        model(X)


def test_an_input_that_is_no_tensor_is_refused_in_the_forward():
    model = Returns(lambda x: x)
    sitout.insert(model, 0.5, "", position="before")
    with pytest.raises(TypeError, match=r"The input of Returns.*must be a tensor"):
        model("text")


def test_recurrent_and_attention_modules_drop_their_first_output():
    rnn, attention = nn.LSTM(8, 8), nn.MultiheadAttention(8, 2)
    for model in (rnn, attention):
        sitout.insert(model, 1.0, "")
    out, (state, _) = rnn(X)
    assert not out.any()
    assert state.all()
    assert not attention(X, X, X)[0].any()


def test_a_sequential_gives_it_to_its_last_or_first_child():
    model = nn.Sequential(nn.Sequential(nn.Linear(8, 8), nn.ReLU()), nn.Linear(8, 8))
    assert sitout.insert(model, 0.5, "0").sites == ["0.1.dropout_after"]
    assert sitout.insert(model, 0.5, "0", position="before").sites == ["0.0.dropout_before"]
    assert len(model[0]) == 2


def test_a_sequential_whose_last_child_has_other_places_is_refused():
    relu = nn.ReLU()
    model = nn.Sequential(nn.Sequential(nn.Linear(8, 8), relu, nn.Linear(8, 8), relu))
    with pytest.raises(ValueError, match="other places too"):
        sitout.insert(model, 0.5, "0")
    assert not relu._modules


@pytest.mark.parametrize("container", [nn.ModuleList(), nn.ModuleDict(), nn.Sequential()])
def test_a_container_is_refused(container):
    model = nn.Sequential(container)
    with pytest.raises(ValueError, match="that of modules that take a hook"):
        sitout.insert(model, 0.5, "0")


def test_the_projection_that_attention_never_calls_is_left_out():
    model = nn.MultiheadAttention(8, 2)
    with (
        pytest.warns(UserWarning, match="leaves out 'out_proj'"),
        pytest.raises(ValueError, match="a module that is called"),
    ):
        sitout.insert(model, 0.5, "out_proj")


def test_a_wrong_argument_changes_nothing():
    model = Net()
    before = tree(model)
    with pytest.raises(ValueError, match="The nearest are 'first'"):
        sitout.insert(model, 0.5, "frist")
    with pytest.raises(TypeError, match="`where` of insert must be a glob"):
        sitout.insert(model, 0.5, None)
    with pytest.raises(ValueError, match="`p` of insert"):
        sitout.insert(model, 1.5, "first")
    with pytest.raises(ValueError, match="Did you mean 'before'"):
        sitout.insert(model, 0.5, "first", position="befor")
    with pytest.raises(TypeError, match="`layer` of insert"):
        sitout.insert(model, 0.5, "first", layer=lambda p: p)
    assert same_tree(tree(model), before)


def test_copies_and_pickles_call_the_layer_of_the_copy():
    model = Net()
    sitout.insert(model, 1.0, "first")
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        copied.first.dropout_after.p = 0.0
        assert model.first(X).abs().sum() == 0
        assert copied.first(X).all()


def test_a_clock_finds_the_layer():
    model = Net()
    sitout.insert(model, 0.5, "second")
    clock = sitout.MaskClock(model, seed=5)
    assert list(clock.sites) == ["second.dropout_after"]
    with clock.at(0):
        out = model(X)
    key = clock.key("second.dropout_after", step=0)
    assert torch.equal(out != 0, sitout.masks.keep_mask(key, 0.5, (5, 8)))


@pytest.mark.parametrize("where", ["first", ""])
@pytest.mark.parametrize("position", ["before", "after"])
def test_compiled_masks_are_those_of_eager_mode(where, position):
    torch._dynamo.reset()
    model = Net()
    change = sitout.insert(model, 0.5, where, position=position)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.manual_seed(0)
    out = model(X)
    torch.manual_seed(0)
    assert torch.equal(compiled(X), out)
    change.undo()
    assert torch.equal(compiled(X), model(X))


def test_a_compiled_model_is_refused_for_it_would_not_see_the_hook():
    model = nn.Sequential(Net(), Net())
    model[1].compile(backend="eager")
    with pytest.raises(ValueError, match=r"free of compiled modules.*Net at '1'"):
        sitout.insert(model, 0.5, "0.first")
    assert not model[0].first._modules


class Loops(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4)


class OverChildren(Loops):
    def forward(self, x):
        for child in self.children():
            x = child(x)
        return x


class OverNames(Loops):
    def forward(self, x):
        for _, child in self.named_children():
            x = child(x)
        return x


class OverDict(Loops):
    def forward(self, x):
        return self.run(x)

    def run(self, x):
        for child in self._modules.values():
            x = child(x)
        return x


@pytest.mark.parametrize("made", [OverChildren, OverNames, OverDict])
@pytest.mark.parametrize("position", ["before", "after"])
def test_a_module_that_goes_over_its_children_takes_no_other(made, position):
    model = nn.Sequential(made())
    before = tree(model)
    for where in ("0", made, ""):
        with pytest.raises(ValueError, match=f"Got '{made.__name__} at '0''|goes over its child"):
            sitout.insert(model, 0.5, where, position=position)
    assert same_tree(tree(model), before)
    assert sitout.insert(model, 0.5, "0.a", position=position).sites == [f"0.a.dropout_{position}"]


def test_names_fit_without_what_a_wrapper_adds():
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))

        def forward(self, x):
            return self.module(x)

    assert sitout.insert(Wrapper(), 0.5, "0").sites == ["module.0.dropout_after"]


def test_the_layers_of_torch_count_their_children_and_call_none_of_them_twice():
    model = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
    assert sitout.insert(model, 0.5, "").sites == ["dropout_after"]
