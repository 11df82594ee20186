"""disabled: nothing drops within the block, and all is as before after it."""

from __future__ import annotations

import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import sitout
from sitout._rates import rates
from surgery.networks import MAKERS, Agent, Calls, make, same, same_tree, tree


@pytest.mark.parametrize("name", MAKERS)
def test_training_is_evaluation_and_everything_comes_back(name):
    model, call = make(name)
    model.train()
    state = torch.get_rng_state()
    call()
    torch.set_rng_state(state)
    before = tree(model)
    olds = [rate.p for rate in rates(model)]
    with sitout.disabled(model) as inside:
        assert inside is model
        model.train()
        one, other = call(), call()
    assert same(one, other)
    assert torch.equal(torch.get_rng_state(), state) or "Wav2Vec2" in name
    assert [rate.p for rate in rates(model)] == olds
    if not any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        assert same_tree(tree(model), before)
        model.eval()
        for a, b in zip(one, call(), strict=True):
            # In evaluation the fast path of torch's encoder gives 0 for what is padding.
            assert ((a - b).abs() < 1e-4).logical_or(b == 0).all()


def run(function):
    class Net(nn.Module):
        def forward(self, *args):
            return function(*args)

    return Net()


X = torch.randn(4, 8)
CALLS = [
    lambda x: F.dropout(x),
    lambda x: F.dropout(x, 0.5, True),
    lambda x: F.dropout(input=x, p=0.5),
    lambda x: F.dropout1d(x),
    lambda x: F.dropout2d(x[None, None])[0, 0],
    lambda x: F.dropout3d(x[None, None, None])[0, 0, 0],
    lambda x: F.alpha_dropout(x, training=True),
    lambda x: F.feature_alpha_dropout(x, training=True),
    lambda x: torch.dropout(x, 0.5, True),
    lambda x: torch.dropout(x, p=0.5, train=True),
    lambda x: torch.dropout_(x.clone(), 0.5, True),
    lambda x: torch.native_dropout(x, 0.5, True)[0],
    lambda x: torch.feature_dropout(x, 0.5, True),
    lambda x: torch.alpha_dropout(x, 0.5, True),
    lambda x: torch.feature_alpha_dropout(x, 0.5, True),
    lambda x: torch.ops.aten.dropout(x, 0.5, True),
    lambda x: torch.ops.aten.dropout.default(x, 0.5, True),
    lambda x: sitout.functional.dropout(x),
    lambda x: sitout.functional.gaussian_dropout(x, 0.5),
    lambda x: sitout.functional.alpha_dropout(x, 0.5),
    lambda x: sitout.functional.drop_path(x, 0.5),
    lambda x: sitout.functional.dropout_add(x, torch.zeros_like(x), 0.5),
    lambda x: sitout.functional.dropout(x, sitout.masks.rate_data(0.5)),
]


@pytest.mark.parametrize("call", CALLS)
def test_calls_in_the_forward_drop_nothing(call):
    model = run(call)
    assert not torch.equal(model(X), X)
    with sitout.disabled(model):
        assert torch.equal(model(X), X)
    assert not torch.equal(model(X), X)


@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
def test_fused_norms_drop_nothing(norm):
    model = run(lambda x: getattr(sitout.functional, f"dropout_add_{norm}")(x, x, p=0.5))
    wanted = getattr(F, norm)(X + X, X.shape[-1:])
    assert not torch.equal(model(X), wanted)
    with sitout.disabled(model):
        assert torch.equal(model(X), wanted)


def test_fused_activations_drop_nothing():
    model = run(lambda x: sitout.functional.activation_dropout(x, "relu", 0.5))
    with sitout.disabled(model):
        assert torch.equal(model(X), F.relu(X))


@pytest.mark.parametrize(
    "call",
    [
        lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.9),
        lambda x: F.scaled_dot_product_attention(x, x, x, None, 0.9),
    ],
)
def test_attention_drops_nothing(call):
    x, model = torch.randn(1, 2, 4, 8), run(call)
    with sitout.disabled(model):
        out = model(x)
    assert torch.allclose(out, F.scaled_dot_product_attention(x, x, x), atol=1e-6)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("packed", [True, False])
def test_the_kernels_of_recurrent_networks_drop_nothing(kind, packed):
    class Fixed(kind):
        """Its rate is no attribute that could be set."""

        dropout = property(lambda self: 0.9, lambda self, value: None)

        def forward(self, x):
            return super().forward(x)

    x, model = torch.randn(3, 2, 8), Fixed(8, 8, 2)
    if packed:
        x = pack_padded_sequence(x, [3, 2])
    outs = lambda: [tensor for tensor in model(x)[0] if tensor is not None]  # noqa: E731
    assert not same(outs(), outs())
    with sitout.disabled(model):
        assert same(outs(), outs())


def test_everything_comes_back_after_an_exception():
    model = Calls()
    before = tree(model)
    with pytest.raises(RuntimeError), sitout.disabled(model):
        model(torch.ones(2, 3))
    assert same_tree(tree(model), before)
    assert torch._C._len_torch_function_stack() == 0


def test_an_interrupted_forward_leaves_nothing_behind():
    def interrupt(x):
        raise KeyboardInterrupt

    model = run(interrupt)
    with pytest.raises(KeyboardInterrupt), sitout.disabled(model):
        model(X)
    assert torch._C._len_torch_function_stack() == 0


def test_blocks_nest():
    model = Calls()
    with sitout.disabled(model):
        with sitout.disabled(model):
            assert model.drop.p == 0.0
        assert model.drop.p == 0.0
        assert torch.equal(model(X), model(X))
    assert (model.drop.p, model.rate) == (0.5, 0.25)


def test_blocks_of_two_threads_may_overlap_in_any_order():
    model = Calls()
    first, second = sitout.disabled(model), sitout.disabled(model)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert model.drop.p == 0.0
    assert torch.equal(model(X), model(X))
    second.__exit__(None, None, None)
    assert model.drop.p == 0.5


def test_other_models_in_the_block_drop_as_ever():
    model, other = Calls(), Calls()
    with sitout.disabled(model):
        model(X)
        assert not torch.equal(other(X), other(X))


def test_other_threads_drop_nothing_either():
    model, seen = Calls(), []
    with sitout.disabled(model):
        thread = threading.Thread(target=lambda: seen.extend([model(X), model(X)]))
        thread.start()
        thread.join()
    assert torch.equal(*seen)


def test_it_goes_before_replace_with_functional():
    model = Calls()
    sitout.replace(model, functional=True)
    with sitout.disabled(model):
        assert torch.equal(model(X), model(X))
    assert not torch.equal(model(X), model(X))


def test_calls_that_replace_sends_to_ours_drop_nothing_in_whatever_order():
    model = run(lambda x: F.dropout(x, 0.5))
    model.drop = nn.Dropout(0.5)
    with sitout.replace(model, functional=True), sitout.disabled(model):
        assert torch.equal(model(X), X)


def test_a_model_without_dropout_is_fine():
    model = nn.Linear(8, 8)
    with sitout.disabled(model):
        model(X)


def test_torchs_transformer_stays_on_its_fast_path():
    model, call = make("nn.TransformerEncoder")
    out = call()
    with sitout.disabled(model):
        assert same(call(), out)
        assert not model._forward_hooks


def test_what_is_no_module_or_scripted_is_refused():
    with (
        pytest.raises(TypeError, match="`model` of disabled must be a torch"),
        sitout.disabled("model"),
    ):
        pass


@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
def test_a_scripted_part_is_refused():
    model = nn.Sequential(nn.Dropout(0.5), torch.jit.script(nn.Dropout(0.5)))
    with pytest.raises(TypeError, match="Dropout at '1'"), sitout.disabled(model):
        pass
    assert model[0].p == 0.5


@pytest.mark.parametrize("wrap", [True, False])
def test_a_compiled_model_drops_nothing_however_often(wrap):
    torch._dynamo.reset()
    model = compiled = Calls()
    if wrap:
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    else:
        model.compile(backend="aot_eager", fullgraph=True)
    for _ in range(10):
        assert not torch.equal(compiled(X), compiled(X))
        with sitout.disabled(model):
            assert torch.equal(compiled(X), compiled(X))


def test_a_part_that_is_called_beside_the_forward_of_the_root_drops_nothing():
    model = Agent()
    before = tree(model)
    for call in (model, model.act, model.trunk):
        assert (call(X) != call(X)).any()
        with sitout.disabled(model):
            assert torch.equal(call(X), call(X))
        assert (call(X) != call(X)).any()
    assert same_tree(tree(model), before)
    assert torch._C._len_torch_function_stack() == 0


def test_a_part_that_calls_another_package_or_ours_drops_nothing():
    part = run(lambda x: sitout.functional.gaussian_dropout(x, 0.5))
    model = nn.ModuleDict({"part": part})
    with sitout.disabled(model):
        assert torch.equal(part(X), X)
    assert not torch.equal(part(X), X)


def test_a_block_within_the_forward_of_its_model_reaches_the_parts():
    class Target(Agent):
        def forward(self, x):
            with sitout.disabled(self):
                calm = self.trunk(x)
            return calm, self.trunk(x)

    model = Target()
    calm, loud = model(X)
    assert torch.equal(calm, model.trunk.fc(X))
    assert (loud == 0).any()
