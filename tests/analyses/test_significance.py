import numpy as np
import pytest
from scipy.stats import false_discovery_control, norm

from dnnbrain_app.analyses.encoding import score_encoding
from dnnbrain_app.analyses.folds import make_folds
from dnnbrain_app.analyses.options import EncodingOptions
from dnnbrain_app.analyses.significance import choose_best_layer, compute_p_values, control_fdr
from dnnbrain_app.records import Gram

DESIGNS = {
    "wide layer": (92, 500, 0.5, 10),
    "few dimensions": (92, 500, 2.0, 10),
    "two units": (60, 2, 0.0, 10),
    "few folds": (150, 300, 0.5, 3),
    "few stimuli": (24, 200, 0.5, 8),
}


def _score_noise(rng, n, p, decay, n_folds, n_repeats):
    """Two correlated layers, and voxels without signal: repeats averaged, neighbours correlated."""
    latent = rng.standard_normal((n, 100)) * np.arange(1.0, 101) ** -decay
    X = np.maximum(latent @ rng.standard_normal((100, p)), 0)
    layers = [X, np.maximum(X @ rng.standard_normal((p, p)) + X.std() * rng.standard_normal((n, p)), 0)]
    r = []
    for _ in range(n_repeats):
        trials = rng.standard_normal((3, n, 400))
        trials[..., 1::2] = 0.7 * trials[..., ::2] + 0.7 * trials[..., 1::2]
        folds = make_folds(n, n_folds, rng)
        grams = [Gram(f"{i}", (p,), i, L @ L.T, L.sum(1), L if p <= n else None) for i, L in enumerate(layers)]
        Y = trials.mean(0).astype(np.float32)
        scores = score_encoding("net", grams, Y, folds, EncodingOptions(), memory=2**30)
        r.append(scores.r)
        assert (scores.best_layer > 0).mean() < 0.01
    return np.concatenate(r, axis=1), [len(fold) for fold in folds]


@pytest.mark.parametrize("design", DESIGNS)
def test_noise_is_called_significant_no_more_often_than_it_should(rng, design):
    r, sizes = _score_noise(rng, *DESIGNS[design], n_repeats=8)
    p = compute_p_values(r, sizes)
    n_independent = 8 * 200  # pairs of voxels are correlated; so are the two layers
    for level in (0.05, 0.01, 0.001):
        assert (p < level).mean() < level + 3 * np.sqrt(level / n_independent)
    best = np.minimum(2 * p.min(axis=0), 1)  # Bonferroni over the layers
    assert (best < 0.05).mean() < 0.05 + 3 * np.sqrt(0.05 / n_independent)


def test_folds_are_not_independent(rng):
    """Why the variance has a 2: as if folds were independent, noise would be significant twice as often."""
    r, sizes = _score_noise(rng, *DESIGNS["wide layer"], n_repeats=8)
    deviation = np.sqrt(np.sum(1 / (np.array(sizes) - 1))) / len(sizes)
    assert 1.7 < (r / deviation).var() < 2.3
    assert (norm.sf(r / deviation) < 0.05).mean() > 0.08


def test_p_values_follow_the_formula():
    p = compute_p_values(np.array([0.0, 0.3, np.nan]), [10, 10, 11])
    np.testing.assert_allclose(p[1], norm.sf(0.3 / (np.sqrt(2 * (1 / 9 + 1 / 9 + 1 / 10)) / 3)))
    assert p[0] == 0.5
    assert np.isnan(p[2])


def test_fdr_ignores_nan(rng):
    p = np.concatenate([rng.random(50) * 1e-3, rng.random(50), [np.nan]])
    assert np.array_equal(control_fdr(p)[:-1], false_discovery_control(p[:-1]) < 0.05)
    assert not control_fdr(p)[-1]
    assert not control_fdr(np.array([np.nan])).any()


def test_best_layer_is_the_highest_of_the_significant():
    r = np.array([[0.5, 0.0, np.nan, np.nan, -0.9], [0.6, 0.05, np.nan, 0.7, -0.8]])
    assert choose_best_layer(r, [20] * 10).tolist() == [2, 0, 0, 2, 0]


def test_more_layers_need_a_higher_score():
    r = np.full((1, 1), 0.19)
    assert choose_best_layer(r, [20] * 10).tolist() == [1]
    assert choose_best_layer(np.repeat(r, 50, axis=0), [20] * 10).tolist() == [0]
