from __future__ import annotations

import gc
import json
import shutil
import subprocess
import tracemalloc
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from dnnbrain_app.derivatives.maps import build_brain_axis, name_maps, read_maps, write_maps
from dnnbrain_app.derivatives.names import encoding_map
from dnnbrain_app.errors import BadDataError, CannotWriteError, InputOutputError, MissingInputError
from dnnbrain_app.records import BrainPart, BrainSpace

NAMES = ["features.0", "conv & <1>", "é"]


@pytest.fixture
def write(tmp_path, rng, make_unit):
    def write_some(space, n_maps=3, folder="out", data=None):
        stem = encoding_map(tmp_path / folder, make_unit(space), "alexnet", "r")
        if data is None:
            data = rng.standard_normal((n_maps, space.n_voxels)).astype(np.float32)
            data[0, 3] = np.nan
        return stem, data, write_maps(stem, data, NAMES[: len(data)], space, {"Description": "d"})

    return write_some


@pytest.mark.parametrize("n_maps", [1, 3])
def test_maps_come_back_as_they_were(space, write, n_maps):
    stem, data, paths = write(space, n_maps)
    assert all(path.is_file() for path in paths)
    assert np.array_equal(read_maps(stem, space), data, equal_nan=True)
    assert sorted(stem.parent.iterdir()) == sorted(paths)


def test_each_image_has_its_sidecar(space, write):
    stem, _, paths = write(space)
    images = name_maps(stem, space)
    assert paths[: len(images)] == images
    for image in images:
        sidecar = image.with_name(image.name.split(".")[0] + ".json")
        assert json.loads(sidecar.read_text()) == {"Description": "d"}
        assert sidecar in paths


def test_same_numbers_same_bytes(space, write):
    _, data, first = write(space)
    _, _, second = write(space, data=np.asfortranarray(data), folder="elsewhere")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_cifti_says_what_it_is(cifti_space, write):
    _, data, paths = write(cifti_space)
    image = nib.load(paths[0])
    assert paths[0].name.endswith("_statmap.dscalar.nii")
    assert image.nifti_header.get_intent()[::2] == ("ConnDenseScalar", "ConnDenseScalar")
    assert image.nifti_header.get_xyzt_units() == ("mm", "sec")
    scalars, brain = (image.header.get_axis(i) for i in range(2))
    assert scalars.name.tolist() == NAMES
    assert brain == build_brain_axis(cifti_space)
    assert np.array_equal(image.get_fdata(dtype=np.float32), data, equal_nan=True)


def _space_of(axis):
    """A second way to read a brain-model axis, for the test."""
    parts = []
    for structure, columns, model in axis.iter_structures():
        stop = len(axis) if columns.stop is None else columns.stop
        surface = structure in axis.nvertices
        where = (
            {"vertices": model.vertex, "n_vertices": axis.nvertices[structure]} if surface else {"voxels": model.voxel}
        )
        parts.append(BrainPart(structure, columns.start, stop, **where))
    return BrainSpace("fsLR", "cifti", tuple(parts), {}, axis.affine, axis.volume_shape)


def test_the_axis_of_91k_is_rebuilt_exactly(shared):
    axis = nib.load(shared / "data" / "grayordinates91k.dscalar.nii").header.get_axis(1)
    rebuilt = build_brain_axis(_space_of(axis))
    assert rebuilt == axis
    assert rebuilt.to_mapping(1).__dict__.keys() == axis.to_mapping(1).__dict__.keys()


def test_a_surface_only_axis_has_no_volume(gifti_space):
    axis = build_brain_axis(replace(gifti_space, format="cifti"))
    assert axis.affine is None
    assert axis.nvertices == {"CIFTI_STRUCTURE_CORTEX_LEFT": 642, "CIFTI_STRUCTURE_CORTEX_RIGHT": 642}


def test_gifti_says_what_it_is(gifti_space, write):
    _, data, paths = write(gifti_space)
    for path, side, part in zip(paths, ("Left", "Right"), gifti_space.parts, strict=False):
        assert f"_hemi-{side[0]}_space-fsaverage5_model-" in path.name
        assert path.name.endswith("_statmap.func.gii")
        image = nib.load(path)
        assert image.meta["AnatomicalStructurePrimary"] == f"Cortex{side}"
        assert [array.meta["Name"] for array in image.darrays] == NAMES
        assert {array.data.dtype for array in image.darrays} == {np.dtype("float32")}
        for array, row in zip(image.darrays, data, strict=True):
            assert np.array_equal(array.data[part.vertices], row[part.start : part.stop], equal_nan=True)
            assert not array.data[np.setdiff1d(np.arange(642), part.vertices)].any()


def test_gifti_bytes_are_those_of_nibabel(gifti_space, write):
    """We stream the arrays; the file must not differ from what nibabel writes in one go."""
    _, data, paths = write(gifti_space)
    arrays = [
        nib.gifti.GiftiDataArray(
            row[:642], "NIFTI_INTENT_NONE", "NIFTI_TYPE_FLOAT32", meta=nib.gifti.GiftiMetaData(Name=name)
        )
        for name, row in zip(NAMES, data, strict=True)
    ]
    whole = nib.GiftiImage(meta=nib.gifti.GiftiMetaData(AnatomicalStructurePrimary="CortexLeft"), darrays=arrays)
    assert paths[0].read_bytes() == whole.to_bytes()


def test_nifti_says_what_it_is(nifti_space, write):
    _, data, paths = write(nifti_space)
    image = nib.load(paths[0])
    assert paths[0].name.endswith("_statmap.nii.gz")
    assert image.shape == (7, 8, 9, 3)
    assert image.get_data_dtype() == np.float32
    assert np.allclose(image.affine, nifti_space.affine)
    assert int(image.header["sform_code"]) == int(image.header["qform_code"]) == 4
    assert image.header.get_xyzt_units()[0] == "mm"
    assert np.allclose(image.header.get_zooms()[:3], nib.affines.voxel_sizes(nifti_space.affine))
    values = image.get_fdata(dtype=np.float32)
    voxels = nifti_space.parts[0].voxels
    assert np.array_equal(values[tuple(voxels.T)].T, data, equal_nan=True)
    values[tuple(voxels.T)] = 0
    assert not values.any()


def test_one_volume_is_three_dimensional(nifti_space, write):
    _, _, paths = write(nifti_space, n_maps=1)
    assert nib.load(paths[0]).shape == (7, 8, 9)


def test_an_affine_of_unknown_origin_is_kept(nifti_space, write):
    _, _, paths = write(replace(nifti_space, xform_code=0))
    assert np.allclose(nib.load(paths[0]).affine, nifti_space.affine)


def test_gzip_holds_no_time_and_no_name(nifti_space, write):
    _, _, paths = write(nifti_space)
    header = paths[0].read_bytes()[:10]
    assert header[3] == 0  # flags: no file name
    assert header[4:8] == bytes(4)  # time


@pytest.mark.parametrize("shape", [(2, 0), (3, -1), (0, 0)])
def test_data_must_fit(space, tmp_path, shape):
    n_maps, extra = shape
    data = np.zeros((n_maps, space.n_voxels + extra), dtype=np.float32)
    names = NAMES if n_maps else []
    with pytest.raises(BadDataError, match=rf"a_statmap: .*{n_maps}, .* maps of {space.n_voxels} voxels"):
        write_maps(tmp_path / "sub-01_a_statmap", data, names, space, {})
    assert not list(tmp_path.iterdir())


def test_maps_of_another_space_are_refused(space, write):
    stem, _, _ = write(space)
    last = space.parts[-1]
    changed = replace(last, n_vertices=700) if last.is_surface else replace(last, voxels=last.voxels + 1)
    affine = None if space.affine is None else space.affine + np.eye(4)
    other = replace(space, parts=(*space.parts[:-1], changed), affine=affine)
    words = {"cifti": "grayordinates", "gifti": "number of vertices 642, where 700", "nifti": "affine"}[space.format]
    with pytest.raises(BadDataError, match=words):
        read_maps(stem, other)


def test_hemispheres_must_have_the_same_maps(gifti_space, write):
    stem, data, paths = write(gifti_space)
    _, _, shorter = write(gifti_space, data=data[:2], folder="elsewhere")
    shorter[1].replace(paths[1])
    with pytest.raises(BadDataError, match=r"hemi-R.*number of maps 2, where 3"):
        read_maps(stem, gifti_space)


def test_missing_and_broken_maps(space, write):
    stem, _, paths = write(space)
    content = paths[0].read_bytes()
    paths[0].write_bytes(content[: len(content) // 2])
    with pytest.raises(InputOutputError, match="cannot be read"):
        read_maps(stem, space)
    paths[0].unlink()
    with pytest.raises(MissingInputError, match="does not exist"):
        read_maps(stem, space)


def test_a_full_disk_keeps_the_old_maps(space, make_unit, rng, small_disk):
    stem = encoding_map(small_disk, make_unit(space), "alexnet", "r")
    write_maps(stem, np.ones((1, space.n_voxels)), ["a"], space, {})
    many = rng.standard_normal((1_500_000 // space.n_voxels, space.n_voxels))
    with pytest.raises(CannotWriteError, match="No space left"):
        write_maps(stem, many, ["a"] * len(many), space, {})
    assert (read_maps(stem, space) == 1).all()
    assert not list(stem.parent.glob(".*"))


@pytest.mark.shared
def test_workbench_reads_cifti_and_gifti(cifti_space, gifti_space, write, shared):
    if not shutil.which("wb_command"):
        pytest.skip("wb_command not found: only nibabel has read the maps (apt-get install connectome-workbench)")
    images = [path for space in (cifti_space, gifti_space) for path in write(space)[2] if path.suffix != ".json"]
    check = [shared / "tools" / "wb_check.sh", "--strict", *images]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ok ") == 3
    left = images[0].with_name("left.func.gii")
    separate = ["wb_command", "-cifti-separate", images[0], "COLUMN", "-metric", "CORTEX_LEFT", left]
    subprocess.run(separate, check=True, capture_output=True)
    part = cifti_space.parts[0]
    read = np.stack([array.data[part.vertices] for array in nib.load(left).darrays])
    assert np.array_equal(read, nib.load(images[0]).get_fdata(dtype=np.float32)[:, : part.stop], equal_nan=True)


@pytest.mark.parametrize("kind", ["gifti", "nifti"])
def test_many_maps_need_the_memory_of_one(kind, tmp_path, rng):
    if kind == "nifti":
        voxels = np.argwhere(np.ones((60, 60, 25), dtype=bool))
        part = BrainPart("CIFTI_STRUCTURE_OTHER", 0, len(voxels), voxels=voxels)
        space = BrainSpace("MNI", kind, (part,), {}, np.eye(4), (60, 60, 25))
    else:
        vertices = np.arange(90_000)
        part = BrainPart("CIFTI_STRUCTURE_CORTEX_LEFT", 0, 90_000, vertices=vertices, n_vertices=90_000)
        space = BrainSpace("fsnative", kind, (part,))
    data = rng.standard_normal((80, 90_000), dtype=np.float32)
    gc.collect()
    tracemalloc.start()
    write_maps(tmp_path / "sub-01_statmap", data, [str(i) for i in range(len(data))], space, {})
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 0.3 * data.nbytes
