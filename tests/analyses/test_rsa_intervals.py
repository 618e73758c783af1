import json

import numpy as np
import pytest
from rsatoolbox.inference import eval_bootstrap_pattern
from rsatoolbox.model import ModelFixed
from rsatoolbox.rdm import RDMs
from scipy.io import loadmat
from scipy.spatial.distance import pdist, squareform

from dnnbrain_app.analyses.comparisons import COMPARISONS
from dnnbrain_app.analyses.rsa import compare_rdms, score_rsa
from dnnbrain_app.analyses.rsa_intervals import bootstrap_both, bootstrap_stimuli
from dnnbrain_app.errors import BadDataError
from dnnbrain_app.records import Rdm


def _rdm(values, n, name="rdm") -> Rdm:
    return Rdm(name, np.asarray(values, dtype=float), tuple(f"image{i}" for i in range(n)))


class _Population:
    """Stimuli with a latent pattern that a layer and a brain share in part, and participants that differ."""

    def __init__(self, rng):
        self.rng, self.layer, self.brain = rng, rng.standard_normal((6, 8)), rng.standard_normal((6, 12))

    def draw(self, n, n_participants=1, spread=0.0):
        latent = self.rng.standard_normal((n, 6))
        layer = _rdm(pdist(np.tanh(latent @ self.layer), "sqeuclidean"), n)
        brains = []
        for _ in range(n_participants):
            own = self.brain + spread * self.rng.standard_normal(self.brain.shape)
            X = latent @ own + 2 * self.rng.standard_normal((n, 12))
            brains.append(_rdm(pdist(X, "sqeuclidean"), n))
        return layer, brains


@pytest.mark.parametrize(
    "comparison", ["pearson", "rho-a", "cka", pytest.param("whitened-cosine", marks=pytest.mark.slow)]
)
def test_intervals_hold_the_value_of_the_population(rng, comparison):
    """95 of 100, or what the binomial distribution allows."""
    population = _Population(rng)
    layer, brains = population.draw(400, 5)
    truth = np.mean([compare_rdms(layer, brain, comparison) for brain in brains])
    held = 0
    for _ in range(100):
        layer, brains = population.draw(40)
        interval = bootstrap_stimuli([layer], brains, comparison, n_bootstraps=60, rng=rng)
        held += bool(interval.low[0, 0] <= truth <= interval.high[0, 0])
    assert held >= 88


def test_intervals_over_both_hold_the_value_of_the_population(rng):
    population = _Population(rng)
    layer, brains = population.draw(200, 60, 0.7)
    truth = np.mean(score_rsa("net", [layer], brains, ["pearson"]).similarity["pearson"])
    held, held_by_stimuli = 0, 0
    for _ in range(100):
        layer, brains = population.draw(30, 6, 0.7)
        both = bootstrap_both([layer], brains, "pearson", n_bootstraps=80, rng=rng)
        held += bool(both.low[0] <= truth <= both.high[0])
        one = bootstrap_stimuli([layer], brains[:1], "pearson", n_bootstraps=20, rng=rng)
        held_by_stimuli += bool(one.low[0, 0] <= truth <= one.high[0, 0])
    assert held >= 88
    assert held_by_stimuli < held  # another participant is outside what stimuli tell


@pytest.mark.parametrize("comparison", COMPARISONS)
def test_the_sample_of_all_is_the_score(rng, comparison):
    layer, brains = _Population(rng).draw(20, 3)
    interval = bootstrap_stimuli([layer], brains, comparison, n_bootstraps=5, rng=rng)
    expected = [[compare_rdms(layer, brain, comparison) for brain in brains]]
    np.testing.assert_allclose(interval.similarity, expected, atol=1e-12)
    assert (interval.low < interval.similarity).all()
    assert (interval.similarity < interval.high).all()


@pytest.mark.parametrize(("comparison", "name"), [("pearson", "corr"), ("rho-a", "rho-a"), ("cosine", "cosine")])
def test_variance_agrees_with_rsatoolbox(rng, comparison, name):
    layer, brains = _Population(rng).draw(25)
    ours = bootstrap_stimuli([layer], brains, comparison, n_bootstraps=1500, rng=rng)
    np.random.seed(0)  # noqa: NPY002
    theirs = eval_bootstrap_pattern(
        ModelFixed("layer", layer.dissimilarities), RDMs(brains[0].dissimilarities[None]), method=name, N=1500
    )
    assert ours.se[0, 0] == pytest.approx(float(np.squeeze(theirs.get_sem())), rel=0.1)


def test_rdms_with_gaps_have_none(rng):
    layer, brains = _Population(rng).draw(12, 2)
    holes = brains[0].dissimilarities.copy()
    holes[2] = np.nan
    interval = bootstrap_stimuli([layer], [_rdm(holes, 12), brains[1]], "rho-a", n_bootstraps=5, rng=rng)
    assert np.isnan(interval.se).tolist() == [[True, False]]


def test_inputs_that_cannot_be(rng):
    layer, brains = _Population(rng).draw(7, 2)
    with pytest.raises(BadDataError, match="a bootstrap of 7 stimuli says nothing; at least 8"):
        bootstrap_stimuli([layer], brains, "rho-a", n_bootstraps=5, rng=rng)
    with pytest.raises(BadDataError, match="participants need at least 2; 1 given"):
        bootstrap_both([layer], brains[:1], "rho-a", n_bootstraps=5, rng=rng)


@pytest.mark.shared
@pytest.mark.parametrize("comparison", ["rho-a", "pearson"])
def test_92_objects(shared, rng, comparison):
    folder = shared / "data" / "92objects"
    bootstraps = json.loads((folder / "rsa_reference.json").read_text())["bootstrap"]
    answers = bootstraps[{"rho-a": "rho-a", "pearson": "corr"}[comparison] + "__dual"]
    found = {
        str(m["name"][0]): _rdm(squareform(np.asarray(m["RDM"], float), checks=False), 92)
        for m in loadmat(folder / "92_modelRDMs.mat")["Models"][0]
    }
    order = ["animacy", "FaceBodyManmadeNatobj", "monkeyIT", "EVA", "HMAX", "V1", "Silhouette", "RADON"]
    models = dict(zip(order, found.values(), strict=True))
    brains = [
        _rdm(squareform(np.mean([cell.astype(float) for cell in row], axis=0), checks=False), 92)
        for row in loadmat(folder / "92_brainRDMs.mat")["RDMs"]["RDM"][0]
    ]
    ours = bootstrap_both([models[name] for name in answers["models"]], brains, comparison, n_bootstraps=400, rng=rng)
    np.testing.assert_allclose(ours.se, answers["sem"], rtol=0.15)
