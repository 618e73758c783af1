"""Which stimuli are held out together."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from dnnbrain_app.errors import BadDataError, UnknownNameError, UsageError
from dnnbrain_app.records import Array, Trials

logger = logging.getLogger(__name__)

SMALLEST_FOLD = 3  # the correlation of two points is always 1 or -1
BLOCK_SECONDS = 60.0  # shortest block of a run that is held out
GAP_SECONDS = 20.0  # left out between blocks: most of a haemodynamic response, and of what noise remembers


def make_folds(n: int, n_folds: int, rng: np.random.Generator, groups: Array | None = None) -> list[Array]:
    """Divide stimuli at random into folds of nearly equal size.

    Groups are shuffled and dealt, largest first, each to the fold that is smallest so far. Where ``n_folds`` would
    leave a fold with fewer than three stimuli, or is more than the number of groups, fewer folds are made.

    Parameters
    ----------
    n : int
        Number of stimuli.
    n_folds : int
        Number of folds wanted, 2 or more.
    rng : numpy.random.Generator
        Shuffles.
    groups : array of shape (n,), optional
        Stimuli with the same value stay in one fold. Default: each stimulus is a group.

    Returns
    -------
    list of array of int
        The sorted rows of each fold; every row is in exactly one.

    Raises
    ------
    UsageError
        For fewer than two folds.
    BadDataError
        For fewer than two groups, or stimuli too few for two folds of three.
    """
    if n_folds < 2:
        raise UsageError(f"{n_folds} fold(s) asked for; cross-validation needs at least 2")
    _, members = np.unique(np.arange(n) if groups is None else groups, return_inverse=True)
    sizes = np.bincount(members)
    if len(sizes) < 2:
        raise BadDataError(
            f"the {n} stimuli form {len(sizes)} group(s); at least 2 are needed, one to train and one to test"
        )
    shuffled = rng.permutation(len(sizes))
    shuffled = shuffled[np.argsort(-sizes[shuffled], kind="stable")]
    for count in range(min(n_folds, len(sizes), max(n // SMALLEST_FOLD, 2)), 1, -1):
        fold_of_group, fold_sizes = _deal(sizes, shuffled, count)
        if fold_sizes.min() >= SMALLEST_FOLD:
            if count < n_folds:
                logger.warning(
                    "%d folds instead of %d: %d stimuli in %d groups allow no more", count, n_folds, n, len(sizes)
                )
            return [np.flatnonzero(fold_of_group[members] == fold) for fold in range(count)]
    raise BadDataError(
        f"{n} stimuli in {len(sizes)} groups are too few for 2 folds of at least {SMALLEST_FOLD} stimuli"
    )


def _deal(sizes: Array, order: Array, count: int) -> tuple[Array, Array]:
    """Give each group, in order, to the smallest of ``count`` folds; return the fold of each group, and the sizes."""
    fold_of_group = np.empty(len(sizes), dtype=int)
    fold_sizes = np.zeros(count, dtype=int)
    for group in order:
        fold = fold_sizes.argmin()
        fold_of_group[group] = fold
        fold_sizes[fold] += sizes[group]
    return fold_of_group, fold_sizes


def group_stimuli(trials: Trials, stimuli: Sequence[str], by: str, attributes: Mapping[str, Array]) -> Array | None:
    """Say which stimuli must be held out together.

    By ``run`` or ``session``, stimuli that were shown in one run (session) form a group; a stimulus that was shown in
    two merges their groups, so that training and test sets share neither a stimulus nor a run.

    Parameters
    ----------
    trials : Trials
        All presentations.
    stimuli : sequence of str, length n_stimuli
        The stimuli that are modelled.
    by : str
        ``stimulus``, ``run``, ``session``, or a column of the attributes.
    attributes : mapping of str to array of shape (n_stimuli,)
        Columns of ``stimuli.tsv``.

    Returns
    -------
    array of int, shape (n_stimuli,), or None
        The group of each stimulus; None where each is its own.

    Raises
    ------
    UnknownNameError
        ``by`` is no column.
    BadDataError
        The runs (sessions) cannot be told apart, or all hang together by stimuli that repeat.
    """
    if by == "stimulus":
        return None
    if by not in ("run", "session"):
        if by not in attributes:
            raise UnknownNameError("grouping of folds", by, ("stimulus", "run", "session", *attributes))
        return np.unique(np.asarray(attributes[by], dtype=str), return_inverse=True)[1]
    row_of = {name: row for row, name in enumerate(stimuli)}
    shown = np.array([name in row_of for name in trials.stimulus], dtype=bool)
    rows = np.array([row_of[name] for name in trials.stimulus[shown]], dtype=int)
    blocks = (trials.run if by == "run" else _number_sessions(trials.run_labels)[trials.run])[shown]
    if len(np.unique(blocks)) < 2:
        raise BadDataError(
            f"all stimuli were shown in one {by}, which leaves no other to test on; use folds_by=stimulus"
        )
    n_blocks = int(blocks.max()) + 1
    n_nodes = n_blocks + len(stimuli)
    graph = coo_array((np.ones(len(rows)), (blocks, rows + n_blocks)), shape=(n_nodes, n_nodes))
    groups = connected_components(graph, directed=False)[1][n_blocks:]
    if len(np.unique(groups)) < 2:
        raise BadDataError(
            f"stimuli repeat across {by}s, so that no {by} can be held out without its stimuli; use folds_by=stimulus"
        )
    return np.asarray(groups)


def group_runs(trials: Trials) -> Array:
    """Put runs into one group that show a stimulus in common, directly or by way of others.

    Returns
    -------
    array of int, shape (n_runs,)
    """
    names, stimulus = np.unique(trials.stimulus.astype(str), return_inverse=True)
    n_runs = len(trials.run_labels)
    size = n_runs + len(names)
    graph = coo_array((np.ones(len(trials)), (trials.run, stimulus + n_runs)), shape=(size, size))
    return np.asarray(connected_components(graph, directed=False)[1][:n_runs])


def make_volume_folds(
    run: Array, groups: Array, repetition_time: float, n_folds: int, rng: np.random.Generator
) -> list[Array]:
    """Divide volumes into folds, by runs or, where there is one only, by blocks of it.

    Runs that share stimuli stay together, as a model that has seen a stimulus knows it. A single run is cut into blocks
    of a minute or more, and 20 s between two blocks are in no fold, so that neither the response to what was shown
    nor the autocorrelation of noise reaches from training into test.

    Parameters
    ----------
    run : array of int, shape (n_volumes,)
        Run of each volume, in order of time.
    groups : array of shape (n_runs,)
        From `group_runs`.
    repetition_time : float
        Seconds.
    n_folds : int
        Wanted.
    rng : numpy.random.Generator
        Deals runs to folds.

    Returns
    -------
    list of array of int
        Rows of each fold; not every row is in one.

    Raises
    ------
    BadDataError
        All runs hang together by stimuli that repeat, or a single run is too short.
    """
    if len(np.unique(groups[np.unique(run)])) > 1:
        return make_folds(len(run), n_folds, rng, groups[run])
    if len(np.unique(run)) > 1:
        raise BadDataError(
            "stimuli repeat across runs, so that no run can be held out without its stimuli; "
            "estimate responses to them instead (--response-model lss)"
        )
    gap = round(GAP_SECONDS / repetition_time)
    longest = int((len(run) + gap) // (BLOCK_SECONDS / repetition_time + gap))
    if longest < 2:
        raise BadDataError(
            f"one run of {len(run) * repetition_time:.0f} s cannot be divided: two blocks of {BLOCK_SECONDS:g} s with "
            f"{GAP_SECONDS:g} s between them are needed"
        )
    edges = np.linspace(0, len(run) + gap, min(n_folds, longest) + 1).round().astype(int)
    return [np.arange(start, stop - gap) for start, stop in pairwise(edges)]


def merge_groups(*groupings: Array | None) -> Array | None:
    """Put items into one group that share a group in any of the groupings.

    Parameters
    ----------
    *groupings : array of shape (n,), or None
        Labels; None, or labels that are all different, put nothing together.

    Returns
    -------
    array of int, shape (n,), or None
        None where every item is its own group.
    """
    numbered = [np.unique(labels, return_inverse=True)[1] for labels in groupings if labels is not None]
    numbered = [labels for labels in numbered if len(set(labels.tolist())) < len(labels)]
    if not numbered:
        return None
    n = len(numbered[0])
    rows = np.tile(np.arange(n), len(numbered))
    columns = np.concatenate([labels + n * (k + 1) for k, labels in enumerate(numbered)])
    size = n * (len(numbered) + 1)
    graph = coo_array((np.ones(len(rows)), (rows, columns)), shape=(size, size))
    return np.unique(connected_components(graph, directed=False)[1][:n], return_inverse=True)[1]


def _number_sessions(run_labels: Sequence[str]) -> Array:
    """Give each run the number of its session."""
    found = [re.search(r"(?:^|_)ses-([^_]+)", label) for label in run_labels]
    without = [label for label, match in zip(run_labels, found, strict=True) if match is None]
    if without:
        raise BadDataError(
            f"folds_by=session, but {without[0]} names no session (ses-<label>); use folds_by=run or stimulus"
        )
    return np.unique([match[1] for match in found if match], return_inverse=True)[1]
