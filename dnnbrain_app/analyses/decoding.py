"""What can be told of a stimulus from the responses to it of a region, or of the brain."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from joblib import Parallel, delayed
from threadpoolctl import threadpool_limits

from dnnbrain_app.analyses.balancing import Shuffle
from dnnbrain_app.analyses.decoders import CLASSIFIERS, DecodingFold, find_decoder, prepare_fold
from dnnbrain_app.analyses.significance import compute_p_values
from dnnbrain_app.errors import BadDataError, UsageError
from dnnbrain_app.records import Array

TASKS = 32  # permutations that a worker takes at a time


@dataclass(frozen=True, slots=True, eq=False)
class DecodingScores:
    """How well an attribute of the stimuli is decoded.

    Parameters
    ----------
    model : str
        The decoder.
    classes : tuple of str
        Values of the attribute; empty for numbers.
    scores : mapping of str to float
        Of classes ``accuracy`` (share of rows) and ``balanced_accuracy`` (mean over classes); of numbers ``r`` (mean
        over folds) and ``rsquared`` (against the training mean).
    chance : mapping of str to float
        Their means over permutations; NaN without any.
    p : mapping of str to float
        One-sided.
    confusion : array of int, shape (n_classes, n_classes)
        Rows with a class (first axis) that were predicted as another.
    predictions : array of shape (n_rows,)
        Of held-out rows; classes by number.
    """

    model: str
    classes: tuple[str, ...]
    scores: Mapping[str, float]
    chance: Mapping[str, float]
    p: Mapping[str, float]
    confusion: Array
    predictions: Array


def decode_attribute(
    X: Array,
    target: Array,
    model: str,
    folds: Sequence[Array],
    *,
    rng: np.random.Generator,
    n_permutations: int = 1000,
    n_components: int = 0,
    scaling: str = "common",
    shuffle: Shuffle | None = None,
    n_jobs: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> DecodingScores:
    """Predict an attribute of held-out rows from their responses.

    Features are scaled, and principal components found, in the training rows. Chance is what the same folds give when
    the attribute is permuted: of unequal classes, or of runs, it is not 1 / n_classes.

    Parameters
    ----------
    X : array of shape (n_rows, n_features)
        Responses of a region or the whole brain, or activations. Features that are not finite are left out.
    target : array of shape (n_rows,)
        Classes, or numbers.
    model : str
        ``svc``, ``logistic``, ``lda`` for classes; ``ridge``, ``lasso``, ``ols`` for numbers.
    folds : sequence of array of int
        Held-out rows, from `make_balanced_folds`, ``make_folds`` (numbers), or the rows of each run.
    rng : numpy.random.Generator
        Draws the permutations.
    n_permutations : int
        0 for no p values.
    n_components : int
        Principal components; 0 for all.
    scaling : {'common', 'each'}
        Responses in comparable units keep their proportions, so that voxels with little signal stay small; activations
        of units with ranges of their own are better divided by them, each.
    shuffle : Shuffle, optional
        Which permutations. Default: all.
    n_jobs : int
        Processes.
    progress : callable, optional
        Called with (done, total).

    Returns
    -------
    DecodingScores

    Raises
    ------
    UnknownNameError
        Another model, or scaling.
    UsageError
        A model of numbers for an attribute of words.
    BadDataError
        No finite features, missing values in the target, or a class in one fold only.
    """
    find_decoder(model)
    y, classes = number_target(target, model)
    require_rows(X, y, model, classes, folds)
    X = X[:, np.isfinite(X).all(axis=0)]
    if not X.shape[1]:
        raise BadDataError("no feature is finite in all rows, so there is nothing to decode from")
    prepared = [prepare_fold(X, fold, model, n_components, scaling) for fold in folds]
    shuffle = shuffle or Shuffle()
    targets = [shuffle.draw(y, rng) for _ in range(n_permutations)]
    parts = [targets[start : start + TASKS] for start in range(0, n_permutations, TASKS)]
    n_classes = len(classes)
    null = []
    with threadpool_limits(1, "blas"):
        predictions = predict_rows(prepared, model, y)
        scores = score_predictions(predictions, y, prepared, n_classes)
        work = (delayed(_score_targets)(prepared, model, part, n_classes) for part in parts)
        for values in Parallel(n_jobs, return_as="generator")(work):
            null += values
            if progress:
                progress(len(null), n_permutations)
    chance = {name: float(np.mean([values[name] for values in null])) if null else np.nan for name in scores}
    p = {name: _weigh(score, [values[name] for values in null]) for name, score in scores.items()}
    tested = np.concatenate([fold.test for fold in prepared])
    confusion = np.zeros((n_classes, n_classes), dtype=int)
    if n_classes:
        np.add.at(confusion, (y[tested], predictions[tested].astype(int)), 1)
    return DecodingScores(model, classes, scores, chance, p, confusion, predictions)


def number_target(target: Array, model: str) -> tuple[Array, tuple[str, ...]]:
    """Return a target as numbers, and the names of classes."""
    target = np.asarray(target)
    if model in CLASSIFIERS:
        names, y = np.unique(target.astype(str), return_inverse=True)
        missing = np.isin(names[y], ("", "n/a", "nan"))
        classes = tuple(map(str, names))
    else:
        try:
            y, classes = target.astype(np.float64), ()
        except ValueError:
            raise UsageError(f"{model} predicts numbers, but the attribute has values such as {target[0]!r}") from None
        missing = ~np.isfinite(y)
    if missing.any():
        raise BadDataError(f"the attribute is missing in {missing.sum()} of {len(y)} rows; leave them out")
    return y, classes


def require_rows(X: Array, y: Array, model: str, classes: tuple[str, ...], folds: Sequence[Array]) -> None:
    """Refuse rows that do not fit, and classes that a fold cannot learn."""
    if len(X) != len(y):
        raise BadDataError(f"{len(X)} rows of responses, {len(y)} values of the attribute")
    if model not in CLASSIFIERS:
        return
    if len(classes) < 2:
        raise BadDataError(f"the attribute is {classes[0]} in all rows, so there is nothing to decode")
    for fold in folds:
        lost = set(y[fold]) - set(np.delete(y, fold))
        if lost:
            raise BadDataError(f"class {classes[min(lost)]} occurs in one fold only, so no model can learn it there")


def predict_rows(folds: Sequence[DecodingFold], model: str, target: Array) -> Array:
    """Predict the held-out rows of all folds, (n_rows,); NaN where a row is in none."""
    predictions = np.full(len(target), np.nan)
    for fold in folds:
        predictions[fold.test] = fold.predict(model, target)
    return predictions


def score_predictions(predictions: Array, y: Array, folds: Sequence[DecodingFold], n_classes: int) -> dict[str, float]:
    """Compute the scores of `DecodingScores`, given how many classes there are, or 0 for numbers."""
    tested = np.concatenate([fold.test for fold in folds])
    if n_classes:
        right = predictions[tested] == y[tested]
        present = np.unique(y[tested])
        recall = [right[y[tested] == k].mean() for k in present]
        return {"accuracy": float(right.mean()), "balanced_accuracy": float(np.mean(recall))}
    error = sum(((predictions[fold.test] - y[fold.test]) ** 2).sum() for fold in folds)
    total = sum(((y[fold.train].mean() - y[fold.test]) ** 2).sum() for fold in folds)
    return {
        "r": float(np.mean([_correlate(predictions[fold.test], y[fold.test]) for fold in folds])),
        "rsquared": float(1 - error / total),
    }


def _correlate(a: Array, b: Array) -> float:
    """Pearson's correlation; 0 where a prediction does not vary, as it then says nothing."""
    a, b = a - a.mean(), b - b.mean()
    norm = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / norm) if norm > 1e-12 * (1 + np.abs(b).max()) else 0.0


def _score_targets(
    folds: Sequence[DecodingFold], model: str, targets: Sequence[Array], n_classes: int
) -> list[dict[str, float]]:
    return [score_predictions(predict_rows(folds, model, target), target, folds, n_classes) for target in targets]


def _weigh(score: float, null: Sequence[float]) -> float:
    """P value; accuracies are few, so that equal ones count."""
    return float(compute_p_values(np.array([score - 1e-12]), np.array(null))[0]) if null else np.nan
