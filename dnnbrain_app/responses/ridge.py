"""Fractional ridge regression: penalties by how much they shorten the ordinary solution."""

from __future__ import annotations

import numpy as np

from dnnbrain_app.records import Array

PENALTIES = 25  # a decade: interpolating between them gives the fraction to 2e-4
DEGENERATE = 1e-6  # singular value, of the largest, below which data say nothing
EXACT = 1e-3  # penalty, of the smallest squared singular value, that changes nothing


def decompose(X: Array) -> tuple[Array, Array, Array]:
    r"""Decompose a design, :math:`X = U S V^\top`; directions that it hardly has count as not there.

    Parameters
    ----------
    X : array of shape (n_frames, n)
        Design, with as many frames as regressors at least.

    Returns
    -------
    U : array of shape (n_frames, n)
        Left singular vectors; 0 for what counts as not there, so that no data come through.
    s : array of shape (n,)
        Singular values, all positive.
    Vt : array of shape (n, n)
        Right singular vectors, in rows.
    """
    U, s, Vt = np.linalg.svd(X, full_matrices=False)
    absent = s <= DEGENERATE * s.max(initial=0.0)
    U[:, absent] = 0
    s[absent] = s.max(initial=0.0) or 1.0
    return U, s, Vt


def find_penalties(s: Array, Z: Array, fractions: Array) -> Array:
    r"""Find the ridge penalties that shorten the solution to given fractions of its length.

    With the design's singular value decomposition :math:`X = U S V^\top` and :math:`z = U^\top y`, the ridge solution
    is :math:`V \hat c(\alpha)`, and its length falls with the penalty:

    .. math:: \hat c_i(\alpha) = \frac{s_i z_i}{s_i^2 + \alpha}, \quad
              \gamma = \frac{\lVert \hat c(\alpha) \rVert}{\lVert \hat c(0) \rVert}

    Lengths on a grid of penalties are one matrix product for all voxels; :math:`\log \alpha` is interpolated.

    Parameters
    ----------
    s : array of shape (n,)
        Singular values, positive.
    Z : array of shape (n, n_voxels)
        Data in the basis of the left singular vectors.
    fractions : array of shape (n_fractions,)
        :math:`\gamma`, above 0 and at most 1.

    Returns
    -------
    array of shape (n_fractions, n_voxels)
        :math:`\alpha`; 0 for fraction 1. NaN where the data are, or are all 0.

    References
    ----------
    Rokem & Kay (2020), doi:10.1093/gigascience/giaa133.
    """
    lowest, highest = EXACT * s.min() ** 2, s.max() ** 2 / fractions.min()
    grid = np.geomspace(lowest, highest, 2 + int(PENALTIES * np.log10(highest / lowest)))
    squares = np.square(Z, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        lengths = np.sqrt(np.square(s / (s**2 + grid[:, np.newaxis])) @ squares / (s**-2 @ squares))
    penalties = np.zeros((len(fractions), Z.shape[1]))
    for i in np.flatnonzero(fractions < 1):
        above = np.clip((lengths > fractions[i]).sum(axis=0, keepdims=True), 1, len(grid) - 1) - 1
        left, right = (np.take_along_axis(lengths, above + step, axis=0)[0] for step in (0, 1))
        share = (left - fractions[i]) / (left - right)
        penalties[i] = np.exp(np.log(grid[above[0]]) + share * np.log(grid[above[0] + 1] / grid[above[0]]))
    return penalties + np.where(np.isnan(lengths[0]), np.nan, 0)


def shrink(s: Array, Z: Array, penalties: Array) -> Array:
    r"""Solve ridge regressions, :math:`\hat c_i = s_i z_i / (s_i^2 + \alpha)`, in the right singular vectors' basis.

    Parameters
    ----------
    s, Z
        As in `find_penalties`.
    penalties : array of shape (n_voxels,)
        :math:`\alpha` of each voxel.

    Returns
    -------
    array of shape (n, n_voxels)
    """
    coefficients: Array = s[:, np.newaxis] * Z / (np.square(s)[:, np.newaxis] + penalties)
    return coefficients
