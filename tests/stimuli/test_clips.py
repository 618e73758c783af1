from __future__ import annotations

import logging
import struct
import subprocess
import sys
import weakref
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from dnnbrain_app.errors import BadDataError, MissingInputError, UsageError
from dnnbrain_app.records import StimulusSet
from dnnbrain_app.stimuli import clips, videos
from dnnbrain_app.stimuli.clips import is_clip, read_clip, read_frames, warn_of_stills
from dnnbrain_app.stimuli.sets import find_stimuli

Film = Callable[..., Path]
BLACK, STEP = 10, 10  # as `film` paints them


def tell_picture(image: Image.Image) -> int:
    """Which picture of a film, or frame of an animation, this is."""
    level = np.asarray(image)[..., 1].mean()
    number = round((level - BLACK) / STEP)
    assert abs(level - BLACK - STEP * number) < 4, level
    return number


def choose(path: Path, n_frames: int) -> list[int]:
    return [tell_picture(image) for image in read_clip(path, n_frames)]


@pytest.mark.parametrize(
    ("name", "codec", "pixels", "about"),
    [
        ("a.mp4", "mpeg4", "yuv420p", {}),
        ("a.mp4", "libx264", "yuv420p", {"max_b_frames": 2}),
        ("a.MOV", "png", "rgb24", {}),
        ("a.mov", "libx264", "yuv422p10le", {}),
        ("a.avi", "mpeg4", "yuv420p", {"max_b_frames": 2}),
        ("a.avi", "mjpeg", "yuvj420p", {}),
        ("a.avi", "rawvideo", "bgr24", {}),
        ("a.mkv", "ffv1", "gray10le", {}),
        ("a.mkv", "ffv1", "yuv444p16le", {}),
        ("a.mov", "qtrle", "argb", {}),
        ("a.webm", "libvpx-vp9", "yuv420p", {}),
        ("a.mpg", "mpeg1video", "yuv420p", {"max_b_frames": 2, "rate": 25}),
        ("a.mpeg", "mpeg2video", "yuv420p", {"rate": 25}),
        ("a.wmv", "wmv2", "yuv420p", {}),
        ("a.flv", "libx264", "yuv420p", {"max_b_frames": 2}),
    ],
)
def test_frames_evenly_spaced(tmp_path: Path, film: Film, name: str, codec: str, pixels: str, about: Any) -> None:
    path = film(tmp_path / name, codec, pixels, **about)
    assert is_clip(path)
    assert choose(path, 20) == list(range(20))
    assert choose(path, 5) == [2, 6, 10, 14, 18]
    assert choose(path, 2) == [5, 15]
    assert choose(path, 1) == [10]
    assert choose(path, 40) == [i // 2 for i in range(40)]
    image = read_clip(path, 1)[0]
    assert (image.mode, image.size) == ("RGB", (64, 48))
    assert {number: tell_picture(image) for number, image in read_frames(path, [20, 1, 7, 7])} == {1: 0, 7: 6, 20: 19}


def test_raw_stream(tmp_path: Path, film: Film) -> None:
    path = film(tmp_path / "a.m1v", "mpeg1video", rate=25, max_b_frames=2).rename(tmp_path / "a.mpg")
    assert choose(path, 20) == list(range(20))
    assert choose(path, 5) == [2, 6, 10, 14, 18]


def test_exact_values(tmp_path: Path, film: Film, rng: np.random.Generator) -> None:
    pictures = [rng.integers(0, 256, (10, 14, 3), dtype=np.uint8) for _ in range(4)]
    path = film(tmp_path / "a.mov", "png", "rgb24", pictures=pictures)
    assert all(np.array_equal(image, picture) for image, picture in zip(read_clip(path, 4), pictures, strict=True))
    assert np.array_equal(read_clip(path, 2)[1], pictures[3])


def test_variable_rate_goes_by_time(tmp_path: Path, film: Film) -> None:
    times = [0, 100, 200, 300, 1000, 1100, 1200, 1300, 1400, 5000]
    for name in ("a.mkv", "a.mp4"):
        path = film(
            tmp_path / name, "libx264", n=10, times=times, time_base=Fraction(1, 1000), max_b_frames=2
        )  # lasts 5.1 s: the moments are .51, 1.53, 2.55, 3.57 and 4.59 s
        assert choose(path, 5) == [3, 8, 8, 8, 8]
        assert choose(path, 51) == [*(0, 1, 2), *[3] * 7, 4, 5, 6, 7, *[8] * 36, 9]  # one each 100 ms, from 50 ms


def test_sound_is_ignored(tmp_path: Path, film: Film) -> None:
    av = pytest.importorskip("av", reason="the extra 'video' is not installed")

    def add_sound(container: Any) -> None:
        sound = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 24000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux([*sound.encode(frame), *sound.encode()])

    assert choose(film(tmp_path / "a.mp4", prepare=add_sound), 5) == [2, 6, 10, 14, 18]  # the sound lasts longer
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        add_sound(container)
    with pytest.raises(BadDataError, match=r"sound\.mp4: has no video stream"):
        read_clip(tmp_path / "sound.mp4", 2)


def turn(path: Path, matrix: Sequence[int]) -> None:
    """Write the upper left 2 x 2 of the display matrix into an .mp4: x' = a x + c y, y' = b x + d y."""
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 44
    a, b, c, d = (value << 16 for value in matrix)
    content[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [((1, 0, 0, 1), "ab/cd"), ((0, 1, -1, 0), "ca/db"), ((-1, 0, 0, -1), "dc/ba"), ((0, -1, 1, 0), "bd/ac")],
)
def test_rotation(tmp_path: Path, film: Film, matrix: tuple[int, ...], expected: str) -> None:
    grey = {"a": 20, "b": 90, "c": 160, "d": 230}
    quarters = np.array([[20, 90], [160, 230]], np.uint8).repeat(24, 0).repeat(32, 1)
    path = film(tmp_path / "a.mp4", pictures=[np.repeat(quarters[..., None], 3, axis=2)] * 3)
    turn(path, matrix)
    image = np.asarray(read_clip(path, 2)[1], int)[..., 0]
    assert image.shape == ((48, 64) if matrix[0] else (64, 48))
    height, width = image.shape
    seen = image[height // 4 :: height // 2, width // 4 :: width // 2]
    assert np.abs(seen - [[grey[letter] for letter in row] for row in expected.split("/")]).max() <= 4


def test_colours_by_the_standard_that_the_file_names(tmp_path: Path, film: Film) -> None:
    pictures = [np.full((48, 64, 3), (200, 40, 60), np.uint8)] * 4
    plain = np.asarray(read_clip(film(tmp_path / "a.mp4", "libx264", pictures=pictures), 1)[0], int)
    assert np.abs(plain - (200, 40, 60)).max() <= 4
    told = np.asarray(read_clip(film(tmp_path / "b.mp4", "libx264", pictures=pictures, colorspace=1), 1)[0], int)
    assert np.abs(told - plain).max() > 8  # the same numbers, said to be of BT.709


def test_pixels_that_are_not_square(tmp_path: Path, film: Film) -> None:
    path = film(tmp_path / "a.mp4", sample_aspect_ratio=Fraction(4, 3))
    assert read_clip(path, 1)[0].size == (85, 48)
    assert choose(path, 5) == [2, 6, 10, 14, 18]


def test_transparent_video_lies_over_grey(tmp_path: Path, film: Film) -> None:
    picture = np.full((48, 64, 4), (200, 100, 0, 51), np.uint8)
    path = film(tmp_path / "a.mov", "png", "rgba", pictures=[picture] * 3)
    assert read_clip(path, 1)[0].getpixel((5, 5)) == (142, 122, 102)


def test_title_in_another_encoding(tmp_path: Path, film: Film) -> None:
    path = film(tmp_path / "a.avi")
    content = path.read_bytes()
    assert b"a film" in content
    path.write_bytes(content.replace(b"a film", b"\xe9 film"))
    assert choose(path, 1) == [10]


def test_few_frames_are_in_memory(tmp_path: Path, film: Film, monkeypatch: pytest.MonkeyPatch) -> None:
    class Held:
        def __init__(self, frame: Any) -> None:
            self.frame = frame

    alive: weakref.WeakSet[Held] = weakref.WeakSet()
    most, converted = 0, 0
    plainly, decode = videos.convert_picture, videos.decode_video

    def convert(held: Held, stream: Any) -> Image.Image:
        nonlocal converted
        converted += 1
        return plainly(held.frame, stream)

    def watch(*args: Any) -> Any:
        nonlocal most
        for time, frame in decode(*args):
            held = Held(frame)
            alive.add(held)
            most = max(most, len(alive))
            yield time, held

    monkeypatch.setattr(clips, "convert_picture", convert)
    monkeypatch.setattr(clips, "decode_video", watch)
    images = read_clip(film(tmp_path / "a.mp4", n=24), 8)
    assert [tell_picture(image) for image in images] == [1, 4, 7, 10, 13, 16, 19, 22]
    assert converted == 8
    assert most <= 3


@pytest.mark.parametrize(
    ("name", "codec", "share"),
    [
        ("a.mp4", "mpeg4", 0.9),  # its table of contents is at the end
        ("b.mp4", "libx264", 0.6),
        ("c.avi", "mpeg4", 0.6),
        ("d.mkv", "ffv1", 0.6),
        ("d.mkv", "ffv1", 0.1),
        ("e.webm", "libvpx-vp9", 0.6),
        ("f.mpg", "mpeg1video", 0.6),
        ("g.wmv", "wmv2", 0.6),
        ("h.mp4", "mpeg4", 0.005),
        ("i.webm", "libvpx-vp9", 0.005),
    ],
)
def test_videos_that_are_cut_off(
    tmp_path: Path, film: Film, rng: np.random.Generator, name: str, codec: str, share: float
) -> None:
    pictures = [rng.integers(0, 256, (64, 96, 3), dtype=np.uint8) for _ in range(30)]
    options = {"movflags": "faststart"} if name == "b.mp4" else {}
    path = film(tmp_path / name, codec, rate=25, pictures=pictures, options=options)
    assert len(read_clip(path, 4)) == 4
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(BadDataError, match=rf"{name}: .*(cut off|damaged|no pictures|no video stream)"):
        read_clip(path, 4)


def test_damage_in_the_middle(tmp_path: Path, film: Film, rng: np.random.Generator) -> None:
    pictures = [rng.integers(0, 256, (64, 96, 3), dtype=np.uint8) for _ in range(30)]
    path = film(tmp_path / "a.avi", pictures=pictures)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 500] = rng.bytes(500)
    path.write_bytes(content)
    with pytest.raises(BadDataError, match=r"a\.avi: the video is cut off or damaged"):
        read_clip(path, 30)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello, I am a text",
        b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:secret.mp4\n#EXT-X-ENDLIST\n",
        b"ffconcat version 1.0\nfile secret.mp4\n",  # FFmpeg would play the other file
    ],
)
def test_what_is_no_video(tmp_path: Path, film: Film, content: bytes) -> None:
    film(tmp_path / "secret.mp4")
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(BadDataError, match=r"a\.mp4: not a video of a kind that is read \(MP4"):
        read_clip(tmp_path / "a.mp4", 2)


@pytest.mark.parametrize("start", [b"\0\0\0\x20ftyp", b"RIFF", b"\x1aE\xdf\xa3", b"\0\0\1\xba", b"FLV\1", b"OggS"])
def test_what_only_begins_like_a_video(tmp_path: Path, film: Film, start: bytes) -> None:
    (tmp_path / "a.mp4").write_bytes(start + b" and then a text goes on " * 9)
    with pytest.raises(BadDataError, match=r"a\.mp4: .*(cut off or damaged|no video stream)"):
        read_clip(tmp_path / "a.mp4", 2)


def test_contents_count_more_than_the_ending(tmp_path: Path, film: Film) -> None:
    assert choose(film(tmp_path / "a.mkv").rename(tmp_path / "a.mp4"), 5) == [2, 6, 10, 14, 18]


def test_limits(tmp_path: Path, film: Film, monkeypatch: pytest.MonkeyPatch) -> None:
    path = film(tmp_path / "a.mp4")
    with pytest.raises(MissingInputError, match=r"b\.mp4: does not exist"):
        read_clip(tmp_path / "b.mp4", 2)
    with pytest.raises(UsageError, match="0 frames of a clip: should be 1 or more"):
        read_clip(path, 0)
    with pytest.raises(BadDataError, match=r"a\.mp4: frame 21 is asked for, but it has 20"):
        list(read_frames(path, [3, 21]))
    with pytest.raises(BadDataError, match=r"a\.mp4: frame 0; frames are numbered from 1"):
        list(read_frames(path, [3, 0]))
    monkeypatch.setattr(videos, "MAX_FRAMES", 19)
    with pytest.raises(BadDataError, match=r"a\.mp4: a video of more than 19 pictures; cut it into clips"):
        read_clip(path, 2)
    monkeypatch.setattr(videos, "MAX_FRAME_PIXELS", 3000)
    with pytest.raises(BadDataError, match=r"a\.mp4: a video of 64 x 48 pixels"):
        read_clip(path, 2)


def test_without_pyav(tmp_path: Path, paint: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    paint(tmp_path / "a.png")
    (tmp_path / "a.mp4").write_bytes(b"not looked into")
    monkeypatch.setitem(sys.modules, "av", None)
    assert find_stimuli(["a.mp4", "a.png"], tmp_path).ids == ("a.mp4", "a.png")
    assert len(read_clip(tmp_path / "a.png", 2)) == 2
    with pytest.raises(MissingInputError, match=r"pip install 'dnnbrain-app\[video\]'"):
        read_clip(tmp_path / "a.mp4", 2)


def test_pyav_is_imported_only_for_videos() -> None:
    code = "import sys, dnnbrain_app.stimuli.clips, dnnbrain_app.stimuli.sets; assert 'av' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_videos_are_stimuli(tmp_path: Path, film: Film, paint: Any) -> None:
    film(tmp_path / "b.mp4")
    paint(tmp_path / "a.png")
    assert len(find_stimuli(["a.png", "b.mp4"], tmp_path)) == 2
    (tmp_path / "c.mp4").write_text("hello")
    with pytest.raises(BadDataError, match=r"1 of 2 stimuli are not readable images or videos: .*c\.mp4: not a video"):
        find_stimuli(["a.png", "c.mp4"], tmp_path)


# Animations ----------------------------------------------------------------------------------------------------------


def animate(path: Path, durations: Sequence[int], **options: Any) -> Path:
    frames = [Image.new("RGB", (8, 6), (BLACK + STEP * i,) * 3) for i in range(len(durations))]
    if path.suffix == ".webp":
        options |= {"lossless": True}
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=list(durations), **options)
    return path


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_animations_go_by_time(tmp_path: Path, rng: np.random.Generator, suffix: str) -> None:
    for n_frames in (1, 3, 8, 16):
        durations = 10 * rng.integers(2, 30, 12)
        path = animate(tmp_path / f"a.{suffix}", durations.tolist())
        assert is_clip(path)
        ends = [int(end) for end in durations.cumsum()]
        moments = [Fraction(2 * i + 1, 2 * n_frames) * ends[-1] for i in range(n_frames)]
        expected = [sum(end <= moment for end in ends) for moment in moments]
        assert choose(path, n_frames) == expected


def test_animation_without_delays(tmp_path: Path) -> None:
    assert choose(animate(tmp_path / "a.gif", [0, 0, 0, 300]), 6) == [0, 1, 2, 3, 3, 3]


def test_default_image_of_a_png_is_not_part_of_it(tmp_path: Path) -> None:
    path = animate(tmp_path / "a.png", [100] * 4, default_image=True)
    assert choose(path, 4) == [1, 2, 3, 3] or choose(path, 3) == [1, 2, 3]


def test_animation_that_is_cut_off(tmp_path: Path, rng: np.random.Generator) -> None:
    frames = [Image.fromarray(rng.integers(0, 255, (40, 40), dtype=np.uint8)) for _ in range(6)]
    for name in ("a.gif", "a.png", "a.webp"):
        path = tmp_path / name
        frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)
        path.write_bytes(path.read_bytes()[:-1000])
        with pytest.raises(BadDataError, match=rf"{name}: "):
            read_clip(path, 6)


def test_animation_of_too_many_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clips, "MAX_FRAMES", 3)
    with pytest.raises(BadDataError, match=r"a\.gif: an animation of more than 3 frames"):
        read_clip(animate(tmp_path / "a.gif", [100] * 4), 2)


def test_still_images_stand_still(tmp_path: Path, paint: Any) -> None:
    for name in ("a.png", "a.gif", "a.jpg"):
        images = read_clip(paint(tmp_path / name, 90, "L"), 3)
        assert [np.asarray(image).max() for image in images] == [90] * 3
        assert not is_clip(tmp_path / name)
    pages = [Image.new("L", (4, 3), value) for value in (50, 90)]
    pages[0].save(tmp_path / "a.tiff", save_all=True, append_images=pages[1:])
    assert not is_clip(tmp_path / "a.tiff")
    assert [np.asarray(image).max() for image in read_clip(tmp_path / "a.tiff", 2)] == [50, 50]
    for name in ("no.png", "no.jpg"):
        with pytest.raises(MissingInputError, match=rf"{name}: does not exist"):
            read_clip(tmp_path / name, 2)


# Kinds ---------------------------------------------------------------------------------------------------------------


def make_set(*paths: Path) -> StimulusSet:
    return StimulusSet(tuple(path.name for path in paths), paths, tuple(str(i) for i, _ in enumerate(paths)))


def test_stills_for_a_network_of_clips(tmp_path: Path, paint: Any, caplog: pytest.LogCaptureFixture) -> None:
    still, moving, video = paint(tmp_path / "a.png"), animate(tmp_path / "b.gif", [100] * 3), tmp_path / "c.mp4"
    with caplog.at_level(logging.WARNING):
        warn_of_stills(make_set(moving, video), "r3d_18")
        assert not caplog.records
        warn_of_stills(make_set(still, moving, video), "r3d_18")
        assert "1 of 3 stimuli (a.png) is a still image, in which nothing moves; r3d_18 looks at" in caplog.text
        warn_of_stills(make_set(*(paint(tmp_path / f"{i}.png") for i in range(7))), "r3d_18")
        assert "7 of 7 stimuli (0.png, 1.png, 2.png, 3.png, 4.png, ...) are still images, in which" in caplog.text


def test_rows_of_a_store_stand_still(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "all.hdf5", "w") as file:
        file["pictures"] = np.full((2, 5, 4, 3), 90, np.uint8)
    row = tmp_path / "all.hdf5" / "pictures" / "1"
    assert not is_clip(row)
    assert [np.asarray(image).max() for image in read_clip(row, 3)] == [90] * 3
