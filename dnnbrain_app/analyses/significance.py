"""Which scores are more than chance."""

from __future__ import annotations

import numpy as np
from scipy.stats import false_discovery_control

from dnnbrain_app.records import Array, Significance

FDR_LEVEL = 0.05


def compute_p_values(scores: Array, null: Array) -> Array:
    r"""Compare scores with their distribution under the null hypothesis, one-sided.

    .. math:: p = \frac{1 + \#\{null \ge score\}}{1 + n_{null}}

    Parameters
    ----------
    scores : array of shape (n,)
        NaN gives NaN.
    null : array of shape (n_null,)
        The same score where there is nothing to find; NaN does not count.

    Returns
    -------
    array of shape (n,)
        P values, never 0 (Phipson & Smyth 2010, doi:10.2202/1544-6115.1585).
    """
    null = np.sort(null[np.isfinite(null)])
    p = (1 + len(null) - np.searchsorted(null, scores, side="left")) / (1 + len(null))
    return np.where(np.isnan(scores), np.nan, p)


def adjust_fdr(p: Array) -> Array:
    r"""Turn p values into the lowest false discovery rates at which they are significant (Benjamini & Hochberg 1995).

    .. math:: q_{(i)} = \min_{j \ge i} \min(1, m \, p_{(j)} / j)

    for the :math:`m` tests in rising order. It holds for independent tests, and for tests that go together, as those of
    neighbouring voxels do.

    Parameters
    ----------
    p : array of shape (n,)
        P values; NaN gives NaN and does not count as a test.

    Returns
    -------
    array of shape (n,)
    """
    q = np.full(p.shape, np.nan)
    tested = np.isfinite(p)
    if tested.any():
        q[tested] = false_discovery_control(p[tested])
    return q


def weigh_scores(scores: Array, null: Array, highest: Array) -> Significance:
    r"""Test the scores of a map in three ways, one-sided.

    * By itself, each voxel against all permuted voxels (`compute_p_values`): what a permuted voxel scores depends on
      the stimuli, the layers and the folds, and hardly on the voxel, so that one distribution serves all.
    * At a false discovery rate, over the voxels of the map (`adjust_fdr`).
    * At a family-wise error rate: against the highest score in the map when all voxels get the same permutation, so
      that what neighbours have in common stays (Nichols & Holmes 2002). It needs no more permutations to be exact:
      with 19 the lowest p is .05, with more it is lower and more is found.

    Parameters
    ----------
    scores : array of shape (n_voxels,)
        NaN gives NaN.
    null : array of shape (n_null,)
        Scores of voxels whose stimuli were permuted.
    highest : array of shape (n_permutations,)
        Highest score over all voxels, in each permutation.

    References
    ----------
    Nichols & Holmes (2002), doi:10.1002/hbm.1058.
    """
    p = compute_p_values(scores, null)
    return Significance(p, adjust_fdr(p), compute_p_values(scores, highest) if len(highest) else None)


def weigh_layers(r: Array, chance: Array, highest: Array) -> Significance:
    """Test each layer by itself: `weigh_scores` of scores, null and highest with a row a layer."""
    maps = [weigh_scores(*layer) for layer in zip(r, chance, highest, strict=True)]
    p_fwe = [each.p_fwe for each in maps if each.p_fwe is not None]
    return Significance(
        np.stack([each.p_value for each in maps]),
        np.stack([each.q_value for each in maps]),
        np.stack(p_fwe) if p_fwe else None,
    )


def choose_best_layer(r: Array, null: Array, highest: Array) -> tuple[Array, Significance]:
    """Choose the layer that predicts each voxel best, where the best is better than chance.

    The highest score over layers is compared with the highest scores of voxels whose stimuli were permuted, so that
    the choice among layers, and all that folds and penalties do to the scores, is in the null distribution as well.

    Parameters
    ----------
    r : array of shape (n_layers, n_voxels)
        Scores; NaN never wins.
    null : array of shape (n_layers, n_null)
        Scores of permuted voxels.
    highest : array of shape (n_layers, n_permutations)
        Highest score over all voxels, in each permutation.

    Returns
    -------
    best : array of int, shape (n_voxels,)
        From 1; 0 where no layer is significant at a false discovery rate of 5 % over voxels.
    significance : Significance
        Of the highest score over layers, (n_voxels,).
    """
    comparable = np.where(np.isnan(r), -np.inf, r)
    top = comparable.max(axis=0)
    significance = weigh_scores(np.where(np.isinf(top), np.nan, top), null.max(axis=0), highest.max(axis=0))
    found = significance.q_value < FDR_LEVEL
    return np.where(found, comparable.argmax(axis=0) + 1, 0), significance
