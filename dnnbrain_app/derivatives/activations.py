"""Activations out and in again, in the ``.act.h5`` layout of the original DNNBrain.

One dataset a layer, (n_stimuli, channels, rows, columns); (n_stimuli, units, 1, 1) for a fully connected layer. The
original says no more. Ours also has attributes: ``stimuli``, the names of the rows; ``layers``, the names in the order
of the forward pass (HDF5 lists datasets by the alphabet, and takes a slash for a folder); ``network``.
"""

from __future__ import annotations

import io
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

import h5py
import numpy as np

from dnnbrain_app.derivatives.features import FeatureStore
from dnnbrain_app.derivatives.files import write_atomically, write_json
from dnnbrain_app.derivatives.ledger import stamp
from dnnbrain_app.derivatives.names import sidecar as name_sidecar
from dnnbrain_app.errors import BadDataError, InputOutputError, MissingInputError, UnknownNameError
from dnnbrain_app.records import Array

logger = logging.getLogger(__name__)
_CHUNK = (32, 8192)  # stimuli, units: both a batch of rows and a block of features are read at the disk's speed
_PIECE = 2**26  # bytes to read or write at once
_LISTED = 10
_EXTENSIONS = {
    *(".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"),
    *(".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".ts", ".webm", ".wmv"),
}


def write_activations(
    path: Path,
    store: FeatureStore,
    layers: Sequence[str],
    *,
    stimuli: Sequence[str],
    rows: Sequence[int] | Array,
    network: str,
    sidecar: Mapping[str, Any],
) -> list[Path]:
    """Write activations as ``.act.h5``, with a JSON sidecar; the same values give the same bytes.

    Parameters
    ----------
    path : Path
        Ends in ``.act.h5``.
    store : FeatureStore
        Has the features.
    layers : sequence of str
        Which of its layers.
    stimuli : sequence of str
        Identifiers of the rows to write.
    rows : sequence of int
        The store's row of each of them; copies share one.
    network : str
        Label of the network.
    sidecar : mapping
        Content of the JSON file.

    Returns
    -------
    list of Path
        The two files.

    Raises
    ------
    CannotWriteError, InputOutputError
        The disk is full, or fails.
    """
    rows = np.asarray(rows, dtype=int)
    assert len(rows) == len(stimuli)

    def write(part: Path) -> None:
        with _PatientFile(part, "w+b") as file:
            # v108: the names of many stimuli outgrow the attributes of older files
            with h5py.File(file, "w", libver=("v108", "v108")) as target:
                target.attrs["network"] = network
                target.attrs["stimuli"] = np.array(stimuli, dtype=h5py.string_dtype())
                target.attrs["layers"] = np.array(layers, dtype=h5py.string_dtype())
                for layer in layers:
                    _write_layer(target, store, layer, rows, file)
            file.check()

    write_atomically(path, write)
    write_json(name_sidecar(path), sidecar)
    return [path, name_sidecar(path)]


def _write_layer(target: h5py.File, store: FeatureStore, layer: str, rows: Array, file: _PatientFile) -> None:
    n_channels, n_rows, n_columns = shape = _find_shape(store.shape(layer))
    step = min(n_channels, max(1, _CHUNK[1] // (n_rows * n_columns)))
    chunks = (min(_CHUNK[0], len(rows)), step, n_rows, n_columns)
    data = target.create_dataset(_make_key(layer), (len(rows), *shape), np.float32, chunks=chunks, track_times=False)
    n_together = _CHUNK[0] * max(1, _PIECE // (4 * math.prod(shape) * _CHUNK[0]))  # whole chunks
    for start in range(0, len(rows), n_together):
        wanted = rows[start : start + n_together]
        data[start : start + len(wanted)] = store.take(layer, wanted).reshape(len(wanted), *shape)
        file.check()


class _PatientFile(io.FileIO):
    """A file that keeps the failure of a write to itself until it is asked.

    HDF5 cannot close a file whose writes fail, tries again at the end of the process, and crashes. After a failure
    nothing more is written, and the file is good for nothing.
    """

    _error: OSError | None = None

    def check(self) -> None:
        """Raise what went wrong."""
        if self._error is not None:
            raise self._error

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        try:
            while self._error is None and view:
                view = view[super().write(view) :]
        except OSError as error:
            self._error = error
        return len(memoryview(data).cast("B"))

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self._error = self._error or error
            return size or 0


def _make_key(layer: str) -> str:
    return layer.replace("/", "|")


def _find_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(channels, rows, columns): one is put where there is no such axis, and the middle ones are merged.

    Examples
    --------
    >>> _find_shape((4096,)), _find_shape((64, 8, 55, 55))
    ((4096, 1, 1), (64, 440, 55))
    """
    n_channels, *rows, n_columns = (*shape, 1, 1)[: max(3, len(shape))]
    return n_channels, math.prod(rows), n_columns


def identify_file(path: Path) -> dict[str, Any]:
    """Identify a file of activations cheaply, by its name, size and time of last change.

    Raises
    ------
    MissingInputError
        The file does not exist.
    """
    try:
        name, size, changed = stamp(path)
    except OSError as error:
        raise MissingInputError(f"act:{path}: there is no such file") from error
    return {"File": name, "Size": size, "Changed": changed}


def fill_store(
    path: Path,
    store: FeatureStore,
    layers: Sequence[str],
    stimuli: Sequence[str],
    *,
    names: Sequence[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Bring activations that somebody has computed into a store, as if a network had made them.

    Parameters
    ----------
    path : Path
        Ours or the original's.
    store : FeatureStore
        Is opened with the layers in the order of the forward pass, as far as the file tells it, else as written.
    layers : sequence of str
        Names or patterns; ``main`` and ``all`` are all layers.
    stimuli : sequence of str
        The rows of the store. A stimulus is found by its identifier, else by its file name without folder and
        extension, where that is the name of one row only.
    names : sequence of str, optional
        What the rows of the file are, where it does not say: that is, of the original's.
    progress : callable, optional
        Called with the number of stimuli done, and of all.

    Raises
    ------
    MissingInputError
        The file, or a stimulus in it, does not exist.
    UnknownNameError
        A layer that the file does not have.
    BadDataError
        The file is no HDF5 file, does not say what its rows are, or contradicts itself; a value is not finite.
    InputOutputError
        Reading broke half-way.
    """
    with _opened(path) as file:
        chosen = _choose(_list_layers(path, file), layers)
        rows = _find_rows(path, stimuli, _name_rows(path, file, chosen, names))
        store.open({name: _trim(data.shape[1:]) for name, data in chosen.items()}, len(stimuli))
        shards = store.pending()
        for number, (name, data) in enumerate(chosen.items()):
            for wanted, X in _read_layer(data, rows, shards):
                _check_finite(path, name, X, [stimuli[row] for row in wanted])
                store.write(name, int(wanted[0]), X)
            if progress is not None:
                progress((number + 1) * len(stimuli) // len(chosen), len(stimuli))
        for shard in shards:
            store.commit(shard, {})


def list_shapes(path: Path, layers: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of one stimulus's activations in the layers that `fill_store` would take.

    Raises
    ------
    MissingInputError, UnknownNameError, BadDataError
        As `fill_store`.
    """
    with _opened(path) as file:
        return {name: _trim(data.shape[1:]) for name, data in _choose(_list_layers(path, file), layers).items()}


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    identify_file(path)
    try:
        if not h5py.is_hdf5(path):
            raise BadDataError(f"{path} is no HDF5 file; act: takes an .act.h5 of this app or of the original DNNBrain")
        file = h5py.File(path, "r")
    except OSError as error:
        raise BadDataError(f"{path} cannot be opened as HDF5; it may be cut short ({error})") from error
    with file:
        yield file


def _list_layers(path: Path, file: h5py.File) -> dict[str, h5py.Dataset]:
    """Find the datasets of layers, in the order of the forward pass; links to elsewhere are not followed."""
    found: dict[str, h5py.Dataset] = {}
    file.visititems(lambda key, item: found.update({key: item}) if isinstance(item, h5py.Dataset) else None)
    if not found:
        raise BadDataError(f"{path} has no layers")
    for key, data in found.items():
        if data.dtype.kind not in "fiu" or data.ndim < 2 or 0 in data.shape:
            raise BadDataError(
                f"{path}: layer {key!r} is of type {data.dtype} and shape {data.shape}; numbers of shape "
                "(stimuli, channels, rows, columns) are needed"
            )
    if len({len(data) for data in found.values()}) > 1:
        counts = ", ".join(f"{key} {len(data)}" for key, data in list(found.items())[:_LISTED])
        raise BadDataError(f"{path}: the layers differ in their number of stimuli: {counts}")
    names = {_make_key(name): name for name in _read_names(file, "layers") or ()}
    # else as they were written: new objects are put at the end of the file
    written = sorted(found, key=lambda key: h5py.h5o.get_info(found[key].id).addr)
    order = dict.fromkeys([*(key for key in names if key in found), *written])
    return {names.get(key, key): found[key] for key in order}


def _read_names(file: h5py.File, attribute: str) -> list[str] | None:
    values = file.attrs.get(attribute)
    if values is None:
        return None
    return [value.decode(errors="replace") if isinstance(value, bytes) else str(value) for value in np.ravel(values)]


def _choose(found: Mapping[str, h5py.Dataset], layers: Sequence[str]) -> dict[str, h5py.Dataset]:
    chosen: set[str] = set()
    for pattern in layers:
        exact = [pattern] if pattern in found else list(found) if pattern in ("main", "all") else []
        matching = exact or [name for name in found if fnmatchcase(name, pattern)]
        if not matching:
            raise UnknownNameError("layer", pattern, found)
        chosen.update(matching)
    return {name: data for name, data in found.items() if name in chosen}


def _name_rows(
    path: Path, file: h5py.File, layers: Mapping[str, h5py.Dataset], names: Sequence[str] | None
) -> Sequence[str]:
    known = _read_names(file, "stimuli") or names
    if known is None:
        raise BadDataError(
            f"{path} does not say which stimuli its rows are; put the .stim.csv that it was made from beside it"
        )
    n_rows = len(next(iter(layers.values())))
    if len(known) != n_rows:
        raise BadDataError(f"{path} has {n_rows} rows, but {len(known)} stimuli are named")
    return known


def _find_rows(path: Path, stimuli: Sequence[str], names: Sequence[str]) -> Array:
    """Find the row of each stimulus."""
    exact = {name: row for row, name in reversed(list(enumerate(names)))}
    stems = Counter(map(_stem, exact))
    wanted = Counter(map(_stem, stimuli))
    by_stem = {_stem(name): row for name, row in exact.items()}
    rows, missing = [], []
    for name in stimuli:
        stem = _stem(name)
        if name in exact:
            rows.append(exact[name])
        elif stems[stem] == wanted[stem] == 1:
            rows.append(by_stem[stem])
        else:
            missing.append(name)
    if missing:
        more = f", ... ({len(missing)} in all)" if len(missing) > _LISTED else ""
        raise MissingInputError(
            f"{path} has no row, or not just one, for {len(missing)} of {len(stimuli)} stimuli: "
            f"{', '.join(missing[:_LISTED])}{more}; its rows are named {names[0]!r}, ..."
        )
    return np.array(rows, dtype=int)


def _stem(name: str) -> str:
    """Strip folder and extension; what follows the dot in ``face.01`` is neither."""
    path = PurePosixPath(name.strip().replace("\\", "/"))
    return path.stem if path.suffix.lower() in _EXTENSIONS else path.name


def _trim(shape: tuple[int, ...]) -> tuple[int, ...]:
    """(units, 1, 1) is how the files spell (units,)."""
    return shape[:1] if math.prod(shape[1:]) == 1 else shape


def _read_layer(data: h5py.Dataset, rows: Array, shards: Sequence[range]) -> Iterator[tuple[Array, Array]]:
    """Iterate over a layer in the order of the file, so that no chunk is read twice.

    Parameters
    ----------
    data : Dataset
        The layer.
    rows : array of shape (n_stimuli,)
        Where in the file each stimulus is.
    shards : sequence of range
        The stimuli that are wanted; those that are given out together are of one shard.

    Yields
    ------
    stimuli : array of shape (n,)
        Numbers of stimuli, each one more than that before.
    X : array of shape (n, n_features)
        float32.
    """
    wanted = np.concatenate([np.arange(0), *shards])
    wanted = wanted[np.argsort(rows[wanted], kind="stable")]
    places, step = rows[wanted], _count_together(data)
    starts = [shard.start for shard in shards]
    for some in _split(wanted, np.diff(places // step) != 0):
        first = rows[some[0]]
        try:
            stretch = data[first : rows[some[-1]] + 1]
        except OSError as error:
            raise InputOutputError(f"{data.file.filename}: layer {data.name} cannot be read ({error})") from error
        for run in _split(some, (np.diff(some) != 1) | np.isin(some[1:], starts)):
            with np.errstate(over="ignore"):  # what is too large for float32 is not finite then
                X = stretch[rows[run] - first].reshape(len(run), -1).astype(np.float32, copy=False)
            yield run, X


def _split(values: Array, ends: Array) -> list[Array]:
    return np.split(values, np.flatnonzero(ends) + 1) if len(values) else []


def _count_together(data: h5py.Dataset) -> int:
    """How many rows to read at once: a piece of whole chunks, unless these are much larger."""
    row: int = 4 * math.prod(data.shape[1:])
    chunk: int = data.chunks[0] if data.chunks else 1
    return chunk * max(1, _PIECE // (row * chunk)) if row * chunk <= 4 * _PIECE else max(1, 4 * _PIECE // row)


def _check_finite(path: Path, layer: str, X: Array, stimuli: Sequence[str]) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        bad = np.flatnonzero(~np.isfinite(np.einsum("ij,ij->i", X, X)))  # the diagonal of K
    if len(bad):
        raise BadDataError(
            f"{path}: layer {layer!r} has values that are not finite, or too large, for stimulus {stimuli[bad[0]]!r}"
        )
