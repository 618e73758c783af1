from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import pdist
from sklearn.random_projection import SparseRandomProjection

from dnnbrain_app.errors import UsageError
from dnnbrain_app.networks.layers import Layer
from dnnbrain_app.networks.projection import Projector, draw_matrix, sum_rows

K = 512


@pytest.fixture(name="X")
def fixture_features(rng) -> np.ndarray:
    """Rectified, so that all have a large mean in common, as activations do."""
    return np.maximum(rng.standard_normal((30, 20_000)) + rng.standard_normal(20_000), 0).astype(np.float32)


def test_distances_nearly_stay(X):
    """Squared distances err by sqrt(2 / k) in the mean, with a tail that sparseness makes a little heavier."""
    Z = Projector(K, seed=0).apply("conv1", X)
    assert Z.shape == (30, K)
    assert Z.dtype == np.float32
    ratio = pdist(Z, "sqeuclidean") / pdist(X, "sqeuclidean")
    assert ratio.std() == pytest.approx(np.sqrt(2 / K), rel=0.5)
    assert abs(ratio - 1).max() < 5 * np.sqrt(2 / K)


def test_inner_products_are_unbiased(X):
    """Over many matrices the mean is exact: errors shrink as they must."""
    exact = X[0] @ X[1]
    inner = [np.prod(Projector(64, seed).apply("conv1", X[:2]), axis=0).sum() for seed in range(40)]
    assert np.mean(inner) == pytest.approx(exact, abs=4 * np.std(inner) / np.sqrt(len(inner)))
    assert np.std(inner) < 0.5 * exact


def test_the_matrix_is_as_scikit_learn_draws_it(rng):
    n_columns = 20_000
    R = draw_matrix(K, n_columns, rng)
    theirs = SparseRandomProjection(K, random_state=0).fit(np.zeros((1, n_columns))).components_.tocsc()
    assert R.shape == theirs.shape == (K, n_columns)
    np.testing.assert_allclose(np.unique(R.data), np.unique(theirs.data), rtol=1e-6)
    assert abs(R.data.mean()) < 4 * R.data.std() / np.sqrt(R.nnz)
    assert R.nnz == pytest.approx(theirs.nnz, abs=5 * np.sqrt(theirs.nnz))
    for axis in (0, 1):  # entries of a column, and of a row, are binomial in both
        n_ours, n_theirs = ((matrix != 0).sum(axis=axis) for matrix in (R, theirs))
        assert n_ours.var() == pytest.approx(n_theirs.var(), rel=0.3)
        assert n_ours.var() == pytest.approx(n_ours.mean(), rel=0.3)


@pytest.mark.parametrize("shape", [(1, 2), (3, 2), (2, 50), (1, 1)])
def test_small_matrices(shape, rng):
    """No entry is lost at the end, or lies outside."""
    n_entries = [draw_matrix(*shape, rng).toarray().astype(bool) for _ in range(2000)]
    assert np.mean(n_entries, axis=0) == pytest.approx(1 / np.sqrt(shape[1]), abs=0.06)


def test_correlations_between_patterns_nearly_stay(X):
    """They need the patterns' means, which a random projection of the patterns themselves would lose."""
    Z = Projector(K, seed=0).apply("conv1", X).astype(float)
    sums = sum_rows(Z)
    centred = Z @ Z.T - np.outer(sums, sums) / K
    scale = np.sqrt(np.diag(centred))
    found, exact = centred / np.outer(scale, scale), np.corrcoef(X)
    assert np.sqrt(np.mean((found - exact)[np.triu_indices(30, 1)] ** 2)) < 1.5 / np.sqrt(K)


def test_seed_and_layer_make_the_matrix(X):
    Z = Projector(K, seed=0).apply("conv1", X)
    np.testing.assert_array_equal(Projector(K, seed=0).apply("conv1", X), Z)
    both = Projector(K, seed=0)
    other = both.apply("conv2", X)
    np.testing.assert_array_equal(both.apply("conv1", X), Z)  # whatever came before
    for different in (other, Projector(K, seed=1).apply("conv1", X)):
        assert abs(np.corrcoef(different[:, :-1].ravel(), Z[:, :-1].ravel())[0, 1]) < 0.1


@pytest.mark.parametrize("size", [1, 2, 7, 16])
def test_batches_do_not_matter(size, X):
    projector = Projector(K, seed=0)
    pieces = [projector.apply("conv1", X[start : start + size]) for start in range(0, len(X), size)]
    np.testing.assert_array_equal(np.concatenate(pieces), projector.apply("conv1", X))
    assert all(piece.flags.c_contiguous for piece in pieces)


def test_only_wider_layers_are_projected(X):
    layers = [Layer("conv", "conv", 1, (8, 8, 9), 576, 0, ""), Layer("fc", "fc", 1, (K,), K, 1, "")]
    wide, narrow = Projector(K, seed=0).plan(layers)
    assert (wide.name, wide.shape, wide.n_features) == ("conv", (K,), K)
    assert narrow is layers[1]
    rows = X[:, :K]
    assert Projector(K, seed=0).apply("fc", rows) is rows


def test_refuses_no_dimensions():
    with pytest.raises(UsageError, match="projection to 1 dimensions"):
        Projector(1, seed=0)
