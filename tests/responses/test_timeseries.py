"""Features in time: those of explicit designs, and Grams that are exactly theirs."""

import weakref

import numpy as np
import pytest
from nilearn.glm.first_level import compute_regressor

from dnnbrain_app.errors import BadDataError, UsageError
from dnnbrain_app.records import Trials
from dnnbrain_app.responses.design import convolve_events
from dnnbrain_app.responses.hrfs import get_kernels
from dnnbrain_app.responses.nuisance import build_nuisance
from dnnbrain_app.responses.options import ResponseOptions
from dnnbrain_app.responses.runs import RunData
from dnnbrain_app.responses.timeseries import build_timeseries, convolve_features, convolve_gram

TR = 1.5
LENGTHS = (100, 130)
STIMULI = [f"frame{i}" for i in range(60)]
HRF = ResponseOptions(model="timeseries", motion=0, scaling="none")
FIR = ResponseOptions(model="timeseries", motion=0, scaling="none", hrf="fir", fir_length=6.0)


def make_frame_times(n_frames):
    return 0.7 + TR * np.arange(n_frames)


def simulate_trials(rng, *, film):
    """Frames of a film one after the other, or stimuli with gaps; each run has its own, and some are seen twice."""
    onset, duration, stimulus, run = [], [], [], []
    for index, n_frames in enumerate(LENGTHS):
        length = n_frames * TR
        starts = np.arange(0, length, length / 40) if film else np.sort(rng.uniform(-2, length, 40))
        onset.append(starts)
        duration.append(np.full(40, length / 40) if film else rng.choice([0.5, 2.0], 40))
        stimulus.append((np.arange(40) + 20 * index).astype(str))
        run.append(np.full(40, index))
    names = np.char.add("frame", np.concatenate(stimulus))
    return Trials(
        np.concatenate(onset),
        np.concatenate(duration),
        names,
        np.concatenate(run),
        ("task-film_run-1", "task-film_run-2"),
    )


def simulate_runs(rng, n_voxels=8):
    runs = []
    for n_frames in LENGTHS:
        motion = {
            f"{kind}_{axis}": rng.standard_normal(n_frames).cumsum() for kind in ("trans", "rot") for axis in "xyz"
        }
        nuisance, _ = build_nuisance(motion, make_frame_times(n_frames), ResponseOptions())
        bold = 100 + rng.standard_normal((n_frames, n_voxels)) + nuisance @ rng.standard_normal((nuisance.shape[1], 1))
        runs.append(RunData(bold.astype(np.float32), make_frame_times(n_frames), nuisance))
    return runs


def regress_explicitly(runs, trials, X, options):
    """Features, times nilearn's regressors of every stimulus, and data; both without nuisance and the mean response."""
    n_delays = round(options.fir_length / TR) if options.hrf == "fir" else 1
    rows, data = [], []
    for index, run in enumerate(runs):
        D = np.zeros((len(run.bold), n_delays, len(STIMULI)))
        for i, name in enumerate(STIMULI):
            own = (trials.run == index) & (trials.stimulus == name)
            if own.any():
                events = np.array([trials.onset[own], trials.duration[own], np.ones(own.sum())])
                D[:, :, i] = compute_regressor(events, options.hrf, run.frame_times, fir_delays=range(n_delays))[0]
        features = (D @ X).reshape(len(run.bold), -1)
        nuisance = np.hstack([run.nuisance, D.sum(axis=2)])
        for parts, values in ((rows, features), (data, run.bold.astype(float))):
            parts.append(values - nuisance @ np.linalg.lstsq(nuisance, values, rcond=1e-9)[0])
    return np.concatenate(rows), np.concatenate(data)


@pytest.mark.parametrize("film", [True, False], ids=["film", "events"])
@pytest.mark.parametrize("options", [HRF, FIR], ids=["hrf", "fir"])
def test_features_and_grams_are_those_of_nilearns_designs(rng, options, film):
    runs, trials = simulate_runs(rng), simulate_trials(rng, film=film)
    X = rng.standard_normal((60, 7)) + 2
    series = build_timeseries(runs, trials, STIMULI, options)
    expected, data = regress_explicitly(runs, trials, X, options)
    assert series.Y.dtype == np.float32
    np.testing.assert_allclose(series.Y, data, atol=1e-4)
    assert series.run.tolist() == [0] * 100 + [1] * 130
    found = convolve_features(X, series)
    assert found.shape == (sum(LENGTHS), 7 * len(series.designs))
    np.testing.assert_allclose(found, expected, atol=1e-8)
    K = convolve_gram(X @ X.T, series)
    np.testing.assert_allclose(K, expected @ expected.T, atol=1e-8 * np.abs(K).max())
    np.testing.assert_allclose(K, K.T, atol=1e-10 * np.abs(K).max())


@pytest.mark.parametrize("options", [HRF, FIR], ids=["hrf", "fir"])
def test_scores_tell_what_features_add(rng, options):
    """Means of features over stimuli do not matter, and a feature that is the same for all has nothing left."""
    series = build_timeseries(simulate_runs(rng), simulate_trials(rng, film=False), STIMULI, options)
    X = rng.standard_normal((60, 7)) + 5 * rng.standard_normal(7)
    centred = X - X.mean(axis=0)
    np.testing.assert_allclose(convolve_features(X, series), convolve_features(centred, series), atol=1e-9)
    K = convolve_gram(X @ X.T, series)
    np.testing.assert_allclose(K, convolve_gram(centred @ centred.T, series), atol=1e-10 * np.abs(K).max())
    np.testing.assert_allclose(convolve_features(np.ones((60, 1)), series), 0, atol=1e-9)
    assert np.abs(convolve_features(centred, series)).max() > 0.1


def test_the_mean_response_is_not_predicted(rng):
    """Voxels that answer to all stimuli alike are left with noise."""
    trials, runs = simulate_trials(rng, film=False), simulate_runs(rng)
    for index, run in enumerate(runs):
        own = trials.run == index
        x = convolve_events(trials.onset[own], trials.duration[own], run.frame_times, get_kernels("glover")[0])
        run.bold[:, 0] = 100 + x.sum(axis=1)
    Y = build_timeseries(runs, trials, STIMULI, HRF).Y
    assert np.abs(Y[:, 0]).max() < 1e-4
    assert Y[:, 1].std() > 0.5


@pytest.mark.parametrize("options", [HRF, FIR], ids=["hrf", "fir"])
def test_recovers_a_plant(rng, options):
    runs, trials = simulate_runs(rng, n_voxels=5), simulate_trials(rng, film=False)
    X, weights = rng.standard_normal((60, 3)), rng.standard_normal((3, 5))
    series = build_timeseries(runs, trials, STIMULI, options)
    responses = convolve_features(X, series)[:, :3] @ weights
    planted = [
        RunData(
            run.bold * 0 + 100 + responses[series.run == i] + 5 * run.nuisance[:, 1:2], run.frame_times, run.nuisance
        )
        for i, run in enumerate(runs)
    ]
    Y = build_timeseries(planted, trials, STIMULI, options).Y
    found = np.linalg.lstsq(convolve_features(X, series), Y, rcond=None)[0]
    np.testing.assert_allclose(found[:3], weights, atol=1e-3)
    np.testing.assert_allclose(found[3:], 0, atol=1e-3)


def test_noise_is_not_predicted(rng):
    runs, trials = simulate_runs(rng, n_voxels=400), simulate_trials(rng, film=False)
    runs = [RunData(100 + rng.standard_normal(run.bold.shape), run.frame_times, run.nuisance) for run in runs]
    series = build_timeseries(runs, trials, STIMULI, HRF)
    X = convolve_features(rng.standard_normal((60, 5)), series)
    train, test = series.run == 0, series.run == 1
    predicted = X[test] @ np.linalg.lstsq(X[train], series.Y[train], rcond=None)[0]
    r = [np.corrcoef(a, b)[0, 1] for a, b in zip(predicted.T, series.Y[test].T, strict=True)]
    assert abs(np.mean(r)) < 4.5 * np.std(r) / np.sqrt(400)


def test_a_film_is_averaged_over_each_volume(rng):
    """Five frames a volume, of which the delay of 0 sees the mean."""
    frame_times = TR * np.arange(40)
    onset = TR / 5 * np.arange(200)
    names = [f"f{i}" for i in range(200)]
    trials = Trials(onset, np.full(200, TR / 5), np.array(names), np.zeros(200, dtype=int), ("run-1",))
    run = RunData(rng.standard_normal((40, 2)), frame_times, np.ones((40, 1)))
    designs = [design.toarray() for design in build_timeseries([run], trials, names, FIR).designs]
    assert len(designs) == 4
    np.testing.assert_allclose(designs[0], np.kron(np.eye(40), np.full((1, 5), 1 / 5)), atol=1.01 / 50)  # one sample
    np.testing.assert_allclose(designs[0].sum(axis=1)[1:-1], 1, atol=1.01 / 50)
    np.testing.assert_allclose(designs[2], np.vstack([np.zeros((2, 200)), designs[0][:-2]]), atol=1e-9)


def test_designs_are_sparse(rng):
    series = build_timeseries(simulate_runs(rng), simulate_trials(rng, film=True), STIMULI, FIR)
    assert all(design.nnz < 0.05 * np.prod(design.shape) for design in series.designs)


def test_stimuli_without_features_are_left_out(rng):
    runs, trials = simulate_runs(rng), simulate_trials(rng, film=True)
    series = build_timeseries(runs, trials, STIMULI[5:30][::-1], HRF)
    whole = build_timeseries(runs, trials, STIMULI, HRF)
    np.testing.assert_allclose(series.designs[0].toarray(), whole.designs[0].toarray()[:, 5:30][:, ::-1])
    with pytest.raises(BadDataError, match="no stimulus that has features is shown"):
        build_timeseries(runs, trials, ["another"], HRF)


def test_voxels_without_signal_are_nan(rng):
    runs, trials = simulate_runs(rng), simulate_trials(rng, film=True)
    runs[1].bold[:, 3] = 4.0
    Y = build_timeseries(runs, trials, STIMULI, HRF).Y
    assert np.flatnonzero(np.isnan(Y).any(axis=0)).tolist() == [3]
    assert np.isnan(Y[:, 3]).all()


def test_one_run_in_memory(rng):
    runs, seen = simulate_runs(rng), []

    def read_runs():
        for run in runs:
            assert not any(reference() is not None for reference in seen), "an earlier run is still held"
            bold = run.bold.copy()
            seen.append(weakref.ref(bold))
            yield RunData(bold, run.frame_times, run.nuisance)
            del bold

    build_timeseries(read_runs(), simulate_trials(rng, film=True), STIMULI, HRF)
    assert len(seen) == 2


def test_wrong_inputs(rng):
    runs, trials = simulate_runs(rng), simulate_trials(rng, film=True)
    with pytest.raises(UsageError, match=r"timeseries takes no responses.hrf = spm \+ derivative; it takes .*fir"):
        build_timeseries(runs, trials, STIMULI, ResponseOptions(model="timeseries", hrf="spm + derivative"))
    with pytest.raises(BadDataError, match="trials of 2 runs, but data of 1 only"):
        build_timeseries(runs[:1], trials, STIMULI, HRF)
