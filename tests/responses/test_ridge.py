"""Fractional ridge: solutions of the length that was asked for, and those of the authors' package."""

import numpy as np
import pytest

from dnnbrain_app.responses.ridge import decompose, find_penalties, shrink

FRACTIONS = np.arange(20, 0, -1) / 20


def simulate(rng, n_frames=120, n_trials=30, n_voxels=25, condition=100.0):
    U, _, Vt = np.linalg.svd(rng.standard_normal((n_frames, n_trials)), full_matrices=False)
    s = np.geomspace(1, 1 / condition, n_trials)
    X = U * s @ Vt
    y = X @ rng.standard_normal((n_trials, n_voxels)) + 0.1 * rng.standard_normal((n_frames, n_voxels))
    return X, y, s, U.T @ y, Vt


@pytest.mark.parametrize("condition", [1.5, 30.0, 3000.0])
def test_solutions_have_the_fraction_of_the_length(rng, condition):
    _, _, s, Z, _ = simulate(rng, condition=condition)
    penalties = find_penalties(s, Z, FRACTIONS)
    assert not penalties[0].any()
    lengths = np.array([np.linalg.norm(shrink(s, Z, alpha), axis=0) for alpha in penalties])
    np.testing.assert_allclose(lengths / lengths[0], np.repeat(FRACTIONS[:, np.newaxis], 25, axis=1), atol=5e-4)


def test_solutions_are_ridge_regressions(rng):
    X, y, s, Z, Vt = simulate(rng)
    alpha = rng.uniform(0, 0.5, 25)
    found = Vt.T @ shrink(s, Z, alpha)
    for v in range(25):
        expected = np.linalg.solve(X.T @ X + alpha[v] * np.eye(30), X.T @ y[:, v])
        np.testing.assert_allclose(found[:, v], expected, rtol=1e-8)


def test_agrees_with_fracridge(rng):
    fracridge = pytest.importorskip("fracridge")
    X, y, s, Z, Vt = simulate(rng)
    expected, alphas = fracridge.fracridge(X, y, fracs=FRACTIONS[::-1])
    penalties = find_penalties(s, Z, FRACTIONS)
    found = np.array([Vt.T @ shrink(s, Z, alpha) for alpha in penalties])[::-1].transpose(1, 0, 2)
    # theirs interpolates on a coarser grid
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()
    np.testing.assert_allclose(np.log(penalties[::-1][:-1]), np.log(alphas[:-1]), atol=0.1)


def test_data_without_numbers_stay_so(rng):
    _, _, s, Z, _ = simulate(rng)
    Z[:, 3] = np.nan
    Z[:, 4] = 0
    penalties = find_penalties(s, Z, FRACTIONS)
    lost = np.flatnonzero(np.isnan(penalties).all(axis=0))
    assert lost.tolist() == [3, 4]
    assert np.isfinite(np.delete(penalties, lost, axis=1)).all()


@pytest.mark.parametrize("n_trials", [0, 1, 9])
def test_directions_that_a_design_lacks_give_no_betas(rng, n_trials):
    X = rng.standard_normal((50, n_trials))
    X[:, 5:7] = X[:, 4:5]
    U, s, Vt = decompose(X)
    y = rng.standard_normal((50, 3))
    expected = np.linalg.pinv(X, rcond=1e-6) @ y if n_trials else np.empty((0, 3))
    np.testing.assert_allclose(Vt.T @ (U.T @ y / s[:, np.newaxis]), expected, atol=1e-10)
    assert (s > 0).all()
