from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nibabel.cifti2 import cifti2_axes as axes
from nilearn.image import resample_to_img

from dnnbrain_app.dataset.atlases import PRESETS, read_atlas
from dnnbrain_app.dataset.geometry import read_parts
from dnnbrain_app.dataset.surfaces import find_meshes
from dnnbrain_app.errors import BadDataError, DnnbrainError, MissingInputError, UnknownNameError, UsageError
from dnnbrain_app.records import BrainPart, BrainSpace, Run, Unit

AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
TABLE = {
    0: ("???", (0, 0, 0, 0)),
    1: ("L_V8_ROI", (1, 0, 0, 1)),
    2: ("R_V8_ROI", (1, 0, 0, 1)),
    3: ("V1", (0, 1, 0, 1)),
    4: ("empty", (0, 0, 1, 1)),
}
LEFT, RIGHT = "CIFTI_STRUCTURE_CORTEX_LEFT", "CIFTI_STRUCTURE_CORTEX_RIGHT"


def make_models(left: list[int], right: list[int], n: int = 8, *, volume: bool = False) -> Any:
    models = axes.BrainModelAxis.from_surface(np.array(left), n, "CortexLeft")
    models += axes.BrainModelAxis.from_surface(np.array(right), n, "CortexRight")
    if volume:
        models += axes.BrainModelAxis.from_mask(np.ones((2, 1, 1), bool), "thalamus_left", affine=AFFINE)
    return models


def make_space(models: Any) -> BrainSpace:
    return BrainSpace("fsLR", "cifti", read_parts(models), {}, affine=models.affine, shape=models.volume_shape)


def write_dlabel(path: Path, keys: list[int], models: Any) -> Path:
    labels = axes.LabelAxis(["parcels"], [TABLE])
    nib.Cifti2Image(np.array([keys], np.float32), (labels, models)).to_filename(path)
    return path


@pytest.fixture
def dlabel(tmp_path: Path) -> Path:
    """Cortex only: left vertices 0-3 are V8 V8 V1 -, right vertices 1-3 are V8 V1 -."""
    return write_dlabel(
        tmp_path / "tpl-fsLR_atlas-Toy_den-91k_dseg.dlabel.nii",
        [1, 1, 3, 0, 2, 3, 0],
        make_models([0, 1, 2, 3], [1, 2, 3]),
    )


def regions(path: Path, models: Any, *rois: str) -> dict[str, list[int]]:
    atlas = read_atlas([path], make_space(models), rois)
    assert atlas is not None
    return {name: np.flatnonzero(region).tolist() for name, region in atlas.regions.items()}


def test_every_label_by_default(dlabel: Path) -> None:
    found = regions(dlabel, make_models([0, 1, 2, 3], [1, 2, 3]))
    assert found == {"L_V8_ROI": [0, 1], "V1": [2, 5], "R_V8_ROI": [4]}
    atlas = read_atlas([dlabel], make_space(make_models([0, 1, 2, 3], [1, 2, 3])), [])
    assert atlas is not None
    assert atlas.name == "Toy"


def test_data_with_more_and_with_fewer_columns(dlabel: Path) -> None:
    assert regions(dlabel, make_models([0, 1, 2, 3, 4], [0, 1, 2], volume=True), "V8", "V1") == {
        "V8": [0, 1, 6],
        "V1": [2, 7],
    }
    assert regions(dlabel, make_models([2, 1], [3, 2]), "V8", "V1") == {"V8": [1], "V1": [0, 3]}


def test_voxels_of_a_dlabel(tmp_path: Path) -> None:
    path = write_dlabel(tmp_path / "a.dlabel.nii", [0, 3, 3, 1], make_models([0], [1], volume=True))
    assert regions(path, make_models([0], [1], volume=True)) == {"V1": [1, 2], "L_V8_ROI": [3]}


def test_rois(dlabel: Path) -> None:
    models = make_models([0, 1, 2, 3], [1, 2, 3])
    assert regions(dlabel, models, "both=V8+V1", "right=R_V8_ROI", "L_V8_ROI") == {
        "both": [0, 1, 2, 4, 5],
        "right": [4],
        "L_V8_ROI": [0, 1],
    }


def test_preset_gives_way_to_a_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert PRESETS["VTC"] == ("V8", "FFC", "PIT", "VVC", "VMV1", "VMV2", "VMV3")
    models = make_models([0, 1], [0])
    names = [*(f"{side}_{label}_ROI" for label in PRESETS["VTC"] for side in "LR"), "L_V1_ROI"]
    monkeypatch.setitem(
        globals(), "TABLE", {0: ("???", (0, 0, 0, 0))} | {i: (name, (0, 0, 0, 1)) for i, name in enumerate(names, 1)}
    )
    path = write_dlabel(tmp_path / "mmp.dlabel.nii", [1, 15, 4], models)
    assert regions(path, models, "VTC") == {"VTC": [0, 2]}
    monkeypatch.setitem(TABLE, 15, ("VTC", (0, 0, 0, 1)))
    assert regions(write_dlabel(path, [1, 15, 4], models), models, "VTC") == {"VTC": [1]}


@pytest.mark.parametrize(
    ("rois", "error", "parts"),
    [
        (["L_V9_ROI"], UnknownNameError, ["'L_V9_ROI'", "did you mean", "L_V8_ROI"]),
        (["VTC"], UnknownNameError, ["'FFC'", "--roi VTC"]),
        (["x=empty"], BadDataError, ["region x", "no voxel of empty"]),
        (["x=V1+"], UsageError, ["'x=V1+'", "NAME=LABEL+LABEL"]),
        (["V1+V8"], UsageError, ["'V1+V8'"]),
        (["=V1"], UsageError, ["'=V1'"]),
        (["a=V1", "a=V8"], UsageError, ["a is defined twice"]),
    ],
)
def test_rois_that_cannot_be(dlabel: Path, rois: list[str], error: type[DnnbrainError], parts: list[str]) -> None:
    with pytest.raises(error) as caught:
        regions(dlabel, make_models([0, 1, 2, 3], [1, 2, 3]), *rois)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_no_atlas() -> None:
    space = make_space(make_models([0], [0]))
    assert read_atlas([], space, []) is None
    with pytest.raises(UsageError, match=r"--atlas FILE"):
        read_atlas([], space, ["V1"])


def test_another_mesh(dlabel: Path) -> None:
    with pytest.raises(
        BadDataError, match=r"CORTEX_LEFT 2 of 9 vertices.*CORTEX_LEFT of 8 vertices.*Surfaces are not resampled"
    ):
        regions(dlabel, make_models([0, 1], [1], n=9))


def write_labels(folder: Path) -> list[Path]:
    paths = []
    for hemi, keys, names in (("L", [0, 1, 1], {0: "???", 1: "V1"}), ("R", [2, 0, 1], {0: "???", 1: "V2", 2: "V1"})):
        table = nib.gifti.GiftiLabelTable()
        for key, name in names.items():
            label = nib.gifti.GiftiLabel(key)
            label.label = name
            table.labels.append(label)
        array = nib.gifti.GiftiDataArray(np.array(keys, np.int32), intent="NIFTI_INTENT_LABEL")
        paths.append(folder / f"tpl-fsaverage_hemi-{hemi}_seg-Toy_dseg.label.gii")
        nib.gifti.GiftiImage(darrays=[array], labeltable=table).to_filename(paths[-1])
    return paths


def test_pair_of_label_files(tmp_path: Path, dlabel: Path) -> None:
    left, right = write_labels(tmp_path)
    parts = (
        BrainPart(LEFT, 0, 3, vertices=np.arange(3), n_vertices=3),
        BrainPart(RIGHT, 3, 6, vertices=np.arange(3), n_vertices=3),
    )
    space = BrainSpace("fsaverage5", "gifti", parts)
    for paths in ([left], [right], [left, right], [dlabel, right]):
        atlas = read_atlas(paths, space, [])
        assert atlas is not None
        assert atlas.name == "Toy"
        assert {name: np.flatnonzero(region).tolist() for name, region in atlas.regions.items()} == {
            "V1": [1, 2, 3],
            "V2": [5],
        }
    right.unlink()
    with pytest.raises(MissingInputError, match="hemi-R"):
        read_atlas([left], space, [])


def test_volume_with_its_table(tmp_path: Path) -> None:
    keys = np.zeros((3, 2, 1))
    keys[0, 0], keys[2, 1], keys[1, 1] = 7, 7, 9
    path = tmp_path / "tpl-MNI_res-2_atlas-Toy_dseg.nii.gz"
    nib.Nifti1Image(keys.astype(np.int16), AFFINE).to_filename(path)
    voxels = np.array([[0, 0, 0], [1, 1, 0], [2, 1, 0], [2, 0, 0]])
    space = BrainSpace(
        "MNI", "nifti", (BrainPart("CIFTI_STRUCTURE_OTHER", 0, 4, voxels=voxels),), {}, affine=AFFINE, shape=(3, 2, 1)
    )
    with pytest.raises(MissingInputError, match=r"atlas-Toy_dseg\.tsv"):
        read_atlas([path], space, [])
    (tmp_path / "tpl-MNI_atlas-Toy_dseg.tsv").write_text("index\tname\n7\tV1\n9\tV2\n")  # less specific: applies
    atlas = read_atlas([path], space, [])
    assert atlas is not None
    assert {name: np.flatnonzero(region).tolist() for name, region in atlas.regions.items()} == {
        "V1": [0, 2],
        "V2": [1],
    }


class TestOtherGrids:
    """Volumes of the same space on another grid are resampled; nothing else is."""

    @pytest.fixture
    def keys(self, rng: np.random.Generator) -> np.ndarray:
        return rng.integers(0, 4, (6, 7, 5))

    @staticmethod
    def write(folder: Path, keys: np.ndarray, affine: np.ndarray, name: str = "tpl-MNI152NLin2009cAsym_res-1") -> Path:
        path = folder / f"{name}_atlas-Toy_dseg.nii.gz"
        nib.Nifti1Image(keys.astype(np.int16), affine).to_filename(path)
        (folder / f"{name}_atlas-Toy_dseg.tsv").write_text("index\tname\n1\tV1\n2\tV2\n3\tV3\n")
        return path

    @staticmethod
    def make(affine: np.ndarray, shape: tuple[int, int, int], name: str = "MNI152NLin2009cAsym", **more: str) -> Any:
        voxels = np.argwhere(np.ones(shape))
        part = BrainPart("CIFTI_STRUCTURE_OTHER", 0, len(voxels), voxels=voxels)
        return BrainSpace(name, "nifti", (part,), {"space": name, **more}, affine=affine, shape=shape)

    def test_nearest_neighbours_are_those_of_nilearn(
        self, tmp_path: Path, keys: np.ndarray, caplog: pytest.LogCaptureFixture
    ) -> None:
        turn = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.1, -0.2, 0.15), [0.3, -1.2, 2.1])
        affine, shape = turn @ np.diag([1.3, 1.7, 1.9, 1]), (9, 8, 7)
        flipped = nib.affines.from_matvec(np.diag([-2.0, 2, 2.2]), [10, -2, -2])
        path = self.write(tmp_path, np.pad(keys, 1), flipped)  # nilearn leaves out the outer half of the border
        atlas = read_atlas([path], self.make(affine, shape), [])
        target = nib.Nifti1Image(np.zeros(shape, np.int16), affine)
        theirs = resample_to_img(path, target, interpolation="nearest", force_resample=True, copy_header=True)
        assert atlas is not None
        counts = []
        for key, name in ((1, "V1"), (2, "V2"), (3, "V3")):
            np.testing.assert_array_equal(atlas.regions[name], theirs.get_fdata().ravel() == key)
            counts.append(atlas.regions[name].sum())
        assert min(counts) > 20
        assert caplog.text.count("each voxel gets the label nearest to it") == 1
        assert "8x9x7" in caplog.text

    def test_half_the_resolution(self, tmp_path: Path, keys: np.ndarray) -> None:
        """Centres of the data halfway between voxels of the atlas go to the upper one, all of them."""
        space = self.make(nib.affines.from_matvec(2 * np.eye(3), [0.5] * 3), (2, 2, 2))
        atlas = read_atlas([self.write(tmp_path, keys, np.eye(4))], space, [])
        assert atlas is not None
        for key, name in ((1, "V1"), (2, "V2"), (3, "V3")):
            np.testing.assert_array_equal(atlas.regions[name], keys[1:5:2, 1:5:2, 1:5:2].ravel() == key)

    def test_the_same_grid_is_left_alone(
        self, tmp_path: Path, keys: np.ndarray, caplog: pytest.LogCaptureFixture
    ) -> None:
        affine = np.diag([3.0, 3, 3, 1])
        exact = self.write(tmp_path, keys, affine, "tpl-MNI152NLin2009cAsym_res-3")
        other = self.write(tmp_path, keys, np.eye(4))
        atlas = read_atlas([other, exact], self.make(affine, (6, 7, 5)), ["V2"])  # of two the one that fits exactly
        assert atlas is not None
        np.testing.assert_array_equal(atlas.regions["V2"], keys.ravel() == 2)
        assert not caplog.text

    def test_outside_the_atlas_there_is_no_region(self, tmp_path: Path) -> None:
        path = self.write(tmp_path, np.ones((2, 2, 2)), np.eye(4))
        atlas = read_atlas([path], self.make(np.eye(4), (4, 2, 3)), [])
        assert atlas is not None
        expected = np.zeros((4, 2, 3), bool)
        expected[:2, :, :2] = True
        np.testing.assert_array_equal(atlas.regions["V1"].reshape(4, 2, 3), expected)

    @pytest.mark.parametrize(
        ("name", "space", "cohort", "words"),
        [
            ("tpl-MNI152NLin6Asym", "MNI152NLin2009cAsym", "", "not in space MNI152NLin2009cAsym"),
            ("sub-01_space-T1w", "MNI152NLin2009cAsym", "", "not in space MNI152NLin2009cAsym"),
            ("tpl-MNIPediatricAsym_cohort-1", "MNIPediatricAsym", "2", "not in space MNIPediatricAsym"),
            ("a", "MNI152NLin2009cAsym", "", "names must tell the space of both"),
            ("tpl-T1w", "", "", "names must tell the space of both"),
        ],
    )
    @pytest.mark.parametrize("shift", [0, 1])
    def test_another_space_is_refused(
        self, tmp_path: Path, keys: np.ndarray, name: str, space: str, cohort: str, words: str, shift: int
    ) -> None:
        affine = np.diag([2.0, 2, 2, 1])
        affine[0, 3] = shift
        wanted = self.make(affine, (6, 7, 5), space or "boldref", **({"cohort": cohort} if cohort else {}))
        if not space:
            wanted = replace(wanted, entities={})
        path = self.write(tmp_path, keys, np.diag([2.0, 2, 2, 1]), name)
        if "names must" in words and not shift:  # nothing speaks against it
            assert read_atlas([path], wanted, []) is not None
            return
        with pytest.raises(BadDataError, match=rf"{words}.*volumes within one space only; give --atlas"):
            read_atlas([path], wanted, [])

    def test_two_that_would_be_resampled(self, tmp_path: Path, keys: np.ndarray) -> None:
        paths = [self.write(tmp_path, keys, np.eye(4), f"tpl-MNI_res-{i}") for i in range(2)]
        with pytest.raises(BadDataError, match=r"two atlases are in space MNI: .*res-0.* and .*res-1.*name one"):
            read_atlas(paths, self.make(np.diag([2.0, 2, 2, 1]), (3, 3, 3), "MNI"), [])


def test_voxels_of_grayordinates_on_another_grid(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """170k has voxels of 1.6 mm, 91k of 2 mm; here the cortex is the same."""
    models = make_models([0], [1], volume=True)
    fine = axes.BrainModelAxis.from_mask(np.ones((4, 1, 1), bool), "thalamus_left", affine=np.diag([1.0, 2, 2, 1]))
    data = make_models([0], [1]) + fine
    path = write_dlabel(tmp_path / "tpl-fsLR_dseg.dlabel.nii", [0, 3, 3, 1], models)
    assert regions(path, data) == {"V1": [1, 2], "L_V8_ROI": [3, 4]}
    assert "each voxel gets the label nearest to it" in caplog.text
    caplog.clear()
    unnamed = write_dlabel(tmp_path / "parcels.dlabel.nii", [0, 3, 3, 1], models)
    assert regions(unnamed, data) == {"V1": [1]}
    assert "voxels have no label" in caplog.text


@pytest.mark.parametrize(
    ("name", "space", "fits"),
    [
        ("tpl-fsaverage_hemi-{}_den-10k", "fsaverage5", True),
        ("sub-01_hemi-{}_space-fsaverage5", "fsaverage", True),
        ("toy_hemi-{}", "fsaverage5", True),  # says nothing
        ("tpl-onavg_hemi-{}_den-10k", "fsaverage5", False),  # as many vertices, elsewhere
        ("tpl-fsLR_hemi-{}_den-164k", "fsaverage", False),
    ],
)
def test_surfaces_of_another_name(tmp_path: Path, name: str, space: str, fits: bool) -> None:
    for path, side in zip(write_labels(tmp_path), "LR", strict=True):
        path.rename(tmp_path / f"{name.format(side)}_dseg.label.gii")
    parts = (
        BrainPart(LEFT, 0, 3, vertices=np.arange(3), n_vertices=3),
        BrainPart(RIGHT, 3, 6, vertices=np.arange(3), n_vertices=3),
    )
    left = tmp_path / f"{name.format('L')}_dseg.label.gii"
    if fits:
        assert read_atlas([left], BrainSpace(space, "gifti", parts), ["V1"]) is not None
    else:
        with pytest.raises(BadDataError, match=rf"by its name it is not in space {space}"):
            read_atlas([left], BrainSpace(space, "gifti", parts), ["V1"])


def write_surface(path: Path, n: int) -> None:
    points = nib.gifti.GiftiDataArray(np.arange(3 * n, dtype=np.float32).reshape(n, 3), intent="NIFTI_INTENT_POINTSET")
    faces = nib.gifti.GiftiDataArray(np.array([[0, 1, 2]], np.int32), intent="NIFTI_INTENT_TRIANGLE")
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.gifti.GiftiImage(darrays=[points, faces]).to_filename(path)


def make_surface_unit(folder: Path, n: int, space: str) -> Unit:
    paths = []
    for hemi in "LR":
        paths.append(folder / f"sub-01_hemi-{hemi}_space-{space}_bold.func.gii")
        arrays = [nib.gifti.GiftiDataArray(np.zeros(n, np.float32)) for _ in range(2)]
        nib.gifti.GiftiImage(darrays=arrays).to_filename(paths[-1])
    run = Run({"sub": "01"}, tuple(paths), Path(), None, None, 1.0, 0.0, 2)
    return Unit("01", "x", space, {}, (run,))


def test_own_surfaces_come_first_if_they_fit(tmp_path: Path) -> None:
    unit = make_surface_unit(tmp_path, 5, "fsnative")
    assert find_meshes(unit, [tmp_path]) == {}
    for hemi in "LR":
        write_surface(tmp_path / f"sub-01/anat/sub-01_hemi-{hemi}_inflated.surf.gii", 6)  # of another size
        write_surface(tmp_path / f"sub-01/anat/sub-01_hemi-{hemi}_pial.surf.gii", 5)
        sulc = nib.gifti.GiftiDataArray(np.arange(5, dtype=np.float32), intent="NIFTI_INTENT_SHAPE")
        nib.gifti.GiftiImage(darrays=[sulc]).to_filename(tmp_path / f"sub-01/anat/sub-01_hemi-{hemi}_sulc.shape.gii")
    meshes = find_meshes(unit, [tmp_path])
    assert meshes["L"].name == "pial surface of sub-01"
    assert meshes["R"].coordinates.shape == (5, 3)
    np.testing.assert_array_equal(meshes["R"].background, np.arange(5))


def test_packaged_fsaverage5(tmp_path: Path) -> None:
    meshes = find_meshes(make_surface_unit(tmp_path, 10242, "fsaverage5"), [])
    for mesh in meshes.values():
        assert mesh.coordinates.shape == (10242, 3)
        assert mesh.faces.shape == (20480, 3)
        assert mesh.background is not None
    assert meshes["L"].coordinates[:, 0].mean() < meshes["R"].coordinates[:, 0].mean()
