"""BIDS names: taking them apart, and telling whether two of them speak of the same run.

Entities are read from the basename only: the folders above a dataset may well be called ``sub-99`` or ``res-high``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath

RUN_ENTITIES = ("sub", "ses", "task", "acq", "ce", "rec", "dir", "run")
"""Entities that tell one recording from another, the same in raw data and derivatives."""

LONG_NAMES = {
    "subject": "sub",
    "session": "ses",
    "acquisition": "acq",
    "ceagent": "ce",
    "reconstruction": "rec",
    "direction": "dir",
    "resolution": "res",
    "density": "den",
    "atlas": "atlas",
    "segmentation": "seg",
}
"""pybids' names of entities, where they differ from those in file names."""

RunKey = tuple[str | int | None, ...]


def parse_entities(name: str) -> dict[str, str]:
    """Take a BIDS file name apart.

    Parameters
    ----------
    name : str
        File name; folders before it are ignored. Unknown entities and any order of entities are accepted.

    Returns
    -------
    dict of str to str
        Short entity names in file order, then ``suffix`` (without AFNI's ``+orig``, ``+tlrc``) and ``extension`` (from
        the first dot, with it).

    Examples
    --------
    >>> parse_entities("sub-01_task-x_run-1_space-fsLR_den-91k_bold.dtseries.nii")["den"]
    '91k'
    >>> parse_entities("sub-01_task-x_bold_space-T1w_preproc.nii.gz")
    {'sub': '01', 'task': 'x', 'space': 'T1w', 'suffix': 'preproc', 'extension': '.nii.gz'}
    >>> parse_entities("sub-01_task-x_bold_space-fsnative.L.func.gii")
    {'sub': '01', 'task': 'x', 'space': 'fsnative', 'hemi': 'L', 'suffix': 'bold', 'extension': '.func.gii'}
    """
    stem, dot, extension = name.rpartition("/")[2].partition(".")
    entities, suffix = {}, ""
    for part in stem.split("_"):
        entity, dash, label = part.partition("-")
        if dash:
            entities[entity] = label
        else:  # fMRIPrep before 1.2 has the raw suffix in the middle of the name, before another one or alone
            suffix = part
    if extension in ("L.func.gii", "R.func.gii"):  # the same fMRIPrep
        entities["hemi"], _, extension = extension.partition(".")
    entities["suffix"] = suffix.partition("+")[0]
    entities["extension"] = dot + extension
    return entities


def same_label(entity: str, a: str, b: str) -> bool:
    """Whether two labels mean the same: as text, but a ``run`` as a number (fMRIPrep 20.2 wrote run-01 as run-1)."""
    if entity == "run" and a.isdecimal() and b.isdecimal():
        return int(a) == int(b)
    return a == b


def key_run(entities: Mapping[str, str]) -> RunKey:
    """Return what identifies a recording, equal in raw data and derivatives; ``echo`` and ``part`` are not in it."""
    return tuple(_comparable(entity, entities.get(entity)) for entity in RUN_ENTITIES)


def _comparable(entity: str, label: str | None) -> str | int | None:
    return int(label) if entity == "run" and label is not None and label.isdecimal() else label


def order_runs(entities: Mapping[str, str]) -> tuple[tuple[bool, int, str], ...]:
    """Sort key: session, then run, then the rest, numbers as numbers."""
    labels = [entities.get(entity, "") for entity in ("sub", "ses", "task", "run", "acq", "ce", "rec", "dir")]
    return tuple((not label.isdecimal(), int(label) if label.isdecimal() else 0, label) for label in labels)


def applies_to(entities: Mapping[str, str], target: Mapping[str, str]) -> bool:
    """Whether a file may be inherited by the target: each entity that it has, the target has with the same label."""
    return all(
        entity in target and same_label(entity, label, target[entity])
        for entity, label in entities.items()
        if entity not in ("suffix", "extension", "echo", "part")
    )


def strip_prefix(label: str, entity: str) -> str:
    """Return the label without ``<entity>-`` in front.

    Examples
    --------
    >>> strip_prefix("sub-01", "sub"), strip_prefix("01", "sub")
    ('01', '01')
    """
    return label.strip().removeprefix(f"{entity}-")


def clean_stem(path: PurePath) -> str:
    """Return the letters and digits of a file's name without its extension."""
    return "".join(c for c in path.name.partition(".")[0] if c.isalnum())
