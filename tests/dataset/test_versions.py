"""What fMRIPrep has called its files and columns, from 1.0 to 25."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nibabel.cifti2 import BrainModelAxis

from dnnbrain_app.dataset.confounds import read_confounds
from dnnbrain_app.dataset.images import read_bold, read_unit_space
from dnnbrain_app.dataset.index import find_units
from dnnbrain_app.dataset.options import DatasetOptions
from dnnbrain_app.records import Run, Unit
from dnnbrain_app.responses.nuisance import build_nuisance
from dnnbrain_app.responses.options import ResponseOptions

N_VOLUMES = 20
SHAPE = (4, 3, 2)
MODERN = {
    "CSF": "csf",
    "WhiteMatter": "white_matter",
    "GlobalSignal": "global_signal",
    "stdDVARS": "std_dvars",
    "non-stdDVARS": "dvars",
    "vx-wisestdDVARS": "vx-wisestdDVARS",
    "FramewiseDisplacement": "framewise_displacement",
    "tCompCor00": "t_comp_cor_00",
    "tCompCor01": "t_comp_cor_01",
    "aCompCor00": "a_comp_cor_00",
    "aCompCor01": "a_comp_cor_01",
    "aCompCor02": "a_comp_cor_02",
    "Cosine00": "cosine00",
    "Cosine01": "cosine01",
    "NonSteadyStateOutlier00": "non_steady_state_outlier00",
    "AROMAAggrComp01": "aroma_motion_01",
    "X": "trans_x",
    "Y": "trans_y",
    "Z": "trans_z",
    "RotX": "rot_x",
    "RotY": "rot_y",
    "RotZ": "rot_z",
}
OLD_COLUMNS, NEW_COLUMNS = list(MODERN), list(MODERN.values())


@pytest.fixture
def write_tree(tmp_path: Path, write_raw: Any, write_image: Any, rng: np.random.Generator) -> Callable[..., Path]:
    """Write raw data, and files of these names with what belongs into them; returns the raw dataset."""

    def write_image_of(path: Path) -> None:
        if path.suffix == ".gii":
            write_image["gifti"](path, rng.normal(size=(N_VOLUMES, 12)))
        elif path.name.endswith(".dtseries.nii"):
            models = BrainModelAxis.from_surface(range(9), 12, "CortexLeft")
            write_image["cifti"](path, rng.normal(size=(N_VOLUMES, 9)), models)
        elif "mask" in path.name:
            write_image["nifti"](path, np.ones(SHAPE))
        else:
            write_image["nifti"](path, rng.normal(100, 1, (*SHAPE, N_VOLUMES)))

    def write_file(path: Path, columns: list[str]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".json":
            path.write_text(json.dumps({"RepetitionTime": 2.0, "StartTime": 1.0}))
        elif path.suffix == ".tsv":
            values = rng.normal(size=(N_VOLUMES, len(columns))).round(4).astype(str)
            path.write_text("\n".join("\t".join(row) for row in [columns, *values]))
        else:
            write_image_of(path)

    def write(raw: str, names: list[str], columns: list[str] = NEW_COLUMNS) -> Path:
        write_raw(tmp_path, raw)
        folder = tmp_path.joinpath("derivatives", "fmriprep", *[p for p in raw.split("_") if p[:4] in ("sub-", "ses-")])
        for name in names:
            write_file(folder / "func" / name, columns)
        return tmp_path

    return write


def find(bids_dir: Path, space: str) -> tuple[Unit, Run]:
    """Find the unit of a space, whose only run can be read whole."""
    (unit,) = find_units(bids_dir, DatasetOptions(spaces=(space,)))
    (run,) = unit.runs
    assert np.isfinite(read_bold(run, read_unit_space(unit))).all()
    confounds = read_confounds(run)
    assert {"trans_x", "rot_z", "framewise_displacement", "a_comp_cor_00"} <= set(confounds)
    return unit, run


RUN = "sub-CSI1_ses-01_task-5000scenes_run-01"  # BOLD5000


def test_version_1_0(write_tree: Any) -> None:
    names = [
        f"{RUN}_bold_confounds.tsv",
        f"{RUN}_bold_space-T1w_preproc.nii.gz",
        f"{RUN}_bold_space-T1w_brainmask.nii.gz",
        f"{RUN}_bold_space-MNI152NLin2009cAsym_preproc.nii.gz",
        f"{RUN}_bold_space-MNI152NLin2009cAsym_brainmask.nii.gz",
        f"{RUN}_bold_space-MNI152NLin2009cAsym_variant-smoothAROMAnonaggr_preproc.nii.gz",
        f"{RUN}_bold_space-fsaverage5.L.func.gii",
        f"{RUN}_bold_space-fsaverage5.R.func.gii",
        f"{RUN}_bold_space-fsnative.L.func.gii",
        f"{RUN}_bold_space-fsnative.R.func.gii",
    ]
    root = write_tree(RUN, names, OLD_COLUMNS)
    for space, files, mask in (("T1w", [names[1]], names[2]), ("MNI152NLin2009cAsym", [names[3]], names[4])):
        unit, run = find(root, space)
        assert unit.label == f"sub-CSI1_ses-01_task-5000scenes_space-{space}"
        assert [path.name for path in run.bold] == files
        assert run.mask is not None
        assert run.mask.name == mask
    for space, files in (("fsaverage5", names[6:8]), ("fsnative", names[8:])):
        unit, run = find(root, space)
        assert unit.label == f"sub-CSI1_ses-01_task-5000scenes_space-{space}"
        assert [path.name for path in run.bold] == files  # left before right
    assert run.confounds is not None
    assert run.confounds.name == names[0]


def test_version_1_5(write_tree: Any) -> None:
    stem = "sub-01_task-x_run-01"
    names = [f"{stem}_bold.dtseries.nii", f"{stem}_bold.dtseries.json", f"{stem}_desc-confounds_regressors.tsv"]
    more = [f"{stem}_space-T1w_desc-preproc_bold.nii.gz", f"{stem}_space-T1w_desc-brain_mask.nii.gz"]
    root = write_tree(stem, [*names, *more, f"{stem}_space-T1w_boldref.nii.gz"])
    unit, run = find(root, "fsLR")
    assert (unit.space, unit.label) == ("fsLR", "sub-01_task-x")  # names say no space, and so do those of outputs
    assert run.bold[0].name == names[0]
    assert run.start_time == 1.0  # of its own sidecar
    assert run.confounds is not None
    assert run.confounds.name == names[2]
    unit, run = find(root, "T1w")
    assert run.bold[0].name == more[0]
    assert run.start_time == 0.0  # the sidecar of the other series does not apply


def test_version_20_2(write_tree: Any) -> None:
    stem = "sub-01_task-x_run-1"
    names = [
        f"{stem}_desc-confounds_timeseries.tsv",
        *(f"{stem}_space-fsaverage5_hemi-{hemi}_bold.func.gii" for hemi in "LR"),
        *(f"{stem}_space-fsLR_den-91k_bold.dtseries.{end}" for end in ("nii", "json")),
        f"{stem}_space-fsLR_den-91k_bold.json",
        f"{stem}_space-MNI152NLin6Asym_res-2_desc-preproc_bold.nii.gz",
        f"{stem}_space-MNI152NLin6Asym_res-2_desc-brain_mask.nii.gz",
    ]
    root = write_tree("sub-01_task-x_run-01", names)
    for space in ("fsaverage5", "fsLR:den-91k", "MNI152NLin6Asym:res-2"):
        unit, run = find(root, space)
        assert run.label == "sub-01_task-x_run-01"  # as raw data spell it
        assert unit.label == f"sub-01_task-x_space-{space.replace(':', '_')}"
        assert run.confounds is not None
        assert (run.mask is None) == (not space.startswith("MNI"))
        assert run.start_time == (1.0 if space.startswith("fsLR") else 0.0)


@pytest.mark.parametrize("unknown", ["", "_hash-1a2b3c"])
def test_version_25(write_tree: Any, unknown: str) -> None:
    stem = "sub-01_task-x_run-01"
    names = [
        f"{stem}{unknown}_desc-confounds_timeseries.tsv",
        f"{stem}{unknown}_desc-preproc_bold.nii.gz",
        f"{stem}{unknown}_desc-brain_mask.nii.gz",
        f"{stem}{unknown}_desc-hmc_boldref.nii.gz",
        *(f"{stem}_hemi-{h}_space-onavg_den-10k{unknown}_bold.{end}" for h in "LR" for end in ("func.gii", "json")),
        f"{stem}_space-fsLR_den-91k{unknown}_bold.dtseries.nii",
        f"{stem}_space-fsLR_den-91k{unknown}_bold.json",
        f"{stem}_space-MNI152NLin2009cAsym{unknown}_desc-preproc_bold.nii.gz",
        f"{stem}_space-MNI152NLin2009cAsym{unknown}_desc-brain_mask.nii.gz",
    ]
    root = write_tree(stem, names)
    for space, n_files in (("onavg:den-10k", 2), ("fsLR", 1), ("MNI152NLin2009cAsym", 1), ("boldref", 1)):
        unit, run = find(root, space)
        assert unit.space == space.partition(":")[0]
        assert len(run.bold) == n_files
        assert (run.mask is not None) == (space in ("MNI152NLin2009cAsym", "boldref"))
        assert run.start_time == (1.0 if ":" in space or space == "fsLR" else 0.0)


def test_old_columns_get_their_modern_names(tmp_path: Path) -> None:
    values = np.arange(N_VOLUMES * len(OLD_COLUMNS)).reshape(N_VOLUMES, -1).astype(str)
    values[0, OLD_COLUMNS.index("FramewiseDisplacement")] = "n/a"
    path = tmp_path / "sub-01_task-x_bold_confounds.tsv"
    path.write_text("\n".join("\t".join(row) for row in [OLD_COLUMNS, *values]))
    run = Run({"sub": "01"}, (tmp_path / "bold.nii",), tmp_path, path, None, 2.0, 0.0, N_VOLUMES)
    confounds = read_confounds(run)
    assert list(confounds) == NEW_COLUMNS
    for column, name in enumerate(NEW_COLUMNS):
        np.testing.assert_array_equal(confounds[name][1:], values[1:, column].astype(float))
    assert np.isnan(confounds["framewise_displacement"][0])


def test_old_columns_enter_the_model(tmp_path: Path, rng: np.random.Generator) -> None:
    values = rng.normal(size=(N_VOLUMES, len(OLD_COLUMNS)))
    values[:, OLD_COLUMNS.index("NonSteadyStateOutlier00")] = np.eye(N_VOLUMES)[0]
    values[:, OLD_COLUMNS.index("FramewiseDisplacement")] = 0.1 + np.eye(N_VOLUMES)[7]
    path = tmp_path / "sub-01_task-x_bold_confounds.tsv"
    path.write_text("\n".join("\t".join(map(str, row)) for row in [OLD_COLUMNS, *values]))
    run = Run({"sub": "01"}, (tmp_path / "bold.nii",), tmp_path, path, None, 2.0, 0.0, N_VOLUMES)
    _, names = build_nuisance(read_confounds(run), run.frame_times, ResponseOptions(compcor=2, fd_threshold=0.5))
    assert names == (
        *("constant", "cosine00", "cosine01", "trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z"),
        *("a_comp_cor_00", "a_comp_cor_01", "non_steady_state_outlier00", "scrubbed0007"),
    )
