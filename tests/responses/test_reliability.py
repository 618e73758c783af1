"""Noise ceilings: planted ones are recovered without bias, noise has none, and the definitions of others agree."""

import numpy as np
import pytest

from dnnbrain_app.errors import BadDataError
from dnnbrain_app.responses.reliability import compare_participants, correlate_halves, estimate_noise_ceiling


def simulate(rng, counts, n_voxels, ncsnr, offset=0.0):
    """Trials of stimuli shown `counts` times, the i-th time in run i; noise of variance 1."""
    stimulus = np.repeat(np.arange(len(counts)), counts)
    run = np.concatenate([np.arange(n) for n in counts])
    betas = 3 + ncsnr * rng.standard_normal((len(counts), n_voxels))[stimulus]
    betas += rng.standard_normal(betas.shape) + offset * rng.standard_normal((run.max() + 1, n_voxels))[run]
    order = rng.permutation(len(stimulus))
    return betas[order], stimulus[order].astype(str), run[order]


COUNTS = {"equal": np.full(30, 4), "unequal": np.tile([1, 2, 3, 5], 9), "pairs": np.full(40, 2)}


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize("ncsnr", [0.0, 0.3, 1.0])
def test_planted_variances_are_recovered_without_bias(rng, counts, ncsnr):
    ceiling = estimate_noise_ceiling(*simulate(rng, counts, 5000, ncsnr))
    for found, planted in ((ceiling.signal_variance, ncsnr**2), (ceiling.noise_variance, 1.0)):
        assert abs(found.mean() - planted) < 4.5 * found.std() / np.sqrt(5000)
    assert ceiling.noise_share == pytest.approx(np.mean(1 / counts))
    if ncsnr:
        assert np.median(ceiling.ncsnr) == pytest.approx(ncsnr, rel=0.06)
        planted = ncsnr**2 / (ncsnr**2 + np.mean(1 / counts))
        assert np.median(ceiling.ceiling) == pytest.approx(planted, rel=0.1)
    else:
        assert (ceiling.ncsnr == 0).mean() > 0.4
        assert (ceiling.ceiling == 0).mean() > 0.4


def test_ceiling_is_what_a_perfect_model_reaches(rng):
    counts = COUNTS["unequal"]
    stimulus = np.repeat(np.arange(36), counts)
    signal = 0.7 * rng.standard_normal((36, 20_000))
    betas = signal[stimulus] + rng.standard_normal((len(stimulus), 20_000))
    averages = np.array([betas[stimulus == s].mean(axis=0) for s in range(36)])
    reached = np.mean((signal - signal.mean(axis=0)) * (averages - averages.mean(axis=0)), axis=0)
    reached = reached.mean() ** 2 / (signal.var(axis=0).mean() * averages.var(axis=0).mean())
    ceiling = estimate_noise_ceiling(betas, stimulus, np.zeros(len(stimulus), dtype=int))
    signal_variance, noise_variance = ceiling.signal_variance.mean(), ceiling.noise_variance.mean()
    expected = signal_variance / (signal_variance + noise_variance * ceiling.noise_share)
    assert reached == pytest.approx(expected, abs=0.01)
    assert np.median(ceiling.ceiling) == pytest.approx(expected, abs=0.02)


def test_equals_the_definition_of_nsd(rng):
    betas, stimulus, run = simulate(rng, np.full(200, 3), 300, 0.8)
    names, inverse = np.unique(stimulus, return_inverse=True)
    z = (betas - betas.mean(axis=0)) / betas.std(axis=0, ddof=1)
    trials = np.array([z[inverse == i] for i in range(len(names))])
    noise = np.sqrt(trials.var(axis=1, ddof=1).mean(axis=0))
    ncsnr = np.sqrt(np.maximum(0, 1 - noise**2)) / noise
    # without runs: there an offset of a run is noise
    ceiling = estimate_noise_ceiling(betas, stimulus, np.zeros_like(run))
    np.testing.assert_allclose(ceiling.ncsnr, ncsnr, rtol=0.01)
    np.testing.assert_allclose(ceiling.ceiling, ncsnr**2 / (ncsnr**2 + 1 / 3), rtol=0.01)


def test_variances_are_those_of_an_analysis_of_variance(rng):
    stats = pytest.importorskip("scipy.stats")
    betas, stimulus, run = simulate(rng, COUNTS["unequal"], 6, 0.8)
    ceiling = estimate_noise_ceiling(betas, stimulus, run)
    counts = COUNTS["unequal"]
    n0 = (counts.sum() - np.square(counts).sum() / counts.sum()) / (len(counts) - 1)
    for v in range(6):
        F = stats.f_oneway(*(betas[stimulus == s, v] for s in np.unique(stimulus))).statistic
        assert ceiling.signal_variance[v] / ceiling.noise_variance[v] == pytest.approx((F - 1) / n0)


@pytest.mark.parametrize("offset", [0.0, 2.0])
def test_offsets_of_crossed_runs_are_not_noise(rng, offset):
    betas, stimulus, run = simulate(rng, COUNTS["equal"], 4000, 0.5, offset)
    ceiling = estimate_noise_ceiling(betas, stimulus, run)
    for found, planted in ((ceiling.signal_variance, 0.25), (ceiling.noise_variance, 1.0)):
        assert abs(found.mean() - planted) < 4.5 * found.std() / np.sqrt(4000)
    halves = correlate_halves(betas[:, :300], stimulus, run, rng, n_splits=20)
    assert halves.mean() == pytest.approx(0.5, abs=0.05)


def test_a_lost_trial_changes_little(rng):
    betas, stimulus, run = simulate(rng, np.full(60, 4), 2000, 0.5, offset=2.0)
    whole, fewer = (estimate_noise_ceiling(betas[k:], stimulus[k:], run[k:]) for k in (0, 1))
    assert fewer.noise_variance.mean() == pytest.approx(whole.noise_variance.mean(), rel=0.02)
    assert fewer.signal_variance.mean() == pytest.approx(whole.signal_variance.mean(), rel=0.05)


def test_reliability_is_bounded(rng):
    """Three stimuli whose halves disagree as far as can be."""
    betas = np.array([[1.0], [2.0], [3.0], [3.0], [2.0], [1.0]]) + np.array([0, 0, 0, 1e-3, 0, 0])[:, np.newaxis]
    halves = correlate_halves(betas, np.array([0, 1, 2, 0, 1, 2]), np.zeros(6, dtype=int), rng)
    assert -1 <= halves[0] < 1


def test_offsets_are_noise_where_runs_show_different_stimuli(rng):
    betas, stimulus, run = simulate(rng, COUNTS["unequal"], 2000, 0.5, offset=2.0)
    ceiling = estimate_noise_ceiling(betas, stimulus, run)
    assert ceiling.noise_variance.mean() > 3


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
def test_halves_agree_with_the_ceiling(rng, counts):
    betas, stimulus, run = simulate(rng, counts, 600, 1.0)
    halves = correlate_halves(betas, stimulus, run, rng, n_splits=30)
    repeated = np.isin(stimulus, np.flatnonzero(counts > 1).astype(str))
    ceiling = estimate_noise_ceiling(betas[repeated], stimulus[repeated], run[repeated])
    assert np.mean(halves) == pytest.approx(np.mean(ceiling.ceiling), abs=0.03)


def test_noise_has_no_reliability(rng):
    betas, stimulus, run = simulate(rng, np.full(60, 4), 2000, 0.0)
    halves = correlate_halves(betas, stimulus, run, rng, n_splits=20)
    assert abs(np.mean(halves)) < 4.5 * np.std(halves) / np.sqrt(2000)


def test_halves_of_two_trials_are_plain_spearman_brown(rng):
    first, second = rng.standard_normal((2, 50, 4)) + 0.5 * rng.standard_normal((50, 4))
    stimulus = np.tile(np.arange(50), 2)
    # equal variances: which trial comes in which half hardly matters over many splits
    halves = correlate_halves(np.concatenate([first, second]), stimulus, np.repeat([0, 1], 50), rng, n_splits=400)
    pooled = np.concatenate([first, second]), np.concatenate([second, first])
    r = np.array([np.corrcoef(a, b)[0, 1] for a, b in zip(pooled[0].T, pooled[1].T, strict=True)])
    np.testing.assert_allclose(halves, 2 * r / (1 + r), atol=0.06)


def test_the_seed_decides(rng):
    data = simulate(rng, COUNTS["equal"], 20, 0.5)
    one, same, other = (correlate_halves(*data, np.random.default_rng(s), n_splits=5) for s in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert (one != other).all()


def test_no_repeats_no_ceiling(rng):
    betas = rng.standard_normal((9, 4)).astype(np.float32)
    ceiling = estimate_noise_ceiling(betas, np.arange(9), np.zeros(9, dtype=int))
    for values in (ceiling.ncsnr, ceiling.ceiling, ceiling.signal_variance, ceiling.noise_variance):
        assert np.isnan(values).all()
    assert np.isnan(correlate_halves(betas, np.arange(9), np.zeros(9, dtype=int), rng)).all()
    two_repeated = np.array([0, 0, 1, 1, 2, 3, 4, 5, 6])
    assert np.isnan(correlate_halves(betas, two_repeated, np.zeros(9, dtype=int), rng)).all()
    assert np.isnan(estimate_noise_ceiling(betas, np.zeros(9), np.zeros(9, dtype=int)).ceiling).all()


def test_voxels_without_data_stay_so(rng):
    betas, stimulus, run = simulate(rng, COUNTS["equal"], 5, 0.5)
    betas[:, 1] = np.nan
    betas[:, 2] = 7.0
    for values in (
        estimate_noise_ceiling(betas, stimulus, run).ceiling,
        correlate_halves(betas, stimulus, run, rng, n_splits=3),
    ):
        assert np.isnan(values).tolist() == [False, True, True, False, False]


def test_participants_share_what_was_planted(rng):
    shared = rng.standard_normal((80, 500))
    responses = shared + rng.standard_normal((4, 80, 500))
    lower, upper = compare_participants(responses)
    # signal and noise of variance 1; the others' average has a third of the noise, that of all a quarter
    assert lower.mean() == pytest.approx(1 / np.sqrt(2 * 4 / 3), abs=0.01)
    assert upper.mean() == pytest.approx((1 + 1 / 4) / np.sqrt(2 * 5 / 4), abs=0.01)
    assert lower.shape == upper.shape == (4, 500)
    z = (responses - responses.mean(axis=1, keepdims=True)) / responses.std(axis=1, keepdims=True)
    assert lower[2, 7] == pytest.approx(np.corrcoef(z[2, :, 7], z[[0, 1, 3], :, 7].mean(axis=0))[0, 1])
    assert upper[2, 7] == pytest.approx(np.corrcoef(z[2, :, 7], z[:, :, 7].mean(axis=0))[0, 1])


def test_strangers_share_nothing(rng):
    lower, upper = compare_participants(rng.standard_normal((3, 100, 2000)))
    assert abs(lower.mean()) < 0.01
    assert upper.mean() > 0.5, "the upper bound knows the participant"


def test_participants_without_data_are_left_out(rng):
    responses = rng.standard_normal((3, 20, 4))
    responses[0, :, 1] = np.nan
    responses[:2, :, 2] = np.nan
    lower, upper = compare_participants(responses)
    assert np.isnan(lower).tolist() == [
        [False, True, True, False],
        [False, False, True, False],
        [False, False, True, False],
    ]
    expected, _ = compare_participants(responses[1:, :, 1:2])
    np.testing.assert_allclose(lower[1:, 1:2], expected)
    np.testing.assert_allclose(upper[2, 2], 1)


def test_too_few_to_compare(rng):
    with pytest.raises(BadDataError, match=r"1 participant\(s\) to 20 shared stimuli .* at least 2 and 3"):
        compare_participants(rng.standard_normal((1, 20, 4)))
    with pytest.raises(BadDataError, match="to 2 shared stimuli"):
        compare_participants(rng.standard_normal((3, 2, 4)))
