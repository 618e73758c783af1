"""Correlation distances of searchlights and of layers, compared over pairs of stimuli, e.g. by their ranks.

Sorting the 12 million pairs of 5000 stimuli for each searchlight would take days. Of many stimuli, random blocks are
taken, and all pairs within a block: every stimulus then counts, and similarities differ from those over all pairs by
.001, five times less than with as many pairs of a subset of the stimuli.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from dnnbrain_app.analyses.comparisons import Comparison
from dnnbrain_app.errors import BadDataError, UsageError
from dnnbrain_app.records import Array, Rdm

N_PAIRS = 122_500  # about as many are compared; fewer stimuli than 495 have no more
CENTRES = 256  # searchlights that are prepared at a time


@dataclass(frozen=True, slots=True, eq=False)
class PairModels:
    """Layers, as vectors over pairs of stimuli.

    Parameters
    ----------
    stimuli : array of int, shape (n_blocks, n_block_stimuli)
        Pairs are made within rows.
    squares : array of shape (n_layers, n_blocks, n_block_stimuli, n_block_stimuli), float32
        Prepared dissimilarities, symmetric.
    method : Comparison
        How RDMs are prepared.
    """

    stimuli: Array
    squares: Array
    method: Comparison

    @property
    def n_pairs(self) -> int:
        """How many pairs are compared."""
        n_blocks, size = self.stimuli.shape
        return int(n_blocks * size * (size - 1) // 2)

    def prepare(self, patterns: Array) -> Array:
        """Prepare the correlation distances of a searchlight, given its patterns (n_members, n_stimuli)."""
        n_blocks, size = self.stimuli.shape
        Z = patterns[:, self.stimuli.ravel()].astype(np.float64)  # in float32, close ranks would be exchanged
        energy = np.einsum("vn,vn->n", Z, Z)
        Z -= Z.mean(axis=0)
        variance = np.einsum("vn,vn->n", Z, Z)
        if (variance <= 1e-10 * energy).any():
            return np.full(self.n_pairs, np.nan)
        Z /= np.sqrt(variance)
        Z = Z.T.reshape(n_blocks, size, -1)
        return self.scale((1 - Z @ Z.swapaxes(1, 2))[:, *np.triu_indices(size, 1)].ravel())

    def scale(self, distances: Array) -> Array:
        """Prepare dissimilarities (n_pairs,) so that the inner product of two such vectors is their similarity."""
        prepared = self.method.transform(distances, None)
        return np.asarray(prepared * self.method.scale(prepared, self.n_pairs), dtype=np.float32)

    def stack(self, orders: Array) -> Array:
        """Prepare the layers with their stimuli in other orders, (n_pairs, n_orders * n_layers)."""
        n_blocks, size = self.stimuli.shape
        rows, columns = np.triu_indices(size, 1)
        stacked = np.empty((len(orders), len(self.squares), self.n_pairs), dtype=np.float32)
        for target, order in zip(stacked, orders.reshape(len(orders), n_blocks, size), strict=True):
            source, within = order[:, :1] // size, order % size
            target[:] = self.squares[:, source, within[:, rows], within[:, columns]].reshape(len(target), -1)
        return stacked.reshape(-1, self.n_pairs).T

    def draw_orders(self, n_orders: int, rng: np.random.Generator) -> Array:
        """Draw orders of the blocks, and of the stimuli within each: (n_orders, n_blocks * n_block_stimuli).

        They map the pairs that are compared on each other, so that the prepared values stay what they are.
        """
        n_blocks, size = self.stimuli.shape
        orders = np.empty((n_orders, n_blocks, size), dtype=int)
        for order in orders:
            starts = size * rng.permutation(n_blocks)[:, None]
            order[:] = rng.permuted(starts + np.arange(size), axis=1)
        return orders.reshape(n_orders, n_blocks * size)


def prepare_pairs(layer_rdms: Sequence[Rdm], method: Comparison, rng: np.random.Generator) -> PairModels:
    """Choose blocks of stimuli, and prepare the layers' dissimilarities within them.

    Parameters
    ----------
    layer_rdms : sequence of Rdm
        Of the same stimuli.
    method : Comparison
        One that is an inner product over single pairs.
    rng : numpy.random.Generator
        Deals the stimuli to blocks.

    Raises
    ------
    BadDataError
        An RDM lacks dissimilarities, or does not vary.
    """
    n = len(layer_rdms[0].items)
    n_blocks = max(round(n * (n - 1) / 2 / N_PAIRS), 1)
    size = n // n_blocks
    order = np.arange(n) if n_blocks == 1 else rng.permutation(n)
    models = PairModels(order[: n_blocks * size].reshape(n_blocks, size), np.empty(0), method)
    rows, columns = np.triu_indices(size, 1)
    first, second = (models.stimuli[:, k] for k in (rows, columns))
    low, high = np.minimum(first, second), np.maximum(first, second)
    places = low * n - low * (low + 3) // 2 - 1 + high
    squares = np.zeros((len(layer_rdms), n_blocks, size, size), dtype=np.float32)
    for square, rdm in zip(squares, layer_rdms, strict=True):
        distances = rdm.dissimilarities[places]
        if not np.isfinite(distances).all() or np.ptp(distances) == 0:
            raise BadDataError(f"RDM {rdm.name}: dissimilarities are missing, or do not differ, so none can be similar")
        square[:, rows, columns] = square[:, columns, rows] = models.scale(distances.ravel()).reshape(n_blocks, -1)
    return PairModels(models.stimuli, squares, method)


def compare_pairs(
    X: Array, members: csr_array, models: PairModels, centres: Array, orders: Array, memory: int, n_jobs: int
) -> Iterator[tuple[slice, Array, Array]]:
    """Compare searchlights with all layers whose stimuli are in other orders.

    Parameters
    ----------
    X : array of shape (n_voxels, n_stimuli), float32
        Responses.
    members : csr_array of shape (n_voxels, n_voxels)
        Searchlights.
    models : PairModels
        The layers.
    centres : array of int
        Which searchlights.
    orders : array of int, shape (n_orders, n_block_stimuli in all)
        From `PairModels.draw_orders`.
    memory : int
        Bytes to work in.
    n_jobs : int
        Threads.

    Yields
    ------
    orders : slice
        Which ones.
    centres : array of int
        Which ones.
    similarity : array of shape (n_some_orders, n_layers, n_some_centres)

    Raises
    ------
    UsageError
        Not one order and a few searchlights fit the memory.
    """
    n_layers, pair = len(models.squares), 4 * models.n_pairs
    step = min(memory // 2 // (2 * pair * n_layers), len(orders))
    width = min(memory // 2 // (2 * pair) - 16 * n_jobs, CENTRES)  # a thread takes that of some more
    if step < 1 or width < 1:
        raise UsageError(
            f"searchlights compared over {models.n_pairs} pairs of stimuli take {40 * pair * n_layers / 1e9:.2f} GB, "
            f"of which {memory / 1e9:.2f} GB are there; allow more memory"
        )
    parts = [slice(start, start + step) for start in range(0, len(orders), step)]
    stacked = models.stack(orders) if len(parts) == 1 else None
    with ThreadPoolExecutor(n_jobs) as pool:
        for start in range(0, len(centres), width):
            some = centres[start : start + width]
            spans = zip(members.indptr[some], members.indptr[some + 1], strict=True)
            patterns = (members.indices[slice(*span)] for span in spans)
            prepared = np.stack(list(pool.map(lambda voxels: models.prepare(X[voxels]), patterns)))
            for part in parts:
                layers = models.stack(orders[part]) if stacked is None else stacked
                yield part, some, (prepared @ layers).T.reshape(-1, n_layers, len(some))
