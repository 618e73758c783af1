import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.linear_model import Ridge
from sklearn.model_selection import LeaveOneOut, cross_val_predict

from dnnbrain_app.analyses.encoding import score_encoding
from dnnbrain_app.analyses.folds import make_folds
from dnnbrain_app.analyses.options import EncodingOptions
from dnnbrain_app.analyses.ridge import prepare_ridge
from dnnbrain_app.analyses.stacking import _leave_one_out, find_weights, stack_layers
from dnnbrain_app.records import Gram

OPTIONS = EncodingOptions(n_null=1000)


def _gram(X, depth=0) -> Gram:
    return Gram(f"layer{depth + 1}", (X.shape[1],), depth, X @ X.T, X.sum(1))


def _signal(rng, X, n_voxels):
    signal = (X - X.mean(0)) @ rng.standard_normal((X.shape[1], n_voxels))
    return signal / signal.std(0)


def _stack(layers, Y, folds, options=OPTIONS, **settings):
    settings = {"rng": np.random.default_rng(0), "memory": 2**30} | settings
    return stack_layers([_gram(X, i) for i, X in enumerate(layers)], Y.astype(np.float32), folds, options, **settings)


def test_weights_go_where_the_signal_is_and_two_layers_beat_one(rng):
    layers = [rng.standard_normal((150, p)) for p in (60, 80, 40)]
    Y = rng.standard_normal((150, 150))
    Y[:, :50] += 2 * _signal(rng, layers[1], 50)
    Y[:, 50:100] += 1.5 * _signal(rng, layers[0], 50) + 1.5 * _signal(rng, layers[2], 50)
    folds = make_folds(150, 5, rng)
    stacked = _stack(layers, Y, folds, n_jobs=2)
    np.testing.assert_allclose(stacked.weights.sum(0), 1, atol=1e-6)
    assert stacked.weights[1, :50].mean() > 0.8
    assert stacked.weights[1, 50:100].mean() < 0.2
    single = score_encoding(
        "net", [_gram(X) for X in layers], Y.astype(np.float32), folds, OPTIONS, rng=rng, memory=2**30
    )
    assert stacked.r[50:100].mean() > single.r[:, 50:100].max(0).mean() + 0.05
    assert abs(stacked.r[:50].mean() - single.r[1, :50].mean()) < 0.03
    assert (stacked.significance.q_value[:100] < 0.05).mean() > 0.9
    assert (stacked.significance.q_value[100:] < 0.05).mean() < 0.15


def test_noise_is_significant_as_often_as_it_should_be(rng):
    p = []
    for _ in range(8):
        layers = [rng.standard_normal((50, width)) for width in (80, 20, 200)]
        p.append(_stack(layers, rng.standard_normal((50, 300)), make_folds(50, 5, rng), rng=rng).significance.p_value)
    p = np.concatenate(p)
    for level in (0.05, 0.01):
        assert abs((p < level).mean() - level) < 3.5 * np.sqrt(level / len(p)) + 0.1 * level


def test_errors_are_those_of_leaving_one_out(rng):
    X = rng.standard_normal((40, 15))
    Y = (_signal(rng, X, 3) + rng.standard_normal((40, 3))).astype(np.float32)
    train, test = np.arange(30), np.arange(30, 40)
    Xc, Yc = X[train] - X[train].mean(0), Y[train] - Y[train].mean(0)
    alpha = 0.2 * (Xc**2).sum() / 30
    errors, _ = _leave_one_out(prepare_ridge(_gram(X), test, np.array([0.2])), Yc)
    expected = Yc - cross_val_predict(Ridge(alpha=alpha), Xc, Yc, cv=LeaveOneOut())
    np.testing.assert_allclose(errors, expected, atol=1e-4)


def test_weights_are_those_of_quadratic_programming(rng):
    E = rng.standard_normal((20, 60, 5)) + 2 * rng.standard_normal((20, 60, 1))
    E *= rng.uniform(0.5, 2, (20, 1, 5))
    R = np.swapaxes(E, 1, 2) @ E
    w = find_weights(R)
    assert (w >= 0).all()
    np.testing.assert_allclose(w.sum(1), 1)
    for v in range(20):
        theirs = minimize(
            lambda x, v=v: x @ R[v] @ x / np.trace(R[v]),
            np.full(5, 0.2),
            jac=lambda x, v=v: 2 * R[v] @ x / np.trace(R[v]),
            method="SLSQP",
            bounds=[(0, 1)] * 5,
            constraints={"type": "eq", "fun": lambda x: x.sum() - 1},
            tol=1e-12,
        )
        np.testing.assert_allclose(w[v] @ R[v] @ w[v], theirs.x @ R[v] @ theirs.x, rtol=1e-4)


def test_one_layer_is_plain_ridge_and_silence_is_nan(rng):
    X = rng.standard_normal((60, 20))
    Y = (_signal(rng, X, 8) + rng.standard_normal((60, 8))).astype(np.float32)
    Y[:, 1], Y[3, 2] = 0, np.nan
    folds, calls = make_folds(60, 4, rng), []
    plain = score_encoding("net", [_gram(X)], Y, folds, OPTIONS, rng=rng, memory=2**30)
    stacked = _stack([X], Y, folds, progress=lambda done, total: calls.append((done, total)))
    np.testing.assert_allclose(stacked.r, plain.r[0], atol=1e-5)
    np.testing.assert_allclose(stacked.rsquared, plain.rsquared[0], atol=1e-5)
    assert np.isnan(stacked.r).tolist() == [v in (1, 2) for v in range(8)]
    assert calls[-1] == (4, 4)


@pytest.mark.parametrize("n", [1, 4])
def test_equal_layers_share_the_weight(rng, n):
    R = np.broadcast_to(np.eye(n), (3, n, n))
    np.testing.assert_allclose(find_weights(R), 1 / n)
