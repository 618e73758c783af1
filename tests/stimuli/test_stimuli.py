from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dnnbrain_app.errors import BadDataError, DnnbrainError, MissingInputError
from dnnbrain_app.stimuli.images import read_image
from dnnbrain_app.stimuli.sets import find_stimuli


def paint(path: Path, colour: Any = (10, 200, 30), mode: str = "RGB", **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (4, 3), colour).save(path, **options)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "study" / "stimuli"
    paint(folder / "faces" / "b.png")
    paint(folder / "a.JPEG")
    return folder


def test_sorted_unique_with_digests(folder: Path) -> None:
    found = find_stimuli(["faces/b.png", "a.JPEG", "faces/b.png"], folder)
    assert found.ids == ("a.JPEG", "faces/b.png")
    assert found.paths == (folder / "a.JPEG", folder / "faces" / "b.png")
    assert found.digests[1] == hashlib.sha256((folder / "faces" / "b.png").read_bytes()).hexdigest()


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


@pytest.mark.parametrize(
    ("name", "error", "parts"),
    [
        ("../secret.png", BadDataError, ["leads out of the folder"]),
        ("..\\secret.png", BadDataError, ["leads out of the folder"]),
        ("/etc/passwd", BadDataError, ["leads out of the folder"]),
        ("C:\\secret.png", BadDataError, ["leads out of the folder"]),
        ("https://x.org/a.png", BadDataError, ["is a URL"]),
        ("out.png", BadDataError, ["out.png", "link that leads out of the folder"]),
        ("Faces/B.PNG", MissingInputError, ["there is 'faces/b.png'", "case"]),
        ("nothing.png", MissingInputError, ["'nothing.png'", "--stimuli-dir", "1 of 2 stimuli"]),
        ("faces", MissingInputError, ["is a folder"]),
        ("annexed.png", MissingInputError, ["datalad get"]),
        ("empty.png", BadDataError, ["is empty", "datalad get"]),
        ("notes.txt", BadDataError, ["notes.txt: not an image"]),
    ],
)
def test_stimuli_that_cannot_be(folder: Path, name: str, error: type[DnnbrainError], parts: list[str]) -> None:
    paint(folder.parent / "secret.png")
    (folder / "out.png").symlink_to(folder.parent / "secret.png")
    (folder / "annexed.png").symlink_to("../.git/annex/objects/gone")
    (folder / "empty.png").touch()
    (folder / "notes.txt").write_text("hello")
    with pytest.raises(error) as caught:
        find_stimuli([name, "a.JPEG"], folder)
    assert all(part in str(caught.value) for part in parts), str(caught.value)
    assert type(caught.value) is error


def test_too_many_pixels_are_refused_unread(folder: Path) -> None:
    for width in (20_000, 11_000):  # beyond what Pillow refuses, and what it only warns of
        Image.new("1", (width, 10_000)).save(folder / "bomb.png")
        with pytest.raises(BadDataError, match=r"1 of 2 stimuli are not readable images: .*bomb\.png.*pixels"):
            find_stimuli(["bomb.png", "a.JPEG"], folder)
        with pytest.raises(BadDataError, match=r"bomb\.png.*pixels"):
            read_image(folder / "bomb.png")


def test_annexed_files_are_followed_but_not_neighbours(folder: Path) -> None:
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


def test_no_folder_and_too_few(folder: Path) -> None:
    with pytest.raises(MissingInputError, match=r"nowhere: does not exist.*--stimuli-dir"):
        find_stimuli(["a", "b"], folder / "nowhere")
    with pytest.raises(BadDataError, match="at least two different stimuli"):
        find_stimuli(["a.JPEG", "a.JPEG"], folder)


@pytest.mark.parametrize(
    ("mode", "colour", "name", "expected"),
    [
        ("RGB", (10, 200, 30), "x.png", (10, 200, 30)),
        ("L", 77, "x.png", (77, 77, 77)),
        ("1", 1, "x.png", (255, 255, 255)),
        ("RGBA", (255, 0, 0, 0), "x.png", (128, 128, 128)),
        ("RGBA", (255, 0, 0, 255), "x.png", (255, 0, 0)),
        ("LA", (200, 0), "x.png", (128, 128, 128)),
        ("I;16", 257 * 60, "x.png", (60, 60, 60)),
        ("I;16", 65535, "x.tiff", (255, 255, 255)),
        ("CMYK", (0, 255, 255, 0), "x.tiff", (255, 0, 0)),
        ("P", 0, "x.gif", (0, 0, 0)),
    ],
)
def test_modes(tmp_path: Path, mode: str, colour: Any, name: str, expected: tuple[int, int, int]) -> None:
    image = read_image(paint(tmp_path / name, colour, mode))
    assert (image.mode, image.size) == ("RGB", (4, 3))
    assert image.getpixel((1, 1)) == expected


def test_half_transparent_palette_and_orientation(tmp_path: Path) -> None:
    paint(tmp_path / "p.gif", 0, "P", transparency=0)
    assert read_image(tmp_path / "p.gif").getpixel((0, 0)) == (128, 128, 128)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    assert read_image(paint(tmp_path / "turned.jpg", exif=exif)).size == (3, 4)


def test_animation_gives_the_first_frame(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    frames = [Image.new("RGB", (4, 3), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "a.gif").getpixel((0, 0)) == (255, 0, 0)
    assert "animation of 2 frames" in caplog.text


def test_unreadable_images(tmp_path: Path, rng: np.random.Generator) -> None:
    for name in ("t.png", "t.jpg"):
        path = tmp_path / name
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:1500])
        with pytest.raises(BadDataError, match=rf"{name}: the image is cut off or damaged"):
            read_image(path)
    with pytest.raises(MissingInputError, match=r"no\.png: does not exist"):
        read_image(tmp_path / "no.png")
    with pytest.raises(BadDataError, match=r"f\.tiff: .*mode F"):
        read_image(paint(tmp_path / "f.tiff", 0.5, "F"))
