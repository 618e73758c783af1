import numpy as np
import pytest
from scipy.spatial.distance import pdist, squareform
from scipy.stats import kendalltau, rankdata

from dnnbrain_app.analyses.comparisons import COMPARISONS, rank_values, weigh_pairs


@pytest.mark.parametrize(
    "values",
    [
        lambda rng: rng.random(5000),
        lambda rng: rng.integers(0, 7, 5000) / 3,
        lambda rng: rng.standard_normal(5000) * 1e-3,
        lambda rng: 1 + 1e-9 * rng.integers(0, 1000, 5000),  # equal in float32
        lambda rng: np.round(rng.standard_normal(5000), 1) * 1e300,  # infinite in float32, with -0.0 and 0.0
        lambda _: np.zeros(50),
    ],
)
def test_ranks_are_exact(rng, values):
    x = values(rng)
    np.testing.assert_array_equal(rank_values(x), rankdata(x))
    np.testing.assert_array_equal(rank_values(np.sort(x)[::-1]), rankdata(np.sort(x)[::-1]))


def _compare(method, a, b, weights=None):
    x, y = method.transform(a, weights), method.transform(b, weights)
    n_pairs = len(a)
    if weights is not None:
        pairs = weigh_pairs(weights)
        x, y, n_pairs = x * np.sqrt(pairs), y * np.sqrt(pairs), pairs.sum()
    return float(method.multiply(x[None], y)[0] * method.scale(x, n_pairs) * method.scale(y, n_pairs))


def _covariance(n):
    """V of squared distances between n items, written out."""
    contrasts = np.array([np.eye(n)[i] - np.eye(n)[j] for i in range(n) for j in range(i + 1, n)])
    return (contrasts @ contrasts.T) ** 2


@pytest.mark.parametrize("n", [4, 9])
def test_whitened_measures_agree_with_the_covariance_written_out(rng, n):
    a, b = rng.random((2, n * (n - 1) // 2))
    inverse = np.linalg.inv(_covariance(n))
    for name, x, y in [("whitened-cosine", a, b), ("whitened-pearson", a - a.mean(), b - b.mean())]:
        expected = x @ inverse @ y / np.sqrt(x @ inverse @ x * (y @ inverse @ y))
        assert _compare(COMPARISONS[name], a, b) == pytest.approx(expected, abs=1e-12)


def _center_twice(K):
    H = np.eye(len(K)) - 1 / len(K)
    return H @ K @ H


def test_whitened_cosine_is_centred_cka(rng):
    X, Y = rng.standard_normal((12, 7)), rng.standard_normal((12, 30))
    K, L = _center_twice(X @ X.T), _center_twice(Y @ Y.T)
    expected = (K * L).sum() / np.sqrt((K * K).sum() * (L * L).sum())
    found = _compare(COMPARISONS["whitened-cosine"], pdist(X, "sqeuclidean"), pdist(Y, "sqeuclidean"))
    assert found == pytest.approx(expected, abs=1e-12)


def _estimate_hsic(K, L):
    """Song et al. 2012, equation 5."""
    n = len(K)
    K, L = K - np.diag(K.diagonal()), L - np.diag(L.diagonal())
    one = np.ones(n)
    last = one @ K @ one * (one @ L @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * one @ K @ L @ one
    return (np.trace(K @ L) + last) / (n * (n - 3))


def test_cka_is_that_of_the_kernels_without_bias(rng):
    X, Y = rng.standard_normal((12, 7)) + 2, rng.standard_normal((12, 30))
    Y[:, :7] += X
    K, L = X @ X.T, Y @ Y.T
    expected = _estimate_hsic(K, L) / np.sqrt(_estimate_hsic(K, K) * _estimate_hsic(L, L))
    found = _compare(COMPARISONS["cka"], pdist(X, "sqeuclidean"), pdist(Y, "sqeuclidean"))
    assert found == pytest.approx(expected, abs=1e-12)


def test_cka_of_noise_is_nothing_where_that_with_bias_is_high(rng):
    """92 stimuli, 316 voxels, 9216 units: with bias 0.875."""
    X, Y = (np.maximum(rng.standard_normal((92, size)), 0) for size in (316, 9216))
    a, b = pdist(X, "sqeuclidean"), pdist(Y, "sqeuclidean")
    assert _compare(COMPARISONS["whitened-cosine"], a, b) > 0.8
    assert abs(_compare(COMPARISONS["cka"], a, b)) < 0.06


def test_tau_a_counts_pairs(rng):
    a, b = rng.integers(0, 4, 45), rng.integers(0, 9, 45)
    i, j = np.triu_indices(45, 1)
    expected = (np.sign(a[i] - a[j]) * np.sign(b[i] - b[j])).mean()
    assert _compare(COMPARISONS["tau-a"], a, b) == pytest.approx(expected, abs=1e-12)
    assert kendalltau(a, b).statistic > expected + 0.01 or expected < 0  # not tau-b


@pytest.mark.parametrize("name", ["pearson", "cosine", "spearman", "rho-a"])
def test_weights_are_items_that_occur_several_times(rng, name):
    """A bootstrap sample, its pairs of an item with itself left out, written out."""
    method, weights = COMPARISONS[name], np.array([1, 3, 2, 1, 1, 2])
    a, b = np.round(rng.random((2, 15)), 1)
    if method.ranks:
        a, b = (np.unique(x, return_inverse=True)[1] for x in (a, b))
    drawn = np.repeat(np.arange(6), weights)
    different = pdist(drawn[:, None]) > 0
    long = [squareform(squareform(x)[np.ix_(drawn, drawn)], checks=False)[different] for x in (a, b)]
    assert _compare(method, a, b, weights) == pytest.approx(_compare(method, *long), abs=1e-12)


@pytest.mark.parametrize("name", [name for name in COMPARISONS if name != "tau-a"])
def test_weights_of_one_change_nothing(rng, name):
    method = COMPARISONS[name]
    a, b = rng.permutation(45), rng.permutation(45)
    assert _compare(method, a, b, np.ones(10)) == pytest.approx(_compare(method, a, b), abs=1e-12)


def test_the_additive_part_with_weights_is_that_of_least_squares(rng):
    weights, x = np.array([1, 3, 2, 1, 1, 2]), rng.random(15)
    i, j = np.triu_indices(6, 1)
    design = np.eye(6)[i] + np.eye(6)[j]
    root = np.sqrt(weigh_pairs(weights))
    u = np.linalg.lstsq(design * root[:, None], x * root, rcond=None)[0]
    np.testing.assert_allclose(COMPARISONS["cka"].transform(x, weights), x - design @ u, atol=1e-12)
