from __future__ import annotations

from pathlib import Path

import pytest

from dnnbrain_app.errors import BadDataError, MissingInputError
from dnnbrain_app.stimuli.mapping import map_names, read_stim_map
from dnnbrain_app.stimuli.sets import find_missing, find_stimuli


def write(folder: Path, text: str) -> Path:
    path = folder / "map.tsv"
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize(
    ("text", "column", "expected"),
    [
        ("73k_id\tstim_file\n1\tnsd.hdf5/imgBrick/0\n", "73k_id", {"1": "nsd.hdf5/imgBrick/0"}),
        ("\ufeff73k_id\tstim_file\r\n1\ta b.png \r\n", "", {"1": "a b.png"}),
        ("stim_file\tname\n a.png\tx\n", "name", {"x": "a.png"}),
        ("id\tfile\nx\ta.png\n", "", {"x": "a.png"}),
        ("stim_file\tfile\nold.png\ta.png\n", "", {"old.png": "a.png"}),
        ("n\tid\tstim_file\tm\n4\tx\ta.png\t5\n", "id", {"x": "a.png"}),
        ("id\tstim_file\nx\ta.png\nx\ta.png\nn/a\tb.png\ny\tn/a\nz\t\n", "", {"x": "a.png"}),
    ],
)
def test_tables(tmp_path: Path, text: str, column: str, expected: dict[str, str]) -> None:
    assert read_stim_map(write(tmp_path, text), column) == expected


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("id\tstim_file\nx\ta.png\n", ["columns 'name', as the events, and 'stim_file'", "there are: id, stim_file"]),
        ("name\tother\tfile\nx\ta\tb\n", ["and 'stim_file'", "there are: name, other, file"]),
        ("name\nx\n", ["and 'stim_file'"]),
        ("name\tstim_file\nx\ta.png\ny\tb.png\nx\tb.png\n", ["row 3: name 'x' is 'b.png' here, 'a.png' above"]),
        ("name\tstim_file\nn/a\ta.png\n", ["no row has both name and stim_file"]),
        ("name\tstim_file\n", ["no row has both"]),
        ("", ["cannot be read as a tab-separated table"]),
    ],
)
def test_tables_that_cannot_be(tmp_path: Path, text: str, parts: list[str]) -> None:
    with pytest.raises(BadDataError) as caught:
        read_stim_map(write(tmp_path, text), "name")
    assert all(part in str(caught.value) for part in ["map.tsv", *parts]), str(caught.value)
    with pytest.raises(MissingInputError, match=r"nowhere\.tsv: does not exist"):
        read_stim_map(tmp_path / "nowhere.tsv", "name")


def test_names_are_matched_as_text_then_as_numbers() -> None:
    files = {"46003": "a", "7.0": "b", "08": "c", "8": "d", "3626115.0194980004": "e", "x": "f", "-3": "g"}
    names = ["46003.0", "7", "8", "08", "8.0", "3626115.019498", "x", "y", "-3.0", "3", "nan"]
    expected = {"46003.0": "a", "7": "b", "8": "d", "08": "c", "3626115.019498": "e", "x": "f", "-3.0": "g"}
    assert map_names(names, files) == expected  # 8.0 could be either of two


def test_stimuli_keep_their_names(folder: Path) -> None:
    (folder / "stimuli.tsv").write_text("73k_id\tkind\n2\tfood\n1\tanimal\n")
    files = {"1": "faces\\b.png", "2": "stimuli/a.JPEG", "9": "gone.png"}
    found = find_stimuli(["2.0", "1"], folder, files=files)
    assert found.ids == ("1", "2.0")
    assert found.paths == (folder / "faces" / "b.png", folder / "a.JPEG")
    assert found.attributes["kind"].tolist() == ["animal", "food"]


def test_names_without_a_file(folder: Path) -> None:
    files = {"1": "faces/b.png", "2": "gone.png"}
    with pytest.raises(MissingInputError) as caught:
        find_stimuli(["1", "2", "3"], folder, files=files)
    assert "2 of 3 stimuli are not in" in str(caught.value)
    assert "'gone.png', '3' (no row of --stim-map)" in str(caught.value)
    assert find_missing(["1", "2", "3"], folder, files) == ["2", "3"]
    with pytest.raises(BadDataError, match=r"'\.\./x\.png' leads out"):
        find_stimuli(["1", "2"], folder, files={**files, "2": "../x.png"})
