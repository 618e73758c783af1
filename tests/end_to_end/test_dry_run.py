"""The plan says what would be done, and leaves no trace."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Stamps = dict[str, tuple[int, int]]


def stamp_folder(folder: Path) -> Stamps:
    """Every file and folder with its size and time of change."""
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in [folder, *folder.rglob("*")]}


@pytest.fixture
def plan(
    copied: Any, tmp_path: Path, run_dnnbrain: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """Ask for a plan, and see to it that nothing is written: the dataset, the current folder, the output, the home."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "here"))

    def run(*more: object, participants: tuple[str, ...] = ("01",)) -> Any:
        options = [*copied.options("fsLR", "MNI152NLin2009cAsym"), "--dry-run", *more]
        before = stamp_folder(tmp_path)
        outcome = run_dnnbrain(
            copied.path, tmp_path / "out", "participant", "--participant-label", *participants, *options
        )
        assert stamp_folder(tmp_path) == before
        assert "Traceback" not in outcome.err
        return outcome

    return run


def read_rows(text: str) -> list[dict[str, str]]:
    head, *lines = text.split("\n\n")[0].splitlines()
    return [dict(zip(head.split(), line.split(), strict=False)) for line in lines]


def test_the_numbers_are_right(plan: Callable[..., Any]) -> None:
    outcome = plan(participants=("01", "02"))
    assert outcome.code == 0, outcome.err
    rows = read_rows(outcome.out)
    assert [(row["participant"], row["space"]) for row in rows] == [
        ("01", "fsLR_den-91k"),
        ("01", "MNI152NLin2009cAsym_res-2"),
        ("02", "fsLR_den-91k"),
        ("02", "MNI152NLin2009cAsym_res-2"),
    ]
    for row in rows:
        counts = {key: row[key] for key in ("task", "runs", "volumes", "trials", "stimuli", "missing")}
        # the last stimulus comes at 6 + 4 * 23 s and is followed by 18 s, in volumes of 2 s
        assert counts == {
            "task": "objects",
            "runs": "2",
            "volumes": "116",
            "trials": "48",
            "stimuli": "24",
            "missing": "0",
        }
    assert f"tiny_network:build: 3 layers, {8 * 36 + 16 * 4 + 24:,} units an image" in outcome.out
    assert "analyses: encoding, rsa" in outcome.out
    assert "cores: 1 " in outcome.out
    assert "nothing was written" in outcome.out


def test_layers_and_analyses_are_those_chosen(plan: Callable[..., Any]) -> None:
    outcome = plan("--layers", "late", "--analysis", "encoding", "--mem", "3G", "--n-cpus", "2")
    assert "3 layers" not in outcome.out
    assert "tiny_network:build: 1 layers, 24 units" in outcome.out
    assert "analyses: encoding\n" in outcome.out
    assert "cores: 2 " in outcome.out
    assert "memory allowed: 3.0 GB" in outcome.out


def test_missing_stimuli_are_counted(copied: Any, plan: Callable[..., Any]) -> None:
    for name in ("texture2/place1.png", "texture1/place5.png"):
        (copied.path / "stimuli" / name).unlink()
    outcome = plan()
    assert outcome.code == 0
    assert {(row["stimuli"], row["missing"]) for row in read_rows(outcome.out)} == {("22", "2")}
    assert outcome.out.count("(texture1/place5.png ...)") == 2


def test_what_a_unit_lacks_is_said_in_its_row(copied: Any, plan: Callable[..., Any]) -> None:
    for path in (copied.path / "sub-01").rglob("*_events.tsv"):
        path.write_text(path.read_text().replace("stim_file", "picture"))
    outcome = plan(participants=("01", "02"))
    assert outcome.code == 0
    assert outcome.out.count("no column stim_file, stim_id or stimulus_id") == 2
    assert [row["trials"] for row in read_rows(outcome.out) if row["participant"] == "02"] == ["48", "48"]


@pytest.mark.parametrize(
    ("more", "code", "part"),
    [
        (["--space", "T1w"], 18, "fsLR:den-91k"),
        (["--task-id", "rest"], 18, "objects"),
        (["--participant-label", "3"], 66, "'3'"),
        (["--network", "alexnte"], 2, "did you mean 'alexnet'"),
        (["--layers", "latte"], 2, "did you mean 'late'"),
        (["--derivatives", os.devnull], 66, "--derivatives"),
    ],
)
def test_what_cannot_be_done_cannot_be_planned(more: list[str], code: int, part: str, plan: Callable[..., Any]) -> None:
    outcome = plan(*more)
    assert outcome.code == code
    assert part in outcome.err
    assert outcome.out == ""


def test_rsa_without_an_atlas_is_refused(copied: Any, tmp_path: Path, run_dnnbrain: Callable[..., Any]) -> None:
    options = [*copied.options("fsLR", atlas=False), "--analysis", "rsa", "--dry-run"]
    outcome = run_dnnbrain(copied.path, tmp_path / "out", "participant", *options)
    assert outcome.code == 2
    assert "--atlas" in outcome.err


def test_an_output_in_the_way_is_refused(copied: Any, run_dnnbrain: Callable[..., Any]) -> None:
    outcome = run_dnnbrain(copied.path, copied.path, "participant", *copied.options("fsLR"), "--dry-run")
    assert outcome.code == 2
    assert "is the input dataset itself" in outcome.err


def test_what_is_wrong_for_everyone_is_no_row(plan: Callable[..., Any]) -> None:
    outcome = plan("--trial-filter", "stim_file.to_csv('table.csv')")
    assert outcome.code == 2
    assert ".to_csv is not allowed" in outcome.err


def test_a_map_that_is_not_there_is_named(plan: Callable[..., Any]) -> None:
    assert "! --stim-map nowhere.tsv: does not exist" in plan("--stim-map", "nowhere.tsv").out
