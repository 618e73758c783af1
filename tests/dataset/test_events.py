from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dnnbrain_app.dataset.confounds import read_confounds
from dnnbrain_app.dataset.events import build_trials, read_events
from dnnbrain_app.errors import BadDataError, MissingInputError
from dnnbrain_app.records import Run, Trials


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
        ("onset\tduration\tstim_file\tTODO -- fill in rows and add more columns\n", [], [], []),
        ("onset\tduration\t\tstim_file\n1\t9\tx\ta.png\n2\t9\t\ta.png\n", [1, 2], [9, 9], ["a.png", "a.png"]),
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
        ("onset\tduration\tx\tx \n1\t2\t3\t4\n", ["two columns are named 'x'"]),
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
        ("onset\tduration\tstim_file\n1\t1\tn/a\n", ["column 'stim_file' names no stimulus in any row"]),
        ("onset\tduration\tstim_file\n1\t1\ta\nn/a\t1\tb\n", ["'b' has onset n/a"]),
    ],
)
def test_trials_that_cannot_be(tmp_path: Path, text: str, parts: list[str]) -> None:
    with pytest.raises(BadDataError) as caught:
        build_trials([make_run(write(tmp_path / "events.tsv", text))], "stim_file")
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def build(folder: Path, *texts: str, column: str = "", trial_filter: str = "") -> Trials:
    """Write the tables of runs, one a text, and collect their trials."""
    paths = [write(folder / f"{number}.tsv", text) for number, text in enumerate(texts)]
    runs = [make_run(path, number=str(number)) for number, path in enumerate(paths)]
    return build_trials(runs, column, trial_filter)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["onset\tstimulus_id\tstim_id\tstim_file\n1\t1\ti\ta\n2\t2\tj\tb\n"], ["a", "b"]),
        (["onset\tstimulus_id\tstim_id\n1\t1\ti\n2\t2\tj\n"], ["i", "j"]),
        (["onset\tstimulus_id\n1\tstim-a\n2\tstim-b\n"], ["stim-a", "stim-b"]),
        (["onset\tstim_file\tstim_id\n1\tn/a\ti\n2\tn/a\tj\n"], ["i", "j"]),
        (["onset\tstim_file\tstim_id\n1\ta\ti\n", "onset\tstim_id\n1\tj\n"], ["i", "j"]),
        (["onset\tstim_file\tstim_id\n1\tn/a\ti\n", "onset\tstim_file\tstim_id\n1\ta\ti\n2\tb\tj\n"], ["a", "b"]),
    ],
)
def test_the_usual_column_is_found(tmp_path: Path, texts: list[str], expected: list[str]) -> None:
    assert build(tmp_path, *texts).stimulus.tolist() == expected


def test_columns_that_seem_to_name_stimuli_are_told(tmp_path: Path) -> None:
    with pytest.raises(BadDataError) as caught:
        build(tmp_path, "onset\tduration\tlevel\tImgName\tcondition\tstim_file\n1\t1\t2\tx\tcoco/1.jpg\tn/a\n")
    message = str(caught.value)
    assert "0.tsv: no column stim_file, stim_id or stimulus_id that names stimuli in all runs" in message
    assert "there are: onset, duration, level, ImgName, condition, stim_file" in message
    assert "(likely: condition, e.g. coco/1.jpg; ImgName, e.g. x; stim_file, e.g. n/a)" in message
    assert "--stim-column" in message
    with pytest.raises(BadDataError) as caught:
        build(tmp_path, "onset\tduration\tlevel\n1\t1\t2\n")
    assert "there are: onset, duration, level. Name" in str(caught.value)


def test_the_run_without_the_column_is_named(tmp_path: Path) -> None:
    texts = ["onset\tstim_file\n1\ta\n2\tb\n", "onset\ttrial_type\n1\ta\n"]
    for column in ("", "stim_file"):
        with pytest.raises(BadDataError, match=r"1\.tsv: no column '?stim_file"):
            build(tmp_path, *texts, column=column)


def test_numbers_are_spelled_alike_over_runs(tmp_path: Path) -> None:
    texts = ["onset\t73k_id\n1\t569.0\n2\t12.0\n3\tn/a\n", "onset\t73k_id\n1\t569\n2\t007\n"]
    trials = build(tmp_path, *texts, column="73k_id")
    assert trials.stimulus.tolist() == ["569", "12", "569", "007"]
    assert trials.repeat.tolist() == [0, 0, 1, 0]
    texts[1] += "3\ta\n"  # now they are names
    assert build(tmp_path, *texts, column="73k_id").stimulus.tolist() == ["569.0", "12.0", "569", "007", "a"]


def test_fractions_are_spelled_alike(tmp_path: Path) -> None:
    # one image, as two tables of ds001506 have it
    texts = ["onset\tstimulus_id\n1\t3626115.0194980004\n2\t3482252.022530\n"]
    texts += ["onset\tstimulus_id\n1\t3626115.019498\n2\t3482252.02253\n"]
    assert build(tmp_path, *texts).stimulus.tolist() == ["3626115.019498", "3482252.02253"] * 2
    tiny = "onset\tstim_id\n1\t0.00000123\n2\t1.5\n"
    assert build(tmp_path, tiny).stimulus.tolist() == ["0.00000123", "1.5"]


def test_only_rows_that_the_filter_keeps_are_trials(tmp_path: Path) -> None:
    texts = [
        "onset\tduration\ttrial_type\tstim_file\n1\t1\texp\ta\n2\t1\tcatch\tx\n3\t1\tn/a\ty\n",
        "onset\tduration\ttrial_type\tstim_file\n1\t1\tcatch\tx\n",
        "onset\tduration\ttrial_type\tstim_file\n1\t1\texp\tb\n",
    ]
    trials = build(tmp_path, *texts, trial_filter="trial_type == 'exp'")
    assert trials.stimulus.tolist() == ["a", "b"]
    assert trials.run.tolist() == [0, 2]
    assert len(trials.run_labels) == 3
    assert len(build(tmp_path, *texts)) == 5
    assert build(tmp_path, *texts, trial_filter="trial_type == 'catch'").stimulus.tolist() == ["x", "x"]


def test_runs_that_inherit_one_table_share_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "task-x_events.tsv", "onset\tstim_file\n1\ta\n2\tb\n")
    trials = build_trials([make_run(path), make_run(path, number="2")], "", "stim_file != 'c'")
    assert trials.stimulus.tolist() == ["a", "b"] * 2
    assert trials.run.tolist() == [0, 0, 1, 1]
    assert caplog.text.count("have no duration") == 1


def test_overlapping_and_early_trials(tmp_path: Path) -> None:
    trials = build(tmp_path, "onset\tduration\tstim_file\n3\t9\ta\n-4.5\t20\tb\n3\t1\tb\n")
    assert trials.onset.tolist() == [-4.5, 3, 3]
    assert trials.stimulus.tolist() == ["b", "a", "b"]


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
