from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dnnbrain_app.dataset.confounds import read_confounds
from dnnbrain_app.dataset.events import build_trials, read_events
from dnnbrain_app.errors import BadDataError, MissingInputError
from dnnbrain_app.records import Run


def make_run(events: Path, confounds: Path | None = None, number: str = "1") -> Run:
    return Run({"sub": "01", "task": "x", "run": number}, (Path("bold.nii.gz"),), events, confounds, None, 2.0, 0.0, 3)


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode("utf-8"))
    return path


@pytest.mark.parametrize(
    ("text", "onsets", "durations", "stimuli"),
    [
        ("onset\tduration\tstim_file\n.839\t1\ta.png\n", [0.839], [1], ["a.png"]),
        ("\ufeffonset\tduration\tstim_file\r\n1\t1\ta.png\r\n", [1], [1], ["a.png"]),
        ("onset\tduration\tstim_file\n-2.5\tn/a\t a b.png \n3\t\tn/a\n", [-2.5, 3], [0, 0], ["a b.png", None]),
        ('onset\tstim_file\n1\ta"b.png\n', [1], [0], ['a"b.png']),
        ("onset\tduration\tstim_file\t\n1\t2\ta.png\t\n", [1], [2], ["a.png"]),
        ("onset\tduration\tstim_file\n", [], [], []),
    ],
)
def test_tables_as_they_occur(tmp_path: Path, text: str, onsets: list, durations: list, stimuli: list) -> None:
    events = read_events(write(tmp_path / "events.tsv", text))
    assert events["onset"].tolist() == onsets
    assert events["duration"].tolist() == durations
    assert [None if name != name or name is None else name for name in events["stim_file"]] == stimuli


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("onset\tduration\n1\t2\nsoon\t1\n", ["row 2", "onset 'soon'"]),
        ("onset\tduration\n1\tinf\n", ["row 1", "duration 'inf'"]),
        ("onset\tduration\n1\t-3\n", ["row 1", "-3 s is negative"]),
        ("time\tduration\n1\t1\n", ["no column onset", "there are: time, duration"]),
        ("onset,duration\n1,1\n", ["no column onset"]),
        ("", ["the file is empty"]),
        ("onset\tduration\n1\t2\n1\t2\t3\t4\n", ["tab-separated"]),
    ],
)
def test_wrong_tables(tmp_path: Path, text: str, parts: list[str]) -> None:
    with pytest.raises(BadDataError) as caught:
        read_events(write(tmp_path / "events.tsv", text))
    assert all(part in str(caught.value) for part in ["events.tsv", *parts]), str(caught.value)


def test_bytes_that_are_not_text(tmp_path: Path) -> None:
    path = tmp_path / "events.tsv"
    path.write_bytes(b"onset\tduration\n1\t\xff\xfe\n")
    with pytest.raises(BadDataError, match=r"events\.tsv"):
        read_events(path)
    with pytest.raises(MissingInputError, match=r"nowhere\.tsv: does not exist"):
        read_events(tmp_path / "nowhere.tsv")


def test_trials_of_two_runs(tmp_path: Path) -> None:
    one = write(tmp_path / "1.tsv", "onset\tduration\tmy image\n5\t1\tb\n2\t1\ta\n3\t1\tn/a\n")
    two = write(tmp_path / "2.tsv", "onset\tduration\tmy image\n1\t.5\tb\n")
    trials = build_trials([make_run(one), make_run(two, number="2")], "my image")
    assert trials.stimulus.tolist() == ["a", "b", "b"]
    np.testing.assert_array_equal(trials.onset, [2, 5, 1])
    np.testing.assert_array_equal(trials.duration, [1, 1, 0.5])
    np.testing.assert_array_equal(trials.run, [0, 0, 1])
    np.testing.assert_array_equal(trials.repeat, [0, 0, 1])
    assert trials.run_labels == ("task-x_run-1", "task-x_run-2")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (
            "onset\tduration\tImgName\n1\t1\ta\n2\t1\tb\n",
            ["no column 'stim_file'", "there are: onset, duration, ImgName", "--stim-column"],
        ),
        ("onset\tduration\tstim_file\n1\t1\ta\n2\t1\ta\n", ["names only 'a'", "two different stimuli"]),
        ("onset\tduration\tstim_file\n1\t1\tn/a\n", ["names none"]),
        ("onset\tduration\tstim_file\n1\t1\ta\nn/a\t1\tb\n", ["'b' has onset n/a"]),
    ],
)
def test_trials_that_cannot_be(tmp_path: Path, text: str, parts: list[str]) -> None:
    with pytest.raises(BadDataError) as caught:
        build_trials([make_run(write(tmp_path / "events.tsv", text))], "stim_file")
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_confounds(tmp_path: Path) -> None:
    path = write(tmp_path / "confounds.tsv", "trans_x\tfd\n1e-3\tn/a\n2\t.5\n-3\t0\n")
    run = make_run(tmp_path / "events.tsv", path)
    confounds = read_confounds(run)
    assert list(confounds) == ["trans_x", "fd"]
    np.testing.assert_array_equal(confounds["trans_x"], [1e-3, 2, -3])
    np.testing.assert_array_equal(confounds["fd"], [np.nan, 0.5, 0])
    assert confounds["fd"].dtype == np.float64
    assert read_confounds(replace(run, confounds=None)) == {}
    with pytest.raises(BadDataError, match=r"3 rows for the 4 volumes of bold\.nii\.gz"):
        read_confounds(replace(run, n_volumes=4))
    write(path, "trans_x\n1\nx\n3\n")
    with pytest.raises(BadDataError, match=r"row 2: trans_x 'x' is not a number"):
        read_confounds(run)
