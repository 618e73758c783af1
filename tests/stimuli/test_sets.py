from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dnnbrain_app.errors import BadDataError, DnnbrainError, MissingInputError
from dnnbrain_app.stimuli import digests
from dnnbrain_app.stimuli.sets import find_missing, find_stimuli


def test_sorted_unique_with_digests(folder: Path) -> None:
    found = find_stimuli(["faces/b.png", "a.JPEG", "faces/b.png"], folder)
    assert found.ids == ("a.JPEG", "faces/b.png")
    assert found.paths == (folder / "a.JPEG", folder / "faces" / "b.png")
    assert found.digests[1] == hashlib.sha256((folder / "faces" / "b.png").read_bytes()).hexdigest()


def test_paths_do_not_depend_on_the_current_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    assert find_stimuli(["faces/b.png", "a.JPEG"], Path("stimuli")).paths[0] == folder / "a.JPEG"


def test_large_files_are_digested_whole(folder: Path, rng: np.random.Generator) -> None:
    path = folder / "a.JPEG"
    path.write_bytes(path.read_bytes() + rng.bytes(3_000_000))
    assert find_stimuli(["faces/b.png", "a.JPEG"], folder).digests[0] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_forgiven_spellings(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = find_stimuli(["stimuli/faces\\b.png", "./a.JPEG"], folder)
    assert [path.resolve() for path in found.paths] == [folder / "a.JPEG", folder / "faces" / "b.png"]
    assert "leading stimuli/" in caplog.text


def test_attributes(folder: Path) -> None:
    (folder / "stimuli.tsv").write_text("stim_file\tcategory\tsize\nfaces\\b.png\tface\t2\nother.png\tx\t9\n")
    found = find_stimuli(["a.JPEG", "faces/b.png"], folder)
    assert found.attributes["category"].tolist() == ["n/a", "face"]
    np.testing.assert_array_equal(found.attributes["size"], [np.nan, 2.0])
    table = pd.DataFrame({"stimID": ["a.JPEG", "faces/b.png"], "label": ["3", "1"]})
    own = find_stimuli(["a.JPEG", "faces/b.png"], folder, table=table).attributes
    assert {key: values.tolist() for key, values in own.items()} == {"label": [3.0, 1.0]}


def test_attributes_of_others(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "stimuli.tsv").write_text("stim_id\tcategory\nx.png\tface\n")
    with caplog.at_level(logging.WARNING):
        assert find_stimuli(["a.JPEG", "faces/b.png"], folder).attributes == {}
    assert "stim_id, names none of the 2 stimuli" in caplog.text
    (folder / "stimuli.tsv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadDataError, match=r"stimuli\.tsv: cannot be read as a tab-separated table"):
        find_stimuli(["a.JPEG", "faces/b.png"], folder)


@pytest.mark.parametrize(
    ("name", "error", "parts"),
    [
        ("../secret.png", BadDataError, ["leads out of the folder"]),
        ("..\\secret.png", BadDataError, ["leads out of the folder"]),
        ("/etc/passwd", BadDataError, ["leads out of the folder"]),
        ("C:\\secret.png", BadDataError, ["leads out of the folder"]),
        ("https://x.org/a.png", BadDataError, ["is a URL"]),
        ("out.png", BadDataError, ["out.png", "link that leads out of the folder"]),
        ("away/secret.png", BadDataError, ["away/secret.png", "link that leads out of the folder"]),
        ("nothing.png", MissingInputError, ["'nothing.png'", "--stimuli-dir", "1 of 2 stimuli"]),
        ("faces", MissingInputError, ["is a folder"]),
        ("annexed.png", MissingInputError, ["datalad get"]),
        ("empty.png", BadDataError, ["is empty", "datalad get"]),
        ("empty.mp4", BadDataError, ["is empty", "datalad get"]),
        ("notes.txt", BadDataError, ["notes.txt: not an image"]),
        ("text.png", BadDataError, ["text.png: not an image"]),
    ],
)
def test_stimuli_that_cannot_be(
    folder: Path, paint: Any, name: str, error: type[DnnbrainError], parts: list[str]
) -> None:
    paint(folder.parent / "secret.png")
    (folder / "out.png").symlink_to(folder.parent / "secret.png")
    (folder / "away").symlink_to(folder.parent)
    (folder / "annexed.png").symlink_to("../.git/annex/objects/gone")
    (folder / "empty.png").touch()
    (folder / "empty.mp4").touch()
    (folder / "notes.txt").write_text("hello")
    (folder / "text.png").write_text("hello")
    with pytest.raises(error) as caught:
        find_stimuli([name, "a.JPEG"], folder)
    assert all(part in str(caught.value) for part in parts), str(caught.value)
    assert type(caught.value) is error


def test_annexed_files_are_followed_but_not_neighbours(folder: Path, paint: Any) -> None:
    annex = folder.parent / ".git" / "annex" / "objects"
    paint(annex / "key.png")
    paint(folder.parent / ".git" / "hidden.png")
    (folder / "c.png").symlink_to("../.git/annex/objects/key.png")
    assert len(find_stimuli(["a.JPEG", "c.png"], folder)) == 2
    (folder / "d.png").symlink_to("../.git/hidden.png")
    with pytest.raises(BadDataError, match=r"'d\.png' is a link that leads out"):
        find_stimuli(["a.JPEG", "d.png"], folder)


def test_all_failures_are_counted(folder: Path) -> None:
    names = [f"m{i:02d}.png" for i in range(15)]
    with pytest.raises(MissingInputError) as caught:
        find_stimuli([*names, "a.JPEG"], folder)
    assert "15 of 16 stimuli" in str(caught.value)
    assert "'m09.png', ... (15 in all)" in str(caught.value)
    (folder / "e.png").touch()
    with pytest.raises(BadDataError, match=r"1 of 3 stimuli are not in .*; 1 of 3 stimuli are not readable"):
        find_stimuli(["m00.png", "e.png", "a.JPEG"], folder)
    assert find_missing([*names, "e.png"], folder) == names
    assert find_missing(["b", "a"], folder / "nowhere") == ["a", "b"]


def test_no_folder_and_no_names(folder: Path) -> None:
    with pytest.raises(MissingInputError, match=r"nowhere: does not exist.*--stimuli-dir"):
        find_stimuli(["a", "b"], folder / "nowhere")
    with pytest.raises(BadDataError, match="no stimuli are named"):
        find_stimuli([], folder)


def test_what_the_user_should_know_is_counted(folder: Path, paint: Any, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("c.jpg", "d.jpg"):
        paint(folder / name, (0, 255, 255, 0), "CMYK")
    known: dict[str, list[Any]] = {}
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            find_stimuli(["a.JPEG", "c.jpg", "d.jpg"], folder, known=known)
        assert "2 of 3 stimuli (c.jpg, ...) are CMYK" in caplog.text


def test_progress(folder: Path) -> None:
    calls: list[tuple[int, int]] = []
    find_stimuli(["a.JPEG", "faces/b.png"], folder, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 2), (2, 2)]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are read; the clock is ahead, so that none of them has just been written."""
    names: list[str] = []
    plainly = digests._read

    def read(path: Path) -> tuple[str, str]:
        names.append(path.name)
        return plainly(path)

    now = time.time_ns
    monkeypatch.setattr(digests, "_read", read)
    monkeypatch.setattr(digests.time, "time_ns", lambda: now() + 10**10)
    return names


def test_unchanged_files_are_not_read_again(folder: Path, paint: Any, opened: list[str]) -> None:
    known: dict[str, list[Any]] = {}
    first = find_stimuli(["a.JPEG", "faces/b.png"], folder, known=known)
    assert opened == ["a.JPEG", "b.png"]
    known = json.loads(json.dumps(known))
    assert find_stimuli(["a.JPEG", "faces/b.png"], folder, known=known).digests == first.digests
    assert opened == ["a.JPEG", "b.png"]
    status = (folder / "a.JPEG").stat()
    content = bytearray((folder / "a.JPEG").read_bytes())
    content[-3] ^= 1  # another picture of the same size, with the old time: only the time of change tells
    (folder / "a.JPEG").write_bytes(content)
    os.utime(folder / "a.JPEG", ns=(status.st_atime_ns, status.st_mtime_ns))
    again = find_stimuli(["a.JPEG", "faces/b.png"], folder, known=known)
    assert opened == ["a.JPEG", "b.png", "a.JPEG"]
    assert again.digests == (hashlib.sha256(content).hexdigest(), first.digests[1])


def test_nonsense_among_the_known_is_ignored(folder: Path, opened: list[str]) -> None:
    known: dict[str, Any] = {str(folder / "a.JPEG"): 5, str(folder / "faces/b.png"): [1, 2]}
    find_stimuli(["a.JPEG", "faces/b.png"], folder, known=known)
    assert opened == ["a.JPEG", "b.png"]
    assert {len(entry) for entry in known.values()} == {5}


def test_files_just_written_are_not_trusted(folder: Path, paint: Any) -> None:
    known: dict[str, list[Any]] = {}
    find_stimuli(["a.JPEG", "faces/b.png"], folder, known=known)
    assert known == {}


def test_damaged_files_are_not_known(folder: Path, opened: list[str]) -> None:
    (folder / "x.png").write_text("hello")
    known: dict[str, list[Any]] = {}
    for _ in range(2):
        with pytest.raises(BadDataError, match=r"x\.png: not an image"):
            find_stimuli(["a.JPEG", "x.png"], folder, known=known)
    assert opened == ["a.JPEG", "x.png", "x.png"]
