"""Single-trial responses with each voxel's own HRF, noise regressors from the data, and ridge: after GLMsingle."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from dnnbrain_app.records import Array, Trials
from dnnbrain_app.responses.denoising import find_noise_components
from dnnbrain_app.responses.filtered import read_filtered
from dnnbrain_app.responses.hrf_choice import HrfChoice, choose_hrfs
from dnnbrain_app.responses.noise import BLOCK
from dnnbrain_app.responses.options import ResponseOptions
from dnnbrain_app.responses.repeats import Repeats
from dnnbrain_app.responses.ridge import decompose, find_penalties, shrink
from dnnbrain_app.responses.runs import RunData, project_out
from dnnbrain_app.responses.weights import group_trials, weigh_separately

logger = logging.getLogger(__name__)

FRACTIONS = np.arange(20, 0, -1) / 20


@dataclass(frozen=True, slots=True, eq=False)
class SingleTrials:
    """Responses, and what was chosen to estimate them.

    Parameters
    ----------
    betas : array of shape (n_rows, n_voxels)
        float32.
    rows : array of int, shape (n_rows,)
        The trials that have one.
    hrf : array of int, shape (n_voxels,)
        Which response of `build_library` each voxel has.
    fraction : array of shape (n_voxels,)
        Length of the ridge solution, of the ordinary one; NaN without ridge.
    n_components : int
        Noise regressors of each run.
    """

    betas: Array
    rows: Array
    hrf: Array
    fraction: Array
    n_components: int


def estimate_glmsingle(runs: Iterable[RunData], trials: Trials, options: ResponseOptions) -> SingleTrials:
    r"""Estimate a response a trial, with what repeats in other runs prove to help (Prince et al. 2022).

    1. Each voxel's HRF: `choose_hrfs`. Its model has a regressor for each trial, beside the nuisance.
    2. Noise regressors: `find_noise_components`.
    3. Ridge: of the fractions .05, .1, ... 1 of the length of the ordinary solution (`find_penalties`, over all runs),
       each voxel gets the one whose betas differ least from the ordinary betas of repeats in other runs.
    4. The betas are scaled and shifted to fit the ordinary ones best (not where they would change sign).

    Where no stimulus is shown in two runs, nothing can be cross-validated: a warning tells that the betas are those of
    ``lss``, with each voxel's response. Unlike GLMsingle, noise model ``ar1`` filters data and designs, with one
    coefficient for all voxels of a run (`FilteredRun`); the library, its choice and the noise pool differ, too.

    Parameters
    ----------
    runs : iterable of RunData
        In the order of ``trials.run_labels``. Read three times, so not a generator, but it may make one each time.
    trials : Trials
        All trials of all runs.
    options : ResponseOptions
        ``hrf`` (the assumed response), ``noise_model`` and ``scaling``.

    Returns
    -------
    SingleTrials
        In the units of the assumed response, as all have its height.

    Raises
    ------
    BadDataError
        If runs and trials do not fit together, or trials cannot be told apart.

    References
    ----------
    Prince et al. (2022), doi:10.7554/eLife.77599.
    """
    choice = choose_hrfs(runs, trials, options)
    rows, hrf, kept = choice.rows, choice.hrf, trials.take(choice.rows)
    repeats = Repeats(kept)
    if not repeats:
        logger.warning(
            "no stimulus is shown in two runs, which noise regressors and ridge are judged by; the responses of "
            "responses.model = glmsingle are those of lss, with each voxel's own HRF"
        )
        betas = _fit_separately(runs, kept, options, choice)
        return SingleTrials(betas, rows, hrf, np.full(len(hrf), np.nan), 0)
    components = find_noise_components(runs, kept, repeats, options, choice)
    betas, factors = _rotate(runs, kept, options, choice, components)
    fraction = np.empty(len(hrf))
    for number, (s, turns) in factors.items():
        voxels = np.flatnonzero(hrf == number)
        for start in range(0, len(voxels), BLOCK):
            block = voxels[start : start + BLOCK]
            betas[:, block], fraction[block] = _regularise(s, turns, betas[:, block], repeats)
    return SingleTrials(betas, rows, hrf, fraction, components[0].shape[1])


Turns = list[tuple[Array, Array]]  # of each run: its trials, and the right singular vectors (in rows)


def _rotate(
    runs: Iterable[RunData], trials: Trials, options: ResponseOptions, choice: HrfChoice, components: list[Array]
) -> tuple[Array, dict[int, tuple[Array, Turns]]]:
    """Decompose each run's design of each HRF; return the data in its left singular vectors, values, and the right."""
    hrf = choice.hrf
    Z = np.empty((len(trials), len(hrf)), dtype=np.float32)
    factors: dict[int, tuple[Array, Turns]] = {int(h): (np.empty(len(trials)), []) for h in np.unique(hrf)}
    remaining = iter(components)  # zip would hold on to the run before
    for rows, run in read_filtered(runs, trials, options, choice.rho):
        basis = next(remaining)
        for number, (s, turns) in factors.items():
            U, s[rows], Vt = decompose(project_out(basis, run.designs[number]))
            turns.append((rows, Vt))
            for block, Y in run.read(np.flatnonzero(hrf == number)):
                Z[np.ix_(rows, block)] = U.T @ Y
        del run
    return Z, factors


def _regularise(s: Array, turns: Turns, Z: Array, repeats: Repeats) -> tuple[Array, Array]:
    """Choose the fraction of each voxel; return the betas and the fractions."""
    s_single = s.astype(Z.dtype)  # in single precision, as the data are

    def solve(penalties: Array) -> Array:
        betas = shrink(s_single, Z, penalties.astype(Z.dtype))
        for rows, Vt in turns:
            betas[rows] = Vt.T @ betas[rows]
        return betas

    penalties = find_penalties(s, Z, FRACTIONS)
    ordinary = solve(penalties[0])
    best = repeats.measure_errors(map(solve, penalties), ordinary).argmin(axis=0)
    betas = solve(penalties[best, np.arange(len(best))])
    return _match(betas, ordinary), np.where(np.isnan(penalties[0]), np.nan, FRACTIONS[best])


def _match(betas: Array, target: Array) -> Array:
    """Scale and shift each column to fit its target best; leave it where the scale would be negative."""
    centred = betas - betas.mean(axis=0)
    with np.errstate(invalid="ignore"):
        scale = np.einsum("iv,iv->v", centred, target) / np.square(centred).sum(axis=0)
    return np.where(scale < 0, betas, scale * centred + target.mean(axis=0))


def _fit_separately(runs: Iterable[RunData], trials: Trials, options: ResponseOptions, choice: HrfChoice) -> Array:
    """Estimate LSS betas with each voxel's own HRF."""
    betas = np.empty((len(trials), len(choice.hrf)), dtype=np.float32)
    for rows, run in read_filtered(runs, trials, options, choice.rho):
        groups = group_trials(trials.stimulus[rows])
        for number in np.unique(choice.hrf):
            weights = weigh_separately(run.designs[number], run.Q, groups)[0]
            for block, Y in run.read(np.flatnonzero(choice.hrf == number)):
                betas[np.ix_(rows, block)] = weights @ Y
        del run
    return betas
