"""Ridge regression on volumes: noise that remembers must not pass for signal."""

import numpy as np
import pytest
from scipy.linalg import toeplitz
from scipy.signal import lfilter
from scipy.sparse import csr_array

from dnnbrain_app.analyses.autocorrelation import SerialNoise, estimate_noise
from dnnbrain_app.analyses.encoding import score_encoding
from dnnbrain_app.analyses.null_responses import Exchange, permute_responses
from dnnbrain_app.analyses.options import EncodingOptions
from dnnbrain_app.records import Gram

N_RUNS, N_VOLUMES, RHO = 4, 120, 0.5
RUN = np.repeat(np.arange(N_RUNS), N_VOLUMES)
OPTIONS = EncodingOptions(n_null=256)


@pytest.fixture
def Q():  # noqa: N802, the letter of the equation
    """A constant and a drift of each run."""
    basis = np.linalg.qr(np.c_[np.ones(N_VOLUMES), np.arange(N_VOLUMES)])[0]
    return csr_array(np.kron(np.eye(N_RUNS), basis))


def remember(rng, n_columns, rho):
    """Autoregressive noise of variance 1, run by run."""
    noise = [lfilter([1], [1, -rho], rng.standard_normal((N_VOLUMES + 50, n_columns)), axis=0) for _ in range(N_RUNS)]
    return np.concatenate([run[50:] for run in noise]) * np.sqrt(1 - rho**2)


def project_out(Q, X):
    return X - Q @ (Q.T @ X)


def make_gram(X):
    return Gram("layer", (X.shape[1],), 1, X @ X.T, X.sum(axis=1))


def hold_out_runs():
    return [np.flatnonzero(run == RUN) for run in range(N_RUNS)]


def test_variance_along_directions_is_that_of_the_full_covariance(rng, Q):
    rows = np.flatnonzero((RUN != 2) & (np.arange(len(RUN)) % 5 > 0))
    U = np.linalg.qr(rng.standard_normal((len(rows), 30)))[0]
    M = np.eye(len(RUN)) - Q @ Q.T
    R = np.kron(np.eye(N_RUNS), toeplitz(RHO ** np.arange(N_VOLUMES)))
    noise = SerialNoise(RUN, Q, RHO, np.arange(len(RUN))).take(rows)
    np.testing.assert_allclose(noise.measure(U), np.diag(U.T @ (M @ R @ M)[np.ix_(rows, rows)] @ U), rtol=1e-9)


@pytest.mark.parametrize("rho", [0.0, 0.3, 0.6])
def test_the_coefficient_is_found(rng, Q, rho):
    Y = project_out(Q, remember(rng, 300, rho)).astype(np.float32)
    Y[:, 5] = np.nan
    assert estimate_noise(Y, RUN, Q).rho == pytest.approx(rho, abs=0.04)


def test_penalties_resist_noise_that_remembers(rng, Q):
    """Counting on white noise, slow features of which there are many are fitted to slow noise."""
    X = project_out(Q, remember(rng, 800, 0.9))
    Y = project_out(Q, remember(rng, 150, RHO)).astype(np.float32)
    settings = {"folds": hold_out_runs(), "options": OPTIONS, "memory": 2**30}
    white = score_encoding("net", [make_gram(X)], Y, rng=np.random.default_rng(1), **settings)
    aware = score_encoding(
        "net", [make_gram(X)], Y, rng=np.random.default_rng(1), noise=estimate_noise(Y, RUN, Q), **settings
    )
    assert np.median(white.rsquared) < -0.2  # which is what must not happen
    assert np.median(aware.rsquared) > -0.02
    assert abs(np.nanmean(aware.r)) < 0.02
    assert (aware.best_layer > 0).mean() < 0.03


def test_planted_volumes_are_predicted(rng, Q):
    X = project_out(Q, remember(rng, 40, 0.9))
    signal = X @ rng.standard_normal((40, 60))
    signal /= signal.std(axis=0)
    Y = project_out(Q, np.c_[signal, np.zeros((len(RUN), 200))] + remember(rng, 260, RHO)).astype(np.float32)
    scores = score_encoding(
        "net", [make_gram(X)], Y, hold_out_runs(), OPTIONS, rng=rng, memory=2**30, noise=estimate_noise(Y, RUN, Q)
    )
    assert np.median(scores.r[:, :60]) > 0.6  # at most .71: half of the variance is noise
    assert (scores.best_layer[:60] == 1).mean() > 0.95
    assert (scores.best_layer[60:] > 0).mean() < 0.06


def test_permuted_volumes_keep_their_neighbours(rng):
    Y = rng.standard_normal((len(RUN), 8)).astype(np.float32)
    null = permute_responses(8, 16, rng, Exchange(len(RUN), RUN, turned=True))
    turned = null.draw(Y, slice(0, 8))(np.arange(len(RUN)))
    for run in range(N_RUNS):
        rows = run == RUN
        shifts = [k for k in range(N_VOLUMES) if np.array_equal(turned[rows], np.roll(Y[rows], k, axis=0))]
        assert len(shifts) == 1
        assert shifts[0] > 0
