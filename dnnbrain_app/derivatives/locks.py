"""One process at a time for each unit of work."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from dnnbrain_app.derivatives.files import explain_os_error, remove_leftovers
from dnnbrain_app.errors import TemporaryError

logger = logging.getLogger(__name__)


@contextmanager
def hold_lock(path: Path, *, timeout: float = 0.0) -> Iterator[None]:
    """Hold a unit's lock (`names.lock_file`), and clear what killed processes left in the participant's folder.

    The lock is the operating system's: it ends with its holder, however that dies.

    Parameters
    ----------
    path : Path
        ``sub-<label>/log/<unit>.lock``.
    timeout : float
        Seconds to wait for another holder.

    Raises
    ------
    TemporaryError
        Another process holds the lock.
    CannotWriteError, InputOutputError
        The lock file cannot be made.
    """
    lock = filelock.FileLock(path, timeout=timeout)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except filelock.Timeout as error:
        raise TemporaryError(
            f"{path.stem} is being computed by another process (it holds {path}); wait for it, then run again"
        ) from error
    except NotImplementedError:
        logger.warning("the file system of %s has no locks: do not run the same participant twice at once", path)
    except OSError as error:
        raise explain_os_error(error, path) from error
    try:
        remove_leftovers(path.parents[1])
        yield
    finally:
        lock.release()
