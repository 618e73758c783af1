"""Which scores are more than chance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import false_discovery_control

from dnnbrain_app.records import Array, Significance

FDR_LEVEL = 0.05
BLOCK = 64  # neighbouring voxels that share a permutation


@dataclass(frozen=True, slots=True, eq=False)
class Exchange:
    """Which orders of the rows are as likely as the true one where there is nothing to find.

    Parameters
    ----------
    n : int
        Rows.
    blocks : array of shape (n,), optional
        Rows change places within their block only. Default: all rows are one block.
    turned : bool
        Whether a block is turned by a random number of rows, its last ones coming first, rather than shuffled: volumes
        of a run keep their autocorrelation.
    """

    n: int
    blocks: Array | None = None
    turned: bool = False

    def draw(self, seed: int) -> Array:
        """Return an order of the rows, the same for the same seed: orders of many rows are too large to keep."""
        rng = np.random.default_rng(seed)
        if self.blocks is None:
            return rng.permutation(self.n)
        order = np.empty(self.n, dtype=int)
        for block in np.unique(self.blocks):
            rows = np.flatnonzero(self.blocks == block)
            order[rows] = np.roll(rows, rng.integers(1, max(len(rows), 2))) if self.turned else rng.permutation(rows)
        return order


@dataclass(frozen=True, slots=True, eq=False)
class NullResponses:
    """Responses whose rows are permuted, drawn when they are needed: blocks of voxels, each with its own order.

    Parameters
    ----------
    seeds : array of int, shape (n_blocks,)
        From each, the order of the rows in a block.
    starts : array of int, shape (n_blocks,)
        First voxel of each block.
    width : int
        Voxels of a block.
    exchange : Exchange
        The orders there are.
    """

    seeds: Array
    starts: Array
    width: int
    exchange: Exchange

    def __len__(self) -> int:
        return len(self.starts) * self.width

    def draw(self, Y: Array, chunk: slice) -> Callable[[Array], Array]:
        """Return a function from rows to the permuted responses of ``chunk``, whole blocks: (n_rows, n_voxels)."""
        blocks = range(chunk.start // self.width, chunk.stop // self.width)
        orders = [self.exchange.draw(self.seeds[i]) for i in blocks]
        columns = [slice(self.starts[i], self.starts[i] + self.width) for i in blocks]
        return lambda rows: np.concatenate(
            [Y[order[rows], column] for order, column in zip(orders, columns, strict=True)], axis=1
        )


def permute_responses(n_voxels: int, n_null: int, rng: np.random.Generator, exchange: Exchange) -> NullResponses:
    """Choose voxels and permutations for about ``n_null`` voxels without signal.

    Parameters
    ----------
    n_voxels : int
        How many voxels the responses have.
    n_null : int
        How many voxels to draw; rounded up to whole blocks.
    rng : numpy.random.Generator
        Draws places and orders.
    exchange : Exchange
        The orders there are.
    """
    width = min(BLOCK, n_voxels)
    n_blocks = -(-n_null // width)
    seeds = rng.integers(2**63, size=n_blocks)
    return NullResponses(seeds, rng.integers(n_voxels - width + 1, size=n_blocks), width, exchange)


def compute_p_values(scores: Array, null: Array) -> Array:
    r"""Compare scores with their distribution under the null hypothesis, one-sided.

    .. math:: p = \frac{1 + \#\{null \ge score\}}{1 + n_{null}}

    Parameters
    ----------
    scores : array of shape (n,)
        NaN gives NaN.
    null : array of shape (n_null,)
        The same score where there is nothing to find; NaN does not count.

    Returns
    -------
    array of shape (n,)
        P values, never 0 (Phipson & Smyth 2010, doi:10.2202/1544-6115.1585).
    """
    null = np.sort(null[np.isfinite(null)])
    p = (1 + len(null) - np.searchsorted(null, scores, side="left")) / (1 + len(null))
    return np.where(np.isnan(scores), np.nan, p)


def adjust_fdr(p: Array) -> Array:
    r"""Turn p values into the lowest false discovery rates at which they are significant (Benjamini & Hochberg 1995).

    .. math:: q_{(i)} = \min_{j \ge i} \min(1, m \, p_{(j)} / j)

    for the :math:`m` tests in rising order. It holds for independent tests, and for tests that go together, as those of
    neighbouring voxels do.

    Parameters
    ----------
    p : array of shape (n,)
        P values; NaN gives NaN and does not count as a test.

    Returns
    -------
    array of shape (n,)
    """
    q = np.full(p.shape, np.nan)
    tested = np.isfinite(p)
    if tested.any():
        q[tested] = false_discovery_control(p[tested])
    return q


def weigh_scores(scores: Array, null: Array, highest: Array) -> Significance:
    r"""Test the scores of a map in three ways, one-sided.

    * By itself, each voxel against all permuted voxels (`compute_p_values`): what a permuted voxel scores depends on
      the stimuli, the layers and the folds, and hardly on the voxel, so that one distribution serves all.
    * At a false discovery rate, over the voxels of the map (`adjust_fdr`).
    * At a family-wise error rate: against the highest score in the map when all voxels get the same permutation, so
      that what neighbours have in common stays (Nichols & Holmes 2002). It needs no more permutations to be exact:
      with 19 the lowest p is .05, with more it is lower and more is found.

    Parameters
    ----------
    scores : array of shape (n_voxels,)
        NaN gives NaN.
    null : array of shape (n_null,)
        Scores of voxels whose stimuli were permuted.
    highest : array of shape (n_permutations,)
        Highest score over all voxels, in each permutation.

    References
    ----------
    Nichols & Holmes (2002), doi:10.1002/hbm.1058.
    """
    p = compute_p_values(scores, null)
    return Significance(p, adjust_fdr(p), compute_p_values(scores, highest) if len(highest) else None)


def choose_best_layer(r: Array, null: Array, highest: Array) -> tuple[Array, Significance]:
    """Choose the layer that predicts each voxel best, where the best is better than chance.

    The highest score over layers is compared with the highest scores of voxels whose stimuli were permuted, so that
    the choice among layers, and all that folds and penalties do to the scores, is in the null distribution as well.

    Parameters
    ----------
    r : array of shape (n_layers, n_voxels)
        Scores; NaN never wins.
    null : array of shape (n_layers, n_null)
        Scores of permuted voxels.
    highest : array of shape (n_layers, n_permutations)
        Highest score over all voxels, in each permutation.

    Returns
    -------
    best : array of int, shape (n_voxels,)
        From 1; 0 where no layer is significant at a false discovery rate of 5 % over voxels.
    significance : Significance
        Of the highest score over layers, (n_voxels,).
    """
    comparable = np.where(np.isnan(r), -np.inf, r)
    top = comparable.max(axis=0)
    significance = weigh_scores(np.where(np.isinf(top), np.nan, top), null.max(axis=0), highest.max(axis=0))
    found = significance.q_value < FDR_LEVEL
    return np.where(found, comparable.argmax(axis=0) + 1, 0), significance
