import logging
from itertools import pairwise

import numpy as np
import pytest

from dnnbrain_app.analyses.folds import (
    group_runs,
    group_stimuli,
    make_folds,
    make_volume_folds,
    merge_groups,
)
from dnnbrain_app.errors import BadDataError, UnknownNameError, UsageError
from dnnbrain_app.records import Trials


def _trials(stimuli: list[str], run: list[int], labels: tuple[str, ...]) -> Trials:
    n = len(stimuli)
    return Trials(np.arange(n, dtype=float), np.ones(n), np.array(stimuli), np.array(run), labels)


def test_each_row_is_in_one_fold_of_balanced_size(rng):
    folds = make_folds(97, 10, rng)
    assert sorted(np.concatenate(folds)) == list(range(97))
    assert {len(fold) for fold in folds} == {9, 10}


def test_folds_are_shuffled_and_repeatable():
    one, same, other = (make_folds(60, 5, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    assert all(np.ptp(fold) > 12 for fold in one)  # no fold is a block of neighbours (stimuli come sorted by category)


def test_a_group_is_never_split_and_sizes_stay_balanced(rng):
    groups = np.repeat(np.arange(12), rng.integers(1, 9, 12))
    folds = make_folds(len(groups), 4, rng, groups)
    assert sorted(np.concatenate(folds)) == list(range(len(groups)))
    owners = [set(groups[fold]) for fold in folds]
    assert sum(len(owner) for owner in owners) == 12
    sizes = [len(fold) for fold in folds]
    assert max(sizes) - min(sizes) <= np.bincount(groups).max()


@pytest.mark.parametrize(("n", "groups", "expected"), [(14, None, 4), (30, np.repeat([0, 1, 2], 10), 3)])
def test_fewer_folds_where_stimuli_or_groups_are_few(rng, caplog, n, groups, expected):
    with caplog.at_level(logging.WARNING):
        folds = make_folds(n, 10, rng, groups)
    assert len(folds) == expected
    assert min(len(fold) for fold in folds) >= 3
    assert f"{expected} folds instead of 10" in caplog.text


@pytest.mark.parametrize(
    ("n", "n_folds", "groups", "error", "words"),
    [
        (10, 1, None, UsageError, "1 fold"),
        (5, 2, None, BadDataError, "5 stimuli in 5 groups are too few"),
        (10, 2, np.zeros(10), BadDataError, "10 stimuli form 1 group"),
        (10, 2, np.repeat([0, 1], [9, 1]), BadDataError, "too few for 2 folds of at least 3"),
    ],
)
def test_impossible_folds(rng, n, n_folds, groups, error, words):
    with pytest.raises(error, match=words):
        make_folds(n, n_folds, rng, groups)


def test_stimuli_are_grouped_by_run_and_a_shared_stimulus_joins_runs():
    trials = _trials(list("abcdeaxf"), [0, 0, 1, 1, 2, 3, 3, 4], tuple(f"task-x_run-{i}" for i in range(5)))
    groups = group_stimuli(trials, list("abcdef"), "run", {})
    of = dict(zip("abcdef", groups, strict=True))
    assert of["a"] == of["b"]  # run 0 (and run 3, which shows a again)
    assert of["c"] == of["d"]
    assert len(set(groups)) == 4


def test_stimuli_are_grouped_by_session():
    labels = ("ses-01_task-x_run-1", "ses-01_task-x_run-2", "ses-02_task-x_run-1")
    groups = group_stimuli(_trials(list("abcd"), [0, 1, 2, 2], labels), list("abcd"), "session", {})
    assert groups[0] == groups[1] != groups[2] == groups[3]


def test_stimuli_are_grouped_by_a_column():
    trials = _trials(list("abc"), [0, 0, 0], ("task-x",))
    groups = group_stimuli(trials, list("abc"), "category", {"category": np.array(["face", "body", "face"])})
    assert groups[0] == groups[2] != groups[1]
    assert group_stimuli(trials, list("abc"), "stimulus", {}) is None


@pytest.mark.parametrize(
    ("stimuli", "run", "labels", "by", "error", "words"),
    [
        ("abab", [0, 0, 1, 1], ("run-1", "run-2"), "run", BadDataError, "repeat across runs.*folds_by=stimulus"),
        ("abcd", [0, 0, 0, 0], ("run-1",), "run", BadDataError, "one run.*folds_by=stimulus"),
        (
            "abcd",
            [0, 0, 1, 1],
            ("task-x_run-1", "task-x_run-2"),
            "session",
            BadDataError,
            "task-x_run-1 names no session",
        ),
        ("abcd", [0, 0, 1, 1], ("run-1", "run-2"), "categry", UnknownNameError, "'categry'; did you mean 'category'"),
    ],
)
def test_groupings_that_cannot_be(stimuli, run, labels, by, error, words):
    with pytest.raises(error, match=words):
        group_stimuli(_trials(list(stimuli), run, labels), sorted(set(stimuli)), by, {"category": np.zeros(4)})


def test_merged_groups_join_what_any_grouping_joins():
    by_run = np.array([0, 0, 1, 1, 2, 3])
    copies = np.array(["a", "b", "b", "c", "d", "e"])
    assert len(set(merge_groups(by_run, copies)[:4])) == 1
    assert len(set(merge_groups(by_run, copies))) == 3
    assert merge_groups(None, np.array(["a", "b", "c"])) is None
    assert merge_groups(None, np.array(["a", "b", "a"])).tolist() == [0, 1, 0]


# Volumes ------------------------------------------------------------------------------------------------------------


def make_shown(*runs):
    """Trials of runs that each show these stimuli."""
    stimulus = np.array([name for names in runs for name in names], dtype=object)
    run = np.repeat(np.arange(len(runs)), [len(names) for names in runs])
    times = np.arange(len(run), dtype=float)
    return Trials(times, np.ones(len(run)), stimulus, run, tuple(f"run-{i}" for i in range(len(runs))))


def test_runs_that_share_stimuli_hang_together():
    groups = group_runs(make_shown("ab", "cd", "be", "fg"))
    assert groups[0] == groups[2]
    assert len(set(groups.tolist())) == 3


def test_whole_runs_are_held_out(rng):
    run = np.repeat(np.arange(4), 50)
    folds = make_volume_folds(run, group_runs(make_shown("ab", "cd", "be", "fg")), 2.0, 10, rng)
    assert sorted(np.concatenate(folds).tolist()) == list(range(200))
    assert sorted(sorted(set(run[fold].tolist())) for fold in folds) == [[0, 2], [1], [3]]


def test_blocks_of_a_single_run_keep_their_distance(rng):
    folds = make_volume_folds(np.zeros(300, dtype=int), np.zeros(1, dtype=int), 2.0, 10, rng)
    assert len(folds) == 7  # of a minute at least, with 20 s between two
    assert all(len(fold) >= 30 for fold in folds)
    assert all(later[0] - earlier[-1] == 11 for earlier, later in pairwise(folds))
    assert folds[0][0] == 0
    assert folds[-1][-1] == 299


def test_runs_that_all_show_the_same_cannot_be_divided(rng):
    with pytest.raises(BadDataError, match=r"no run can be held out without its stimuli; .* \(--response-model lss"):
        make_volume_folds(np.repeat([0, 1], 50), group_runs(make_shown("ab", "ab")), 2.0, 10, rng)


def test_a_short_run_cannot_be_divided(rng):
    with pytest.raises(BadDataError, match="one run of 120 s cannot be divided"):
        make_volume_folds(np.zeros(60, dtype=int), np.zeros(1, dtype=int), 2.0, 10, rng)
