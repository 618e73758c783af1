"""Small spaces of each format."""

from __future__ import annotations

import shutil
import subprocess

import numpy as np
import pytest

from dnnbrain_app.records import BrainPart, BrainSpace, Unit


@pytest.fixture
def cifti_space():
    """Both cortices without their medial walls, and two subcortical structures, in a space of 91k's making."""
    left, right = np.delete(np.arange(642), np.arange(5, 40)), np.delete(np.arange(642), np.arange(100, 120))
    grid = np.stack(np.meshgrid(*[np.arange(3)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    parts, start = [], 0
    for structure, elements in (
        ("CIFTI_STRUCTURE_CORTEX_LEFT", left),
        ("CIFTI_STRUCTURE_CORTEX_RIGHT", right),
        ("CIFTI_STRUCTURE_AMYGDALA_LEFT", grid),
        ("CIFTI_STRUCTURE_THALAMUS_RIGHT", grid + np.array([5, 1, 2])),
    ):
        stop = start + len(elements)
        where = {"voxels": elements} if elements.ndim == 2 else {"vertices": elements, "n_vertices": 642}
        parts.append(BrainPart(structure, start, stop, **where))
        start = stop
    affine = np.array([[-2.0, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])
    return BrainSpace("fsLR", "cifti", tuple(parts), {"space": "fsLR", "den": "91k"}, affine, (91, 109, 91))


@pytest.fixture
def gifti_space():
    vertices = np.arange(642)
    parts = (
        BrainPart("CIFTI_STRUCTURE_CORTEX_LEFT", 0, 642, vertices=vertices, n_vertices=642),
        BrainPart("CIFTI_STRUCTURE_CORTEX_RIGHT", 642, 1242, vertices=vertices[:600], n_vertices=642),
    )
    return BrainSpace("fsaverage5", "gifti", parts, {"space": "fsaverage5"})


@pytest.fixture
def nifti_space(rng):
    voxels = np.argwhere(rng.random((7, 8, 9)) < 0.3)
    rng.shuffle(voxels)  # whatever order the reader has chosen
    part = BrainPart("CIFTI_STRUCTURE_OTHER", 0, len(voxels), voxels=voxels)
    affine = np.array([[2.5, 0.1, 0, -20], [-0.1, 2.5, 0, -30], [0, 0, 3, -10], [0, 0, 0, 1.0]])
    entities = {"space": "MNI152NLin2009cAsym", "res": "2"}
    return BrainSpace("MNI152NLin2009cAsym", "nifti", (part,), entities, affine, (7, 8, 9), xform_code=4)


@pytest.fixture(params=["cifti_space", "gifti_space", "nifti_space"])
def space(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def make_unit():
    def make(space, **more):
        entities = {"sub": "01", **more, "task": "objects", **space.entities}
        return Unit("01", "objects", space.name, entities, ())

    return make


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one megabyte, where the test may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = shutil.which("mount")
    if (
        not command
        or subprocess.run(
            [command, "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=False, capture_output=True
        ).returncode
    ):
        pytest.skip("no permission to mount a small disk: full and read-only disks are tested by raised errors only")
    yield folder
    subprocess.run(["umount", folder], check=True)
