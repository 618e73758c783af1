"""The autocorrelation of noise: found where it was planted, and filtered as nilearn filters."""

import numpy as np
import pytest
from nilearn.glm.first_level import run_glm
from nilearn.glm.regression import ARModel
from scipy.signal import lfilter

from dnnbrain_app.responses.noise import (
    BLOCK,
    NormalEquations,
    bin_voxels,
    estimate_autocorrelation,
    whiten,
    whiten_weights,
)

T = 150


def simulate_noise(rng, n_voxels, ar, n_frames=T):
    return lfilter([1.0], [1.0, -ar], rng.standard_normal((n_frames, n_voxels)), axis=0)


@pytest.mark.parametrize("ar", [-0.4, 0.0, 0.35, 0.8])
def test_autocorrelation_is_recovered(rng, ar):
    noise = simulate_noise(rng, 50, ar, n_frames=5000)
    assert estimate_autocorrelation(noise - noise.mean(axis=0)).mean() == pytest.approx(ar, abs=0.01)


def test_autocorrelation_is_nilearns(rng):
    residuals = simulate_noise(rng, 40, 0.4)
    residuals -= residuals.mean(axis=0)
    rho = np.concatenate(
        [np.full(len(np.concatenate(b)), r) for r, b in bin_voxels(estimate_autocorrelation(residuals))]
    )
    labels, _ = run_glm(residuals, np.ones((T, 1)), noise_model="ar1")
    np.testing.assert_array_equal(rho, np.sort(labels.astype(float)))


def test_no_residuals_have_no_autocorrelation():
    residuals = np.zeros((T, 2))
    residuals[3, 1] = np.nan
    np.testing.assert_array_equal(estimate_autocorrelation(residuals), [0, np.nan])


def test_filter_is_nilearns(rng):
    X = rng.standard_normal((T, 4)).astype(np.float32)
    before = X.copy()
    np.testing.assert_allclose(whiten(X, 0.37), ARModel(np.ones((T, 1)), 0.37).whiten(X), rtol=1e-12)
    np.testing.assert_array_equal(X, before)
    weights = rng.standard_normal((3, T))
    np.testing.assert_allclose(whiten_weights(weights, 0.37) @ X, weights @ whiten(X, 0.37), rtol=1e-10)


def test_bins_hold_each_voxel_once(rng):
    rho = np.append(rng.normal(0.2, 0.15, 3 * BLOCK), [np.nan, 0.3, 0.309999])
    rho[: BLOCK + 1] = -0.2
    bins = dict(bin_voxels(rho))
    assert list(bins) == sorted(bins)
    assert max(len(block) for blocks in bins.values() for block in blocks) == BLOCK
    voxels = np.concatenate([block for blocks in bins.values() for block in blocks])
    np.testing.assert_array_equal(np.sort(voxels), np.arange(len(rho)))
    for value, blocks in bins.items():
        below = np.nan_to_num(rho[np.concatenate(blocks)]).clip(0) - value
        assert (below >= 0).all()
        assert (below < 0.01 + 1e-12).all()


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_equations_of_runs_are_those_of_one_whole_model(rng, value):
    equations = NormalEquations(5, 7, lagged=True)
    designs, series = [], []
    for n_frames, n_nuisance in ((80, 3), (60, 9)):
        Q = np.linalg.qr(rng.standard_normal((n_frames, n_nuisance)))[0]
        X, Y = (A - Q @ (Q.T @ A) for A in (rng.standard_normal((n_frames, k)).cumsum(axis=0) for k in (5, 7)))
        equations.add(X, Q, [(slice(0, 4), Y[:, :4]), (slice(4, 7), Y[:, 4:])])
        nuisance = np.zeros((n_frames, 12))
        nuisance[:, (slice(0, 3) if n_nuisance == 3 else slice(3, 12))] = Q
        designs.append(whiten(np.hstack([X, nuisance]), value))
        series.append(whiten(Y, value))
    expected = np.linalg.lstsq(np.concatenate(designs), np.concatenate(series), rcond=None)[0][:5]
    betas = equations.solve(np.full(7, value))
    assert betas.dtype == np.float32
    assert np.abs(betas - expected).max() < 1e-4 * expected.std()


def test_a_design_that_explains_everything_leaves_no_autocorrelation(rng):
    equations = NormalEquations(2, 3, lagged=True)
    Q = np.full((T, 1), T**-0.5)
    X = rng.standard_normal((T, 2))
    X -= X.mean(axis=0)
    equations.add(X, Q, [(slice(None), X @ rng.standard_normal((2, 3)))])
    np.testing.assert_array_equal(equations.estimate_autocorrelation(), 0)
