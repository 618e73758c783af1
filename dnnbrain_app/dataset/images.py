"""Preprocessed BOLD of the three families of files: its space, and its values."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from dnnbrain_app.dataset.entities import parse_entities
from dnnbrain_app.dataset.geometry import describe_grid, describe_space, read_parts, same_grid
from dnnbrain_app.dataset.headers import count_vertices, load_image, opening, read_models
from dnnbrain_app.dataset.series import read_hemisphere, read_matrix, read_slabs, read_volumes
from dnnbrain_app.dataset.spaces import identify_variant
from dnnbrain_app.errors import BadDataError
from dnnbrain_app.records import Array, BrainPart, BrainSpace, Run, Unit

logger = logging.getLogger(__name__)

_HEMISPHERES = ("CIFTI_STRUCTURE_CORTEX_LEFT", "CIFTI_STRUCTURE_CORTEX_RIGHT")


def read_space(run: Run) -> BrainSpace:
    """Read where each column of a run's data lies.

    Parameters
    ----------
    run : Run
        A preprocessed run.

    Returns
    -------
    BrainSpace
        Grayordinates (CIFTI): the file's own structures. Surfaces (GIFTI, MGH): all vertices of the left, then of the
        right hemisphere. Volumes (NIfTI, MGH, AFNI): the voxels of the run's mask in C order or, without a mask, those
        whose values are finite and change over time.

    Raises
    ------
    BadDataError
        If the file is damaged, or the mask has another grid.
    """
    variant = identify_variant(parse_entities(run.bold[0].name))
    path = run.bold[0]
    if variant.format == "cifti":
        image = load_image(path)
        with opening(path):
            axis = image.header.get_axis(1)
            parts = read_parts(axis)
        volume = {"affine": axis.affine, "shape": axis.volume_shape} if axis.affine is not None else {}
        return BrainSpace(variant.name, "cifti", parts, dict(variant.entities), **volume)
    if variant.format == "gifti":
        return BrainSpace(variant.name, "gifti", _build_hemispheres(run.bold), dict(variant.entities))
    return _build_volume(run, read_mask(run), variant.name, dict(variant.entities))


def read_unit_space(unit: Unit) -> BrainSpace:
    """Read the space that all runs of a unit share.

    Parameters
    ----------
    unit : Unit
        One participant x task x space.

    Returns
    -------
    BrainSpace
        For NIfTI, the voxels that lie in the mask of every run (of the runs that have one); for CIFTI and GIFTI, the
        space of each run.

    Raises
    ------
    BadDataError
        If two runs have different grids or grayordinates, or no voxel is in all masks.
    """
    first = unit.runs[0]
    space = read_space(first)
    if space.format != "nifti":
        same = read_models(first.bold[0]) if space.format == "cifti" else b""
        for run in unit.runs[1:]:
            if same and read_models(run.bold[0]) == same:  # spares nibabel's parsing of some 100 000 numbers a run
                continue
            other = read_space(run)
            if not other.matches(space):
                here, there = describe_space(other), describe_space(space)
                raise BadDataError(f"runs of one unit differ: {run.bold[0]} has {here}, {first.bold[0]} has {there}")
        return space
    for run in unit.runs[1:]:
        _check_grid(load_image(run.bold[0]), space, run.bold[0], first.bold[0])
    masked = [run for run in unit.runs if run.mask is not None]
    if not masked:
        return space
    mask = np.logical_and.reduce([read_mask(run) for run in masked])
    if not mask.any():
        raise BadDataError(
            f"{unit.label}: no voxel lies in the masks of all {len(masked)} runs, such as {masked[0].mask}"
        )
    return _build_volume(first, mask, space.name, dict(space.entities))


def read_bold(run: Run, space: BrainSpace, columns: slice | None = None) -> Array:
    """Read a run's time series.

    Parameters
    ----------
    run : Run
        A preprocessed run.
    space : BrainSpace
        Where the columns lie: of `read_unit_space`, or `read_space` of this run.
    columns : slice, optional
        The columns wanted, ``start:stop``; without it all of them. Beside what is returned some 30 MB are held, and of
        an uncompressed CIFTI file only these columns are read: of other files every volume is.

    Returns
    -------
    array of shape (n_volumes, n_columns)
        float32, C order, in the data's own units.

    Raises
    ------
    BadDataError
        If the file is cut off or damaged, or does not have these columns.
    MissingInputError
        If the file is absent.
    """
    chosen = range(space.n_voxels)[columns if columns is not None else slice(None)]
    data = np.empty((run.n_volumes, len(chosen)), dtype=np.float32)
    if space.format == "cifti":
        read_matrix(run.bold[0], chosen, space.n_voxels, data)
    elif space.format == "gifti":
        _read_surfaces(run, space, chosen, data)
    else:
        _read_volume(run, space, chosen, data)
    return data


def _read_surfaces(run: Run, space: BrainSpace, chosen: range, data: Array) -> None:
    for path, part in zip(run.bold, space.parts, strict=True):
        start, stop = max(part.start, chosen.start), min(part.stop, chosen.stop)
        if start < stop:
            assert part.vertices is not None
            vertices = part.vertices[start - part.start : stop - part.start]
            out = data[:, start - chosen.start : stop - chosen.start]
            if path.name.endswith(".gii"):
                read_hemisphere(path, vertices, out)
            else:
                read_volumes(load_image(path, keep_file_open=True), path, vertices, out)


def _read_volume(run: Run, space: BrainSpace, chosen: range, data: Array) -> None:
    voxels, path = space.parts[0].voxels, run.bold[0]
    assert voxels is not None
    assert space.shape is not None
    image = load_image(path, keep_file_open=True)
    _check_grid(image, space, path, path)
    places = np.ravel_multi_index(tuple(voxels[chosen.start : chosen.stop].T), space.shape, order="F")
    read_volumes(image, path, places, data)


def read_mask(run: Run) -> Array:
    """Read the mask of a volume run, or derive one from its data.

    Returns
    -------
    bool array of shape (x, y, z)

    Raises
    ------
    BadDataError
        If the mask has another grid than the data, or is empty.
    """
    path = run.bold[0]
    bold = load_image(path)
    if run.mask is None:
        logger.warning("%s: no brain mask; the voxels that change over time are used", path)
        mask = _find_changing(path)
    else:
        image = load_image(run.mask)
        with opening(run.mask):
            mask = np.asarray(image.dataobj) > 0
        mask = mask[..., 0] if mask.ndim == 4 and mask.shape[3] == 1 else mask
        if not same_grid(mask.shape, image.affine, bold.shape[:3], bold.affine):
            here, there = describe_grid(mask.shape, image.affine), describe_grid(bold.shape[:3], bold.affine)
            raise BadDataError(f"mask {run.mask} lies on {here}, its data {path.name} on {there}")
    if not mask.any():
        raise BadDataError(f"{run.mask or path}: no voxel in the mask")
    return mask


def _build_hemispheres(paths: tuple[Path, ...]) -> tuple[BrainPart, ...]:
    parts: list[BrainPart] = []
    for path, structure in zip(paths, _HEMISPHERES, strict=True):
        n = count_vertices(path)
        start = parts[-1].stop if parts else 0
        parts.append(BrainPart(structure, start, start + n, vertices=np.arange(n), n_vertices=n))
    return tuple(parts)


def _build_volume(run: Run, mask: Array, name: str, entities: dict[str, str]) -> BrainSpace:
    image = load_image(run.bold[0])
    voxels = np.argwhere(mask)
    part = BrainPart("CIFTI_STRUCTURE_OTHER", 0, len(voxels), voxels=voxels)
    shape = (int(mask.shape[0]), int(mask.shape[1]), int(mask.shape[2]))
    return BrainSpace(
        name, "nifti", (part,), entities, affine=image.affine, shape=shape, xform_code=_read_code(image, name)
    )


def _read_code(image: Any, name: str) -> int:
    """Tell which of NIfTI's kinds of space the data lie in; of other formats, from the name of the space."""
    if isinstance(image.header, nib.Nifti1Header):
        return int(image.header["sform_code"]) or int(image.header["qform_code"])
    return 4 if name.startswith("MNI") else 2  # MNI 152; aligned to something else


def _check_grid(image: Any, space: BrainSpace, path: Path, first: Path) -> None:
    if not same_grid(image.shape[:3], image.affine, space.shape, space.affine):
        here, there = describe_grid(image.shape[:3], image.affine), describe_grid(space.shape, space.affine)
        raise BadDataError(f"runs of one unit differ: {path} lies on {here}, {first} on {there}")


def _find_changing(path: Path) -> Array:
    with opening(path):
        lows, highs = [], []
        for _, volumes in read_slabs(load_image(path, keep_file_open=True)):
            lows.append(volumes.min(axis=3))
            highs.append(volumes.max(axis=3))
            lows, highs = [np.minimum.reduce(lows)], [np.maximum.reduce(highs)]
        return np.asarray(np.isfinite(lows[0]) & np.isfinite(highs[0]) & (highs[0] > lows[0]))
