import numpy as np
import pytest

from dnnbrain_app.analyses.folds import make_folds
from dnnbrain_app.analyses.options import BandedOptions
from dnnbrain_app.analyses.partition import partition_variance
from dnnbrain_app.errors import UsageError
from dnnbrain_app.records import Gram

OPTIONS = BandedOptions(n_null=100, n_mixtures=12, n_alphas=11)


def _gram(X, depth=0) -> Gram:
    return Gram(f"band{depth + 1}", (X.shape[1],), depth, X @ X.T, X.sum(1))


def test_unique_and_shared_variance_are_what_was_planted(rng):
    """Two spaces have a part in common, and a third says nothing."""
    n, n_voxels = 500, 60
    common, own, other, idle = (rng.standard_normal((n, 4)) for _ in range(4))

    def read(X):
        signal = X @ rng.standard_normal((4, n_voxels))
        return signal / signal.std(0)

    Y = np.sqrt(0.3) * read(common) + np.sqrt(0.2) * read(own) + np.sqrt(0.1) * read(other)
    Y = (Y + np.sqrt(0.4) * rng.standard_normal((n, n_voxels))).astype(np.float32)
    spaces = [np.hstack([common, own]), np.hstack([common, other]), idle]
    calls = []
    parts = partition_variance(
        [_gram(X, i) for i, X in enumerate(spaces)],
        Y,
        make_folds(n, 4, rng),
        OPTIONS,
        rng=rng,
        memory=2**30,
        progress=lambda done, total: calls.append(done / total),
    )
    np.testing.assert_allclose(parts.joint.rsquared.mean(), 0.6, atol=0.03)
    np.testing.assert_allclose(parts.unique.mean(1), [0.2, 0.1, 0], atol=0.03)
    np.testing.assert_allclose(parts.shared.mean(), 0.3, atol=0.04)
    np.testing.assert_allclose(parts.unique.sum(0) + parts.shared, parts.joint.rsquared)
    assert calls == sorted(calls)
    assert calls[-1] == 1


def test_noise_explains_nothing_alone(rng):
    spaces = [rng.standard_normal((60, 200)), rng.standard_normal((60, 30))]
    Y = rng.standard_normal((60, 300)).astype(np.float32)
    grams = [_gram(X, i) for i, X in enumerate(spaces)]
    parts = partition_variance(grams, Y, make_folds(60, 5, rng), OPTIONS, rng=rng, memory=2**30)
    assert parts.unique.mean(1).max() < 0.005  # a space of noise costs a little
    assert parts.unique.mean(1).min() > -0.06


def test_one_space_shares_with_none(rng):
    with pytest.raises(UsageError, match="1 feature space has nothing to share"):
        partition_variance([_gram(np.eye(9))], np.eye(9), [np.arange(3)], OPTIONS, rng=rng, memory=2**30)
