"""Sparse random projection, for stimuli so many that their inner products have no room."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.sparse import csc_matrix

from dnnbrain_app.errors import UsageError
from dnnbrain_app.networks.layers import Layer
from dnnbrain_app.records import Array

PROJECTION = "projection"  # the kind of a layer of which only a projection is kept


class Projector:
    r"""Projects the features of wide layers, so that distances and inner products between stimuli nearly stay.

    :math:`Z = C R^\top` with :math:`R` (k, D), whose entries are :math:`\pm\sqrt{s / k}` with probability
    :math:`1 / 2s` each and else 0, :math:`s = \sqrt{D}` (Li, Hastie and Church 2006, Very sparse random projections).
    Squared distances then err by about :math:`\sqrt{2 / k}`.

    A random projection mixes a pattern's mean with all the rest, and then nothing that is defined by it, as the
    correlation between patterns is, could be computed. Therefore the patterns without their means,
    :math:`C = X - \bar x \mathbf{1}^\top`, are projected to n_dimensions - 1, and the last dimension is
    :math:`\sqrt{D} \, \bar x`; inner products of :math:`X` are the same sum.

    Parameters
    ----------
    n_dimensions : int
        What wider layers are projected to; others stay as they are.
    seed : int
        With a layer's name and width, it makes the layer's matrix.

    Raises
    ------
    UsageError
        Fewer than two dimensions.
    """

    def __init__(self, n_dimensions: int, seed: int) -> None:
        if n_dimensions < 2:
            raise UsageError(f"projection to {n_dimensions} dimensions: should be 2 or more.")
        self._n_dimensions = n_dimensions
        self._seed = seed
        self._matrices: dict[str, csc_matrix] = {}

    def plan(self, layers: Sequence[Layer]) -> list[Layer]:
        """Return the layers with the shapes that they will have."""
        k = self._n_dimensions
        return [
            replace(layer, shape=(k,), n_features=k, kind=PROJECTION) if layer.n_features > k else layer
            for layer in layers
        ]

    def apply(self, layer: str, X: Array) -> Array:
        """Project rows of a layer.

        Parameters
        ----------
        layer : str
            Its name.
        X : array of shape (n, n_features)
            float32. What a row becomes does not depend on the others.

        Returns
        -------
        array of shape (n, min(n_features, n_dimensions))
            float32.
        """
        if X.shape[1] <= self._n_dimensions:
            return X
        if layer not in self._matrices:
            digest = hashlib.sha256(f"{self._seed} {layer}".encode()).digest()
            rng = np.random.default_rng(int.from_bytes(digest))
            self._matrices[layer] = draw_matrix(self._n_dimensions - 1, X.shape[1], rng)
        mean = X.mean(axis=1, dtype=np.float64)
        C = X - mean[:, None].astype(np.float32)
        # by columns of R: it and the features are read once, in order, and what is added to stays in the cache
        Z = np.empty((len(X), self._n_dimensions), np.float32)
        Z[:, :-1] = (self._matrices[layer] @ C.T).T
        Z[:, -1] = np.sqrt(X.shape[1]) * mean
        return Z


def draw_matrix(n_rows: int, n_columns: int, rng: np.random.Generator) -> csc_matrix:
    r"""Draw :math:`R` as scikit-learn's `SparseRandomProjection` does, which takes fifty times as long.

    Whether an entry is 0 is independent of all others, so the gaps between those that are not, column after column,
    follow the geometric distribution.
    """
    density = 1 / np.sqrt(n_columns)
    n_entries = n_rows * n_columns
    expected = n_entries * density
    gaps = rng.geometric(density, int(expected + 10 * np.sqrt(expected) + 10))  # more than enough
    places = np.cumsum(gaps) - 1
    places = places[: np.searchsorted(places, n_entries)]
    size = np.sqrt(1 / (density * n_rows))
    values = np.where(rng.random(len(places)) < 0.5, -size, size).astype(np.float32)
    starts = np.searchsorted(places, n_rows * np.arange(n_columns + 1))
    return csc_matrix((values, places % n_rows, starts), shape=(n_rows, n_columns))


def sum_rows(X: Array) -> Array:
    r"""Return what the row sums of a projected layer must be, so that correlations come out as those of the layer.

    The correlation of patterns needs :math:`K_{ij} - s_i s_j / D`; with :math:`k` dimensions in the place of
    :math:`D`, the sums are :math:`\sqrt{k / D} \, s`.
    """
    sums: Array = np.sqrt(X.shape[1]) * X[:, -1].astype(np.float64)
    return sums
