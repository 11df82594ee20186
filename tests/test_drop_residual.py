"""A residual branch that runs on some samples is the masked one, with the same exact weights."""

from __future__ import annotations

import copy
import math
import re

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

from battery import ticket
from sitout import MaskClock, MaskKey, nn
from sitout import functional as F
from sitout.backends import count_samples, use
from sitout.masks import kept_samples
from thinning import close

KEY = MaskKey(seed=2**40 + 7, site=4, step=9, call=1)
RATES = [1e-9, 0.1, 0.3, 0.5, 0.9, 1 - 2.0**-20, 1.0]

every_form = pytest.mark.parametrize("form", ["thinned", "masked"])
torch_imports = pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")


@pytest.fixture
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


compiles = pytest.mark.usefixtures("_fresh_dynamo")


def branch(x):
    return x.sin() * 3 + x.square()


def weights_of(key, p, n, group=0):
    """Return the weight of each of ``n`` samples, 0 for those that sit out, and who is computed."""
    kept, weights = kept_samples(key, p, n, group=group)
    return torch.zeros(n, dtype=torch.float64).index_copy(0, kept, weights), kept


def column(weights, x):
    return weights.to(x.dtype).view(-1, *[1] * (x.dim() - 1))


def block(p=0.4, width=8, **options):
    torch.manual_seed(1)
    inner = torch.nn.Sequential(
        torch.nn.Linear(width, 2 * width), torch.nn.GELU(), torch.nn.Linear(2 * width, width)
    )
    return nn.DropResidual(inner.double(), p, **options)


def at_seed(seed, run, *inputs, **options):
    torch.manual_seed(seed)
    return run(*inputs, **options)


def results(run, x, params=()):
    x = x.detach().requires_grad_()
    y = run(x)
    upstream = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view(y.shape)
    grads = torch.autograd.grad(y, [x, *params], upstream, allow_unused=True)
    return [y.detach(), *grads]


# Values


@pytest.mark.parametrize("p", RATES)
@pytest.mark.parametrize("n", range(1, 10))
@every_form
def test_it_is_the_stream_and_the_weighted_branch_of_the_exact_law(form, n, p):
    x = torch.randn(n, 3, 2, dtype=torch.float64)
    weights, kept = weights_of(KEY, p, n)
    seen = []

    def watched(x):
        seen.append(len(x))
        return branch(x)

    made = results(lambda x: F.drop_residual(x, watched, p, form=form, key=KEY), x)
    wanted = results(lambda x: x + column(weights, x) * branch(x), x)
    assert close(made, wanted)
    assert torch.equal(made[0][weights == 0], x[weights == 0])
    assert seen == ([] if p == 1.0 else [len(kept) if form == "thinned" else n])
    assert p == 1.0 or len(kept) == count_samples(p, n)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(7,), (1, 1), (13, 5), (5, 3, 2, 2), (300, 211)], ids=str)
@every_form
def test_every_type_and_shape_has_the_values_of_a_wide_one(form, shape, dtype):
    x = torch.randn(shape).to(dtype)
    weights, _ = weights_of(KEY, 0.3, shape[0])
    for given in (x, torch.stack([x, -x], -1)[..., 0]):
        y = F.drop_residual(given, torch.tanh, 0.3, form=form, key=KEY)
        wanted = x.double() + column(weights, x.double()) * x.double().tanh()
        assert y.dtype == dtype
        assert close([y], [wanted], 4)
        assert torch.equal(y[weights == 0], x[weights == 0])


@pytest.mark.parametrize("p", [0.0, 0.4, 1.0])
@every_form
def test_an_empty_batch_goes_through(form, p):
    x = torch.randn(0, 3, requires_grad=True)
    state = torch.get_rng_state()
    y = F.drop_residual(x, branch, p, form=form)
    y.sum().backward()
    assert (y.shape, x.grad.shape) == ((0, 3), (0, 3))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("p", [0.0, 0.4, 1.0])
def test_evaluation_and_p_0_are_the_plain_sum_to_the_bit_and_draw_nothing(p):
    x, state = torch.randn(5, 3), torch.get_rng_state()
    wanted = x + branch(x)
    assert torch.equal(F.drop_residual(x, branch, p, False), wanted)
    assert torch.equal(F.drop_residual(x, branch, 0.0), wanted)
    assert torch.equal(nn.DropResidual(torch.nn.Tanh(), p).eval()(x), x + x.tanh())
    site = nn.ResidualDropPath(p).eval()
    assert site(x) is x
    assert torch.equal(site.add(x, branch), wanted)
    alone = F.drop_residual(x, branch, 1.0)
    assert torch.equal(alone, x)
    assert alone.data_ptr() != x.data_ptr()
    assert torch.equal(torch.get_rng_state(), state)


def test_the_branch_may_take_another_tensor_than_the_stream():
    x, source = torch.randn(2, 7, 3, dtype=torch.float64)
    weights, _ = weights_of(KEY, 0.4, 7)
    for form in ("thinned", "masked"):
        y = F.drop_residual(x, branch, 0.4, source=source, form=form, key=KEY)
        assert close([y], [x + column(weights, x) * branch(source)])
        site = nn.ResidualDropPath(0.4, form=form)
        assert close(
            [at_seed(5, site.add, x, branch, source)],
            [at_seed(5, F.drop_residual, x, branch, 0.4, source=source)],
        )


@pytest.mark.parametrize(("n", "p"), [(1, 0.3), (2, 0.3), (3, 0.5), (7, 0.4), (9, 0.9), (5, 0.05)])
def test_the_expected_weight_of_each_sample_is_1(n, p):
    """So the rate is true where a count of whole samples could not have it."""
    draws = 3000
    x = torch.zeros(n, 1, dtype=torch.float64)
    sums = torch.zeros(n, dtype=torch.float64)
    for seed in range(draws):
        y = F.drop_residual(x, torch.ones_like, p, key=MaskKey(seed=seed))
        assert set(y.flatten().tolist()) <= {0.0, 1 / (1 - p)}
        sums += y.flatten()
    error = math.sqrt(p / (1 - p) / draws)  # of the mean of one weight
    assert ((sums / draws - 1).abs() < 6 * error).all()
    out = 1 - float((sums * (1 - p)).sum()) / (n * draws)
    assert abs(out - p) < 6 * math.sqrt(p * (1 - p) / draws)


@every_form
def test_a_sample_of_weight_0_does_not_leak_what_its_branch_gives(form):
    key = next(
        key for key in map(MaskKey, range(99)) if 0.0 in kept_samples(key, 0.3, 3)[1].tolist()
    )
    weights, kept = weights_of(key, 0.3, 3)
    assert len(kept) == 3
    lost = int((weights == 0).nonzero())
    poison = torch.zeros(3, 1).index_fill(0, torch.tensor([lost]), math.nan)
    x, gain = torch.randn(3, 2, requires_grad=True), torch.ones(3, 2, requires_grad=True)
    y = F.drop_residual(x, lambda x: x * 2 * gain + poison, 0.3, form=form, key=key)
    upstream = torch.randn(3, 2)
    y.backward(upstream)
    assert y.isfinite().all()
    assert torch.equal(y[lost], x[lost])
    assert torch.equal(x.grad[lost], upstream[lost])
    assert torch.allclose(x.grad, upstream * (1 + 2 * column(weights, x)))
    assert not gain.grad[lost].any()


def test_the_stream_and_the_branch_are_not_written_into():
    x = torch.randn(6, 2)
    made = torch.randn(6, 2)
    held = x.clone(), made.clone()
    y = F.drop_residual(x, lambda x: made[: len(x)], 0.5, key=KEY)
    assert torch.equal(x, held[0])
    assert torch.equal(made, held[1])
    assert y.data_ptr() not in (x.data_ptr(), made.data_ptr())


def test_the_reference_has_the_same_values():
    x = torch.randn(9, 4, dtype=torch.float64)
    y = F.drop_residual(x, branch, 0.3, key=KEY)
    with use("reference"):
        assert close([F.drop_residual(x, branch, 0.3, key=KEY)], [y])


# Where the units come from


def test_one_ticket_is_drawn_for_each_call():
    x, layer, key = torch.randn(7, 8).double(), block(), ticket()
    y = layer(x)
    weights, _ = weights_of(key, 0.4, 7)
    assert close([y.detach()], [(x + column(weights, x) * layer.branch(x)).detach()])
    torch.manual_seed(3)
    first, second = layer(x), layer(x)
    assert not torch.equal(first, second)
    assert torch.equal(at_seed(3, layer, x), first)
    generator, state = torch.Generator().manual_seed(3), torch.get_rng_state()
    layer.generator = generator
    assert torch.equal(layer(x), first)
    assert torch.equal(torch.get_rng_state(), state)


@every_form
def test_as_a_drop_path_it_has_the_same_samples_and_weights(form):
    x, key = torch.randn(7, 8), ticket()
    weights, _ = weights_of(key, 0.4, 7)
    y = nn.ResidualDropPath(0.4, form=form)(x)
    assert close([y], [column(weights, x) * x], 4)
    assert not y[weights == 0].any()


@every_form
def test_under_a_clock_the_address_decides_and_micro_batches_are_groups(form):
    net = torch.nn.Sequential(block(form=form), block(0.3, form=form))
    clock, x = MaskClock(net, seed=17), torch.randn(8, 8, dtype=torch.float64)
    with clock.at(4):
        made = net(x)
    hidden = x
    for site, p in enumerate((0.4, 0.3)):
        weights, _ = weights_of(clock.key(site, 4), p, 8)
        hidden = hidden + column(weights, x) * net[site].branch(hidden)
    assert close([made.detach()], [hidden.detach()])
    for group, rows in enumerate(torch.arange(8).split(4)):
        with clock.at(5, rows=rows):
            part = net[0](x[rows])
        weights, _ = weights_of(clock.key(0, 5), 0.4, 4, group)
        wanted = x[rows] + column(weights, x[rows]) * net[0].branch(x[rows])
        assert close([part.detach()], [wanted.detach()])
    with clock.at(6):
        for call in range(3):
            weights, _ = weights_of(clock.key(0, 6, call), 0.4, 8)
            wanted = x + column(weights, x) * net[0].branch(x)
            assert close([net[0](x).detach()], [wanted.detach()])


@pytest.mark.parametrize("rows", [[2, 3, 4, 5], [0, 2, 1, 3], [0, 0, 0, 0], [0, 1, 2, 4]], ids=str)
@every_form
def test_rows_that_are_no_group_are_refused(form, rows):
    line = (
        "`rows` of drop_residual must be k * 4, k * 4 + 1, ... for a batch of 4. "
        f"Got {rows}. Cut the global batch into equal parts, as sitout.parallel.rows does."
    )
    x = torch.randn(4, 2)
    with pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
        F.drop_residual(x, branch, 0.5, form=form, key=KEY, rows=torch.tensor(rows))


# Gradients and transforms


@pytest.mark.parametrize("p", [0.3, 0.5])
@every_form
def test_it_has_gradients_of_every_order(form, p):
    x = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)

    def f(x, weight):
        return F.drop_residual(x.cos(), lambda x: (x @ weight).sin(), p, form=form, key=KEY)

    assert torch.autograd.gradcheck(f, (x, weight))
    assert torch.autograd.gradgradcheck(lambda *given: f(*given).square(), (x, weight))


@every_form
def test_parameters_of_the_branch_have_the_gradients_of_the_masked_sum(form):
    layer, x = block(form=form), torch.randn(9, 4, 8, dtype=torch.float64)
    params, key = list(layer.parameters()), ticket()
    weights, _ = weights_of(key, 0.4, 9)
    wanted = results(lambda x: x + column(weights, x) * layer.branch(x), x, params)
    assert close(results(layer, x, params), wanted)


@torch_imports
@every_form
def test_function_transforms_are_those_of_the_masked_sum(form):
    layer, x = block(form=form), torch.randn(7, 8, dtype=torch.float64)
    weights, _ = weights_of(at_seed(5, ticket), 0.4, 7)
    params = {name: one.detach() for name, one in layer.named_parameters()}

    def ours(params, x):
        return torch.func.functional_call(layer, params, (x,))

    def masked(params, x):
        inner = {name.removeprefix("branch."): one for name, one in params.items()}
        return x + column(weights, x) * torch.func.functional_call(layer.branch, inner, (x,))

    t, made = torch.randn_like(x), []
    for f in (ours, masked):
        grad = at_seed(5, torch.func.grad(lambda p, f=f: f(p, x).square().sum()), params)
        push = at_seed(5, torch.func.jvp, lambda x, f=f: f(params, x), (x,), (t,))
        made.append([*grad.values(), *push])
    assert close(*made)
    xs = torch.stack([x, -x, x.flip(0)])
    same = at_seed(5, torch.func.vmap(layer, randomness="same"), xs)
    assert close([same.detach()], [torch.stack([masked(params, x) for x in xs])])
    with pytest.raises(RuntimeError, match="randomness error mode"):
        torch.func.vmap(layer)(xs)


@pytest.mark.parametrize("p", [0.3, 0.4])
def test_vmap_may_give_each_example_its_own_samples(p):
    layer, x = block(p), torch.randn(7, 8, dtype=torch.float64)
    own = torch.func.vmap(layer, randomness="different")(torch.stack([x] * 8))
    assert not all(torch.equal(own[0], one) for one in own[1:])


@every_form
@pytest.mark.parametrize("clock_in", [False, True])
def test_a_checkpoint_repeats_its_samples(form, clock_in):
    layer, x = block(form=form), torch.randn(7, 8, dtype=torch.float64)
    params = list(layer.parameters())
    clock = MaskClock(layer) if clock_in else None
    options = {"context_fn": clock.recompute} if clock_in else {}

    def again(x):
        return checkpoint(layer, x, use_reentrant=False, **options)

    made = []
    for run in (layer, again):
        torch.manual_seed(5)
        if clock_in:
            with clock.at(0, rows=torch.arange(7)):
                made.append(results(run, x, params))
        else:
            made.append(results(run, x, params))
    assert close(*made)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_a_graph_it_gives_the_same(context):
    layer, x = block(), torch.randn(7, 8, dtype=torch.float64)
    wanted = at_seed(5, layer, x)
    with context():
        assert torch.equal(at_seed(5, layer, x.clone()), wanted)


@every_form
def test_autocast_reaches_the_branch_and_the_stream_keeps_its_type(form):
    layer, x = block(form=form).float(), torch.randn(7, 8)
    wanted = at_seed(5, layer, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = at_seed(5, layer, x)
    assert y.dtype == torch.float32
    assert torch.allclose(y, wanted, atol=0.05)
    y.sum().backward()
    assert all(one.grad.dtype == torch.float32 for one in layer.parameters())


def test_without_values_there_are_shapes():
    layer, state = block().to("meta"), torch.get_rng_state()
    y = layer(torch.empty(7, 8, dtype=torch.float64, device="meta"))
    assert (y.shape, y.device.type) == ((7, 8), "meta")
    assert torch.equal(torch.get_rng_state(), state)


# Compiled code


@compiles
@pytest.mark.parametrize("rows", [None, torch.arange(14, 21)], ids=["all", "rows"])
def test_compiled_code_is_one_graph_that_subsets_do_not_change(rows):
    net = torch.nn.Sequential(block(), block(0.3, form="masked"), nn.ResidualDropPath(0.5))
    clock, counter = MaskClock(net), CompileCounterWithBackend("aot_eager")
    made, params = torch.compile(net, backend=counter, fullgraph=True), list(net.parameters())
    x = torch.randn(7, 8, dtype=torch.float64)
    for step in range(5):
        with clock.at(step, rows=rows):
            ours = results(made, x, params)
        with clock.at(step, rows=torch.arange(7) if rows is None else rows):
            assert close(ours, results(net, x, params))
    assert counter.frame_count == 1


@compiles
def test_a_batch_of_another_size_compiles_once_more_at_most_and_rows_are_checked():
    layer, counter = block(0.3), CompileCounterWithBackend("aot_eager")
    clock = MaskClock(layer)
    made = torch.compile(layer, backend=counter, fullgraph=True)
    for size in (7, 9, 20, 10):
        x = torch.randn(size, 8, dtype=torch.float64)
        with clock.at(size):
            ours = made(x)
        with clock.at(size, rows=torch.arange(size)):
            assert close([ours.detach()], [layer(x).detach()])
    assert counter.frame_count <= 2
    x = torch.randn(8, 8, dtype=torch.float64)
    refused = pytest.raises(RuntimeError, match="`rows` of drop_residual must be k")
    with clock.at(0, rows=torch.arange(1, 9)), refused:
        made(x)


# Batch normalization


class Normed(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(3)
        self.seen = []

    def forward(self, x):
        self.seen.append(len(x))
        return self.norm(x)


def test_batch_normalization_has_the_kept_samples_or_runs_masked_if_they_are_too_few():
    layer = nn.DropResidual(Normed(), 0.5)
    x, key = torch.randn(8, 3), ticket()
    y = layer(x)
    weights, kept = weights_of(key, 0.5, 8)
    some = torch.nn.functional.batch_norm(x[kept], None, None, training=True) * 2
    assert close([y.detach()], [x.index_add(0, kept, some)])
    assert layer.branch.seen == [4]
    few = nn.DropResidual(Normed(), 0.9)
    x, key = torch.randn(8, 3), ticket()
    weights, kept = weights_of(key, 0.9, 8)
    assert len(kept) == 1
    y = few(x)
    whole = torch.nn.functional.batch_norm(x, None, None, training=True)
    assert close([y.detach()], [x + column(weights, x) * whole])
    assert few.branch.seen == [8]
    few.branch.norm.eval()
    few(x)
    assert few.branch.seen == [8, 1]


# What explain says


@pytest.mark.parametrize(
    ("layer", "n", "form", "why"),
    [
        (nn.ResidualDropPath(0.4).eval(), 32, "full", "nothing sits out: it is in evaluation mode"),
        (nn.ResidualDropPath(0.0), 32, "full", "nothing sits out: p is 0"),
        (nn.ResidualDropPath(0.4), 32, "thinned", "20 of 32 samples are computed"),
        (nn.ResidualDropPath(0.4, form="masked"), 32, "masked", "form='masked' was asked for"),
        (nn.ResidualDropPath(0.01, form="thinned"), 9, "thinned", "form='thinned' was asked for"),
        (
            nn.ResidualDropPath(0.04),
            32,
            "masked",
            "31 of 32 samples would be computed; it pays from 5% left out",
        ),
        (
            nn.DropResidual(Normed(), 0.9),
            8,
            "masked",
            "batch statistics take at least 2 samples",
        ),
        (nn.DropResidual(torch.nn.Linear(3, 3), 0.9), 8, "thinned", "1 of 8 samples are computed"),
    ],
    ids=repr,
)
def test_a_block_says_which_form_it_takes_and_why_and_takes_it(layer, n, form, why):
    x, seen = torch.randn(n, 3), []
    explained = layer.explain(x)
    assert (explained.backend, explained.why) == (form, why)
    inner = layer._branch() or (lambda x: x)

    def watched(x):
        seen.append(len(x))
        return inner(x)

    if form != "full" and not isinstance(layer, nn.DropResidual):
        layer.add(x, watched)
        assert seen == [n if form == "masked" else count_samples(layer.p, n)]


def test_a_block_shows_its_options_and_is_copied_with_its_branch():
    assert repr(nn.ResidualDropPath(0.1)) == "ResidualDropPath(p=0.1)"
    site = nn.ResidualDropPath(0.1, form="masked", generator=torch.Generator())
    assert repr(site) == "ResidualDropPath(p=0.1, form='masked', generator=cpu)"
    layer, x = block(), torch.randn(7, 8, dtype=torch.float64)
    twin = copy.deepcopy(layer)
    assert torch.equal(at_seed(5, twin, x), at_seed(5, layer, x))
    assert [*layer.state_dict()] == [f"branch.{name}" for name in layer.branch.state_dict()]


# Errors

X = torch.ones(4, 3)


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (
            lambda: F.drop_residual(X, branch, 1.5),
            "`p` of drop_residual must be a number in [0, 1]. Got 1.5.",
        ),
        (
            lambda: F.drop_residual(X, branch, 0.5, form="thin"),
            "`form` of drop_residual must be one of auto, thinned, masked. Got 'thin'. "
            "Did you mean 'thinned'?",
        ),
        (
            lambda: F.drop_residual(X, X, 0.5),
            "`branch` of drop_residual must be what takes a tensor. "
            f"Got {' '.join(repr(X).split())}.",
        ),
        (
            lambda: F.drop_residual(X, lambda x: x[:, :2], 0.5, form="thinned"),
            "The branch of drop_residual must be of the shape of its input, (2, 3). Got (2, 2).",
        ),
        (
            lambda: F.drop_residual(X, lambda x: x[:1], 0.5, form="masked"),
            "The branch of drop_residual must be of the shape of its input, (4, 3). Got (1, 3).",
        ),
        (
            lambda: F.drop_residual(X, lambda x: x[:1], 0.5, False),
            "The branch of drop_residual must be of the shape of its input, (4, 3). Got (1, 3).",
        ),
        (
            lambda: F.drop_residual(X, branch, 0.5, source=torch.ones(3, 3)),
            "The input of drop_residual must be [B, ...] samples. Got '(4, 3) and (3, 3)'.",
        ),
        (
            lambda: F.drop_residual(torch.tensor(1.0), branch, 0.5),
            "The input of drop_residual must be [B, ...] samples. Got '() and ()'.",
        ),
        (
            lambda: F.drop_residual(X.long(), branch, 0.5),
            "The input of drop_residual must be of a floating dtype in training. Got torch.int64. "
            "Convert it with x.float().",
        ),
        (
            lambda: F.drop_residual(X, branch, 0.5, rows=torch.arange(3)),
            "`rows` must be one position per index of the batch dim, [4]. Got (3,). For a tensor "
            "flattened to [B*T, C] pass rows.repeat_interleave(T).",
        ),
        (
            lambda: F.drop_residual(X, branch, 0.5, key=KEY, generator=torch.Generator()),
            "The randomness of drop_residual must be given as `key` or as `generator`. Got 'both'.",
        ),
        (
            lambda: F.drop_residual(X, branch, 0.5, key=7),
            "`key` of drop_residual must be a MaskKey. Got 7.",
        ),
        (
            lambda: nn.ResidualDropPath(1.5),
            "`p` of ResidualDropPath must be a number in [0, 1]. Got 1.5.",
        ),
        (
            lambda: nn.DropResidual(torch.tanh, 0.5),
            f"`branch` of DropResidual must be a torch.nn.Module. Got {torch.tanh!r}.",
        ),
        (
            lambda: nn.DropResidual(torch.nn.Tanh(), 0.5).schedulable_(),
            "The rate of DropResidual must be a number. Got 'data'. Set p; compiled code compiles "
            "anew for each rate.",
        ),
    ],
)
def test_what_is_wrong_is_refused_in_one_line(call, line):
    with pytest.raises((TypeError, ValueError)) as refused:
        call()
    assert " ".join(str(refused.value).split()) == line
    assert "\n" not in str(refused.value)
