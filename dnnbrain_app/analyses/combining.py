"""How well layers together explain a region's RDM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from dnnbrain_app.analyses.comparisons import COMPARISONS, Comparison, find_comparison
from dnnbrain_app.analyses.rsa import find_complete, require_same_items
from dnnbrain_app.errors import BadDataError
from dnnbrain_app.records import Array, Rdm

FEWEST = 4  # stimuli held out: of fewer there are too few pairs, and additive vectors leave nothing of them


@dataclass(frozen=True, slots=True, eq=False)
class CombinedScores:
    """How well a weighted sum of the layers' RDMs agrees with regions, and each layer on the same pairs of stimuli.

    Parameters
    ----------
    similarity : array of shape (n_regions,)
        Of the sum, mean over folds.
    single : array of shape (n_layers, n_regions)
        Of each layer.
    best : array of shape (n_regions,)
        Of the layer that was the best in training, mean over folds: what combining must exceed.
    weights : array of shape (n_layers, n_regions)
        Mean over folds; of RDMs as they are.
    """

    similarity: Array
    single: Array
    best: Array
    weights: Array


def score_combined(
    layer_rdms: Sequence[Rdm], region_rdms: Sequence[Rdm], comparison: str, folds: Sequence[Array]
) -> CombinedScores:
    r"""Weigh layers by non-negative least squares among some stimuli, and compare the sum with regions among others.

    .. math:: \min_{w \ge 0} \Big\| t(d) - \sum_l w_l \, t(d_l) \Big\|^2

    over the pairs of training stimuli, with the transform of the comparison (`comparisons`), or of ``pearson`` where
    ranks are compared. Pairs of a training with a held-out stimulus are in neither part: weights that have seen a
    stimulus know something of all its distances (Khaligh-Razavi & Kriegeskorte 2014, doi:10.1371/journal.pcbi.1003915).

    Parameters
    ----------
    layer_rdms, region_rdms : sequence of Rdm
        Of the same items in the same order, none without values.
    comparison : str
        A name in `comparisons.COMPARISONS`.
    folds : sequence of array of int
        Held-out stimuli of each fold, 4 or more: five folds are better than ten, as pairs among few are few.

    Returns
    -------
    CombinedScores

    Raises
    ------
    UnknownNameError
        Another comparison.
    BadDataError
        The items differ between RDMs, a dissimilarity is missing, or a fold is too small.
    """
    method = find_comparison(comparison)
    rdms = [*layer_rdms, *region_rdms]
    for rdm in rdms:
        require_same_items(rdms[0], rdm)
    if len(find_complete(rdms)) < len(rdms):
        raise BadDataError("layers cannot be combined where an RDM misses dissimilarities")
    smallest = min(len(fold) for fold in folds)
    if smallest < FEWEST:
        raise BadDataError(f"a fold of {smallest} stimuli; to compare RDMs, hold out at least {FEWEST} (fewer folds)")
    values = np.array([rdm.dissimilarities for rdm in rdms])
    n, n_layers = len(rdms[0].items), len(layer_rdms)
    fitting = COMPARISONS["pearson"] if method.ranks else method
    scores = [_score_fold(values, n_layers, np.isin(np.arange(n), fold), method, fitting) for fold in folds]
    similarity, single, best, weights = (np.mean(part, axis=0) for part in zip(*scores, strict=True))
    return CombinedScores(similarity, single, best, weights)


def _score_fold(
    values: Array, n_layers: int, held_out: Array, method: Comparison, fitting: Comparison
) -> tuple[Array, Array, Array, Array]:
    i, j = np.triu_indices(len(held_out), 1)
    train, test = values[:, ~held_out[i] & ~held_out[j]], values[:, held_out[i] & held_out[j]]
    X = np.array([fitting.transform(row, None) for row in train])
    weights = _fit_weights(X[:n_layers], X[n_layers:])
    layers, regions = test[:n_layers], test[n_layers:]
    single = _compare(layers, regions, method)
    combined = np.array(
        [_compare((w @ layers)[None], region[None], method)[0, 0] for w, region in zip(weights.T, regions, strict=True)]
    )
    trained = _compare(train[:n_layers], train[n_layers:], method)
    best = single[np.argmax(np.nan_to_num(trained, nan=-np.inf), axis=0), np.arange(len(regions))]
    return np.nan_to_num(combined), single, best, weights  # where all weights are 0, nothing is predicted


def _fit_weights(X: Array, Y: Array) -> Array:
    """Solve the non-negative least squares of each row of Y (n_regions, n_pairs) from their products alone."""
    norms = np.sqrt(np.einsum("lp,lp->l", X, X))
    norms[norms == 0] = np.inf
    X = X / norms[:, None]
    energy, axes = np.linalg.eigh(X @ X.T)
    keep = energy > 1e-10 * energy[-1]
    root = np.sqrt(energy[keep])
    targets = (axes[:, keep] / root).T @ (X @ Y.T)
    scaled = np.column_stack([nnls((axes[:, keep] * root).T, target)[0] for target in targets.T])
    return np.asarray(scaled / norms[:, None])


def _compare(A: Array, B: Array, method: Comparison) -> Array:
    A, B = (np.array([method.transform(row, None) for row in X]) for X in (A, B))
    scales = [np.array([method.scale(row, A.shape[1]) for row in X]) for X in (A, B)]
    with np.errstate(invalid="ignore"):
        return np.asarray([method.multiply(B, a) for a in A] * scales[0][:, None] * scales[1])
