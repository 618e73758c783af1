"""Pairs of repeats: those of a loop over trials."""

import numpy as np
import pytest

from dnnbrain_app.records import Trials
from dnnbrain_app.responses.repeats import Repeats


def make_trials(rng, stimulus, run):
    n = len(stimulus)
    return Trials(rng.uniform(0, 99, n), np.ones(n), np.array(stimulus), np.array(run), ("run-1", "run-2", "run-3"))


def test_errors_are_those_of_a_loop_over_pairs(rng):
    stimulus, run = rng.choice(list("abcde"), 40), rng.integers(0, 3, 40)
    repeats = Repeats(make_trials(rng, stimulus, run))
    assert repeats
    references, candidates = rng.standard_normal((40, 6)), rng.standard_normal((3, 40, 6))
    pairs = [(i, j) for i in range(40) for j in range(40) if stimulus[i] == stimulus[j] and run[i] != run[j]]
    expected = [sum((b[i] - references[j]) ** 2 for i, j in pairs) for b in candidates]
    found = repeats.measure_errors(candidates, references)
    np.testing.assert_allclose(found - found[0], np.array(expected) - expected[0], rtol=1e-4, atol=1e-3)
    partners = [sum(references[j] for a, j in pairs if a == i) for i in range(40)]
    np.testing.assert_allclose(repeats.sum_partners(references), partners, atol=1e-5)


@pytest.mark.parametrize(("stimulus", "run"), [("abcd", [0, 0, 1, 2]), ("aabb", [0, 0, 1, 1])])
def test_repeats_within_a_run_are_none(rng, stimulus, run):
    assert not Repeats(make_trials(rng, list(stimulus), run))
