"""From the names in the events to image files, each checked, none outside the folder of the stimuli."""

from __future__ import annotations

import hashlib
import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from dnnbrain_app.errors import BadDataError, DnnbrainError, MissingInputError
from dnnbrain_app.records import Array, StimulusSet
from dnnbrain_app.stimuli.images import check_image

logger = logging.getLogger(__name__)

_LISTED = 10


class _RefusedPathError(BadDataError):
    """A name that leads out of the folder of the stimuli."""


def find_stimuli(names: Iterable[str], directory: Path) -> StimulusSet:
    """Find the image of each stimulus.

    Parameters
    ----------
    names : iterable of str
        Paths relative to ``directory``, as the events have them; repetitions are dropped. Backslashes count as
        separators, and a leading ``stimuli/`` is forgiven.
    directory : Path
        Folder of the stimuli. Its ``stimuli.tsv``, if any, gives the attributes; the row of a stimulus is found by the
        first column (``stim_file``, ``stim_id``, ...).

    Returns
    -------
    StimulusSet
        Sorted by name, with the SHA-256 of each file. Numeric attributes are float (NaN where missing), others text
        (``n/a``).

    Raises
    ------
    MissingInputError
        If the folder or files are absent; a file whose name differs in case only is named.
    BadDataError
        If a path leads out of the folder (links into the dataset's git annex are followed), a file is empty, is no
        image or is too large; or there are fewer than two stimuli. All failures are counted, the first ten of each
        kind listed.
    """
    ids = sorted(set(map(str, names)))
    if len(ids) < 2:
        raise BadDataError(f"at least two different stimuli are needed, not {len(ids)} ({', '.join(ids) or 'none'})")
    if not directory.is_dir():
        raise MissingInputError(
            f"folder of the stimuli {directory}: does not exist; name it with --stimuli-dir, it must hold e.g. {ids[0]}"
        )
    allowed = _list_roots(directory)
    paths, digests = [], []
    failures: dict[type[DnnbrainError], list[str]] = defaultdict(list)
    for name in ids:
        try:
            path = _locate(name, directory, allowed)
            digests.append(_digest_image(path))
            paths.append(path)
        except DnnbrainError as error:
            failures[type(error)].append(str(error))
    _raise_failures(failures, len(ids), directory)
    prefixed = sum(
        name.replace("\\", "/").startswith("stimuli/") and not (directory / "stimuli").is_dir() for name in ids
    )
    if prefixed:
        logger.warning("%d stimuli are named with a leading stimuli/, which BIDS leaves out; it was dropped", prefixed)
    return StimulusSet(tuple(ids), tuple(paths), tuple(digests), _read_attributes(directory / "stimuli.tsv", ids))


def find_missing(names: Iterable[str], directory: Path) -> list[str]:
    """List the stimuli without a file in the folder, sorted; contents are not looked at."""
    allowed = _list_roots(directory)
    missing = []
    for name in sorted(set(map(str, names))):
        try:
            _locate(name, directory, allowed)
        except DnnbrainError:
            missing.append(name)
    return missing


def _list_roots(directory: Path) -> tuple[Path, ...]:
    """Return where a file may lie once its links are followed: the folder, and the annex of the dataset around it."""
    home = directory.resolve()
    annexes = [(folder / ".git").resolve() / "annex" for folder in (home, *home.parents) if (folder / ".git").exists()]
    return (home, *annexes[:1])


def _locate(name: str, directory: Path, allowed: Sequence[Path]) -> Path:
    text = name.strip().replace("\\", "/")
    if re.match(r"[A-Za-z][\w+.-]*://", text):
        raise _RefusedPathError(f"{name!r} is a URL; a path within the folder is needed")
    if text.startswith("/") or re.match(r"[A-Za-z]:", text) or ".." in text.split("/"):
        raise _RefusedPathError(f"{name!r} leads out of the folder; a path within it is needed")
    path = directory / text
    if text.startswith("stimuli/") and not path.exists():
        path = directory / text.removeprefix("stimuli/")
    if not path.is_file():
        raise MissingInputError(_explain_missing(name, path, directory))
    target = path.resolve()
    if not any(target.is_relative_to(root) for root in allowed):
        raise _RefusedPathError(f"{name!r} is a link that leads out of the folder, to {target}")
    return path


def _explain_missing(name: str, path: Path, directory: Path) -> str:
    if path.is_symlink():
        return f"{name!r}: its content is not here; fetch it with 'datalad get'"
    if path.is_dir():
        return f"{name!r} is a folder"
    found = directory
    for part in path.relative_to(directory).parts:
        candidates = (
            [child for child in found.iterdir() if child.name.lower() == part.lower()] if found.is_dir() else []
        )
        if not candidates:
            return f"{name!r}"
        found = candidates[0]
    return f"{name!r}: there is {str(found.relative_to(directory))!r}; upper and lower case must agree"


def _digest_image(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadDataError(f"{path}: cannot be read ({error.strerror})") from error
    if not content:
        raise BadDataError(f"{path}: the file is empty; in a datalad dataset, fetch it with 'datalad get'")
    check_image(path, content)
    return hashlib.sha256(content).hexdigest()


def _raise_failures(failures: Mapping[type[DnnbrainError], Sequence[str]], n_stimuli: int, directory: Path) -> None:
    headings: dict[type[DnnbrainError], str] = {
        _RefusedPathError: "have a path that is refused",
        MissingInputError: f"are not in {directory} (another folder: --stimuli-dir)",
        BadDataError: "are not readable images",
    }
    texts = []
    for kind, heading in headings.items():
        messages = failures.get(kind, ())
        if messages:
            more = f", ... ({len(messages)} in all)" if len(messages) > _LISTED else ""
            texts.append(f"{len(messages)} of {n_stimuli} stimuli {heading}: {', '.join(messages[:_LISTED])}{more}")
    if texts:
        only_missing = set(failures) == {MissingInputError}
        raise (MissingInputError if only_missing else BadDataError)("; ".join(texts))


def _read_attributes(path: Path, ids: Sequence[str]) -> dict[str, Array]:
    if not path.is_file():
        return {}
    try:
        table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, encoding="utf-8-sig", index_col=False)
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise BadDataError(f"{path}: cannot be read as a tab-separated table ({error})") from error
    key, *columns = (str(column).strip() for column in table.columns)
    table.columns = [key, *columns]
    known = {_normalise(name): row for row, name in reversed(list(enumerate(table[key])))}
    rows = [known.get(_normalise(name)) for name in ids]
    if columns and all(row is None for row in rows):
        logger.warning("%s: its first column, %s, names none of the %d stimuli; no attributes", path, key, len(ids))
        return {}
    return {
        column: _to_array([table[column].iloc[row] if row is not None else "n/a" for row in rows]) for column in columns
    }


def _normalise(name: str) -> str:
    return name.strip().replace("\\", "/").removeprefix("stimuli/")


def _to_array(values: Sequence[str]) -> Array:
    texts = [value.strip() or "n/a" for value in values]
    numbers = pd.to_numeric(pd.Series(texts).replace("n/a", None), errors="coerce").to_numpy(float)
    is_number = ~np.isnan(numbers) | (np.array(texts) == "n/a")
    return numbers if is_number.all() and not np.isnan(numbers).all() else np.array(texts)
