"""Representational dissimilarity matrices of regions and layers."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from dnnbrain_app.errors import BadDataError, UnknownNameError
from dnnbrain_app.records import Array, Gram, Rdm

logger = logging.getLogger(__name__)

METRICS = ("correlation",)
DOUBLE_PRECISION_COST = 1e9  # multiply-adds (n * n * n_voxels) up to which float64 costs nothing that one would notice


def compute_rdm(patterns: Array, items: Sequence[str], name: str, metric: str = "correlation") -> Rdm:
    r"""Compute the dissimilarities between the response patterns of a region.

    .. math:: d_{ij} = 1 - \frac{C_{ij}}{\sqrt{C_{ii} C_{jj}}}, \qquad C = \tilde X \tilde X^\top,

    where :math:`\tilde X` are the patterns, each minus its mean over voxels. Patterns are centred before they are
    multiplied, so float32, used where the product is large, is exact to 1e-6.

    Parameters
    ----------
    patterns : array of shape (n_items, n_voxels)
        Responses. Voxels with a value that is not finite are left out, for all items.
    items : sequence of str, length n_items
        The stimuli.
    name : str
        Name of the region.
    metric : {'correlation'}
        Kind of dissimilarity.

    Returns
    -------
    Rdm

    Raises
    ------
    UnknownNameError
        Another metric.
    BadDataError
        Fewer than two voxels, or a pattern that is the same in all voxels.
    """
    if metric not in METRICS:
        raise UnknownNameError("metric", metric, METRICS)
    with np.errstate(invalid="ignore", over="ignore"):
        means = patterns.mean(axis=1, keepdims=True)
    if not np.isfinite(means).all():
        finite = np.asarray(np.isfinite(patterns).all(axis=0))
        logger.info("region %s: %d of %d voxels have no signal and are left out", name, (~finite).sum(), finite.size)
        patterns = patterns[:, finite]
    if patterns.shape[1] < 2:
        raise BadDataError(f"region {name}: {patterns.shape[1]} voxel(s) with signal; a pattern needs at least 2")
    n, n_voxels = patterns.shape
    if n * n * n_voxels <= DOUBLE_PRECISION_COST:
        patterns = patterns.astype(np.float64)
    means = patterns.mean(axis=1, keepdims=True)
    centred = patterns - means
    products = centred @ centred.T  # BLAS sees that it is symmetric: half the work
    energy = products.diagonal() + n_voxels * means[:, 0] ** 2
    return Rdm(name, _correlation_distance(products, energy, 1e-12, items, f"region {name}"), tuple(items), metric)


def compute_layer_rdm(gram: Gram, items: Sequence[str]) -> Rdm:
    r"""Compute the correlation distances between the activation patterns of a layer, from its Gram.

    .. math:: C_{ij} = K_{ij} - s_i s_j / D,

    with the row sums :math:`s` and the number of units :math:`D`, is the same as for centred patterns: no unit is left
    out or sampled.

    Parameters
    ----------
    gram : Gram
        The layer.
    items : sequence of str, length n_stimuli
        The stimuli.

    Returns
    -------
    Rdm

    Raises
    ------
    BadDataError
        A stimulus activates all units alike.
    """
    products = gram.K - np.outer(gram.row_sums, gram.row_sums / gram.n_features)
    # the inner products were accumulated from float32 blocks: variation below 1e-3 of the mean is rounding
    distances = _correlation_distance(products, gram.K.diagonal(), 1e-6, items, f"layer {gram.layer}")
    return Rdm(gram.layer, distances, tuple(items))


def _correlation_distance(products: Array, energy: Array, tolerance: float, items: Sequence[str], where: str) -> Array:
    """Divide products of centred patterns by their norms; refuse patterns without variance."""
    variance = products.diagonal()
    for i in np.flatnonzero(variance <= tolerance * energy)[:1]:
        raise BadDataError(
            f"{where}: the pattern of {items[i]} is constant, so its correlation with others is undefined"
        )
    scale = 1 / np.sqrt(variance.astype(np.float64))
    n = len(products)
    distances = np.empty(n * (n - 1) // 2)
    start = 0
    for i in range(n - 1):
        row = distances[start : start + n - 1 - i]
        np.multiply(products[i, i + 1 :], scale[i + 1 :] * -scale[i], out=row)
        start += len(row)
    distances += 1
    return np.clip(distances, 0, 2, out=distances)
