"""Atlases in the data's own space, and the regions asked for. Nothing is resampled."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.cifti2.cifti2_axes import LabelAxis

from dnnbrain_app.dataset.entities import applies_to, clean_stem, parse_entities
from dnnbrain_app.dataset.events import read_table
from dnnbrain_app.dataset.headers import load_image, opening
from dnnbrain_app.dataset.images import describe_grid, describe_space, read_parts, same_grid
from dnnbrain_app.errors import BadDataError, MissingInputError, UnknownNameError, UsageError
from dnnbrain_app.records import Array, Atlas, BrainSpace

logger = logging.getLogger(__name__)

PRESETS: dict[str, tuple[str, ...]] = {
    # ventral temporal cortex in the multimodal parcellation (Glasser et al. 2016), the region of Chen et al. (2020)
    "VTC": ("V8", "FFC", "PIT", "VVC", "VMV1", "VMV2", "VMV3"),
}

_BACKGROUND = {"", "???", "unknown", "background", "medial_wall"}
_BOTH_SIDES = ("L_{}_ROI", "R_{}_ROI", "L_{}", "R_{}", "lh.{}", "rh.{}", "lh_{}", "rh_{}", "ctx-lh-{}", "ctx-rh-{}")


@dataclass(slots=True)
class _Labels:
    """An atlas on whole meshes and the whole grid: indices into ``names``, -1 where there is no region."""

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
        texts = [
            f"{structure.removeprefix('CIFTI_STRUCTURE_')} of {len(mesh)} vertices"
            for structure, mesh in self.meshes.items()
        ]
        if self.volume is not None:
            texts.append(describe_grid(self.volume.shape, self.affine))
        return ", ".join(texts)


def _is_background(name: str) -> bool:
    return name.strip().lower() in _BACKGROUND


def read_atlas(paths: Sequence[Path], space: BrainSpace, rois: Sequence[str]) -> Atlas | None:
    """Read the regions of the atlas that is in the data's space.

    Parameters
    ----------
    paths : sequence of Path
        ``.dlabel.nii``, ``.label.gii`` (the other hemisphere's is found by its name) or ``_dseg.nii[.gz]`` with its
        ``.tsv`` (columns ``index`` and ``name``). Of several the one that fits is taken.
    space : BrainSpace
        The columns of the data. They may be more or fewer than the atlas has; surfaces are matched by structure and
        vertex, voxels by index on the same grid.
    rois : sequence of str
        ``NAME=LABEL+LABEL``, or NAME alone: that label or, failing it, the preset of this name. A label stands for both
        hemispheres: ``V8`` is ``V8``, or ``L_V8_ROI`` with ``R_V8_ROI``, and so on. Empty: every label.

    Returns
    -------
    Atlas or None
        None if there are no paths.

    Raises
    ------
    BadDataError
        If no atlas is in this space, two are, or a region has no voxel in the data.
    UnknownNameError
        If a label does not exist.
    UsageError
        If the syntax of a region is wrong, a name occurs twice, or regions are asked for without an atlas.
    MissingInputError
        If a file is absent.
    """
    if not paths:
        if rois:
            raise UsageError(f"--roi {rois[0]}: regions need an atlas; name one with --atlas FILE")
        return None
    wanted = [parse_roi(text) for text in rois]
    twice = {name for name, _ in wanted if [other for other, _ in wanted].count(name) > 1}
    if twice:
        raise UsageError(f"--roi: {', '.join(sorted(twice))} is defined twice")
    path, columns, names = _choose_atlas(paths, space)
    if wanted:
        regions = {name: _select_region(name, labels, columns, names, path) for name, labels in wanted}
    else:
        regions = {name: columns == index for index, name in enumerate(names) if (columns == index).any()}
        if len(regions) < len(names):
            logger.info(
                "%s: %d of %d labels have no voxel in the data; left out", path, len(names) - len(regions), len(names)
            )
    if not regions:
        raise BadDataError(
            f"atlas {path}: none of its {len(names)} labels has a voxel in the data ({describe_space(space)})"
        )
    return Atlas(name_atlas(path), regions)


def name_atlas(path: Path) -> str:
    """Name an atlas by the ``atlas`` or ``seg`` entity of its file, else by the file."""
    entities = parse_entities(path.name)
    return entities.get("atlas") or entities.get("seg") or clean_stem(path)


def parse_roi(text: str) -> tuple[str, tuple[str, ...]]:
    """Take ``NAME=LABEL+LABEL`` apart; NAME alone has no labels.

    Examples
    --------
    >>> parse_roi("EVC=V1+V2")
    ('EVC', ('V1', 'V2'))
    >>> parse_roi("V1")
    ('V1', ())
    """
    name, equals, labels = (part.strip() for part in text.partition("="))
    split = tuple(label.strip() for label in labels.split("+")) if equals else ()
    if not name or not all(split) or (not equals and "+" in name):
        raise UsageError(f"--roi {text!r}: must be NAME=LABEL+LABEL, e.g. VTC=V8+FFC, or the NAME of a label or preset")
    return name, split


def _select_region(name: str, labels: tuple[str, ...], columns: Array, names: Sequence[str], path: Path) -> Array:
    if not labels:
        labels = PRESETS[name] if name in PRESETS and not _find_label(name, names) else (name,)
    indices: list[int] = []
    for label in labels:
        found = _find_label(label, names)
        if not found:
            raise UnknownNameError("atlas label", label, sorted(names), hint=f"(--roi {name}, atlas {path})")
        indices += found
    region = np.isin(columns, indices)
    if not region.any():
        raise BadDataError(f"region {name}: no voxel of {'+'.join(labels)} ({path.name}) is in the data")
    return region


def _find_label(label: str, names: Sequence[str]) -> list[int]:
    if label in names:
        return [names.index(label)]
    return [names.index(form.format(label)) for form in _BOTH_SIDES if form.format(label) in names]


def _choose_atlas(paths: Sequence[Path], space: BrainSpace) -> tuple[Path, Array, list[str]]:
    fitting: list[tuple[Path, Array, list[str]]] = []
    misfits = []
    for group in _pair_hemispheres(paths):
        labels = _read_labels(group)
        reason = _compare_geometry(labels, space)
        if reason:
            misfits.append(f"{group[0].name} has {labels.describe()} ({reason})")
        else:
            fitting.append((group[0], _sample_labels(labels, space), labels.names))
    if len(fitting) > 1:
        raise BadDataError(f"two atlases are in space {space.name}: {fitting[0][0]} and {fitting[1][0]}; name one")
    if not fitting:
        raise BadDataError(
            f"no atlas is in the space of the data, {space.name} with {describe_space(space)}: {'; '.join(misfits)}. "
            "Nothing is resampled; give --atlas in this space"
        )
    return fitting[0]


def list_atlas_files(paths: Sequence[Path]) -> list[Path]:
    """List all the files that atlases are read from: both hemispheres, and the look-up table of a volume."""
    files = [file for pair in _pair_hemispheres(paths) for file in pair]
    tables = [_find_lookup(path) for path in files if path.name.endswith((".nii.gz", ".nii"))]
    return [*(file for file in files if file.exists()), *(table for table in tables if table is not None)]


def _pair_hemispheres(paths: Iterable[Path]) -> list[tuple[Path, ...]]:
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


def _read_labels(paths: tuple[Path, ...]) -> _Labels:
    labels = _Labels()
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


def _read_dlabel(image: Any, labels: _Labels, path: Path) -> None:
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


def _read_dseg(image: Any, labels: _Labels, path: Path) -> None:
    data = np.asarray(image.dataobj)
    if data.ndim != 3 or not np.array_equal(data, np.round(data)):
        raise BadDataError(
            f"atlas {path}: must be one volume of whole numbers (_dseg), not {data.ndim} dimensions of {data.dtype}"
        )
    labels.volume, labels.affine = labels.encode(data.astype(int), _read_lookup(path)), image.affine


def _find_lookup(path: Path) -> Path | None:
    """Find the ``.tsv`` of a dseg: of its own name, or of a less specific one beside it."""
    entities = parse_entities(path.name)
    beside = [other for other in path.parent.glob("*_dseg.tsv") if applies_to(parse_entities(other.name), entities)]
    own = path.with_name(path.name.partition(".")[0] + ".tsv")
    return own if own.exists() else max(beside, key=lambda other: len(other.name), default=None)


def _read_lookup(path: Path) -> dict[int, str]:
    table_path = _find_lookup(path)
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


def _compare_geometry(labels: _Labels, space: BrainSpace) -> str:
    """Say why an atlas does not fit; nothing where it does."""
    surfaces = {part.structure: part.n_vertices for part in space.parts if part.is_surface}
    common = surfaces.keys() & labels.meshes.keys()
    for structure in sorted(common):
        if len(labels.meshes[structure]) != surfaces[structure]:
            return f"{structure} has {surfaces[structure]} vertices in the data"
    if common or _shares_grid(labels, space):
        return ""
    return "no structure in common, and not the same grid"


def _shares_grid(labels: _Labels, space: BrainSpace) -> bool:
    return labels.volume is not None and same_grid(labels.volume.shape, labels.affine, space.shape, space.affine)


def _sample_labels(labels: _Labels, space: BrainSpace) -> Array:
    columns = np.full(space.n_voxels, -1)
    volume = labels.volume if _shares_grid(labels, space) else None
    for part in space.parts:
        if part.vertices is not None and part.structure in labels.meshes:
            columns[part.start : part.stop] = labels.meshes[part.structure][part.vertices]
        elif part.voxels is not None and volume is not None:
            columns[part.start : part.stop] = volume[tuple(part.voxels.T)]
    return columns
