"""Features between the forward pass and what is made of them, in shards that survive the end of the process."""

from __future__ import annotations

import contextlib
import mmap
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np

from dnnbrain_app.derivatives.files import explain_os_error
from dnnbrain_app.derivatives.shards import Plan, Shards, clear
from dnnbrain_app.records import Array

_PIECE = 2**26  # bytes to copy at once


class MappedRows(np.memmap[Any, Any]):
    """Rows in a file, of which only those that were selected last count as memory of this process.

    A plain map keeps every page that was ever touched, and so in the end the whole file. Selected rows are read from
    the file again if they are selected again, so they should be many at a time.
    """

    def __getitem__(self, index: Any) -> Any:
        mapped: mmap.mmap | None = getattr(self, "_mmap", None)  # not where self is a copy of rows
        if mapped is not None:
            mapped.madvise(mmap.MADV_DONTNEED)
        selected = super().__getitem__(index)
        is_copy = isinstance(selected, np.memmap) and getattr(selected, "_mmap", None) is None
        return np.asarray(selected) if is_copy else selected


class _Place(Protocol):
    """Where features are."""

    def pending(self) -> list[range]: ...
    def write(self, layer: str, start_row: int, rows: Array) -> None: ...
    def commit(self, rows: range, extras: Mapping[str, Array]) -> None: ...
    def extras(self) -> list[Mapping[str, Array]]: ...
    def read(self, layer: str, rows: range, features: range) -> Array: ...
    def close(self) -> None: ...


class FeatureStore:
    """Features of all layers, in memory while they fit, else in shards of stimuli in a folder.

    A shard is there whole or not at all, whatever happens to the process, so the next run goes on with the shards that
    are missing. Leaving the ``with`` keeps them; `remove` is for when they are needed no more. The caller sees to it
    that no other process uses the folder, and that the folder's name tells what the features depend on.

    Parameters
    ----------
    folder : Path
        Where the shards are made, once they are needed.
    memory : int
        Bytes of memory to use at most.
    shard : int
        Stimuli in a shard.

    Examples
    --------
    >>> with FeatureStore(Path("unused"), memory=1000) as store:
    ...     store.open({"fc": (3,)}, n_stimuli=2)
    ...     for rows in store.pending():
    ...         store.write("fc", rows.start, np.eye(2, 3, dtype=np.float32))
    ...         store.commit(rows, {})
    ...     [block.shape for block in store.blocks("fc", width=2)]
    [(2, 2), (2, 1)]
    """

    def __init__(self, folder: Path, memory: int, *, shard: int = 512) -> None:
        self._folder = folder
        self._memory = memory
        self._shard = shard
        self._plan = Plan({}, 0, shard)
        self._place: _Place = _Memory(self._plan)
        self._written: dict[str, Array] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._place.close()

    def open(self, shapes: Mapping[str, tuple[int, ...]], n_stimuli: int) -> None:
        """Plan the room for all layers; shards of the same plan that are there already count.

        Parameters
        ----------
        shapes : mapping of str to tuple of int
            Shape of one stimulus's activations, by layer.
        n_stimuli : int
            Rows of every layer.

        Raises
        ------
        CannotWriteError
            They fit neither the memory nor the disk, or the folder cannot be made.
        """
        self._plan = Plan(dict(shapes), n_stimuli, self._shard)
        in_memory = self.n_bytes <= self._memory and n_stimuli <= self._shard
        self._place = _Memory(self._plan) if in_memory else Shards(self._folder, self._plan)
        self._written = {name: np.zeros(n_stimuli, dtype=bool) for name in shapes}

    @property
    def n_bytes(self) -> int:
        """Bytes of all features."""
        return self._plan.n_stimuli * self._plan.row_bytes

    @property
    def n_stimuli(self) -> int:
        """Rows of every layer."""
        return self._plan.n_stimuli

    @property
    def layers(self) -> tuple[str, ...]:
        """Names, in the order in which they were planned."""
        return tuple(self._plan.shapes)

    def shape(self, layer: str) -> tuple[int, ...]:
        """Shape of one stimulus's activations."""
        return self._plan.shapes[layer]

    def pending(self) -> list[range]:
        """List the rows of each shard that is not there yet, to be written and committed."""
        return self._place.pending()

    def write(self, layer: str, start_row: int, rows: Array) -> None:
        """Put rows (n, n_features) of a layer, from row `start_row` on, all in one of the shards that are pending.

        Raises
        ------
        CannotWriteError, InputOutputError
            The disk is full, or fails.
        """
        assert rows.shape[1] == self._plan.size(layer)
        self._place.write(layer, start_row, rows)
        self._written[layer][start_row : start_row + len(rows)] = True

    def commit(self, rows: range, extras: Mapping[str, Array]) -> None:
        """Declare a shard whole, and keep small arrays with it.

        Parameters
        ----------
        rows : range
            As `pending` gave it; all layers have been written.
        extras : mapping of str to array
            What else the next run needs of these stimuli.

        Raises
        ------
        CannotWriteError, InputOutputError
            The disk is full, or fails.
        """
        missing = [layer for layer, written in self._written.items() if not written[rows.start : rows.stop].all()]
        assert not missing, f"rows of {missing} were never written"
        self._place.commit(rows, extras)

    def extras(self) -> list[Mapping[str, Array]]:
        """Return what was kept with each shard, in the order of the rows."""
        return self._place.extras()

    def blocks(self, layer: str, width: int) -> Iterator[Array]:
        """Iterate over the features, `width` at a time: float32 (n_stimuli, <= width)."""
        size = self._plan.size(layer)
        for start in range(0, size, width):
            yield self._place.read(layer, range(self.n_stimuli), range(start, min(start + width, size)))

    def take(self, layer: str, rows: Sequence[int] | Array) -> Array:
        """Return some rows of a layer, float32 (len(rows), n_features); may be a view of the store's own.

        Rows that follow each other are read together.
        """
        rows = np.asarray(rows, dtype=int)
        features = range(self._plan.size(layer))
        runs = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)
        pieces = [self._place.read(layer, range(run[0], run[-1] + 1), features) for run in runs if len(run)]
        return pieces[0] if len(pieces) == 1 else np.concatenate([np.empty((0, len(features)), np.float32), *pieces])

    def read(self, layer: str) -> Array:
        """Return all features of a layer, float32 (n_stimuli, n_features), not to be changed.

        Where they are larger than the memory they are a read-only map of a file (`MappedRows`): take some rows at a
        time.
        """
        if 4 * self.n_stimuli * self._plan.size(layer) <= self._memory:
            return self.take(layer, range(self.n_stimuli))
        try:
            return self._map(layer)
        except OSError as error:
            raise explain_os_error(error, self._folder) from error

    def _map(self, layer: str) -> Array:
        size = self._plan.size(layer)
        step = max(1, _PIECE // (4 * size))
        with tempfile.TemporaryFile(dir=self._folder) as file:  # without a name: it goes with the array
            for start in range(0, self.n_stimuli, step):
                file.write(self.take(layer, range(start, min(start + step, self.n_stimuli))).data)
            file.flush()
            return np.memmap(file, np.float32, "r", shape=(self.n_stimuli, size)).view(MappedRows)

    def remove(self) -> None:
        """Forget all features, also those on the disk."""
        self._place.close()
        self._place = _Memory(Plan({}, 0, self._shard))
        with contextlib.suppress(OSError):
            clear(self._folder)


class _Memory:
    """One shard, in memory."""

    def __init__(self, plan: Plan) -> None:
        self._rows = plan.rows
        self._arrays = {name: np.empty((plan.n_stimuli, plan.size(name)), np.float32) for name in plan.shapes}
        self._extras: list[Mapping[str, Array]] = []

    def pending(self) -> list[range]:
        return self._rows[len(self._extras) :]

    def write(self, layer: str, start_row: int, rows: Array) -> None:
        self._arrays[layer][start_row : start_row + len(rows)] = rows

    def commit(self, rows: range, extras: Mapping[str, Array]) -> None:
        assert rows in self.pending()
        self._extras.append(dict(extras))

    def extras(self) -> list[Mapping[str, Array]]:
        return self._extras

    def read(self, layer: str, rows: range, features: range) -> Array:
        return self._arrays[layer][rows.start : rows.stop, features.start : features.stop]

    def close(self) -> None:
        self._arrays.clear()
