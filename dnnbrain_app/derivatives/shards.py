"""Shards of features on the disk: a folder for some hundred stimuli, there whole or not at all."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dnnbrain_app.derivatives.files import explain_os_error, write_json
from dnnbrain_app.errors import CannotWriteError, InputOutputError
from dnnbrain_app.records import Array

_VERSION = 1  # raise it when the layout of a shard changes
_WIDTH = 4096  # features side by side: a block of all stimuli is read at the disk's speed
_LARGEST_BLOCK = 2**28  # bytes of such a block
_VALUES, _EXTRAS, _PLAN = "features.f32", "extras.npy", "plan.json"


@dataclass(frozen=True, slots=True)
class Plan:
    """How the features of all layers lie in shards.

    Parameters
    ----------
    shapes : mapping of str to tuple of int
        Shape of one stimulus's activations, by layer.
    n_stimuli : int
        Rows of every layer.
    shard : int
        Stimuli in a shard.
    """

    shapes: Mapping[str, tuple[int, ...]]
    n_stimuli: int
    shard: int

    @property
    def width(self) -> int:
        """Features in a block: fewer of very many stimuli, because a block of all stimuli must fit the memory."""
        width = _WIDTH
        while width > 64 and 4 * self.n_stimuli * width > _LARGEST_BLOCK:
            width //= 2
        return width

    @property
    def rows(self) -> list[range]:
        """The stimuli of each shard."""
        return [range(start, min(start + self.shard, self.n_stimuli)) for start in range(0, self.n_stimuli, self.shard)]

    def size(self, layer: str) -> int:
        """Features of a layer."""
        return math.prod(self.shapes[layer])

    @property
    def row_bytes(self) -> int:
        """Bytes of a stimulus, all layers together."""
        return 4 * sum(map(self.size, self.shapes))

    def blocks(self, layer: str, n_rows: int) -> Iterator[tuple[range, int]]:
        """Iterate over the blocks of a layer in a shard of so many rows: features, and where in the file they start."""
        names = list(self.shapes)
        offset = 4 * n_rows * sum(map(self.size, names[: names.index(layer)]))
        size, width = self.size(layer), self.width
        for start in range(0, size, width):
            yield range(start, min(start + width, size)), offset + 4 * n_rows * start


class Shards:
    """A folder a shard: ``shard-0003.part`` while it is written, then ``shard-0003``.

    In it is one file with the layers one after another, each cut into blocks of features: (n_blocks, rows, width). All
    that is public is described by `features.FeatureStore`.

    Parameters
    ----------
    folder : Path
        Holds the shards, and the plan by which they were made.
    plan : Plan
        Shards of another one are removed.

    Raises
    ------
    CannotWriteError
        The disk is too small, or the folder cannot be made.
    """

    def __init__(self, folder: Path, plan: Plan) -> None:
        self._folder = folder
        self._plan = plan
        self._rows = plan.rows
        self._files: dict[int, int] = {}  # of the shards that are being written
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._keep_only_whole()
            self._check_room()
        except OSError as error:
            raise explain_os_error(error, folder) from error
        except CannotWriteError:
            self.close()
            raise

    def _keep_only_whole(self) -> None:
        """Remove the shards of another plan, and those that were not finished."""
        plan = {
            "version": _VERSION,
            "shapes": [[name, list(shape)] for name, shape in self._plan.shapes.items()],
            "n_stimuli": self._plan.n_stimuli,
            "shard": self._plan.shard,
            "width": self._plan.width,
        }
        path = self._folder / _PLAN
        if _read_json(path) != plan:
            clear(self._folder)
            self._folder.mkdir(exist_ok=True)
            write_json(path, plan)
        whole = {self._path(i) for i in range(len(self._rows)) if self._is_whole(i)}
        for path in self._folder.glob("shard-*"):
            if path not in whole:
                shutil.rmtree(path)

    def _is_whole(self, shard: int) -> bool:
        """Whether it has its name, which it gets last, and nobody has touched it since."""
        try:
            size = (self._path(shard) / _VALUES).stat().st_size
        except OSError:
            return False
        return size == len(self._rows[shard]) * self._plan.row_bytes and (self._path(shard) / _EXTRAS).exists()

    def _check_room(self) -> None:
        needed = sum(map(len, self.pending())) * self._plan.row_bytes
        total, _, free = shutil.disk_usage(self._folder)
        if needed <= free or not total:  # some network file systems do not tell
            return
        n, sizes = self._plan.n_stimuli, {name: self._plan.size(name) for name in self._plan.shapes}
        largest = max(sizes, key=lambda name: sizes[name])
        more = ", or more --mem" if n <= self._plan.shard else ""  # more stimuli never stay in memory
        raise CannotWriteError(
            f"the activations of {n} stimuli in {len(sizes)} layers need {needed / 1e9:,.1f} GB of scratch space, but "
            f"{self._folder} has {free / 1e9:,.1f} GB; the largest layer, {largest}, takes "
            f"{4 * n * sizes[largest] / 1e9:,.1f} GB. Choose fewer layers, --pool, another --work-dir{more}"
        )

    def _path(self, shard: int) -> Path:
        return self._folder / f"shard-{shard:04d}"

    def _part(self, shard: int) -> Path:
        return self._folder / f"shard-{shard:04d}.part"

    def pending(self) -> list[range]:
        """List the rows of each shard that is not there."""
        return [rows for i, rows in enumerate(self._rows) if not self._path(i).exists()]

    def write(self, layer: str, start_row: int, rows: Array) -> None:
        """Put rows into a shard that is pending."""
        shard = start_row // self._plan.shard
        within = self._rows[shard]
        assert within.start <= start_row <= start_row + len(rows) <= within.stop, f"rows outside the shard {within}"
        try:
            file = self._files[shard] if shard in self._files else self._begin(shard)
            for features, offset in self._plan.blocks(layer, len(within)):
                block = np.ascontiguousarray(rows[:, features.start : features.stop], dtype=np.float32)
                _put(file, block, offset + 4 * len(features) * (start_row - within.start))
        except OSError as error:
            raise explain_os_error(error, self._part(shard)) from error

    def _begin(self, shard: int) -> int:
        self._part(shard).mkdir()
        file = os.open(self._part(shard) / _VALUES, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        self._files[shard] = file
        return file

    def commit(self, rows: range, extras: Mapping[str, Array]) -> None:
        """Bring a shard to the disk, then give it its name."""
        shard = self._rows.index(rows)
        part = self._part(shard)
        try:
            (part / _EXTRAS).write_bytes(_pack(extras))
            _flush(part / _EXTRAS)
            os.fsync(self._files[shard])
            _flush_folder(part)
            os.close(self._files.pop(shard))
            part.rename(self._path(shard))
        except OSError as error:
            raise explain_os_error(error, part) from error
        _flush_folder(self._folder)

    def extras(self) -> list[Mapping[str, Array]]:
        """Read what was kept with each shard."""
        return [_unpack(self._path(i) / _EXTRAS) for i in range(len(self._rows))]

    def read(self, layer: str, rows: range, features: range) -> Array:
        """Read a part of a layer, float32 (len(rows), len(features))."""
        X = np.empty((len(rows), len(features)), np.float32)
        for shard in range(rows.start // self._plan.shard, math.ceil(rows.stop / self._plan.shard)):
            path = self._path(shard) / _VALUES
            try:
                with path.open("rb") as file:
                    self._fill(X, file, layer, shard, rows, features)
            except OSError as error:
                raise InputOutputError(f"reading {path} failed: {error}; run again") from error
        return X

    def _fill(self, X: Array, file: io.BufferedReader, layer: str, shard: int, rows: range, features: range) -> None:
        """Read what `rows` and `features` have in common with a shard into their places in X."""
        there = self._rows[shard]
        wanted = range(max(there.start, rows.start), min(there.stop, rows.stop))
        lines = slice(wanted.start - rows.start, wanted.stop - rows.start)
        for block, offset in self._plan.blocks(layer, len(there)):
            start, stop = max(block.start, features.start), min(block.stop, features.stop)
            if start >= stop:
                continue
            is_all = block == features
            target = X[lines] if is_all else np.empty((len(wanted), len(block)), np.float32)
            file.seek(offset + 4 * len(block) * (wanted.start - there.start))
            if file.readinto(target.data) != target.nbytes:
                raise OSError("the file is too short")
            if not is_all:
                X[lines, start - features.start : stop - features.start] = target[
                    :, start - block.start : stop - block.start
                ]

    def close(self) -> None:
        """Remove the shards that are not whole; the folder too, if none is."""
        for shard, file in self._files.items():
            os.close(file)
            shutil.rmtree(self._part(shard), ignore_errors=True)
        self._files.clear()
        if not any(self._folder.glob("shard-*")):
            with contextlib.suppress(OSError):
                clear(self._folder)


def _put(file: int, block: Array, offset: int) -> None:
    view = block.data.cast("B")
    while view:
        n_bytes = os.pwrite(file, view, offset)
        view, offset = view[n_bytes:], offset + n_bytes


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flush_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # some network file systems cannot
        _flush(folder)


def _pack(arrays: Mapping[str, Array]) -> bytes:
    buffer = io.BytesIO()
    for array in (np.array(list(arrays), dtype=str), *arrays.values()):
        np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _unpack(path: Path) -> dict[str, Array]:
    try:
        with path.open("rb") as file:
            return {str(name): np.load(file, allow_pickle=False) for name in np.load(file, allow_pickle=False)}
    except (OSError, ValueError, EOFError) as error:
        raise InputOutputError(f"reading {path} failed: {error}; run again") from error


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def clear(folder: Path) -> None:
    """Remove what is ours in a folder, the plan first: without it the shards count for nothing; then the folder."""
    (folder / _PLAN).unlink(missing_ok=True)
    for shard in folder.glob("shard-*"):
        shutil.rmtree(shard)
    with contextlib.suppress(OSError):  # what is not ours stays
        folder.rmdir()
