"""What notebooks may rely on."""

import inspect

import numpy as np
import pytest

from dnnbrain_app import api


def test_everything_named_is_there_and_nothing_else():
    public = {name for name, thing in vars(api).items() if getattr(thing, "__module__", "").startswith("dnnbrain_app")}
    assert set(api.__all__) == public
    assert list(api.__all__) == sorted(api.__all__, key=lambda name: (not name[0].isupper(), name))


@pytest.mark.parametrize("name", [name for name in api.__all__ if inspect.isfunction(getattr(api, name))])
def test_every_function_says_what_it_takes_and_gives(name):
    text = inspect.getdoc(getattr(api, name))
    assert text
    parameters = inspect.signature(getattr(api, name)).parameters
    assert not parameters or "Parameters" in text


def test_a_notebook_gets_from_arrays_to_scores():
    rng = np.random.default_rng(3)
    X = rng.standard_normal((60, 20))
    Y = X @ rng.standard_normal((20, 30)) + rng.standard_normal((60, 30))
    folds = api.make_folds(60, 5, rng)
    layer = api.make_gram(X, "layer")
    scores = api.score_encoding("net", [layer], Y, folds, api.EncodingOptions(n_null=1000), rng=rng, memory=2**30)
    assert np.median(scores.r) > 0.8
    items = [str(i) for i in range(60)]
    brain, model = api.compute_rdm(Y, items, "region"), api.compute_layer_rdm(layer, items, 2**30)
    assert api.compare_rdms(brain, model, "rho-a") > 0.5
    found = api.permute_labels([model], [brain], "rho-a", n_permutations=99, rng=rng, memory=2**30)
    assert found.p[0, 0] == pytest.approx(0.01)
