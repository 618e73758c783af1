"""Which scores are more than chance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import false_discovery_control, norm

from dnnbrain_app.records import Array

FDR_LEVEL = 0.05


def compute_p_values(r: Array, fold_sizes: Sequence[int]) -> Array:
    r"""Test the mean over folds of held-out correlations against 0, one-sided.

    Under the null hypothesis (responses exchangeable over stimuli) a correlation over :math:`m_k` held-out stimuli has
    the variance :math:`1 / (m_k - 1)`, whatever the distribution. But the correlations of two folds are not
    independent: the prediction of fold *k* is made from the responses of fold *j*, and the other way round, so
    :math:`r_k` and :math:`r_j` share the term :math:`y_k^\top H_{kj} y_j`. The variances
    of these terms sum to that of :math:`r_k`, and the covariance of a term with its mirror image is at most the mean
    of their two variances. Over all pairs of folds this adds at most the variance of independent folds once more, and
    does so for a strong penalty, which is what GCV chooses for noise:

    .. math:: Var\left(\frac1K \sum_k r_k\right) \le \frac{2}{K^2} \sum_k \frac{1}{m_k - 1}.

    The bound is used, with a normal distribution; tests show by simulation that it holds the level and that the naive
    formula, without the 2, does not.

    Parameters
    ----------
    r : array
        Mean correlation; NaN gives NaN.
    fold_sizes : sequence of int
        Number of held-out stimuli of each fold.

    Returns
    -------
    array
        P values, of r's shape.
    """
    sizes = np.asarray(fold_sizes)
    deviation = np.sqrt(2 * np.sum(1 / (sizes - 1))) / len(sizes)
    return np.asarray(norm.sf(r / deviation))


def control_fdr(p: Array, level: float = FDR_LEVEL) -> Array:
    """Say which p values are significant at a false discovery rate (Benjamini & Hochberg 1995).

    Parameters
    ----------
    p : array of shape (n,)
        P values; NaN is never significant and does not count as a test.
    level : float
        False discovery rate.

    Returns
    -------
    array of bool, shape (n,)
    """
    significant = np.isfinite(p)
    if significant.any():
        significant[significant] = false_discovery_control(p[significant]) < level
    return significant


def choose_best_layer(r: Array, fold_sizes: Sequence[int]) -> Array:
    """Choose the layer that predicts each voxel best, where the best is better than chance.

    The p value of the highest r is corrected for the number of layers (Bonferroni), then for the number of voxels
    (false discovery rate).

    Parameters
    ----------
    r : array of shape (n_layers, n_voxels)
        Scores; NaN never wins.
    fold_sizes : sequence of int
        Number of held-out stimuli of each fold.

    Returns
    -------
    array of int, shape (n_voxels,)
        From 1; 0 where no layer is significant.
    """
    comparable = np.where(np.isnan(r), -np.inf, r)
    best = comparable.argmax(axis=0)
    highest = comparable.max(axis=0)
    p = np.minimum(compute_p_values(np.where(np.isinf(highest), np.nan, highest), fold_sizes) * len(r), 1)
    return np.where(control_fdr(p), best + 1, 0)
