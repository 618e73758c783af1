"""Inner products between stimuli, accumulated over blocks of features."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

import numpy as np
from threadpoolctl import threadpool_limits

from dnnbrain_app.errors import BadDataError
from dnnbrain_app.records import Array

_FEW = 512  # products of so few stimuli are so short that BLAS's threads would mostly wait for each other


def accumulate_gram(feature_blocks: Iterable[Array]) -> tuple[Array, Array]:
    r"""Compute :math:`K = \sum_b B_b B_b^\top` and :math:`s = \sum_b B_b \mathbf{1}`.

    With :math:`X = [B_1 B_2 \dots]`, :math:`K = X X^\top` and :math:`s = X \mathbf{1}`, though X is never whole in
    memory. Each product is in float32 (BLAS ``ssyrk``: half the work of a general product), the sums over blocks are in
    float64. What all stimuli have in common may be a thousand times what they differ by, and every analysis takes it
    out; so that rounding is relative to the differences, it is taken out before the product and put back in float64:
    with the mean :math:`m` over stimuli and :math:`C = B - \mathbf{1} m^\top`,

    .. math:: B B^\top = C C^\top + C m \mathbf{1}^\top + \mathbf{1} (C m)^\top + m^\top m \mathbf{1} \mathbf{1}^\top.

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
    blocks = iter(feature_blocks)
    first = next(blocks, None)
    if first is None:
        raise BadDataError("a Gram of no features")
    n = len(first)
    K, row_sums, shared, common = np.zeros((n, n)), np.zeros(n), np.zeros(n), 0.0
    with threadpool_limits(1 if n <= _FEW else None, "blas"):
        for block in chain([first], blocks):
            B = np.asarray(block, dtype=np.float32)
            mean = B.mean(axis=0)  # any vector near the mean serves
            C = B - mean
            K += C @ C.T  # numpy calls syrk only for one array and its own transpose
            shared += C @ mean
            common += float(np.dot(mean.astype(np.float64), mean))
            row_sums += B.sum(axis=1, dtype=np.float64)
    K += np.add.outer(shared, shared) + common
    return K, row_sums
