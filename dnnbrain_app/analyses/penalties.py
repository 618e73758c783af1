r"""Which ridge penalty suits each voxel: generalised cross-validation over a grid.

With centred training features :math:`X` (n, p), responses :math:`Y` (n, V), the eigenvectors :math:`U` and eigenvalues
:math:`s` of :math:`X X^\top`, and :math:`Z = U^\top Y`,

.. math::

    GCV_v(\alpha) = \frac{\sum_i \left(\frac{\alpha}{s_i + \alpha}\right)^2 Z_{iv}^2 + \|y_v\|^2 - \|z_v\|^2}
                         {(n - dof(\alpha))^2},
    \qquad dof(\alpha) = 1 + \sum_i \frac{s_i}{s_i + \alpha}

(the 1 is the intercept; Golub, Heath & Wahba 1979). The last terms of the numerator are what lies outside the span of
the features, which no penalty explains; they vanish where U is complete. Where rows are volumes, whose noise has the
covariance :math:`R`, the denominator is :math:`(\sum_i \frac{\alpha}{s_i + \alpha} u_i^\top R u_i)^2` (Altman 1990):
that slow features explain slow noise is no sign of a good model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dnnbrain_app.records import Array

LEAST_RESIDUAL = (3, 0.05)  # degrees of freedom, and share of the training rows, that GCV needs to judge a penalty by


@dataclass(frozen=True, slots=True, eq=False)
class Penalties:
    """The penalties of a fold, and what GCV makes of a projected response.

    Parameters
    ----------
    grid : array of shape (n_grid,)
        Penalties, rising, in units of the mean eigenvalue.
    n_left_out : int
        How many of the smallest ones are left out, as they leave no residual to judge by.
    weights : array of shape (n_grid - n_left_out, k), float32
        What a squared projection adds to GCV.
    outside : array of shape (n_grid - n_left_out,), float32
        What the squared response outside the span of U adds to GCV.
    """

    grid: Array
    n_left_out: int
    weights: Array
    outside: Array

    def choose(self, energy: Array, remainder: Array | None = None) -> Array:
        """Choose the penalty of each voxel.

        Parameters
        ----------
        energy : array of shape (k, n_voxels), float32
            Squared projections on the eigenvectors.
        remainder : array of shape (n_voxels,), optional
            Squared response outside their span.

        Returns
        -------
        array of int, shape (n_voxels,)
            Place in the grid.
        """
        return self.judge(energy, remainder)[0]

    def judge(self, energy: Array, remainder: Array | None = None) -> tuple[Array, Array]:
        """Choose the penalty of each voxel, and return what GCV made of it, too: (n_voxels,), float32."""
        loss = self.weights @ energy
        if remainder is not None:
            loss += self.outside[:, None] * np.maximum(remainder, 0).astype(np.float32)
        choice = loss.argmin(axis=0)
        return choice + self.n_left_out, np.take_along_axis(loss, choice[None], axis=0)[0]

    def describe(self, choice: Array) -> Array:
        """Return the log of the chosen penalties, and whether they are the first or the last of the grid: (2, n)."""
        return np.stack([np.log(self.grid[choice]), (choice == 0) | (choice == len(self.grid) - 1)])


def weigh_penalties(s: Array, n_train: int, grid: Array, noise: Array | None = None) -> Penalties:
    r"""Prepare the choice of the penalty.

    Penalties that leave fewer residual degrees of freedom than three, or than 5 % of the training rows, are not
    considered. Where a model nearly interpolates, GCV rests on one or two numbers, calls the smallest penalty best by
    chance, and predictions explode.

    Parameters
    ----------
    s : array of shape (k,)
        Eigenvalues of the centred training kernel, k <= n_train.
    n_train : int
        Training rows.
    grid : array of shape (n_grid,)
        Penalties, positive and rising.
    noise : array of shape (n_train,), optional
        Variance of the noise along each eigenvector, :math:`u_i^\top R u_i`, of all of them. Default: white noise.

    References
    ----------
    Altman (1990), doi:10.1080/01621459.1990.10474936.
    """
    shrinkage = grid[:, None] / (s + grid[:, None])
    residual_dof = shrinkage.sum(axis=1) + n_train - len(s) - 1 if noise is None else shrinkage @ noise
    least = max(LEAST_RESIDUAL[0], LEAST_RESIDUAL[1] * n_train)
    n_left_out = min(int((residual_dof < least).sum()), len(grid) - 1)
    shrinkage, residual_dof = shrinkage[n_left_out:], residual_dof[n_left_out:]
    weights = ((shrinkage / residual_dof[:, None]) ** 2).astype(np.float32)
    return Penalties(grid, n_left_out, weights, (residual_dof**-2.0).astype(np.float32))
