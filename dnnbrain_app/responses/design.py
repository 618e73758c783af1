"""The response that each event should evoke, sampled at the volumes."""

from __future__ import annotations

import numpy as np
from nilearn.glm.first_level import glover_hrf, spm_hrf

from dnnbrain_app.errors import BadDataError, UnknownNameError
from dnnbrain_app.records import Array

HRFS = {"glover": glover_hrf, "spm": spm_hrf}
OVERSAMPLING = 50  # samples a TR, and
HISTORY = 24.0  # seconds before the first volume that are modelled: both as in nilearn


def build_design(onset: Array, duration: Array, frame_times: Array, hrf: str) -> Array:
    r"""Convolve each event with a haemodynamic response function.

    .. math:: x_i(t) = \int h(u)\, [o_i \le t - u < o_i + d_i]\, du = H(t - o_i) - H(t - o_i - d_i), \quad H = \int h

    The boxcar of an event is a step up and a step down, so that all columns are one table of the step response
    :math:`H` read at other lags: no convolution, whatever the number of events. Columns of overlapping events add.
    The time grid is nilearn's, and columns equal those of ``nilearn.glm.first_level.compute_regressor``: the HRF has
    an integral of 1, and an event without duration lasts one sample (TR / 50).

    Parameters
    ----------
    onset, duration : array of shape (n_events,)
        Seconds; onsets on the clock of `frame_times`, and possibly negative.
    frame_times : array of shape (n_frames,)
        Time that each volume represents, in seconds, ascending.
    hrf : {'glover', 'spm'}
        Haemodynamic response function.

    Returns
    -------
    array of shape (n_frames, n_events)
        float64. A column is zero where an event begins after the last volume, or ends more than 24 s before the first.

    Raises
    ------
    UnknownNameError
        If there is no such HRF.
    BadDataError
        If there are fewer than two volumes.
    """
    if hrf not in HRFS:
        raise UnknownNameError("HRF", hrf, HRFS)
    n_frames = len(frame_times)
    if n_frames < 2:
        raise BadDataError(f"a run of {n_frames} volume(s) cannot be modelled; at least 2 are needed")
    first, last = frame_times[0], frame_times[-1]
    end = last * (1 + 1 / (n_frames - 1))
    # in nilearn's order of operations: rounding to another number of samples would move the whole grid
    n_samples = (n_frames - 1) / (last - first) * ((end - first + HISTORY) * OVERSAMPLING) + 1
    grid = np.linspace(first - HISTORY, end, int(np.rint(n_samples)))

    up = np.minimum(np.searchsorted(grid, onset), len(grid) - 1)
    down = np.minimum(np.searchsorted(grid, onset + duration), len(grid) - 1)
    down[(down == up) & (down < len(grid) - 1)] += 1
    down[onset + duration < grid[0]] = 0  # over before the grid begins, where its onset was clipped to

    step_response = np.concatenate([[0.0], np.cumsum(HRFS[hrf](float(np.diff(frame_times).min()), OVERSAMPLING))])
    lags = np.arange(-1, len(step_response) - 1)
    position = ((frame_times - grid[0]) / (grid[1] - grid[0]))[:, np.newaxis]
    design: Array = np.interp(position - up, lags, step_response) - np.interp(position - down, lags, step_response)
    return design
