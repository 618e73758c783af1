r"""Which layer predicts a voxel best, how sure that is, and how well it does where it was not chosen.

The highest of several scores is too high, as the winner is chosen for its luck, too. So half of the folds choose, and
the other half score. That alone is not enough: scores of folds depend on each other, as the prediction of one was
learnt from the responses of the other, and the other way round. In noise a layer that is lucky in one half is lucky in
the other. Here a half chooses by cross-validation within itself, without a response of the half that scores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dnnbrain_app.analyses.autocorrelation import SerialNoise
from dnnbrain_app.analyses.encoding import score_encoding
from dnnbrain_app.analyses.options import EncodingOptions
from dnnbrain_app.errors import UsageError
from dnnbrain_app.records import Array, EncodingScores, Gram, Grams

LEAST_FOLDS = 4  # two in each half: one to train on, one to test
CHUNK = 256  # voxels that are resampled at a time


@dataclass(frozen=True, slots=True, eq=False)
class LayerChoice:
    """The layer of each voxel; NaN (0, False) where no layer is significant, except in ``r``.

    Parameters
    ----------
    best : array of int, shape (n_voxels,)
        Number of the layer with the highest score, from 1.
    r : array of shape (n_voxels,)
        Correlation in each half of the folds by the layer that the other half chose, mean over folds: without the
        winner's luck, so 0 on average in noise. It is that of a choice from half of the stimuli.
    agreed : array of bool, shape (n_voxels,)
        Whether both halves chose the same layer.
    confidence : array of shape (n_voxels,)
        Share of bootstrap samples of the folds in which ``best`` has the highest score. Not a probability that the
        choice is right: it says how much it hangs on single folds.
    depth : array of shape (n_voxels,)
        Mean of the layers' numbers, each weighted by its score. It tells gradients that a best layer jumps over; as
        neighbouring layers are alike it lies nearer the middle than the best layer does.
    """

    best: Array
    r: Array
    agreed: Array
    confidence: Array
    depth: Array


def choose_layers(
    grams: Sequence[Gram],
    Y: Array,
    folds: Sequence[Array],
    scores: EncodingScores,
    options: EncodingOptions,
    *,
    rng: np.random.Generator,
    memory: int,
    n_jobs: int = 1,
    noise: SerialNoise | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> LayerChoice:
    """Choose each voxel's layer on half of the folds, score it on the other half, and say how sure the choice is.

    Takes about a third of the time that the scores took: two analyses of half the stimuli.

    Parameters
    ----------
    grams, Y, folds, options, memory, n_jobs, noise, progress
        As for `encoding.score_encoding`.
    scores : EncodingScores
        What it returned.
    rng : numpy.random.Generator
        Divides the folds, and resamples them.

    Raises
    ------
    UsageError
        There are fewer than four folds.
    """
    if len(folds) < LEAST_FOLDS:
        raise UsageError(f"{len(folds)} folds cannot be halved to choose and to score layers; at least 4 are needed")
    assert scores.fold_r is not None  # what score_encoding returns has it
    order = rng.permutation(len(folds))
    halves = [np.sort(order[::2]), np.sort(order[1::2])]
    r, choices = np.full(scores.fold_r.shape[::2], np.nan), []
    for i, (half, other) in enumerate(zip(halves, halves[::-1], strict=True)):
        own = _score_half(
            grams,
            Y,
            [folds[f] for f in half],
            replace(options, n_null=0, n_permutations=0),
            rng=rng,
            memory=memory,
            n_jobs=n_jobs,
            noise=noise,
            progress=None if progress is None else lambda d, n, i=i, p=progress: p(i * n + d, 2 * n),  # type: ignore[misc]
        )
        choice = np.where(np.isnan(own), -np.inf, own).argmax(axis=0)
        choices.append(choice)
        r[other] = np.take_along_axis(scores.fold_r[other], choice[None, None], axis=1)[:, 0]
    found = scores.best_layer > 0
    confidence, depth = np.full((2, len(found)), np.nan)
    confidence[found] = _resample_choice(scores.fold_r[:, :, found], options.n_bootstrap, rng)
    depth[found] = weigh_depth(scores.r[:, found])
    return LayerChoice(scores.best_layer, r.mean(axis=0), found & (choices[0] == choices[1]), confidence, depth)


def weigh_depth(r: Array) -> Array:
    r"""Return the score-weighted mean of the layers' numbers.

    .. math:: \frac{\sum_l l \, \max(0, r_{lv})}{\sum_l \max(0, r_{lv})}

    Parameters
    ----------
    r : array of shape (n_layers, n_voxels)
        Scores; NaN does not count.

    Returns
    -------
    array of shape (n_voxels,)
        Between 1 and n_layers; NaN where no score is positive.
    """
    weights = np.fmax(r, 0)
    total = weights.sum(axis=0)
    depth: Array = np.arange(1, len(r) + 1) @ weights / np.where(total > 0, total, np.nan)
    return depth


def _score_half(
    grams: Sequence[Gram],
    Y: Array,
    folds: Sequence[Array],
    options: EncodingOptions,
    *,
    rng: np.random.Generator,
    memory: int,
    n_jobs: int,
    noise: SerialNoise | None,
    progress: Callable[[int, int], None] | None,
) -> Array:
    """Cross-validate within some folds, as if the other stimuli were not there: (n_layers, n_voxels)."""
    rows = np.sort(np.concatenate(folds))
    own = Y[rows]
    return score_encoding(
        "half",
        Grams(len(grams), lambda i: grams[i].take(rows)),
        own,
        [np.searchsorted(rows, fold) for fold in folds],
        options,
        rng=rng,
        memory=memory - own.nbytes,
        n_jobs=n_jobs,
        noise=None if noise is None else noise.take(rows),
        progress=progress,
    ).r


def _resample_choice(fold_r: Array, n_bootstrap: int, rng: np.random.Generator) -> Array:
    """Return the share of bootstrap samples of the folds in which the best layer of all folds is best."""
    n_folds, n_layers, n_voxels = fold_r.shape
    weights = rng.multinomial(n_folds, np.full(n_folds, 1 / n_folds), size=n_bootstrap).astype(np.float32)
    shares = np.empty(n_voxels)
    for start in range(0, n_voxels, CHUNK):
        r = fold_r[:, :, start : start + CHUNK]
        r = np.where(np.isnan(r).any(axis=0), -1, r).reshape(n_folds, -1)  # such a layer never wins
        winner = (weights @ r).reshape(n_bootstrap, n_layers, -1).argmax(axis=1)
        shares[start : start + CHUNK] = (winner == r.sum(axis=0).reshape(n_layers, -1).argmax(axis=0)).mean(axis=0)
    return shares
