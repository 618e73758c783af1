"""Simulate a BIDS dataset with fMRIPrep-shaped derivatives in which the truth is known.

The images are real; every time series is simulated: use it to try and to test the app, never to report. In each
region the response to the stimuli follows a given kernel (for instance a layer's Gram), elsewhere there is noise::

    BOLD = baseline * (1 + (HRF * (mean + snr * pattern) + AR(1) noise + drift + motion) / 100)

with ``pattern = V sqrt(w) G``, where ``V w V' = K`` is the region's centred kernel and G is Gaussian, so that
``E[pattern pattern'] = K`` up to scale. Spaces: fsaverage5 (whole cortex), and miniatures of fsLR and MNI for tests.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from nibabel.cifti2 import BrainModelAxis, Cifti2Image, LabelAxis, SeriesAxis
from nilearn import datasets
from nilearn.glm.first_level import compute_regressor
from PIL import Image
from scipy import signal

Array = np.ndarray
COLOURS = ((0.27, 0.0, 0.33, 1.0), (0.13, 0.57, 0.55, 1.0), (0.99, 0.91, 0.14, 1.0), (0.9, 0.3, 0.2, 1.0))
# centre (|x|, y, z) and radii in mm of the patches on fsaverage5's white surface, from the back of the brain forward
PATCHES = (((10, -88, 0), (14, 13, 14)), ((30, -76, -10), (12, 10, 10)), ((36, -54, -17), (13, 16, 10)))


@dataclass(frozen=True)
class Design:
    """How the simulated experiment is run."""

    participants: int = 1
    runs: int = 4
    tr: float = 2.0
    soa: float = 4.0
    duration: float = 1.0
    start_time: float = 0.95
    snr: float = 1.0
    ar: float = 0.3
    sessions: int = 0
    seed: int = 2020
    task: str = "objects"


def write_dataset(
    out: Path,
    images: Mapping[str, Image.Image],
    kernels: Mapping[str, Array],
    spaces: Sequence[str] = ("fsaverage5",),
    design: Design | None = None,
    attributes: Mapping[str, Sequence[Any]] | None = None,
) -> dict[str, dict[str, Array]]:
    """Write the dataset.

    Parameters
    ----------
    out : Path
        New folder.
    images : mapping of str to image
        Stimuli by file name (may hold a folder), in the order of the kernels' rows.
    kernels : mapping of str to array of shape (n_stimuli, n_stimuli)
        What each region represents; up to three regions.
    spaces : sequence of str
        Of ``fsaverage5``, ``fsLR``, ``MNI152NLin2009cAsym``.
    design : Design, optional
        The experiment.
    attributes : mapping of str to sequence of length n_stimuli, optional
        Further columns of ``stimuli.tsv``.

    Returns
    -------
    dict
        The truth: by space and region, the columns that carry the signal (vertex left then right; grayordinate; voxel).
    """
    design = design or Design()
    names = list(images)
    write_root(out, images, design, attributes or {})
    truth = {}
    for space in spaces:
        n, regions = write_atlas(out / "derivatives" / "atlas", space, list(kernels))
        truth[space] = regions
        for sub in range(1, design.participants + 1):
            fixed = np.random.default_rng([design.seed, sub, len(space)])
            patterns = {r: draw_pattern(kernels[r], len(columns), fixed) for r, columns in regions.items()}
            baseline = 10000 * fixed.lognormal(0, 0.05, n)
            for ses, run in np.ndindex(max(1, design.sessions), design.runs):
                rng = np.random.default_rng([design.seed, sub, ses, run, len(space)])
                order = np.random.default_rng([design.seed, sub, ses, run]).permutation(len(names))
                events = make_events(names, order, design)
                n_volumes = int(np.ceil((events.onset.iloc[-1] + 18) / design.tr))
                confounds = make_confounds(n_volumes, np.random.default_rng([design.seed, 7, sub, ses, run]))
                bold = make_bold(order, events.onset.to_numpy(), confounds, patterns, regions, baseline, design, rng)
                write_run(out, sub, ses, run, space, design, events, confounds, bold)
    return truth


def draw_pattern(kernel: Array, n_voxels: int, rng: np.random.Generator) -> Array:
    """Draw (n_stimuli, n_voxels) responses whose expected inner products are the centred kernel, at unit variance."""
    centre = np.eye(len(kernel)) - 1 / len(kernel)
    w, v = np.linalg.eigh(centre @ kernel @ centre)
    pattern = (v * np.sqrt(w.clip(0))) @ rng.standard_normal((len(kernel), n_voxels))
    return pattern / pattern.std(0)


def make_events(names: list[str], order: Array, design: Design) -> pd.DataFrame:
    """Every stimulus once, in random order."""
    onset = 6 + design.soa * np.arange(len(order))
    return pd.DataFrame(
        {
            "onset": onset,
            "duration": design.duration,
            "trial_type": "image",
            "stim_file": [names[i] for i in order],
        }
    )


def make_confounds(n_volumes: int, rng: np.random.Generator) -> pd.DataFrame:
    """Six motion parameters, cosine drifts and one non-steady-state volume, under fMRIPrep's names."""
    t = np.arange(n_volumes)
    motion = signal.lfilter([0.02], [1, -0.97], rng.standard_normal((6, n_volumes)), axis=1)
    columns = {
        f"{kind}_{axis}": motion[3 * i + j] for i, kind in enumerate(("trans", "rot")) for j, axis in enumerate("xyz")
    }
    columns["rot_x"], columns["rot_y"], columns["rot_z"] = (columns[f"rot_{a}"] / 50 for a in "xyz")
    moved = np.abs(np.diff(motion, axis=1, prepend=np.nan)).sum(0)
    cosines = {
        f"cosine{k:02d}": np.cos(np.pi / n_volumes * (k + 1) * (t + 0.5)) for k in range(max(1, n_volumes // 64))
    }
    spike = {"non_steady_state_outlier00": (t == 0).astype(int)}
    return pd.DataFrame({"framewise_displacement": moved, **columns, **cosines, **spike})


def make_bold(
    order: Array,
    onset: Array,
    confounds: pd.DataFrame,
    patterns: Mapping[str, Array],
    regions: Mapping[str, Array],
    baseline: Array,
    design: Design,
    rng: np.random.Generator,
) -> Array:
    """Simulate one run, (n_volumes, n) float32."""
    n_volumes, n = len(confounds), len(baseline)
    times = design.start_time + design.tr * np.arange(n_volumes)
    hrf = np.column_stack(
        [compute_regressor(np.array([[o], [design.duration], [1.0]]), "glover", times)[0][:, 0] for o in onset]
    )
    hrf /= np.abs(hrf).max()
    noise = signal.lfilter(
        [np.sqrt(1 - design.ar**2)], [1, -design.ar], rng.standard_normal((n_volumes + 10, n)), axis=0
    )
    percent = noise[10:]
    nuisance = confounds.filter(regex="trans|rot|cosine").to_numpy()
    percent += (nuisance / nuisance.std(0)) @ (0.2 * rng.standard_normal((nuisance.shape[1], n)))
    for region, columns in regions.items():
        percent[:, columns] += hrf @ (1 + design.snr * patterns[region][order])
    bold = baseline * (1 + percent / 100)
    bold[0] *= 1.1  # the first volume is not in steady state
    return bold.astype(np.float32)


# Files ---------------------------------------------------------------------------------------------------------------


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON, making the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a tab-separated table with n/a for missing, making the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, sep="\t", index=False, na_rep="n/a", float_format="%.6g", lineterminator="\n")


def write_root(
    out: Path, images: Mapping[str, Image.Image], design: Design, attributes: Mapping[str, Sequence[Any]]
) -> None:
    """Write everything that belongs to no participant: descriptions, stimuli, the task's JSON."""
    told = "Simulated time series over real images: for trying and testing software, not for science."
    raw = {
        "Name": "dnnbrain demonstration",
        "BIDSVersion": "1.10.0",
        "DatasetType": "raw",
        "Authors": ["demo/simulate.py"],
    }
    maker = [{"Name": "fMRIPrep", "Version": "25.2.0"}, {"Name": "demo/simulate.py", "Description": told}]
    derived = {**raw, "DatasetType": "derivative", "DatasetLinks": {"raw": "../.."}}
    write_json(out / "dataset_description.json", raw)
    write_json(out / "derivatives/fmriprep/dataset_description.json", {**derived, "Name": told, "GeneratedBy": maker})
    write_json(
        out / "derivatives/atlas/dataset_description.json",
        {**derived, "Name": "Regions with signal", "GeneratedBy": [{"Name": "atlas"}]},
    )
    (out / "README").write_text(told + "\n")
    write_json(out / f"task-{design.task}_bold.json", {"TaskName": design.task, "RepetitionTime": design.tr})
    write_json(
        out / f"task-{design.task}_events.json",
        {"trial_type": {"Description": "image"}, "stim_file": {"Description": "Image shown, relative to stimuli/"}},
    )
    people = [f"sub-{s:02d}" for s in range(1, design.participants + 1)]
    write_table(out / "participants.tsv", pd.DataFrame({"participant_id": people}))
    write_table(out / "stimuli/stimuli.tsv", pd.DataFrame({"stim_file": list(images), **attributes}))
    for name, image in images.items():
        path = out / "stimuli" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)


def write_run(
    out: Path,
    sub: int,
    ses: int,
    run: int,
    space: str,
    design: Design,
    events: pd.DataFrame,
    confounds: pd.DataFrame,
    bold: Array,
) -> None:
    """Write one run: raw events and placeholder image, and the derivatives in one space."""
    folder = Path(f"sub-{sub:02d}", *([f"ses-{ses + 1:02d}"] if design.sessions else []), "func")
    prefix = "_".join([*folder.parts[:-1], f"task-{design.task}", f"run-{run + 1:02d}"])
    raw, prep = out / folder / prefix, out / "derivatives/fmriprep" / folder / prefix
    write_table(raw.with_name(f"{prefix}_events.tsv"), events)
    placeholder = nib.Nifti1Image(np.zeros((2, 2, 2, len(bold)), np.int16), np.diag([3.0, 3, 3, 1]))
    placeholder.header.set_xyzt_units("mm", "sec")
    placeholder.header["pixdim"][4] = design.tr
    nib.save(placeholder, raw.with_name(f"{prefix}_bold.nii.gz"))
    write_table(prep.with_name(f"{prefix}_desc-confounds_timeseries.tsv"), confounds)
    keys = {
        "RepetitionTime": design.tr,
        "StartTime": design.start_time,
        "TaskName": design.task,
        "SkullStripped": False,
    }
    SPACES[space].write_bold(str(prep), bold, keys)


def write_atlas(folder: Path, space: str, regions: list[str]) -> tuple[int, dict[str, Array]]:
    """Write the atlas of a space; returns its number of columns and the columns of each region."""
    columns = SPACES[space].columns(regions)
    labels = np.zeros(SPACES[space].n, np.int32)
    for key, found in enumerate(columns.values(), 1):
        labels[found] = key
    SPACES[space].write_atlas(folder, labels, regions)
    return len(labels), columns


def _label_table(regions: list[str]) -> dict[int, tuple[str, tuple[float, ...]]]:
    return {0: ("???", (0.0, 0.0, 0.0, 0.0)), **{k: (r, COLOURS[k - 1]) for k, r in enumerate(regions, 1)}}


class Fsaverage5:
    """Both hemispheres of fsaverage5; columns are left, then right vertices."""

    n = 20484

    def columns(self, regions: list[str]) -> dict[str, Array]:
        mesh = datasets.load_fsaverage("fsaverage5")["white_matter"]
        xyz = np.vstack([mesh.parts[side].coordinates for side in ("left", "right")])
        folded = np.c_[np.abs(xyz[:, 0]), xyz[:, 1:]]
        distance = np.stack([(((folded - centre) / radii) ** 2).sum(1) for centre, radii in PATCHES[: len(regions)]])
        inside = np.where(distance.min(0) < 1, distance.argmin(0), -1)
        return {region: np.flatnonzero(inside == k) for k, region in enumerate(regions)}

    def _save(self, path: str, arrays: Array, hemi: str, intent: str, meta: dict[str, str], table: Any = None) -> None:
        about = {"AnatomicalStructurePrimary": {"L": "CortexLeft", "R": "CortexRight"}[hemi], **meta}
        parts = [nib.gifti.GiftiDataArray(x, intent=intent, datatype=x.dtype, meta=dict(meta)) for x in arrays]
        nib.save(nib.gifti.GiftiImage(meta=nib.gifti.GiftiMetaData(about), labeltable=table, darrays=parts), path)

    def write_bold(self, stem: str, bold: Array, keys: Mapping[str, Any]) -> None:
        for hemi, part in zip("LR", np.split(bold, 2, axis=1), strict=True):
            full, step = f"{stem}_hemi-{hemi}_space-fsaverage5_bold", {"TimeStep": f"{keys['RepetitionTime'] * 1000:g}"}
            self._save(f"{full}.func.gii", np.ascontiguousarray(part), hemi, "NIFTI_INTENT_TIME_SERIES", step)
            write_json(Path(f"{full}.json"), keys)

    def write_atlas(self, folder: Path, labels: Array, regions: list[str]) -> None:
        table = nib.gifti.GiftiLabelTable()
        for key, (name, rgba) in _label_table(regions).items():
            table.labels.append(nib.gifti.GiftiLabel(key, *rgba))
            table.labels[-1].label = name
        (folder / "tpl-fsaverage").mkdir(parents=True, exist_ok=True)
        for hemi, part in zip("LR", np.split(labels, 2), strict=True):
            path = f"{folder}/tpl-fsaverage/tpl-fsaverage_hemi-{hemi}_atlas-demo_den-10k_dseg.label.gii"
            self._save(path, part[None].astype(np.int32), hemi, "NIFTI_INTENT_LABEL", {"Name": "demo"}, table)


class MiniFsLR:
    """A miniature of fsLR-91k: 300 vertices of each hemisphere's 32k mesh, and 40 voxels of the left thalamus."""

    n = 640

    def axis(self) -> BrainModelAxis:
        left = BrainModelAxis.from_surface(np.arange(100, 400), 32492, "CIFTI_STRUCTURE_CORTEX_LEFT")
        right = BrainModelAxis.from_surface(np.arange(200, 500), 32492, "CIFTI_STRUCTURE_CORTEX_RIGHT")
        mask = np.zeros((91, 109, 91), bool)
        mask[40:44, 50:55, 40:42] = True
        affine = np.array([[-2.0, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])
        return left + right + BrainModelAxis.from_mask(mask, "CIFTI_STRUCTURE_THALAMUS_LEFT", affine)

    def columns(self, regions: list[str]) -> dict[str, Array]:
        return {r: np.r_[60 * k : 60 * k + 60, 300 + 60 * k : 360 + 60 * k] for k, r in enumerate(regions)}

    def _save(self, path: Path, data: Array, first: SeriesAxis | LabelAxis, intent: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Cifti2Image(np.ascontiguousarray(data, dtype=np.float32), (first, self.axis()))
        image.nifti_header.set_intent(f"NIFTI_INTENT_CONNECTIVITY_DENSE_{intent}")
        nib.save(image, path)

    def write_bold(self, stem: str, bold: Array, keys: Mapping[str, Any]) -> None:
        full = f"{stem}_space-fsLR_den-91k_bold"
        self._save(
            Path(f"{full}.dtseries.nii"), bold, SeriesAxis(0, keys["RepetitionTime"], len(bold), "SECOND"), "SERIES"
        )
        write_json(Path(f"{full}.json"), keys | {"Density": "a miniature for tests"})

    def write_atlas(self, folder: Path, labels: Array, regions: list[str]) -> None:
        path = folder / "tpl-fsLR/tpl-fsLR_atlas-demo_den-91k_dseg.dlabel.nii"
        self._save(path, labels[None], LabelAxis(["demo"], [_label_table(regions)]), "LABELS")


class MiniMNI:
    """A box of 12 x 10 x 8 voxels of 4 mm; columns are the voxels of the mask in C order."""

    shape = (12, 10, 8)
    affine = np.array([[4.0, 0, 0, -22], [0, 4, 0, -90], [0, 0, 4, -20], [0, 0, 0, 1]])

    def __init__(self) -> None:
        self.mask = np.zeros(self.shape, bool)
        self.mask[1:-1, 1:-1, 1:-1] = True
        self.n = int(self.mask.sum())

    def columns(self, regions: list[str]) -> dict[str, Array]:
        return {region: np.arange(90 * k, 90 * k + 90) for k, region in enumerate(regions)}

    def _save(self, path: str, columns: Array, tr: float = 0) -> None:
        data = np.zeros((*self.shape, *columns.shape[:-1]), columns.dtype)
        data[self.mask] = columns.T
        image = nib.Nifti1Image(data, self.affine)
        image.header.set_xyzt_units("mm", "sec")
        image.set_sform(self.affine, 4)
        image.set_qform(self.affine, 4)
        if tr:
            image.header["pixdim"][4] = tr
        nib.save(image, path)

    def write_bold(self, stem: str, bold: Array, keys: Mapping[str, Any]) -> None:
        full = f"{stem}_space-MNI152NLin2009cAsym_res-2"
        self._save(f"{full}_desc-preproc_bold.nii.gz", bold, keys["RepetitionTime"])
        self._save(f"{full}_desc-brain_mask.nii.gz", np.ones(self.n, np.uint8))
        write_json(Path(f"{full}_desc-preproc_bold.json"), keys | {"Resolution": "a miniature for tests"})

    def write_atlas(self, folder: Path, labels: Array, regions: list[str]) -> None:
        stem = folder / "tpl-MNI152NLin2009cAsym/tpl-MNI152NLin2009cAsym_atlas-demo_res-2_dseg"
        table = pd.DataFrame({"index": range(1, len(regions) + 1), "name": regions})
        write_table(stem.with_name(f"{stem.name}.tsv"), table)
        self._save(f"{stem}.nii.gz", labels.astype(np.uint8))


SPACES = {"fsaverage5": Fsaverage5(), "fsLR": MiniFsLR(), "MNI152NLin2009cAsym": MiniMNI()}
