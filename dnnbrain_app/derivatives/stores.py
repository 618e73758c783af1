"""Features while they are needed, Grams for the next run, and activations for the user."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import h5py
import numpy as np

from dnnbrain_app.derivatives.files import explain_os_error, to_plain, write_atomically, write_json
from dnnbrain_app.derivatives.ledger import digest_key
from dnnbrain_app.errors import CannotWriteError, DnnbrainError
from dnnbrain_app.records import Activations, Array, Gram, StimulusSet

logger = logging.getLogger(__name__)
_GRAMS_VERSION = 1  # raise it when the same key would give other numbers
_CHUNK = (32, 8192)  # stimuli, units: both a batch of rows and a block of features are read at the disk's speed


class FeatureStore:
    """Features of layers, in memory while they fit, else in a scratch folder that is removed at the end.

    Parameters
    ----------
    folder : Path
        Where the scratch folder is made, once it is needed.
    memory : int
        Bytes of memory to use at most.

    Examples
    --------
    >>> with FeatureStore(Path("unused"), memory=1000) as store:
    ...     store.open("fc", (3,), n_stimuli=2)
    ...     store.write("fc", 0, np.eye(2, 3, dtype=np.float32))
    ...     [block.shape for block in store.blocks("fc", width=2)]
    [(2, 2), (2, 1)]
    """

    def __init__(self, folder: Path, memory: int) -> None:
        self._folder = folder
        self._memory = memory
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._arrays: dict[str, Array] = {}
        self._files: dict[str, BinaryIO] = {}
        self._scratch: Path | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Forget everything and remove the scratch folder."""
        self._arrays.clear()
        for file in self._files.values():
            file.close()
        self._files.clear()
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch = None

    @property
    def layers(self) -> tuple[str, ...]:
        """Names, in the order in which they were opened."""
        return tuple(self._shapes)

    def shape(self, layer: str) -> tuple[int, ...]:
        """Shape of one stimulus's activations."""
        return self._shapes[layer]

    def open(self, layer: str, shape: tuple[int, ...], n_stimuli: int) -> None:
        """Make room for a layer.

        Raises
        ------
        CannotWriteError
            If it fits neither the memory nor the disk.
        """
        self._shapes[layer] = shape
        n_features = int(np.prod(shape))
        n_bytes = 4 * n_stimuli * n_features
        if n_bytes <= self._memory:
            self._memory -= n_bytes
            self._arrays[layer] = np.zeros((n_stimuli, n_features), dtype=np.float32)
            return
        try:
            self._open_file(layer, (n_stimuli, n_features), n_bytes)
        except OSError as error:
            raise explain_os_error(error, self._scratch or self._folder) from error

    def _open_file(self, layer: str, shape: tuple[int, int], n_bytes: int) -> None:
        if self._scratch is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._scratch = Path(tempfile.mkdtemp(prefix="features-", dir=self._folder))
        free = shutil.disk_usage(self._scratch).free
        if n_bytes > free:
            raise CannotWriteError(
                f"layer {layer} needs {n_bytes / 1e9:.1f} GB of scratch space, but {self._folder} has "
                f"{free / 1e9:.1f} GB: choose fewer layers, another --work-dir, or more --mem."
            )
        # A plain file, not a writable memory map: a disk that fills up is then an error, not the end of the process.
        file = (self._scratch / f"{len(self._files)}.npy").open("w+b")
        self._files[layer] = file
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + n_bytes)
        file.flush()
        self._arrays[layer] = np.load(file.name, mmap_mode="r")

    def write(self, layer: str, start_row: int, rows: Array) -> None:
        """Put rows (n, n_features) of a layer, from row `start_row` on."""
        array = self._arrays[layer]
        assert rows.shape[1] == array.shape[1]
        if not isinstance(array, np.memmap):
            array[start_row : start_row + len(rows)] = rows
            return
        file = self._files[layer]
        try:
            file.seek(array.offset + start_row * array.strides[0])
            file.write(np.ascontiguousarray(rows, dtype=np.float32).data)
            file.flush()
        except OSError as error:
            raise explain_os_error(error, Path(file.name)) from error

    def blocks(self, layer: str, width: int) -> Iterator[Array]:
        """Iterate over the features, `width` at a time: float32 (n_stimuli, <= width)."""
        array = self._arrays[layer]
        for start in range(0, array.shape[1], width):
            yield array[:, start : start + width]

    def read(self, layer: str) -> Array:
        """Return all features of a layer, float32 (n_stimuli, n_features); not a copy."""
        return self._arrays[layer]


def grams_key(stimuli: StimulusSet, identity: Mapping[str, Any], layers: Sequence[str]) -> str:
    """Make the key under which a network's Grams are kept.

    Parameters
    ----------
    stimuli : StimulusSet
        Its identifiers and digests count, in their order; where the files are does not.
    identity : mapping
        What the network's values depend on (`networks.sources.identify_weights`).
    layers : sequence of str
        Names or patterns.

    Returns
    -------
    str
        SHA-256, in hexadecimal.
    """
    return digest_key([_GRAMS_VERSION, stimuli.ids, stimuli.digests, identity, layers])


def save_grams(folder: Path, key: str, activations: Activations) -> Path:
    """Keep Grams under their key; any number of processes may do so at once."""
    path = _entry(folder, key)
    layers = [{"layer": gram.layer, "shape": gram.shape, "depth": gram.depth} for gram in activations.layers]
    about = {
        "key": key,
        "network": activations.network,
        "stimuli": activations.stimuli,
        "provenance": activations.provenance,
        "layers": layers,
    }
    arrays = {"about": np.array(json.dumps(to_plain(about)))}
    for i, gram in enumerate(activations.layers):
        arrays |= {f"K{i}": gram.K, f"row_sums{i}": gram.row_sums}
        if gram.X is not None:
            arrays[f"X{i}"] = gram.X
    write_atomically(path, lambda part: np.savez(part, allow_pickle=False, **arrays))
    return path


def load_grams(folder: Path, key: str) -> Activations | None:
    """Return the Grams kept under a key, or None if there are none, or (with a warning) if the file is damaged."""
    path = _entry(folder, key)
    if not path.exists():
        return None
    try:
        return _read_entry(path, key)  # zip checks every byte it reads
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error, DnnbrainError) as error:
        logger.warning("%s is damaged (%s: %s) and will be computed again", path, type(error).__name__, error)
        return None


def _entry(folder: Path, key: str) -> Path:
    return folder / key[:2] / f"{key}.npz"


def _read_entry(path: Path, key: str) -> Activations:
    # opened here, because numpy leaves a damaged file open
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        about = json.loads(str(arrays["about"]))
        if about["key"] != key:
            raise ValueError(f"it has the key {about['key']}")
        grams = tuple(
            Gram(
                layer["layer"],
                tuple(layer["shape"]),
                layer["depth"],
                arrays[f"K{i}"],
                arrays[f"row_sums{i}"],
                arrays.get(f"X{i}"),
            )
            for i, layer in enumerate(about["layers"])
        )
    return Activations(about["network"], tuple(about["stimuli"]), grams, about["provenance"])


def write_activations(
    path: Path,
    store: FeatureStore,
    layers: Sequence[str],
    *,
    stimuli: Sequence[str],
    network: str,
    sidecar: Mapping[str, Any],
) -> list[Path]:
    """Write activations in the layout of the original's ``.act.h5``, and a JSON sidecar.

    One float32 dataset a layer, (n_stimuli, channels, rows, columns); (n_stimuli, units, 1, 1) for a fully connected
    layer. What the original lacks is in attributes of the file: ``stimuli``, the names of the rows, and ``network``.
    The same values give the same bytes.

    Parameters
    ----------
    path : Path
        Ends in ``.act.h5``.
    store : FeatureStore
        Has the features.
    layers : sequence of str
        Which of its layers.
    stimuli : sequence of str
        Identifiers of the rows.
    network : str
        Label of the network.
    sidecar : mapping
        Content of the JSON file.

    Returns
    -------
    list of Path
        The two files.
    """
    write_atomically(path, lambda part: _fill_activations(part, store, layers, stimuli, network))
    beside = path.with_name(path.name.partition(".")[0] + ".json")
    write_json(beside, sidecar)
    return [path, beside]


def _fill_activations(
    path: Path, store: FeatureStore, layers: Sequence[str], stimuli: Sequence[str], network: str
) -> None:
    # v108: the names of many stimuli outgrow the attributes of older files
    with h5py.File(path, "w", libver=("v108", "v108")) as file:
        file.attrs["network"] = network
        file.attrs["stimuli"] = np.array(stimuli, dtype=h5py.string_dtype())
        for layer in layers:
            n_channels, n_rows, n_columns = shape = _find_shape(store.shape(layer))
            n_positions = n_rows * n_columns
            n_stimuli = len(stimuli)
            step = min(n_channels, max(1, _CHUNK[1] // n_positions))
            chunks = (min(_CHUNK[0], n_stimuli), step, n_rows, n_columns)
            data = file.create_dataset(layer, (n_stimuli, *shape), np.float32, chunks=chunks, track_times=False)
            for i, block in enumerate(store.blocks(layer, step * n_positions)):
                data[:, i * step : (i + 1) * step] = block.reshape(n_stimuli, -1, n_rows, n_columns)


def _find_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(channels, rows, columns): one is put where there is no such axis, and the middle ones are merged.

    Examples
    --------
    >>> _find_shape((4096,)), _find_shape((64, 8, 55, 55))
    ((4096, 1, 1), (64, 440, 55))
    """
    n_channels, *rows, n_columns = (*shape, 1, 1)[: max(3, len(shape))]
    return n_channels, int(np.prod(rows)), n_columns
