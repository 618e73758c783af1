"""How well the layers of a network predict each voxel."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial

import numpy as np
from threadpoolctl import threadpool_limits

from dnnbrain_app.analyses.options import EncodingOptions
from dnnbrain_app.analyses.ridge import RidgeFold, prepare_ridge
from dnnbrain_app.analyses.significance import NullResponses, choose_best_layer, permute_responses
from dnnbrain_app.errors import BadDataError, UsageError
from dnnbrain_app.records import Array, EncodingScores, Gram

logger = logging.getLogger(__name__)

Task = tuple[int, Array]  # a layer, and the rows of a fold
Chunk = tuple[bool, slice]  # whether permuted, and which voxels

LARGEST_CHUNK = 1024  # voxels: wide enough for the matrix product, narrow enough for the caches
SMALLEST_CHUNK = 64
EDGE_WARNING = 0.05  # share of fits at an edge of the grid
FEW_VOXELS = 20  # too few to warn of


def score_encoding(
    network: str,
    grams: Sequence[Gram],
    Y: Array,
    folds: Sequence[Array],
    options: EncodingOptions,
    *,
    rng: np.random.Generator,
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

    The best layer of a voxel is told only where its r is beyond what ``options.n_null`` voxels with permuted stimuli
    reach (`significance.choose_best_layer`); these pass through the same folds together with the real ones.

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
    rng : numpy.random.Generator
        Draws the permutations.
    memory : int
        Bytes to work in: bounds how many folds are fitted at the same time and how many voxels at once.
    n_jobs : int
        Threads. Folds are prepared and voxels scored side by side, each on its share of the threads, because an
        eigenproblem uses many threads badly.
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
    null = permute_responses(len(Y), Y.shape[1], options.n_null, rng)
    tasks = [(layer, test) for layer in range(len(grams)) for test in folds]
    n_workers, width = _divide_work(len(Y), memory, n_jobs)
    totals = np.zeros((len(grams), 5, Y.shape[1]))
    chance = np.zeros((len(grams), len(null)))
    with threadpool_limits(max(n_jobs // n_workers, 1), "blas"), ThreadPoolExecutor(n_workers) as pool:
        prepared = _look_ahead(pool, lambda task: prepare_ridge(grams[task[0]], task[1], alphas), tasks, n_workers)
        try:
            for done, ((layer, test), fold) in enumerate(zip(tasks, prepared, strict=True), 1):
                score = partial(_score_chunk, fold, Y, null, test, alphas)
                for (permuted, chunk), scores in zip(*_map_chunks(pool, score, Y.shape[1], null, width), strict=True):
                    if permuted:
                        chance[layer, chunk] += scores[0]
                    else:
                        totals[layer][:, chunk] += scores
                if progress:
                    progress(done, len(tasks))
        finally:
            pool.shutdown(cancel_futures=True)
    with np.errstate(invalid="ignore"):
        spread = Y.max(axis=0) - Y.min(axis=0)
        totals[..., ~(np.isfinite(spread) & (spread > 0))] = np.nan
    r, log_alpha, at_edge = totals[:, :3].swapaxes(0, 1) / len(folds)
    rsquared = 1 - totals[:, 3] / totals[:, 4]
    best = choose_best_layer(r, chance / len(folds))
    found = np.flatnonzero(best)
    edge = float(at_edge[best[found] - 1, found].mean()) if len(found) else 0.0
    if edge > EDGE_WARNING and len(found) >= FEW_VOXELS:
        logger.warning(
            "the penalty is at an edge of its grid in %.0f %% of the fits of voxels by their best layer; "
            "widen encoding.alpha_min and alpha_max",
            100 * edge,
        )
    return EncodingScores(network, tuple(g.layer for g in grams), r, rsquared, np.exp(log_alpha), best, edge)


def _make_grid(options: EncodingOptions) -> Array:
    if not (0 < options.alpha_min <= options.alpha_max and options.n_alphas >= 1):
        raise UsageError(
            f"ridge penalties: {options.n_alphas} from {options.alpha_min} to {options.alpha_max}; "
            "at least 1 is needed, with 0 < alpha_min <= alpha_max"
        )
    return np.geomspace(options.alpha_min, options.alpha_max, options.n_alphas)


def _divide_work(n: int, memory: int, n_jobs: int) -> tuple[int, int]:
    """Choose how many folds to fit and how many voxels to take at a time, to stay within ``memory`` bytes.

    A fold takes at most six float64 matrices of n x n (measured: 5), and six float32 columns for each voxel.
    """
    matrices, column = 48 * n * n, 24 * n
    n_workers = int(np.clip(memory // (matrices + SMALLEST_CHUNK * column), 1, n_jobs))
    return n_workers, int(np.clip((memory // n_workers - matrices) // column, SMALLEST_CHUNK, LARGEST_CHUNK))


def _look_ahead(
    pool: Executor, work: Callable[[Task], RidgeFold], tasks: Iterable[Task], n: int
) -> Iterator[RidgeFold]:
    """Do the tasks in order, the next ``n`` while the result of one is used, so that no worker waits."""
    waiting: deque[Future[RidgeFold]] = deque()
    for task in tasks:
        waiting.append(pool.submit(work, task))
        if len(waiting) > n:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _map_chunks(
    pool: Executor, score: Callable[[bool, slice], Array], n_voxels: int, null: NullResponses, width: int
) -> tuple[list[Chunk], Iterator[Array]]:
    """Score all voxels, then the permuted ones, some at a time."""
    chunks = [(False, slice(start, min(start + width, n_voxels))) for start in range(0, n_voxels, width)]
    step = max(width // null.width, 1) * null.width
    chunks += [(True, slice(start, min(start + step, len(null)))) for start in range(0, len(null), step)]
    return chunks, pool.map(lambda chunk: score(*chunk), chunks)


def _score_chunk(
    fold: RidgeFold,
    Y: Array,
    null: NullResponses,
    test: Array,
    alphas: Array,
    permuted: bool,  # noqa: FBT001
    chunk: slice,
) -> Array:
    """Fit some voxels, real or permuted, on the training rows, predict the test rows, and score.

    Returns
    -------
    array of shape (5, n_voxels)
        Correlation, log penalty, whether the penalty is on the edge of the grid, and the sums of squares around the
        predictions and around the training mean.
    """
    Y = null.draw(Y, chunk) if permuted else Y[:, chunk]
    with np.errstate(all="ignore"):  # voxels without signal come out as NaN, which is what they should
        Y_train = np.delete(Y, test, axis=0)
        mean = Y_train.mean(axis=0, dtype=np.float64).astype(Y.dtype)
        Y_train -= mean
        predicted, choice = fold.predict(Y_train.astype(np.float32, copy=False))
        measured = (Y[test] - mean).astype(np.float32, copy=False)
        error = measured - predicted
        return np.stack(
            [
                _correlate(predicted, measured),
                np.log(alphas)[choice],
                (choice == 0) | (choice == len(alphas) - 1),
                _sum_products(error, error),
                _sum_products(measured, measured),
            ]
        )


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
