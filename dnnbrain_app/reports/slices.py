"""Draw values of voxels on axial slices, over the mean image of the data themselves."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment

from dnnbrain_app.records import Array, BrainSpace

_MAX_SLICES = 12
_WIDTH = 320  # pixels of a finished slice, about


def paint_slices(space: BrainSpace, colours: Array, background: Array | None) -> list[tuple[str, Array]]:
    """Paint axial slices through the coloured voxels, the left of the brain on the left.

    Parameters
    ----------
    space : BrainSpace
        With voxels; its surfaces are not drawn here.
    colours : array of shape (n_voxels, 4)
        Red, green, blue and opacity of every column of the space, 0 to 1.
    background : array of shape (n_voxels,), optional
        Drawn in grey where the opacity is 0.

    Returns
    -------
    list of (str, array of uint8, shape (height, width, 4))
        Height in mm, and picture, from the lowest to the highest slice; transparent outside the space's voxels.
    """
    if space.affine is None or space.shape is None:
        return []
    parts = [part for part in space.parts if part.voxels is not None]
    columns = np.concatenate([np.arange(part.start, part.stop) for part in parts])
    voxels = np.concatenate([part.voxels for part in parts if part.voxels is not None])
    volume = np.zeros((*space.shape, 4), dtype=np.float32)
    volume[tuple(voxels.T)] = _blend(colours[columns], None if background is None else background[columns])
    shown = np.zeros(space.shape, dtype=bool)
    shown[tuple(voxels.T)] = colours[columns, 3] > 0

    volume, shown, affine = _turn_upright(volume, shown, space.affine)
    x, y, z = (_find_extent(volume[..., 3] > 0, axis) for axis in range(3))
    if shown.any():
        around = _find_extent(shown, 2)
        n = min(z.stop - z.start, max(_MAX_SLICES // 2, around.stop - around.start))  # some context for a small region
        start = int(np.clip((around.start + around.stop - n) // 2, z.start, z.stop - n))
        z = slice(start, start + n)
    heights = np.unique(np.linspace(z.start, z.stop - 1, min(_MAX_SLICES, z.stop - z.start)).round().astype(int))
    size = np.linalg.norm(affine[:3, :3], axis=0)
    enlarge = max(1, round(_WIDTH / (x.stop - x.start)))
    taller = max(1, round(enlarge * size[1] / size[0]))
    pictures = []
    for k in heights:
        rows = (volume[x, y, k].swapaxes(0, 1)[::-1] * 255 + 0.5).astype(np.uint8)
        mm = (affine @ [*(n / 2 for n in volume.shape[:2]), k, 1])[2]
        pictures.append(
            (f"z = {round(mm):+d} mm".replace("-", "−"), rows.repeat(taller, axis=0).repeat(enlarge, axis=1))
        )
    return pictures


def _turn_upright(volume: Array, shown: Array, affine: Array) -> tuple[Array, Array, Array]:
    """Permute and flip the axes so that they go, as near as may be, to the right, to the front and up."""
    assignment = linear_sum_assignment(-np.abs(affine[:3, :3]))[1]  # each world axis gets the voxel axis nearest to it
    columns = affine[:, [*assignment, 3]].copy()
    flips: tuple[int, ...] = ()
    for axis in range(3):
        if columns[axis, axis] < 0:
            columns[:, 3] += columns[:, axis] * (shown.shape[assignment[axis]] - 1)
            columns[:, axis] *= -1
            flips += (axis,)
    return np.flip(volume.transpose(*assignment, 3), flips), np.flip(shown.transpose(assignment), flips), columns


def _blend(colours: Array, background: Array | None) -> Array:
    """Opaque colours: the map where it has an opacity, over grey."""
    grey = np.full(len(colours), 0.62)
    if background is not None and np.isfinite(background).any():
        low, high = np.nanpercentile(background, [1, 99])
        grey = 0.08 + 0.8 * np.clip((np.nan_to_num(background, nan=low) - low) / max(high - low, 1e-12), 0, 1)
    rgb = grey[:, None] * (1 - colours[:, 3:]) + colours[:, :3] * colours[:, 3:]
    return np.column_stack([rgb, np.ones(len(rgb))])


def _find_extent(mask: Array, axis: int) -> slice:
    """Smallest range along an axis that holds all that is true."""
    where = np.flatnonzero(mask.any(axis=tuple(i for i in range(3) if i != axis)))
    return slice(int(where[0]), int(where[-1]) + 1)
