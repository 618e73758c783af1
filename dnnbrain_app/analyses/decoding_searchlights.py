"""Where in the brain an attribute of the stimuli is decoded from neighbouring voxels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from joblib import Parallel, delayed
from threadpoolctl import threadpool_limits

from dnnbrain_app.analyses.balancing import Shuffle
from dnnbrain_app.analyses.decoders import find_decoder, prepare_fold
from dnnbrain_app.analyses.decoding import number_target, predict_rows, require_rows, score_predictions
from dnnbrain_app.analyses.neighbourhoods import Neighbourhoods
from dnnbrain_app.analyses.significance import compute_p_values
from dnnbrain_app.errors import BadDataError
from dnnbrain_app.records import Array

TASKS = 32  # searchlights that a worker takes at a time


def decode_searchlights(
    X: Array,
    target: Array,
    model: str,
    folds: Sequence[Array],
    neighbourhoods: Neighbourhoods,
    *,
    rng: np.random.Generator,
    n_null: int = 5000,
    shuffle: Shuffle | None = None,
    n_jobs: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Array, Array]:
    """Predict an attribute from the searchlight around each voxel.

    One distribution of chance serves all searchlights: scores of random ones with a permuted attribute.

    Parameters
    ----------
    X : array of shape (n_rows, n_voxels)
        Responses. Voxels that are constant or not finite belong to no searchlight.
    target, model, folds, rng, shuffle, n_jobs, progress
        As for `decode_attribute`.
    neighbourhoods : Neighbourhoods
        Searchlights.
    n_null : int
        How many make the distribution; 0 for no p values.

    Returns
    -------
    score : array of shape (n_voxels,)
        Balanced accuracy, or r; NaN for voxels without signal.
    p : array of shape (n_voxels,)
        Uncorrected, one-sided; see `adjust_fdr`.

    Raises
    ------
    UnknownNameError, UsageError, BadDataError
        As for `decode_attribute`.
    """
    find_decoder(model)
    y, classes = number_target(target, model)
    require_rows(X, y, model, classes, folds)
    with np.errstate(invalid="ignore"):
        spread = X.max(axis=0) - X.min(axis=0)
    members = neighbourhoods.keep(np.isfinite(spread) & (spread > 0))
    centres = np.flatnonzero(np.diff(members.indptr))
    if not len(centres):
        raise BadDataError("no voxel varies over the rows, so there is nothing to decode from")
    shuffle = shuffle or Shuffle()
    tasks = [(c, y) for c in centres] + [(c, shuffle.draw(y, rng)) for c in rng.choice(centres, n_null)]
    where = [members.indices[members.indptr[c] : members.indptr[c + 1]] for c, _ in tasks]
    found: list[float] = []
    with threadpool_limits(1, "blas"):
        work = (
            delayed(_score_patterns)(
                [X[:, voxels] for voxels in where[start : start + TASKS]],
                [labels for _, labels in tasks[start : start + TASKS]],
                model,
                folds,
                len(classes),
            )
            for start in range(0, len(tasks), TASKS)
        )
        for values in Parallel(n_jobs, return_as="generator")(work):
            found += values
            if progress:
                progress(len(found), len(tasks))
    score, p = np.full((2, X.shape[1]), np.nan)
    score[centres] = found[: len(centres)]
    if n_null:
        p = compute_p_values(score, np.array(found[len(centres) :]))
    return score, p


def _score_patterns(
    patterns: Sequence[Array], targets: Sequence[Array], model: str, folds: Sequence[Array], n_classes: int
) -> list[float]:
    found = []
    for X, target in zip(patterns, targets, strict=True):
        prepared = [prepare_fold(X, fold, model) for fold in folds]
        scores = score_predictions(predict_rows(prepared, model, target), target, prepared, n_classes)
        found.append(scores["balanced_accuracy" if n_classes else "r"])
    return found
