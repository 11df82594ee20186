"""The functions against the specification, written a second time in numpy."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from torch.utils.checkpoint import checkpoint

from battery import FUSED, OF_SUBSETS
from sitout import functional as F
from sitout import masks
from sitout.masks import MaskKey, keep_mask, normals

KEY = MaskKey(seed=2**63 + 3 * 2**32 + 11, site=3, step=5, call=2)

# A shape to call it with, and the dims along which one unit serves all.
FUNCTIONS = {
    "alpha_dropout": ((3, 5, 7), ()),
    "drop_path": ((37, 2, 3), (1, 2)),
    "dropout": ((3, 5, 7), ()),
    "dropout1d": ((5, 17, 3), (2,)),
    "dropout2d": ((5, 17, 3, 2), (2, 3)),
    "dropout3d": ((5, 17, 3, 2, 1), (2, 3, 4)),
    "feature_alpha_dropout": ((5, 17, 3), (2,)),
    "gaussian_dropout": ((3, 5, 7), ()),
}
SCALED = [name for name in FUNCTIONS if "alpha" not in name and "gaussian" not in name]
WITH_BLOCK = [name for name in FUNCTIONS if name != "drop_path"]

every_function = pytest.mark.parametrize("name", FUNCTIONS)


def call(name, x, p=0.5, *args, **options):
    return getattr(F, name)(x, p, *args, **options)


def test_every_function_is_in_the_table():
    assert sorted([*FUNCTIONS, *FUSED, *OF_SUBSETS]) == F.__all__


# The specification in numpy


def philox(counter, key):
    c0, c1, c2, c3 = np.broadcast_arrays(*(np.asarray(c, np.uint64) for c in counter))
    k0, k1 = (np.uint64(k) for k in key)
    low, word = np.uint64(0xFFFFFFFF), np.uint64(32)
    for i in range(10):
        p0, p1 = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        a = np.uint64((int(k0) + i * 0x9E3779B9) % 2**32)
        b = np.uint64((int(k1) + i * 0xBB67AE85) % 2**32)
        c0, c1, c2, c3 = (p1 >> word) ^ c1 ^ a, p1 & low, (p0 >> word) ^ c3 ^ b, p0 & low
    return np.stack([c0, c1, c2, c3], axis=-1)


def words(key, kind, rows, blocks):
    counter = (blocks[None, :], rows[:, None], key.step, kind << 28 | key.site)
    seed = int(key.seed) % 2**64
    return philox(counter, (seed % 2**32, (seed >> 32) ^ key.call))


def units(draw, shape, shared):
    """Lay units out over a tensor: ``draw(rows, cols)`` gives ``[rows, cols]``."""
    mask = [1 if dim in shared else n for dim, n in enumerate(shape)]
    drawn = draw(np.arange(mask[0]), np.arange(math.prod(mask[1:])))
    return np.broadcast_to(drawn.reshape(mask), shape)


def threshold(p):
    bits = 16 if 1 / 64 <= p <= 63 / 64 else 32
    return bits, math.floor(p * 2.0**bits + 0.5)


def keep(key, p, shape, shared):
    bits, least = threshold(p)

    def draw(rows, cols):
        if bits == 16:
            w = words(key, 0, rows, cols // 8)[..., 0:]
            word = np.take_along_axis(w, (cols % 8 // 2)[None, :, None], -1)[..., 0]
            lane = np.where(cols % 2, word >> np.uint64(16), word & np.uint64(0xFFFF))
        else:
            w = words(key, 1, rows, cols // 4)
            lane = np.take_along_axis(w, (cols % 4)[None, :, None], -1)[..., 0]
        return lane >= least

    return units(draw, shape, shared)


def normal(key, shape, shared):
    def draw(rows, cols):
        w = words(key, 3, rows, cols // 2).astype(np.float64)
        odd = (cols % 2 == 1)[None, :]
        u1 = (np.where(odd, w[..., 2], w[..., 0]) + 1) / 2.0**32
        u2 = np.where(odd, w[..., 3], w[..., 1]) / 2.0**32
        return np.sqrt(-2 * np.log(u1)) * np.cos(2 * np.pi * u2)

    return units(draw, shape, shared)


def rate(p):
    bits, least = threshold(p)
    return least / 2.0**bits


@pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("name", SCALED)
def test_kept_values_are_scaled_and_dropped_values_are_zero(name, p):
    shape, shared = FUNCTIONS[name]
    x = torch.randn(shape)
    scale = np.float32(1 / (1 - rate(p)))
    wanted = np.where(keep(KEY, p, shape, shared), x.numpy() * scale, np.float32(0))
    assert wanted.dtype == np.float32
    assert np.array_equal(call(name, x, p, key=KEY).numpy(), wanted)


@pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("name", ["alpha_dropout", "feature_alpha_dropout"])
def test_alpha_selects_saturation_then_restores_mean_and_variance(name, p):
    shape, shared = FUNCTIONS[name]
    x = torch.randn(shape, dtype=torch.float64)
    saturation = -1.6732632423543772 * 1.0507009873554805
    a = ((1 - rate(p)) * (1 + rate(p) * saturation**2)) ** -0.5
    b = -a * rate(p) * saturation
    unscaled = np.where(keep(KEY, p, shape, shared), x.numpy(), saturation)
    wanted = a * unscaled + b
    for dtype in (torch.float64, torch.float32):
        # One rounding each of the product and of the sum, and of the input and the constants.
        bound = 4 * torch.finfo(dtype).eps * (np.abs(a * unscaled) + abs(b))
        made = call(name, x.to(dtype), p, key=KEY).double().numpy()
        assert (np.abs(made - wanted) <= bound).all()


@pytest.mark.parametrize("p", [0.0001, 0.1, 0.5, 0.9, 0.999, 1 - 2.0**-40])
def test_gaussian_multiplies_with_one_plus_sigma_z(p):
    shape, shared = FUNCTIONS["gaussian_dropout"]
    z, sigma = normal(KEY, shape, shared), math.sqrt(p / (1 - p))
    x = torch.randn(shape, dtype=torch.float64)
    wanted = x.numpy() * (1 + sigma * z)
    made = call("gaussian_dropout", x, p, key=KEY).numpy()
    assert np.allclose(made, wanted, rtol=1e-12, atol=1e-12 * sigma)
    # float32: z within 2 ulp + 1e-7, and three roundings of what it goes through.
    eps = torch.finfo(torch.float32).eps
    single = x.float()
    bound = np.abs(single.double().numpy()) * (
        sigma * (2 * eps * np.abs(z) + 1e-7) + 3 * eps * (1 + sigma * np.abs(z))
    )
    made = call("gaussian_dropout", single, p, key=KEY).double().numpy()
    assert (np.abs(made - single.double().numpy() * (1 + sigma * z)) <= bound).all()


def test_the_second_writing_of_the_specification_agrees_with_the_first():
    for p in (0.3, 0.01):
        assert np.array_equal(keep(KEY, p, (4, 35), ()), keep_mask(KEY, p, (4, 35)).numpy())
    assert np.allclose(normal(KEY, (4, 35), ()), normals(KEY, (4, 35)).numpy(), atol=1e-13)


# Where randomness comes from


@every_function
def test_a_key_fixes_the_result_and_draws_nothing(name):
    x = torch.randn(FUNCTIONS[name][0])
    state = torch.get_rng_state()
    a, b = call(name, x, key=KEY), call(name, x, key=KEY)
    assert torch.equal(a, b)
    assert torch.equal(torch.get_rng_state(), state)


@every_function
@pytest.mark.parametrize("field", ["seed", "site", "step", "call"])
def test_every_field_of_a_key_counts(name, field):
    x = torch.ones(FUNCTIONS[name][0])
    fields = {"seed": 1, "site": 1, "step": 1, "call": 1}
    a, b = MaskKey(**fields), MaskKey(**{**fields, field: 2})
    assert not torch.equal(call(name, x, key=a), call(name, x, key=b))


@every_function
def test_without_a_key_the_ticket_is_one_randint_of_the_default_generator(name):
    x = torch.randn(FUNCTIONS[name][0])
    state = torch.get_rng_state()
    made = call(name, x)
    after = torch.get_rng_state()
    torch.set_rng_state(state)
    ticket = torch.randint(-(2**63), 2**63 - 1, ())
    assert torch.equal(torch.get_rng_state(), after)
    assert torch.equal(made, call(name, x, key=MaskKey(seed=ticket)))
    assert torch.equal(made, call(name, x, key=MaskKey(seed=int(ticket) % 2**64)))


@every_function
def test_a_generator_governs_and_the_default_one_is_left_alone(name):
    x = torch.randn(FUNCTIONS[name][0])
    state = torch.get_rng_state()
    generator = torch.Generator().manual_seed(5)
    a, b = call(name, x, generator=generator), call(name, x, generator=generator)
    assert not torch.equal(a, b)
    assert torch.equal(a, call(name, x, generator=torch.Generator().manual_seed(5)))
    assert torch.equal(torch.get_rng_state(), state)
    replay = torch.Generator().manual_seed(5)
    ticket = torch.randint(-(2**63), 2**63 - 1, (), generator=replay)
    assert torch.equal(a, call(name, x, key=MaskKey(seed=ticket)))


@every_function
def test_a_generator_is_not_drawn_from_where_nothing_is_random(name):
    generator = torch.Generator().manual_seed(5)
    state, x = generator.get_state(), torch.randn(FUNCTIONS[name][0])
    call(name, x, 0.5, False, generator=generator)
    call(name, x, 0.0, generator=generator)
    call(name, x[:0], generator=generator)
    if name != "gaussian_dropout":
        call(name, x, 1.0, generator=generator)
        call(name, x, 1 - 2.0**-40, generator=generator)
        call(name, x, 2.0**-40, generator=generator)
    assert torch.equal(generator.get_state(), state)


@every_function
def test_a_key_and_a_generator_exclude_each_other(name):
    line = f"The randomness of {name} must be given as `key` or as `generator`. Got 'both'."
    with pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
        call(name, torch.ones(FUNCTIONS[name][0]), key=KEY, generator=torch.Generator())


@pytest.mark.parametrize("p", [2.0**-40, 1 - 2.0**-40])
def test_gaussian_noise_is_fresh_at_every_rate(p):
    """It has no threshold: a rate that rounds to 0 or 1 elsewhere is still noise here."""
    x = torch.ones(7, dtype=torch.float64)
    assert not torch.equal(F.gaussian_dropout(x, p), F.gaussian_dropout(x, p))


@every_function
def test_backward_and_recomputation_draw_nothing_new(name):
    x = torch.randn(FUNCTIONS[name][0], requires_grad=True)
    torch.manual_seed(7)
    y = call(name, x)
    state = torch.get_rng_state()
    (plain,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(7)
    (recomputed,) = torch.autograd.grad(
        checkpoint(lambda x: call(name, x), x, use_reentrant=False).sum(), x
    )
    assert torch.equal(recomputed, plain)


class FakeCudaGenerator:
    """What the rule of the ticket asks of a CUDA generator."""

    def __init__(self, seed, offset):
        self.seed, self.offset = seed, offset

    def initial_seed(self):
        return self.seed

    def get_offset(self):
        return self.offset

    def set_offset(self, offset):
        self.offset = offset


@pytest.mark.parametrize("seed", [0, 2**32 + 5, 2**64 - 1])
@pytest.mark.parametrize("offset", [0, 4, 2**32, 2**40 + 12])
def test_the_ticket_on_cuda_is_computed_from_seed_and_offset(seed, offset):
    generator = FakeCudaGenerator(seed, offset)
    w = philox((offset % 2**32, offset >> 32, 0, 15 << 28), (seed % 2**32, seed >> 32))
    assert masks._cuda_ticket(generator) == int(w[0]) + (int(w[1]) << 32)
    assert generator.offset == offset + 4


def test_on_cuda_in_eager_the_default_generator_of_the_device_gives_the_ticket(monkeypatch):
    generators = (FakeCudaGenerator(1, 0), FakeCudaGenerator(2, 8))
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "default_generators", generators)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    state = torch.get_rng_state()
    for device, seed, offset in [("cuda", 1, 0), ("cuda:1", 2, 8), ("cuda", 1, 4)]:
        wanted = masks._cuda_ticket(FakeCudaGenerator(seed, offset))
        assert masks.draw_key(device) == MaskKey(seed=wanted)
    assert (generators[0].offset, generators[1].offset) == (8, 12)
    assert torch.equal(torch.get_rng_state(), state)


# The options of an address


@every_function
def test_rows_reproduce_a_part_of_the_batch(name):
    x = torch.randn(FUNCTIONS[name][0])
    whole = call(name, x, key=KEY)
    for rows in ([1, 2], [2, 0, 0], list(range(len(x))), [2]):
        part = call(name, x[rows], key=KEY, rows=torch.tensor(rows))
        assert torch.equal(part, whole[rows])


@every_function
def test_rows_all_zero_treat_every_sample_alike(name):
    x = torch.ones(FUNCTIONS[name][0])
    y = call(name, x, key=KEY, rows=torch.zeros(len(x), dtype=torch.int64))
    assert torch.equal(y, y[:1].expand_as(y))


@every_function
def test_a_step_per_row_gives_each_sample_its_own_step(name):
    x = torch.randn(FUNCTIONS[name][0])
    steps = torch.arange(len(x)) * 3
    y = call(name, x, key=MaskKey(seed=1, step=steps))
    for row, step in enumerate(steps.tolist()):
        assert torch.equal(y[row], call(name, x, key=MaskKey(seed=1, step=step))[row])


@pytest.mark.parametrize("name", WITH_BLOCK)
def test_a_block_reproduces_a_part_of_the_channels(name):
    shape, shared = FUNCTIONS[name]
    x = torch.randn(shape)
    sizes = [1 if dim in shared else n for dim, n in enumerate(shape)]
    block = [(2, sizes[1]), *((0, n) for n in sizes[2:])]
    part = call(name, x[:, 2:5], key=KEY, block=block)
    assert torch.equal(part, call(name, x, key=KEY)[:, 2:5])


@every_function
def test_a_gradient_has_the_mask_of_rows_and_block(name):
    x = torch.randn(FUNCTIONS[name][0], requires_grad=True)
    options = {"key": KEY, "rows": torch.arange(len(x)) + 9}
    if name in WITH_BLOCK:
        shape, shared = FUNCTIONS[name]
        sizes = [1 if dim in shared else n for dim, n in enumerate(shape)]
        options["block"] = [(4 * (n > 1), n + 4 * (n > 1)) for n in sizes[1:]]
    (grad,) = torch.autograd.grad(call(name, x, **options).sum(), x)
    ones, zeros = torch.ones_like(x), torch.zeros_like(x)
    slope = call(name, ones, **options) - call(name, zeros, **options)
    assert torch.allclose(grad, slope, rtol=0, atol=1e-6)


@every_function
def test_a_result_without_autograd_is_the_same(name):
    x = torch.randn(FUNCTIONS[name][0])
    wanted = call(name, x.clone().requires_grad_(), key=KEY).detach()
    with torch.no_grad():
        assert torch.equal(call(name, x, key=KEY), wanted)
    with torch.inference_mode():
        assert torch.equal(call(name, x, key=KEY), wanted)


@every_function
def test_a_gradient_transform_gives_the_gradient(name):
    x = torch.randn(FUNCTIONS[name][0], requires_grad=True)
    (wanted,) = torch.autograd.grad(call(name, x, key=KEY).square().sum(), x)
    made = torch.func.grad(lambda x: call(name, x, key=KEY).square().sum())(x.detach())
    assert torch.equal(made, wanted)


# Who is refused


@every_function
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
@pytest.mark.parametrize("p", [0.5, 1.0])
def test_an_input_of_integers_is_refused_in_training_alone(name, dtype, p):
    x = torch.ones(FUNCTIONS[name][0], dtype=dtype)
    line = (
        f"The input of {name} must be of a floating dtype in training. Got {dtype}. "
        "Convert it with x.float()."
    )
    p = 0.5 if name == "gaussian_dropout" else p
    with pytest.raises(TypeError, match=f"^{re.escape(line)}$"):
        call(name, x, p)
    assert call(name, x, p, False) is x
    assert call(name, x, 0.0) is x


@every_function
@pytest.mark.parametrize("p", [-0.1, 1.7, math.nan, "0.5", None, True])
@pytest.mark.parametrize("training", [True, False])
def test_a_rate_is_checked_by_name_in_training_and_out_of_it(name, p, training):
    interval = "[0, 1)" if name == "gaussian_dropout" else "[0, 1]"
    line = f"`p` of {name} must be a number in {interval}. Got {p!r}."
    with pytest.raises((TypeError, ValueError), match=f"^{re.escape(line)}$"):
        call(name, torch.ones(FUNCTIONS[name][0]), p, training)


ELEMENTS = "For single elements use dropout / Dropout."
SEQUENCES = "For [N, C, L] or [C, L] use dropout1d / Dropout1d."
IMAGES = "For [N, C, H, W] use dropout2d / Dropout2d."
VOLUMES = "For [N, C, D, H, W] or [C, D, H, W] use dropout3d / Dropout3d."
AN_IMAGE = "For [N, C, L] use dropout1d / Dropout1d; for one image [C, H, W] pass x.unsqueeze(0)."


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("n", "shapes", "way_outs"),
    [
        (
            1,
            "[N, C, L] or [C, L]",
            {0: ELEMENTS, 1: ELEMENTS, 4: IMAGES, 5: VOLUMES, 6: ELEMENTS},
        ),
        (
            2,
            "[N, C, H, W]",
            {0: ELEMENTS, 1: ELEMENTS, 2: SEQUENCES, 3: AN_IMAGE, 5: VOLUMES, 6: ELEMENTS},
        ),
        (
            3,
            "[N, C, D, H, W] or [C, D, H, W]",
            {0: ELEMENTS, 1: ELEMENTS, 2: SEQUENCES, 3: SEQUENCES, 6: ELEMENTS},
        ),
    ],
)
def test_a_wrong_rank_is_refused_with_the_layer_that_takes_it(n, shapes, way_outs, training):
    for rank in range(7):
        x = torch.ones((2,) * rank)
        if rank not in way_outs:
            call(f"dropout{n}d", x, 0.5, training)
            continue
        line = f"The input of dropout{n}d must be {shapes}. Got {(2,) * rank!r}. {way_outs[rank]}"
        with pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
            call(f"dropout{n}d", x, 0.5, training)


@pytest.mark.parametrize("shape", [(), (3,)])
def test_feature_alpha_refuses_what_has_no_channels(shape):
    line = (
        f"The input of feature_alpha_dropout must be [N, C, ...]. Got {shape!r}. "
        "For single elements use alpha_dropout / AlphaDropout."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
        F.feature_alpha_dropout(torch.ones(shape))


@pytest.mark.parametrize(("name", "shape"), [("dropout1d", (5, 3)), ("dropout3d", (5, 3, 2, 2))])
def test_an_unbatched_input_is_the_first_of_a_batch(name, shape):
    x = torch.randn(shape)
    wanted = call(name, x.unsqueeze(0), key=KEY).squeeze(0)
    assert torch.equal(call(name, x, key=KEY), wanted)
    kept = (wanted != 0).flatten(1)
    assert torch.equal(kept.any(1), kept.all(1))  # whole channels
    y = x.clone()
    assert call(name, y, inplace=True, key=KEY) is y
    assert torch.equal(y, wanted)
    row = call(name, x, key=KEY, rows=torch.tensor([4]))
    assert torch.equal(row, call(name, x.expand(6, *shape), key=KEY)[4])


@pytest.mark.parametrize(("name", "shape"), [("dropout1d", (5, 3)), ("dropout3d", (5, 3, 2, 2))])
def test_an_unbatched_input_has_no_batch_dim(name, shape):
    line = f"`batch_dim` of {name} must be 0 for an input without a batch dim. Got 1."
    with pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
        call(name, torch.ones(shape), batch_dim=1)


@pytest.mark.parametrize("name", ["dropout1d", "dropout2d", "dropout3d", "feature_alpha_dropout"])
@pytest.mark.parametrize("batch_dim", [2, -1])
def test_a_batch_dim_is_not_among_the_spatial_ones(name, batch_dim):
    line = f"`batch_dim` of {name} must be 0 or 1 ([C, N, ...]). Got {batch_dim}."
    with pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
        call(name, torch.ones(FUNCTIONS[name][0]), batch_dim=batch_dim)


# Stochastic depth


def test_drop_path_drops_whole_samples_of_any_shape():
    kept = keep_mask(KEY, 0.5, (37, 1)).squeeze(1)
    assert 0 < int(kept.sum()) < 37
    for shape in [(37,), (37, 3), (37, 3, 2), (37, 0, 2), (37, 1)]:
        y = F.drop_path(torch.ones(shape), 0.5, key=KEY)
        wanted = 2.0 * kept.view(37, *(1,) * (len(shape) - 1)).expand(shape)
        assert torch.equal(y, wanted)


def test_drop_path_counts_its_samples_along_the_batch_dim():
    x = torch.randn(4, 37, 3)
    wanted = F.drop_path(x.transpose(0, 1), 0.5, key=KEY).transpose(0, 1)
    for batch_dim in (1, -2):
        assert torch.equal(F.drop_path(x, 0.5, key=KEY, batch_dim=batch_dim), wanted)


def test_drop_path_takes_a_negative_dim_of_a_vector_as_the_same_dim():
    x = torch.ones(37)
    assert torch.equal(
        F.drop_path(x, 0.5, key=KEY, batch_dim=-1), F.drop_path(x, 0.5, key=KEY, batch_dim=0)
    )
    together = F.drop_path(x, 0.5, key=KEY, shared_dims=(0,))
    assert torch.equal(F.drop_path(x, 0.5, key=KEY, shared_dims=(-1,)), together)
    assert len(together.unique()) == 1


@pytest.mark.parametrize(("shape", "dim"), [((5,), 1), ((5,), -2), ((5, 3), 2), ((), 1)])
def test_drop_path_refuses_a_batch_dim_that_is_not_there(shape, dim):
    with pytest.raises(ValueError, match=rf"^`batch_dim` must be within the .* Got {dim}\.$"):
        F.drop_path(torch.ones(shape), 0.5, batch_dim=dim)


def test_drop_path_of_a_number_is_of_one_sample():
    results = {float(F.drop_path(torch.tensor(3.0), 0.5)) for _ in range(30)}
    assert results == {0.0, 6.0}


def test_drop_path_without_scaling_keeps_values_as_they_are():
    x = torch.randn(37, 3)
    y = F.drop_path(x, 0.3, scale_by_keep=False, key=KEY)
    kept = keep_mask(KEY, 0.3, (37, 1))
    assert torch.equal(y, torch.where(kept, x, 0.0))


def test_drop_path_of_the_whole_batch_at_once():
    x = torch.ones(37, 3)
    seen = set()
    for step in range(30):
        y = F.drop_path(x, 0.5, key=MaskKey(step=step), shared_dims=(0,))
        assert len(y.unique()) == 1
        seen.add(float(y[0, 0]))
    assert seen == {0.0, 2.0}
