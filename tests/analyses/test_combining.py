import numpy as np
import pytest
from rsatoolbox.model import ModelWeighted
from rsatoolbox.model.fitter import fit_regress_nn
from rsatoolbox.rdm import RDMs
from scipy.optimize import nnls
from scipy.spatial.distance import pdist

from dnnbrain_app.analyses.combining import _fit_weights, score_combined
from dnnbrain_app.analyses.comparisons import COMPARISONS
from dnnbrain_app.analyses.rsa import compare_rdms
from dnnbrain_app.errors import BadDataError, UnknownNameError
from dnnbrain_app.records import Rdm

N = 40
FOLDS = list(np.arange(N).reshape(5, 8))


def _rdm(values, n=N) -> Rdm:
    return Rdm("rdm", np.asarray(values, dtype=float), tuple(f"image{i}" for i in range(n)))


def _layers(rng, n_layers, k=5):
    return [pdist(rng.standard_normal((N, k)), "sqeuclidean") for _ in range(n_layers)]


@pytest.mark.parametrize("comparison", COMPARISONS)
def test_recovers_the_layers_that_a_region_is_made_of(rng, comparison):
    layers = _layers(rng, 4)
    regions = [3 * layers[0] + layers[2], layers[1] + rng.random(len(layers[1]))]
    scores = score_combined([_rdm(x) for x in layers], [_rdm(y) for y in regions], comparison, FOLDS)
    assert scores.similarity[0] == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(scores.weights[:, 0], [3, 0, 1, 0], atol=1e-6)
    assert scores.similarity[0] > scores.single[:, 0].max()
    assert scores.weights[1, 1] == pytest.approx(1, abs=0.1)
    assert scores.best[1] == pytest.approx(scores.single[1, 1])


@pytest.mark.parametrize("comparison", ["pearson", "rho-a", "whitened-pearson", "cka"])
def test_many_layers_do_not_explain_noise(rng, comparison):
    """As they do the stimuli that they are fitted to."""
    layers = _layers(rng, 12)
    regions = _layers(rng, 40)
    scores = score_combined([_rdm(x) for x in layers], [_rdm(y) for y in regions], comparison, FOLDS)
    assert abs(scores.similarity.mean()) < 0.03
    assert abs(scores.best.mean()) < 0.03
    X = np.array([COMPARISONS["pearson"].transform(x, None) for x in (*layers, *regions)])
    fitted = _fit_weights(X[:12], X[12:]).T @ np.array(layers)
    within = [compare_rdms(_rdm(a), _rdm(b), "pearson") for a, b in zip(fitted, regions, strict=True)]
    assert np.mean(within) > 0.07


def test_weights_agree_with_scipy_and_rsatoolbox(rng):
    layers, region = np.array(_layers(rng, 4)), _layers(rng, 1)[0]
    region += 0.3 * layers[1] + 0.1 * layers[2]
    found = _fit_weights(layers, region[None])[:, 0]
    np.testing.assert_allclose(found, nnls(layers.T, region)[0], atol=1e-9)
    theirs = fit_regress_nn(ModelWeighted("layers", layers), RDMs(region[None]), method="cosine")
    np.testing.assert_allclose(found / np.linalg.norm(found), theirs / np.linalg.norm(theirs), atol=1e-6)


def test_a_layer_twice_or_without_variance_does_no_harm(rng):
    layers = [*_layers(rng, 2), np.ones(N * (N - 1) // 2)]
    layers.append(layers[0])
    scores = score_combined([_rdm(x) for x in layers], [_rdm(layers[0] + layers[1])], "pearson", FOLDS)
    assert scores.similarity[0] == pytest.approx(1, abs=1e-6)


def test_inputs_that_cannot_be(rng):
    (a,) = (_rdm(x) for x in _layers(rng, 1))
    holes = a.dissimilarities.copy()
    holes[3] = np.nan
    with pytest.raises(BadDataError, match="a fold of 2 stimuli; to compare RDMs, hold out at least 4"):
        score_combined([a], [a], "pearson", [np.arange(20), np.arange(2)])
    with pytest.raises(BadDataError, match="misses dissimilarities"):
        score_combined([a], [_rdm(holes)], "pearson", FOLDS)
    with pytest.raises(BadDataError, match="other items"):
        score_combined([a], [_rdm(np.ones(3), 3)], "pearson", FOLDS)
    with pytest.raises(UnknownNameError, match="spearman"):
        score_combined([a], [a], "spaerman", FOLDS)
