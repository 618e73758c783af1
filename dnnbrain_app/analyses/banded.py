r"""Ridge regression of voxels on several feature spaces at once, each with a penalty of its own.

Banded ridge regression penalises space :math:`b` by :math:`\alpha / \gamma_b`, so that a voxel takes much from one
space and little from another. With kernels :math:`K_b` of mean eigenvalue 1 it is ridge regression on the mixture

.. math:: K_\gamma = \sum_b \gamma_b K_b, \qquad \gamma_b \ge 0, \quad \sum_b \gamma_b = 1.

As in Dupré la Tour et al. (2022) mixtures are drawn at random, and each voxel takes the one, with the penalty, that
cross-validates best; here generalised cross-validation judges, which needs one decomposition a mixture (`penalties`).
The prediction is a sum over spaces, :math:`\hat y = \sum_b \hat y_b`, :math:`\hat y_b = \gamma_b K_{b*} c`, and so is
the variance explained (product measure):

.. math:: R^2 = \sum_b R^2_b, \qquad R^2_b = \frac{\sum_i \hat y_{bi} (2 y_i - \hat y_i)}{\sum_i y_i^2}

What two spaces share is divided between them, and :math:`R^2_b` can be negative where a space corrects another. What a
space alone explains is in `partition`.

References
----------
Dupré la Tour et al. (2022), doi:10.1016/j.neuroimage.2022.119728.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from dnnbrain_app.analyses.autocorrelation import SerialNoise
from dnnbrain_app.analyses.budget import divide_mixtures
from dnnbrain_app.analyses.encoding import make_grid
from dnnbrain_app.analyses.null_responses import Chunk, Exchange, Responses, prepare_responses
from dnnbrain_app.analyses.options import BandedOptions
from dnnbrain_app.analyses.ridge import RidgeFold, centre_kernel, decompose_kernel, score_predictions
from dnnbrain_app.analyses.significance import weigh_scores
from dnnbrain_app.errors import BadDataError
from dnnbrain_app.records import Array, Gram, Significance

CONCENTRATIONS = (0.1, 1.0)  # of the Dirichlet distribution: few spaces, and many


@dataclass(frozen=True, slots=True, eq=False)
class BandedScores:
    """How well several feature spaces together predict each voxel.

    Parameters
    ----------
    bands : tuple of str
        Names of the spaces.
    r, rsquared : array of shape (n_voxels,)
        As in ``EncodingScores``, of all spaces together.
    band_rsquared : array of shape (n_bands, n_voxels)
        Each space's part of rsquared, by the product measure.
    weights : array of shape (n_bands, n_voxels)
        Weights of the kernels, mean over folds.
    alpha : array of shape (n_voxels,)
        Penalty, geometric mean over folds.
    significance : Significance
        Of r.
    """

    bands: tuple[str, ...]
    r: Array
    rsquared: Array
    band_rsquared: Array
    weights: Array
    alpha: Array
    significance: Significance


@dataclass(frozen=True, slots=True, eq=False)
class _Fold:
    """The kernels of a fold, before they are mixed."""

    train: Array
    test: Array
    kernels: Sequence[tuple[Array, Array]]
    grid: Array
    noise: SerialNoise | None

    def mix(self, gamma: Array) -> RidgeFold:
        """Make the model of a mixture."""
        K_train, K_test = (
            sum((g * K for g, K in zip(gamma[1:], Ks[1:], strict=True) if g), gamma[0] * Ks[0])
            for Ks in zip(*self.kernels, strict=True)
        )
        return decompose_kernel(K_train, K_test, self.train, self.test, self.grid, self.noise)

    def judge(self, gamma: Array, responses: Responses, chunks: Sequence[Chunk]) -> Array:
        """Return what GCV makes of a mixture with the best penalty, of all responses in their places."""
        model, losses = self.mix(gamma), np.empty(len(responses), dtype=np.float32)
        with np.errstate(all="ignore"):  # voxels without signal come out as NaN, which is what they should
            for chunk in chunks:
                Z = model.U.T @ _centre(responses.draw(chunk)(self.train))[0]
                losses[chunk.place] = model.penalties.judge(Z * Z)[1]
        return losses

    def score(self, gamma: Array, draw: Callable[[Array], Array], model: RidgeFold) -> Array:
        """Return what `RidgeFold.score` does, but the last, then each band's part of what is explained."""
        with np.errstate(all="ignore"):
            Y, mean = _centre(draw(self.train))
            Z = model.U.T @ Y
            choice = model.penalties.choose(Z * Z)
            Z /= np.add.outer(model.s, model.penalties.grid[choice].astype(np.float32))
            C = model.U @ Z
            parts = [g * (K_test.astype(np.float32) @ C) for g, (_, K_test) in zip(gamma, self.kernels, strict=True)]
            predicted = np.sum(parts, axis=0)
            measured = draw(self.test).astype(np.float32) - mean
            explained = [np.einsum("nv,nv->v", part, 2 * measured - predicted, dtype=np.float64) for part in parts]
            return np.concatenate(
                [score_predictions(predicted, measured), model.penalties.describe(choice)[:1], explained]
            )


def score_bands(
    bands: Sequence[Gram],
    Y: Array,
    folds: Sequence[Array],
    options: BandedOptions,
    *,
    rng: np.random.Generator,
    memory: int,
    n_jobs: int = 1,
    noise: SerialNoise | None = None,
    blocks: Array | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> BandedScores:
    """Predict the responses to held-out stimuli from several feature spaces by banded ridge regression.

    Mixtures are the equal one, each space alone, and ``options.n_mixtures`` at random, the same in all folds; a voxel's
    is chosen within the training stimuli. It costs as much time as an analysis of so many layers.

    Parameters
    ----------
    bands : sequence of Gram
        The feature spaces: layers, of one network or of several, or baselines.
    Y, folds, options, rng, memory, n_jobs, noise, blocks, progress
        As for `encoding.score_encoding`; progress counts mixtures of folds.

    Raises
    ------
    UsageError
        The grid of penalties is impossible, or the memory is too small for a fold.
    BadDataError
        A space has another number of stimuli than Y, or does not vary.
    """
    grid = make_grid(options)
    gammas = draw_mixtures(len(bands), options.n_mixtures, rng)
    exchange = Exchange(len(Y), blocks) if noise is None else Exchange(len(Y), noise.run[noise.kept], turned=True)
    responses = prepare_responses(Y, options.n_null, options.n_permutations, rng, exchange)
    budget = divide_mixtures(len(Y), len(bands), memory - 12 * len(responses), n_jobs)
    chunks = responses.list_chunks(budget.width)
    sums, totals = np.zeros(len(responses)), np.zeros((3 + 2 * len(bands), Y.shape[1]))
    with ThreadPoolExecutor(budget.n_workers) as pool, threadpool_limits(max(n_jobs // budget.n_workers, 1), "blas"):
        for i, test in enumerate(folds):
            train = np.delete(np.arange(len(Y)), test)
            kernels = [centre_kernel(take_kernel(band, len(Y)), train, test) for band in bands]
            fold = _Fold(train, test, kernels, grid, noise)
            judged = pool.map(lambda gamma, fold=fold: fold.judge(gamma, responses, chunks), gammas)
            winner, lowest = np.zeros(len(responses), dtype=np.int32), np.full(len(responses), np.inf, np.float32)
            for k, losses in enumerate(judged):
                winner[losses < lowest] = k
                lowest = np.fmin(lowest, losses)
                if progress:
                    progress(i * len(gammas) + k + 1, len(folds) * len(gammas))
            list(
                pool.map(
                    lambda k, fold=fold, winner=winner: _add_scores(
                        fold, gammas[k], winner == k, responses, chunks, sums, totals
                    ),
                    np.unique(winner),
                )
            )
    return _summarise(bands, responses, sums / len(folds), totals, len(folds))


def draw_mixtures(n_bands: int, n_mixtures: int, rng: np.random.Generator) -> Array:
    """Return weights of kernels that sum to 1: equal ones, each alone, then random ones, (n, n_bands)."""
    if n_bands == 1:
        return np.ones((1, 1))
    random = [rng.dirichlet(np.full(n_bands, CONCENTRATIONS[i % 2])) for i in range(n_mixtures)]
    return np.stack([np.full(n_bands, 1 / n_bands), *np.eye(n_bands), *random])


def take_kernel(band: Gram, n: int) -> Gram:
    """Return a space with its kernel, computed from few features where it has none."""
    if len(band.row_sums) != n:
        raise BadDataError(f"layer {band.layer}: activations for {len(band.row_sums)} stimuli, responses to {n}")
    if band.K is not None:
        return band
    assert band.X is not None  # a Gram has one or the other
    X = np.asarray(band.X, dtype=np.float64)
    X = X - X.mean(axis=0)  # costs nothing, as kernels are centred anyway, and saves digits
    return Gram(band.layer, band.shape, band.depth, X @ X.T, X.sum(axis=1))


def _centre(Y: Array) -> tuple[Array, Array]:
    mean = Y.mean(axis=0, dtype=np.float64).astype(Y.dtype)
    return (Y - mean).astype(np.float32, copy=False), mean


def _add_scores(
    fold: _Fold,
    gamma: Array,
    own: Array,
    responses: Responses,
    chunks: Sequence[Chunk],
    sums: Array,
    totals: Array,
) -> None:
    """Score the responses whose best mixture this is; threads write to different places."""
    model = fold.mix(gamma)
    for chunk in chunks:
        columns = np.flatnonzero(own[chunk.place])
        if not len(columns):
            continue
        draw = responses.draw(chunk)
        scores = fold.score(gamma, lambda rows, draw=draw, columns=columns: draw(rows)[:, columns], model)  # type: ignore[misc]
        sums[chunk.place.start + columns] += scores[0]
        if chunk.kind == "measured":
            places = chunk.columns.start + columns
            totals[:, places] += np.concatenate([scores[1:], np.repeat(gamma[:, None], len(columns), axis=1)])


def _summarise(bands: Sequence[Gram], responses: Responses, r: Array, totals: Array, n_folds: int) -> BandedScores:
    n_voxels, n_bands = responses.Y.shape[1], len(bands)
    null, highest = responses.split(r)
    r = r[:n_voxels]
    silent = responses.find_silent()
    r[silent], totals[:, silent] = np.nan, np.nan
    (error, total, log_alpha), explained, weights = np.split(totals, [3, 3 + n_bands])
    return BandedScores(
        tuple(band.layer for band in bands),
        r,
        1 - error / total,
        explained / total,
        weights / n_folds,
        np.exp(log_alpha / n_folds),
        weigh_scores(r, null, highest),
    )
