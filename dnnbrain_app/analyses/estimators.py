"""Any regression of scikit-learn instead of ridge, on the features of a layer; and on one unit, or part, of it.

Whatever is learnt from data (scaling, principal components, which unit) is learnt in the training folds.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from sklearn.base import BaseEstimator, RegressorMixin, clone
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.multioutput import MultiOutputRegressor
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import all_estimators

from dnnbrain_app.analyses.null_responses import Chunk, Exchange, Responses, prepare_responses
from dnnbrain_app.analyses.options import EncodingOptions
from dnnbrain_app.analyses.ridge import score_predictions
from dnnbrain_app.analyses.significance import choose_best_layer, weigh_layers
from dnnbrain_app.errors import BadDataError, UnknownNameError, UsageError
from dnnbrain_app.records import Array, EncodingScores, Gram, Grams

SHORT_NAMES = {
    "ols": "LinearRegression",
    "ridge": "Ridge",
    "lasso": "Lasso",
    "elasticnet": "ElasticNet",
    "pls": "PLSRegression",
}
# treat each target as if it were alone; of others (PLS, trees) a voxel's model would depend on its neighbours
SEPARATE = {"LinearRegression", "Ridge", "Lasso", "ElasticNet", "KernelRidge", "KNeighborsRegressor", "BestUnit"}
WIDTH = 512  # voxels that are fitted at the same time


class BestUnit(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    r"""Regression of each voxel on the one unit that goes with it best, in the training stimuli.

    .. math:: \hat y_v = a_v + b_v x_{u(v)}, \qquad u(v) = \arg\max_u |\mathrm{corr}(x_u, y_v)|

    To choose the unit with the test stimuli, as the original DNNBrain did, makes 500 units of noise score r = .3.
    """

    def fit(self, X: Array, Y: Array) -> BestUnit:
        """Choose units and fit: X of shape (n, n_units), Y of shape (n, n_voxels)."""
        self.X_mean_, self.Y_mean_ = X.mean(axis=0), Y.mean(axis=0)
        X = X - self.X_mean_
        norm = np.linalg.norm(X, axis=0)
        alive = norm > 1e-6 * max(norm.max(), np.finfo(float).tiny)
        covariance = (X.T @ (Y - self.Y_mean_)) / np.where(alive, norm, np.inf)[:, None]
        self.unit_ = np.abs(covariance).argmax(axis=0)
        self.slope_ = covariance[self.unit_, np.arange(Y.shape[1])] / norm[self.unit_]
        return self

    def predict(self, X: Array) -> Array:
        """Predict: (n, n_voxels)."""
        predicted: Array = self.Y_mean_ + self.slope_ * (X[:, self.unit_] - self.X_mean_[self.unit_])
        return predicted


def make_regressor(name: str, parameters: Mapping[str, Any]) -> BaseEstimator:
    """Make a regression by name: a short one, ``univariate``, or a class of scikit-learn.

    Each voxel gets a model of its own.

    Parameters
    ----------
    name : str
        ``ols``, ``ridge``, ``lasso``, ``elasticnet``, ``pls``, ``univariate`` (`BestUnit`), or as ``Lars``.
    parameters : mapping
        Keyword arguments.

    Raises
    ------
    UnknownNameError
        There is no such regression.
    UsageError
        It has no such parameter, or needs others.
    """
    known = {"univariate": BestUnit} | dict(all_estimators(type_filter="regressor"))
    wanted = SHORT_NAMES.get(name, name)
    if wanted not in known:
        raise UnknownNameError("regression", name, (*SHORT_NAMES, *known))
    try:
        regressor = known[wanted](**parameters)
    except TypeError as error:
        raise UsageError(f"regression {name}: {str(error).split('() ')[-1]}") from None
    return regressor if known[wanted].__name__ in SEPARATE else MultiOutputRegressor(regressor)


def make_pipeline(regressor: BaseEstimator, *, scale: bool, n_components: int | None) -> Pipeline:
    """Put scaling of units, and principal components, before a regression; all are fitted together.

    Parameters
    ----------
    regressor : BaseEstimator
        From `make_regressor`.
    scale : bool
        Whether units are scaled to unit variance.
    n_components : int, optional
        Principal components to keep. Default: the units themselves.
    """
    steps: list[tuple[str, BaseEstimator]] = [("scale", StandardScaler())] if scale else []
    if n_components is not None:
        steps.append(("pca", PCA(n_components, random_state=0)))
    return Pipeline([*steps, ("regression", regressor)])


def score_estimator(
    network: str,
    layers: Sequence[Gram],
    Y: Array,
    folds: Sequence[Array],
    estimator: BaseEstimator,
    options: EncodingOptions,
    *,
    rng: np.random.Generator,
    n_jobs: int = 1,
    blocks: Array | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> EncodingScores:
    """Predict the responses to held-out stimuli by any regression of scikit-learn, and score the predictions.

    Scores and p values are those of `encoding.score_encoding`. For ridge that function is a hundred times as fast.

    Parameters
    ----------
    network : str
        Label of the network.
    layers : sequence of Gram
        The layers, with X.
    Y : array of shape (n_stimuli, n_voxels)
        Responses. A voxel that is constant or has a value that is not finite scores NaN.
    folds : sequence of array of int
        Held-out rows of each fold.
    estimator : estimator of scikit-learn
        For many targets, as `make_pipeline` returns; it is cloned for each fold.
    options : EncodingOptions
        How many voxels to permute, and how often all.
    rng : numpy.random.Generator
        Draws the permutations.
    n_jobs : int
        Threads that work on parts of the voxels.
    blocks : array of shape (n_stimuli,), optional
        As for `score_encoding`.
    progress : callable, optional
        Called with (done, total), in folds of layers.

    Returns
    -------
    EncodingScores
        Without penalties: ``alpha`` is NaN.

    Raises
    ------
    BadDataError
        A layer has no features, another number of stimuli than Y, or scikit-learn cannot fit it.
    """
    responses = prepare_responses(Y, options.n_null, options.n_permutations, rng, Exchange(len(Y), blocks))
    silent, n_voxels = responses.find_silent(), Y.shape[1]
    shape = len(folds), len(layers), n_voxels
    fold_r, totals = np.empty(shape, dtype=np.float32), np.zeros((2, *shape[1:]))
    chance = np.empty((len(layers), len(responses.null)))
    highest = np.empty((len(layers), options.n_permutations))
    names = []
    for i, layer in enumerate(layers):
        X = _take_features(layer, len(Y))
        names.append(layer.layer)
        sums = np.zeros(len(responses))
        for k, test in enumerate(folds):
            scores = _score_fold(estimator, X, responses, silent, test, n_jobs, layer.layer)
            fold_r[k, i], totals[:, i] = scores[0, :n_voxels], totals[:, i] + scores[1:, :n_voxels]
            sums += scores[0]
            if progress:
                progress(i * len(folds) + k + 1, len(folds) * len(layers))
        chance[i], highest[i] = responses.split(sums / len(folds))
    r = fold_r.mean(axis=0, dtype=np.float64)
    best, significance = choose_best_layer(r, chance, highest)
    return EncodingScores(
        network,
        tuple(names),
        r,
        1 - totals[0] / totals[1],
        np.full_like(r, np.nan),
        best,
        0.0,
        fold_r,
        weigh_layers(r, chance, highest),
        significance,
    )


def _take_features(layer: Gram, n: int) -> Array:
    if layer.X is None:
        raise BadDataError(
            f"layer {layer.layer}: regressions other than ridge need its features, of which there are more than "
            "stimuli; project them on fewer dimensions (networks.projection)"
        )
    if len(layer.X) != n:
        raise BadDataError(f"layer {layer.layer}: activations for {len(layer.X)} stimuli, responses to {n}")
    return np.asarray(layer.X, dtype=np.float64)


def _score_fold(
    estimator: BaseEstimator, X: Array, responses: Responses, silent: Array, test: Array, n_jobs: int, layer: str
) -> Array:
    """Return correlation and the two sums of squares of all responses in their places: (3, n)."""
    train = np.delete(np.arange(len(X)), test)
    scores = np.full((3, len(responses)), np.nan)
    chunks = responses.list_chunks(WIDTH)

    def score(chunk: Chunk) -> tuple[Array, Array]:
        draw = responses.draw(chunk)
        Y, measured = draw(train).astype(np.float64), draw(test).astype(np.float64)
        fine = np.flatnonzero(np.isfinite(Y).all(axis=0) & np.isfinite(measured).all(axis=0) & (np.ptp(Y, axis=0) > 0))
        if not len(fine):
            return fine, np.empty((3, 0))
        mean = Y[:, fine].mean(axis=0)
        try:
            model = clone(estimator).fit(X[train], Y[:, fine] - mean)
        except ValueError as error:
            raise BadDataError(f"layer {layer}: scikit-learn cannot fit it: {error}") from None
        with np.errstate(all="ignore"):  # predictions that do not vary have no correlation
            return fine, score_predictions(model.predict(X[test]).reshape(len(test), -1), measured[:, fine] - mean)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        done = Parallel(n_jobs=n_jobs, prefer="threads")(delayed(score)(chunk) for chunk in chunks)
    for chunk, (columns, values) in zip(chunks, done, strict=True):
        scores[:, chunk.place.start + columns] = values
    scores[:, : len(silent)][:, silent] = np.nan
    return scores


def divide_layer(layer: Gram, by: str) -> Grams:
    """Divide a layer into models of its own: its channels, or its positions, as the original's ``iter_axis``.

    Parameters
    ----------
    layer : Gram
        Convolutional, of shape (n_channels, height, width, ...), with X.
    by : str
        ``channel``: each with all its positions; ``position``: each with all its channels.

    Returns
    -------
    Grams
        For `encoding.score_encoding` or `score_estimator`.

    Raises
    ------
    UnknownNameError
        ``by`` is neither.
    BadDataError
        The layer has no features, or no positions.
    """
    if by not in ("channel", "position"):
        raise UnknownNameError("part of a layer", by, ("channel", "position"))
    if len(layer.shape) < 2 or layer.X is None:
        what = "has no positions" if layer.X is not None else "is there without its features"
        raise BadDataError(f"layer {layer.layer}: {what}, so that it cannot be divided by {by}")
    n_channels = layer.shape[0]
    n_positions = layer.n_features // n_channels
    X = layer.X

    def read(i: int) -> Gram:
        columns = slice(i * n_positions, (i + 1) * n_positions) if by == "channel" else slice(i, None, n_positions)
        part = np.asarray(X[:, columns], dtype=np.float64)
        K = part @ part.T if part.shape[1] > len(part) else None
        return Gram(f"{layer.layer}:{by}{i + 1}", part.shape[1:], layer.depth, K, part.sum(axis=1), part)

    return Grams(n_channels if by == "channel" else n_positions, read)
