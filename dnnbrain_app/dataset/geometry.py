"""Where the columns of data lie: the parts of a CIFTI file, grids of voxels, and words for both in messages."""

from __future__ import annotations

from typing import Any

import numpy as np

from dnnbrain_app.records import Array, BrainPart, BrainSpace


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


def same_grid(
    shape: tuple[int, ...] | None, affine: Any, other_shape: tuple[int, ...] | None, other_affine: Any
) -> bool:
    """Whether two volumes have the same voxels, to a micrometre."""
    return shape == other_shape and np.allclose(affine, other_affine, atol=1e-3)
