"""Atlases in the data's own space, and the regions asked for."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from nibabel.affines import apply_affine

from dnnbrain_app.dataset.entities import clean_stem, parse_entities
from dnnbrain_app.dataset.geometry import describe_grid, describe_space, same_grid
from dnnbrain_app.dataset.labels import Labels, find_lookup, name_space, pair_hemispheres, read_labels
from dnnbrain_app.errors import BadDataError, UnknownNameError, UsageError
from dnnbrain_app.records import Array, Atlas, BrainSpace

logger = logging.getLogger(__name__)

PRESETS: dict[str, tuple[str, ...]] = {
    # ventral temporal cortex in the multimodal parcellation (Glasser et al. 2016), the region of Chen et al. (2020)
    "VTC": ("V8", "FFC", "PIT", "VVC", "VMV1", "VMV2", "VMV3"),
}

_BOTH_SIDES = ("L_{}_ROI", "R_{}_ROI", "L_{}", "R_{}", "lh.{}", "rh.{}", "lh_{}", "rh_{}", "ctx-lh-{}", "ctx-rh-{}")


def read_atlas(paths: Sequence[Path], space: BrainSpace, rois: Sequence[str]) -> Atlas | None:
    """Read the regions of the atlas that is in the data's space.

    Parameters
    ----------
    paths : sequence of Path
        ``.dlabel.nii``, ``.label.gii`` (the other hemisphere's is found by its name) or ``_dseg.nii[.gz]`` with its
        ``.tsv`` (columns ``index`` and ``name``). Of several the one that fits is taken. Where names tell a space, by
        ``tpl-`` or ``space-``, it must be that of the data.
    space : BrainSpace
        The columns of the data. They may be more or fewer than the atlas has; surfaces are matched by structure and
        vertex, voxels by where they lie: on another grid of the same space a voxel has the label of the atlas voxel
        that is nearest to its centre, and a warning says so. Surfaces are never resampled.
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
    chosen = _choose_atlas(paths, space)
    path, names, columns = chosen.path, chosen.names, _sample_labels(chosen, space)
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


def _choose_atlas(paths: Sequence[Path], space: BrainSpace) -> Labels:
    atlases = [read_labels(group) for group in pair_hemispheres(paths)]
    reasons = [_compare_geometry(labels, space) for labels in atlases]
    fitting = [labels for labels, reason in zip(atlases, reasons, strict=True) if not reason]
    fitting = [labels for labels in fitting if _shares_grid(labels, space)] or fitting
    if len(fitting) > 1:
        raise BadDataError(f"two atlases are in space {space.name}: {fitting[0].path} and {fitting[1].path}; name one")
    if not fitting:
        misfits = [
            f"{labels.path.name} has {labels.describe()} ({reason})"
            for labels, reason in zip(atlases, reasons, strict=True)
        ]
        raise BadDataError(
            f"no atlas is in the space of the data, {space.name} with {describe_space(space)}: {'; '.join(misfits)}. "
            "Surfaces are not resampled, and volumes within one space only; give --atlas in this space"
        )
    return fitting[0]


def list_atlas_files(paths: Sequence[Path]) -> list[Path]:
    """List all the files that atlases are read from: both hemispheres, and the look-up table of a volume."""
    files = [file for pair in pair_hemispheres(paths) for file in pair]
    tables = [find_lookup(path) for path in files if path.name.endswith((".nii.gz", ".nii"))]
    return [*(file for file in files if file.exists()), *(table for table in tables if table is not None)]


def _compare_geometry(labels: Labels, space: BrainSpace) -> str:
    """Say why an atlas does not fit; nothing where it does."""
    here = _name_data(space)
    if labels.space and here and labels.space != here:
        return f"by its name it is not in space {space.name}"
    surfaces = {part.structure: part.n_vertices for part in space.parts if part.is_surface}
    common = surfaces.keys() & labels.meshes.keys()
    for structure in sorted(common):
        if len(labels.meshes[structure]) != surfaces[structure]:
            return f"{structure} has {surfaces[structure]} vertices in the data"
    if common or _has_voxels(labels, space):
        return ""
    if labels.volume is None or space.affine is None:
        return "no structure in common"
    return "not the same grid; to be resampled, names must tell the space of both: tpl- or space-"


def _name_data(space: BrainSpace) -> str:
    """Name the space of the data; not of volumes whose files tell none: it may be any."""
    return name_space(space.entities if space.format == "nifti" else {**space.entities, "space": space.name})


def _shares_grid(labels: Labels, space: BrainSpace) -> bool:
    """Whether nothing has to be resampled."""
    if labels.volume is None or space.affine is None:
        return True
    return same_grid(labels.volume.shape, labels.affine, space.shape, space.affine)


def _has_voxels(labels: Labels, space: BrainSpace) -> bool:
    """Whether an atlas has labels for the voxels of the data, on their grid or on another one of their space."""
    if labels.volume is None or space.affine is None:
        return False
    return _shares_grid(labels, space) or labels.space == _name_data(space) != ""


def _sample_labels(labels: Labels, space: BrainSpace) -> Array:
    columns = np.full(space.n_voxels, -1)
    has_voxels = _has_voxels(labels, space)
    if not _shares_grid(labels, space):
        assert labels.volume is not None
        logger.warning(
            "atlas %s lies on %s, the data on %s: %s",
            labels.path,
            describe_grid(labels.volume.shape, labels.affine),
            describe_grid(space.shape, space.affine),
            "each voxel gets the label nearest to it" if has_voxels else "voxels have no label",
        )
    for part in space.parts:
        if part.vertices is not None and part.structure in labels.meshes:
            columns[part.start : part.stop] = labels.meshes[part.structure][part.vertices]
        elif part.voxels is not None and has_voxels:
            columns[part.start : part.stop] = _find_nearest(labels, part.voxels, space)
    return columns


def _find_nearest(labels: Labels, voxels: Array, space: BrainSpace) -> Array:
    """Take the label of the atlas voxel in which the centre of each voxel lies; -1 outside the atlas."""
    assert labels.volume is not None
    assert labels.affine is not None
    assert space.affine is not None
    centres = apply_affine(np.linalg.inv(labels.affine) @ space.affine, voxels)
    # a centre between two voxels belongs to the upper one, also after rounding errors
    nearest = np.floor(centres + 0.5 + 1e-6).astype(int)
    inside = ((nearest >= 0) & (nearest < labels.volume.shape)).all(axis=1)
    found = np.full(len(voxels), -1)
    found[inside] = labels.volume[tuple(nearest[inside].T)]
    return found
