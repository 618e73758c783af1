from __future__ import annotations

import logging
import os
import shutil
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dnnbrain_app.errors import BadDataError, MissingInputError, UsageError
from dnnbrain_app.records import StimulusSet, Trials
from dnnbrain_app.stimuli import frames as room
from dnnbrain_app.stimuli.frames import Frames, expand_trials, find_frames
from dnnbrain_app.stimuli.images import read_image
from dnnbrain_app.stimuli.sets import find_stimuli

Film = Callable[..., Path]
LOSSLESS: dict[str, Any] = {"codec": "ffv1", "pixels": "gray"}


def write(path: Path, fill: Callable[[Path], None]) -> None:
    """As `derivatives.files.write_atomically`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".part-{threading.get_ident()}-{path.name}")
    fill(part)
    part.replace(path)


def make_set(*paths: Path) -> StimulusSet:
    return find_stimuli([path.name for path in paths], paths[0].parent)


def cut(stimuli: StimulusSet, rate: float, folder: Path, **more: Any) -> Frames:
    return find_frames(stimuli, rate, folder, write=write, **more)


def tell_pictures(frames: Frames, clip: str) -> list[int]:
    """Which pictures of a clip its frames are."""
    paths = [path for path, name in zip(frames.stimuli.paths, frames.clip, strict=True) if name == clip]
    return [round((np.asarray(read_image(path))[..., 1].mean() - 10) / 10) for path in paths]


@pytest.fixture
def still(tmp_path: Path, paint: Any) -> Path:
    return paint(tmp_path / "still.png")


def animate(path: Path, delays: Sequence[int]) -> Path:
    pictures = [Image.new("RGB", (8, 6), (10 + 10 * i,) * 3) for i in range(len(delays))]
    lossless = {"lossless": True} if path.suffix == ".webp" else {}
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=list(delays), **lossless)
    return path


def test_the_frame_in_the_middle_of_each_window(tmp_path: Path, film: Film, still: Path) -> None:
    clip = film(tmp_path / "clip.mkv", n=20, rate=10, **LOSSLESS)  # pictures of 0.1 s
    frames = cut(make_set(clip, still), 2.0, tmp_path / "work")
    assert frames.stimuli.ids == (*(f"clip.mkv@{i / 2:.3f}" for i in range(4)), "still.png")
    assert frames.onset.tolist() == [0, 0.5, 1, 1.5, 0]
    assert frames.duration.tolist() == [0.5, 0.5, 0.5, 0.5, 0]
    assert frames.clip.tolist() == ["clip.mkv"] * 4 + ["still.png"]
    assert tell_pictures(frames, "clip.mkv") == [2, 7, 12, 17]  # on the screen at 0.25, 0.75, 1.25 and 1.75 s
    assert frames.stimuli.paths[-1] == still
    assert frames.moves
    assert len(frames) == 5
    assert all(path.is_relative_to(tmp_path / "work") for path in frames.stimuli.paths[:-1])


@pytest.mark.parametrize(
    ("n", "rate", "durations", "pictures"),
    [
        (24, 2.0, [0.5] * 4 + [0.4], [2, 7, 12, 17, 22]),  # the rest is more than half a window
        (22, 2.0, [0.5] * 3 + [0.7], [2, 7, 12, 18]),  # less: it belongs to the last one, whose middle is at 1.85 s
        (3, 2.0, [0.3], [1]),
        (1, 0.01, [0.1], [0]),
        (10, 10.0, [0.1] * 10, [*range(10)]),
        (7, 3.0, [1 / 3, 0.7 - 1 / 3], [1, 5]),
    ],
)
def test_the_last_window_ends_with_the_clip(
    tmp_path: Path, film: Film, still: Path, n: int, rate: float, durations: list[float], pictures: list[int]
) -> None:
    frames = cut(make_set(film(tmp_path / "a.mkv", n=n, **LOSSLESS), still), rate, tmp_path / "work")
    assert np.allclose(frames.duration[:-1], durations)
    assert np.allclose(frames.onset[:-1], np.cumsum([0, *durations[:-1]]))
    assert tell_pictures(frames, "a.mkv") == pictures


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4"])
def test_times_are_those_of_the_container(tmp_path: Path, film: Film, still: Path, name: str) -> None:
    """Pictures that stay are one frame, however many windows they fill."""
    times = [0, 100, 200, 300, 1000, 1100, 1200, 1300, 1400, 5000]  # it ends at 5.1 s
    film(tmp_path / name, "libx264", n=10, times=times, time_base=Fraction(1, 1000), max_b_frames=2)
    frames = cut(make_set(tmp_path / name, still), 2.0, tmp_path / "work")
    assert tell_pictures(frames, name) == [2, 3, 6, 8]
    assert frames.onset[:4].tolist() == [0, 0.5, 1, 1.5]
    assert frames.duration[:4] == pytest.approx([0.5, 0.5, 0.5, 3.6])


def test_a_stream_without_times_goes_by_its_rate(tmp_path: Path, film: Film, still: Path) -> None:
    film(tmp_path / "a.mpg", "mpeg1video", rate=25, n=24, max_b_frames=2)
    frames = cut(make_set(tmp_path / "a.mpg", still), 5.0, tmp_path / "work")
    assert frames.onset[:-1] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])
    assert (frames.onset + frames.duration)[-2] == pytest.approx(0.96)
    assert tell_pictures(frames, "a.mpg") == [2, 7, 12, 17, 22]


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png"])
def test_animations(tmp_path: Path, still: Path, name: str) -> None:
    frames = cut(make_set(animate(tmp_path / name, [100, 900, 2000, 500]), still), 1.0, tmp_path / "work")
    assert frames.stimuli.ids[:-1] == (f"{name}@0.000", f"{name}@1.000", f"{name}@3.000")
    assert frames.duration.tolist() == [1, 2, 0.5, 0]
    assert tell_pictures(frames, name) == [1, 2, 3]
    assert np.allclose(frames.weights, [1 / 3.5, 2 / 3.5, 0.5 / 3.5, 1])


def test_images_stay_what_they_are(tmp_path: Path, paint: Any) -> None:
    stimuli = make_set(paint(tmp_path / "a.png"), paint(tmp_path / "b.jpg"), paint(tmp_path / "c.gif"))
    frames = cut(stimuli, 2.0, tmp_path / "work")
    assert not frames.moves
    assert frames.weights.tolist() == [1, 1, 1]
    for field in ("ids", "paths", "digests"):
        assert getattr(frames.stimuli, field) == getattr(stimuli, field)
    assert not (tmp_path / "work").exists()


def test_frames_have_the_attributes_of_their_clip(tmp_path: Path, still: Path) -> None:
    stimuli = make_set(animate(tmp_path / "a.gif", [500, 500]), still)
    stimuli = replace(stimuli, attributes={"category": np.array(["moving", "still"]), "size": np.array([1.0, np.nan])})
    frames = cut(stimuli, 2.0, tmp_path / "work")
    assert frames.stimuli.attributes["category"].tolist() == ["moving", "moving", "still"]
    assert np.array_equal(frames.stimuli.attributes["size"], [1, 1, np.nan], equal_nan=True)


def test_pictures_that_look_the_same_have_one_digest(tmp_path: Path, film: Film) -> None:
    once, again = film(tmp_path / "a.mkv", n=10, **LOSSLESS), film(tmp_path / "b.mkv", n=15, **LOSSLESS)
    frames = cut(make_set(once, again), 2.0, tmp_path / "work")
    a, b = (
        [d for d, c in zip(frames.stimuli.digests, frames.clip, strict=True) if c == name]
        for name in frames.clip[[0, -1]]
    )
    assert a == b[:2]
    assert len(set(b)) == 3
    assert len(frames.stimuli.distinct()[0]) == 3


def test_frames_are_made_once(tmp_path: Path, film: Film, still: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stimuli, work = make_set(film(tmp_path / "a.mkv", n=10, **LOSSLESS), still), tmp_path / "work"
    opened: list[str] = []
    plainly = room.opening_clip

    def watch(path: Path) -> Any:
        opened.append(path.name)
        return plainly(path)

    monkeypatch.setattr(room, "opening_clip", watch)
    first = cut(stimuli, 5.0, work)
    assert opened == ["a.mkv"]
    again = cut(stimuli, 5, work)
    assert opened == ["a.mkv"]
    assert (again.stimuli.ids, again.stimuli.digests) == (first.stimuli.ids, first.stimuli.digests)
    assert np.array_equal(again.onset, first.onset)
    assert np.array_equal(again.duration, first.duration)
    assert cut(stimuli, 2.0, work).stimuli.ids == ("a.mkv@0.000", "a.mkv@0.500", "still.png")
    assert len(opened) == 2
    assert cut(stimuli, 5.0, work).stimuli.paths == first.stimuli.paths  # another rate leaves them alone
    assert len(opened) == 2

    first.stimuli.paths[1].unlink()
    cut(stimuli, 5.0, work)
    assert first.stimuli.paths[1].exists()
    assert len(opened) == 3
    (first.stimuli.paths[0].parent / "frames.json").write_text('[["damaged"')
    assert cut(stimuli, 5.0, work).stimuli.digests == first.stimuli.digests
    assert len(opened) == 4

    shutil.copy(tmp_path / "a.mkv", tmp_path / "b.mkv")  # other content has other frames, whatever its name
    film(tmp_path / "a.mkv", n=15, **LOSSLESS)
    os.utime(tmp_path / "a.mkv")
    assert len(cut(make_set(tmp_path / "a.mkv", tmp_path / "b.mkv"), 5.0, work)) == 8 + 5
    assert opened[4:] == ["a.mkv"]


def test_frames_that_were_not_finished_are_not_taken(tmp_path: Path, film: Film, still: Path) -> None:
    stimuli = make_set(film(tmp_path / "a.mkv", n=10, **LOSSLESS), still)
    n_written = 0

    def fail(path: Path, fill: Callable[[Path], None]) -> None:
        nonlocal n_written
        n_written += 1
        if n_written == 3:
            raise MissingInputError("the disk is full")
        write(path, fill)

    with pytest.raises(MissingInputError, match="the disk is full"):
        find_frames(stimuli, 5.0, tmp_path / "work", write=fail)
    assert len(list((tmp_path / "work").rglob("*.png"))) == 2
    assert tell_pictures(cut(stimuli, 5.0, tmp_path / "work"), "a.mkv") == [1, 3, 5, 7, 9]


def test_clips_side_by_side(tmp_path: Path) -> None:
    clips = [animate(tmp_path / f"{i}.gif", [200] * (1 + i % 3 + 1)) for i in range(9)]
    told: list[tuple[int, int]] = []
    frames = cut(make_set(*clips), 5.0, tmp_path / "work", n_jobs=3, progress=lambda *done: told.append(done))
    assert [list(frames.clip).count(f"{i}.gif") for i in range(9)] == [2, 3, 4] * 3
    assert list(dict.fromkeys(frames.clip)) == sorted(path.name for path in clips)
    assert told == [(i, 9) for i in range(1, 10)]


@pytest.mark.parametrize("rate", [0, -1.0, float("nan"), float("inf"), 1001])
def test_rates_that_cannot_be(tmp_path: Path, still: Path, paint: Any, rate: float) -> None:
    with pytest.raises(
        UsageError, match=rf"{rate:g} frames a second: should be above 0 and at most 1000.*--frame-rate"
    ):
        cut(make_set(still, paint(tmp_path / "b.png", 5, "L")), rate, tmp_path / "work")


def test_damaged_clips(tmp_path: Path, film: Film, still: Path, rng: np.random.Generator) -> None:
    pictures = [rng.integers(0, 256, (64, 96, 3), dtype=np.uint8) for _ in range(30)]
    path = film(tmp_path / "a.avi", pictures=pictures)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 500] = rng.bytes(500)
    path.write_bytes(content)
    stimuli = make_set(path, still)
    with pytest.raises(BadDataError, match=r"a\.avi: the video is cut off or damaged"):
        cut(stimuli, 2.0, tmp_path / "work")
    assert not list((tmp_path / "work").rglob("frames.json"))


def test_without_pyav(tmp_path: Path, still: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "a.mp4").write_bytes(b"not looked into")
    with pytest.raises(MissingInputError, match=r"pip install 'dnnbrain-app\[video\]'"):
        cut(make_set(tmp_path / "a.mp4", still), 2.0, tmp_path / "work")


# Trials --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def frames() -> Frames:
    """A clip of three frames and 2.5 s, and a still image."""
    ids = ("a.mp4@0.000", "a.mp4@1.000", "a.mp4@2.000", "b.png")
    stimuli = StimulusSet(ids, tuple(map(Path, ids)), ids)
    clip = np.array(["a.mp4"] * 3 + ["b.png"], dtype=object)
    return Frames(stimuli, clip, np.array([0.0, 1, 2, 0]), np.array([1.0, 1, 0.5, 0]))


def make_trials(*rows: tuple[float, float, str, int]) -> Trials:
    onset, duration, stimulus, run = zip(*rows, strict=True)
    return Trials(
        np.array(onset), np.array(duration), np.array(stimulus, dtype=object), np.array(run), ("run-1", "run-2")
    )


@pytest.mark.parametrize(
    ("duration", "expected"),
    [
        (2.5, [(10, 1), (11, 1), (12, 0.5)]),
        (0, [(10, 1), (11, 1), (12, 0.5)]),  # unknown: the clip's own
        (float("nan"), [(10, 1), (11, 1), (12, 0.5)]),
        (3.2, [(10, 1), (11, 1), (12, 1.2)]),  # the last frame is held
        (2.0, [(10, 1), (11, 1)]),  # the rest is not shown
        (1.25, [(10, 1), (11, 0.25)]),
        (0.5, [(10, 0.5)]),
    ],
)
def test_a_trial_becomes_trials_of_frames(frames: Frames, duration: float, expected: list[tuple[float, float]]) -> None:
    trials = expand_trials(make_trials((10.0, duration, "a.mp4", 0)), frames)
    assert np.allclose(np.c_[trials.onset, trials.duration], expected)
    assert trials.stimulus.tolist() == list(frames.stimuli.ids[: len(expected)])


def test_trials_keep_run_order_and_still_images(frames: Frames, caplog: pytest.LogCaptureFixture) -> None:
    rows = [(-1.0, 2.5, "a.mp4", 0), (5.0, 2.0, "b.png", 0), (7.0, 0.0, "b.png", 0), (0.0, 0.6, "a.mp4", 1)]
    trials = expand_trials(make_trials(*rows), frames)
    assert trials.onset.tolist() == [-1, 0, 1, 5, 7, 0]
    assert trials.duration.tolist() == [1, 1, 0.5, 2, 0, 0.6]
    assert trials.run.tolist() == [0, 0, 0, 0, 0, 1]
    assert trials.run.dtype == int
    assert trials.stimulus[3:].tolist() == ["b.png", "b.png", "a.mp4@0.000"]
    assert trials.run_labels == ("run-1", "run-2")
    assert trials.repeat.tolist() == [0, 0, 0, 0, 1, 1]
    assert not caplog.records


def test_a_trial_that_outlasts_its_clip_is_told(frames: Frames, caplog: pytest.LogCaptureFixture) -> None:
    rows = [(0.0, 9.0, "a.mp4", 0), (20.0, 3.0, "a.mp4", 0), (30.0, 9.0, "b.png", 0)]
    with caplog.at_level(logging.WARNING):
        trials = expand_trials(make_trials(*rows), frames)
    assert trials.duration.tolist() == [1, 1, 7, 1, 1, 1, 9]
    assert "1 of 3 trials outlast their clips by more than 1 s; the last frame is taken to stay" in caplog.text


def test_expanded_trials_show_what_was_shown(rng: np.random.Generator) -> None:
    """At any moment of a trial, the frame whose trial it is is the one of the clip at that time."""
    onset = np.r_[0, np.sort(rng.uniform(0, 3, 6))]
    ids = tuple(f"a@{i}" for i in range(7))
    stimuli = StimulusSet(ids, tuple(map(Path, ids)), ids)
    frames = Frames(stimuli, np.array(["a"] * 7, dtype=object), onset, np.diff(onset, append=3.1))
    given = make_trials(*((10.0 * i, float(rng.uniform(0.1, 4)), "a", 0) for i in range(20)))
    trials = expand_trials(given, frames)
    assert trials.duration.sum() == pytest.approx(given.duration.sum())
    for i, lasts in enumerate(given.duration):
        for moment in rng.uniform(0, lasts, 20):
            (row,) = np.flatnonzero(
                (trials.onset <= 10 * i + moment) & (10 * i + moment < trials.onset + trials.duration)
            )
            assert trials.stimulus[row] == ids[int(np.flatnonzero(onset <= moment)[-1])]


def test_no_trials(frames: Frames) -> None:
    empty = make_trials((0.0, 1.0, "a.mp4", 0)).take(np.array([], dtype=int))
    assert len(expand_trials(empty, frames)) == 0
