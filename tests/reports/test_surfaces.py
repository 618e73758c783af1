import numpy as np
import pytest

from dnnbrain_app.records import Mesh
from dnnbrain_app.reports.surfaces import VIEWS, choose_scale, rasterise_views


def corners(picture: np.ndarray, colour: tuple[int, ...]) -> np.ndarray:
    """Middle of the pixels whose strongest channel is that of a colour, as shares of width and height."""
    channel = int(np.argmax(colour))
    chosen = (picture[..., 3] == 255) & (
        picture[..., channel] > 1.5 * np.delete(picture[..., :3], channel, axis=-1).max(axis=-1)
    )
    rows, columns = np.nonzero(chosen)
    return np.array([columns.mean() / picture.shape[1], rows.mean() / picture.shape[0]])


def paint_patch(mesh: Mesh, side: str, axis: int, *, positive: bool) -> dict[str, np.ndarray]:
    """Red where a coordinate is far to one side."""
    position = mesh.coordinates[:, axis] - mesh.coordinates[:, axis].mean()
    chosen = position * (1 if positive else -1) > 0.6 * np.abs(position).max()
    colours = np.zeros((len(position), 4))
    colours[chosen] = (1, 0, 0, 1)
    scale = choose_scale({side: mesh}, 200)
    return {view.name: view.paint(colours) for view in rasterise_views(mesh, side, scale=scale)}


def has_red(picture: np.ndarray) -> bool:
    return bool(((picture[..., 0] > 100) & (picture[..., 1] < 30)).any())


@pytest.mark.parametrize(("side", "outwards"), [("L", False), ("R", True)])
def test_lateral_side_is_seen_from_outside_and_from_below_only(meshes, side, outwards):
    pictures = paint_patch(meshes[side], side, 0, positive=outwards)
    assert has_red(pictures["lateral"])
    assert not has_red(pictures["medial"])


@pytest.mark.parametrize("side", ["L", "R"])
def test_underside_is_seen_from_below_and_lies_low_in_the_side_views(meshes, side):
    pictures = paint_patch(meshes[side], side, 2, positive=False)
    assert corners(pictures["lateral"], (255, 0, 0))[1] > 0.8
    assert corners(pictures["medial"], (255, 0, 0))[1] > 0.8
    np.testing.assert_allclose(corners(pictures["ventral"], (255, 0, 0)), 0.5, atol=0.03)


@pytest.mark.parametrize(
    ("side", "view", "front"),
    [
        ("L", "lateral", 0),
        ("L", "medial", 1),
        ("L", "ventral", 0),
        ("R", "lateral", 1),
        ("R", "medial", 0),
        ("R", "ventral", 1),
    ],
)
def test_front_of_the_brain_is_where_anatomists_expect_it(meshes, side, view, front):
    picture = paint_patch(meshes[side], side, 1, positive=True)[view]
    assert abs(corners(picture, (255, 0, 0))[0] - front) < 0.2


def test_no_colour_appears_that_was_not_painted(meshes, rng):
    palette = np.array([[1, 0, 0, 1], [0, 0, 1, 1]], dtype=float)
    colours = palette[rng.integers(2, size=len(meshes["L"].coordinates))]
    for view in rasterise_views(meshes["L"], "L", scale=1.0):
        picture = view.paint(colours)
        assert picture[..., 1].max() == 0
        assert picture[..., 0].max() > 200
        assert picture[..., 2].max() > 200


def test_nearest_vertex_agrees_with_a_ray_through_the_ellipsoid(meshes):
    """Independent of the rasteriser: where a ray meets the ellipsoid is known, and so is the vertex nearest to it."""
    mesh, scale = meshes["L"], 2.0
    view = next(v for v in rasterise_views(mesh, "L", scale=scale) if v.name == "lateral")
    height, width = view.vertex.shape
    row, column = np.nonzero(view.vertex >= 0)
    seen = mesh.coordinates[view.vertex[row, column]]
    left = (column[np.argmin(column)] + column[np.argmax(column)]) / 2
    y = -(column - left) / (2 * scale)  # two samples a pixel; the front of a left hemisphere is on the left
    z = -(row - (row.min() + row.max()) / 2) / (2 * scale)
    inside = (y / 80) ** 2 + (z / 50) ** 2 < 0.9
    x = -35 - 30 * np.sqrt(1 - (y[inside] / 80) ** 2 - (z[inside] / 50) ** 2)
    distance = np.linalg.norm(seen[inside] - np.column_stack([x, y[inside], z[inside]]), axis=1)
    longest_edge = np.linalg.norm(np.diff(mesh.coordinates[mesh.faces], axis=1), axis=2).max()
    assert distance.max() < longest_edge
    assert inside.sum() > 0.5 * height * width * np.pi / 4


def test_triangles_listed_the_other_way_round_give_the_same_picture(meshes):
    mesh = meshes["L"]
    turned = Mesh("turned", mesh.coordinates, mesh.faces[:, ::-1], mesh.background)
    colours = np.zeros((len(mesh.coordinates), 4))
    for a, b in zip(rasterise_views(mesh, "L", scale=1.0), rasterise_views(turned, "L", scale=1.0), strict=True):
        difference = a.paint(colours).astype(int) - b.paint(colours)
        assert np.mean(np.abs(difference) > 3) < 0.01


def test_background_shows_sulci_dark_and_outside_is_transparent(meshes):
    colours = np.zeros((len(meshes["L"].coordinates), 4))
    views = rasterise_views(meshes["L"], "L", scale=2.0)
    assert [view.name for view in views] == list(VIEWS)
    for view in views:
        picture = view.paint(colours)
        assert picture[0, 0, 3] == 0
        middle = picture[picture.shape[0] // 2][picture[picture.shape[0] // 2, :, 3] == 255]
        assert np.ptp(middle[:, 0].astype(int)) > 40
        depth = meshes["L"].background[np.maximum(view.vertex, 0)]
        inside = (view.vertex >= 0) & (view.light > 0.9)
        assert np.corrcoef(depth[inside], view.grey[inside])[0, 1] < -0.8


def test_mesh_without_background_is_drawn_plain(meshes):
    mesh = Mesh("plain", meshes["R"].coordinates, meshes["R"].faces)
    view = rasterise_views(mesh, "R", scale=1.0)[0]
    assert np.ptp(view.grey[view.vertex >= 0]) == pytest.approx(0, abs=1e-6)
