from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from dnnbrain_app.errors import BadDataError, MissingInputError
from dnnbrain_app.stimuli.images import MAX_PIXELS, check_image, read_image


def write_png(path: Path, pixels: np.ndarray, colour_type: int, size: tuple[int, int] | None = None) -> Path:
    """Write a PNG of 16 bits (rows, columns, channels) by hand: Pillow does not write RGB of this depth."""

    def make_chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    width, height = size or (pixels.shape[1], pixels.shape[0])
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    chunks = [make_chunk(b"IHDR", header), make_chunk(b"IDAT", zlib.compress(rows)), make_chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    return path


def check(path: Path) -> str:
    with path.open("rb") as file:
        return check_image(path, file)


@pytest.mark.parametrize(
    ("mode", "colour", "name", "expected"),
    [
        ("RGB", (10, 200, 30), "x.png", (10, 200, 30)),
        ("L", 77, "x.png", (77, 77, 77)),
        ("1", 1, "x.png", (255, 255, 255)),
        ("RGBA", (255, 0, 0, 0), "x.png", (128, 128, 128)),
        ("RGBA", (255, 0, 0, 255), "x.png", (255, 0, 0)),
        ("RGBA", (255, 0, 0, 51), "x.png", (153, 102, 102)),
        ("LA", (200, 0), "x.png", (128, 128, 128)),
        ("I;16", 257 * 60, "x.png", (60, 60, 60)),
        ("I;16", 65535, "x.tiff", (255, 255, 255)),
        ("I;16", 257 * 9, "x.pgm", (9, 9, 9)),
        ("CMYK", (0, 255, 255, 0), "x.tiff", (255, 0, 0)),
        ("CMYK", (255, 0, 0, 128), "x.tiff", (0, 127, 127)),
        ("P", 0, "x.gif", (0, 0, 0)),
        ("RGB", (10, 200, 30), "x.bmp", (10, 200, 30)),
        ("RGB", (10, 200, 30), "x.tga", (10, 200, 30)),
    ],
)
def test_modes(tmp_path: Path, paint: Any, mode: str, colour: Any, name: str, expected: tuple[int, int, int]) -> None:
    image = read_image(paint(tmp_path / name, colour, mode))
    assert (image.mode, image.size) == ("RGB", (4, 3))
    assert image.getpixel((1, 1)) == expected


def test_colours_of_16_bits_keep_the_upper_8(tmp_path: Path) -> None:
    pixels = np.array([[[0x3CFF, 0x0100, 0xFFFF], [0x00FF, 0x8000, 0x7FFF]]])
    assert np.array_equal(read_image(write_png(tmp_path / "c.png", pixels, 2)), [[[60, 1, 255], [0, 128, 127]]])
    with_alpha = np.dstack([pixels, [[0xFFFF, 0]]])
    assert np.array_equal(read_image(write_png(tmp_path / "d.png", with_alpha, 6)), [[[60, 1, 255], [128] * 3]])


def test_grey_of_16_bits_is_rounded(tmp_path: Path) -> None:
    values = np.array([[0, 128, 129, 0x3CFF, 65535]])
    grey = np.asarray(read_image(write_png(tmp_path / "g.png", values[..., None], 0)))
    assert np.array_equal(grey, np.repeat(np.round(values / 257)[..., None], 3, axis=2))


def test_palette_with_transparency(tmp_path: Path, paint: Any) -> None:
    assert read_image(paint(tmp_path / "p.gif", 0, "P", transparency=0)).getpixel((0, 0)) == (128, 128, 128)
    image = Image.new("P", (3, 1))
    image.putpalette([200, 100, 0, 200, 100, 0, 0, 50, 250])
    image.putdata([0, 1, 2])
    image.save(tmp_path / "q.png", transparency=bytes([0, 51, 255]))  # an alpha for each colour
    assert np.array_equal(read_image(tmp_path / "q.png"), [[[128] * 3, [142, 122, 102], [0, 50, 250]]])


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [(1, "ab/cd"), (2, "ba/dc"), (3, "dc/ba"), (4, "cd/ab"), (5, "ac/bd"), (6, "ca/db"), (7, "db/ca"), (8, "bd/ac")],
)
def test_orientation(tmp_path: Path, orientation: int, expected: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    grey = {"a": 0, "b": 80, "c": 160, "d": 240}
    Image.fromarray(np.array([[0, 80], [160, 240]], np.uint8)).save(tmp_path / "x.png", exif=exif)
    seen = np.asarray(read_image(tmp_path / "x.png"))[..., 0]
    assert np.array_equal(seen, [[grey[letter] for letter in row] for row in expected.split("/")])


def test_orientation_in_damaged_exif_is_ignored(tmp_path: Path, paint: Any) -> None:
    path = paint(tmp_path / "x.jpg", exif=b"Exif\0\0nonsense")
    assert read_image(path).size == (4, 3)


def test_cmyk_jpeg_is_read_as_adobe_stores_it(tmp_path: Path, paint: Any) -> None:
    path = paint(tmp_path / "c.jpg", (0, 255, 255, 0), "CMYK", (16, 16), quality=100)
    content = path.read_bytes()
    assert b"Adobe" in content
    assert np.abs(np.asarray(read_image(path), int) - (255, 0, 0)).max() <= 3  # stored inverted, as the marker says
    assert check(path) == "cmyk"
    marker = content.index(b"\xff\xee")
    length = int.from_bytes(content[marker + 2 : marker + 4], "big")
    bare = tmp_path / "bare.jpg"
    bare.write_bytes(content[:marker] + content[marker + 2 + length :])
    assert np.array_equal(read_image(bare), read_image(path))  # without the marker too, as Pillow does


def test_colour_profiles_are_ignored_and_told(tmp_path: Path, paint: Any) -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    other = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    for suffix in ("png", "jpg", "tiff"):
        plain = paint(tmp_path / f"a.{suffix}", (10, 200, 30))
        marked = paint(tmp_path / f"b.{suffix}", (10, 200, 30), icc_profile=other)
        assert np.array_equal(read_image(plain), read_image(marked))
        assert [check(plain), check(marked)] == ["", "profile"]
        assert check(paint(tmp_path / f"c.{suffix}", icc_profile=srgb)) == ""


def test_progressive_jpeg(tmp_path: Path, rng: np.random.Generator) -> None:
    image = Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8))
    image.save(tmp_path / "a.jpg", quality=90)
    image.save(tmp_path / "b.jpg", quality=90, progressive=True)
    assert b"\xff\xc2" in (tmp_path / "b.jpg").read_bytes()
    assert np.array_equal(read_image(tmp_path / "a.jpg"), read_image(tmp_path / "b.jpg"))


def test_first_frame_and_first_page(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 3), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    for name, remark in (("a.gif", ""), ("a.png", ""), ("a.tiff", "pages")):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        assert read_image(tmp_path / name).getpixel((0, 0)) == (255, 0, 0)
        assert check(tmp_path / name) == remark


def test_one_pixel_is_an_image(tmp_path: Path, paint: Any) -> None:
    assert np.array_equal(read_image(paint(tmp_path / "x.png", size=(1, 1))), [[[10, 200, 30]]])


@pytest.mark.parametrize(
    ("size", "parts"),
    [
        ((20_000, 10_000), ["too many pixels", "at most 89 million"]),  # Pillow refuses
        ((10_000, 10_000), ["pixels", "at most 89 million", "scale it down"]),  # Pillow warns
        ((101, 1), ["101 x 1 pixels", "up to 100 times"]),
        ((1, 101), ["1 x 101 pixels"]),
    ],
)
def test_sizes_that_are_refused(tmp_path: Path, size: tuple[int, int], parts: list[str]) -> None:
    path = tmp_path / "bomb.png"
    Image.new("1", size).save(path)
    for look in (read_image, check):
        with pytest.raises(BadDataError) as caught:
            look(path)
        assert all(part in str(caught.value) for part in ["bomb.png", *parts]), str(caught.value)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # as in a run, where it is but a warning
def test_a_hundred_megapixels_where_warnings_are_no_errors(tmp_path: Path) -> None:
    Image.new("1", (10_000, 10_000)).save(tmp_path / "x.png")
    for look in (read_image, check):
        with pytest.raises(BadDataError, match=r"x\.png: 10000 x 10000 pixels; at most 89 million are read"):
            look(tmp_path / "x.png")


def test_largest_size(tmp_path: Path) -> None:
    Image.new("1", (9_459, 9_459)).save(tmp_path / "x.png")
    assert 9_459**2 <= MAX_PIXELS < 9_459 * 9_460
    assert check(tmp_path / "x.png") == ""


def test_huge_size_of_a_tiny_file(tmp_path: Path) -> None:
    path = write_png(tmp_path / "b.png", np.zeros((1, 1, 1)), 0, size=(60_000, 60_000))
    assert path.stat().st_size < 100
    with pytest.raises(BadDataError, match=r"b\.png: too many pixels; at most 89 million"):
        read_image(path)
    path = write_png(tmp_path / "c.png", np.zeros((1, 1, 1)), 0, size=(3_000, 3_000))
    with pytest.raises(BadDataError, match=r"c\.png: the image is cut off or damaged"):
        read_image(path)


def test_damaged_images(tmp_path: Path, rng: np.random.Generator) -> None:
    for name in ("t.png", "t.jpg", "t.gif", "t.tiff", "t.webp", "t.bmp"):
        path = tmp_path / name
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:1500])
        with pytest.raises(BadDataError, match=rf"{name}: "):
            read_image(path)


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("empty.png", b"", "not an image"),
        ("text.png", b"hello, I am a text", "not an image"),
        ("page.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
        ("script.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "not an image"),
        ("film.mpg", b"\x00\x00\x01\xb3\x00\x40\x03\x00", "not an image"),
    ],
)
def test_what_is_no_image(tmp_path: Path, name: str, content: bytes, part: str) -> None:
    (tmp_path / name).write_bytes(content)
    for look in (read_image, check):
        with pytest.raises(BadDataError, match=rf"{name}: {part}"):
            look(tmp_path / name)


@pytest.mark.parametrize(("mode", "colour"), [("F", 0.5), ("I", 7), ("LAB", (50, 0, 0))])
def test_modes_that_are_refused(tmp_path: Path, paint: Any, mode: str, colour: Any) -> None:
    with pytest.raises(BadDataError, match=r"x\.tiff: .*store the image .*with 8 or 16 bits"):
        read_image(paint(tmp_path / "x.tiff", colour, mode))


def test_absent_images(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"no\.png: does not exist"):
        read_image(tmp_path / "no.png")
    (tmp_path / "annexed.png").symlink_to(".git/annex/objects/gone")
    with pytest.raises(MissingInputError, match="datalad get"):
        read_image(tmp_path / "annexed.png")


def test_an_open_file_is_checked_from_memory_too(tmp_path: Path, paint: Any) -> None:
    content = paint(tmp_path / "x.png").read_bytes()
    assert check_image(tmp_path / "x.png", io.BytesIO(content)) == ""
