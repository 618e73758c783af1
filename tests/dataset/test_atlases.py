from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nibabel.cifti2 import cifti2_axes as axes

from dnnbrain_app.dataset.atlases import PRESETS, read_atlas
from dnnbrain_app.dataset.images import read_parts
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
        BadDataError, match=r"CORTEX_LEFT 2 of 9 vertices.*CORTEX_LEFT of 8 vertices.*Nothing is resampled"
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
    moved = AFFINE.copy()
    moved[0, 3] = 1
    other = BrainSpace("MNI", "nifti", space.parts, {}, affine=moved, shape=(3, 2, 1))
    with pytest.raises(
        BadDataError, match=r"3x2x1 grid of 2x2x2 mm at \(1, 0, 0\).*3x2x1 grid of 2x2x2 mm at \(0, 0, 0\)"
    ):
        read_atlas([path], other, [])


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
