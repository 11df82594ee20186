"""thin: what it finds, what it leaves and why, and how the rest of sitout meets what it made."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

import sitout
from sitout import MaskClock, thin
from sitout.nn import ThinnedDropout, ThinnedLinear
from surgery.chains import CHAINS, WIDE, Method, Plain, build

IN, OUT = nn.Linear(8, WIDE), nn.Linear(WIDE, 4)


def mlp(*between, first=None, last=None):
    first, last = first or nn.Linear(8, WIDE), last or nn.Linear(WIDE, 4)
    return nn.Sequential(first, *between, last)


def plain_mlp(p=0.5):
    return mlp(nn.ReLU(), nn.Dropout(p))


class Calls(nn.Module):
    """Layers of all kinds with the forward that a test gives."""

    def __init__(self, forward):
        super().__init__()
        self.fc1, self.fc2, self.other = nn.Linear(8, WIDE), nn.Linear(WIDE, 4), nn.Linear(8, WIDE)
        self.drop, self.norm = nn.Dropout(0.5), nn.LayerNorm(WIDE)
        self.gate = nn.Linear(8, 1)
        self.rows = nn.Parameter(torch.ones(WIDE))
        self._forward = forward

    def forward(self, x):
        return self._forward(self, x)


def reason(model, **options):
    """Return the reasons that the error of thin gives."""
    with pytest.raises(ValueError, match="`model` of thin must be one with a chain") as caught:
        thin(model, **options)
    return str(caught.value).partition("Left: ")[2]


# What is left as it is.

LEFT = {
    "twice": (
        lambda m, x: m.fc2(m.drop(m.fc1(x))) + m.fc2(m.drop(m.fc1(x))),
        "fc1 -> drop -> fc2: drop is called more than once",
    ),
    "layer twice": (
        lambda m, x: m.fc2(m.drop(m.fc1(x))) + m.fc1(2 * x).mean(),
        "fc1 -> drop -> fc2: fc1 is called more than once",
    ),
    "one dropout at two places": (
        lambda m, x: m.fc2(m.drop(m.fc1(m.drop(x)))),
        "drop is called more than once",
    ),
    "units read elsewhere": (
        lambda m, x: m.fc2(m.drop(h := m.fc1(x).relu())) + h.mean(),
        "fc1 -> drop -> fc2: mean() reads relu() too",
    ),
    "units returned": (
        lambda m, x: (m.fc2(m.drop(h := m.fc1(x))), h),
        "the result of Calls reads fc1 (Linear) too",
    ),
    "dropped units returned": (
        lambda m, x: (m.fc2(h := m.drop(m.fc1(x))), h),
        "the result of Calls reads it",
    ),
    "weight read": (
        lambda m, x: m.fc2(m.drop(m.fc1(x))) + m.fc1.weight.sum(),
        "Calls reads fc1.weight by itself",
    ),
    "function": (
        lambda m, x: m.fc2(F.dropout(m.fc1(x), 0.5, m.training)),
        "fc1 -> a call of dropout -> fc2: a function has no place in the model",
    ),
    "layer norm before": (
        lambda m, x: m.fc2(m.drop(m.norm(m.fc1(x)))),
        "norm (LayerNorm) stands before it, and is not elementwise",
    ),
    "layer norm behind": (
        lambda m, x: m.fc2(m.norm(m.drop(m.fc1(x)))),
        "norm (LayerNorm) reads it, and is no layer that can skip units",
    ),
    "softmax": (lambda m, x: m.fc2(m.drop(m.fc1(x).softmax(-1))), "softmax() stands before it"),
    "parameter of each unit": (
        lambda m, x: m.fc2(m.drop(m.fc1(x) * m.rows)),
        "rows stands before it",
    ),
    "reshape": (lambda m, x: m.fc2(m.drop(m.fc1(x).view(-1, WIDE))), "view() stands before it"),
    "residual": (lambda m, x: m.fc2(m.other(x) + m.drop(m.fc1(x))), "add() reads it"),
    "gate behind": (
        lambda m, x: m.fc2(m.other(x) * m.drop(m.fc1(x))),
        "mul() reads it, and is no layer",
    ),
    "gate of one": (
        lambda m, x: m.fc2(m.drop(m.gate(x).sigmoid() * m.fc1(x))),
        "do not have the same units",
    ),
    "gelu behind": (
        lambda m, x: m.fc2(F.gelu(m.drop(m.fc1(x)))),
        "gelu() behind it does not keep the scale of the units",
    ),
    "sum behind": (lambda m, x: m.fc2(m.drop(m.fc1(x)) + 1.0), "add() behind it does not keep"),
    "shape behind": (
        lambda m, x: m.fc2(h := m.drop(m.fc1(x))) / h.shape[-1],
        "its shape is read",
    ),
    "chunk": (lambda m, x: m.gate(m.drop(m.fc1(x).chunk(8, -1)[0])), "an item of chunk()"),
    "not followed": (
        lambda m, x: m.fc2(m.drop(m.fc1(x))) if x.sum() > 0 else x,
        "drop: Calls.forward cannot be followed",
    ),
    "in place": (
        lambda m, x: (h := m.fc1(x), h.relu_(), m.fc2(m.drop(h)))[2],
        "relu_() reads fc1 (Linear) too",
    ),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_is_no_chain_is_left_with_the_reason(name):
    forward, why = LEFT[name]
    model = Calls(forward)
    before = list(model.modules())
    assert why in reason(model)
    assert all(one is other for one, other in zip(before, model.modules(), strict=True))


def _hooked(attach):
    layer = nn.Linear(8, WIDE)
    attach(layer)
    return mlp(nn.ReLU(), nn.Dropout(), first=layer)


class MyLinear(nn.Linear):
    pass


class MyDropout(nn.Dropout):
    def forward(self, x):
        return super().forward(x) * 2


def _tied():
    model = nn.Sequential(*plain_mlp(), nn.Linear(4, 8), nn.Linear(8, WIDE))
    model[5].weight = model[0].weight
    return model


def _two_names():
    model = Plain()
    model.again = model.fc1
    return model


def _held():
    model = Plain()
    model.all = [model.fc2]
    return model


def _alone():
    model = Plain()
    model.fc1.forward = lambda x: F.linear(x, model.fc1.weight)
    return model


def _shared_drop():
    drop = nn.Dropout(0.5)
    return nn.Sequential(nn.Linear(8, WIDE), drop, nn.Linear(WIDE, WIDE), drop, nn.Linear(WIDE, 4))


def _frozen():
    model = conv_net(nn.BatchNorm2d(WIDE))
    model[1].eval()
    return model


def _mean():
    return conv_net(nn.BatchNorm2d(WIDE, momentum=None))


def conv_net(*between, drop=None, last=None, **options):
    last = last or nn.Conv2d(WIDE, 4, 1)
    first = nn.Conv2d(4, WIDE, 3, **options)
    return nn.Sequential(first, *between, drop or nn.Dropout2d(0.5), last)


def _data():
    drop = sitout.nn.Dropout(0.5).schedulable_()
    return mlp(drop)


LAYERS = {
    "hook": (lambda: _hooked(lambda one: one.register_forward_hook(print)), "0 has hooks"),
    "pre-hook": (lambda: _hooked(lambda one: one.register_forward_pre_hook(print)), "0 has hooks"),
    "backward hook": (
        lambda: _hooked(lambda one: one.register_full_backward_hook(print)),
        "0 has hooks",
    ),
    "hooked activation": (
        lambda: mlp(_with_hook(nn.ReLU()), nn.Dropout()),
        "1 (ReLU) stands before it",
    ),
    "weight norm": (
        lambda: _hooked(nn.utils.parametrizations.weight_norm),
        "0 is a ParametrizedLinear",
    ),
    "pruned": (
        lambda: _hooked(lambda one: prune.l1_unstructured(one, "weight", 0.5)),
        "0 has hooks",
    ),
    "subclass": (lambda: mlp(nn.Dropout(), first=MyLinear(8, WIDE)), "0 is a MyLinear"),
    "quantizable": (
        lambda: mlp(nn.Dropout(), last=nn.modules.linear.NonDynamicallyQuantizableLinear(WIDE, 4)),
        "2 is a NonDynamicallyQuantizableLinear",
    ),
    "own forward": (_alone, "fc1 has a forward of its own"),
    "tied": (_tied, "0.weight belongs to another module too"),
    "two names": (_two_names, "fc1 is again too"),
    "held": (_held, "fc2 is held in Plain.all too"),
    "shared dropout": (_shared_drop, "1 is 3 too"),
    "rate between counts": (
        lambda: mlp(nn.Dropout(0.1), first=nn.Linear(8, 12), last=nn.Linear(12, 4)),
        "must be within 0.01 of one that 12 units can have",
    ),
    "no rate": (lambda: mlp(_with_rate(nn.Dropout(), 1.5)), "p = 1.5 is no rate in [0, 1]"),
    "alpha": (lambda: mlp(nn.SELU(), nn.AlphaDropout()), "AlphaDropout has no thinned form"),
    "gaussian": (lambda: mlp(sitout.nn.GaussianDropout(0.5)), "has no thinned form"),
    "fused": (lambda: mlp(sitout.nn.ActivationDropout("relu", 0.5)), "has no thinned form"),
    "own dropout": (lambda: mlp(MyDropout()), "MyDropout has no thinned form"),
    "options": (lambda: mlp(sitout.nn.Dropout(0.5, shared_dims=(0,))), "has options of its own"),
    "rate as data": (_data, "the rate of 1 is data"),
    "nothing before": (lambda: nn.Sequential(nn.Dropout(), OUT), "the argument 'input' of"),
    "nothing behind": (lambda: nn.Sequential(IN, nn.Dropout()), "the result of Sequential"),
    "conv groups": (lambda: conv_net(groups=2), "0 has groups=2"),
    "conv padding": (lambda: conv_net(padding_mode="circular"), "padding_mode='circular'"),
    "single elements": (
        lambda: conv_net(drop=nn.Dropout()),
        "Dropout drops no whole channels: make it Dropout2d",
    ),
    "whole positions": (lambda: mlp(nn.Dropout1d()), "Dropout1d drops no whole features"),
    "flatten": (
        lambda: conv_net(nn.Flatten(), drop=nn.Dropout(), last=nn.Linear(WIDE, 2)),
        "1 (Flatten) stands before it",
    ),
    "pooled units": (lambda: mlp(nn.MaxPool1d(1), nn.Dropout()), "pools the units themselves"),
    "frozen norm": (_frozen, "1 is frozen"),
    "averaging norm": (_mean, "momentum=None"),
    "norm behind": (
        lambda: nn.Sequential(*conv_net()[:2], nn.BatchNorm2d(WIDE), nn.Conv2d(WIDE, 4, 1)),
        "2 (BatchNorm2d) reads it",
    ),
    "compiled": (lambda: torch.compile(plain_mlp()), "OptimizedModule is compiled"),
    "scripted": (lambda: torch.jit.script(plain_mlp()), "Sequential is scripted"),
}


def _with_hook(module):
    module.register_forward_hook(lambda *_: None)
    return module


def _with_rate(module, p):
    module.p = p
    return module


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_that_cannot_be_thinned_is_left_with_the_reason(name):
    make, why = LAYERS[name]
    assert why in reason(make())


@pytest.mark.parametrize("options", [{"groups": 2}, {"group_size": 4}])
def test_batch_statistics_are_those_of_one_group(options):
    model = conv_net(nn.BatchNorm2d(WIDE))
    assert "so groups must be 1" in reason(model, **options)
    assert thin(model).sites == ["2"]


def test_a_compiled_part_is_left():
    model = nn.Sequential(plain_mlp(), *plain_mlp()[1:])
    model[0].compile(backend="eager")
    assert "0.2: Sequential is compiled. Thin first, then compile" in reason(model)


def test_lazy_layers_must_have_run():
    model = mlp(nn.Dropout(), first=nn.LazyLinear(WIDE))
    with pytest.raises(ValueError, match=r"must be initialized\. Got .*0\.weight"):
        thin(model)


def test_what_is_left_stands_in_the_change_alike_blocks_in_one_line():
    model = nn.Sequential(*(mlp(nn.Softmax(-1), nn.Dropout()) for _ in range(3)), plain_mlp())
    change = thin(model)
    assert change.sites == ["3.2"]
    assert change.unreached == [
        "0.2 -> 0.3: 0.1 (Softmax) stands before it, and is not elementwise (and 2 alike)"
    ]


def test_a_layer_that_a_method_calls_and_the_forward_too_is_left():
    class Twice(Method):
        def block(self, x):
            return super().block(x)

        def forward(self, x):
            return self.block(x) + self.fc2(self.drop(self.fc1(x))) if len(x) else x

    assert "is called more than once" in reason(Twice())


def test_a_method_may_be_called_twice_each_time_with_units_of_its_own():
    class Twice(Method):
        def forward(self, x):
            return torch.cat([self.block(x), self.block(x)]) if len(x) else x

    model, x = Twice(), torch.randn(4, 8)
    thin(model, form="thinned")
    masked = copy.deepcopy(model)
    masked.drop.form = "masked"
    with MaskClock(model).at(0), MaskClock(masked).at(0):
        one, other = model(x), masked(x)
    torch.testing.assert_close(one, other)
    assert not torch.allclose(one[:4], one[4:])


def test_a_part_whose_layer_the_forward_around_it_calls_is_left():
    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.part = Plain()

        def forward(self, x):
            return self.part(x) + self.part.fc1(x).mean() if x.sum() > 0 else x

    assert "Around reads part.fc1 by itself" in reason(Around())


# Arguments.


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"groups": 0}, ValueError, "`groups` of thin must be 1 or more. Got 0."),
        ({"groups": None}, TypeError, "`groups` of thin must be an int. Got None."),
        ({"group_size": 0}, ValueError, "`group_size` of thin must be 1 or more. Got 0."),
        ({"group_size": 2.0}, TypeError, "`group_size` of thin must be an int. Got 2.0."),
        ({"form": "thin"}, ValueError, "`form` of thin must be one of auto, thinned, masked."),
        ({"where": "x"}, ValueError, "`where` of thin must be that of a dropout layer. Got 'x'."),
        ({"where": 3}, TypeError, "`where` of thin must be a glob"),
    ],
)
def test_a_wrong_argument_changes_nothing(options, error, words):
    model = plain_mlp()
    before = list(model)
    with pytest.raises(error) as caught:
        thin(model, **options)
    assert str(caught.value).startswith(words)
    assert list(model) == before


def test_what_is_no_module_is_refused():
    with pytest.raises(TypeError, match=r"`model` of thin must be a torch\.nn\.Module"):
        thin("model")


def test_a_model_without_dropout_is_an_error():
    with pytest.raises(ValueError, match="No dropout layer between layers was found in it"):
        thin(nn.Sequential(nn.Linear(4, 4)))
    with pytest.raises(ValueError, match="No dropout layer between layers was found in it"):
        thin(nn.Dropout())


def test_it_is_refused_inside_disabled():
    model = plain_mlp()
    with sitout.disabled(model), pytest.raises(RuntimeError, match="outside of disabled"):
        thin(model)


def test_options_reach_the_site():
    model = plain_mlp()
    thin(model, group_size=4, form="masked")
    assert repr(model[2]) == "ThinnedDropout(p=0.5, group_size=4, form='masked')"


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_the_ends_of_the_range_of_rates_work(p):
    model, x = plain_mlp(p), torch.randn(5, 8)
    full = model.eval()(x)
    thin(model.train(), form="thinned")
    out = model(x)
    out.sum().backward()
    wanted = full if p == 0.0 else model[3].bias.expand(5, 4)
    assert torch.allclose(out, wanted)
    assert (model[0].weight.grad.count_nonzero() == 0) == (p == 1.0)


def test_a_rate_may_be_any_where_the_units_are_many():
    model = mlp(nn.Dropout(0.123), first=nn.Linear(8, 50), last=nn.Linear(50, 4))
    assert thin(model).sites == ["1"]


def test_hooks_attributes_and_modes_go_with_the_place():
    model = plain_mlp().eval()
    model[2].note = "mine"
    model[3].note = "ours"
    calls = []
    handle = model[2].register_forward_hook(lambda *_: calls.append(1))
    change = thin(model)
    assert (model[2].note, model[3].note, model[2].training) == ("mine", "ours", False)
    model(torch.ones(2, 8))
    assert calls == [1]
    handle.remove()
    model.train()
    model(torch.ones(2, 8))
    assert calls == [1]
    change.undo()
    assert all(module.training for module in model)


def test_a_change_of_parameters_in_between_survives_undo():
    model = plain_mlp()
    change = thin(model)
    model.double()
    model[0].bias = None
    change.undo()
    assert model[0].weight.dtype == torch.float64
    assert model[0].bias is None


def test_where_says_which_and_a_second_call_takes_the_rest():
    model = mlp(nn.ReLU(), nn.Dropout(), nn.Linear(WIDE, WIDE), nn.Dropout(0.25))
    before = list(model)
    first = thin(model, where="4", form="thinned")
    assert first.sites == ["4"]
    assert [type(one).__name__ for one in model] == [
        *("Linear", "ReLU", "Dropout", "ThinnedLinear", "ThinnedDropout", "ThinnedLinear")
    ]
    with pytest.raises(ValueError, match="3 has other groups at its other side"):
        thin(model, 2)
    second = thin(model, form="thinned")
    assert second.sites == ["2"]
    masked = copy.deepcopy(model)
    masked[2].form = masked[4].form = "masked"
    x = torch.randn(6, 8)
    outs = []
    for one in (model, masked):
        with MaskClock(one, seed=1).at(0):
            outs.append(one(x))
    assert torch.allclose(*outs, atol=1e-6)
    with pytest.raises(RuntimeError, match="Undo that first"):
        first.undo()
    second.undo()
    first.undo()
    assert all(one is other for one, other in zip(before, model, strict=True))


def test_a_thinned_model_has_nothing_left_to_thin():
    model = plain_mlp()
    thin(model)
    with pytest.raises(ValueError, match=r"Its 1 sites are thinned already\.$"):
        thin(model)


def test_an_install_that_fails_is_taken_back(monkeypatch):
    class Block:
        site = "block"

        def install(self, form):
            raise RuntimeError(form)

    monkeypatch.setattr("sitout._surgery._thin.find_blocks", lambda *_: ([Block()], []))
    model = plain_mlp()
    before = list(model)
    with pytest.raises(RuntimeError, match="auto"):
        thin(model)
    assert all(one is other for one, other in zip(before, model, strict=True))


# Following a forward.


class Careless(nn.Module):
    """Changes itself, its weights and the random state while it runs."""

    def __init__(self):
        super().__init__()
        self.net = plain_mlp()
        self.seen, self.last = [], None
        self.register_buffer("steps", torch.zeros(()))
        self.register_buffer("places", torch.randn(1, 9, 8))

    def forward(self, x, mask=None, **options):
        self.steps += 1
        for parameter in self.net.parameters():
            parameter.data.mul_(2.0)
        x = x + self.places[:, : x.shape[1]] + torch.randn(8)
        self.seen.append(x)
        self.last = self.net(x)
        return self.last if mask is None else self.last * mask


@pytest.mark.parametrize("steps", [True, False])
def test_what_a_followed_forward_changes_comes_back(steps):
    model = Careless()
    if not steps:
        del model._buffers["steps"]
        model.steps = 0
    state = copy.deepcopy(model.state_dict())
    random = torch.get_rng_state()
    assert thin(model).sites == ["net.2"]
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert (model.seen, model.last, int(model.steps)) == ([], None, 0)


def test_a_part_that_cannot_be_followed_does_not_hide_the_others():
    class Closed(nn.Module):
        def forward(self, x):
            return x * 2 if x.sum() > 0 else x

    model = nn.Sequential(Closed(), *plain_mlp(), Closed(), *plain_mlp()[2:])
    change = thin(model)
    assert change.sites == ["3"]
    assert change.unreached == ["6 -> 7: 5 (Closed) stands before it, and is not elementwise"]


def test_the_dtype_of_a_value_may_be_asked_for():
    def forward(m, x):
        x = m.fc1(x)
        if x.dtype == torch.float16:
            x = x.clamp(-9.0, 9.0).softmax(-1)
        if x.dtype != m.fc2.weight.dtype:
            x = x.softmax(-1)
        return m.fc2(m.drop(x).to(m.fc2.weight.dtype))

    assert thin(Calls(forward)).sites == ["drop"]


def test_what_guards_a_forward_does_not_keep_it_from_being_followed():
    def forward(m, x):
        assert x.dim() == 2
        assert not x.shape[1] > 8, "8 features"
        if x.shape[0] > 99:
            raise ValueError("too many")
        if not x.is_floating_point():
            raise TypeError(
                "no floats",
            )
        return m.fc2(m.drop(m.fc1(x)))

    assert thin(Calls(forward)).sites == ["drop"]


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m.fc2(m.drop(m.fc1(x))) if x.dim() == 2 else x,
        lambda m, x: m.fc2(m.drop(m.fc1(x) if x.dim() == 2 and x.shape[0] > 1 else x)),
        lambda m, x: m.fc2(m.drop(m.fc1(x[: len(x)]))),
        lambda m, x: m.fc2(m.drop(m.fc1(x * float(x.max())))),
    ],
)
def test_code_that_its_data_decides_is_not_followed(forward):
    assert "Calls.forward cannot be followed" in reason(Calls(forward))


def test_a_wrapper_of_data_parallelism_is_looked_into():
    model = nn.DataParallel(plain_mlp())
    assert thin(model).sites == ["module.2"]
    assert model(torch.ones(2, 8)).shape == (2, 4)


def test_a_model_in_evaluation_on_the_meta_device_is_found_too():
    with torch.device("meta"):
        model = plain_mlp().eval()
    assert thin(model).sites == ["2"]
    assert not model.training


def test_the_samples_of_a_transformer_of_torch_are_in_the_second_dim_by_default():
    for first, dim in ((False, 1), (True, 0)):
        layer = nn.TransformerEncoderLayer(8, 2, WIDE, dropout=0.5, batch_first=first)
        thin(layer)
        assert layer.dropout.batch_dim == dim


# How the rest of sitout meets it.


def test_running_statistics_of_kept_channels_are_those_of_the_full_network():
    model = conv_net(nn.BatchNorm2d(WIDE), nn.ReLU())
    full, x = copy.deepcopy(model), torch.randn(4, 4, 6, 6)
    thin(model, form="thinned")
    clock = MaskClock(model)
    with clock.at(0):
        model(x)
    full(x)
    kept = sitout.functional.keep_units(x, WIDE, 0.5, key=clock.key("3", 0)).units[0]
    rest = torch.ones(WIDE, dtype=torch.bool).index_fill(0, kept, False)
    for name, start in (("running_mean", 0.0), ("running_var", 1.0)):
        mine, theirs = getattr(model[1], name), getattr(full[1], name)
        torch.testing.assert_close(mine[kept], theirs[kept])
        assert torch.equal(mine[rest], torch.full_like(mine[rest], start))
        assert not torch.isclose(theirs[rest], torch.tensor(start)).all()
    assert model[1].num_batches_tracked == 1


def test_a_clock_made_before_goes_on_by_names():
    model = mlp(nn.ReLU(), sitout.nn.Dropout(0.5))
    clock = MaskClock(model, seed=4)
    with clock.at(0):
        model(torch.ones(4, 8))
    thin(model, form="thinned")
    with clock.at(1):
        mine = model(torch.ones(4, 8))
    other = copy.deepcopy(model)
    with MaskClock(other, seed=4).at(1):
        assert torch.equal(mine, other(torch.ones(4, 8)))
    assert clock.sites == {"2": 0}


def test_rates_are_measured_set_scheduled_and_silenced():
    model = mlp(nn.ReLU(), nn.Dropout(), first=nn.Linear(8, 256), last=nn.Linear(256, 4))
    thin(model, form="thinned")
    x = torch.randn(64, 8)
    (site,) = sitout.sites(model, x)
    assert (site.name, site.type, site.p, site.rate_at) == ("2", "ThinnedDropout", 0.5, "2.p")
    assert (site.measured.rate, site.measured.bits, site.shared_dims) == (0.5, 256, (0,))
    assert not sitout.audit(model, x)
    with sitout.set_rate(model, 0.25) as change:
        assert change.sites == ["2.p"]
        assert sitout.sites(model, x)[0].measured.rate == 0.25
    with sitout.disabled(model):
        assert torch.equal(model(x), model.eval()(x))
        model.train()
    assert model[2].p == 0.5
    assert not torch.equal(model(x), model.eval()(x))
    schedule = sitout.schedules.linear(0.5, 0.0)
    scheduler = sitout.schedules.RateScheduler(model, schedule, total=2)
    scheduler.step()
    assert (model[2].p, model[2].rate_data) == (0.25, None)
    scheduler.undo()
    assert model[2].p == 0.5


def test_replace_leaves_the_sites_and_takes_the_rest():
    model = nn.Sequential(*plain_mlp(), nn.Dropout(0.5))
    thin(model)
    site = model[2]
    change = sitout.replace(model)
    assert change.sites == ["4"]
    assert model[2] is site
    change.undo()
    assert isinstance(model[2], ThinnedDropout)


def test_what_replace_put_in_is_thinned():
    model = plain_mlp()
    sitout.replace(model)
    assert thin(model).sites == ["2"]
    assert isinstance(model[0], ThinnedLinear)


def test_checkpoints_go_both_ways():
    model, other = plain_mlp(), plain_mlp()
    thin(model)
    other.load_state_dict(model.state_dict())
    assert torch.equal(model[3].weight, other[3].weight)
    model.load_state_dict(plain_mlp().state_dict())


@pytest.mark.parametrize("name", ["mlp", "encoder layer", "hf T5DenseGatedActDense"])
def test_compiled_code_is_one_graph_for_all_steps(name):
    if name not in CHAINS:
        pytest.skip("not installed")
    model, x, _ = build(name)
    thin(model, form="thinned")
    clock = MaskClock(model, seed=5)
    eager = copy.deepcopy(model)
    other = MaskClock(eager, seed=5)
    with torch._dynamo.config.patch(error_on_recompile=True):
        torch._dynamo.reset()
        made = torch.compile(model, backend="aot_eager", fullgraph=True)
        for step in range(1, 4):
            with clock.at(step):
                out = made(x)
            out.sum().backward()
            with other.at(step):
                wanted = eager(x)
            wanted.sum().backward()
            torch.testing.assert_close(out, wanted)
    for mine, theirs in zip(model.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)
