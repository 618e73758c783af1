"""GLMsingle's steps: planted HRFs and noise are found, responses are more reliable for it, and noise stays noise."""

import logging
import weakref
from dataclasses import replace

import numpy as np
import pytest
from scipy.linalg import block_diag
from scipy.signal import lfilter

from dnnbrain_app.errors import BadDataError
from dnnbrain_app.records import Trials
from dnnbrain_app.responses.design import convolve_events
from dnnbrain_app.responses.glm import average_repeats, estimate_betas
from dnnbrain_app.responses.glmsingle import FRACTIONS, estimate_glmsingle
from dnnbrain_app.responses.hrf_choice import choose_hrfs
from dnnbrain_app.responses.hrfs import PEAKS, build_library
from dnnbrain_app.responses.nuisance import build_nuisance
from dnnbrain_app.responses.options import ResponseOptions
from dnnbrain_app.responses.reliability import correlate_halves
from dnnbrain_app.responses.runs import RunData

TR, N_FRAMES, N_STIMULI, N_RUNS = 2.0, 110, 40, 4
FRAME_TIMES = 0.9 + TR * np.arange(N_FRAMES)
NUISANCE = build_nuisance({}, FRAME_TIMES, ResponseOptions(motion=0))[0]
OPTIONS = ResponseOptions(model="glmsingle", motion=0)
PLAIN = replace(OPTIONS, noise_model="ols", scaling="none")
N_ACTIVE, N_VOXELS = 120, 600


def simulate_trials(rng, n_runs=N_RUNS):
    """Every stimulus once a run, some 4.5 s apart."""
    onset = np.concatenate([5 + 4.6 * np.arange(N_STIMULI) + rng.uniform(0, 2, N_STIMULI) for _ in range(n_runs)])
    stimulus = np.concatenate([rng.permutation(N_STIMULI) for _ in range(n_runs)]).astype(str)
    run = np.repeat(np.arange(n_runs), N_STIMULI)
    return Trials(onset, np.ones(len(onset)), stimulus, run, tuple(f"task-objects_run-{i + 1}" for i in range(n_runs)))


def simulate(rng, shapes, *, amplitude=1.0, shared=0.0, n_runs=N_RUNS, mean=1.0):
    """Responses of the first voxels, each with the library's response of its number; AR noise in all, some shared."""
    trials = simulate_trials(rng, n_runs)
    library = build_library("glover")
    patterns = amplitude * (mean + rng.standard_normal((N_STIMULI, len(shapes))))
    sources = rng.standard_normal((3, N_VOXELS))
    runs = []
    for index in range(n_runs):
        own = trials.take(trials.run == index)
        noise = lfilter([0.92], [1, -0.4], rng.standard_normal((N_FRAMES, N_VOXELS)), axis=0)
        noise += shared * lfilter([1], [1, -0.5], rng.standard_normal((N_FRAMES, 3)), axis=0) @ sources
        for number in np.unique(shapes):
            X = convolve_events(own.onset, own.duration, FRAME_TIMES, library[number])
            voxels = np.flatnonzero(shapes == number)
            noise[:, voxels] += 4 * X @ patterns[own.stimulus.astype(int)][:, voxels]
        runs.append(RunData((100 + noise).astype(np.float32), FRAME_TIMES, NUISANCE))
    return runs, trials, patterns


def score(betas, kept, patterns):
    """Mean split-half reliability of active and of other voxels, mean correlation with the plant."""
    halves = correlate_halves(betas, kept.stimulus, kept.run, np.random.default_rng(1), n_splits=10)
    found = average_repeats(betas, kept, [str(i) for i in range(N_STIMULI)])[:, :N_ACTIVE]
    r = [np.corrcoef(a, b)[0, 1] for a, b in zip(found.T, patterns.T, strict=True)]
    return np.mean(halves[:N_ACTIVE]), np.mean(halves[N_ACTIVE:]), np.mean(r)


VARIED = np.arange(N_ACTIVE) % (len(PEAKS) + 1)
ALIKE = np.zeros(N_ACTIVE, dtype=int)


@pytest.mark.parametrize("mean", [0.0, 1.0])
def test_planted_hrfs_are_found(rng, mean):
    runs, trials, _ = simulate(rng, VARIED, amplitude=3, mean=mean)
    choice = choose_hrfs(runs, trials, OPTIONS)
    found, planted = (np.append(5.0, PEAKS)[numbers] for numbers in (choice.hrf[:N_ACTIVE], VARIED))
    assert np.abs(found - planted).mean() < 0.3
    assert choice.rho == pytest.approx([0.4] * N_RUNS, abs=0.1)
    if mean:
        assert choice.fit[:N_ACTIVE].mean() > 5 * choice.fit[N_ACTIVE:].mean()


def test_beats_lss_where_hrfs_vary_and_noise_is_shared(rng):
    runs, trials, patterns = simulate(rng, VARIED, shared=0.5)
    lss, ours = (
        score(*estimate_betas(runs, trials, replace(OPTIONS, model=model)), patterns) for model in ("lss", "glmsingle")
    )
    assert ours[0] > lss[0] + 0.05
    assert ours[2] > lss[2] + 0.03


def test_as_good_as_lss_where_nothing_is_to_be_gained(rng):
    runs, trials, patterns = simulate(rng, ALIKE)
    lss, ours = (
        score(*estimate_betas(runs, trials, replace(OPTIONS, model=model)), patterns) for model in ("lss", "glmsingle")
    )
    assert ours[0] > lss[0] - 0.02
    assert ours[2] > lss[2] - 0.02


@pytest.mark.parametrize("shared", [0.0, 0.5])
def test_finds_nothing_in_noise(rng, shared):
    runs, trials, patterns = simulate(rng, ALIKE, amplitude=0.0, shared=shared)
    fit = estimate_glmsingle(runs, trials, OPTIONS)
    patterns = rng.standard_normal(patterns.shape)
    active, other, r = score(fit.betas, trials, patterns)
    assert max(map(abs, (active, other, r))) < 0.06
    assert np.median(fit.fraction) <= 0.1, "noise is shrunk as far as can be"
    deviation = fit.betas.mean(axis=1) / (fit.betas.std(axis=1) / np.sqrt(N_VOXELS))
    if not shared:
        assert np.abs(deviation).max() < 5


@pytest.mark.parametrize(("shared", "expected"), [(0.0, (0, 0)), (0.6, (3, 4))])
def test_shared_noise_is_found(rng, shared, expected):
    runs, trials, _ = simulate(rng, VARIED, amplitude=2, shared=shared)
    fit = estimate_glmsingle(runs, trials, OPTIONS)
    assert expected[0] <= fit.n_components <= expected[1]


def test_strong_responses_are_shrunk_less(rng):
    medians = [
        np.median(estimate_glmsingle(*simulate(rng, ALIKE, amplitude=a)[:2], OPTIONS).fraction[:N_ACTIVE])
        for a in (0.3, 1.0, 10.0)
    ]
    assert medians == sorted(medians)
    assert medians[0] < 0.4
    assert medians[-1] > 0.8


def test_recovers_a_plant_without_noise(rng):
    runs, trials, patterns = simulate(rng, VARIED, amplitude=200)
    betas, kept = estimate_betas(runs, trials, PLAIN)
    expected = 4 * patterns[trials.stimulus.astype(int)]
    assert len(kept) == len(trials)
    assert np.square(betas[:, :N_ACTIVE] - expected).mean() < 0.01 * expected.var()


def test_betas_are_those_of_explicit_models(rng):
    """Given what was chosen, a voxel's betas are those of one big model of all runs, made of textbook parts."""
    runs, trials, _ = simulate(rng, VARIED, shared=0.5)
    fit = estimate_glmsingle(runs, trials, PLAIN)
    assert fit.n_components > 0
    pool = np.sort(np.argsort(choose_hrfs(runs, trials, PLAIN).fit)[: N_VOXELS // 2])
    library = build_library("glover")
    nuisances, data = [], []
    for run in runs:
        residuals = run.bold - NUISANCE @ np.linalg.lstsq(NUISANCE, run.bold.astype(float), rcond=None)[0]
        Y = residuals[:, pool] / np.linalg.norm(residuals[:, pool], axis=0)
        nuisances.append(np.hstack([NUISANCE, np.linalg.svd(Y)[0][:, : fit.n_components]]))
        data.append(run.bold.astype(float))
    Y, N = np.concatenate(data), block_diag(*nuisances)
    for v in range(0, N_VOXELS, 97):
        designs = [
            convolve_events(trials.onset[rows], trials.duration[rows], FRAME_TIMES, library[fit.hrf[v]])
            for rows in np.split(np.arange(len(trials)), N_RUNS)
        ]
        X = block_diag(*designs)
        X, y = (A - N @ np.linalg.lstsq(N, A, rcond=None)[0] for A in (X, Y[:, v]))
        ordinary = np.linalg.lstsq(X, y, rcond=None)[0]
        low, high = 1e-9, 1e9
        for _ in range(100):
            alpha = np.sqrt(low * high)
            ridge = np.linalg.solve(X.T @ X + alpha * np.eye(len(trials)), X.T @ y)
            longer = np.linalg.norm(ridge) > fit.fraction[v] * np.linalg.norm(ordinary)
            low, high = (alpha, high) if longer else (low, alpha)
        slope, shift = np.polyfit(ridge, ordinary, 1)
        assert np.abs(fit.betas[:, v] - slope * ridge - shift).max() < 0.005 * ordinary.std()


@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_data_without_any_noise(rng, spread):
    trials = simulate_trials(rng)
    patterns = 1 + spread * rng.standard_normal((N_STIMULI, N_VOXELS))
    bolds = []
    for index in range(N_RUNS):
        own = trials.take(trials.run == index)
        X = convolve_events(own.onset, own.duration, FRAME_TIMES, build_library("glover")[4])
        bolds.append(100 + X @ patterns[own.stimulus.astype(int)])
    fit = estimate_glmsingle([RunData(b, FRAME_TIMES, NUISANCE) for b in bolds], trials, PLAIN)
    assert (fit.hrf == 4).all()
    assert np.isfinite(fit.betas).all()
    if spread:  # else no regularisation is worse than another
        np.testing.assert_allclose(fit.betas, patterns[trials.stimulus.astype(int)], atol=2e-3)


def test_slow_noise_drops_no_trials(rng, caplog):
    trials = simulate_trials(rng)
    noise = [lfilter([1], [1, -0.97], rng.standard_normal((N_FRAMES, 200)), axis=0) for _ in range(N_RUNS)]
    runs = [RunData(100 + e, FRAME_TIMES, np.ones((N_FRAMES, 1))) for e in noise]
    choice = choose_hrfs(runs, trials, OPTIONS)
    assert min(choice.rho) > 0.8
    assert len(choice.rows) == len(trials)
    assert not caplog.text


def test_without_repeats_betas_are_lss_with_own_hrfs(rng, caplog):
    runs, trials, _ = simulate(rng, ALIKE, n_runs=2)
    once = Trials(trials.onset, trials.duration, np.arange(len(trials)).astype(str), trials.run, trials.run_labels)
    fit = estimate_glmsingle(runs, once, PLAIN)
    assert "no stimulus is shown in two runs" in caplog.text
    assert fit.n_components == 0
    assert np.isnan(fit.fraction).all()
    lss, _ = estimate_betas(runs, once, replace(PLAIN, model="lss"))
    same = fit.hrf == 0
    assert 10 < same.sum() < N_VOXELS
    np.testing.assert_allclose(fit.betas[:, same], lss[:, same], atol=1e-4 * lss.std())
    assert np.abs(fit.betas[:, ~same] - lss[:, ~same]).max() > 0.1 * lss.std()


def test_one_repeated_stimulus_is_enough(rng):
    runs, trials, _ = simulate(rng, ALIKE, n_runs=2)
    names = np.where(trials.stimulus == "7", "7", np.arange(len(trials)).astype(str) + "x")
    few = Trials(trials.onset, trials.duration, names, trials.run, trials.run_labels)
    assert set(estimate_glmsingle(runs, few, OPTIONS).fraction) <= set(FRACTIONS)


def test_lost_trials_and_voxels(rng, caplog):
    runs, trials, _ = simulate(rng, ALIKE)
    onset = trials.onset.copy()
    onset[[3, 50]] = 500.0
    trials = Trials(onset, trials.duration, trials.stimulus, trials.run, trials.run_labels)
    runs[0].bold[:, 5] = 7.0
    runs[1].bold[4, 6] = np.nan
    order = rng.permutation(len(trials))
    betas, kept = estimate_betas(runs, trials, OPTIONS)
    shuffled, kept_shuffled = estimate_betas(runs, trials.take(order), OPTIONS)
    assert len(kept) == len(trials) - 2
    assert "at 500 s" in caplog.text
    assert np.flatnonzero(np.isnan(betas).any(axis=0)).tolist() == [5, 6]
    assert np.isnan(betas[:, [5, 6]]).all()
    place = np.argsort(np.argsort(order[np.isin(order, [3, 50], invert=True)]))
    np.testing.assert_array_equal(kept.onset[place], kept_shuffled.onset)
    np.testing.assert_allclose(betas[place], shuffled, atol=1e-3)


def test_a_run_without_trials(rng):
    runs, trials, _ = simulate(rng, ALIKE)
    fewer = trials.take(trials.run != 1)
    fit = estimate_glmsingle(runs, fewer, OPTIONS)
    assert fit.betas.shape == (3 * N_STIMULI, N_VOXELS)
    assert np.isfinite(fit.betas).all()


def test_few_degrees_of_freedom_leave_room_for_few_noise_regressors(rng):
    runs, trials, _ = simulate(rng, ALIKE, shared=2.0)
    many = rng.standard_normal((N_FRAMES, N_FRAMES - NUISANCE.shape[1] - N_STIMULI - 5))
    crowded = [replace(run, nuisance=np.hstack([NUISANCE, many])) for run in runs]
    assert 1 <= estimate_glmsingle(crowded, trials, OPTIONS).n_components <= 2


def test_generators_are_told(rng):
    runs, trials, _ = simulate(rng, ALIKE)
    with pytest.raises(BadDataError, match="trials of 4 runs, but data of 0 only"):
        estimate_glmsingle(iter(runs), trials, OPTIONS)


def test_trials_at_one_time_cannot_be_told_apart(rng):
    runs, trials, _ = simulate(rng, ALIKE)
    onset = trials.onset.copy()
    onset[1] = onset[0]
    with pytest.raises(BadDataError, match=r"run-1 cannot be told apart"):
        estimate_glmsingle(runs, Trials(onset, *(getattr(trials, n) for n in trials.__slots__[1:])), OPTIONS)


def test_one_run_in_memory(rng):
    runs, trials, _ = simulate(rng, ALIKE)
    seen = []

    class Reader:
        def __iter__(self):
            for run in runs:
                assert not any(reference() is not None for reference in seen), "an earlier run is still held"
                bold = run.bold[:, :200].copy()
                seen.append(weakref.ref(bold))
                yield RunData(bold, run.frame_times, run.nuisance)
                del bold

    estimate_glmsingle(Reader(), trials, OPTIONS)
    assert len(seen) == 3 * N_RUNS


def test_what_was_chosen_is_logged(rng, caplog):
    runs, trials, _ = simulate(rng, ALIKE)
    with caplog.at_level(logging.INFO):
        estimate_glmsingle(runs, trials, OPTIONS)
    assert "0 noise regressors (of at most 10)" in caplog.text
