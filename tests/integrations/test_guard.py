"""The guard raises where configured dropout is silent, is quiet elsewhere, and leaves no trace."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from sitout import nn
from sitout.integrations import guard
from zoo import has

SILENT = r"^Configured dropout must be active in the first training step\. Got "


class Noisy(torch.nn.Module):
    """Dropout by a float attribute of a module that does more."""

    def __init__(self, attention_dropout=0.5):
        super().__init__()
        self.inner = torch.nn.Linear(4, 4)
        self.attention_dropout = attention_dropout

    def forward(self, x):
        return torch.nn.functional.dropout(self.inner(x), self.attention_dropout, self.training)


class Fused(torch.nn.Module):
    """As attention in transformers: the layer is never called, a kernel takes its rate."""

    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(4, 4)
        self.drop = torch.nn.Dropout(0.5)

    def forward(self, x):
        p = self.drop.p if self.training else 0.0
        return torch.nn.functional.dropout(self.inner(x), p)


class Recurrent(torch.nn.LSTM):
    def forward(self, x):
        return super().forward(x)[0]


def net(part):
    return torch.nn.Sequential(torch.nn.Linear(4, 4), part, torch.nn.Linear(4, 4))


def encoder():
    return torch.nn.TransformerEncoderLayer(4, 2, 8, dropout=0.5, batch_first=True)


PARTS = {
    "torch": lambda: torch.nn.Dropout(0.5),
    "sitout": lambda: nn.Dropout(0.5),
    "path": lambda: nn.DropPath(0.5),
    "attribute": Noisy,
    "fused": Fused,
    "lstm": lambda: Recurrent(4, 4, 2, dropout=0.5),
    "encoder": encoder,
}
every = pytest.mark.parametrize("part", PARTS)
X = torch.ones(2, 3, 4)


def hooks(model):
    return [
        hook
        for module in model.modules()
        for kind in (module._forward_pre_hooks, module._forward_hooks)
        for hook in kind
    ]


@every
def test_a_model_in_training_mode_passes(part):
    model = net(PARTS[part]())
    with guard(model):
        model(X).sum().backward()
    assert hooks(model) == []


@every
def test_a_part_that_was_left_in_evaluation_mode_is_named(part):
    model = net(PARTS[part]())
    model[1].eval()
    with (
        pytest.raises(RuntimeError, match=SILENT + r"'1[^']*'.* in evaluation mode\. ") as error,
        guard(model),
    ):
        model(X)
    for word in ("model.train()", "where=", "Lightning"):
        assert word in str(error.value)
    assert "\n" not in str(error.value)
    assert hooks(model) == []


def test_one_silent_part_among_active_ones_is_enough():
    model = torch.nn.Sequential(net(torch.nn.Dropout(0.5)), net(nn.Dropout(0.5)))
    model[1].eval()
    with (
        pytest.raises(RuntimeError, match=SILENT + r"'1\.1\.p' in evaluation mode"),
        guard(model),
    ):
        model(X)


def test_dropout_that_nothing_calls_is_refused():
    model = net(torch.nn.Identity())
    model.unused = torch.nn.ModuleList([torch.nn.Dropout(0.5)])
    model.forward = lambda x: model[0](x)
    with (
        pytest.raises(RuntimeError, match=SILENT + r"no call of 'unused\.0\.p'\."),
        guard(model),
    ):
        model(X)


def test_a_place_that_does_not_run_may_be_in_any_mode_while_another_one_drops():
    model = net(torch.nn.Dropout(0.5))
    model.other = torch.nn.Dropout(0.5).eval()
    model.forward = lambda x: model[1](model[0](x))
    with guard(model):
        model(X)


def test_a_pass_in_evaluation_mode_beside_one_in_training_mode_is_no_fault():
    """As of a teacher that shares its weights with the pupil."""
    model = net(torch.nn.Dropout(0.5))
    with guard(model):
        model.eval()(X)
        model.train()(X)


@pytest.mark.parametrize("part", [torch.nn.Dropout(0.0), torch.nn.ReLU(), nn.Dropout(0.0)])
def test_without_a_rate_above_0_there_is_nothing_to_guard(part):
    model = net(part).eval()
    with guard(model):
        model(X)
    with guard(model):
        pass


def test_where_leaves_out_what_is_meant_to_be_silent():
    model = torch.nn.ModuleDict({"back": net(torch.nn.Dropout(0.5)), "head": nn.Dropout(0.5)})
    model["back"].eval()
    with guard(model, "head"):
        model["head"](model["back"](X))
    with (
        pytest.raises(RuntimeError, match=SILENT + r"'back\.1\.p' in"),
        guard(model, ["head", "back.*"]),
    ):
        model["head"](model["back"](X))
    with (
        pytest.raises(ValueError, match=r"^`where` of guard must be that of a drop rate\."),
        guard(model, "tail"),
    ):
        pytest.fail("the block must not begin")


def test_a_frozen_part_may_be_silent_but_not_one_that_learns():
    model = torch.nn.Sequential(net(torch.nn.Dropout(0.5)), net(torch.nn.Dropout(0.5)))
    model[0].eval().requires_grad_(False)
    with guard(model):
        model(X)
    model[0][2].bias.requires_grad_(True)
    with pytest.raises(RuntimeError, match=SILENT + r"'0\.1\.p' in"), guard(model):
        model(X)


def test_a_frozen_part_alone_leaves_nothing_to_guard():
    model = net(torch.nn.Dropout(0.5)).eval().requires_grad_(False)
    with guard(model):
        model(X)


def test_an_exception_in_the_block_passes_and_leaves_no_hook():
    model = net(torch.nn.Dropout(0.5)).eval()
    model[2].forward = lambda x: 1 / 0
    with pytest.raises(ZeroDivisionError), guard(model):
        model(X)
    assert hooks(model) == []


def test_the_block_changes_no_random_number_and_no_gradient():
    grads = []
    for guarded in (True, False):
        torch.manual_seed(1)
        model = net(nn.Dropout(0.5))
        if guarded:
            with guard(model):
                model(X).sum().backward()
        else:
            model(X).sum().backward()
        grads.append([one.grad.tolist() for one in model.parameters()])
    assert grads[0] == grads[1]


@pytest.mark.parametrize("model", [None, 3, "net"])
def test_what_is_no_model_is_refused(model):
    with (
        pytest.raises(TypeError, match=r"^`model` of guard must be a torch\.nn\.Module\. Got "),
        guard(model),
    ):
        pytest.fail("the block must not begin")


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_in_compiled_code_the_guard_compiles_nothing_anew(warm, training):
    torch._dynamo.reset()
    model = net(torch.nn.Dropout(0.5)).train(training)
    counter = CompileCounterWithBackend("eager")
    run = torch.compile(model, backend=counter, fullgraph=True)
    if warm:
        run(X)
    if training:
        with guard(run):
            run(X)
    else:
        with (
            pytest.raises(RuntimeError, match=SILENT + r"'1\.p' in evaluation mode"),
            guard(run),
        ):
            run(X)
    run(X)
    assert counter.frame_count == 1


def test_the_plain_model_of_a_compiled_one_may_be_guarded_before_it_compiles():
    torch._dynamo.reset()
    model = net(torch.nn.Dropout(0.5))
    run = torch.compile(model, backend="eager", fullgraph=True)
    with guard(model):
        run(X)
    model.eval()
    with pytest.raises(RuntimeError, match=SILENT + r"'1\.p' in evaluation mode"), guard(model):
        torch.compile(model, backend="eager", fullgraph=True)(X)


@pytest.mark.skipif(not has("transformers"), reason="transformers is not installed")
@pytest.mark.parametrize("hidden", [0.0, 0.1])
def test_attention_that_hands_its_rate_to_a_fused_kernel_counts_as_active(hidden):
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=9, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=8, hidden_dropout_prob=hidden, attention_probs_dropout_prob=0.1,
    )  # fmt: skip
    model, ids = BertModel(config), torch.zeros(1, 3, dtype=torch.long)
    assert model.config._attn_implementation == "sdpa"
    with guard(model.train()):
        model(ids)
    model.encoder.layer[1].attention.eval()
    line = SILENT + r"'encoder\.layer\.1\.attention\.self\.dropout\.p'.* in evaluation mode"
    with pytest.raises(RuntimeError, match=line), guard(model):
        model(ids)
