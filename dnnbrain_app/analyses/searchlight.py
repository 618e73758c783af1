"""Where in the brain the responses of neighbouring voxels have the geometry of a layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array
from threadpoolctl import threadpool_limits

from dnnbrain_app.analyses.comparisons import find_comparison
from dnnbrain_app.analyses.neighbourhoods import Neighbourhoods
from dnnbrain_app.analyses.options import SearchlightOptions
from dnnbrain_app.analyses.searchlight_blocks import compare_pairs, prepare_pairs
from dnnbrain_app.analyses.searchlight_kernels import compare_kernels, measure_norms, prepare_kernels
from dnnbrain_app.analyses.significance import compute_p_values
from dnnbrain_app.errors import BadDataError, UsageError
from dnnbrain_app.records import Array, Rdm

LEAST_VOXELS = 3  # two voxels have only the correlations 1 and -1
ROUNDING = 1e-6  # by which a similarity may come out lower another time
ADDITIVE = ("cka", "whitened-cosine")

Compared = Iterator[tuple[slice, Array, Array]]  # orders, centres, similarities (n_orders, n_layers, n_centres)


@dataclass(frozen=True, slots=True, eq=False)
class SearchlightScores:
    """How well each layer agrees with each searchlight.

    Parameters
    ----------
    network : str
        Label of the network.
    comparison : str
        The measure.
    layers : tuple of str
        Names, in the order of the forward pass.
    similarity : array of shape (n_layers, n_voxels)
        NaN for a voxel without signal, or with fewer than three voxels in its searchlight.
    p : array of shape (n_layers, n_voxels)
        One-sided, of this layer and searchlight; NaN without permutations.
    p_fwe : array of shape (n_layers, n_voxels)
        The same, corrected over all layers and searchlights by the distribution of the maximum.
    n_members : array of int, shape (n_voxels,)
        Voxels with signal in the searchlight.
    """

    network: str
    comparison: str
    layers: tuple[str, ...]
    similarity: Array
    p: Array
    p_fwe: Array
    n_members: Array


def score_searchlight(
    network: str,
    Y: Array,
    layer_rdms: Sequence[Rdm],
    neighbourhoods: Neighbourhoods,
    options: SearchlightOptions,
    *,
    rng: np.random.Generator,
    memory: int,
    n_jobs: int = 1,
    other: Array | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SearchlightScores:
    r"""Compare the RDM of the searchlight around each voxel with that of each layer.

    For ``cka`` and ``whitened-cosine`` a searchlight has squared Euclidean distances, or crossnobis distances where
    there are two independent sets of responses; no RDM is made (`searchlight_kernels`). Voxels should be on one scale:
    divide them by the standard deviation of their noise. ``whitened-cosine`` of one set of responses is positive in
    noise, as noise makes all distances positive; only its p values, and differences between layers, mean something.
    ``cka`` is 0 on average. For ``pearson``, ``spearman`` and ``rho-a`` a searchlight has correlation distances
    (`searchlight_blocks`).

    In ``options.n_permutations`` permutations, the stimuli of all layers are in the same random order,

    .. math:: p = \frac{1 + \#\{s_{perm} \ge s\}}{1 + n_{permutations}}.

    Parameters
    ----------
    network : str
        Label of the network.
    Y : array of shape (n_stimuli, n_voxels)
        Responses. Voxels that are constant or have a value that is not finite belong to no searchlight.
    layer_rdms : sequence of Rdm
        The layers, in the order of the forward pass; their items are the rows of Y.
    neighbourhoods : Neighbourhoods
        Searchlights, from `find_neighbourhoods`.
    options : SearchlightOptions
        The comparison, and how many permutations.
    rng : numpy.random.Generator
        Draws permutations, and blocks of stimuli.
    memory : int
        Bytes to work in, besides Y and the RDMs.
    n_jobs : int
        Threads.
    other : array of shape (n_stimuli, n_voxels), optional
        Responses to the same stimuli in other runs.
    progress : callable, optional
        Called with (done, total).

    Returns
    -------
    SearchlightScores

    Raises
    ------
    UnknownNameError
        Another comparison.
    UsageError
        A comparison that searchlights do not have, or that does not take two sets of responses; too little memory.
    BadDataError
        Shapes that do not fit, fewer than four stimuli, or an RDM without variance.

    References
    ----------
    Kriegeskorte, Goebel & Bandettini (2006), doi:10.1073/pnas.0600244103; Diedrichsen et al. (2021),
    doi:10.51628/001c.27664.
    """
    method = find_comparison(options.comparison)
    additive = options.comparison in ADDITIVE
    if not additive and (method.whole or not method.linear or other is not None):
        raise UsageError(
            f"searchlights cannot be compared by {options.comparison}"
            + (" of responses from two sets of runs; use cka or whitened-cosine" if other is not None else "")
        )
    _require_shapes(Y, other, layer_rdms, neighbourhoods)
    responses = [Y] if other is None else [Y, other]
    usable = np.logical_and.reduce([_find_signal(values) for values in responses])
    members = neighbourhoods.keep(usable)
    n_members = np.diff(members.indptr)
    centres = np.flatnonzero(n_members >= LEAST_VOXELS)
    left = memory - sum(4 * values.size for values in responses) - 24 * members.nnz
    if left < 2**20:
        raise UsageError(
            f"searchlights of {Y.shape[0]} stimuli and {Y.shape[1]} voxels take {(memory - left) / 1e9:.2f} GB and "
            f"some, of which {memory / 1e9:.2f} GB are there; allow more memory, or take fewer voxels"
        )
    data = [_lay_out(values, usable, centred=additive) for values in responses]
    n_orders = 1 + options.n_permutations
    with threadpool_limits(n_jobs, "blas"):
        compare = _compare_additive if additive else _compare_pairs
        compared = compare(data, members, neighbourhoods.positions, centres, layer_rdms, options, rng, left, n_jobs)
        shape = len(layer_rdms), Y.shape[1]
        similarity, p, p_fwe = _count(compared, shape, n_orders, len(centres), progress)
    names = tuple(rdm.name for rdm in layer_rdms)
    return SearchlightScores(network, options.comparison, names, similarity, p, p_fwe, n_members)


def _require_shapes(Y: Array, other: Array | None, rdms: Sequence[Rdm], neighbourhoods: Neighbourhoods) -> None:
    n, n_voxels = Y.shape
    if neighbourhoods.members.shape[0] != n_voxels:
        raise BadDataError(f"searchlights of {neighbourhoods.members.shape[0]} voxels, responses of {n_voxels}")
    if other is not None and other.shape != Y.shape:
        raise BadDataError(f"responses of shape {Y.shape} in one set of runs, and {other.shape} in the other")
    for rdm in rdms:
        if len(rdm.items) != n:
            raise BadDataError(f"RDM {rdm.name}: {len(rdm.items)} stimuli, responses to {n}")
    if n < 4:
        raise BadDataError(f"{n} stimuli; searchlights need at least 4")


def _find_signal(Y: Array) -> Array:
    with np.errstate(invalid="ignore"):
        spread = Y.max(axis=0) - Y.min(axis=0)
        return np.asarray(np.isfinite(spread) & (spread > 0))


def _lay_out(Y: Array, usable: Array, *, centred: bool) -> Array:
    """Put voxels into rows; zeros where there is no signal."""
    X = np.zeros((Y.shape[1], Y.shape[0]), dtype=np.float32)
    for start in range(0, len(X), 8192):
        rows = slice(start, start + 8192)
        block = Y[:, rows].T.astype(np.float64)[usable[rows]]
        X[rows][usable[rows]] = block - block.mean(axis=1, keepdims=True) if centred else block
    return X


def _draw_orders(n: int, n_orders: int, rng: np.random.Generator) -> Array:
    """Return the order that there is, and random ones."""
    return np.stack([np.arange(n), *(rng.permutation(n) for _ in range(n_orders - 1))])


def _compare_additive(
    data: Sequence[Array],
    members: csr_array,
    positions: Array,
    centres: Array,
    rdms: Sequence[Rdm],
    options: SearchlightOptions,
    rng: np.random.Generator,
    memory: int,
    n_jobs: int,
) -> Compared:
    unbiased = options.comparison == "cka"
    models = prepare_kernels(rdms, unbiased=unbiased, rng=rng)
    norms = measure_norms(data, members, positions, memory, n_jobs, unbiased=unbiased)
    orders = _draw_orders(data[0].shape[1], 1 + options.n_permutations, rng)
    for part, similarity in compare_kernels(data, members, models, norms, orders, memory):
        yield part, centres, similarity[:, :, centres]


def _compare_pairs(
    data: Sequence[Array],
    members: csr_array,
    positions: Array,  # noqa: ARG001
    centres: Array,
    rdms: Sequence[Rdm],
    options: SearchlightOptions,
    rng: np.random.Generator,
    memory: int,
    n_jobs: int,
) -> Compared:
    models = prepare_pairs(rdms, find_comparison(options.comparison), rng)
    orders = np.concatenate([np.arange(models.stimuli.size)[None], models.draw_orders(options.n_permutations, rng)])
    yield from compare_pairs(data[0], members, models, centres, orders, memory, n_jobs)


def _count(
    compared: Compared,
    shape: tuple[int, int],
    n_orders: int,
    n_centres: int,
    progress: Callable[[int, int], None] | None,
) -> tuple[Array, Array, Array]:
    """Gather similarities, p values and corrected p values."""
    similarity = np.full(shape, np.nan)
    n_above, highest = np.zeros(shape, dtype=int), np.full(n_orders, -np.inf)
    total, done = n_orders * n_centres, 0
    for orders, centres, values in compared:
        if orders.start == 0:
            similarity[:, centres] = values[0]
        n_above[:, centres] += (values >= similarity[:, centres] - ROUNDING).sum(axis=0)  # once by the data themselves
        most = np.fmax.reduce(values, axis=(1, 2)) if len(centres) else -np.inf
        highest[orders] = np.fmax(highest[orders], most)
        done += len(values) * len(centres)
        if progress:
            progress(done, total)
    if n_orders == 1:
        return similarity, np.full(shape, np.nan), np.full(shape, np.nan)
    p = np.where(np.isnan(similarity), np.nan, n_above / n_orders)
    return similarity, p, compute_p_values((similarity - ROUNDING).ravel(), highest[1:]).reshape(shape)
