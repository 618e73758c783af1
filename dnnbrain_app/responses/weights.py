"""Weights that turn the time series of a run into one beta a trial: least squares, separate (LSS) or all (LSA)."""

from __future__ import annotations

import numpy as np

from dnnbrain_app.records import Array
from dnnbrain_app.responses.ridge import decompose
from dnnbrain_app.responses.runs import project_out

OFTEN = 8  # trials of a stimulus in a run from which on they have a regressor of their own in models of other trials


def group_trials(stimulus: Array) -> Array:
    """Divide the trials of a run into those of each stimulus that is shown often, and all others.

    In a model of one trial, the other trials of a group share a regressor. One regressor for all takes their responses
    for equal, so that the beta of a trial has a part of what was shown around it. Where a run shows few stimuli many
    times, as a localizer does, a regressor for each avoids that and costs little (as in nilearn's example of beta
    series, in which other trials keep their conditions).

    Parameters
    ----------
    stimulus : array of shape (n_trials,)
        Shown in each trial of a run.

    Returns
    -------
    array of int, shape (n_trials,)
        Number of the trial's group, from 0 on.

    Examples
    --------
    >>> group_trials(np.array(["house"] * 8 + ["face"] * 9 + ["cat", "dog"]))
    array([2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0])
    """
    _, index, counts = np.unique(stimulus, return_inverse=True, return_counts=True)
    groups: Array = np.unique(np.where(counts[index] < OFTEN, -1, index), return_inverse=True)[1]
    return groups


def sum_groups(design: Array, groups: Array) -> Array:
    """Sum the columns (n_frames, n_trials) of each group: (n_frames, n_groups)."""
    sums: Array = design @ (groups[:, np.newaxis] == np.arange(groups.max(initial=-1) + 1))
    return sums


def weigh_separately(design: Array, nuisance: Array, groups: Array) -> tuple[Array, Array]:
    r"""Weights whose product with the time series is the LSS betas, :math:`w_i = r_i / r_i^\top r_i`.

    Parameters
    ----------
    design : array of shape (n_frames, n_trials)
        One column a trial.
    nuisance : array of shape (n_frames, n_regressors)
        Of full column rank.
    groups : array of int, shape (n_trials,)
        From `group_trials`: the other trials of each group share a regressor.

    Returns
    -------
    weights : array of shape (n_trials, n_frames)
        float64; not to be used where `energy` is nil.
    energy : array of shape (n_trials,)
        :math:`r_i^\top r_i`, what each regressor has that neither the nuisance nor the other trials have.
    """
    X = project_out(np.linalg.qr(nuisance)[0], design)
    sums = sum_groups(X, groups)
    for group in range(sums.shape[1]):
        rows = groups == group
        x = project_out(decompose(np.delete(sums, group, axis=1))[0], X[:, rows])
        others = x.sum(axis=1, keepdims=True) - x
        shared = np.einsum("ti,ti->i", x, others)
        energy = np.einsum("ti,ti->i", others, others)
        # a single trial, or others that the nuisance explains: there is nothing to share
        slope = np.divide(shared, energy, out=np.zeros_like(shared), where=energy > np.finfo(float).tiny)
        X[:, rows] = x - slope * others
    energy = np.einsum("ti,ti->i", X, X)
    weights = np.divide(X, energy, out=np.zeros_like(X), where=energy > 0)
    return weights.T, energy


def weigh_jointly(design: Array, nuisance: Array) -> Array:
    r"""Weights whose product with the time series is the LSA betas, :math:`W = (X^\top X)^{-1} X^\top`.

    Parameters
    ----------
    design, nuisance
        As in `weigh_separately`; of full column rank together.

    Returns
    -------
    array of shape (n_trials, n_frames)
        float64.
    """
    X = project_out(np.linalg.qr(nuisance)[0], design)
    weights: Array = np.linalg.solve(X.T @ X, X.T)
    return weights
