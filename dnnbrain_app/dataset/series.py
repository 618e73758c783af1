"""Values of preprocessed data: the columns asked for, and no more than a slab of the file besides."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.gifti.parse_gifti_fast import GiftiImageParser

from dnnbrain_app.dataset.headers import open_matrix, opening
from dnnbrain_app.errors import BadDataError
from dnnbrain_app.records import Array

_SLAB = 1 << 25  # bytes


def read_matrix(path: Path, columns: range, n_columns: int, out: Array) -> None:
    """Read columns of a CIFTI file of `n_columns` into an array (n_maps, n_chosen)."""
    with opening(path):
        matrix = open_matrix(path)
        if matrix.shape[1] != n_columns:
            raise BadDataError(f"{path}: {matrix.shape[1]} grayordinates, not the {n_columns} of the other runs")
        _check_volumes(path, matrix.shape[0], out)
        step = max(1, _SLAB // (8 * len(out)))
        for start in range(0, len(columns), step):
            some = columns[start : start + step]
            # the values of one column lie together in the file
            out[:, start : start + step] = matrix[:, some.start : some.stop]


def read_hemisphere(path: Path, vertices: Array, out: Array) -> None:
    """Read vertices of a GIFTI file into an array (n_maps, n_vertices)."""
    with opening(path), path.open("rb") as file:
        parser = _Arrays(vertices, out)
        parser.parse(fptr=file)
        _check_volumes(path, parser.n_read, out)


def read_volumes(image: Any, path: Path, places: Array, out: Array) -> None:
    """Read elements of each volume, numbered with the first axis fastest, into an array (n_volumes, n_places).

    The image must keep its file open: a compressed one would be decompressed from its start for every slab.
    """
    with opening(path):
        _check_volumes(path, count_volumes(image), out)
        for start, slab in read_slabs(image):
            out[start : start + slab.shape[3]] = slab.reshape(-1, slab.shape[3], order="F")[places].T


def read_slabs(image: Any) -> Iterator[tuple[int, Array]]:
    """Read a series of volumes some at a time: yields the number of the first, and an array (x, y, z, n_volumes)."""
    step = max(1, _SLAB // (8 * int(np.prod(image.shape[:3]))))
    for start in range(0, count_volumes(image), step):
        slab = image.dataobj[..., start : start + step] if len(image.shape) == 4 else image.dataobj
        yield start, np.asarray(slab, dtype=np.float32).reshape(*image.shape[:3], -1, order="F")


def count_volumes(image: Any) -> int:
    """Count the volumes of a nibabel image; a single one may lack the fourth axis."""
    return int(image.shape[3]) if len(image.shape) == 4 else 1


def _check_volumes(path: Path, n_volumes: int, out: Array) -> None:
    if n_volumes != len(out):
        raise BadDataError(f"{path}: data of {n_volumes} volumes, not the {len(out)} that it had when it was found")


class _Arrays(GiftiImageParser):  # type: ignore[misc]  # nibabel counts as unannotated
    """Takes what is wanted of each array when its end is read, and forgets it: nibabel alone would hold them all."""

    def __init__(self, vertices: Array, out: Array) -> None:
        super().__init__(buffer_size=1 << 20)
        self.n_read, self._vertices, self._out = 0, vertices, out

    def EndElementHandler(self, name: str) -> None:  # noqa: N802 - expat's name
        super().EndElementHandler(name)
        if name == "DataArray":
            array = self.img.darrays[-1]
            rows = np.atleast_2d(array.data.T)  # one array a volume, or one of vertices x volumes
            array.data = None
            out = self._out[self.n_read : self.n_read + len(rows)]
            out[:] = rows[: len(out), self._vertices]
            self.n_read += len(rows)
