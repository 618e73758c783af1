"""Reading a clip, whether video, animation or still image, as some of its frames."""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from dnnbrain_app.errors import BadDataError, UsageError
from dnnbrain_app.records import StimulusSet
from dnnbrain_app.stimuli.images import check_size, make_rgb, open_image, opening_image, read_image
from dnnbrain_app.stimuli.videos import (
    MAX_FRAMES,
    convert_picture,
    decode_video,
    is_video,
    measure_tick,
    measure_video,
    opening_video,
)

logger = logging.getLogger(__name__)

_ANIMATED = {".gif", ".webp", ".png", ".apng", ".avif"}
_FORMATS = {"GIF", "WEBP", "PNG", "AVIF"}  # the frames of others are pages, or sizes of an icon
_DEFAULT_DELAY = 100  # milliseconds, where an animation says 0: what browsers do
_LISTED = 5


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """A clip that is open.

    Parameters
    ----------
    start, duration : int
        When the first frame comes up, and how long all of them last, in ticks.
    tick : Fraction
        Seconds.
    frames : iterable of (int, object)
        The time of each, in ticks, and what `convert` makes an image of while no other has been taken.
    convert : callable
        Gives upright RGB.
    """

    start: int
    duration: int
    tick: Fraction
    frames: Iterable[tuple[int, Any]]
    convert: Callable[[Any], Image.Image]


def is_clip(path: Path) -> bool:
    """Whether a stimulus moves: a video by its name, or an animation of two frames or more by its header."""
    if is_video(path):
        return True
    if path.suffix.lower() not in _ANIMATED:
        return False
    with opening_image(path), open_image(path) as image:
        return _is_animated(image)


def warn_of_stills(stimuli: StimulusSet, network: str) -> None:
    """Warn where a network of clips is to look at images: it takes each for a clip in which nothing moves."""
    still = [name for name, path in zip(stimuli.ids, stimuli.paths, strict=True) if not is_clip(path)]
    if still:
        logger.warning(
            "%d of %d stimuli (%s%s) %s, in which nothing moves; %s looks at clips",
            len(still),
            len(stimuli),
            ", ".join(still[:_LISTED]),
            ", ..." if len(still) > _LISTED else "",
            "is a still image" if len(still) == 1 else "are still images",
            network,
        )


def read_clip(path: Path, n_frames: int) -> list[Image.Image]:
    r"""Read evenly spaced frames of a clip.

    Frame :math:`i` of :math:`n` is the one on the screen at :math:`(i + 1/2) / n` of the duration, by the times at
    which the frames are to be shown: the last one that has come up by then. A clip with a constant rate and :math:`n`
    frames gives each of them; one with fewer frames repeats some. Times are compared as fractions, so the choice does
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
    with opening_clip(path) as clip:
        moments = [Fraction((2 * i + 1) * clip.duration, 2 * n_frames) for i in range(n_frames)]
        images = [image for held, image in hold_frames(clip, moments) for _ in held]
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


@contextmanager
def opening_clip(path: Path) -> Iterator[Clip]:
    """Open a clip, once it is known when each frame is to be shown.

    Parameters
    ----------
    path : Path
        As for `read_clip`; a still image is a clip of one frame.

    Raises
    ------
    MissingInputError, BadDataError
        As `read_clip`, also while frames are read.
    """
    if is_video(path):
        with opening_video(path) as (container, stream):
            start, duration = measure_video(container, stream)
            tick = measure_tick(container, stream)
        with opening_video(path) as (container, stream):
            convert = partial(convert_picture, stream=stream)
            yield Clip(start, duration, tick, decode_video(container, stream), convert)
        return
    if not is_clip(path):
        yield Clip(0, 1, Fraction(1), [(0, path)], read_image)
        return
    with opening_image(path), open_image(path) as image:
        check_size(*image.size)
        first = int(getattr(image, "default_image", False))  # of a PNG: shown where animations are not
        numbers = range(first, getattr(image, "n_frames", 1))
        times = [0]
        for number in numbers:
            _show(image, number)
            times.append(times[-1] + (round(image.info.get("duration", 0)) or _DEFAULT_DELAY))

        def convert_frame(number: int) -> Image.Image:
            _show(image, number)
            return make_rgb(image)

        yield Clip(0, times[-1], Fraction(1, 1000), zip(times, numbers, strict=False), convert_frame)


def hold_frames(clip: Clip, moments: Sequence[Fraction]) -> Iterator[tuple[range, Image.Image]]:
    """Read the frames that are on the screen at some moments, one at a time.

    Parameters
    ----------
    clip : Clip
        Is read to its end, as damage there tells of a file that is cut off.
    moments : sequence of Fraction
        Ascending, ticks from the start.

    Yields
    ------
    held : range
        Of the moments, those at which the frame is there: it is the last one that has come up by then.
    image : PIL.Image.Image
        Upright RGB.

    Raises
    ------
    BadDataError
        If there is no frame.
    """
    first = 0
    shown: list[Any] = []  # the frame on the screen, once there is one
    for time, frame in clip.frames:
        due = bisect_left(moments, time - clip.start, first) if shown else first  # so many moments come before it
        if due > first:
            yield range(first, due), clip.convert(shown[0])
            first = due
        shown = [frame]
    if not shown:
        raise BadDataError("no frame can be read")
    if first < len(moments):
        yield range(first, len(moments)), clip.convert(shown[0])


def _is_animated(image: Image.Image) -> bool:
    return image.format in _FORMATS and getattr(image, "is_animated", False)


def _show(image: Image.Image, number: int) -> None:
    if number >= MAX_FRAMES:
        raise BadDataError(f"an animation of more than {MAX_FRAMES} frames; cut it into clips")
    image.seek(number)
    image.load()
