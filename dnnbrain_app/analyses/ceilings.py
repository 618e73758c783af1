"""How well any model could do, given how well the RDMs of participants (or runs) agree with each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dnnbrain_app.analyses.comparisons import find_comparison
from dnnbrain_app.analyses.rsa import require_same_items
from dnnbrain_app.errors import BadDataError
from dnnbrain_app.records import Rdm


@dataclass(frozen=True, slots=True)
class Ceiling:
    """Between which values the similarity of the true RDM lies.

    Parameters
    ----------
    lower : float
        Mean similarity of each RDM with the pool of the others: it knows too little.
    upper : float
        Mean similarity of each RDM with the pool of all: it knows their noise as well.
    """

    lower: float
    upper: float


def compute_ceiling(rdms: Sequence[Rdm], comparison: str) -> Ceiling:
    r"""Compute the noise ceiling of a set of RDMs (Nili et al. 2014, doi:10.1371/journal.pcbi.1003553).

    The pool is the RDM whose mean similarity with those pooled is the highest, so it is a mean in the comparison's own
    space, of the transformed and scaled vectors of `comparisons`:

    .. math:: p = \sum_k s(d_k) \, t(d_k),

    and where ranks are compared, the ranks of the sum of ranks. (Not ranked again, the upper bound is too high; the
    mean of the raw RDMs makes the lower bound too high and the upper too low.) For ``tau-a``, whose best RDM is hard to
    find, the pool is that of ``rho-a``.

    Parameters
    ----------
    rdms : sequence of Rdm
        Of one region, one for each participant or independent run; two or more. Only pairs of items count for which
        all have a value.
    comparison : str
        A name in `comparisons.COMPARISONS`.

    Returns
    -------
    Ceiling
        NaN for an RDM without variance, or where a ``whole`` comparison lacks pairs.

    Raises
    ------
    UnknownNameError
        Another comparison.
    BadDataError
        Fewer than two RDMs, or of other items.
    """
    method = find_comparison(comparison)
    if len(rdms) < 2:
        raise BadDataError(f"a noise ceiling needs at least 2 RDMs; {len(rdms)} given")
    for rdm in rdms[1:]:
        require_same_items(rdms[0], rdm)
    values = np.array([rdm.dissimilarities for rdm in rdms])
    common = np.isfinite(values).all(axis=0)
    if not method.is_defined(common):
        return Ceiling(np.nan, np.nan)
    X = np.array([method.transform(row[common], None) for row in values])
    n_pairs = X.shape[1]
    scales = np.array([method.scale(x, n_pairs) for x in X])
    weighted = X if method.ranks else X * scales[:, None]
    total = weighted.sum(axis=0)

    def score(pool: np.ndarray, k: int) -> float:
        if method.ranks:
            pool = method.transform(pool, None)
        with np.errstate(invalid="ignore"):
            return float(method.multiply(X[k : k + 1], pool)[0] * scales[k] * method.scale(pool, n_pairs))

    lower = np.mean([score(total - own, k) for k, own in enumerate(weighted)])
    upper = np.mean([score(total, k) for k in range(len(X))])
    return Ceiling(float(lower), float(upper))
