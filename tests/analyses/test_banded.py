import numpy as np
import pytest
from himalaya.kernel_ridge import MultipleKernelRidgeCV
from himalaya.scoring import r2_score_split
from sklearn.kernel_ridge import KernelRidge

from dnnbrain_app.analyses.banded import draw_mixtures, score_bands
from dnnbrain_app.analyses.budget import divide_mixtures
from dnnbrain_app.analyses.encoding import score_encoding
from dnnbrain_app.analyses.folds import make_folds
from dnnbrain_app.analyses.options import BandedOptions
from dnnbrain_app.errors import BadDataError, UsageError
from dnnbrain_app.records import Gram

OPTIONS = BandedOptions(n_null=1000, n_mixtures=20, n_alphas=11)


def _gram(X, depth=0) -> Gram:
    return Gram(f"band{depth + 1}", (X.shape[1],), depth, X @ X.T, X.sum(1))


def _signal(rng, X, n_voxels):
    signal = (X - X.mean(0)) @ rng.standard_normal((X.shape[1], n_voxels))
    return signal / signal.std(0)


def _score(spaces, Y, folds, options=OPTIONS, **settings):
    grams = [_gram(X, i) for i, X in enumerate(spaces)]
    settings = {"rng": np.random.default_rng(0), "memory": 2**30} | settings
    return score_bands(grams, Y.astype(np.float32), folds, options, **settings)


def test_finds_the_space_that_each_voxel_reads(rng):
    spaces = [rng.standard_normal((150, p)) for p in (200, 50, 300)]
    Y = rng.standard_normal((150, 200))
    Y[:, :50] += 2 * _signal(rng, spaces[0], 50)
    Y[:, 50:100] += 2 * _signal(rng, spaces[1], 50)
    Y[:, 100:150] += 1.5 * _signal(rng, spaces[0], 50) + 1.5 * _signal(rng, spaces[1], 50)
    folds = make_folds(150, 5, rng)
    scores = _score(spaces, Y, folds)
    assert scores.weights[0, :50].mean() > 0.7
    assert scores.weights[1, 50:100].mean() > 0.8
    np.testing.assert_allclose(scores.weights.sum(0), 1)
    np.testing.assert_allclose(scores.band_rsquared.sum(0), scores.rsquared, atol=1e-5)
    mean = scores.band_rsquared.reshape(3, 4, 50).mean(2)
    assert mean[0, 0] > 0.15
    assert mean[1, 1] > 0.5
    assert (mean[:2, 2] > 0.05).all()
    assert np.abs([mean[1, 0], mean[2, 0], mean[0, 1], mean[2, 1], *mean[:, 3]]).max() < 0.05
    joint = score_encoding(  # one penalty for all: the spaces that say nothing spoil it
        "all", [_gram(np.hstack(spaces))], Y.astype(np.float32), folds, OPTIONS, rng=rng, memory=2**30
    )
    assert scores.r[:100].mean() > joint.r[0, :100].mean() + 0.05
    assert (scores.significance.q_value[:150] < 0.05).mean() > 0.9
    assert (scores.significance.q_value[150:] < 0.05).mean() < 0.15


def test_noise_is_significant_as_often_as_it_should_be(rng):
    """However many mixtures a voxel may choose from."""
    p = []
    for _ in range(8):
        spaces = [rng.standard_normal((50, width)) for width in (80, 20)]
        p.append(_score(spaces, rng.standard_normal((50, 300)), make_folds(50, 5, rng), rng=rng).significance.p_value)
    p = np.concatenate(p)
    for level in (0.05, 0.01):
        assert abs((p < level).mean() - level) < 3.5 * np.sqrt(level / len(p)) + 0.1 * level
    spaces = [rng.standard_normal((60, 250)) for _ in range(2)]
    scores = _score(spaces, rng.standard_normal((60, 500)), make_folds(60, 10, rng))
    assert abs(scores.r.mean()) < 0.03
    assert -0.1 < scores.rsquared.mean() < 0.01  # penalties chosen in noise are at times too small


def test_as_good_as_himalaya(rng):
    """Held-out scores, and who gets the credit, against himalaya's random search with cross-validation."""
    spaces = [rng.standard_normal((160, p)) * np.arange(1.0, p + 1) ** -0.3 for p in (150, 60)]
    strength = rng.dirichlet([0.5, 0.5], 60).T
    Y = sum(1.5 * np.sqrt(w) * _signal(rng, X, 60) for w, X in zip(strength, spaces, strict=True))
    Y = Y + rng.standard_normal((160, 60))
    folds = make_folds(160, 3, rng)
    options = BandedOptions(n_null=1, n_mixtures=20, n_alphas=11)
    ours = _score(spaces, Y, folds, options)
    r, split = np.zeros(60), np.zeros((2, 60))
    for test in folds:
        train = np.delete(np.arange(160), test)
        Ks_train, Ks_test = [], []
        for X in spaces:
            Xc = X - X[train].mean(0)
            unit = (Xc[train] ** 2).sum() / len(train)
            Ks_train.append(Xc[train] @ Xc[train].T / unit)
            Ks_test.append(Xc[test] @ Xc[train].T / unit)
        search = {"alphas": np.geomspace(1e-5, 1e5, 11), "n_iter": 20, "progress_bar": False}
        model = MultipleKernelRidgeCV(
            kernels="precomputed", solver="random_search", solver_params=search, cv=4, random_state=0
        ).fit(np.stack(Ks_train), Y[train] - Y[train].mean(0))
        parts = model.predict(np.stack(Ks_test), split=True)
        measured = Y[test] - Y[train].mean(0)
        r += [np.corrcoef(a, b)[0, 1] / 3 for a, b in zip(parts.sum(0).T, measured.T, strict=True)]
        split += r2_score_split(measured - measured.mean(0), parts - parts.mean(1, keepdims=True)) / 3
    assert ours.r.mean() > r.mean() - 0.01
    assert np.corrcoef(ours.r, r)[0, 1] > 0.94  # each with mixtures of its own
    assert min(np.corrcoef(a, b)[0, 1] for a, b in zip(ours.band_rsquared, split, strict=True)) > 0.94


def test_one_mixture_is_kernel_ridge_and_its_parts_are_himalayas(rng):
    spaces = [rng.standard_normal((60, p)) + 1 for p in (30, 90)]
    Y = (_signal(rng, spaces[0], 8) + rng.standard_normal((60, 8)) + 2).astype(np.float32).astype(float)
    folds = make_folds(60, 3, rng)
    options = BandedOptions(alpha_min=0.3, alpha_max=0.3, n_alphas=1, n_null=1, n_mixtures=0)
    scores = _score(spaces, Y, folds, options)
    error, total, explained, r = np.zeros(8), np.zeros(8), np.zeros((2, 8)), np.zeros(8)
    for test in folds:
        train = np.delete(np.arange(60), test)
        Ks = []
        for X in spaces:
            Xc = X - X[train].mean(0)
            Ks.append(Xc @ Xc[train].T / ((Xc[train] ** 2).sum() / len(train)))
        mean = Y[train].mean(0)
        for v in range(8):  # which of the three mixtures it was can be told from the weights in one fold only
            losses = []
            for gamma in draw_mixtures(2, 0, rng):
                K = sum(g * K for g, K in zip(gamma, Ks, strict=True))
                A = K[train] + 0.3 * np.eye(len(train))
                H = 1 / len(train) + K[train] @ np.linalg.inv(A)
                y = Y[train, v] - mean[v]
                losses.append(((y - H @ y) ** 2).sum() / (len(train) - np.trace(H)) ** 2)
            gamma = draw_mixtures(2, 0, rng)[np.argmin(losses)]
            K = sum(g * K for g, K in zip(gamma, Ks, strict=True))
            model = KernelRidge(alpha=0.3, kernel="precomputed").fit(K[train], Y[train, v] - mean[v])
            parts = np.stack([g * K[test] @ model.dual_coef_ for g, K in zip(gamma, Ks, strict=True)])
            y = Y[test, v] - mean[v]
            error[v] += ((y - model.predict(K[test])) ** 2).sum()
            total[v] += (y**2).sum()
            explained[:, v] += (parts * (2 * y - parts.sum(0))).sum(1)
            r[v] += np.corrcoef(parts.sum(0), y)[0, 1] / 3
    np.testing.assert_allclose(scores.rsquared, 1 - error / total, atol=1e-4)
    np.testing.assert_allclose(scores.band_rsquared, explained / total, atol=1e-4)
    np.testing.assert_allclose(scores.r, r, atol=1e-5)


def test_one_band_is_plain_ridge(rng):
    X = rng.standard_normal((80, 40))
    Y = (_signal(rng, X, 30) + rng.standard_normal((80, 30))).astype(np.float32)
    Y[:, 3], Y[4, 5] = 1, np.nan
    folds = make_folds(80, 5, rng)
    plain = score_encoding("net", [_gram(X)], Y, folds, OPTIONS, rng=rng, memory=2**30)
    for gram in (_gram(X), Gram("x", (40,), 0, None, X.sum(1), X)):
        for n_jobs in (1, 2):
            banded = score_bands([gram], Y, folds, OPTIONS, rng=rng, memory=2**30, n_jobs=n_jobs)
            np.testing.assert_allclose(banded.r, plain.r[0], atol=1e-5)
            np.testing.assert_allclose(banded.rsquared, plain.rsquared[0], atol=1e-5)
            np.testing.assert_allclose(banded.alpha, plain.alpha[0])
            assert np.isnan(banded.r).tolist() == [v in (3, 5) for v in range(30)]


def test_permutations_progress_and_refusals(rng):
    X, calls = rng.standard_normal((30, 10)), []
    Y, folds = rng.standard_normal((30, 40)), make_folds(30, 3, rng)
    options = BandedOptions(n_null=10, n_mixtures=4, n_permutations=19)
    scores = _score([X, X[:, :3]], Y, folds, options, progress=lambda done, total: calls.append((done, total)))
    assert scores.significance.p_fwe.min() >= 0.05
    assert calls[-1] == (21, 21)
    with pytest.raises(BadDataError, match="band2: activations for 29 stimuli, responses to 30"):
        _score([X, X[:29]], Y, folds, options)
    with pytest.raises(UsageError, match=r"9000 stimuli and 5 feature spaces takes .* GB, of which 1.00 GB"):
        divide_mixtures(9000, 5, 10**9, 2)
