"""Real responses: one slice of Haxby et al. (2001), subject 1, must give the figures known for it (ordinary models)."""

import numpy as np
import pytest

from dnnbrain_app.records import Trials
from dnnbrain_app.responses.glm import RunData, estimate_betas
from dnnbrain_app.responses.nuisance import build_nuisance
from dnnbrain_app.responses.options import ResponseOptions

N_RUNS, N_CATEGORIES, TR = 12, 8, 2.5
OPTIONS = ResponseOptions(model="condition", motion=0, scaling="none", noise_model="ols")


@pytest.fixture(scope="module")
def patterns(shared):
    """Betas of each run and category (12, 8, voxels) of z-scored time series, less each run's mean over categories."""
    nib, pd = pytest.importorskip("nibabel"), pytest.importorskip("pandas")
    folder = shared / "data" / "haxby2001"
    derivatives = folder / "derivatives" / "fmriprep" / "sub-1" / "func"
    betas = []
    for run in range(1, N_RUNS + 1):
        name = f"sub-1_task-objectviewing_run-{run:02}"
        mask = nib.load(derivatives / f"{name}_desc-brain_mask.nii.gz").get_fdata() > 0
        bold = nib.load(derivatives / f"{name}_desc-preproc_bold.nii.gz").get_fdata()[mask].T
        events = pd.read_csv(folder / "sub-1" / "func" / f"{name}_events.tsv", sep="\t")
        frame_times = TR * np.arange(len(bold))
        nuisance, _ = build_nuisance({}, frame_times, OPTIONS)
        run_data = RunData((bold - bold.mean(axis=0)) / bold.std(axis=0), frame_times, nuisance)
        category = events["trial_type"].to_numpy(dtype=str)
        trials = Trials(
            events["onset"].to_numpy(),
            events["duration"].to_numpy(),
            category,
            np.zeros(len(events), dtype=int),
            (name,),
        )
        data, rows = estimate_betas([run_data], trials, OPTIONS)
        assert len(rows) == N_CATEGORIES
        betas.append(data - data.mean(axis=0))
    return np.array(betas, dtype=np.float64)


@pytest.mark.shared
def test_categories_are_decoded(patterns):
    svm, selection = pytest.importorskip("sklearn.svm"), pytest.importorskip("sklearn.model_selection")
    X = patterns.reshape(N_RUNS * N_CATEGORIES, -1)
    category = np.tile(np.arange(N_CATEGORIES), N_RUNS)
    run = np.repeat(np.arange(N_RUNS), N_CATEGORIES)
    scores = selection.cross_val_score(
        svm.SVC(kernel="linear"), X, category, groups=run, cv=selection.LeaveOneGroupOut()
    )
    assert scores.mean() == pytest.approx(0.78, abs=0.03)


@pytest.mark.shared
def test_halves_agree(patterns):
    first, second = patterns[:6].mean(axis=0), patterns[6:].mean(axis=0)
    between_halves = np.corrcoef(first, second)[:N_CATEGORIES, N_CATEGORIES:]
    same = np.eye(N_CATEGORIES, dtype=bool)
    assert between_halves[same].mean() == pytest.approx(0.44, abs=0.03)
    assert between_halves[~same].mean() == pytest.approx(-0.06, abs=0.03)


@pytest.mark.shared
def test_geometry_is_reliable(patterns):
    stats = pytest.importorskip("scipy.stats")
    pairs = np.triu_indices(N_CATEGORIES, 1)
    rdms = [1 - np.corrcoef(half.mean(axis=0))[pairs] for half in (patterns[:6], patterns[6:])]
    assert stats.spearmanr(*rdms)[0] == pytest.approx(0.59, abs=0.03)
