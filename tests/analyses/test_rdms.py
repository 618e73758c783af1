import logging
import tracemalloc

import numpy as np
import pytest
from scipy.spatial.distance import cdist, pdist

from dnnbrain_app.analyses import rdms
from dnnbrain_app.analyses.rdms import compute_attribute_rdm, compute_layer_rdm, compute_rdm, require_memory
from dnnbrain_app.errors import BadDataError, UnknownNameError, UsageError
from dnnbrain_app.records import Gram

ITEMS = tuple(f"image{i}" for i in range(12))


def _gram(X, *, keep=False) -> Gram:
    """K alone, or X-only."""
    rows = X.reshape(len(X), -1)
    return Gram("conv1", X.shape[1:], 0, None if keep else rows @ rows.T, rows.sum(1), rows if keep else None)


@pytest.mark.parametrize("offset", [0, 100])
def test_correlation_distance_agrees_with_scipy(rng, offset):
    X = rng.standard_normal((12, 40)) + offset
    rdm = compute_rdm(X, ITEMS, "V1")
    np.testing.assert_allclose(rdm.dissimilarities, pdist(X, "correlation"), atol=1e-11)
    assert (rdm.name, rdm.items, rdm.metric) == ("V1", ITEMS, "correlation")


@pytest.mark.parametrize(("metric", "divide"), [("cosine", 1), ("sqeuclidean", 40)])
@pytest.mark.parametrize("block", [2048, 5])
def test_other_metrics_agree_with_scipy(rng, monkeypatch, metric, divide, block):
    monkeypatch.setattr(rdms, "BLOCK", block)
    X = rng.standard_normal((12, 40)) + 2
    expected = pdist(X, metric) / divide
    rdm = compute_rdm(X, ITEMS, "V1", metric)
    np.testing.assert_allclose(rdm.dissimilarities, expected, atol=1e-11)
    assert rdm.metric == metric
    for keep in (True, False):
        layer = compute_layer_rdm(_gram(X, keep=keep), ITEMS, 2**20, metric)
        np.testing.assert_allclose(layer.dissimilarities, expected, atol=1e-11)
        assert layer.metric == metric


def test_euclidean_distances_in_single_precision_survive_a_large_mean(rng, monkeypatch):
    monkeypatch.setattr(rdms, "DOUBLE_PRECISION_COST", 0)
    X = (rng.standard_normal((12, 3000)) + 100).astype(np.float32)
    rdm = compute_rdm(X, ITEMS, "V1", "sqeuclidean")
    np.testing.assert_allclose(rdm.dissimilarities, pdist(X.astype(float), "sqeuclidean") / 3000, rtol=5e-6)


def test_angles_with_nothing(rng):
    X = rng.standard_normal((12, 40))
    X[3] = 0
    with pytest.raises(BadDataError, match="region V1: the pattern of image3 is zero, so its angle"):
        compute_rdm(X, ITEMS, "V1", "cosine")
    compute_rdm(np.where(np.arange(12)[:, None] == 3, 1.0, X), ITEMS, "V1", "cosine")


def test_attributes_make_model_rdms():
    category = compute_attribute_rdm(np.array(["face", "house", "n/a", "face"], dtype=object), ITEMS[:4], "category")
    np.testing.assert_array_equal(category.dissimilarities, [1, np.nan, 0, np.nan, 1, np.nan])
    size = compute_attribute_rdm(np.array([1, 2.5, np.nan, 0.5]), ITEMS[:4], "size")
    np.testing.assert_array_equal(size.dissimilarities, [1.5, np.nan, 0.5, np.nan, 2, np.nan])
    alive = compute_attribute_rdm(np.array([True, False, True]), ITEMS[:3], "alive")
    np.testing.assert_array_equal(alive.dissimilarities, [1, 0, 1])
    assert (category.metric, size.metric, alive.metric) == ("category", "difference", "category")
    with pytest.raises(BadDataError, match="attribute size: all stimuli have the same value"):
        compute_attribute_rdm(np.array([1, np.nan, 1]), ITEMS[:3], "size")


def test_single_precision_is_exact_enough(rng, monkeypatch):
    monkeypatch.setattr(rdms, "DOUBLE_PRECISION_COST", 0)
    X = (np.maximum(rng.standard_normal((12, 3000)), 0) + 3).astype(np.float32)
    rdm = compute_rdm(X, ITEMS, "V1")
    np.testing.assert_allclose(rdm.dissimilarities, pdist(X.astype(float), "correlation"), atol=2e-6)
    assert rdm.dissimilarities.dtype == np.float64


def test_recovers_categories_and_finds_none_in_noise(rng):
    category = np.repeat([0, 1], 6)
    different = pdist(category[:, None]) > 0
    noise = rng.standard_normal((12, 500))
    planted = compute_rdm(rng.standard_normal((2, 500))[category] + noise, ITEMS, "IT").dissimilarities
    assert planted[different].min() > planted[~different].max()
    none = compute_rdm(noise, ITEMS, "IT").dissimilarities
    assert abs(none.mean() - 1) < 0.03
    assert abs(none[different].mean() - none[~different].mean()) < 0.05


def test_voxels_without_signal_are_left_out(rng, caplog):
    X = rng.standard_normal((12, 40))
    holes = X.copy()
    holes[3, 7], holes[4, 9] = np.nan, np.inf
    with caplog.at_level(logging.INFO):
        rdm = compute_rdm(holes, ITEMS, "V1")
    assert "region V1: 2 of 40 voxels" in caplog.text
    expected = pdist(np.delete(X, [7, 9], axis=1), "correlation")
    np.testing.assert_allclose(rdm.dissimilarities, expected, atol=1e-12)


def test_equal_and_opposite_patterns_are_at_the_ends(rng):
    a, b = rng.standard_normal((2, 50)).astype(np.float32)
    d = compute_rdm(np.array([a, 2 * a + 1, -a, b]), ITEMS[:4], "V1").dissimilarities
    np.testing.assert_allclose(d[:2], [0, 2], atol=1e-6)
    assert d.min() >= 0
    assert d.max() <= 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda X: X[:, :1], "region V1: 1 voxel"),
        (lambda X: X * np.where(np.arange(12) == 4, 0, 1)[:, None], "region V1: the pattern of image4 is constant"),
        (lambda X: np.where(np.arange(12)[:, None] == 4, 1 / 3, X), "region V1: the pattern of image4 is constant"),
        (lambda X: X * np.nan, "region V1: 0 voxel"),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_patterns_without_correlation(rng, change, words, dtype):
    with pytest.raises(BadDataError, match=words):
        compute_rdm(change(rng.standard_normal((12, 40))).astype(dtype), ITEMS, "V1")


def test_unknown_metric(rng):
    X = rng.standard_normal((12, 40))
    with pytest.raises(UnknownNameError, match="did you mean 'correlation'"):
        compute_rdm(X, ITEMS, "V1", "correlatoin")
    with pytest.raises(UnknownNameError, match="did you mean 'sqeuclidean'"):
        compute_layer_rdm(_gram(X), ITEMS, 2**20, "euclidean")


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("block", [2048, 5, 1])
def test_layer_rdm_is_that_of_the_activations(rng, monkeypatch, keep, block):
    monkeypatch.setattr(rdms, "BLOCK", block)
    X = np.maximum(rng.standard_normal((12, 8, 5, 5)) + 0.5, 0)
    rdm = compute_layer_rdm(_gram(X, keep=keep), ITEMS, 2**20)
    np.testing.assert_allclose(rdm.dissimilarities, pdist(X.reshape(12, -1), "correlation"), atol=1e-12)
    assert (rdm.name, rdm.items) == ("conv1", ITEMS)


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("value", [0, 1 / 3])
def test_a_stimulus_that_activates_all_units_alike_is_named(rng, value, keep):
    X = rng.standard_normal((12, 100))
    X[2] = value
    with pytest.raises(BadDataError, match="layer conv1: the pattern of image2 is constant"):
        compute_layer_rdm(_gram(X, keep=keep), ITEMS, 2**20)


def test_an_rdm_of_many_stimuli_comes_from_features_in_little_more_than_its_own_memory(rng):
    X = rng.standard_normal((3000, 20)).astype(np.float32)
    items = tuple(f"{i}" for i in range(3000))
    gram = Gram("pool", (20,), 0, None, X.sum(1, dtype=np.float64), X)
    tracemalloc.start()
    rdm = compute_layer_rdm(gram, items, 2**28)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 36e6 + 3 * 8 * rdms.BLOCK**2
    np.testing.assert_allclose(rdm.dissimilarities[:2999], cdist(X[:1], X[1:], "correlation")[0], atol=2e-6)


def test_rdms_that_do_not_fit_the_memory_are_refused():
    X = np.broadcast_to(np.float32(0), (60_000, 4))
    gram = Gram("pool", (4,), 0, None, np.broadcast_to(0.0, 60_000), X)
    with pytest.raises(UsageError, match=r"an RDM of 60000 stimuli takes 14.40 GB.*of which 2.00 GB are there"):
        compute_layer_rdm(gram, ("",) * 60_000, 2 * 10**9)
    require_memory(2000, 100, 2 * 10**9)
    with pytest.raises(UsageError, match=r"takes 0.02 GB, and the work with 200 at once 3.29 GB"):
        require_memory(2000, 200, 2 * 10**9)
