"""For scikit-learn: networks with dropout as estimators that say how sure they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch

from .. import _checks, mc
from .._optional import needs
from ._perceptron import Options, trained

with needs("sklearn", "sitout.integrations.sklearn"):
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.preprocessing import StandardScaler
    from sklearn.utils import check_random_state
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data
    from skorch import NeuralNetClassifier, NeuralNetRegressor

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["DropoutClassifier", "DropoutRegressor"]

_ROWS = 1024  # that are predicted together
_MEMORY = 1 << 28  # bytes for their samples; the same everywhere, so that results are too


class _DropoutEstimator(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """What both estimators share."""

    def __init__(
        self,
        hidden: tuple[int, ...] = (256, 256),
        p: float = 0.5,
        input_p: float = 0.0,
        *,
        learning_rate: float = 1e-3,
        max_epochs: int = 100,
        batch_size: int | str = "auto",
        weight_decay: float = 1e-2,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        patience: int = 10,
        samples: int = 50,
        random_state: Any = None,
        device: str = "cpu",
        verbose: int = 0,
    ) -> None:
        self.hidden = hidden
        self.p = p
        self.input_p = input_p
        self.learning_rate = learning_rate
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.weight_decay = weight_decay
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.samples = samples
        self.random_state = random_state
        self.device = device
        self.verbose = verbose

    def _options(self) -> Options:
        """Return the parameters, checked."""
        chosen = {k: v for k, v in self.get_params(deep=False).items() if k != "random_state"}
        return Options(type(self).__name__, **chosen)

    def _train(
        self, kind: Any, x: NDArray[Any], y: NDArray[Any], outputs: int, **more: Any
    ) -> None:
        """Standardise the rows, and train a skorch net of a ``kind`` on them."""
        options = self._options()
        seed = int(check_random_state(self.random_state).randint(1 << 31))
        scaler = StandardScaler().fit(x)
        keywords = options.net(x.shape[1], outputs, len(x), seed, stratified=outputs > 1) | more
        rows = scaler.transform(x).astype(np.float32)
        self.net_ = trained(kind, keywords, rows, y, seed)
        self.scaler_, self.seed_ = scaler, seed

    def _rows(self, X: ArrayLike) -> torch.Tensor:  # noqa: N803 (the name of scikit-learn)
        """Return rows as the network takes them."""
        check_is_fitted(self)
        rows = self.scaler_.transform(validate_data(self, X, reset=False, dtype=np.float64))
        return torch.from_numpy(rows).to(self.net_.device)

    def _sampled(self, rows: torch.Tensor, **options: Any) -> mc.Prediction:
        """Return what the samples say. A sample is one network for all rows."""
        batches = iter(torch.split(rows, _ROWS))
        return mc.predict(
            self.net_.module_,
            batches,
            samples=self.samples,
            masks="shared",
            seed=self.seed_,
            memory=_MEMORY,
            **options,
        )

    def _plain(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the outputs without dropout, for a network that has none."""
        with torch.no_grad():
            out: torch.Tensor = self.net_.module_(rows)
        return out


class DropoutClassifier(ClassifierMixin, _DropoutEstimator):  # type: ignore[misc]
    """A fully connected network whose class probabilities are means over dropout samples.

    Features are standardised inside. A fitted estimator gives the same prediction for the same row
    each time, whatever rows come with it: its samples are drawn from ``seed_``.

    Args:
        hidden: units of each hidden layer.
        p: drop rate of hidden units, in [0, 1).
        input_p: drop rate of the features, in [0, 1).
        learning_rate: of AdamW in the first epoch; it falls linearly to almost 0.
        max_epochs: passes over the training rows.
        batch_size: rows a step; "auto" makes about 50 steps an epoch, of 16 to 256 rows.
        weight_decay: of AdamW.
        early_stopping: hold rows back, stop when they are predicted no better, and keep the best
            network.
        validation_fraction: of the rows that are held back then.
        patience: epochs without a better loss before it stops.
        samples: networks that are drawn for a prediction; may be changed after ``fit``.
        random_state: of weights, batches and masks; an int, a ``RandomState`` or None.
        device: of torch, "cpu" or "cuda".
        verbose: 1 prints a line an epoch.

    Attributes:
        classes_: the labels, in the order of the probabilities.
        net_: the skorch net, after training in float64.
        n_features_in_: columns that ``fit`` saw; their names in ``feature_names_in_``.

    Example:
        >>> from sitout.integrations.sklearn import DropoutClassifier
        >>> rows, labels = torch.randn(40, 3).numpy(), [0, 1] * 20
        >>> model = DropoutClassifier(hidden=(8,), max_epochs=2, random_state=0).fit(rows, labels)
        >>> model.predict_proba(rows).shape
        (40, 2)

    Reference:
        Gal and Ghahramani 2016, arXiv 1506.02142.
    """

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:  # noqa: N803
        """Train on rows and their labels.

        Args:
            X: ``[n, features]``, numbers; a DataFrame or an array.
            y: ``[n]``, labels of two or more classes.

        Returns:
            The estimator.

        Raises:
            TypeError: a parameter has the wrong type.
            ValueError: a parameter is out of range, or the rows do not fit.
        """
        x, y = validate_data(self, X, y, dtype=np.float64, ensure_min_samples=2)
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            what = "`y` of DropoutClassifier.fit"
            raise ValueError(_checks.message(what, "of 2 classes or more", "1 class"))
        loss = {"criterion": torch.nn.CrossEntropyLoss}
        labels = codes.astype(np.int64)
        self._train(NeuralNetClassifier, x, labels, len(self.classes_), **loss)
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:  # noqa: N803
        """Return the mean probabilities of the classes, ``[n, classes]``.

        Args:
            X: ``[n, features]``.

        Raises:
            NotFittedError: ``fit`` was not called.
            ValueError: the rows are not like those of ``fit``.
        """
        rows = self._rows(X)
        if self.net_.module_.drops:
            made = self._sampled(rows, outputs="logits", statistics=("mean",)).mean
        else:
            made = self._plain(rows).softmax(1)
        found: NDArray[np.float64] = made.cpu().numpy()
        return found

    def predict(self, X: ArrayLike) -> NDArray[Any]:  # noqa: N803
        """Return the label of highest mean probability, ``[n]``.

        Args:
            X: ``[n, features]``.

        Raises:
            NotFittedError: ``fit`` was not called.
            ValueError: the rows are not like those of ``fit``.
        """
        best = self.predict_proba(X).argmax(axis=1)
        labels: NDArray[Any] = self.classes_[best]
        return labels


class DropoutRegressor(RegressorMixin, _DropoutEstimator):  # type: ignore[misc]
    """A fully connected network that predicts a number, and how far its dropout samples disagree.

    Features and targets are standardised inside. A fitted estimator gives the same prediction for
    the same row each time, whatever rows come with it: its samples are drawn from ``seed_``.

    Args:
        hidden: units of each hidden layer.
        p: drop rate of hidden units, in [0, 1).
        input_p: drop rate of the features, in [0, 1).
        learning_rate: of AdamW in the first epoch; it falls linearly to almost 0.
        max_epochs: passes over the training rows.
        batch_size: rows a step; "auto" makes about 50 steps an epoch, of 16 to 256 rows.
        weight_decay: of AdamW.
        early_stopping: hold rows back, stop when they are predicted no better, and keep the best
            network.
        validation_fraction: of the rows that are held back then.
        patience: epochs without a better loss before it stops.
        samples: networks that are drawn for a prediction; may be changed after ``fit``.
        random_state: of weights, batches and masks; an int, a ``RandomState`` or None.
        device: of torch, "cpu" or "cuda".
        verbose: 1 prints a line an epoch.

    Attributes:
        net_: the skorch net, after training in float64.
        n_features_in_: columns that ``fit`` saw; their names in ``feature_names_in_``.

    Example:
        >>> from sitout.integrations.sklearn import DropoutRegressor
        >>> rows = torch.randn(40, 3).numpy()
        >>> model = DropoutRegressor(hidden=(8,), max_epochs=2, random_state=0)
        >>> _ = model.fit(rows, rows[:, 0])
        >>> mean, std = model.predict(rows, return_std=True)
        >>> mean.shape, std.shape
        ((40,), (40,))

    Reference:
        Gal and Ghahramani 2016, arXiv 1506.02142.
    """

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:  # noqa: N803
        """Train on rows and their targets.

        Args:
            X: ``[n, features]``, numbers; a DataFrame or an array.
            y: ``[n]``, numbers.

        Returns:
            The estimator.

        Raises:
            TypeError: a parameter has the wrong type.
            ValueError: a parameter is out of range, or the rows do not fit.
        """
        x, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True, ensure_min_samples=2)
        column = np.asarray(y, np.float64).reshape(-1, 1)
        scaler = StandardScaler().fit(column)
        targets = scaler.transform(column).astype(np.float32)
        self._train(NeuralNetRegressor, x, targets, 1)
        self.target_scaler_ = scaler
        return self

    def predict(
        self,
        X: ArrayLike,  # noqa: N803
        return_std: bool = False,
    ) -> NDArray[np.float64] | tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the mean of the samples, ``[n]``, and with ``return_std`` their deviation.

        Args:
            X: ``[n, features]``.
            return_std: return the standard deviation too, ``[n]``: what the network does not know.
                The noise of the targets is not in it.

        Raises:
            NotFittedError: ``fit`` was not called.
            ValueError: the rows are not like those of ``fit``; or ``return_std`` of a network that
                drops nothing.
        """
        rows = self._rows(X)
        if not self.net_.module_.drops:
            if return_std:
                what, rule = "`p` or `input_p` of DropoutRegressor", "above 0 for return_std"
                raise ValueError(_checks.message(what, rule, (self.p, self.input_p)))
            return self._in_unit(self._plain(rows))
        made = self._sampled(rows, statistics=("mean", "std"))
        if not return_std:
            return self._in_unit(made.mean)
        spread = made.std.squeeze(1).cpu().numpy() * self.target_scaler_.scale_[0]
        return self._in_unit(made.mean), spread

    def _in_unit(self, out: torch.Tensor) -> NDArray[np.float64]:
        """Return outputs in the unit of the targets."""
        found: NDArray[np.float64] = self.target_scaler_.inverse_transform(out.cpu().numpy())
        return found[:, 0]
