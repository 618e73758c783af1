"""Preprocessed BOLD of the three families of files: its space, and its values."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dnnbrain_app.dataset.entities import parse_entities
from dnnbrain_app.dataset.headers import load_image, opening, read_header, read_models
from dnnbrain_app.dataset.spaces import identify_variant
from dnnbrain_app.errors import BadDataError
from dnnbrain_app.records import Array, BrainPart, BrainSpace, Run, Unit

logger = logging.getLogger(__name__)

_HEMISPHERES = ("CIFTI_STRUCTURE_CORTEX_LEFT", "CIFTI_STRUCTURE_CORTEX_RIGHT")
_VOLUMES_AT_ONCE = 32


def read_space(run: Run) -> BrainSpace:
    """Read where each column of a run's data lies.

    Parameters
    ----------
    run : Run
        A preprocessed run.

    Returns
    -------
    BrainSpace
        CIFTI: the file's own structures. GIFTI: all vertices of the left, then of the right hemisphere. NIfTI: the
        voxels of the run's mask in C order or, without a mask, those whose values are finite and change over time.

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


def read_bold(run: Run, space: BrainSpace) -> Array:
    """Read a run's time series.

    Parameters
    ----------
    run : Run
        A preprocessed run.
    space : BrainSpace
        The columns wanted: of `read_unit_space`, or `read_space` of this run.

    Returns
    -------
    array of shape (n_volumes, n_voxels)
        float32, C order, in the data's own units.

    Raises
    ------
    BadDataError
        If the file is cut off or damaged, or does not have these columns.
    MissingInputError
        If the file is absent.
    """
    reader = {"cifti": _read_cifti, "gifti": _read_gifti, "nifti": _read_nifti}[space.format]
    data = reader(run, space)
    if data.shape != (run.n_volumes, space.n_voxels):
        raise BadDataError(
            f"{run.bold[0]}: data of shape {data.shape}, not {run.n_volumes} volumes x {space.n_voxels} voxels"
        )
    return np.ascontiguousarray(data, dtype=np.float32)


def read_parts(axis: Any) -> tuple[BrainPart, ...]:
    """Take a nibabel ``BrainModelAxis`` apart."""
    parts = []
    for name, columns, model in axis.iter_structures():
        start, stop = columns.start or 0, columns.stop if columns.stop is not None else len(axis)
        if name in model.nvertices:
            parts.append(
                BrainPart(
                    str(name), start, stop, vertices=np.asarray(model.vertex), n_vertices=int(model.nvertices[name])
                )
            )
        else:
            parts.append(BrainPart(str(name), start, stop, voxels=np.asarray(model.voxel)))
    return tuple(parts)


def describe_space(space: BrainSpace) -> str:
    """Say in a few words where the columns of a space lie, for messages."""
    surfaces = [
        f"{part.structure.removeprefix('CIFTI_STRUCTURE_')} {part.stop - part.start} of {part.n_vertices} vertices"
        for part in space.parts
        if part.is_surface
    ]
    voxels = sum(part.stop - part.start for part in space.parts if not part.is_surface)
    if voxels:
        surfaces.append(f"{voxels} voxels of {describe_grid(space.shape, space.affine)}")
    return ", ".join(surfaces)


def describe_grid(shape: tuple[int, ...] | None, affine: Array | None) -> str:
    """Say which grid voxels lie on, for messages."""
    text = "x".join(map(str, shape or ()))
    if affine is None:
        return text
    size = "x".join(f"{value:.3g}" for value in np.linalg.norm(affine[:3, :3], axis=0))
    return f"a {text} grid of {size} mm at ({', '.join(f'{value:g}' for value in affine[:3, 3])})"


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
        if not same_grid(image.shape, image.affine, bold.shape[:3], bold.affine):
            here, there = describe_grid(image.shape, image.affine), describe_grid(bold.shape[:3], bold.affine)
            raise BadDataError(f"mask {run.mask} lies on {here}, its data {path.name} on {there}")
    if not mask.any():
        raise BadDataError(f"{run.mask or path}: no voxel in the mask")
    return mask


def _build_hemispheres(paths: tuple[Path, ...]) -> tuple[BrainPart, ...]:
    parts: list[BrainPart] = []
    for path, structure in zip(paths, _HEMISPHERES, strict=True):
        n = read_header([path]).n_vertices
        start = parts[-1].stop if parts else 0
        parts.append(BrainPart(structure, start, start + n, vertices=np.arange(n), n_vertices=n))
    return tuple(parts)


def _build_volume(run: Run, mask: Array, name: str, entities: dict[str, str]) -> BrainSpace:
    image = load_image(run.bold[0])
    voxels = np.argwhere(mask)
    part = BrainPart("CIFTI_STRUCTURE_OTHER", 0, len(voxels), voxels=voxels)
    code = int(image.header["sform_code"]) or int(image.header["qform_code"])
    shape = (int(mask.shape[0]), int(mask.shape[1]), int(mask.shape[2]))
    return BrainSpace(name, "nifti", (part,), entities, affine=image.affine, shape=shape, xform_code=code)


def same_grid(
    shape: tuple[int, ...] | None, affine: Any, other_shape: tuple[int, ...] | None, other_affine: Any
) -> bool:
    """Whether two volumes have the same voxels, to a micrometre."""
    return shape == other_shape and np.allclose(affine, other_affine, atol=1e-3)


def _check_grid(image: Any, space: BrainSpace, path: Path, first: Path) -> None:
    if not same_grid(image.shape[:3], image.affine, space.shape, space.affine):
        here, there = describe_grid(image.shape[:3], image.affine), describe_grid(space.shape, space.affine)
        raise BadDataError(f"runs of one unit differ: {path} lies on {here}, {first} on {there}")


def _read_cifti(run: Run, space: BrainSpace) -> Array:
    path = run.bold[0]
    image = load_image(path)
    with opening(path):
        if image.shape[1] != space.n_voxels:
            raise BadDataError(f"{path}: {image.shape[1]} grayordinates, not the {space.n_voxels} of the other runs")
        return np.asarray(image.dataobj, dtype=np.float32)


def _read_gifti(run: Run, space: BrainSpace) -> Array:
    data = np.empty((run.n_volumes, space.n_voxels), dtype=np.float32)
    for path, part in zip(run.bold, space.parts, strict=True):
        image = load_image(path)
        with opening(path):
            arrays = [array.data for array in image.darrays]
            # one array a volume, or one array of vertices x volumes
            data[:, part.start : part.stop] = arrays[0].T if len(arrays) == 1 else np.stack(arrays)
    return data


def _read_nifti(run: Run, space: BrainSpace) -> Array:
    voxels = space.parts[0].voxels
    assert voxels is not None
    path = run.bold[0]
    data = np.empty((run.n_volumes, len(voxels)), dtype=np.float32)
    with opening(path):
        _check_grid(load_image(path), space, path, path)
        for start, volumes in _read_volumes(path):
            data[start : start + volumes.shape[3]] = volumes[tuple(voxels.T)].T
    return data


def _read_volumes(path: Path) -> Iterator[tuple[int, Array]]:
    # the open file keeps its place: a compressed one would be decompressed from its start for every slab
    image = load_image(path, keep_file_open=True)
    for start in range(0, image.shape[3], _VOLUMES_AT_ONCE):
        yield start, np.asarray(image.dataobj[..., start : start + _VOLUMES_AT_ONCE], dtype=np.float32)


def _find_changing(path: Path) -> Array:
    with opening(path):
        lows, highs = [], []
        for _, volumes in _read_volumes(path):
            lows.append(volumes.min(axis=3))
            highs.append(volumes.max(axis=3))
            lows, highs = [np.minimum.reduce(lows)], [np.maximum.reduce(highs)]
        return np.asarray(np.isfinite(lows[0]) & np.isfinite(highs[0]) & (highs[0] > lows[0]))
