"""Representational dissimilarity matrices of regions and layers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np

from dnnbrain_app.errors import BadDataError, UnknownNameError, UsageError
from dnnbrain_app.records import Array, Gram, Rdm

logger = logging.getLogger(__name__)

METRICS = ("correlation",)
DOUBLE_PRECISION_COST = 1e9  # multiply-adds (n * n * n_voxels) up to which float64 costs nothing that one would notice
BLOCK = 2048  # stimuli whose products are in memory at once


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
    variance = np.array([row @ row for row in centred], dtype=np.float64)  # four times as exact as einsum in float32
    scale = _scale_patterns(variance, variance + n_voxels * means[:, 0] ** 2, 1e-12, items, f"region {name}")

    def multiply(rows: slice, columns: slice) -> Array:
        return np.asarray(centred[rows] @ centred[columns].T)  # BLAS sees where it is symmetric: half the work

    return Rdm(name, _fill_distances(scale, multiply), tuple(items), metric)


def compute_layer_rdm(gram: Gram, items: Sequence[str], memory: int) -> Rdm:
    r"""Compute the correlation distances between the activation patterns of a layer.

    .. math:: C_{ij} = K_{ij} - s_i s_j / D,

    with the row sums :math:`s` and the number of units :math:`D`, is the same as for centred patterns: no unit is left
    out or sampled. Where there is no K, blocks of it are made of X.

    Parameters
    ----------
    gram : Gram
        The layer.
    items : sequence of str, length n_stimuli
        The stimuli.
    memory : int
        Bytes to work in.

    Returns
    -------
    Rdm

    Raises
    ------
    UsageError
        The RDM does not fit the memory.
    BadDataError
        A stimulus activates all units alike.
    """
    require_memory(len(items), 1, memory)
    sums = gram.row_sums
    energy, products = _multiply_activations(gram)
    # the inner products were accumulated from float32 blocks: variation below 1e-3 of the mean is rounding
    scale = _scale_patterns(energy - sums * (sums / gram.n_features), energy, 1e-6, items, f"layer {gram.layer}")

    def multiply(rows: slice, columns: slice) -> Array:
        centred = np.outer(sums[rows], sums[columns] / -gram.n_features)
        centred += products(rows, columns)
        return centred

    return Rdm(gram.layer, _fill_distances(scale, multiply), tuple(items))


def _multiply_activations(gram: Gram) -> tuple[Array, Callable[[slice, slice], Array]]:
    """Return the diagonal of K, and a function that gives blocks of it, if need be from X."""
    if gram.K is not None:
        K = gram.K
        return K.diagonal(), lambda rows, columns: K[rows, columns]
    assert gram.X is not None  # records.Gram has one or the other
    X = gram.X
    energy = np.einsum("nd,nd->n", X, X, dtype=np.float64)
    return energy, lambda rows, columns: X[rows].astype(np.float64) @ X[columns].astype(np.float64).T


def require_memory(n_items: int, n_rdms: int, memory: int) -> None:
    """Refuse RDMs that have no room.

    Parameters
    ----------
    n_items : int
        Stimuli.
    n_rdms : int
        How many RDMs are in memory at once.
    memory : int
        Bytes for them.

    Raises
    ------
    UsageError
        They need more.
    """
    each = 4 * n_items * (n_items - 1)
    need = n_rdms * each + 24 * min(n_items, BLOCK) ** 2
    if need > memory:
        raise UsageError(
            f"an RDM of {n_items} stimuli takes {each / 1e9:.2f} GB, and the work with {n_rdms} at once "
            f"{need / 1e9:.2f} GB, of which {memory / 1e9:.2f} GB are there; take fewer stimuli, or allow more memory"
        )


def _scale_patterns(variance: Array, energy: Array, tolerance: float, items: Sequence[str], where: str) -> Array:
    """Return the reciprocal norm of each centred pattern; refuse patterns without variance."""
    for i in np.flatnonzero(variance <= tolerance * energy)[:1]:
        raise BadDataError(
            f"{where}: the pattern of {items[i]} is constant, so its correlation with others is undefined"
        )
    return np.asarray(1 / np.sqrt(variance))


def _fill_distances(scale: Array, multiply: Callable[[slice, slice], Array]) -> Array:
    """Divide products of centred patterns by their norms, a block of stimuli at a time."""
    n = len(scale)
    distances = np.empty(n * (n - 1) // 2)
    starts = np.arange(n) * n - np.arange(n) * (np.arange(n) + 3) // 2 - 1  # plus column: place in the upper triangle
    for top in range(0, n, BLOCK):
        for left in range(top, n, BLOCK):
            columns = slice(left, min(left + BLOCK, n))
            products = multiply(slice(top, top + BLOCK), columns)
            for i, row in enumerate(products, top):
                first = max(i + 1, left)
                place = slice(starts[i] + first, starts[i] + columns.stop)
                np.multiply(row[first - left :], scale[first : columns.stop] * -scale[i], out=distances[place])
    distances += 1
    return np.clip(distances, 0, 2, out=distances)
