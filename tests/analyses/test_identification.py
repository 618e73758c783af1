import numpy as np
import pytest
from sklearn.linear_model import Ridge

from dnnbrain_app.analyses.folds import make_folds
from dnnbrain_app.analyses.identification import PENALTIES, identify_stimuli, list_features
from dnnbrain_app.errors import BadDataError
from dnnbrain_app.records import Gram

N = 60


def make_gram(X, keep=True):
    return Gram("layer", (X.shape[1],), 0, X @ X.T, X.sum(axis=1), X if keep else None)


def make_brain(rng, X, noise=1.0, n_voxels=150):
    signal = X @ rng.standard_normal((X.shape[1], n_voxels)) / np.sqrt(X.shape[1])
    return (5 + signal + noise * rng.standard_normal((len(X), n_voxels))).astype(np.float32)


def count_by_hand(C):
    """Rank, first places and pairs, one by one."""
    m = len(C)
    rank = [np.mean([C[i, i] > C[i, j] for j in range(m) if j != i]) for i in range(m)]
    pairs = [C[i, i] + C[j, j] > C[i, j] + C[j, i] for i in range(m) for j in range(i)]
    return rank, np.mean(pairs)


@pytest.mark.parametrize("p", [30, 200])
def test_stimuli_are_identified(rng, p):
    X = rng.standard_normal((N, 8)) @ rng.standard_normal((8, p)) + 2
    folds = make_folds(N, 5, rng)
    told = []
    found = identify_stimuli(
        make_gram(X, keep=p < N),
        make_brain(rng, X),
        folds,
        rng=rng,
        n_permutations=39,
        progress=lambda *a: told.append(a),
    )
    assert found.rank.mean() > 0.95
    assert found.pairwise > 0.95
    assert found.first.mean() > 0.6
    assert found.p == {"rank": 1 / 40, "first": 1 / 40, "pairwise": 1 / 40}
    assert found.chance == {"rank": 0.5, "first": pytest.approx(1 / 12), "pairwise": 0.5}
    assert np.nanmax(found.r) > 0.8
    assert found.layer == "layer"
    assert told[-1] == (5, 5)


def test_agrees_with_ridge_of_scikit_learn(rng, monkeypatch):
    """One penalty for all, and counts made by hand."""
    monkeypatch.setattr("dnnbrain_app.analyses.identification.PENALTIES", PENALTIES[12:13])
    X = rng.standard_normal((N, 20))
    Y = make_brain(rng, X, 2)
    Y[4, 7], Y[:, 9] = np.nan, 3
    folds = make_folds(N, 4, rng)
    found = identify_stimuli(make_gram(X), Y, folds, rng=rng, n_permutations=0)
    usable = np.delete(Y.astype(float), [7, 9], axis=1)
    ranks, pairs, r = np.empty(N), [], 0
    for test in folds:
        train = np.delete(np.arange(N), test)
        Z = (usable - usable[train].mean(axis=0)) / usable[train].std(axis=0)
        alpha = PENALTIES[12] * Z.shape[1]  # the kernel's trace is n_train * n_voxels
        predicted = Ridge(alpha).fit(Z[train], X[train]).predict(Z[test]) - X[train].mean(axis=0)
        true = X[test] - X[train].mean(axis=0)
        C = np.corrcoef(predicted, true)[: len(test), len(test) :]
        ranks[test], pair = count_by_hand(C)
        pairs.append(pair)
        r = r + np.array([np.corrcoef(a, b)[0, 1] for a, b in zip(predicted.T, true.T, strict=True)]) / 4
    np.testing.assert_allclose(found.r, r, atol=1e-4)
    np.testing.assert_allclose(found.rank, ranks, atol=1e-9)
    assert found.pairwise == pytest.approx(np.mean(pairs))
    assert np.isnan(found.p["rank"])


def test_noise_identifies_nothing(rng):
    n_tests, n_significant, ranks = 100, np.zeros(3), []
    for _ in range(n_tests):
        X = rng.standard_normal((24, 10)) * np.arange(1, 11)
        folds = make_folds(24, 4, rng)
        found = identify_stimuli(make_gram(X), rng.standard_normal((24, 30)), folds, rng=rng, n_permutations=19)
        n_significant += np.array(list(found.p.values())) <= 0.05
        ranks.append(found.rank.mean())
    assert np.mean(ranks) == pytest.approx(0.5, abs=4 * np.std(ranks) / np.sqrt(n_tests))
    error = 3 * np.sqrt(0.05 * 0.95 / n_tests)
    assert n_significant.max() / n_tests < 0.05 + error
    assert n_significant[0] / n_tests > 0.05 - error


def test_coordinates_have_the_same_inner_products(rng):
    X = rng.standard_normal((20, 50)) + 1
    Z = list_features(make_gram(X, keep=False))
    centred = X - X.mean(axis=0)
    np.testing.assert_allclose(Z @ Z.T, centred @ centred.T, atol=1e-8)
    assert Z.shape == (20, 19)
    assert (np.diff(Z.var(axis=0)) <= 0).all()
    np.testing.assert_array_equal(list_features(make_gram(X)), X)


def test_inputs_that_cannot_be(rng):
    X = rng.standard_normal((N, 5))
    Y, folds = make_brain(rng, X), make_folds(N, 5, rng)
    with pytest.raises(BadDataError, match="layer layer: activations for 60 stimuli, responses to 59"):
        identify_stimuli(make_gram(X), Y[1:], folds, rng=rng)
    with pytest.raises(BadDataError, match="a fold of one stimulus leaves no other"):
        identify_stimuli(make_gram(X), Y, [*folds, np.array([0])], rng=rng)
    with pytest.raises(BadDataError, match="no voxel varies"):
        identify_stimuli(make_gram(X), np.ones_like(Y), folds, rng=rng)
