"""Checking the file of a stimulus and digesting what is in it; files that did not change are not read again."""

from __future__ import annotations

import hashlib
import time
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from dnnbrain_app.errors import BadDataError
from dnnbrain_app.stimuli.images import check_image
from dnnbrain_app.stimuli.videos import check_video, is_video

Known = MutableMapping[str, list[Any]]
_CHUNK = 1 << 20
_SETTLED = 2_000_000_000  # nanoseconds: two writes closer than a file system's clock ticks look like one


def digest_stimulus(path: Path, known: Known) -> tuple[str, str]:
    """Digest a stimulus, once it is sure that it can be read; only its header is looked at.

    Parameters
    ----------
    path : Path
        An image or a video.
    known : mutable mapping
        What was found before: path to [bytes, time of modification, time of change (ns), digest, remark]. What is
        found now is added, unless the file has just been written.

    Returns
    -------
    digest : str
        SHA-256 of the file.
    remark : str
        See `check_image`.

    Raises
    ------
    BadDataError
        If it is empty, neither image nor video, or too large.
    """
    try:
        status = path.stat()
        stamp = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
        entry = known.get(str(path))
        if isinstance(entry, list) and len(entry) == 5 and entry[:3] == stamp:
            return str(entry[3]), str(entry[4])
        digest, remark = _read(path)
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
