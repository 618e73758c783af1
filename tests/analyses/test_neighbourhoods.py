import numpy as np
import pytest
from scipy.spatial.distance import cdist

from dnnbrain_app.analyses.neighbourhoods import find_neighbourhoods, find_voxel_neighbours
from dnnbrain_app.errors import BadDataError, MissingInputError, UsageError
from dnnbrain_app.records import BrainPart, BrainSpace, Mesh

OBLIQUE = np.array([[2.0, 0.4, 0, -90], [-0.4, 2.0, 0.1, -120], [0, -0.3, 3.5, -70], [0, 0, 0, 1]])


def make_volume(rng, shape=(7, 8, 6), share=0.7):
    return np.argwhere(rng.random(shape) < share)


@pytest.mark.parametrize("affine", [np.diag([2.0, 2, 2, 1]), np.diag([-3.0, 2, 4, 1]), OBLIQUE])
@pytest.mark.parametrize("radius", [0.5, 4.0, 7.3])
def test_balls_are_measured_in_millimetres_within_the_mask(rng, affine, radius):
    voxels = make_volume(rng)
    positions = voxels @ affine[:3, :3].T
    found = find_voxel_neighbours(voxels, affine, radius).toarray()
    np.testing.assert_array_equal(found, cdist(positions, positions) <= radius * (1 + 1e-6))


def test_the_radius_is_included():
    """33 voxels at a distance of up to 2, which a strict comparison makes 27; 123 up to 3."""
    voxels = np.argwhere(np.ones((9, 9, 9)))
    for radius, n in ((6.0, 33), (9.0, 123)):
        assert find_voxel_neighbours(voxels, np.diag([3.0, 3, 3, 1]), radius).sum(axis=1).max() == n


def test_indices_far_from_the_origin(rng):
    voxels = make_volume(rng)
    near, far = (find_voxel_neighbours(v, OBLIQUE, 5).toarray() for v in (voxels, voxels + 400))
    np.testing.assert_array_equal(near, far)


def make_cifti(rng):
    """Two hemispheres, each a strip of triangles of which one vertex has no data, and two structures of voxels."""
    x = np.arange(20.0)
    points = np.concatenate([np.column_stack([x, 0 * x, 0 * x]), np.column_stack([x + 0.5, 0 * x + 1, 0 * x])])
    i = np.arange(19)
    faces = np.concatenate([np.stack([i, i + 1, i + 20], 1), np.stack([i + 1, i + 21, i + 20], 1)])
    owned = np.delete(np.arange(40), 5)
    voxels = make_volume(rng)
    split = len(voxels) // 2
    parts = (
        BrainPart("CIFTI_STRUCTURE_CORTEX_LEFT", 0, 39, vertices=owned, n_vertices=40),
        BrainPart("CIFTI_STRUCTURE_CORTEX_RIGHT", 39, 78, vertices=owned, n_vertices=40),
        BrainPart("CIFTI_STRUCTURE_THALAMUS_LEFT", 78, 78 + split, voxels=voxels[:split]),
        BrainPart("CIFTI_STRUCTURE_THALAMUS_RIGHT", 78 + split, 78 + len(voxels), voxels=voxels[split:]),
    )
    space = BrainSpace("fsLR", "cifti", parts, affine=np.diag([2.0, 2, 2, 1]), shape=(7, 8, 6))
    return space, {"L": Mesh("left", points, faces), "R": Mesh("right", 2 * points, faces)}, voxels


def test_no_searchlight_leaves_its_structure(rng):
    space, meshes, voxels = make_cifti(rng)
    told = []
    found = find_neighbourhoods(space, meshes, 2.5, memory=2**20, progress=lambda *args: told.append(args))
    members = found.members.toarray()
    assert members.shape == (space.n_voxels, space.n_voxels)
    assert set(np.unique(members)) == {0, 1}
    np.testing.assert_array_equal(members, members.T)
    labels = np.repeat(np.arange(4), [part.stop - part.start for part in space.parts])
    assert not members[labels[:, None] != labels].any()
    # vertex 10 of the left row sees two to each side, and four of the other row; the right mesh is twice as large
    rows = np.delete(np.arange(40), 5).tolist()
    place = rows.index(10)
    assert {rows[k] for k in np.flatnonzero(members[place])} == {8, 9, 10, 11, 12, 28, 29, 30, 31}
    assert {rows[k - 39] for k in np.flatnonzero(members[39 + place])} == {9, 10, 11, 29, 30}
    # the vertex without data is a way, but no member
    assert members[rows.index(4), rows.index(6)] == 1
    np.testing.assert_allclose(found.positions[78:], 2.0 * voxels)
    assert told[-1][0] == 78


def test_voxels_without_signal_are_in_no_searchlight(rng):
    space, meshes, _ = make_cifti(rng)
    found = find_neighbourhoods(space, meshes, 2.5, memory=2**20)
    usable = rng.random(space.n_voxels) < 0.8
    kept = found.keep(usable).toarray()
    np.testing.assert_array_equal(kept, found.members.toarray() * usable * usable[:, None])


def test_inputs_that_cannot_be(rng):
    space, meshes, _ = make_cifti(rng)
    with pytest.raises(UsageError, match=r"radius 0 mm: it must be more than 0"):
        find_neighbourhoods(space, meshes, 0, memory=2**20)
    with pytest.raises(MissingInputError, match=r"no surface for CIFTI_STRUCTURE_CORTEX_RIGHT with 40 vertices"):
        find_neighbourhoods(space, {"L": meshes["L"]}, 3, memory=2**20)
    other = Mesh("other", meshes["L"].coordinates[:-1], meshes["L"].faces[:1])
    with pytest.raises(BadDataError, match="other has 39 vertices, but CIFTI_STRUCTURE_CORTEX_LEFT has 40"):
        find_neighbourhoods(space, meshes | {"L": other}, 3, memory=2**20)
    with pytest.raises(UsageError, match=r"searchlights of 30 mm have .* voxels on average.*smaller radius"):
        find_neighbourhoods(space, meshes, 30, memory=2**15)
