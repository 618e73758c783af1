r"""How well the representational dissimilarity matrices of layers and regions agree.

The measures are in `comparisons`. Each RDM is prepared once, however many others it is compared with.

With controls, similarities are partial: of layer :math:`a` and region :math:`b`, prepared, what a regression on the
prepared controls :math:`Z` leaves is compared. With :math:`\langle a, b \rangle_Z = a^\top Z (Z^\top Z)^{-1} Z^\top b`,

.. math:: r_{ab \cdot Z} = \frac{r_{ab} - s_a s_b \langle a, b \rangle_Z}
                                {\sqrt{(1 - s_a^2 \langle a, a \rangle_Z) (1 - s_b^2 \langle b, b \rangle_Z)}}.

For ``pearson`` and ``spearman`` this is the correlation of residuals. For ``rho-a`` the ties of a and b, but not those
of Z, count as broken at random: a control that is broken at random would explain only a part of what it should.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dnnbrain_app.analyses.comparisons import Comparison, find_comparison
from dnnbrain_app.analyses.rdms import require_memory
from dnnbrain_app.errors import BadDataError
from dnnbrain_app.records import Array, Rdm, RsaScores

RANKING = 6  # RDMs that have room in the memory that ranking another takes
EXPLAINED = 1e-10  # share of its variance that is left of an RDM which the controls explain: rounding


def compare_rdms(a: Rdm, b: Rdm, comparison: str, controls: Sequence[Rdm] = ()) -> float:
    """Compare two RDMs over the pairs of items for which both have a value.

    Parameters
    ----------
    a, b : Rdm
        Of the same items in the same order.
    comparison : str
        A name in `comparisons.COMPARISONS`.
    controls : sequence of Rdm
        What a and b share with these does not count.

    Returns
    -------
    float
        From -1 to 1; NaN for fewer than two common pairs, for an RDM without variance or explained by the controls,
        and for ``whitened-`` comparisons and ``cka`` where pairs are missing that do not belong to items without any.

    Raises
    ------
    UnknownNameError
        Another comparison.
    BadDataError
        The items differ.
    """
    method = find_comparison(comparison)
    for rdm in (b, *controls):
        require_same_items(a, rdm)
    values = np.array([rdm.dissimilarities for rdm in (a, b, *controls)])
    common = np.isfinite(values).all(axis=0)
    if not method.is_defined(common):
        return np.nan
    first, *others = (method.transform(row[common], None) for row in values)
    return float(_relate(method, first, np.array(others), _scale(method, others), len(controls))[0])


def score_rsa(
    network: str,
    layer_rdms: Sequence[Rdm],
    region_rdms: Sequence[Rdm],
    comparisons: Sequence[str],
    controls: Sequence[Rdm] = (),
) -> RsaScores:
    """Compare the RDM of each layer with that of each region.

    A missing dissimilarity (NaN) is left out of the comparisons of the RDM that it is missing from, and of no other;
    of a control, it is left out of all.

    Parameters
    ----------
    network : str
        Label of the network.
    layer_rdms, region_rdms : sequence of Rdm
        Of the same items in the same order.
    comparisons : sequence of str
        Names in `comparisons.COMPARISONS`.
    controls : sequence of Rdm
        What layers and regions share with these does not count.

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
    methods = {name: find_comparison(name) for name in comparisons}
    for rdm in (*layer_rdms, *region_rdms, *controls):
        require_same_items(layer_rdms[0], rdm)
    similarity = {name: np.empty((len(layer_rdms), len(region_rdms))) for name in methods}
    whole_layers, whole_regions = find_complete(layer_rdms), find_complete(region_rdms)
    if len(find_complete(controls)) < len(controls):
        whole_layers = []
    others = [*(region_rdms[j] for j in whole_regions), *controls]
    for transform in dict.fromkeys(method.transform for method in methods.values() if whole_layers):
        prepared = np.empty((len(others), len(layer_rdms[0].dissimilarities)))
        for row, rdm in enumerate(others):
            prepared[row] = transform(rdm.dissimilarities, None)
        scales = {name: _scale(method, prepared) for name, method in methods.items() if method.transform is transform}
        for i in whole_layers:
            layer = transform(layer_rdms[i].dissimilarities, None)
            for name, factors in scales.items():
                similarity[name][i, whole_regions] = _relate(methods[name], layer, prepared, factors, len(controls))
    gaps = np.ones((len(layer_rdms), len(region_rdms)), dtype=bool)
    gaps[np.ix_(whole_layers, whole_regions)] = False
    for i, j in np.argwhere(gaps):
        for name in methods:
            similarity[name][i, j] = compare_rdms(layer_rdms[i], region_rdms[j], name, controls)
    return RsaScores(network, tuple(rdm.name for rdm in layer_rdms), tuple(rdm.name for rdm in region_rdms), similarity)


def _scale(method: Comparison, prepared: Sequence[Array] | Array) -> Array:
    return np.array([method.scale(row, len(row)) for row in prepared])


def _relate(method: Comparison, layer: Array, others: Array, scales: Array, n_controls: int) -> Array:
    """Return the similarities of one prepared RDM with several, of which the last are controls."""
    n = len(others) - n_controls
    scales[n:][np.isinf(scales[n:])] = 0  # a control without variance explains nothing
    with np.errstate(invalid="ignore", divide="ignore"):
        r = method.multiply(others, layer) * scales * method.scale(layer, len(layer))
        if not n_controls:
            return np.asarray(r)
        to_controls = np.array([method.multiply(others, row) for row in others[n:]]) * scales * scales[n:, None]
    return _partial(r[:n], r[n:], to_controls[:, :n], to_controls[:, n:])


def _partial(r: Array, layer: Array, regions: Array, controls: Array) -> Array:
    """Take what goes by way of the controls, (n_controls,) and (n_controls, n_regions), out of r (n_regions,)."""
    solved = np.linalg.pinv(controls, hermitian=True) @ np.column_stack([layer, regions])
    left = 1 - np.array([layer @ solved[:, 0], *np.einsum("zr,zr->r", regions, solved[:, 1:])])
    left[left < EXPLAINED] = np.nan
    return np.asarray((r - layer @ solved[:, 1:]) / np.sqrt(left[0] * left[1:]))


def require_room(n_items: int, n_layers: int, n_regions: int, memory: int) -> None:
    """Refuse an analysis that does not fit the memory, before its RDMs are computed.

    Parameters
    ----------
    n_items, n_layers, n_regions : int
        Stimuli, and how many RDMs of layers and of regions (and controls) there will be.
    memory : int
        Bytes to work in.

    Raises
    ------
    UsageError
        It needs more.
    """
    require_memory(n_items, n_layers + 2 * n_regions + RANKING, memory)


def find_complete(rdms: Sequence[Rdm]) -> list[int]:
    """Return the places of the RDMs of which no dissimilarity is missing."""
    return [i for i, rdm in enumerate(rdms) if np.isfinite(rdm.dissimilarities).all()]


def require_same_items(a: Rdm, b: Rdm) -> None:
    """Refuse two RDMs whose items differ, or come in another order."""
    if a.items != b.items:
        raise BadDataError(
            f"RDMs {a.name} ({len(a.items)} items) and {b.name} ({len(b.items)}) have other items or another order"
        )
