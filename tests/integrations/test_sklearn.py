"""The estimators for scikit-learn: its own checks, its tools, and what the samples say."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest
import torch

import sitout

pytest.importorskip("skorch", reason="skorch is not installed")

from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_iris
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils.estimator_checks import check_estimator

from sitout.integrations.sklearn import DropoutClassifier, DropoutRegressor

QUICK = {"hidden": (32,), "max_epochs": 4, "samples": 10, "random_state": 0}
LEARNS = {"hidden": (32,), "max_epochs": 20, "samples": 10, "learning_rate": 1e-2}
BOTH = [DropoutClassifier, DropoutRegressor]


def iris():
    return load_iris(return_X_y=True, as_frame=True)


def sine():
    x = np.linspace(-3, 3, 200)
    return x[:, None], 1000.0 * np.sin(2 * x)


@pytest.mark.parametrize("kind", BOTH)
def test_scikit_learn_finds_no_fault(kind):
    """All of its checks; its own reason for a skip may only be an environment variable of scipy."""
    found = check_estimator(kind(**LEARNS | {"max_epochs": 10, "samples": 5}), on_skip=None)
    skipped = [one["check_name"] for one in found if one["status"] != "passed"]
    assert len(found) > 40
    assert set(skipped) <= {"check_array_api_input"}


@pytest.mark.parametrize("kind", BOTH)
def test_the_parameters_are_stored_as_given(kind):
    hidden, random_state = [3, "no width"], object()
    model = kind(hidden, p=-1, batch_size="many", random_state=random_state)
    assert model.hidden is hidden
    assert model.random_state is random_state
    assert (model.p, model.batch_size) == (-1, "many")


FAULTS = [
    ({"hidden": 3}, TypeError, "a tuple of widths"),
    ({"hidden": (3, 0)}, ValueError, "each width in `hidden`"),
    ({"p": 1.0}, ValueError, "[0, 1)"),
    ({"input_p": -0.1}, ValueError, "[0, 1)"),
    ({"batch_size": "many"}, ValueError, "or 'auto'"),
    ({"max_epochs": 0}, ValueError, "`max_epochs`"),
    ({"samples": 1}, ValueError, "`samples`"),
    ({"learning_rate": 0.0}, ValueError, "`learning_rate`"),
    ({"weight_decay": -1.0}, ValueError, "`weight_decay`"),
    ({"validation_fraction": 1.0}, ValueError, "`validation_fraction`"),
    ({"early_stopping": 1}, TypeError, "`early_stopping`"),
]


@pytest.mark.parametrize(("parameters", "error", "says"), FAULTS)
@pytest.mark.parametrize("kind", BOTH)
def test_fit_refuses_a_parameter_in_one_line(kind, parameters, error, says):
    with pytest.raises(error) as raised:
        kind(**parameters).fit(np.eye(4), [0, 1, 0, 1])
    assert says in str(raised.value)
    assert kind.__name__ in str(raised.value)
    assert "\n" not in str(raised.value)


def test_it_learns_iris_and_the_rows_of_probabilities_sum_to_one():
    x, y = iris()
    names = np.array(["a", "b", "c"])[y]
    model = DropoutClassifier(**LEARNS, random_state=0).fit(x, names)
    probabilities = model.predict_proba(x)
    assert model.score(x, names) > 0.93
    assert list(model.classes_) == ["a", "b", "c"]
    assert np.allclose(probabilities.sum(1), 1.0)
    assert (model.predict(x) == model.classes_[probabilities.argmax(1)]).all()


def test_the_deviation_grows_away_from_the_rows_and_has_the_unit_of_the_target():
    x, y = sine()
    options = LEARNS | {"hidden": (64, 64), "max_epochs": 40, "p": 0.1, "random_state": 0}
    model = DropoutRegressor(**options).fit(x, y)
    assert model.score(x, y) > 0.8
    _, near = model.predict(x, return_std=True)
    _, far = model.predict([[-30.0], [30.0]], return_std=True)
    assert far.min() > 5 * near.max()
    assert near.mean() > 10.0


def test_the_mean_is_that_of_mc_predict_on_the_standardised_rows():
    x, y = sine()
    model = DropoutRegressor(**QUICK).fit(x, y)
    rows = torch.from_numpy((x - x.mean(0)) / x.std(0))
    made = sitout.mc.predict(model.net_.module_, rows, samples=10, masks="shared", seed=model.seed_)
    mean, std = model.predict(x, return_std=True)
    assert np.allclose(mean, y.mean() + y.std() * made.mean[:, 0].numpy(), rtol=1e-9)
    assert np.allclose(std, y.std() * made.std[:, 0].numpy(), rtol=1e-9)
    assert np.array_equal(mean, model.predict(x))


@pytest.mark.parametrize("kind", BOTH)
def test_a_row_is_predicted_alike_whatever_comes_with_it(kind):
    x, y = load_iris(return_X_y=True)
    model = kind(**QUICK).fit(x, y)
    many = np.tile(x, (15, 1))  # more than go through the network together
    ask = getattr(model, "predict_proba", model.predict)
    whole = ask(many)
    again = ask(many)
    assert np.array_equal(whole, again)
    assert np.allclose(whole[-1:], ask(many[-1:]), rtol=1e-10, atol=0)
    assert np.allclose(whole[::-1], ask(many[::-1]), rtol=1e-10, atol=0)


@pytest.mark.parametrize("kind", BOTH)
def test_random_state_fixes_all_and_torch_s_generator_is_left_alone(kind):
    x, y = iris()
    before = torch.get_rng_state()
    first, again = (kind(**QUICK).fit(x, y).predict(x) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(first, again)
    other, free = (
        clone(kind(**QUICK)).set_params(random_state=1),
        kind(**QUICK | {"random_state": None}),
    )
    assert other.fit(x, y).seed_ != kind(**QUICK).fit(x, y).seed_
    assert free.fit(x, y).seed_ != free.fit(x, y).seed_


@pytest.mark.parametrize("kind", BOTH)
def test_a_pickle_predicts_the_same(kind):
    x, y = iris()
    model = kind(**QUICK).fit(x, y)
    expected = model.predict(x)
    assert np.array_equal(pickle.loads(pickle.dumps(model)).predict(x), expected)


def test_the_names_of_columns_are_kept_and_others_refused():
    x, y = iris()
    model = DropoutClassifier(**QUICK).fit(x, y)
    assert list(model.feature_names_in_) == list(x.columns)
    assert model.n_features_in_ == 4
    with pytest.raises(ValueError, match="feature names"):
        model.predict(x.rename(columns={"sepal length (cm)": "length"}))
    with pytest.raises(ValueError, match="3 features"):
        DropoutClassifier(**QUICK).fit(x.to_numpy(), y).predict_proba(x.to_numpy()[:, :3])


def test_a_pipeline_and_a_search_take_them():
    x, y = load_diabetes(return_X_y=True, as_frame=True)
    pipeline = make_pipeline(MinMaxScaler(), DropoutRegressor(**QUICK)).set_output(
        transform="pandas"
    )
    grid = {"dropoutregressor__p": [0.0, 0.2], "dropoutregressor__hidden": [(8,), (8, 8)]}
    search = GridSearchCV(pipeline, grid, cv=2).fit(x, y)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert len(search.predict(x.head())) == 5
    mean, std = pipeline.fit(x, y).predict(x.head(), return_std=True)
    assert mean.shape == std.shape == (5,)


def test_without_dropout_there_are_predictions_and_no_deviation():
    x, y = iris()
    bare = QUICK | {"p": 0.0}
    model = DropoutRegressor(**bare).fit(x, y)
    assert model.predict(x).shape == (150,)
    with pytest.raises(ValueError, match="above 0 for return_std"):
        model.predict(x, return_std=True)
    assert np.allclose(DropoutClassifier(**bare).fit(x, y).predict_proba(x).sum(1), 1.0)


def test_a_linear_network_drops_its_inputs():
    x, y = iris()
    model = DropoutRegressor(**QUICK | {"hidden": (), "input_p": 0.2}).fit(x, y)
    assert (model.predict(x, return_std=True)[1] > 0).all()
    assert len(model.net_.module_) == 2


def test_early_stopping_ends_sooner_and_keeps_the_best_network():
    x, y = load_diabetes(return_X_y=True)
    options = QUICK | {"max_epochs": 200, "early_stopping": True, "patience": 3}
    model = DropoutRegressor(**options | {"learning_rate": 1e-2}).fit(x, y)
    history = model.net_.history
    losses = history[:, "valid_loss"]
    assert len(history) < 200
    assert len(history) == np.argmin(losses) + 1 + 3


def test_more_samples_may_be_asked_for_after_fit():
    x, y = sine()
    model = DropoutRegressor(**QUICK).fit(x, y)
    few = model.predict(x)
    many = model.set_params(samples=400).predict(x)
    assert not np.allclose(few, many, rtol=1e-4)


def test_a_series_with_an_index_of_its_own_is_a_target():
    x, y = iris()
    shuffled = pd.Series(y.to_numpy(), index=range(150, 0, -1))
    first = DropoutClassifier(**QUICK).fit(x, shuffled).predict(x)
    assert np.array_equal(first, DropoutClassifier(**QUICK).fit(x, y).predict(x))
