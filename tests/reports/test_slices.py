import numpy as np
import pytest
from nibabel.orientations import apply_orientation, io_orientation

from dnnbrain_app.reports.slices import paint_slices


def paint_octant(make, affine: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Red where the voxel is left, anterior and superior in world coordinates."""
    space = make.volume_space(affine)
    world = space.parts[0].voxels @ affine[:3, :3].T + affine[:3, 3]
    chosen = (world > np.median(world, axis=0)) == [False, True, True]
    colours = np.zeros((space.n_voxels, 4))
    colours[chosen.all(axis=1)] = (1, 0, 0, 1)
    return paint_slices(space, colours, None)


@pytest.mark.parametrize(
    "affine",
    [
        np.diag([4.0, 4.0, 4.0, 1.0]),
        np.array([[-4.0, 0, 0, 20], [0, 4, 0, -30], [0, 0, 4, -10], [0, 0, 0, 1]]),
        np.array([[0, 0, 4.0, 7], [-4, 0, 0, 9], [0, -4, 0, -3], [0, 0, 0, 1]]),
        np.array([[-3.9, 0.2, 0, 20], [0.2, 3.9, 0.4, -30], [0, -0.4, 3.9, -10], [0, 0, 0, 1]]),
    ],
)
def test_left_is_left_and_front_is_up_whatever_the_axes_of_the_file(make, affine):
    slices = paint_octant(make, affine)
    red = [np.argwhere((picture[..., 0] == 255) & (picture[..., 1] == 0)) / picture.shape[:2] for _, picture in slices]
    space = make.volume_space(affine)
    middle = np.median(space.parts[0].voxels @ affine[2, :3] + affine[2, 3])
    heights = [float(label.split()[2].replace("−", "-")) for label, _ in slices]
    assert [len(found) > 0 for found in red] == [height > middle for height in heights]
    rows, columns = red[-1].mean(axis=0)
    assert rows < 0.4
    assert columns < 0.4


def test_heights_are_those_that_nibabel_computes(make):
    affine = np.array([[-4.0, 0, 0, 20], [0, 4, 0, -30], [0, 0, -4, 50], [0, 0, 0, 1]])
    space = make.volume_space(affine)
    slices = paint_slices(space, np.ones((space.n_voxels, 4)), None)
    heights = apply_orientation(50 - 4.0 * np.tile(np.arange(8), (10, 12, 1)), io_orientation(affine))[0, 0]
    assert [label for label, _ in slices] == [f"z = {h:+.0f} mm".replace("-", "−") for h in heights]


def test_mean_image_lies_behind_and_the_map_over_it(make, rng):
    space = make.volume_space()
    background = rng.uniform(500, 1500, space.n_voxels)
    colours = np.zeros((space.n_voxels, 4))
    grey = np.stack([picture for _, picture in paint_slices(space, colours, background)])
    assert np.all(grey[..., 0] == grey[..., 1])
    assert grey[..., 0].std() > 30
    colours[:] = (0, 1, 0, 1)
    assert all((p[..., :3] == (0, 255, 0)).all() for _, p in paint_slices(space, colours, background))


def test_a_background_of_nan_is_plain(make):
    space = make.volume_space()
    _, picture = paint_slices(space, np.zeros((space.n_voxels, 4)), np.full(space.n_voxels, np.nan))[0]
    assert len(np.unique(picture[..., 0])) == 1
