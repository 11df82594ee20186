"""set_rate: layers and float attributes, by name, type or predicate."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sitout
from sitout._rates import rates
from surgery.networks import MAKERS, Shared, make, same_tree, tree
from zoo import has


@pytest.mark.parametrize("name", MAKERS)
def test_all_rates_of_a_model_are_set_and_given_back(name):
    model, _ = make(name)
    before = tree(model)
    olds = [rate.p for rate in rates(model)]
    change = sitout.set_rate(model, 0.125)
    assert {rate.p for rate in rates(model)} == {0.125}
    assert len(change.sites) == len(olds) > 0
    change.undo()
    assert [rate.p for rate in rates(model)] == olds
    assert all(type(rate.p) is type(old) for rate, old in zip(rates(model), olds, strict=True))
    assert same_tree(tree(model), before)


def encoder():
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 8, 0.1, batch_first=True), 2)


WHERES = [
    ("*.self_attn", ["layers.0.self_attn.dropout", "layers.1.self_attn.dropout"]),
    ("*.self_attn.dropout", ["layers.0.self_attn.dropout", "layers.1.self_attn.dropout"]),
    ("layers.1.dropout?", ["layers.1.dropout1.p", "layers.1.dropout2.p"]),
    (nn.MultiheadAttention, ["layers.0.self_attn.dropout", "layers.1.self_attn.dropout"]),
    (lambda name, module: name.endswith(".dropout1"), [f"layers.{i}.dropout1.p" for i in (0, 1)]),
    (["layers.0.dropout1", nn.MultiheadAttention], None),
    ((one for one in ["layers.0.dropout1", "layers.0.dropout2"]), None),
]


@pytest.mark.parametrize(("where", "sites"), WHERES)
def test_where_fits_names_paths_types_and_predicates(where, sites):
    found = sitout.set_rate(encoder(), 0.5, where).sites
    if sites is None:
        assert "layers.0.dropout1.p" in found
        assert len(found) in (2, 3)
    else:
        assert found == sites


def test_a_predicate_is_asked_of_modules_and_not_of_paths():
    model = nn.ModuleDict({"a": nn.Dropout(0.5), "b": nn.Dropout(0.5)})
    assert sitout.set_rate(model, 0.1, lambda name, module: name != "a").sites == ["b.p"]


def test_a_shared_layer_is_found_by_each_of_its_names():
    model = Shared()
    assert sitout.set_rate(model, 0.9, "body.1").sites == ["drop.p"]
    assert model.drop.p == 0.9


def test_a_rate_for_each_site_in_order():
    model = nn.Sequential(*(sitout.nn.DropPath(0.0) for _ in range(4)))
    sitout.set_rate(model, torch.linspace(0, 0.3, 4).tolist())
    assert [layer.p for layer in model] == pytest.approx([0.0, 0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match=r"one for each site\. Got '3 rates'"):
        sitout.set_rate(model, [0.1] * 3)


def test_a_function_of_path_and_old_rate():
    model = nn.Sequential(nn.Dropout(0.5), nn.LSTM(4, 4, 2, dropout=0.4))
    seen = []

    def half(path, p):
        seen.append(path)
        return p / 2

    sitout.set_rate(model, half)
    assert (model[0].p, model[1].dropout) == (0.25, 0.2)
    assert seen == ["0.p", "1.dropout"]


def test_the_old_value_comes_back_as_the_object_it_was():
    model = nn.Sequential(nn.Dropout(0), nn.LSTM(4, 4))
    model[1].dropout = 0
    sitout.set_rate(model, 0.5).undo()
    assert type(model[0].p) is int
    assert type(model[1].dropout) is int


def test_a_schedulable_layer_is_written_in_place():
    layer = sitout.nn.Dropout(0.3).schedulable_()
    data, before = layer.rate_data, layer.rate_data.clone()
    change = sitout.set_rate(layer, 0.5)
    assert layer.p == 0.5
    change.undo()
    assert layer.rate_data is data
    assert torch.equal(data, before)


@pytest.mark.parametrize("bad", [1.5, float("nan"), -0.1])
def test_a_wrong_rate_names_the_site_and_changes_nothing(bad):
    model = nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.4))
    with pytest.raises(ValueError, match=r"`p` of set_rate at '1.p'"):
        sitout.set_rate(model, [0.1, bad])
    assert [layer.p for layer in model] == [0.5, 0.4]
    with pytest.raises(TypeError, match=r"`p` of set_rate at '0.p'"):
        sitout.set_rate(model, "half")
    with pytest.raises(TypeError, match=r"`p` of set_rate at '0.p'"):
        sitout.set_rate(model, None)


def test_gaussian_dropout_takes_no_one():
    model = nn.Sequential(nn.Dropout(0.5), sitout.nn.GaussianDropout(0.5))
    with pytest.raises(ValueError, match=r"'1.p' must be a number in \[0, 1\)"):
        sitout.set_rate(model, 1.0)
    model[1].schedulable_()
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        sitout.set_rate(model, 1 - 2.0**-45)
    assert model[0].p == 0.5


def test_nothing_that_fits_lists_the_nearest_names():
    with pytest.raises(ValueError, match=r"The nearest are .*'layers.0.self_attn'"):
        sitout.set_rate(encoder(), 0.5, "layers.0.self_atn")
    with pytest.raises(ValueError, match="There is no drop rate at all"):
        sitout.set_rate(nn.Linear(2, 2), 0.5)
    with pytest.raises(TypeError, match="`where` of set_rate"):
        sitout.set_rate(encoder(), 0.5, 3)


class Literal(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.rate = 0.1

    def forward(self, x):
        return F.dropout(self.drop(x), 0.5) + F.dropout(x) + F.dropout(x, self.rate)


def test_calls_with_a_rate_in_the_source_are_listed_where_they_fit():
    model = nn.Sequential(Literal(), nn.Dropout(0.5))
    lines = sitout.set_rate(model, 0.2).unreached
    assert [line.split(", ", 2)[2] for line in lines] == [
        "F.dropout(self.drop(x), 0.5): '0'",
        "F.dropout(x): '0'",
    ]
    assert sitout.set_rate(model, 0.2, "1").unreached == []


@pytest.mark.skipif(not has("transformers"), reason="transformers is not installed")
def test_hugging_face_keeps_rates_in_its_config_and_attributes():
    model, _ = make("Wav2Vec2")
    change = sitout.set_rate(model, 0.7, "*.layerdrop")
    assert change.sites == ["encoder.config.layerdrop"]
    assert model.config.layerdrop == 0.7
    change.undo()
    assert model.config.layerdrop == 0.1


def test_compiled_code_heeds_the_new_rate():
    torch._dynamo.reset()
    model = nn.Sequential(nn.Dropout(0.0), sitout.nn.Dropout(0.0))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    x = torch.ones(4, 8)
    assert compiled(x).all()
    for where in ("0", "1"):
        change = sitout.set_rate(compiled, 1.0, f"_orig_mod.{where}")
        assert not compiled(x).any()
        change.undo()
        assert compiled(x).all()


class Stubborn(nn.Dropout):
    @property
    def p(self):
        return 0.5

    @p.setter
    def p(self, value):
        if value != 0.5:
            raise AttributeError("not here")


def test_a_place_that_refuses_a_rate_leaves_the_others_as_they_were():
    model = nn.Sequential(nn.Dropout(0.3), Stubborn(0.5))
    with pytest.raises(AttributeError, match="not here"):
        sitout.set_rate(model, 0.1)
    assert model[0].p == 0.3
    with pytest.raises(AttributeError, match="not here"), sitout.disabled(model):
        pass
    assert model[0].p == 0.3
    assert sitout.set_rate(model, 0.1, "0").sites == ["0.p"]
