from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest

from dnnbrain_app.errors import BadDataError, MissingInputError
from dnnbrain_app.stimuli.folders import AmbiguousNameError, Folder
from dnnbrain_app.stimuli.sets import find_stimuli


def touch(folder: Path, *names: str) -> Folder:
    """Make empty files; `Folder` does not open them."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return Folder(folder)


@pytest.mark.parametrize(
    ("name", "files", "expected", "remark"),
    [
        ("a.png", ["a.png", "A.png", "x/a.png"], "a.png", ""),
        ("x\\a.png", ["x/a.png"], "x/a.png", ""),
        ("stimuli/a.png", ["a.png", "stimuli/a.png"], "stimuli/a.png", ""),
        ("stimuli\\a.png", ["a.png"], "a.png", "prefix"),
        ("A.PNG", ["a.png", "x/A.PNG"], "a.png", "spelling"),
        ("Faces/a.JPG", ["faces/A.jpeg", "houses/A.jpeg"], "faces/A.jpeg", "spelling"),
        ("stimuli/faces/A.png", ["Faces/a.png"], "Faces/a.png", "spelling"),
        ("cafe\u0301.png", ["café.png"], "café.png", "spelling"),
        ("a.png", ["ImageNet/a.png", "COCO/b.png"], "ImageNet/a.png", "below"),
        ("clarinet/a.png", ["_images/clarinet/a.png", "_images/banjo/a.png"], "_images/clarinet/a.png", "below"),
        ("a.png", ["x/A.png", "y/a.png"], "y/a.png", "below"),
        ("n03626115_19498", ["test/n03626115_19498.JPEG", "n03626115_194980.JPEG"], "test/n03626115_19498.JPEG", ""),
        ("3626115.019498", ["3626115.019498.jpg"], "3626115.019498.jpg", ""),
        ("569", ["x/569.bmp", "x/569.txt", "x/569.json"], "x/569.bmp", ""),
        ("test/569", ["test/569.bmp", "train/569.bmp"], "test/569.bmp", ""),
        ("clip", ["clip.mp4", "clip.wav"], "clip.mp4", ""),
        ("N01", ["n01.png"], "n01.png", "spelling"),
        ("n01", ["n01.png", "N01.png"], "n01.png", ""),
        ("a", ["a.png", "thumbnails/a.png", ".cache/a.png", "@eaDir/a.png"], "a.png", ""),
        ("stim-cat", ["stim-cat_image.png", "stim-cat_image.json", "stim-cat.png"], "stim-cat_image.png", ""),
        ("stim-cat", ["stim-cat_video.mp4", "stim-cat_audio.wav"], "stim-cat_video.mp4", ""),
        ("stim-cat", ["stim-cat_audiovideo.mp4", "stim-cat2_image.png"], "stim-cat_audiovideo.mp4", ""),
        ("stim-cat", ["stim-cat.png"], "stim-cat.png", ""),
        (
            "stim-cat_part-1",
            ["stim-cat_part-1_image.png", "stim-cat_part-2_image.png"],
            "stim-cat_part-1_image.png",
            "",
        ),
    ],
)
def test_the_file_that_is_meant(tmp_path: Path, name: str, files: list[str], expected: str, remark: str) -> None:
    assert touch(tmp_path, *files).locate(name) == (tmp_path / expected, remark)


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("A.PNG", ["a.png", "a.PNG"]),
        ("a", ["a.jpg", "a.png"]),
        ("a", ["a.jpg", "x/a.jpg"]),
        ("b.png", ["x/b.png", "y/b.png"]),
        ("stim-a", ["stim-a_image.png", "stim-a_video.mp4", "stim-a.jpg"]),
    ],
)
def test_names_that_could_mean_two_files(tmp_path: Path, name: str, files: list[str]) -> None:
    with pytest.raises(AmbiguousNameError) as caught:
        touch(tmp_path, *files).locate(name)
    first, second = sorted(files[:2])
    assert str(caught.value) == f"{name!r} ({first!r} or {second!r})"


@pytest.mark.parametrize(
    "name", ["b.png", "x/a.png", "n0", "a.png.png", "a.jpg", ".", "stim-a", "a" * 300, "x/" * 3000, "\0"]
)
def test_names_of_no_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(MissingInputError):
        touch(tmp_path, "a.png", "n01.png", "a.txt").locate(name)


def test_the_folder_is_listed_once_and_only_if_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed: list[Any] = []
    scan = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(Path(path)) or scan(path))
    folder = touch(tmp_path, "a.png", "x/b.png")
    folder.locate("a.png")
    assert listed == []
    for name in ("A.png", "b", "x/B.png"):
        folder.locate(name)
    with pytest.raises(MissingInputError):
        folder.locate("c.png")
    assert listed == [tmp_path, tmp_path / "x"]


def test_links_are_found_by_name_but_not_followed_out(tmp_path: Path) -> None:
    folder = touch(tmp_path / "stimuli", "x/a.png")
    (tmp_path / "secret.png").touch()
    (tmp_path / "stimuli" / "out.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "stimuli" / "annexed.png").symlink_to("../.git/annex/objects/gone")
    (tmp_path / "stimuli" / "away").symlink_to(tmp_path)
    with pytest.raises(BadDataError, match="'OUT' is a link that leads out of the folder"):
        folder.locate("OUT")
    with pytest.raises(MissingInputError, match="'annexed': its content is not here; fetch it with 'datalad get'"):
        folder.locate("annexed")
    with pytest.raises(MissingInputError, match="'secret'"):
        folder.locate("secret")


def test_the_user_is_told_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = find_stimuli(["A.jpg", "FACES/B.PNG"], folder)
    assert found.ids == ("A.jpg", "FACES/B.PNG")
    assert found.paths == (folder / "a.JPEG", folder / "faces" / "b.png")
    assert len(caplog.records) == 1
    assert "2 of 2 stimuli (A.jpg, ...) are spelled in another way than their files" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        find_stimuli(["a.JPEG", "b.png"], folder)
    assert [record.message.partition(" are ")[0] for record in caplog.records] == ["1 of 2 stimuli (b.png, ...)"]
    assert "in a folder below" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert find_stimuli(["a", "b"], folder).paths == found.paths
    assert not caplog.records


def test_two_files_are_an_error_of_the_set(folder: Path, paint: Any) -> None:
    paint(folder / "b.jpg")
    with pytest.raises(
        BadDataError, match=r"1 of 2 stimuli could be any of several files in .*: 'b' \('b.jpg' or 'faces"
    ):
        find_stimuli(["a", "b"], folder)


def test_attributes_by_identifier(folder: Path, paint: Any) -> None:
    for label in ("cat", "dog"):
        paint(folder / f"stim-{label}_image.png")
    for key in ("stim_id", "stimulus_id"):
        (folder / "stimuli.tsv").write_text(f"{key}\ttype\tpresent\nstim-dog\timage\ttrue\nstim-cat\timage\ttrue\n")
        found = find_stimuli(["stim-dog", "stim-cat"], folder)
        assert found.paths == (folder / "stim-cat_image.png", folder / "stim-dog_image.png")
        assert found.attributes["type"].tolist() == ["image", "image"]
    paint(folder / "569.png")
    (folder / "stimuli.tsv").write_text("stim_id\tsize\n569.0\t4\n")
    assert find_stimuli(["569", "stim-cat"], folder).attributes["size"].tolist()[0] == 4
