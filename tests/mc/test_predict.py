"""mc.predict: the samples of a plain loop, at their addresses, whatever runs once or together."""

from __future__ import annotations

import copy
import math
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import sitout
from sitout.mc import _predict
from sitout.mc._tape import UntraceableError


class Functional(nn.Module):
    """Dropout by a function call, behind a BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 32), nn.BatchNorm1d(32), nn.Linear(32, 3)

    def forward(self, x):
        return self.last(F.dropout(F.relu(self.norm(self.first(x))), 0.3, self.training))


class Attention(nn.Module):
    """Attention whose dropout is an argument of the fused function."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(16, 48)

    def forward(self, x):
        parts = self.inner(x).chunk(3, -1)
        q, k, v = (part.view(*x.shape[:2], 2, 8).transpose(1, 2) for part in parts)
        p = 0.2 if self.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, dropout_p=p).mean((1, 2))


class Recurrent(nn.Module):
    """The last output of an LSTM or GRU of two layers."""

    def __init__(self, kind: type[nn.Module], batch_first: bool) -> None:
        super().__init__()
        self.inner = kind(16, 8, 2, dropout=0.4, batch_first=batch_first)
        self.last = nn.Linear(8, 2)

    def forward(self, x):
        y = self.inner(x)[0]
        return self.last(y[:, -1] if self.inner.batch_first else y[-1])


class DropConnect(nn.Module):
    """Dropout of weights: one mask for all rows."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 3)

    def forward(self, x):
        return F.linear(x, F.dropout(self.inner.weight, 0.5, self.training), self.inner.bias)


class LayerDrop(nn.Module):
    """A random number decides which code runs."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleList(nn.Linear(6, 6) for _ in range(8))

    def forward(self, x):
        for layer in self.inner:
            if not (self.training and torch.rand([]) < 0.4):
                x = x + F.relu(layer(x))
        return x


class Flattened(nn.Module):
    """Rows and places in one dim."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.drop = nn.Linear(6, 6), nn.Dropout(0.3)

    def forward(self, x):
        return self.drop(self.inner(x.reshape(-1, 6))).view_as(x)


class Meeting(nn.Module):
    """Rows that meet behind the dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.drop = nn.Linear(6, 6), nn.Dropout(0.3)

    def forward(self, x):
        y = self.drop(self.inner(x))
        return y - y.mean(0)


class Written(nn.Module):
    """A part of a tensor that was made before the dropout is written to behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.drop = nn.Linear(6, 64), nn.Dropout(0.5)

    def forward(self, x):
        y = self.inner(x)
        half = y[:, :48]
        half.mul_(self.drop(torch.ones_like(half)))
        return y.add_(1.0)


class Asking(nn.Module):
    """A branch on the values of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.drop = nn.Linear(6, 6), nn.Dropout(0.3)

    def forward(self, x):
        y = self.inner(x)
        return self.drop(y if bool((x > 0).any()) else -y)


def layers(*inner: nn.Module) -> nn.Module:
    return nn.Sequential(*inner)


def encoder(batch_first: bool) -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=batch_first)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


rows, places = (5, 6), (5, 7, 16)
MODELS = {
    "mlp": (lambda: layers(nn.Linear(6, 20), nn.Dropout(0.2), nn.ReLU(), nn.Linear(20, 2)), rows),
    "functional": (Functional, rows),
    "encoder": (lambda: encoder(True), places),
    "encoder, sequence first": (lambda: encoder(False), (7, 5, 16)),
    "attention": (Attention, places),
    "lstm": (lambda: Recurrent(nn.LSTM, True), places),
    "lstm, sequence first": (lambda: Recurrent(nn.LSTM, False), (7, 5, 16)),
    "gru": (lambda: Recurrent(nn.GRU, True), places),
    "dropout2d": (
        lambda: layers(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Dropout2d(0.3), nn.Conv2d(8, 4, 3)),
        (5, 3, 9, 9),
    ),
    "alpha": (lambda: layers(nn.Linear(6, 20), nn.AlphaDropout(0.2), nn.Linear(20, 2)), rows),
    "ours": (
        lambda: layers(
            *(nn.Linear(6, 20), sitout.nn.Dropout(0.2), sitout.nn.GaussianDropout(0.2)),
            *(sitout.nn.Dropout(0.2, shared_dims=(0,)), nn.Linear(20, 2)),
        ),
        rows,
    ),
    "drop path": (
        lambda: layers(nn.Linear(6, 64), sitout.nn.DropPath(0.5), nn.Linear(64, 2)),
        rows,
    ),
    "dropconnect": (DropConnect, rows),
    "layerdrop": (LayerDrop, rows),
    "flattened": (Flattened, (5, 4, 6)),
    "meeting": (Meeting, rows),
    "written": (Written, rows),
    "asking": (Asking, rows),
    "thinned": (lambda: sitout.nn.ThinnedMLP(6, [100, 100], 2, 0.5), rows),
    "one row": (lambda: layers(nn.Linear(6, 20), nn.Dropout(0.2), nn.Linear(20, 2)), (1, 6)),
}
every = pytest.mark.parametrize("name", MODELS)


def made(name):
    torch.manual_seed(0)
    make, shape = MODELS[name]
    model, x = make().eval(), torch.randn(shape)
    return model, x, {"batch_dim": 1 if "sequence first" in name else 0}


def samples_of(model, x, **options):
    found = sitout.mc.predict(model, x, return_samples=True, **{"samples": 6, **options})
    return found.samples


@pytest.fixture
def without_plan(monkeypatch):
    """Return the samples of a model that runs as a whole for each."""

    def run(*args, **options):
        def no(*_):
            raise UntraceableError("a test says so")

        with monkeypatch.context() as patch:
            patch.setattr(_predict, "make", no)
            _predict._plans.clear()
            out = samples_of(*args, **options)
        _predict._plans.clear()
        return out

    return run


SERVED = [(name, masks) for name in MODELS for masks in _predict.MASKS[:2]]
SERVED.remove(("layerdrop", "shared"))  # its choices have no rows


@pytest.mark.parametrize(("name", "masks"), SERVED)
def test_a_plan_gives_the_samples_of_the_whole_model(name, masks, without_plan):
    model, x, options = made(name)
    options["masks"] = masks
    ours, theirs = samples_of(model, x, **options), without_plan(model, x, **options)
    assert torch.allclose(ours, theirs, atol=1e-4)
    assert ours.std(0).max() > 0.0


@every
def test_samples_do_not_hang_on_how_many_run_together(name):
    model, x, options = made(name)
    whole = samples_of(model, x, **options)
    apart = samples_of(model, x, memory=1, **options)
    assert torch.allclose(whole, apart, atol=1e-4)
    more = samples_of(model, x, samples=9, **options)
    assert torch.allclose(whole, more[:6], atol=1e-4)


@every
def test_the_model_is_as_before(name):
    model, x, options = made(name)
    for module in model.modules():
        module.training = bool(torch.rand([]) < 0.5)
    model.train()
    modes = [module.training for module in model.modules()]
    state, attributes = copy.deepcopy(model.state_dict()), repr(model)
    generator, fast = torch.get_rng_state(), torch.backends.mha.get_fastpath_enabled()
    samples_of(model, x, **options)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert repr(model) == attributes
    assert torch.equal(generator, torch.get_rng_state())
    assert torch.backends.mha.get_fastpath_enabled() == fast


ROWWISE = [name for name in MODELS if name not in ("layerdrop", "meeting", "asking", "thinned")]


@pytest.mark.parametrize("name", ROWWISE)
def test_shared_masks_are_one_function_for_all_rows(name):
    model, x, options = made(name)
    dim = options["batch_dim"]
    same = x.narrow(dim, 0, 1).repeat_interleave(4, dim)
    found = samples_of(model, same, masks="shared", **options)
    out = 1 if found.shape[1] == 4 else 2
    assert torch.allclose(found, found.narrow(out, 0, 1).expand_as(found), atol=1e-4)
    assert found.std(0).max() > 0.0
    few = samples_of(model, x.narrow(dim, 0, 1), masks="shared", **options)
    assert torch.allclose(few, found.narrow(out, 0, 1), atol=1e-4)


ROWS_FIRST = [name for name in ROWWISE if "first" not in name and name != "one row"]


@pytest.mark.parametrize("name", ROWS_FIRST)
@pytest.mark.parametrize("masks", _predict.MASKS[:2])
def test_batches_of_any_size_give_the_same_rows(name, masks):
    model, x, _ = made(name)
    whole = samples_of(model, x, masks=masks)
    for size in (1, 2, 3):
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), batch_size=size)
        assert torch.allclose(samples_of(model, loader, masks=masks), whole, atol=1e-4)


def test_a_second_seed_gives_other_samples():
    model, x, _ = made("mlp")
    assert torch.equal(samples_of(model, x), samples_of(model, x))
    assert not torch.equal(samples_of(model, x), samples_of(model, x, seed=1))


def test_a_mask_is_that_of_its_address():
    x = torch.ones(3, 8)
    found = samples_of(nn.Dropout(0.5), x, samples=4, seed=17)
    for t in range(4):
        key = sitout.MaskKey(seed=17, site=0, step=t)
        assert torch.equal(found[t] != 0, sitout.masks.keep_mask(key, 0.5, (3, 8)))


def test_locked_masks_have_one_bit_along_their_dims():
    found = samples_of(nn.Dropout(0.5), torch.ones(3, 5, 8), masks="locked", locked_dims=(1,))
    assert torch.equal(found, found[:, :, :1].expand_as(found))
    assert not torch.equal(found[:, :1], found[:, 1:2])


@pytest.mark.parametrize("name", ["mlp", "encoder", "convolutions"])
def test_the_mean_of_many_samples_is_that_of_torch(name):
    """The address changes the bits and no law: a plain loop of torch's own has the same moments."""
    torch.manual_seed(1)
    if name == "convolutions":
        model = layers(
            nn.Conv2d(3, 8, 3),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.5),
            nn.Linear(8 * 49, 3),
        ).eval()
        x = torch.randn(4, 3, 9, 9)
    else:
        model, x, _ = made(name)
    count = 400
    found = sitout.mc.predict(model, x, samples=count)
    model.train()
    for module in model.modules():
        module.training &= not isinstance(module, nn.BatchNorm2d)
    with torch.no_grad():
        plain = torch.stack([model(x) for _ in range(count)])
    error = (found.std**2 + plain.var(0)).div(count).sqrt()
    far = (found.mean - plain.mean(0)).abs() / error.clamp_min(1e-9)
    assert far.max() < 5.5  # in standard errors, for at most 20 outputs: 1e-6
    # A variance of n samples is off by sqrt((kurtosis - 1) / n): twice that of a normal one.
    assert (found.std / plain.std(0)).log().abs().max() < 5.0 * math.sqrt(2.0 / count)


# What is not served is refused, and says why


def test_a_model_without_dropout_is_refused():
    with pytest.raises(ValueError, match=r"one in which something drops\. Got 'no site'"):
        sitout.mc.predict(nn.Linear(2, 2), torch.ones(3, 2))


def test_a_rate_of_0_is_refused_and_the_site_named():
    with pytest.raises(ValueError, match=r"drops with p > 0. Got '1 \(p = 0"):
        sitout.mc.predict(layers(nn.Linear(2, 2), nn.Dropout(0.0)), torch.ones(3, 2))


def test_samples_that_are_all_equal_are_an_error():
    class Rounded(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x):
            return self.drop(x).clamp(5.0, 6.0)

    with pytest.raises(RuntimeError, match=r"All 6 samples of .* are equal, though 1 sites"):
        samples_of(Rounded(), torch.ones(4, 64))


def test_samples_that_may_be_equal_by_chance_are_a_warning():
    with pytest.warns(UserWarning, match="may be chance"):
        sitout.mc.predict(sitout.nn.DropPath(0.01), torch.ones(1, 8), samples=3)


def test_a_dropout_that_does_not_reach_the_output_is_an_error():
    class Aside(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x):
            self.drop(x)
            return x + 1.0

    with pytest.raises(RuntimeError, match="No dropout of the model reaches its output"):
        samples_of(Aside(), torch.ones(4, 64))


class Interrupted(nn.Module):
    """Fails at one of its calls."""

    def __init__(self, at):
        super().__init__()
        self.drop, self.norm, self.calls, self.at = nn.Dropout(0.5), nn.BatchNorm1d(6), 0, at

    def forward(self, x):
        out = self.drop(self.norm(x))
        if torch.rand([]) > 2.0 or not torch.is_grad_enabled():
            self.calls += 1
            if self.calls == self.at:
                raise KeyboardInterrupt
        return out


@pytest.mark.parametrize("at", [1, 2, 3, 4, 6])
def test_an_interrupted_prediction_leaves_the_model_as_it_was(at):
    model = Interrupted(at).train()
    before = copy.deepcopy(model.state_dict())
    fast = torch.backends.mha.get_fastpath_enabled()
    with pytest.raises(KeyboardInterrupt):
        samples_of(model, torch.randn(4, 6))
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert torch.backends.mha.get_fastpath_enabled() == fast
    assert not torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"samples": 1}, "`samples` of mc.predict must be 2 or more"),
        ({"seed": -1}, r"`seed` of mc.predict must be in \[0, 2\*\*32\)"),
        ({"outputs": "classes"}, "`outputs` of mc.predict must be"),
        ({"masks": "same"}, "`masks` of mc.predict must be"),
        ({"masks": "locked"}, "`locked_dims` of mc.predict must be given with masks='locked'"),
        ({"locked_dims": (1,)}, "`locked_dims` of mc.predict must be given with masks='locked'"),
        ({"statistics": ("entropy",)}, "`statistics` of mc.predict must be"),
        ({"quantiles": (1.0,)}, r"`quantiles` of mc.predict must be in \(0, 1\)"),
        ({"stop": "0.1"}, "`stop` of mc.predict must be 'ci:'"),
        ({"stop": "ci:-1"}, "`stop` of mc.predict must be 'ci:'"),
        ({"memory": "much"}, "`memory` of mc.predict must be"),
        ({"memory": 0}, "`memory` of mc.predict must be"),
        ({"where": "nobody"}, "`where` of mc.predict must be"),
        ({"outputs": "logits", "class_dim": 7}, "`class_dim` of mc.predict must be"),
        ({"batch_dim": 3}, "`inputs` of mc.predict must be"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(options, told):
    model, x, _ = made("mlp")
    with pytest.raises((TypeError, ValueError), match=told) as error:
        sitout.mc.predict(model, x, **{"samples": 3, **options})
    assert "\n" not in str(error.value)


def test_an_output_that_is_no_tensor_is_refused_and_the_way_out_named():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x):
            return self.drop(x), x

    with pytest.raises(TypeError, match="Pass select="):
        sitout.mc.predict(Pair(), torch.ones(3, 8))
    found = sitout.mc.predict(Pair(), torch.ones(3, 8), select=lambda out: out[0])
    assert found.mean.shape == (3, 8)


# Plans


def test_a_plan_is_kept_until_the_model_changes():
    model, x, _ = made("functional")
    runs = []
    handle = model.first.register_forward_hook(lambda *_: runs.append(1))
    samples_of(model, x)
    once = len(runs)
    samples_of(model, x)
    assert len(runs) == once  # nothing but the program ran
    with torch.no_grad():
        model.last.bias.add_(1.0)
    before = samples_of(model, x)
    assert len(runs) > once
    many = len(runs)
    model.last = nn.Linear(32, 3)
    assert not torch.allclose(samples_of(model, x), before)
    assert len(runs) > many
    handle.remove()


def test_another_hook_makes_another_plan():
    model, x, _ = made("functional")
    handle = model.first.register_forward_hook(lambda module, args, out: out * 0.5)
    before = samples_of(model, x)
    handle.remove()
    model.first.register_forward_hook(lambda module, args, out: out * 2.0)
    assert not torch.allclose(samples_of(model, x), before)


def test_a_batch_that_takes_another_branch_is_not_served_by_the_plan(without_plan):
    model, x, _ = made("asking")
    samples_of(model, x)
    other = -x.abs()
    assert torch.allclose(samples_of(model, other), without_plan(model, other), atol=1e-5)


def test_what_comes_before_the_first_dropout_runs_once():
    model, x, _ = made("functional")
    told = sitout.mc.predict(model, x).explain()
    assert "5 of 7 operations ran once" in told


class Deciding(nn.Module):
    """A part that is the same for all samples, then a random choice of the code."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 6), nn.ReLU(inplace=True))
        self.head = nn.Linear(6, 2)
        self.runs = []

    def forward(self, x):
        y = self.body(self.body(x))
        y += 1.0
        if self.training and torch.rand([]) < 0.5:
            return self.head(y) * 2.0
        return self.head(y)


def test_without_a_plan_modules_before_the_first_draw_run_once():
    torch.manual_seed(0)
    model = Deciding()
    runs = []
    model.body[0].register_forward_hook(lambda *_: runs.append(1))
    x = torch.randn(3, 6)
    found = samples_of(model, x, samples=40)
    probed = len(runs)
    again = samples_of(model, x, samples=40)
    assert len(runs) - probed == 2  # both calls, of the first sample
    assert torch.equal(found, again)
    assert "forward" not in vars(model.body)
    with torch.no_grad():
        whole = model.eval()(x)
    for sample in found:
        assert torch.allclose(sample, whole, atol=1e-6) or torch.allclose(
            sample, 2 * whole, atol=1e-6
        )
    assert 5 < sum(torch.allclose(sample, whole, atol=1e-6) for sample in found) < 35


def test_where_chooses_the_sites():
    torch.manual_seed(0)
    model = layers(nn.Dropout(0.5), nn.Linear(8, 64), nn.Dropout(0.5))
    found = samples_of(model, torch.randn(3, 8), where="2")
    with torch.no_grad():
        scaled = 2.0 * model[1](torch.randn(1, 8))
    assert scaled.shape == (1, 64)
    kept = found != 0
    assert torch.allclose(
        found[kept],
        found.amax(0).where(found.amax(0) > 0, found.amin(0)).expand_as(found)[kept],
        atol=1e-5,
    )


def test_explain_tells_the_share_that_runs_once_and_what_it_gains():
    layers_ = [nn.Linear(64, 64, bias=False) for _ in range(4)]
    model = nn.Sequential(*layers_, nn.Dropout(0.5), nn.Linear(64, 64, bias=False))
    told = sitout.mc.predict(model, torch.randn(4, 64), samples=50).explain()
    share, gain = (float(one) for one in re.search(r"(\d+)% .* ([\d.]+) times as", told).groups())
    assert 70 <= share <= 80  # 4 of 5 equal products, and the mask
    assert gain == pytest.approx(1 / (1 - share / 100 + share / 5000), rel=0.03)


def test_a_plan_is_worth_its_formula_or_nothing(monkeypatch):
    """A formula of torch that does not know some arguments must not end a prediction."""

    def failing(*_: object, **__: object) -> int:
        raise AssertionError

    from torch.utils.flop_counter import flop_registry

    for name in list(flop_registry):
        monkeypatch.setitem(flop_registry, name, failing)
    model, x, _ = made("functional")
    assert "ran once" in sitout.mc.predict(model, x).explain()
