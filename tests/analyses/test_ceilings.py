import json

import numpy as np
import pytest
from rsatoolbox.inference import boot_noise_ceiling
from rsatoolbox.rdm import RDMs
from scipy.io import loadmat
from scipy.spatial.distance import pdist, squareform
from scipy.stats import rankdata

from dnnbrain_app.analyses.ceilings import compute_ceiling
from dnnbrain_app.analyses.comparisons import COMPARISONS
from dnnbrain_app.analyses.rsa import compare_rdms
from dnnbrain_app.errors import BadDataError, UnknownNameError
from dnnbrain_app.records import Rdm

N = 20
RSATOOLBOX_NAMES = {
    "pearson": "corr",
    "spearman": "spearman",
    "rho-a": "rho-a",
    "tau-a": "tau-a",
    "cosine": "cosine",
    "whitened-cosine": "cosine_cov",
    "whitened-pearson": "corr_cov",
}
WHITENED = ("whitened-cosine", "whitened-pearson")


def _rdm(values, n=N) -> Rdm:
    return Rdm("IT", np.asarray(values, dtype=float), tuple(f"image{i}" for i in range(n)))


def _simulate(rng, n_rdms, noise):
    latent = rng.standard_normal((N, 6))
    return [_rdm(pdist(latent + noise * rng.standard_normal((N, 6)), "sqeuclidean")) for _ in range(n_rdms)], latent


@pytest.mark.parametrize("comparison", [name for name in RSATOOLBOX_NAMES if name not in WHITENED])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.filterwarnings("ignore:Noise ceiling for tau")
def test_agrees_with_rsatoolbox(rng, comparison, ties):
    values = rng.random((5, N * (N - 1) // 2)) + rng.random(N * (N - 1) // 2)
    if ties and comparison != "spearman":  # whose norms ties make different, which rsatoolbox does not weigh
        values = np.round(values, 1)
    ceiling = compute_ceiling([_rdm(row) for row in values], comparison)
    expected = boot_noise_ceiling(RDMs(values), RSATOOLBOX_NAMES[comparison])
    assert (ceiling.lower, ceiling.upper) == pytest.approx([float(np.squeeze(x)) for x in expected], abs=1e-12)


@pytest.mark.parametrize("comparison", COMPARISONS)
def test_the_true_rdm_lies_between_and_nothing_above(rng, comparison):
    between = 0
    for _ in range(20):
        rdms, latent = _simulate(rng, 5, 0.7)
        ceiling = compute_ceiling(rdms, comparison)
        truth = _rdm(pdist(latent, "sqeuclidean") + 2 * 6 * 0.7**2)  # what is expected of distances with noise
        other = _rdm(np.mean([rdm.dissimilarities for rdm in rdms], axis=0))
        truth_score, other_score = (np.mean([compare_rdms(m, rdm, comparison) for rdm in rdms]) for m in (truth, other))
        assert max(truth_score, other_score) <= ceiling.upper + (2e-3 if comparison == "tau-a" else 1e-12)
        between += truth_score > ceiling.lower
    assert between > 15


def test_noise_has_a_low_ceiling(rng):
    lower = [compute_ceiling([_rdm(rng.random(N * (N - 1) // 2)) for _ in range(4)], "rho-a").lower for _ in range(50)]
    assert abs(np.mean(lower)) < 0.02


def test_pairs_that_one_lacks_count_for_none(rng):
    values = rng.random((3, N * (N - 1) // 2)) + rng.random(N * (N - 1) // 2)
    holes = values.copy()
    holes[1, 5], holes[2, 9] = np.nan, np.nan
    a = compute_ceiling([_rdm(row) for row in holes], "pearson")
    holes[:, [5, 9]] = np.nan
    b = compute_ceiling([_rdm(row) for row in holes], "pearson")
    assert a == b
    assert np.isnan(compute_ceiling([_rdm(row) for row in holes], "cka").lower)


def test_inputs_that_cannot_be(rng):
    a = _rdm(rng.random(N * (N - 1) // 2))
    with pytest.raises(BadDataError, match="at least 2 RDMs; 1 given"):
        compute_ceiling([a], "rho-a")
    with pytest.raises(UnknownNameError, match="'spearmann'; did you mean 'spearman'"):
        compute_ceiling([a, a], "spearmann")
    with pytest.raises(BadDataError, match="other items"):
        compute_ceiling([a, _rdm(rng.random(3), 3)], "rho-a")


def _load(folder, name):
    if name == "behaviour_16subjects":
        cells = loadmat(folder / "92_behavRDMs.mat")["rdms_behav_92"]["RDM"].ravel()
        return np.array([_flatten(cell) for cell in cells])
    cells = loadmat(folder / "92_brainRDMs.mat")["RDMs"]["RDM"]
    sessions = np.array([[_flatten(cell) for cell in row] for row in cells[0]])
    return sessions.mean(axis=1) if name.endswith("averaged") else sessions.reshape(8, -1)


def _flatten(matrix):
    return squareform(np.asarray(matrix, dtype=float), checks=False)


@pytest.mark.shared
@pytest.mark.parametrize("name", ["hIT_4subjects_sessions_averaged", "hIT_8_subject_x_session", "behaviour_16subjects"])
@pytest.mark.parametrize("comparison", RSATOOLBOX_NAMES)
def test_92_objects(shared, name, comparison):
    folder = shared / "data" / "92objects"
    answers = json.loads((folder / "rsa_reference.json").read_text())["eval_fixed"][name]
    expected = answers[RSATOOLBOX_NAMES[comparison]]["noise_ceiling"]
    values = _load(folder, name)
    ceiling = compute_ceiling([_rdm(row, 92) for row in values], comparison)
    if comparison in WHITENED:  # rsatoolbox pools these by norms that are not whitened, and so below the optimum
        assert _pool_as_rsatoolbox(values, comparison) == pytest.approx(
            [expected["lower"], expected["upper"]], abs=1e-6
        )
        assert expected["upper"] < ceiling.upper < expected["upper"] + 2e-3
        if "upper_whitened_pool_optimum" in expected:
            assert ceiling.upper == pytest.approx(expected["upper_whitened_pool_optimum"], abs=1e-6)
        assert ceiling.lower == pytest.approx(expected["lower"], abs=5e-3)
    else:
        assert (ceiling.lower, ceiling.upper) == pytest.approx((expected["lower"], expected["upper"]), abs=1e-6)


def _pool_as_rsatoolbox(values, comparison):
    """Its ceilings, with our comparisons: these reproduce its numbers, and it is the pool alone that differs."""
    if comparison == "whitened-pearson":
        values = values - values.mean(axis=1, keepdims=True)
    values = values / np.sqrt((values**2).mean(axis=1, keepdims=True))
    others = values.sum(axis=0) - values
    lower = [compare_rdms(_rdm(a, 92), _rdm(b, 92), comparison) for a, b in zip(values, others, strict=True)]
    upper = [compare_rdms(_rdm(a, 92), _rdm(values.sum(axis=0), 92), comparison) for a in values]
    return [np.mean(lower), np.mean(upper)]


@pytest.mark.shared
def test_92_objects_are_not_nearly_right(shared):
    """Near misses: ceilings of the mean RDM (Net2Brain, Brain-Score), and of ranks that are not ranked again."""
    folder = shared / "data" / "92objects"
    variants = json.loads((folder / "rsa_reference.json").read_text())["ceiling_variants_spearman_hIT4"]
    values = _load(folder, "hIT_4subjects_sessions_averaged")
    ceiling = compute_ceiling([_rdm(row, 92) for row in values], "spearman")
    assert ceiling.lower == pytest.approx(variants["CORRECT_rank_then_mean__lower"], abs=1e-6)
    assert ceiling.upper == pytest.approx(variants["CORRECT_rank_then_mean_rerank__upper"], abs=1e-6)
    mean = _rdm(values.mean(axis=0), 92)
    raw = np.mean([compare_rdms(_rdm(row, 92), mean, "spearman") for row in values])
    assert raw == pytest.approx(variants["raw_mean__upper"], abs=1e-6)
    ranks = np.array([rankdata(row) for row in values])
    unranked = np.mean([np.corrcoef(row, ranks.mean(axis=0))[0, 1] for row in ranks])
    assert unranked == pytest.approx(variants["pearson_of_ranks_without_rerank__upper"], abs=1e-6)
    assert abs(ceiling.lower - variants["raw_mean__lower"]) > 5e-3
    assert min(abs(ceiling.upper - raw), abs(ceiling.upper - unranked)) > 5e-3
