import numpy as np
import pytest

from dnnbrain_app.analyses.encoding import score_encoding
from dnnbrain_app.analyses.folds import make_folds
from dnnbrain_app.analyses.layer_choice import choose_layers, weigh_depth
from dnnbrain_app.analyses.options import EncodingOptions
from dnnbrain_app.errors import UsageError
from dnnbrain_app.records import Gram

OPTIONS = EncodingOptions(n_null=2000, n_alphas=7, n_bootstrap=300)


def _gram(X, depth=0) -> Gram:
    return Gram(f"layer{depth + 1}", (X.shape[1],), depth, X @ X.T, X.sum(1))


def _signal(rng, X, n_voxels):
    signal = (X - X.mean(0)) @ rng.standard_normal((X.shape[1], n_voxels))
    return signal / signal.std(0)


def _choose(rng, layers, Y, folds):
    grams, Y = [_gram(X, i) for i, X in enumerate(layers)], Y.astype(np.float32)
    settings = {"rng": rng, "memory": 2**30}
    scores = score_encoding("net", grams, Y, folds, OPTIONS, **settings)
    return scores, choose_layers(grams, Y, folds, scores, OPTIONS, **settings)


def test_planted_layers_are_chosen_with_confidence(rng):
    layers = [rng.standard_normal((100, p)) for p in (30, 30, 30)]
    Y = rng.standard_normal((100, 200))
    for i, X in enumerate(layers):
        Y[:, 40 * i : 40 * i + 40] += 1.5 * _signal(rng, X, 40)
    Y[:, 120:160] += _signal(rng, layers[0], 40) + _signal(rng, layers[1], 40)  # two layers tie
    scores, choice = _choose(rng, layers, Y, make_folds(100, 10, rng))
    for i in range(3):
        own = slice(40 * i, 40 * i + 40)
        assert (choice.best[own] == i + 1).mean() > 0.95
        assert choice.confidence[own].mean() > 0.95
        assert choice.agreed[own].mean() > 0.9
        assert scores.r[i, own].mean() - 0.06 < choice.r[own].mean() < scores.r[i, own].mean() + 0.01
    assert (choice.confidence[120:160] < 0.95).mean() > 0.5
    assert not choice.agreed[120:160].all()
    depths = [np.nanmean(choice.depth[40 * i : 40 * i + 40]) for i in range(3)]
    assert depths[0] < 1.3 < 1.8 < depths[1] < 2.2 < 2.7 < depths[2]
    silent = choice.best == 0
    assert silent[160:].mean() > 0.8
    for values in (choice.confidence, choice.depth):
        np.testing.assert_array_equal(np.isnan(values), silent)


def test_the_chosen_layer_scores_zero_in_noise(rng):
    """The highest score does not, nor does a choice by folds whose models have seen the responses it is scored on."""
    honest, highest, halved, found = [], [], [], 0
    for _ in range(12):
        layers = [rng.standard_normal((40, 60)) for _ in range(8)]
        scores, choice = _choose(rng, layers, rng.standard_normal((40, 100)), make_folds(40, 4, rng))
        found += choice.best.any()
        honest.append(choice.r.mean())
        highest.append(scores.r.max(0).mean())
        naive = scores.fold_r[:2].mean(0).argmax(0)
        halved.append(scores.fold_r[2:, naive, np.arange(100)].mean())
    error = np.std(honest) / np.sqrt(12)
    assert abs(np.mean(honest)) < 3 * error < 0.03
    assert np.mean(halved) > 0.05
    assert found <= 3  # in 5 % of 12 sets
    assert np.mean(highest) > 0.15


def test_depth_is_a_weighted_mean_of_layer_numbers():
    r = np.array([[0.2, -0.5, 0.1, -1.0, np.nan], [0.2, 0.3, np.nan, -0.1, np.nan], [0.2, 0.1, 0.1, 0.0, np.nan]])
    np.testing.assert_allclose(weigh_depth(r), [2, 2.25, 2, np.nan, np.nan])


def test_silent_voxels_and_few_folds(rng):
    X = rng.standard_normal((40, 20))
    Y = _signal(rng, X, 10) + 0.2 * rng.standard_normal((40, 10))
    Y[:, 3] = 1
    _, choice = _choose(rng, [X, X[:, :5]], Y, make_folds(40, 4, rng))
    assert np.isnan(choice.r).tolist() == [i == 3 for i in range(10)]
    assert choice.best[3] == 0
    with pytest.raises(UsageError, match="3 folds cannot be halved"):
        _choose(rng, [X], Y, make_folds(40, 3, rng))
