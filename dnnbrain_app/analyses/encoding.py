"""How well the layers of a network predict each voxel."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial

import numpy as np
from threadpoolctl import threadpool_limits

from dnnbrain_app.analyses.autocorrelation import SerialNoise
from dnnbrain_app.analyses.budget import Budget, divide_work
from dnnbrain_app.analyses.moments import RidgeMoments, prepare_moments
from dnnbrain_app.analyses.options import EncodingOptions
from dnnbrain_app.analyses.ridge import Draw, RidgeFold, prepare_ridge
from dnnbrain_app.analyses.significance import NullResponses, choose_best_layer, permute_responses
from dnnbrain_app.errors import BadDataError, UsageError
from dnnbrain_app.records import Array, EncodingScores, Gram

logger = logging.getLogger(__name__)

Chunk = tuple[bool, slice]  # whether permuted, and which voxels

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
    noise: SerialNoise | None = None,
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

    A layer of many units is modelled from its Gram (`ridge`), a layer of few from sums over the stimuli (`moments`),
    which do not grow with their number; the scores are the same.

    The best layer of a voxel is told only where its r is beyond what ``options.n_null`` voxels with permuted stimuli
    reach (`significance.choose_best_layer`); these pass through the same folds together with the real ones.

    Parameters
    ----------
    network : str
        Label of the network.
    grams : sequence of Gram
        The layers, in the order of the forward pass; each is read once, and let go before the next.
    Y : array of shape (n_stimuli, n_voxels)
        Responses. A voxel that is constant or has a value that is not finite scores NaN.
    folds : sequence of array of int
        Held-out rows of each fold, from ``make_folds``; no row is in two.
    options : EncodingOptions
        Grid of penalties.
    rng : numpy.random.Generator
        Draws the permutations.
    memory : int
        Bytes to work in: bounds how many folds are fitted at the same time and how many voxels at once.
    n_jobs : int
        Threads. Folds are prepared and voxels scored side by side, each on its share of the threads, because an
        eigenproblem uses many threads badly.
    noise : SerialNoise, optional
        Where the rows are volumes of runs rather than stimuli: noise is then taken as autocorrelated in the choice of
        penalties, and stays so where it is permuted. The layers need K.
    progress : callable, optional
        Called with (done, total), in folds of layers, as they get done.

    Returns
    -------
    EncodingScores

    Raises
    ------
    UsageError
        The grid of penalties is impossible, or the memory is too small for a fold.
    BadDataError
        A layer has another number of stimuli than Y, or does not vary.
    """
    grid = _make_grid(options)
    null = permute_responses(Y.shape[1], options.n_null, rng, None if noise is None else noise.run[noise.kept])
    names = []
    totals = np.zeros((len(grams), 5, Y.shape[1]))
    chance = np.zeros((len(grams), len(null)))
    report = _count_up(progress, len(grams) * len(folds))
    for layer, gram in enumerate(grams):
        if len(gram.row_sums) != len(Y):
            raise BadDataError(
                f"layer {gram.layer}: activations for {len(gram.row_sums)} stimuli, responses to {len(Y)}"
            )
        names.append(gram.layer)
        budget = divide_work(gram, len(folds), memory, n_jobs)
        with threadpool_limits(max(n_jobs // budget.n_workers, 1), "blas"):
            totals[layer], chance[layer] = _score_layer(
                gram, Y, null, noise, folds, grid, budget, partial(report, layer * len(folds))
            )
    with np.errstate(invalid="ignore"):
        spread = Y.max(axis=0) - Y.min(axis=0)
        totals[..., ~(np.isfinite(spread) & (spread > 0))] = np.nan
    r, _, _, log_alpha, at_edge = totals.swapaxes(0, 1) / len(folds)
    rsquared = 1 - totals[:, 1] / totals[:, 2]
    best = choose_best_layer(r, chance / len(folds))
    found = np.flatnonzero(best)
    edge = float(at_edge[best[found] - 1, found].mean()) if len(found) else 0.0
    if edge > EDGE_WARNING and len(found) >= FEW_VOXELS:
        logger.warning(
            "the penalty is at an edge of its grid in %.0f %% of the fits of voxels by their best layer; "
            "widen encoding.alpha_min and alpha_max",
            100 * edge,
        )
    return EncodingScores(network, tuple(names), r, rsquared, np.exp(log_alpha), best, edge)


def _make_grid(options: EncodingOptions) -> Array:
    if not (0 < options.alpha_min <= options.alpha_max and options.n_alphas >= 1):
        raise UsageError(
            f"ridge penalties: {options.n_alphas} from {options.alpha_min} to {options.alpha_max}; "
            "at least 1 is needed, with 0 < alpha_min <= alpha_max"
        )
    return np.geomspace(options.alpha_min, options.alpha_max, options.n_alphas)


def _count_up(progress: Callable[[int, int], None] | None, total: int) -> Callable[[int, int], None]:
    """Return a function that tells how much is done, given what was before and what was added, if it is more."""
    told = 0

    def report(before: int, added: int) -> None:
        nonlocal told
        if progress and before + added > told:
            told = before + added
            progress(told, total)

    return report


def _score_layer(
    gram: Gram,
    Y: Array,
    null: NullResponses,
    noise: SerialNoise | None,
    folds: Sequence[Array],
    grid: Array,
    budget: Budget,
    report: Callable[[int], None],
) -> tuple[Array, Array]:
    """Sum what `RidgeFold.score` returns over the folds: all of it for the voxels, r for the permuted ones."""
    totals, chance = np.zeros((5, Y.shape[1])), np.zeros((5, len(null)))
    groups = [folds[start : start + budget.n_folds] for start in range(0, len(folds), budget.n_folds)]
    chunks = _list_chunks(Y.shape[1], null, budget.width)
    n_done = 0
    with ThreadPoolExecutor(budget.n_workers) as pool:
        try:
            for group, model in zip(groups, _prepare_models(pool, gram, noise, groups, grid, budget), strict=True):
                scored = pool.map(lambda chunk, model=model: model.score(_draw(Y, null, *chunk)), chunks)
                for i, ((permuted, chunk), scores) in enumerate(zip(chunks, scored, strict=True), 1):
                    (chance if permuted else totals)[:, chunk] += scores
                    report(n_done + len(group) * i // len(chunks))
                n_done += len(group)
        finally:
            pool.shutdown(cancel_futures=True)
    return totals, chance[0]


def _prepare_models(
    pool: Executor,
    gram: Gram,
    noise: SerialNoise | None,
    groups: Sequence[Sequence[Array]],
    grid: Array,
    budget: Budget,
) -> Iterator[RidgeFold | RidgeMoments]:
    if budget.from_moments:
        if noise is not None:
            raise BadDataError(f"layer {gram.layer}: a model of volumes needs their inner products")
        return (prepare_moments(gram, group, grid, pool.map) for group in groups)
    tests = (group[0] for group in groups)
    return _look_ahead(pool, lambda test: prepare_ridge(gram, test, grid, noise), tests, budget.n_workers)


def _look_ahead(
    pool: Executor, work: Callable[[Array], RidgeFold], tasks: Iterable[Array], n: int
) -> Iterator[RidgeFold]:
    """Do the tasks in order, the next ``n`` while the result of one is used, so that no worker waits."""
    waiting: deque[Future[RidgeFold]] = deque()
    for task in tasks:
        waiting.append(pool.submit(work, task))
        if len(waiting) > n:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _list_chunks(n_voxels: int, null: NullResponses, width: int) -> list[Chunk]:
    """List all voxels, then the permuted ones, some at a time."""
    chunks = [(False, slice(start, min(start + width, n_voxels))) for start in range(0, n_voxels, width)]
    step = max(width // null.width, 1) * null.width
    return chunks + [(True, slice(start, min(start + step, len(null)))) for start in range(0, len(null), step)]


def _draw(Y: Array, null: NullResponses, permuted: bool, chunk: slice) -> Draw:  # noqa: FBT001
    """Return a function from rows to the responses of some voxels, real or permuted, to them."""
    return null.draw(Y, chunk) if permuted else lambda rows: Y[rows, chunk]
