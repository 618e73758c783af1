"""Files of labelled regions: CIFTI label files, label files of two hemispheres, and volumes with their tables."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.cifti2.cifti2_axes import LabelAxis

from dnnbrain_app.dataset.entities import applies_to, parse_entities
from dnnbrain_app.dataset.events import read_table
from dnnbrain_app.dataset.geometry import describe_grid, read_parts
from dnnbrain_app.dataset.headers import load_image, opening
from dnnbrain_app.errors import BadDataError, MissingInputError, UsageError
from dnnbrain_app.records import Array

logger = logging.getLogger(__name__)

_BACKGROUND = {"", "???", "unknown", "background", "medial_wall"}


@dataclass(slots=True)
class Labels:
    """An atlas on whole meshes and the whole grid: indices into ``names``, -1 where there is no region.

    ``space`` is what the name of the file says (``tpl-`` or ``space-``), empty where it says nothing.
    """

    path: Path
    space: str
    names: list[str] = field(default_factory=list)
    meshes: dict[str, Array] = field(default_factory=dict)
    volume: Array | None = None
    affine: Array | None = None

    def encode(self, keys: Array, table: Mapping[int, str]) -> Array:
        """Turn a file's keys into indices of names; the same name in two tables is one region."""
        indices = {key: self._index(name) for key, name in table.items() if key and not _is_background(name)}
        values, inverse = np.unique(keys, return_inverse=True)
        nameless = [str(value) for value in values if value and int(value) not in table]
        if nameless:
            logger.warning("atlas: keys %s have no name; left out", ", ".join(nameless[:10]))
        return np.array([indices.get(int(value), -1) for value in values], dtype=int)[inverse].reshape(keys.shape)

    def _index(self, name: str) -> int:
        if name not in self.names:
            self.names.append(name)
        return self.names.index(name)

    def describe(self) -> str:
        """Say what the labels lie on, for messages."""
        texts = [
            f"{structure.removeprefix('CIFTI_STRUCTURE_')} of {len(mesh)} vertices"
            for structure, mesh in self.meshes.items()
        ]
        if self.volume is not None:
            texts.append(describe_grid(self.volume.shape, self.affine))
        return ", ".join(texts)


def _is_background(name: str) -> bool:
    return name.strip().lower() in _BACKGROUND


def pair_hemispheres(paths: Iterable[Path]) -> list[tuple[Path, ...]]:
    """Group files into atlases: a file alone, or the label files of both hemispheres, of which one need be named."""
    groups: list[tuple[Path, ...]] = []
    for path in paths:
        if path.name.endswith(".gii"):
            left, right = (_swap_hemisphere(path, side) for side in "LR")
            groups.append((left, right))
        else:
            groups.append((path,))
    return list(dict.fromkeys(groups))


def _swap_hemisphere(path: Path, side: str) -> Path:
    for marks in (("hemi-L", "hemi-R"), ("lh.", "rh."), (".L.", ".R.")):
        for mark in marks:
            if mark in path.name:
                return path.with_name(path.name.replace(mark, marks["LR".index(side)]))
    raise UsageError(
        f"--atlas {path}: its name does not tell the hemisphere (hemi-L, hemi-R), so the other one cannot be found"
    )


def name_space(entities: Mapping[str, str]) -> str:
    """Name the space that a file's name tells, the same for all that share coordinates; empty where it tells none.

    Examples
    --------
    >>> name_space({"tpl": "fsaverage", "den": "10k"}), name_space({"space": "fsaverage5"}), name_space({"sub": "01"})
    ('fsaverage', 'fsaverage', '')
    """
    name = re.sub(r"^fsaverage\d$", "fsaverage", entities.get("space") or entities.get("tpl", ""))
    if name == "MNI152NLin6Asym":  # where the subcortical voxels of fsLR lie
        name = "fsLR"
    return f"{name}:cohort-{entities['cohort']}" if name and "cohort" in entities else name


def read_labels(paths: tuple[Path, ...]) -> Labels:
    """Read an atlas: one file, or the left and the right hemisphere's.

    Raises
    ------
    BadDataError, MissingInputError
        If a file is damaged, of another kind or without labels; if it, or the table of a volume, is absent.
    """
    labels = Labels(paths[0], name_space(parse_entities(paths[0].name)))
    for path, structure in zip(paths, ("CIFTI_STRUCTURE_CORTEX_LEFT", "CIFTI_STRUCTURE_CORTEX_RIGHT"), strict=False):
        image = load_image(path)
        with opening(path):
            if path.name.endswith(".gii"):
                labels.meshes[structure] = labels.encode(
                    np.asarray(image.darrays[0].data), image.labeltable.get_labels_as_dict()
                )
            elif isinstance(image, nib.Cifti2Image):
                _read_dlabel(image, labels, path)
            else:
                _read_dseg(image, labels, path)
    if not labels.names:
        raise BadDataError(f"atlas {paths[0]}: no labels but the background")
    return labels


def _read_dlabel(image: Any, labels: Labels, path: Path) -> None:
    maps, models = (image.header.get_axis(axis) for axis in (0, 1))
    if not isinstance(maps, LabelAxis):
        raise BadDataError(f"atlas {path}: not a label file (.dlabel.nii)")
    if len(maps) > 1:
        logger.warning("%s: %d maps; the first, %s, is used", path, len(maps), maps.name[0])
    keys = np.asarray(image.dataobj[0]).round().astype(int)
    values = labels.encode(keys, {key: name for key, (name, _) in maps.label[0].items()})
    if models.affine is not None:
        labels.volume, labels.affine = np.full(models.volume_shape, -1), models.affine
    for part in read_parts(models):
        here = values[part.start : part.stop]
        if part.vertices is not None:
            labels.meshes[part.structure] = np.full(part.n_vertices, -1)
            labels.meshes[part.structure][part.vertices] = here
        elif part.voxels is not None and labels.volume is not None:
            labels.volume[tuple(part.voxels.T)] = here


def _read_dseg(image: Any, labels: Labels, path: Path) -> None:
    data = np.asarray(image.dataobj)
    if data.ndim != 3 or not np.array_equal(data, np.round(data)):
        raise BadDataError(
            f"atlas {path}: must be one volume of whole numbers (_dseg), not {data.ndim} dimensions of {data.dtype}"
        )
    labels.volume, labels.affine = labels.encode(data.astype(int), _read_lookup(path)), image.affine


def find_lookup(path: Path) -> Path | None:
    """Find the ``.tsv`` of a dseg: of its own name, or of a less specific one beside it."""
    entities = parse_entities(path.name)
    beside = [other for other in path.parent.glob("*_dseg.tsv") if applies_to(parse_entities(other.name), entities)]
    own = path.with_name(path.name.partition(".")[0] + ".tsv")
    return own if own.exists() else max(beside, key=lambda other: len(other.name), default=None)


def _read_lookup(path: Path) -> dict[int, str]:
    table_path = find_lookup(path)
    if table_path is None:
        raise MissingInputError(
            f"atlas {path}: its table of labels {path.name.partition('.')[0]}.tsv (columns index and name) is not there"
        )
    table = read_table(table_path)
    if not {"index", "name"} <= set(table.columns):
        raise BadDataError(f"{table_path}: columns index and name are needed; there are: {', '.join(table.columns)}")
    try:
        return {int(float(index)): str(name) for index, name in zip(table["index"], table["name"], strict=True)}
    except (TypeError, ValueError) as error:
        raise BadDataError(f"{table_path}: an index is not a whole number ({error})") from error
