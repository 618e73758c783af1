"""Representational dissimilarity matrices of regions and layers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np

from dnnbrain_app.errors import BadDataError, UnknownNameError, UsageError
from dnnbrain_app.records import Array, Gram, Rdm

logger = logging.getLogger(__name__)

METRICS = ("correlation", "cosine", "sqeuclidean")
DOUBLE_PRECISION_COST = 1e9  # multiply-adds (n * n * n_voxels) up to which float64 costs nothing that one would notice
BLOCK = 2048  # stimuli whose products are in memory at once


def compute_rdm(patterns: Array, items: Sequence[str], name: str, metric: str = "correlation") -> Rdm:
    r"""Compute the dissimilarities between the response patterns of a region.

    .. math::

        d_{ij} = 1 - \frac{C_{ij}}{\sqrt{C_{ii} C_{jj}}} \quad \text{or} \quad
        d_{ij} = \frac{C_{ii} + C_{jj} - 2 C_{ij}}{V}, \qquad C = \tilde X \tilde X^\top,

    where :math:`\tilde X` are the patterns, for ``correlation`` each minus its mean over voxels, for ``sqeuclidean``
    (the second form; per voxel, so that regions compare) minus the mean pattern. They are centred before they are
    multiplied, so float32, used where the product is large, is exact to 1e-6.

    Parameters
    ----------
    patterns : array of shape (n_items, n_voxels)
        Responses. Voxels with a value that is not finite are left out, for all items.
    items : sequence of str, length n_items
        The stimuli.
    name : str
        Name of the region.
    metric : {'correlation', 'cosine', 'sqeuclidean'}
        Kind of dissimilarity.

    Returns
    -------
    Rdm

    Raises
    ------
    UnknownNameError
        Another metric.
    BadDataError
        Fewer than two voxels, or a pattern that is the same in all voxels (``cosine``: zero in all).
    """
    require_metric(metric)
    with np.errstate(invalid="ignore", over="ignore"):
        means = patterns.mean(axis=1, keepdims=True)
    if not np.isfinite(means).all():
        patterns = patterns[:, find_voxels(patterns, name)]
    if patterns.shape[1] < 2:
        raise BadDataError(f"region {name}: {patterns.shape[1]} voxel(s) with signal; a pattern needs at least 2")
    n, n_voxels = patterns.shape
    if n * n * n_voxels <= DOUBLE_PRECISION_COST:
        patterns = patterns.astype(np.float64)
    means = patterns.mean(axis=1, keepdims=True)
    centred = patterns
    if metric != "cosine":
        centred = patterns - (means if metric == "correlation" else patterns.mean(axis=0))
    variance = np.array([row @ row for row in centred], dtype=np.float64)  # four times as exact as einsum in float32
    energy = variance + n_voxels * means[:, 0] ** 2
    weights = _weigh_products(metric, variance, energy, n_voxels, 1e-12, items, f"region {name}")

    def multiply(rows: slice, columns: slice) -> Array:
        return np.asarray(centred[rows] @ centred[columns].T)  # BLAS sees where it is symmetric: half the work

    return Rdm(name, _fill_distances(*weights, multiply), tuple(items), metric)


def find_voxels(patterns: Array, name: str) -> Array:
    """Return which voxels (n_voxels,) have a finite value in every pattern (n_patterns, n_voxels), and log the others.

    The name is the region's.
    """
    finite = np.asarray(np.isfinite(patterns).all(axis=0))
    if not finite.all():
        logger.info("region %s: %d of %d voxels have no signal and are left out", name, (~finite).sum(), finite.size)
    return finite


def require_metric(metric: str) -> None:
    """Refuse a metric that patterns without repeats do not have."""
    if metric not in METRICS:
        raise UnknownNameError("metric", metric, METRICS)


def compute_attribute_rdm(values: Array, items: Sequence[str], name: str) -> Rdm:
    """Make a model RDM of an attribute of the stimuli: how far apart numbers are, or 1 where categories differ.

    Parameters
    ----------
    values : array of shape (n_items,)
        Numbers, or anything else for categories. A stimulus without a value (NaN, None, '' or 'n/a') has no
        dissimilarities (NaN).
    items : sequence of str, length n_items
        The stimuli.
    name : str
        Name of the attribute.

    Returns
    -------
    Rdm
        Of metric ``difference`` or ``category``.

    Raises
    ------
    BadDataError
        All stimuli that have a value have the same.
    """
    values = np.asarray(values)
    numeric = values.dtype.kind in "iuf"
    missing = np.array([value is None or value != value or value in ("", "n/a") for value in values.tolist()])
    if numeric:
        codes = values.astype(np.float64)
    else:
        codes = np.unique(values.astype(str), return_inverse=True)[1].astype(np.float64)
    codes[missing] = np.nan
    distances = np.concatenate([np.abs(codes[i + 1 :] - codes[i]) for i in range(len(codes))])
    if not (distances > 0).any():
        raise BadDataError(f"attribute {name}: all stimuli have the same value, so that it says nothing of them")
    if not numeric:
        distances = np.minimum(distances, 1)
    return Rdm(name, distances, tuple(items), "difference" if numeric else "category")


def compute_layer_rdm(gram: Gram, items: Sequence[str], memory: int, metric: str = "correlation") -> Rdm:
    r"""Compute the dissimilarities between the activation patterns of a layer.

    .. math:: C_{ij} = K_{ij} - s_i s_j / D,

    with the row sums :math:`s` and the number of units :math:`D`, is the same as for centred patterns: no unit is left
    out or sampled. ``cosine`` and ``sqeuclidean`` follow from K itself. Where there is no K, blocks are made of X.

    Parameters
    ----------
    gram : Gram
        The layer.
    items : sequence of str, length n_stimuli
        The stimuli.
    memory : int
        Bytes to work in.
    metric : {'correlation', 'cosine', 'sqeuclidean'}
        As of `compute_rdm`.

    Returns
    -------
    Rdm

    Raises
    ------
    UnknownNameError
        Another metric.
    UsageError
        The RDM does not fit the memory.
    BadDataError
        A stimulus activates all units alike (``cosine``: none).
    """
    require_metric(metric)
    require_memory(len(items), 1, memory)
    sums = gram.row_sums if metric == "correlation" else np.zeros(len(items))
    energy, products = _multiply_activations(gram)
    # the inner products were accumulated from float32 blocks: variation below 1e-3 of the mean is rounding
    variance = energy - sums * (sums / gram.n_features)
    weights = _weigh_products(metric, variance, energy, gram.n_features, 1e-6, items, f"layer {gram.layer}")

    def multiply(rows: slice, columns: slice) -> Array:
        if metric != "correlation":
            return products(rows, columns)
        centred = np.outer(sums[rows], sums[columns] / -gram.n_features)
        centred += products(rows, columns)
        return centred

    return Rdm(gram.layer, _fill_distances(*weights, multiply), tuple(items), metric)


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


def _weigh_products(
    metric: str, variance: Array, energy: Array, n_features: int, tolerance: float, items: Sequence[str], where: str
) -> tuple[Array, Array, float]:
    """Return scale and offset of each pattern, and the largest distance there can be.

    Patterns without variance are refused where distances are divided by it.
    """
    if metric == "sqeuclidean":
        return np.full(len(variance), np.sqrt(2 / n_features)), variance / n_features, np.inf
    for i in np.flatnonzero(variance <= tolerance * energy)[:1]:
        trouble = "zero, so its angle" if metric == "cosine" else "constant, so its correlation"
        raise BadDataError(f"{where}: the pattern of {items[i]} is {trouble} with others is undefined")
    return np.asarray(1 / np.sqrt(variance)), np.full(len(variance), 0.5), 2


def _fill_distances(scale: Array, offset: Array, largest: float, multiply: Callable[[slice, slice], Array]) -> Array:
    """Fill in offset_i + offset_j - scale_i scale_j C_ij, a block of stimuli at a time."""
    n = len(scale)
    distances = np.empty(n * (n - 1) // 2)
    starts = np.arange(n) * n - np.arange(n) * (np.arange(n) + 3) // 2 - 1  # plus column: place in the upper triangle
    for top in range(0, n, BLOCK):
        for left in range(top, n, BLOCK):
            columns = slice(left, min(left + BLOCK, n))
            products = multiply(slice(top, top + BLOCK), columns)
            for i, row in enumerate(products, top):
                first = max(i + 1, left)
                out = distances[starts[i] + first : starts[i] + columns.stop]
                np.multiply(row[first - left :], scale[first : columns.stop] * -scale[i], out=out)
                out += offset[first : columns.stop] + offset[i]
    return np.clip(distances, 0, largest, out=distances)
