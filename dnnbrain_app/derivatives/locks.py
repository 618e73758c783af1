"""One process at a time for each unit of work, and for each entry of the cache.

The locks are the operating system's: they end with their holder, however that dies.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dnnbrain_app.derivatives.files import explain_os_error, remove_leftovers
from dnnbrain_app.errors import TemporaryError

logger = logging.getLogger(__name__)
_POLL = 0.5  # seconds
_HELD = {errno.EAGAIN, errno.EACCES}
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EBADF}


@contextmanager
def hold_lock(path: Path) -> Iterator[None]:
    """Hold a unit's lock (`names.lock_file`), and clear what killed processes left in the participant's folder.

    Parameters
    ----------
    path : Path
        ``sub-<label>/log/<unit>.lock``.

    Raises
    ------
    TemporaryError
        Another process holds the lock.
    CannotWriteError, InputOutputError
        The lock file cannot be made.
    """
    with _open(path) as file:
        if not _try_path(file, path):
            raise TemporaryError(
                f"{path.stem} is being computed by another process (it holds {path}); wait for it, then run again"
            )
        remove_leftovers(path.parents[1])
        yield


@contextmanager
def hold_entry_lock(path: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock of what several processes need; wait while another one computes it.

    Who gets the lock looks first whether the other has left what it needs.

    Parameters
    ----------
    path : Path
        The lock file; it stays.
    waiting : callable, optional
        Called once, if there is somebody to wait for.

    Raises
    ------
    CannotWriteError, InputOutputError
        The lock file cannot be made.
    """
    with _open(path) as file:
        if not _try_path(file, path):
            if waiting is not None:
                waiting()
            while not _try_path(file, path):
                time.sleep(_POLL)
        yield


def try_lock(file: int) -> bool | None:
    """Lock an open file or folder until it is closed; False if another process has, None if there are no locks here."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            return False
        if error.errno in _NO_LOCKS:
            return None
        raise
    return True


@contextmanager
def _open(path: Path) -> Iterator[int]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise explain_os_error(error, path) from error
    try:
        yield file
    finally:
        os.close(file)


def _try_path(file: int, path: Path) -> bool:
    try:
        locked = try_lock(file)
    except OSError as error:
        raise explain_os_error(error, path) from error
    if locked is None:
        logger.warning("the file system of %s has no locks: do not start the same work twice at once", path)
    return locked is not False
