"""Simulated datasets of known truth: what every model recovers of it, and what it says of itself."""

import json
import subprocess
import sys
from dataclasses import dataclass, replace

import numpy as np
import pytest

from dnnbrain_app.records import Trials
from dnnbrain_app.responses.design import build_design
from dnnbrain_app.responses.glm import average_repeats, estimate_betas
from dnnbrain_app.responses.nuisance import build_nuisance
from dnnbrain_app.responses.options import ResponseOptions
from dnnbrain_app.responses.reliability import correlate_halves, estimate_noise_ceiling
from dnnbrain_app.responses.runs import RunData

pytestmark = [pytest.mark.slow, pytest.mark.shared]

OPTIONS = ResponseOptions(scaling="percent")
SPACE, REGIONS = "MNI152NLin2009cAsym", ("V1", "VTC")
PEAK = build_design(np.zeros(1), np.ones(1), np.arange(0, 40, 0.02), "glover").max()  # of the plant it is 1
SNRS = (0.25, 0.5, 1.0)  # --snr


@dataclass(frozen=True, eq=False)
class Dataset:
    """The runs of a participant, and what was planted in each region: which columns, responses (percent), RDM."""

    runs: list
    trials: Trials
    stimuli: list
    columns: dict
    planted: dict
    rdms: dict
    background: np.ndarray


@pytest.fixture(scope="module")
def build(shared, tmp_path_factory):
    """Build each dataset once."""
    pytest.importorskip("nibabel")
    known = {}

    def build_once(snr, jitter=0.3):
        if (snr, jitter) not in known:
            folder = tmp_path_factory.mktemp("b92") / "data"
            options = {"spaces": SPACE, "subjects": 1, "runs": 4, "raw-bold": "none", "snr": snr, "hrf-jitter": jitter}
            flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
            script = shared / "tools" / "make_bids92.py"
            subprocess.run([sys.executable, str(script), "--compact", *flags, "--out", str(folder)], check=True)
            known[snr, jitter] = read_dataset(folder)
        return known[snr, jitter]

    return build_once


def read_dataset(folder):
    """Read the time series of the regions, and of one voxel in thirty elsewhere."""
    import nibabel as nib
    import pandas as pd

    truth, about = np.load(folder / "truth" / "truth.npz"), json.loads((folder / "truth" / "truth.json").read_text())
    places = [truth[f"{SPACE}_{region}_columns"] for region in REGIONS]
    elsewhere = np.setdiff1d(np.arange(about["regions"][SPACE]["columns"]), np.concatenate(places))[::30]
    columns = np.concatenate([*places, elsewhere])
    runs, tables, labels = [], [], []
    for path in sorted((folder / "derivatives" / "fmriprep" / "sub-01" / "func").glob("*desc-preproc_bold.nii.gz")):
        labels.append(path.name.split("_space")[0])
        sidecar = json.loads((path.parent / path.name.replace(".nii.gz", ".json")).read_text())
        mask = nib.load(path.parent / path.name.replace("desc-preproc_bold", "desc-brain_mask")).get_fdata() > 0
        bold = np.asarray(nib.load(path).dataobj)[mask][columns].T.astype(np.float32)
        frame_times = sidecar["StartTime"] + sidecar["RepetitionTime"] * np.arange(len(bold))
        confounds = pd.read_csv(path.parent / f"{labels[-1]}_desc-confounds_timeseries.tsv", sep="\t")
        nuisance, _ = build_nuisance({name: confounds[name].to_numpy() for name in confounds}, frame_times, OPTIONS)
        runs.append(RunData(bold, frame_times, nuisance))
        table = pd.read_csv(folder / "sub-01" / "func" / f"{labels[-1]}_events.tsv", sep="\t")
        tables.append(table.dropna(subset="stim_file").assign(run=len(tables)))
    table = pd.concat(tables)
    shown = (table[name].to_numpy() for name in ("onset", "duration", "stim_file", "run"))
    ends = np.cumsum([0, *map(len, places)])
    return Dataset(
        runs,
        Trials(*shown, tuple(labels)),
        about["stimuli"],
        {region: slice(*ends[i : i + 2]) for i, region in enumerate(REGIONS)},
        {region: truth[f"sub-01_{SPACE}_{region}_patterns"] for region in REGIONS},
        {region: truth[f"sub-01_{region}_rdm"] for region in REGIONS},
        np.arange(ends[-1], len(columns)),
    )


@dataclass(frozen=True, eq=False)
class Recovered:
    """Betas in percent at the peak of the response, and the averages over repeats, of a model."""

    betas: np.ndarray
    kept: Trials
    averages: np.ndarray


def recover(dataset, model):
    betas, kept = estimate_betas(dataset.runs, dataset.trials, replace(OPTIONS, model=model))
    return Recovered(betas * PEAK, kept, average_repeats(betas * PEAK, kept, dataset.stimuli))


def correlate(A, B):
    """Of columns."""
    A, B = (x - x.mean(axis=0) for x in (A, B))
    return (A * B).sum(axis=0) / np.sqrt((A**2).sum(axis=0) * (B**2).sum(axis=0))


def compare_rdms(dataset, averages, region):
    """Correlation of the RDM of the averages with the planted one."""
    pairs = np.triu_indices(len(dataset.stimuli), 1)
    found = 1 - np.corrcoef(averages[:, dataset.columns[region]])[pairs]
    return np.corrcoef(found, dataset.rdms[region][pairs])[0, 1]


@pytest.mark.parametrize("region", REGIONS)
def test_condition_recovers_geometry_and_size(build, region):
    """The more signal the better, up to the planted RDM; sizes are right at every level."""
    similarities = []
    for snr in SNRS:
        dataset = build(snr)
        averages = recover(dataset, "condition").averages
        similarities.append(compare_rdms(dataset, averages, region))
        P, Y = dataset.planted[region], averages[:, dataset.columns[region]]
        centred = P - P.mean(axis=0)
        assert np.mean((centred * Y).sum(axis=0) / (centred**2).sum(axis=0)) == pytest.approx(1, abs=0.05)
    assert similarities == sorted(similarities)
    assert similarities[1] > 0.7
    assert similarities[2] > 0.95


@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("model", ["lss", "lsa", "glmsingle"])
@pytest.mark.parametrize("snr", SNRS)
def test_ceilings_and_reliability_are_those_of_the_truth(build, snr, model, region):
    """What repeats say of a model's betas is how they are related to the plant, which a real dataset does not know."""
    dataset = build(snr)
    found = recover(dataset, model)
    P, columns = dataset.planted[region], dataset.columns[region]
    betas, stimulus, run = found.betas[:, columns], found.kept.stimulus, found.kept.run
    ceiling = estimate_noise_ceiling(betas, stimulus, run)
    true_ceiling = np.mean(correlate(P, found.averages[:, columns]) ** 2)
    assert ceiling.ceiling.mean() == pytest.approx(true_ceiling, abs=0.05)
    halves = correlate_halves(betas, stimulus, run, np.random.default_rng(0), n_splits=20)
    assert halves.mean() == pytest.approx(true_ceiling, abs=0.05)
    shown = P[[dataset.stimuli.index(name) for name in stimulus]]
    single = ceiling.ncsnr**2 / (1 + ceiling.ncsnr**2)
    assert single.mean() == pytest.approx(np.mean(correlate(shown, betas) ** 2), abs=0.03)


@pytest.mark.parametrize("snr", SNRS)
def test_signal_variance_is_the_planted_one(build, snr):
    """For the model whose betas are neither shrunk nor mixed."""
    dataset = build(snr)
    found = recover(dataset, "lsa")
    ceiling = estimate_noise_ceiling(found.betas, found.kept.stimulus, found.kept.run)
    for region in REGIONS:
        planted = dataset.planted[region].var(axis=0, ddof=1)
        assert ceiling.signal_variance[dataset.columns[region]].mean() == pytest.approx(
            planted.mean(), abs=0.03, rel=0.05
        )


@pytest.mark.parametrize("model", ["lss", "lsa", "glmsingle"])
def test_nothing_repeats_elsewhere(build, model):
    dataset = build(1.0)
    found = recover(dataset, model)
    betas = found.betas[:, dataset.background]
    ceiling = estimate_noise_ceiling(betas, found.kept.stimulus, found.kept.run)
    assert abs(np.mean(ceiling.signal_variance / ceiling.noise_variance)) < 0.02


@pytest.mark.parametrize("region", REGIONS)
def test_glmsingle_beats_lss_where_hrfs_vary(build, region):
    dataset = build(1.0, jitter=1.0)
    figures = {}
    for model in ("lss", "glmsingle"):
        found = recover(dataset, model)
        columns = dataset.columns[region]
        halves = correlate_halves(
            found.betas[:, columns], found.kept.stimulus, found.kept.run, np.random.default_rng(0), n_splits=20
        )
        plant = correlate(dataset.planted[region], found.averages[:, columns])
        figures[model] = np.array([halves.mean(), plant.mean(), compare_rdms(dataset, found.averages, region)])
    gain = figures["glmsingle"] - figures["lss"]
    assert gain[0] > 0.04
    assert gain[1] > 0.015
    assert gain[2] > 0.1
