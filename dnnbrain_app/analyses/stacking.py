r"""Layers that vote: each has a ridge model of its own, and a voxel's prediction is a weighted mean of theirs.

A voxel's weights minimise the error of leave-one-out predictions within the training stimuli (Lin et al. 2023),

.. math:: \min_w \sum_i \Big( y_i - \sum_l w_l \hat y_{li}^{(-i)} \Big)^2, \qquad w_l \ge 0, \quad \sum_l w_l = 1,

which ridge regression gives without leaving any out: with the hat matrix :math:`H`, the error without stimulus i is
:math:`e_i / (1 - H_{ii})`. One model a layer is enough, where banded ridge takes one a mixture.

References
----------
Lin et al. (2023), arXiv:2301.12265.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from dnnbrain_app.analyses.autocorrelation import SerialNoise
from dnnbrain_app.analyses.banded import take_kernel
from dnnbrain_app.analyses.budget import divide_mixtures
from dnnbrain_app.analyses.encoding import make_grid
from dnnbrain_app.analyses.null_responses import Exchange, prepare_responses
from dnnbrain_app.analyses.options import EncodingOptions
from dnnbrain_app.analyses.ridge import Draw, RidgeFold, prepare_ridge, score_predictions
from dnnbrain_app.analyses.significance import weigh_scores
from dnnbrain_app.records import Array, Gram, Significance

N_STEPS = 300  # of the search for weights: its error is then far below what the choice of stimuli does to them


@dataclass(frozen=True, slots=True, eq=False)
class StackedScores:
    """How well layers together predict each voxel.

    Parameters
    ----------
    layers : tuple of str
        Their names.
    r, rsquared : array of shape (n_voxels,)
        As in ``EncodingScores``, of the weighted mean of the layers' predictions.
    weights : array of shape (n_layers, n_voxels)
        Mean over folds; they sum to 1.
    significance : Significance
        Of r.
    """

    layers: tuple[str, ...]
    r: Array
    rsquared: Array
    weights: Array
    significance: Significance


def stack_layers(
    grams: Sequence[Gram],
    Y: Array,
    folds: Sequence[Array],
    options: EncodingOptions,
    *,
    rng: np.random.Generator,
    memory: int,
    n_jobs: int = 1,
    noise: SerialNoise | None = None,
    blocks: Array | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> StackedScores:
    """Predict the responses to held-out stimuli from all layers, by the weighted mean of their predictions.

    Parameters
    ----------
    grams, Y, folds, options, rng, memory, n_jobs, noise, blocks, progress
        As for `encoding.score_encoding`; progress counts folds. Where rows are volumes, leave-one-out errors flatter
        slow features, as neighbours of a volume stay in.

    Raises
    ------
    UsageError
        The grid of penalties is impossible, or the memory is too small for a fold of all layers.
    BadDataError
        A layer has another number of stimuli than Y, or does not vary.
    """
    grid, n_voxels = make_grid(options), Y.shape[1]
    exchange = Exchange(len(Y), blocks) if noise is None else Exchange(len(Y), noise.run[noise.kept], turned=True)
    responses = prepare_responses(Y, options.n_null, options.n_permutations, rng, exchange)
    budget = divide_mixtures(len(Y), len(grams), memory - 8 * len(responses), n_jobs)
    chunks = responses.list_chunks(budget.width)
    sums, totals = np.zeros(len(responses)), np.zeros((2 + len(grams), n_voxels))
    with ThreadPoolExecutor(budget.n_workers) as pool, threadpool_limits(max(n_jobs // budget.n_workers, 1), "blas"):
        for k, test in enumerate(folds):
            models = list(
                pool.map(
                    lambda i, test=test: prepare_ridge(take_kernel(grams[i], len(Y)), test, grid, noise),
                    range(len(grams)),
                )
            )
            scored = pool.map(lambda chunk, models=models: _score_stack(models, responses.draw(chunk)), chunks)
            for chunk, scores in zip(chunks, scored, strict=True):
                sums[chunk.place] += scores[0]
                if chunk.kind == "measured":
                    totals[:, chunk.columns] += scores[1:]
            if progress:
                progress(k + 1, len(folds))
    null, highest = responses.split(sums / len(folds))
    r = sums[:n_voxels] / len(folds)
    silent = responses.find_silent()
    r[silent], totals[:, silent] = np.nan, np.nan
    return StackedScores(
        tuple(gram.layer for gram in grams),
        r,
        1 - totals[0] / totals[1],
        totals[2:] / len(folds),
        weigh_scores(r, null, highest),
    )


def _score_stack(models: Sequence[RidgeFold], draw: Draw) -> Array:
    """Return correlation, the two sums of squares, and the weights: (3 + n_layers, n_voxels)."""
    with np.errstate(all="ignore"):  # voxels without signal come out as NaN, which is what they should
        Y = draw(models[0].train)
        mean = Y.mean(axis=0, dtype=np.float64).astype(Y.dtype)
        measured = (draw(models[0].test) - mean).astype(np.float32)
        Y = (Y - mean).astype(np.float32)
        errors, predictions = zip(*(_leave_one_out(model, Y) for model in models), strict=True)
        stacked = np.stack(errors)
        del errors
        products = np.einsum("lnv,mnv->vlm", stacked, stacked)
        weights = find_weights(products.astype(np.float64))
        predicted = np.einsum("vl,lnv->nv", weights.astype(np.float32), np.stack(predictions))
        return np.concatenate([score_predictions(predicted, measured), weights.T])


def _leave_one_out(model: RidgeFold, Y: Array) -> tuple[Array, Array]:
    """Return the leave-one-out errors of the training rows, and the predictions of the test rows."""
    Z = model.U.T @ Y
    choice = model.penalties.choose(Z * Z)
    grid = model.penalties.grid.astype(np.float32)
    Z /= np.add.outer(model.s, grid[choice])
    leverage = 1 / len(Y) + np.square(model.U) @ (model.s[:, None] / np.add.outer(model.s, grid))
    error = Y - model.U @ (model.s[:, None] * Z)
    return error / np.maximum(1 - leverage[:, choice], 1e-6), model.T @ Z


def find_weights(products: Array) -> Array:
    r"""Find the weights of predictions with the least squared error, :math:`\min_w w^\top R w`, on the simplex.

    Accelerated projected gradient descent (Beck & Teboulle 2009), of all voxels at the same time.

    Parameters
    ----------
    products : array of shape (n_voxels, n_layers, n_layers)
        Inner products of the errors, R.

    Returns
    -------
    array of shape (n_voxels, n_layers)
        Not negative, sums 1.
    """
    n_layers = products.shape[1]
    R = products / np.trace(products, axis1=1, axis2=2)[:, None, None]  # so that 1 is a step that never overshoots
    w = previous = np.full(products.shape[:2], 1 / n_layers)
    for i in range(N_STEPS):
        ahead = w + i / (i + 3) * (w - previous)
        previous, w = w, _project(ahead - np.einsum("vlm,vm->vl", R, ahead))
    return w


def _project(points: Array) -> Array:
    """Return the nearest points of the simplex (Held, Wolfe & Crowder 1974): (n_points, n_dimensions)."""
    falling = -np.sort(-points, axis=1)
    excess = (np.cumsum(falling, axis=1) - 1) / np.arange(1, points.shape[1] + 1)
    last = np.maximum((falling > excess).sum(axis=1) - 1, 0)
    projected: Array = np.maximum(points - np.take_along_axis(excess, last[:, None], axis=1), 0)
    return projected
