import numpy as np
import pytest
from scipy.stats import false_discovery_control

from dnnbrain_app.analyses.encoding import score_encoding
from dnnbrain_app.analyses.folds import make_folds
from dnnbrain_app.analyses.options import EncodingOptions
from dnnbrain_app.analyses.significance import adjust_fdr, choose_best_layer, compute_p_values, weigh_scores
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
def test_noise_is_significant_as_often_as_it_should_be(rng, design):
    """P values of each layer and of the best of two are uniform in noise."""
    n, p, decay, n_folds = DESIGNS[design]
    n_repeats, found, values = 8, 0, []
    for _ in range(n_repeats):
        folds = make_folds(n, n_folds, rng)
        options = EncodingOptions(n_null=4000)
        grams = make_layers(rng, n, p, decay)
        scores = score_encoding("net", grams, make_noise(rng, n), folds, options, rng=rng, memory=2**30)
        found += (scores.best_layer > 0).sum()
        values.append([*scores.layer_significance.p_value, scores.best_significance.p_value])
    n_independent = n_repeats * N_VOXELS / 2  # pairs of voxels are correlated
    for p in np.concatenate(values, axis=1):
        for level in (0.05, 0.01):
            error = 3.5 * np.sqrt(level / n_independent)
            assert level - error < (p < level).mean() < level + error
    assert found <= 3


def test_a_voxel_with_outliers_is_no_exception(rng):
    """One distribution serves voxels of all kinds, heavy tails among them."""
    rates = []
    for _ in range(8):
        grams, Y = make_layers(rng, 60, 300, 0.5), make_noise(rng, 60)
        Y[:, :100] = rng.standard_t(2.5, (60, 100))
        folds = make_folds(60, 10, rng)
        scores = score_encoding("net", grams, Y, folds, EncodingOptions(n_null=4000), rng=rng, memory=2**30)
        rates.append((scores.layer_significance.p_value[:, :100] < 0.05).mean())
    assert abs(np.mean(rates) - 0.05) < 3.5 * np.std(rates) / np.sqrt(8) + 0.01


def test_family_wise_error_is_exact_in_noise_that_voxels_share(rng):
    """In 5 % of data sets without signal, one voxel or more is found, however much the voxels have in common."""
    n_sets, any_found, best_found = 200, 0, 0
    for _ in range(n_sets):
        X = rng.standard_normal((30, 60))
        grams = [Gram("a", (60,), 0, X @ X.T, X.sum(1)), Gram("b", (20,), 1, X[:, :20] @ X[:, :20].T, X[:, :20].sum(1))]
        Y = (rng.standard_normal((30, 3)) @ rng.standard_normal((3, 40))).astype(np.float32)
        Y += 0.5 * rng.standard_normal(Y.shape).astype(np.float32)
        options = EncodingOptions(n_null=1, n_permutations=19, n_alphas=5)
        scores = score_encoding("net", grams, Y, make_folds(30, 3, rng), options, rng=rng, memory=2**30)
        any_found += (scores.layer_significance.p_fwe[0] <= 0.05).any()
        best_found += (scores.best_significance.p_fwe <= 0.05).any()
    error = 3 * np.sqrt(0.05 * 0.95 / n_sets)
    assert abs(any_found / n_sets - 0.05) < error
    assert abs(best_found / n_sets - 0.05) < error


def test_family_wise_error_finds_the_plant(rng):
    n = 92
    grams = make_layers(rng, n, 500, 0.5)
    Y = make_noise(rng, n)
    w, v = np.linalg.eigh(grams[1].K - grams[1].K.mean(0))
    signal = (v * np.sqrt(w.clip(0))) @ rng.standard_normal((n, 50))
    Y[:, :50] += 4 * (signal / signal.std(0)).astype(np.float32)
    Y[:, 60] = 1  # silent
    folds = make_folds(n, 10, rng)
    options = EncodingOptions(n_null=4000, n_permutations=39)
    for n_jobs in (1, 2):
        scores = score_encoding(
            "net", grams, Y, folds, options, rng=np.random.default_rng(0), memory=2**30, n_jobs=n_jobs
        )
        p = scores.layer_significance.p_fwe[1]
        assert (p[:50] <= 0.05).mean() > 0.5
        assert (p[50:] <= 0.05).sum() <= 1
        assert np.isnan(p[60])
        assert np.isnan(scores.best_significance.p_fwe[60])
        assert np.nanmin(p) == 1 / 40
    np.testing.assert_allclose(scores.fold_r.mean(0), scores.r, atol=1e-6)
    assert scores.fold_r.shape == (10, 2, N_VOXELS)


def test_what_runs_share_is_permuted_within_them(rng):
    """Runs show other kinds of stimuli and have offsets: orders over runs call the confound a finding."""
    run = np.repeat(np.arange(4), 15)
    folds = make_folds(60, 6, rng)  # stimuli of a run in training and test: a careless design
    rates = {None: [], "run": []}
    for _ in range(6):
        X = rng.standard_normal((60, 100)) + rng.standard_normal((4, 100))[run]
        Y = rng.standard_normal((60, 300)) + 0.7 * rng.standard_normal((4, 300))[run]
        for blocks, found in rates.items():
            scores = score_encoding(
                "net",
                [Gram("a", (100,), 0, X @ X.T, X.sum(1))],
                Y.astype(np.float32),
                folds,
                EncodingOptions(n_null=2000),
                rng=rng,
                memory=2**30,
                blocks=run if blocks else None,
            )
            found.append((scores.layer_significance.p_value < 0.05).mean())
    assert np.mean(rates[None]) > 0.2
    assert abs(np.mean(rates["run"]) - 0.05) < 3.5 * np.sqrt(0.05 / 1800)


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


def test_fdr_ignores_nan(rng):
    p = np.concatenate([rng.random(50) * 1e-3, rng.random(50), [np.nan]])
    np.testing.assert_allclose(adjust_fdr(p)[:-1], false_discovery_control(p[:-1]))
    assert np.isnan(adjust_fdr(p)[-1])
    assert np.isnan(adjust_fdr(np.array([np.nan]))).all()


def test_three_ways_to_weigh_a_score():
    scores, null = np.array([0.1, 0.9, np.nan, 0.5]), np.linspace(0, 0.8, 99)
    tested = weigh_scores(scores, null, np.array([0.2, 0.6, 0.4]))
    np.testing.assert_allclose(tested.p_value, compute_p_values(scores, null))
    np.testing.assert_allclose(tested.p_fwe, [1, 0.25, np.nan, 0.5])
    np.testing.assert_allclose(tested.q_value[[0, 1, 3]], false_discovery_control(tested.p_value[[0, 1, 3]]))
    assert weigh_scores(scores, null, np.empty(0)).p_fwe is None


def test_best_layer_is_the_highest_of_the_significant(rng):
    r = np.array([[0.5, 0.0, np.nan, np.nan, -0.9], [0.6, 0.05, np.nan, 0.7, -0.8]])
    best, significance = choose_best_layer(r, 0.1 * rng.standard_normal((2, 1000)), np.empty((2, 0)))
    assert best.tolist() == [2, 0, 0, 2, 0]
    assert np.isnan(significance.p_value).tolist() == [False, False, True, False, False]


def test_more_layers_need_a_higher_score(rng):
    null, r, none = 0.1 * rng.standard_normal((50, 2000)), np.full((50, 1), 0.25), np.empty((50, 0))
    assert choose_best_layer(r[:1], null[:1], none[:1])[0].tolist() == [1]
    assert choose_best_layer(r, null, none)[0].tolist() == [0]
