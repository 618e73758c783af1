r"""What a feature space explains that the others do not, and what they share.

.. math:: U_b = R^2(\text{all}) - R^2(\text{all but } b), \qquad S = R^2(\text{all}) - \sum_b U_b

with held-out :math:`R^2` of banded ridge regression, in which a space that says nothing costs little. With one penalty
for all, to leave out a space of noise would look like a loss of nothing, or even a gain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dnnbrain_app.analyses.autocorrelation import SerialNoise
from dnnbrain_app.analyses.banded import BandedScores, score_bands
from dnnbrain_app.analyses.options import BandedOptions
from dnnbrain_app.errors import UsageError
from dnnbrain_app.records import Array, Gram, Grams


@dataclass(frozen=True, slots=True, eq=False)
class VariancePartition:
    """How the variance that feature spaces explain belongs to them.

    Parameters
    ----------
    joint : BandedScores
        Of all spaces together; ``band_rsquared`` divides what is shared, too.
    unique : array of shape (n_bands, n_voxels)
        Part of R squared that is lost without a space. A little below 0 where there is none, as noise costs something.
    shared : array of shape (n_voxels,)
        What no space alone is needed for: all spaces together, less the unique parts. Below 0 where spaces explain
        more together than the sum of what each adds (suppression).
    """

    joint: BandedScores
    unique: Array
    shared: Array


def partition_variance(
    bands: Sequence[Gram],
    Y: Array,
    folds: Sequence[Array],
    options: BandedOptions,
    *,
    rng: np.random.Generator,
    memory: int,
    n_jobs: int = 1,
    noise: SerialNoise | None = None,
    blocks: Array | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> VariancePartition:
    """Score all feature spaces together, and all but each.

    It takes as many analyses as there are spaces, and one.

    Parameters
    ----------
    bands, Y, folds, options, rng, memory, n_jobs, noise, blocks, progress
        As for `banded.score_bands`; progress counts thousandths.

    Raises
    ------
    UsageError
        There are fewer than two spaces, or as `banded.score_bands`.
    """
    if len(bands) < 2:
        raise UsageError(f"{len(bands)} feature space has nothing to share variance with; name 2 or more")

    def score(some: Sequence[Gram], i: int, n_null: int, n_permutations: int) -> BandedScores:
        def report(done: int, total: int) -> None:
            if progress:
                progress(1000 * (i * total + done) // (total * (len(bands) + 1)), 1000)

        own = replace(options, n_null=n_null, n_permutations=n_permutations)
        return score_bands(
            some, Y, folds, own, rng=rng, memory=memory, n_jobs=n_jobs, noise=noise, blocks=blocks, progress=report
        )

    joint = score(bands, 0, options.n_null, options.n_permutations)
    without = []
    for i in range(len(bands)):
        others = [*range(i), *range(i + 1, len(bands))]
        without.append(score(Grams(len(others), lambda k, others=others: bands[others[k]]), 1 + i, 0, 0))  # type: ignore[misc]
    unique = np.stack([joint.rsquared - rest.rsquared for rest in without])
    return VariancePartition(joint, unique, joint.rsquared - unique.sum(axis=0))
