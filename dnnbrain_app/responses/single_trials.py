"""One response a trial: a model for each trial (LSS), or a model with a regressor for each trial (LSA)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

import numpy as np

from dnnbrain_app.errors import BadDataError
from dnnbrain_app.records import Array, Trials
from dnnbrain_app.responses.design import build_derivatives, build_design
from dnnbrain_app.responses.estimability import ESTIMABLE, enumerate_names, measure_energy, require_separable
from dnnbrain_app.responses.noise import bin_voxels, estimate_autocorrelation, whiten, whiten_weights
from dnnbrain_app.responses.options import ResponseOptions
from dnnbrain_app.responses.ridge import decompose
from dnnbrain_app.responses.runs import RunData, Series, project_out, read_runs
from dnnbrain_app.responses.weights import group_trials, sum_groups, weigh_jointly, weigh_separately

logger = logging.getLogger(__name__)

INFLATED = 5.0  # standard error of a beta, of that without other trials, from which overlap is worth a warning

ADVICE = "use responses.model = lss, which tells such trials apart at the price of some bias"


def estimate_single_trials(runs: Iterable[RunData], trials: Trials, options: ResponseOptions) -> tuple[Array, Array]:
    """Estimate one beta a trial.

    Parameters
    ----------
    runs, trials, options
        As in `estimate_betas`; ``options.model`` is ``lss`` or ``lsa``.

    Returns
    -------
    betas : array of shape (n_rows, n_voxels)
        float32.
    rows : array of int, shape (n_rows,)
        The trials that have one.
    """
    fit = _fit_jointly if options.model == "lsa" else _fit_separately
    betas = np.empty((0, 0), dtype=np.float32)
    kept = np.zeros(len(trials), dtype=bool)
    for index, label, run in read_runs(runs, trials):
        rows = np.flatnonzero(trials.run == index)
        if not betas.size:
            betas = np.empty((len(trials), run.bold.shape[1]), dtype=np.float32)
        found, estimable = fit(run, trials.take(rows), options, label)
        betas[rows[estimable]] = found
        kept[rows[estimable]] = True
        del run
    require_trials(kept)
    return (betas if kept.all() else betas[kept]), np.flatnonzero(kept)


def find_estimable(energy: Array, trials: Trials, frame_times: Array, hrf: str, label: str) -> Array:
    """Find the trials whose regressors keep 1 % of the energy of the whole response; warn of the others.

    Parameters
    ----------
    energy : array of shape (n_trials,)
        What each regressor has left.
    trials : Trials
        Of the run.
    frame_times : array of shape (n_frames,)
        Seconds.
    hrf, label : str
        Names of the response and of the run.

    Returns
    -------
    bool array of shape (n_trials,)
    """
    estimable: Array = energy > ESTIMABLE * measure_energy(trials.duration, frame_times, hrf)
    if not estimable.all():
        lost = name_trials(trials.take(~estimable))
        logger.warning("%s: dropped, as the run holds too little of their response: %s", label, enumerate_names(lost))
    return estimable


def name_trials(trials: Trials) -> list[str]:
    """Name each trial by stimulus and onset."""
    return [f"{stimulus} at {onset:g} s" for stimulus, onset in zip(trials.stimulus, trials.onset, strict=True)]


def require_trials(kept: Array) -> None:
    """Refuse to go on without any trial.

    Raises
    ------
    BadDataError
        If none was kept.
    """
    if not kept.any():
        raise BadDataError(
            "no trial can be estimated: each lies outside its run, within spikes, or at the time of all others; "
            "check the onsets of the events against the lengths of the runs"
        )


def require_resolvable(X: Array, trials: Trials, label: str) -> Array:
    """Refuse trials that a model with a regressor for each cannot tell apart.

    Parameters
    ----------
    X : array of shape (n_frames, n_trials * n)
        Design, nuisance projected out: regressors of all trials, then derivatives of all trials, if any.
    trials : Trials
        What each column is.
    label : str
        The run.

    Returns
    -------
    array of shape (n_trials,)
        Standard error of each beta, of that of the trial alone.

    Raises
    ------
    BadDataError
        If regressors follow from one another.
    """
    names = [f"{name} of {label}" for name in name_trials(trials)]
    inflation = require_separable(X.T @ X, names * (X.shape[1] // max(1, len(names))), ADVICE)
    return inflation[: len(names)]


def _fit_separately(run: RunData, trials: Trials, options: ResponseOptions, label: str) -> tuple[Array, Array]:
    """Fit LSS models; return the betas of the trials that have one, and which have."""
    design = build_design(trials.onset, trials.duration, run.frame_times, options.hrf)
    groups = group_trials(trials.stimulus)
    energy = weigh_separately(design, run.nuisance, groups)[1]
    estimable = find_estimable(energy, trials, run.frame_times, options.hrf, label)

    def weigh(rho: float) -> Array:
        return weigh_separately(whiten(design, rho), whiten(run.nuisance, rho), groups)[0]

    return _apply_weights(weigh, run, design, trials, options, label)[estimable], estimable


def _fit_jointly(run: RunData, trials: Trials, options: ResponseOptions, label: str) -> tuple[Array, Array]:
    """Fit the LSA model; return as `_fit_separately` does."""
    Q = np.linalg.qr(run.nuisance)[0]
    design = build_design(trials.onset, trials.duration, run.frame_times, options.hrf)
    energy = np.square(project_out(Q, design)).sum(axis=0)
    estimable = find_estimable(energy, trials, run.frame_times, options.hrf, label)
    trials, design = trials.take(estimable), design[:, estimable]
    derivatives = build_derivatives(
        trials.onset, trials.duration, run.frame_times, options.hrf, np.eye(len(trials), dtype=bool)
    )
    n_regressors = design.shape[1] + derivatives.shape[1] + Q.shape[1]
    if n_regressors >= len(design):
        raise BadDataError(
            f"{label}: {len(trials)} trials need {n_regressors} regressors, which leave no degree of freedom in "
            f"{len(design)} volumes; {ADVICE}"
        )
    inflation = require_resolvable(project_out(Q, np.hstack([design, derivatives])), trials, label)
    if inflation.size and np.median(inflation) > INFLATED:
        logger.warning(
            "%s: responses to trials overlap so much that a model with a regressor for each gives standard errors "
            "%.2g times (median; at most %.2g) those of trials alone; %s",
            *(label, np.median(inflation), inflation.max(), ADVICE),
        )
    nuisance = np.hstack([run.nuisance, derivatives])

    def weigh(rho: float) -> Array:
        return weigh_jointly(whiten(design, rho), whiten(nuisance, rho))

    return _apply_weights(weigh, run, design, trials, options, label), estimable


def _apply_weights(
    weigh: Callable[[float], Array], run: RunData, design: Array, trials: Trials, options: ResponseOptions, label: str
) -> Array:
    """Multiply the time series by weights, one matrix a bin of voxels; `weigh` makes it for an autocorrelation."""
    series = Series(run.bold, options.scaling, label)
    rho = np.zeros(run.bold.shape[1])
    if options.noise_model == "ar1":
        rho = estimate_rho(series, np.linalg.qr(run.nuisance)[0], design, trials.stimulus)
    betas = np.empty((len(trials), len(rho)), dtype=np.float32)
    for value, blocks in bin_voxels(rho):
        weights = whiten_weights(weigh(value), value)
        for voxels in blocks:
            betas[:, voxels] = weights @ series.take(voxels)
    return betas


def estimate_rho(series: Series, Q: Array, design: Array, stimulus: Array) -> Array:
    """Estimate each voxel's autocorrelation from the residuals of a model with a regressor a group (`group_trials`).

    Parameters
    ----------
    series : Series
        Of the run.
    Q : array of shape (n_frames, n_regressors)
        Orthonormal basis of the nuisance.
    design : array of shape (n_frames, n_trials)
        One column a trial.
    stimulus : array of shape (n_trials,)
        Shown in each trial.

    Returns
    -------
    array of shape (n_voxels,)
    """
    sums = sum_groups(project_out(Q, design), group_trials(stimulus))
    basis = np.hstack([Q, decompose(sums)[0]])  # the nuisance may explain all of a group
    return np.concatenate([estimate_autocorrelation(project_out(basis, Y)) for _, Y in series])
