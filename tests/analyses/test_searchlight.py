import tracemalloc

import numpy as np
import pytest
import rsatoolbox
from rsatoolbox.rdm import RDMs, compare
from scipy.spatial.distance import pdist

from dnnbrain_app.analyses import searchlight_blocks, searchlight_kernels
from dnnbrain_app.analyses.neighbourhoods import find_neighbourhoods
from dnnbrain_app.analyses.options import SearchlightOptions
from dnnbrain_app.analyses.searchlight import score_searchlight
from dnnbrain_app.errors import BadDataError, UnknownNameError, UsageError
from dnnbrain_app.records import BrainPart, BrainSpace, Rdm

N = 24
RSATOOLBOX_NAMES = {"whitened-cosine": "cosine_cov", "pearson": "corr", "spearman": "spearman", "rho-a": "rho-a"}
COMPARISONS = ("cka", *RSATOOLBOX_NAMES)


def make_space(shape, radius, size=2.0):
    voxels = np.argwhere(np.ones(shape))
    part = BrainPart("CIFTI_STRUCTURE_OTHER", 0, len(voxels), voxels=voxels)
    space = BrainSpace("boldref", "nifti", (part,), affine=np.diag([size, size, size, 1]), shape=shape)
    return find_neighbourhoods(space, {}, radius, memory=2**30)


def make_rdm(X, name="layer", metric="correlation"):
    return Rdm(name, pdist(X, metric), tuple(f"{i}" for i in range(len(X))))


def make_layers(rng, n=N):
    """Euclidean, correlation, with ties, and one that is not the distance of anything."""
    X = rng.standard_normal((n, 8))
    return [
        make_rdm(X, "euclidean", "sqeuclidean"),
        make_rdm(rng.standard_normal((n, 30)), "correlation"),
        make_rdm(np.repeat(np.arange(4.0), n // 4)[:, None], "category", "hamming"),
        Rdm("judged", rng.random(n * (n - 1) // 2), tuple(f"{i}" for i in range(n))),
    ]


def score(Y, rdms, places, comparison, n_permutations=0, seed=0, memory=2**28, **kwargs):
    options = SearchlightOptions(comparison=comparison, n_permutations=n_permutations)
    rng = np.random.default_rng(seed)
    return score_searchlight("net", Y, rdms, places, options, rng=rng, memory=memory, **kwargs)


def smooth(Y, places, times=2):
    """Make neighbouring voxels alike."""
    for _ in range(times):
        Y = Y @ places.members.T
    return (Y / Y.std(axis=0)).astype(np.float32)


@pytest.fixture
def brain(rng):
    places = make_space((6, 7, 5), 4.0)
    Y = smooth(rng.standard_normal((N, places.members.shape[0])), places, 1) + 3
    return places, Y


@pytest.fixture(params=[20, 10_000])
def small_blocks(request, monkeypatch):
    """Few voxels at a time, or all."""
    monkeypatch.setattr(searchlight_kernels, "BLOCK", request.param)
    monkeypatch.setattr(searchlight_kernels, "TILE", 3 * request.param)
    monkeypatch.setattr(searchlight_kernels, "COLUMNS", request.param)
    monkeypatch.setattr(searchlight_blocks, "CENTRES", request.param)


def expect(Y, rdms, members, comparison, other=None):
    """The similarities by rsatoolbox, of an RDM for each searchlight."""
    crossed = other is not None
    metric = "correlation" if comparison in ("pearson", "spearman", "rho-a") else "euclidean"
    found = []
    for row in members.toarray().astype(bool):
        patterns = Y[:, row].astype(float)
        if crossed:
            descriptors = {"stimulus": np.tile(np.arange(N), 2), "run": np.repeat([0, 1], N)}
            data = rsatoolbox.data.Dataset(np.vstack([patterns, other[:, row]]), obs_descriptors=descriptors)
            rdm = rsatoolbox.rdm.calc_rdm(data, method="crossnobis", descriptor="stimulus", cv_descriptor="run")
        else:
            rdm = rsatoolbox.rdm.calc_rdm(rsatoolbox.data.Dataset(patterns), method=metric)
        models = RDMs(np.stack([layer.dissimilarities for layer in rdms]))
        found.append(compare(models, rdm, RSATOOLBOX_NAMES[comparison])[:, 0])
    return np.array(found).T


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("comparison", RSATOOLBOX_NAMES)
def test_agrees_with_rsatoolbox(rng, brain, comparison):
    places, Y = brain
    rdms = make_layers(rng)
    found = score(Y, rdms, places, comparison)
    np.testing.assert_allclose(found.similarity, expect(Y, rdms, places.members, comparison), atol=1e-5)
    assert found.layers == ("euclidean", "correlation", "category", "judged")
    assert np.isnan(found.p).all()
    assert np.isnan(found.p_fwe).all()
    np.testing.assert_array_equal(found.n_members, places.members.sum(axis=1))


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning")  # in rsatoolbox
@pytest.mark.usefixtures("small_blocks")
def test_crossnobis_agrees_with_rsatoolbox(rng, brain):
    places, Y = brain
    rdms, other = make_layers(rng), Y + rng.standard_normal(Y.shape)
    found = score(Y, rdms, places, "whitened-cosine", other=other).similarity
    np.testing.assert_allclose(found, expect(Y, rdms, places.members, "whitened-cosine", other), atol=1e-5)


def unbiased_product(K, L):
    """Song et al. (2012), equation 5."""
    n = len(K)
    K, L = K - np.diag(K.diagonal()), L - np.diag(L.diagonal())
    return np.trace(K @ L) + K.sum() * L.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * K.sum(axis=0) @ L.sum(axis=0)


@pytest.mark.usefixtures("small_blocks")
def test_cka_is_that_of_song(rng, brain):
    places, Y = brain
    X = rng.standard_normal((N, 8))
    found = score(Y, [make_rdm(X, metric="sqeuclidean")], places, "cka").similarity[0]
    L = X @ X.T
    for c in (0, 17, 100, 209):
        patterns = Y[:, places.members.toarray()[c] > 0].astype(float)
        K = patterns @ patterns.T
        expected = unbiased_product(K, L) / np.sqrt(unbiased_product(K, K) * unbiased_product(L, L))
        assert found[c] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("comparison", COMPARISONS)
@pytest.mark.parametrize("layer", ["category", "correlation"])
def test_orders_are_of_stimuli(rng, brain, comparison, layer, monkeypatch):
    """A permuted layer is the layer of permuted stimuli: in every measure, the RDM that was shuffled by hand."""
    places, Y = brain
    rdms = [rdm for rdm in make_layers(rng) if rdm.name == layer]
    order = rng.permutation(N)
    square = np.zeros((N, N))
    square[np.triu_indices(N, 1)] = rdms[0].dissimilarities
    square += square.T
    shuffled = Rdm("shuffled", square[np.ix_(order, order)][np.triu_indices(N, 1)], rdms[0].items)
    by_hand = score(Y, [shuffled], places, comparison).similarity
    monkeypatch.setattr("dnnbrain_app.analyses.searchlight._draw_orders", lambda n, *_: np.stack([np.arange(n), order]))
    monkeypatch.setattr(searchlight_blocks.PairModels, "draw_orders", lambda *_: order[None])
    found = score(Y, rdms, places, comparison, n_permutations=1)
    above = by_hand >= found.similarity
    np.testing.assert_array_equal(found.p, np.where(above, 1, 1 / 2))
    np.testing.assert_array_equal(found.p_fwe, np.where(by_hand.max() >= found.similarity, 1, 1 / 2))
    assert 0.1 < above.mean() < 0.9


@pytest.mark.parametrize("comparison", COMPARISONS)
def test_noise_is_significant_as_often_as_it_should_be(rng, comparison):
    """P values of single searchlights are uniform, and 5 % of brains have a corrected one below .05."""
    places = make_space((5, 5, 5), 4.0)
    n_brains, n_significant, singles = 100, 0, []
    for seed in range(n_brains):
        Y = smooth(rng.standard_normal((16, 125)), places)
        rdms = [make_rdm(rng.standard_normal((16, 10)), f"{i}") for i in range(2)]
        found = score(Y, rdms, places, comparison, n_permutations=39, seed=seed)
        n_significant += found.p_fwe.min() <= 0.05
        singles.append((found.p <= 0.05).mean())
        if comparison == "cka":
            assert abs(found.similarity.mean()) < 0.35
    error = np.sqrt(0.05 * 0.95 / n_brains)
    assert abs(n_significant / n_brains - 0.05) < 3 * error
    assert abs(np.mean(singles) - 0.05) < 4 * np.std(singles) / np.sqrt(n_brains)


@pytest.mark.parametrize(("comparison", "crossed"), [*((name, False) for name in COMPARISONS), ("cka", True)])
def test_a_planted_layer_is_found_where_it_is(rng, comparison, crossed):
    places = make_space((8, 8, 8), 4.0)
    X = rng.standard_normal((40, 12))
    Y = 1.2 * rng.standard_normal((2, 40, 512))
    planted = np.linalg.norm(places.positions - [4, 4, 4], axis=1) <= 4.5
    Y[:, :, planted] += X @ rng.standard_normal((12, planted.sum())) / np.sqrt(12)
    rdms = [make_rdm(rng.standard_normal((40, 12)), "other"), make_rdm(X, "layer", "sqeuclidean")]
    found = score(Y[0], rdms, places, comparison, n_permutations=199, other=Y[1] if crossed else None)
    centre = np.flatnonzero((places.positions == [4, 4, 4]).all(axis=1))[0]
    assert found.p_fwe[1, centre] <= 0.05
    assert found.p[1, centre] == 1 / 200
    assert np.linalg.norm(places.positions[np.nanargmax(found.similarity[1])] - [4, 4, 4]) <= 4.5
    significant = found.p_fwe <= 0.05
    assert not significant[0].any()
    assert not significant[1][np.linalg.norm(places.positions - [4, 4, 4], axis=1) > 9].any()


def test_cka_of_noise_is_zero_where_the_whitened_cosine_is_not(rng):
    places = make_space((6, 6, 6), 5.0)
    Y = rng.standard_normal((30, 216))
    rdms = [make_rdm(rng.standard_normal((30, 500)), "wide", "sqeuclidean")]
    assert abs(score(Y, rdms, places, "cka").similarity.mean()) < 0.05
    assert score(Y, rdms, places, "whitened-cosine").similarity.mean() > 0.6
    twice = score(Y, rdms, places, "whitened-cosine", other=rng.standard_normal((30, 216)))
    assert abs(twice.similarity.mean()) < 0.1


@pytest.mark.parametrize("comparison", COMPARISONS)
def test_voxels_without_signal_harm_no_other(rng, brain, comparison):
    places, Y = brain
    rdms, whole = make_layers(rng), brain[1].copy()
    Y = Y.copy()
    Y[3, 10], Y[:, 57], Y[5, 130] = np.nan, 2, np.inf
    found = score(Y, rdms, places, comparison, n_permutations=9)
    lost = np.zeros(Y.shape[1], dtype=bool)
    lost[[10, 57, 130]] = True
    assert np.array_equal(np.isnan(found.similarity).all(axis=0), lost)
    assert np.array_equal(np.isnan(found.p), np.isnan(found.similarity))
    untouched = ~lost & ~places.members.toarray()[:, lost].any(axis=1)
    reference = score(whole, rdms, places, comparison).similarity
    np.testing.assert_allclose(found.similarity[:, untouched], reference[:, untouched], atol=1e-5)
    assert not np.allclose(found.similarity[:, ~untouched & ~lost], reference[:, ~untouched & ~lost], atol=1e-5)


def test_few_voxels_have_no_similarity(rng):
    places = make_space((2, 1, 1), 4.0)
    found = score(rng.standard_normal((N, 2)), make_layers(rng), places, "rho-a", n_permutations=5)
    assert np.isnan(found.similarity).all()
    assert np.isnan(found.p_fwe).all()


def test_many_stimuli_are_compared_in_blocks(rng, monkeypatch):
    """All stimuli, few pairs: nearly the similarity of all pairs, and p values that are right."""
    places = make_space((4, 4, 4), 4.0)
    n = 120
    X = rng.standard_normal((n, 6))
    Y = smooth(X @ rng.standard_normal((6, 64)) + 2 * rng.standard_normal((n, 64)), places, 1)
    rdms = [make_rdm(X, "layer"), make_rdm(rng.standard_normal((n, 6)), "other")]
    whole = score(Y, rdms, places, "rho-a").similarity
    monkeypatch.setattr(searchlight_blocks, "N_PAIRS", 1500)
    found = score(Y, rdms, places, "rho-a", n_permutations=99, n_jobs=2)
    assert np.abs(found.similarity - whole).max() < 0.1
    assert np.abs(found.similarity.mean(axis=1) - whole.mean(axis=1)).max() < 0.02
    assert (found.p_fwe[0] == 0.01).all()
    assert (found.p[1] > 0.01).mean() > 0.8
    models = searchlight_blocks.prepare_pairs(rdms, searchlight_blocks.Comparison(lambda x, _: x, lambda *_: 1.0), rng)
    assert models.stimuli.shape == (5, 24)
    assert len(set(models.stimuli.ravel())) == n
    for order in models.draw_orders(3, rng):
        assert sorted(order) == list(range(n))
        stacked = models.stack(order[None])
        stimuli = models.stimuli.ravel()[order].reshape(5, 24)
        expected = [pdist(X[row], "correlation") for row in stimuli]
        np.testing.assert_allclose(stacked[:, 0], np.concatenate(expected), atol=1e-6)


def test_a_large_model_is_cut_where_nothing_is_lost(rng, monkeypatch):
    monkeypatch.setattr(searchlight_kernels, "SMALL", 100)
    monkeypatch.setattr(searchlight_kernels, "RANK", 40)
    n = 200
    X = rng.standard_normal((n, 150)) * np.arange(1, 151) ** -1.5
    rdms = [make_rdm(X, "steep", "sqeuclidean"), make_rdm(rng.standard_normal((n, 300)), "flat", "sqeuclidean")]
    models = searchlight_kernels.prepare_kernels(rdms, unbiased=False, rng=rng)
    sizes = np.abs(models.signs).sum(axis=0)
    assert sizes[0] < 60
    assert sizes[1] > 150
    centred = X - X.mean(axis=0)
    F, K = models.F[:, models.signs[:, 0] != 0].astype(float), centred @ centred.T
    assert np.linalg.norm(F @ F.T - K) < 1.01e-3 * np.linalg.norm(K)


def test_the_memory_is_kept(rng):
    places = make_space((12, 12, 12), 4.0)
    n = 200
    Y = rng.standard_normal((n, 1728)).astype(np.float32)
    rdms = [make_rdm(rng.standard_normal((n, 20)), f"{i}") for i in range(3)]
    for comparison in ("cka", "rho-a"):
        tracemalloc.start()
        score(Y, rdms, places, comparison, n_permutations=20, memory=32 * 2**20)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 32 * 2**20
        with pytest.raises(UsageError, match="allow more memory"):
            score(Y, rdms, places, comparison, n_permutations=20, memory=2 * 2**20)


def test_inputs_that_cannot_be(rng, brain):
    places, Y = brain
    rdms = make_layers(rng)
    with pytest.raises(UnknownNameError, match=r"'rho'.*'rho-a'"):
        score(Y, rdms, places, "rho")
    with pytest.raises(UsageError, match="cannot be compared by tau-a"):
        score(Y, rdms, places, "tau-a")
    with pytest.raises(UsageError, match="two sets of runs; use cka"):
        score(Y, rdms, places, "rho-a", other=Y)
    with pytest.raises(BadDataError, match=r"shape \(24, 210\).*\(24, 209\)"):
        score(Y, rdms, places, "cka", other=Y[:, 1:])
    with pytest.raises(BadDataError, match="searchlights of 210 voxels, responses of 209"):
        score(Y[:, 1:], rdms, places, "cka")
    with pytest.raises(BadDataError, match="RDM euclidean: 24 stimuli, responses to 23"):
        score(Y[1:], rdms, places, "cka")
    with pytest.raises(BadDataError, match="3 stimuli; searchlights need at least 4"):
        score(Y[:3], [make_rdm(rng.random((3, 5)))], places, "cka")
    flat = Rdm("flat", np.ones(N * (N - 1) // 2), rdms[0].items)
    for comparison in ("cka", "rho-a"):
        with pytest.raises(BadDataError, match="RDM flat"):
            score(Y, [flat], places, comparison)
        gap = np.where(np.arange(len(flat.dissimilarities)) == 5, np.nan, rdms[0].dissimilarities)
        with pytest.raises(BadDataError, match="RDM gap: dissimilarities are missing"):
            score(Y, [Rdm("gap", gap, flat.items)], places, comparison)
