"""How well the layers of a network predict each voxel."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from threadpoolctl import threadpool_limits

from dnnbrain_app.analyses.autocorrelation import SerialNoise
from dnnbrain_app.analyses.budget import Budget, divide_work
from dnnbrain_app.analyses.moments import RidgeMoments, prepare_moments
from dnnbrain_app.analyses.null_responses import Chunk, Exchange, Responses, prepare_responses
from dnnbrain_app.analyses.options import EncodingOptions
from dnnbrain_app.analyses.ridge import RidgeFold, prepare_ridge
from dnnbrain_app.analyses.significance import choose_best_layer, weigh_layers
from dnnbrain_app.errors import BadDataError, UsageError
from dnnbrain_app.records import Array, EncodingScores, Gram

logger = logging.getLogger(__name__)

EDGE_WARNING = 0.05  # share of fits at an edge of the grid
FEW_VOXELS = 20  # too few to warn of


@dataclass(frozen=True, slots=True, eq=False)
class _Tally:
    """What was scored of a layer so far."""

    r: Array  # (n_folds, n_voxels)
    totals: Array  # (4, n_voxels): what else `RidgeFold.score` returns, summed over folds
    sums: Array  # r over folds, of measured and of permuted responses in their places

    def add(self, chunk: Chunk, folds: slice, scores: Array) -> None:
        self.sums[chunk.place] += scores[:, 0].sum(axis=0)
        if chunk.kind == "measured":
            self.r[folds, chunk.columns] = scores[:, 0]
            self.totals[:, chunk.columns] += scores[:, 1:].sum(axis=0)


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
    blocks: Array | None = None,
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

    Scores are tested against those of ``options.n_null`` voxels with permuted stimuli, which pass through the same
    folds together with the real ones (`significance.weigh_scores`), and, for ``options.n_permutations``, against those
    of all voxels with the same permutation. The best layer of a voxel is told only where its r is significant
    (`significance.choose_best_layer`).

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
    blocks : array of shape (n_stimuli,), optional
        Stimuli are permuted within these blocks only: where runs (sessions) are held out, those of each stimulus,
        as what their responses share is no chance that others could have had.
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
    grid = make_grid(options)
    exchange = Exchange(len(Y), blocks) if noise is None else Exchange(len(Y), noise.run[noise.kept], turned=True)
    responses = prepare_responses(Y, options.n_null, options.n_permutations, rng, exchange)
    names = []
    fold_r = np.empty((len(folds), len(grams), Y.shape[1]), dtype=np.float32)
    totals = np.empty((4, len(grams), Y.shape[1]))
    chance = np.empty((len(grams), len(responses.null)))
    highest = np.empty((len(grams), options.n_permutations))
    report = _count_up(progress, len(grams) * len(folds))
    for layer, gram in enumerate(grams):
        if len(gram.row_sums) != len(Y):
            raise BadDataError(
                f"layer {gram.layer}: activations for {len(gram.row_sums)} stimuli, responses to {len(Y)}"
            )
        names.append(gram.layer)
        budget = divide_work(gram, len(folds), memory - 4 * len(responses), n_jobs)
        with threadpool_limits(max(n_jobs // budget.n_workers, 1), "blas"):
            tally = _score_layer(gram, responses, noise, folds, grid, budget, partial(report, layer * len(folds)))
        fold_r[:, layer], totals[:, layer] = tally.r, tally.totals
        chance[layer], highest[layer] = responses.split(tally.sums / len(folds))
    silent = responses.find_silent()
    fold_r[..., silent], totals[..., silent] = np.nan, np.nan
    r = fold_r.mean(axis=0, dtype=np.float64)
    error, total, log_alpha, at_edge = totals
    best, significance = choose_best_layer(r, chance, highest)
    return EncodingScores(
        network,
        tuple(names),
        r,
        1 - error / total,
        np.exp(log_alpha / len(folds)),
        best,
        _watch_edges(at_edge / len(folds), best),
        fold_r,
        weigh_layers(r, chance, highest),
        significance,
    )


def _watch_edges(at_edge: Array, best: Array) -> float:
    """Return the share of fits at an edge of the grid, of voxels by their best layer; warn where it is large."""
    found = np.flatnonzero(best)
    edge = float(at_edge[best[found] - 1, found].mean()) if len(found) else 0.0
    if edge > EDGE_WARNING and len(found) >= FEW_VOXELS:
        logger.warning(
            "the penalty is at an edge of its grid in %.0f %% of the fits of voxels by their best layer; "
            "widen encoding.alpha_min and alpha_max",
            100 * edge,
        )
    return edge


def make_grid(options: EncodingOptions) -> Array:
    """Return the penalties: (n_alphas,), rising."""
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
    responses: Responses,
    noise: SerialNoise | None,
    folds: Sequence[Array],
    grid: Array,
    budget: Budget,
    report: Callable[[int], None],
) -> _Tally:
    n_voxels = responses.Y.shape[1]
    tally = _Tally(
        np.empty((len(folds), n_voxels), dtype=np.float32),
        np.zeros((4, n_voxels)),
        np.zeros(len(responses), dtype=np.float32),
    )
    groups = [folds[start : start + budget.n_folds] for start in range(0, len(folds), budget.n_folds)]
    chunks = responses.list_chunks(budget.width)
    n_done = 0
    with ThreadPoolExecutor(budget.n_workers) as pool:
        try:
            for group, model in zip(groups, _prepare_models(pool, gram, noise, groups, grid, budget), strict=True):
                done = slice(n_done, n_done + len(group))
                scored = pool.map(lambda chunk, model=model: model.score(responses.draw(chunk)), chunks)
                for i, (chunk, scores) in enumerate(zip(chunks, scored, strict=True), 1):
                    tally.add(chunk, done, scores)
                    report(n_done + len(group) * i // len(chunks))
                n_done += len(group)
        finally:
            pool.shutdown(cancel_futures=True)
    return tally


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
