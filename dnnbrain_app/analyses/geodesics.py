"""Distances along a triangle mesh, up to a radius.

A shortest path on a mesh is straight where the triangles that it crosses are unfolded into a plane, and bends at
vertices only. From each vertex, the triangles around it are unfolded one after another as far as straight lines reach;
every vertex that such a line meets is joined to the source by an edge of that length. The shortest paths in the graph
of these edges are the geodesics (the windows of Mitchell, Mount & Papadimitriou 1987, doi:10.1137/0216045; the bends
are left to Dijkstra's algorithm).

Lines are followed for four edges' lengths at least, and longer ones are made of these: up to there distances are exact,
beyond they are .1 % too long on average (10 mm on the midthickness surface of fsLR 32k). Along the mesh's own edges
alone, they would be 10 % too long, and a fifth of the vertices within the radius would be missed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

from dnnbrain_app.analyses.positions import divide_space
from dnnbrain_app.errors import BadDataError
from dnnbrain_app.records import Array

SOURCES = 512  # vertices whose distances are measured at a time
STRAIGHT = 4  # mean lengths of an edge that lines are followed for
GRAZING = 1e-9  # mm: a cone of lines narrower than this holds no vertex

Entries = tuple[Array, Array, Array]  # rows, columns, values


def measure_geodesics(
    faces: Array, coordinates: Array, radius: float, progress: Callable[[float], None] | None = None
) -> csr_array:
    """Measure the distances between the vertices of a mesh that are at most a radius apart.

    Parameters
    ----------
    faces : array of int, shape (n_faces, 3)
        Triangles, in any orientation.
    coordinates : array of shape (n_vertices, 3)
        Millimetres.
    radius : float
        Millimetres.
    progress : callable, optional
        Called with the share that is done.

    Returns
    -------
    csr_array of shape (n_vertices, n_vertices)
        Distances; what is not stored is farther. The zeros of the diagonal are stored.

    Raises
    ------
    BadDataError
        An edge belongs to more than two triangles.
    """
    points = np.asarray(coordinates, dtype=np.float64)
    limit = radius * (1 + 1e-6)
    mesh = _link_faces(np.asarray(faces), points)
    blocks = divide_space(points, SOURCES)
    corner = np.arange(len(mesh.vertex))
    reach = min(limit, STRAIGHT * mesh.measure(mesh.vertex, mesh.vertex[_turn(corner, 1)]).mean())

    def report(n_done: int) -> None:
        if progress:
            progress(n_done / (2 * len(blocks)))

    drawn = []
    for number, sources in enumerate(blocks, 1):
        drawn.append(_draw_lines(mesh, sources, reach, limit))
        report(number)
    lines = _take_shortest(drawn, len(points))
    found = []
    for number, sources in enumerate(blocks, 1):
        found.append(_follow_lines(lines, points, sources, limit))
        report(len(blocks) + number)
    return _take_shortest(found, len(points))


@dataclass(frozen=True, slots=True, eq=False)
class _Mesh:
    """Triangles by their corners: corner ``3 f + k`` of face f faces the edge between the face's other two vertices.

    Parameters
    ----------
    points : array of shape (n_vertices, 3)
    vertex : array of int, shape (n_corners,)
        The vertex of each corner.
    across : array of int, shape (n_corners,)
        The corner that faces the same edge from the other side; -1 at the rim of the mesh.
    """

    points: Array
    vertex: Array
    across: Array

    def measure(self, a: Array, b: Array) -> Array:
        return np.asarray(np.linalg.norm(self.points[a] - self.points[b], axis=1))


def _link_faces(faces: Array, points: Array) -> _Mesh:
    edges = np.sort(np.stack([np.roll(faces, -1, axis=1), np.roll(faces, -2, axis=1)], axis=2).reshape(-1, 2), axis=1)
    keys = edges[:, 0].astype(np.int64) * len(points) + edges[:, 1]
    order = np.argsort(keys, kind="stable")
    same = keys[order[1:]] == keys[order[:-1]]
    if (same[1:] & same[:-1]).any():
        a, b = edges[order[:-2][same[1:] & same[:-1]][0]]
        raise BadDataError(f"surface: the edge between vertices {a} and {b} belongs to more than two triangles")
    across = np.full(len(keys), -1)
    first, second = order[:-1][same], order[1:][same]
    across[first], across[second] = second, first
    return _Mesh(points, faces.ravel(), across)


@dataclass(frozen=True, slots=True, eq=False)
class _Cones:
    """Lines from sources at the origin of a plane through an edge, seen from the source with ``left`` to the left.

    ``corner`` faces the edge from the source's side; ``ends`` (n, 2, 2) are the ends of the edge, left and right, in
    the plane, and ``sides`` (n, 2, 2) the outermost lines to the left and the right.
    """

    source: Array
    corner: Array
    left: Array
    right: Array
    ends: Array
    sides: Array

    def take(self, kept: Array) -> _Cones:
        columns = (self.source, self.corner, self.left, self.right, self.ends, self.sides)
        return _Cones(*(values[kept] for values in columns))


def _draw_lines(mesh: _Mesh, sources: Array, reach: float, limit: float) -> Entries:
    """Join some vertices to all that a straight line on the surface leads to, within reach at least."""
    drawn = list(_unfold(mesh, sources, reach))
    rows, columns, lengths = (np.concatenate(values) for values in zip(*drawn, strict=True))
    near = lengths <= limit
    return rows[near], columns[near], lengths[near]


def _unfold(mesh: _Mesh, sources: Array, reach: float) -> Iterator[Entries]:
    yield sources, sources, np.zeros(len(sources))
    chosen = np.zeros(len(mesh.points), dtype=bool)
    chosen[sources] = True
    corner = np.flatnonzero(chosen[mesh.vertex])
    cones = _open_cones(mesh, corner)
    for vertices, ends in ((cones.left, cones.ends[:, 0]), (cones.right, cones.ends[:, 1])):
        yield cones.source, vertices, np.linalg.norm(ends, axis=1)
    while len(cones.source):
        cones = cones.take(mesh.across[cones.corner] >= 0)
        apex = mesh.across[cones.corner]
        vertex, point = mesh.vertex[apex], _place_apex(mesh, cones, mesh.vertex[apex])
        left, right = _cross(point, cones.sides[:, 0]), _cross(cones.sides[:, 1], point)
        seen = (left >= 0) & (right >= 0)
        yield cones.source[seen], vertex[seen], np.linalg.norm(point[seen], axis=1)
        cones = _split_cones(mesh, cones, apex, point, left, right, reach)


def _open_cones(mesh: _Mesh, corner: Array) -> _Cones:
    """Lay the triangles at the sources into the plane."""
    source, right, left = (mesh.vertex[_turn(corner, k)] for k in range(3))
    a, b, c = mesh.measure(source, right), mesh.measure(source, left), mesh.measure(left, right)
    x = (a**2 + b**2 - c**2) / (2 * a)
    ends = np.zeros((len(corner), 2, 2))
    ends[:, 0, 0], ends[:, 0, 1] = x, np.sqrt(np.maximum(b**2 - x**2, 0))
    ends[:, 1, 0] = a
    return _Cones(source, corner, left, right, ends, ends)


def _turn(corner: Array, k: int) -> Array:
    """Go to another corner of the same triangle."""
    return np.asarray(corner - corner % 3 + (corner + k) % 3)


def _place_apex(mesh: _Mesh, cones: _Cones, vertex: Array) -> Array:
    """Lay the next triangle into the plane, beyond the edge."""
    left, right = cones.ends.swapaxes(0, 1)
    edge = right - left
    length = np.linalg.norm(edge, axis=1)
    a, b = mesh.measure(vertex, cones.left), mesh.measure(vertex, cones.right)
    along = (a**2 - b**2 + length**2) / (2 * length)
    beyond = np.sqrt(np.maximum(a**2 - along**2, 0))
    unit = edge / length[:, None]
    return np.asarray(left + along[:, None] * unit + beyond[:, None] * np.stack([-unit[:, 1], unit[:, 0]], axis=1))


def _split_cones(
    mesh: _Mesh, cones: _Cones, apex: Array, point: Array, left: Array, right: Array, reach: float
) -> _Cones:
    """Let the lines go on, to the left and to the right of the apex, where there are any that are short enough."""
    vertex, after = mesh.vertex[apex], mesh.vertex[_turn(apex, 1)]
    faces_right = np.where(after == cones.right, _turn(apex, 1), _turn(apex, 2))  # the corner at the right end
    faces_left = np.where(after == cones.left, _turn(apex, 1), _turn(apex, 2))
    to_left = _Cones(
        cones.source,
        faces_right,
        cones.left,
        vertex,
        np.stack([cones.ends[:, 0], point], axis=1),
        np.stack([cones.sides[:, 0], np.where((right > 0)[:, None], point, cones.sides[:, 1])], axis=1),
    )
    to_right = _Cones(
        cones.source,
        faces_left,
        vertex,
        cones.right,
        np.stack([point, cones.ends[:, 1]], axis=1),
        np.stack([np.where((left > 0)[:, None], point, cones.sides[:, 0]), cones.sides[:, 1]], axis=1),
    )
    kept = [some.take(_find_open(some, reach)) for some in (to_left, to_right)]
    columns = ("source", "corner", "left", "right", "ends", "sides")
    return _Cones(*(np.concatenate([getattr(some, name) for some in kept]) for name in columns))


def _find_open(cones: _Cones, reach: float) -> Array:
    """Say which cones have lines in them, and an edge that is near enough."""
    wide = _cross(cones.sides[:, 1], cones.sides[:, 0]) > GRAZING
    start, edge = cones.ends[:, 0], cones.ends[:, 1] - cones.ends[:, 0]
    along = -np.einsum("nk,nk->n", start, edge) / np.maximum(np.einsum("nk,nk->n", edge, edge), 1e-300)
    nearest = start + np.clip(along, 0, 1)[:, None] * edge
    return np.asarray(wide & (np.einsum("nk,nk->n", nearest, nearest) <= reach**2))


def _cross(a: Array, b: Array) -> Array:
    """Return a number that is positive where b is to the left of a."""
    return np.asarray(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0])


def _follow_lines(lines: csr_array, points: Array, sources: Array, limit: float) -> Entries:
    """Find the shortest paths from some vertices, in the part of the graph that they can reach."""
    low, high = points[sources].min(axis=0) - limit, points[sources].max(axis=0) + limit
    near = np.flatnonzero(((points >= low) & (points <= high)).all(axis=1))
    distances = dijkstra(lines[near][:, near], indices=np.searchsorted(near, np.sort(sources)), limit=limit)
    rows, columns = np.nonzero(np.isfinite(distances))
    return np.sort(sources)[rows], near[columns], distances[rows, columns]


def _take_shortest(entries: list[Entries], n: int) -> csr_array:
    """Gather entries into a matrix; of several in one place the smallest is taken."""
    rows, columns, values = (np.concatenate(parts) for parts in zip(*entries, strict=True))
    order = np.lexsort((values, columns, rows))
    rows, columns, values = rows[order], columns[order], values[order]
    first = np.concatenate(([True], (rows[1:] != rows[:-1]) | (columns[1:] != columns[:-1])))
    ends = np.concatenate(([0], np.cumsum(np.bincount(rows[first], minlength=n))))
    return csr_array((values[first], columns[first], ends), shape=(n, n))
