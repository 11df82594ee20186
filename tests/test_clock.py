"""MaskClock: every mask has the address that the clock says, or the call is refused."""

from __future__ import annotations

import copy
import io
import json
import pickle
import re
import warnings

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

import sitout
from battery import CASES, P, assert_same, every_layer, make, sample, value
from sitout import MaskClock, nn
from sitout.masks import MaskKey, keep_mask


def net(width=8, p=0.5):
    return torch.nn.Sequential(
        torch.nn.Linear(4, width), nn.Dropout(p), torch.nn.Linear(width, width), nn.Dropout(p)
    )


def at(clock, model, x, step, rows=None):
    with clock.at(step, rows=rows):
        return model(x)


def gradients(y, model):
    return torch.autograd.grad(y.square().sum(), list(model.parameters()), retain_graph=True)


def equal(a, b):
    return all(torch.equal(one, other) for one, other in zip(a, b, strict=True))


# The address


@every_layer
def test_a_mask_is_that_of_its_site_and_step(name):
    model = torch.nn.ModuleList([make(name), make(name)])
    clock, x = MaskClock(model, seed=17), sample(name, requires_grad=True)
    state = torch.get_rng_state()
    for step in (5, 0, 2**32 - 1):
        with clock.at(step):
            outs = [model[0](x), model[1](x), model[0](x)]
        for (site, call), y in zip([("0", 0), ("1", 0), ("0", 1)], outs, strict=True):
            key = clock.key(site, step, call)
            assert key == MaskKey(17, int(site), step, call)
            assert_same(name, y, value(name, key, x))
    assert torch.equal(torch.get_rng_state(), state)


@every_layer
def test_micro_batches_with_their_rows_are_the_whole_batch(name):
    model = torch.nn.Sequential(torch.nn.Tanh(), make(name))
    clock, x = MaskClock(model), sample(name, requires_grad=True)
    whole = at(clock, model, x, 0)
    for rows in (torch.arange(len(x)).chunk(2), torch.randperm(len(x)).split(1)):
        made = torch.empty_like(x)
        for part in rows:
            made[part] = at(clock, model, x[part], 0, rows=part)
        assert torch.equal(made, whole)
        grads = [torch.autograd.grad(y.sum(), x, retain_graph=True)[0] for y in (made, whole)]
        assert torch.equal(*grads)


@every_layer
def test_the_rows_follow_the_batch_dim(name):
    layer, turned = make(name), make(name, batch_dim=1)
    x, rows = sample(name), torch.arange(len(sample(name))) + 2**31
    wanted = at(MaskClock(layer), layer, x, 0, rows)
    made = at(MaskClock(turned), turned, x.transpose(0, 1), 0, rows)
    assert torch.equal(made.transpose(0, 1), wanted)


@every_layer
def test_outside_of_a_block_and_in_evaluation_a_layer_is_as_without_a_clock(name):
    plain, layer, x = make(name), make(name), sample(name)
    clock = MaskClock(layer)
    torch.manual_seed(5)
    wanted = plain(x)
    torch.manual_seed(5)
    assert torch.equal(layer(x), wanted)
    with clock.at(0):
        assert torch.equal(layer.eval()(x), x)
        first = layer.train()(x)
    assert_same(name, first, value(name, clock.key("", 0), x))


def test_a_visit_counts_at_every_rate_and_in_training_alone():
    layer, x = nn.Dropout(0.0), torch.ones(4, 8)
    clock = MaskClock(layer)
    with clock.at(0):
        layer(x)
        layer.eval()(x)
        layer.train().p = 0.5
        y = layer(x)
    assert torch.equal(y != 0, keep_mask(clock.key("", 0, call=1), 0.5, x.shape))


def test_a_scheduled_rate_is_read_under_a_clock():
    layer, x = nn.Dropout(0.5).schedulable_(), torch.ones(4, 80)
    clock = MaskClock(layer)
    for step, p in enumerate((0.0, 0.3, 0.001, 1.0)):
        layer.p = p
        y = at(clock, layer, x, step)
        assert torch.equal(y != 0, keep_mask(clock.key("", step), p, x.shape))


def test_the_seed_makes_another_run():
    x = torch.ones(4, 4)
    runs = []
    for seed in (1, 2, 1):
        model = nn.Dropout(0.5)
        runs.append(at(MaskClock(model, seed=seed), model, x, 0))
    assert torch.equal(runs[0], runs[2])
    assert not torch.equal(runs[0], runs[1])


# The numbers


class Wrapper(torch.nn.Module):
    """What DistributedDataParallel and others do: the model is the child ``module``."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *inputs):
        return self.module(*inputs)


def test_sites_are_numbered_in_the_order_of_the_modules():
    assert MaskClock(net()).sites == {"1": 0, "3": 1}


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method:DeprecationWarning")
@pytest.mark.parametrize(
    "wrapped",
    [
        Wrapper,
        torch.compile,
        lambda model: Wrapper(torch.compile(Wrapper(model))),
        lambda model: torch.nn.Sequential(*map(Wrapper, model)),
        lambda model: torch.nn.Sequential(*(torch.compile(layer) for layer in model)),
    ],
)
def test_wrappers_do_not_show_in_the_names(wrapped):
    assert MaskClock(wrapped(net())).sites == {"1": 0, "3": 1}


def test_a_part_that_is_called_module_among_others_keeps_its_name():
    model = torch.nn.ModuleDict({"module": nn.Dropout(), "other": nn.Dropout()})
    assert MaskClock(model).sites == {"module": 0, "other": 1}


def test_a_shared_layer_has_one_number():
    drop = nn.Dropout()
    model = torch.nn.Sequential(drop, torch.nn.Tanh(), drop, nn.Dropout())
    assert MaskClock(model).sites == {"0": 0, "3": 1}


def test_a_layer_that_comes_later_gets_the_next_number():
    model, x = net(), torch.randn(3, 4)
    clock = MaskClock(model)
    at(clock, model, x, 0)
    late = torch.nn.Sequential(torch.nn.Tanh(), nn.Dropout(0.5))
    model.insert(0, late)  # which renames the others
    y = at(clock, model[0], torch.ones(3, 4), 1)
    assert torch.equal(y != 0, keep_mask(clock.key("0.1", 1), 0.5, (3, 4)))
    assert clock.sites == {"1": 0, "3": 1, "0.1": 2, "2": 3, "4": 4}


def test_a_layer_in_the_place_of_another_one_takes_its_number():
    model, x = net(), torch.randn(3, 8)
    clock = MaskClock(model)
    model[3] = nn.GaussianDropout(0.2)
    y = at(clock, model[3], x, 0)
    assert clock.sites == {"1": 0, "3": 1}
    assert_same("GaussianDropout", y, value("GaussianDropout", MaskKey(0, 1, 0), x, 0.2))


def test_the_keys_of_a_clock_take_a_name_or_a_number():
    clock = MaskClock(net(), seed=4)
    assert clock.key("3", 7, 2) == clock.key(1, 7, 2) == MaskKey(4, 1, 7, 2)
    with pytest.raises(ValueError, match=r"^`site` must be one of 1, 3\. Got 'head'\.$"):
        clock.key("head", 0)
    with pytest.raises(ValueError, match=r"^`site` must be a name, or in \[0, 2\)\. Got 2\.$"):
        clock.key(2, 0)


# The state


def test_the_state_is_plain_and_makes_another_clock_the_same():
    model, x = net(), torch.randn(3, 4)
    clock = MaskClock(model, seed=17)
    for step in (0, 1, 2, 7, 6, 4):
        at(clock, model, x, step)
    state = json.loads(json.dumps(clock.state_dict()))
    used = [[0, 2], [4, 4], [6, 7]]
    assert state == {"spec": 1, "seed": 17, "sites": {"1": 0, "3": 1}, "used": used}
    wanted = at(clock, model, x, 3)
    twin = copy.deepcopy(model)
    again = MaskClock(Wrapper(twin), seed=99)
    again.load_state_dict(state)
    assert again.seed == 17
    assert torch.equal(at(again, twin, x, 3), wanted)
    assert again.state_dict() == clock.state_dict()
    assert again.state_dict()["used"] == [[0, 4], [6, 7]]
    with pytest.raises(ValueError, match=r"a new one, or come with `rows`\. Got 6"):
        at(again, twin, x, 6)


def test_a_state_brings_its_numbers_with_it():
    """As when a layer that came late in the first run is there from the start in the second."""
    model = net()
    clock = MaskClock(model)
    clock.load_state_dict({"spec": 1, "seed": 3, "sites": {"3": 0, "1": 1}, "used": []})
    x = torch.ones(3, 8)
    for site, layer in ((1, model[1]), (0, model[3])):
        y = at(clock, layer, x, site)
        assert torch.equal(y != 0, keep_mask(MaskKey(3, site, site), 0.5, x.shape))


def test_a_renamed_layer_is_told_of():
    old, new = torch.nn.ModuleDict({"a": nn.Dropout()}), torch.nn.ModuleDict({"b": nn.Dropout()})
    state, clock = MaskClock(old).state_dict(), MaskClock(new)
    with pytest.warns(UserWarning, match=r"the model has not \('a'\).* others \('b'\)"):
        clock.load_state_dict(state)
    assert clock.sites == {"a": 0, "b": 1}


GOOD = {"spec": 1, "seed": 3, "sites": {"1": 0, "3": 1}, "used": []}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({}, "what state_dict() gave, with spec, seed, sites and used. Got []."),
        (None, "what state_dict() gave, with spec, seed, sites and used. Got 'NoneType'."),
        ({**GOOD, "seed": -1}, "what state_dict() gave, with"),
        ({**GOOD, "sites": [1]}, "what state_dict() gave, with"),
        ({**GOOD, "used": [3]}, "what state_dict() gave, with"),
        ({**GOOD, "spec": 2}, "of version 1 of the mask specification. Got 2."),
        ({**GOOD, "sites": {"1": 0, "3": 0}}, "one whose sites are numbered 0, 1, 2, ..."),
    ],
)
def test_a_bad_state_is_refused_and_changes_nothing(bad, message):
    clock = MaskClock(net(), seed=5)
    before = clock.state_dict()
    with pytest.raises(ValueError, match=f"^The state of MaskClock must be {re.escape(message)}"):
        clock.load_state_dict(bad)
    assert clock.state_dict() == before


# Copies


def test_a_copied_model_runs_in_default_mode_even_if_a_block_was_open():
    model, x = net(), torch.randn(3, 4)
    clock = MaskClock(model)
    with clock.at(0):
        twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    for twin in twins:
        with clock.at(len(clock.state_dict()["used"]) + twins.index(twin)):
            assert not torch.equal(twin(x), twin(x))
        torch.manual_seed(3)
        y = twin(x)
        torch.manual_seed(3)
        assert torch.equal(twin(x), y)
        other = MaskClock(twin, seed=1)
        assert not torch.equal(at(other, twin, x, 0), at(other, twin, x, 1))
    at(clock, model, x, 10)  # the first clock still holds its model


def test_a_clock_that_is_copied_with_its_model_goes_on_with_the_copy():
    model, x = net(), torch.randn(3, 4)
    clock = MaskClock(model, seed=9)
    at(clock, model, x, 0)
    file = io.BytesIO()
    torch.save((model, clock), file)
    file.seek(0)
    pairs = [copy.deepcopy((model, clock)), torch.load(file, weights_only=False)]
    wanted = at(clock, model, x, 1)
    for twin, its_clock in pairs:
        assert its_clock.state_dict()["used"] == [[0, 0]]
        assert torch.equal(at(its_clock, twin, x, 1), wanted)
        with its_clock.at(2):
            y = checkpoint(twin, x, use_reentrant=False, context_fn=its_clock.recompute)
            made = gradients(y, twin)
        assert equal(made, gradients(at(its_clock, twin, x, 2, torch.arange(3)), twin))


def test_no_layer_and_no_checkpoint_holds_anything_of_a_clock():
    model = net()
    keys = list(model.state_dict())
    MaskClock(model)
    assert list(model.state_dict()) == keys
    assert [name for name, _ in model.named_buffers()] == []


# Forwards that are repeated in backward


@pytest.mark.parametrize("inside", [True, False])
def test_a_checkpoint_repeats_the_address_of_its_forward(inside):
    model, x = torch.nn.Sequential(net(), torch.nn.Linear(8, 4), net()), torch.randn(3, 4)
    clock = MaskClock(model)
    wanted = gradients(at(clock, model, x, 0), model)

    def run():
        hidden = checkpoint(model[0], x, use_reentrant=False, context_fn=clock.recompute)
        return checkpoint(model[1:], hidden, use_reentrant=False, context_fn=clock.recompute)

    with clock.at(0, rows=torch.arange(3)):
        y = run()
        if inside:
            made = gradients(y, model)
    if not inside:
        with clock.at(1):  # what is open at backward does not matter
            model(x)
            made = gradients(y, model)
            again = model[0][1](torch.ones(3, 8))
        assert torch.equal(again != 0, keep_mask(clock.key("0.1", 1, call=1), 0.5, (3, 8)))
    assert equal(made, wanted)
    assert equal(gradients(y, model), wanted)  # and a second time


def test_a_checkpoint_in_a_checkpoint_and_a_layer_that_runs_again_repeat_their_calls():
    drop = nn.Dropout(0.5)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), drop, torch.nn.Linear(4, 4), drop)
    clock, x = MaskClock(model), torch.randn(3, 4)

    def inner(x):
        return model[2:](x)

    def outer(x):
        x = model[:2](x)
        return checkpoint(inner, x, use_reentrant=False, context_fn=clock.recompute)

    with clock.at(0):
        wanted = gradients(outer(outer(x)), model)
    with clock.at(0, rows=torch.arange(3)):
        y = x
        for _ in range(2):
            y = checkpoint(outer, y, use_reentrant=False, context_fn=clock.recompute)
    assert equal(gradients(y, model), wanted)


def test_a_checkpoint_outside_of_a_block_repeats_its_default_mode():
    model, x = net(), torch.randn(3, 4)
    clock = MaskClock(model)
    torch.manual_seed(3)
    wanted = gradients(model(x), model)
    torch.manual_seed(3)
    y = checkpoint(model, x, use_reentrant=False, context_fn=clock.recompute)
    with clock.at(0):
        assert equal(gradients(y, model), wanted)


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("options", [{"use_reentrant": False}, {"use_reentrant": True}])
def test_a_checkpoint_without_the_clock_is_refused_with_the_way_out(options, inside):
    model, x = net(), torch.randn(3, 4, requires_grad=True)
    clock = MaskClock(model)
    refused = pytest.raises(RuntimeError, match=r"Got '1' in a forward .* context_fn=clock\.recom")
    with clock.at(0):
        y = checkpoint(model, x, **options)
        if inside:
            with refused:
                y.sum().backward()
    if not inside:
        with refused:
            y.sum().backward()


@pytest.mark.parametrize("fullgraph", [True, False])
def test_a_compiled_model_in_a_checkpoint_without_the_clock_is_refused_too(fullgraph):
    torch._dynamo.reset()
    model, x = net(), torch.randn(3, 4)
    clock = MaskClock(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=fullgraph)
    for step in range(3):
        with clock.at(step):
            wanted = gradients(model(x), model)
        with clock.at(step, rows=torch.arange(3)):
            y = checkpoint(compiled, x, use_reentrant=False, context_fn=clock.recompute)
        assert equal(gradients(y, model), wanted)
    with clock.at(3):
        y = checkpoint(compiled, x, use_reentrant=False)
        with pytest.raises(Exception, match=r"repeated in backward.*context_fn=clock\.recompute"):
            gradients(y, model)


# What is refused


def test_a_step_that_was_used_needs_rows():
    model, x = net(), torch.randn(3, 4)
    clock = MaskClock(model)
    at(clock, model, x, 3)
    with pytest.raises(ValueError, match=r"^`step` of at must be .*`rows`\. Got 3\. For micro-b"):
        at(clock, model, x, 3)
    at(clock, model, x, 3, rows=torch.arange(3))
    at(clock, model, x, 2)


def test_a_block_that_fails_has_not_used_its_step_and_is_closed():
    model, x = net(), torch.randn(3, 4)
    clock = MaskClock(model)
    with pytest.raises(KeyboardInterrupt), clock.at(0):
        raise KeyboardInterrupt
    torch.manual_seed(0)
    model(x)
    at(clock, model, x, 0)


def test_blocks_are_not_nested():
    clock = MaskClock(net())
    with (
        clock.at(4),
        pytest.raises(RuntimeError, match=r"not be nested\. Got step 5 inside of step 4\."),
        clock.at(5),
    ):
        pass


@pytest.mark.parametrize("step", [-1, 2**32, 1.0, True, None, torch.tensor(3), "3"])
def test_a_bad_step_is_refused_in_one_line(step):
    with (
        pytest.raises((TypeError, ValueError), match=r"^`step` of at must be [^\n]+\.$"),
        MaskClock(net()).at(step),
    ):
        pass


@pytest.mark.parametrize(
    "rows",
    [
        [0, 1],
        torch.ones(3),
        torch.ones(3, dtype=torch.int32),
        torch.zeros(3, 1, dtype=torch.int64),
        torch.tensor([-1, 0]),
        torch.tensor([2**32]),
    ],
)
def test_bad_rows_are_refused_in_one_line(rows):
    clock = MaskClock(net())
    with (
        pytest.raises((TypeError, ValueError), match=r"^`rows` must be [^\n]+\.$"),
        clock.at(0, rows=rows),
    ):
        pass
    with clock.at(0):
        pass


def test_rows_that_do_not_fit_the_batch_are_refused():
    model = net()
    clock = MaskClock(model)
    for x in (torch.randn(4, 4), torch.randn(4), torch.randn(2, 3, 4)):
        with (
            pytest.raises(ValueError, match=r"^`rows` must be one position per index of the batch"),
            clock.at(0, rows=torch.arange(3)),
        ):
            model(x)


def test_the_rows_of_a_block_are_what_they_were_when_it_was_opened():
    model, x, rows = net(), torch.randn(3, 4), torch.arange(3)
    clock = MaskClock(model)
    wanted = at(clock, model, x, 0)
    with clock.at(0, rows=rows):
        rows.add_(5)
        assert torch.equal(model(x), wanted)


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, True, None])
def test_a_bad_seed_is_refused_in_one_line(seed):
    with pytest.raises((TypeError, ValueError), match=r"^`seed` of MaskClock must be [^\n]+\.$"):
        MaskClock(net(), seed=seed)


def test_a_model_that_has_nothing_for_a_clock_is_refused():
    with pytest.raises(ValueError, match=r"with a layer of sitout\.nn\. Got 'Linear without any'"):
        MaskClock(torch.nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"^`model` of MaskClock must be a torch\.nn\.Module\."):
        MaskClock([nn.Dropout()])


def test_what_a_clock_does_not_reach_is_told_of_once():
    layer = torch.nn.TransformerEncoderLayer(8, 2, dropout=0.1)
    model = torch.nn.Sequential(nn.Dropout(), layer, torch.nn.LSTM(4, 4, 2, dropout=0.1))
    with pytest.warns(UserWarning, match=r"not reach '1\.self_attn', '1\.dropout', .* 2 more:"):
        MaskClock(model)
    MaskClock(torch.nn.Sequential(nn.Dropout(), torch.nn.Dropout(0.0), torch.nn.LSTM(4, 4)))


def test_a_layer_with_a_generator_is_refused_and_no_layer_is_taken():
    model = net()
    clock = MaskClock(model)
    model.append(nn.Dropout(generator=torch.Generator()))
    for make_block in (lambda: MaskClock(model), lambda: clock.at(0).__enter__()):
        with pytest.raises(ValueError, match=r"^`generator` of the layer '4' must be None under"):
            make_block()
    del model[4]
    at(clock, model, torch.randn(3, 4), 0)


def test_a_later_clock_takes_over_and_the_first_one_says_so():
    model, x = net(), torch.randn(3, 4)
    first, later = MaskClock(model, seed=1), MaskClock(model, seed=2)
    with pytest.raises(RuntimeError, match=r"Got '\d' in the hands of a later MaskClock\."):
        at(first, model, x, 0)
    with later.at(0), pytest.raises(RuntimeError, match=r"not take over the layer '1' while"):
        MaskClock(model)
    y = at(later, model[1], torch.ones(2, 9), 1)
    assert torch.equal(y != 0, keep_mask(later.key("1", 1), 0.5, (2, 9)))


@every_layer
def test_a_replica_of_data_parallel_is_refused(name):
    layer = make(name)
    clock = MaskClock(layer)
    replica = layer._replicate_for_data_parallel()
    with (
        clock.at(0),
        pytest.raises(RuntimeError, match=r"replica of DataParallel.*parallel\.row"),
    ):
        replica(sample(name))


@every_layer
def test_vmap_under_a_clock_needs_to_say_same(name):
    layer, shape = make(name), CASES[name].shapes[0]
    clock, x = MaskClock(layer), sample(name, (3, *shape))
    with clock.at(0):
        y = torch.func.vmap(layer, randomness="same")(x)
    for one, made in zip(x, y, strict=True):
        assert_same(name, made, value(name, clock.key("", 0), one))
    for step, randomness in enumerate(("error", "different"), start=1):
        with (
            clock.at(step),
            pytest.raises(RuntimeError, match=rf"randomness='{randomness}', where"),
        ):
            torch.func.vmap(layer, randomness=randomness)(x)


def test_other_function_transforms_work_under_a_clock():
    model, x = net(), torch.randn(3, 4)
    clock, rows = MaskClock(model), torch.arange(3)
    wanted = gradients(at(clock, model, x, 0), model)

    def loss(parameters):
        return torch.func.functional_call(model, parameters, (x,)).square().sum()

    with clock.at(0, rows=rows):
        made = torch.func.grad(loss)(dict(model.named_parameters()))
    assert equal(made.values(), wanted)


def test_an_export_of_a_mask_is_refused():
    model, x = net(), torch.randn(3, 4)
    clock = MaskClock(model)
    for step, strict in enumerate((True, False)):
        with clock.at(step), pytest.raises(Exception, match=r"an export, which would freeze"):
            torch.export.export(model, (x,), strict=strict)


def test_a_trace_of_a_mask_is_refused():
    model, x = net(), torch.randn(3, 4)
    clock = MaskClock(model)
    with clock.at(0), pytest.raises(RuntimeError, match=r"a trace, which would freeze the mask"):
        make_fx(model)(x)


def test_a_clock_may_be_made_under_another_default_device():
    model = net()
    with torch.device("meta"):
        clock = MaskClock(model, seed=3)
        with clock.at(1):
            y = model[1](torch.ones(3, 8, device="cpu"))
    assert torch.equal(y != 0, keep_mask(clock.key("1", 1), 0.5, (3, 8)))


def test_a_block_in_compiled_code_is_refused_or_run_in_eager():
    torch._dynamo.reset()
    model, x = nn.Dropout(P), torch.randn(3, 4)
    clock = MaskClock(model)
    with pytest.raises(Exception, match=r"at of MaskClock must be outside of compiled code"):
        torch.compile(lambda: at(clock, model, x, 0), backend="aot_eager", fullgraph=True)()
    made = torch.compile(lambda: at(clock, model, x, 0), backend="aot_eager")()
    assert torch.equal(made, at(clock, model, x, 0, rows=torch.arange(3)))


def test_function_transforms_in_compiled_code_are_refused_under_a_clock():
    torch._dynamo.reset()
    layer, x = nn.Dropout(P), torch.randn(3, 4)
    clock = MaskClock(layer)
    same = torch.func.vmap(layer, randomness="same")
    run = torch.compile(same, backend="aot_eager", fullgraph=True)
    with clock.at(0), pytest.raises(Exception, match=r"a function transform in compiled code"):
        run(x)


def test_a_key_that_is_overwritten_before_backward_is_an_error_not_another_mask():
    step, x = torch.tensor(0), torch.ones(3, 4, requires_grad=True)
    y = sitout.functional.dropout(x, key=MaskKey(seed=1, step=step))
    step += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.filterwarnings("ignore")  # torch's own, in operators that are prototypes
@pytest.mark.parametrize("operator", ["cond", "scan", "map", "while_loop"])
def test_operators_that_repeat_a_body_are_refused(operator):
    torch._dynamo.reset()
    layer, x = nn.Dropout(P), torch.ones(4, 40)
    clock = MaskClock(layer)
    ops = torch._higher_order_ops
    runs = {
        "cond": lambda: torch.cond(torch.tensor(True), layer, torch.sin, (x,)),
        "scan": lambda: ops.scan(lambda c, row: (c + layer(row), c + row), x[0], x),
        "map": lambda: ops.map(layer, x),
        "while_loop": lambda: torch.compile(ops.while_loop, backend="aot_eager", fullgraph=True)(
            lambda i, x: i < 3, lambda i, x: (i + 1, layer(x)), (torch.tensor(0), x)
        ),
    }
    with clock.at(0), pytest.raises(Exception, match=r"one mask for all of its iterations"):
        runs[operator]()


# Models that change


def test_numbers_belong_to_names_so_no_two_layers_share_one():
    model = torch.nn.Sequential(nn.Dropout(P), torch.nn.Identity(), nn.Dropout(P))
    clock, x = MaskClock(model, seed=5), torch.ones(4, 40)
    changes = [
        lambda: model.insert(0, nn.Dropout(P)),
        lambda: model.__delitem__(1),
        lambda: model.append(nn.Dropout(P)),
        lambda: model.__setitem__(0, torch.nn.Identity()),
    ]
    for step, change in enumerate(changes):
        change()
        with clock.at(step):
            made = {name: layer(x) for name, layer in model.named_children() if hasattr(layer, "p")}
        for name, y in made.items():
            assert torch.equal(y != 0, keep_mask(clock.key(name, step), P, x.shape))
        again = MaskClock(copy.deepcopy(model))
        again.load_state_dict(clock.state_dict())
        assert all(again.key(name, step) == clock.key(name, step) for name in made)
    first, last = model[1], model[2]
    model[1], model[2] = last, first
    with clock.at(9):
        assert torch.equal(last(x) != 0, keep_mask(clock.key("1", 9), P, x.shape))


def test_a_checkpoint_survives_a_change_of_the_model_before_its_backward():
    model = torch.nn.ModuleDict({"a": nn.Dropout(0.5), "b": nn.Dropout(0.5)})
    clock, x = MaskClock(model), torch.randn(4, 40, requires_grad=True)
    with clock.at(0):
        model["a"](x), model["a"](x)
        wanted = torch.autograd.grad(model["b"](x).sin().sum(), x)[0]
    with clock.at(0, rows=torch.arange(4)):
        model["a"](x), model["a"](x)
        y = checkpoint(
            lambda x: model["b"](x).sin(), x, use_reentrant=False, context_fn=clock.recompute
        )
    model["a"] = nn.Dropout(0.5)
    with clock.at(1):
        (made,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(made, wanted)


def test_a_copy_and_a_model_whose_clock_is_gone_may_be_checkpointed_in_default_mode():
    model, x = net(), torch.randn(3, 4)
    clock = MaskClock(model)
    twin = copy.deepcopy(model)
    del clock
    for orphan in (twin, model):
        torch.manual_seed(3)
        wanted = gradients(orphan(x), orphan)
        torch.manual_seed(3)
        assert equal(gradients(checkpoint(orphan, x, use_reentrant=False), orphan), wanted)


def test_a_clock_that_is_refused_takes_no_layer():
    model = torch.nn.Sequential(nn.Dropout(), torch.nn.Dropout(0.5))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        clock = MaskClock(model)
    with pytest.raises(UserWarning, match="does not reach"):
        MaskClock(model)
    at(clock, model, torch.ones(3), 0)


def test_what_autograd_saved_is_what_backward_reads():
    """With hooks that copy, the address may be overwritten, and the mask is still the first one."""
    step, x = torch.tensor(0), torch.ones(3, 40, requires_grad=True)
    saving = torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda saved: saved)
    with saving:
        y = sitout.functional.dropout(x, key=MaskKey(seed=1, step=step))
    step += 1
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(grad, y.detach())


def test_a_resumed_run_is_the_same_compiled():
    torch._dynamo.reset()
    model, x = net(), torch.randn(3, 4)
    clock = MaskClock(model, seed=17)
    wanted = at(clock, model, x, 3)
    twin = copy.deepcopy(model)
    again = MaskClock(twin, seed=4)
    compiled = torch.compile(twin, backend="aot_eager", fullgraph=True)
    at(again, compiled, x, 0)
    again.load_state_dict({**clock.state_dict(), "sites": {"1": 0, "3": 1}, "used": []})
    assert torch.equal(at(again, compiled, x, 3), wanted)
    again.load_state_dict({**clock.state_dict(), "sites": {"1": 1, "3": 0}, "used": []})
    assert not torch.equal(at(again, compiled, x, 3), wanted)
