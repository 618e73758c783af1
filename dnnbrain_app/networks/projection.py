"""Sparse random projection, for stimuli so many that their inner products have no room."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.sparse import csc_matrix
from sklearn.random_projection import SparseRandomProjection

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
            self._matrices[layer] = self._draw(layer, X.shape[1])
        mean = X.mean(axis=1, dtype=np.float64)
        C = X - mean[:, None].astype(np.float32)
        # by columns of R: it and the features are read once, in order, and what is added to stays in the cache
        Z = np.empty((len(X), self._n_dimensions), np.float32)
        Z[:, :-1] = (self._matrices[layer] @ C.T).T
        Z[:, -1] = np.sqrt(X.shape[1]) * mean
        return Z

    def _draw(self, layer: str, n_features: int) -> csc_matrix:
        digest = hashlib.sha256(f"{self._seed} {layer}".encode()).digest()
        sklearns = SparseRandomProjection(self._n_dimensions - 1, random_state=int.from_bytes(digest[:4]))
        return sklearns.fit(np.zeros((1, n_features), np.float32)).components_.tocsc()


def sum_rows(X: Array) -> Array:
    r"""Return what the row sums of a projected layer must be, so that correlations come out as those of the layer.

    The correlation of patterns needs :math:`K_{ij} - s_i s_j / D`; with :math:`k` dimensions in the place of
    :math:`D`, the sums are :math:`\sqrt{k / D} \, s`.
    """
    sums: Array = np.sqrt(X.shape[1]) * X[:, -1].astype(np.float64)
    return sums
