"""Responses that are permuted, to learn what chance scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dnnbrain_app.records import Array

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


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some voxels that are modelled together.

    Parameters
    ----------
    kind : str
        ``measured``; ``pooled``, permuted in blocks of their own; or ``whole``, where all voxels are permuted alike.
    permutation : int
        Which of the latter.
    columns : slice
        Which voxels.
    place : slice
        Where they are in one row of all: measured voxels, pooled ones, then permutation after permutation.
    """

    kind: str
    permutation: int
    columns: slice
    place: slice


@dataclass(frozen=True, slots=True, eq=False)
class Responses:
    """Measured responses, and the permuted ones from which it is learnt what chance scores.

    Parameters
    ----------
    Y : array of shape (n, n_voxels)
        Measured.
    null : NullResponses
        Voxels with permutations of their own.
    seeds : array of int, shape (n_permutations,)
        Of permutations of all voxels.
    """

    Y: Array
    null: NullResponses
    seeds: Array

    def __len__(self) -> int:
        return int(self.Y.shape[1] * (1 + len(self.seeds)) + len(self.null))

    def list_chunks(self, width: int) -> list[Chunk]:
        """Divide all into chunks of ``width`` voxels or fewer (but whole blocks), in the order of their places."""
        n_voxels, n_null = self.Y.shape[1], len(self.null)
        voxels = _divide(n_voxels, width)
        pooled = _divide(n_null, max(width // self.null.width, 1) * self.null.width)
        measured = [Chunk("measured", 0, chunk, chunk) for chunk in voxels]
        chunks = measured + [Chunk("pooled", 0, chunk, _move(chunk, n_voxels)) for chunk in pooled]
        for i in range(len(self.seeds)):
            chunks += [Chunk("whole", i, chunk, _move(chunk, n_voxels * (1 + i) + n_null)) for chunk in voxels]
        return chunks

    def draw(self, chunk: Chunk) -> Callable[[Array], Array]:
        """Return a function from rows to the responses of a chunk to them, (n_rows, n_voxels)."""
        if chunk.kind == "measured":
            return lambda rows: self.Y[rows, chunk.columns]
        if chunk.kind == "pooled":
            return self.null.draw(self.Y, chunk.columns)
        order = self.null.exchange.draw(self.seeds[chunk.permutation])
        return lambda rows: self.Y[order[rows], chunk.columns]

    def find_silent(self) -> Array:
        """Say which voxels are constant or have a value that is not finite: (n_voxels,)."""
        with np.errstate(invalid="ignore"):
            spread = self.Y.max(axis=0) - self.Y.min(axis=0)
        silent: Array = ~(np.isfinite(spread) & (spread > 0))
        return silent

    def split(self, scores: Array) -> tuple[Array, Array]:
        """From scores of all, in their places, return those of pooled voxels and the highest of each permutation."""
        n_voxels, n_null = self.Y.shape[1], len(self.null)
        pooled, whole = scores[n_voxels : n_voxels + n_null], scores[n_voxels + n_null :].reshape(-1, n_voxels)
        if not len(whole):
            return pooled, np.empty(0)
        return pooled, np.fmax.reduce(np.where(self.find_silent(), np.nan, whole), axis=1, initial=-np.inf)


def _divide(n: int, width: int) -> list[slice]:
    return [slice(start, min(start + width, n)) for start in range(0, n, width)]


def _move(chunk: slice, offset: int) -> slice:
    return slice(chunk.start + offset, chunk.stop + offset)


def prepare_responses(
    Y: Array, n_null: int, n_permutations: int, rng: np.random.Generator, exchange: Exchange
) -> Responses:
    """Draw permutations: ``n_null`` voxels or a few more with their own, and some for all voxels."""
    null = permute_responses(Y.shape[1], n_null, rng, exchange)
    return Responses(Y, null, rng.integers(2**63, size=n_permutations))
