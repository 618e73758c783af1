r"""Ridge regression on fewer features than stimuli, from sums over the stimuli.

A Gram has no room for tens of thousands of stimuli, but the features :math:`X` (n, k) may be few. One reading of their
rows gives, for each fold :math:`f`,

.. math:: C_f = \sum_{i \in f} x_i x_i^\top, \qquad B_f = \sum_{i \in f} x_i y_i^\top

and the sums of :math:`x`, :math:`y` and :math:`y^2`; those of the training rows are the totals minus the fold's, and
the means centre them. With :math:`C = W s W^\top` of the training rows and :math:`A = W s^{-1/2}`, the eigenvectors of
the kernel are :math:`U = X A`, and the model is that of `ridge`:

.. math:: Z = U^\top Y = A^\top B, \qquad g_v = \frac{s}{s + \alpha_v} Z_v, \qquad \hat y_{iv} = x_i^\top A g_v.

In a fold with more test rows than features not even the scores need the rows again: with the sums over the test rows,
centred on the training means, :math:`\sum_i \hat y_{iv}^2 = g_v^\top (A^\top C_f A) g_v` and
:math:`\sum_i \hat y_{iv} y_{iv} = g_v^\top A^\top B_{fv}`.

In this basis all directions of X have the same variance, so float32 does for what involves voxels: r differs from that
of float64 by 1e-6, and for layers with few dimensions by up to 1e-4. What is kept does not grow with n beyond two
matrices of k x k a fold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
from scipy.linalg import eigh

from dnnbrain_app.analyses.penalties import Penalties, weigh_penalties
from dnnbrain_app.analyses.ridge import Draw, find_unit, score_predictions
from dnnbrain_app.records import Array, Gram

ROWS = 2048  # read at a time: enough for the matrix products, few for the memory

Map = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class FoldModel:
    """The model of one fold, before it has seen a response; features and responses are relative to their shifts.

    Parameters
    ----------
    n_train, n_test : int
        Rows.
    penalties : Penalties
        To choose from.
    s : array of shape (m, 1), float32
        Eigenvalues of the centred training kernel, in units of their mean over the training rows.
    A : array of shape (k, m), float32
        From centred features to eigenvectors.
    train_mean, test_sum : array of shape (m,), float32
        Projected mean of the training features, and sum of the test features.
    T : array of shape (n_test, m), float32, or None
        Projected test rows, centred on the training mean; None where they are more than k.
    G : array of shape (m, m), float32, or None
        Their inner products, then.
    """

    n_train: int
    n_test: int
    penalties: Penalties
    s: Array
    A: Array
    train_mean: Array
    test_sum: Array
    T: Array | None
    G: Array | None

    def fit(self, sums: Array, squares: Array, products: Array) -> tuple[Array, Array, Array]:
        """Choose each voxel's penalty by GCV, and fit.

        Parameters
        ----------
        sums, squares : array of shape (n_voxels,)
            Of the training responses.
        products : array of shape (k, n_voxels), float32
            Of features and responses, over the training rows.

        Returns
        -------
        g : array of shape (m, n_voxels), float32
            Weights of the eigenvectors.
        choice : array of int, shape (n_voxels,)
            Place of each voxel's penalty in the grid.
        mean : array of shape (n_voxels,)
            Of the training responses.
        """
        mean = sums / self.n_train
        energy = squares - sums * mean
        Z = self.A.T @ products
        Z -= np.outer(self.train_mean, sums.astype(np.float32))
        Z[:, ~(energy > 1e-10 * squares)] = 0  # constant voxels: what is left is rounding
        squared = Z * Z
        choice = self.penalties.choose(squared, energy - squared.sum(axis=0, dtype=np.float64))
        Z *= self.s / (self.s + self.penalties.grid[choice].astype(np.float32))
        return Z, choice, mean

    def score_sums(self, g: Array, mean: Array, sums: Array, squares: Array, products: Array) -> Array:
        """Do what `ridge.score_predictions` does, from the sums over the test rows."""
        n = self.n_test
        measured, measured_squares = sums - n * mean, squares - 2 * mean * sums + n * mean**2
        R = self.A.T @ products
        R -= np.outer(self.test_sum, mean.astype(np.float32))
        R -= np.outer(self.train_mean, measured.astype(np.float32))
        both = np.einsum("mv,mv->v", g, R, dtype=np.float64)
        predicted = ((self.test_sum - n * self.train_mean) @ g).astype(np.float64)
        predicted_squares = np.einsum("mv,mv->v", g, self.G @ g, dtype=np.float64)
        product = np.ones_like(mean)
        for total, energy in ((predicted, predicted_squares), (measured, measured_squares)):
            variance = energy - total**2 / n
            product *= np.where(variance > 1e-10 * energy, variance, np.nan)
        r = (both - predicted * measured / n) / np.sqrt(product)
        return np.stack([r, predicted_squares - 2 * both + measured_squares, measured_squares])


@dataclass(frozen=True, slots=True, eq=False)
class RidgeMoments:
    """The models of one layer in several folds.

    Parameters
    ----------
    X : array of shape (n_stimuli, k)
        Features; may be a map of a file.
    shift : array of shape (k,), float32
        Near the mean of the features: subtracted before any product, or large means would cost digits.
    parts : sequence of array of int
        Rows of each fold, then those that are in none of these folds, if there are any.
    models : sequence of FoldModel
        One a fold.
    """

    X: Array
    shift: Array
    parts: Sequence[Array]
    models: Sequence[FoldModel]

    def score(self, draw: Draw) -> Array:
        """Fit some voxels in each fold, predict its test rows, and score.

        Parameters
        ----------
        draw : callable
            From rows to the responses to them, (n_rows, n_voxels).

        Returns
        -------
        array of shape (n_folds, 5, n_voxels)
            What `ridge.RidgeFold.score` returns.
        """
        with np.errstate(all="ignore"):  # voxels without signal come out as NaN, which is what they should
            near = draw(self.parts[0][:ROWS]).mean(axis=0, dtype=np.float64).astype(np.float32)
            scores = []
            sums = self._sum_responses(draw, near)
            totals = [some.sum(axis=0) for some in sums]
            for model, rows, *test in zip(self.models, self.parts, *sums, strict=False):
                g, choice, mean = model.fit(*(all_ - some for all_, some in zip(totals, test, strict=True)))
                if model.T is None:
                    scored = model.score_sums(g, mean, *test)
                else:
                    measured = draw(rows).astype(np.float32, copy=False) - near
                    measured -= mean.astype(np.float32)
                    scored = score_predictions(model.T @ g, measured)
                scores.append(np.concatenate([scored, model.penalties.describe(choice)]))
        return np.stack(scores)

    def _sum_responses(self, draw: Draw, near: Array) -> tuple[Array, Array, Array]:
        """Sum responses, their squares, and their products with the features, over each part."""
        n_parts, n_voxels = len(self.parts), len(near)
        sums, squares = np.zeros((2, n_parts, n_voxels))
        products = np.zeros((n_parts, self.X.shape[1], n_voxels), dtype=np.float32)
        for part, rows in enumerate(self.parts):
            for block in _split(rows):
                y = draw(block).astype(np.float32, copy=False) - near
                products[part] += _read(self.X, block, self.shift, np.float32).T @ y
                sums[part] += y.sum(axis=0, dtype=np.float64)
                squares[part] += np.einsum("nv,nv->v", y, y, dtype=np.float64)
        return sums, squares, products


def prepare_moments(gram: Gram, folds: Sequence[Array], grid: Array, work: Map = map) -> RidgeMoments:
    """Sum the products of a layer's features over each fold, and decompose those of the training rows.

    Parameters
    ----------
    gram : Gram
        The layer, with X.
    folds : sequence of array of int
        Test rows of each fold, without a row in common.
    grid : array of shape (n_alphas,)
        Penalties, positive and rising, in units of the mean eigenvalue.
    work : callable
        Like ``map``; one over threads does several folds at a time.

    Raises
    ------
    BadDataError
        The activations do not vary over the training rows of a fold.
    """
    X = gram.X
    assert X is not None  # the caller looked
    rest = np.delete(np.arange(len(X)), np.concatenate(folds))
    parts = [*folds, rest] if len(rest) else list(folds)
    shift = X[folds[0][:ROWS]].mean(axis=0, dtype=np.float64).astype(np.float32)
    sums, products = map(list, zip(*work(lambda rows: _sum_features(X, rows, shift), parts), strict=True))
    total = np.sum(sums, axis=0), reduce(np.add, products)
    del products[len(folds) :]

    def decompose(fold: int) -> FoldModel:
        test = sums[fold], products[fold]
        products[fold] = None  # its memory is for the model
        train = total[0] - test[0], total[1] - test[1]
        return _decompose(gram.layer, X, shift, folds[fold], train, test, grid)

    return RidgeMoments(X, shift, parts, list(work(decompose, range(len(folds)))))


def _sum_features(X: Array, rows: Array, shift: Array) -> tuple[Array, Array]:
    sums, products = np.zeros(X.shape[1]), np.zeros((X.shape[1], X.shape[1]))
    for block in _split(rows):
        x = _read(X, block, shift, np.float64)
        sums += x.sum(axis=0)
        products += x.T @ x
    return sums, products


def _decompose(
    layer: str, X: Array, shift: Array, rows: Array, train: tuple[Array, Array], test: tuple[Array, Array], grid: Array
) -> FoldModel:
    """Decompose the training covariance, and project the test rows, or their covariance; overwrites its inputs."""
    n_train, n_test = len(X) - len(rows), len(rows)
    (train_sum, C), (test_sum, C_test) = train, test
    offset = shift.astype(np.float64)
    energy = C.trace() + 2 * offset @ train_sum + n_train * offset @ offset
    mean = train_sum / n_train
    C -= np.outer(mean, train_sum)
    unit = find_unit(layer, C.trace(), energy, n_train)
    C /= unit
    s, W = eigh(C.T, driver="evd", overwrite_a=True, check_finite=False)
    first = np.searchsorted(s, s[-1] * len(s) * np.finfo(np.float64).eps, side="right")
    s, A = s[first:], W[:, first:]
    A /= np.sqrt(s * unit)
    T = G = None
    if n_test <= X.shape[1]:
        T = np.concatenate([_to_single((_read(X, block, shift, np.float64) - mean) @ A) for block in _split(rows)])
    else:
        C_test -= np.outer(test_sum, mean)
        C_test -= np.outer(mean, test_sum - n_test * mean)
        G = _to_single(A.T @ (C_test @ A))
    penalties = weigh_penalties(s, n_train, grid)
    projected = _to_single(mean @ A), _to_single(test_sum @ A)
    return FoldModel(n_train, n_test, penalties, _to_single(s[:, None]), _to_single(A), *projected, T, G)


def _to_single(a: Array) -> Array:
    return a.astype(np.float32)


def _split(rows: Array) -> Iterator[Array]:
    return (rows[start : start + ROWS] for start in range(0, len(rows), ROWS))


def _read(X: Array, rows: Array, shift: Array, dtype: type) -> Array:
    x = X[rows]
    return np.subtract(x, shift, dtype=np.result_type(x, dtype)).astype(dtype, copy=False)
