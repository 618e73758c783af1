import numpy as np
import pytest

from dnnbrain_app.analyses.encoding import score_encoding
from dnnbrain_app.analyses.folds import make_folds
from dnnbrain_app.analyses.normalising import normalise_mean, normalise_scores
from dnnbrain_app.analyses.options import EncodingOptions
from dnnbrain_app.errors import UsageError
from dnnbrain_app.records import Gram


def test_divides_where_the_ceiling_allows():
    r, rsquared = np.array([[0.3, 0.9, 0.3, 0.3, np.nan]]), np.array([[0.04, 0.81, 0.1, 0.1, np.nan]])
    ceiling = np.array([0.25, 0.36, 0.04, np.nan, 0.5])
    r_norm, rsquared_norm = normalise_scores(r, rsquared, ceiling, 0.05)
    np.testing.assert_allclose(r_norm, [[0.6, 1.5, np.nan, np.nan, np.nan]])  # above 1 stays
    np.testing.assert_allclose(rsquared_norm, [[0.16, 2.25, np.nan, np.nan, np.nan]])
    np.testing.assert_allclose(normalise_mean(r, rsquared, ceiling, 0.05), [[1.2 / 1.1], [0.85 / 0.61]])
    assert np.isnan(normalise_mean(r[:, 2:], rsquared[:, 2:], ceiling[2:], 0.05)).all()


def _estimate_ceiling(trials):
    """By analysis of variance, as the responses' room does."""
    n_repeats, noise = len(trials), trials.var(axis=0, ddof=1).mean(axis=0)
    return np.maximum(0, 1 - noise / n_repeats / trials.mean(axis=0).var(axis=0, ddof=1))


def test_a_perfect_model_reaches_one_in_the_mean(rng):
    """However noisy the voxels: their own ceilings, estimated from the same repeats, take the noise out."""
    n, n_voxels = 600, 400
    X = rng.standard_normal((n, 8))
    signal = X @ rng.standard_normal((8, n_voxels))
    signal /= signal.std(0)
    folds = make_folds(n, 5, rng)
    gram = Gram("a", (8,), 0, None, X.sum(1), X)
    for noise in (0.5, 1.5, 3):
        trials = signal + noise * rng.standard_normal((3, n, n_voxels))
        Y = trials.mean(0).astype(np.float32)
        scores = score_encoding("net", [gram], Y, folds, EncodingOptions(n_null=1), rng=rng, memory=2**30)
        ceiling = _estimate_ceiling(trials)
        r, rsquared = normalise_mean(scores.r, scores.rsquared, ceiling, 0.05)
        assert 0.96 < r[0] < 1.02  # a few per cent are what 480 stimuli cannot teach
        assert 0.93 < rsquared[0] < 1.02
        voxels = normalise_scores(scores.r, scores.rsquared, ceiling, 0.05)[0]
        assert abs(np.nanmedian(voxels) - 1) < 0.04
        assert (voxels > 1).any()


def test_half_of_the_signal_is_half(rng):
    n = 600
    X = rng.standard_normal((n, 6))
    signal = X @ rng.standard_normal((6, 300))
    hidden = rng.standard_normal((n, 6)) @ rng.standard_normal((6, 300))
    both = signal / signal.std(0) + hidden / hidden.std(0)
    trials = both + 2 * rng.standard_normal((4, n, 300))
    gram = Gram("a", (6,), 0, None, X.sum(1), X)
    Y = trials.mean(0).astype(np.float32)
    scores = score_encoding("net", [gram], Y, make_folds(n, 5, rng), EncodingOptions(n_null=1), rng=rng, memory=2**30)
    r, rsquared = normalise_mean(scores.r, scores.rsquared, _estimate_ceiling(trials), 0.05)
    assert abs(rsquared[0] - 0.5) < 0.03
    assert abs(r[0] - 0.5**0.5) < 0.03


@pytest.mark.parametrize("floor", [0.0, 1.0, -0.1])
def test_a_floor_must_be_a_share(floor):
    with pytest.raises(UsageError, match=r"encoding.ceiling_floor is .* between 0 and 1"):
        normalise_scores(np.ones((1, 1)), np.ones((1, 1)), np.ones(1), floor)
