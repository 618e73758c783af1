"""Reading a clip, whether video, animation or still image, as a few frames evenly spaced in time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

from PIL import Image

from dnnbrain_app.errors import BadDataError, UsageError
from dnnbrain_app.records import StimulusSet
from dnnbrain_app.stimuli.images import check_size, make_rgb, open_image, opening_image
from dnnbrain_app.stimuli.videos import (
    MAX_FRAMES,
    convert_picture,
    decode_video,
    is_video,
    measure_video,
    opening_video,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")
_ANIMATED = {".gif", ".webp", ".png", ".apng", ".avif"}
_FORMATS = {"GIF", "WEBP", "PNG", "AVIF"}  # the frames of others are pages, or sizes of an icon
_DEFAULT_DELAY = 100  # milliseconds, where an animation says 0: what browsers do
_LISTED = 5


def is_clip(path: Path) -> bool:
    """Whether a stimulus moves: a video by its name, or an animation of two frames or more by its header."""
    if is_video(path):
        return True
    if path.suffix.lower() not in _ANIMATED:
        return False
    with opening_image(path), open_image(path) as image:
        return _is_animated(image)


def check_kind(stimuli: StimulusSet, n_frames: int, network: str) -> None:
    """Check that a network can look at the stimuli; a warning where it sees less, or more, than the participants did.

    Parameters
    ----------
    stimuli : StimulusSet
        What it is to look at.
    n_frames : int
        Frames of a clip that it takes; 0 for a network of images.
    network : str
        Its name, for messages.

    Raises
    ------
    UsageError
        Videos for a network of images.
    """
    if n_frames:
        still = _name_those(stimuli, lambda path: not is_clip(path))
        if still:
            text = _count(still, len(stimuli), "a still image", "still images")
            logger.warning("%s, in which nothing moves; %s looks at clips", text, network)
        return
    videos = _name_those(stimuli, is_video)
    if videos:
        text = _count(videos, len(stimuli), "a video", "videos")
        raise UsageError(f"{text}; {network} looks at images: use a network of clips, such as r3d_18")
    moving = _name_those(stimuli, is_clip)
    if moving:
        text = _count(moving, len(stimuli), "an animation", "animations")
        logger.warning("%s; %s looks at images, and sees the first frame only", text, network)


def read_clip(path: Path, n_frames: int) -> list[Image.Image]:
    r"""Read evenly spaced frames of a clip.

    Frame :math:`i` of :math:`n` is the one on the screen at :math:`(i + 1/2) / n` of the duration, by the times at
    which the frames are to be shown: the last one that has come up by then. A clip with a constant rate and :math:`n`
    frames gives each of them; one with fewer frames repeats some. Times are compared as integers, so the choice does
    not depend on rounding.

    Parameters
    ----------
    path : Path
        A video (needs PyAV; sound is ignored), an animated GIF, WebP, PNG or AVIF, or a still image, which is
        repeated.
    n_frames : int
        1 or more.

    Returns
    -------
    list of PIL.Image.Image
        `n_frames` images of one size, upright RGB as `read_image` gives them; repeated frames are the same object.
        No more than these and one frame are held in memory.

    Raises
    ------
    MissingInputError
        If the file is absent, or PyAV is.
    BadDataError
        If it is empty, cut off, damaged, without pictures, of too many or too large frames, or of changing size.
    """
    if n_frames < 1:
        raise UsageError(f"{n_frames} frames of a clip: should be 1 or more")
    images = _read_video(path, n_frames) if is_video(path) else _read_animation(path, n_frames)
    sizes = sorted({image.size for image in images})
    if len(sizes) > 1:
        raise BadDataError(f"{path}: frames of different sizes, {sizes[0]} and {sizes[-1]}")
    return images


def read_frames(path: Path, numbers: Iterable[int]) -> Iterator[tuple[int, Image.Image]]:
    """Read single frames of a video, one after the other.

    Parameters
    ----------
    path : Path
        The video (needs PyAV).
    numbers : iterable of int
        Of the frames, from 1, in the order in which they are shown; order and repetitions are of no account.

    Yields
    ------
    number : int
        Ascending.
    image : PIL.Image.Image
        Upright RGB.

    Raises
    ------
    MissingInputError
        If the file is absent, or PyAV is.
    BadDataError
        A number below 1 or beyond the last frame; a damaged video.
    """
    wanted = sorted(set(numbers))
    if wanted and wanted[0] < 1:
        raise BadDataError(f"{path}: frame {wanted[0]}; frames are numbered from 1")
    seen = 0
    with opening_video(path) as (container, stream):
        for seen, (_, frame) in enumerate(decode_video(container, stream), 1):
            if not wanted:
                return
            if seen == wanted[0]:
                yield wanted.pop(0), convert_picture(frame, stream)
    if wanted:
        raise BadDataError(f"{path}: frame {wanted[0]} is asked for, but it has {seen}")


def _read_video(path: Path, n_frames: int) -> list[Image.Image]:
    with opening_video(path) as (container, stream):
        start, duration = measure_video(container, stream)
    with opening_video(path) as (container, stream):
        frames = decode_video(container, stream)
        return _choose_frames(frames, start, duration, n_frames, partial(convert_picture, stream=stream))


def _read_animation(path: Path, n_frames: int) -> list[Image.Image]:
    with opening_image(path), open_image(path) as image:
        check_size(*image.size)
        if not _is_animated(image):
            return [make_rgb(image)] * n_frames
        first = int(getattr(image, "default_image", False))  # of a PNG: shown where animations are not
        numbers = range(first, getattr(image, "n_frames", 1))
        times = [0]
        for number in numbers:
            _show(image, number)
            times.append(times[-1] + (round(image.info.get("duration", 0)) or _DEFAULT_DELAY))

        def convert(number: int) -> Image.Image:
            _show(image, number)
            return make_rgb(image)

        return _choose_frames(zip(times, numbers, strict=False), 0, times[-1], n_frames, convert)


def _is_animated(image: Image.Image) -> bool:
    return image.format in _FORMATS and getattr(image, "is_animated", False)


def _show(image: Image.Image, number: int) -> None:
    if number >= MAX_FRAMES:
        raise BadDataError(f"an animation of more than {MAX_FRAMES} frames; cut it into clips")
    image.seek(number)
    image.load()


def _choose_frames(
    frames: Iterable[tuple[int, T]], start: int, duration: int, n_frames: int, convert: Callable[[T], Image.Image]
) -> list[Image.Image]:
    """Convert the frame that is on the screen at each moment ``start + (i + 1/2) / n_frames * duration``."""
    chosen: list[Image.Image] = []
    shown: list[T] = []  # the frame on the screen, once there is one
    for time, frame in frames:
        # so many moments come before this frame does: the integer next above n * (time - start) / duration - 1/2
        due = min(n_frames, -((duration - 2 * n_frames * (time - start)) // (2 * duration)))
        if shown and due > len(chosen):
            chosen += [convert(shown[0])] * (due - len(chosen))
        shown = [frame]  # also after the last moment: damage at the end tells of a file that is cut off
    if not shown:
        raise BadDataError("no frame can be read")
    missing = n_frames - len(chosen)
    return chosen + [convert(shown[0])] * missing if missing else chosen


def _name_those(stimuli: StimulusSet, test: Callable[[Path], bool]) -> list[str]:
    return [name for name, path in zip(stimuli.ids, stimuli.paths, strict=True) if test(path)]


def _count(names: list[str], n_stimuli: int, one: str, many: str) -> str:
    more = ", ..." if len(names) > _LISTED else ""
    kind = f"is {one}" if len(names) == 1 else f"are {many}"
    return f"{len(names)} of {n_stimuli} stimuli ({', '.join(names[:_LISTED])}{more}) {kind}"
