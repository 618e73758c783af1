import tracemalloc

import numpy as np
import pytest
from rsatoolbox.data import Dataset
from rsatoolbox.rdm import calc_rdm
from scipy.spatial.distance import pdist

from dnnbrain_app.analyses import crossnobis
from dnnbrain_app.analyses.comparisons import COMPARISONS
from dnnbrain_app.analyses.crossnobis import can_cross, compute_crossnobis, compute_mahalanobis
from dnnbrain_app.analyses.rsa import compare_rdms
from dnnbrain_app.analyses.whitening import contrast_trials, estimate_noise
from dnnbrain_app.errors import BadDataError
from dnnbrain_app.records import Rdm


def _simulate(rng, n_items=12, n_runs=3, n_voxels=30, n_repeats=1, signal=0.0):
    """Trials in a random order, noise that neighbours share, a mean pattern, and signal of some strength."""
    stimulus = np.tile(np.repeat(np.arange(n_items), n_repeats), n_runs)
    run = np.repeat(np.arange(n_runs), n_items * n_repeats)
    shared = rng.standard_normal((len(stimulus), n_voxels + 1))
    patterns = signal * rng.standard_normal((n_items, n_voxels)) + 3 * rng.standard_normal(n_voxels)
    Y = patterns[stimulus] + shared[:, 1:] + shared[:, :-1]
    order = rng.permutation(len(Y))
    return Y[order] * rng.uniform(0.5, 2, n_voxels), stimulus[order], run[order], patterns


def _names(n):
    return tuple(f"image{i}" for i in range(n))


def _invert(noise):
    """The precision of the noise written out."""
    S = (noise.axes * noise.energy) @ noise.axes.T / noise.dof
    correlation = (1 - noise.shrinkage) * S + noise.shrinkage * np.eye(len(S))
    return np.linalg.inv(correlation * np.outer(noise.sd, noise.sd))


@pytest.mark.parametrize(("n_voxels", "n_repeats"), [(30, 1), (8, 2)])
def test_agrees_with_rsatoolbox_given_the_noise(rng, monkeypatch, n_voxels, n_repeats):
    monkeypatch.setattr(crossnobis, "_correct_noise", lambda *_: 0)
    Y, stimulus, run, _ = _simulate(rng, n_voxels=n_voxels, n_repeats=n_repeats, signal=0.5)
    order = np.argsort(stimulus, kind="stable")
    precision = _invert(estimate_noise(contrast_trials(Y[order], stimulus[order])))
    data = Dataset(Y, obs_descriptors={"item": [f"{i:02}" for i in stimulus], "run": [f"run-{k}" for k in run]})
    theirs = calc_rdm(data, "crossnobis", descriptor="item", cv_descriptor="run", noise=precision)
    ours = compute_crossnobis(Y, stimulus, run, _names(12), "IT")
    np.testing.assert_allclose(ours.dissimilarities, theirs.dissimilarities[0], atol=1e-9)
    assert ours.metric == "crossnobis"
    theirs = calc_rdm(data, "mahalanobis", descriptor="item", noise=precision)
    ours = compute_mahalanobis(Y, stimulus, _names(12), "IT")
    np.testing.assert_allclose(ours.dissimilarities, theirs.dissimilarities[0], atol=1e-9)
    assert ours.metric == "mahalanobis"


def test_a_stimulus_is_corrected_with_the_noise_of_the_others(rng, monkeypatch):
    Y, stimulus, run, _ = _simulate(rng, n_repeats=2, signal=0.5)
    order = np.argsort(stimulus, kind="stable")
    corrected = compute_crossnobis(Y, stimulus, run, _names(12), "IT").dissimilarities
    monkeypatch.setattr(crossnobis, "_correct_noise", lambda *_: 0)
    naive = compute_crossnobis(Y, stimulus, run, _names(12), "IT").dissimilarities
    residuals = contrast_trials(Y[order], stimulus[order])
    noise = estimate_noise(residuals)
    change = np.empty(12)
    for i in range(12):
        others = np.delete(residuals, np.arange(5) + 5 * i, axis=0) / noise.sd
        covariance = (1 - noise.shrinkage) * others.T @ others / len(others) + noise.shrinkage * np.eye(30)
        without = np.linalg.inv(covariance * np.outer(noise.sd, noise.sd))
        means = np.array([Y[(stimulus == i) & (run == k)].mean(axis=0) for k in range(3)])
        delta = means - means.mean(axis=0)
        change[i] = np.trace(delta @ (_invert(noise) - without) @ delta.T) / 6
    rows, columns = np.triu_indices(12, 1)
    np.testing.assert_allclose(corrected - naive, (change[rows] + change[columns]) / 30, atol=1e-9)


@pytest.mark.parametrize("unequal", [False, True])
def test_noise_has_no_distances(rng, monkeypatch, unequal):
    """As it would have, by several standard deviations, without the correction."""
    means, naive = [], []
    for _ in range(40):
        Y, stimulus, run, _ = _simulate(rng, 40, 4, 80)
        if unequal:  # each stimulus in two or three of the runs
            keep = (run != stimulus % 4) & ~((stimulus % 3 == 0) & (run == (stimulus + 1) % 4))
            Y, stimulus, run = Y[keep], stimulus[keep], run[keep]
        distances = compute_crossnobis(Y, stimulus, run, _names(40), "IT").dissimilarities
        means.append(distances.mean() / distances.std())
        with monkeypatch.context() as patch:
            patch.setattr(crossnobis, "_correct_noise", lambda *_: 0)
            naive.append(compute_crossnobis(Y, stimulus, run, _names(40), "IT").dissimilarities.mean())
    assert abs(np.mean(means)) < 0.1 + 3 * np.std(means) / np.sqrt(40)
    assert np.mean(naive) / distances.std() > 1


def test_recovers_distances_that_do_not_grow_with_noise(rng):
    """As Mahalanobis distances do."""
    Y, stimulus, run, patterns = _simulate(rng, 30, 8, 60, signal=0.5)
    means = []
    for runs in (2, 8):
        few = run < runs
        rdm = compute_crossnobis(Y[few], stimulus[few], run[few], _names(30), "IT")
        biased = compute_mahalanobis(Y[few], stimulus[few], _names(30), "IT")
        means.append((rdm.dissimilarities.mean(), biased.dissimilarities.mean()))
    assert means[0][0] == pytest.approx(means[1][0], rel=0.25)
    assert means[0][1] > 1.5 * means[1][1]
    truth = Rdm("truth", pdist(patterns, "sqeuclidean"), _names(30))
    assert compare_rdms(rdm, truth, "whitened-pearson") > 0.5


@pytest.mark.parametrize("comparison", ["whitened-cosine", "cosine", "cka"])
def test_the_cosine_of_noise_is_zero(rng, comparison):
    model = Rdm("model", pdist(rng.standard_normal((30, 9)), "sqeuclidean"), _names(30))
    scores = [
        compare_rdms(compute_crossnobis(*_simulate(rng, 30, 4, 50)[:3], _names(30), "IT"), model, comparison)
        for _ in range(40)
    ]
    assert comparison in COMPARISONS
    assert abs(np.mean(scores)) < 0.02 + 3 * np.std(scores) / np.sqrt(40)


def test_nothing_of_voxels_by_voxels_is_made(rng):
    Y, stimulus, run = rng.standard_normal((36, 20_000)), np.tile(np.arange(12), 3), np.repeat(np.arange(3), 12)
    tracemalloc.start()
    compute_crossnobis(Y, stimulus, run, _names(12), "brain")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 * Y.nbytes < 20_000**2


def test_voxels_without_signal_are_left_out(rng):
    Y, stimulus, run, _ = _simulate(rng, signal=1)
    holes = np.insert(Y, [3, 9], 0.0, axis=1)
    holes[:, 3] = 7
    holes[4, 10] = np.nan
    for a, b in (
        (
            compute_crossnobis(Y, stimulus, run, _names(12), "IT"),
            compute_crossnobis(holes, stimulus, run, _names(12), "IT"),
        ),
        (compute_mahalanobis(Y, stimulus, _names(12), "IT"), compute_mahalanobis(holes, stimulus, _names(12), "IT")),
    ):
        np.testing.assert_allclose(a.dissimilarities, b.dissimilarities, atol=1e-9)


def test_inputs_that_cannot_be(rng):
    Y, stimulus, run, _ = _simulate(rng)
    once = np.where(stimulus == 4, 0, run)
    assert can_cross(stimulus, run, 12)
    assert not can_cross(stimulus, once, 12)
    with pytest.raises(BadDataError, match=r"image4 is in 1 \(1 of 12 stimuli.*take the metric correlation"):
        compute_crossnobis(Y, stimulus, once, _names(12), "IT")
    with pytest.raises(BadDataError, match="region IT: no trial shows image12"):
        compute_mahalanobis(Y, stimulus, _names(13), "IT")
    with pytest.raises(BadDataError, match=r"region IT: 0 voxel\(s\) with signal"):
        compute_mahalanobis(Y * np.nan, stimulus, _names(12), "IT")
    with pytest.raises(BadDataError, match=r"region IT: 0 voxel\(s\) with signal"):
        compute_mahalanobis(Y[:12], np.arange(12), _names(12), "IT")
