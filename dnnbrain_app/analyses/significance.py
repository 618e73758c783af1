"""Which scores are more than chance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import false_discovery_control

from dnnbrain_app.records import Array

FDR_LEVEL = 0.05
BLOCK = 64  # neighbouring voxels that share a permutation


@dataclass(frozen=True, slots=True, eq=False)
class NullResponses:
    """Responses whose rows are permuted, drawn when they are needed: blocks of voxels, each with its own order.

    Parameters
    ----------
    seeds : array of int, shape (n_blocks,)
        From each, the order of the stimuli in a block: orders of many stimuli are too large to keep.
    starts : array of int, shape (n_blocks,)
        First voxel of each block.
    width : int
        Voxels of a block.
    runs : array of shape (n,), optional
        Where the rows are volumes, the run of each: each run is turned by a random number of volumes, its last ones
        coming first, so that a voxel's noise keeps its autocorrelation.
    """

    seeds: Array
    starts: Array
    width: int
    runs: Array | None = None

    def __len__(self) -> int:
        return len(self.starts) * self.width

    def draw(self, Y: Array, chunk: slice) -> Callable[[Array], Array]:
        """Return a function from rows to the permuted responses of ``chunk``, whole blocks: (n_rows, n_voxels)."""
        blocks = range(chunk.start // self.width, chunk.stop // self.width)
        orders = [self._order(len(Y), np.random.default_rng(self.seeds[i])) for i in blocks]
        columns = [slice(self.starts[i], self.starts[i] + self.width) for i in blocks]
        return lambda rows: np.concatenate(
            [Y[order[rows], column] for order, column in zip(orders, columns, strict=True)], axis=1
        )

    def _order(self, n: int, rng: np.random.Generator) -> Array:
        if self.runs is None:
            return rng.permutation(n)
        parts = [np.flatnonzero(self.runs == run) for run in np.unique(self.runs)]
        order = np.empty(n, dtype=int)
        for rows in parts:
            order[rows] = np.roll(rows, rng.integers(1, max(len(rows), 2)))
        return order


def permute_responses(n_voxels: int, n_null: int, rng: np.random.Generator, runs: Array | None = None) -> NullResponses:
    """Choose voxels and permutations for about ``n_null`` voxels without signal.

    Parameters
    ----------
    n_voxels : int
        How many voxels the responses have.
    n_null : int
        How many voxels to draw; rounded up to whole blocks.
    rng : numpy.random.Generator
        Draws places and orders.
    runs : array of shape (n,), optional
        The run of each row, where rows are volumes: see `NullResponses`.
    """
    width = min(BLOCK, n_voxels)
    n_blocks = -(-n_null // width)
    seeds = rng.integers(2**63, size=n_blocks)
    return NullResponses(seeds, rng.integers(n_voxels - width + 1, size=n_blocks), width, runs)


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


def control_fdr(p: Array, level: float = FDR_LEVEL) -> Array:
    """Say which p values are significant at a false discovery rate (Benjamini & Hochberg 1995).

    Parameters
    ----------
    p : array of shape (n,)
        P values; NaN is never significant and does not count as a test.
    level : float
        False discovery rate.

    Returns
    -------
    array of bool, shape (n,)
    """
    significant = np.isfinite(p)
    if significant.any():
        significant[significant] = false_discovery_control(p[significant]) < level
    return significant


def choose_best_layer(r: Array, null: Array) -> Array:
    """Choose the layer that predicts each voxel best, where the best is better than chance.

    The highest score over layers is compared with the highest scores of voxels whose stimuli were permuted, so that
    the choice among layers, and all that folds and penalties do to the scores, is in the null distribution as well.
    One distribution serves all voxels: what a permuted voxel scores depends on the stimuli, the layers and the folds.

    Parameters
    ----------
    r : array of shape (n_layers, n_voxels)
        Scores; NaN never wins.
    null : array of shape (n_layers, n_null)
        Scores of permuted voxels.

    Returns
    -------
    array of int, shape (n_voxels,)
        From 1; 0 where no layer is significant at a false discovery rate of 5 % over voxels.
    """
    comparable = np.where(np.isnan(r), -np.inf, r)
    highest = comparable.max(axis=0)
    p = compute_p_values(np.where(np.isinf(highest), np.nan, highest), null.max(axis=0))
    return np.where(control_fdr(p), comparable.argmax(axis=0) + 1, 0)
