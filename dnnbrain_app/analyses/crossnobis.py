"""Distances between response patterns in units of their noise, and without the bias that noise gives to distances."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from dnnbrain_app.analyses.rdms import compute_rdm, find_voxels
from dnnbrain_app.analyses.whitening import Noise, contrast_trials, estimate_noise
from dnnbrain_app.errors import BadDataError
from dnnbrain_app.records import Array, Rdm


def compute_mahalanobis(Y: Array, stimulus: Array, items: Sequence[str], name: str) -> Rdm:
    r"""Compute the squared Mahalanobis distances between mean response patterns, per voxel.

    .. math:: d_{ij} = (\bar y_i - \bar y_j) \Sigma^{-1} (\bar y_i - \bar y_j)^\top / V

    Parameters
    ----------
    Y : array of shape (n_trials, n_voxels)
        Responses to single trials.
    stimulus : array of int, shape (n_trials,)
        Which item each trial showed.
    items : sequence of str, length n_items
        The stimuli, each of which some trial shows.
    name : str
        Name of the region.

    Returns
    -------
    Rdm

    Raises
    ------
    BadDataError
        An item without a trial, too few voxels with signal, or too few repeats to tell the noise.
    """
    Y, stimulus, noise, _ = _prepare_trials(Y, stimulus, items, name)
    starts = np.searchsorted(stimulus, np.arange(len(items)))
    means = np.add.reduceat(Y, starts, axis=0) / np.bincount(stimulus)[:, None]
    rdm = compute_rdm(noise.whiten(means), items, name, "sqeuclidean")
    return Rdm(name, rdm.dissimilarities, rdm.items, "mahalanobis")


def compute_crossnobis(Y: Array, stimulus: Array, run: Array, items: Sequence[str], name: str) -> Rdm:
    r"""Compute the cross-validated squared Mahalanobis distances between response patterns, per voxel.

    .. math::

        d_{ij} = \frac{k_{ii} + k_{jj} - 2 k_{ij}}{V}, \qquad
        k_{ij} = \operatorname{mean}_{a \ne b} \; y_{ia} \Sigma^{-1} y_{jb}^\top,

    over all pairs of two runs of which a showed i and b showed j; :math:`y_{ia}` is the mean response to i in run a.
    Noise of different runs is independent, so distances of stimuli that evoke the same pattern are 0 on average, and
    some are negative (Walther et al. 2016, doi:10.1016/j.neuroimage.2015.12.012).

    That is not so by itself where :math:`\Sigma` is estimated from the same trials. What the runs' responses to i
    differ by is in the residuals, so :math:`\Sigma^{-1}` makes it small; and the difference is what is subtracted:

    .. math:: k_{ii} = \bar y_i \Sigma^{-1} \bar y_i^\top - \frac{1}{n (n - 1)}
                       \sum_a (y_{ia} - \bar y_i) \Sigma^{-1} (y_{ia} - \bar y_i)^\top.

    With 4 runs of 92 stimuli and 200 voxels, noise alone would get distances of three times their standard deviation.
    The second term is therefore taken with the :math:`\Sigma` of the other stimuli's residuals, by way of a downdate.

    Parameters
    ----------
    Y : array of shape (n_trials, n_voxels)
        Responses to single trials.
    stimulus : array of int, shape (n_trials,)
        Which item each trial showed.
    run : array of int, shape (n_trials,)
        In which run; responses in two runs have independent noise.
    items : sequence of str, length n_items
        The stimuli.
    name : str
        Name of the region.

    Returns
    -------
    Rdm

    Raises
    ------
    BadDataError
        An item that fewer than two runs show, too few voxels with signal, or too few repeats to tell the noise.
    """
    require_runs(stimulus, run, items)
    Y, stimulus, noise, order = _prepare_trials(Y, stimulus, items, name)
    run = run[order]
    K = _cross_runs(noise.whiten(Y), stimulus, run)
    K[np.diag_indices(len(K))] += _correct_noise(Y / noise.sd @ noise.axes, stimulus, run, noise)
    rows, columns = np.triu_indices(len(K), 1)
    energy = K.diagonal()
    return Rdm(name, (energy[rows] + energy[columns] - 2 * K[rows, columns]) / Y.shape[1], tuple(items), "crossnobis")


def can_cross(stimulus: Array, run: Array, n_items: int) -> bool:
    """Whether two or more runs show each of the items: what crossnobis needs."""
    return bool((_count_runs(stimulus, run, n_items) > 1).all())


def require_runs(stimulus: Array, run: Array, items: Sequence[str]) -> None:
    """Refuse items that fewer than two runs show."""
    counts = _count_runs(stimulus, run, len(items))
    few = np.flatnonzero(counts < 2)
    if len(few):
        raise BadDataError(
            f"crossnobis distances need two runs of each stimulus; {items[few[0]]} is in {counts[few[0]]} "
            f"({len(few)} of {len(items)} stimuli are in fewer than 2); take the metric correlation"
        )


def _count_runs(stimulus: Array, run: Array, n_items: int) -> Array:
    shown = np.unique(np.column_stack([stimulus, run]), axis=0)
    return np.bincount(shown[:, 0], minlength=n_items)


def _prepare_trials(Y: Array, stimulus: Array, items: Sequence[str], name: str) -> tuple[Array, Array, Noise, Array]:
    """Sort trials by stimulus, leave out voxels without signal, subtract the mean pattern, estimate the noise."""
    counts = np.bincount(stimulus, minlength=len(items))
    for i in np.flatnonzero(counts == 0)[:1]:
        raise BadDataError(f"region {name}: no trial shows {items[i]}")
    order = np.argsort(stimulus, kind="stable")
    Y, stimulus = Y[order][:, find_voxels(Y, name)].astype(np.float64), stimulus[order]
    residuals = contrast_trials(Y, stimulus)
    varies = np.square(residuals).sum(axis=0) > 1e-12 * np.square(Y).sum(axis=0)
    if varies.sum() < 2:
        raise BadDataError(f"region {name}: {varies.sum()} voxel(s) with signal; a pattern needs at least 2")
    Y, residuals = Y[:, varies], residuals[:, varies]
    try:
        noise = estimate_noise(residuals)
    except BadDataError as error:
        raise BadDataError(f"region {name}: {error}") from None
    return Y - Y.mean(axis=0), stimulus, noise, order


def _average_runs(Y: Array, stimulus: Array, run: Array) -> tuple[Array, Array, Array]:
    """Return the mean responses to each stimulus in each run, by stimulus, and the stimulus and run of each."""
    pairs, cell = np.unique(np.column_stack([stimulus, run]), axis=0, return_inverse=True)
    order = np.argsort(cell, kind="stable")
    starts = np.searchsorted(cell[order], np.arange(len(pairs)))
    means = np.add.reduceat(Y[order], starts, axis=0) / np.bincount(cell)[:, None]
    return means, pairs[:, 0], pairs[:, 1]


def _cross_runs(Y: Array, stimulus: Array, run: Array) -> Array:
    """Average the products of responses to each two stimuli over pairs of different runs: (n_items, n_items)."""
    means, item, part = _average_runs(Y, stimulus, run)
    sums = np.add.reduceat(means, np.searchsorted(item, np.arange(item[-1] + 1)), axis=0)
    counts = np.bincount(item).astype(np.float64)
    K, n_pairs = sums @ sums.T, np.outer(counts, counts)
    for same in np.unique(part):
        place = np.ix_(item[part == same], item[part == same])
        K[place] -= means[part == same] @ means[part == same].T
        n_pairs[place] -= 1
    return np.asarray(K / n_pairs)


def _correct_noise(along: Array, stimulus: Array, run: Array, noise: Noise) -> Array:
    r"""Return by how much the energy of each stimulus changes when its own residuals are not in the covariance.

    `along` are the standardised responses along the noise's axes (n_trials, k), where all residuals lie. With the
    residuals of a stimulus :math:`E`, :math:`H = E \Sigma^{-1} E^\top`, and :math:`\Sigma_{-i} = \Sigma - c E^\top E`,

    .. math:: E \Sigma_{-i}^{-1} E^\top = H (I - c H)^{-1}.
    """
    corrections = np.zeros(stimulus[-1] + 1)
    with_own = noise.invert(noise.dof)
    edges = np.searchsorted(stimulus, np.arange(len(corrections) + 1))
    for i, (start, stop) in enumerate(pairwise(edges)):
        E = along[start:stop] - along[start:stop].mean(axis=0)
        dof = noise.dof - (len(E) - 1)
        c = (1 - noise.shrinkage) / dof
        H = (E * noise.invert(dof)) @ E.T
        excess = (E * with_own) @ E.T - H @ np.linalg.inv(np.eye(len(E)) - c * H)
        # from trials to the runs' means around their mean
        runs, cell = np.unique(run[start:stop], return_inverse=True)
        A = (cell == np.arange(len(runs))[:, None]) / np.bincount(cell)[:, None]
        A -= A.mean(axis=0)
        corrections[i] = np.einsum("at,tu,au->", A, excess, A) / (len(runs) * (len(runs) - 1))
    return corrections
