"""Checking the file of a stimulus and digesting what is in it; files that did not change are not read again."""

from __future__ import annotations

import hashlib
import time
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from dnnbrain_app.errors import BadDataError
from dnnbrain_app.stimuli.images import check_image, check_size
from dnnbrain_app.stimuli.stores import read_row, split_store
from dnnbrain_app.stimuli.videos import check_video, is_video

Known = MutableMapping[str, list[Any]]
_CHUNK = 1 << 20
_SETTLED = 2_000_000_000  # nanoseconds: two writes closer than a file system's clock ticks look like one


def digest_stimulus(path: Path, known: Known) -> tuple[str, str]:
    """Digest a stimulus, once it is sure that it can be read; only its header is looked at.

    Parameters
    ----------
    path : Path
        An image or a video, or a row of a dataset in an HDF5 file.
    known : mutable mapping
        What was found before: path to [bytes, time of modification, time of change (ns), digest, remark]. What is
        found now is added, unless the file has just been written.

    Returns
    -------
    digest : str
        SHA-256 of the file; of a row, of its shape and its pixels.
    remark : str
        See `check_image`.

    Raises
    ------
    BadDataError
        If it is empty, neither image nor video, or too large.
    """
    try:
        place = split_store(path)
        status = (place[0] if place else path).stat()
        stamp = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
        entry = known.get(str(path))
        if isinstance(entry, list) and len(entry) == 5 and entry[:3] == stamp:
            return str(entry[3]), str(entry[4])
        digest, remark = (_read_row(path, *place), "") if place else _read(path)
    except OSError as error:
        raise BadDataError(f"{path}: cannot be read ({error.strerror})") from error
    if time.time_ns() - max(stamp[1:]) > _SETTLED:
        known[str(path)] = [*stamp, digest, remark]
    return digest, remark


def _read(path: Path) -> tuple[str, str]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):  # a video may be larger than the memory
            digest.update(chunk)
        if not file.tell():
            raise BadDataError(f"{path}: the file is empty; in a datalad dataset, fetch it with 'datalad get'")
        file.seek(0)
        if not is_video(path):
            return digest.hexdigest(), check_image(path, file)
    check_video(path)
    return digest.hexdigest(), ""


def _read_row(path: Path, store: Path, dataset: str, row: int) -> str:
    pixels = read_row(store, dataset, row)
    try:
        check_size(*pixels.shape[:2])
    except BadDataError as error:
        raise BadDataError(f"{path}: {error}") from error
    return hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes()).hexdigest()
