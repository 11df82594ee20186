"""The laws of the randomness: statistics within bounds from n, geometry to the bit, errors.

A bound of 6 standard errors is crossed by chance once in 10**9 draws; the seeds are fixed.
"""

from __future__ import annotations

import itertools
import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sitout import masks
from sitout.masks import MaskKey, effective_rate, keep_mask, kept_samples, kept_units, normals

KEY = MaskKey(seed=2024, site=5, step=7, call=0)
RATES = [0.001, 0.01, 0.1, 0.5, 0.9, 0.999]  # wide, wide, narrow, narrow, narrow, wide
NARROW_RATE, WIDE_RATE = 0.3, 0.01


def dropped(key, p, shape, **options):
    return keep_mask(key, p, shape, **options).logical_not()


def correlation(a, b):
    a, b = a.double().flatten(), b.double().flatten()
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).mean() / (a.square().mean() * b.square().mean()).sqrt())


def standard_error(p, n):
    return math.sqrt(p * (1 - p) / n)


# The rate


@pytest.mark.parametrize("p", RATES)
@pytest.mark.parametrize("seed", [0, 17, 2**64 - 1])
def test_the_rate_is_the_effective_rate(p, seed):
    shape, rate = (101, 997), effective_rate(p)
    observed = float(dropped(MaskKey(seed=seed), p, shape).double().mean())
    assert abs(observed - rate) < 6 * standard_error(rate, math.prod(shape))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_the_rate_holds_in_every_row_and_every_column(p):
    rate, side = effective_rate(p), 401
    table = dropped(KEY, p, (side, side)).double()
    for dim in (0, 1):
        worst = float((table.mean(dim) - rate).abs().max())
        assert worst < 6 * standard_error(rate, side)


@pytest.mark.parametrize(
    ("p", "rate"),
    [
        (0.0, 0.0),
        (1.0, 1.0),
        (0.5, 0.5),
        (0.1, 6554 / 2**16),  # narrow: floor(6553.6 + 1/2)
        (1 / 64, 1024 / 2**16),  # the lowest narrow rate
        (63 / 64, 64512 / 2**16),  # the highest
        (0.01, 42949673 / 2**32),  # wide: floor(42949672.96 + 1/2)
        (0.999, 4290672329 / 2**32),
        (2.0**-32, 2.0**-32),
        (2.0**-33, 2.0**-32),  # a half is rounded up
        (2.0**-34, 0.0),
        (1 - 2.0**-34, 1.0),
        (1 - 2.0**-32, 1 - 2.0**-32),
    ],
)
def test_the_effective_rate_is_the_threshold_over_its_range(p, rate):
    assert effective_rate(p) == rate


@pytest.mark.parametrize("edge", [1 / 64, 63 / 64])
def test_a_rate_beside_the_narrow_range_is_wide(edge):
    outside = math.nextafter(edge, 0.0 if edge < 0.5 else 1.0)
    assert masks._threshold(edge)[0] == 16
    assert masks._threshold(outside)[0] == 32
    assert not torch.equal(keep_mask(KEY, edge, (8, 997)), keep_mask(KEY, outside, (8, 997)))


@pytest.mark.parametrize(("p", "keep"), [(0.0, 1), (2.0**-34, 1), (1 - 2.0**-34, 0), (1.0, 0)])
def test_a_rate_that_rounds_to_0_or_1_acts_as_it(p, keep):
    mask = keep_mask(KEY, p, (3, 5), shared_dims=(1,))
    assert mask.tolist() == [[bool(keep)]] * 3


@pytest.mark.parametrize("p", [NARROW_RATE, WIDE_RATE, 1 / 64, 63 / 64])
def test_an_element_is_dropped_iff_its_lane_is_below_the_threshold(p):
    """Stated in the words of the specification, on Python's integers, one element at a time."""
    bits, lanes = (16, 8) if 1 / 64 <= p <= 63 / 64 else (32, 4)
    threshold = math.floor(p * 2.0**bits + 0.5)
    mask = keep_mask(KEY, p, (3, 17))
    for row, col in itertools.product(range(3), range(17)):
        kind = 0 if bits == 16 else 1
        words = masks._philox(col // lanes, row, 7, kind << 28 | 5, 2024, 0)
        halves = [half for word in words for half in (word % 2**16, word // 2**16)]
        lane = (halves if bits == 16 else words)[col % lanes]
        assert bool(mask[row, col]) == (lane >= threshold)


@pytest.mark.parametrize("bits", [16, 32])
def test_a_lane_equal_to_the_threshold_is_kept(bits):
    """An element with lane L is kept at T = L and dropped at T = L + 1, exactly."""
    kind, lanes = (0, 8) if bits == 16 else (1, 4)
    for col in range(4 * lanes):
        words = masks._philox(col // lanes, 0, 7, kind << 28 | 5, 2024, 0)
        halves = [half for word in words for half in (word % 2**16, word // 2**16)]
        lane = (halves if bits == 16 else words)[col % lanes]
        at, above = lane / 2.0**bits, (lane + 1) / 2.0**bits
        if all((1 / 64 <= p <= 63 / 64) == (bits == 16) and 0 < p < 1 for p in (at, above)):
            assert keep_mask(KEY, at, (1, col + 1))[0, col]
            assert not keep_mask(KEY, above, (1, col + 1))[0, col]


@pytest.mark.parametrize(("kind", "lanes"), [(0, 8), (1, 4), (2, 4), (3, 4)])
def test_every_lane_is_uniform(kind, lanes):
    """Chi-square over 256 cells, of the high and of the low byte: mean 255, variance 510."""
    rows, blocks = torch.arange(64), torch.arange(512)
    words = masks._words(KEY, kind, rows, blocks)
    values, width = (masks._halves(words), 16) if lanes == 8 else (words, 32)
    for lane, shift in itertools.product(values, (0, width - 8)):
        cells = torch.bincount((lane >> shift & 0xFF).flatten(), minlength=256).double()
        expected = lane.numel() / 256
        chi_square = float((cells - expected).square().sum() / expected)
        assert abs(chi_square - 255) < 6 * math.sqrt(510)


def test_every_bit_of_every_word_is_fair_and_words_fit_32_bits():
    words = masks._words(KEY, 0, torch.arange(64), torch.arange(512))
    n = 64 * 512
    for word in words:
        assert 0 <= int(word.min()) <= int(word.max()) < 2**32
        for bit in range(32):
            share = float((word >> bit & 1).double().mean())
            assert abs(share - 0.5) < 6 * standard_error(0.5, n)


# Independence


@pytest.mark.parametrize("p", [NARROW_RATE, WIDE_RATE])
@pytest.mark.parametrize("shift", [(0, 1), (0, 2), (0, 4), (0, 8), (1, 0), (1, 1)])
def test_neighbouring_elements_are_independent(p, shift):
    rows, cols = shift
    mask = dropped(KEY, p, (127, 1009))
    a, b = mask[rows:, cols:], mask[: 127 - rows, : 1009 - cols]
    assert abs(correlation(a, b)) < 6 / math.sqrt(a.numel())


@pytest.mark.parametrize("p", [NARROW_RATE, WIDE_RATE])
@pytest.mark.parametrize(
    "other",
    [
        MaskKey(2025, 5, 7, 0),
        MaskKey(2024 + 2**32, 5, 7, 0),
        MaskKey(2024 + 2**63, 5, 7, 0),
        MaskKey(2024, 6, 7, 0),
        MaskKey(2024, 5 + 2**27, 7, 0),
        MaskKey(2024, 5, 8, 0),
        MaskKey(2024, 5, 7 + 2**31, 0),
        MaskKey(2024, 5, 7, 1),
        MaskKey(2024, 5, 7, 2**31),
        MaskKey(2024, 7, 5, 0),
    ],
)
def test_masks_at_two_addresses_are_independent(p, other):
    shape = (127, 1009)
    a, b = dropped(KEY, p, shape), dropped(other, p, shape)
    assert abs(correlation(a, b)) < 6 / math.sqrt(a.numel())


def test_a_call_is_mixed_into_the_high_word_of_the_seed():
    """The specification's own caveat, to the bit."""
    assert torch.equal(
        keep_mask(MaskKey(seed=9, call=3), 0.5, (5, 33)),
        keep_mask(MaskKey(seed=9 + (3 << 32)), 0.5, (5, 33)),
    )


def test_the_kinds_draw_from_separate_words():
    rows, blocks = torch.arange(100), torch.arange(257)
    by_kind = [masks._words(KEY, kind, rows, blocks)[0] for kind in (0, 1, 2, 3, 4)]
    for a, b in itertools.combinations(by_kind, 2):
        assert abs(correlation(a, b)) < 6 / math.sqrt(a.numel())


def test_a_higher_rate_drops_whatever_a_lower_one_drops():
    for low, high in [(0.1, 0.2), (0.5, 0.9), (0.001, 0.01), (0.99, 0.999)]:
        assert not (dropped(KEY, low, (37, 101)) & keep_mask(KEY, high, (37, 101))).any()


# Normal numbers


def test_normals_have_the_moments_of_a_standard_normal():
    z = normals(KEY, (127, 1009))
    n = z.numel()
    for power, moment, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:
        assert abs(float((z**power).mean()) - moment) < 6 * math.sqrt(variance / n)


def test_normals_have_the_quantiles_of_a_standard_normal():
    z = normals(KEY, (127, 1009))
    for x in (-3.0, -1.5, -0.3, 0.0, 0.7, 2.0):
        share = 0.5 * math.erfc(-x / math.sqrt(2))
        observed = float((z < x).double().mean())
        assert abs(observed - share) < 6 * standard_error(share, z.numel())


@pytest.mark.parametrize("of", [lambda z: z, torch.square])
def test_normals_are_independent_of_their_neighbours_and_of_other_addresses(of):
    shape = (127, 1009)
    z = normals(KEY, shape)
    pairs = [
        (z[:, 1:], z[:, :-1]),  # the two of a block, among others
        (z[:, 2:], z[:, :-2]),
        (z[1:], z[:-1]),
        (z, normals(MaskKey(2024, 5, 8, 0), shape)),
        (z, normals(MaskKey(2024, 5, 7, 1), shape)),
        (z, dropped(KEY, NARROW_RATE, shape)),
    ]
    for a, b in pairs:
        assert abs(correlation(of(a), of(b))) < 6 / math.sqrt(a.numel())


def test_normals_are_finite_at_the_ends_of_the_words():
    low, high = torch.tensor(0), torch.tensor(2**32 - 1)
    ends = torch.stack([masks._box_muller(w, v) for w in (low, high) for v in (low, high)])
    assert ends.isfinite().all()
    assert ends.abs().max() == pytest.approx(math.sqrt(64 * math.log(2)))


# Subsets


@pytest.mark.parametrize(
    ("p", "n", "k"),
    [
        (0.5, 10, 5),
        (0.5, 7, 3),  # 7 - floor(3.5 + 1/2)
        (0.1, 4, 4),
        (0.999, 5, 1),  # at least one plays
        (0.001, 3, 3),
        (0.25, 1, 1),
        (0.9, 1, 1),
        (0.3, 997, 698),
        (0.0, 5, 5),
        (1.0, 5, 0),
        (0.5, 0, 0),
    ],
)
def test_kept_units_are_always_the_same_number_ascending_and_distinct(p, n, k):
    for step in range(20):
        units = kept_units(MaskKey(seed=1, step=step), p, n)
        assert units.dtype == torch.int64
        assert units.tolist() == sorted(set(range(n)) & set(units.tolist()))
        assert len(units) == k


def test_kept_units_are_those_with_the_smallest_words():
    n, p = 23, 0.4
    words = [masks._philox(i // 4, 3, 7, 2 << 28 | 5, 2024, 0)[i % 4] for i in range(n)]
    smallest = sorted(range(n), key=lambda i: (words[i], i))[: n - math.floor(p * n + 0.5)]
    assert kept_units(KEY, p, n, group=3).tolist() == sorted(smallest)


def test_equal_words_are_ordered_by_index(monkeypatch):
    monkeypatch.setattr(masks, "_philox", lambda c0, c1, *_: (c0 * 0 + c1 * 0 + 7,) * 4)
    assert kept_units(KEY, 0.5, 10).tolist() == [0, 1, 2, 3, 4]
    assert kept_samples(KEY, 0.5, 10)[0].tolist() == [0, 1, 2, 3, 4]


@pytest.fixture(scope="module")
def indicators():
    """Which of 11 units play at 1200 steps, 6 of them each time: ``[1200, 11]``."""
    table = torch.zeros(1200, 11)
    for step, row in enumerate(table):
        row[kept_units(MaskKey(seed=3, step=step), 0.5, 11)] = 1
    return table


def test_every_unit_plays_equally_often(indicators):
    steps, n = indicators.shape
    k = n - math.floor(0.5 * n + 0.5)
    assert (indicators.sum(1) == k).all()
    assert ((indicators.mean(0) - k / n).abs() < 6 * standard_error(k / n, steps)).all()


def test_units_of_a_group_are_exchangeable_and_slightly_negatively_correlated(indicators):
    steps, n = indicators.shape
    table = torch.corrcoef(indicators.T)
    off_diagonal = table[~torch.eye(n, dtype=torch.bool)]
    assert ((off_diagonal + 1 / (n - 1)).abs() < 6 / math.sqrt(steps)).all()
    # The mean over all pairs follows from the exact count: it has hardly any error.
    assert abs(float(off_diagonal.mean()) + 1 / (n - 1)) < 1e-3


def test_groups_and_steps_draw_separate_subsets(indicators):
    steps, n = indicators.shape
    assert abs(correlation(indicators[1:], indicators[:-1])) < 6 / math.sqrt((steps - 1) * n)
    subsets = {tuple(kept_units(KEY, 0.5, 64, group=group).tolist()) for group in range(50)}
    assert len(subsets) == 50


def test_a_group_is_an_int_or_a_tensor():
    group = torch.tensor(2**31 + 3)
    assert torch.equal(
        kept_units(KEY, 0.3, 19, group=group), kept_units(KEY, 0.3, 19, group=2**31 + 3)
    )
    for a, b in zip(
        kept_samples(KEY, 0.3, 19, group=group),
        kept_samples(KEY, 0.3, 19, group=2**31 + 3),
        strict=True,
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("p", [0.1, 0.25, 0.3, 0.5, 2 / 3, 0.9, 0.999])
@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 37])
def test_the_weights_of_samples_sum_to_n_in_expectation_exactly(p, n):
    """Summed over the two outcomes of the one draw, with the threshold that decides it."""
    q = n * (1.0 - p)
    chance = math.floor((q - math.floor(q)) * 2.0**32 + 0.5) / 2.0**32
    full = 1.0 / (1.0 - p)
    whole = math.floor(q)
    seen = set()
    for step in range(60):
        listed, weights = kept_samples(MaskKey(seed=step, step=step), p, n)
        assert listed.tolist() == sorted(set(listed.tolist()) & set(range(n)))
        assert (len(listed), len(weights)) == (math.ceil(q), math.ceil(q))
        assert set(weights.tolist()) <= {0.0, full}
        seen.add(int((weights > 0).sum()))
    assert seen <= {whole, math.ceil(q)}
    rounding = full * 2.0**-33  # of the threshold of the draw, in units of the weight
    assert (whole + chance) * full == pytest.approx(n, rel=1e-14, abs=rounding)


@pytest.mark.parametrize(("p", "n"), [(0.3, 7), (0.5, 5), (0.9, 4)])
def test_the_weight_of_every_sample_is_1_on_average(p, n):
    steps = 800
    table = torch.zeros(steps, n, dtype=torch.float64)
    for step, row in enumerate(table):
        listed, weights = kept_samples(MaskKey(seed=6, step=step), p, n)
        row[listed] = weights
    error = math.sqrt(p / (1 - p) / steps)  # a sample has weight 1 / (1 - p) with chance 1 - p
    assert ((table.mean(0) - 1).abs() < 6 * error).all()


def test_the_sample_that_may_lose_its_draw_is_the_last_in_the_order():
    p, n = 0.3, 8  # q = 5.6
    q = n * (1.0 - p)
    lost = 0
    for group in range(40):
        words = [masks._philox(i // 4, group, 7, 2 << 28 | 5, 2024, 0)[i % 4] for i in range(n)]
        order = sorted(range(n), key=lambda i: (words[i], i))[:6]
        count = masks._philox(0, group, 7, 4 << 28 | 5, 2024, 0)[0]
        wins = count < math.floor((q - 5) * 2.0**32 + 0.5)
        weights = dict.fromkeys(order, 1.0 / (1.0 - p))
        weights[order[-1]] *= wins
        listed, weight = kept_samples(KEY, p, n, group=group)
        assert dict(zip(listed.tolist(), weight.tolist(), strict=True)) == weights
        lost += not wins
    assert 0 < lost < 40


@pytest.mark.parametrize(("p", "n"), [(1.0, 4), (1.0, 0), (0.5, 0), (0.0, 0)])
def test_nobody_plays_at_1_and_of_nothing(p, n):
    listed, weights = kept_samples(KEY, p, n)
    assert (listed.shape, listed.dtype) == ((0,), torch.int64)
    assert (weights.shape, weights.dtype) == ((0,), torch.float64)


def test_all_samples_play_at_0():
    listed, weights = kept_samples(KEY, 0.0, 9)
    assert listed.tolist() == list(range(9))
    assert weights.tolist() == [1.0] * 9


# Keys


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1])
def test_a_key_of_tensors_makes_the_bits_of_a_key_of_ints(seed):
    ints = MaskKey(seed, 2**28 - 1, 2**32 - 1, 2**32 - 1)
    wrapped = seed - (1 << 64 if seed >= 1 << 63 else 0)
    tensors = MaskKey(
        *(torch.tensor(field) for field in (wrapped, 2**28 - 1, 2**32 - 1, 2**32 - 1))
    )
    for p in (NARROW_RATE, WIDE_RATE):
        assert torch.equal(keep_mask(ints, p, (5, 37)), keep_mask(tensors, p, (5, 37)))
    assert torch.equal(normals(ints, (5, 37)), normals(tensors, (5, 37)))
    assert torch.equal(kept_units(ints, 0.5, 37), kept_units(tensors, 0.5, 37))
    for a, b in zip(kept_samples(ints, 0.3, 37), kept_samples(tensors, 0.3, 37), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("make", [lambda key: keep_mask(key, 0.3, (4, 9)), None])
def test_a_step_per_row_gives_each_row_the_mask_of_its_step(make):
    make = make or (lambda key: normals(key, (4, 9)))
    steps = torch.tensor([7, 0, 2**32 - 1, 7])
    whole = make(MaskKey(seed=3, step=steps))
    for row, step in enumerate(steps.tolist()):
        assert torch.equal(whole[row], make(MaskKey(seed=3, step=step))[row])


def test_a_key_is_frozen_and_prints_itself():
    with pytest.raises(AttributeError):
        KEY.seed = 3
    assert repr(KEY) == "MaskKey(seed=2024, site=5, step=7, call=0)"
    assert MaskKey() == MaskKey(0, 0, 0, 0)


def test_draws_are_64_bits_wide():
    """Each of 64 bits of a ticket is 1 about half the time."""
    n = 1500
    tickets = torch.stack([masks.draw_key().seed for _ in range(n)])
    assert tickets.dtype == torch.int64
    for bit in range(64):
        share = float((tickets >> bit & 1).double().mean())
        assert abs(share - 0.5) < 6 * standard_error(0.5, n)


# Geometry


@pytest.mark.parametrize("p", [NARROW_RATE, WIDE_RATE])
@pytest.mark.parametrize("n", [0, 1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 101])
def test_a_narrower_tensor_has_the_first_columns_of_a_wider_one(p, n):
    assert torch.equal(keep_mask(KEY, p, (3, n)), keep_mask(KEY, p, (3, 128))[:, :n])
    assert torch.equal(normals(KEY, (3, n)), normals(KEY, (3, 128))[:, :n])


@pytest.mark.parametrize(
    ("shape", "options", "wanted"),
    [
        ((), {}, ()),
        ((0,), {}, (0,)),
        ((5,), {}, (5,)),
        ((5,), {"shared_dims": (0,)}, (1,)),
        ((0, 3), {}, (0, 3)),
        ((3, 0), {}, (3, 0)),
        ((2, 3, 5), {"shared_dims": (1,)}, (2, 1, 5)),
        ((2, 3, 5), {"shared_dims": (-1, 2)}, (2, 3, 1)),
        ((2, 3, 5), {"shared_dims": (0, 1, 2)}, (1, 1, 1)),
        ((2, 3, 5), {"shared_dims": (0,), "batch_dim": 1}, (1, 3, 5)),
        ((2, 0, 5), {"shared_dims": (1,)}, (2, 1, 5)),
    ],
)
def test_a_mask_has_size_1_in_its_shared_dims(shape, options, wanted):
    assert tuple(keep_mask(KEY, 0.3, shape, **options).shape) == wanted
    assert keep_mask(KEY, 0.3, shape, **options).dtype == torch.bool
    assert tuple(normals(KEY, shape, **options).shape) == wanted


def test_rank_0_and_rank_1_lie_in_row_0():
    row = keep_mask(KEY, 0.3, (1, 41))[0]
    assert torch.equal(keep_mask(KEY, 0.3, (41,)), row)
    assert torch.equal(keep_mask(KEY, 0.3, ()), row[0])
    assert torch.equal(
        keep_mask(KEY, 0.3, (41,), rows=torch.tensor([6])), keep_mask(KEY, 0.3, (7, 41))[6]
    )


def test_the_columns_are_row_major_over_the_other_dims():
    flat = keep_mask(KEY, 0.3, (4, 3 * 5 * 7))
    assert torch.equal(keep_mask(KEY, 0.3, (4, 3, 5, 7)).flatten(1), flat)
    assert torch.equal(
        keep_mask(KEY, 0.3, (3, 5, 4, 7), batch_dim=2).movedim(2, 0).flatten(1), flat
    )
    assert torch.equal(
        keep_mask(KEY, 0.3, (3, 5, 7, 4), batch_dim=-1).movedim(-1, 0).flatten(1), flat
    )


def test_a_shared_batch_dim_is_row_0_and_ignores_rows():
    shared = keep_mask(KEY, 0.3, (4, 19), shared_dims=(0,))
    assert torch.equal(shared[0], keep_mask(KEY, 0.3, (1, 19))[0])
    rows = torch.tensor([9, 9, 9])
    assert torch.equal(shared, keep_mask(KEY, 0.3, (4, 19), shared_dims=(0,), rows=rows))


@pytest.mark.parametrize("p", [NARROW_RATE, WIDE_RATE])
def test_rows_offset_reproduce_micro_batches(p):
    whole = keep_mask(KEY, p, (13, 5, 3))
    for start, stop in [(0, 4), (4, 9), (9, 13), (6, 6)]:
        part = keep_mask(KEY, p, (stop - start, 5, 3), rows=torch.arange(start, stop))
        assert torch.equal(part, whole[start:stop])


def test_rows_may_be_permuted_repeated_and_large():
    whole = keep_mask(KEY, 0.3, (13, 33))
    rows = torch.tensor([12, 0, 5, 5, 1])
    assert torch.equal(keep_mask(KEY, 0.3, (5, 33), rows=rows), whole[rows])
    assert torch.equal(keep_mask(KEY, 0.3, (33, 5), rows=rows, batch_dim=1), whole[rows].T)
    far = torch.tensor([2**32 - 1, 2**31])
    assert not torch.equal(*keep_mask(KEY, 0.3, (2, 33), rows=far))


@pytest.mark.parametrize("p", [NARROW_RATE, WIDE_RATE])
def test_columns_beyond_32_bits_have_addresses_of_their_own(p):
    bits, lanes, kind = (16, 8, 0) if p == NARROW_RATE else (32, 4, 1)
    threshold = math.floor(p * 2.0**bits + 0.5)
    start = 2 ** (34 if lanes == 8 else 33) - 5
    cols = torch.arange(start, start + 41)
    mask = keep_mask(KEY, p, (1, 41), cols=cols)[0]
    for col, keep in zip(cols.tolist(), mask.tolist(), strict=True):
        words = masks._philox(col // lanes, 0, 7, kind << 28 | 5, 2024, 0)
        halves = [half for word in words for half in (word % 2**16, word // 2**16)]
        assert keep == ((halves if bits == 16 else words)[col % lanes] >= threshold)
    block = [(start, start + 41)]
    assert torch.equal(keep_mask(KEY, p, (1, 41), block=block)[0], mask)
    assert not torch.equal(mask, keep_mask(KEY, p, (1, 41), cols=cols - 2**32)[0])


def test_columns_may_come_in_any_order():
    whole = keep_mask(KEY, 0.3, (3, 40))
    cols = torch.tensor([39, 0, 8, 8, 7, 16])
    assert torch.equal(keep_mask(KEY, 0.3, (3, 6), cols=cols), whole[:, cols])
    assert torch.equal(keep_mask(KEY, 0.3, (3, 2, 3), cols=cols).flatten(1), whole[:, cols])


@st.composite
def cut_tensors(draw):
    """A tensor, options of its mask, and a range to cut out along every dim."""
    shape = draw(st.lists(st.integers(1, 7), min_size=2, max_size=4))
    rank = len(shape)
    shared = draw(st.lists(st.integers(0, rank - 1), max_size=rank, unique=True))
    batch = draw(st.integers(0, rank - 1))
    cuts = [sorted(draw(st.tuples(st.integers(0, n), st.integers(0, n)))) for n in shape]
    return shape, shared, batch, cuts, draw(st.sampled_from([NARROW_RATE, WIDE_RATE]))


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(cut_tensors())
def test_a_block_of_a_tensor_has_its_part_of_the_mask(case):
    shape, shared, batch, cuts, p = case
    rank = len(shape)
    options = {"shared_dims": shared, "batch_dim": batch - rank if p == WIDE_RATE else batch}
    cuts = [(0, 1) if dim in shared else cut for dim, cut in enumerate(cuts)]
    sizes = [1 if dim in shared else n for dim, n in enumerate(shape)]
    shard = [shape[d] if d in shared else stop - start for d, (start, stop) in enumerate(cuts)]
    rows = None if batch in shared else torch.arange(*cuts[batch])
    block = [(cuts[d][0], sizes[d]) for d in range(rank) if d != batch]
    here = tuple(slice(*cut) for cut in cuts)
    part = keep_mask(KEY, p, shard, rows=rows, block=block, **options)
    assert torch.equal(part, keep_mask(KEY, p, shape, **options)[here])
    noise = normals(KEY, shard, rows=rows, block=block, **options)
    assert torch.equal(noise, normals(KEY, shape, **options)[here])


def test_a_mask_is_made_on_the_device_asked_for():
    mask = keep_mask(KEY, 0.3, (3, 5), device="meta")
    assert (mask.device.type, tuple(mask.shape)) == ("meta", (3, 5))


# Errors


def says(message):
    """Match one whole line."""
    return f"^{re.escape(message)}$"


@pytest.mark.parametrize("field", ["seed", "site", "step", "call"])
def test_a_field_of_a_key_is_an_int_or_an_int64_tensor(field):
    rule = f"`{field}` of MaskKey must be an int or an int64 tensor. Got "
    for value in (1.0, "1", None, True):
        with pytest.raises(TypeError, match=says(f"{rule}{value!r}.")):
            MaskKey(**{field: value})
    with pytest.raises(TypeError, match=says(f"{rule}torch.int32.")):
        MaskKey(**{field: torch.tensor(1, dtype=torch.int32)})


@pytest.mark.parametrize(
    ("field", "bits"), [("seed", 64), ("site", 28), ("step", 32), ("call", 32)]
)
def test_a_field_of_a_key_has_its_width(field, bits):
    MaskKey(**{field: 2**bits - 1})
    for value in (-1, 2**bits):
        line = f"`{field}` of MaskKey must be in [0, 2**{bits}). Got {value}."
        with pytest.raises(ValueError, match=says(line)):
            MaskKey(**{field: value})


@pytest.mark.parametrize("field", ["seed", "site", "step", "call"])
def test_a_tensor_in_a_key_has_no_dims_but_a_step_may_be_one_a_row(field):
    or_rows = " or [B]" if field == "step" else ""
    line = f"`{field}` of MaskKey must be a tensor with no dims{or_rows}. Got (1, 2)."
    with pytest.raises(ValueError, match=says(line)):
        MaskKey(**{field: torch.zeros(1, 2, dtype=torch.int64)})
    if field != "step":
        with pytest.raises(ValueError, match=r"with no dims\. Got \(2,\)\.$"):
            MaskKey(**{field: torch.zeros(2, dtype=torch.int64)})


def test_a_step_per_row_has_as_many_as_there_are_rows():
    line = "`step` of MaskKey must be one a row, [3]. Got 2."
    with pytest.raises(ValueError, match=says(line)):
        keep_mask(MaskKey(step=torch.tensor([1, 2])), 0.5, (3, 4))


@pytest.mark.parametrize("rows", [[0, 1, 2], torch.arange(3.0), torch.arange(3).int()])
def test_rows_are_an_int64_tensor(rows):
    got = repr(getattr(rows, "dtype", rows))
    with pytest.raises(TypeError, match=says(f"`rows` must be an int64 tensor. Got {got}.")):
        keep_mask(KEY, 0.5, (3, 4), rows=rows)


@pytest.mark.parametrize(("shape", "n"), [((4, 5), 4), ((5,), 1), ((), 1)])
def test_rows_are_one_per_index_of_the_batch_dim(shape, n):
    line = (
        f"`rows` must be one position per index of the batch dim, [{n}]. Got (3,). "
        "For a tensor flattened to [B*T, C] pass rows.repeat_interleave(T)."
    )
    with pytest.raises(ValueError, match=says(line)):
        keep_mask(KEY, 0.5, shape, rows=torch.arange(3))


@pytest.mark.parametrize(
    "block",
    [
        [(0, 5)],  # one dim too few
        [(0, 5), (0, 3), (0, 4)],  # one too many
        [(-1, 5), (0, 3)],
        [(1, 5), (0, 3)],  # 1 + 5 > 5
        [(0, 4), (0, 3)],
    ],
)
def test_a_block_is_one_start_and_full_size_per_other_dim(block):
    line = (
        "`block` must be one (start, full size) per non-batch dim of the mask, which has sizes "
        f"(5, 3), with start + size <= full size. Got {block!r}."
    )
    with pytest.raises(ValueError, match=says(line)):
        keep_mask(KEY, 0.5, (2, 5, 3), block=block)


@pytest.mark.parametrize("cols", [[0, 1, 2, 3], torch.arange(4.0), torch.arange(4).int()])
def test_columns_are_an_int64_tensor(cols):
    got = repr(getattr(cols, "dtype", cols))
    with pytest.raises(TypeError, match=says(f"`cols` must be an int64 tensor. Got {got}.")):
        keep_mask(KEY, 0.5, (3, 4), cols=cols)


@pytest.mark.parametrize("cols", [torch.arange(3), torch.arange(4).reshape(2, 2)])
def test_columns_are_one_per_element_of_a_row(cols):
    line = f"`cols` must be one column per element of a row, [4]. Got {tuple(cols.shape)}."
    with pytest.raises(ValueError, match=says(line)):
        keep_mask(KEY, 0.5, (2, 4), cols=cols)


def test_columns_and_a_block_exclude_each_other():
    with pytest.raises(ValueError, match=r"^`cols` must be given without `block`\. Got 'both'\.$"):
        keep_mask(KEY, 0.5, (2, 4), cols=torch.arange(4), block=[(0, 4)])


@pytest.mark.parametrize(("dim", "rank"), [(2, 2), (-3, 2), (0, 0), (5, 3)])
def test_a_shared_dim_is_one_of_the_tensor(dim, rank):
    line = f"`shared_dims` must be within the {rank} dims of the tensor. Got {dim}."
    with pytest.raises(ValueError, match=says(line)):
        keep_mask(KEY, 0.5, (2,) * rank, shared_dims=(dim,))


@pytest.mark.parametrize(("dim", "rank"), [(2, 2), (-3, 2), (5, 3), (1, 1), (-2, 1)])
def test_a_batch_dim_is_one_of_the_tensor(dim, rank):
    line = f"`batch_dim` must be within the {rank} dims of the tensor. Got {dim}."
    with pytest.raises(ValueError, match=says(line)):
        keep_mask(KEY, 0.5, (2,) * rank, batch_dim=dim)


@pytest.mark.parametrize("name", ["shared_dims", "batch_dim"])
@pytest.mark.parametrize("dim", [1.0, "1", True, None])
def test_a_dim_is_an_int(name, dim):
    line = f"`{name}` of a mask must be an int. Got {dim!r}."
    with pytest.raises(TypeError, match=says(line)):
        keep_mask(KEY, 0.5, (2, 3), **{name: (dim,) if name == "shared_dims" else dim})


OWNERS = {
    "effective_rate": effective_rate,
    "keep_mask": lambda p: keep_mask(KEY, p, (2, 2)),
    "kept_units": lambda p: kept_units(KEY, p, 4),
    "kept_samples": lambda p: kept_samples(KEY, p, 4),
}


@pytest.mark.parametrize("owner", OWNERS)
@pytest.mark.parametrize("p", [-0.1, 1.7, math.inf, math.nan, "0.5", None, True, 0.5j])
def test_a_rate_is_a_number_from_0_to_1(owner, p):
    line = f"`p` of {owner} must be a number in [0, 1]. Got {p!r}."
    with pytest.raises(ValueError if isinstance(p, float) else TypeError, match=says(line)):
        OWNERS[owner](p)


@pytest.mark.parametrize("owner", ["kept_units", "kept_samples"])
@pytest.mark.parametrize("n", [-1, 2.0, True, None])
def test_a_number_of_units_is_an_int_of_0_or_more(owner, n):
    line = f"`n` of {owner} must be an int of 0 or more. Got {n!r}."
    with pytest.raises((TypeError, ValueError), match=says(line)):
        getattr(masks, owner)(KEY, 0.5, n)
