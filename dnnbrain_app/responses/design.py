"""The response that each event should evoke, sampled at the volumes."""

from __future__ import annotations

import numpy as np

from dnnbrain_app.errors import BadDataError
from dnnbrain_app.records import Array
from dnnbrain_app.responses.hrfs import Kernel, get_kernels

OVERSAMPLING = 50  # samples a TR, and
HISTORY = 24.0  # seconds before the first volume that are modelled: both as in nilearn


def build_design(onset: Array, duration: Array, frame_times: Array, hrf: str) -> Array:
    r"""Convolve each event with a haemodynamic response function.

    Columns equal those of ``nilearn.glm.first_level.compute_regressor`` (but where volumes are unevenly spaced, as its
    responses are too long there): the HRF has an integral of 1, and an event without duration lasts one sample
    (TR / 50). Columns of overlapping events add.

    Parameters
    ----------
    onset, duration : array of shape (n_events,)
        Seconds; onsets on the clock of `frame_times`, and possibly negative.
    frame_times : array of shape (n_frames,)
        Time that each volume represents, in seconds, ascending.
    hrf : str
        A name of `HRFS`; of one with derivatives, the response without them.

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
    return convolve_events(onset, duration, frame_times, get_kernels(hrf)[0])


def build_derivatives(onset: Array, duration: Array, frame_times: Array, hrf: str, groups: Array) -> Array:
    r"""Convolve events with the derivatives of the response to its latency and width.

    The events of a group (all events of a stimulus, or a single event) share a regressor for each derivative, of
    which, as in nilearn, what the group's response :math:`x` and the derivatives before explain is subtracted. So the
    model's beta of :math:`x` takes all that :math:`x` can explain of a response that is early, late, narrow or wide.

    Parameters
    ----------
    onset, duration, frame_times, hrf
        As in `build_design`.
    groups : bool array of shape (n_events, n_groups)
        Which events share regressors.

    Returns
    -------
    array of shape (n_frames, n_groups * n_derivatives)
        float64; all groups of the first derivative, then of the second. No columns for an HRF without derivatives.
    """
    before = [build_design(onset, duration, frame_times, hrf) @ groups]
    for kernel in get_kernels(hrf)[1:]:
        x = convolve_events(onset, duration, frame_times, kernel) @ groups
        for other in before:  # orthogonal to each other already
            energy = np.einsum("tg,tg->g", other, other)
            x -= other * np.divide(np.einsum("tg,tg->g", other, x), energy, out=np.zeros_like(energy), where=energy > 0)
        before.append(x)
    return np.hstack([before[0][:, :0], *before[1:]])


def convolve_events(onset: Array, duration: Array, frame_times: Array, kernel: Kernel, *, lead: int = 0) -> Array:
    r"""Convolve each event with a response.

    .. math:: x_i(t) = \int h(u)\, [o_i \le t - u < o_i + d_i]\, du = H(t - o_i) - H(t - o_i - d_i), \quad H = \int h

    The boxcar of an event is a step up and a step down, so that all columns are one table of the step response
    :math:`H` read at other lags: no convolution, whatever the number of events. The time grid is nilearn's.

    Parameters
    ----------
    onset, duration, frame_times
        As in `build_design`.
    kernel : callable
        From a TR and the number of samples in it to the samples of the response.
    lead : int
        Samples (of a 50th of a TR) by which volumes look ahead.

    Returns
    -------
    array of shape (n_frames, n_events)
        float64.

    Raises
    ------
    BadDataError
        If there are fewer than two volumes.
    """
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

    mean_tr = float(last - first) / (n_frames - 1)  # of which a 50th is the grid's step; nilearn takes the least TR
    step_response = np.concatenate([[0.0], np.cumsum(kernel(mean_tr, OVERSAMPLING))])
    lags = np.arange(-1, len(step_response) - 1)
    position = ((frame_times - grid[0]) / (grid[1] - grid[0]) + lead)[:, np.newaxis]
    design: Array = np.interp(position - up, lags, step_response) - np.interp(position - down, lags, step_response)
    return design
