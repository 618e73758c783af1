"""Choosing files by their entities: the flags, and the NiPreps filter file."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dnnbrain_app.dataset.entities import LONG_NAMES, same_label, strip_prefix
from dnnbrain_app.dataset.listing import File
from dnnbrain_app.errors import EmptySelectionError, MissingInputError, UnknownNameError, UsageError

logger = logging.getLogger(__name__)

QUERIES = ("bold", "events", "mask", "confounds", "betas")
ENTITIES = (
    *("sub", "ses", "sample", "task", "tracksys", "acq", "ce", "trc", "stain", "rec", "dir", "run", "mod", "echo"),
    *("flip", "inv", "mt", "part", "proc", "hemi", "space", "cohort", "split", "recording", "chunk", "atlas", "seg"),
    *("scale", "res", "den", "label", "model", "contrast", "stat", "desc"),
    *("from", "to", "mode", "hash", "suffix", "extension", "datatype"),
)

Query = Mapping[str, Any]


def read_filters(path: Path | None) -> dict[str, Query]:
    """Read a ``--bids-filter-file``.

    Parameters
    ----------
    path : Path or None
        JSON: ``{query: {entity: value}}``. A value is a label, a list of labels (any of them), null (the file must not
        have the entity) or ``"*"`` (it must have it, with any label). Entities have pybids' names or the short ones.

    Returns
    -------
    dict of str to mapping
        By query, with short entity names; empty without a file.

    Raises
    ------
    MissingInputError, UsageError, UnknownNameError
        If the file is absent; is not such JSON; names a query or entity that does not exist.
    """
    if path is None:
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise MissingInputError(f"--bids-filter-file {path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UsageError(f"--bids-filter-file {path}: not JSON ({error})") from error
    if not isinstance(content, dict) or not all(isinstance(query, dict) for query in content.values()):
        raise UsageError(
            f'--bids-filter-file {path}: must be {{query: {{entity: value}}}}, e.g. {{"bold": {{"session": "01"}}}}'
        )
    filters: dict[str, Query] = {}
    for name, query in content.items():
        if name not in QUERIES:
            raise UnknownNameError(f"query in --bids-filter-file {path}:", name, QUERIES)
        filters[name] = {_shorten(entity, path): value for entity, value in query.items()}
    return filters


def _shorten(entity: str, path: Path) -> str:
    short = LONG_NAMES.get(entity, entity)
    if short not in ENTITIES:
        raise UnknownNameError(f"entity in --bids-filter-file {path}:", entity, [*LONG_NAMES, *ENTITIES])
    return short


def filter_files(files: Sequence[File], name: str, query: Query | None) -> list[File]:
    """Keep the files that a query of the filter file selects.

    Raises
    ------
    EmptySelectionError
        If there were files and none is left.
    """
    if not query:
        return list(files)
    kept = [file for file in files if all(_matches(file, entity, value) for entity, value in query.items())]
    logger.info("--bids-filter-file: query %s %s keeps %d of %d files", name, json.dumps(query), len(kept), len(files))
    if files and not kept:
        raise EmptySelectionError(
            f"--bids-filter-file: query {name} {json.dumps(query)} selects none of the {len(files)} files, "
            f"such as {files[0].name}"
        )
    return kept


def _matches(file: File, entity: str, value: Any) -> bool:
    label = "func" if entity == "datatype" else file.entities.get(entity)
    options = value if isinstance(value, list) else [value]
    return any(_is(entity, label, option) for option in options)


def _is(entity: str, label: str | None, option: Any) -> bool:
    if option is None or label is None:
        return option is None and label is None
    return option == "*" or same_label(entity, label, str(option)) or (entity == "extension" and label == f".{option}")


def select_labels(files: Sequence[File], entity: str, flag: str, asked: Iterable[str]) -> list[File]:
    """Keep the files whose label of an entity is among those asked for; all of them when nothing is asked.

    Raises
    ------
    EmptySelectionError
        If none is left; the labels that there are get listed.
    """
    labels = [strip_prefix(label, entity) for label in asked]
    if not labels:
        return list(files)
    there = sorted({file.entities[entity] for file in files if entity in file.entities})
    absent = [label for label in labels if not any(same_label(entity, label, one) for one in there)]
    if len(absent) == len(labels):
        listed = ", ".join(there) if there else f"no file name has {entity}-"
        raise EmptySelectionError(f"{flag} {' '.join(labels)} selects nothing; there are: {listed}")
    if absent:
        logger.warning("%s: there is no %s", flag, ", ".join(f"{entity}-{label}" for label in absent))
    return [file for file in files if any(same_label(entity, file.entities.get(entity, ""), label) for label in labels)]
