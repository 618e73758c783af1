"""Inner products between stimuli, accumulated over blocks of features."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from dnnbrain_app.errors import BadDataError
from dnnbrain_app.records import Array


def accumulate_gram(feature_blocks: Iterable[Array]) -> tuple[Array, Array]:
    r"""Compute :math:`K = \sum_b B_b B_b^\top` and :math:`s = \sum_b B_b \mathbf{1}`.

    With :math:`X = [B_1 B_2 \dots]`, :math:`K = X X^\top` and :math:`s = X \mathbf{1}`, though X is never whole in
    memory. Each product is in float32 (BLAS ``ssyrk``: half the work of a general product), the sums over blocks are
    in float64, so blocks of a few thousand features keep K to about 1e-7 of its diagonal.

    Parameters
    ----------
    feature_blocks : iterable of array of shape (n_stimuli, n_block_features)
        At least one.

    Returns
    -------
    K : array of shape (n_stimuli, n_stimuli)
        float64, exactly symmetric.
    row_sums : array of shape (n_stimuli,)
        float64.

    Raises
    ------
    BadDataError
        If there is no block.
    """
    K: Array | None = None
    for block in feature_blocks:
        B = np.asarray(block, dtype=np.float32)
        if K is None:
            K, row_sums = np.zeros((len(B), len(B))), np.zeros(len(B))
        K += B @ B.T  # numpy calls syrk only for one array and its own transpose
        row_sums += B.sum(axis=1, dtype=np.float64)
    if K is None:
        raise BadDataError("a Gram of no features")
    return K, row_sums
