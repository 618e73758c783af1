"""Noise regressors from the data: what voxels without responses have in common (GLMdenoise)."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import numpy as np

from dnnbrain_app.records import Array, Trials
from dnnbrain_app.responses.filtered import FilteredRun, read_filtered
from dnnbrain_app.responses.hrf_choice import HrfChoice
from dnnbrain_app.responses.options import ResponseOptions
from dnnbrain_app.responses.repeats import Repeats
from dnnbrain_app.responses.runs import RunData, project_out

logger = logging.getLogger(__name__)

MOST = 10  # components, as in GLMsingle
POOL = 0.5  # share of the voxels, of those that respond least
JUDGES, FEWEST, MOST_JUDGES = 0.05, 100, 5000  # share of the voxels, of those that respond most; limits of their number
SINGULAR = 1e-10  # added to the diagonal, of its mean, for designs that lie in the span of the components
NEAR_BEST = 1.05  # as few components as come within 5 % of the best improvement


def find_noise_components(
    runs: Iterable[RunData], trials: Trials, repeats: Repeats, options: ResponseOptions, choice: HrfChoice
) -> list[Array]:
    r"""Find noise regressors for each run, as many as make betas most like those of repeats in other runs.

    The pool is the half of the voxels whose data the mean response explains least. The regressors of a run are the
    leading left singular vectors of its data, each voxel scaled to unit length: at most 10, and no more than half of
    the degrees of freedom. With each number :math:`k` of them the voxels that respond most get ordinary betas, and

    .. math:: E_v(k) = \sum_{(i, j)} \frac{(b_{iv}(k) - b_{jv}(0))^2}{\mathrm{var}_i\, b_{iv}(0)}

    is summed over all pairs of trials that show one stimulus in two runs. The number chosen is the first at which the
    median voxel has come within 5 % of its largest improvement.

    Parameters
    ----------
    runs, trials, options
        As in `estimate_glmsingle`; all trials can be estimated.
    repeats : Repeats
        Of the trials.
    choice : HrfChoice
        Each voxel's HRF, how well the mean response explains its data, and the autocorrelation of the noise.

    Returns
    -------
    list of array of shape (n_frames, n_components)
        Orthonormal, and orthogonal to the (filtered) nuisance; one a run.

    References
    ----------
    Kay et al. (2013), doi:10.3389/fnins.2013.00247.
    """
    order = np.argsort(choice.fit)[: np.count_nonzero(np.isfinite(choice.fit))]
    pool = np.sort(order[: max(1, int(POOL * len(order)))])
    judges = np.sort(order[-int(np.clip(JUDGES * len(order), FEWEST, MOST_JUDGES)) :])
    betas = np.full((MOST + 1, len(trials), len(judges)), np.nan, dtype=np.float32)
    components = []
    for rows, run in read_filtered(runs, trials, options, choice.rho):
        components.append(_extract_components(run, pool))
        fitted = _fit_trials(run, components[-1], choice.hrf, judges)
        betas[: len(fitted), rows] = fitted
        del run
    most = min(basis.shape[1] for basis in components)
    spread = np.maximum(betas[0].var(axis=0), np.finfo(np.float32).eps ** 2)
    errors = repeats.measure_errors(betas[: most + 1], betas[0]) / spread
    gain = np.median(errors[0] - errors, axis=1)
    chosen = int(np.flatnonzero(gain * NEAR_BEST >= gain.max())[0])
    logger.info("%d noise regressors (of at most %d)", chosen, most)
    return [basis[:, :chosen] for basis in components]


def _extract_components(run: FilteredRun, pool: Array) -> Array:
    """Find the principal components of the pool's voxels over time."""
    gram = np.zeros((len(run.Q), len(run.Q)))
    for _, Y in run.read(pool):
        Y /= np.maximum(np.linalg.norm(Y, axis=0), np.finfo(float).tiny)
        gram += Y @ Y.T
    most = max(0, min(MOST, run.n_free // 2, len(pool)))
    components: Array = np.linalg.eigh(gram)[1][:, ::-1][:, :most]
    return components


def _fit_trials(run: FilteredRun, components: Array, hrf: Array, voxels: Array) -> Array:
    """Fit all trials together, with 0, 1, ... components: (1 + n_components, n_trials, n_voxels)."""
    n_components, n_trials = components.shape[1], run.designs[0].shape[1]
    betas = np.empty((1 + n_components, n_trials, len(voxels)), dtype=np.float32)
    for number in np.unique(hrf[voxels]):
        place = np.flatnonzero(hrf[voxels] == number)
        Y = np.hstack([block for _, block in run.read(voxels[place])])
        for k in range(1 + n_components):
            X = project_out(components[:, :k], run.designs[number])
            XX = X.T @ X
            XX[np.diag_indices(n_trials)] += SINGULAR * np.trace(XX) / max(1, n_trials)
            betas[k][:, place] = np.linalg.solve(XX, X.T @ Y)
    return betas
