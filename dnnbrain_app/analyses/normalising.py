r"""Scores relative to what the noise in the responses leaves to be predicted.

Of responses that are signal and noise, a perfect model explains the share :math:`c` that is signal, the noise ceiling:

.. math:: r_v^{norm} = \frac{r_v}{\sqrt{c_v}}, \qquad R_v^{2\,norm} = \frac{R_v^2}{c_v}

A ceiling is estimated, too, and dividing by one near 0 gives anything. So voxels whose ceiling is below a floor have no
normalised score. A ceiling that is too low by chance gives a score above 1; it stays, as to clip it would pull averages
down.
"""

from __future__ import annotations

import numpy as np

from dnnbrain_app.errors import UsageError
from dnnbrain_app.records import Array


def normalise_scores(r: Array, rsquared: Array, ceiling: Array, floor: float) -> tuple[Array, Array]:
    """Divide scores by the noise ceiling.

    Parameters
    ----------
    r, rsquared : array of shape (n_layers, n_voxels)
        Scores.
    ceiling : array of shape (n_voxels,)
        Explainable share of the variance of what was predicted: of averages over repeats, where these are modelled.
    floor : float
        Lowest ceiling to divide by, above 0.

    Returns
    -------
    r, rsquared : array of shape (n_layers, n_voxels)
        NaN where the ceiling is below the floor, or unknown.

    Raises
    ------
    UsageError
        The floor is not between 0 and 1.
    """
    share = _take_reliable(ceiling, floor)
    return r / np.sqrt(share), rsquared / share


def normalise_mean(r: Array, rsquared: Array, ceiling: Array, floor: float) -> tuple[Array, Array]:
    r"""Divide the mean scores of a region by its mean ceiling.

    .. math:: \frac{\sum_v r_v}{\sum_v \sqrt{c_v}}, \qquad \frac{\sum_v R_v^2}{\sum_v c_v}

    over voxels with a ceiling that reaches the floor. The error of a voxel's own ceiling does not enter by its inverse,
    so that the ratio is not biased as the mean of ratios is.

    Parameters
    ----------
    r, rsquared, ceiling, floor
        As for `normalise_scores`; the voxels of the region.

    Returns
    -------
    r, rsquared : array of shape (n_layers,)
        NaN where no voxel reaches the floor.
    """
    share = _take_reliable(ceiling, floor)
    used = np.isfinite(share) & np.isfinite(r).all(axis=0) & np.isfinite(rsquared).all(axis=0)
    if not used.any():
        return np.full(len(r), np.nan), np.full(len(r), np.nan)
    share = share[used]
    return r[:, used].sum(axis=1) / np.sqrt(share).sum(), rsquared[:, used].sum(axis=1) / share.sum()


def _take_reliable(ceiling: Array, floor: float) -> Array:
    if not 0 < floor < 1:
        raise UsageError(f"encoding.ceiling_floor is {floor}; a share of the variance between 0 and 1 is needed")
    return np.where(ceiling >= floor, ceiling, np.nan)
