"""LSA and LSS with frequent stimuli: nilearn's models; what they cannot tell apart is told."""

import logging
from dataclasses import replace

import numpy as np
import pytest
from nilearn.glm.first_level import compute_regressor, run_glm
from nilearn.glm.regression import ARModel
from scipy.signal import lfilter

from dnnbrain_app.errors import BadDataError, UsageError
from dnnbrain_app.records import Trials
from dnnbrain_app.responses.design import build_design
from dnnbrain_app.responses.glm import average_repeats, estimate_betas
from dnnbrain_app.responses.nuisance import build_nuisance
from dnnbrain_app.responses.options import DERIVED, PLAIN, ResponseOptions
from dnnbrain_app.responses.runs import RunData

T = 160
FRAME_TIMES = 0.972 + 2.0 * np.arange(T)
OPTIONS = ResponseOptions(model="lsa", motion=0, scaling="none", noise_model="ols")
NUISANCE = build_nuisance({}, FRAME_TIMES, OPTIONS)[0]


def make_trials(onset, n_runs=1):
    n = len(onset)
    labels = tuple(f"task-objects_run-{i + 1}" for i in range(n_runs))
    names = np.array([f"s{i}" for i in range(n)])
    return Trials(
        np.tile(onset, n_runs), np.ones(n * n_runs), np.tile(names, n_runs), np.arange(n * n_runs) // n, labels
    )


def regress_with_nilearn(trials, hrf):
    events = np.array([trials.onset, trials.duration, np.ones(len(trials))])
    columns = [compute_regressor(events[:, [i]], hrf, FRAME_TIMES)[0] for i in range(len(trials))]
    return np.concatenate(columns, axis=1), columns[0].shape[1]


def simulate_noise(rng, n_voxels, ar=0.4):
    return 100 + lfilter([1.0], [1.0, -ar], rng.standard_normal((T, n_voxels)), axis=0)


def assert_close(actual, expected):
    assert actual.dtype == np.float32
    assert np.abs(actual - expected).max() < 1e-5 * expected.std()


@pytest.mark.parametrize("hrf", [*PLAIN, *DERIVED])
def test_lsa_agrees_with_nilearn(rng, hrf):
    trials = make_trials(np.append(-3.0, np.linspace(9, 280, 17) + rng.uniform(-4, 4, 17)))
    bold = simulate_noise(rng, 30)
    options = ResponseOptions(model="lsa", motion=0, scaling="none", noise_model="ols", hrf=hrf)
    betas, kept = estimate_betas([RunData(bold, FRAME_TIMES, NUISANCE)], trials, options)
    X, n_each = regress_with_nilearn(trials, hrf)
    labels, results = run_glm(bold, np.hstack([X, NUISANCE]), noise_model="ols")
    assert len(kept) == 18
    assert_close(betas, results[labels[0]].theta[: n_each * 18 : n_each])


def test_lsa_filters_as_nilearn_does(rng):
    trials = make_trials(np.linspace(5, 280, 18))
    bold = simulate_noise(rng, 40, ar=0.5)
    options = ResponseOptions(model="lsa", motion=0, scaling="none")
    betas, _ = estimate_betas([RunData(bold, FRAME_TIMES, NUISANCE)], trials, options)
    X, _ = regress_with_nilearn(trials, "glover")
    rho = run_glm(bold, np.hstack([X.sum(axis=1, keepdims=True), NUISANCE]), noise_model="ar1")[0].astype(float)
    assert rho.min() > 0.1
    models = [ARModel(np.hstack([X, NUISANCE]), r).fit(y[:, np.newaxis]) for r, y in zip(rho, bold.T, strict=True)]
    assert_close(betas, np.array([model.theta[:18, 0] for model in models]).T)


@pytest.mark.parametrize("hrf", ["glover", "spm + derivative + dispersion"])
def test_lsa_recovers_a_plant(rng, hrf):
    trials = make_trials(np.linspace(5, 280, 20), n_runs=2)
    plant = rng.standard_normal((40, 12))
    X, n_each = regress_with_nilearn(trials.take(trials.run == 0), hrf)
    bolds = [500 + X[:, ::n_each] @ plant[run] for run in np.split(np.arange(40), 2)]
    options = ResponseOptions(model="lsa", motion=0, scaling="none", hrf=hrf)
    betas, kept = estimate_betas([RunData(b, FRAME_TIMES, NUISANCE) for b in bolds], trials, options)
    np.testing.assert_allclose(betas, plant, atol=1e-3)
    assert kept.run.tolist() == trials.run.tolist()


def test_derivatives_leave_late_responses_to_the_response(rng):
    # nilearn's derivatives are orthogonal to the response, which so takes what it can explain, but no more
    trials = make_trials(np.linspace(5, 270, 12))
    late = make_trials(trials.onset + 0.7)
    X, _ = regress_with_nilearn(late, "glover")
    bold = np.tile(100 + X.sum(axis=1, keepdims=True), 3) + 1e-3 * rng.standard_normal((T, 3))
    fits = [
        estimate_betas(
            [RunData(bold, FRAME_TIMES, np.ones((T, 1)))],
            trials,
            ResponseOptions(model="lsa", motion=0, scaling="none", noise_model="ols", hrf=hrf),
        )[0]
        for hrf in ("glover", "glover + derivative")
    ]
    np.testing.assert_allclose(fits[0], fits[1], atol=0.03)
    assert 0.9 < fits[1].mean() < 1


def test_lsa_finds_nothing_in_noise(rng):
    trials = make_trials(np.linspace(5, 280, 24))
    betas, _ = estimate_betas([RunData(simulate_noise(rng, 3000), FRAME_TIMES, NUISANCE)], trials, OPTIONS)
    deviation = betas.mean(axis=1) / (betas.std(axis=1) / np.sqrt(3000))
    assert np.abs(deviation).max() < 4.5
    assert betas.std() > 1, "the noise is there"


def make_conditions(rng, names):
    """Trials of the named stimuli, in random order, 3 s apart."""
    names = np.array(names)
    onset = 4 + 3.0 * np.arange(len(names)) + rng.uniform(0, 1.5, len(names))
    return Trials(onset, np.ones(len(names)), rng.permutation(names), np.zeros(len(names), dtype=int), ("run-1",))


@pytest.mark.parametrize("noise_model", ["ols", "ar1"])
def test_lss_gives_frequent_stimuli_regressors_of_their_own(rng, noise_model):
    """A stimulus shown eight times has one, those shown less often share one."""
    trials = make_conditions(rng, ["house"] * 8 + ["face"] * 20 + ["cat"] * 7 + [f"rare{i}" for i in range(9)])
    kinds = np.where(np.isin(trials.stimulus, ["house", "face"]), trials.stimulus, "rest")
    Y = simulate_noise(rng, 25)
    options = replace(OPTIONS, model="lss", noise_model=noise_model)
    betas, kept = estimate_betas([RunData(Y, FRAME_TIMES, NUISANCE)], trials, options)
    assert len(kept) == len(trials)
    X, _ = regress_with_nilearn(trials, "glover")
    sums = [X[:, kinds == kind].sum(axis=1) for kind in ("house", "face", "rest")]
    rho = run_glm(Y, np.column_stack([*sums, NUISANCE]), noise_model="ar1")[0].astype(float)
    assert len(np.unique(rho)) > 5
    expected = np.empty(betas.shape)
    for i in range(len(trials)):
        others = np.arange(len(trials)) != i
        design = np.column_stack(
            [X[:, i], *(X[:, others & (kinds == kind)].sum(axis=1) for kind in ("house", "face", "rest")), NUISANCE]
        )
        for v in range(25):
            model = ARModel(design, rho[v] if noise_model == "ar1" else 0.0)
            expected[i, v] = model.fit(Y[:, [v]]).theta[0, 0]
    assert_close(betas, expected)


@pytest.mark.parametrize(("n_repeats", "mixed"), [(7, True), (8, False)])
def test_responses_of_frequent_stimuli_are_not_mixed(rng, n_repeats, mixed):
    """Without noise, their averages are what was planted, in blocks and in random order."""
    trials = make_conditions(rng, np.repeat([str(i) for i in range(10)], n_repeats))
    for stimulus in (trials.stimulus, np.sort(trials.stimulus)):
        shown = Trials(trials.onset, trials.duration, stimulus, trials.run, trials.run_labels)
        planted = 1 + rng.standard_normal((10, 20))
        Y = 100 + build_design(shown.onset, shown.duration, FRAME_TIMES, "glover") @ planted[stimulus.astype(int)]
        betas, kept = estimate_betas([RunData(Y, FRAME_TIMES, NUISANCE)], shown, replace(OPTIONS, model="lss"))
        averages = average_repeats(betas, kept, [str(i) for i in range(10)])
        assert (np.abs(averages - planted).max() > 0.1) == mixed
        assert mixed or np.abs(averages - planted).max() < 1e-3


def test_lss_of_frequent_stimuli_that_are_always_shown_together(rng, caplog):
    """They cannot be told apart; others do not suffer."""
    alone = make_conditions(rng, ["a"] * 10 + ["c"] * 10)
    twin = alone.take(alone.stimulus == "a")
    trials = Trials(
        np.append(alone.onset, twin.onset),
        np.append(alone.duration, twin.duration),
        np.append(alone.stimulus, np.full(10, "b")),
        np.append(alone.run, twin.run),
        ("run-1",),
    )
    run, options = RunData(simulate_noise(rng, 5), FRAME_TIMES, NUISANCE), replace(OPTIONS, model="lss")
    betas, kept = estimate_betas([run], trials, options)
    assert set(kept.stimulus) == {"c"}
    assert "dropped" in caplog.text
    expected, every = estimate_betas([run], alone, options)
    np.testing.assert_allclose(betas, expected[every.stimulus == "c"], atol=1e-5)


def test_trials_without_a_response_are_left_out_of_the_model(rng, caplog):
    trials = make_trials(np.array([20.0, 400.0, 90.0, 150.0, -70.0]))
    run = RunData(simulate_noise(rng, 5), FRAME_TIMES, NUISANCE)
    betas, kept = estimate_betas([run], trials, OPTIONS)
    assert kept.stimulus.tolist() == ["s0", "s2", "s3"]
    assert "run-1: dropped, as the run holds too little of their response: s1 at 400 s, s4 at -70 s" in caplog.text
    alone, _ = estimate_betas([run], trials.take(np.array([0, 2, 3])), OPTIONS)
    np.testing.assert_array_equal(betas, alone)


def test_simultaneous_trials_are_named(rng):
    trials = make_trials(np.array([20.0, 90.0, 90.0, 150.0]))
    run = RunData(simulate_noise(rng, 5), FRAME_TIMES, NUISANCE)
    with pytest.raises(
        BadDataError, match=r"s1 at 90 s of .*run-1, s2 at 90 s of .*run-1 cannot be told apart.*model = lss"
    ):
        estimate_betas([run], trials, OPTIONS)


def test_more_trials_than_volumes(rng):
    trials = make_trials(np.linspace(5, 300, 90))
    run = RunData(simulate_noise(rng, 5), FRAME_TIMES, NUISANCE)
    options = ResponseOptions(model="lsa", motion=0, hrf="glover + derivative")
    with pytest.raises(BadDataError, match=r"run-1: 90 trials need 186 regressors, .* 160 volumes; .*model = lss"):
        estimate_betas([run], trials, options)


@pytest.mark.parametrize(("n_trials", "warned"), [(15, False), (90, True)])
def test_overlap_is_told(rng, caplog, n_trials, warned):
    trials = make_trials(np.linspace(5, 290, n_trials))
    run = RunData(simulate_noise(rng, 400, ar=0), FRAME_TIMES, NUISANCE)
    with caplog.at_level(logging.WARNING):
        betas, _ = estimate_betas([run], trials, OPTIONS)
    assert ("run-1: responses to trials overlap so much" in caplog.text) is warned
    if warned:  # and the number told is true: standard errors, of those of a trial alone
        told = float(caplog.text.split("standard errors ")[1].split(" times")[0])
        alone, _ = estimate_betas([run], trials.take(np.array([45])), OPTIONS)
        assert np.median(betas.std(axis=1)) / alone.std() == pytest.approx(told, rel=0.2)


@pytest.mark.parametrize(
    ("model", "hrf"), [("lss", "glover + derivative"), ("glmsingle", "spm + derivative"), ("lsa", "fir")]
)
def test_responses_that_a_model_cannot_take(rng, model, hrf):
    run = RunData(simulate_noise(rng, 5), FRAME_TIMES, NUISANCE)
    with pytest.raises(UsageError, match=rf"responses.model = {model} takes no responses.hrf = .*it takes glover, spm"):
        estimate_betas([run], make_trials(np.array([20.0])), ResponseOptions(model=model, hrf=hrf))


def test_a_timeseries_has_no_betas(rng):
    run = RunData(simulate_noise(rng, 5), FRAME_TIMES, NUISANCE)
    with pytest.raises(UsageError, match="timeseries has no betas; those with betas: lss, lsa"):
        estimate_betas([run], make_trials(np.array([20.0])), ResponseOptions(model="timeseries"))
