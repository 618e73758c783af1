"""Brain maps out and in again, in the family of files that the data came in.

The same numbers give the same bytes: no time stamps, no file names inside. Whatever the format, values are float32.
Where there is no data the file holds 0 (outside the mask of a volume, vertices that the data lack): viewers and
nilearn expect it. NaN is kept for what was analysed and has no value (a voxel without signal).
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from xml.parsers.expat import ExpatError

import nibabel as nib
import numpy as np
from nibabel import cifti2, gifti
from nibabel.filebasedimages import ImageFileError

from dnnbrain_app.derivatives.files import write_atomically, write_json
from dnnbrain_app.derivatives.names import add_entity, sidecar
from dnnbrain_app.errors import BadDataError, InputOutputError, MissingInputError
from dnnbrain_app.records import Array, BrainPart, BrainSpace

EXTENSIONS = {"cifti": ".dscalar.nii", "gifti": ".func.gii", "nifti": ".nii.gz"}
_ANATOMY = {"L": "CortexLeft", "R": "CortexRight"}


def name_maps(stem: Path, space: BrainSpace) -> list[Path]:
    """Name the image or, for GIFTI, the image of each hemisphere (in the order of the space's parts)."""
    stems = [stem] if space.format != "gifti" else [add_entity(stem, "hemi", _side(part)) for part in space.parts]
    return [path.with_name(path.name + EXTENSIONS[space.format]) for path in stems]


def write_maps(
    stem: Path, data: Array, map_names: Sequence[str], space: BrainSpace, description: Mapping[str, Any]
) -> list[Path]:
    """Write maps as one CIFTI or NIfTI image, or a GIFTI image for each hemisphere, each with its JSON.

    Parameters
    ----------
    stem : Path
        Name without hemisphere and extension.
    data : array of shape (n_maps, n_voxels)
        Values; written as float32. Nothing of this size is copied.
    map_names : sequence of str
        One a map: scalar names in CIFTI, names of the arrays in GIFTI. NIfTI has no place for them but the JSON.
    space : BrainSpace
        What each column is.
    description : mapping
        The sidecar (`sidecars.describe_map`), written as it is.

    Returns
    -------
    list of Path
        The files written, images first.

    Raises
    ------
    BadDataError
        `data`, `map_names` and `space` do not fit together.
    """
    data = np.asarray(data, dtype=np.float32)
    if data.shape != (len(map_names), space.n_voxels) or not len(map_names):
        raise BadDataError(
            f"{stem.name}: data of shape {data.shape} for {len(map_names)} maps of {space.n_voxels} voxels"
        )
    images = name_maps(stem, space)
    for i, image in enumerate(images):
        if space.format == "cifti":
            write_atomically(image, partial(_write_cifti, data, map_names, space))
        elif space.format == "gifti":
            write_atomically(image, partial(_write_gifti, data, map_names, space.parts[i]))
        else:
            write_atomically(image, partial(_write_nifti, data, space))
    for image in images:
        write_json(sidecar(image), description)
    return [*images, *map(sidecar, images)]


def read_maps(stem: Path, space: BrainSpace) -> Array:
    """Read what `write_maps` wrote.

    Returns
    -------
    array of shape (n_maps, n_voxels)
        float32, the columns as in `space`.

    Raises
    ------
    MissingInputError
        An image does not exist.
    BadDataError
        An image lies in another space.
    InputOutputError
        An image cannot be read.
    """
    read = {"cifti": _read_cifti, "gifti": _read_gifti, "nifti": _read_nifti}[space.format]
    images = name_maps(stem, space)
    for image in images:
        if not image.is_file():
            raise MissingInputError(f"{image} does not exist")
    try:
        return read(images, space)
    except (OSError, EOFError, ValueError, zlib.error, ExpatError, ImageFileError) as error:
        raise InputOutputError(
            f"{stem}{EXTENSIONS[space.format]} cannot be read ({error}); delete it and run again"
        ) from error


def delete_maps(stem: Path, space: BrainSpace) -> None:
    """Remove what `write_maps` wrote, if it is there."""
    for image in name_maps(stem, space):
        image.unlink(missing_ok=True)
        sidecar(image).unlink(missing_ok=True)


def _require_equal(image: Path, what: str, found: object, expected: object) -> None:
    if found != expected:
        raise BadDataError(f"{image}: {what} {found}, where {expected} is expected")


def build_brain_axis(space: BrainSpace) -> cifti2.BrainModelAxis:
    """Rebuild the axis of the CIFTI file that the space was read from."""
    n = space.n_voxels
    structure = np.empty(n, dtype=f"U{max(len(part.structure) for part in space.parts)}")
    vertex = np.full(n, -1, dtype=int)
    voxel = np.full((n, 3), -1, dtype=int)
    for part in space.parts:
        columns = slice(part.start, part.stop)
        structure[columns] = part.structure
        if part.vertices is not None:
            vertex[columns] = part.vertices
        else:
            voxel[columns] = part.voxels
    return cifti2.BrainModelAxis(
        structure,
        voxel=voxel,
        vertex=vertex,
        affine=space.affine,
        volume_shape=space.shape,
        nvertices={part.structure: part.n_vertices for part in space.parts if part.is_surface},
    )


def _write_cifti(data: Array, map_names: Sequence[str], space: BrainSpace, path: Path) -> None:
    image = cifti2.Cifti2Image(data, (cifti2.ScalarAxis(list(map_names)), build_brain_axis(space)))
    # nibabel leaves the intent at "unknown"
    image.nifti_header.set_intent(3006, name="ConnDenseScalar")
    image.nifti_header.set_xyzt_units("mm", "sec")
    with path.open("wb") as file:
        image.to_stream(file)


def _read_cifti(images: list[Path], space: BrainSpace) -> Array:
    image = nib.load(images[0])
    axis = image.header.get_axis(1)
    _require_equal(images[0], "number of grayordinates", len(axis), space.n_voxels)
    if axis != build_brain_axis(space):
        raise BadDataError(f"{images[0]}: the grayordinates are not those of the space {space.name}")
    return np.ascontiguousarray(image.dataobj, dtype=np.float32)


def _side(part: BrainPart) -> str:
    if part.hemisphere is None:
        raise BadDataError(f"{part.structure} is no cortical hemisphere; GIFTI images need one")
    return part.hemisphere


def _write_gifti(data: Array, map_names: Sequence[str], part: BrainPart, path: Path) -> None:
    """Write array by array: nibabel would hold the text of the whole file, twice."""
    meta = gifti.GiftiMetaData(AnatomicalStructurePrimary=_ANATOMY[_side(part)])
    frame = gifti.GiftiImage(meta=meta).to_xml()
    head, end = frame.replace(b'NumberOfDataArrays="0"', b'NumberOfDataArrays="%d"' % len(data)), b"</GIFTI>"
    with path.open("wb") as file:
        file.write(head.removesuffix(end))
        for name, row in zip(map_names, data, strict=True):
            values = np.zeros(part.n_vertices, dtype=np.float32)
            values[part.vertices] = row[part.start : part.stop]
            array = gifti.GiftiDataArray(
                values, intent="NIFTI_INTENT_NONE", datatype="NIFTI_TYPE_FLOAT32", meta=gifti.GiftiMetaData(Name=name)
            )
            file.write(array.to_xml())
        file.write(end)


def _read_gifti(images: list[Path], space: BrainSpace) -> Array:
    data: Array | None = None
    for path, part in zip(images, space.parts, strict=True):
        arrays = nib.load(path).darrays
        if data is None:
            data = np.empty((len(arrays), space.n_voxels), dtype=np.float32)
        _require_equal(path, "number of maps", len(arrays), len(data))
        for row, array in zip(data, arrays, strict=True):
            _require_equal(path, "number of vertices", len(array.data), part.n_vertices)
            row[part.start : part.stop] = array.data[part.vertices]
    assert data is not None  # a space has parts
    return data


def _voxel_indices(space: BrainSpace) -> tuple[Array, ...]:
    return tuple(np.concatenate([part.voxels for part in space.parts if part.voxels is not None]).T)


def _write_nifti(data: Array, space: BrainSpace, path: Path) -> None:
    """Write volume by volume, so that betas need the memory of one; level 1, as nibabel does."""
    assert space.shape is not None  # a space with voxels has it
    header = nib.Nifti1Header()
    header.set_data_dtype(np.float32)
    header.set_data_shape(space.shape if len(data) == 1 else (*space.shape, len(data)))
    header.set_data_offset(352)
    header.set_slope_inter(1, 0)
    code = space.xform_code or 2  # 0 would tell readers to ignore the affine
    header.set_sform(space.affine, code)
    header.set_qform(space.affine, code)
    header.set_xyzt_units("mm")
    with path.open("wb") as raw, gzip.GzipFile("", "wb", 1, raw, mtime=0) as file:
        header.write_to(file)
        _write_volumes(file, data, space.shape, _voxel_indices(space))


def _write_volumes(file: gzip.GzipFile, data: Array, shape: tuple[int, int, int], voxels: tuple[Array, ...]) -> None:
    volume = np.zeros(shape, dtype=np.float32, order="F")
    for row in data:
        volume[voxels] = row
        file.write(volume.ravel(order="F").data)


def _read_nifti(images: list[Path], space: BrainSpace) -> Array:
    """Read volume by volume: all of them are several times the size of what lies in the mask."""
    path = images[0]
    image = nib.load(path)
    _require_equal(path, "volume", image.shape[:3], space.shape)
    _require_equal(path, "data type", image.get_data_dtype(), np.dtype("float32"))
    assert space.affine is not None  # a space with voxels has it
    if not np.allclose(image.affine, space.affine, atol=1e-3):
        raise BadDataError(f"{path}: the affine is not that of the space {space.name}")
    n_maps = image.shape[3] if image.ndim == 4 else 1
    n_bytes = 4 * math.prod(image.shape[:3])
    data = np.empty((n_maps, space.n_voxels), dtype=np.float32)
    voxels = _voxel_indices(space)
    with gzip.open(path) as file:
        file.read(image.dataobj.offset)
        for row in data:
            volume = np.frombuffer(file.read(n_bytes), dtype=image.get_data_dtype())
            row[:] = volume.reshape(image.shape[:3], order="F")[voxels]
    return data
