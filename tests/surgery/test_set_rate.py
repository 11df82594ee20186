"""set_rate: layers and float attributes, by name, type or predicate."""

from __future__ import annotations

import dataclasses
import gc
import weakref

import numpy as np
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
    assert sorted(line.split(", ", 2)[2] for line in lines) == [
        "F.dropout(self.drop(x), 0.5): '0'",
        "F.dropout(x): '0'",
        "F.dropout(x, self.rate): '0'",
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


RATE = 0.5


class Beside(nn.Module):
    """A rate that is no attribute of a module or its config."""

    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.1)
        self.cfg = {"dropout": 0.5}


class InDict(Beside):
    def forward(self, x):
        return F.dropout(self.drop(x), self.cfg["dropout"], self.training)


class InModule(Beside):
    def forward(self, x):
        return F.dropout(self.drop(x), RATE, self.training)


class InLocal(Beside):
    def forward(self, x):
        rate = self.cfg["dropout"] if self.training else 0.0
        return self.part(x, rate)

    def part(self, x, rate):
        return F.dropout(x, p=rate)


class InClass(Beside):
    p = 0.5

    def forward(self, x):
        return F.dropout(x, self.p)


@pytest.mark.parametrize("made", [InDict, InModule, InLocal, InClass])
def test_a_call_whose_rate_lives_nowhere_that_is_found_is_listed(made):
    change = sitout.set_rate(made(), 0.0)
    assert change.sites == ["drop.p"]
    assert len(change.unreached) == 1
    assert change.unreached[0].startswith(f"dropout() in {made.__name__}, test_set_rate.py:")


class Fed(nn.Module):
    """Every call gets a rate that is found, however it comes there."""

    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.1)
        self.drop_rate = 0.2

    def forward(self, x):
        p = self.drop.p if self.training else 0.0
        x = self.part(F.dropout(x, p), self.drop_rate)
        return F.scaled_dot_product_attention(x, x, x, dropout_p=float(self.drop.p))

    def part(self, x, rate):
        return F.dropout(x, rate, self.training)


def test_a_call_that_gets_a_rate_by_way_of_names_is_not_listed():
    assert sitout.set_rate(Fed(), 0.0).unreached == []


class ByClass(nn.Module):
    dropout = 0.5

    def forward(self, x):
        return F.dropout(x, self.dropout, self.training)


def test_a_rate_of_the_class_is_set_on_the_module_and_taken_off_again():
    model = ByClass()
    for change in (lambda: sitout.set_rate(model, 0.0), lambda: sitout.disabled(model)):
        with change():
            assert "dropout" in vars(model)
            assert torch.equal(model(torch.ones(100)), torch.ones(100))
        assert "dropout" not in vars(model)
        assert model.dropout == ByClass.dropout == 0.5


class NoRates(nn.Module):
    """Numbers that speak of dropout and are no rates."""

    def __init__(self):
        super().__init__()
        self.dropout_keep_prob = 0.9
        self.drop_every = 1
        self.dropout_seed = 1
        self.drop_last = 1
        self.dropout_start = 0.0
        self.dropout_warmup_steps = 1
        self.dropout_size = 17
        self.drop_factor = 2.5
        self.layerdrop = 0
        self.hidden_dropout_prob = 0.25

    def forward(self, x):
        del self.dropout_keep_prob, self.drop_every, self.dropout_seed, self.drop_last
        del self.dropout_start, self.dropout_warmup_steps, self.dropout_size, self.drop_factor
        return F.dropout(x, self.hidden_dropout_prob + self.layerdrop)


def test_numbers_that_are_no_rates_are_left():
    model = NoRates()
    assert sitout.set_rate(model, 0.5).sites == ["hidden_dropout_prob", "layerdrop"]
    assert (model.dropout_keep_prob, model.drop_every, model.dropout_seed) == (0.9, 1, 1)


class DropPath(nn.Module):
    """As many write it: the rate as it came."""

    def __init__(self, drop_prob):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x):
        keep = 1 - float(self.drop_prob)
        return x * torch.empty(len(x), 1).bernoulli_(keep) / keep if self.training else x


@pytest.mark.parametrize("p", [np.float32(0.5), np.float64(0.5), torch.linspace(0, 0.5, 2)[1]])
def test_a_rate_of_numpy_or_a_tensor_is_a_rate_and_comes_back_as_the_object_it_was(p):
    model, x = nn.Sequential(DropPath(p)), torch.ones(200, 4)
    assert (model(x) == 0).any()
    with sitout.disabled(model):
        assert torch.equal(model(x), x)
    assert model[0].drop_prob is p
    change = sitout.set_rate(model, 0.125)
    assert type(model[0].drop_prob) is float
    change.undo()
    assert model[0].drop_prob is p


def test_a_rate_that_is_learned_is_none():
    model = nn.Sequential(DropPath(torch.tensor(0.5, requires_grad=True)), nn.Dropout(0.5))
    assert sitout.set_rate(model, 0.1).sites == ["1.p"]


def test_rates_may_be_given_as_tensors():
    model = nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.5))
    sitout.set_rate(model, torch.tensor(0.25))
    assert [layer.p for layer in model] == [0.25, 0.25]
    sitout.set_rate(model, torch.tensor([0.5, 0.75]))
    assert [layer.p for layer in model] == [0.5, 0.75]
    sitout.set_rate(model, lambda path, p: torch.tensor(p / 2))
    assert [type(layer.p) for layer in model] == [float, float]
    with pytest.raises(TypeError, match=r"`p` of set_rate at '0.p' must be a number"):
        sitout.set_rate(model, torch.zeros(2, 2))


@dataclasses.dataclass
class Config:
    dropout: float = 0.1


class Reader(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.drop = nn.Dropout(0.3)

    def forward(self, x):
        return F.dropout(self.drop(x), self.config.dropout, self.training)


def readers():
    config = Config()
    return nn.Sequential(Reader(config), Reader(config), Reader(Config()))


def test_a_rate_that_modules_share_is_set_where_all_of_them_fit():
    model = readers()
    assert sitout.set_rate(model, 0.5, Reader).sites == ["0.config.dropout", "2.config.dropout"]
    assert sitout.set_rate(model, 0.4, ["0", "1"]).sites == ["0.config.dropout"]
    assert sitout.set_rate(model, 0.4, "2").sites == ["2.config.dropout"]
    assert sitout.set_rate(model, 0.4, "*.config.dropout").unreached == []


@pytest.mark.parametrize(("where", "other"), [("0*", "1"), ("1*", "0")])
def test_a_rate_that_modules_share_is_left_where_only_some_fit(where, other):
    model = readers()
    change = sitout.set_rate(model, 0.5, where)
    assert change.sites == [f"{where[0]}.drop.p"]
    line = f"config.dropout (p=0.1), shared with modules that `where` does not fit: '{other}'"
    assert change.unreached == [line]
    assert model[0].config.dropout == 0.1
    with pytest.raises(ValueError, match="must be that of all modules that share a rate"):
        sitout.set_rate(model, 0.5, f"{where[0]}.config.dropout")


def test_names_fit_without_what_wrappers_add():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    compiled = torch.compile(model, backend="eager")
    for where in ("1", "1.p", "_orig_mod.1", "_orig_mod.1.p"):
        assert sitout.set_rate(compiled, 0.1, where).sites == ["_orig_mod.1.p"]
    with pytest.raises(ValueError, match=r"The nearest are '1\.p'"):
        sitout.set_rate(compiled, 0.1, "1.pp")


def test_surgery_keeps_no_class_alive():
    def make():
        class Local(nn.Module):
            def __init__(self):
                super().__init__()
                self.drop_rate = 0.5

            def forward(self, x):
                return F.dropout(x, self.drop_rate)

        return Local()

    model = make()
    reference = weakref.ref(type(model))
    change = sitout.set_rate(model, 0.1)
    assert change.sites == ["drop_rate"]
    change.undo()
    sitout.replace(model, functional=True).undo()
    del model, change
    gc.collect()
    assert reference() is None
