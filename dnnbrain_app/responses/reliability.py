"""How reliable responses are: what of their variance comes back when a stimulus does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from dnnbrain_app.errors import BadDataError
from dnnbrain_app.records import Array
from dnnbrain_app.responses.noise import BLOCK

LEAST_STIMULI = 3  # of which a correlation over stimuli says anything
UNEVEN = 0.05  # share of the trials by which runs may differ in what they show and still count as alike


@dataclass(frozen=True, slots=True, eq=False)
class NoiseCeiling:
    r"""What part of the variance of responses a perfect model could explain.

    Parameters
    ----------
    signal_variance : array of shape (n_voxels,)
        :math:`\hat\sigma_s^2`, of the expected responses over stimuli. Unbiased: as often below 0 as above where there
        is no signal. NaN where it cannot be estimated.
    noise_variance : array of shape (n_voxels,)
        :math:`\hat\sigma_n^2`, of the responses to one stimulus over trials.
    noise_share : float
        Of the noise variance, what is left in the averages over repeats: mean over stimuli of :math:`1 / n_i`.
    """

    signal_variance: Array
    noise_variance: Array
    noise_share: float

    @property
    def ncsnr(self) -> Array:
        r"""Noise ceiling signal-to-noise ratio (n_voxels,), :math:`\sqrt{\max(0, \hat\sigma_s^2)} / \hat\sigma_n`."""
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio: Array = np.sqrt(np.maximum(0, self.signal_variance) / self.noise_variance)
        return ratio

    @property
    def ceiling(self) -> Array:
        r"""Explainable share of the variance of averages, the highest expected :math:`r^2` (n_voxels,).

        .. math:: \frac{\hat\sigma_s^2}{\hat\sigma_s^2 + \hat\sigma_n^2 \, \overline{1 / n_i}}

        0 where the signal variance is estimated below 0. The root is the ceiling of :math:`r`.
        """
        signal = np.maximum(0, self.signal_variance)
        with np.errstate(invalid="ignore"):
            share: Array = signal / (signal + self.noise_variance * self.noise_share)
        return share


def estimate_noise_ceiling(betas: Array, stimulus: Array, run: Array) -> NoiseCeiling:
    r"""Estimate signal and noise variance of each voxel from repeats of stimuli.

    Response :math:`j` to stimulus :math:`i` is :math:`b_{ij} = \mu + s_i + e_{ij}`: analysis of variance with stimuli
    as a random effect, of :math:`N` trials of :math:`k` stimuli, shown :math:`n_i` times each (Searle et al. 1992):

    .. math:: \hat\sigma_n^2 &= \frac{\sum_{ij} (b_{ij} - \bar b_i)^2}{N - k} \\
              \hat\sigma_s^2 &= \frac{1}{n_0} \Big( \frac{\sum_i n_i (\bar b_i - \bar b)^2}{k - 1}
              - \hat\sigma_n^2 \Big), \quad n_0 = \frac{N - \sum_i n_i^2 / N}{k - 1}

    With equal :math:`n_i` this is the ncsnr of the Natural Scenes Dataset (Allen et al. 2022), but for the bias of
    order :math:`1 / k` that the total variance has there.

    Where all runs show the same stimuli, equally often relative to each other (but for a few lost trials), an offset of
    all responses of a run is not noise, as it cancels from comparisons of averages: it is removed, and the noise has
    :math:`n_{runs} - 1` degrees of freedom less. Elsewhere it counts as noise.

    Parameters
    ----------
    betas : array of shape (n_trials, n_voxels)
        Responses; columns of NaN stay so.
    stimulus : array of shape (n_trials,)
        Which stimulus was shown.
    run : array of int, shape (n_trials,)
        In which run.

    Returns
    -------
    NoiseCeiling
        NaN without repeats. Noise that repeats share (slow drifts, where repeats are seconds apart) passes for signal.

    References
    ----------
    Allen et al. (2022), doi:10.1038/s41593-021-00962-x. Lage-Castellanos et al. (2019),
    doi:10.1371/journal.pcbi.1006397. Searle et al. (1992), Variance Components, doi:10.1002/9780470316856.
    """
    members = _make_indicators(stimulus)
    counts = members.sum(axis=1)
    n_trials, n_stimuli = len(stimulus), len(counts)
    levels = _find_offsets(stimulus, run)
    freedom = n_trials - n_stimuli - (levels.shape[0] - 1)
    signal, noise = np.full((2, betas.shape[1]), np.nan)
    if freedom > 0 and n_stimuli > 1:
        n0 = (n_trials - np.square(counts).sum() / n_trials) / (n_stimuli - 1)
        for voxels, b in _read_centred(betas, levels):
            means = (members @ b) / counts[:, np.newaxis]
            between = counts @ np.square(means)
            noise[voxels] = (np.square(b).sum(axis=0) - between) / freedom
            signal[voxels] = (between / (n_stimuli - 1) - noise[voxels]) / n0
    return NoiseCeiling(signal, noise, float(np.mean(1 / counts)))


def correlate_halves(
    betas: Array, stimulus: Array, run: Array, rng: np.random.Generator, *, n_splits: int = 100
) -> Array:
    r"""Estimate the reliability of averages over repeats from random halves of each stimulus's trials.

    The correlation :math:`r` over stimuli between averages of two halves, mean over splits, is that of averages of
    :math:`h_i = \lfloor n_i / 2 \rfloor` trials; the Spearman-Brown formula makes it that of all :math:`n_i`:

    .. math:: \rho = \frac{m r}{1 + (m - 1) |r|}, \quad m = \frac{\overline{1 / h_i}}{\overline{1 / n_i}}

    with :math:`|r|`, so that noise is 0 on average and nothing is below -1. It estimates the same as
    `NoiseCeiling.ceiling` (:math:`m = 2` for an even number of repeats). Stimuli without repeats are left out; offsets
    of runs are treated as in `estimate_noise_ceiling`.

    Parameters
    ----------
    betas, stimulus, run
        As in `estimate_noise_ceiling`.
    rng : Generator
        Draws the splits.
    n_splits : int
        How many.

    Returns
    -------
    array of shape (n_voxels,)
        NaN with fewer than three repeated stimuli, and where a voxel does not vary.

    References
    ----------
    Spearman (1910), doi:10.1111/j.2044-8295.1910.tb00206.x. Brown (1910), doi:10.1111/j.2044-8295.1910.tb00207.x.
    """
    index = np.unique(stimulus, return_inverse=True)[1]
    counts = np.bincount(index)
    repeated = np.flatnonzero(counts > 1)
    r = np.full(betas.shape[1], np.nan)
    if len(repeated) < LEAST_STIMULI:
        return r
    splits = [_split_trials(index, counts, rng) for _ in range(n_splits)]
    for voxels, b in _read_centred(betas, _find_offsets(stimulus, run)):
        halves = (((first @ b)[repeated], (second @ b)[repeated]) for first, second in splits)
        r[voxels] = sum(_correlate(*pair) for pair in halves) / n_splits
    m = np.mean(1 / (counts[repeated] // 2)) / np.mean(1 / counts[repeated])
    reliability: Array = m * r / (1 + (m - 1) * np.abs(r))
    return reliability


def compare_participants(responses: Array) -> tuple[Array, Array]:
    r"""Correlate each participant's responses with the average of the others, and of all: a ceiling for both sides.

    With responses :math:`z_p` that are standardised over stimuli,

    .. math:: l_p = \mathrm{cor}\big(z_p, \textstyle\sum_{q \ne p} z_q\big), \quad
              u_p = \mathrm{cor}\big(z_p, \textstyle\sum_q z_q\big)

    A model of what participants share is expected to reach at least :math:`\bar l` if it is right, and at most
    :math:`\bar u` (Nili et al. 2014).

    Parameters
    ----------
    responses : array of shape (n_participants, n_stimuli, n_voxels)
        To the same stimuli, in one space; a participant's NaN is left out of averages.

    Returns
    -------
    lower, upper : array of shape (n_participants, n_voxels)
        NaN where the participant, or all others, have no data.

    Raises
    ------
    BadDataError
        With fewer than two participants, or three stimuli.

    References
    ----------
    Nili et al. (2014), doi:10.1371/journal.pcbi.1003553.
    """
    n_participants, n_stimuli, n_voxels = responses.shape
    if n_participants < 2 or n_stimuli < LEAST_STIMULI:
        raise BadDataError(
            f"responses of {n_participants} participant(s) to {n_stimuli} shared stimuli cannot be compared; "
            f"at least 2 and {LEAST_STIMULI} are needed"
        )
    lower, upper = np.empty((2, n_participants, n_voxels))
    for start in range(0, n_voxels, BLOCK):
        block = slice(start, start + BLOCK)
        Z = responses[:, :, block].astype(np.float64)
        Z -= Z.mean(axis=1, keepdims=True)
        norms = np.sqrt(np.einsum("psv,psv->pv", Z, Z))
        with np.errstate(invalid="ignore"):
            Z /= norms[:, np.newaxis]
        total = np.nansum(Z, axis=0)
        for p, z in enumerate(Z):
            lower[p, block], upper[p, block] = _correlate(z, total - z), _correlate(z, total)
    return lower, upper


def _make_indicators(labels: Array) -> csr_array:
    """Make the matrix (n_labels, n_trials) that is 1 where a trial has a label."""
    index = np.unique(labels, return_inverse=True)[1]
    return csr_array((np.ones(len(index)), (index, np.arange(len(index)))))


def _find_offsets(stimulus: Array, run: Array) -> csr_array:
    """Say which trials share an offset: those of a run, if stimuli are spread evenly over runs, else all."""
    runs = _make_indicators(run)
    table = (_make_indicators(stimulus) @ runs.T).toarray()
    even = np.outer(table.sum(axis=1), table.sum(axis=0)) / table.sum()
    return runs if np.abs(table - even).sum() <= UNEVEN * len(run) else _make_indicators(np.zeros(len(run)))


def _read_centred(betas: Array, levels: csr_array) -> Iterator[tuple[slice, Array]]:
    """Read blocks of voxels in double precision, without the mean of each level."""
    sizes = levels.sum(axis=1)[:, np.newaxis]
    for start in range(0, betas.shape[1], BLOCK):
        block = slice(start, start + BLOCK)
        b = betas[:, block].astype(np.float64)
        yield block, b - levels.T @ ((levels @ b) / sizes)


def _split_trials(index: Array, counts: Array, rng: np.random.Generator) -> tuple[csr_array, csr_array]:
    """Draw halves of each stimulus's trials; return the matrices (n_stimuli, n_trials) that average them."""
    order = np.lexsort((rng.random(len(index)), index))
    rank = np.empty(len(index), dtype=int)
    rank[order] = np.arange(len(index)) - np.repeat(np.cumsum(counts) - counts, counts)
    half = counts[index] // 2
    first, second = (
        csr_array((used / np.maximum(half, 1), (index, np.arange(len(index)))))
        for used in (rank < half, (rank >= half) & (rank < 2 * half))
    )
    return first, second


def _correlate(A: Array, B: Array) -> Array:
    """Pearson correlation of columns; NaN where one does not vary."""
    A, B = A - A.mean(axis=0), B - B.mean(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        r: Array = np.einsum("sv,sv->v", A, B) / np.sqrt(np.square(A).sum(axis=0) * np.square(B).sum(axis=0))
    return r
