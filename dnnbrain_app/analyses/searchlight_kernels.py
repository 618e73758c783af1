r"""Whitened cosine and CKA of all searchlights, without an RDM for any of them.

The kernel whose squared distances a searchlight :math:`N(c)` has is a sum over its voxels, so that what is expensive is
done once a voxel, or once a pair of voxels, however many searchlights they are in. With responses :math:`a_v, b_v` from
independent halves of the data (crossnobis; or :math:`a_v = b_v = x_v`), centred over stimuli, and the model's
double-centred kernel :math:`M = \sum_k \sigma_k f_k f_k^\top`,

.. math::

    K_c &= \tfrac12 \sum_{v \in N(c)} a_v b_v^\top + b_v a_v^\top, \qquad
    \langle K_c, M \rangle = \sum_{v \in N(c)} \sum_k \sigma_k (f_k^\top a_v)(f_k^\top b_v), \\
    \langle K_c, K_c \rangle &= \sum_{u, v \in N(c)} \tfrac12
        \left[(a_u^\top a_v)(b_u^\top b_v) + (a_u^\top b_v)(b_u^\top a_v)\right].

``whitened-cosine`` is :math:`\langle K, M \rangle / (\|K\| \|M\|)`. ``cka`` has no bias in one set of data either, as
it does without the kernels' diagonals :math:`d`: of two centred kernels (Song et al. 2012, JMLR 13:1393),

.. math:: \langle K, M \rangle - \frac{n}{n-2} d_K^\top d_M + \frac{(1^\top d_K)(1^\top d_M)}{(n-1)(n-2)},

which is additive as well, with :math:`d_K = \sum_v a_v \circ b_v`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh
from scipy.sparse import csr_array
from scipy.spatial.distance import squareform
from threadpoolctl import threadpool_limits

from dnnbrain_app.analyses.positions import divide_space
from dnnbrain_app.errors import BadDataError
from dnnbrain_app.records import Array, Rdm

BLOCK = 128  # voxels whose products with their surroundings are made at a time
TILE = 4096  # the most of the surroundings at a time
COLUMNS = 2048  # directions of models that responses are projected on at a time
SMALL = 1500  # stimuli up to which a model kernel is decomposed completely
RANK = 512  # directions that are tried otherwise
TAIL = 1e-3  # norm of what may be left out of a larger model, of its whole norm


@dataclass(frozen=True, slots=True, eq=False)
class KernelModels:
    """Layers, as directions in the space of the stimuli.

    Parameters
    ----------
    F : array of shape (n_stimuli, n_directions), float32
        Directions of all layers.
    signs : array of shape (n_directions, n_layers), float32
        Of the directions of a layer, 1, or -1 where its RDM is not Euclidean; 0 for others' directions.
    diagonals : array of shape (n_stimuli, n_layers), float32
        What a stimulus's squared response has to be weighed with and subtracted; zeros for ``whitened-cosine``.
    norms : array of shape (n_layers,)
        Of the kernels.
    """

    F: Array
    signs: Array
    diagonals: Array
    norms: Array


def prepare_kernels(layer_rdms: Sequence[Rdm], *, unbiased: bool, rng: np.random.Generator) -> KernelModels:
    r"""Decompose the double-centred kernels :math:`-\tfrac12 J D J` of RDMs.

    Up to 1500 stimuli the kernels are complete. Of larger ones the directions are kept that leave out no more than a
    thousandth of the norm, found by random projection (Halko et al. 2011, doi:10.1137/090771806); by as much, at most,
    similarities are wrong.

    Parameters
    ----------
    layer_rdms : sequence of Rdm
        Of the same stimuli; read one by one.
    unbiased : bool
        For ``cka``.
    rng : numpy.random.Generator
        For the random projection.

    Raises
    ------
    BadDataError
        An RDM lacks dissimilarities, or has the same everywhere.
    """
    parts = []
    for rdm in layer_rdms:
        if not np.isfinite(rdm.dissimilarities).all():
            raise BadDataError(f"RDM {rdm.name}: dissimilarities are missing, which this comparison cannot do without")
        D = squareform(rdm.dissimilarities)
        D -= D.mean(axis=0)
        D -= D.mean(axis=1, keepdims=True)
        D *= -0.5
        values, vectors = _decompose(D, rng)
        diagonal = vectors**2 @ values
        square = values @ values
        weights = np.zeros(len(D))
        if unbiased:
            n, trace = len(D), diagonal.sum()
            weights = diagonal * n / (n - 2) - trace / ((n - 1) * (n - 2))
            square -= diagonal @ weights
        # the unbiased part of a kernel that is equal everywhere is nothing but rounding
        if square <= 1e-12 * (values @ values) or not rdm.dissimilarities.any():
            raise BadDataError(f"RDM {rdm.name}: all stimuli are equally far apart, so nothing can be similar to it")
        parts.append((vectors * np.sqrt(np.abs(values)), np.sign(values), weights, np.sqrt(square)))
    F, signs, diagonals, norms = zip(*parts, strict=True)
    layer_of = np.repeat(np.arange(len(parts)), [len(some) for some in signs])
    placed = np.zeros((len(layer_of), len(parts)), dtype=np.float32)
    placed[np.arange(len(layer_of)), layer_of] = np.concatenate(signs)
    return KernelModels(
        np.concatenate(F, axis=1).astype(np.float32),
        placed,
        np.stack(diagonals, axis=1).astype(np.float32),
        np.array(norms),
    )


def _decompose(M: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Return eigenvalues and eigenvectors, those that matter."""
    n, norm = len(M), np.linalg.norm(M)
    if n <= SMALL:
        values, vectors = eigh(M, driver="evd", check_finite=False)
        kept = np.abs(values) > n * np.finfo(float).eps * np.abs(values).max()
        return values[kept], vectors[:, kept]
    single = M.astype(np.float32)
    Q = rng.standard_normal((n, RANK + 64), dtype=np.float32)
    for _ in range(3):
        Q = np.linalg.qr(single @ Q)[0]
    Q = Q.astype(np.float64)
    values, vectors = eigh(Q.T @ (M @ Q))
    vectors = Q @ vectors
    if norm**2 - values @ values > (TAIL * norm) ** 2:
        values, vectors = eigh(single, driver="evd", check_finite=False)
    order = np.argsort(-np.abs(values))
    values, vectors = values[order].astype(np.float64), vectors[:, order]
    left = norm**2 - np.cumsum(values**2)
    n_kept = min(1 + int((left > (TAIL * norm) ** 2).sum()), len(values))
    return values[:n_kept], vectors[:, :n_kept]


def measure_norms(
    data: Sequence[Array], members: csr_array, positions: Array, memory: int, n_jobs: int, *, unbiased: bool
) -> Array:
    """Compute the norm of each searchlight's kernel.

    Parameters
    ----------
    data : one or two arrays of shape (n_voxels, n_stimuli), float32
        Responses, centred over the stimuli; two for crossnobis.
    members : csr_array of shape (n_voxels, n_voxels), float32
        Searchlights.
    positions : array of shape (n_voxels, 3)
        Millimetres.
    memory : int
        Bytes to work in.
    n_jobs : int
        Threads.
    unbiased : bool
        For ``cka``.

    Returns
    -------
    array of shape (n_voxels,)
        NaN where there is none.
    """
    n_voxels, n = data[0].shape
    centres_of = csr_array(members.T)
    blocks = divide_space(positions, BLOCK)
    number = np.empty(n_voxels, dtype=int)
    for i, block in enumerate(blocks):
        number[block] = i

    def sum_pairs(i: int) -> tuple[Array, Array]:
        """Sum over pairs of a voxel of a block and one of the same or a later block; these count twice."""
        centres = np.unique(centres_of[blocks[i]].indices)
        around = np.unique(members[centres].indices)
        around = around[number[around] >= i]
        own = _list_members(members, centres, blocks[i])
        sums = np.zeros(len(centres))
        width = int(np.clip(memory // n_jobs // (4 * (2 * n + 2 * len(centres) + 4 * BLOCK)), 64, TILE))
        for start in range(0, len(around), width):
            others = around[start : start + width]
            H = _multiply_kernels(data, blocks[i], others, unbiased)
            H[:, number[others] > i] *= 2
            sums += np.einsum("cb,cb->c", own, _list_members(members, centres, others) @ H.T)
        return centres, sums

    squares = np.zeros(n_voxels)
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(n_jobs) as pool:  # small products use many threads badly
        for centres, sums in pool.map(sum_pairs, range(len(blocks))):
            squares[centres] += sums
    if unbiased:
        traces = members @ np.einsum("vn,vn->v", data[0], data[-1], dtype=np.float64)
        squares += traces**2 / ((n - 1) * (n - 2))
    with np.errstate(invalid="ignore"):
        return np.sqrt(np.where(squares > 0, squares, np.nan))


def _list_members(members: csr_array, centres: Array, voxels: Array) -> Array:
    """Take rows and columns of a sparse matrix, as a dense one."""
    column = np.full(members.shape[1], -1)
    column[voxels] = np.arange(len(voxels))
    rows = members[centres]
    places = column[rows.indices]
    dense = np.zeros((len(centres), len(voxels)), dtype=np.float32)
    dense[np.repeat(np.arange(len(centres)), np.diff(rows.indptr))[places >= 0], places[places >= 0]] = 1
    return dense


def _multiply_kernels(data: Sequence[Array], block: Array, others: Array, unbiased: bool) -> Array:  # noqa: FBT001
    """Inner products between the kernels of single voxels, (n_block, n_others); without their traces' part."""
    a, a_other = data[0][block], data[0][others]
    H = a @ a_other.T
    if len(data) == 1:
        H *= H
        b, b_other = a, a_other
    else:
        b, b_other = data[1][block], data[1][others]
        H *= b @ b_other.T
        H += (a @ b_other.T) * (b @ a_other.T)
        H /= 2
    if unbiased:
        n = a.shape[1]
        H -= np.float32(n / (n - 2)) * ((a * b) @ (a_other * b_other).T)
    return np.asarray(H)


def compare_kernels(
    data: Sequence[Array], members: csr_array, models: KernelModels, norms: Array, orders: Array, memory: int
) -> Iterator[tuple[slice, Array]]:
    """Compare all searchlights with all layers whose stimuli are in other orders.

    Parameters
    ----------
    data, members, norms
        As for, and from `measure_norms`.
    models : KernelModels
        The layers.
    orders : array of int, shape (n_orders, n_stimuli)
        Orders of the layers' stimuli.
    memory : int
        Bytes to work in.

    Yields
    ------
    orders : slice
        Which ones.
    similarity : array of shape (n_some_orders, n_layers, n_voxels)
    """
    n_voxels, n = data[0].shape
    n_directions, n_layers = models.signs.shape
    step = max(min(COLUMNS // n_directions, memory // (48 * n_layers * n_voxels)), 1)
    rows = int(np.clip(memory // (16 * (step * n_directions + n)), 64, 8192))
    scale = norms[:, None] * models.norms
    unbiased = models.diagonals.any()
    for first in range(0, len(orders), step):
        some = orders[first : first + step]
        F = models.F[some].transpose(1, 0, 2).reshape(n, -1)
        diagonals = models.diagonals[some].transpose(1, 0, 2).reshape(n, -1)
        products = np.empty((n_voxels, len(some) * n_layers), dtype=np.float32)
        for start in range(0, n_voxels, rows):
            a, b = (values[start : start + rows] for values in (data[0], data[-1]))
            projected = a @ F
            projected *= projected if len(data) == 1 else b @ F
            block = projected.reshape(-1, n_directions) @ models.signs
            products[start : start + rows] = block.reshape(len(a), -1)
            if unbiased:
                products[start : start + rows] -= (a * b) @ diagonals
        sums = (members @ products).reshape(n_voxels, len(some), n_layers)
        yield slice(first, first + len(some)), (sums / scale[:, None]).transpose(1, 2, 0)
