"""General linear models that turn time series into one response a trial, or one a stimulus."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from dnnbrain_app.errors import BadDataError
from dnnbrain_app.records import Array, Trials
from dnnbrain_app.responses.design import build_design
from dnnbrain_app.responses.noise import (
    BLOCK,
    NormalEquations,
    bin_voxels,
    estimate_autocorrelation,
    whiten,
    whiten_weights,
)
from dnnbrain_app.responses.options import ResponseOptions

logger = logging.getLogger(__name__)

ESTIMABLE = 0.01  # share of a response's energy that must be its own; less means a standard error ten times the usual
COLLINEAR = 1e-8  # eigenvalue of the regressors' correlation matrix below which one follows from the others
LOWEST_MEAN = 3.0  # of the median voxel, in standard deviations: a BOLD signal has 20 to 200, demeaned data 0
RESPONSE_LENGTH = 32.0  # seconds, of nilearn's HRFs


@dataclass(frozen=True, slots=True, eq=False)
class RunData:
    """The numbers of one run.

    Parameters
    ----------
    bold : array of shape (n_frames, n_voxels)
        Time series.
    frame_times : array of shape (n_frames,)
        Time that each volume represents, seconds on the clock of the trials' onsets.
    nuisance : array of shape (n_frames, n_regressors)
        Regressors of no interest; of full column rank, with the constant in their span.
    """

    bold: Array
    frame_times: Array
    nuisance: Array

    def __post_init__(self) -> None:
        if not len(self.bold) == len(self.frame_times) == len(self.nuisance):
            raise BadDataError(
                f"a run of {len(self.bold)} volumes with {len(self.frame_times)} frame times "
                f"and {len(self.nuisance)} rows of nuisance regressors"
            )


def estimate_betas(runs: Iterable[RunData], trials: Trials, options: ResponseOptions) -> tuple[Array, Trials]:
    r"""Estimate the response of every voxel to every trial, or to every stimulus.

    ``lss`` (least squares, separate; Mumford et al. 2012): trial :math:`i` has a model of its own, with one regressor
    for it, one for all other trials of the run, and the nuisance. By the Frisch-Waugh-Lovell theorem the nuisance
    :math:`N = QR` is projected out once, :math:`\tilde X = (I - QQ^\top) X`, and what remains is

    .. math:: \hat\beta_i = \frac{r_i^\top y}{r_i^\top r_i}, \quad
              r_i = \tilde x_i - \frac{\tilde x_i^\top o_i}{o_i^\top o_i} o_i, \quad o_i = \sum_{j \ne i} \tilde x_j

    so that a run's betas are one product :math:`W Y`.

    ``condition``: one regressor a stimulus over all runs, each run with its own nuisance:
    :math:`\hat\beta = (\sum_r \tilde X_r^\top \tilde X_r)^{-1} \sum_r \tilde X_r^\top Y_r`.

    Noise model ``ar1`` fits the same models to data, design and nuisance that were filtered with the voxel's
    coefficient, :math:`x_t - \rho x_{t-1}` (`whiten`; generalised least squares for first-order autoregressive noise):

    .. math:: \hat\rho = \frac{\sum_{t \ge 2} e_t e_{t-1} / (T - 1)}{\sum_t e_t^2 / T}

    of ordinary residuals :math:`e`, cut to 1/100 as in nilearn; below 0, no filter. ``lss``: one coefficient a voxel
    and run, from the model with all trials in one regressor, as each trial's own model nearly is: with a regressor a
    trial the residuals have lost the slow noise (92 trials in 190 volumes, true 0.35: -0.44, against 0.26).
    ``condition``: one coefficient a voxel, from the residuals of its model over all runs (sums over runs; for a single
    run, that of nilearn's ``run_glm``). The fewer repeats a stimulus has, the more this is too low: towards OLS.

    Parameters
    ----------
    runs : iterable of RunData
        In the order of ``trials.run_labels``; taken one at a time and let go, so a generator keeps one in memory.
    trials : Trials
        All trials of all runs.
    options : ResponseOptions
        ``model``, ``hrf``, ``noise_model`` and ``scaling``.

    Returns
    -------
    betas : array of shape (n_rows, n_voxels)
        float32. With scaling ``zscore`` in standard deviations of the voxel over the run, with ``percent`` in percent
        of its mean, else in the data's units, for a response of unit integral (see `build_design`). A column is NaN
        where the voxel is constant or not finite in any run (or, for ``percent``, has no positive mean), and finite
        otherwise.
    trials : Trials
        What each row is. ``lss``: the trials, in their order, without those whose regressor keeps less than 1 % of the
        energy of such an event's response (mostly at the end of a run, or within spikes), of which a warning tells.
        ``condition``: the first trial of each stimulus, stimuli in sorted order.

    Raises
    ------
    BadDataError
        If runs and trials do not fit together; if the data were demeaned and scaling is ``percent``; if no trial, or
        with ``condition`` not every stimulus, can be estimated.

    References
    ----------
    Mumford et al. (2012), doi:10.1016/j.neuroimage.2011.08.076.
    """
    if len(trials) == 0:
        raise BadDataError("there are no trials whose responses could be estimated")
    runs = iter(runs)
    betas, rows = MODELS[options.model](runs, trials, options)
    if next(runs, None) is not None:
        raise BadDataError(f"trials of {len(trials.run_labels)} runs, but data of more")
    betas[:, np.isnan(betas.sum(axis=0))] = np.nan
    return betas, trials.take(rows)


def average_repeats(data: Array, trials: Trials, stimuli: Sequence[str]) -> Array:
    """Average the responses to the trials of each stimulus.

    Parameters
    ----------
    data : array of shape (n_trials, n_voxels)
        One row a trial; columns of NaN stay so.
    trials : Trials
        What each row is. Trials of other stimuli than those asked for are left out.
    stimuli : sequence of str
        The stimuli.

    Returns
    -------
    array of shape (n_stimuli, n_voxels)
        float32, rows in the order of `stimuli`.

    Raises
    ------
    BadDataError
        If a stimulus has no trial.
    """
    position = {name: i for i, name in enumerate(stimuli)}
    row = np.array([position.get(name, -1) for name in trials.stimulus], dtype=int)
    used = np.flatnonzero(row >= 0)
    counts = np.bincount(row[used], minlength=len(stimuli))
    if not counts.all():
        missing = [name for name, count in zip(stimuli, counts, strict=True) if count == 0]
        raise BadDataError(f"no response could be estimated for {_enumerate(missing)}: no trial shows it")
    weights = csr_array((1 / counts[row[used]], (row[used], used)), shape=(len(stimuli), len(trials)), dtype=np.float32)
    averages: Array = weights @ data.astype(np.float32, copy=False)
    return averages


def weigh_trials(design: Array, nuisance: Array) -> tuple[Array, Array]:
    r"""Weights whose product with the time series is the LSS betas, :math:`w_i = r_i / r_i^\top r_i`.

    Parameters
    ----------
    design : array of shape (n_frames, n_trials)
        One column a trial.
    nuisance : array of shape (n_frames, n_regressors)
        Of full column rank.

    Returns
    -------
    weights : array of shape (n_trials, n_frames)
        float64; not to be used where `energy` is nil.
    energy : array of shape (n_trials,)
        :math:`r_i^\top r_i`, what each regressor has that neither the nuisance nor the other trials have.
    """
    X = _project_out(np.linalg.qr(nuisance)[0], design)
    others = X.sum(axis=1, keepdims=True) - X
    shared = np.einsum("ti,ti->i", X, others)
    others_energy = np.einsum("ti,ti->i", others, others)
    # a single trial, or others that the nuisance explains: there is nothing to share
    slope = np.divide(shared, others_energy, out=np.zeros_like(shared), where=others_energy > np.finfo(float).tiny)
    X -= slope * others
    energy = np.einsum("ti,ti->i", X, X)
    weights = np.divide(X, energy, out=np.zeros_like(X), where=energy > 0)
    return weights.T, energy


def _estimate_lss(runs: Iterator[RunData], trials: Trials, options: ResponseOptions) -> tuple[Array, Array]:
    """Estimate one beta a trial; return with them the rows of the trials that have one."""
    betas = np.empty((0, 0), dtype=np.float32)
    kept = np.zeros(len(trials), dtype=bool)
    for index, label in enumerate(trials.run_labels):
        run = _take_run(runs, index, trials)
        rows = np.flatnonzero(trials.run == index)
        onset, duration = trials.onset[rows], trials.duration[rows]
        design = build_design(onset, duration, run.frame_times, options.hrf)
        energy = weigh_trials(design, run.nuisance)[1]
        estimable = energy > ESTIMABLE * _measure_energy(duration, run.frame_times, options.hrf)
        if not estimable.all():
            lost = [f"{trials.stimulus[i]} at {trials.onset[i]:g} s" for i in rows[~estimable]]
            logger.warning("%s: dropped, as the run holds too little of their response: %s", label, _enumerate(lost))
        if not betas.size:
            betas = np.empty((len(trials), run.bold.shape[1]), dtype=np.float32)
        betas[rows[estimable]] = _fit_trials(run, design, options, label)[estimable]
        kept[rows[estimable]] = True
        del run  # free before the next one is read
    if not kept.any():
        raise BadDataError(
            "no trial can be estimated: each lies outside its run, within spikes, or at the time of all others; "
            "check the onsets of the events against the lengths of the runs"
        )
    return (betas if kept.all() else betas[kept]), np.flatnonzero(kept)


def _estimate_condition(runs: Iterator[RunData], trials: Trials, options: ResponseOptions) -> tuple[Array, Array]:
    """Estimate one beta a stimulus over all runs; return with them the row of each stimulus's first trial."""
    stimuli, stimulus = np.unique(trials.stimulus, return_inverse=True)
    autocorrelated = options.noise_model == "ar1"
    whole = np.zeros(len(stimuli))
    for index, label in enumerate(trials.run_labels):
        run = _take_run(runs, index, trials)
        rows = np.flatnonzero(trials.run == index)
        events = build_design(trials.onset[rows], trials.duration[rows], run.frame_times, options.hrf)
        shows = stimulus[rows, np.newaxis] == np.arange(len(stimuli))
        if index == 0:
            n_voxels = run.bold.shape[1]
            equations = NormalEquations(len(stimuli), n_voxels, lagged=autocorrelated)
        series = _Series(run.bold, options.scaling, label)
        Q = np.linalg.qr(run.nuisance)[0]
        equations.add(_project_out(Q, events @ shows), Q, ((block, _project_out(Q, Y)) for block, Y in series))
        whole += _measure_energy(trials.duration[rows], run.frame_times, options.hrf) @ shows
        del run, series
    _require_estimable(equations.XX, whole, stimuli)
    rho = equations.estimate_autocorrelation() if autocorrelated else np.zeros(n_voxels)
    first = np.flatnonzero(trials.repeat == 0)
    return equations.solve(rho), first[np.argsort(trials.stimulus[first])]


MODELS = {"lss": _estimate_lss, "condition": _estimate_condition}


def _take_run(runs: Iterator[RunData], index: int, trials: Trials) -> RunData:
    """Take the next run, which the trials say there is."""
    run = next(runs, None)
    if run is None:
        raise BadDataError(f"trials of {len(trials.run_labels)} runs, but data of {index} only")
    return run


def _fit_trials(run: RunData, design: Array, options: ResponseOptions, label: str) -> Array:
    """Fit the separate models of a run's trials, with one matrix of weights a bin of voxels."""
    series = _Series(run.bold, options.scaling, label)
    rho = np.zeros(run.bold.shape[1])
    if options.noise_model == "ar1":
        rho = _estimate_rho(series, np.linalg.qr(run.nuisance)[0], design)
    betas = np.empty((design.shape[1], len(rho)), dtype=np.float32)
    for value, blocks in bin_voxels(rho):
        weights, _ = weigh_trials(whiten(design, value), whiten(run.nuisance, value))
        weights = whiten_weights(weights, value)
        for voxels in blocks:
            betas[:, voxels] = weights @ series.take(voxels)
    return betas


def _estimate_rho(series: _Series, Q: Array, design: Array) -> Array:
    """Estimate each voxel's autocorrelation from the residuals of a model with all trials in one regressor."""
    x = _project_out(Q, design.sum(axis=1, keepdims=True))
    # the nuisance may explain all of x, or a run have no trials
    basis = np.hstack([Q, x / max(np.linalg.norm(x), np.finfo(float).tiny)])
    return np.concatenate([estimate_autocorrelation(_project_out(basis, Y)) for _, Y in series])


def _project_out(Q: Array, X: Array) -> Array:
    """Subtract from each column what the orthonormal columns of Q explain of it."""
    residuals: Array = X - Q @ (Q.T @ X)
    return residuals


def _measure_energy(duration: Array, frame_times: Array, hrf: str) -> Array:
    """Sum the squares of the whole response to events of these durations, wherever in the run they are."""
    step = float(np.diff(frame_times).min())
    length = RESPONSE_LENGTH + duration.max(initial=0.0)
    whole = build_design(np.zeros(len(duration)), duration, np.arange(0.0, length + 2 * step, step), hrf)
    energy: Array = np.square(whole).sum(axis=0)
    return energy


def _require_estimable(XX: Array, whole: Array, stimuli: Array) -> None:
    """Refuse stimuli without a response of their own in the data."""
    energy = np.diag(XX)
    lost = stimuli[energy <= ESTIMABLE * whole]
    if lost.size:
        raise BadDataError(
            f"the runs hold too little of the response to {_enumerate(lost)}: its events lie outside the runs, "
            "or within volumes that spikes or drifts explain"
        )
    norms = np.sqrt(energy)
    eigenvalues, vectors = np.linalg.eigh(XX / np.outer(norms, norms))
    if eigenvalues[0] < COLLINEAR:
        share = np.abs(vectors[:, 0])
        raise BadDataError(
            f"responses to {_enumerate(stimuli[share > share.max() / 2])} cannot be told apart: they are always shown "
            "together, or there are more stimuli than the volumes can resolve; use responses.model = lss"
        )


class _Series:
    """Time series of a run, centred and scaled as they are read, in blocks; NaN where a voxel has no signal.

    Every model has the constant in its span, so that centring changes nothing but the rounding.
    """

    def __init__(self, bold: Array, scaling: str, label: str) -> None:
        self._bold = bold
        n_voxels = bold.shape[1]
        self._means, self._units = np.empty(n_voxels), np.ones(n_voxels)
        deviations = np.empty(n_voxels)
        for block in self._cut():
            Y = bold[:, block].astype(np.float64)
            with np.errstate(invalid="ignore"):  # infinite values become NaN
                self._means[block] = Y.mean(axis=0)
                Y -= self._means[block]
            deviations[block] = np.sqrt(np.einsum("tv,tv->v", Y, Y) / len(Y))
        has_signal = deviations > 1e-9 * np.abs(self._means)  # false for NaN
        if not has_signal.any():
            raise BadDataError(f"{label}: no voxel varies over time")
        if scaling == "percent":
            _require_means(np.abs(self._means[has_signal]) / deviations[has_signal], label)
            has_signal &= self._means > 0
            self._units = self._means / 100
        elif scaling == "zscore":
            self._units = deviations
        self._units[~has_signal] = np.nan

    def __iter__(self) -> Iterator[tuple[slice, Array]]:
        return ((block, self.take(block)) for block in self._cut())

    def take(self, voxels: Array | slice) -> Array:
        """Read some voxels (n_frames, n), float64."""
        Y = self._bold[:, voxels].astype(np.float64)
        with np.errstate(invalid="ignore"):
            Y -= self._means[voxels]
        Y /= self._units[voxels]
        return Y

    def _cut(self) -> Iterator[slice]:
        return (slice(start, start + BLOCK) for start in range(0, self._bold.shape[1], BLOCK))


def _require_means(ratios: Array, label: str) -> None:
    """Refuse percent of demeaned data; `ratios` are means in standard deviations."""
    ratio = float(np.median(ratios))
    if ratio < LOWEST_MEAN:
        raise BadDataError(
            f"{label}: the mean of the median voxel is {ratio:.2g} standard deviations, so these data were "
            'demeaned and have no percent signal change; set responses.scaling = "zscore"'
        )


def _enumerate(names: Sequence[str] | Array, limit: int = 10) -> str:
    """List the names, the first few of them if there are many."""
    return ", ".join(map(str, names[:limit])) + (f" and {len(names) - limit} more" if len(names) > limit else "")
