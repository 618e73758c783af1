"""Small datasets, made as raw BIDS and fMRIPrep name them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nibabel.cifti2 import cifti2_axes as axes

SHAPE = (4, 3, 2)
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
N_VOLUMES = 6
N_VERTICES = 12
EVENTS = "onset\tduration\tstim_file\n1.5\t1\ta.png\n4\t1\tb.png\n"


def write(path: Path, content: str | dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def write_nifti(path: Path, data: np.ndarray, step: float = 2.0, affine: np.ndarray = AFFINE) -> Path:
    image = nib.Nifti1Image(data.astype(np.float32), affine)
    image.header.set_xyzt_units("mm", "sec")
    if data.ndim == 4:
        image.header["pixdim"][4] = step
    path.parent.mkdir(parents=True, exist_ok=True)
    image.to_filename(path)
    return path


def make_models(vertices: np.ndarray | None = None, *, volume: bool = True, n_vertices: int = N_VERTICES) -> Any:
    kept = np.arange(1, n_vertices - 1) if vertices is None else vertices
    models = axes.BrainModelAxis.from_surface(kept, n_vertices, "CortexLeft")
    models += axes.BrainModelAxis.from_surface(kept[:-1], n_vertices, "CortexRight")
    if volume:
        mask = np.zeros(SHAPE, dtype=bool)
        mask[1:3, 1, :] = True
        models += axes.BrainModelAxis.from_mask(mask, "thalamus_left", affine=AFFINE)
    return models


def write_cifti(path: Path, data: np.ndarray, models: Any, step: float = 2.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    series = axes.SeriesAxis(0, step, len(data), unit="SECOND")
    nib.Cifti2Image(data.astype(np.float32), (series, models)).to_filename(path)
    return path


def write_gifti(path: Path, data: np.ndarray, step: float = 2.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = [
        nib.gifti.GiftiDataArray(
            row.astype(np.float32), intent="NIFTI_INTENT_TIME_SERIES", meta={"TimeStep": f"{1000 * step:f}"}
        )
        for row in data
    ]
    nib.gifti.GiftiImage(darrays=arrays).to_filename(path)
    return path


@pytest.fixture
def write_image() -> dict[str, Callable[..., Path]]:
    """Write an image of each family: ``write_image["gifti"](path, data)``."""
    return {"cifti": write_cifti, "gifti": write_gifti, "nifti": write_nifti}


@pytest.fixture
def write_run(rng: np.random.Generator) -> Callable[..., None]:
    """Write one preprocessed run: ``write_run(fmriprep, "sub-01_task-x_run-1", kind, **names)``."""

    def _write(
        derivative: Path,
        stem: str,
        kind: str = "nifti",
        *,
        space: str = "space-MNI152NLin2009cAsym",
        step: float = 2.0,
        sidecar: dict | None = None,
    ) -> None:
        parts = stem.split("_")
        folder = derivative.joinpath(*[part for part in parts if part.startswith(("sub-", "ses-"))], "func")
        sidecar = {"RepetitionTime": 2.0, "StartTime": 1.0} if sidecar is None else sidecar
        write(derivative / "dataset_description.json", {"Name": "fMRIPrep", "DatasetType": "derivative"})
        join = "_".join(filter(None, [stem, space]))
        if kind == "nifti":
            write_nifti(folder / f"{join}_desc-preproc_bold.nii.gz", rng.normal(100, 1, (*SHAPE, N_VOLUMES)), step)
            write(folder / f"{join}_desc-preproc_bold.json", sidecar)
            mask = np.zeros(SHAPE)
            mask[1:3, 1:] = 1
            write_nifti(folder / f"{join}_desc-brain_mask.nii.gz", mask)
        elif kind == "cifti":
            models = make_models()
            write_cifti(
                folder / f"{join}_bold.dtseries.nii", rng.normal(100, 1, (N_VOLUMES, len(models))), models, step
            )
            write(folder / f"{join}_bold.json", sidecar)
        else:
            for hemi in "LR":
                write_gifti(
                    folder / f"{stem}_hemi-{hemi}_{space}_bold.func.gii",
                    rng.normal(100, 1, (N_VOLUMES, N_VERTICES)),
                    step,
                )
                write(folder / f"{stem}_hemi-{hemi}_{space}_bold.json", sidecar)
        confounds = "\n".join(["trans_x\tfd", "0.1\tn/a", *["0.2\t0.5"] * (N_VOLUMES - 1)])
        write(folder / f"{stem}_desc-confounds_timeseries.tsv", confounds)

    return _write


@pytest.fixture
def write_raw() -> Callable[..., None]:
    """Write one raw run: ``write_raw(bids_dir, "sub-01_task-x_run-01")``."""

    def _write(bids_dir: Path, stem: str, events: str | None = EVENTS) -> None:
        parts = stem.split("_")
        folder = bids_dir.joinpath(*[part for part in parts if part.startswith(("sub-", "ses-"))], "func")
        write(bids_dir / "dataset_description.json", {"Name": "test", "BIDSVersion": "1.10.0", "DatasetType": "raw"})
        write(folder / f"{stem}_bold.nii.gz", "")
        if events is not None:
            write(folder / f"{stem}_events.tsv", events)

    return _write


@pytest.fixture
def bids_dir(tmp_path: Path, write_raw: Any, write_run: Any) -> Path:
    """Two participants, two runs, in volumes; fMRIPrep 20.2 wrote run-1 for run-01."""
    root = tmp_path / "study"
    for sub in ("01", "02"):
        for run in (1, 2):
            write_raw(root, f"sub-{sub}_task-x_run-0{run}")
            write_run(root / "derivatives" / "fmriprep", f"sub-{sub}_task-x_run-{run}")
    return root
