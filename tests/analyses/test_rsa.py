import json
import tracemalloc

import numpy as np
import pytest
from rsatoolbox.rdm import RDMs, compare
from scipy.io import loadmat
from scipy.spatial.distance import squareform
from scipy.stats import rankdata

from dnnbrain_app.analyses.comparisons import COMPARISONS
from dnnbrain_app.analyses.rdms import compute_rdm
from dnnbrain_app.analyses.rsa import compare_rdms, require_room, score_rsa
from dnnbrain_app.errors import BadDataError, UnknownNameError, UsageError
from dnnbrain_app.records import Rdm

N_ITEMS = 30
N_PAIRS = N_ITEMS * (N_ITEMS - 1) // 2
RSATOOLBOX_NAMES = {
    "pearson": "corr",
    "spearman": "spearman",
    "rho-a": "rho-a",
    "tau-a": "tau-a",
    "cosine": "cosine",
    "whitened-cosine": "cosine_cov",
    "whitened-pearson": "corr_cov",
}


def _rdm(values, name="rdm", n=N_ITEMS) -> Rdm:
    return Rdm(name, np.asarray(values, dtype=float), tuple(f"image{i}" for i in range(n)))


@pytest.mark.parametrize("comparison", RSATOOLBOX_NAMES)
@pytest.mark.parametrize("ties", [False, True])
def test_comparisons_agree_with_rsatoolbox(rng, comparison, ties):
    layers, regions = rng.random((4, N_PAIRS)), rng.random((3, N_PAIRS))
    if ties:
        layers, regions = np.round(layers * 3), np.round(regions, 1)
    scores = score_rsa(
        "net", [_rdm(v, f"l{i}") for i, v in enumerate(layers)], [_rdm(v) for v in regions], [comparison]
    )
    expected = compare(RDMs(layers), RDMs(regions), RSATOOLBOX_NAMES[comparison])
    np.testing.assert_allclose(scores.similarity[comparison], expected, atol=1e-12)
    assert scores.layers == ("l0", "l1", "l2", "l3")
    assert compare_rdms(_rdm(layers[1]), _rdm(regions[2]), comparison) == pytest.approx(expected[1, 2], abs=1e-12)


def test_rho_a_is_the_mean_over_random_orders_of_ties(rng):
    a, b = rng.integers(0, 3, N_PAIRS), rng.random(N_PAIRS)
    broken = [np.corrcoef(rankdata(a + 1e-6 * rng.random(N_PAIRS)), rankdata(b))[0, 1] for _ in range(500)]
    assert compare_rdms(_rdm(a), _rdm(b), "rho-a") == pytest.approx(np.mean(broken), abs=0.006)


@pytest.mark.parametrize("comparison", COMPARISONS)
def test_recovers_a_geometry_and_finds_none_in_noise(rng, comparison):
    items = [f"image{i}" for i in range(N_ITEMS)]
    latent = rng.standard_normal((N_ITEMS, 5))

    def project(noise):
        return latent @ rng.standard_normal((5, 400)) + noise * rng.standard_normal((N_ITEMS, 400))

    layer = compute_rdm(project(0.5), items, "layer")
    regions = [compute_rdm(project(1), items, "IT")]
    regions += [compute_rdm(rng.standard_normal((N_ITEMS, 400)), items, f"noise{i}") for i in range(40)]
    similarity = score_rsa("net", [layer], regions, [comparison]).similarity[comparison][0]
    assert similarity[0] > (0.55 if comparison == "tau-a" else 0.8)
    assert similarity[0] > similarity[1:].max() + 0.01
    if "cosine" not in comparison:  # of distances that are biased, zero is not chance
        assert abs(similarity[1:].mean()) < 0.03


@pytest.mark.parametrize("comparison", ["pearson", "spearman", "rho-a"])
def test_missing_dissimilarities_stay_with_their_rdm(rng, comparison):
    layers, regions = rng.random((3, N_PAIRS)), rng.random((3, N_PAIRS))
    whole = score_rsa("net", [_rdm(v) for v in layers], [_rdm(v) for v in regions], [comparison]).similarity[comparison]
    layers[0, :40], regions[1, 30:90] = np.nan, np.nan
    scores = score_rsa("net", [_rdm(v) for v in layers], [_rdm(v) for v in regions], [comparison]).similarity[
        comparison
    ]
    np.testing.assert_array_equal(scores[1:, [0, 2]], whole[1:, [0, 2]])
    for i, j, kept in [(0, 0, slice(40, None)), (0, 1, slice(90, None)), (1, 1, np.r_[:30, 90:N_PAIRS])]:
        a, b = layers[i, kept], regions[j, kept]
        expected = np.corrcoef(a, b)[0, 1] if comparison == "pearson" else np.corrcoef(rankdata(a), rankdata(b))[0, 1]
        assert scores[i, j] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("comparison", ["whitened-cosine", "whitened-pearson", "cka"])
def test_items_without_a_value_are_left_out_whole_and_other_gaps_leave_no_answer(rng, comparison):
    square = squareform(rng.random((2, N_PAIRS))[0]), squareform(rng.random(N_PAIRS))
    fewer = [_rdm(squareform(np.delete(np.delete(m, 4, 0), 4, 1)), n=N_ITEMS - 1) for m in square]
    square[0][4], square[0][:, 4] = np.nan, np.nan
    a, b = (_rdm(squareform(m, checks=False)) for m in square)
    assert compare_rdms(a, b, comparison) == pytest.approx(compare_rdms(*fewer, comparison), abs=1e-12)
    holes = b.dissimilarities.copy()
    holes[10] = np.nan
    assert np.isnan(compare_rdms(_rdm(holes), b, comparison))


def test_an_rdm_without_variance(rng):
    flat, other, empty = _rdm(np.full(N_PAIRS, 0.1)), _rdm(rng.random(N_PAIRS)), _rdm(np.full(N_PAIRS, np.nan))
    scores = score_rsa("net", [flat], [other], list(COMPARISONS)).similarity
    for name in ("pearson", "spearman", "whitened-pearson", "cka"):
        assert np.isnan(scores[name]), name
    assert scores["rho-a"] == 0
    assert scores["tau-a"] == 0
    assert np.isnan(compare_rdms(empty, other, "rho-a"))


def _residual(y, X):
    X = np.column_stack([np.ones(len(y)), X])
    return y - X @ np.linalg.lstsq(X, y, rcond=None)[0]


@pytest.mark.parametrize("comparison", ["pearson", "spearman"])
@pytest.mark.parametrize("missing", [False, True])
def test_partial_similarity_is_that_of_residuals(rng, comparison, missing):
    shared = rng.random((2, N_PAIRS))
    layers = shared[0] + rng.random((3, N_PAIRS))
    regions = shared.sum(0) + rng.random((4, N_PAIRS))
    if missing:
        regions[:, 3] = np.nan
    rdms = [[_rdm(v) for v in group] for group in (layers, regions, shared)]
    scores = score_rsa("net", rdms[0], rdms[1], [comparison], rdms[2]).similarity[comparison]
    keep = np.isfinite(regions[0])
    a, b, z = (group[:, keep] for group in (layers, regions, shared))
    if comparison == "spearman":
        a, b, z = (rankdata(group, axis=1) for group in (a, b, z))
    expected = [[np.corrcoef(_residual(x, z.T), _residual(y, z.T))[0, 1] for y in b] for x in a]
    np.testing.assert_allclose(scores, expected, atol=1e-12)
    same = compare_rdms(rdms[0][1], rdms[1][2], comparison, [*rdms[2], rdms[2][0]])  # a control twice is one
    assert same == pytest.approx(expected[1][2], abs=1e-9)


@pytest.mark.parametrize("comparison", ["pearson", "spearman", "rho-a", "tau-a"])
def test_what_a_control_explains_is_gone(rng, comparison):
    """Two RDMs that agree by way of a third only, which is categorical; and one that is the third."""
    n = 30 if comparison == "tau-a" else 200
    control = rng.integers(0, 2, n * (n - 1) // 2)
    a, b = (_rdm(control + rng.random(len(control)), n=n) for _ in range(2))
    z, flat = _rdm(control, n=n), _rdm(np.zeros(len(control)), n=n)
    assert compare_rdms(a, b, comparison) > 0.3
    assert abs(compare_rdms(a, b, comparison, [z])) < 4 / n
    assert compare_rdms(a, b, comparison, [z]) == pytest.approx(compare_rdms(a, b, comparison, [flat, z]), abs=1e-9)
    if comparison in ("pearson", "spearman"):
        assert np.isnan(compare_rdms(z, b, comparison, [z]))


def test_inputs_that_cannot_be(rng):
    a, b = _rdm(rng.random(N_PAIRS)), _rdm(rng.random(3), n=3)
    with pytest.raises(UnknownNameError, match="comparison of RDMs 'spearmann'; did you mean 'spearman'"):
        score_rsa("net", [a], [a], ["spearmann"])
    with pytest.raises(UnknownNameError, match="'kendall'"):
        compare_rdms(a, a, "kendall")
    for call in (lambda: score_rsa("net", [a], [b], ["pearson"]), lambda: compare_rdms(a, b, "pearson")):
        with pytest.raises(BadDataError, match=r"30 items.*3.*other items"):
            call()


@pytest.fixture(scope="module")
def monkeys_and_men(shared):
    """92 objects: models and the RDMs of human inferior temporal cortex (Kriegeskorte et al. 2008), with answers."""
    folder = shared / "data" / "92objects"
    reference = json.loads((folder / "rsa_reference.json").read_text())
    brains = loadmat(folder / "92_brainRDMs.mat")["RDMs"]["RDM"]
    models = loadmat(folder / "92_modelRDMs.mat")["Models"]
    subjects = [_from_square(np.mean([b.astype(float) for b in row], axis=0)) for row in brains[0]]
    return [_from_square(m["RDM"], str(m["name"][0])) for m in models[0]], subjects, reference


def _from_square(matrix, name="hIT") -> Rdm:
    return _rdm(squareform(np.asarray(matrix, dtype=float), checks=False), name, 92)


@pytest.mark.shared
@pytest.mark.parametrize("comparison", RSATOOLBOX_NAMES)
def test_92_objects(monkeys_and_men, comparison):
    models, subjects, reference = monkeys_and_men
    answers = reference["eval_fixed"]["hIT_4subjects_sessions_averaged"][RSATOOLBOX_NAMES[comparison]]["models"]
    expected = [answers[name]["per_rdm"] for name in reference["model_names_92_modelRDMs"]]
    scores = score_rsa("models", models, subjects, [comparison]).similarity[comparison]
    np.testing.assert_allclose(scores, expected, atol=1e-6)


@pytest.mark.shared
def test_92_objects_are_not_nearly_right(monkeys_and_men):
    """The known near misses: rho-a for Spearman, the mean RDM for the mean over subjects, the diagonal included."""
    models, subjects, _ = monkeys_and_men
    animacy = models[0]
    scores = score_rsa("models", [animacy], subjects, ["spearman", "rho-a"]).similarity
    assert scores["spearman"].mean() == pytest.approx(0.3862, abs=5e-5)
    assert scores["rho-a"].mean() == pytest.approx(0.3345, abs=5e-5)
    mean = _rdm(np.mean([rdm.dissimilarities for rdm in subjects], axis=0), n=92)
    assert compare_rdms(animacy, mean, "spearman") == pytest.approx(0.588, abs=5e-4)
    monkey = next(rdm for rdm in models if "monkey" in rdm.name.lower())
    assert compare_rdms(monkey, mean, "pearson") == pytest.approx(0.49121, abs=5e-6)


def test_an_analysis_that_does_not_fit_the_memory_is_refused_and_one_that_does_keeps_to_it(rng):
    n, layers, regions = 800, 4, 3
    values = rng.random((layers + regions, n * (n - 1) // 2))
    tracemalloc.start()
    rdms = [_rdm(row.copy(), f"{i}", n) for i, row in enumerate(values)]
    score_rsa("net", rdms[:layers], rdms[layers:], ("pearson", "rho-a"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    with pytest.raises(UsageError, match="an RDM of 800 stimuli"):
        require_room(n, layers, regions, peak)
    require_room(n, layers, regions, peak + 24 * n**2)
