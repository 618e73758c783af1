"""Betas: planted ones come back, noise gives none, and nilearn's models, fitted one by one, agree."""

import weakref
from dataclasses import replace

import numpy as np
import pytest
from nilearn.glm.first_level import compute_regressor, run_glm
from nilearn.glm.regression import ARModel, OLSModel
from scipy.linalg import block_diag
from scipy.signal import lfilter

from dnnbrain_app.errors import BadDataError
from dnnbrain_app.records import Trials
from dnnbrain_app.responses.design import build_design
from dnnbrain_app.responses.glm import RunData, average_repeats, estimate_betas
from dnnbrain_app.responses.nuisance import build_nuisance
from dnnbrain_app.responses.options import DERIVED, ResponseOptions

T = 160
START = 0.972
FRAME_TIMES = START + 2.0 * np.arange(T)
PERCENT = ResponseOptions(motion=0, scaling="percent")
PLAIN = ResponseOptions(motion=0, scaling="none")
CONDITION = ResponseOptions(motion=0, scaling="none", model="condition")


def make_trials(onsets, durations, stimuli):
    """Trials of several runs from one list a run."""
    run = np.repeat(np.arange(len(onsets)), [len(o) for o in onsets])
    labels = tuple(f"task-objects_run-{i + 1}" for i in range(len(onsets)))
    return Trials(np.concatenate(onsets), np.concatenate(durations), np.concatenate(stimuli), run, labels)


def simulate_design(rng, n_runs=2, n_trials=24, n_stimuli=8):
    """Events that overlap, last 0 to 4 s, and begin before the first volume; spikes among the nuisance."""
    onsets, durations, stimuli, nuisances = [], [], [], []
    for _ in range(n_runs):
        onsets.append(np.sort(np.append(rng.uniform(5, 290, n_trials - 1), -3.0)))
        durations.append(rng.choice([0.5, 1.0, 4.0], n_trials))
        stimuli.append(rng.permutation(np.arange(n_trials) % n_stimuli).astype(str))
        motion = {name: rng.standard_normal(T).cumsum() for name in ("trans_x", "trans_y", "trans_z")}
        motion |= {name: rng.standard_normal(T) for name in ("rot_x", "rot_y", "rot_z")}
        spikes = {"non_steady_state_outlier00": np.eye(T)[0], "motion_outlier00": np.eye(T)[rng.integers(5, T)]}
        nuisances.append(build_nuisance(motion | spikes, FRAME_TIMES, ResponseOptions())[0])
    return make_trials(onsets, durations, stimuli), nuisances


def make_runs(bolds, nuisances):
    return [RunData(bold, FRAME_TIMES, nuisance) for bold, nuisance in zip(bolds, nuisances, strict=True)]


def regress_with_nilearn(trials, rows):
    events = np.array([trials.onset[rows], trials.duration[rows], np.ones(len(rows))])
    return compute_regressor(events, "glover", FRAME_TIMES)[0]


def fit_with_nilearn(Y, X, n, noise_model="ols"):
    labels, results = run_glm(Y.astype(np.float64), X, noise_model=noise_model)
    betas = np.empty((n, Y.shape[1]))
    for label in np.unique(labels):
        betas[:, labels == label] = results[label].theta[:n]
    return betas


def estimate_rho_with_nilearn(Y, X):
    """Coefficients of an AR(1) model; nilearn's labels say them."""
    return run_glm(Y, X, noise_model="ar1")[0].astype(float)


def simulate_noise(rng, n_voxels, ar=0.0):
    noise = rng.standard_normal((T, n_voxels))
    return lfilter([1.0], [1.0, -ar], noise, axis=0)


def assert_close(actual, expected, tolerance=1e-5):
    """Agreement relative to the spread of the betas."""
    assert actual.shape == expected.shape
    assert actual.dtype == np.float32
    assert np.abs(actual - expected).max() < tolerance * expected.std()


def scale(Y, scaling):
    centred = Y - Y.mean(axis=0)
    return {"none": Y, "percent": 100 * centred / Y.mean(axis=0), "zscore": centred / Y.std(axis=0)}[scaling]


@pytest.mark.parametrize("noise_model", ["ar1", "ols"])
@pytest.mark.parametrize("scaling", ["none", "percent", "zscore"])
def test_lss_agrees_with_nilearn(rng, scaling, noise_model):
    trials, nuisances = simulate_design(rng)
    bolds = [(10_000 + 50 * simulate_noise(rng, 30, ar=0.5)).astype(np.float32) for _ in nuisances]
    options = ResponseOptions(scaling=scaling, noise_model=noise_model)
    betas, kept = estimate_betas(make_runs(bolds, nuisances), trials, options)
    expected = np.empty((len(trials), 30))
    for run, (bold, nuisance) in enumerate(zip(bolds, nuisances, strict=True)):
        Y = scale(bold.astype(np.float64), scaling)
        rows = np.flatnonzero(trials.run == run)
        rho = estimate_rho_with_nilearn(Y, np.hstack([regress_with_nilearn(trials, rows), nuisance]))
        assert rho.min() > 0.1
        assert len(np.unique(rho)) > 10
        for i in rows:
            X = np.hstack([regress_with_nilearn(trials, [i]), regress_with_nilearn(trials, rows[rows != i]), nuisance])
            if noise_model == "ols":
                expected[i] = OLSModel(X).fit(Y).theta[0]
            else:
                expected[i] = [ARModel(X, r).fit(y[:, np.newaxis]).theta[0, 0] for r, y in zip(rho, Y.T, strict=True)]
    assert len(kept) == len(trials)
    assert_close(betas, expected)


def build_condition_designs(trials, n_runs):
    """Nilearn's regressors, one a stimulus, of each run."""
    designs = np.zeros((n_runs, T, len(np.unique(trials.stimulus))))
    for run in range(n_runs):
        for j, stimulus in enumerate(np.unique(trials.stimulus)):
            rows = np.flatnonzero((trials.run == run) & (trials.stimulus == stimulus))
            designs[run, :, j] = regress_with_nilearn(trials, rows)[:, 0]
    return designs


@pytest.mark.parametrize("scaling", ["none", "percent", "zscore"])
def test_condition_agrees_with_nilearn(rng, scaling):
    trials, nuisances = simulate_design(rng, n_runs=3)
    bolds = [(10_000 + 50 * simulate_noise(rng, 30, ar=0.4)).astype(np.float32) for _ in nuisances]
    options = ResponseOptions(model="condition", scaling=scaling, noise_model="ols")
    betas, rows = estimate_betas(make_runs(bolds, nuisances), trials, options)
    Y = np.concatenate([scale(y.astype(float), scaling) for y in bolds])
    stimuli = np.unique(trials.stimulus)
    X = np.concatenate(build_condition_designs(trials, 3))
    assert_close(betas, fit_with_nilearn(Y, np.hstack([X, block_diag(*nuisances)]), len(stimuli)))
    assert rows.stimulus.tolist() == stimuli.tolist()
    assert not rows.run.any(), "each stimulus was first shown in the first run"
    assert all(
        o == trials.onset[(trials.run == 0) & (trials.stimulus == s)].min()
        for s, o in zip(stimuli, rows.onset, strict=True)
    )


@pytest.mark.parametrize("hrf", DERIVED)
def test_condition_with_derivatives_agrees_with_nilearn(rng, hrf):
    trials, nuisances = simulate_design(rng, n_runs=3)
    bolds = [10_000 + 50 * simulate_noise(rng, 20, ar=0.4) for _ in nuisances]
    options = ResponseOptions(model="condition", scaling="none", noise_model="ols", hrf=hrf)
    betas, _ = estimate_betas(make_runs(bolds, nuisances), trials, options)
    designs = []
    for run in range(3):
        columns = []
        for stimulus in np.unique(trials.stimulus):
            rows = np.flatnonzero((trials.run == run) & (trials.stimulus == stimulus))
            events = np.array([trials.onset[rows], trials.duration[rows], np.ones(len(rows))])
            columns.append(compute_regressor(events, hrf, FRAME_TIMES)[0])
        designs.append(np.hstack(columns))
    n_each = columns[0].shape[1]
    X = np.hstack([np.concatenate(designs), block_diag(*nuisances)])
    expected = fit_with_nilearn(np.concatenate(bolds), X, 8 * n_each)[::n_each]
    assert_close(betas, expected)


@pytest.mark.parametrize("scaling", ["none", "percent", "zscore"])
def test_condition_of_one_run_agrees_with_nilearns_ar1(rng, scaling):
    trials, (nuisance,) = simulate_design(rng, n_runs=1)
    bold = (10_000 + 50 * simulate_noise(rng, 60, ar=0.6)).astype(np.float32)
    options = ResponseOptions(model="condition", scaling=scaling)
    betas, _ = estimate_betas(make_runs([bold], [nuisance]), trials, options)
    Y, X = scale(bold.astype(float), scaling), np.hstack([build_condition_designs(trials, 1)[0], nuisance])
    rho = estimate_rho_with_nilearn(Y, X)
    assert rho.min() > 0.1
    assert len(np.unique(rho)) > 10
    assert_close(betas, fit_with_nilearn(Y, X, 8, "ar1"))


@pytest.mark.parametrize("scaling", ["none", "percent", "zscore"])
def test_condition_filters_each_run_from_its_beginning(rng, scaling):
    trials, nuisances = simulate_design(rng, n_runs=3)
    bolds = [(10_000 + 50 * simulate_noise(rng, 30, ar=0.5)).astype(np.float32) for _ in nuisances]
    options = ResponseOptions(model="condition", scaling=scaling)
    betas, _ = estimate_betas(make_runs(bolds, nuisances), trials, options)
    Y = np.array([scale(y.astype(float), scaling) for y in bolds])
    N = block_diag(*nuisances).reshape(3, T, -1)
    X = np.concatenate([build_condition_designs(trials, 3), N], axis=2)
    e = OLSModel(np.concatenate(X)).fit(np.concatenate(Y)).residuals.reshape(Y.shape)
    rho = (e[:, 1:] * e[:, :-1]).sum((0, 1)) / (T - 1) / ((e**2).sum((0, 1)) / T)
    expected = np.empty((8, 30))
    for v, r in enumerate(np.trunc(100 * rho) / 100):
        filtered = [ARModel(x, r) for x in X]
        whole = OLSModel(np.concatenate([model.whitened_design for model in filtered]))
        y = np.concatenate([model.whiten(y[:, [v]]) for model, y in zip(filtered, Y, strict=True)])
        expected[:, v] = whole.fit(y).theta[:8, 0]
    assert rho.min() > 0.1
    assert_close(betas, expected)


@pytest.mark.parametrize("model", ["lss", "condition"])
@pytest.mark.parametrize(("ar", "largest"), [(-0.5, 1e-5), (0.0, 0.1)])
def test_nothing_is_filtered_without_autocorrelation(rng, model, ar, largest):
    trials, nuisances = simulate_design(rng)
    runs = make_runs([100 + simulate_noise(rng, 200, ar=ar) for _ in nuisances], nuisances)
    betas, plain = (
        estimate_betas(runs, trials, ResponseOptions(model=model, noise_model=n))[0] for n in ("ar1", "ols")
    )
    assert (betas - plain).std() < largest * plain.std()


@pytest.mark.parametrize("model", ["lss", "condition"])
def test_errors_are_smaller_in_autocorrelated_noise(rng, model):
    trials, nuisances = simulate_design(rng)
    runs = make_runs([100 + simulate_noise(rng, 2000, ar=0.6) for _ in nuisances], nuisances)
    errors, plain = (
        estimate_betas(runs, trials, ResponseOptions(model=model, noise_model=n))[0] for n in ("ar1", "ols")
    )
    assert np.square(errors).mean() < 0.85 * np.square(plain).mean()


@pytest.mark.parametrize("noise_model", ["ar1", "ols"])
def test_condition_recovers_a_plant(rng, noise_model):
    trials, nuisances = simulate_design(rng)
    plant = rng.standard_normal((8, 20))
    bolds = []
    for run, nuisance in enumerate(nuisances):
        rows = np.flatnonzero(trials.run == run)
        X = build_design(trials.onset[rows], trials.duration[rows], FRAME_TIMES, "glover")
        signal = X @ plant[trials.stimulus[rows].astype(int)]
        bolds.append(1000 + 10 * signal + nuisance @ rng.standard_normal((nuisance.shape[1], 20)))
    options = replace(CONDITION, noise_model=noise_model)
    betas, _ = estimate_betas(make_runs(bolds, nuisances), trials, options)
    assert_close(betas, 10 * plant)


@pytest.mark.parametrize("noise_model", ["ar1", "ols"])
def test_lss_recovers_a_plant(rng, noise_model):
    trials, _ = simulate_design(rng, n_runs=4)
    patterns = 1 + rng.standard_normal((8, 40))
    bolds, equal = [], []
    for run in range(4):
        rows = np.flatnonzero(trials.run == run)
        X = build_design(trials.onset[rows], trials.duration[rows], FRAME_TIMES, "glover")
        bolds.append(500 + 5 * X @ patterns[trials.stimulus[rows].astype(int)] + 0.1 * simulate_noise(rng, 40, ar=0.35))
        equal.append(500 + np.repeat(5 * X.sum(axis=1, keepdims=True), 40, axis=1))
    # where all trials evoke the same, 'all others' is the right regressor, and the betas are exact
    options = replace(PLAIN, noise_model=noise_model)
    drifts = [build_nuisance({}, FRAME_TIMES, PLAIN)[0]] * 4
    betas, _ = estimate_betas(make_runs(equal, drifts), trials, options)
    np.testing.assert_allclose(betas, 5, rtol=1e-5)
    betas, kept = estimate_betas(make_runs(bolds, drifts), trials, options)
    averages = average_repeats(betas, kept, [str(i) for i in range(8)])
    assert np.corrcoef(averages.ravel(), patterns.ravel())[0, 1] > 0.95


def test_percent_is_of_the_mean(rng):
    trials = make_trials([np.array([20.0, 80.0, 140.0, 220.0])], [np.full(4, 30.0)], [np.array(list("abab"))])
    X = build_design(trials.onset, trials.duration, FRAME_TIMES, "glover").sum(axis=1, keepdims=True)
    baseline = np.array([200.0, 5000.0])
    ones = np.ones((T, 1))
    bold = baseline * (1 + 0.02 * (X - X.mean()))
    for options in (PERCENT, ResponseOptions(model="condition", scaling="percent")):
        betas, _ = estimate_betas([RunData(bold, FRAME_TIMES, ones)], trials, options)
        np.testing.assert_allclose(betas, 2, rtol=1e-5)


@pytest.mark.parametrize("model", ["lss", "condition"])
@pytest.mark.parametrize("amplitude", [0.0, 3.0])
@pytest.mark.parametrize("noise_model", ["ar1", "ols"])
def test_unbiased_in_autocorrelated_noise(rng, model, amplitude, noise_model):
    trials, _ = simulate_design(rng)
    drifts = build_nuisance({}, FRAME_TIMES, PLAIN)[0]
    bolds = []
    for run in range(2):
        rows = trials.run == run
        X = build_design(trials.onset[rows], trials.duration[rows], FRAME_TIMES, "glover").sum(axis=1, keepdims=True)
        bolds.append(100 + amplitude * X + simulate_noise(rng, 2000, ar=0.5))
    options = ResponseOptions(model=model, scaling="none", noise_model=noise_model)
    betas, _ = estimate_betas(make_runs(bolds, [drifts] * 2), trials, options)
    deviation = (betas.mean(axis=1) - amplitude) / (betas.std(axis=1) / np.sqrt(2000))
    assert np.abs(deviation).max() < 4.5
    assert betas.std() > 0.5, "the noise is there"


def test_a_single_trial_has_no_others(rng):
    trials = make_trials([np.array([30.0])], [np.ones(1)], [np.array(["a"])])
    nuisance = build_nuisance({}, FRAME_TIMES, PLAIN)[0]
    bold = 100 + simulate_noise(rng, 5, ar=0.5)
    X = np.hstack([regress_with_nilearn(trials, [0]), nuisance])
    for model in ("lss", "condition"):  # here the same, and nilearn's to the bin of the autocorrelation
        options = replace(PLAIN, model=model)
        betas, _ = estimate_betas([RunData(bold, FRAME_TIMES, nuisance)], trials, options)
        assert_close(betas, fit_with_nilearn(bold, X, 1, "ar1"))


def test_trials_without_a_response_in_the_run_are_dropped(rng, caplog):
    # after the end; in its last second; in a censored stretch; before the beginning
    onset = np.array([400.0, FRAME_TIMES[-1] - 1, 20.0, 150.0, -70.0, 90.0])
    trials = make_trials(
        [onset, onset[2:4]], [np.ones(6), np.ones(2)], [np.array(list("abcdef")), np.array(list("ab"))]
    )
    spikes = np.eye(T)[:, 75:94]
    nuisances = [np.hstack([np.ones((T, 1)), spikes]), np.ones((T, 1))]
    bolds = [100 + simulate_noise(rng, 6) for _ in range(2)]
    betas, kept = estimate_betas(make_runs(bolds, nuisances), trials, PLAIN)
    assert kept.stimulus.tolist() == ["c", "f", "a", "b"]
    assert kept.run.tolist() == [0, 0, 1, 1]
    assert betas.shape == (4, 6)
    assert np.isfinite(betas).all()
    assert "task-objects_run-1: dropped" in caplog.text
    assert "a at 400 s, b at 317.972 s, d at 150 s, e at -70 s" in caplog.text
    alone, kept_alone = estimate_betas(
        make_runs(bolds[:1], nuisances[:1]), make_trials([onset[[2, 5]]], [np.ones(2)], [np.array(list("cf"))]), PLAIN
    )
    assert kept_alone.stimulus.tolist() == ["c", "f"]
    assert np.abs(alone - betas[:2]).max() < 0.05 * np.abs(betas).max(), "the lost trials hardly touch the others"


def test_two_simultaneous_trials_cannot_be_separated(caplog):
    trials = make_trials([np.array([30.0, 30.0])], [np.ones(2)], [np.array(["a", "b"])])
    run = RunData(np.eye(T), FRAME_TIMES, np.ones((T, 1)))
    with pytest.raises(BadDataError, match="no trial can be estimated"):
        estimate_betas([run], trials, PLAIN)
    assert "a at 30 s, b at 30 s" in caplog.text
    with pytest.raises(BadDataError, match=r"responses to a, b cannot be told apart.*responses\.model = lss"):
        estimate_betas([run], trials, CONDITION)


def test_condition_names_the_stimulus_without_a_response(rng):
    trials = make_trials([np.array([30.0, 90.0, 400.0])], [np.ones(3)], [np.array(["a", "b", "late"])])
    run = RunData(100 + simulate_noise(rng, 4), FRAME_TIMES, np.ones((T, 1)))
    with pytest.raises(BadDataError, match="too little of the response to late"):
        estimate_betas([run], trials, CONDITION)


@pytest.mark.parametrize("model", ["lss", "condition"])
@pytest.mark.parametrize("noise_model", ["ar1", "ols"])
@pytest.mark.parametrize("scaling", ["none", "percent", "zscore"])
def test_voxels_without_signal_are_nan(rng, model, scaling, noise_model):
    trials, nuisances = simulate_design(rng)
    bolds = [(100 + simulate_noise(rng, 5000)).astype(np.float32) for _ in nuisances]
    bolds[0][:, 0] = 0
    bolds[0][:, 1] = 123.4
    bolds[1][:, 2] = 77.7  # constant in one run only
    bolds[0][5, 3] = np.nan
    bolds[1][5, 4999] = np.inf
    bolds[1][:, 4] -= 200  # no percent of a negative mean
    options = ResponseOptions(model=model, scaling=scaling, noise_model=noise_model)
    betas, _ = estimate_betas(make_runs(bolds, nuisances), trials, options)
    lost = np.flatnonzero(np.isnan(betas).any(axis=0))
    assert lost.tolist() == [0, 1, 2, 3, *([4] if scaling == "percent" else []), 4999]
    assert np.isnan(betas[:, lost]).all()


def test_demeaned_data_have_no_percent(rng):
    trials, nuisances = simulate_design(rng)
    bolds = [simulate_noise(rng, 30) for _ in nuisances]
    with pytest.raises(BadDataError, match=r'run-1: .*demeaned.*responses\.scaling = "zscore"'):
        estimate_betas(make_runs(bolds, nuisances), trials, PERCENT)
    estimate_betas(make_runs(bolds, nuisances), trials, PLAIN)


def test_one_run_in_memory(rng):
    trials, nuisances = simulate_design(rng, n_runs=3)
    seen = []

    def read_runs():
        for nuisance in nuisances:
            assert not any(reference() is not None for reference in seen), "an earlier run is still held"
            bold = 100 + simulate_noise(rng, 10)
            seen.append(weakref.ref(bold))
            yield RunData(bold, FRAME_TIMES, nuisance)
            del bold

    for options in (PLAIN, CONDITION):
        seen.clear()
        estimate_betas(read_runs(), trials, options)
        assert len(seen) == 3


def test_a_run_without_trials_is_passed_over(rng):
    onset = np.array([30.0, 90.0])
    trials = make_trials(
        [onset, onset[:0], onset], [np.ones(2), np.ones(0), np.ones(2)], [np.array(["b", "a"][:n]) for n in (2, 0, 2)]
    )
    assert trials.run.tolist() == [0, 0, 2, 2]
    ones = np.ones((T, 1))
    bolds = [100 + simulate_noise(rng, 3) for _ in range(3)]
    shuffled = trials.take(np.array([3, 0, 2, 1]))
    betas, kept = estimate_betas(make_runs(bolds, [ones] * 3), shuffled, PLAIN)
    in_order, _ = estimate_betas(make_runs(bolds, [ones] * 3), trials, PLAIN)
    np.testing.assert_array_equal(betas, in_order[[3, 0, 2, 1]])
    assert kept.run.tolist() == [2, 0, 2, 0]
    averaged, rows = estimate_betas(make_runs(bolds, [ones] * 3), shuffled, CONDITION)
    assert averaged.shape == (2, 3)
    assert rows.stimulus.tolist() == ["a", "b"]
    assert rows.onset.tolist() == [90, 30]


def test_runs_and_trials_must_fit(rng):
    trials, nuisances = simulate_design(rng)
    runs = make_runs([100 + simulate_noise(rng, 3) for _ in nuisances], nuisances)
    with pytest.raises(BadDataError, match="trials of 2 runs, but data of 1 only"):
        estimate_betas(runs[:1], trials, PLAIN)
    with pytest.raises(BadDataError, match="trials of 2 runs, but data of more"):
        estimate_betas([*runs, runs[0]], trials, PLAIN)
    with pytest.raises(BadDataError, match="there are no trials"):
        estimate_betas(runs, trials.take(np.arange(0)), PLAIN)
    with pytest.raises(BadDataError, match="run-1: no voxel varies"):
        estimate_betas(make_runs([np.ones((T, 3))] * 2, nuisances), trials, PLAIN)
    with pytest.raises(BadDataError, match="160 volumes with 159 frame times and 160 rows"):
        RunData(runs[0].bold, FRAME_TIMES[1:], nuisances[0])


def test_repeats_are_averaged(rng):
    trials = make_trials([np.arange(7.0)], [np.ones(7)], [np.array(list("cabacbz"))])
    data = rng.standard_normal((7, 4)).astype(np.float32)
    data[:, 2] = np.nan
    averages = average_repeats(data, trials, ["b", "c", "a"])
    assert averages.dtype == np.float32
    np.testing.assert_allclose(averages, [data[[2, 5]].mean(0), data[[0, 4]].mean(0), data[[1, 3]].mean(0)], rtol=1e-5)
    assert np.isnan(averages[:, 2]).all()


def test_a_stimulus_without_a_trial(rng):
    trials = make_trials([np.arange(2.0)], [np.ones(2)], [np.array(["a", "b"])])
    with pytest.raises(BadDataError, match="no response could be estimated for x, y: no trial shows it"):
        average_repeats(rng.standard_normal((2, 3)), trials, ["a", "x", "b", "y"])
