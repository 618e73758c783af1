import json
from itertools import permutations

import numpy as np
import pytest
from scipy.io import loadmat
from scipy.spatial.distance import pdist, squareform
from scipy.stats import binom, false_discovery_control

from dnnbrain_app.analyses.comparisons import COMPARISONS
from dnnbrain_app.analyses.rsa import compare_rdms
from dnnbrain_app.analyses.rsa_inference import permute_labels
from dnnbrain_app.errors import BadDataError, UsageError
from dnnbrain_app.records import Rdm

N = 16
MEMORY = 2**30


def _rdm(values, name="rdm", n=N) -> Rdm:
    return Rdm(name, np.asarray(values, dtype=float), tuple(f"image{i}" for i in range(n)))


def _noise(rng, n_rdms, n=N, n_voxels=20):
    """RDMs of trials whose noise has a memory, the stimuli in a random order each time."""
    rdms = []
    for _ in range(n_rdms):
        X = rng.standard_normal((n, n_voxels))
        for i in range(1, n):
            X[i] += 0.5 * X[i - 1]
        rdms.append(_rdm(pdist(rng.permutation(X), "sqeuclidean"), n=n))
    return rdms


@pytest.mark.parametrize("comparison", [name for name in COMPARISONS if name != "tau-a"])
def test_noise_is_significant_as_often_as_it_should(rng, comparison):
    layers = [_rdm(pdist(rng.standard_normal((N, k)), "sqeuclidean")) for k in (3, 10, 50)]
    layers.append(_rdm(pdist(rng.permutation(N)[:, None] % 2, "sqeuclidean")))
    found = permute_labels(layers, _noise(rng, 400), comparison, n_permutations=999, rng=rng, memory=MEMORY)
    for p in (found.p[0], found.p[2], found.p[3], found.p_fwe.min(axis=0)):
        assert abs((p <= 0.05).sum() - 20) < 3.3 * np.hypot(binom(400, 0.05).std(), 400 * binom(999, 0.05).std() / 999)
    assert (found.q < 0.05).sum() < 20


def test_planted_layer_and_region_are_found(rng):
    latent = rng.standard_normal((N, 5))
    layers = [*_noise(rng, 3), _rdm(pdist(latent, "sqeuclidean"))]
    regions = [*_noise(rng, 30), _rdm(pdist(latent + 0.3 * rng.standard_normal((N, 5)), "sqeuclidean"))]
    found = permute_labels(layers, regions, "rho-a", n_permutations=999, rng=rng, memory=MEMORY)
    assert np.argwhere(found.q < 0.05).tolist() == [[3, 30]]
    assert found.p_fwe[3, 30] == 1e-3
    assert (found.p_fwe >= found.p).all()
    np.testing.assert_allclose(found.q[1], false_discovery_control(found.p_fwe[1]))


@pytest.mark.parametrize("comparison", COMPARISONS)
@pytest.mark.parametrize("n_regions", [1, 3])
def test_agrees_with_permuted_rdms_compared_one_by_one(comparison, n_regions, rng):
    """All orders of five stimuli, drawn in turn."""

    class InTurn:
        def __init__(self):
            self.left = iter(permutations(range(5)))

        def permutation(self, n):
            return np.array(next(self.left))[:n]

    layers = [_rdm(pdist(rng.standard_normal((5, 4))), n=5) for _ in range(2)]
    regions = [_rdm(pdist(rng.standard_normal((5, 4))), n=5) for _ in range(n_regions)]
    found = permute_labels(layers, regions, comparison, n_permutations=120, rng=InTurn(), memory=MEMORY)
    for (i, a), (j, b) in [(x, y) for x in enumerate(layers) for y in enumerate(regions)]:
        square = squareform(a.dissimilarities)
        orders = [np.array(order) for order in permutations(range(5))]
        scores = [compare_rdms(_rdm(squareform(square[np.ix_(order, order)]), n=5), b, comparison) for order in orders]
        expected = (1 + (np.array(scores) >= scores[0] - 1e-6).sum()) / 121
        assert found.p[i, j] == pytest.approx(expected)


@pytest.mark.parametrize("comparison", ["pearson", "rho-a", "whitened-cosine"])
def test_what_goes_by_way_of_a_control_is_not_significant(rng, comparison):
    control = rng.standard_normal((N, 3))
    own = rng.standard_normal((N, 3))
    shared = pdist(control, "sqeuclidean")
    regions = [_rdm(shared + pdist(rng.standard_normal((N, 3)), "sqeuclidean")) for _ in range(300)]
    regions.append(_rdm(shared + pdist(own, "sqeuclidean")))
    layers = [_rdm(shared + pdist(own + 0.3 * rng.standard_normal((N, 3)), "sqeuclidean"))]
    settings = {"n_permutations": 199, "rng": rng, "memory": MEMORY}
    without = permute_labels(layers, regions, comparison, **settings)
    assert (without.p[0, :-1] <= 0.05).mean() > 0.2
    found = permute_labels(layers, regions, comparison, controls=[_rdm(shared)], **settings)
    assert 2 <= (found.p[0, :-1] <= 0.05).sum() <= 35
    assert found.p[0, -1] == 0.005


def test_rdms_that_cannot_be_tested_are_left_out(rng):
    layers, regions = _noise(rng, 3), _noise(rng, 2)
    holes = regions[0].dissimilarities.copy()
    holes[3] = np.nan
    regions.append(_rdm(holes))
    regions.append(_rdm(np.ones(N * (N - 1) // 2)))
    found = permute_labels(layers, regions, "pearson", n_permutations=9, rng=rng, memory=MEMORY)
    for values in (found.p, found.p_fwe, found.q):
        assert np.isnan(values[:, 2:]).all()
        assert (values[:, :2] > 0).all()


def test_inputs_that_cannot_be(rng):
    (a,) = _noise(rng, 1)
    settings = {"n_permutations": 9, "rng": rng, "memory": MEMORY}
    with pytest.raises(UsageError, match="tau-a with controls has no p values"):
        permute_labels([a], [a], "tau-a", controls=[a], **settings)
    with pytest.raises(BadDataError, match="other items"):
        permute_labels([a], [_rdm(np.ones(3), n=3)], "rho-a", **settings)
    with pytest.raises(UsageError, match=r"permuting 1 RDMs of 16 stimuli against 1 takes 0.00 GB"):
        permute_labels([a], [a], "rho-a", n_permutations=9, rng=rng, memory=10)


@pytest.mark.shared
def test_92_objects(shared):
    """With 10 000 other permutations: p within the error of drawing them."""
    folder = shared / "data" / "92objects"
    reference = json.loads((folder / "rsa_reference.json").read_text())["permutation_spearman_group_mean_hIT"]["models"]
    brains = loadmat(folder / "92_brainRDMs.mat")["RDMs"]["RDM"][0]
    mean = np.mean([squareform(np.asarray(b, float), checks=False) for row in brains for b in row], axis=0)
    models = [
        _rdm(squareform(np.asarray(m["RDM"], float), checks=False), str(m["name"][0]), 92)
        for m in loadmat(folder / "92_modelRDMs.mat")["Models"][0]
    ]
    rng = np.random.default_rng(0)
    found = permute_labels(models, [_rdm(mean, n=92)], "spearman", n_permutations=2000, rng=rng, memory=MEMORY)
    order = ["animacy", "FaceBodyManmadeNatobj", "monkeyIT", "EVA", "HMAX", "V1", "Silhouette", "RADON"]
    for name, p in zip(order, found.p[:, 0], strict=True):
        expected = reference[name]["p_one_sided"]
        assert p == pytest.approx(expected, abs=1e-3 + 4 * np.sqrt(expected / 2000)), name
