"""Repeats of a stimulus, as a test of how responses were estimated: betas of one run against those of others."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from scipy.sparse import csr_array

from dnnbrain_app.records import Array, Trials


class Repeats:
    """The pairs of trials that show the same stimulus in two runs: what is to be alike in them is the response.

    Trials of one run are no pair: they share the run's noise.

    Parameters
    ----------
    trials : Trials
        n_trials trials.
    """

    def __init__(self, trials: Trials) -> None:
        stimulus = np.unique(trials.stimulus, return_inverse=True)[1]
        within_run = np.unique([stimulus, trials.run], axis=1, return_inverse=True)[1]
        self._same, self._together = _indicate(stimulus), _indicate(within_run)
        self._counts = self.sum_partners(np.ones((len(trials), 1)))

    def __bool__(self) -> bool:
        return bool(self._counts.any())

    def sum_partners(self, betas: Array) -> Array:
        """Sum the betas (n_trials, n_voxels) of the trials that each trial is paired with."""
        total: Array = self._same.T @ (self._same @ betas) - self._together.T @ (self._together @ betas)
        return total

    def measure_errors(self, candidates: Iterable[Array], references: Array) -> Array:
        r"""Sum squared differences between the betas of a trial and the reference betas of its repeats.

        .. math:: \sum_{(i, j)} (b_i - r_j)^2 = \sum_i b_i \Big(m_i b_i - 2 \sum_{j \in P_i} r_j\Big) + \text{const}

        for :math:`m_i` partners :math:`P_i` of trial :math:`i`; the constant, which is the same for all candidates, is
        left out.

        Parameters
        ----------
        candidates : iterable of array of shape (n_trials, n_voxels)
            :math:`b`, of each candidate.
        references : array of shape (n_trials, n_voxels)
            :math:`r`.

        Returns
        -------
        array of shape (n_candidates, n_voxels)
        """
        twice = 2 * self.sum_partners(references)
        return np.array([np.einsum("iv,iv->v", b, self._counts * b - twice) for b in candidates])


def _indicate(groups: Array) -> csr_array:
    """Make the matrix (n_groups, n_trials) that is 1 where a trial is of a group."""
    return csr_array((np.ones(len(groups), dtype=np.float32), (groups, np.arange(len(groups)))))
