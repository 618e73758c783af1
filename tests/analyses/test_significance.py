import numpy as np
import pytest
from scipy.stats import false_discovery_control

from dnnbrain_app.analyses.encoding import score_encoding
from dnnbrain_app.analyses.folds import make_folds
from dnnbrain_app.analyses.options import EncodingOptions
from dnnbrain_app.analyses.significance import choose_best_layer, compute_p_values, control_fdr, permute_responses
from dnnbrain_app.records import Gram

DESIGNS = {
    "wide layer": (92, 500, 0.5, 10),
    "few dimensions": (92, 500, 2.0, 10),
    "two units": (60, 2, 0.0, 10),
    "few folds": (150, 300, 0.5, 3),
    "few stimuli": (24, 200, 0.5, 8),
}
N_VOXELS = 400


def make_layers(rng, n, p, decay):
    """Two correlated layers."""
    latent = rng.standard_normal((n, 100)) * np.arange(1.0, 101) ** -decay
    X = np.maximum(latent @ rng.standard_normal((100, p)), 0)
    layers = [X, np.maximum(X @ rng.standard_normal((p, p)) + X.std() * rng.standard_normal((n, p)), 0)]
    return [Gram(f"{i}", (p,), i, L @ L.T, L.sum(1), L if p <= n else None) for i, L in enumerate(layers)]


def make_noise(rng, n):
    """Voxels without signal: repeats averaged, neighbours correlated."""
    trials = rng.standard_normal((3, n, N_VOXELS))
    trials[..., 1::2] = 0.7 * trials[..., ::2] + 0.7 * trials[..., 1::2]
    return trials.mean(0).astype(np.float32)


@pytest.mark.parametrize("design", DESIGNS)
def test_noise_is_significant_as_often_as_it_should_be(rng, design, monkeypatch):
    """P values of the best of two layers are uniform in noise; they are caught where the best layer is chosen."""
    caught = []

    def catch(r, null):
        caught.append(compute_p_values(r.max(0), null.max(0)))
        return choose_best_layer(r, null)

    monkeypatch.setattr("dnnbrain_app.analyses.encoding.choose_best_layer", catch)
    n, p, decay, n_folds = DESIGNS[design]
    n_repeats, found = 8, 0
    for _ in range(n_repeats):
        folds = make_folds(n, n_folds, rng)
        options = EncodingOptions(n_null=4000)
        grams = make_layers(rng, n, p, decay)
        scores = score_encoding("net", grams, make_noise(rng, n), folds, options, rng=rng, memory=2**30)
        found += (scores.best_layer > 0).sum()
    values = np.concatenate(caught)
    n_independent = n_repeats * N_VOXELS / 2  # pairs of voxels are correlated
    for level in (0.05, 0.01):
        error = 3.5 * np.sqrt(level / n_independent)
        assert level - error < (values < level).mean() < level + error
    assert found <= 3


def test_planted_layer_is_found(rng):
    n = 92
    grams = make_layers(rng, n, 500, 0.5)
    w, v = np.linalg.eigh(grams[1].K - grams[1].K.mean(0))
    Y = make_noise(rng, n)
    signal = (v * np.sqrt(w.clip(0))) @ rng.standard_normal((n, 50))
    Y[:, :50] += 3 * (signal / signal.std(0)).astype(np.float32)
    folds = make_folds(n, 10, rng)
    best = score_encoding("net", grams, Y, folds, EncodingOptions(n_null=4000), rng=rng, memory=2**30).best_layer
    assert (best[:50] > 0).mean() > 0.5
    assert (best[:50][best[:50] > 0] == 2).mean() > 0.7
    assert (best[50:] > 0).sum() <= 3


def test_p_values_count_the_null():
    p = compute_p_values(np.array([0.5, 2.0, 9.0, np.nan]), np.array([1.0, 2.0, 3.0, np.nan]))
    np.testing.assert_allclose(p, [1.0, 0.75, 0.25, np.nan])


def test_permutations_keep_each_voxel_and_draw_the_same_in_any_chunk(rng):
    Y = rng.standard_normal((10, 100)).astype(np.float32)
    null = permute_responses(100, 300, rng)
    assert len(null) == 320
    rows = np.arange(10)
    drawn = null.draw(Y, slice(0, 320))(rows)
    assert np.array_equal(drawn[3:7, 128:256], null.draw(Y, slice(128, 256))(rows[3:7]))
    sources = {tuple(np.sort(column)): np.argsort(column) for column in Y.T}
    orders = {tuple(sources[tuple(np.sort(column))][np.argsort(np.argsort(column))]) for column in drawn.T}
    assert len(orders) == 5


def test_fdr_ignores_nan(rng):
    p = np.concatenate([rng.random(50) * 1e-3, rng.random(50), [np.nan]])
    assert np.array_equal(control_fdr(p)[:-1], false_discovery_control(p[:-1]) < 0.05)
    assert not control_fdr(p)[-1]
    assert not control_fdr(np.array([np.nan])).any()


def test_best_layer_is_the_highest_of_the_significant(rng):
    r = np.array([[0.5, 0.0, np.nan, np.nan, -0.9], [0.6, 0.05, np.nan, 0.7, -0.8]])
    assert choose_best_layer(r, 0.1 * rng.standard_normal((2, 1000))).tolist() == [2, 0, 0, 2, 0]


def test_more_layers_need_a_higher_score(rng):
    null = 0.1 * rng.standard_normal((50, 2000))
    r = np.full((50, 1), 0.25)
    assert choose_best_layer(r[:1], null[:1]).tolist() == [1]
    assert choose_best_layer(r, null).tolist() == [0]
