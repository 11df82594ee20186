"""mc.compare: scores against hand-made ones, and verdicts that hold."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import sitout
from sitout.mc import _arms, _scores

NO_DIFFERENCE = "no detectable difference"

P = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7], [0.98, 0.02]])
Y = torch.tensor([0, 1, 1, 0])


def arm(outputs, made, y, std=0.0):
    """Return the arm of one batch."""
    one = _arms.Arm(outputs)
    one.add(made, y, std, 1)
    return one


def scores(plain, carlo, resamples=500):
    """Return the scores of two arms by their names."""
    return {one.name: one for one in _arms.scored(plain, carlo, resamples, 0)}


class Classes(nn.Module):
    """Logits of three classes with dropout before them."""

    def __init__(self):
        super().__init__()
        self.first, self.drop, self.last = nn.Linear(4, 32), nn.Dropout(0.5), nn.Linear(32, 3)

    def forward(self, x):
        return self.last(self.drop(self.first(x).relu()))


class Shifted(nn.Module):
    """Logits to which dropout adds the same number for all classes: the probabilities stay."""

    def __init__(self):
        super().__init__()
        self.last, self.drop = nn.Linear(4, 3), nn.Dropout(0.5)

    def forward(self, x):
        return self.last(x) + self.drop(x.repeat(1, 8)).sum(1, keepdim=True)


class Values(nn.Module):
    """A value with dropout before it; two numbers with ``heads=2``."""

    def __init__(self, heads=1):
        super().__init__()
        self.first, self.drop, self.last = nn.Linear(4, 32), nn.Dropout(0.2), nn.Linear(32, heads)

    def forward(self, x):
        return self.last(self.drop(self.first(x).relu()))


def test_the_scores_of_four_rows_are_those_by_hand():
    found = scores(arm("probabilities", P, Y), arm("probabilities", P, Y))
    assert found["accuracy"].deterministic == 0.75
    nll = -(math.log(0.9) + math.log(0.4) + math.log(0.7) + math.log(0.98)) / 4
    assert found["nll"].deterministic == pytest.approx(nll, rel=1e-6)
    brier = 2 * (0.1**2 + 0.6**2 + 0.3**2 + 0.02**2) / 4
    assert found["brier"].deterministic == pytest.approx(brier, rel=1e-6)
    # Bins of width 1/15: 0.6 in the tenth from 0, 0.7 in the next, 0.9 and 0.98 apart too.
    ece = (0.1 + 0.6 + 0.3 + 0.02) / 4
    assert found["ece"].deterministic == pytest.approx(ece, rel=1e-5)


def test_rows_of_one_bin_cancel_in_the_calibration_error():
    p = torch.tensor([[0.75, 0.25], [0.76, 0.24], [0.77, 0.23], [0.78, 0.22]])
    one = arm("probabilities", p, torch.tensor([0, 0, 0, 1]))
    ece = abs(0.75 + 0.76 + 0.77 + 0.78 - 3) / 4
    assert one.value("ece", one.columns()) == pytest.approx(ece, rel=1e-4)


def test_the_sums_give_what_torchmetrics_gives():
    logits = 4 * torch.randn(500, 5)
    logits[:50] *= 100  # a confidence of exactly 1 has a bin of its own in torchmetrics
    p, y = logits.softmax(1), torch.randint(5, (500,))
    assert (p.amax(1) == 1).sum() > 10
    one = arm("probabilities", p, y)
    columns = one.columns()
    sums = {name: columns[name].sum(0) for name in columns}
    for name in ("accuracy", "ece"):
        own = _scores.METRICS[name].fold(sums[name], sums["count"][0])
        assert float(own) == pytest.approx(one.value(name, columns), rel=1e-5)
    values = arm("values", torch.randn(7, 50, 2), torch.randn(50, 2), 0.5)
    columns = values.columns()
    own = _scores.METRICS["rmse"].fold(columns["rmse"].sum(0), columns["count"].sum())
    assert float(own) == pytest.approx(values.value("rmse", columns), rel=1e-12)


def test_a_probability_of_zero_gives_a_finite_likelihood():
    p = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    one = arm("probabilities", p, torch.tensor([1, 0]))
    tiny = torch.finfo(torch.float32).tiny
    nll = -(math.log(tiny) + math.log(0.5)) / 2
    assert one.value("nll", one.columns()) == pytest.approx(nll)


def test_a_probability_that_is_above_one_by_a_rounding_is_no_logit():
    p = torch.tensor([[1.0000001, 0.0], [0.2, 0.8]])
    one = arm("probabilities", p, torch.tensor([0, 1]))
    assert one.value("ece", one.columns()) == pytest.approx(0.1, rel=1e-5)


def test_maps_are_scored_by_element_and_resampled_by_row():
    p = torch.randn(6, 3, 4, 5).softmax(1)
    y = torch.randint(3, (6, 4, 5))
    one = arm("probabilities", p, y)
    flat = arm("probabilities", p.movedim(1, -1).reshape(-1, 3), y.flatten())
    assert len(one) == 6
    for name in ("accuracy", "nll", "ece", "brier"):
        whole = one.value(name, one.columns())
        assert whole == pytest.approx(flat.value(name, flat.columns()), rel=1e-6)


def test_the_likelihood_of_the_mixture_is_that_of_a_direct_logsumexp():
    mean, y, std = torch.randn(9, 20, 2).double(), torch.randn(20, 2).double(), 0.3
    one = arm("values", mean, y, std)
    each = torch.distributions.Normal(mean, std).log_prob(y)
    nll = -(each.logsumexp(0) - math.log(9)).mean()
    assert one.value("nll", one.columns()) == pytest.approx(float(nll), rel=1e-12)


def test_each_sample_of_a_head_has_its_own_variance():
    made, y = torch.randn(9, 20, 2).double(), torch.randn(20).double()
    one = arm("mean_and_log_variance", made, y)
    normal = torch.distributions.Normal(made[..., 0], (0.5 * made[..., 1]).exp())
    nll = -(normal.log_prob(y).logsumexp(0) - math.log(9)).mean()
    assert one.value("nll", one.columns()) == pytest.approx(float(nll), rel=1e-12)
    inside = (normal.cdf(y).mean(0) - 0.5).abs() <= 0.45
    assert one.value("coverage_90", one.columns()) == pytest.approx(float(inside.double().mean()))


@pytest.mark.parametrize("level", [50, 90, 95])
def test_the_intervals_of_true_distributions_cover_as_often_as_they_say(level):
    n = 20_000
    center = torch.randn(2, n).double()  # an even mixture of two
    which = torch.randint(2, (n,))
    y = center.gather(0, which[None])[0] + 0.5 * torch.randn(n).double()
    one = arm("values", center, y, 0.5)
    share = one.value(f"coverage_{level}", one.columns())
    # Five standard errors: by luck in one of a million runs, and the seed is fixed.
    assert abs(share - level / 100) < 5 * math.sqrt(level / 100 * (1 - level / 100) / n)
    low, high = _scores.wilson(share, n)
    assert low < level / 100 < high
    wrong = arm("values", center, y, 0.4)
    low, high = _scores.wilson(wrong.value(f"coverage_{level}", wrong.columns()), n)
    assert high < level / 100


def test_the_interval_of_a_share_is_wilsons():
    # Newcombe 1998, Stat. Med. 17, table I: 81 of 263, and 0 of 20.
    assert _scores.wilson(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert _scores.wilson(0.0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)


def test_one_prediction_has_the_noise_of_its_residuals():
    y, mean = torch.randn(50), torch.randn(50)
    rms = float((y.double() - mean.double()).square().mean().sqrt())
    assert _scores.noise(mean[None], y) == pytest.approx(rms)


def test_the_noise_of_samples_is_the_likeliest():
    y, mean = torch.randn(200).double(), 0.7 * torch.randn(6, 200).double()

    def nll(std):
        each = torch.distributions.Normal(mean, std).log_prob(y)
        return float(-(each.logsumexp(0) - math.log(6)).mean())

    fitted = nll(_scores.noise(mean, y))
    assert fitted <= min(nll(std) for std in np.geomspace(0.01, 5, 400)) + 1e-4


def test_equal_predictions_have_no_detectable_difference():
    for name, one in scores(arm("probabilities", P, Y), arm("probabilities", P, Y)).items():
        assert (name, one.difference, one.low, one.high) == (name, 0.0, 0.0, 0.0)
        assert one.verdict == NO_DIFFERENCE


def test_a_difference_of_rounding_is_none():
    x, y = torch.randn(300, 4), torch.randint(3, (300,))
    found = sitout.mc.compare(Shifted(), (x, y), samples=20)
    assert [one.verdict for one in found] == [NO_DIFFERENCE] * 4
    assert found["nll"].difference == pytest.approx(0.0, abs=1e-6)


def test_a_better_prediction_is_better_and_the_other_way_round_worse():
    y = torch.randint(3, (400,))
    good = (3 * nn.functional.one_hot(y, 3) + torch.randn(400, 3)).softmax(1)
    bad = (torch.randn(400, 3)).softmax(1)
    one, other = arm("probabilities", bad, y), arm("probabilities", good, y)
    assert [found.verdict for found in scores(one, other).values()] == ["better"] * 4
    assert [found.verdict for found in scores(other, one).values()] == ["worse"] * 4


def test_few_rows_have_no_verdict():
    """Of three rows one in four times all differences have one sign by chance."""
    for rows, verdict in ((29, NO_DIFFERENCE), (30, "better")):
        y = torch.zeros(rows, dtype=torch.int64)
        plain, carlo = (torch.tensor([[p, 1 - p]]).repeat(rows, 1) for p in (0.6, 0.7))
        found = scores(arm("probabilities", plain, y), arm("probabilities", carlo, y))["nll"]
        assert found.high < 0
        assert found.verdict == verdict


def test_a_coverage_is_better_when_it_is_nearer_to_its_level():
    y = torch.randn(2000).double()
    fits, wide = (arm("values", torch.zeros(1, 2000).double(), y, std) for std in (1.0, 3.0))
    found = scores(wide, fits)["coverage_50"]
    assert found.verdict == "better"
    assert found.monte_carlo < found.deterministic
    assert found.difference < 0
    assert scores(fits, wide)["coverage_50"].verdict == "worse"


def test_the_interval_is_that_of_a_paired_difference():
    """A shift that all rows share has no spread, however far the rows are apart."""
    first = torch.randn(100, 1).double()
    columns = torch.cat([first, torch.ones(100, 1).double()], 1)
    moved = torch.cat([first + 0.25, torch.ones(100, 1).double()], 1)
    made = _scores.bootstrap(lambda sums: sums[:, :1] / sums[:, 1:], columns, moved, 300, 0)
    assert torch.allclose(made, torch.full_like(made, 0.25))


def test_the_bootstrap_of_a_mean_has_its_standard_error():
    one = torch.randn(400, 1).double()
    columns = torch.cat([torch.zeros_like(one), torch.ones_like(one)], 1)
    moved = torch.cat([one, torch.ones_like(one)], 1)
    made = _scores.bootstrap(lambda sums: sums[:, :1] / sums[:, 1:], columns, moved, 4000, 0)
    # The relative error of a standard deviation of 4000 draws is 1 / sqrt(8000), about 0.011.
    assert float(made.std()) == pytest.approx(float(one.std()) / 20, rel=0.06)


def test_monte_carlo_is_scored_as_predict_predicts():
    model, x, y = Classes(), torch.randn(300, 4), torch.randint(3, (300,))
    found = sitout.mc.compare(model, (x, y), samples=12, seed=5)
    batches = DataLoader(TensorDataset(x, y), batch_size=100)
    mean = sitout.mc.predict(model, batches, samples=12, seed=5, outputs="logits").mean
    hits = (mean.argmax(1) == y).double().mean()
    assert found["accuracy"].monte_carlo == pytest.approx(float(hits))
    nll = nn.functional.nll_loss(mean.log(), y)
    assert found["nll"].monte_carlo == pytest.approx(float(nll), rel=1e-5)
    with torch.no_grad():
        plain = nn.functional.cross_entropy(model.eval()(x), y)
    assert found["nll"].deterministic == pytest.approx(float(plain), rel=1e-5)


@pytest.mark.parametrize("masks", ["independent", "shared"])
def test_the_batches_do_not_matter(masks):
    model, x, y = Values(), torch.randn(70, 4), torch.randn(70)
    options = {"samples": 8, "outputs": "values", "noise_std": 0.5, "masks": masks}
    whole = sitout.mc.compare(model, (x, y), **options)
    loader = DataLoader(TensorDataset(x, y), batch_size=32)
    batches = sitout.mc.compare(model, loader, **options)
    assert [one.name for one in batches] == [one.name for one in whole]
    for one, other in zip(whole, batches, strict=True):
        assert one.monte_carlo == pytest.approx(other.monte_carlo, rel=1e-5)
        assert (one.low, one.high) == pytest.approx((other.low, other.high), rel=1e-4, abs=1e-9)


def test_regression_is_the_mixture_over_the_samples_of_predict():
    model, x, y = Values(), torch.randn(60, 4), torch.randn(60, 1)
    made = sitout.mc.predict(model, x, samples=8, return_samples=True)
    found = sitout.mc.compare(model, (x, y), samples=8, outputs="values", noise_std=0.5)
    each = torch.distributions.Normal(made.samples, 0.5).log_prob(y)
    nll = -(each.logsumexp(0) - math.log(8)).mean()
    assert found["nll"].monte_carlo == pytest.approx(float(nll), rel=1e-5)
    rmse = (made.mean - y).square().mean().sqrt()
    assert found["rmse"].monte_carlo == pytest.approx(float(rmse), rel=1e-5)
    assert found.noise_std == (0.5, 0.5)


def test_the_noise_is_fitted_for_each_prediction():
    model, x, y = Values(), torch.randn(90, 4), torch.randn(90)
    data, calibrate = (x[:60], y[:60]), (x[60:], y[60:])
    found = sitout.mc.compare(model, data, samples=8, outputs="values", calibrate=calibrate)
    with torch.no_grad():
        rms = (model.eval()(x[60:])[:, 0] - y[60:]).square().mean().sqrt()
    assert found.noise_std[0] == pytest.approx(float(rms), rel=1e-5)
    assert 0 < found.noise_std[1] < 2 * found.noise_std[0]


def test_a_head_needs_no_noise():
    model, x, y = Values(2), torch.randn(40, 4), torch.randn(40)
    found = sitout.mc.compare(model, (x, y), samples=8, outputs="mean_and_log_variance")
    names = ["rmse", "nll", "coverage_50", "coverage_90", "coverage_95"]
    assert [one.name for one in found] == names
    with torch.no_grad():
        mean, log_variance = model.eval()(x).T
    nll = nn.functional.gaussian_nll_loss(mean, y, log_variance.exp(), full=True)
    assert found["nll"].deterministic == pytest.approx(float(nll), rel=1e-5)


def test_inputs_may_be_named_and_targets_a_map():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.drop = nn.Conv2d(3, 5, 1), nn.Dropout2d(0.5)

        def forward(self, image):
            return self.conv(self.drop(image))

    data = [({"image": torch.randn(4, 3, 6, 6)}, torch.randint(5, (4, 6, 6))) for _ in range(2)]
    found = sitout.mc.compare(Named(), data, samples=6)
    assert found.rows == 8


def test_the_model_is_as_it_was():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    model[1].eval()
    before = [one.training for one in model.modules()]
    state = {name: one.clone() for name, one in model.state_dict().items()}
    sitout.mc.compare(model, (torch.randn(20, 4), torch.randint(3, (20,))), samples=5)
    assert [one.training for one in model.modules()] == before
    assert all(torch.equal(one, state[name]) for name, one in model.state_dict().items())


def test_a_comparison_is_a_table_and_json_and_a_line_for_each_metric():
    model, data = Values(), (torch.randn(40, 4), torch.randn(40))
    found = sitout.mc.compare(model, data, samples=6, outputs="values", noise_std=1.0)
    lines = str(found).splitlines()
    assert [line.split("  ")[0] for line in lines[1:3]] == ["RMSE", "NLL"]
    assert len(lines) == 1 + 5 + 1
    assert "40 rows, 6 samples" in lines[-1]
    told = json.loads(found.to_json())
    assert (told["rows"], told["samples"], len(told["scores"])) == (40, 6, 5)
    assert told["scores"][2]["intervals"][0] == list(found["coverage_50"].intervals[0])
    assert len(found.verdicts) == 5
    assert found.verdicts[0].startswith("RMSE: ")
    with pytest.raises(ValueError, match="Did you mean 'rmse'"):
        found["rmsee"]


X = torch.ones(6, 4)
CLASSES = torch.arange(6) % 3
REFUSED = {
    "targets_of_another_shape": (Classes, (X, CLASSES[:, None]), {}, "targets"),
    "targets_that_are_no_classes": (Classes, (X, CLASSES.float()), {}, "int64"),
    "a_class_that_is_not_there": (Classes, (X, CLASSES + 1), {}, r"in \[0, 3\)"),
    "fewer_targets": (Classes, (X, CLASSES[:5]), {}, "as many rows"),
    "one_row": (Classes, (X[:1], CLASSES[:1]), {}, "two rows or more"),
    "no_noise": (Values, (X, X[:, 0]), {"outputs": "values"}, "noise_std"),
    "noise_of_classes": (Classes, (X, CLASSES), {"noise_std": 1.0}, "noise_std"),
    "no_noise_at_all": (Values, (X, X[:, 0]), {"outputs": "values", "noise_std": 0.0}, "above 0"),
    "values_of_another_shape": (
        *(Values, (X, X)),
        *({"outputs": "values", "noise_std": 1.0}, "shape of the output"),
    ),
    "no_variance": (
        *(Values, (X, X[:, 0])),
        *({"outputs": "mean_and_log_variance"}, "size 2 in dim 1"),
    ),
    "few_resamples": (Classes, (X, CLASSES), {"resamples": 10}, "100 or more"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_it_refuses(case):
    model, data, options, told = REFUSED[case]
    with pytest.raises(ValueError, match=told):
        sitout.mc.compare(model(), data, samples=5, **options)


def test_it_refuses_outputs_that_are_not_finite():
    model = Classes()
    with torch.no_grad():
        model.last.bias[0] = math.nan
    with pytest.raises(ValueError, match="finite"):
        sitout.mc.compare(model, (X, CLASSES), samples=5)


def test_it_refuses_a_model_that_drops_in_evaluation():
    class Always(nn.Module):
        def forward(self, x):
            return nn.functional.dropout(x, 0.5)

    with pytest.raises(ValueError, match="drops nothing in evaluation"):
        sitout.mc.compare(Always(), (torch.randn(6, 4), CLASSES), samples=5)
