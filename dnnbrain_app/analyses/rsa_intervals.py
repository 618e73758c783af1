"""How far the similarity of RDMs may lie from that in the population of stimuli, and of participants: the bootstrap.

Stimuli are drawn with replacement, never pairs. Pairs of a stimulus with itself are left out, since their distance is 0
in all RDMs alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from dnnbrain_app.analyses.comparisons import Comparison, find_comparison, weigh_pairs
from dnnbrain_app.analyses.rsa import find_complete, require_same_items
from dnnbrain_app.errors import BadDataError
from dnnbrain_app.records import Array, Rdm

FEWEST = 8  # stimuli: of fewer, a sample may be of two or three


@dataclass(frozen=True, slots=True, eq=False)
class RsaIntervals:
    r"""Similarities with confidence intervals, :math:`r \pm t_{dof} \cdot se`.

    Parameters
    ----------
    similarity, se, low, high : array
        One value for each comparison of RDMs.
    """

    similarity: Array
    se: Array
    low: Array
    high: Array


def bootstrap_stimuli(
    layer_rdms: Sequence[Rdm],
    region_rdms: Sequence[Rdm],
    comparison: str,
    *,
    n_bootstraps: int,
    rng: np.random.Generator,
    level: float = 0.95,
    progress: Callable[[int, int], None] | None = None,
) -> RsaIntervals:
    r"""Compute intervals that say how similarities would vary with other stimuli.

    .. math:: se^2 = \frac{n}{n - 1} \operatorname{var}_b(r_b)

    Parameters
    ----------
    layer_rdms, region_rdms : sequence of Rdm
        Of the same items in the same order.
    comparison : str
        A name in `comparisons.COMPARISONS`.
    n_bootstraps : int
        How many samples of stimuli.
    rng : numpy.random.Generator
        Draws them.
    level : float
        How often an interval should hold the value of the population.
    progress : callable, optional
        Called with (done, total), in samples.

    Returns
    -------
    RsaIntervals
        Of shape (n_layers, n_regions); NaN for RDMs with missing values.

    Raises
    ------
    UnknownNameError
        Another comparison.
    BadDataError
        The items differ between RDMs, or are fewer than 8.
    """
    scores = _resample(layer_rdms, region_rdms, comparison, n_bootstraps, rng, progress)
    n = len(layer_rdms[0].items)
    return _span(scores[0], scores[1:].var(axis=0, ddof=1) * n / (n - 1), n - 1, level)


def bootstrap_both(
    layer_rdms: Sequence[Rdm],
    participant_rdms: Sequence[Rdm],
    comparison: str,
    *,
    n_bootstraps: int,
    rng: np.random.Generator,
    level: float = 0.95,
    progress: Callable[[int, int], None] | None = None,
) -> RsaIntervals:
    r"""Compute intervals of the mean over participants, for other stimuli and other participants.

    A bootstrap of both counts the noise of their interaction three times. With the variances of the bootstraps of the
    S participants, of the n stimuli and of both, the corrected one is (Schütt et al. 2023, eLife 82566)

    .. math::

        se^2 = \frac{S}{S - 1} v_S + \frac{n}{n - 1} v_n
               - \frac{S}{S - 1} \frac{n}{n - 1} (v_{Sn} - v_S - v_n),

    not below either of the first two terms, and not above :math:`v_{Sn}`.

    Parameters
    ----------
    layer_rdms : sequence of Rdm
        Of the same items in the same order as the participants'.
    participant_rdms : sequence of Rdm
        Of one region, one for each participant.
    comparison : str
        A name in `comparisons.COMPARISONS`.
    n_bootstraps : int
        How many samples.
    rng : numpy.random.Generator
        Draws them.
    level : float
        How often an interval should hold the value of the population.
    progress : callable, optional
        Called with (done, total), in samples.

    Returns
    -------
    RsaIntervals
        Of shape (n_layers,), degrees of freedom the smaller of participants and stimuli minus 1.

    Raises
    ------
    UnknownNameError
        Another comparison.
    BadDataError
        The items differ between RDMs or are fewer than 8, or there are fewer than two participants.
    """
    n_participants = len(participant_rdms)
    if n_participants < 2:
        raise BadDataError(f"intervals over participants need at least 2; {n_participants} given")
    scores = _resample(layer_rdms, participant_rdms, comparison, n_bootstraps, rng, progress)
    drawn = rng.multinomial(n_participants, np.full(n_participants, 1 / n_participants), n_bootstraps) / n_participants
    by_participant = (drawn @ scores[0].T).var(axis=0, ddof=1)
    by_stimulus = scores[1:].mean(axis=2).var(axis=0, ddof=1)
    by_both = np.einsum("bs,bls->bl", drawn, scores[1:]).var(axis=0, ddof=1)
    n = len(layer_rdms[0].items)
    a, b = n_participants / (n_participants - 1), n / (n - 1)
    corrected = a * by_participant + b * by_stimulus - a * b * (by_both - by_participant - by_stimulus)
    lowest = np.maximum(a * by_participant, b * by_stimulus)
    variance = np.minimum(np.maximum(corrected, lowest), np.maximum(by_both, lowest))
    return _span(scores[0].mean(axis=1), variance, min(n_participants, n) - 1, level)


def _span(similarity: Array, variance: Array, dof: int, level: float) -> RsaIntervals:
    se = np.sqrt(variance)
    reach = student.ppf((1 + level) / 2, dof) * se
    return RsaIntervals(similarity, se, similarity - reach, similarity + reach)


def _resample(
    a: Sequence[Rdm],
    b: Sequence[Rdm],
    comparison: str,
    n_bootstraps: int,
    rng: np.random.Generator,
    progress: Callable[[int, int], None] | None,
) -> Array:
    """Return the similarities of all stimuli, then of samples of them: (1 + n_bootstraps, n_a, n_b)."""
    method = find_comparison(comparison)
    for rdm in (*a, *b):
        require_same_items(a[0], rdm)
    n = len(a[0].items)
    if n < FEWEST:
        raise BadDataError(f"a bootstrap of {n} stimuli says nothing; at least {FEWEST} are needed")
    rows, columns = find_complete(a), find_complete(b)
    scores = np.full((n_bootstraps + 1, len(a), len(b)), np.nan)
    values = [_number(rdm.dissimilarities, method) for rdm in (*(a[i] for i in rows), *(b[j] for j in columns))]
    for k in range(n_bootstraps + 1 if rows and columns else 0):
        counts = np.bincount(rng.integers(n, size=n), minlength=n) if k else np.ones(n, dtype=int)
        scores[k][np.ix_(rows, columns)] = _compare_sample(values, len(rows), counts, method)
        if progress and k:
            progress(k, n_bootstraps)
    return scores


def _number(x: Array, method: Comparison) -> Array:
    """Where only the order matters, replace values by whole numbers: ranks of a sample are then sums, not a sort."""
    return np.unique(x, return_inverse=True)[1] if method.ranks else x


def _compare_sample(values: Sequence[Array], n_first: int, counts: Array, method: Comparison) -> Array:
    """Compare the first RDMs with the others, each stimulus as often as it counts."""
    drawn = np.flatnonzero(counts)
    weights = counts[drawn]
    pairs = weigh_pairs(weights)
    i, j = np.triu_indices(len(drawn), 1)
    place = drawn[i] * (2 * len(counts) - drawn[i] - 3) // 2 + drawn[j] - 1
    X = np.array([method.transform(x[place], weights) for x in values])
    X = X * np.sqrt(pairs) if method.linear else np.repeat(X, pairs, axis=1)
    scales = np.array([method.scale(x, pairs.sum()) for x in X])
    with np.errstate(invalid="ignore"):
        products = np.array([method.multiply(X[n_first:], x) for x in X[:n_first]])
        return np.asarray(products * scales[:n_first, None] * scales[n_first:])
