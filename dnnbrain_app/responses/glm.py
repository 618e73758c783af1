"""General linear models that turn time series into one response a trial, or one a stimulus."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from scipy.sparse import csr_array

from dnnbrain_app.errors import BadDataError, UsageError
from dnnbrain_app.records import Array, Trials
from dnnbrain_app.responses.design import build_derivatives, build_design
from dnnbrain_app.responses.estimability import (
    enumerate_names,
    measure_energy,
    require_own_energy,
    require_separable,
)
from dnnbrain_app.responses.glmsingle import estimate_glmsingle
from dnnbrain_app.responses.hrfs import get_kernels
from dnnbrain_app.responses.noise import NormalEquations
from dnnbrain_app.responses.options import ResponseOptions, check_options
from dnnbrain_app.responses.runs import RunData as RunData
from dnnbrain_app.responses.runs import Series, project_out, read_runs
from dnnbrain_app.responses.single_trials import estimate_single_trials


def estimate_betas(runs: Iterable[RunData], trials: Trials, options: ResponseOptions) -> tuple[Array, Trials]:
    r"""Estimate the response of every voxel to every trial, or to every stimulus.

    ``lss`` (least squares, separate; Mumford et al. 2012): trial :math:`i` has a model of its own, with one regressor
    for it, one for all other trials of the run, and the nuisance. By the Frisch-Waugh-Lovell theorem the nuisance
    :math:`N = QR` is projected out once, :math:`\tilde X = (I - QQ^\top) X`, and what remains is

    .. math:: \hat\beta_i = \frac{r_i^\top y}{r_i^\top r_i}, \quad
              r_i = \tilde x_i - \frac{\tilde x_i^\top o_i}{o_i^\top o_i} o_i, \quad o_i = \sum_{j \ne i} \tilde x_j

    so that a run's betas are one product :math:`W Y`. Stimuli that a run shows eight times or more have a regressor of
    their own each for their other trials (`group_trials`): then :math:`o_i` is of the trials of :math:`i`'s stimulus,
    and the sums over other stimuli are projected out with the nuisance.

    ``lsa`` (least squares, all): one model a run, with a regressor for each trial,
    :math:`\hat\beta = (\tilde X^\top \tilde X)^{-1} \tilde X^\top y`. ``glmsingle``: see `estimate_glmsingle`.

    ``condition``: one regressor a stimulus over all runs, each run with its own nuisance:
    :math:`\hat\beta = (\sum_r \tilde X_r^\top \tilde X_r)^{-1} \sum_r \tilde X_r^\top Y_r`.

    With derivatives (``lsa``, ``condition``) each response has further regressors, orthogonal to its own as in nilearn
    (`build_derivatives`), and :math:`\hat\beta` is the weight of the response itself.

    Noise model ``ar1`` fits the same models to data, design and nuisance that were filtered with the voxel's
    coefficient, :math:`x_t - \rho x_{t-1}` (`whiten`; generalised least squares for first-order autoregressive noise):

    .. math:: \hat\rho = \frac{\sum_{t \ge 2} e_t e_{t-1} / (T - 1)}{\sum_t e_t^2 / T}

    of ordinary residuals :math:`e`, cut to 1/100 as in nilearn; below 0, no filter. ``lss`` and ``lsa``: one
    coefficient a voxel and run, from the model with all trials in one regressor (one a group, see above), as each model
    of ``lss`` nearly is: with a regressor a trial the residuals have lost the slow noise (92 trials in 190 volumes,
    true 0.35: -0.44, against 0.26).
    ``condition``: one coefficient a voxel, from the residuals of its model over all runs (sums over runs; for a single
    run, that of nilearn's ``run_glm``). The fewer repeats a stimulus has, the more this is too low: towards OLS.

    Parameters
    ----------
    runs : iterable of RunData
        In the order of ``trials.run_labels``; taken one at a time and let go, so a generator keeps one in memory
        (``glmsingle`` reads three times: an object that makes a generator each time).
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
        What each row is: the trials, in their order, without those whose regressor keeps less than 1 % of the
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
    check_options(options)
    if options.model not in MODELS:
        raise UsageError(f"responses.model = {options.model} has no betas; those with betas: {', '.join(MODELS)}")
    betas, rows = MODELS[options.model](runs, trials, options)
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
        raise BadDataError(f"no response could be estimated for {enumerate_names(missing)}: no trial shows it")
    weights = csr_array((1 / counts[row[used]], (row[used], used)), shape=(len(stimuli), len(trials)), dtype=np.float32)
    averages: Array = weights @ data.astype(np.float32, copy=False)
    return averages


def _estimate_condition(runs: Iterable[RunData], trials: Trials, options: ResponseOptions) -> tuple[Array, Array]:
    """Estimate one beta a stimulus over all runs; return with them the row of each stimulus's first trial."""
    stimuli, stimulus = np.unique(trials.stimulus, return_inverse=True)
    n_stimuli, n_regressors = len(stimuli), len(stimuli) * len(get_kernels(options.hrf))
    autocorrelated = options.noise_model == "ar1"
    whole = np.zeros(n_stimuli)
    for index, label, run in read_runs(runs, trials):
        rows = np.flatnonzero(trials.run == index)
        events = (trials.onset[rows], trials.duration[rows], run.frame_times, options.hrf)
        shows = stimulus[rows, np.newaxis] == np.arange(n_stimuli)
        X = np.hstack([build_design(*events) @ shows, build_derivatives(*events, shows)])
        if index == 0:
            n_voxels = run.bold.shape[1]
            equations = NormalEquations(n_regressors, n_voxels, lagged=autocorrelated)
        series = Series(run.bold, options.scaling, label)
        Q = np.linalg.qr(run.nuisance)[0]
        equations.add(project_out(Q, X), Q, ((block, project_out(Q, Y)) for block, Y in series))
        whole += measure_energy(trials.duration[rows], run.frame_times, options.hrf) @ shows
        del run, series
    require_own_energy(np.diag(equations.XX)[:n_stimuli], whole, stimuli)
    require_separable(equations.XX, np.resize(stimuli, n_regressors), "use responses.model = lss")
    rho = equations.estimate_autocorrelation() if autocorrelated else np.zeros(n_voxels)
    first = np.flatnonzero(trials.repeat == 0)
    return equations.solve(rho)[:n_stimuli], first[np.argsort(trials.stimulus[first])]


def _estimate_glmsingle(runs: Iterable[RunData], trials: Trials, options: ResponseOptions) -> tuple[Array, Array]:
    fit = estimate_glmsingle(runs, trials, options)
    return fit.betas, fit.rows


MODELS: dict[str, Callable[[Iterable[RunData], Trials, ResponseOptions], tuple[Array, Array]]] = {
    "lss": estimate_single_trials,
    "lsa": estimate_single_trials,
    "glmsingle": _estimate_glmsingle,
    "condition": _estimate_condition,
}
