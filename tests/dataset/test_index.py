from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from dnnbrain_app.dataset.index import find_derivatives, find_units, list_participants
from dnnbrain_app.dataset.options import DatasetOptions
from dnnbrain_app.errors import (
    BadDataError,
    DnnbrainError,
    EmptySelectionError,
    MissingInputError,
    UnknownNameError,
    UsageError,
)

EVENTS = "onset\tduration\tstim_file\n1\t1\ta.png\n2\t1\tb.png\n"


def test_raw_runs_are_matched_to_preprocessed_runs(bids_dir: Path) -> None:
    units = find_units(bids_dir, DatasetOptions())
    assert [unit.label for unit in units] == [f"sub-{sub}_task-x_space-MNI152NLin2009cAsym" for sub in ("01", "02")]
    first, second = units[0].runs
    assert first.label == "sub-01_task-x_run-01"  # as raw data spell it, although the derivative has run-1
    assert first.events.name == "sub-01_task-x_run-01_events.tsv"
    assert second.bold[0].name == "sub-01_task-x_run-2_space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz"
    assert first.mask is not None
    assert first.mask.name == "sub-01_task-x_run-1_space-MNI152NLin2009cAsym_desc-brain_mask.nii.gz"
    assert first.confounds is not None
    assert first.confounds.name == "sub-01_task-x_run-1_desc-confounds_timeseries.tsv"
    assert (first.repetition_time, first.start_time, first.n_volumes) == (2.0, 1.0, 6)


def test_entities_come_from_the_name_not_from_the_folders(tmp_path: Path, bids_dir: Path) -> None:
    moved = tmp_path / "sub-99" / "ses-high_res-2_task-z"
    shutil.copytree(bids_dir, moved)
    assert [unit.label for unit in find_units(moved, DatasetOptions())] == [
        u.label for u in find_units(bids_dir, DatasetOptions())
    ]


@pytest.mark.parametrize(
    ("kind", "space", "files", "label"),
    [
        ("cifti", "space-fsLR_den-91k", ["sub-03_task-y_space-fsLR_den-91k_bold.dtseries.nii"], "fsLR_den-91k"),
        (
            "gifti",
            "space-fsaverage5",
            [f"sub-03_task-y_hemi-{h}_space-fsaverage5_bold.func.gii" for h in "LR"],
            "fsaverage5",
        ),
        ("nifti", "space-T1w", ["sub-03_task-y_space-T1w_desc-preproc_bold.nii.gz"], "T1w"),
    ],
)
def test_each_family_of_files_is_one_run(
    tmp_path: Path, write_raw: Any, write_run: Any, kind: str, space: str, files: list[str], label: str
) -> None:
    write_raw(tmp_path, "sub-03_task-y")
    write_run(tmp_path / "derivatives" / "fmriprep", "sub-03_task-y", kind, space=space)
    (unit,) = find_units(tmp_path, DatasetOptions())
    assert unit.label == f"sub-03_task-y_space-{label}"
    (run,) = unit.runs
    assert [path.name for path in run.bold] == files
    assert (run.n_volumes, run.repetition_time, run.start_time) == (6, 2.0, 1.0)


@pytest.mark.parametrize(
    "name",
    [
        "sub-01_task-x_space-fsaverage5_hemi-{}_bold.func.gii",  # 20.2, 21
        "sub-01_task-x_hemi-{}_space-fsaverage5_bold.func.gii",  # 22 and later
        "sub-01_task-x_hemi-{}_space-onavg_den-10k_hash-abc123_bold.func.gii",  # an entity not known here
    ],
)
def test_names_of_all_versions_are_read(tmp_path: Path, write_raw: Any, write_run: Any, name: str) -> None:
    write_raw(tmp_path, "sub-01_task-x")
    write_run(tmp_path / "derivatives" / "fmriprep", "sub-01_task-x", "gifti", space="space-fsaverage5")
    func = tmp_path / "derivatives" / "fmriprep" / "sub-01" / "func"
    for hemi in "LR":
        old = func / f"sub-01_task-x_hemi-{hemi}_space-fsaverage5_bold.func.gii"
        old.rename(func / name.format(hemi))
    (unit,) = find_units(tmp_path, DatasetOptions())
    assert [path.name for path in unit.runs[0].bold] == [name.format("L"), name.format("R")]


def test_old_cifti_and_native_volumes_have_no_space_entity(tmp_path: Path, write_raw: Any, write_run: Any) -> None:
    write_raw(tmp_path, "sub-01_task-x")
    for kind in ("cifti", "nifti"):
        write_run(tmp_path / "derivatives" / "fmriprep", "sub-01_task-x", kind, space="")
    units = find_units(tmp_path, DatasetOptions(spaces=("boldref", "fsLR")))
    assert [(unit.space, unit.label) for unit in units] == [("boldref", "sub-01_task-x"), ("fsLR", "sub-01_task-x")]


@pytest.mark.parametrize("level", ["", "sub-01", "sub-01/ses-a", "sub-01/ses-a/func"])
def test_events_are_inherited_from_every_level(tmp_path: Path, write_raw: Any, write_run: Any, level: str) -> None:
    write_raw(tmp_path, "sub-01_ses-a_task-x_run-01", events=None)
    write_run(tmp_path / "derivatives" / "fmriprep", "sub-01_ses-a_task-x_run-1")
    prefix = "_".join(part for part in level.split("/") if part.startswith(("sub-", "ses-")))
    path = tmp_path / level / f"{prefix + '_' if prefix else ''}task-x_events.tsv"
    path.write_text(EVENTS)
    (tmp_path / "task-other_events.tsv").write_text(EVENTS)
    (unit,) = find_units(tmp_path, DatasetOptions())
    assert unit.runs[0].events == path
    assert unit.entities == {"sub": "01", "ses": "a", "task": "x", "space": "MNI152NLin2009cAsym"}


def test_nearest_events_win(bids_dir: Path) -> None:
    (bids_dir / "task-x_events.tsv").write_text(EVENTS)
    (bids_dir / "sub-01" / "func" / "sub-01_task-x_run-02_events.tsv").unlink()
    names = [run.events.name for run in find_units(bids_dir, DatasetOptions())[0].runs]
    assert names == ["sub-01_task-x_run-01_events.tsv", "task-x_events.tsv"]


def test_echoes_share_events_and_are_not_data(tmp_path: Path, write_raw: Any, write_run: Any) -> None:
    write_raw(tmp_path, "sub-01_task-x_echo-1")
    fmriprep = tmp_path / "derivatives" / "fmriprep"
    write_run(fmriprep, "sub-01_task-x")
    write_run(fmriprep, "sub-01_task-x_echo-1", space="space-MNI152NLin2009cAsym")
    (unit,) = find_units(tmp_path, DatasetOptions())
    assert [run.label for run in unit.runs] == ["sub-01_task-x"]
    assert "echo" not in unit.runs[0].bold[0].name


def test_sessions_are_joined_and_leave_the_name(tmp_path: Path, write_raw: Any, write_run: Any) -> None:
    for ses in ("10", "2"):
        write_raw(tmp_path, f"sub-01_ses-{ses}_task-x_acq-mb")
        write_run(tmp_path / "derivatives" / "fmriprep", f"sub-01_ses-{ses}_task-x_acq-mb")
    (unit,) = find_units(tmp_path, DatasetOptions())
    assert unit.label == "sub-01_task-x_acq-mb_space-MNI152NLin2009cAsym"
    assert [run.entities["ses"] for run in unit.runs] == ["2", "10"]  # in order of their numbers
    (one,) = find_units(tmp_path, DatasetOptions(sessions=("ses-10",)))
    assert one.label == "sub-01_ses-10_task-x_acq-mb_space-MNI152NLin2009cAsym"


def test_runs_without_events_are_skipped_and_said(bids_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    (bids_dir / "sub-01" / "func" / "sub-01_task-x_run-02_events.tsv").unlink()
    with caplog.at_level(logging.WARNING):
        units = find_units(bids_dir, DatasetOptions())
    assert [len(unit.runs) for unit in units] == [1, 2]
    assert "task-x: 1 runs have no events.tsv" in caplog.text


@pytest.mark.parametrize(("asked", "expected"), [("1", "01"), ("01", "01"), ("run-2", "02")])
def test_runs_are_chosen_by_number(bids_dir: Path, asked: str, expected: str) -> None:
    units = find_units(bids_dir, DatasetOptions(runs=(asked,), participants=("sub-02",)))
    assert [run.label for run in units[0].runs] == [f"sub-02_task-x_run-{expected}"]


@pytest.mark.parametrize(
    ("options", "error", "parts"),
    [
        (DatasetOptions(tasks=("z",)), EmptySelectionError, ["--task-id z", "there are: x"]),
        (DatasetOptions(runs=("7",)), EmptySelectionError, ["--run-label 7", "there are: 1, 2"]),
        (DatasetOptions(sessions=("1",)), EmptySelectionError, ["--session-label 1", "no file name has ses-"]),
        (DatasetOptions(spaces=("fsLR",)), EmptySelectionError, ["--space fsLR", "there are: MNI152NLin2009cAsym"]),
        (DatasetOptions(participants=("1",)), MissingInputError, ["'1'", "did you mean '01'", "01, 02"]),
        (DatasetOptions(derivatives=("/nowhere",)), MissingInputError, ["--derivatives /nowhere", "no such folder"]),
    ],
)
def test_selecting_nothing_says_what_there_is(
    bids_dir: Path, options: DatasetOptions, error: type[DnnbrainError], parts: list[str]
) -> None:
    with pytest.raises(error) as caught:
        find_units(bids_dir, options)
    assert all(part in str(caught.value) for part in parts), str(caught.value)
    assert caught.value.exit_code == error.exit_code


def test_a_participant_that_was_not_preprocessed(bids_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.rmtree(bids_dir / "derivatives" / "fmriprep" / "sub-02")
    with pytest.raises(MissingInputError, match=r"participants 02 .*fmriprep"):
        find_units(bids_dir, DatasetOptions(participants=("02",)))
    with pytest.raises(MissingInputError, match=r"participant 02: no preprocessed BOLD"):
        find_units(bids_dir, DatasetOptions(participants=("01", "02")))
    assert [unit.participant for unit in find_units(bids_dir, DatasetOptions())] == ["01"]
    assert "participant 02" in caplog.text


def test_space_by_precedence_and_by_qualifier(bids_dir: Path, write_run: Any) -> None:
    fmriprep = bids_dir / "derivatives" / "fmriprep"
    write_run(fmriprep, "sub-01_task-x_run-1", "gifti", space="space-fsaverage5")
    write_run(fmriprep, "sub-01_task-x_run-1", "nifti", space="space-T1w")
    options = DatasetOptions(participants=("01",))
    assert find_units(bids_dir, options)[0].space == "fsaverage5"
    write_run(fmriprep, "sub-01_task-x_run-1", "cifti", space="space-fsLR_den-91k")
    assert find_units(bids_dir, options)[0].space == "fsLR"
    write_run(fmriprep, "sub-01_task-x_run-1", "cifti", space="space-fsLR_den-170k")
    with pytest.raises(UsageError, match=r"fsLR:den-170k .*fsLR:den-91k .*--space"):
        find_units(bids_dir, options)
    units = find_units(bids_dir, DatasetOptions(participants=("01",), spaces=("fsLR:den-170k", "T1w")))
    assert [unit.label for unit in units] == ["sub-01_task-x_space-fsLR_den-170k", "sub-01_task-x_space-T1w"]


def test_missing_hemisphere(tmp_path: Path, write_raw: Any, write_run: Any) -> None:
    write_raw(tmp_path, "sub-01_task-x")
    write_run(tmp_path / "derivatives" / "fmriprep", "sub-01_task-x", "gifti", space="space-fsaverage5")
    next(tmp_path.rglob("*hemi-R*.func.gii")).unlink()
    with pytest.raises(MissingInputError, match="hemi-R"):
        find_units(tmp_path, DatasetOptions())


def test_no_events_at_all(bids_dir: Path) -> None:
    for path in bids_dir.rglob("*_events.tsv"):
        path.unlink()
    with pytest.raises(MissingInputError, match=r"none of the 4 runs, such as sub-01.*events\.tsv"):
        find_units(bids_dir, DatasetOptions())


def test_no_bold_in_the_derivatives(bids_dir: Path) -> None:
    for path in bids_dir.rglob("*_desc-preproc_bold.nii.gz"):
        path.unlink()
    with pytest.raises(MissingInputError, match=r"no preprocessed BOLD .*--level minimal"):
        find_units(bids_dir, DatasetOptions())


class TestTiming:
    @staticmethod
    def make(root: Path, write_raw: Any, write_run: Any, sidecar: dict[str, Any], step: float = 2.0) -> Any:
        write_raw(root, "sub-01_task-x")
        write_run(root / "derivatives" / "fmriprep", "sub-01_task-x", sidecar=sidecar, step=step)
        return find_units(root, DatasetOptions())[0].runs[0]

    @pytest.mark.parametrize(
        ("sidecar", "step", "expected"),
        [
            ({}, 1.5, (1.5, 0.0)),  # the header alone
            ({"RepetitionTime": 2.2}, 0.0, (2.2, 0.0)),  # a header without a repetition time
            ({"RepetitionTime": 2.0, "StartTime": 0.9}, 2.0005, (2.0, 0.9)),
            ({"RepetitionTime": 2.0, "SliceTimingCorrected": True}, 2.0, (2.0, 1.0)),  # fMRIPrep before 21
            ({"RepetitionTime": 2.0, "SliceTimingCorrected": False}, 2.0, (2.0, 0.0)),
            ({"VolumeTiming": [0, 2, 4, 6, 8, 10]}, 2.0, (2.0, 0.0)),
            ({"VolumeTiming": [0.5, 2.5, 4.5, 6.5, 8.5, 10.5], "SliceTimingCorrected": True}, 2.0, (2.0, 1.5)),
        ],
    )
    def test_sidecar_and_header(
        self,
        tmp_path: Path,
        write_raw: Any,
        write_run: Any,
        sidecar: dict[str, Any],
        step: float,
        expected: tuple[float, float],
    ) -> None:
        run = self.make(tmp_path, write_raw, write_run, sidecar, step)
        assert (run.repetition_time, run.start_time) == pytest.approx(expected)

    @pytest.mark.parametrize(
        ("sidecar", "step", "parts"),
        [
            ({"RepetitionTime": 2.0}, 2.1, ["2 s in the sidecar", "2.1 s in the header"]),
            ({"RepetitionTime": 2000}, 2.0, ["2000 s in the sidecar"]),
            ({}, 0.0, ["no RepetitionTime"]),
            ({"RepetitionTime": "2"}, 2.0, ["RepetitionTime is '2'"]),
            ({"RepetitionTime": -1}, 2.0, ["must be positive"]),
            ({"VolumeTiming": [0, 2, 5]}, 2.0, ["uneven"]),
            ({"VolumeTiming": ["a", "b"]}, 2.0, ["VolumeTiming is ['a', 'b']", "list of seconds"]),
            ({"VolumeTiming": 2.0}, 2.0, ["VolumeTiming is 2.0", "list of seconds"]),
            ({"StartTime": float("nan")}, 2.0, ["StartTime is nan"]),
        ],
    )
    def test_contradictions(
        self, tmp_path: Path, write_raw: Any, write_run: Any, sidecar: dict[str, Any], step: float, parts: list[str]
    ) -> None:
        with pytest.raises(BadDataError) as caught:
            self.make(tmp_path, write_raw, write_run, sidecar, step)
        assert all(part in str(caught.value) for part in [*parts, "desc-preproc_bold.nii.gz"])

    def test_inherited_from_raw_root(self, tmp_path: Path, write_raw: Any, write_run: Any) -> None:
        (tmp_path / "task-x_bold.json").write_text(json.dumps({"RepetitionTime": 3.0}))
        assert self.make(tmp_path, write_raw, write_run, {"StartTime": 1.5}, step=0).frame_times[:2].tolist() == [
            1.5,
            4.5,
        ]

    def test_malformed_sidecar(self, tmp_path: Path, write_raw: Any, write_run: Any) -> None:
        self.make(tmp_path, write_raw, write_run, {"RepetitionTime": 2.0})
        next(tmp_path.rglob("*preproc_bold.json")).write_text("{")
        with pytest.raises(BadDataError, match=r"preproc_bold\.json: not JSON"):
            find_units(tmp_path, DatasetOptions())


class TestFilterFile:
    @staticmethod
    def find(bids_dir: Path, content: Any) -> list[str]:
        path = bids_dir.parent / "filter.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return [run.label for unit in find_units(bids_dir, DatasetOptions(bids_filter_file=path)) for run in unit.runs]

    @pytest.mark.parametrize(
        ("query", "n"),
        [
            ({"run": 1}, 2),
            ({"run": "02"}, 2),
            ({"run": ["01", 2], "subject": "01"}, 2),
            ({"session": None}, 4),
            ({"run": "*", "suffix": "bold", "datatype": "func", "extension": "nii.gz"}, 4),
        ],
    )
    def test_bold(self, bids_dir: Path, query: dict[str, Any], n: int, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.INFO):
            assert len(self.find(bids_dir, {"bold": query})) == n
        assert f"keeps {n} of 4 files" in caplog.text

    def test_other_queries(self, bids_dir: Path) -> None:
        assert self.find(bids_dir, {"events": {"run": 1}}) == ["sub-01_task-x_run-01", "sub-02_task-x_run-01"]
        path = bids_dir.parent / "filter.json"
        path.write_text(json.dumps({"mask": {"sub": "01"}, "confounds": {"sub": "02"}}))
        units = find_units(bids_dir, DatasetOptions(bids_filter_file=path))
        assert [(bool(u.runs[0].mask), bool(u.runs[0].confounds)) for u in units] == [(True, False), (False, True)]

    @pytest.mark.parametrize(
        ("content", "error", "part"),
        [
            ({"t1w": {}}, UnknownNameError, "unknown query"),
            ({"bold": {"sesion": "1"}}, UnknownNameError, "did you mean 'session'"),
            ({"bold": {"session": "*"}}, EmptySelectionError, "selects none of the 4 files"),
            ("{", UsageError, "not JSON"),
            ([], UsageError, "must be {query: {entity: value}}"),
        ],
    )
    def test_mistakes(self, bids_dir: Path, content: Any, error: type[DnnbrainError], part: str) -> None:
        with pytest.raises(error) as caught:
            self.find(bids_dir, content)
        assert part in str(caught.value)

    def test_absent(self, bids_dir: Path) -> None:
        with pytest.raises(MissingInputError, match="nowhere"):
            find_units(bids_dir, DatasetOptions(bids_filter_file=bids_dir / "nowhere.json"))


class TestRoots:
    def test_participants(self, bids_dir: Path) -> None:
        (bids_dir / "sub-03.txt").touch()
        assert list_participants(bids_dir) == ["01", "02"]

    def test_absent_in_a_container(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("APPTAINER_NAME", "dnnbrain.sif")
        with pytest.raises(MissingInputError, match=r"does not exist.*apptainer run -B"):
            find_units(tmp_path / "nowhere", DatasetOptions())

    @pytest.mark.parametrize("wrong", ["..", "sub-01", "sub-01/func", "derivatives", "dataset_description.json"])
    def test_one_level_off(self, bids_dir: Path, wrong: str) -> None:
        with pytest.raises(MissingInputError, match=rf"Did you mean .*{bids_dir.name}\?"):
            list_participants((bids_dir / wrong).resolve())

    def test_empty_folder(self, tmp_path: Path) -> None:
        (tmp_path / "a" / "b" / "c").mkdir(parents=True)
        with pytest.raises(MissingInputError, match=r"no participants .* it has b"):
            list_participants(tmp_path / "a")

    def test_two_derivatives(self, bids_dir: Path) -> None:
        folder = bids_dir / "derivatives"
        shutil.copytree(folder / "fmriprep", folder / "fmriprep-25")
        with pytest.raises(UsageError, match=r"fmriprep, fmriprep-25.*--derivatives fmriprep-25="):
            find_units(bids_dir, DatasetOptions())
        both = tuple(f"{name}={folder / name}" for name in ("fmriprep", "fmriprep-25"))
        assert list(find_derivatives(bids_dir, DatasetOptions(derivatives=both))) == ["fmriprep", "fmriprep-25"]
        with pytest.raises(UsageError, match="two files of the same run and space"):
            find_units(bids_dir, DatasetOptions(derivatives=both))
        assert find_units(bids_dir, DatasetOptions(derivatives=(str(folder / "fmriprep"),)))

    def test_no_derivatives(self, bids_dir: Path) -> None:
        (bids_dir / "derivatives" / "fmriprep").rename(bids_dir / "derivatives" / "prep")
        with pytest.raises(MissingInputError, match=r"has prep.*--derivatives NAME=PATH"):
            find_units(bids_dir, DatasetOptions())

    def test_derivatives_one_level_up(self, bids_dir: Path) -> None:
        with pytest.raises(MissingInputError, match=r"Did you mean .*fmriprep\?"):
            find_units(bids_dir, DatasetOptions(derivatives=(str(bids_dir / "derivatives"),)))

    @pytest.mark.parametrize("link", ["../..", "file://{root}"])
    def test_bids_dir_is_a_derivative_of_local_data(self, bids_dir: Path, link: str) -> None:
        fmriprep = bids_dir / "derivatives" / "fmriprep"
        links = {"raw": link.format(root=bids_dir)}
        (fmriprep / "dataset_description.json").write_text(
            json.dumps({"DatasetType": "derivative", "DatasetLinks": links})
        )
        assert [u.label for u in find_units(fmriprep, DatasetOptions())] == [
            u.label for u in find_units(bids_dir, DatasetOptions())
        ]

    @pytest.mark.parametrize("links", [None, {"raw": "https://doi.org/x"}, {"raw": "/data"}])
    def test_bids_dir_is_a_derivative_of_data_elsewhere(self, bids_dir: Path, links: Any) -> None:
        fmriprep = bids_dir / "derivatives" / "fmriprep"
        (fmriprep / "dataset_description.json").write_text(
            json.dumps({"DatasetType": "derivative", "DatasetLinks": links})
        )
        with pytest.raises(UsageError, match=r"is a derivative.*--derivatives fmriprep="):
            find_units(fmriprep, DatasetOptions())


def test_corrupt_bold_is_named(bids_dir: Path) -> None:
    path = next(bids_dir.rglob("sub-01*_desc-preproc_bold.nii.gz"))
    path.write_bytes(b"not an image")
    with pytest.raises(BadDataError, match=rf"{path.name}: cannot be read"):
        find_units(bids_dir, DatasetOptions())
    path.write_bytes(b"")
    with pytest.raises(BadDataError, match=rf"{path.name}: the file is empty"):
        find_units(bids_dir, DatasetOptions())
    path.unlink()
    path.symlink_to("../.git/annex/objects/gone")
    with pytest.raises(MissingInputError, match=rf"{path.name}.*datalad get"):
        find_units(bids_dir, DatasetOptions())


class TestDatabase:
    def test_same_units_as_scanning(self, bids_dir: Path, tmp_path: Path) -> None:
        options = DatasetOptions(participants=("01",), bids_database_dir=tmp_path / "db")
        scanned = find_units(bids_dir, DatasetOptions(participants=("01",)))
        for _ in ("made", "read again"):
            units = find_units(bids_dir, options)
            assert [(u.label, [r.bold for r in u.runs], [r.events for r in u.runs]) for u in units] == [
                (u.label, [r.bold for r in u.runs], [r.events for r in u.runs]) for u in scanned
            ]

    def test_of_another_dataset_or_older(self, bids_dir: Path, tmp_path: Path) -> None:
        options = DatasetOptions(participants=("01",), bids_database_dir=tmp_path / "db")
        find_units(bids_dir, options)
        with pytest.raises(MissingInputError, match=r"does not know participant 02.*remove it"):
            find_units(bids_dir, DatasetOptions(bids_database_dir=tmp_path / "db"))
        shutil.copytree(bids_dir, tmp_path / "copy")
        with pytest.raises(UsageError, match=r"the database is of .*study, not of .*copy"):
            find_units(tmp_path / "copy", options)
