"""The linear models that decode, and how data are prepared for them in a fold."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.covariance import LedoitWolf
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LassoCV, LinearRegression, LogisticRegression, RidgeCV
from sklearn.svm import SVC

from dnnbrain_app.errors import UnknownNameError
from dnnbrain_app.records import Array

PENALTIES = np.geomspace(1e-4, 1e4, 17)  # of ridge, in units of the mean eigenvalue of the training kernel
STRENGTHS = np.geomspace(1e-3, 1, 30)  # of the lasso, in units of the one that leaves no weight


def _make_lda(y: Array, Z: Array) -> BaseEstimator:  # noqa: ARG001
    n_classes = len(np.unique(y))
    estimator = LedoitWolf()
    return LinearDiscriminantAnalysis("lsqr", covariance_estimator=estimator, priors=np.full(n_classes, 1 / n_classes))


def _make_ridge(y: Array, Z: Array) -> BaseEstimator:  # noqa: ARG001
    unit = np.einsum("nk,nk->", Z, Z) / len(Z)
    return RidgeCV(PENALTIES * (unit or 1))


# each model counts all classes alike, however many examples there are of each
CLASSIFIERS: dict[str, Callable[[Array, Array], BaseEstimator]] = {
    "svc": lambda *_: SVC(kernel="linear", class_weight="balanced"),
    "logistic": lambda *_: LogisticRegression(class_weight="balanced", max_iter=1000),
    "lda": _make_lda,
}


def _make_lasso(y: Array, Z: Array) -> BaseEstimator:
    strongest = np.abs(Z.T @ (y - y.mean())).max(initial=0) / len(Z)  # from there on all weights are 0
    return LassoCV(alphas=(strongest or 1) * STRENGTHS, cv=5)


REGRESSORS: dict[str, Callable[[Array, Array], BaseEstimator]] = {
    "ridge": _make_ridge,
    "lasso": _make_lasso,
    "ols": lambda *_: LinearRegression(),
}
SCALINGS = ("common", "each")
ROTATED = {"svc", "logistic", "lda", "ridge", "ols"}  # predict the same from any orthogonal coordinates


@dataclass(frozen=True, slots=True, eq=False)
class DecodingFold:
    """The data of a fold, prepared once for all targets.

    Parameters
    ----------
    train, test : array of int
        Rows.
    Z_train, Z_test : array of shape (n_train, k), (n_test, k)
        Scaled features, or their coordinates along principal components, by means, deviations and components of the
        training rows.
    """

    train: Array
    test: Array
    Z_train: Array
    Z_test: Array

    def predict(self, model: str, target: Array) -> Array:
        """Fit a model to the training rows of a target (n_rows,), and predict the test rows: (n_test,)."""
        y = target[self.train]
        if model in CLASSIFIERS and (y == y[0]).all():
            return np.full(len(self.test), y[0])
        estimator = find_decoder(model)(y, self.Z_train)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # of labels that cannot be learnt, as permuted ones
            return np.asarray(estimator.fit(self.Z_train, y).predict(self.Z_test))


def find_decoder(name: str) -> Callable[[Array, Array], BaseEstimator]:
    """Return the maker of a model.

    Raises
    ------
    UnknownNameError
        There is none of this name.
    """
    models = CLASSIFIERS | REGRESSORS
    if name not in models:
        raise UnknownNameError("decoder", name, models)
    return models[name]


def prepare_fold(X: Array, test: Array, model: str, n_components: int = 0, scaling: str = "common") -> DecodingFold:
    """Scale features by the training rows, and turn them into few coordinates where that changes no prediction.

    With more features than training rows, all that a model with a quadratic penalty can use is in as many coordinates
    as there are rows, and the permutations then cost what these cost.

    Parameters
    ----------
    X : array of shape (n_rows, n_features)
        All of it finite.
    test : array of int
        Held-out rows; all others are training rows.
    model : str
        The decoder.
    n_components : int
        Principal components to keep; 0 for all.
    scaling : {'common', 'each'}
        Whether features are divided by their root mean variance, or each by its own standard deviation.

    Returns
    -------
    DecodingFold

    Raises
    ------
    UnknownNameError
        Another scaling.
    """
    if scaling not in SCALINGS:
        raise UnknownNameError("scaling", scaling, SCALINGS)
    train = np.delete(np.arange(len(X)), test)
    some = X[train].astype(np.float64)
    mean, deviation = some.mean(axis=0), some.std(axis=0)
    varying = deviation > 1e-10 * np.abs(mean)
    scale = (
        deviation[varying] if scaling == "each" else np.sqrt(np.mean(deviation[varying] ** 2)) if varying.any() else 1
    )
    some, others = ((values[:, varying] - mean[varying]) / scale for values in (some, X[test].astype(np.float64)))
    if n_components or (model in ROTATED and some.shape[1] > len(train)):
        U, s, Vt = np.linalg.svd(some, full_matrices=False)
        kept = slice(min(n_components or len(s), int((s > 1e-10 * s.max(initial=0)).sum())))
        some, others = U[:, kept] * s[kept], others @ Vt[kept].T
    return DecodingFold(train, test, some, others)
