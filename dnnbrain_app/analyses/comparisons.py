r"""The measures of how well two representational dissimilarity matrices agree.

Each is an inner product of vectors that one RDM alone determines, so that an RDM is prepared once, however many others
it is compared with: :math:`s(a) \, s(b) \; t(a) \cdot t(b)`, with transform :math:`t` and scale :math:`s` of the
measure. (``tau-a`` counts concordant pairs of pairs instead.)

=================  =====================================================================  ===========================
measure            transform of the N dissimilarities d between n items                   scale
=================  =====================================================================  ===========================
pearson            minus their mean                                                       1 / norm
spearman           ranks minus the mean rank                                              1 / norm
rho-a              the same                                                               :math:`\sqrt{12/(N^3-N)}`
tau-a              the same                                                               :math:`\sqrt{2/(N^2-N)}`
cosine             none                                                                   1 / norm
whitened-cosine    :math:`V^{-1/2} d`                                                     1 / norm
whitened-pearson   :math:`V^{-1/2} (d - \bar d)`                                          1 / norm
cka                :math:`d_{ij} - u_i - u_j`, the least-squares additive part :math:`u`  1 / norm
=================  =====================================================================  ===========================

:math:`\rho_a` is the expectation of Spearman's correlation when ties are broken at random. Spearman's own formula
divides by norms that ties make smaller, and so prefers models that predict ties, e.g. categories, to the truth
(Schütt et al. 2023, eLife 82566).

:math:`V` is the covariance of squared distances that are all 0 (Diedrichsen et al. 2021, doi:10.51628/001c.27664): 4
for a distance with itself, 1 for two that share an item. Its eigenspaces are the constant (eigenvalue 2n), the other
additive vectors :math:`u_i + u_j` (n), and the rest (2), so that nothing of size N x N is made. With it, ``cosine`` is
centred linear CKA.

``cka`` is linear CKA without its bias (Song et al. 2012, JMLR 13:1393), of the kernels whose squared distances the RDMs
are: the additive part of the distances is all that depends on the kernels' diagonals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import isqrt

import numpy as np
from scipy.spatial.distance import squareform
from scipy.stats import kendalltau

from dnnbrain_app.errors import UnknownNameError
from dnnbrain_app.records import Array


def rank_values(x: Array) -> Array:
    """Rank values from 1, ties sharing their mean rank.

    Parameters
    ----------
    x : array of shape (n,)
        Values, none of them NaN.

    Returns
    -------
    array of shape (n,), float64

    Examples
    --------
    >>> rank_values(np.array([0.3, 0.1, 0.3, 0.2]))
    array([3.5, 1. , 3.5, 2. ])
    """
    order = _argsort(x)
    ordered = x[order]
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1], [True])))
    mean_ranks = (starts[:-1] + starts[1:] + 1) / 2
    ranks = np.empty(len(x))
    ranks[order] = mean_ranks if len(mean_ranks) == len(x) else np.repeat(mean_ranks, np.diff(starts))
    return ranks


def _argsort(x: Array) -> Array:
    """Sort integers (float32 value, position), several times faster than argsort; then repair what float32 blurred."""
    with np.errstate(over="ignore"):
        keys = x.astype(np.float32).view(np.int32).astype(np.int64)
    keys ^= (keys >> 32) & 0x7FFFFFFF  # so that the bits of negative numbers, too, are in the numbers' order
    keys <<= 32
    keys |= np.arange(len(x))
    keys.sort()
    keys &= 0xFFFFFFFF
    return np.asarray(keys[np.argsort(x[keys], kind="stable")])  # linear time on what is nearly sorted


def weigh_pairs(weights: Array) -> Array:
    """Multiply the weights of the items of each pair: (n,) -> (n * (n - 1) / 2,)."""
    return np.concatenate([weights[i] * weights[i + 1 :] for i in range(len(weights))])


def _keep(x: Array, weights: Array | None) -> Array:  # noqa: ARG001
    return x


def _center(x: Array, weights: Array | None) -> Array:
    shifted = x - x[0]  # exact zeros where all values are equal
    return np.asarray(shifted - np.average(shifted, weights=None if weights is None else weigh_pairs(weights)))


def _center_ranks(x: Array, weights: Array | None) -> Array:
    """Rank values; with weights, whole numbers from 0 that say the order, each as often as its pair was drawn."""
    if weights is None:
        return rank_values(x) - (len(x) + 1) / 2
    counts = np.bincount(x, weigh_pairs(weights))
    upto = np.cumsum(counts)
    return np.asarray((upto - counts / 2 - upto[-1] / 2)[x])


def _whiten(x: Array, weights: Array | None) -> Array:
    n = _count_items(x) if weights is None else weights.sum()
    mean = np.average(x, weights=None if weights is None else weigh_pairs(weights))
    return np.asarray(_whiten_centred(x, weights) + mean / np.sqrt(2 * n))


def _whiten_centred(x: Array, weights: Array | None) -> Array:
    n = _count_items(x) if weights is None else weights.sum()
    centred = _center(x, weights)
    rest = _remove_additive(centred, weights)
    centred -= rest
    centred /= np.sqrt(n)
    rest /= np.sqrt(2)
    return centred + rest


def _remove_additive(x: Array, weights: Array | None) -> Array:
    """Subtract the u_i + u_j that are nearest in (weighted) least squares."""
    x = np.subtract(x, x[0], dtype=np.float64)  # exact zeros where all values are equal
    w = np.ones(_count_items(x)) if weights is None else weights
    sums = np.zeros(len(w))
    weighted = x if weights is None else x * weigh_pairs(weights)
    for i, row in _list_rows(len(w)):
        values = weighted[row]
        sums[i] += values.sum()
        sums[i + 1 :] += values
    others = w.sum() - 2 * w
    total = (sums / others).sum() / (1 + (w / others).sum())
    u = (sums / w - total) / others
    for i, row in _list_rows(len(w)):
        x[row] -= u[i] + u[i + 1 :]
    return x


def _count_items(x: Array) -> int:
    return (1 + isqrt(1 + 8 * len(x))) // 2


def _list_rows(n: int) -> Iterator[tuple[int, slice]]:
    """List where each row of the upper triangle is, the last one, which is empty, left out."""
    start = 0
    for i in range(n - 1):
        yield i, slice(start, start + n - 1 - i)
        start += n - 1 - i


def _invert_norm(x: Array, n_pairs: float) -> float:  # noqa: ARG001
    with np.errstate(divide="ignore"):
        return float(1 / np.sqrt(np.einsum("n,n->", x, x)))


def _average_ties(x: Array, n_pairs: float) -> float:  # noqa: ARG001
    return float(np.sqrt(12 / (float(n_pairs) ** 3 - n_pairs)))


def _count_pairs(x: Array, n_pairs: float) -> float:  # noqa: ARG001
    return float(np.sqrt(2 / (float(n_pairs) ** 2 - n_pairs)))


def _multiply(X: Array, y: Array) -> Array:
    return np.asarray(np.einsum("rn,n->r", X, y))  # bound by memory: BLAS threads would only wait


def _count_concordant(X: Array, y: Array) -> Array:
    """Count concordant minus discordant pairs of values, from tau-b and the ties that it divides by."""
    untied = _count_untied(y)
    excess = [kendalltau(x, y, method="asymptotic").statistic * np.sqrt(_count_untied(x) * untied) for x in X]
    return np.asarray(np.nan_to_num(excess))  # all tied: neither


def _count_untied(x: Array) -> float:
    sizes = np.unique(x, return_counts=True)[1].astype(np.float64)
    return float(len(x) * (len(x) - 1) / 2 - (sizes * (sizes - 1) / 2).sum())


@dataclass(frozen=True, slots=True)
class Comparison:
    """A way to compare two RDMs.

    Parameters
    ----------
    transform : callable
        (values (n_pairs,), None or how often each item was drawn (n_items,)) -> vector (n_pairs,).
    scale : callable
        (transformed vector, n_pairs) -> factor.
    ranks : bool
        Whether only the order of the values matters.
    whole : bool
        Whether the dissimilarities between all items are needed, since they are not taken one by one.
    multiply : callable
        (vectors (n, n_pairs), vector (n_pairs,)) -> (n,).
    """

    transform: Callable[[Array, Array | None], Array]
    scale: Callable[[Array, float], float]
    ranks: bool = False
    whole: bool = False
    multiply: Callable[[Array, Array], Array] = _multiply

    @property
    def linear(self) -> bool:
        """Whether the similarity is an inner product."""
        return self.multiply is _multiply

    def is_defined(self, present: Array) -> bool:
        """Whether the pairs that are there (n_pairs,) are enough: two, or all those between some of the items."""
        if not self.whole:
            return bool(present.sum() > 1)
        n_items = squareform(present.astype(np.uint8)).any(axis=1).sum()
        return bool(n_items > 3 and present.sum() == n_items * (n_items - 1) // 2)


COMPARISONS = {
    "pearson": Comparison(_center, _invert_norm),
    "spearman": Comparison(_center_ranks, _invert_norm, ranks=True),
    "rho-a": Comparison(_center_ranks, _average_ties, ranks=True),
    "tau-a": Comparison(_center_ranks, _count_pairs, ranks=True, multiply=_count_concordant),
    "cosine": Comparison(_keep, _invert_norm),
    "whitened-cosine": Comparison(_whiten, _invert_norm, whole=True),
    "whitened-pearson": Comparison(_whiten_centred, _invert_norm, whole=True),
    "cka": Comparison(_remove_additive, _invert_norm, whole=True),
}


def find_comparison(name: str) -> Comparison:
    """Return the comparison of a name.

    Raises
    ------
    UnknownNameError
        There is none.
    """
    if name not in COMPARISONS:
        raise UnknownNameError("comparison of RDMs", name, COMPARISONS)
    return COMPARISONS[name]
