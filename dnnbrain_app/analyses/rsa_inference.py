"""Whether a layer's RDM agrees with a region's beyond chance: permutation of the stimuli's labels.

Stimuli are permuted, never pairs: the distances of a stimulus to all others move together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import false_discovery_control

from dnnbrain_app.analyses.comparisons import Comparison, find_comparison
from dnnbrain_app.analyses.rsa import find_complete, require_same_items
from dnnbrain_app.errors import UsageError
from dnnbrain_app.records import Array, Rdm

BLOCK = 2**16  # pairs that are gathered at a time: they stay in the cache
ROUNDING = 1e-4  # of a standard deviation, by which a permuted score counts as equal


@dataclass(frozen=True, slots=True, eq=False)
class RsaSignificance:
    """P values, one-sided, of the similarity of layers and regions.

    Parameters
    ----------
    p : array of shape (n_layers, n_regions)
        Uncorrected.
    p_fwe : array of shape (n_layers, n_regions)
        Corrected for the choice among layers, by the maximum over layers.
    q : array of shape (n_layers, n_regions)
        ``p_fwe`` of each layer, adjusted for the regions: significant where below the false discovery rate wanted.
    """

    p: Array
    p_fwe: Array
    q: Array


def permute_labels(
    layer_rdms: Sequence[Rdm],
    region_rdms: Sequence[Rdm],
    comparison: str,
    *,
    n_permutations: int,
    rng: np.random.Generator,
    memory: int,
    controls: Sequence[Rdm] = (),
    progress: Callable[[int, int], None] | None = None,
) -> RsaSignificance:
    r"""Compare similarities with those of layers whose stimuli are permuted.

    .. math:: p = \frac{1 + \#\{r_\pi \ge r\}}{1 + n_\pi}

    All layers and regions share each permutation, which keeps how they depend on each other. Before the maximum over
    layers is taken, similarities are standardised by mean and standard deviation over the permutations: a layer whose
    RDM has few distinct values, or no zero at chance (``cosine``), would count for more, or for less, than the others.

    With controls, it is what they leave of a layer's prepared RDM that is permuted, so that layer and controls may be
    related, as may region and controls (Dekker et al. 2007, doi:10.1007/s11336-007-9016-1).

    Parameters
    ----------
    layer_rdms, region_rdms : sequence of Rdm
        Of the same items in the same order.
    comparison : str
        A name in `comparisons.COMPARISONS`; ``tau-a``, which is no inner product, takes thousands of times longer.
    n_permutations : int
        How many.
    rng : numpy.random.Generator
        Draws them.
    memory : int
        Bytes to work in.
    controls : sequence of Rdm
        What layers and regions share with these does not count.
    progress : callable, optional
        Called with (done, total), in permutations.

    Returns
    -------
    RsaSignificance
        NaN for an RDM with missing values or without variance.

    Raises
    ------
    UnknownNameError
        Another comparison.
    UsageError
        The memory is too small, or ``tau-a`` has controls.
    BadDataError
        The items differ between RDMs.
    """
    method = find_comparison(comparison)
    if controls and not method.linear:
        raise UsageError(f"{comparison} with controls has no p values; compare with spearman or rho-a")
    for rdm in (*layer_rdms, *region_rdms, *controls):
        require_same_items(layer_rdms[0], rdm)
    layers, regions = find_complete(layer_rdms), find_complete(region_rdms)
    p = np.full((2, len(layer_rdms), len(region_rdms)), np.nan)
    if layers and regions and len(find_complete(controls)) == len(controls):
        n = len(layer_rdms[0].items)
        _require_room(n, len(layers), len(regions), len(controls), memory)
        A, B = _prepare([layer_rdms[i] for i in layers], method), _prepare([region_rdms[j] for j in regions], method)
        scores = np.empty((n_permutations + 1, len(layers), len(regions)), dtype=np.float32)
        orders = _draw_orders(n, n_permutations, rng)
        for k, row in enumerate(_score_orders(A, B, _prepare(controls, method), orders, n, method)):
            scores[k] = row
            if progress and k:
                progress(k, n_permutations)
        p[:, np.array(layers)[:, None], regions] = _count_exceeding(scores)
    return RsaSignificance(p[0], p[1], _adjust_regions(p[1]))


def _require_room(n: int, n_layers: int, n_regions: int, n_controls: int, memory: int) -> None:
    need = 4 * n * n * (2 * n_layers + n_regions + n_controls + 6)
    if need > memory:
        raise UsageError(
            f"permuting {n_layers} RDMs of {n} stimuli against {n_regions} takes {need / 1e9:.2f} GB, of which "
            f"{memory / 1e9:.2f} GB are there; compare fewer layers or regions at once, or allow more memory"
        )


def _prepare(rdms: Sequence[Rdm], method: Comparison) -> Array:
    """Return vectors whose products are similarities: (n_rdms, n_pairs)."""
    n_pairs = len(rdms[0].dissimilarities) if rdms else 0
    X = np.empty((len(rdms), n_pairs), dtype=np.float32)
    for row, rdm in zip(X, rdms, strict=True):
        x = method.transform(rdm.dissimilarities, None)
        with np.errstate(invalid="ignore"):
            row[:] = x * method.scale(x, n_pairs) if method.linear else x
    return X


def _draw_orders(n: int, n_permutations: int, rng: np.random.Generator) -> Iterator[Array]:
    """Draw orders of the stimuli, the one they have first."""
    yield np.arange(n)
    for _ in range(n_permutations):
        yield rng.permutation(n)


def _score_orders(A: Array, B: Array, Z: Array, orders: Iterator[Array], n: int, method: Comparison) -> Iterator[Array]:
    """Give the similarities of A, in each order, with B, without what goes by way of Z: (n_layers, n_regions)."""
    n_layers, n_regions = len(A), len(B)
    if len(Z):
        basis = np.linalg.qr(Z.T.astype(np.float64))[0].T.astype(np.float32)
        A = A - (A @ basis.T) @ basis
        B = np.concatenate([B - (B @ basis.T) @ basis, basis])
        left = np.einsum("lp,lp->l", A, A)[:, None], np.einsum("rp,rp->r", B, B)[:n_regions]
    swapped = n_regions < n_layers and not len(Z)
    if swapped:  # permuting the one or the other is the same, and gathering the values is what takes the time
        A, B = B, A
    rows, columns = (indices.astype(np.int32) for indices in np.triu_indices(n, 1))
    square = np.zeros((n, n, len(A)), dtype=np.float32)  # layers last, so that one look finds all of them
    square[rows, columns] = A.T
    square += square.transpose(1, 0, 2)
    flat = square.reshape(n * n, len(A))
    for order in orders:
        if method.linear:
            products = np.zeros((len(A), len(B)), dtype=np.float32)
            for start in range(0, len(rows), BLOCK):
                block = slice(start, start + BLOCK)
                products += (B[:, block] @ flat.take(order[rows[block]] * n + order[columns[block]], axis=0)).T
        else:
            permuted = flat.take(order[rows] * n + order[columns], axis=0).T
            products = np.array([method.multiply(B, a) for a in permuted])
        if len(Z):
            explained = np.square(products[:, n_regions:]).sum(axis=1, keepdims=True)
            products = products[:, :n_regions] / np.sqrt((left[0] - explained) * left[1])
        yield products.T if swapped else products


def _count_exceeding(scores: Array) -> Array:
    """Return p values, uncorrected and for the maximum over layers, of the first of many scores: (2, ...)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        z = (scores - scores.mean(axis=0)) / scores.std(axis=0)
    reached = z[0] - ROUNDING
    p = np.array(
        [(z >= reached).mean(axis=0), (np.nanmax(z, axis=1, keepdims=True, initial=-np.inf) >= reached).mean(axis=0)]
    )
    return np.where(np.isnan(z[0]), np.nan, p)


def _adjust_regions(p: Array) -> Array:
    """Adjust each layer's p values for the regions (Benjamini & Hochberg 1995); NaN does not count."""
    q = np.full(p.shape, np.nan)
    for row, values in zip(q, p, strict=True):
        there = np.isfinite(values)
        if there.any():
            row[there] = false_discovery_control(values[there])
    return q
