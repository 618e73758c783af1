"""Draw values on a cortical surface: every view is rasterised once, then any number of maps is painted on it.

A triangle costs the same whatever is painted, so the geometry of a view (which vertices each pixel sees, how bright
the surface is there) is worked out once and a map costs one look-up a pixel. Orthographic, with a z-buffer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dnnbrain_app.records import Array, Mesh

# What points right and up on the page (x: right, y: anterior, z: superior); right x up points at the viewer.
_AXES: dict[tuple[str, str], tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    ("L", "lateral"): ((0, -1, 0), (0, 0, 1)),
    ("L", "medial"): ((0, 1, 0), (0, 0, 1)),
    ("L", "ventral"): ((0, -1, 0), (-1, 0, 0)),
    ("R", "lateral"): ((0, 1, 0), (0, 0, 1)),
    ("R", "medial"): ((0, -1, 0), (0, 0, 1)),
    ("R", "ventral"): ((0, 1, 0), (1, 0, 0)),
}
VIEWS = tuple(dict.fromkeys(view for _, view in _AXES))
_SULCUS, _GYRUS = 0.56, 0.78  # grey levels of the bare cortex
_SAMPLES = 2  # samples a pixel along each axis, averaged: smooth edges


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """What each sample of a picture sees of a mesh.

    Parameters
    ----------
    hemisphere, name : str
        ``L`` or ``R``; ``lateral``, ``medial`` or ``ventral``.
    vertex : array of int, shape (height, width)
        The vertex nearest to what the sample sees; -1 outside the brain.
    light : array of shape (height, width)
        Brightness of the surface, 0 to 1.
    grey : array of shape (height, width)
        Grey level of the bare cortex: sulci darker than gyri.
    """

    hemisphere: str
    name: str
    vertex: Array
    light: Array
    grey: Array

    def paint(self, colours: Array) -> Array:
        """Paint a colour a vertex over the bare cortex.

        Parameters
        ----------
        colours : array of shape (n_vertices, 4)
            Red, green, blue and opacity, 0 to 1. A sample takes the colour of its nearest vertex, so that no colour
            appears that is not in the map.

        Returns
        -------
        array of uint8, shape (height / 2, width / 2, 4)
            The picture, transparent outside the brain.
        """
        seen = (self.vertex >= 0)[..., None]
        over = colours.astype(np.float32)[np.maximum(self.vertex, 0)]
        bare = self.grey[..., None] * self.light[..., None]
        # half of the shading only where there is data: a colour must stay readable against its colour bar
        data = over[..., :3] * (0.5 + 0.5 * self.light[..., None])
        rgb = bare * (1 - over[..., 3:]) + data * over[..., 3:]
        height, width = self.vertex.shape
        samples = np.concatenate([rgb * seen, seen], axis=-1, dtype=np.float32)
        mean = samples.reshape(height // _SAMPLES, _SAMPLES, width // _SAMPLES, _SAMPLES, 4).mean(axis=(1, 3))
        mean[..., :3] /= np.maximum(mean[..., 3:], 1e-6)
        return np.asarray(np.clip(mean * 255 + 0.5, 0, 255), dtype=np.uint8)


def rasterise_views(mesh: Mesh, hemisphere: str, *, scale: float) -> list[View]:
    """See a hemisphere from the side, from the middle and from below.

    Parameters
    ----------
    mesh : Mesh
        One hemisphere, in scanner-like axes (x to the right, y to the front, z up).
    hemisphere : {'L', 'R'}
        Which one.
    scale : float
        Pixels a millimetre of the finished picture.

    Returns
    -------
    list of View
        One for each of ``VIEWS``, all in the same scale.
    """
    normals = _compute_normals(mesh)
    grey = _shade_background(mesh)
    return [_rasterise(mesh, normals, grey, hemisphere, view, scale * _SAMPLES) for view in VIEWS]


def choose_scale(meshes: Mapping[Any, Mesh], width: int) -> float:
    """Pixels a millimetre at which the longest hemisphere fills the width."""
    return (width - 4) / max(float(np.ptp(mesh.coordinates[:, 1])) for mesh in meshes.values())


def _compute_normals(mesh: Mesh) -> Array:
    corners = mesh.coordinates[mesh.faces]
    faces = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals = np.zeros((len(mesh.coordinates), 3))
    for corner in range(3):
        for axis in range(3):
            normals[:, axis] += np.bincount(mesh.faces[:, corner], faces[:, axis], minlength=len(normals))
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    outward = np.sum(normals * (mesh.coordinates - mesh.coordinates.mean(axis=0)))
    return normals if outward >= 0 else -normals  # files differ in the order of a triangle's corners


def _shade_background(mesh: Mesh) -> Array:
    """Grey of each vertex: two tones with a soft step where the depth crosses its middle."""
    if mesh.background is None:
        return np.full(len(mesh.coordinates), _GYRUS)
    depth = np.nan_to_num(np.asarray(mesh.background, dtype=float))
    step = np.clip((depth - np.median(depth)) / max(float(depth.std()), 1e-12), -0.5, 0.5) + 0.5
    return np.asarray(_GYRUS + (_SULCUS - _GYRUS) * step)


def _rasterise(mesh: Mesh, normals: Array, grey: Array, hemisphere: str, view: str, scale: float) -> View:
    right, up = (np.array(axis) for axis in _AXES[hemisphere, view])
    axes = np.stack([right, -up, np.cross(right, up)], axis=1)
    position = mesh.coordinates @ axes * scale
    position[:, :2] += 2 * _SAMPLES - position[:, :2].min(axis=0)
    width, height = (int(np.ceil(m / _SAMPLES)) * _SAMPLES + 2 * _SAMPLES for m in position[:, :2].max(axis=0))
    towards = normals @ axes[:, 2]
    faces = mesh.faces[towards[mesh.faces].max(axis=1) > 0]  # what faces away is never seen on a closed surface
    triangle, pixel, weight = _cover_pixels(position[faces], width)
    depth = np.einsum("nk,nk->n", position.astype(np.float32)[faces[triangle], 2], weight)
    order = np.argsort(depth, kind="stable")  # the last one written, the nearest, stays
    nearest = np.full(height * width, -1)
    nearest[pixel[order]] = order
    seen = np.flatnonzero(nearest >= 0)
    chosen = nearest[seen]
    corners, w = faces[triangle[chosen]].astype(np.int32), weight[chosen]

    def spread(values: Array, fill: int = 0) -> Array:
        picture = np.full((height * width, *values.shape[1:]), fill, dtype=values.dtype)
        picture[seen] = values
        return picture.reshape(height, width, *values.shape[1:])

    facing = np.einsum("nk,nk->n", towards.astype(np.float32)[corners], w)
    light = 0.42 + 0.58 * np.clip(facing, 0, 1) ** 0.8
    shade = np.einsum("nk,nk->n", grey.astype(np.float32)[corners], w)
    own = np.take_along_axis(corners, w.argmax(axis=1)[:, None], axis=1)[:, 0]
    return View(hemisphere, view, spread(own, -1), spread(light), spread(shade))


def _cover_pixels(corners: Array, width: int) -> tuple[Array, Array, Array]:
    """Find every sample inside every triangle: its triangle, its number in the picture, its barycentric coordinates."""
    xy = corners[..., :2]
    low = np.ceil(xy.min(axis=1)).astype(np.int32)
    size = np.maximum(np.floor(xy.max(axis=1)).astype(np.int32) - low + 1, 0)
    (ax, ay), (bx, by), (cx, cy) = (xy[:, k].T - low.T for k in range(3))  # from the box's corner: float32 is enough
    area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
    size[np.abs(area) < 1e-9] = 0  # seen edge-on: covers nothing
    area = np.where(size[:, 0] > 0, area, 1)
    # each coordinate is a plane over the picture: slope along x, slope along y, value at the box's corner
    planes = np.stack([cy - ay, ax - cx, ay * cx - ax * cy, ay - by, bx - ax, ax * by - ay * bx]) / area
    count = size.prod(axis=1)
    triangle = np.repeat(np.arange(len(corners), dtype=np.int32), count)
    within = np.arange(len(triangle), dtype=np.int32) - np.repeat((np.cumsum(count) - count).astype(np.int32), count)
    y, x = np.divmod(within, size[triangle, 0])
    p = planes.astype(np.float32)[:, triangle]
    w1 = p[0] * x + p[1] * y + p[2]
    w2 = p[3] * x + p[4] * y + p[5]
    inside = np.flatnonzero((w1 >= -1e-5) & (w2 >= -1e-5) & (w1 + w2 <= 1 + 1e-5))
    triangle, w1, w2 = triangle[inside], w1[inside], w2[inside]
    pixel = (low[triangle, 1] + y[inside]) * width + low[triangle, 0] + x[inside]
    return triangle, pixel, np.stack([1 - w1 - w2, w1, w2], axis=1)
