from __future__ import annotations

import gc
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nibabel.cifti2 import cifti2_axes as axes

from dnnbrain_app.dataset import series
from dnnbrain_app.dataset.headers import read_header
from dnnbrain_app.dataset.images import read_bold, read_space, read_unit_space
from dnnbrain_app.dataset.index import find_units
from dnnbrain_app.dataset.options import DatasetOptions
from dnnbrain_app.errors import BadDataError
from dnnbrain_app.records import Run, Unit

KINDS = [("cifti", "space-fsLR_den-91k"), ("gifti", "space-fsaverage5"), ("nifti", "space-MNI152NLin2009cAsym_res-2")]


@pytest.fixture
def make_unit(tmp_path: Path, write_raw: Any, write_run: Any) -> Any:
    def _make(kind: str, space: str) -> Unit:
        for run in (1, 2):
            write_raw(tmp_path, f"sub-01_task-x_run-{run}")
            write_run(tmp_path / "derivatives" / "fmriprep", f"sub-01_task-x_run-{run}", kind, space=space)
        (unit,) = find_units(tmp_path, DatasetOptions())
        return unit

    return _make


@pytest.mark.parametrize(("kind", "space_entities"), KINDS)
def test_columns_are_where_the_space_says(make_unit: Any, kind: str, space_entities: str) -> None:
    unit = make_unit(kind, space_entities)
    space = read_unit_space(unit)
    assert space.format == kind
    assert "_".join(f"{k}-{v}" for k, v in space.entities.items()) == space_entities
    for run in unit.runs:
        data = read_bold(run, space)
        assert data.dtype == np.float32
        assert data.flags.c_contiguous
        assert data.shape == (run.n_volumes, space.n_voxels) == (6, space.n_voxels)
        for part in space.parts:  # nibabel's own reading of each structure
            np.testing.assert_array_equal(data[:, part.start : part.stop], read_part(run.bold, part, kind))


@pytest.mark.parametrize(("kind", "space_entities"), KINDS)
def test_some_columns_are_those_of_all(make_unit: Any, kind: str, space_entities: str) -> None:
    unit = make_unit(kind, space_entities)
    space = read_unit_space(unit)
    whole, n = read_bold(unit.runs[1], space), space.n_voxels
    assert n >= 8
    for columns in (slice(0, 3), slice(n - 2, n + 5), slice(2, n - 1), slice(None, 1), slice(4, 4), slice(None)):
        some = read_bold(unit.runs[1], space, columns)
        assert some.dtype == np.float32
        assert some.flags.c_contiguous
        np.testing.assert_array_equal(some, whole[:, columns])


@pytest.mark.parametrize(("kind", "space_entities"), KINDS)
def test_slabs_make_no_difference(
    make_unit: Any, kind: str, space_entities: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit = make_unit(kind, space_entities)
    space = read_unit_space(unit)
    whole = read_bold(unit.runs[0], space)
    monkeypatch.setattr(series, "_SLAB", 8 * 4 * 3 * 2 * 2)  # two volumes of six, two grayordinates
    np.testing.assert_array_equal(read_bold(unit.runs[0], space), whole)


@pytest.mark.parametrize(("kind", "space_entities"), KINDS)
def test_a_file_that_has_changed_since_it_was_found(make_unit: Any, kind: str, space_entities: str) -> None:
    unit = make_unit(kind, space_entities)
    run = replace(unit.runs[0], n_volumes=5)
    with pytest.raises(BadDataError, match=r"_bold.*: data of 6 volumes, not the 5"):
        read_bold(run, read_unit_space(unit))


def test_scaled_integers(make_unit: Any) -> None:
    unit = make_unit("nifti", "space-T1w")
    path = unit.runs[0].bold[0]
    image = nib.load(path)
    scaled = nib.Nifti1Image(image.get_fdata(), image.affine, image.header)
    scaled.set_data_dtype(np.int16)
    scaled.to_filename(path)
    space = read_space(unit.runs[0])
    expected = nib.load(path).get_fdata()[tuple(space.parts[0].voxels.T)].T
    assert len(np.unique(expected)) > 20
    np.testing.assert_allclose(read_bold(unit.runs[0], space, slice(1, 4)), expected[:, 1:4], rtol=1e-6)


@pytest.mark.parametrize("kind", ["cifti", "gifti", "nifti"])
def test_reading_needs_the_memory_of_the_columns_asked_for(
    tmp_path: Path, rng: np.random.Generator, write_image: Any, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reads 1.6 of 16 MB."""
    n_volumes, shape = 200, (20, 25, 40)
    values = rng.standard_normal((n_volumes, 20_000), dtype=np.float32)
    if kind == "cifti":
        models = axes.BrainModelAxis.from_surface(np.arange(20_000), 20_000, "CortexLeft")
        paths = (write_image["cifti"](tmp_path / "x_bold.dtseries.nii", values, models),)
    elif kind == "gifti":
        names = ("x_hemi-L_bold.func.gii", "x_hemi-R_bold.func.gii")
        paths = tuple(
            write_image["gifti"](tmp_path / names[i], values[:, i * 10_000 : (i + 1) * 10_000]) for i in range(2)
        )
    else:
        paths = (write_image["nifti"](tmp_path / "x_bold.nii.gz", values.T.reshape(*shape, n_volumes)),)
    mask = write_image["nifti"](tmp_path / "x_mask.nii.gz", np.ones(shape)) if kind == "nifti" else None
    run = Run({"sub": "01"}, paths, tmp_path, None, mask, 2.0, 0.0, n_volumes)
    space = read_space(run)
    monkeypatch.setattr(series, "_SLAB", 1 << 20)
    gc.collect()
    tracemalloc.start()
    data = read_bold(run, space, slice(9_000, 11_000))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(data, values[:, 9_000:11_000])
    assert most < data.nbytes + 3e6


def read_part(paths: tuple[Path, ...], part: Any, kind: str) -> np.ndarray:
    if kind == "gifti":
        return np.stack([array.data for array in nib.load(paths["LR".index(part.hemisphere)]).darrays])
    image = nib.load(paths[0])
    if kind == "nifti":
        return np.stack([image.get_fdata()[tuple(voxel)] for voxel in part.voxels], axis=1).astype(np.float32)
    columns = [s for name, s, _ in image.header.get_axis(1).iter_structures() if name == part.structure]
    return np.asarray(image.get_fdata()[:, columns[0]], dtype=np.float32)


def test_cifti_parts(make_unit: Any) -> None:
    space = read_unit_space(make_unit("cifti", "space-fsLR_den-91k"))
    left, right, thalamus = space.parts
    assert (left.structure, right.structure) == ("CIFTI_STRUCTURE_CORTEX_LEFT", "CIFTI_STRUCTURE_CORTEX_RIGHT")
    assert thalamus.structure == "CIFTI_STRUCTURE_THALAMUS_LEFT"
    assert left.vertices.tolist() == list(range(1, 11))
    assert (left.n_vertices, right.start, right.stop) == (12, 10, 19)
    assert thalamus.voxels.tolist() == [[1, 1, 0], [1, 1, 1], [2, 1, 0], [2, 1, 1]]
    assert space.shape == (4, 3, 2)


def test_cortex_alone(make_unit: Any, tmp_path: Path) -> None:
    unit = make_unit("cifti", "space-fsLR_den-91k")
    models = axes.BrainModelAxis.from_surface(np.arange(5), 12, "CortexLeft")
    for run in unit.runs:
        nib.Cifti2Image(np.ones((6, 5), np.float32), (axes.SeriesAxis(0, 2, 6), models)).to_filename(run.bold[0])
    space = read_unit_space(unit)
    assert (space.n_voxels, space.affine, space.shape) == (5, None, None)
    assert read_bold(unit.runs[0], space).shape == (6, 5)


def test_masks_of_runs_are_intersected(make_unit: Any) -> None:
    unit = make_unit("nifti", "space-T1w")
    image = nib.load(unit.runs[1].mask)
    mask = image.get_fdata()
    mask[1, 1, 0], mask[0, 0, 0] = 0, 1
    nib.Nifti1Image(mask, image.affine).to_filename(unit.runs[1].mask)
    one, both = read_space(unit.runs[0]), read_unit_space(unit)
    assert [v for v in one.parts[0].voxels.tolist() if v not in both.parts[0].voxels.tolist()] == [[1, 1, 0]]
    assert [0, 0, 0] not in both.parts[0].voxels.tolist()
    assert both.parts[0].voxels.tolist() == sorted(both.parts[0].voxels.tolist())  # C order
    assert read_bold(unit.runs[1], both).shape == (6, one.n_voxels - 1)
    nib.Nifti1Image(np.zeros(mask.shape), image.affine).to_filename(unit.runs[1].mask)
    with pytest.raises(BadDataError, match="no voxel in the mask"):
        read_unit_space(unit)


def test_without_a_mask_what_changes_is_taken(make_unit: Any, caplog: pytest.LogCaptureFixture) -> None:
    unit = make_unit("nifti", "space-T1w")
    path = unit.runs[0].bold[0]
    image = nib.load(path)
    data = image.get_fdata()
    data[0], data[1, 0, 0] = 0, 7
    data[1, 1, 1, 2] = np.nan
    nib.Nifti1Image(data.astype(np.float32), image.affine, image.header).to_filename(path)
    space = read_unit_space(replace(unit, runs=tuple(replace(run, mask=None) for run in unit.runs)))
    expected = np.ones((4, 3, 2), bool)
    expected[0] = expected[1, 0, 0] = expected[1, 1, 1] = False
    np.testing.assert_array_equal(space.parts[0].voxels, np.argwhere(expected))
    assert "no brain mask" in caplog.text


def test_mask_on_another_grid(make_unit: Any) -> None:
    unit = make_unit("nifti", "space-T1w")
    nib.Nifti1Image(np.ones((4, 3, 3)), np.eye(4)).to_filename(unit.runs[0].mask)
    with pytest.raises(BadDataError, match=r"mask .* lies on a 4x3x3 grid of 1x1x1 mm.* on a 4x3x2 grid of 2x2x2 mm"):
        read_unit_space(unit)


@pytest.mark.parametrize(("kind", "space_entities"), KINDS)
def test_runs_in_different_spaces(make_unit: Any, kind: str, space_entities: str) -> None:
    unit = make_unit(kind, space_entities)
    paths = unit.runs[1].bold
    if kind == "cifti":
        models = axes.BrainModelAxis.from_surface(np.arange(23), 30, "CortexLeft")
        nib.Cifti2Image(np.ones((6, 23), np.float32), (axes.SeriesAxis(0, 2, 6), models)).to_filename(paths[0])
    elif kind == "gifti":
        arrays = [nib.gifti.GiftiDataArray(np.ones(9, np.float32)) for _ in range(6)]
        nib.gifti.GiftiImage(darrays=arrays).to_filename(paths[0])
    else:
        nib.Nifti1Image(np.ones((4, 3, 3, 6), np.float32), np.eye(4)).to_filename(paths[0])
    with pytest.raises(BadDataError, match=rf"runs of one unit differ: .*{paths[0].name}"):
        read_unit_space(unit)


@pytest.mark.parametrize(("kind", "space_entities"), KINDS)
def test_a_truncated_file_is_named(make_unit: Any, kind: str, space_entities: str) -> None:
    unit = make_unit(kind, space_entities)
    space = read_unit_space(unit)
    path = unit.runs[0].bold[0]
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BadDataError, match=rf"{path.name}: cannot be read; it is cut off"):
        read_bold(unit.runs[0], space)


def test_hemispheres_of_different_length(make_unit: Any) -> None:
    left, right = make_unit("gifti", "space-fsaverage5").runs[0].bold
    image = nib.load(right)
    nib.gifti.GiftiImage(darrays=image.darrays[:-1]).to_filename(right)
    with pytest.raises(BadDataError, match=r"has 6 volumes and .* has 5 volumes"):
        read_header([left, right])


def test_one_volume_is_no_time_series(tmp_path: Path) -> None:
    for shape, message in (((2, 2, 2, 1), "1 volume"), ((2, 2, 2), "1 volume"), ((2, 2, 2, 1, 3), "5 dimensions")):
        nib.Nifti1Image(np.ones(shape, np.float32), np.eye(4)).to_filename(tmp_path / "x_bold.nii")
        with pytest.raises(BadDataError, match=message):
            read_header([tmp_path / "x_bold.nii"])


@pytest.mark.parametrize("unit", ["sec", "msec", "unknown"])
@pytest.mark.parametrize("image_class", [nib.Nifti1Image, nib.Nifti2Image])
def test_units_of_the_header(tmp_path: Path, image_class: Any, unit: str) -> None:
    image = image_class(np.ones((2, 2, 2, 3), np.float32), np.eye(4))
    image.header.set_xyzt_units("mm", unit)
    image.header["pixdim"][4] = {"sec": 1.5, "msec": 1500.0, "unknown": 1.0}[unit]
    image.to_filename(tmp_path / "x_bold.nii")
    header = read_header([tmp_path / "x_bold.nii"])
    assert header.n_volumes == 3
    assert header.repetition_time == (None if unit == "unknown" else pytest.approx(1.5))
