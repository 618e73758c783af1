"""Real responses: one slice of Haxby et al. (2001), subject 1, must give the figures known for it."""

from dataclasses import replace

import numpy as np
import pytest

from dnnbrain_app.records import Trials
from dnnbrain_app.responses.design import build_design
from dnnbrain_app.responses.glm import average_repeats, estimate_betas
from dnnbrain_app.responses.nuisance import build_nuisance
from dnnbrain_app.responses.options import ResponseOptions
from dnnbrain_app.responses.runs import RunData
from dnnbrain_app.responses.weights import group_trials, weigh_separately

N_RUNS, N_CATEGORIES, TR = 12, 8, 2.5
OPTIONS = ResponseOptions(model="condition", motion=0, scaling="zscore", noise_model="ols")
PAIRS = np.triu_indices(N_CATEGORIES, 1)


@pytest.fixture(scope="module")
def haxby(shared):
    """Runs, and the trials (single images) of all of them."""
    nib, pd = pytest.importorskip("nibabel"), pytest.importorskip("pandas")
    folder = shared / "data" / "haxby2001"
    derivatives = folder / "derivatives" / "fmriprep" / "sub-1" / "func"
    runs, tables, names = [], [], []
    for run in range(1, N_RUNS + 1):
        names.append(f"sub-1_task-objectviewing_run-{run:02}")
        mask = nib.load(derivatives / f"{names[-1]}_desc-brain_mask.nii.gz").get_fdata() > 0
        bold = nib.load(derivatives / f"{names[-1]}_desc-preproc_bold.nii.gz").get_fdata()[mask].T
        frame_times = TR * np.arange(len(bold))
        runs.append(RunData(bold, frame_times, build_nuisance({}, frame_times, OPTIONS)[0]))
        tables.append(pd.read_csv(folder / "sub-1" / "func" / f"{names[-1]}_events.tsv", sep="\t").assign(run=run - 1))
    table = pd.concat(tables)
    columns = (table[name].to_numpy() for name in ("onset", "duration"))
    return runs, Trials(*columns, table["trial_type"].to_numpy(dtype=str), table["run"].to_numpy(), tuple(names))


def select_runs(trials, wanted):
    """Trials of some runs."""
    kept = trials.take(np.isin(trials.run, wanted))
    labels = tuple(trials.run_labels[run] for run in wanted)
    return Trials(kept.onset, kept.duration, kept.stimulus, np.searchsorted(wanted, kept.run), labels)


def merge_images(trials):
    """One trial a block."""
    keys = [
        np.flatnonzero((trials.run == r) & (trials.stimulus == c))
        for r in range(N_RUNS)
        for c in sorted(set(trials.stimulus))
    ]
    first = trials.take(np.array([rows[0] for rows in keys]))
    end = np.array([trials.onset[rows].max() + 2 for rows in keys])
    return Trials(first.onset, end - first.onset, first.stimulus, first.run, first.run_labels)


def estimate_patterns(runs, trials, options):
    """Responses (n_runs, 8, voxels) of models of each run, less each run's mean over categories."""
    names = sorted(set(trials.stimulus))
    patterns = []
    for index, run in enumerate(runs):
        betas, rows = estimate_betas([run], select_runs(trials, [index]), options)
        average = average_repeats(betas, rows, names).astype(float)
        patterns.append(average - average.mean(axis=0))
    return np.array(patterns)


@pytest.fixture(scope="module", params=["condition", "lss"])
def patterns(haxby, request):
    return estimate_patterns(*haxby, replace(OPTIONS, model=request.param))


def decode(patterns):
    svm, selection = pytest.importorskip("sklearn.svm"), pytest.importorskip("sklearn.model_selection")
    X = patterns.reshape(N_RUNS * N_CATEGORIES, -1)
    category = np.tile(np.arange(N_CATEGORIES), N_RUNS)
    run = np.repeat(np.arange(N_RUNS), N_CATEGORIES)
    folds = selection.LeaveOneGroupOut()
    return selection.cross_val_score(svm.SVC(kernel="linear"), X, category, groups=run, cv=folds).mean()


def compare_halves(first, second):
    """Correlation of the patterns of a category, of two categories; of the RDMs."""
    stats = pytest.importorskip("scipy.stats")
    between_halves = np.corrcoef(first, second)[:N_CATEGORIES, N_CATEGORIES:]
    same = np.eye(N_CATEGORIES, dtype=bool)
    rdms = [1 - np.corrcoef(half)[PAIRS] for half in (first, second)]
    return between_halves[same].mean(), between_halves[~same].mean(), stats.spearmanr(*rdms)[0]


@pytest.mark.shared
def test_categories_are_decoded(patterns):
    assert decode(patterns) == pytest.approx(0.78, abs=0.03)


@pytest.mark.shared
def test_halves_agree(patterns):
    within, between, rdm = compare_halves(patterns[:6].mean(axis=0), patterns[6:].mean(axis=0))
    assert within == pytest.approx(0.44, abs=0.03)
    assert between == pytest.approx(-0.06, abs=0.03)
    assert rdm == pytest.approx(0.59, abs=0.03)


@pytest.mark.shared
def test_trials_of_blocks_are_mixed_by_lss(haxby):
    """One trial a block: LSS gives each what it has of its neighbours, which joint models undo.

    Its betas are known mixtures of those of LSA. Patterns stay as reliable, their distances do not.
    """
    runs, blocks = haxby[0], merge_images(haxby[1])
    lss, lsa = (estimate_patterns(runs, blocks, replace(OPTIONS, model=model)) for model in ("lss", "lsa"))
    for index in range(N_RUNS):
        own = select_runs(blocks, [index])
        X = build_design(own.onset, own.duration, runs[index].frame_times, "glover")
        mixing = weigh_separately(X, runs[index].nuisance, group_trials(own.stimulus))[0] @ X
        expected = mixing @ lsa[index]
        np.testing.assert_allclose(lss[index], expected - expected.mean(axis=0), atol=1e-3 * lss.std())
        next_to = np.argsort(own.onset)
        assert mixing[next_to[:-1], next_to[1:]].mean() < -0.1
    (within, between, mixed), (_, _, clean) = (
        compare_halves(x[:6].mean(axis=0), x[6:].mean(axis=0)) for x in (lss, lsa)
    )
    assert within == pytest.approx(0.44, abs=0.03)
    assert between == pytest.approx(-0.06, abs=0.03)
    assert clean > 0.5
    assert mixed < 0.2


@pytest.mark.shared
@pytest.mark.filterwarnings("ignore:.*Generation of a mask:RuntimeWarning")  # of nilearn by itself
@pytest.mark.parametrize("categories", [True, False], ids=["categories", "images"])
def test_lss_agrees_with_nilearns_first_level_models(haxby, shared, categories):
    """The loop of nilearn's example of beta series: a model a trial, in which other trials keep their categories."""
    first_level = pytest.importorskip("nilearn.glm.first_level")
    nib, pd = pytest.importorskip("nibabel"), pytest.importorskip("pandas")
    (run, *_), trials = haxby[0], select_runs(haxby[1], [0])
    if not categories:
        names = np.array([f"image{i}" for i in range(len(trials))])
        trials = Trials(trials.onset, trials.duration, names, trials.run, trials.run_labels)
    betas, kept = estimate_betas([run], trials, replace(OPTIONS, model="lss", scaling="none"))
    assert len(kept) == len(trials)
    folder = shared / "data" / "haxby2001" / "derivatives" / "fmriprep" / "sub-1" / "func"
    bold, mask = (
        nib.load(folder / f"{trials.run_labels[0]}_{suffix}.nii.gz")
        for suffix in ("desc-preproc_bold", "desc-brain_mask")
    )
    bold = nib.Nifti1Image(bold.get_fdata(), bold.affine, bold.header)
    model = first_level.FirstLevelModel(mask_img=mask, noise_model="ols", signal_scaling=False)
    others = trials.stimulus if categories else np.full(len(trials), "others")
    for i in range(0, len(trials), 9):
        types = np.where(np.arange(len(trials)) == i, "this", others)
        events = pd.DataFrame({"onset": trials.onset, "duration": trials.duration, "trial_type": types})
        design = first_level.make_first_level_design_matrix(
            run.frame_times, events, "glover", None, add_regs=run.nuisance[:, 1:]
        )
        effect = model.fit(bold, design_matrices=design).compute_contrast("this", output_type="effect_size")
        expected = effect.get_fdata()[mask.get_fdata() > 0]
        assert np.abs(betas[i] - expected).max() < 1e-5 * betas.std()


@pytest.mark.shared
@pytest.mark.parametrize("noise_model", ["ols", "ar1"])
def test_glmsingle_makes_responses_more_reliable(haxby, noise_model):
    """Halves that know nothing of each other agree better than those of ordinary models."""
    runs, blocks = haxby[0], merge_images(haxby[1])
    figures = {}
    for model in ("condition", "glmsingle"):
        halves = []
        for wanted in (np.arange(6), np.arange(6, 12)):
            options = replace(OPTIONS, model=model, noise_model=noise_model)
            betas, rows = estimate_betas([runs[i] for i in wanted], select_runs(blocks, wanted), options)
            average = average_repeats(betas, rows, sorted(set(blocks.stimulus))).astype(float)
            halves.append(average - average.mean(axis=0))
        figures[model] = compare_halves(*halves)
    assert figures["glmsingle"][0] > figures["condition"][0] + 0.02
    assert figures["glmsingle"][2] > figures["condition"][2] + 0.15
