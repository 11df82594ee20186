"""replace with functional=True: calls of torch's functions go to those of sitout."""

from __future__ import annotations

import copy
import pickle
import threading
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import sitout
from sitout._surgery import _hooks
from surgery.networks import Agent, Calls, Trunk, same_tree, tree

OURS = sitout.functional


class One(nn.Module):
    """Calls one function on its input."""

    def __init__(self, call):
        super().__init__()
        self.call = call

    def forward(self, x):
        return self.call(x) if self.call else F.dropout(x, 0.5)


CALLS = {
    "F.dropout(x)": (lambda x: F.dropout(x), lambda x: OURS.dropout(x, 0.5), (4, 6)),
    "F.dropout(p=)": (lambda x: F.dropout(x, p=0.3), lambda x: OURS.dropout(x, 0.3), (4, 6)),
    "F.dropout off": (lambda x: F.dropout(x, 0.3, False), lambda x: x, (4, 6)),
    "F.dropout(input=)": (lambda x: F.dropout(input=x), lambda x: OURS.dropout(x, 0.5), (4, 6)),
    "F.dropout1d": (lambda x: F.dropout1d(x, 0.3), lambda x: OURS.dropout1d(x, 0.3), (4, 6, 2)),
    "F.dropout1d [C, L]": (lambda x: F.dropout1d(x), lambda x: OURS.dropout1d(x), (9, 6)),
    "F.dropout2d": (lambda x: F.dropout2d(x), lambda x: OURS.dropout2d(x), (4, 6, 2, 2)),
    "F.dropout3d": (lambda x: F.dropout3d(x), lambda x: OURS.dropout3d(x), (4, 6, 2, 2, 2)),
    "F.dropout3d [C, D, H, W]": (
        lambda x: F.dropout3d(x),
        lambda x: OURS.dropout3d(x),
        (6, 2, 2, 2),
    ),
    "F.alpha_dropout": (lambda x: F.alpha_dropout(x), lambda x: x, (4, 6)),
    "F.alpha_dropout on": (
        lambda x: F.alpha_dropout(x, training=True),
        lambda x: OURS.alpha_dropout(x),
        (4, 6),
    ),
    "F.feature_alpha_dropout": (
        lambda x: F.feature_alpha_dropout(x, 0.4, True),
        lambda x: OURS.feature_alpha_dropout(x, 0.4),
        (4, 6, 2),
    ),
    "torch.dropout": (lambda x: torch.dropout(x, 0.3, True), lambda x: OURS.dropout(x, 0.3), (9,)),
    "torch.dropout off": (lambda x: torch.dropout(x, p=0.3, train=False), lambda x: x, (9,)),
    "torch.feature_dropout": (
        lambda x: torch.feature_dropout(x, 0.3, True),
        lambda x: OURS.dropout2d(x, 0.3),
        (4, 6, 2, 2),
    ),
    "torch.alpha_dropout": (
        lambda x: torch.alpha_dropout(x, 0.3, True),
        lambda x: OURS.alpha_dropout(x, 0.3),
        (4, 6),
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_each_function_of_torch_does_what_ours_does(name):
    theirs, ours, shape = CALLS[name]
    model, x = One(None), torch.randn(shape)
    sitout.replace(model, functional=True)
    model.call = theirs
    torch.manual_seed(3)
    out = model(x)
    torch.manual_seed(3)
    assert torch.equal(out, ours(x))


@pytest.mark.parametrize("call", [lambda x: F.dropout(x, inplace=True), lambda x: x])
def test_in_place_calls_write_into_their_input(call):
    model, x = One(None), torch.ones(64)
    sitout.replace(model, functional=True)
    model.call = call
    assert model(x) is x
    model.call = lambda x: torch.dropout_(x, 0.5, True)
    y = torch.ones(64)
    assert model(y) is y
    assert 0 < int((y == 0).sum()) < 64


def test_ranks_that_ours_refuses_stay_with_torch():
    model = One(None)
    sitout.replace(model, functional=True)
    model.call = lambda x: F.dropout2d(x, 0.5)
    with pytest.warns(UserWarning, match="3D input to dropout2d"):
        out = model(torch.ones(8, 8, 4))
    assert set(out.sum(2).unique().tolist()) == {0.0, 8.0}


def masked(model, x, seed=0):
    torch.manual_seed(seed)
    return model(x)


@pytest.fixture
def model():
    return Calls()


X = torch.randn(16, 8)


def test_the_calls_in_the_source_are_sites_and_the_rest_is_listed():
    change = sitout.replace(Calls(), functional=True)
    assert change.sites[0] == "drop"
    assert [site.partition(",")[0] for site in change.sites[1:]] == ["dropout() in Calls"] * 2
    assert change.unreached == []


class Attention(nn.Module):
    def forward(self, x):
        return F.dropout(F.scaled_dot_product_attention(x, x, x, dropout_p=0.5), 0.1)


def test_what_drops_in_a_kernel_stays_and_is_listed():
    change = sitout.replace(Attention(), functional=True)
    assert len(change.sites) == 1
    assert change.unreached[0].startswith("scaled_dot_product_attention() in Attention")


class Own(nn.Dropout):
    def forward(self, x):
        return F.dropout(x, self.p, True)


def test_a_layer_with_a_forward_of_its_own_is_reached_by_its_call():
    model = nn.Sequential(Own(0.5))
    change = sitout.replace(model, functional=True)
    assert change.sites[0].startswith("dropout() in Own")
    assert change.unreached == []
    torch.manual_seed(0)
    out = model(X)
    torch.manual_seed(0)
    assert torch.equal(out, OURS.dropout(X, 0.5))


def test_undo_takes_the_hooks_away(model):
    before = tree(model)
    plain = masked(model, X)
    change = sitout.replace(model, functional=True)
    assert not torch.equal(masked(model, X), plain)
    change.undo()
    assert same_tree(tree(model), before)
    assert torch.equal(masked(model, X), plain)


def test_nothing_is_left_in_force_after_a_forward_or_an_exception(model):
    sitout.replace(model, functional=True)
    model(X)
    assert torch._C._len_torch_function_stack() == 0
    with pytest.raises(RuntimeError):
        model(X[:, :3])
    assert torch._C._len_torch_function_stack() == 0


def test_undo_leaves_a_forward_that_was_interrupted():
    model = One(None)
    change = sitout.replace(model, functional=True)

    def interrupt(x):
        raise KeyboardInterrupt

    model.call = interrupt
    with pytest.raises(KeyboardInterrupt):
        model(X)
    assert torch._C._len_torch_function_stack() == 1
    change.undo()
    assert torch._C._len_torch_function_stack() == 0


class Again(nn.Module):
    """Calls itself."""

    def forward(self, x, depth=2):
        x = F.dropout(x, 0.3, self.training)
        return self(x, depth - 1) if depth else x


def test_a_model_that_calls_itself():
    model = Again()
    sitout.replace(model, functional=True)
    out = masked(model, X)
    torch.manual_seed(0)
    expected = X
    for _ in range(3):
        expected = OURS.dropout(expected, 0.3)
    assert torch.equal(out, expected)
    assert torch._C._len_torch_function_stack() == 0


def test_a_child_in_evaluation_does_not_end_what_its_parent_began():
    child = Calls().eval()

    class Parent(nn.Module):
        def __init__(self):
            super().__init__()
            self.child = child

        def forward(self, x):
            self.child(x)
            return F.dropout(x, 0.5)

    parent = Parent()
    parent.training = True
    sitout.replace(child, functional=True)
    sitout.replace(parent, functional=True)
    out = masked(parent, X)
    torch.manual_seed(0)
    assert torch.equal(out, OURS.dropout(X, 0.5))
    assert torch._C._len_torch_function_stack() == 0


def test_copies_and_pickles_have_hooks_of_their_own(model):
    change = sitout.replace(model, functional=True)
    out = masked(model, X)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    change.undo()
    for one in copies:
        assert torch.equal(masked(one, X), out)
        assert torch._C._len_torch_function_stack() == 0


def test_threads_do_not_see_each_others_mode(model):
    sitout.replace(model, functional=True)
    inside, go, seen = threading.Event(), threading.Event(), []

    def hold(module, args):
        inside.set()
        go.wait(10)

    handle = model.fc.register_forward_pre_hook(hold)
    thread = threading.Thread(target=lambda: seen.append(model(X)))
    thread.start()
    assert inside.wait(10)
    assert torch._C._len_torch_function_stack() == 0
    handle.remove()
    other = masked(model, X)
    go.set()
    thread.join()
    assert torch.equal(masked(model, X), other)
    assert seen[0].shape == other.shape


@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("wrap", [True, False])
def test_compiled_masks_are_those_of_eager_mode(model, backend, wrap):
    torch._dynamo.reset()
    change = sitout.replace(model, functional=True)
    out = masked(model, X) != 0
    compiled = model
    if wrap:
        compiled = torch.compile(model, backend=backend, fullgraph=True)
    else:
        model.compile(backend=backend, fullgraph=True)
    assert torch.equal(masked(compiled, X) != 0, out)
    change.undo()
    assert not torch.equal(masked(compiled, X) != 0, out)
    assert torch._C._len_torch_function_stack() == 0


@pytest.mark.parametrize("outer", [True, False])
def test_a_model_that_is_compiled_already_takes_it_too(model, outer):
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    compiled(X)
    sitout.replace(compiled if outer else model, functional=True)
    assert torch.equal(masked(compiled, X), masked(compiled, X))
    expected = Calls()
    expected.load_state_dict(model.state_dict())
    sitout.replace(expected, functional=True)
    assert torch.equal(masked(compiled, X) != 0, masked(expected, X) != 0)


def test_hooks_of_a_compiled_model_run_as_they_are(model):
    """Dynamo would compile them anew for each model, and give up after 8, or raise."""
    torch._dynamo.reset()
    sitout.replace(model, functional=True)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    compiled(X)
    entries = torch._C._dynamo.eval_frame._debug_get_cache_entry_list
    assert entries(Calls.forward.__code__)
    assert not entries(_hooks._enter.__code__)
    assert not entries(_hooks._leave.__code__)


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.reentrant = reentrant

    def part(self, x):
        return F.dropout(self.fc(x), 0.5, self.training)

    def forward(self, x):
        return checkpoint(self.part, x, use_reentrant=self.reentrant)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_call_in_a_checkpoint_stays_with_torch_for_its_repetition_would(reentrant):
    model = Checkpointed(reentrant)
    sitout.replace(model, functional=True)
    with pytest.warns(UserWarning, match="stays torch's own"):
        out = model(torch.randn(16, 8, requires_grad=True))
    out.sum().backward()
    assert torch.equal(model.fc.bias.grad, (out != 0).sum(0) * 2.0)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_model_that_is_checkpointed_as_a_whole_repeats_ours(reentrant):
    model = One(None)
    sitout.replace(model, functional=True)
    x = torch.randn(16, 8, requires_grad=True)
    out = checkpoint(model, x, use_reentrant=reentrant)
    out.sum().backward()
    assert torch.equal(x.grad, (out != 0) * 2.0)


def test_evaluation_is_left_alone():
    model = One(None)
    sitout.replace(model, functional=True)
    model.eval()
    model.call = lambda x: F.dropout(x, 0.5, True)
    out = masked(model, X)
    torch.manual_seed(0)
    assert torch.equal(out, F.dropout(X, 0.5))


def test_a_scripted_model_is_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls it deprecated
        scripted = torch.jit.script(nn.Dropout(0.5))
    with pytest.raises(TypeError, match="must be not scripted"):
        sitout.replace(scripted, functional=True)
    with pytest.raises(TypeError, match="`functional` of replace must be True or False"):
        sitout.replace(nn.Dropout(0.5), functional=1)


def test_a_forward_whose_source_cannot_be_read_may_call_anything():
    names = {"nn": nn, "F": F, "__name__": "shell"}
    exec("class Typed(nn.Module):\n    def forward(self, x): return F.dropout(x, 0.5)", names)
    model, line = names["Typed"](), "what Typed may call, for its source cannot be read"
    with pytest.raises(ValueError, match=line):
        sitout.replace(model)
    assert sitout.replace(model, functional=True).sites == [line]
    out = masked(model, X)
    torch.manual_seed(0)
    assert torch.equal(out, OURS.dropout(X, 0.5))


def test_a_part_that_is_called_beside_the_forward_of_the_root_is_reached():
    model = Agent()
    plain = masked(model.act, X)
    change = sitout.replace(model, functional=True)
    assert torch.equal(masked(model.act, X), masked(model, X))
    assert not torch.equal(masked(model.act, X), plain)
    assert torch._C._len_torch_function_stack() == 0
    change.undo()
    assert torch.equal(masked(model.act, X), plain)


def test_one_mode_is_in_force_however_deep_a_forward_is():
    depths = []

    class Deep(Again):
        def forward(self, x):
            depths.append(torch._C._len_torch_function_stack())
            return F.dropout(self.inner(x) if hasattr(self, "inner") else x, 0.3)

    model = Deep()
    model.inner = Deep()
    model.inner.inner = Deep()
    sitout.replace(model, functional=True)
    model(X)
    model.inner.inner(X)
    copy.deepcopy(model)(X)
    assert depths == [1] * 7
    assert torch._C._len_torch_function_stack() == 0


def test_an_exception_in_a_part_leaves_nothing_in_force():
    model = Agent()
    sitout.replace(model, functional=True)
    for call in (model, model.act):
        with pytest.raises(RuntimeError):
            call(X[:, :3])
        assert torch._C._len_torch_function_stack() == 0


def test_a_part_that_calls_its_owner_ends_only_what_it_began():
    """Root, part, root, part: the ends find their own beginnings."""

    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.part = Part()

        def forward(self, x, depth=2):
            x = self.part(F.dropout(x, 0.3), self if depth else None, depth)
            return F.dropout(x, 0.3)

    class Part(nn.Module):
        def forward(self, x, owner, depth):
            x = F.dropout(x, 0.3)
            x = owner(x, depth - 1) if owner else x
            return F.dropout(x, 0.3)

    model = Root()
    model.part.training = False  # the calls do not ask
    sitout.replace(model, functional=True)
    out = masked(model, X)
    torch.manual_seed(0)
    expected = X
    for _ in range(12):
        expected = OURS.dropout(expected, 0.3)
    assert torch.equal(out, expected)
    assert torch._C._len_torch_function_stack() == 0


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_part_that_is_checkpointed_as_a_whole_repeats_ours(reentrant):
    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.part = One(None)

        def forward(self, x):
            return checkpoint(self.part, F.dropout(x, 0.5), use_reentrant=reentrant)

    model = Root()
    sitout.replace(model, functional=True)
    x = torch.ones(64, 8, requires_grad=True)
    out = masked(model, x)
    torch.manual_seed(0)
    assert torch.equal(out, OURS.dropout(OURS.dropout(x, 0.5), 0.5))
    out.sum().backward()
    assert torch.equal(x.grad, (out != 0) * 4.0)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_part_in_evaluation_in_a_checkpoint_is_repeated_as_it_was(reentrant):
    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.part = One(None)

        def forward(self, x):
            return checkpoint(self.part, F.dropout(x, 0.0), use_reentrant=reentrant)

    model = Root()
    model.part.eval()  # its call does not ask
    sitout.replace(model, functional=True)
    x = torch.ones(64, 8, requires_grad=True)
    with pytest.warns(UserWarning, match="stays torch's own"):
        out = model(x)
    out.sum().backward()
    assert torch.equal(x.grad, (out != 0) * 2.0)


def test_parts_compile_as_one_graph_and_undo_is_seen():
    torch._dynamo.reset()
    model = Agent()
    change = sitout.replace(model, functional=True)
    out = masked(model, X)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert torch.equal(masked(compiled, X) != 0, out != 0)
    change.undo()
    assert not torch.equal(masked(compiled, X) != 0, out != 0)


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
def test_a_part_that_is_compiled_is_reached_beside_the_root_and_undo_is_seen():
    torch._dynamo.reset()
    model = Agent()
    model.head = torch.compile(model.head, backend="aot_eager", fullgraph=True)
    masked(model.act, X)
    change = sitout.replace(model, functional=True)
    expected = Agent()
    expected.load_state_dict(
        {name.replace("_orig_mod.", ""): value for name, value in model.state_dict().items()}
    )
    sitout.replace(expected, functional=True)
    out = masked(expected.act, X)
    assert torch.equal(masked(model.act, X) != 0, out != 0)
    change.undo()
    assert not torch.equal(masked(model.act, X) != 0, out != 0)


def test_copies_of_a_part_have_hooks_of_their_own():
    model = Agent()
    change = sitout.replace(model, functional=True)
    out = masked(model.act, X)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    change.undo()
    assert all(torch.equal(masked(one.act, X), out) for one in copies)
    assert torch._C._len_torch_function_stack() == 0


class Layer(nn.TransformerEncoderLayer):
    """Makes a call of its own, and is torch's otherwise."""

    def forward(self, src, *args, **kwargs):
        return super().forward(F.dropout(src, 0.5, self.training), *args, **kwargs)


def test_the_fast_path_of_an_encoder_stays_and_its_parts_are_reached(monkeypatch):
    model = nn.Module()
    layer = Layer(8, 2, 8, 0.0, batch_first=True)
    model.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    fast, seen = torch._transformer_encoder_layer_fwd, []
    monkeypatch.setattr(
        torch, "_transformer_encoder_layer_fwd", lambda *args: seen.append(1) or fast(*args)
    )
    x = torch.randn(2, 3, 8)
    plain = masked(model.encoder, x)
    sitout.replace(model, functional=True)
    assert not torch.equal(masked(model.encoder, x), plain)
    model.eval()
    with torch.no_grad():
        model.encoder(x)
    assert len(seen) == 2


def test_a_training_step_of_lightning_reaches_its_parts():
    pl = pytest.importorskip("lightning.pytorch")

    class Task(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = Trunk()

        def training_step(self, batch, index):
            return self.net(batch).sum()

    task = Task()
    plain = masked(lambda x: task.training_step(x, 0), X)
    sitout.replace(task, functional=True)
    assert not torch.equal(masked(lambda x: task.training_step(x, 0), X), plain)
