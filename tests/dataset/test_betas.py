from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nibabel.cifti2 import cifti2_axes as axes

from dnnbrain_app.dataset.betas import find_beta_units, read_beta_trials, read_betas
from dnnbrain_app.dataset.images import read_bold, read_unit_space
from dnnbrain_app.dataset.index import find_units
from dnnbrain_app.dataset.options import DatasetOptions
from dnnbrain_app.derivatives import names
from dnnbrain_app.derivatives.maps import write_maps
from dnnbrain_app.derivatives.tables import write_trials
from dnnbrain_app.errors import (
    BadDataError,
    DnnbrainError,
    EmptySelectionError,
    MissingInputError,
    UnknownNameError,
    UsageError,
)
from dnnbrain_app.records import Trials, Unit

AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
KINDS = [("cifti", "space-fsLR_den-91k"), ("gifti", "space-fsaverage5"), ("nifti", "space-MNI152NLin2009cAsym_res-2")]


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


def write_volumes(path: Path, data: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(data.astype(np.float32), AFFINE).to_filename(path)
    return path


def write_table(path: Path, column: str = "stim_file", stimuli: str = "abc") -> Path:
    return write(path, f"{column}\n" + "".join(f"{name}.png\n" for name in stimuli))


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A dataset whose participants 01 and 02 have folders, and no more."""
    for label in ("01", "02"):
        write(tmp_path / "study" / f"sub-{label}" / "func" / f"sub-{label}_task-x_bold.json", "{}")
    return tmp_path / "study"


@pytest.fixture
def betas(study: Path, rng: np.random.Generator) -> Path:
    """Participant 01 has betas of two runs, three maps each."""
    func = study.parent / "betas" / "sub-01" / "func"
    for run in (1, 2):
        stem = f"sub-01_task-x_run-{run}_space-T1w"
        write_volumes(func / f"{stem}_betas.nii.gz", rng.normal(size=(4, 3, 2, 3)))
        write_table(func / f"{stem}_betas.tsv", stimuli="abc" if run == 1 else "bcd")
    return study.parent / "betas"


def name_filter(folder: Path, query: object) -> Path:
    return write(folder / "filter.json", json.dumps({"betas": query}))


def options(betas: Path, **changes: Any) -> DatasetOptions:
    return DatasetOptions(derivatives=(f"betas={betas}",), **changes)


def test_images_become_the_runs_of_a_unit(study: Path, betas: Path, caplog: pytest.LogCaptureFixture) -> None:
    (unit,) = find_beta_units(study, options(betas))
    assert unit.label == "sub-01_task-x_space-T1w"
    assert (unit.participant, unit.task, unit.space) == ("01", "x", "T1w")
    assert "participant 02: no betas" in caplog.text
    for number, run in enumerate(unit.runs, 1):
        assert run.label == f"sub-01_task-x_run-{number}"
        assert [path.name for path in run.bold] == [f"sub-01_task-x_run-{number}_space-T1w_betas.nii.gz"]
        assert run.events.name == f"sub-01_task-x_run-{number}_space-T1w_betas.tsv"
        assert (run.confounds, run.mask, run.start_time, run.n_volumes) == (None, None, 0.0, 3)
        assert math.isnan(run.repetition_time)
    trials = read_beta_trials(unit)
    assert trials.stimulus.tolist() == ["a.png", "b.png", "c.png", "b.png", "c.png", "d.png"]
    assert trials.run.tolist() == [0, 0, 0, 1, 1, 1]
    assert trials.run_labels == ("task-x_run-1", "task-x_run-2")
    assert trials.repeat.tolist() == [0, 0, 0, 1, 1, 0]  # in the order of the maps, as there are no onsets
    assert np.isnan(trials.onset).all()
    assert np.isnan(trials.duration).all()
    data = read_betas(unit, read_unit_space(unit))
    expected = [nib.load(path).get_fdata().reshape(-1, 3).T for run in unit.runs for path in run.bold]
    np.testing.assert_allclose(data, np.concatenate(expected), rtol=1e-6)


@pytest.mark.parametrize(("kind", "space_entities"), KINDS)
def test_our_own_output_can_be_read_again(
    tmp_path: Path, write_raw: Any, write_run: Any, rng: np.random.Generator, kind: str, space_entities: str
) -> None:
    for ses in "ab":
        write_raw(tmp_path, f"sub-01_ses-{ses}_task-x_run-01")
        write_run(tmp_path / "derivatives" / "fmriprep", f"sub-01_ses-{ses}_task-x_run-1", kind, space=space_entities)
    (unit,) = find_units(tmp_path, DatasetOptions())
    space = read_unit_space(unit)
    labels = ("ses-a_task-x_run-01", "ses-b_task-x_run-01")
    shown = np.array(["d/a.png", "b.png", "b.png", "d/a.png"], dtype=object)
    trials = Trials(np.array([1.5, 4, 1, 3]), np.ones(4), shown, np.array([0, 0, 1, 1]), labels)
    data = rng.normal(size=(4, space.n_voxels)).astype(np.float32)
    output = tmp_path / "out"
    for model, values in (("lss", data), ("glmsingle", -data), ("precomputed", 0 * data)):
        write_maps(names.beta_map(output, unit, model), values, ["one", "two", "three", "four"], space, {})
        write_trials(names.beta_trials(output, unit, model), trials, {})
        write_maps(names.response_map(output, unit, model, "reliability"), values[:1], ["reliability"], space, {})
    write(output / "sub-01" / "func" / "sub-01_task-x_seg-a_stat-effect_desc-lss_statmap.tsv", "region\nV1\n")
    with pytest.raises(
        UsageError, match=r'desc-(lss|glmsingle)_statmap\S+; choose one .* \{"betas": \{"desc": "lss"\}\}'
    ):
        find_beta_units(tmp_path, options(output))
    chosen = options(output, bids_filter_file=name_filter(tmp_path, {"desc": "lss"}))
    (again,) = find_beta_units(tmp_path, chosen)
    assert again.label == unit.label
    assert len(again.runs) == 1
    read = read_beta_trials(again)
    assert read.run_labels == labels
    assert read.stimulus.tolist() == shown.tolist()
    for name in ("onset", "duration", "run", "repeat"):
        np.testing.assert_array_equal(getattr(read, name), getattr(trials, name), name)
    found = read_unit_space(again)
    assert found.matches(space)
    np.testing.assert_array_equal(read_betas(again, found), data)
    np.testing.assert_array_equal(read_bold(again.runs[0], found), data)


def test_the_output_folder_may_hold_our_copies_of_what_it_reads(study: Path, betas: Path) -> None:
    func = betas / "sub-01" / "func"
    write_volumes(
        func / "sub-01_task-x_run-1_space-T1w_stat-effect_desc-precomputed_statmap.nii.gz", np.ones((2, 2, 2, 2))
    )
    (unit,) = find_beta_units(study, options(betas))
    assert [run.bold[0].name.rpartition("_")[2] for run in unit.runs] == ["betas.nii.gz"] * 2


@pytest.mark.parametrize(
    ("name", "query", "found"),
    [
        ("sub-01_task-x_space-T1w_beta.nii.gz", None, True),
        ("sub-01_task-x_space-T1w_stat-beta_statmap.nii", None, True),
        ("sub-01_task-x_space-T1w_stat-variance_statmap.nii.gz", None, False),
        ("sub-01_task-x_space-T1w_stat-variance_betas.nii.gz", None, False),
        ("sub-01_task-x_space-T1w_statmap.nii.gz", None, False),
        ("sub-01_task-x_space-T1w_stat-t_statmap.nii.gz", None, False),
        ("sub-01_task-x_space-T1w_stat-t_statmap.nii.gz", {"stat": "t"}, True),
        ("sub-01_task-x_space-T1w_desc-single_responses.nii.gz", {"suffix": "responses"}, True),
        ("sub-01_task-x_space-T1w_desc-preproc_bold.nii.gz", None, False),
    ],
)
def test_which_images_are_betas(study: Path, rng: Any, name: str, query: dict | None, found: bool) -> None:
    func = study.parent / "betas" / "sub-01" / "func"
    write_volumes(func / name, rng.normal(size=(2, 2, 2, 3)))
    write_table(func / "sub-01_task-x_trials.tsv")
    chosen = options(func.parents[1], bids_filter_file=name_filter(study, query) if query else None)
    if found:
        (unit,) = find_beta_units(study, chosen)
        assert [path.name for path in unit.runs[0].bold] == [name]
    else:
        with pytest.raises(MissingInputError, match=r"no betas of participants any in .*\*_betas.*query betas"):
            find_beta_units(study, chosen)


@pytest.mark.parametrize(
    "table",
    [
        "sub-01_task-x_run-1_space-T1w_betas.tsv",
        "sub-01_task-x_run-1_space-T1w_trials.tsv",
        "sub-01_task-x_run-01_events.tsv",
        "sub-01_task-x_trials.tsv",
    ],
)
def test_where_the_table_of_an_image_is(study: Path, betas: Path, table: str) -> None:
    func = betas / "sub-01" / "func"
    (func / "sub-01_task-x_run-1_space-T1w_betas.tsv").unlink()
    for other in ("sub-01_task-x_run-1_space-T1w_desc-a_betas.tsv", "sub-01_task-x_run-1_design.tsv"):
        write(func / other, "stim_file\n")  # of something else
    path = write_table(func / table)
    (unit,) = find_beta_units(study, options(betas))
    assert unit.runs[0].events == path
    assert unit.runs[1].events.name == "sub-01_task-x_run-2_space-T1w_betas.tsv"


def test_things_betas_in_folders_of_sessions(study: Path, rng: np.random.Generator) -> None:
    """As the THINGS-fMRI code writes them: no task, space or func folder, and an unnamed column of numbers."""
    root = study.parent / "betas_vol"
    for ses in ("things01", "things02"):
        for run in ("01", "02"):
            stem = f"sub-01_ses-{ses}_run-{run}"
            write_volumes(root / "sub-01" / f"ses-{ses}" / f"{stem}_betas.nii.gz", rng.normal(size=(2, 2, 2, 2)))
            text = "\timage_filename\n0\teyepiece_12s.jpg\n1\tclarinet_12s.jpg\n"
            write(root / "sub-01" / f"ses-{ses}" / f"{stem}_conditions.tsv", text)
    (unit,) = find_beta_units(study, options(root))
    assert (unit.label, unit.space, unit.task) == ("sub-01", "boldref", "")
    trials = read_beta_trials(unit, "image_filename")
    assert trials.run_labels[:3] == ("ses-things01_run-01", "ses-things01_run-02", "ses-things02_run-01")
    assert trials.stimulus[:2].tolist() == ["eyepiece_12s.jpg", "clarinet_12s.jpg"]
    assert trials.repeat.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    (one,) = find_beta_units(study, options(root, sessions=("things02",), runs=("1",)))
    assert (one.label, one.runs[0].label) == ("sub-01_ses-things02", "sub-01_ses-things02_run-01")


def test_cifti_series_and_metric_files_of_surfaces(study: Path, rng: np.random.Generator) -> None:
    func = study.parent / "betas" / "sub-02" / "func"
    func.mkdir(parents=True)
    models = axes.BrainModelAxis.from_surface(np.arange(5), 8, "CortexLeft")
    values = rng.normal(size=(3, 5)).astype(np.float32)
    nib.Cifti2Image(values, (axes.SeriesAxis(0, 1, 3), models)).to_filename(func / "sub-02_task-x_betas.dtseries.nii")
    for hemi in "RL":
        arrays = [nib.gifti.GiftiDataArray(np.full(6, row + (hemi == "R") / 2, np.float32)) for row in range(3)]
        path = func / f"sub-02_task-x_hemi-{hemi}_space-fsnative_betas.shape.gii"
        nib.gifti.GiftiImage(darrays=arrays).to_filename(path)
    write_table(func / "sub-02_task-x_trials.tsv")
    surface, grayordinates = find_beta_units(study, options(func.parents[1], spaces=("fsnative", "fsLR")))
    assert [path.name.split("_")[2] for path in surface.runs[0].bold] == ["hemi-L", "hemi-R"]
    data = read_betas(surface, read_unit_space(surface))
    np.testing.assert_array_equal(data, np.repeat([[0, 0.5], [1, 1.5], [2, 2.5]], 6, axis=1))
    np.testing.assert_array_equal(read_betas(grayordinates, read_unit_space(grayordinates)), values)


def test_masks_of_an_image_or_of_all_of_them(study: Path, betas: Path) -> None:
    func, mask = betas / "sub-01" / "func", np.zeros((4, 3, 2))
    mask[1:3] = 1
    for name in ("sub-01_space-T1w", "sub-01_task-x_run-2_space-T1w", "sub-01_task-x_run-1_space-MNI152Lin"):
        write_volumes(func / f"{name}_desc-brain_mask.nii.gz", mask)
    (unit,) = find_beta_units(study, options(betas))
    assert [run.mask and run.mask.name for run in unit.runs] == [
        "sub-01_space-T1w_desc-brain_mask.nii.gz",
        "sub-01_task-x_run-2_space-T1w_desc-brain_mask.nii.gz",
    ]
    assert read_unit_space(unit).n_voxels == 12


def test_maps_of_no_stimulus_are_left_out(study: Path, betas: Path) -> None:
    rows = ["2\t1\texp\t7\tn/a", "n/a\t\tcatch\tn/a\tn/a", "8\t1\texp\t9\tn/a"]
    text = "\n".join(["onset\tduration\ttrial_type\tstimulus_id\tstim_file", *rows])
    for run in (1, 2):
        write(betas / "sub-01" / "func" / f"sub-01_task-x_run-{run}_space-T1w_betas.tsv", text)
    (unit,) = find_beta_units(study, options(betas))
    trials = read_beta_trials(unit)  # stim_file is there but names nothing
    assert trials.stimulus.tolist() == ["7", "9", "7", "9"]
    np.testing.assert_array_equal(trials.onset, [2, 8, 2, 8])
    np.testing.assert_array_equal(trials.duration, [1, 1, 1, 1])
    space = read_unit_space(unit)
    everything = np.concatenate([read_bold(run, space) for run in unit.runs])
    np.testing.assert_array_equal(read_betas(unit, space), everything[[0, 2, 3, 5]])
    by_type = read_beta_trials(unit, "trial_type")
    assert by_type.stimulus.tolist() == ["exp", "catch", "exp"] * 2
    np.testing.assert_array_equal(by_type.onset, [2, np.nan, 8] * 2)


def test_a_condition_on_the_rows(study: Path, betas: Path) -> None:
    for run in (1, 2):
        text = "stimulus_id\ttrial_type\n569.0\texp\n12\tcatch\n3626115.019498\texp\n"
        write(betas / "sub-01" / "func" / f"sub-01_task-x_run-{run}_space-T1w_betas.tsv", text)
    (unit,) = find_beta_units(study, options(betas))
    assert read_beta_trials(unit).stimulus.tolist() == ["569", "12", "3626115.019498"] * 2
    chosen = "trial_type == 'exp' and stimulus_id > 500"
    assert read_beta_trials(unit, "", chosen).stimulus.tolist() == ["569", "3626115.019498"] * 2
    space = read_unit_space(unit)
    everything = np.concatenate([read_bold(run, space) for run in unit.runs])
    np.testing.assert_array_equal(read_betas(unit, space, "", chosen), everything[[0, 2, 3, 5]])
    with pytest.raises(BadDataError, match=r"T1w_betas\.tsv: --trial-filter .*holds for none of 6 rows"):
        read_beta_trials(unit, "", "trial_type == 'test'")


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("run\n1\n1\n2\n", ["run-1", "run-1", "run-2"]),
        ("run\n1.0\n1.0\n10.0\n", ["run-1", "run-1", "run-10"]),
        ("session\trun\n1\t1\n1\t2\n2\t1\n", ["ses-1_task-x_run-1", "ses-1_task-x_run-2", "ses-2_task-x_run-1"]),
        ("ses\trun\nses-a\trun-01\nses-a\tn/a\nses-a\tn/a\n", ["ses-a_task-x_run-01", "ses-a_task-x", "ses-a_task-x"]),
        ("run\nses-2_task-x_run-01\nses-2_task-x_run-02\nses-3_task-x_run-01\n", None),
        ("repeat\n0\n0\n0\n", ["task-x"] * 3),
    ],
)
def test_runs_within_an_image(study: Path, rng: Any, text: str, labels: list[str] | None) -> None:
    func = study.parent / "betas" / "sub-01" / "func"
    write_volumes(func / "sub-01_task-x_space-T1w_betas.nii.gz", rng.normal(size=(2, 2, 2, 3)))
    head, *rows = text.splitlines()
    table = "\n".join([f"{head}\tstim_file", *(f"{row}\t{name}.png" for row, name in zip(rows, "aab", strict=True))])
    write(func / "sub-01_task-x_space-T1w_trials.tsv", table)
    (unit,) = find_beta_units(study, options(func.parents[1]))
    trials = read_beta_trials(unit)
    expected = rows if labels is None else [name if "task" in name else f"task-x_{name}" for name in labels]
    assert [trials.run_labels[number] for number in trials.run] == expected


def test_the_name_of_an_image_says_more_than_its_table(study: Path, betas: Path) -> None:
    for run in (1, 2):  # each image counts its runs from 1
        text = "run\tstim_file\n1\ta\n1\tb\n1\tc\n"
        write(betas / "sub-01" / "func" / f"sub-01_task-x_run-{run}_space-T1w_betas.tsv", text)
    (unit,) = find_beta_units(study, options(betas))
    assert read_beta_trials(unit).run_labels == ("task-x_run-1", "task-x_run-2")
    func = betas / "sub-01" / "func"
    for old, new in (("_betas.nii.gz", "_betas.nii.gz"), ("_betas.tsv", "_betas.tsv")):
        (func / f"sub-01_task-x_run-2_space-T1w{old}").rename(func / f"sub-01_task-x_space-T1w{new}")
    (unit,) = find_beta_units(study, options(betas))
    with pytest.raises(BadDataError, match="task-x_run-1 is in the table of another image as well"):
        read_beta_trials(unit)


@pytest.mark.parametrize(
    ("text", "column", "parts"),
    [
        ("stim_file\na\nb\n", "", ["2 rows for the 3 maps of sub-01_task-x_run-1_space-T1w_betas.nii.gz"]),
        ("stim_file\na\nb\nc\nd\n", "", ["4 rows for the 3 maps"]),
        (
            "image\na\nb\nc\n",
            "",
            ["no column stim_file, stim_id, stimulus_id or stimulus", "image", "--stim-column"],
        ),
        ("stim_file\na\nb\nc\n", "image", ["no column 'image'", "stim_file", "--stim-column"]),
        ("stim_file\na\na\nn/a\n", "", ["column 'stim_file' names only 'a'", "two different stimuli"]),
        ("image\nn/a\nn/a\nn/a\n", "image", ["names none"]),
        ("onset\tstim_file\n1\ta\nsoon\tb\n3\tc\n", "", ["row 2: onset 'soon' is not a number of seconds"]),
        ("duration\tstim_file\n1\tn/a\n1\tb\ninf\tc\n", "", ["row 3: duration 'inf' is not a number"]),
        ("", "", ["the file is empty"]),
    ],
)
def test_tables_that_cannot_be(study: Path, betas: Path, text: str, column: str, parts: list[str]) -> None:
    for run in (1, 2):
        write(betas / "sub-01" / "func" / f"sub-01_task-x_run-{run}_space-T1w_betas.tsv", text)
    (unit,) = find_beta_units(study, options(betas))
    with pytest.raises(BadDataError) as caught:
        read_beta_trials(unit, column)
    assert all(part in str(caught.value) for part in ["run-1_space-T1w_betas.tsv", *parts]), str(caught.value)


def test_what_must_be_there(study: Path, betas: Path) -> None:
    with pytest.raises(UsageError, match="precomputed: say where the betas are, with --derivatives NAME=PATH"):
        find_beta_units(study, DatasetOptions())
    with pytest.raises(MissingInputError, match=r"no betas of participants 02 in .*betas"):
        find_beta_units(study, options(betas, participants=("02",)))
    with pytest.raises(MissingInputError, match=r"participant 02: no betas in /.*/betas$"):
        find_beta_units(study, options(betas, participants=("01", "02")))
    write_volumes(betas / "sub-02" / "func" / "sub-02_task-x_space-MNI_betas.nii.gz", np.ones((2, 2, 2, 2)))
    with pytest.raises(EmptySelectionError, match="participant 02: no betas in space T1w that the filters select"):
        find_beta_units(study, options(betas, participants=("01", "02"), spaces=("T1w",)))
    with pytest.raises(EmptySelectionError, match="--task-id y selects nothing; there are: x"):
        find_beta_units(study, options(betas, tasks=("y",)))
    with pytest.raises(EmptySelectionError, match=r"--space fsLR: .* there are: MNI, T1w"):
        find_beta_units(study, options(betas, spaces=("fsLR",)))
    with pytest.raises(EmptySelectionError, match=r'query betas \{"desc": "lss"\} selects none of the 3 files'):
        find_beta_units(study, options(betas, bids_filter_file=name_filter(study, {"desc": "lss"})))
    with pytest.raises(UnknownNameError, match=r"unknown query .* 'beta'; did you mean 'betas'"):
        find_beta_units(study, options(betas, bids_filter_file=write(study / "filter.json", '{"beta": {}}')))


def test_a_missing_table_or_hemisphere(study: Path, betas: Path) -> None:
    func = betas / "sub-01" / "func"
    (func / "sub-01_task-x_run-2_space-T1w_betas.tsv").unlink()
    with pytest.raises(
        MissingInputError, match=r"run-2_space-T1w_betas.nii.gz: no trial table beside it; .*_trials.tsv"
    ):
        find_beta_units(study, options(betas))
    nib.gifti.GiftiImage(darrays=[nib.gifti.GiftiDataArray(np.ones(3, np.float32))] * 3).to_filename(
        func / "sub-01_task-x_hemi-R_space-fsaverage5_betas.func.gii"
    )
    with pytest.raises(MissingInputError, match=r"hemi-R_space-fsaverage5_betas.func.gii: the betas of the other hemi"):
        find_beta_units(study, options(betas, spaces=("fsaverage5",)))


def test_a_damaged_participant_does_not_stop_the_others(study: Path, betas: Path, rng: np.random.Generator) -> None:
    broken = betas / "sub-02" / "func"
    write_table(broken / "sub-02_task-x_trials.tsv")
    for number in (1, 2):
        write_volumes(broken / f"sub-02_task-x_run-{number}_space-T1w_betas.nii.gz", rng.normal(size=(2, 2, 2, 3)))
    path = broken / "sub-02_task-x_run-2_space-T1w_betas.nii.gz"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(BadDataError, match=f"{path.name}: cannot be read"):
        find_beta_units(study, options(betas))
    failures: dict[str, DnnbrainError] = {}
    units = find_beta_units(study, options(betas), failures)
    assert [unit.participant for unit in units] == ["01"]
    assert list(failures) == ["sub-02"]


def test_volumes_named_by_hemisphere_are_not_one_image(study: Path, rng: np.random.Generator) -> None:
    func = study.parent / "betas" / "sub-01" / "func"
    for hemi in "LR":
        write_volumes(func / f"sub-01_task-x_hemi-{hemi}_space-T1w_betas.nii.gz", rng.normal(size=(2, 2, 2, 3)))
    write_table(func / "sub-01_task-x_trials.tsv")
    with pytest.raises(UsageError, match="two images of betas of the same run and space"):
        find_beta_units(study, options(func.parents[1]))


def test_units_of_several_tasks_and_spaces(study: Path, betas: Path, rng: np.random.Generator) -> None:
    func = betas / "sub-02" / "func"
    for task, space in (("y", "MNI152NLin2009cAsym_res-2"), ("x", "T1w"), ("y", "T1w")):
        write_volumes(func / f"sub-02_task-{task}_acq-a_space-{space}_betas.nii.gz", rng.normal(size=(2, 2, 2, 3)))
        write_table(func / f"sub-02_task-{task}_trials.tsv")
    units: list[Unit] = find_beta_units(study, options(betas, spaces=("T1w", "MNI152NLin2009cAsym")))
    assert [unit.label for unit in units] == [
        "sub-01_task-x_space-T1w",
        "sub-02_task-x_acq-a_space-T1w",
        "sub-02_task-y_acq-a_space-T1w",
        "sub-02_task-y_acq-a_space-MNI152NLin2009cAsym_res-2",
    ]
