"""Every file of ours comes into being here: whole, or not at all."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import math
import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dnnbrain_app.errors import CannotWriteError, InputOutputError

PART_PREFIX = ".part-"
_CANNOT_WRITE = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.EISDIR,
    errno.ENAMETOOLONG,
}


def write_atomically(path: Path, writer: Callable[[Path], None]) -> None:
    """Let `writer` fill a hidden file beside `path`, flush it to the disk, and only then give it its name.

    Whoever looks at `path` sees the old file or the whole new one, also when the process is killed, the disk is full,
    or several processes write the same file. Missing folders are made.

    Parameters
    ----------
    path : Path
        The file to write.
    writer : callable
        Gets the path of the hidden file, whose name ends like `path` (nibabel chooses the format by the ending).

    Raises
    ------
    CannotWriteError
        No permission, a read-only file system, a full disk or quota, a file where a folder should be.
    InputOutputError
        Any other failure of the file system.
    """
    # random, not the process id: two nodes of a cluster may write the same file with the same process id
    part = path.with_name(f"{PART_PREFIX}{secrets.token_hex(4)}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writer(part)
        _flush(part)
        part.replace(path)
    except OSError as error:
        raise explain_os_error(error, path) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
    # The file is whole by now; some network file systems cannot flush a folder.
    with contextlib.suppress(OSError):
        _flush(path.parent)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def explain_os_error(error: OSError, path: Path) -> CannotWriteError | InputOutputError:
    """Turn a failure of the file system into the error that the user sees."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return CannotWriteError(f"cannot write {path}: {reason}. Free some space, or raise the quota; then run again.")
    if error.errno in _CANNOT_WRITE:
        return CannotWriteError(f"cannot write {path}: {reason}")
    return InputOutputError(f"writing {path} failed: {reason}")


def remove_leftovers(folder: Path, *, older_than: float = 86400.0) -> None:
    """Remove the hidden parts that killed processes left in a folder, once nobody can be writing them any more.

    Parameters
    ----------
    folder : Path
        Searched with its sub-folders; need not exist.
    older_than : float
        Seconds since the part was last written.
    """
    for part in folder.rglob(f"{PART_PREFIX}*"):
        with contextlib.suppress(OSError):
            if time.time() - part.stat().st_mtime > older_than:
                part.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file (UTF-8, line ends as given), atomically."""
    write_atomically(path, lambda part: _put_bytes(part, text))


def update_text(path: Path, text: str) -> bool:
    """Write a text file only if its bytes would change; return whether they did.

    For the files that all participants share, so that parallel runs leave them alone.
    """
    try:
        if path.read_bytes() == text.encode():
            return False
    except OSError:
        pass  # absent or unreadable: writing says what is wrong
    write_text(path, text)
    return True


def _put_bytes(path: Path, text: str) -> None:
    path.write_bytes(text.encode())


def write_json(path: Path, content: Any) -> None:
    """Write JSON, atomically: keys in their own order, NaN and infinities as null."""
    write_text(path, format_json(content))


def format_json(content: Any) -> str:
    """Format as `write_json` writes."""
    return json.dumps(to_plain(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def to_plain(content: Any) -> Any:
    """Reduce records, paths, arrays and numpy scalars to what JSON knows.

    Raises
    ------
    TypeError
        For anything else, rather than writing its ``repr``.

    Examples
    --------
    >>> to_plain({"path": Path("a/b"), "n": np.int64(3), "r": (float("nan"), 0.5)})
    {'path': 'a/b', 'n': 3, 'r': [None, 0.5]}
    """
    if content is None or isinstance(content, str | bool | int):
        return content
    if isinstance(content, np.ndarray | np.generic):
        return to_plain(content.tolist())
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, Path):
        return content.as_posix()
    if dataclasses.is_dataclass(content) and not isinstance(content, type):
        return {f.name: to_plain(getattr(content, f.name)) for f in dataclasses.fields(content)}
    if isinstance(content, Mapping):
        return {str(key): to_plain(value) for key, value in content.items()}
    if isinstance(content, set | frozenset):
        return sorted(to_plain(value) for value in content)
    if isinstance(content, Sequence):
        return [to_plain(value) for value in content]
    raise TypeError(f"{type(content).__name__} has no place in JSON: {content!r}")


def write_table(path: Path, table: pd.DataFrame | Mapping[str, Any]) -> None:
    """Write a BIDS table, atomically: tabs, a header, ``n/a`` for what is missing, floats with 9 digits.

    Parameters
    ----------
    path : Path
        The ``.tsv`` file.
    table : DataFrame or mapping of str to sequence
        The columns; an index of the frame is not written. Nine digits give a float32 back exactly.
    """
    frame = pd.DataFrame(table)
    rows = zip(*(map(_format_cell, frame[column].tolist()) for column in frame.columns), strict=True)
    lines = ["\t".join(map(str, frame.columns)), *("\t".join(row) for row in rows)]
    write_text(path, "\n".join(lines) + "\n")


def _format_cell(value: Any) -> str:
    """Format a cell; BIDS tables know no quotes, so a tab or a line break inside becomes a space."""
    if value is None or value is pd.NA or value is pd.NaT or value == "":
        return "n/a"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return "n/a" if math.isnan(value) else f"{value:.9g}"
    return " ".join(str(value).splitlines()).replace("\t", " ")
