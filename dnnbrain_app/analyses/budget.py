"""How much of an encoding analysis to do at a time, to stay within the memory."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import product

from dnnbrain_app.analyses.moments import ROWS
from dnnbrain_app.errors import UsageError
from dnnbrain_app.records import Gram

LARGEST_CHUNK = 1024  # voxels: wide enough for the matrix product, narrow enough for the caches
SMALLEST_CHUNK = 256


@dataclass(frozen=True, slots=True)
class Budget:
    """What to do at the same time.

    Parameters
    ----------
    from_moments : bool
        Whether the models are made from the sums over the stimuli, or else from the Gram.
    n_folds : int
        How many folds share a reading of the features.
    n_workers : int
        Threads that work on a task of their own.
    width : int
        Voxels that each takes at a time.
    """

    from_moments: bool
    n_folds: int
    n_workers: int
    width: int


def divide_work(gram: Gram, n_folds: int, memory: int, n_jobs: int) -> Budget:
    """Choose between the two forms of ridge regression, and do as many folds, then threads, then voxels as fit.

    Parameters
    ----------
    gram : Gram
        The layer.
    n_folds : int
        Folds of the cross-validation.
    memory : int
        Bytes to work in.
    n_jobs : int
        Threads.

    Raises
    ------
    UsageError
        Not even one fold and a few voxels fit the memory.
    """
    n, k = len(gram.row_sums), gram.n_features
    # the smaller problem is that of fewer features than training rows, or of the Gram
    from_moments = gram.K is None or (gram.X is not None and k < n * (1 - 1 / n_folds))
    count = partial(_count_moments, n, k) if from_moments else partial(_count_kernel, n)
    sizes = product(
        range(n_folds if from_moments else 1, 0, -1),
        range(n_jobs, 0, -1),
        range(LARGEST_CHUNK, SMALLEST_CHUNK - 1, -64),
    )
    for size in sizes:
        if count(*size) <= memory:
            return Budget(from_moments, *size)
    raise UsageError(
        f"layer {gram.layer}: ridge regression on {n} stimuli and {k} features takes "
        f"{count(1, 1, SMALLEST_CHUNK) / 1e9:.2f} GB, of which {memory / 1e9:.2f} GB are there; "
        "allow more memory, or project on fewer dimensions (networks.projection)"
    )


def divide_mixtures(n: int, n_bands: int, memory: int, n_jobs: int) -> Budget:
    """Do as many mixtures of kernels, then voxels, at the same time as fit.

    Parameters
    ----------
    n : int
        Stimuli.
    n_bands : int
        Kernels that are mixed; all are kept.
    memory, n_jobs : int
        As for `divide_work`.

    Raises
    ------
    UsageError
        Not even one mixture and a few voxels fit the memory.
    """
    kept = (n_bands + 2) * 8 * n * n
    for n_workers, width in product(range(n_jobs, 0, -1), range(LARGEST_CHUNK, SMALLEST_CHUNK - 1, -64)):
        if kept + _count_kernel(n, 1, n_workers, width) + n_workers * 4 * n_bands * n * width <= memory:
            return Budget(from_moments=False, n_folds=1, n_workers=n_workers, width=width)
    raise UsageError(
        f"banded ridge regression on {n} stimuli and {n_bands} feature spaces takes "
        f"{(kept + _count_kernel(n, 1, 1, SMALLEST_CHUNK)) / 1e9:.2f} GB, of which {memory / 1e9:.2f} GB are there; "
        "allow more memory"
    )


def fits_kernel(n: int, memory: int) -> bool:
    """Say whether ridge regression from a Gram of n stimuli fits the memory, in bytes: n = 10 000 takes 3.6 GB."""
    return _count_kernel(n, 1, 1, SMALLEST_CHUNK) <= memory


def _count_kernel(n: int, n_folds: int, n_workers: int, width: int) -> int:
    """Count the bytes for folds from the Gram: 28 for each pair of stimuli were measured, and a fold that waits."""
    return n_workers * n_folds * (36 * n * n + 24 * n * width)


def _count_moments(n: int, k: int, n_folds: int, n_workers: int, width: int) -> int:
    """Count the bytes for folds from moments: the more of making the models, and of using them."""
    matrix, rows = 8 * k * k, 16 * k * ROWS
    making = (n_folds + 3) * matrix + n_workers * max(3 * matrix, matrix + rows)
    using = n_folds * matrix + n_workers * (rows + width * (4 * k * (n_folds + 7) + 16 * ROWS + n // 8))
    return max(making, using)
