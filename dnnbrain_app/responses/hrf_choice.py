"""Each voxel's own HRF: that of a library under which its data are most likely."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from dnnbrain_app.records import Array, Trials
from dnnbrain_app.responses.filtered import FilteredRun, read_filtered
from dnnbrain_app.responses.noise import ROUNDING
from dnnbrain_app.responses.options import ResponseOptions
from dnnbrain_app.responses.runs import RunData
from dnnbrain_app.responses.single_trials import find_estimable, require_resolvable, require_trials

NOISES = np.array([0.1, 1.0, 10.0, 100.0])  # variance of noise over that of responses, for regressors of unit energy


@dataclass(frozen=True, slots=True, eq=False)
class HrfChoice:
    """What the first look at the data tells.

    Parameters
    ----------
    rows : array of int, shape (n_rows,)
        The trials that can be estimated.
    hrf : array of int, shape (n_voxels,)
        Which response of `build_library` each voxel has.
    fit : array of shape (n_voxels,)
        :math:`R^2` of a model with all trials of a run in one regressor, with that response; NaN without signal.
    rho : tuple of float
        Autocorrelation of the noise of each run.
    """

    rows: Array
    hrf: Array
    fit: Array
    rho: tuple[float, ...]


def choose_hrfs(runs: Iterable[RunData], trials: Trials, options: ResponseOptions) -> HrfChoice:
    r"""Choose each voxel's HRF by the likelihood of a model with random responses around their mean.

    With regressors :math:`X` of the trials of a run (nuisance projected out), their sum :math:`\bar x = X 1`, and
    :math:`X_\perp = U S V^\top` what :math:`\bar x` leaves of them,

    .. math:: y = \bar x \mu + X_\perp b + e, \quad b \sim N(0, \sigma^2 / \alpha), \quad e \sim N(0, \sigma^2)

    has, at the best :math:`\mu` of each run and :math:`\sigma^2` of all runs, the log-likelihood

    .. math:: -\frac{D}{2} \log \sum_r \Big( \lVert y \rVert^2 - \frac{(\bar x^\top y)^2}{\bar x^\top \bar x}
              - \sum_i \frac{s_i^2}{s_i^2 + \alpha} (u_i^\top y)^2 \Big)
              - \frac{1}{2} \sum_{r, i} \log\Big(1 + \frac{s_i^2}{\alpha}\Big)

    but for a constant, with :math:`D` the volumes less the regressors of no interest and of the mean. The best of four
    :math:`\alpha` counts. Where responses are weak, the :math:`R^2` of free responses, by which GLMsingle chooses,
    is mostly noise: the more trials, the more so.

    Parameters
    ----------
    runs, trials, options
        As in `estimate_glmsingle`.

    Returns
    -------
    HrfChoice

    Raises
    ------
    BadDataError
        If trials cannot be told apart, or none can be estimated.
    """
    kept = np.zeros(len(trials), dtype=bool)
    explained, means, energy, penalties, freedom = (np.zeros(1) for _ in range(5))
    rho = []
    for rows, run in read_filtered(runs, trials, options):
        own = trials.take(rows)
        estimable = find_estimable(run.energy, own, run.frame_times, options.hrf, run.label)
        require_resolvable(run.designs[0][:, estimable], own.take(estimable), run.label)
        kept[rows[estimable]] = True
        rho.append(run.rho)
        bases, weights, penalty = _decompose(run, estimable)
        parts = [_explain(bases, weights, Y) for _, Y in run.read()]
        explained, means, energy = (
            total + np.concatenate(part, axis=-1)
            for total, part in zip((explained, means, energy), zip(*parts, strict=True), strict=True)
        )
        penalties = penalties + penalty
        freedom = freedom + len(run.Q) - run.Q.shape[1] - 1
        del run
    require_trials(kept)
    left = np.maximum(1 - explained / energy, ROUNDING)
    likelihood = -(freedom * np.log(left) + penalties[..., np.newaxis]) / 2
    hrf = likelihood.max(axis=1).argmax(axis=0)
    fit = np.take_along_axis(means, hrf[np.newaxis], axis=0)[0] / energy
    return HrfChoice(np.flatnonzero(kept), hrf, fit, tuple(rho))


def _decompose(run: FilteredRun, estimable: Array) -> tuple[Array, Array, Array]:
    """Find for each HRF the directions of responses, what they count at each noise, and the cost of their freedom.

    Returns
    -------
    bases : array of shape (n_hrfs, 1 + n_trials, n_frames)
        Mean response, then deviations.
    weights : array of shape (n_hrfs, n_noises, 1 + n_trials)
    penalty : array of shape (n_hrfs, n_noises)
    """
    unit = np.square(run.designs[0][:, estimable]).sum() / max(1, np.count_nonzero(estimable))
    alphas = NOISES[:, np.newaxis] * max(unit, np.finfo(float).tiny)
    bases, weights, penalty = [], [], []
    for design in run.designs:
        X = design[:, estimable]
        x = X.sum(axis=1, keepdims=True)
        x /= max(np.linalg.norm(x), np.finfo(float).tiny)  # a run may have no trials
        U, s, _ = np.linalg.svd(X - x @ (x.T @ X), full_matrices=False)
        bases.append(np.hstack([x, U]).T)
        weights.append(np.hstack([np.ones_like(alphas), s**2 / (s**2 + alphas)]))
        penalty.append(np.log1p(s**2 / alphas).sum(axis=1))
    return np.array(bases, dtype=np.float32), np.array(weights, dtype=np.float32), np.array(penalty)


def _explain(bases: Array, weights: Array, Y: Array) -> tuple[Array, Array, Array]:
    """Sum the squares explained (n_hrfs, n_noises, n), those by the mean response (n_hrfs, n), and all (n,)."""
    n_hrfs, n_directions, n_frames = bases.shape
    shares = np.square(bases.reshape(-1, n_frames) @ Y.astype(np.float32)).reshape(n_hrfs, n_directions, -1)
    return weights @ shares, shares[:, 0], np.einsum("tv,tv->v", Y, Y)
