"""Where the raw dataset and its derivatives are, and what to say when they are not there."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dnnbrain_app.dataset.entities import strip_prefix
from dnnbrain_app.dataset.options import DatasetOptions
from dnnbrain_app.errors import InputOutputError, MissingInputError, UsageError, suggest

logger = logging.getLogger(__name__)


def list_participants(bids_dir: Path) -> list[str]:
    """List the participants of a dataset.

    Parameters
    ----------
    bids_dir : Path
        Raw BIDS dataset (or a derivative whose ``DatasetLinks`` lead to it).

    Returns
    -------
    list of str
        Labels without ``sub-``, sorted.

    Raises
    ------
    MissingInputError
        If the folder is absent, or has no ``sub-*`` folders; where they are nearby, the message says where.
    UsageError
        If it is a derivative whose raw dataset is not on this machine.
    """
    return _list_labels(find_raw(bids_dir))


def find_raw(bids_dir: Path) -> Path:
    """Return the raw dataset: the folder itself or, for a derivative, what its ``DatasetLinks`` name.

    Raises
    ------
    MissingInputError, UsageError
        As `list_participants`.
    """
    if not bids_dir.is_dir():
        what = "is not a folder" if bids_dir.exists() else "does not exist"
        raise MissingInputError(
            f"BIDS_DIR {bids_dir} {what}.{_hint_above(bids_dir) or _hint_below(bids_dir) or _hint_container(bids_dir)}"
        )
    # read first: many a derivative has sub-* folders, and looks like a raw dataset but for this
    description = _read_description(bids_dir)
    if description.get("DatasetType") == "derivative" or (
        "DatasetType" not in description and "GeneratedBy" in description
    ):
        return _follow_link(bids_dir, description)
    if not _list_labels(bids_dir):
        there = ", ".join(sorted(path.name for path in bids_dir.iterdir())[:10]) or "nothing"
        raise MissingInputError(
            f"BIDS_DIR {bids_dir}: no participants (folders sub-<label>); it has {there}."
            f"{_hint_above(bids_dir) or _hint_below(bids_dir) or _hint_container(bids_dir)}"
        )
    return bids_dir


def find_derivatives(bids_dir: Path, options: DatasetOptions) -> dict[str, Path]:
    """Find the folders of preprocessed data.

    Parameters
    ----------
    bids_dir : Path
        The BIDS_DIR of the command line.
    options : DatasetOptions
        ``derivatives`` is used: PATH or NAME=PATH.

    Returns
    -------
    dict of str to Path
        By name; the name of a PATH alone is its folder's.

    Raises
    ------
    MissingInputError
        If there is none, or one asked for is absent or has no participants.
    UsageError
        If none is asked for and there are two to choose from, or two have the same name.
    """
    if not options.derivatives:
        raw = find_raw(bids_dir)
        if raw != bids_dir:
            return {bids_dir.resolve().name: bids_dir}
        return _find_default(raw / "derivatives")
    found: dict[str, Path] = {}
    for text in options.derivatives:
        head, equals, tail = text.partition("=")
        # a path may hold "=" too, but then after a "/"
        name, path = (head, Path(tail)) if equals and "/" not in head else ("", Path(text))
        name = name or path.resolve().name
        if name in found:
            raise UsageError(
                f"--derivatives: two are called {name!r} ({found[name]} and {path}); give each a name with NAME=PATH"
            )
        _check_derivative(path)
        found[name] = path
    return found


def choose_participants(raw: Path, asked: Sequence[str]) -> list[str]:
    """Return the labels asked for, or all of the dataset's.

    Raises
    ------
    MissingInputError
        If one is not in the dataset; the nearest label is suggested.
    """
    there = _list_labels(raw)
    labels = list(dict.fromkeys(strip_prefix(label, "sub") for label in asked))
    for label in labels:
        if label not in there:
            raise MissingInputError(f"participant {label!r} is not in {raw}; {suggest(label, there)}")
    return labels or there


def _list_labels(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name[4:] for entry in entries if entry.name.startswith("sub-") and entry.is_dir())
    except OSError as error:
        raise InputOutputError(f"{folder}: cannot be listed ({error.strerror})") from error


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / "dataset_description.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        logger.warning("%s: cannot be read (%s); ignored", path, error)
        return {}
    return content if isinstance(content, dict) else {}


def _follow_link(bids_dir: Path, description: dict[str, Any]) -> Path:
    links = description.get("DatasetLinks")
    link = str(links.get("raw", "")) if isinstance(links, dict) else ""
    local = link.removeprefix("file://")
    raw = (bids_dir / local).resolve()
    if local and "://" not in local and raw.is_dir() and raw != bids_dir.resolve() and _list_labels(raw):
        logger.info("BIDS_DIR %s is a derivative; its raw dataset is %s", bids_dir, raw)
        return raw
    reason = (
        f"its DatasetLinks name {link!r}, which is not here" if link else "it has no DatasetLinks to the raw dataset"
    )
    raise UsageError(
        f"BIDS_DIR {bids_dir} is a derivative, and {reason}. Give the raw dataset as BIDS_DIR and this folder as "
        f"--derivatives {bids_dir.resolve().name}={bids_dir}"
    )


def _find_default(folder: Path) -> dict[str, Path]:
    there = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    found = [path for path in there if path.name.lower().startswith("fmriprep") and _list_labels(path)]
    if len(found) > 1:
        choices = " or ".join(f"--derivatives {path.name}={path}" for path in found)
        raise UsageError(
            f"{folder} has {len(found)} candidates: {', '.join(path.name for path in found)}; choose one with {choices}"
        )
    if not found:
        has = (
            f"has {', '.join(path.name for path in there) or 'nothing of the kind'}"
            if folder.is_dir()
            else "does not exist"
        )
        raise MissingInputError(
            f"no fMRIPrep derivatives: {folder} {has}, and a folder fmriprep* with sub-* in it is looked for there. "
            "Say where they are with --derivatives NAME=PATH"
        )
    return {found[0].name: found[0]}


def _check_derivative(path: Path) -> None:
    if not path.is_dir():
        raise MissingInputError(f"--derivatives {path}: no such folder.{_hint_container(path)}")
    if _list_labels(path):
        return
    raise MissingInputError(
        f"--derivatives {path}: no participants (folders sub-<label>).{_hint_below(path) or _hint_above(path)}"
    )


def _hint_above(folder: Path) -> str:
    """Say where sub-* folders are, if the folder lies within a dataset."""
    for parent in folder.absolute().parents:
        inside = folder.absolute().relative_to(parent).parts[0]
        near = inside.startswith("sub-") or parent == folder.absolute().parent
        if near and parent.is_dir() and _list_labels(parent):
            return f" Did you mean {parent}? It has sub-* folders."
    return ""


def _hint_below(folder: Path) -> str:
    """Say where sub-* folders are, if that is one level down."""
    if not folder.is_dir():
        return ""
    children = [path for path in sorted(folder.iterdir()) if path.is_dir() and os.access(path, os.R_OK | os.X_OK)]
    below = [str(path) for path in children if _list_labels(path)]
    return f" Did you mean {' or '.join(below[:5])}? There are sub-* folders." if below else ""


def _hint_container(path: Path) -> str:
    marks = (Path("/.dockerenv"), Path("/run/.containerenv"))
    if not any(mark.exists() for mark in marks) and not {"APPTAINER_NAME", "SINGULARITY_NAME"} & os.environ.keys():
        return ""
    return (
        f" Inside a container only bound folders are seen: docker run -v /path/on/host:{path}:ro, "
        f"or apptainer run -B /path/on/host:{path}:ro"
    )
