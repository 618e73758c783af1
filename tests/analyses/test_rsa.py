import json
import tracemalloc

import numpy as np
import pytest
from rsatoolbox.rdm import RDMs, compare
from scipy.io import loadmat
from scipy.spatial.distance import squareform
from scipy.stats import rankdata

from dnnbrain_app.analyses.rdms import compute_rdm
from dnnbrain_app.analyses.rsa import COMPARISONS, compare_rdms, rank_values, require_room, score_rsa
from dnnbrain_app.errors import BadDataError, UnknownNameError, UsageError
from dnnbrain_app.records import Rdm

N_ITEMS = 30
N_PAIRS = N_ITEMS * (N_ITEMS - 1) // 2
RSATOOLBOX_NAMES = {"pearson": "corr", "spearman": "spearman", "rho-a": "rho-a"}


def _rdm(values, name="rdm", n=N_ITEMS) -> Rdm:
    return Rdm(name, np.asarray(values, dtype=float), tuple(f"image{i}" for i in range(n)))


@pytest.mark.parametrize(
    "values",
    [
        lambda rng: rng.random(5000),
        lambda rng: rng.integers(0, 7, 5000) / 3,
        lambda rng: rng.standard_normal(5000) * 1e-3,
        lambda rng: 1 + 1e-9 * rng.integers(0, 1000, 5000),  # equal in float32
        lambda rng: np.round(rng.standard_normal(5000), 1) * 1e300,  # infinite in float32, with -0.0 and 0.0
        lambda _: np.zeros(50),
    ],
)
def test_ranks_are_exact(rng, values):
    x = values(rng)
    np.testing.assert_array_equal(rank_values(x), rankdata(x))
    np.testing.assert_array_equal(rank_values(np.sort(x)[::-1]), rankdata(np.sort(x)[::-1]))


@pytest.mark.parametrize("comparison", COMPARISONS)
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
    assert similarity[0] > 0.8
    assert abs(similarity[1:].mean()) < 0.03


@pytest.mark.parametrize("comparison", COMPARISONS)
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


def test_an_rdm_without_variance(rng):
    flat, other, empty = _rdm(np.full(N_PAIRS, 0.1)), _rdm(rng.random(N_PAIRS)), _rdm(np.full(N_PAIRS, np.nan))
    scores = score_rsa("net", [flat], [other], list(COMPARISONS)).similarity
    assert np.isnan(scores["pearson"])
    assert np.isnan(scores["spearman"])
    assert scores["rho-a"] == 0
    assert np.isnan(compare_rdms(empty, other, "rho-a"))


def test_inputs_that_cannot_be(rng):
    a, b = _rdm(rng.random(N_PAIRS)), _rdm(rng.random(3), n=3)
    with pytest.raises(UnknownNameError, match="comparison of RDMs 'spearmann'; did you mean 'spearman'"):
        score_rsa("net", [a], [a], ["spearmann"])
    with pytest.raises(UnknownNameError, match="'tau'"):
        compare_rdms(a, a, "tau")
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
@pytest.mark.parametrize("comparison", COMPARISONS)
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
