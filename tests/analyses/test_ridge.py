import numpy as np
import pytest
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge, RidgeCV

from dnnbrain_app.analyses import penalties, ridge
from dnnbrain_app.analyses.ridge import prepare_ridge
from dnnbrain_app.errors import BadDataError
from dnnbrain_app.records import Gram

ALPHAS = np.geomspace(1e-5, 1e5, 21)


def _gram(X) -> Gram:
    return Gram("conv1", (X.shape[1],), 0, X @ X.T, X.sum(1))


def _simulate(rng, n: int, p: int, n_voxels: int = 300):
    """Rectified features, far from centred; voxels from pure noise to nearly none."""
    X = np.maximum(rng.standard_normal((n, 40)) @ rng.standard_normal((40, p)) + 1, 0)
    signal = X @ rng.standard_normal((p, n_voxels))
    Y = signal / signal.std(0) * np.geomspace(0.01, 30, n_voxels) + rng.standard_normal((n, n_voxels)) + 5
    test = np.sort(rng.permutation(n)[: n // 5])
    train = np.delete(np.arange(n), test)
    return X, Y.astype(np.float32), train, test


def _predict(gram, Y, train, test, alphas=ALPHAS):
    Y_mean = Y[train].mean(0)
    P, choice = prepare_ridge(gram, test, alphas).predict(Y[train] - Y_mean)
    return P + Y_mean, choice


@pytest.mark.parametrize("alpha", [1e-3, 1.0, 1e3])
def test_one_penalty_agrees_with_kernel_ridge(rng, alpha):
    X, Y, train, test = _simulate(rng, 80, 200)
    P, _ = _predict(_gram(X), Y, train, test, np.array([alpha]))
    Xc, Yc = X - X[train].mean(0), Y - Y[train].mean(0)
    unit = (Xc[train] ** 2).sum() / len(train)
    model = KernelRidge(alpha=alpha * unit, kernel="linear").fit(Xc[train], Yc[train])
    np.testing.assert_allclose(P, model.predict(Xc[test]) + Y[train].mean(0), atol=2e-4)


@pytest.mark.parametrize("p", [300, 20])
def test_gcv_is_that_of_the_hat_matrix_and_predicts_as_sklearn(rng, p):
    X, Y, train, test = _simulate(rng, 100, p)
    P, choice = _predict(_gram(X), Y, train, test)
    unit = ((X[train] - X[train].mean(0)) ** 2).sum() / len(train)
    expected = _choose_by_explicit_gcv(X[train], Y[train], ALPHAS * unit)
    assert (choice == expected).mean() > 0.98
    for a in np.unique(expected):
        same = (expected == a) & (choice == a)
        model = Ridge(alpha=ALPHAS[a] * unit).fit(X[train], Y[train][:, same])  # gives vectors for one target
        np.testing.assert_allclose(P[:, same], model.predict(X[test]).reshape(len(test), -1), atol=2e-3)


def _choose_by_explicit_gcv(X, Y, alphas):
    """Minimise GCV with the hat matrix written out, in float64."""
    n = len(X)
    Xc, Y = X - X.mean(0), Y.astype(float)
    losses = []
    for alpha in alphas:
        H = 1 / n + Xc @ np.linalg.solve(Xc.T @ Xc + alpha * np.eye(X.shape[1]), Xc.T)
        enough = n - np.trace(H) >= max(3, 0.05 * n)
        losses.append(((Y - H @ Y) ** 2).sum(0) / (n - np.trace(H)) ** 2 if enough else np.full(Y.shape[1], np.inf))
    return np.argmin(losses, axis=0)


def test_penalties_are_those_of_sklearns_leave_one_out(rng):
    X, Y, train, test = _simulate(rng, 150, 300)
    _, choice = _predict(_gram(X), Y, train, test)
    unit = ((X[train] - X[train].mean(0)) ** 2).sum() / len(train)
    model = RidgeCV(alphas=ALPHAS * unit, alpha_per_target=True).fit(X[train], Y[train])
    steps = np.abs(choice - np.abs(np.log(model.alpha_ / unit)[:, None] - np.log(ALPHAS)).argmin(1))
    steps = steps[:200]  # the others have so little noise that interpolating, which we leave out, would be best
    assert (steps <= 1).mean() > 0.9
    assert (steps == 0).mean() > 0.6


def test_leaving_out_interpolating_penalties_lowers_the_error(rng, monkeypatch):
    """With few stimuli and no limit, GCV calls the smallest penalty best by chance."""
    test, train = np.arange(18, 24), np.arange(18)
    errors = {penalties.LEAST_RESIDUAL: [], (0, 0.0): []}
    for _ in range(30):
        X = rng.standard_normal((24, 24)) * np.arange(1.0, 25) ** -rng.choice([0, 1, 2])
        signal = X @ rng.standard_normal((24, 50))
        Y = (signal / signal.std(0) + rng.standard_normal((24, 50))).astype(np.float32)
        for limit, values in errors.items():
            monkeypatch.setattr(penalties, "LEAST_RESIDUAL", limit)
            P, _ = _predict(_gram(X), Y, train, test, np.geomspace(1e-5, 1e5, 21))
            values.append(((P - Y[test]) ** 2).mean())
    limited, unlimited = (np.mean(values) for values in errors.values())
    assert limited < 0.9 * unlimited


@pytest.mark.parametrize("n_dimensions", [10, 400])
def test_large_kernels_in_single_precision_give_the_same(rng, monkeypatch, n_dimensions):
    X = rng.standard_normal((250, n_dimensions)) @ rng.standard_normal((n_dimensions, 500)) + 3
    signal = (X - X.mean(0)) @ rng.standard_normal((500, 300))
    Y = (signal / signal.std(0) + np.geomspace(0.1, 10, 300) * rng.standard_normal((250, 300))).astype(np.float32)
    train, test = np.arange(200), np.arange(200, 250)
    double, double_choice = _predict(_gram(X), Y, train, test)
    monkeypatch.setattr(ridge, "LARGEST_DOUBLE", 0)
    single, single_choice = _predict(_gram(X), Y, train, test)
    assert np.abs(double_choice - single_choice).max() <= 1  # neighbours can be equally good
    assert (np.abs(single - double).max(axis=0) < 1e-3).mean() > 0.99


@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_the_scale_of_the_features_does_not_matter(rng, factor):
    X, Y, train, test = _simulate(rng, 60, 100)
    P, choice = _predict(_gram(X), Y, train, test)
    scaled, scaled_choice = _predict(_gram(X * factor), Y, train, test)
    assert np.array_equal(choice, scaled_choice)
    np.testing.assert_allclose(scaled, P, atol=1e-3)


def test_test_responses_and_other_voxels_do_not_leak(rng):
    X, Y, train, test = _simulate(rng, 60, 100)
    P, _ = _predict(_gram(X), Y, train, test)
    changed = Y.copy()
    changed[test] = 1e6
    changed[3, 7] = np.nan
    other, _ = _predict(_gram(X), changed, train, test)
    assert np.isnan(other[:, 7]).all()
    np.testing.assert_array_equal(np.delete(other, 7, axis=1), np.delete(P, 7, axis=1))


def test_a_layer_that_does_not_vary_is_named():
    with pytest.raises(BadDataError, match="layer conv1: its activations do not vary over the 16 training stimuli"):
        prepare_ridge(_gram(np.full((20, 10), 3.3)), np.arange(4), ALPHAS)
