"""K and the row sums replace the features; tolerances are those of float32 products with float64 sums."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import pdist
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge

from dnnbrain_app.errors import BadDataError
from dnnbrain_app.networks.gram import accumulate_gram

N, D = 64, 20_000
UPPER = np.triu_indices(N, 1)


@pytest.fixture(name="X")
def fixture_features(rng: np.random.Generator) -> np.ndarray:
    """Rectified activations that share a mean over stimuli, as real ones do, and a low-dimensional part."""
    shared = rng.standard_normal((N, 8)) @ rng.standard_normal((8, D))
    return np.maximum(shared + rng.standard_normal((N, D)) + rng.standard_normal(D), 0).astype(np.float32)


@pytest.fixture
def gram(X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return accumulate_gram(X[:, start : start + 4096] for start in range(0, D, 4096))


def test_sums_are_those_of_the_whole(X, gram):
    K, row_sums = gram
    exact = X.astype(np.float64)
    assert K.dtype == row_sums.dtype == np.float64
    np.testing.assert_array_equal(K, K.T)
    np.testing.assert_allclose(K, exact @ exact.T, rtol=2e-6)
    np.testing.assert_allclose(row_sums, exact.sum(1), rtol=1e-12)


def test_euclidean_distances(X, gram):
    K, _ = gram
    squared = (np.diag(K)[:, None] + np.diag(K) - 2 * K)[UPPER]
    np.testing.assert_allclose(squared, pdist(X.astype(np.float64), "sqeuclidean"), rtol=2.5e-5)


def test_correlation_distances(X, gram):
    K, s = gram
    covariance = K - np.outer(s, s) / D
    deviation = np.sqrt(np.diag(covariance))
    distances = 1 - (covariance / np.outer(deviation, deviation))[UPPER]
    exact = pdist(X.astype(np.float64), "correlation")
    assert abs(distances - exact).max() / exact.max() < 5e-7


def test_cosine_distances(X, gram):
    K, _ = gram
    norm = np.sqrt(np.diag(K))
    exact = pdist(X.astype(np.float64), "cosine")
    assert abs(1 - (K / np.outer(norm, norm))[UPPER] - exact).max() / exact.max() < 6e-7


def test_pca_scores(X, gram):
    K, _ = gram
    values, vectors = np.linalg.eigh(K - K.mean(0) - K.mean(1)[:, None] + K.mean())
    scores = (vectors * np.sqrt(values.clip(0)))[:, :-9:-1]  # the eight planted components
    exact = PCA(8, svd_solver="full").fit_transform(X.astype(np.float64))
    signs = np.sign((scores * exact).sum(0))
    assert abs(scores * signs - exact).max() / abs(exact).max() < 2e-6


def centre(K, train, test):
    """Inner products of features centred on the mean of the training stimuli: (train, train) and (test, train)."""
    inner, across = K[np.ix_(train, train)], K[np.ix_(test, train)]
    mean = inner.mean(0)
    return (
        inner - mean - mean[:, None] + inner.mean(),
        across - across.mean(1)[:, None] - mean + inner.mean(),
    )


@pytest.mark.parametrize("exactly", [True, False])
def test_centring_on_the_training_stimuli(X, gram, exactly):
    """Exact by algebra; from float32 products, to their rounding."""
    exact = X.astype(np.float64)
    K = exact @ exact.T if exactly else gram[0]
    train, test = np.arange(48), np.arange(48, N)
    centred = exact - exact[train].mean(0)
    for found, rows in zip(centre(K, train, test), (train, test), strict=True):
        expected = centred[rows] @ centred[train].T
        assert abs(found - expected).max() / abs(expected).max() < (1e-8 if exactly else 2e-6)


@pytest.mark.parametrize(("penalty", "tolerance"), [(1e-3, 9e-5), (1e-1, 1e-5), (10, 3e-6)])
def test_ridge_predictions(X, gram, rng, penalty, tolerance):
    y = X[:, :50].sum(1) + rng.standard_normal(N)
    train, test = np.arange(48), np.arange(48, N)
    alpha = penalty * X[train].var(0).sum()
    inner, across = centre(gram[0], train, test)
    predicted = across @ np.linalg.solve(inner + alpha * np.eye(48), y[train] - y[train].mean()) + y[train].mean()
    exact = Ridge(alpha, solver="svd").fit(X[train].astype(np.float64), y[train]).predict(X[test].astype(np.float64))
    assert abs(predicted - exact).max() / exact.std() < tolerance


def test_refuses_no_features():
    with pytest.raises(BadDataError, match="no features"):
        accumulate_gram([])


def test_what_all_stimuli_share_does_not_drown_their_differences(rng):
    """A layer whose stimuli differ by a thousandth of what they have in common, as late layers do."""
    X = (1 + 1e-3 * rng.standard_normal((40, 300))).astype(np.float32)
    K, _ = accumulate_gram([X[:, :128], X[:, 128:]])
    H = np.eye(40) - 1 / 40
    centred = X - X.mean(axis=0, dtype=np.float64)
    expected = centred @ centred.T
    assert np.abs(H @ K @ H - expected).max() < 1e-6 * np.abs(expected).max()
