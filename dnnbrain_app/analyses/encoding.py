"""How well the layers of a network predict each voxel."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from threadpoolctl import threadpool_limits

from dnnbrain_app.analyses.options import EncodingOptions
from dnnbrain_app.analyses.ridge import prepare_ridge
from dnnbrain_app.analyses.significance import choose_best_layer, compute_p_values, control_fdr
from dnnbrain_app.errors import BadDataError, UsageError
from dnnbrain_app.records import Array, EncodingScores, Gram

logger = logging.getLogger(__name__)

LARGEST_CHUNK = 4096  # voxels: wide enough for the matrix product, narrow enough for the caches
SMALLEST_CHUNK = 64
EDGE_WARNING = 0.05


def score_encoding(
    network: str,
    grams: Sequence[Gram],
    Y: Array,
    folds: Sequence[Array],
    options: EncodingOptions,
    *,
    memory: int,
    n_jobs: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> EncodingScores:
    r"""Predict the responses to held-out stimuli by ridge regression on each layer, and score the predictions.

    Penalties are chosen per voxel, layer and fold by generalised cross-validation within the training stimuli. A fold's
    r is Pearson's correlation over its held-out stimuli, and folds are averaged, as in the paper and in scikit-learn.

    .. math::

        R^2_v = 1 - \frac{\sum_k \sum_{i \in k} (y_{iv} - \hat y_{iv})^2}
                         {\sum_k \sum_{i \in k} (y_{iv} - \bar y_v^{(-k)})^2}

    pools the folds and compares with the *training* mean, because that is what a model without features predicts: with
    an infinite penalty :math:`R^2` is 0. No model can know the test mean, and measured against it even that model would
    score below 0.

    Parameters
    ----------
    network : str
        Label of the network.
    grams : sequence of Gram
        The layers, in the order of the forward pass.
    Y : array of shape (n_stimuli, n_voxels)
        Responses. A voxel that is constant or has a value that is not finite scores NaN.
    folds : sequence of array of int
        Held-out rows of each fold, from ``make_folds``.
    options : EncodingOptions
        Grid of penalties.
    memory : int
        Bytes to work in: bounds how many folds are fitted at the same time and how many voxels at once.
    n_jobs : int
        Threads. Folds are fitted side by side, each on its share of the threads, because an eigenproblem uses many
        threads badly.
    progress : callable, optional
        Called with (done, total) after each fold of each layer.

    Returns
    -------
    EncodingScores

    Raises
    ------
    UsageError
        The grid of penalties is impossible.
    BadDataError
        A layer has another number of stimuli than Y, or does not vary.
    """
    alphas = _make_grid(options)
    for gram in grams:
        if len(gram.row_sums) != len(Y):
            raise BadDataError(
                f"layer {gram.layer}: activations for {len(gram.row_sums)} stimuli, responses to {len(Y)}"
            )
    tasks = [(layer, test) for layer in range(len(grams)) for test in folds]
    n_workers, chunks = _divide_work(len(Y), Y.shape[1], memory, min(n_jobs, len(tasks)))
    totals = np.zeros((len(grams), 5, Y.shape[1]))
    with threadpool_limits(max(n_jobs // n_workers, 1), "blas"), ThreadPoolExecutor(n_workers) as pool:
        scores = pool.map(lambda task: _score_fold(grams[task[0]], Y, task[1], alphas, chunks), tasks)
        try:
            for done, (layer, _) in enumerate(tasks, 1):
                totals[layer] += next(scores)
                if progress:
                    progress(done, len(tasks))
        finally:
            pool.shutdown(cancel_futures=True)
    with np.errstate(invalid="ignore"):
        spread = Y.max(axis=0) - Y.min(axis=0)
        totals[..., ~(np.isfinite(spread) & (spread > 0))] = np.nan
    r, log_alpha, at_edge = totals[:, :3].swapaxes(0, 1) / len(folds)
    rsquared = 1 - totals[:, 3] / totals[:, 4]
    sizes = [len(test) for test in folds]
    edges = np.array([_average_edge(r[layer], at_edge[layer], sizes) for layer in range(len(grams))])
    for gram, share in zip(grams, edges, strict=True):
        if share > EDGE_WARNING:
            logger.warning(
                "layer %s: %.0f %% of the predicted voxels have a penalty at the edge of the grid",
                gram.layer,
                100 * share,
            )
    names = tuple(gram.layer for gram in grams)
    return EncodingScores(network, names, r, rsquared, np.exp(log_alpha), choose_best_layer(r, sizes), edges)


def _make_grid(options: EncodingOptions) -> Array:
    if not (0 < options.alpha_min <= options.alpha_max and options.n_alphas >= 1):
        raise UsageError(
            f"ridge penalties: {options.n_alphas} from {options.alpha_min} to {options.alpha_max}; "
            "at least 1 is needed, with 0 < alpha_min <= alpha_max"
        )
    return np.geomspace(options.alpha_min, options.alpha_max, options.n_alphas)


def _divide_work(n: int, n_voxels: int, memory: int, n_jobs: int) -> tuple[int, list[slice]]:
    """Choose how many folds to fit at a time, and divide the voxels, so that the solver stays within ``memory`` bytes.

    A fold takes at most six float64 matrices of n x n (measured: 5), and five float32 columns for each voxel.
    """
    matrices, column = 48 * n * n, 20 * n
    n_workers = int(np.clip(memory // (matrices + SMALLEST_CHUNK * column), 1, n_jobs))
    width = int(np.clip((memory // n_workers - matrices) // column, SMALLEST_CHUNK, LARGEST_CHUNK))
    return n_workers, [slice(start, start + width) for start in range(0, n_voxels, width)]


def _score_fold(gram: Gram, Y: Array, test: Array, alphas: Array, chunks: Sequence[slice]) -> Array:
    """Fit on the training rows, predict the test rows, score.

    Returns
    -------
    array of shape (5, n_voxels)
        Correlation, log penalty, whether the penalty is on the edge of the grid, and the sums of squares around the
        predictions and around the training mean.
    """
    scores = np.empty((5, Y.shape[1]))
    with np.errstate(all="ignore"):  # voxels without signal come out as NaN, which is what they should
        fold = prepare_ridge(gram, test, alphas)
        for chunk in chunks:
            Y_train = np.delete(Y[:, chunk], test, axis=0)
            mean = Y_train.mean(axis=0, dtype=np.float64).astype(Y.dtype)
            Y_train -= mean
            predicted, choice = fold.predict(Y_train.astype(np.float32, copy=False))
            measured = (Y[test, chunk] - mean).astype(np.float32, copy=False)
            error = measured - predicted
            scores[0, chunk] = _correlate(predicted, measured)
            scores[1, chunk] = np.log(alphas)[choice]
            scores[2, chunk] = (choice == 0) | (choice == len(alphas) - 1)
            scores[3, chunk] = _sum_products(error, error)
            scores[4, chunk] = _sum_products(measured, measured)
    return scores


def _sum_products(a: Array, b: Array) -> Array:
    return np.asarray(np.einsum("nv,nv->v", a, b), dtype=np.float64)


def _correlate(predicted: Array, measured: Array) -> Array:
    """Correlate columns; NaN where one does not vary by more than rounding."""
    a = predicted - predicted.mean(axis=0)
    b = measured - measured.mean(axis=0)
    variances = []
    for centred, original in ((a, predicted), (b, measured)):
        variance = _sum_products(centred, centred)
        variance[variance <= 1e-10 * _sum_products(original, original)] = np.nan
        variances.append(variance)
    return np.asarray(_sum_products(a, b) / np.sqrt(variances[0] * variances[1]))


def _average_edge(r: Array, at_edge: Array, sizes: Sequence[int]) -> float:
    """Average over the significantly predicted voxels how often their penalty was at the edge; 0 if there are none."""
    predicted = control_fdr(compute_p_values(r, sizes))
    return float(at_edge[predicted].mean()) if predicted.any() else 0.0
