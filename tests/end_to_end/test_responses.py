"""Every model of the responses, from the command line to maps."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

SPACE = "fsLR"


@dataclass(frozen=True)
class Run:
    """What one model wrote of the first participant."""

    data: Any
    output: Path
    log: str

    def read(self, stat: str, desc: str) -> np.ndarray:
        (path,) = self.output.glob(f"sub-01/func/*_stat-{stat}_desc-{desc}_statmap.dscalar.nii")
        return np.asarray(nib.load(path).dataobj)

    def has(self, stat: str, desc: str) -> bool:
        return any(self.output.glob(f"sub-01/func/*_stat-{stat}_desc-{desc}_statmap.dscalar.nii"))


@pytest.fixture(scope="module")
def run_model(
    dataset: Any, run_dnnbrain: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Run]:
    work = tmp_path_factory.mktemp("work")

    def run(model: str, *more: str) -> Run:
        output = tmp_path_factory.mktemp(model) / "out"
        options = [*dataset.options(SPACE), "--participant-label", "01", "--response-model", model, *more]
        outcome = run_dnnbrain(dataset.path, output, "participant", *options, "--work-dir", work)
        assert outcome.code == 0, outcome.err
        assert (output / "sub-01.html").exists()
        return Run(dataset, output, outcome.err)

    return run


@pytest.fixture(scope="module")
def lss(run_model: Callable[..., Run]) -> Run:
    return run_model("lss")


def test_reliability_is_high_where_something_is_planted(lss: Run) -> None:
    truth, noise = lss.data.truth[SPACE], np.ones(lss.read("r", "encoding").shape[1], bool)
    noise[np.concatenate(list(truth.values()))] = False
    for stat in ("noiseceiling", "ncsnr", "reliability"):
        values = lss.read(stat, "lss")[0]
        assert np.nanmean(values[truth["LATE"]]) > 0.3
        assert np.nanmean(values[truth["LATE"]]) > 2 * abs(np.nanmean(values[noise]))
    assert abs(np.nanmean(lss.read("reliability", "lss")[0, noise])) < 0.1
    (sidecar,) = lss.output.glob("sub-01/func/*_stat-noiseceiling_desc-lss_statmap.json")
    assert json.loads(sidecar.read_text())["Repeats"] == {"Stimuli": 24, "Repeated": 24, "Trials": 48}


@pytest.mark.parametrize("model", ["lsa", "glmsingle", "condition"])
def test_other_models_find_the_same(run_model: Callable[..., Run], lss: Run, model: str) -> None:
    run = run_model(model)
    late = run.data.truth[SPACE]["LATE"]
    there, here = lss.read("r", "encoding")[2, late], run.read("r", "encoding")[2, late]
    assert here.mean() > there.mean() - 0.1
    assert run.has("reliability", model) == (model != "condition")  # one beta a stimulus repeats nothing
    assert run.has("hrf", model) == run.has("fraction", model) == (model == "glmsingle")


def test_precomputed_betas_give_what_estimated_ones_do(run_model: Callable[..., Run], lss: Run) -> None:
    run = run_model("precomputed", "--derivatives", str(lss.output))
    np.testing.assert_array_equal(run.read("effect", "precomputed"), lss.read("effect", "lss"))
    np.testing.assert_array_equal(run.read("r", "encoding"), lss.read("r", "encoding"))
    np.testing.assert_array_equal(run.read("reliability", "precomputed"), lss.read("reliability", "lss"))


def test_unreliable_voxels_are_left_out(
    run_model: Callable[..., Run], lss: Run, run_dnnbrain: Callable[..., Any], tmp_path: Path
) -> None:
    run = run_model("lss", "--min-reliability", "0.3")
    reliable = run.read("reliability", "lss")[0] >= 0.3
    assert 0.02 < reliable.mean() < 0.9
    r = run.read("r", "encoding")
    assert np.isnan(r[:, ~reliable]).all()
    np.testing.assert_array_equal(r[:, reliable], lss.read("r", "encoding")[:, reliable])


def test_reliability_that_cannot_be_known_is_not_asked_of_voxels(
    copied: Any, run_dnnbrain: Callable[..., Any], tmp_path: Path
) -> None:
    for run, path in enumerate(sorted((copied.path / "sub-01").rglob("*_events.tsv"))):
        events = pd.read_csv(path, sep="\t", keep_default_na=False)
        seen = events.stim_file.isin(sorted(set(events.stim_file) - {"n/a"})[run::2])
        events[seen].to_csv(path, sep="\t", index=False)
    options = [*copied.options(SPACE), "--participant-label", "01", "--work-dir", tmp_path / "work"]
    outcome = run_dnnbrain(copied.path, tmp_path / "out", "participant", *options, "--min-reliability", "0.1")
    assert outcome.code == 65
    assert "--min-reliability 0.1 needs stimuli that were shown twice or more" in outcome.err


def test_slabs_of_voxels_give_the_same(run_model: Callable[..., Run], lss: Run, monkeypatch: Any) -> None:
    from dnnbrain_app import response_stages

    whole = response_stages.divide_voxels

    def divide(unit: Any, trials: Any, n_voxels: int, session: Any) -> list[slice]:
        assert whole(unit, trials, n_voxels, session) == [slice(0, n_voxels)]
        return [slice(start, min(start + 700, n_voxels)) for start in range(0, n_voxels, 700)]

    monkeypatch.setattr(response_stages, "divide_voxels", divide)
    monkeypatch.setattr(response_stages, "BETAS_SHARE", 10**9)  # onto the disk
    run = run_model("lss")
    np.testing.assert_allclose(run.read("effect", "lss"), lss.read("effect", "lss"), atol=1e-5)


# The group -----------------------------------------------------------------------------------------------------------


def test_participants_respond_alike_where_something_is_planted(
    copied: Any, run_dnnbrain: Callable[..., Any], tmp_path: Path, rng: np.random.Generator
) -> None:
    """The second participant saw what the first did, has the same brain, and noise of its own."""
    for path in [*copied.path.rglob("sub-01*_events.tsv"), *copied.path.rglob("sub-01*_timeseries.tsv")]:
        shutil.copy(path, str(path).replace("sub-01", "sub-02"))
    for path in (copied.path / "derivatives/fmriprep/sub-01").rglob("*_bold.dtseries.nii"):
        image = nib.load(path)
        data = np.asarray(image.dataobj)
        noisy = data + 0.5 * data.std(axis=0) * rng.standard_normal(data.shape)
        other = Path(str(path).replace("sub-01", "sub-02"))
        nib.save(nib.Cifti2Image(noisy.astype(np.float32), image.header), other)

    def run(level: str, *more: str) -> Any:
        given = [*copied.options(SPACE, atlas=False), "--work-dir", tmp_path / "work", *more]
        return run_dnnbrain(copied.path, tmp_path / "out", level, *given)

    outcome = run("group")
    assert outcome.code == 66
    assert "no participants' responses by --response-model lss; run the participant level first" in outcome.err
    assert run("participant", "--participant-label", "01").code == 0
    outcome = run("group")
    assert outcome.code == 65
    assert "the only participant of the group; at least two are needed" in outcome.err
    assert run("participant").code == 0
    assert "01 02" in run("group", "--dry-run").out
    outcome = run("group")
    assert outcome.code == 0, outcome.err
    assert "2 participants" in outcome.err
    truth = copied.truth[SPACE]
    for stat in ("lowerceiling", "upperceiling"):
        (path,) = tmp_path.glob(
            f"out/group/func/group_task-objects_space-fsLR_den-91k_stat-{stat}_desc-lss_*.dscalar.nii"
        )
        values = np.asarray(nib.load(path).dataobj)[0]
        noise = np.ones(len(values), bool)
        noise[np.concatenate(list(truth.values()))] = False
        assert values[truth["LATE"]].mean() > 0.8
        assert values[truth["LATE"]].mean() > values[noise].mean()
        about = json.loads(path.with_name(path.name.replace(".dscalar.nii", ".json")).read_text())
        assert about["Participants"] == ["01", "02"]
        assert about["SharedStimuli"] == 24
    assert "all results are there already" in run("group").err


# Time series ---------------------------------------------------------------------------------------------------------

N_RUNS, N_VOLUMES, TR, RATE = 3, 60, 2.0, 2.0


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three films of two minutes, and a brain of 6 x 6 x 6 voxels, half of which follow the network's first layer."""
    import tiny_network
    import torch
    from PIL import Image

    from dnnbrain_app.responses.design import build_design

    rng = np.random.default_rng(7)
    root = tmp_path_factory.mktemp("film") / "raw"
    func, derived = root / "sub-01" / "func", root / "derivatives" / "fmriprep" / "sub-01" / "func"
    for folder in (func, derived, root / "stimuli"):
        folder.mkdir(parents=True)
    (root / "dataset_description.json").write_text('{"Name": "films", "BIDSVersion": "1.10.0"}')
    (root / "derivatives/fmriprep/dataset_description.json").write_text(
        '{"Name": "fMRIPrep", "BIDSVersion": "1.10.0", "DatasetType": "derivative"}'
    )
    model, look, _ = tiny_network.build()
    n_frames = int(N_VOLUMES * TR * RATE)
    weights = rng.standard_normal((288, 108))
    onsets, times = np.arange(n_frames) / RATE, TR * np.arange(N_VOLUMES)
    X = build_design(onsets, np.full(n_frames, 1 / RATE), times, "glover")
    for run in range(1, N_RUNS + 1):
        noise = rng.standard_normal((n_frames, 6, 6))
        for frame in range(1, n_frames):
            noise[frame] = 0.8 * noise[frame - 1] + 0.6 * noise[frame]
        frames = [Image.fromarray(np.clip(128 + 50 * grey, 0, 255).astype(np.uint8)) for grey in noise]
        frames = [frame.resize((48, 48), Image.Resampling.BICUBIC) for frame in frames]
        frames[0].save(root / "stimuli" / f"film{run}.gif", save_all=True, append_images=frames[1:], duration=500)
        with torch.inference_mode():
            seen = model.early(torch.stack([look(frame.convert("RGB")) for frame in frames])).flatten(1).numpy()
        signal = X @ (seen - seen.mean(axis=0)) @ weights[: seen.shape[1]]
        data = 100 + rng.standard_normal((N_VOLUMES, 216))
        data[:, :108] += signal / signal.std(axis=0)
        stem = f"sub-01_task-film_run-{run}"
        (func / f"{stem}_events.tsv").write_text(f"onset\tduration\tstim_file\n0\t{N_VOLUMES * TR}\tfilm{run}.gif\n")
        image = nib.Nifti1Image(data.T.reshape(6, 6, 6, N_VOLUMES).astype(np.float32), np.diag([3.0, 3, 3, 1]))
        image.header.set_zooms((3, 3, 3, TR))
        image.header.set_xyzt_units("mm", "sec")
        nib.save(image, derived / f"{stem}_space-T1w_desc-preproc_bold.nii.gz")
        mask = nib.Nifti1Image(np.ones((6, 6, 6), np.uint8), image.affine)
        nib.save(mask, derived / f"{stem}_space-T1w_desc-brain_mask.nii.gz")
        (derived / f"{stem}_space-T1w_desc-preproc_bold.json").write_text(json.dumps({"RepetitionTime": TR}))
    return root


def run_film(film: Path, run_dnnbrain: Callable[..., Any], output: Path, *more: str) -> Any:
    options = ["--network", "tiny_network:build", "--n-cpus", "1", "--response-model", "timeseries", *more]
    return run_dnnbrain(film, output / "out", "participant", *options, "--work-dir", output / "work")


@pytest.mark.parametrize("hrf", ["glover", "fir"])
def test_films_predict_the_runs_themselves(
    film: Path, run_dnnbrain: Callable[..., Any], tmp_path: Path, hrf: str
) -> None:
    outcome = run_film(film, run_dnnbrain, tmp_path, "--hrf", hrf)
    assert outcome.code == 0, outcome.err
    (path,) = tmp_path.glob("out/sub-01/func/*_stat-r_desc-encoding_statmap.nii.gz")
    r = np.asarray(nib.load(path).dataobj).reshape(216, -1).T
    assert np.median(r[0, :108]) > (0.4 if hrf == "glover" else 0.25)  # of which .71 can be known
    assert np.median(r[0, :108]) > np.median(r[2, :108])
    assert np.abs(r[:, 108:].mean(axis=1)).max() < 0.06
    (path,) = tmp_path.glob("out/sub-01/func/*_stat-bestlayer_desc-encoding_statmap.nii.gz")
    best = np.asarray(nib.load(path).dataobj).ravel()
    assert (best[:108] > 0).mean() > (0.9 if hrf == "glover" else 0.6)
    assert (best[108:] > 0).mean() < 0.1
    designs = sorted(tmp_path.glob("out/sub-01/func/*_design.tsv"))
    assert len(designs) == N_RUNS
    assert "all stimuli" in pd.read_csv(designs[0], sep="\t").columns
    assert not list(tmp_path.glob("out/sub-01/func/*_stat-effect_*"))
    assert (tmp_path / "out" / "sub-01.html").exists()


def test_a_single_film_is_divided_into_blocks(film: Path, run_dnnbrain: Callable[..., Any], tmp_path: Path) -> None:
    outcome = run_film(film, run_dnnbrain, tmp_path, "--run-label", "1")
    assert outcome.code == 65
    assert "one run of 120 s cannot be divided: two blocks of 60 s with 20 s between them are needed" in outcome.err


def test_rsa_of_volumes_is_refused(film: Path, run_dnnbrain: Callable[..., Any], tmp_path: Path) -> None:
    outcome = run_film(film, run_dnnbrain, tmp_path, "--analysis", "rsa")
    assert outcome.code == 2
    assert "--response-model timeseries estimates none" in outcome.err
