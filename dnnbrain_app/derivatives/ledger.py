"""What is done already: a stage is skipped when nothing that it depends on has changed and its outputs are there."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dnnbrain_app.derivatives.files import to_plain, write_json

logger = logging.getLogger(__name__)


def digest_key(content: Any) -> str:
    """Digest whatever a stage depends on: options, stamps of the inputs, digests of weights, versions.

    Parameters
    ----------
    content : mapping, sequence, dataclass, Path, numpy or plain value
        The order of a mapping's keys does not matter, nor whether a sequence is a list or a tuple.

    Returns
    -------
    str
        SHA-256 of the canonical JSON, in hexadecimal.

    Examples
    --------
    >>> digest_key({"a": 1, "b": (2, 3)}) == digest_key({"b": [2, 3], "a": 1})
    True
    """
    canonical = json.dumps(to_plain(content), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def stamp(path: Path) -> list[Any]:
    """Identify a file cheaply: its name, size in bytes and time of last change in ns."""
    status = path.stat()
    return [path.name, status.st_size, status.st_mtime_ns]


class Ledger:
    """The status file of a unit.

    ::

        {"betas": {"key": "<sha256>", "outputs": {"../func/sub-01_..._statmap.tsv": 1234}}}

    Outputs are named relative to the file, so the dataset may move. A stage that overwrites its outputs must `forget`
    first and `record` last: between the two, the outputs on the disk belong to no key.

    Parameters
    ----------
    path : Path
        The JSON file; need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def is_current(self, stage: str, key: str) -> bool:
        """Whether the stage was recorded with this key, and every output is there with the size it had then."""
        entry = self._read().get(stage)
        if not isinstance(entry, dict) or entry.get("key") != key:
            return False
        outputs = entry.get("outputs")
        return isinstance(outputs, dict) and all(
            _measure(self.path.parent / name) == size for name, size in outputs.items()
        )

    def record(self, stage: str, key: str, outputs: Sequence[Path]) -> None:
        """Note that a stage is done; the other stages stay as they are.

        Raises
        ------
        FileNotFoundError
            An output does not exist: the stage is not done.
        """
        sizes = {os.path.relpath(output, self.path.parent): output.stat().st_size for output in outputs}
        write_json(self.path, {**self._read(), stage: {"key": key, "outputs": sizes}})

    def forget(self, stage: str) -> None:
        """Note that a stage's outputs are about to change."""
        entries = self._read()
        if entries.pop(stage, None) is not None:
            write_json(self.path, entries)

    def _read(self) -> dict[str, Any]:
        try:
            entries = json.loads(self.path.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            logger.warning("%s cannot be read (%s): everything it notes is done again", self.path, error)
            return {}
        if not isinstance(entries, dict):
            logger.warning("%s is no status file: everything it notes is done again", self.path)
            return {}
        return entries


def _measure(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
