"""Where voxels lie, and which of them lie together."""

from __future__ import annotations

import numpy as np

from dnnbrain_app.records import Array


def divide_space(positions: Array, size: int) -> list[Array]:
    """Divide points into compact blocks: across the longest side, into halves, while there are more than ``size``.

    Parameters
    ----------
    positions : array of shape (n, 3)
        Coordinates.
    size : int
        The most points of a block.

    Returns
    -------
    list of array of int
        Rows of each block, neighbours in the list being neighbours in space.
    """
    waiting, blocks = [np.arange(len(positions))], []
    while waiting:
        rows = waiting.pop()
        if len(rows) <= size:
            blocks.append(rows)
            continue
        axis = np.ptp(positions[rows], axis=0).argmax()
        order = rows[np.argpartition(positions[rows, axis], len(rows) // 2)]
        waiting += [order[len(rows) // 2 :], order[: len(rows) // 2]]
    return blocks
