import logging

import numpy as np
import pytest
from himalaya.kernel_ridge import KernelRidgeCV
from sklearn.metrics import r2_score

from dnnbrain_app.analyses.encoding import score_encoding
from dnnbrain_app.analyses.folds import make_folds
from dnnbrain_app.analyses.options import EncodingOptions
from dnnbrain_app.errors import BadDataError, UsageError
from dnnbrain_app.records import Gram, Grams

OPTIONS = EncodingOptions(n_null=2000)


def _gram(X, depth=0) -> Gram:
    X = np.asarray(X, dtype=float)
    return Gram(f"layer{depth + 1}", (X.shape[1],), depth, X @ X.T, X.sum(1), X if X.shape[1] <= len(X) else None)


def _features(rng, n, p):
    return np.maximum(rng.standard_normal((n, 50)) @ rng.standard_normal((50, p)), 0)


def _signal(rng, X, n_voxels):
    signal = (X - X.mean(0)) @ rng.standard_normal((X.shape[1], n_voxels))
    return signal / signal.std(0)


def _score(layers, Y, folds, options=OPTIONS, **settings):
    grams = [_gram(X, depth) for depth, X in enumerate(layers)]
    return score_encoding(
        "net",
        grams,
        Y.astype(np.float32),
        folds,
        options,
        **{"memory": 2**30, "rng": np.random.default_rng(0)} | settings,
    )


def test_recovers_planted_layers_and_leaves_noise_alone(rng):
    layers = [_features(rng, 150, p) for p in (60, 400, 200)]
    Y = rng.standard_normal((150, 400))
    for layer in range(3):
        Y[:, layer * 100 : layer * 100 + 100] += 1.5 * _signal(rng, layers[layer], 100)
    scores = _score(layers, Y, make_folds(150, 10, rng))
    for layer in range(3):
        own = slice(layer * 100, layer * 100 + 100)
        assert (scores.best_layer[own] == layer + 1).mean() > 0.95
        assert scores.r[layer, own].mean() > 0.4
        assert scores.rsquared[layer, own].mean() > 0.15
    assert (scores.best_layer[300:] > 0).mean() < 0.1  # BH: 5 % of 300 found, times the share of noise voxels
    assert abs(scores.r[:, 300:].mean()) < 0.02
    assert scores.rsquared[:, 300:].max() < 0.2
    assert scores.layers == ("layer1", "layer2", "layer3")


def test_penalty_grows_with_noise(rng):
    X = _features(rng, 200, 300)
    noise = np.repeat([0.1, 1, 5], 50)
    Y = _signal(rng, X, 150) + noise * rng.standard_normal((200, 150))
    alpha = _score([X], Y, make_folds(200, 5, rng)).alpha[0].reshape(3, 50)
    assert (np.diff(np.median(alpha, axis=1)) > 0).all()


def test_500_noise_features_score_zero(rng):
    """Where the original picked the best of many features with the test data, noise reached r = .34."""
    Y = rng.standard_normal((100, 500))
    scores = _score([rng.standard_normal((100, 500))], Y, make_folds(100, 10, rng))
    assert abs(scores.r.mean()) < 0.03
    assert abs(scores.rsquared.mean()) < 0.03
    assert not scores.best_layer.any()


def test_permuted_stimuli_score_zero(rng):
    X = _features(rng, 100, 300)
    Y = _signal(rng, X, 300)
    folds = make_folds(100, 10, rng)
    assert _score([X], Y, folds).r.mean() > 0.8
    permuted = np.mean([_score([X], Y[rng.permutation(100)], folds).r.mean() for _ in range(10)])
    assert abs(permuted) < 0.05  # the voxels share 50 dimensions, so few of them are independent


def test_scores_are_defined_as_documented(rng):
    """Against a loop that fits each fold and voxel by normal equations with the penalties that were found."""
    X, n_voxels = _features(rng, 50, 120), 8
    Y = (_signal(rng, X, n_voxels) + rng.standard_normal((50, n_voxels)) + 3).astype(np.float32).astype(float)
    folds = make_folds(50, 4, rng)
    options = EncodingOptions(alpha_min=0.1, alpha_max=0.1, n_alphas=1)
    scores = _score([X], Y, folds, options)
    r, predicted, naive = np.zeros(n_voxels), np.empty_like(Y), np.empty_like(Y)
    for test in folds:
        train = np.delete(np.arange(50), test)
        Xc = X - X[train].mean(0)
        C = Xc[train].T @ Xc[train]
        naive[test] = Y[train].mean(0)
        penalty = 0.1 * np.trace(C) / len(train) * np.eye(120)
        predicted[test] = naive[test] + Xc[test] @ np.linalg.solve(
            C + penalty, Xc[train].T @ (Y[train] - Y[train].mean(0))
        )
        r += [np.corrcoef(predicted[test, v], Y[test, v])[0, 1] / len(folds) for v in range(n_voxels)]
    np.testing.assert_allclose(scores.r[0], r, atol=1e-5)
    np.testing.assert_allclose(
        scores.rsquared[0], 1 - ((Y - predicted) ** 2).sum(0) / ((Y - naive) ** 2).sum(0), atol=1e-4
    )
    np.testing.assert_allclose(scores.alpha, 0.1)
    assert (scores.rsquared[0] > r2_score(Y, predicted, multioutput="raw_values")).all()  # which is told the test mean


def test_as_good_as_himalaya(rng):
    X = _features(rng, 120, 500)
    Y = (0.7 * _signal(rng, X, 200) + rng.standard_normal((120, 200))).astype(np.float32)
    folds = make_folds(120, 4, rng)
    theirs = []
    for test in folds:
        train = np.delete(np.arange(120), test)
        Xc, Yc = X - X[train].mean(0), Y - Y[train].mean(0)
        alphas = np.geomspace(1e-5, 1e5, 21) * (Xc[train] ** 2).sum() / len(train)
        model = KernelRidgeCV(alphas=alphas, cv=5).fit(Xc[train], Yc[train])
        P = model.predict(Xc[test])
        theirs.append([np.corrcoef(P[:, v], Y[test, v])[0, 1] for v in range(200)])
    ours = _score([X], Y, folds).r[0]
    assert ours.mean() > np.mean(theirs) - 0.005
    assert np.corrcoef(ours, np.mean(theirs, axis=0))[0, 1] > 0.98


def test_voxels_without_signal_score_nan_and_harm_no_other(rng):
    X = _features(rng, 60, 100)
    Y = _signal(rng, X, 30) + rng.standard_normal((60, 30))
    folds = make_folds(60, 5, rng)
    good = _score([X], Y, folds)
    Y[:, 3], Y[:, 4], Y[5, 5], Y[6, 6] = 0, 1 / 3, np.nan, np.inf
    scores = _score([X], Y, folds)
    silent = np.isin(np.arange(30), [3, 4, 5, 6])
    for name in ("r", "rsquared", "alpha"):
        values = getattr(scores, name)
        assert np.isnan(values[:, silent]).all()
        np.testing.assert_array_equal(values[:, ~silent], getattr(good, name)[:, ~silent])
    assert not scores.best_layer[silent].any()


def test_a_voxel_constant_in_one_fold_has_no_correlation_there(rng):
    X = _features(rng, 60, 100)
    Y = _signal(rng, X, 5)
    folds = make_folds(60, 5, rng)
    Y[folds[2], 1] = 0.1
    scores = _score([X], Y, folds)
    assert np.isnan(scores.r[0]).tolist() == [False, True, False, False, False]
    assert np.isfinite(scores.rsquared).all()


def test_chunks_threads_and_large_means_change_nothing(rng):
    X = _features(rng, 60, 100)
    Y = _signal(rng, X, 300) + rng.standard_normal((60, 300))
    folds = make_folds(60, 5, rng)
    whole = _score([X, X[:, :30]], Y, folds)
    for settings in ({"memory": 12_000_000}, {"n_jobs": 2}):
        other = _score([X, X[:, :30]], Y, folds, **settings)
        np.testing.assert_allclose(other.r, whole.r, atol=1e-5)
        np.testing.assert_array_equal(other.best_layer, whole.best_layer)
    np.testing.assert_allclose(_score([X], Y + 1000, folds).r, whole.r[:1], atol=2e-3)


def test_warns_of_penalties_at_the_edge(rng, caplog):
    X = _features(rng, 100, 200)
    Y = _signal(rng, X, 50) + rng.standard_normal((100, 50))
    with caplog.at_level(logging.WARNING):
        narrow = _score([X], Y, make_folds(100, 5, rng), EncodingOptions(alpha_min=1e-5, alpha_max=1e-4, n_alphas=4))
        assert narrow.edge_fraction > 0.9
        assert "at an edge of its grid in 100 % of the fits" in caplog.text
        caplog.clear()
        wide = _score([X], Y, make_folds(100, 5, rng))
        assert wide.edge_fraction < 0.05
        assert not caplog.text


def test_layers_are_read_once_and_one_at_a_time(rng):
    layers = [_gram(_features(rng, 30, p), i) for i, p in enumerate((20, 50, 10))]
    read = []
    grams = Grams(3, lambda i: read.append(i) or layers[i])
    scores = score_encoding(
        "net",
        grams,
        rng.standard_normal((30, 4), dtype=np.float32),
        make_folds(30, 3, rng),
        EncodingOptions(n_null=10),
        rng=rng,
        memory=2**30,
        progress=lambda done, _: read.append(f"{(done - 1) // 3} used"),
    )
    assert list(dict.fromkeys(read)) == [0, "0 used", 1, "1 used", 2, "2 used"]
    assert read.count(0) == read.count(1) == read.count(2) == 1
    assert scores.layers == ("layer1", "layer2", "layer3")


def test_reports_progress(rng):
    calls = []
    X = _features(rng, 30, 20)
    _score(
        [X, X],
        rng.standard_normal((30, 4)),
        make_folds(30, 3, rng),
        progress=lambda done, total: calls.append((done, total)),
    )
    assert calls == [(i, 6) for i in range(1, 7)]


@pytest.mark.parametrize(
    ("n", "options", "error", "words"),
    [
        (31, OPTIONS, BadDataError, "layer1: activations for 31 stimuli, responses to 30"),
        (30, EncodingOptions(alpha_min=0.0), UsageError, "0 < alpha_min"),
        (30, EncodingOptions(alpha_min=10.0, alpha_max=1.0), UsageError, "from 10.0 to 1.0"),
        (30, EncodingOptions(n_alphas=0), UsageError, "ridge penalties: 0"),
    ],
)
def test_inputs_that_cannot_be(rng, n, options, error, words):
    with pytest.raises(error, match=words):
        _score([_features(rng, n, 20)], rng.standard_normal((30, 4)), make_folds(30, 3, rng), options)


def test_a_dead_layer_stops_the_work_at_once(rng):
    with pytest.raises(BadDataError, match="layer layer2: its activations do not vary"):
        _score(
            [_features(rng, 30, 20), np.zeros((30, 20))], rng.standard_normal((30, 4)), make_folds(30, 3, rng), n_jobs=2
        )
