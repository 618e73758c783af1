import numpy as np
import pytest
from sklearn.linear_model import Lasso, LinearRegression
from sklearn.model_selection import PredefinedSplit, cross_val_score
from sklearn.pipeline import make_pipeline as sklearn_pipeline
from sklearn.preprocessing import StandardScaler

from dnnbrain_app.analyses.encoding import score_encoding
from dnnbrain_app.analyses.estimators import BestUnit, divide_layer, make_pipeline, make_regressor, score_estimator
from dnnbrain_app.analyses.folds import make_folds
from dnnbrain_app.analyses.options import EncodingOptions
from dnnbrain_app.errors import BadDataError, UnknownNameError, UsageError
from dnnbrain_app.records import Gram

OPTIONS = EncodingOptions(n_null=500)


def _gram(X, depth=0) -> Gram:
    return Gram(f"layer{depth + 1}", (X.shape[1],), depth, None, X.sum(1), X)


def _signal(rng, X, n_voxels):
    signal = (X - X.mean(0)) @ rng.standard_normal((X.shape[1], n_voxels))
    return signal / signal.std(0)


def _score(layers, Y, folds, estimator, options=OPTIONS, **settings):
    grams = [layer if isinstance(layer, Gram) else _gram(layer, i) for i, layer in enumerate(layers)]
    settings = {"rng": np.random.default_rng(0)} | settings
    return score_estimator("net", grams, Y.astype(np.float32), folds, estimator, options, **settings)


def _make(name, *, scale=False, n_components=None, **parameters):
    return make_pipeline(make_regressor(name, parameters), scale=scale, n_components=n_components)


@pytest.mark.parametrize(
    ("name", "parameters", "theirs"),
    [("ols", {}, LinearRegression()), ("Lasso", {"alpha": 0.1}, Lasso(alpha=0.1))],
)
def test_scores_are_sklearns(rng, name, parameters, theirs):
    X = rng.standard_normal((60, 8)) * 10 ** rng.uniform(-1, 1, 8)
    Y = (_signal(rng, X, 4) + rng.standard_normal((60, 4))).astype(np.float32)
    folds = make_folds(60, 5, rng)
    number = np.zeros(60, dtype=int)
    for k, test in enumerate(folds):
        number[test] = k
    scores = _score([X], Y, folds, _make(name, scale=True, **parameters))

    def correlate(model, X, y):
        return np.corrcoef(model.predict(X), y)[0, 1]

    model = sklearn_pipeline(StandardScaler(), theirs)
    for v in range(4):
        r = cross_val_score(model, X, Y[:, v].astype(float), cv=PredefinedSplit(number), scoring=correlate)
        np.testing.assert_allclose(scores.fold_r[:, 0, v], r, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "parameters", "n_components"),
    [
        ("ols", {}, 10),
        ("lasso", {"alpha": 0.05}, None),
        ("pls", {"n_components": 3}, None),
        ("univariate", {}, None),
        ("Lars", {}, None),
    ],
)
def test_finds_the_plant_and_nothing_in_noise(rng, name, parameters, n_components):
    layers = [rng.standard_normal((80, 12)), rng.standard_normal((80, 12))]
    Y = rng.standard_normal((80, 40))
    Y[:, :20] += 2 * _signal(rng, layers[1][:, :1], 20)
    estimator = make_pipeline(make_regressor(name, parameters), scale=False, n_components=n_components)
    scores = _score(layers, Y, make_folds(80, 4, rng), estimator, EncodingOptions(n_null=100))
    assert (scores.best_layer[:20] == 2).all()
    assert scores.r[1, :20].mean() > 0.5
    assert (scores.best_layer[20:] > 0).sum() <= 3
    assert abs(scores.r[:, 20:].mean()) < 0.06


def test_500_units_of_noise_score_zero(rng):
    """The original chose the unit with the test data; so chosen, noise reaches r = .3."""
    X, Y = rng.standard_normal((100, 500)), rng.standard_normal((100, 200))
    folds = make_folds(100, 10, rng)
    scores = _score([X], Y, folds, _make("univariate"))
    assert abs(scores.r.mean()) < 0.03
    assert not scores.best_layer.any()
    p = scores.layer_significance.p_value
    assert abs((p < 0.05).mean() - 0.05) < 0.055
    double_dipped = np.abs(np.corrcoef(X.T, Y.T)[:500, 500:]).max(0)
    assert double_dipped.mean() > 0.25


def test_the_best_unit_is_that_of_the_training_rows(rng):
    X = rng.standard_normal((50, 30))
    X[:, 7] = 3  # a dead unit
    Y = 2 * X[:, [4, 11]] - 1 + 0.1 * rng.standard_normal((50, 2))
    model = BestUnit().fit(X[:40], Y[:40])
    assert model.unit_.tolist() == [4, 11]
    for v, unit in enumerate((4, 11)):
        theirs = LinearRegression().fit(X[:40, [unit]], Y[:40, v])
        np.testing.assert_allclose(model.predict(X[40:])[:, v], theirs.predict(X[40:, [unit]]))


@pytest.mark.parametrize("name", ["pls", "DecisionTreeRegressor", "ols"])
def test_a_voxels_score_does_not_depend_on_other_voxels(rng, name):
    X = rng.standard_normal((40, 6))
    Y = _signal(rng, X, 5) + rng.standard_normal((40, 5))
    folds = make_folds(40, 4, rng)
    parameters = {"random_state": 0} if "Tree" in name else {}
    options = EncodingOptions(n_null=5)
    whole = _score([X], Y, folds, _make(name, **parameters), options, n_jobs=2)
    alone = _score([X], Y[:, 2:3], folds, _make(name, **parameters), options)
    np.testing.assert_allclose(alone.r[:, 0], whole.r[:, 2], atol=1e-6)


def test_silent_voxels_permutations_and_progress(rng):
    X, calls = rng.standard_normal((40, 6)), []
    Y = _signal(rng, X, 6) + rng.standard_normal((40, 6))
    Y[:, 2], Y[3, 4] = 1, np.nan
    options = EncodingOptions(n_null=64, n_permutations=19)
    folds = make_folds(40, 4, rng)
    scores = _score([X, X[:, :2]], Y, folds, _make("ols"), options, progress=lambda d, n: calls.append((d, n)))
    for values in (scores.r, scores.rsquared, scores.layer_significance.p_fwe):
        assert np.isnan(values[0]).tolist() == [v in (2, 4) for v in range(6)]
    assert scores.layer_significance.p_fwe[0, 0] == 0.05
    assert calls == [(i, 8) for i in range(1, 9)]


def test_channels_and_positions_are_models_of_their_own(rng):
    X = rng.standard_normal((70, 3, 2, 2))
    Y = rng.standard_normal((70, 40))
    Y[:, :20] += 2 * _signal(rng, X[:, 1].reshape(70, 4), 20)
    Y[:, 20:] += 2 * _signal(rng, X[:, :, 1, 0], 20)
    layer = Gram("conv", (3, 2, 2), 0, None, X.sum((1, 2, 3)), X.reshape(70, 12))
    folds = make_folds(70, 5, rng)
    for by, own, best in (("channel", slice(20), 2), ("position", slice(20, 40), 3)):
        parts = divide_layer(layer, by)
        assert [part.layer for part in parts] == [f"conv:{by}{i + 1}" for i in range(len(parts))]
        scores = score_encoding("net", parts, Y.astype(np.float32), folds, OPTIONS, rng=rng, memory=2**30)
        assert (scores.best_layer[own] == best).all()
    wide = Gram("conv", (2, 90), 0, None, np.zeros(70), rng.standard_normal((70, 180)))
    assert divide_layer(wide, "channel")[1].K.shape == (70, 70)
    np.testing.assert_array_equal(divide_layer(wide, "position")[4].X, wide.X[:, [4, 94]])


def test_what_cannot_be(rng):
    with pytest.raises(UnknownNameError, match=r"unknown regression 'lassoo'.*lasso"):
        make_regressor("lassoo", {})
    with pytest.raises(UsageError, match=r"regression lasso: .*alphax"):
        make_regressor("lasso", {"alphax": 1})
    X, folds = rng.standard_normal((20, 4)), make_folds(20, 4, rng)
    Y = rng.standard_normal((20, 3))
    without = Gram("fc", (90,), 0, X @ X.T, X.sum(1))
    with pytest.raises(BadDataError, match=r"layer fc: regressions other than ridge need its features"):
        _score([without], Y, folds, _make("ols"))
    with pytest.raises(BadDataError, match="activations for 20 stimuli, responses to 19"):
        _score([X], Y[:19], folds, _make("ols"))
    with pytest.raises(BadDataError, match="layer layer1: scikit-learn cannot fit it: n_components=99"):
        _score([X], Y, folds, _make("ols", n_components=99))
    with pytest.raises(UnknownNameError, match="unknown part of a layer 'row'"):
        divide_layer(_gram(X), "row")
    with pytest.raises(BadDataError, match="layer1: has no positions"):
        divide_layer(_gram(X), "channel")
