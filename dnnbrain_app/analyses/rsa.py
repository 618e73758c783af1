r"""How well representational dissimilarity matrices agree.

All three comparisons are inner products of prepared vectors. With :math:`a, b` the dissimilarities minus their mean
(``pearson``) or their ranks minus the mean rank (``spearman``, ``rho-a``), each over :math:`N` pairs of items:

.. math::

    r = \frac{a \cdot b}{\|a\| \|b\|}, \qquad
    \rho_a = \frac{12 \; a \cdot b}{N^3 - N}.

:math:`\rho_a` is the expectation of Spearman's correlation when ties are broken at random. Spearman's own formula
divides by norms that ties make smaller, and so prefers models that predict ties, e.g. categories, to the truth
(Schütt et al. 2023, eLife 82566).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dnnbrain_app.analyses.rdms import require_memory
from dnnbrain_app.errors import BadDataError, UnknownNameError
from dnnbrain_app.records import Array, Rdm, RsaScores

RANKING = 6  # RDMs that have room in the memory that ranking another takes


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


def _center(x: Array) -> Array:
    shifted = x - x[0]  # exact zeros where all values are equal
    return np.asarray(shifted - shifted.mean())


def _center_ranks(x: Array) -> Array:
    return rank_values(x) - (len(x) + 1) / 2


def _normalize(products: Array, a_square: Array, b_squares: Array, n_pairs: int) -> Array:  # noqa: ARG001
    return np.asarray(products / np.sqrt(a_square * b_squares))


def _average_ties(products: Array, a_square: Array, b_squares: Array, n_pairs: int) -> Array:  # noqa: ARG001
    return 12 * products / (float(n_pairs) ** 3 - n_pairs)


@dataclass(frozen=True, slots=True)
class Comparison:
    """A way to compare two RDMs.

    Parameters
    ----------
    prepare : callable
        Dissimilarities (n_pairs,) -> centred values or ranks (n_pairs,).
    scale : callable
        (inner products of one prepared RDM with several, its square, their squares, n_pairs) -> similarities.
    """

    prepare: Callable[[Array], Array]
    scale: Callable[[Array, Array, Array, int], Array]


COMPARISONS = {
    "pearson": Comparison(_center, _normalize),
    "spearman": Comparison(_center_ranks, _normalize),
    "rho-a": Comparison(_center_ranks, _average_ties),
}


def compare_rdms(a: Rdm, b: Rdm, comparison: str) -> float:
    """Compare two RDMs over the pairs of items for which both have a value.

    Parameters
    ----------
    a, b : Rdm
        Of the same items in the same order.
    comparison : str
        ``pearson``, ``spearman`` or ``rho-a``.

    Returns
    -------
    float
        From -1 to 1; NaN for fewer than two common pairs, and for a correlation with an RDM without variance.

    Raises
    ------
    UnknownNameError
        Another comparison.
    BadDataError
        The items differ.
    """
    method = _find_comparison(comparison)
    _require_same_items(a, b)
    common = np.isfinite(a.dissimilarities) & np.isfinite(b.dissimilarities)
    if common.sum() < 2:
        return np.nan
    x, y = method.prepare(a.dissimilarities[common]), method.prepare(b.dissimilarities[common])
    with np.errstate(invalid="ignore"):
        return float(method.scale(x @ y, x @ x, y @ y, len(x)))


def score_rsa(
    network: str, layer_rdms: Sequence[Rdm], region_rdms: Sequence[Rdm], comparisons: Sequence[str]
) -> RsaScores:
    """Compare the RDM of each layer with that of each region.

    Each RDM is ranked once, however many others it is compared with. A missing dissimilarity (NaN) is left out of the
    comparisons of the RDM that it is missing from, and of no other.

    Parameters
    ----------
    network : str
        Label of the network.
    layer_rdms, region_rdms : sequence of Rdm
        Of the same items in the same order.
    comparisons : sequence of str
        Of ``pearson``, ``spearman``, ``rho-a``.

    Returns
    -------
    RsaScores

    Raises
    ------
    UnknownNameError
        Another comparison.
    BadDataError
        The items differ between RDMs.
    """
    methods = {name: _find_comparison(name) for name in comparisons}
    for rdm in (*layer_rdms, *region_rdms):
        _require_same_items(layer_rdms[0], rdm)
    similarity = {name: np.empty((len(layer_rdms), len(region_rdms))) for name in methods}
    whole_layers, whole_regions = _find_complete(layer_rdms), _find_complete(region_rdms)
    for prepare in dict.fromkeys(method.prepare for method in methods.values()):
        regions = np.empty((len(whole_regions), len(layer_rdms[0].dissimilarities)))
        for row, j in enumerate(whole_regions):
            regions[row] = prepare(region_rdms[j].dissimilarities)
        squares = np.einsum("rn,rn->r", regions, regions)
        for i in whole_layers:
            a = prepare(layer_rdms[i].dissimilarities)
            products = np.einsum("rn,n->r", regions, a)  # bound by memory: BLAS threads would only wait
            a_square = np.einsum("n,n->", a, a)
            for name, method in methods.items():
                if method.prepare is prepare:
                    with np.errstate(invalid="ignore"):
                        similarity[name][i, whole_regions] = method.scale(products, a_square, squares, len(a))
    for i, j in np.ndindex(len(layer_rdms), len(region_rdms)):
        if i not in whole_layers or j not in whole_regions:
            for name in methods:
                similarity[name][i, j] = compare_rdms(layer_rdms[i], region_rdms[j], name)
    return RsaScores(network, tuple(rdm.name for rdm in layer_rdms), tuple(rdm.name for rdm in region_rdms), similarity)


def require_room(n_items: int, n_layers: int, n_regions: int, memory: int) -> None:
    """Refuse an analysis that does not fit the memory, before its RDMs are computed.

    Parameters
    ----------
    n_items, n_layers, n_regions : int
        Stimuli, and how many RDMs of layers and of regions there will be.
    memory : int
        Bytes to work in.

    Raises
    ------
    UsageError
        It needs more.
    """
    require_memory(n_items, n_layers + 2 * n_regions + RANKING, memory)


def _find_comparison(name: str) -> Comparison:
    if name not in COMPARISONS:
        raise UnknownNameError("comparison of RDMs", name, COMPARISONS)
    return COMPARISONS[name]


def _require_same_items(a: Rdm, b: Rdm) -> None:
    if a.items != b.items:
        raise BadDataError(
            f"RDMs {a.name} ({len(a.items)} items) and {b.name} ({len(b.items)}) have other items or another order"
        )


def _find_complete(rdms: Sequence[Rdm]) -> list[int]:
    return [i for i, rdm in enumerate(rdms) if np.isfinite(rdm.dissimilarities).all()]
