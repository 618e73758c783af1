import numpy as np
import pytest
from scipy.stats import binom
from sklearn.linear_model import LassoCV, LinearRegression, LogisticRegression, RidgeCV
from sklearn.metrics import balanced_accuracy_score, confusion_matrix
from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from dnnbrain_app.analyses.balancing import Shuffle, make_balanced_folds
from dnnbrain_app.analyses.decoders import CLASSIFIERS, REGRESSORS, prepare_fold
from dnnbrain_app.analyses.decoding import decode_attribute
from dnnbrain_app.analyses.decoding_searchlights import decode_searchlights
from dnnbrain_app.analyses.folds import make_folds
from dnnbrain_app.analyses.neighbourhoods import find_neighbourhoods
from dnnbrain_app.errors import BadDataError, UnknownNameError, UsageError
from dnnbrain_app.records import BrainPart, BrainSpace

N_RUNS = 6


def make_runs(rng, n_features=40, strength=1.0, n_classes=4, n_repeats=2):
    """Runs that show each class, and have a pattern of their own."""
    classes = rng.standard_normal((n_classes, n_features))
    label = np.tile(np.repeat(np.arange(n_classes), n_repeats), N_RUNS)
    run = np.repeat(np.arange(N_RUNS), n_classes * n_repeats)
    X = strength * classes[label] + 2 * rng.standard_normal((len(label), n_features))
    X += rng.standard_normal((N_RUNS, n_features))[run]
    return 5 + X * rng.uniform(0.1, 10, n_features), np.array(["face", "house", "shoe", "cat"])[label], run


def split_runs(run):
    return [np.flatnonzero(run == k) for k in np.unique(run)]


@pytest.mark.parametrize("n_features", [40, 150])
@pytest.mark.parametrize("model", ["svc", "logistic"])
def test_classes_agree_with_pipelines_of_scikit_learn(rng, model, n_features):
    X, label, run = make_runs(rng, n_features)
    label[label == "cat"] = "shoe"  # unequal classes
    found = decode_attribute(X, label, model, split_runs(run), rng=rng, n_permutations=0, scaling="each")
    reference = {
        "svc": SVC(kernel="linear", class_weight="balanced"),
        "logistic": LogisticRegression(class_weight="balanced", max_iter=1000),
    }[model]
    expected = cross_val_predict(
        make_pipeline(StandardScaler(), reference), X, label, groups=run, cv=LeaveOneGroupOut()
    )
    names = np.array(found.classes)
    assert found.classes == ("face", "house", "shoe")
    assert (names[found.predictions.astype(int)] == expected).mean() > 0.97  # one of two that are as near, at times
    assert found.scores["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(label, expected), abs=0.03)
    assert found.scores["accuracy"] == pytest.approx((label == expected).mean(), abs=0.03)
    np.testing.assert_array_equal(
        found.confusion, confusion_matrix(label, names[found.predictions.astype(int)], labels=names)
    )
    assert np.isnan(found.p["accuracy"])


@pytest.mark.parametrize("n_features", [12, 150])
@pytest.mark.parametrize("model", REGRESSORS)
def test_numbers_agree_with_pipelines_of_scikit_learn(rng, model, n_features):
    X, _, run = make_runs(rng, n_features)
    size = X[:, :5] @ rng.standard_normal(5) + rng.standard_normal(len(X))
    found = decode_attribute(X, size, model, split_runs(run), rng=rng, n_permutations=0, scaling="each")
    p, n = X.shape[1], len(X) * (N_RUNS - 1) / N_RUNS
    reference = {
        "ridge": RidgeCV(np.geomspace(1e-4, 1e4, 17) * p),
        "lasso": LassoCV(cv=5),  # its grid has 100 steps
        "ols": LinearRegression(),
    }[model]
    assert n == 40
    cv = LeaveOneGroupOut()
    expected = cross_val_predict(make_pipeline(StandardScaler(), reference), X, size, groups=run, cv=cv)
    tolerance = 0.1 if model == "lasso" else 1e-6
    np.testing.assert_allclose(found.predictions, expected, atol=tolerance * size.std(), rtol=1e-6)
    r = np.mean([np.corrcoef(expected[run == k], size[run == k])[0, 1] for k in range(N_RUNS)])
    assert found.scores["r"] == pytest.approx(r, abs=tolerance / 10)
    assert found.classes == ()
    assert found.confusion.shape == (0, 0)


@pytest.mark.parametrize("model", [*CLASSIFIERS, *REGRESSORS])
def test_a_plant_is_decoded(rng, model):
    X, label, run = make_runs(rng, strength=2.0)
    target = label if model in CLASSIFIERS else X[:, 0] + 2 * X[:, 1]
    found = decode_attribute(X, target, model, split_runs(run), rng=rng, n_permutations=19)
    assert found.p == dict.fromkeys(found.scores, 0.05)
    if model in CLASSIFIERS:
        assert found.scores["accuracy"] > 0.75
        assert found.chance["accuracy"] == pytest.approx(0.25, abs=0.08)
        assert found.confusion.sum() == len(X)
    else:
        assert found.scores["r"] > 0.85
        assert found.scores["rsquared"] > 0.6
        assert abs(found.chance["r"]) < 0.2


@pytest.mark.parametrize("model", ["lda", "svc", "ridge"])
def test_noise_is_significant_as_often_as_it_should_be(rng, model):
    """Few rows, unequal classes, repeats of stimuli, runs that differ."""
    n_tests, found = 60, 0
    for _ in range(n_tests):
        stimulus = np.repeat(np.arange(15), 2)
        X = np.repeat(rng.standard_normal((15, 8)), 2, axis=0) + rng.standard_normal((30, 8))
        value = rng.permutation(np.repeat([0, 1], [9, 6])) if model != "ridge" else rng.standard_normal(15)
        folds = make_folds(30, 3, rng, stimulus)
        try:
            scores = decode_attribute(
                X, value[stimulus], model, folds, rng=rng, n_permutations=19, shuffle=Shuffle(units=stimulus)
            )
        except BadDataError:
            n_tests -= 1
            continue
        found += scores.p["accuracy" if model != "ridge" else "r"] <= 0.05
    # equal accuracies make the test careful; not more often than that
    assert binom.sf(found - 1, n_tests, 0.05) > 0.01
    assert found > 0 or model != "ridge"


def test_runs_may_not_help(rng):
    """Classes that go with runs' own patterns in training only: permutations within runs know it."""
    X, label, run = make_runs(rng, strength=0)
    shuffle = Shuffle(blocks=run)
    drawn = shuffle.draw(label, rng)
    assert not np.array_equal(drawn, label)
    for rows in split_runs(run):
        assert sorted(drawn[rows]) == sorted(label[rows])
    found = decode_attribute(X, label, "lda", split_runs(run), rng=rng, n_permutations=39, shuffle=shuffle)
    assert found.scores["accuracy"] == pytest.approx(found.chance["accuracy"], abs=0.2)


def test_repeats_keep_one_value(rng):
    stimulus = rng.permutation(np.repeat(np.arange(20), 3))
    value = rng.standard_normal(20)[stimulus]
    drawn = Shuffle(units=stimulus).draw(value, rng)
    assert all(len(set(drawn[stimulus == k])) == 1 for k in range(20))
    assert sorted(drawn) == sorted(value)
    assert (drawn != value).mean() > 0.5


def test_components_and_scales_are_those_of_training_rows(rng):
    X = rng.standard_normal((30, 60)) * rng.uniform(1, 5, 60)
    X[:, 7] = 3
    test = np.arange(10)
    fold = prepare_fold(X, test, "svc", 4, "each")
    assert fold.Z_train.shape == (20, 4)
    changed = X.copy()
    changed[test] += 100
    again = prepare_fold(changed, test, "svc", 4, "each")
    np.testing.assert_array_equal(fold.Z_train, again.Z_train)
    assert np.abs(fold.Z_test - again.Z_test).min() > 0
    whole = prepare_fold(X, test, "svc", 0, "each")
    scaled = (X - X[10:].mean(axis=0)) / np.where(np.arange(60) == 7, 1, X[10:].std(axis=0))
    np.testing.assert_allclose(whole.Z_test @ whole.Z_train.T, scaled[:10] @ scaled[10:].T, atol=1e-9)
    common = prepare_fold(X, test, "lasso")
    assert common.Z_train.shape == (20, 59)
    varying = np.delete(X[10:], 7, axis=1)
    np.testing.assert_allclose(
        common.Z_train.std(axis=0) * 3, varying.std(axis=0) * 3 / np.sqrt(varying.var(axis=0).mean())
    )


def test_folds_have_all_classes(rng):
    label = np.repeat(["a", "b", "c"], [40, 12, 8])
    groups = np.repeat(np.arange(30), 2)
    for kept in (None, groups):
        folds = make_balanced_folds(label, 4, rng, kept)
        assert sorted(np.concatenate(folds)) == list(range(60))
        for fold in folds:
            assert {"a", "b", "c"} == set(label[fold])
            if kept is not None:
                assert not set(kept[fold]) & set(np.delete(kept, fold))
    assert len(make_balanced_folds(label, 20, rng)) == 8
    with pytest.raises(BadDataError, match="2 classes, of which b has 1 member"):
        make_balanced_folds(np.array(["a", "a", "b"]), 2, rng)


def make_ball(shape=(6, 6, 6)):
    voxels = np.argwhere(np.ones(shape))
    part = BrainPart("CIFTI_STRUCTURE_OTHER", 0, len(voxels), voxels=voxels)
    space = BrainSpace("boldref", "nifti", (part,), affine=np.eye(4), shape=shape)
    return find_neighbourhoods(space, {}, 1.5, memory=2**26)


@pytest.mark.parametrize("model", ["lda", "ols"])
def test_searchlights_find_where_it_is_decoded(rng, model):
    places = make_ball()
    label = np.tile([0, 1], 20)
    X = rng.standard_normal((40, 216))
    planted = np.linalg.norm(places.positions - 2, axis=1) <= 1.5
    X[:, planted] += 1.5 * np.outer(label, rng.choice([-1, 1], planted.sum()))
    X[3, 200], X[:, 210] = np.nan, 1
    folds = make_balanced_folds(label, 5, rng)
    target = label if model == "ols" else np.array(["cat", "dog"])[label]
    score, p = decode_searchlights(X, target, model, folds, places, rng=rng, n_null=300)
    centre = np.flatnonzero((places.positions == 2).all(axis=1))[0]
    assert p[centre] == 1 / 301
    assert np.linalg.norm(places.positions[np.nanargmax(score)] - 2) <= 2
    assert np.isnan(score[[200, 210]]).all()
    assert np.isnan(p[[200, 210]]).all()
    far = np.linalg.norm(places.positions - 2, axis=1) > 3.1
    assert 0.01 < (p[far] <= 0.05).mean() < 0.12
    around = np.flatnonzero(places.members.toarray()[centre])
    region = decode_attribute(X[:, around], target, model, folds, rng=rng, n_permutations=0)
    assert score[centre] == pytest.approx(region.scores["r" if model == "ols" else "balanced_accuracy"])


def test_workers_change_nothing(rng):
    X, label, run = make_runs(rng, 10)
    told = []
    one, two = (
        decode_attribute(
            X, label, "lda", split_runs(run), rng=np.random.default_rng(3), n_permutations=40, n_jobs=n, progress=p
        )
        for n, p in ((1, None), (2, lambda *args: told.append(args)))
    )
    assert one.p == two.p
    assert one.chance == two.chance
    assert told[-1] == (40, 40)


def test_inputs_that_cannot_be(rng):
    X, label, run = make_runs(rng)
    folds = split_runs(run)
    with pytest.raises(UnknownNameError, match="decoder 'svm'; did you mean 'svc'"):
        decode_attribute(X, label, "svm", folds, rng=rng)
    with pytest.raises(UnknownNameError, match="scaling 'zscore'"):
        decode_attribute(X, label, "svc", folds, rng=rng, scaling="zscore")
    with pytest.raises(UsageError, match="ridge predicts numbers, but the attribute has values such as"):
        decode_attribute(X, label, "ridge", folds, rng=rng)
    with pytest.raises(BadDataError, match="missing in 2 of 48 rows"):
        decode_attribute(X, np.where(np.arange(48) < 2, "n/a", label), "svc", folds, rng=rng)
    with pytest.raises(BadDataError, match="missing in 1 of 48 rows"):
        decode_attribute(X, np.where(np.arange(48) < 1, np.nan, 1.0), "ridge", folds, rng=rng)
    with pytest.raises(BadDataError, match="class rare occurs in one fold only"):
        decode_attribute(X, np.where(np.arange(48) < 2, "rare", label), "svc", folds, rng=rng)
    with pytest.raises(BadDataError, match="the attribute is cat in all rows"):
        decode_attribute(X, np.full(48, "cat"), "svc", folds, rng=rng)
    with pytest.raises(BadDataError, match="48 rows of responses, 47 values"):
        decode_attribute(X, label[1:], "svc", folds, rng=rng)
    with pytest.raises(BadDataError, match="no feature is finite"):
        decode_attribute(np.full_like(X, np.nan), label, "svc", folds, rng=rng)
    with pytest.raises(BadDataError, match="no voxel varies over the rows"):
        decode_searchlights(np.ones((48, 216)), label, "svc", folds, make_ball(), rng=rng)


@pytest.mark.shared
@pytest.mark.parametrize("model", ["svc", "logistic"])
def test_haxby(shared, rng, model):
    """Eight categories from a slice of Haxby et al. (2001), subject 1, with runs held out: .78."""
    nib, pd = pytest.importorskip("nibabel"), pytest.importorskip("pandas")
    from dnnbrain_app.records import Trials
    from dnnbrain_app.responses.glm import average_repeats, estimate_betas
    from dnnbrain_app.responses.nuisance import build_nuisance
    from dnnbrain_app.responses.options import ResponseOptions
    from dnnbrain_app.responses.runs import RunData

    options = ResponseOptions(model="condition", motion=0, scaling="zscore", noise_model="ols")
    folder = shared / "data" / "haxby2001"
    patterns, names = [], ()
    for number in range(1, 13):
        name = f"sub-1_task-objectviewing_run-{number:02}"
        stem = folder / "derivatives" / "fmriprep" / "sub-1" / "func" / name
        mask = nib.load(f"{stem}_desc-brain_mask.nii.gz").get_fdata() > 0
        bold = nib.load(f"{stem}_desc-preproc_bold.nii.gz").get_fdata()[mask].T
        table = pd.read_csv(folder / "sub-1" / "func" / f"{name}_events.tsv", sep="\t")
        stimulus = table["trial_type"].to_numpy(dtype=str)
        trials = Trials(
            table["onset"].to_numpy(), table["duration"].to_numpy(), stimulus, 0 * table.index.to_numpy(), (name,)
        )
        times = 2.5 * np.arange(len(bold))
        betas, rows = estimate_betas([RunData(bold, times, build_nuisance({}, times, options)[0])], trials, options)
        names = sorted(set(stimulus))
        average = average_repeats(betas, rows, names).astype(float)
        patterns.append(average - average.mean(axis=0))
    run = np.repeat(np.arange(12), 8)
    found = decode_attribute(
        np.concatenate(patterns),
        np.tile(names, 12),
        model,
        split_runs(run),
        rng=rng,
        n_permutations=19,
        shuffle=Shuffle(blocks=run),
    )
    assert found.scores["accuracy"] == pytest.approx(0.78, abs=0.03)
    assert found.p["accuracy"] == 1 / 20
    assert found.chance["accuracy"] == pytest.approx(1 / 8, abs=0.03)
    assert found.classes == tuple(names)
