r"""Which stimulus was seen: the features of a network, predicted from the brain, and compared with those of candidates.

Each feature is predicted from all voxels by ridge regression, with a penalty of its own. With the prediction
:math:`\hat x_i` for a held-out stimulus and the features :math:`x_j` of the stimuli held out with it, both relative to
the mean of the training stimuli, and :math:`c_{ij} = \mathrm{corr}(\hat x_i, x_j)` over features,

.. math::

    rank_i = \frac{\#\{j \ne i : c_{ii} > c_{ij}\}}{m - 1}, \qquad
    pairwise_{ij} = [c_{ii} + c_{jj} > c_{ij} + c_{ji}].

Chance is 1/2 for both, and 1 / m for the first place. Candidates that the model was trained on are no fair ones, so
they are those of the fold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh

from dnnbrain_app.analyses.ridge import RidgeFold, prepare_ridge, score_predictions
from dnnbrain_app.analyses.significance import compute_p_values
from dnnbrain_app.errors import BadDataError
from dnnbrain_app.records import Array, Gram

PENALTIES = np.geomspace(1e-5, 1e5, 21)  # in units of the mean eigenvalue of the training kernel
WIDTH = 4096  # features that are predicted at a time
ROUNDING = 1e-12  # by which a share may come out higher another time


@dataclass(frozen=True, slots=True, eq=False)
class IdentificationScores:
    """How well stimuli are identified by the features of a layer that are decoded from the brain.

    Parameters
    ----------
    layer : str
        Name of the layer.
    r : array of shape (n_features,)
        Correlation of predicted and true features of held-out stimuli, mean over folds; along principal components
        where a layer has more features than there are stimuli.
    rank : array of shape (n_stimuli,)
        Share of the other candidates that are farther from the prediction than the stimulus itself.
    first : array of bool, shape (n_stimuli,)
        Whether all others are.
    pairwise : float
        Share of pairs that are told apart.
    chance : mapping of str to float
        Of ``rank``, ``first`` and ``pairwise``.
    p : mapping of str to float
        Of the means of ``rank``, ``first``, and of ``pairwise``, one-sided, by permutations of the
        stimuli, whose models are all fitted anew: folds share training stimuli, so that permutations within a fold find
        twice as much in noise as they should.
    """

    layer: str
    r: Array
    rank: Array
    first: Array
    pairwise: float
    chance: dict[str, float]
    p: dict[str, float]


def list_features(gram: Gram) -> Array:
    """Return the features of a layer, or, where only K is there, coordinates with the same inner products.

    Correlations over features then become correlations over principal components, which are nearly the same.
    """
    if gram.X is not None:
        return np.asarray(gram.X, dtype=np.float64)
    assert gram.K is not None  # records.Gram has one or the other
    K = gram.K - gram.K.mean(axis=0)
    K -= K.mean(axis=1, keepdims=True)
    s, U = eigh(K, driver="evd", check_finite=False)
    kept = s > 1e-10 * s[-1]
    return np.asarray(U[:, kept] * np.sqrt(s[kept]))[:, ::-1]


def identify_stimuli(
    gram: Gram,
    Y: Array,
    folds: Sequence[Array],
    *,
    rng: np.random.Generator,
    n_permutations: int = 1000,
    progress: Callable[[int, int], None] | None = None,
) -> IdentificationScores:
    """Predict the features of a layer from responses, and identify held-out stimuli by them.

    Parameters
    ----------
    gram : Gram
        The layer.
    Y : array of shape (n_stimuli, n_voxels)
        Responses; voxels that are constant or not finite are left out, others are scaled in the training stimuli.
    folds : sequence of array of int
        Held-out stimuli, at least two at a time.
    rng : numpy.random.Generator
        Draws the permutations.
    n_permutations : int
        0 for no p values. Each takes as long as the predictions.
    progress : callable, optional
        Called with (done, total), in folds.

    Returns
    -------
    IdentificationScores

    Raises
    ------
    BadDataError
        Other stimuli than responses, a fold of one stimulus, or no voxel with signal.

    References
    ----------
    Horikawa & Kamitani (2017), doi:10.1038/ncomms15037.
    """
    if len(gram.row_sums) != len(Y):
        raise BadDataError(f"layer {gram.layer}: activations for {len(gram.row_sums)} stimuli, responses to {len(Y)}")
    if min(map(len, folds)) < 2:
        raise BadDataError("a fold of one stimulus leaves no other to tell it from; make fewer folds")
    Y = Y[:, np.isfinite(Y).all(axis=0)].astype(np.float64)
    X = list_features(gram)
    orders = [np.arange(len(X)), *(rng.permutation(len(X)) for _ in range(n_permutations))]
    sums, n_pairs, r = np.zeros((len(orders), 3)), 0, np.zeros(X.shape[1])
    rank, first = np.full(len(Y), np.nan), np.zeros(len(Y), dtype=bool)
    for number, fold in enumerate(folds, 1):
        model = _prepare_model(Y, fold)
        for i, order in enumerate(orders):
            predicted, true = _predict_features(model, X[order])
            ranks, firsts, pairs = _identify(_correlate_rows(predicted, true))
            sums[i] += ranks.sum(), firsts.sum(), pairs.sum()
            if i == 0:
                rank[fold], first[fold] = ranks, firsts
                with np.errstate(invalid="ignore", divide="ignore"):
                    r += score_predictions(predicted, true)[0]
        n_pairs += len(pairs)
        if progress:
            progress(number, len(folds))
    n_tested = sum(map(len, folds))
    scores, *null = sums / (n_tested, n_tested, n_pairs)
    p = np.full(3, np.nan)
    if null:
        p = np.array([compute_p_values(scores[k] - ROUNDING, np.array(null)[:, k]) for k in range(3)])
    chance = {"rank": 0.5, "first": len(folds) / n_tested, "pairwise": 0.5}
    return IdentificationScores(
        gram.layer, r / len(folds), rank, first, float(scores[2]), chance, dict(zip(chance, p.tolist(), strict=True))
    )


def _prepare_model(Y: Array, test: Array) -> RidgeFold:
    """Decompose the kernel of the training responses, scaled."""
    train = np.delete(np.arange(len(Y)), test)
    deviation, mean = Y[train].std(axis=0), Y[train].mean(axis=0)
    varying = deviation > 1e-10 * np.abs(mean)
    if not varying.any():
        raise BadDataError("no voxel varies over the training stimuli, so there is nothing to decode from")
    scaled = (Y[:, varying] - mean[varying]) / deviation[varying]
    return prepare_ridge(
        Gram("responses", (scaled.shape[1],), 0, scaled @ scaled.T, scaled.sum(axis=1)), test, PENALTIES
    )


def _predict_features(model: RidgeFold, X: Array) -> tuple[Array, Array]:
    """Predict the features of the test stimuli; return them and the true ones, less the means of training."""
    true = X - X[model.train].mean(axis=0)
    true /= np.sqrt((true[model.train] ** 2).mean()) or 1  # so that float32 has room
    widths = (slice(start, start + WIDTH) for start in range(0, X.shape[1], WIDTH))
    predicted = [model.predict(true[model.train, columns].astype(np.float32))[0] for columns in widths]
    return np.concatenate(predicted, axis=1).astype(np.float64), true[model.test]


def _correlate_rows(a: Array, b: Array) -> Array:
    """Correlate each prediction (rows) with each candidate (columns); 0 where one does not vary."""
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    norms = np.outer(np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1))
    return np.asarray(np.divide(a @ b.T, norms, out=np.zeros_like(norms), where=norms > 0))


def _identify(C: Array) -> tuple[Array, Array, Array]:
    """Return rank and first place of each stimulus, and whether each pair is told apart; a tie is half a win."""
    own, m = C.diagonal(), len(C)
    wins = np.sign(own[:, None] - C) / 2 + 0.5
    pairs = np.sign(own[:, None] + own - C - C.T) / 2 + 0.5
    others = wins.sum(axis=1) - 0.5  # without the stimulus itself
    return others / (m - 1), (wins == 1).sum(axis=1) == m - 1, pairs[np.triu_indices(m, 1)]
