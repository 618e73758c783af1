"""A run as a joint model of its trials sees it: white, without nuisance, with the designs of several HRFs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from dnnbrain_app.records import Array, Trials
from dnnbrain_app.responses.design import convolve_events
from dnnbrain_app.responses.hrfs import build_library
from dnnbrain_app.responses.noise import BINS, BLOCK, whiten
from dnnbrain_app.responses.options import ResponseOptions
from dnnbrain_app.responses.runs import RunData, Series, project_out, read_runs
from dnnbrain_app.responses.single_trials import estimate_rho


class FilteredRun:
    """The data of a run and the designs of its trials, filtered and with the nuisance projected out of both.

    Noise model ``ar1``: all voxels have the median voxel's autocorrelation, so that they share their designs.

    Parameters
    ----------
    label : str
        The run.
    run : RunData
        Its data.
    trials : Trials
        Its trials.
    options : ResponseOptions
        ``hrf``, ``noise_model`` and ``scaling``.
    rho : float, optional
        The autocorrelation, where it is known already.

    Attributes
    ----------
    rho : float
        Autocorrelation of the noise.
    frame_times : array of shape (n_frames,)
        Of the run.
    designs : list of array of shape (n_frames, n_trials)
        One for each response of `build_library`.
    energy : array of shape (n_trials,)
        What the nuisance leaves of each trial's regressor (of the assumed response, not filtered).
    Q : array of shape (n_frames, n_regressors)
        Orthonormal basis of the filtered nuisance.
    """

    def __init__(
        self, label: str, run: RunData, trials: Trials, options: ResponseOptions, rho: float | None = None
    ) -> None:
        self.label, self.frame_times, self.n_voxels = label, run.frame_times, run.bold.shape[1]
        self._series = Series(run.bold, options.scaling, label)
        events = trials.onset, trials.duration, run.frame_times
        designs = [convolve_events(*events, kernel) for kernel in build_library(options.hrf)]
        Q = np.linalg.qr(run.nuisance)[0]
        self.energy = np.square(project_out(Q, designs[0])).sum(axis=0)
        if rho is None:
            rho = 0.0
            if options.noise_model == "ar1":
                every = estimate_rho(self._series, Q, designs[0], trials.stimulus)
                rho = max(0.0, float(np.trunc(np.nanmedian(every) * BINS)) / BINS)
        self.rho = rho
        self.Q = np.linalg.qr(whiten(run.nuisance, rho))[0]
        self.designs = [project_out(self.Q, whiten(design, rho)) for design in designs]

    @property
    def n_free(self) -> int:
        """Degrees of freedom that nuisance and trials leave."""
        n_frames, n_regressors = self.Q.shape
        free: int = n_frames - n_regressors - self.designs[0].shape[1]
        return free

    def read(self, voxels: Array | None = None) -> Iterator[tuple[Array, Array]]:
        """Read the data of some voxels, or all, in blocks: their indices (n,), and values (n_frames, n) in float64."""
        wanted = np.arange(self.n_voxels) if voxels is None else voxels
        for start in range(0, len(wanted), BLOCK):
            block = wanted[start : start + BLOCK]
            yield block, project_out(self.Q, whiten(self._series.take(block), self.rho))


def read_filtered(
    runs: Iterable[RunData], trials: Trials, options: ResponseOptions, rho: Sequence[float] = ()
) -> Iterator[tuple[Array, FilteredRun]]:
    """Read run by run; a caller that lets go of each keeps one in memory.

    Parameters
    ----------
    runs, trials, options
        As in `estimate_glmsingle`.
    rho : sequence of float
        Autocorrelation of each run, if it is known.

    Yields
    ------
    rows : array of int
        The trials of the run.
    run : FilteredRun
        Its data, with those trials.
    """
    for index, label, data in read_runs(runs, trials):
        rows = np.flatnonzero(trials.run == index)
        run = FilteredRun(label, data, trials.take(rows), options, rho[index] if rho else None)
        del data
        yield rows, run
        del run
