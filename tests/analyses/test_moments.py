import tracemalloc

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from dnnbrain_app.analyses import moments
from dnnbrain_app.analyses.encoding import score_encoding
from dnnbrain_app.analyses.folds import make_folds
from dnnbrain_app.analyses.moments import prepare_moments
from dnnbrain_app.analyses.options import EncodingOptions
from dnnbrain_app.errors import BadDataError
from dnnbrain_app.records import Gram

GRID = np.geomspace(1e-5, 1e5, 21)
R, ERROR, TOTAL, LOG_ALPHA, EDGE = range(5)


def _gram(X, *, keep=True) -> Gram:
    """X-only, or of K alone."""
    K = None if keep else X.astype(np.float64) @ X.T.astype(np.float64)
    return Gram("conv1", (X.shape[1],), 0, K, X.sum(1, dtype=np.float64), X if keep else None)


def _simulate(rng, n, p, n_voxels=200, decay=0.0):
    """Rectified features, far from centred; voxels from pure noise to nearly none."""
    X = np.maximum(rng.standard_normal((n, p)) * np.arange(1.0, p + 1) ** -decay @ rng.standard_normal((p, p)) + 1, 0)
    signal = X @ rng.standard_normal((p, n_voxels))
    Y = signal / signal.std(0) * np.geomspace(0.01, 30, n_voxels) + rng.standard_normal((n, n_voxels)) + 5
    return X.astype(np.float32), Y.astype(np.float32)


def _score(gram, Y, folds, **settings):
    settings = {"rng": np.random.default_rng(0), "memory": 2**30} | settings
    return score_encoding("net", [gram], Y, folds, EncodingOptions(n_null=500), **settings)


def _choose_by_explicit_gcv(X, Y, alphas):
    """Minimise GCV with the hat matrix written out, in float64."""
    n = len(X)
    X = X - X.mean(0)
    losses = []
    for alpha in alphas:
        H = 1 / n + X @ np.linalg.solve(X.T @ X + alpha * np.eye(X.shape[1]), X.T)
        losses.append(((Y - H @ Y) ** 2).sum(0) / (n - np.trace(H)) ** 2)
    return np.argmin(losses, axis=0)


@pytest.mark.parametrize("p", [20, 60])  # fewer features than test rows, and more
def test_scores_are_those_of_sklearns_ridge_with_explicit_gcv(rng, p):
    X, Y = _simulate(rng, 200, p)
    test = np.sort(rng.permutation(200)[:50])
    train = np.delete(np.arange(200), test)
    model = prepare_moments(_gram(X), [test], GRID)
    assert (model.models[0].T is None) == (p < 50)
    (scores,) = model.score(lambda rows: Y[rows])
    X, Y = X.astype(float), Y.astype(float)
    alphas = GRID * ((X[train] - X[train].mean(0)) ** 2).sum() / len(train)
    expected = _choose_by_explicit_gcv(X[train], Y[train], alphas)
    same = np.abs(scores[LOG_ALPHA] - np.log(GRID[expected])) < 1e-6
    assert same.mean() > 0.98
    for a in np.unique(expected[same]):
        chosen = same & (expected == a)
        model = Ridge(alpha=alphas[a]).fit(X[train], Y[train][:, chosen])  # gives vectors for one target
        P, measured = model.predict(X[test]).reshape(len(test), -1), Y[test][:, chosen]
        r = [np.corrcoef(*pair)[0, 1] for pair in zip(P.T, measured.T, strict=True)]
        np.testing.assert_allclose(scores[R, chosen], r, atol=1e-5)
        total = ((measured - Y[train][:, chosen].mean(0)) ** 2).sum(0)
        np.testing.assert_allclose(scores[TOTAL, chosen], total, rtol=1e-5)
        np.testing.assert_allclose(scores[ERROR, chosen] / total, ((measured - P) ** 2).sum(0) / total, atol=1e-5)
    np.testing.assert_array_equal(scores[EDGE], np.abs(scores[LOG_ALPHA]) > np.log(0.99e5))


@pytest.mark.parametrize(("n", "p", "decay"), [(300, 20, 0), (300, 150, 0), (300, 100, 2), (100, 95, 1), (60, 80, 0)])
def test_gives_the_same_as_the_gram(rng, n, p, decay):
    """A few penalties are equally good to seven digits, and may be the other one."""
    X, Y = _simulate(rng, n, p, decay=decay)
    folds = make_folds(n, 5, rng)
    primal, dual = (_score(_gram(X, keep=keep), Y, folds) for keep in (True, False))
    same = np.isclose(primal.alpha[0], dual.alpha[0])
    assert same.mean() > 0.95
    for name in ("r", "rsquared"):
        np.testing.assert_allclose(getattr(primal, name)[0, same], getattr(dual, name)[0, same], atol=1e-4)
        np.testing.assert_allclose(getattr(primal, name), getattr(dual, name), atol=5e-3)
    assert (primal.best_layer == dual.best_layer).mean() > 0.98  # permuted voxels went through the same folds


def test_voxels_without_signal_score_nan_and_harm_no_other(rng):
    X, Y = _simulate(rng, 120, 15, 20)
    folds = make_folds(120, 4, rng)
    good = _score(_gram(X), Y, folds)
    Y[:, 3], Y[:, 4], Y[5, 5], Y[6, 6] = 0, 1 / 3, np.nan, np.inf
    scores = _score(_gram(X), Y, folds)
    silent = np.isin(np.arange(20), [3, 4, 5, 6])
    for name in ("r", "rsquared", "alpha"):
        values = getattr(scores, name)
        assert np.isnan(values[:, silent]).all()
        np.testing.assert_array_equal(values[:, ~silent], getattr(good, name)[:, ~silent])


@pytest.mark.parametrize("p", [15, 40])
def test_voxels_constant_in_the_test_or_the_training_rows_have_no_correlation(rng, p):
    X, Y = _simulate(rng, 120, p, 5)
    folds = make_folds(120, 4, rng)
    Y[folds[2], 1] = 0.1
    Y[np.delete(np.arange(120), folds[0]), 3] = 0.7
    scores = _score(_gram(X), Y, folds)
    assert np.isnan(scores.r[0]).tolist() == [False, True, False, True, False]
    assert np.isfinite(scores.rsquared).all()


@pytest.mark.parametrize("p", [15, 40])
def test_test_responses_do_not_leak(rng, p):
    X, Y = _simulate(rng, 120, p)
    test = np.arange(30)
    model = prepare_moments(_gram(X), [test], GRID)
    (scores,) = model.score(lambda rows: Y[rows])
    (other,) = model.score(lambda rows: np.where(rows[:, None] < 30, 100 - 3 * Y[rows], Y[rows]))
    same = scores[LOG_ALPHA] == other[LOG_ALPHA]
    assert same.mean() > 0.98
    np.testing.assert_allclose(other[R, same], -scores[R, same], atol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [{"n_jobs": 2}, {"memory": 14_000_000}, {"memory": 12_000_000}],
    ids=["threads", "groups", "fold by fold"],
)
def test_blocks_groups_of_folds_and_threads_change_nothing(rng, monkeypatch, settings):
    X, Y = _simulate(rng, 240, 30)
    folds = make_folds(240, 5, rng)
    whole = _score(_gram(X), Y, folds)
    monkeypatch.setattr(moments, "ROWS", 16)
    other = _score(_gram(X), Y, folds, **settings)
    for name in ("r", "rsquared"):
        np.testing.assert_allclose(getattr(other, name), getattr(whole, name), atol=1e-5)


def test_large_means_cost_no_digits(rng):
    X, Y = _simulate(rng, 200, 30)
    folds = make_folds(200, 4, rng)
    plain = _score(_gram(X), Y, folds)
    shifted = _score(_gram((X.astype(np.float64) + 1000).astype(np.float32)), Y + 1000, folds)
    np.testing.assert_allclose(shifted.r, plain.r, atol=2e-3)  # float32 keeps 1000.0001 of the data themselves


def test_duplicated_and_dead_features_do_no_harm(rng):
    X, Y = _simulate(rng, 150, 10)
    folds = make_folds(150, 3, rng)
    once = _score(_gram(X), Y, folds)
    more = _score(_gram(np.hstack([X, X, np.full((150, 2), 7, np.float32)])), Y, folds)
    same = np.isclose(more.alpha[0], once.alpha[0])
    assert same.mean() > 0.98
    np.testing.assert_allclose(more.r[0, same], once.r[0, same], atol=1e-4)


@pytest.mark.parametrize("value", [0, 3.3])
def test_a_layer_that_does_not_vary_is_named(value):
    X = np.full((20, 4), value, dtype=np.float32)
    with pytest.raises(BadDataError, match="layer conv1: its activations do not vary over the 16 training stimuli"):
        prepare_moments(_gram(X), [np.arange(4)], GRID)


def _write_many(folder, n, k, n_voxels, rng):
    """Write features to a file; half of the voxels have signal, as strong as the noise."""
    X = np.lib.format.open_memmap(folder / f"{n}.npy", mode="w+", dtype=np.float32, shape=(n, k))
    Y = rng.standard_normal((n, n_voxels), dtype=np.float32)
    weights = rng.standard_normal((k, n_voxels // 2), dtype=np.float32)
    weights /= np.linalg.norm(weights, axis=0)
    for start in range(0, n, 1000):
        X[start : start + 1000] = rng.standard_normal((min(1000, n - start), k), dtype=np.float32) + 1
        Y[start : start + 1000, : n_voxels // 2] += (X[start : start + 1000] - 1) @ weights
    X.flush()
    return np.load(folder / f"{n}.npy", mmap_mode="r"), Y


def test_many_stimuli_are_scored_in_the_same_memory(rng, tmp_path, monkeypatch):
    """Planted weights come back, noise gives nothing, and what grows is only lists of rows."""
    monkeypatch.setattr(moments, "ROWS", 256)
    peaks = {}
    for n in (5000, 15_000):
        X, Y = _write_many(tmp_path, n, 64, 128, rng)
        gram = Gram("pool", (64,), 0, None, X.sum(1, dtype=np.float64), X)
        folds = make_folds(n, 5, rng)
        tracemalloc.start()
        scores = _score(gram, Y, folds, memory=40_000_000)
        peaks[n] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        np.testing.assert_allclose(scores.r[0, :64], np.sqrt(0.5), atol=0.04)
        assert abs(scores.r[0, :64].mean() - np.sqrt(0.5)) < 0.01
        assert (scores.best_layer[:64] == 1).all()
        assert np.abs(scores.r[0, 64:]).max() < 6 / np.sqrt(n)
        assert (scores.best_layer[64:] > 0).sum() <= 12
    assert peaks[15_000] - peaks[5000] < 10_000 * 100  # a stimulus has 768 bytes of data
    assert peaks[15_000] < 40_000_000
