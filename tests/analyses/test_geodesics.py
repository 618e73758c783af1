import numpy as np
import pytest

from dnnbrain_app.analyses.geodesics import measure_geodesics
from dnnbrain_app.analyses.positions import divide_space
from dnnbrain_app.errors import BadDataError


def divide_faces(points, faces):
    """Each triangle into four."""
    edges = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1)
    distinct, which = np.unique(edges, axis=0, return_inverse=True)
    a, b, c = len(points) + which.reshape(3, -1)
    u, v, w = faces.T
    parts = [(u, a, c), (a, v, b), (c, b, w), (a, b, c)]
    return np.concatenate([points, points[distinct].mean(axis=1)]), np.concatenate([np.stack(p, axis=1) for p in parts])


def make_sphere(n_divisions, radius):
    """An octahedron, divided."""
    points = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]], dtype=float)
    faces = np.array([[0, 2, 4], [2, 1, 4], [1, 3, 4], [3, 0, 4], [2, 0, 5], [1, 2, 5], [3, 1, 5], [0, 3, 5]])
    for _ in range(n_divisions):
        points, faces = divide_faces(points, faces)
        points /= np.linalg.norm(points, axis=1, keepdims=True)
    return radius * points, faces


def make_sheet(rng, n=14):
    """A plane of irregular triangles, in two orientations."""
    points = np.stack(np.meshgrid(np.arange(n), np.arange(n), indexing="ij"), axis=-1).reshape(-1, 2).astype(float)
    points += rng.uniform(-0.2, 0.2, points.shape)
    i = np.arange(n * n).reshape(n, n)
    a, b, c, d = (part.ravel() for part in (i[:-1, :-1], i[1:, :-1], i[:-1, 1:], i[1:, 1:]))
    return points, np.concatenate([np.stack([a, b, c], axis=1), np.stack([b, c, d], axis=1)])


def test_on_a_sphere_they_are_arcs_of_great_circles():
    points, faces = make_sphere(4, 50.0)
    found = measure_geodesics(faces, points, 15.0).tocoo()
    arcs = 50 * np.arccos(np.clip(points @ points.T / 2500, -1, 1))
    other = found.row != found.col
    np.testing.assert_allclose(found.data[other], arcs[found.row, found.col][other], rtol=0.005)
    assert set(zip(found.row, found.col, strict=True)) >= set(zip(*np.nonzero(arcs < 14.9), strict=True))
    assert (arcs[found.row, found.col] < 15.1).all()


def test_on_a_plane_they_are_straight_in_any_pose(rng):
    flat, faces = make_sheet(rng)
    turn = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    points = flat @ turn[:2] + 7
    found = measure_geodesics(faces, points, 4.0).tocoo()
    straight = np.linalg.norm(flat[:, None] - flat, axis=-1)
    inside = ((flat > 3) & (flat < 10)).all(axis=1)  # the rim is not convex
    kept = inside[found.row] & inside[found.col]
    np.testing.assert_allclose(found.data[kept], straight[found.row, found.col][kept], rtol=5e-3, atol=1e-9)
    assert kept.sum() == (straight[np.ix_(inside, inside)] <= 4).sum()


def test_a_fold_is_unfolded_and_a_ridge_is_walked_around(rng):
    """A sheet bent at a right angle keeps its distances; a pyramid's base corners are joined around its flanks."""
    flat, faces = make_sheet(rng)
    crease = 6.5  # through triangles would not be a fold of the mesh: their corners are moved onto it
    near = np.abs(flat[:, 0] - crease) < 0.75
    flat[near, 0] = np.where(flat[near, 0] < crease, crease - 0.75, crease)
    bent = np.column_stack([np.minimum(flat[:, 0], crease), flat[:, 1], np.maximum(flat[:, 0] - crease, 0)])
    a, b = (measure_geodesics(faces, points, 3.0).toarray() for points in (np.pad(flat, ((0, 0), (0, 1))), bent))
    np.testing.assert_allclose(a, b, atol=1e-6)
    through = np.linalg.norm(bent[:, None] - bent, axis=-1)
    assert (b[b > 0] >= through[b > 0] - 1e-9).all()
    assert (b[b > 0] > through[b > 0] + 0.3).any()
    base = np.array([[0, 0, 0], [2, 0, 0], [1, 1.5, 0], [1, 0.5, 3]], dtype=float)
    open_pyramid = np.array([[0, 1, 3], [1, 2, 3]])  # between 0 and 2 the way goes by 1, or the apex
    around = measure_geodesics(open_pyramid, base, 9.0).toarray()
    direct = np.linalg.norm(base[:, None] - base, axis=-1)
    assert direct[0, 2] + 0.5 < around[0, 2] <= min(direct[0, 1] + direct[1, 2], direct[0, 3] + direct[3, 2])


def test_distances_are_symmetric_and_reported(rng):
    points, faces = make_sphere(3, 40.0)
    points *= 1 + 0.1 * np.sin(points[:, :1] / 5)  # folds
    told = []
    found = measure_geodesics(faces, points, 18.0, told.append).toarray()
    np.testing.assert_allclose(found, found.T, atol=1e-9)
    assert told[-1] == 1
    assert np.allclose(found.diagonal(), 0)


def test_a_mesh_that_branches():
    points = np.vstack([np.eye(3), [[1, 1, 1], [2, 0, 1]]])
    with pytest.raises(BadDataError, match="edge between vertices 0 and 1 belongs to more than two triangles"):
        measure_geodesics(np.array([[0, 1, 2], [0, 1, 3], [1, 0, 4]]), points, 1.0)


def test_blocks_are_compact(rng):
    positions = rng.uniform(0, 100, (1000, 3))
    blocks = divide_space(positions, 64)
    assert np.array_equal(np.sort(np.concatenate(blocks)), np.arange(1000))
    assert max(map(len, blocks)) <= 64
    assert max(np.ptp(positions[rows], axis=0).max() for rows in blocks) < 60
