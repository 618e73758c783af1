r"""The noise that response patterns have in common across voxels, from how single trials of a stimulus differ.

.. math:: \Sigma = \lambda \, \mathrm{diag}(S) + (1 - \lambda) S,

shrunk by as much as its estimate is uncertain (Schäfer & Strimmer 2005, doi:10.2202/1544-6115.1175). Nothing of the
size voxels x voxels is made unless there are more trials than voxels: with standardised residuals
:math:`R = U L^{1/2} A^\top`, all that is done with :math:`\Sigma^{-1}` is done along the axes :math:`A`, and is a
division by :math:`\lambda` elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dnnbrain_app.errors import BadDataError
from dnnbrain_app.records import Array


@dataclass(frozen=True, slots=True, eq=False)
class Noise:
    """Shrunk covariance of the noise of voxels.

    Parameters
    ----------
    sd : array of shape (n_voxels,)
        Standard deviations.
    axes : array of shape (n_voxels, k)
        Orthonormal axes of the standardised residuals.
    energy : array of shape (k,)
        Sum of squares of the residuals along each.
    shrinkage : float
        Lambda, from 0 to 1.
    dof : int
        Degrees of freedom of the residuals.
    """

    sd: Array
    axes: Array
    energy: Array
    shrinkage: float
    dof: int

    def whiten(self, X: Array) -> Array:
        """Multiply patterns (n, n_voxels) by the inverse square root of the covariance of the standardised noise."""
        outside = 1 / np.sqrt(self.shrinkage)
        Z = X / self.sd
        along = (Z @ self.axes) * (self.invert(self.dof) ** 0.5 - outside)
        return np.asarray(Z * outside + along @ self.axes.T)

    def invert(self, dof: int) -> Array:
        """Return the inverse variance along each axis (k,), were the residuals of so many degrees of freedom."""
        return np.asarray(1 / (self.shrinkage + (1 - self.shrinkage) * self.energy / dof))


def estimate_noise(residuals: Array) -> Noise:
    """Estimate the noise covariance from independent residuals.

    Parameters
    ----------
    residuals : array of shape (dof, n_voxels)
        Of mean 0, e.g. from `contrast_trials`; no voxel may be 0 in all.

    Raises
    ------
    BadDataError
        Fewer than two residuals, or a voxel without noise.
    """
    dof = len(residuals)
    if dof < 2:
        raise BadDataError(f"{dof} difference(s) between repeats of stimuli; noise covariances need at least 2")
    sd = np.sqrt(np.square(residuals).mean(axis=0))
    if not sd.all():
        raise BadDataError(f"{(sd == 0).sum()} voxel(s) respond the same to all repeats, so that they have no noise")
    R = residuals / sd
    gram = R @ R.T if dof < R.shape[1] else R.T @ R
    energy, vectors = np.linalg.eigh(gram)
    keep = energy > 1e-9 * energy[-1]
    energy, vectors = energy[keep], vectors[:, keep]
    axes = R.T @ vectors / np.sqrt(energy) if dof < R.shape[1] else vectors
    return Noise(sd, axes, energy, _choose_shrinkage(R, energy), dof)


def _choose_shrinkage(R: Array, energy: Array) -> float:
    """Divide the variance of the correlations between voxels, as estimated, by their sum of squares."""
    dof, n_voxels = R.shape
    squares = np.square(R)
    correlations = (energy**2).sum() - dof**2 * n_voxels  # over all pairs of voxels, times dof^2
    products = (squares.sum(axis=1) ** 2).sum() - (squares**2).sum()  # sums of squared products, likewise
    if correlations <= 0:
        return 1.0
    return float(np.clip((products * dof - correlations) / (dof - 1) / correlations, 1e-6, 1))


def contrast_trials(Y: Array, stimulus: Array) -> Array:
    """Return independent differences between the trials of each stimulus: what is noise.

    Parameters
    ----------
    Y : array of shape (n_trials, n_voxels)
        Responses, those to a stimulus next to each other.
    stimulus : array of int, shape (n_trials,)
        Rising.

    Returns
    -------
    array of shape (n_trials - n_stimuli, n_voxels)
        Of the variance of a trial's noise: Helmert contrasts, each trial minus the mean of those before it.
    """
    first = np.searchsorted(stimulus, stimulus)
    before = np.arange(len(Y)) - first
    sums = np.cumsum(Y, axis=0, dtype=np.float64)
    rows = np.flatnonzero(before)
    earlier = sums[rows - 1] - sums[first[rows]] + Y[first[rows]]
    k = before[rows][:, None]
    return np.asarray((Y[rows] - earlier / k) * np.sqrt(k / (k + 1)))
