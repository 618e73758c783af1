r"""What neighbouring volumes have in common that no feature put there: first-order autoregressive noise.

Of noise whose correlation over :math:`k` volumes is :math:`\rho^k`, slow features explain more than their share by
chance. Generalised cross-validation, which counts on white noise, then takes a small penalty for a good one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.signal import lfilter
from scipy.sparse import csr_array

from dnnbrain_app.records import Array

SAMPLE = 5000  # voxels that tell the coefficient
HIGHEST = 0.95


@dataclass(frozen=True, slots=True, eq=False)
class SerialNoise:
    """Noise of volumes that follow one another in runs, without what nuisance regressors took from it.

    Parameters
    ----------
    run : array of shape (n_volumes,)
        The run of each volume.
    Q : sparse array of shape (n_volumes, n_regressors)
        Orthonormal basis of the nuisance.
    rho : float
        Correlation of neighbouring volumes of a run.
    kept : array of int, shape (n_rows,)
        The volumes that are modelled, rising.
    """

    run: Array
    Q: csr_array
    rho: float
    kept: Array

    def take(self, rows: Array) -> SerialNoise:
        """Return the noise of some of the rows."""
        return replace(self, kept=self.kept[rows])

    def measure(self, U: Array) -> Array:
        r"""Measure the variance of the noise along directions, :math:`u_i^\top M R M u_i`, :math:`M = I - Q Q^\top`.

        Parameters
        ----------
        U : array of shape (n_rows, k)
            Unit vectors.

        Returns
        -------
        array of shape (k,)
            1 where the noise is white, and 0 along nuisance.
        """
        variance = np.zeros(U.shape[1])
        for run in np.unique(self.run[self.kept]):
            volumes = np.flatnonzero(self.run == run)
            u = np.zeros((len(volumes), U.shape[1]))
            mine = self.run[self.kept] == run
            u[np.searchsorted(volumes, self.kept[mine])] = U[mine]
            Q = self.Q[volumes]
            u -= Q @ (Q.T @ u)
            memory = lfilter([1.0], [1.0, -self.rho], u, axis=0)  # what R adds to a volume from those before it
            variance += np.einsum("tk,tk->k", u, 2 * memory - u)
        return variance


def estimate_noise(Y: Array, run: Array, Q: csr_array) -> SerialNoise:
    r"""Estimate the coefficient that the median voxel has.

    .. math:: \hat\rho_v = \frac{\sum_t y_{tv} y_{t-1,v}}{\sum_t y_{tv}^2}

    Most voxels hold little of what is modelled, so that their volumes pass for noise.

    Parameters
    ----------
    Y : array of shape (n_volumes, n_voxels)
        Volumes without nuisance; NaN where there is no signal.
    run : array of shape (n_volumes,)
        The run of each.
    Q : sparse array of shape (n_volumes, n_regressors)
        Orthonormal basis of the nuisance.
    """
    some = Y[:, :: max(1, Y.shape[1] // SAMPLE)].astype(np.float64)
    follows = run[1:] == run[:-1]
    with np.errstate(invalid="ignore"):
        rho = np.einsum("tv,tv->v", some[1:][follows], some[:-1][follows]) / np.square(some).sum(axis=0)
    rho = rho[np.isfinite(rho)]
    median = float(np.clip(np.median(rho), 0, HIGHEST)) if len(rho) else 0.0
    return SerialNoise(run, csr_array(Q), median, np.arange(len(run)))
