import numpy as np
import pytest
from rsatoolbox.data.noise import cov_from_residuals

from dnnbrain_app.analyses.whitening import contrast_trials, estimate_noise
from dnnbrain_app.errors import BadDataError


def _invert(noise):
    """The precision of the noise written out."""
    S = (noise.axes * noise.energy) @ noise.axes.T / noise.dof
    correlation = (1 - noise.shrinkage) * S + noise.shrinkage * np.eye(len(S))
    return np.linalg.inv(correlation * np.outer(noise.sd, noise.sd))


def test_contrasts_are_independent_differences_of_trials(rng):
    stimulus = np.repeat([0, 1, 2, 3], [3, 1, 2, 5])
    C = contrast_trials(np.eye(11), stimulus)
    np.testing.assert_allclose(C @ C.T, np.eye(7), atol=1e-12)
    same = (stimulus[:, None] == stimulus) / np.bincount(stimulus)[stimulus]
    np.testing.assert_allclose(C.T @ C, np.eye(11) - same, atol=1e-12)


@pytest.mark.parametrize(("dof", "n_voxels"), [(20, 50), (300, 30)])
def test_noise_is_that_of_schaefer_and_strimmer(rng, dof, n_voxels):
    R = rng.standard_normal((dof, n_voxels + 1))
    R = (R[:, 1:] + R[:, :-1]) * rng.uniform(0.5, 2, n_voxels)
    noise = estimate_noise(R)
    Z = R / np.sqrt((R**2).mean(axis=0))
    different = ~np.eye(n_voxels, dtype=bool)
    products = np.array([np.outer(z, z) for z in Z])
    variance = ((products - products.mean(axis=0)) ** 2).sum(axis=0) / (dof * (dof - 1))
    expected = variance[different].sum() / (products.mean(axis=0)[different] ** 2).sum()
    assert noise.shrinkage == pytest.approx(min(expected, 1), abs=1e-12)
    if dof > n_voxels:  # theirs takes out a mean, and a degree of freedom
        theirs = cov_from_residuals(R, method="shrinkage_diag")
        np.testing.assert_allclose(np.linalg.inv(_invert(noise)), theirs, atol=0.02 * theirs.max())
    X = rng.standard_normal((6, n_voxels))
    W = noise.whiten(X)
    np.testing.assert_allclose(W @ W.T, X @ _invert(noise) @ X.T, rtol=1e-9, atol=1e-9)


def test_inputs_that_cannot_be(rng):
    with pytest.raises(BadDataError, match="1 difference"):
        estimate_noise(rng.standard_normal((1, 30)))
    with pytest.raises(BadDataError, match="no noise"):
        estimate_noise(np.zeros((4, 3)))
