"""Folds and permutations of an attribute."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from dnnbrain_app.errors import BadDataError
from dnnbrain_app.records import Array


@dataclass(frozen=True, slots=True, eq=False)
class Shuffle:
    """Which permutations of an attribute are as likely as the true order where there is nothing to decode.

    Parameters
    ----------
    units : array of shape (n_rows,), optional
        Rows of one unit have one value, and keep having one: responses to repeats of a stimulus. Default: each row.
    blocks : array of shape (n_rows,), optional
        Values change places within blocks only: runs, where each run shows all classes.
    """

    units: Array | None = None
    blocks: Array | None = None

    def draw(self, target: Array, rng: np.random.Generator) -> Array:
        """Permute a target, (n_rows,)."""
        n = len(target)
        units = np.arange(n) if self.units is None else np.unique(self.units, return_inverse=True)[1]
        _, first = np.unique(units, return_index=True)
        blocks = np.zeros(len(first), dtype=int) if self.blocks is None else np.asarray(self.blocks)[first]
        values = target[first]
        for block in np.unique(blocks):
            rows = np.flatnonzero(blocks == block)
            values[rows] = rng.permutation(values[rows])
        return values[units]


def make_balanced_folds(
    target: Array, n_folds: int, rng: np.random.Generator, groups: Array | None = None
) -> list[Array]:
    """Divide rows at random into folds with about the same share of each class.

    Parameters
    ----------
    target : array of shape (n_rows,)
        Classes.
    n_folds : int
        Wanted; fewer where a class has fewer members (or groups).
    rng : numpy.random.Generator
        Shuffles.
    groups : array of shape (n_rows,), optional
        Rows that stay in one fold.

    Raises
    ------
    BadDataError
        A class with fewer than two members (or groups).
    """
    classes, members = np.unique(target, return_inverse=True)
    kept = np.arange(len(target)) if groups is None else np.unique(groups, return_inverse=True)[1]
    sizes = np.array([len(set(kept[members == k])) for k in range(len(classes))])
    if len(classes) < 2 or sizes.min() < 2:
        name = classes[sizes.argmin()]
        raise BadDataError(
            f"{len(classes)} classes, of which {name} has {sizes.min()} member(s) that can be in a fold of its own; "
            "at least 2 classes with 2 members each are needed"
        )
    splitter = StratifiedKFold if groups is None else StratifiedGroupKFold
    splitter = splitter(min(n_folds, int(sizes.min())), shuffle=True, random_state=int(rng.integers(2**31)))
    folds = splitter.split(members, members, None if groups is None else kept)
    return [test for _, test in folds if len(test)]
