"""Whatever a forward does, the probe leaves no trace; and it refuses what it cannot do."""

from __future__ import annotations

import collections
import gc
import random
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

import sitout
from sites.small import Made, positive

P = 0.5


def bits(tensor):
    """Return shape, dtype and bytes of a tensor; NaN equals NaN."""
    return tensor.shape, tensor.dtype, tensor.detach().clone().numpy().tobytes()


def tables(model):
    """Return everything a model holds: objects by identity, tensors bit for bit."""
    seen = {}
    for name, module in model.named_modules():
        held = vars(module)
        seen[name] = {key: id(value) for key, value in held.items()}
        for table in ("_parameters", "_buffers", "_modules", "_forward_hooks"):
            seen[name, table] = [(key, id(value)) for key, value in held[table].items()]
        for key, tensor in [*held["_parameters"].items(), *held["_buffers"].items()]:
            if tensor is not None:
                seen[name, key] = bits(tensor), tensor.data_ptr(), tensor.requires_grad
        for key, parameter in held["_parameters"].items():
            if parameter is not None and parameter.grad is not None:
                seen[name, key, "grad"] = id(parameter.grad), bits(parameter.grad)
    return seen


def generators():
    return (
        torch.get_rng_state().numpy().tobytes(),
        random.getstate(),
        np.random.get_state()[1].tobytes(),
        np.random.get_state()[2],
    )


def global_hooks():
    hooks = nn.modules.module
    return [
        {**getattr(hooks, name)}
        for name in sorted(vars(hooks))
        if name.startswith("_global_") and isinstance(getattr(hooks, name), dict)
    ]


def surroundings():
    return (
        _get_current_function_mode_stack(),
        _get_current_dispatch_mode_stack(),
        global_hooks(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch._C._is_torch_function_enabled(),
    )


def everything(model):
    return tables(model), generators(), surroundings()


def only(model, *inputs):
    (site,) = sitout.sites(model, *inputs)
    return site


class Everything(nn.Module):
    """Does in its forward what forwards do, and more."""

    def __init__(self, fail=None):
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.norm = nn.BatchNorm1d(6)
        self.drop = nn.Dropout(P)
        self.own = sitout.nn.Dropout(P, generator=torch.Generator().manual_seed(4))
        self.frozen = nn.BatchNorm1d(6)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("moved", torch.zeros(6))
        self.weight = nn.Parameter(torch.ones(6))
        self.rebound = nn.Parameter(torch.ones(6))
        self.pointed = nn.Parameter(torch.ones(6))
        self.cache = torch.ones(6)
        self.caches = {"inner": [torch.ones(6)]}
        self.array = np.zeros(3)
        self.count = 0
        self.history = ["made"]
        self.state = {"calls": 0, "log": []}
        self.recent = collections.deque([1, 2], maxlen=4)
        self.names = {"made"}
        self.gone = "here"
        self.rng = torch.Generator().manual_seed(1)
        self.numbers = np.random.default_rng(2)
        self.dice = random.Random(3)
        self.fail = fail

    def forward(self, x):
        x = self.own(self.drop(self.frozen(self.norm(self.linear(x)))))
        self.weight.data.mul_(2.0)
        with torch.no_grad():
            self.weight.add_(1.0)
            self.linear.weight.mul_(0.5)
            if self.linear.bias.grad is not None:
                self.linear.bias.grad.zero_()
        if x.requires_grad:
            x.sum().backward(retain_graph=True)
            self.frozen.weight.grad = torch.ones(6)
        self.pointed.data = torch.full((6,), 7.0)
        self.rebound = nn.Parameter(torch.zeros(6))
        self.steps += 1
        self.moved = self.moved + 1.0
        self.cache.add_(1.0)
        self.caches["inner"][0].mul_(3.0)
        self.caches["inner"].append(x)
        self.array += 1.0
        self.count += 1
        self.history.append("ran")
        self.state["calls"] += 1
        self.state["log"].append(x)
        self.recent.appendleft(0)
        self.names.add("ran")
        self.fresh = x
        self.__dict__.pop("gone", None)
        self.linear.register_forward_hook(lambda *ignored: None)
        self.drop.p = 0.25
        torch.rand(1, generator=self.rng)
        self.numbers.random()
        self.dice.random()
        random.random()
        np.random.rand()
        if not self.training:
            self.eval_only = True
        if self.fail is not None and self.fail[0] == self.training:
            raise self.fail[1]
        return x * self.weight + self.rebound + self.pointed


CHANGED = [
    *("array", "cache", "caches", "count", "drop.p", "eval_only", "fresh", "gone", "history"),
    *("names", "recent", "state"),
]


def make(fail=None):
    model = Everything(fail)
    model.norm.eval()
    model.linear.train(False)
    model.frozen.eval()
    model(positive((4, 6))).sum().backward() if fail is None else None
    model.drop.p, model.gone, model.names = P, "here", {"made"}
    model.linear.weight.grad = torch.full((6, 6), float("nan"))
    model.linear.bias.grad = torch.randn(6)
    model.norm.weight.grad = None
    return model


def held(model):
    """Return what the attributes of a model hold, by value."""
    values = (model.count, [*model.history], model.state["calls"], len(model.state["log"]))
    tensors = bits(model.cache), bits(model.caches["inner"][0]), len(model.caches["inner"])
    others = [*model.recent], {*model.names}, model.array.tolist(), model.drop.p
    rngs = (
        model.rng.get_state().numpy().tobytes(),
        model.numbers.bit_generator.state["state"],
        model.dice.getstate(),
        model.own.generator.get_state().numpy().tobytes(),
    )
    return values, tensors, others, rngs


def test_every_trace_of_a_forward_is_undone():
    model, x = make(), positive((4, 6))
    before, values = everything(model), held(model)
    found = sitout.sites(model, x)
    assert everything(model) == before
    assert held(model) == values
    assert sorted(found.changed) == sorted(CHANGED)
    assert [site.name for site in found] == ["drop", "own", "", ""]


def test_the_forward_of_these_tests_does_change_everything():
    """Without this the law above could hold of a forward that changes nothing."""
    model, x = make(), positive((4, 6))
    before, values = tables(model), held(model)
    model.train()
    model(x)
    after = tables(model)
    for key in [("", "weight"), ("", "pointed"), ("", "steps"), ("", "moved"), ("norm", "weight")]:
        assert (after[key] != before[key]) == (key != ("norm", "weight"))
    assert after["norm", "running_mean"] != before["norm", "running_mean"]
    assert after["linear", "_forward_hooks"] != before["linear", "_forward_hooks"]
    assert after["linear", "bias", "grad"] != before["linear", "bias", "grad"]
    assert all(one != other for one, other in zip(held(model), values, strict=True))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt(), SystemExit(2)])
def test_every_trace_is_undone_after_an_exception_too(training, error):
    model, x = make((training, error)), positive((4, 6))
    before, values = everything(model), held(model)
    with pytest.raises(type(error)) as raised:
        sitout.sites(model, x)
    assert raised.value is error
    assert everything(model) == before
    assert held(model) == values


def test_an_exception_inside_of_a_fast_module_leaves_function_modes_on():
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, batch_first=True), 1)

    def interrupt(module, args):
        if not module.training:
            raise KeyboardInterrupt

    model.layers[0].norm1.register_forward_pre_hook(interrupt)
    x = torch.randn(2, 3, 8)
    before = everything(model)
    with pytest.raises(KeyboardInterrupt):
        sitout.sites(model, x)
    assert everything(model) == before


def test_attributes_that_a_forward_replaces_by_equal_ones_count_as_unchanged():
    def forward(self, x):
        self.size, self.names = tuple(x.shape), ["a", 1.0]
        return x

    model = Made(forward)
    model.size, model.names = (2, 3), ["a", 1.0]
    names = model.names
    assert sitout.sites(model, torch.randn(2, 3)).changed == []
    assert model.names is names


def test_the_changed_attributes_have_their_paths():
    class Inner(nn.Module):
        def forward(self, x):
            self.seen = x
            return x

    found = sitout.sites(nn.Sequential(nn.Linear(3, 3), nn.Sequential(Inner())), torch.ones(2, 3))
    assert found.changed == ["1.0.seen"]
    assert str(found).splitlines()[-1] == "No site: nothing in this model drops anything."
    with_site = sitout.sites(nn.Sequential(Inner(), nn.Dropout(0.5)), torch.ones(2, 3))
    assert str(with_site).splitlines()[-1] == "The forward changes 0.seen."


def test_hooks_of_the_user_run_and_stay():
    model, calls = nn.Sequential(nn.Linear(3, 3), nn.Dropout(P)), []
    model[0].register_forward_hook(lambda module, args, out: calls.append("after"))
    model[1].register_forward_pre_hook(lambda module, args: calls.append("before"))
    model.register_full_backward_hook(lambda *ignored: calls.append("backward"))
    everywhere = nn.modules.module.register_module_forward_hook(lambda *ignored: None)
    x = positive((4, 3))
    before = everything(model)
    only(model, x)
    assert everything(model) == before
    assert calls == ["after", "before"] * 2
    everywhere.remove()


def test_a_graph_made_before_can_still_go_backward():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(P), nn.Linear(4, 1))

    def rewrite(module, args):
        with torch.no_grad():
            module.weight.mul_(2.0)

    x = positive((8, 4))
    torch.manual_seed(1)
    model(x).sum().backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    model[1].reset_running_stats()
    torch.manual_seed(1)
    loss = model(x).sum()
    model[0].register_forward_pre_hook(rewrite)
    sitout.sites(model, x)
    loss.backward()
    again = [parameter.grad for parameter in model.parameters()]
    assert all(map(torch.equal, again, gradients))


def test_what_follows_is_as_if_the_probe_had_not_been():
    def run(probe):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(P))
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        x = torch.randn(8, 4)
        for step in range(4):
            if probe and step == 2:
                sitout.sites(model, x)
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
        return [bits(tensor) for tensor in model.state_dict().values()], generators()

    assert run(True) == run(False)


# Inputs


def test_inputs_stay_what_they_are():
    def forward(self, batch, scale, noise, extra):
        batch["x"][0].mul_(0.0)
        batch["more"] = 1
        scale.add_(1.0)
        torch.rand(1, generator=noise)
        extra.x.zero_()
        return F.dropout(batch["x"][0] * self.scale, P)

    class Extra:
        def __init__(self):
            self.x = torch.ones(3)

    class Model(Made):
        def forward(self, *args, **kwargs):
            return forward(self, *args, **kwargs)

    x, scale, noise, extra = positive((4, 30)), torch.ones(2), torch.Generator(), Extra()
    x.requires_grad_()
    x.grad = torch.ones(4, 30)
    batch, state = {"x": [x * 1]}, noise.get_state()
    values = batch["x"][0].clone()
    found = sitout.sites(Model(forward), batch, scale, noise=noise, extra=extra)
    assert found[0].shape == (4, 30)
    assert torch.equal(batch["x"][0], values)
    assert list(batch) == ["x"]
    assert torch.equal(scale, torch.ones(2))
    assert torch.equal(noise.get_state(), state)
    assert torch.equal(extra.x, torch.ones(3))
    assert torch.equal(x.grad, torch.ones(4, 30))


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_it_works_where_gradients_are_off(around):
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(P))
    with around():
        x = torch.randn(8, 4)
        before = everything(model)
        site = only(model, x)
        assert everything(model) == before
    assert site.active_in_train


def test_a_batch_of_one_through_batch_norm_says_so():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(P))
    x = torch.randn(1, 4)
    before = everything(model)
    message = (
        r"^The batch must be of two samples or more, for a BatchNorm trains on it\. "
        r"Got \[\(1, 4\)\]\.$"
    )
    with pytest.raises(ValueError, match=message):
        sitout.sites(model, x)
    assert everything(model) == before


def test_another_value_error_is_the_models_own():
    def forward(self, x):
        raise ValueError("other")

    with pytest.raises(ValueError, match=r"^other$"):
        sitout.sites(Made(forward), torch.ones(2, 3))


@pytest.mark.parametrize("model", [None, "net", torch.ones(2), nn.Linear, F.relu])
def test_what_is_no_module_is_refused(model):
    with pytest.raises(TypeError, match=r"^`model` of sites must be a torch.nn.Module\. Got "):
        sitout.sites(model, torch.ones(2))


# Memory


def test_no_tensor_and_no_model_is_kept_alive():
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Dropout(P), nn.Linear(4, 4)), torch.randn(8, 4)
    made = []
    model[0].register_forward_hook(lambda module, args, out: made.append(weakref.ref(out)))
    found = sitout.sites(model, x)
    gone = weakref.ref(model[2].weight)
    gc.disable()
    try:
        assert len(made) == 2
        assert [one() for one in made] == [None, None]
        del model
        gc.collect()
        assert gone() is None
    finally:
        gc.enable()
    assert found


def test_an_exception_keeps_no_tensor_alive_either():
    alive = []

    def forward(self, x):
        alive.append(weakref.ref(hidden := x * 2))
        raise RuntimeError(str(hidden.shape))

    with pytest.raises(RuntimeError):
        sitout.sites(Made(forward), torch.ones(2, 3))
    gc.collect()
    assert [one() for one in alive] == [None]


# Models of an unusual kind


def test_tied_weights_stay_tied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(7, 5)
            self.head = nn.Linear(5, 7, bias=False)
            self.head.weight = self.embed.weight
            self.drop = nn.Dropout(P)

        def forward(self, ids):
            self.embed.weight.data.mul_(2.0)
            return self.head(self.drop(self.embed(ids)))

    model, ids = Tied(), torch.randint(0, 7, (4, 30))
    before = everything(model)
    only(model, ids)
    assert everything(model) == before
    assert model.head.weight is model.embed.weight


def test_a_train_method_of_the_user_is_obeyed():
    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop, self.norm = nn.Dropout(P), nn.BatchNorm1d(4)

        def train(self, mode=True):
            super().train(mode)
            self.drop.eval()
            return self

        def forward(self, x):
            return self.drop(self.norm(x))

    model, x = Frozen(), torch.randn(40, 4)
    model.norm.eval()
    before = everything(model)
    site = only(model, x)
    assert everything(model) == before
    assert (site.active_in_train, site.active_in_eval, site.calls) == (False, False, 1)


def test_meta_tensors_are_no_obstacle():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(P))
        site = only(model, torch.empty(8, 4))
    assert (site.name, site.p, site.shape, site.measured) == ("2", P, (8, 4), None)
    assert (site.active_in_train, site.active_in_eval) == (True, False)


def test_lazy_layers_are_refused_and_stay_lazy():
    model = nn.Sequential(nn.LazyLinear(4), nn.Dropout(P))
    with pytest.raises(ValueError, match=r"^`model` of sites must be initialized\. Got \['0"):
        sitout.sites(model, torch.randn(8, 4))
    assert isinstance(model[0], nn.LazyLinear)
    assert isinstance(model[0].weight, nn.UninitializedParameter)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_are_no_obstacle(dtype):
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(P), sitout.nn.Dropout(P)).to(dtype)
    before = [bits(tensor.float()) for tensor in model.state_dict().values()]
    found = sitout.sites(model, torch.randn(64, 4, dtype=dtype))
    assert [site.measured.bits for site in found] == [256, 256]
    assert [bits(tensor.float()) for tensor in model.state_dict().values()] == before
