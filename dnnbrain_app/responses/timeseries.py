"""The runs themselves as what is predicted: features in time, without single responses (films, speech)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.sparse import block_diag, csr_array, vstack

from dnnbrain_app.errors import BadDataError
from dnnbrain_app.records import Array, Trials
from dnnbrain_app.responses.design import OVERSAMPLING, convolve_events
from dnnbrain_app.responses.hrfs import get_kernels, make_box
from dnnbrain_app.responses.options import ResponseOptions, check_options
from dnnbrain_app.responses.runs import RunData, Series, project_out, read_runs

FOLLOWS = 1e-6  # share of the regressors' norm that a direction of theirs must have on its own


@dataclass(frozen=True, slots=True, eq=False)
class TimeSeries:
    """Runs one after the other, and how features of stimuli become features of their volumes.

    Parameters
    ----------
    Y : array of shape (n_volumes, n_voxels)
        Data without nuisance, float32. A column is NaN where the voxel has no signal in some run.
    designs : tuple of sparse arrays of shape (n_volumes, n_stimuli)
        How much of each stimulus is in each volume: one for an HRF, one a delay for a finite impulse response.
    Q : sparse array of shape (n_volumes, n_regressors)
        Orthonormal basis of the nuisance of all runs, and of the response to any stimulus.
    run : array of int, shape (n_volumes,)
        Of each volume.
    """

    Y: Array
    designs: tuple[csr_array, ...]
    Q: csr_array
    run: Array


def build_timeseries(
    runs: Iterable[RunData], trials: Trials, stimuli: Sequence[str], options: ResponseOptions
) -> TimeSeries:
    r"""Prepare runs for a model that predicts their volumes from features of the stimuli.

    The nuisance is taken from both sides (Frisch-Waugh-Lovell): :math:`Y = M Y_{raw}`, :math:`M = I - Q Q^\top`, and
    features :math:`X` (n_stimuli, n_features) enter as :math:`X_t = M D X`. With an HRF, :math:`D` (n_volumes,
    n_stimuli) holds each stimulus's events, convolved with it. With ``fir`` there is a :math:`D_d` for each delay of
    0, 1, ... volumes within ``options.fir_length``, the share of a TR that a stimulus was shown, and :math:`X_t` has
    the features of all delays side by side. A frame of a film is a stimulus, with the onset and duration of the frame:
    volumes see the average of the frames of a TR.

    That something was shown at all, :math:`D_d 1`, is part of each run's nuisance. So features that are the same for
    all stimuli predict nothing, the mean of a feature over stimuli does not matter
    (:math:`M D (X - 1 m^\top) = M D X`), and scores tell what features add.

    Parameters
    ----------
    runs : iterable of RunData
        In the order of ``trials.run_labels``; taken one at a time.
    trials : Trials
        When each stimulus was shown.
    stimuli : sequence of str
        Those that have features, in the order of the features. Trials of others are left out.
    options : ResponseOptions
        ``hrf``, ``fir_length`` and ``scaling``; not ``noise_model``, as it is volumes that are predicted.

    Returns
    -------
    TimeSeries

    Raises
    ------
    UsageError
        If ``options.hrf`` has derivatives.
    BadDataError
        If runs and trials do not fit together, or no stimulus is ever shown.
    """
    check_options(options)
    position = {name: i for i, name in enumerate(stimuli)}
    column = np.array([position.get(name, -1) for name in trials.stimulus], dtype=int)
    volumes: list[Array] = []
    bases: list[Array] = []
    designs: list[list[csr_array]] = []
    for index, label, run in read_runs(runs, trials):
        shown = np.flatnonzero((trials.run == index) & (column >= 0))
        shows = csr_array((np.ones(len(shown)), (np.arange(len(shown)), column[shown])), (len(shown), len(stimuli)))
        events = trials.onset[shown], trials.duration[shown], run.frame_times
        events_in_time = list(convolve_trials(*events, options))
        designs.append([csr_array(csr_array(x) @ shows) for x in events_in_time])
        Q = _extend_basis(run.nuisance, np.column_stack([x.sum(axis=1) for x in events_in_time]))
        Y = np.empty(run.bold.shape, dtype=np.float32)
        for block, y in Series(run.bold, options.scaling, label):
            Y[:, block] = project_out(Q, y)
        volumes.append(Y)
        bases.append(Q)
        del run
    if not any(design.nnz for run_designs in designs for design in run_designs):
        raise BadDataError("no stimulus that has features is shown in any run; check the onsets of the events")
    lengths = [len(Q) for Q in bases]
    return TimeSeries(
        _stack(volumes),
        tuple(csr_array(vstack(parts)) for parts in zip(*designs, strict=True)),
        csr_array(block_diag(bases)),
        np.repeat(np.arange(len(lengths)), lengths),
    )


def convolve_features(X: Array, series: TimeSeries) -> Array:
    r"""Turn features of stimuli into features of volumes, :math:`X_t = M [D_0 X, D_1 X, ...]`.

    Parameters
    ----------
    X : array of shape (n_stimuli, n_features)
        Features.
    series : TimeSeries
        Of the same stimuli.

    Returns
    -------
    array of shape (n_volumes, n_designs * n_features)
        float64.
    """
    return project_out(series.Q, np.hstack([design @ X for design in series.designs]))


def convolve_gram(K: Array, series: TimeSeries) -> Array:
    r"""Turn inner products of stimuli into inner products of volumes, exactly.

    .. math:: K_t = X_t X_t^\top = M \Big( \sum_d D_d K D_d^\top \Big) M, \quad K = X X^\top

    Parameters
    ----------
    K : array of shape (n_stimuli, n_stimuli)
        Gram matrix of the features, whatever their number.
    series : TimeSeries
        Of the same stimuli.

    Returns
    -------
    array of shape (n_volumes, n_volumes)
        float64.
    """
    total = sum(design @ (design @ K).T for design in series.designs)
    return project_out(series.Q, project_out(series.Q, total).T)


def _extend_basis(nuisance: Array, more: Array) -> Array:
    """Make an orthonormal basis of the nuisance (n_frames, n) and of more regressors, which may follow from it."""
    Q = np.linalg.qr(nuisance)[0]
    U, s, _ = np.linalg.svd(project_out(Q, more), full_matrices=False)
    return np.hstack([Q, U[:, s > FOLLOWS * np.linalg.norm(more)]])


def convolve_trials(onset: Array, duration: Array, frame_times: Array, options: ResponseOptions) -> Iterator[Array]:
    """Convolve events with the HRF, or with a box for each delay, in which a volume lasts from its time to the next.

    Yields
    ------
    array of shape (n_frames, n_events)
        One for an HRF, one a delay for a finite impulse response.
    """
    if options.hrf != "fir":
        yield convolve_events(onset, duration, frame_times, get_kernels(options.hrf)[0])
        return
    n_delays = max(1, round(options.fir_length / float(np.diff(frame_times).min())))
    for delay in range(n_delays):
        yield convolve_events(onset, duration, frame_times, partial(make_box, delay), lead=OVERSAMPLING - 1)


def _stack(volumes: list[Array]) -> Array:
    """Concatenate, letting go of each part as it is copied: the pages of `whole` are taken as they are filled."""
    whole = np.empty((sum(map(len, volumes)), volumes[0].shape[1]), dtype=np.float32)
    end = len(whole)
    while volumes:
        part = volumes.pop()
        whole[end - len(part) : end] = part
        end -= len(part)
    lost: Array = np.isnan(whole.sum(axis=0))
    whole[:, lost] = np.nan
    return whole
