"""Statistics of samples that come in pieces are those of the stack."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Categorical

from sitout.mc._quantiles import Quantiles
from sitout.mc._reduce import KINDS, OPTIONAL, STATISTICS, Reducer

SHAPES = {
    "values": [(5,), (5, 3), (2, 3, 7, 5), (1,)],
    "logits": [(5, 3), (2, 3, 7, 5), (4, 1, 2)],
    "mean_and_log_variance": [(5, 2), (3, 2, 4)],
}
SHAPES["probabilities"] = SHAPES["logits"]


def reduced(samples, kind, sizes, class_dim=1, statistics=None, levels=()):
    reducer = Reducer(kind, statistics or STATISTICS[kind], class_dim, levels)
    for part in samples.split(sizes):
        reducer.update(part)
    return reducer


def wanted(samples, kind, dim):
    """Return the statistics of the whole stack, in float64, by other code."""
    x = samples.double()
    if kind == "values":
        return {"mean": x.mean(0), "std": x.std(0)}
    if kind == "mean_and_log_variance":
        mean, log = x.unbind(dim + 1)
        apart, noise = mean.var(0), log.exp().mean(0)
        found = {"mean": mean.mean(0), "std": (apart + noise).sqrt()}
        return found | {"epistemic": apart.sqrt(), "aleatoric": noise.sqrt()}
    p = x.softmax(dim + 1) if kind == "logits" else x
    rows = p.movedim(dim + 1, -1)
    total, expected = Categorical(rows.mean(0)).entropy(), Categorical(rows).entropy().mean(0)
    votes = torch.nn.functional.one_hot(rows.argmax(-1), rows.shape[-1]).sum(0).amax(-1)
    return {
        "mean": p.mean(0),
        "std": p.std(0),
        "entropy": total,
        "expected_entropy": expected,
        "mutual_information": total - expected,
        "variation_ratio": 1.0 - votes.double() / len(x),
    }


def cases():
    for kind in KINDS:
        yield from ((kind, shape) for shape in SHAPES[kind])


@pytest.mark.parametrize(("kind", "shape"), [*cases()])
@pytest.mark.parametrize("sizes", [1, 4, 11, [1, 5, 3, 2]])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_pieces_have_the_statistics_of_the_stack(kind, shape, sizes, offset):
    torch.manual_seed(0)
    samples = torch.randn(11, *shape) + (offset if kind == "values" else 0.0)
    if kind == "probabilities":
        samples = samples.softmax(2)
    right = wanted(samples, kind, 1)
    made = reduced(samples, kind, sizes, statistics=tuple(right)).results()
    assert list(made) == list(right)
    for name, one in made.items():
        assert one.shape == right[name].shape, name
        assert torch.allclose(one.double(), right[name], atol=2e-6 * (1 + offset / 10)), name


@pytest.mark.parametrize("dim", [-1, 2, 3])
def test_classes_may_be_in_any_dim(dim):
    samples = torch.randn(7, 2, 3, 4, 5)
    right = wanted(samples, "logits", dim % 4)
    made = reduced(samples, "logits", 2, class_dim=dim).results()
    for name, one in made.items():
        assert torch.allclose(one.double(), right[name], atol=2e-6), name


def test_a_large_output_is_worked_on_in_tiles(monkeypatch):
    from sitout.mc import _reduce

    samples = torch.randn(3, 2, 4, 50, 3)
    whole = reduced(samples, "logits", 1).results()
    for tile in (1, 17, 64):
        monkeypatch.setattr(_reduce, "_TILE", tile)
        made = reduced(samples, "logits", 1).results()
        assert all(torch.allclose(made[name], one, atol=1e-6) for name, one in whole.items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype):
    samples = torch.randn(50, 4, 3).to(dtype)
    made = reduced(samples, "values", 7).results()
    assert made["mean"].dtype == torch.float32
    assert torch.allclose(made["mean"].double(), samples.double().mean(0), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [1, 3])
def test_equal_samples_are_told_from_others(kind, sizes):
    same = torch.rand(1, 4, 2).expand(6, 4, 2).clone()
    assert not reduced(same, kind, sizes).differ
    assert reduced(same, kind, sizes).results()["mean"].isfinite().all()
    for i in range(6):
        other = same.clone()
        other[i, 2, 0] += 1e-3
        assert reduced(other, kind, sizes).differ


def test_probabilities_of_0_have_no_entropy():
    sure = torch.eye(3)[None].expand(4, 3, 3)
    made = reduced(sure, "probabilities", 2).results()
    assert made["entropy"].abs().max() == 0.0
    assert made["mutual_information"].abs().max() == 0.0


def test_the_width_is_that_of_the_interval_of_the_mean():
    samples = torch.randn(40, 6)
    found = reduced(samples, "values", 8)
    assert found.width() == pytest.approx(1.96 * samples.std(0).max().item() / math.sqrt(40))
    assert reduced(samples[:1], "values", 1).width() == math.inf


LEVELS = (0.05, 0.5, 0.9)


def test_quantiles_of_few_samples_are_exact():
    samples = torch.randn(64, 3, 4)
    found = Quantiles(LEVELS)
    found.update(samples[:30])
    found.update(samples[30:])
    assert torch.equal(found.result(), torch.quantile(samples, torch.tensor(LEVELS), 0))


@pytest.mark.parametrize("large", [False, True])
def test_quantiles_of_many_samples_are_near_in_rank(large, monkeypatch):
    from sitout.mc import _quantiles

    if large:
        monkeypatch.setattr(_quantiles, "_LARGE", 1)
    torch.manual_seed(0)
    count = 2000
    samples = torch.randn(count, 50).exp()
    found = Quantiles(LEVELS)
    found.update(samples)
    for level, made in zip(LEVELS, found.result(), strict=True):
        ranks = (samples <= made).double().mean(0)
        # The rank of an exact quantile is off by 1 / n; that of P2 by some hundredths.
        assert (ranks - level).abs().max() < 0.05
        assert abs(ranks.mean() - level) < 0.01


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [10, 100])
def test_statistics_lie_where_the_samples_are(kind, count):
    """On a device without memory; what would be made on the CPU does not go with it."""
    statistics = (*STATISTICS[kind], *OPTIONAL.get(kind, ()))
    reducer = Reducer(kind, statistics, 1, LEVELS)
    reducer.differ = True  # to know whether they do, values are read
    reducer.update(torch.zeros(count, 5, 2, device="meta"))
    made = reducer.results()
    assert {*made} == {*statistics, "quantiles"}
    assert all(one.is_meta for one in made.values())
