"""Every space and format that data may come in, from the folder to maps in the same geometry."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nibabel.cifti2 import cifti2_axes as axes

from dnnbrain_app.dataset.images import read_bold, read_unit_space
from dnnbrain_app.dataset.index import find_units
from dnnbrain_app.dataset.options import DatasetOptions
from dnnbrain_app.derivatives.maps import write_maps
from dnnbrain_app.derivatives.names import beta_map
from dnnbrain_app.errors import BadDataError, MissingInputError, UsageError
from dnnbrain_app.records import BrainSpace, Unit

N_VOLUMES = 5
SHAPE = (4, 3, 2)
AFFINE = nib.affines.from_matvec([[0.0, -2.5, 0], [2.5, 0, 0], [0, 0, 3.0]], [10, -20, 5])  # axes are exchanged
STEM = "sub-01_task-x_run-1"


@pytest.fixture
def func(tmp_path: Path, write_raw: Any) -> Path:
    """Folder of the preprocessed data of a dataset whose raw part is there."""
    write_raw(tmp_path, STEM)
    folder = tmp_path / "derivatives" / "fmriprep" / "sub-01" / "func"
    folder.mkdir(parents=True)
    return folder


def find(func: Path, **options: Any) -> Unit:
    (unit,) = find_units(func.parents[3], DatasetOptions(**options))
    return unit


def write_mgh(path: Path, data: np.ndarray, step: float = 1500.0) -> Path:
    image = nib.MGHImage(data.astype(np.float32), AFFINE)
    if data.ndim == 4:
        image.header.set_zooms((*image.header.get_zooms()[:3], step))
    image.to_filename(path)
    return path


def write_afni(path: Path, data: np.ndarray, step: float = 1.5, factor: float = 0.0, unit: int = 77002) -> Path:
    """Write a .BRIK, or .BRIK.gz, and its .HEAD: nibabel reads them only."""
    n = data.shape[3] if data.ndim == 4 else 1
    values = np.round(data / factor).astype("<i2") if factor else data.astype("<f4")
    to_dicom = (np.diag([-1.0, -1, 1, 1]) @ AFFINE)[:3]
    attributes: dict[str, Any] = {
        "DATASET_RANK": [3, n],
        "DATASET_DIMENSIONS": [*data.shape[:3], 0, 0],
        "BRICK_TYPES": [1 if factor else 3] * n,
        "BRICK_FLOAT_FACS": [factor] * n,
        "BYTEORDER_STRING": "LSB_FIRST",
        "SCENE_DATA": [0, 11, 1],
        "TEMPLATE_SPACE": "ORIG",
        "ORIENT_SPECIFIC": [0, 3, 4],
        "DELTA": [2.5, 2.5, 3.0],
        "ORIGIN": [0.0, 0.0, 0.0],
        "IJK_TO_DICOM_REAL": [float(value) for value in to_dicom.ravel()],
        "TAXIS_NUMS": [n, 0, unit],
        "TAXIS_FLOATS": [0.0, step, 0.0, 0.0, 0.0],
    }
    text = ""
    for name, value in attributes.items():
        if isinstance(value, str):
            text += f"\ntype = string-attribute\nname = {name}\ncount = {len(value) + 1}\n'{value}~\n"
        else:
            kind = "float" if isinstance(value[0], float) else "integer"
            numbers = " ".join(map(str, value))
            text += f"\ntype = {kind}-attribute\nname = {name}\ncount = {len(value)}\n {numbers}\n"
    path.with_name(path.name.partition(".BRIK")[0] + ".HEAD").write_text(text)
    content = values.tobytes(order="F")
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def write_out(unit: Unit, rows: np.ndarray, space: BrainSpace, folder: Path) -> list[Path]:
    """Write rows of data as betas and return the images."""
    stem, titles = beta_map(folder, unit, "lss"), [f"map {i}" for i in range(len(rows))]
    return [path for path in write_maps(stem, rows, titles, space, {}) if path.suffix != ".json"]


class TestVolumes:
    """FreeSurfer's and AFNI's volumes become NIfTI on the same grid."""

    @pytest.fixture
    def data(self, rng: np.random.Generator) -> np.ndarray:
        return rng.normal(100, 10, (*SHAPE, N_VOLUMES)).astype(np.float32)

    @staticmethod
    def write(func: Path, kind: str, data: np.ndarray) -> None:
        mask = np.zeros(SHAPE)
        mask[1:3] = 1
        if kind in ("mgh", "mgz"):
            write_mgh(func / f"{STEM}_space-T1w_desc-preproc_bold.{kind}", data)
            write_mgh(func / f"{STEM}_space-T1w_desc-brain_mask.{kind}", mask)
        elif kind == "nii":
            nib.Nifti1Image(data, AFFINE).to_filename(func / f"{STEM}_space-T1w_desc-preproc_bold.nii")
            (func / f"{STEM}_space-T1w_desc-preproc_bold.json").write_text('{"RepetitionTime": 1.5}')
            nib.Nifti1Image(mask, AFFINE).to_filename(func / f"{STEM}_space-T1w_desc-brain_mask.nii.gz")
        else:
            write_afni(func / f"{STEM}_space-T1w_{kind}", data)
            # a mask in another format of volumes is as good
            nib.Nifti1Image(mask, AFFINE).to_filename(func / f"{STEM}_space-T1w_desc-brain_mask.nii.gz")

    @pytest.mark.parametrize(
        "kind",
        [
            "mgh",
            "mgz",
            "nii",
            "bold.BRIK",
            "desc-preproc_bold.BRIK.gz",
            "bold+tlrc.BRIK",
            "desc-preproc_bold+orig.BRIK.gz",
        ],
    )
    def test_in_and_out(self, func: Path, data: np.ndarray, kind: str, tmp_path: Path) -> None:
        self.write(func, kind, data)
        unit = find(func)
        (run,) = unit.runs
        assert unit.label == "sub-01_task-x_space-T1w"
        assert (run.n_volumes, run.repetition_time) == (N_VOLUMES, pytest.approx(1.5))
        assert run.mask is not None
        space = read_unit_space(unit)
        np.testing.assert_allclose(space.affine, AFFINE, atol=1e-5)
        assert space.shape == SHAPE
        assert space.n_voxels == 12
        inside = data[1:3].reshape(12, N_VOLUMES).T  # C order
        np.testing.assert_array_equal(read_bold(run, space), inside)
        np.testing.assert_array_equal(read_bold(run, space, slice(3, 8)), inside[:, 3:8])
        (path,) = write_out(unit, inside[:2], space, tmp_path / "out")
        image = nib.load(path)
        assert path.name == "sub-01_task-x_space-T1w_stat-effect_desc-lss_statmap.nii.gz"
        np.testing.assert_allclose(image.affine, AFFINE, atol=1e-5)
        np.testing.assert_array_equal(image.get_fdata(dtype=np.float32)[1:3], data[1:3, ..., :2])
        assert not image.get_fdata()[[0, 3]].any()

    def test_scaled_bricks(self, func: Path, data: np.ndarray) -> None:
        write_afni(func / f"{STEM}_space-T1w_bold+orig.BRIK", data, factor=0.01)
        unit = find(func)
        read = read_bold(unit.runs[0], read_unit_space(unit))
        np.testing.assert_allclose(read, data.reshape(-1, N_VOLUMES).T, atol=0.0051)

    @pytest.mark.parametrize(("step", "unit", "expected"), [(1500.0, 77001, 1.5), (2.0, 77002, 2.0)])
    def test_units_of_afni(self, func: Path, data: np.ndarray, step: float, unit: int, expected: float) -> None:
        write_afni(func / f"{STEM}_bold+orig.BRIK", data, step=step, unit=unit)
        assert find(func).runs[0].repetition_time == pytest.approx(expected)

    @pytest.mark.parametrize("step", [2000.0, 2.0])  # FreeSurfer's milliseconds; seconds of others
    def test_units_of_freesurfer(self, func: Path, data: np.ndarray, step: float) -> None:
        write_mgh(func / f"{STEM}_bold.mgz", data, step=step)
        assert find(func).runs[0].repetition_time == pytest.approx(2.0)

    def test_a_header_without_time(self, func: Path, data: np.ndarray) -> None:
        write_afni(func / f"{STEM}_bold+orig.BRIK", data, unit=0)
        with pytest.raises(BadDataError, match=r"bold\+orig\.BRIK: no RepetitionTime in a sidecar"):
            find(func)
        (func / f"{STEM}_bold.json").write_text(json.dumps({"RepetitionTime": 3.0, "StartTime": 1.0}))
        run = find(func).runs[0]
        assert (run.repetition_time, run.start_time) == (3.0, 1.0)

    def test_a_brick_without_its_head(self, func: Path, data: np.ndarray) -> None:
        path = write_afni(func / f"{STEM}_bold+orig.BRIK", data)
        path.with_suffix(".HEAD").unlink()
        with pytest.raises(MissingInputError, match=r"bold\+orig\.HEAD: does not exist"):
            find(func)

    @pytest.mark.parametrize(
        "head", ["", "nonsense", "type = integer-attribute\nname = DATASET_RANK\ncount = 2\n3 4\n"]
    )
    def test_a_head_that_says_nothing(self, func: Path, data: np.ndarray, head: str) -> None:
        write_afni(func / f"{STEM}_bold+orig.BRIK", data).with_suffix(".HEAD").write_text(head)
        with pytest.raises(BadDataError, match=r"bold\+orig\.BRIK: cannot be read"):
            find(func)

    @pytest.mark.parametrize("name", ["bold+orig.BRIK", "bold+orig.BRIK.gz", "bold.mgh", "bold.mgz"])
    def test_a_file_that_is_cut_off(self, func: Path, data: np.ndarray, name: str) -> None:
        write = write_mgh if ".mg" in name else write_afni
        path = write(func / f"{STEM}_space-T1w_{name}", data)
        nib.Nifti1Image(np.ones(SHAPE), AFFINE).to_filename(func / f"{STEM}_space-T1w_desc-brain_mask.nii")
        (func / f"{STEM}_bold.json").write_text('{"RepetitionTime": 1.5}')
        unit = find(func)
        space = read_unit_space(unit)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(BadDataError, match=r"bold.*: cannot be read; it is cut off"):
            read_bold(unit.runs[0], space)

    def test_a_series_in_two_formats(self, func: Path, data: np.ndarray) -> None:
        self.write(func, "mgz", data)
        self.write(func, "nii", data)
        with pytest.raises(UsageError, match=r"two files of the same run and space: .*keep one"):
            find(func)

    @pytest.mark.parametrize(("write", "ending"), [(write_mgh, ".mgz"), (write_afni, ".BRIK")])
    def test_one_volume(self, func: Path, data: np.ndarray, write: Any, ending: str) -> None:
        write(func / f"{STEM}_bold{ending}", data[..., 0])
        with pytest.raises(BadDataError, match=rf"_bold{ending}: 1 volume\(s\); a time series is needed"):
            find(func)

    @pytest.mark.parametrize(("space", "code"), [("MNI152NLin6Asym", 4), ("T1w", 2)])
    def test_kind_of_space_of_a_format_that_does_not_tell(
        self, func: Path, data: np.ndarray, space: str, code: int
    ) -> None:
        write_mgh(func / f"{STEM}_space-{space}_bold.mgz", data)
        assert read_unit_space(find(func)).xform_code == code


SIZES = {"fsaverage5": 10242, "fsaverage6": 40962, "fsnative": 1234}


class TestSurfaces:
    """Surfaces become GIFTI with as many vertices, whichever format they came in."""

    @pytest.mark.parametrize("kind", ["func.gii", "mgh", "mgz"])
    @pytest.mark.parametrize("space", SIZES)
    def test_in_and_out(
        self, func: Path, rng: np.random.Generator, write_image: Any, kind: str, space: str, tmp_path: Path
    ) -> None:
        # of fsnative, hemispheres differ in size
        sizes = {"L": SIZES[space], "R": SIZES[space] + 10 * (space == "fsnative")}
        data = {side: rng.normal(100, 1, (N_VOLUMES, n)).astype(np.float32) for side, n in sizes.items()}
        for side, values in data.items():
            path = func / f"{STEM}_hemi-{side}_space-{space}_bold.{kind}"
            if kind == "func.gii":
                write_image["gifti"](path, values, step=1.5)
            else:
                write_mgh(path, values.T.reshape(-1, 1, 1, N_VOLUMES))
        unit = find(func)
        (run,) = unit.runs
        assert [path.name.split("hemi-")[1][0] for path in run.bold] == ["L", "R"]
        assert run.repetition_time == pytest.approx(1.5)
        found = read_unit_space(unit)
        assert (found.format, found.name, dict(found.entities)) == ("gifti", space, {"space": space})
        assert [part.n_vertices for part in found.parts] == list(sizes.values())
        both = np.concatenate(list(data.values()), axis=1)
        np.testing.assert_array_equal(read_bold(run, found), both)
        middle = slice(sizes["L"] - 5, sizes["L"] + 3)
        np.testing.assert_array_equal(read_bold(run, found, middle), both[:, middle])
        paths = write_out(unit, both[:2], found, tmp_path / "out")
        assert [path.name for path in paths] == [
            f"sub-01_task-x_hemi-{side}_space-{space}_stat-effect_desc-lss_statmap.func.gii" for side in "LR"
        ]
        for path, values in zip(paths, data.values(), strict=True):
            np.testing.assert_array_equal(np.stack([array.data for array in nib.load(path).darrays]), values[:2])

    def test_missing_hemisphere(self, func: Path, rng: np.random.Generator) -> None:
        write_mgh(func / f"{STEM}_hemi-L_space-fsaverage6_bold.mgh", rng.random((9, 1, 1, N_VOLUMES)))
        with pytest.raises(MissingInputError, match=r"hemi-L.*: the file of hemi-R is not there"):
            find(func)


GRAYORDINATES = {
    # density: vertices of a mesh and of its cortices, grid and size of voxels, how many in all (fMRIPrep, HCP)
    "91k": (32492, (29696, 29716), (91, 109, 91), 2.0, 91282),
    "170k": (59292, (54216, 54225), (113, 136, 113), 1.6, 170494),
}


@pytest.mark.parametrize(("density", "cortex_only"), [("91k", True), ("91k", False), ("170k", False)])
def test_grayordinates(
    func: Path, rng: np.random.Generator, write_image: Any, density: str, cortex_only: bool, tmp_path: Path
) -> None:
    n_vertices, cortices, shape, size, n = GRAYORDINATES[density]
    models = axes.BrainModelAxis.from_surface(
        np.sort(rng.permutation(n_vertices)[: cortices[0]]), n_vertices, "CortexLeft"
    )
    models += axes.BrainModelAxis.from_surface(np.arange(cortices[1]), n_vertices, "CortexRight")
    if not cortex_only:
        mask = np.zeros(shape, bool).ravel()
        mask[rng.permutation(mask.size)[: n - sum(cortices)]] = True
        affine = nib.affines.from_matvec(np.diag([-size, size, size]), [90, -126, -72])
        models += axes.BrainModelAxis.from_mask(mask.reshape(shape), "thalamus_left", affine=affine)
    data = rng.normal(100, 1, (3, len(models))).astype(np.float32)
    write_image["cifti"](func / f"{STEM}_space-fsLR_den-{density}_bold.dtseries.nii", data, models, step=1.5)
    unit = find(func)
    (run,) = unit.runs
    space = read_unit_space(unit)
    assert unit.label == f"sub-01_task-x_space-fsLR_den-{density}"
    assert space.n_voxels == (sum(cortices) if cortex_only else n)
    assert (space.affine is None) == cortex_only
    np.testing.assert_array_equal(read_bold(run, space), data)
    np.testing.assert_array_equal(read_bold(run, space, slice(50_000, 60_000)), data[:, 50_000:60_000])
    (path,) = write_out(unit, data[:2], space, tmp_path / "out")
    assert path.name == f"sub-01_task-x_space-fsLR_den-{density}_stat-effect_desc-lss_statmap.dscalar.nii"
    image = nib.load(path)
    assert image.header.get_axis(1) == models
    np.testing.assert_array_equal(image.get_fdata(dtype=np.float32), data[:2])


def test_volume_of_a_template(func: Path, rng: np.random.Generator, write_run: Any, tmp_path: Path) -> None:
    write_run(func.parents[1], STEM, "nifti", space="space-MNI152NLin2009cAsym_res-2")
    unit = find(func)
    space = read_unit_space(unit)
    bold = nib.load(unit.runs[0].bold[0])
    (path,) = write_out(unit, rng.random((2, space.n_voxels), dtype=np.float32), space, tmp_path / "out")
    image = nib.load(path)
    assert path.name == "sub-01_task-x_space-MNI152NLin2009cAsym_res-2_stat-effect_desc-lss_statmap.nii.gz"
    assert image.shape == (*bold.shape[:3], 2)
    np.testing.assert_array_equal(image.affine, bold.affine)
    assert int(image.header["sform_code"]) == int(bold.header["sform_code"])
