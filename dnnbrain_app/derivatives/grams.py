"""Grams for the next run: a folder an entry, found by what the network is and by what the stimuli contain.

::

    <folder>/<identity[:2]>/<identity>/<digest of the stimuli>/
        digests.txt                        the stimuli, in the order of the rows
        0003-K.<token>.npy   0003-X.…      a layer
        row_sums.<token>.npy               all layers
        statistics.<token>.npy             where they were asked for, array after array
        about.json                         network, provenance, layers, and the size and SHA-256 of each file

An entry gets its name when it is whole, and no file of it changes afterwards: statistics that come later are a file
more, and another about.json. A damaged entry is replaced; the token in the names of its files keeps a process that is
still reading it from taking the new rows for the old ones.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import io
import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from dnnbrain_app.derivatives.features import MappedRows
from dnnbrain_app.derivatives.files import PART_PREFIX, explain_os_error, to_plain, write_json
from dnnbrain_app.derivatives.ledger import digest_key
from dnnbrain_app.derivatives.locks import try_lock
from dnnbrain_app.errors import BadDataError, InputOutputError
from dnnbrain_app.records import Activations, Array, ChannelStatistics, Gram, Grams, StimulusSet

logger = logging.getLogger(__name__)
_VERSION = 1  # raise it when the layout of an entry changes, or the same identity would give other numbers
_ABOUT, _DIGESTS = "about.json", "digests.txt"
_STATISTICS = ("mean", "sd", "maximum", "zeros", "top_values", "top_stimuli")
_PIECE = 2**24  # bytes to write at once
_YOUNG, _DAY = 60.0, 86400.0  # seconds
_DAMAGES = (OSError, ValueError, KeyError, TypeError)  # what reading a damaged entry raises


@dataclass(frozen=True, slots=True, eq=False)
class GramEntry:
    """Grams of a network for a set of stimuli, on the disk.

    Parameters
    ----------
    path : Path
        The folder.
    digests : tuple of str
        The stimuli it was asked for.
    rows : mapping of str to int
        Row of each stimulus, by its digest; there may be more than were asked for.
    about : mapping
        Content of ``about.json``.
    """

    path: Path
    digests: tuple[str, ...]
    rows: Mapping[str, int]
    about: Mapping[str, Any]

    def select(self, stimuli: StimulusSet) -> Activations:
        """Return the activations for some of the stimuli; a layer is read when it is asked for.

        Parameters
        ----------
        stimuli : StimulusSet
            Those of one content share a row.

        Returns
        -------
        Activations
            Its layers raise InputOutputError where a file has gone or changed since the entry was found.

        Raises
        ------
        BadDataError
            A stimulus that the entry does not have.
        """
        missing = [name for name, digest in zip(stimuli.ids, stimuli.digests, strict=True) if digest not in self.rows]
        if missing:
            raise BadDataError(f"{len(missing)} stimuli are not in {self.path}: {', '.join(missing[:10])}")
        rows = np.array([self.rows[digest] for digest in stimuli.digests], dtype=int)
        layers = self.about["layers"]
        row_sums = self._load(self.about["row_sums"])
        in_order = np.array_equal(rows, np.arange(len(self.rows)))

        def read(i: int) -> Gram:
            layer = layers[i]
            K, X = layer["K"], layer["X"]
            if K is not None:
                K = self._load(K) if in_order else self._map(K)[np.ix_(rows, rows)]
            if X is not None:
                X = self._map(X) if in_order else self._map(X)[rows]
            return Gram(layer["name"], tuple(layer["shape"]), layer["depth"], K, row_sums[i][rows], X)

        names = tuple(layer["name"] for layer in layers)
        network, provenance = self.about["network"], self.about["provenance"]
        return Activations(network, stimuli.ids, names, Grams(len(layers), read), provenance)

    @property
    def statistics(self) -> list[ChannelStatistics] | None:
        """What the channels did over the stimuli asked for, numbered as these are; None if that was not kept.

        Statistics over more stimuli than were asked for are not told: they are others.
        """
        about = self.about["statistics"]
        if about is None or len(self.digests) != len(self.rows):
            return None
        place = np.empty(len(self.rows), dtype=int)
        place[[self.rows[digest] for digest in self.digests]] = np.arange(len(self.digests))
        found = []
        with self._opened(about["file"]) as file:
            for layer in about["layers"]:
                values = {key: np.load(file, allow_pickle=False) for key in _STATISTICS}
                values["top_stimuli"] = place[values["top_stimuli"]]
                found.append(ChannelStatistics(layer, about["n_stimuli"], **values))
        return found

    def _load(self, name: str) -> Array:
        with self._opened(name) as file:
            array: Array = np.load(file, allow_pickle=False)
        return array

    def _map(self, name: str) -> Array:
        with self._opened(name) as file:
            array: Array = np.load(file.name, mmap_mode="r", allow_pickle=False).view(MappedRows)
        return array

    @contextmanager
    def _opened(self, name: str) -> Iterator[BinaryIO]:
        path = self.path / name
        try:
            with path.open("rb") as file:
                yield file
        except (OSError, ValueError, EOFError) as error:
            raise InputOutputError(f"{path} has gone or changed while it was needed ({error}); run again") from error


def find_grams(folder: Path, identity: str, digests: Sequence[str]) -> GramEntry | None:
    """Find the Grams of a network for some stimuli, or for more stimuli than these.

    Every byte of the entry is checked against its digest.

    Parameters
    ----------
    folder : Path
        The cache.
    identity : str
        Digest of what the activations depend on, other than the stimuli.
    digests : sequence of str
        SHA-256 of each stimulus, each once.

    Returns
    -------
    GramEntry or None
        None if there is none, or (with a warning) if it is damaged.
    """
    exact = _path(folder, identity, digests)
    larger = (path for path in _list_larger(exact.parent, digests) if path != exact)
    for path in chain([exact] if _is_there(exact) else [], larger):
        try:
            return _open_entry(path, identity, digests)
        except _DAMAGES as error:
            logger.warning("%s is damaged (%s: %s) and will be computed again", path, type(error).__name__, error)
    return None


def _path(folder: Path, identity: str, digests: Iterable[str]) -> Path:
    content = hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()
    return folder / identity[:2] / identity / content


def _is_there(path: Path) -> bool:
    with contextlib.suppress(OSError):  # a folder that may not be looked into
        return path.exists()
    return False


def _list_larger(folder: Path, digests: Sequence[str]) -> Iterator[Path]:
    """Iterate over the entries that have all of the stimuli, small ones first; most are refused by their size alone."""
    wanted, n_bytes = set(digests), sum(len(digest) + 1 for digest in digests)
    lists = []
    for path in folder.glob(f"[!.]*/{_DIGESTS}"):
        with contextlib.suppress(OSError):  # somebody has removed it
            lists.append((path.stat().st_size, path))
    for size, path in sorted(lists):
        if size >= n_bytes:
            with contextlib.suppress(OSError, ValueError):
                if wanted.issubset(path.read_text().split()):
                    yield path.parent


def _open_entry(path: Path, identity: str, digests: Sequence[str]) -> GramEntry:
    """Read and check an entry; a damaged one raises one of `_DAMAGES`."""
    content = json.loads((path / _ABOUT).read_bytes())
    about = content["about"]
    if content["sha256"] != digest_key(about):
        raise ValueError(f"{_ABOUT} has changed")
    if (about["version"], about["identity"]) != (_VERSION, identity):
        raise ValueError(f"it is of version {about['version']} and has the identity {about['identity']}")
    for name, (size, digest) in about["files"].items():
        with (path / name).open("rb") as file:
            if os.fstat(file.fileno()).st_size != size or hashlib.file_digest(file, "sha256").hexdigest() != digest:
                raise ValueError(f"{name} has changed")
    rows = {digest: row for row, digest in enumerate((path / _DIGESTS).read_text().split())}
    return GramEntry(path, tuple(digests), rows, about)


def write_grams(
    folder: Path,
    identity: str,
    digests: Sequence[str],
    about: Mapping[str, Any],
    grams: Iterable[Gram],
    statistics: Sequence[ChannelStatistics] | None = None,
) -> GramEntry:
    """Keep Grams, one at a time; any number of processes may do so at once.

    Where there is a whole entry of these stimuli already, it stays, `grams` are not asked for, and these statistics
    take the place of those that it has.

    Parameters
    ----------
    folder : Path
        The cache.
    identity : str
        Digest of what the activations depend on, other than the stimuli.
    digests : sequence of str
        SHA-256 of the stimulus of each row, each once.
    about : mapping
        ``network``, the label; ``provenance``, what a sidecar must say (plain values).
    grams : iterable of Gram
        In the order of the forward pass. Each is written and let go before the next is asked for; an X that is a map
        of a file is written some rows at a time.
    statistics : sequence of ChannelStatistics, optional
        Over these stimuli.

    Returns
    -------
    GramEntry

    Raises
    ------
    CannotWriteError, InputOutputError
        The disk is full, or fails.
    """
    assert len(set(digests)) == len(digests)
    path = _path(folder, identity, digests)
    try:
        entry = _find_whole(path, identity, digests) or _write_entry(path, identity, digests, about, grams)
        return entry if statistics is None else _add_statistics(entry, statistics)
    except OSError as error:
        raise explain_os_error(error, path) from error


def _find_whole(path: Path, identity: str, digests: Sequence[str]) -> GramEntry | None:
    with contextlib.suppress(*_DAMAGES):
        return _open_entry(path, identity, digests)
    return None


def _write_entry(
    path: Path, identity: str, digests: Sequence[str], about: Mapping[str, Any], grams: Iterable[Gram]
) -> GramEntry:
    with _make_part(path) as part:
        files = _Files(part)
        files.write(_DIGESTS, ["".join(f"{digest}\n" for digest in digests).encode()])
        layers: list[dict[str, Any]] = []
        row_sums: list[Array] = []
        for gram in grams:
            layers.append(_write_gram(files, len(layers), gram))
            row_sums.append(gram.row_sums)
            del gram  # before the next is made
        content = to_plain(
            {
                "version": _VERSION,
                "identity": identity,
                "network": about["network"],
                "provenance": about["provenance"],
                "layers": layers,
                "row_sums": files.write_arrays("row_sums", [np.array(row_sums)]),
                "statistics": None,
                "files": files.listed,
            }
        )
        _write_about(part, content)
        rows = {digest: row for row, digest in enumerate(digests)}
        return _publish(part, GramEntry(path, tuple(digests), rows, content))


def _write_gram(files: _Files, number: int, gram: Gram) -> dict[str, Any]:
    return {
        "name": gram.layer,
        "shape": gram.shape,
        "depth": gram.depth,
        "K": None if gram.K is None else files.write_arrays(f"{number:04d}-K", [gram.K]),
        "X": None if gram.X is None else files.write_arrays(f"{number:04d}-X", [gram.X]),
    }


def _add_statistics(entry: GramEntry, statistics: Sequence[ChannelStatistics]) -> GramEntry:
    """Put statistics, whose stimuli are those of `entry.digests`, into an entry that may have them in another order."""
    rows = np.array([entry.rows[digest] for digest in entry.digests], dtype=int)
    files = _Files(entry.path)
    arrays = []
    for layer in statistics:
        arrays += [getattr(layer, key) for key in _STATISTICS[:-1]] + [rows[layer.top_stimuli]]
    described = {
        "file": files.write_arrays("statistics", arrays),
        "layers": [layer.layer for layer in statistics],
        "n_stimuli": len(rows),
    }
    about = {**entry.about, "statistics": described, "files": {**entry.about["files"], **files.listed}}
    _write_about(entry.path, about)
    return dataclasses.replace(entry, about=about)


def _write_about(folder: Path, about: Mapping[str, Any]) -> None:
    write_json(folder / _ABOUT, {"sha256": digest_key(about), "about": about})


class _Files:
    """New files of a folder, and their sizes and digests."""

    def __init__(self, folder: Path) -> None:
        self.listed: dict[str, tuple[int, str]] = {}
        self._folder = folder
        self._token = secrets.token_hex(4)

    def write(self, name: str, pieces: Iterable[bytes | memoryview]) -> str:
        """Write a file to the disk; returns its name."""
        digest, size = hashlib.sha256(), 0
        with (self._folder / name).open("xb") as file:
            for piece in pieces:
                file.write(piece)
                digest.update(piece)
                size += len(piece)
            file.flush()
            os.fsync(file.fileno())
        self.listed[name] = (size, digest.hexdigest())
        return name

    def write_arrays(self, name: str, arrays: Iterable[Array]) -> str:
        """Write arrays, one after another, in the format of .npy; returns the file's name."""
        return self.write(f"{name}.{self._token}.npy", chain.from_iterable(map(_format_array, arrays)))


def _format_array(array: Array) -> Iterator[bytes | memoryview]:
    header = io.BytesIO()
    shape = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False, "shape": array.shape}
    np.lib.format.write_array_header_1_0(header, shape)
    yield header.getvalue()
    step = max(1, _PIECE // max(1, array[:1].nbytes))
    for start in range(0, len(array), step):
        rows = np.ascontiguousarray(array[start : start + step])
        if rows.size:
            yield rows.data.cast("B")


@contextmanager
def _make_part(path: Path) -> Iterator[Path]:
    """Make a folder that gets its name later; clear those that killed processes left beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f"{PART_PREFIX}*"):
        _remove_if_left(left)
    part = path.with_name(f"{PART_PREFIX}{secrets.token_hex(4)}-{path.name[:16]}")
    part.mkdir()
    descriptor = os.open(part, os.O_RDONLY)
    try:
        try_lock(descriptor)  # until this process ends, however it does
        yield part
    finally:
        os.close(descriptor)
        shutil.rmtree(part, ignore_errors=True)


def _remove_if_left(part: Path) -> None:
    """Remove an unfinished entry that nobody is writing: not locked, or where there are no locks, old."""
    with contextlib.suppress(OSError):
        age = time.time() - part.stat().st_mtime
        descriptor = os.open(part, os.O_RDONLY)
        try:
            locked = try_lock(descriptor)
            if locked is not False and age > (_YOUNG if locked else _DAY):
                shutil.rmtree(part, ignore_errors=True)
        finally:
            os.close(descriptor)


def _publish(part: Path, entry: GramEntry) -> GramEntry:
    """Give an entry its name, in place of a damaged one; if there is a whole one by now, that is returned."""
    descriptor = os.open(part, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    while True:
        try:
            part.rename(entry.path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        else:
            return entry
        known = _find_whole(entry.path, entry.about["identity"], entry.digests)
        if known is not None:
            return known
        old = part.with_name(f"{part.name}-old")
        with contextlib.suppress(FileNotFoundError):  # another process has moved it already
            entry.path.rename(old)
        shutil.rmtree(old, ignore_errors=True)
