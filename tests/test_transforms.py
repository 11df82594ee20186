"""The battery, second half: what transforms, compilers and exporters make of each layer."""

from __future__ import annotations

import io
import itertools
import threading
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

import sitout
from battery import (
    CASES,
    NAMES,
    P,
    assert_same,
    every_layer,
    make,
    sample,
    scale_of,
    slope,
    ticket,
    value,
)
from sitout import MaskClock, nn
from sitout.masks import MaskKey, keep_mask, rate_data

OP = torch.ops.sitout.drop.default

torch_imports = pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
torch_speaks = pytest.mark.filterwarnings(  # of a Function that dynamo makes an instance of
    "ignore:<class 'torch.autograd.function.Function'> should not be instantiated"
    ":DeprecationWarning"
)


@pytest.fixture
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


compiles = pytest.mark.usefixtures("_fresh_dynamo")


def counted(run, backend="aot_eager", **options):
    """Return ``run`` compiled into one graph, and the counter of its compilations."""
    counter = CompileCounterWithBackend(backend)
    return torch.compile(run, backend=counter, fullgraph=True, **options), counter


def at_seed(seed, run, *inputs):
    torch.manual_seed(seed)
    return run(*inputs)


def grads(y, x):
    return torch.autograd.grad(y.square().sum(), x, retain_graph=True)[0]


def equal(a, b):
    return all(torch.equal(one, other) for one, other in zip(a, b, strict=True))


# torch.compile


@compiles
@every_layer
def test_compiled_training_is_eager_training_in_one_graph(name):
    """Equal seeds give equal bits where the backend runs ``randint`` as eager does.

    Two layers on one input, one of them in place, keep two masks; every call has fresh ones.
    """
    plain, inplace = make(name), make(name, inplace=True)

    def run(x):
        return plain(x), inplace(x * 1)  # a leaf may not be written into

    compiled, counter = counted(run)
    x, runs = sample(name, requires_grad=True), []
    for made in (run, compiled):
        torch.manual_seed(3)
        outs = [y for _ in range(5) for y in made(x)]
        runs.append(outs + [grads(y, x) for y in outs])
    assert equal(*runs)
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(outs, 2))
    assert counter.frame_count == 1


@compiles
@every_layer
def test_a_compiled_graph_takes_every_batch_size(name):
    layer, (_, *rest) = make(name), CASES[name].shapes[0]
    compiled, counter = counted(layer, dynamic=True)
    compiled(torch.randn(13, *rest))
    frames = counter.frame_count  # dynamo starts over once, for it took the rate for a symbol
    for size in (6, 11, 8, 19):  # unlike the other dims, which dynamo would tie to them
        x = torch.randn(size, *rest)
        assert torch.equal(at_seed(size, compiled, x), at_seed(size, layer, x))
    assert counter.frame_count == frames <= 2


@compiles
@every_layer
def test_nothing_is_saved_by_a_compiled_graph_but_the_address(name):
    layer, x, saved = make(name), sample(name, requires_grad=True), []

    def pack(tensor):
        saved.append(tensor)
        return tensor

    compiled, _ = counted(layer)
    compiled(x)  # what is compiled while hooks are on would have them in it
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        compiled(x)
    assert [(tensor.dtype, tensor.numel()) for tensor in saved] == [(torch.int64, 1)]


@compiles
@every_layer
def test_steps_of_a_clock_pass_without_another_compilation(name):
    model = torch.nn.Sequential(make(name), make(name))
    clock = MaskClock(model, seed=17)
    compiled, counter = counted(model)
    x = sample(name, requires_grad=True)
    rows = torch.arange(len(x))
    for step in range(20):
        with clock.at(step):
            made = compiled(x)
        with clock.at(step, rows=rows):
            wanted = model(x)
        assert torch.equal(made, wanted)
        assert torch.equal(grads(made, x), grads(wanted, x))
    assert counter.frame_count == 1


@compiles
def test_equal_blocks_share_one_compilation_although_each_has_its_own_number():
    blocks = torch.nn.ModuleList(torch.nn.Sequential(nn.Dropout(P)) for _ in range(12))
    clock, counter = MaskClock(blocks), CompileCounterWithBackend("aot_eager")
    for block in blocks:
        block.compile(backend=counter, fullgraph=True)
    x = torch.randn(5, 7)
    with clock.at(0):
        made = [block(x) for block in blocks]
    for site, y in enumerate(made):
        assert torch.equal(y != 0, keep_mask(clock.key(site, 0), P, x.shape))
    assert counter.frame_count == 1


@compiles
def test_a_layer_that_runs_again_in_a_block_has_another_mask_compiled_too():
    layer = nn.Dropout(P)
    clock, x = MaskClock(layer), torch.randn(5, 7)
    compiled, _ = counted(lambda x: (layer(x), layer(x)))
    with clock.at(3):
        made = [*compiled(x), *compiled(x), layer(x)]
    for call, y in enumerate(made):
        assert torch.equal(y != 0, keep_mask(MaskKey(0, 0, 3, call), P, x.shape))


@compiles
@pytest.mark.parametrize("clocked", [False, True])
@every_layer
def test_a_checkpoint_in_compiled_code_changes_nothing(name, clocked):
    results = []
    for saves in (True, False):
        torch.manual_seed(0)
        layer = make(name)
        model = torch.nn.Sequential(layer, torch.nn.Tanh(), layer, make(name))
        clock = MaskClock(model, seed=3)
        x = sample(name, requires_grad=True)
        options = {"context_fn": clock.recompute} if clocked else {}

        def run(x, saves=saves, model=model, options=options):
            return model(x) if saves else checkpoint(model, x, use_reentrant=False, **options)

        compiled, counter = counted(run)
        torch.manual_seed(1)
        made = []
        for step in range(3):
            with clock.at(step) if clocked else nullcontext():
                y = compiled(x)
            made += [y, grads(y, x)]
        results.append(made)
        assert counter.frame_count == 1
    assert equal(*results)


def every_kind(inplace=False):
    """Return a function of one input a layer, all in one graph, and the inputs."""
    layers = torch.nn.ModuleList(make(name, inplace=inplace) for name in NAMES)
    inputs = [sample(name, requires_grad=True) for name in NAMES]

    def run(*inputs):
        return [layer(x * 1.0) for layer, x in zip(layers, inputs, strict=True)]

    return layers, run, inputs


@compiles
@torch_imports
@pytest.mark.parametrize("options", [{}, {"mode": "reduce-overhead"}], ids=str)
def test_inductor_draws_fresh_masks_and_pairs_backward_with_forward(options):
    _, run, inputs = every_kind()
    compiled = torch.compile(run, fullgraph=True, **options)
    first, second = compiled(*inputs), compiled(*inputs)
    for name, x, a, b in zip(NAMES, inputs, first, second, strict=True):
        assert not torch.equal(a, b)
        (grad,) = torch.autograd.grad(a.sum(), x, retain_graph=True)
        if CASES[name].kind == "mask":
            kept = torch.where(grad != 0, x.detach() * torch.tensor(scale_of()), 0.0)
            assert torch.equal(a.detach(), kept)
        if CASES[name].kind == "noise":
            assert torch.allclose(a.detach(), grad * x.detach())


@compiles
@torch_imports
def test_inductor_gives_the_masks_of_eager_under_a_clock():
    layers, run, inputs = every_kind()
    clock = MaskClock(layers, seed=17)
    compiled = torch.compile(run, fullgraph=True)
    for step in range(3):
        rows = [torch.arange(len(x)) for x in inputs]
        with clock.at(step):
            made = compiled(*inputs)
        for name, layer, x, y, row in zip(NAMES, layers, inputs, made, rows, strict=True):
            with clock.at(step, rows=row):
                assert_same(name, y, layer(x))
            assert_same(name, grads(y, x), grads(layer_at(clock, layer, step, row, x), x))


def layer_at(clock, layer, step, rows, x):
    with clock.at(step, rows=rows):
        return layer(x)


def targets(graph):
    return [str(node.target) for node in graph.nodes if node.op.startswith("call")]


def models(name):
    without = torch.nn.Sequential(torch.nn.Tanh(), torch.nn.Sigmoid())
    return torch.nn.Sequential(torch.nn.Tanh(), make(name), torch.nn.Sigmoid()), without


@compiles
@every_layer
def test_compiled_evaluation_leaves_no_trace_of_a_layer(name):
    seen = []

    def record(module, _):
        seen.append(targets(module.graph))
        return module.forward

    for model in models(name):
        torch.compile(model.eval(), backend=record, fullgraph=True)(sample(name))
    with_layer, without = seen
    assert [t.split("_")[-1] for t in with_layer] == [t.split("_")[-1] for t in without] != []


@compiles
@torch_speaks
@every_layer
def test_function_transforms_work_in_compiled_code(name):
    layer = make(name)

    def run(x):
        different = torch.func.vmap(layer, randomness="different")(x)
        return different, torch.func.grad(lambda x: layer(x).square().sum())(x[0])

    x = sample(name, (2, *CASES[name].shapes[0]))
    compiled, _ = counted(run)
    assert equal(at_seed(5, compiled, x), at_seed(5, run, x))


# torch.utils.checkpoint


@pytest.mark.parametrize("reentrant", [False, True])
@every_layer
def test_a_checkpoint_repeats_the_mask_of_its_forward(name, reentrant):
    layer = make(name)
    model = torch.nn.Sequential(torch.nn.Tanh(), layer, torch.nn.Tanh(), make(name))
    x = sample(name, requires_grad=True)
    plain = at_seed(5, model, x)
    torch.manual_seed(5)
    again = checkpoint(model, x, use_reentrant=reentrant)
    assert torch.equal(plain, again)
    torch.rand(7)  # what others draw before backward does not matter
    for y in (plain, again):
        x.grad = None
        y.square().sum().backward()
        y.grads = x.grad
    assert torch.equal(plain.grads, again.grads)


@pytest.mark.parametrize("reentrant", [False, True])
@every_layer
def test_a_generator_in_a_checkpoint_is_refused_for_nobody_would_restore_it(name, reentrant):
    layer = make(name, generator=torch.Generator())
    x = sample(name, requires_grad=True)
    y = checkpoint(torch.nn.Sequential(layer, torch.nn.Tanh()), x, use_reentrant=reentrant)
    with pytest.raises(RuntimeError, match=r"^`generator` of .* repeated in backward.*MaskClock"):
        y.sum().backward()


# torch.func


@every_layer
def test_vmap_gives_every_example_the_same_mask_or_its_own_or_refuses(name):
    layer, shape = make(name), CASES[name].shapes[0]
    x = sample(name, (3, *shape))
    key = ticket()
    same = torch.func.vmap(layer, randomness="same")(x)
    for one, made in zip(x, same, strict=True):
        assert_same(name, made, value(name, key, one))
    ones = torch.ones_like(x)
    different = torch.func.vmap(layer, randomness="different")(ones)
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(different, 2))
    with pytest.raises(RuntimeError, match="randomness error mode"):
        torch.func.vmap(layer)(x)


def function_of(name):
    """Return the function of the same stem: ``drop_path`` of ``DropPath``."""
    stems = {one.replace("_", ""): one for one in sitout.functional.__all__}
    return getattr(sitout.functional, stems[name.lower()])


@every_layer
def test_vmap_over_keys_is_the_loop_over_keys(name):
    shape, drop = CASES[name].shapes[0], function_of(name)
    x, seeds = sample(name, (4, *shape)), torch.randint(2**62, (4,))

    def run(x, seed):
        return drop(x, P, key=MaskKey(seed=seed))

    wanted = torch.stack([run(*pair) for pair in zip(x, seeds, strict=True)])
    assert torch.equal(torch.func.vmap(run)(x, seeds), wanted)
    assert torch.equal(torch.func.vmap(run, in_dims=(None, 0))(x[0], seeds)[0], wanted[0])
    nested = torch.func.vmap(torch.func.vmap(run))(x.unflatten(0, (2, 2)), seeds.view(2, 2))
    assert torch.equal(nested.flatten(0, 1), wanted)


@every_layer
def test_vmap_gives_the_gradients_of_each_example(name):
    layer, x = make(name), sample(name, (3, *CASES[name].shapes[0]))
    key = ticket()
    made = torch.func.vmap(torch.func.grad(lambda x: layer(x).sum()), randomness="same")(x)
    for grad, one in zip(made, x, strict=True):
        assert_same(name, grad, slope(name, key, one).to(x.dtype) + 0.0)


@torch_imports
@every_layer
def test_function_transforms_give_the_derivative_at_the_ticket(name):
    layer, x = make(name), sample(name, dtype=torch.float64)
    tangent, wanted = torch.randn_like(x), slope(name, ticket(), x).to(x.dtype)
    state = torch.get_rng_state()

    def at_ticket(transform):
        torch.set_rng_state(state)
        return transform()

    grad = at_ticket(lambda: torch.func.grad(lambda x: layer(x).sum())(x))
    _, pull = at_ticket(lambda: torch.func.vjp(layer, x))
    _, push = at_ticket(lambda: torch.func.jvp(layer, (x,), (tangent,)))
    assert torch.allclose(grad, wanted)
    assert torch.allclose(pull(tangent)[0], tangent * wanted)
    assert torch.allclose(push, tangent * wanted)
    few = x.flatten()[: x.shape[-1]]
    if layer.__class__ in (nn.Dropout, nn.AlphaDropout, nn.GaussianDropout):
        torch.set_rng_state(state)
        small = slope(name, ticket(), few).to(few.dtype)
        for jacobian in (torch.func.jacrev, torch.func.jacfwd):
            options = {"randomness": "same"} if jacobian is torch.func.jacfwd else {}
            made = at_ticket(lambda f=jacobian, o=options: f(layer, **o)(few))
            assert torch.allclose(made, small.diag())


@every_layer
def test_a_hessian_goes_through_a_layer(name):
    layer, shape = make(name), CASES[name].shapes[0]
    x = sample(name, tuple(min(size, 2) for size in shape), dtype=torch.float64)
    wanted = slope(name, ticket(), x).to(x.dtype).square().flatten() * 2
    hessian = torch.func.jacrev(torch.func.jacrev(lambda x: layer(x).square().sum()))(x)
    assert torch.allclose(hessian.reshape(x.numel(), x.numel()), wanted.diag())


@torch_imports
@every_layer
def test_forward_mode_goes_through_a_layer(name):
    layer, x = make(name), sample(name)
    tangent, key = torch.randn_like(x), ticket()
    with torch.autograd.forward_ad.dual_level():
        out = layer(torch.autograd.forward_ad.make_dual(x, tangent))
        made = torch.autograd.forward_ad.unpack_dual(out).tangent
    wanted = tangent * slope(name, key, x).to(x.dtype)
    assert_same(name, made, wanted + 0.0)


@torch_imports
@every_layer
def test_forward_mode_goes_through_a_layer_under_a_mode_and_a_default_device(name):
    layer, x = make(name), sample(name)
    tangent, key = torch.randn_like(x), ticket()
    with torch.device("cpu"), torch.autograd.forward_ad.dual_level():
        out = layer(torch.autograd.forward_ad.make_dual(x, tangent))
        made = torch.autograd.forward_ad.unpack_dual(out).tangent
    assert_same(name, made, tangent * slope(name, key, x).to(x.dtype) + 0.0)


@torch_imports
@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning")  # torch's own
@every_layer
def test_a_linearized_function_is_its_slope(name):
    """With a key: torch calls what it linearizes twice, and would draw twice."""
    key, x = MaskKey(seed=7), sample(name)
    tangent = torch.randn_like(x)
    out, push = torch.func.linearize(partial(function_of(name), p=P, key=key), x)
    assert_same(name, out, value(name, key, x))
    assert torch.allclose(push(tangent), tangent * slope(name, key, x).to(x.dtype))


@every_layer
def test_functional_call_is_the_call(name):
    model = torch.nn.Sequential(torch.nn.Tanh(), make(name))
    x = sample(name)
    made = at_seed(5, lambda: torch.func.functional_call(model, {}, (x,)))
    assert torch.equal(made, at_seed(5, model, x))


@every_layer
def test_batched_gradients_go_through_backward(name):
    """``is_grads_batched``, of which ``autograd.functional.jacobian`` is made."""
    layer, x = make(name), sample(name, requires_grad=True)
    key = ticket()
    y = layer(x)
    upstream = torch.randn(3, *y.shape)
    (made,) = torch.autograd.grad(y, x, upstream, is_grads_batched=True)
    assert_same(name, made, (upstream * slope(name, key, x)).to(x.dtype) + 0.0)


# Tensors without values, modes, and the op


@every_layer
def test_a_fake_tensor_goes_through_and_draws_nothing_real(name):
    state = torch.get_rng_state()
    with FakeTensorMode():
        x = torch.empty(CASES[name].shapes[0], dtype=torch.bfloat16, requires_grad=True)
        y = make(name)(x)
        y.sum().backward()
    assert (y.shape, y.dtype, y.stride()) == (x.shape, x.dtype, x.stride())
    assert x.grad.shape == x.shape
    assert torch.equal(torch.get_rng_state(), state)


@every_layer
def test_a_meta_tensor_draws_nothing(name):
    state = torch.get_rng_state()
    x = sample(name, device="meta")
    x.requires_grad_()
    make(name)(x).sum().backward()
    assert x.grad.shape == x.shape
    assert torch.equal(torch.get_rng_state(), state)


@every_layer
def test_a_default_device_changes_nothing(name):
    layer, x = make(name), sample(name)
    wanted = at_seed(5, layer, x)
    with torch.device("meta"):
        made = at_seed(5, layer, x)
    assert torch.equal(made, wanted)


def laws():
    """Yield arguments of the op: every law, with each part of the address there and not there."""
    x, key = torch.randn(4, 6), torch.tensor(5)
    rows, counter = torch.tensor([3, 1, 4, 7]), torch.tensor(9 << 32 | 2)
    for law in ("dropout", "path", "alpha", "alpha_slope", "gaussian"):
        yield x, key, None, None, None, [], 0, None, 0.3, law
        yield x, key, counter, rows, [2, 30], [], 0, None, 0.3, law
        yield x, key, counter.expand(4), None, None, [1], 0, rate_data(0.3), 0.0, law
    yield x.bfloat16().t(), key, counter, None, None, [], 1, None, 0.001, "dropout"


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("arguments", list(laws()), ids=lambda arguments: arguments[-1])
def test_the_op_keeps_its_contract_with_torch(arguments, requires_grad):
    x, *rest = arguments
    x = x.clone().requires_grad_(requires_grad)
    torch.library.opcheck(OP, (x, *rest))
    if x.dtype == torch.float32:
        x = x.detach().double().requires_grad_()
        assert torch.autograd.gradcheck(lambda x: OP(x, *rest), x)
        assert torch.autograd.gradgradcheck(lambda x: OP(x, *rest), x)


@every_layer
def test_the_op_that_a_mode_sees_gives_the_values_of_the_direct_path(name):
    class Seen(torch.utils._python_dispatch.TorchDispatchMode):
        ops = ()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.ops = (*self.ops, func)
            return func(*args, **(kwargs or {}))

    layer, x = make(name), sample(name, requires_grad=True)
    wanted = at_seed(5, layer, x)
    with Seen() as seen:
        made = at_seed(5, layer, x)
        (grad,) = torch.autograd.grad(made.sum(), x)
    assert seen.ops.count(OP) == 2
    assert torch.equal(made, wanted)
    assert torch.equal(grad, torch.autograd.grad(wanted.sum(), x)[0])


@every_layer
def test_a_trace_of_make_fx_draws_anew_at_each_run(name):
    layer, x = make(name), sample(name)
    traced = make_fx(layer)(x)
    wanted = at_seed(5, layer, x)
    assert torch.equal(at_seed(5, traced, x), wanted)
    assert not torch.equal(traced(x), wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_layer
def test_autocast_reaches_what_is_around_a_layer_and_leaves_its_mask(name, dtype):
    shape = CASES[name].shapes[0]
    linear, layer = torch.nn.Linear(shape[-1], shape[-1]), make(name)
    x = sample(name, requires_grad=True)
    key = ticket()
    with torch.autocast("cpu", dtype=dtype):
        hidden = linear(x)
        y = layer(hidden)
        out = linear(y)
    assert hidden.dtype == y.dtype == out.dtype == dtype
    if CASES[name].kind == "mask":
        assert torch.equal(y, value(name, key, hidden).to(dtype))
    out.float().sum().backward()
    assert x.grad.dtype == torch.float32
    assert x.grad.isfinite().all()


# Export


@every_layer
def test_exported_evaluation_leaves_no_trace_of_a_layer(name):
    with_layer, without = (
        targets(torch.export.export(model.eval(), (sample(name),), strict=strict).graph)
        for model, strict in zip(models(name), (False, True), strict=True)
    )
    assert with_layer == without == ["aten.tanh.default", "aten.sigmoid.default"]


@pytest.mark.parametrize("strict", [False, True])
@every_layer
def test_exported_training_still_draws_and_still_has_a_gradient(name, strict):
    layer, x = make(name), sample(name, requires_grad=True)
    exported = torch.export.export(torch.nn.Sequential(layer), (x,), strict=strict)
    file = io.BytesIO()
    torch.export.save(exported, file)
    file.seek(0)
    run = torch.export.load(file).module()
    made, wanted = at_seed(5, run, x), at_seed(5, layer, x)
    assert torch.equal(made, wanted)
    assert torch.equal(grads(made, x), grads(wanted, x))
    assert not torch.equal(run(x), made)


@torch_imports
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@every_layer
def test_onnx_evaluation_leaves_no_trace_of_a_layer(name):
    onnx = pytest.importorskip("onnx")
    model, _ = models(name)
    x = sample(name)
    program = torch.onnx.export(model.eval(), (x,), dynamo=True, verbose=False).model_proto
    assert [node.op_type for node in program.graph.node] == ["Tanh", "Sigmoid"]
    session = onnx.reference.ReferenceEvaluator(program)
    (made,) = session.run(None, {program.graph.input[0].name: x.numpy()})
    assert torch.allclose(torch.from_numpy(made), model(x), atol=1e-6)


@every_layer
def test_a_symbolic_trace_leaves_nothing_of_a_layer_in_evaluation_and_is_refused_in_training(name):
    model, _ = models(name)
    assert targets(torch.fx.symbolic_trace(model.eval()).graph) == ["0", "2"]
    with pytest.raises(TypeError, match=r"must be a tensor\. Got .*trace.*torch\.export\.$"):
        torch.fx.symbolic_trace(model.train())


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
@every_layer
def test_a_trace_of_torchscript_is_refused_in_training(name):
    layer, x = make(name), sample(name)
    with pytest.raises(
        TypeError, match=r"no trace in training\. Got 'torch\.jit\.trace'\..*export"
    ):
        torch.jit.trace(layer, (x,))
    kinds = [node.kind() for node in torch.jit.trace(layer.eval(), (x,)).graph.nodes()]
    assert kinds == []


@compiles
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # dynamo's own
@pytest.mark.parametrize("name", ["Dropout", "GaussianDropout"])
def test_a_graph_that_would_draw_again_in_backward_is_refused_or_left(name):
    """With a memory budget below 1 the partitioner repeats ``randint``, and gradients are wrong."""
    layer = make(name)
    clock, x = MaskClock(layer), sample(name, requires_grad=True)
    with torch._functorch.config.patch(activation_memory_budget=0.5):
        compiled, _ = counted(layer)
        with pytest.raises(Exception, match=r"activation_memory_budget must be 1 for .*MaskClock"):
            compiled(x)
        with clock.at(0):
            made = compiled(x)
        left = torch.compile(lambda x: layer(x) * 2, backend="aot_eager")(x)
    for y in (made, left):
        (grad,) = torch.autograd.grad(y.sum(), x)
        assert torch.allclose(grad * x.detach(), y.detach())


# Threads and generators


@every_layer
def test_replicas_in_threads_draw_each_its_own_mask(name):
    """What ``DataParallel`` does: copies of a module that run at one time, one a thread."""
    model = torch.nn.Sequential(make(name))
    x, results = sample(name), {}
    start = threading.Barrier(8)

    def run(number):
        replica = model._replicate_for_data_parallel()
        replica._modules["0"] = model[0]._replicate_for_data_parallel()
        start.wait()
        results[number] = replica(x)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(results.values(), 2))


@every_layer
def test_a_generator_of_its_own_governs_a_layer_and_nothing_else_does(name):
    generator = torch.Generator().manual_seed(7)
    layer, x, state = make(name, generator=generator), sample(name), torch.get_rng_state()
    first, second = layer(x), layer(x)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    generator.manual_seed(7)
    assert torch.equal(layer(x), first)
    assert "generator=cpu" in repr(layer)
    state = generator.get_state()
    layer.eval()(x)
    assert torch.equal(generator.get_state(), state)


@compiles
@every_layer
def test_a_generator_in_compiled_code_is_refused_with_the_way_out(name):
    layer = make(name, generator=torch.Generator())
    with pytest.raises(Exception, match=r"None in compiled code.*draw_key"):
        torch.compile(layer, backend="aot_eager", fullgraph=True)(sample(name))


@pytest.mark.parametrize("given", [7, "cpu", torch.manual_seed])
@every_layer
def test_what_is_no_generator_is_refused(name, given):
    with pytest.raises(TypeError, match=rf"^`generator` of {name} must be a torch\.Generator or"):
        make(name, generator=given)
    with pytest.raises(TypeError, match=r"^`generator` of dropout must be a torch\.Generator or"):
        sitout.functional.dropout(torch.ones(3), generator=given)


# What is refused


def refused():
    nested = torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(4, 3)], layout=torch.jagged)
    yield nested, r"one tensor of one shape\. Got 'a nested tensor'\. Apply it to .*unbind\(\)\.$"
    yield torch.eye(3).to_sparse(), r"dense\. Got torch\.sparse_coo\. Apply it to x\.to_dense"
    yield torch.ones(3, dtype=torch.complex64), r"of a floating dtype in training\. Got torch\.comp"
    yield (
        torch.ones(3, dtype=torch.int64),
        r"of a floating .* Got torch\.int64\. Convert it with x\.float\(\)\.$",
    )
    yield [1.0, 2.0], r"a tensor\. Got 'list'\.$"
    yield 1.0, r"a tensor\. Got 'float'\.$"


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("name", ["AlphaDropout", "DropPath", "Dropout", "GaussianDropout"])
def test_what_no_mask_can_be_laid_over_is_refused_in_one_line(name):
    for given, message in refused():
        with pytest.raises(TypeError, match=rf"^The input of \w+ must be {message}"):
            make(name)(given)


@compiles
@torch_imports
def test_a_key_of_ints_may_change_in_compiled_code():
    def run(x, seed, site, step, call):
        return sitout.functional.dropout(x, P, key=MaskKey(seed, site, step, call))

    compiled, x = torch.compile(run, fullgraph=True), torch.ones(3, 40)
    for fields in ((3, 0, 0, 0), (2**62 + 5, 0, 7, 0), (4, 9, 8, 2), (5, 10, 2**32 - 1, 3)):
        assert torch.equal(compiled(x, *fields) != 0, keep_mask(MaskKey(*fields), P, x.shape))


# The address on its way through the op

WIDEST = {"seed": 2**64 - 1, "site": 2**28 - 1, "step": 2**32 - 1, "call": 2**32 - 1}


def tensor(value):
    return torch.tensor(value - (value >> 63 << 64))


@pytest.mark.parametrize("field", [*WIDEST, "all"])
@pytest.mark.parametrize("number", [0, 1, 2**31, "widest"])
def test_every_address_survives_its_packing(field, number):
    names = list(WIDEST) if field == "all" else [field]
    fields = {name: WIDEST[name] if number == "widest" else number for name in names}
    if "site" in fields:
        fields["site"] = min(fields["site"], WIDEST["site"])
    fields = {"seed": 3 << 40, **fields}
    x, drop = torch.ones(3, 40), sitout.functional.dropout
    wanted = keep_mask(MaskKey(**fields), P, x.shape)
    as_data = MaskKey(**{name: tensor(value) for name, value in fields.items()})
    per_row = MaskKey(**{**fields, "step": torch.full((3,), fields.get("step", 0))})
    for key in (MaskKey(**fields), as_data, per_row):
        assert torch.equal(drop(x, P, key=key) != 0, wanted)
        assert torch.equal(make_fx(partial(drop, p=P, key=key))(x)(x) != 0, wanted)


def test_a_step_a_row_goes_through_the_op():
    x, steps = torch.ones(4, 40), torch.tensor([5, 0, 2**32 - 1, 7])
    key = MaskKey(seed=1, site=9, step=steps)
    made = make_fx(lambda x, s: sitout.functional.dropout(x, P, key=MaskKey(1, 9, s)))(x, steps)
    other = torch.tensor([1, 2, 3, 4])
    assert torch.equal(made(x, steps) != 0, keep_mask(key, P, x.shape))
    assert torch.equal(made(x, other) != 0, keep_mask(MaskKey(1, 9, other), P, x.shape))
