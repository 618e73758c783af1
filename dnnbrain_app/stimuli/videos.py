"""Decoding a video file through PyAV: what lies in it when, and its pictures one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from PIL import Image

from dnnbrain_app.errors import BadDataError, MissingInputError
from dnnbrain_app.stimuli.images import make_rgb

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".ogv", ".flv", ".3gp"}
)
MAX_FRAMES = 100_000  # an hour at 25 a second
MAX_FRAME_PIXELS = 36_000_000  # 8K is 33 million
# Containers by their first bytes. FFmpeg is told which one it is: left to itself, it would take a playlist in disguise
# for one, and open the files and addresses in it.
_MOV = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"uuid")
_CONTAINERS = {
    b"\x1aE\xdf\xa3": "matroska",
    b"RIFF": "avi",
    b"\0\0\1\xba": "mpeg",
    b"\0\0\1\xb3": "mpegvideo",
    b"0&\xb2u": "asf",
    b"FLV\1": "flv",
    b"OggS": "ogg",
}
# Their rate is constant; of the times, FFmpeg interpolates some, not without mistakes, or makes up all.
_COUNTED = ("mpeg", "mpegvideo")
_MISSING = 0.05  # of the declared duration; containers round it
_DAMAGED = "the video is cut off or damaged"


def is_video(path: Path) -> bool:
    """Whether a file is a video by the ending of its name."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def check_video(path: Path) -> None:
    """Check that a file opens and has pictures of a size that can be read, if PyAV is there; none is decoded.

    Raises
    ------
    BadDataError
        If it is not.
    """
    try:
        load_av()
    except MissingInputError:
        return  # reading it will say so
    with opening_video(path):
        pass


def load_av() -> ModuleType:
    """Import PyAV, which is optional.

    Raises
    ------
    MissingInputError
        If it is not there.
    """
    try:
        import av
    except ImportError as error:
        raise MissingInputError("videos are read with PyAV; pip install 'dnnbrain-app[video]'") from error
    return av


@contextmanager
def opening_video(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a video, and find its stream of pictures; what FFmpeg raises becomes our errors, with the path."""
    av = load_av()
    try:
        with av.open(f"file:{path}", format=_find_format(path), metadata_errors="replace") as container:
            stream = _find_stream(container)
            stream.codec_context.thread_count = 1  # clips are read side by side already
            yield container, stream
    except FileNotFoundError as error:
        raise MissingInputError(f"{path}: does not exist") from error
    except BadDataError as error:
        raise BadDataError(f"{path}: {error}") from error
    except (OSError, av.FFmpegError) as error:
        raise BadDataError(f"{path}: {_DAMAGED} ({error.strerror})") from error


def measure_video(container: InputContainer, stream: VideoStream) -> tuple[int, int]:
    """Read, without decoding, when the first picture comes up and how long all of them last.

    Returns
    -------
    tuple of int
        Start and duration, on the clock of `decode_video`.

    Raises
    ------
    BadDataError
        If the file is cut off, has no pictures or too many, or does not tell when they are shown.
    """
    spans: list[tuple[int, int]] = []
    others = 0.0  # when sound, subtitles, ... end
    for packet in container.demux():
        if not packet.size:
            continue
        if packet.is_corrupt:
            raise BadDataError(_DAMAGED)
        length = packet.duration or 0
        if packet.stream_index == stream.index and not packet.is_discard:
            spans.append((_require_time(packet.pts), length))
            _check_number(len(spans))
        elif packet.pts is not None:
            others = max(others, float((packet.pts + length) * packet.time_base))
    if not spans:
        raise BadDataError("the video has no pictures")
    start, (last, length) = min(spans)[0], max(spans)
    end = last + (length or (last - start) // max(1, len(spans) - 1))
    there, declared = max(others, float(end * (stream.time_base or 1))), (container.duration or 0) / 1e6
    if there < (1 - _MISSING) * declared:
        raise BadDataError(f"the video is cut off: {there:.2f} of {declared:.2f} s are there")
    return (start, max(1, end - start)) if _has_times(container) else (0, len(spans))


def measure_tick(container: InputContainer, stream: VideoStream) -> Fraction:
    """Read how long a tick of the clock of `decode_video` lasts, in seconds.

    Raises
    ------
    BadDataError
        If the file does not tell.
    """
    rate = stream.average_rate or stream.guessed_rate
    tick = stream.time_base if _has_times(container) else rate and 1 / rate
    if not tick:
        raise BadDataError("the video does not tell how fast its pictures are shown; store it as .mp4")
    return Fraction(tick)


def decode_video(container: InputContainer, stream: VideoStream) -> Iterator[tuple[int, VideoFrame]]:
    """Decode the pictures in the order in which they are shown, each with its time.

    Times are ticks of the stream's clock; the pictures of MPEG program streams and raw streams are counted.

    Raises
    ------
    BadDataError
        At a damaged picture, or if there are too many. A cut between two pictures leaves no trace in MPEG streams.
    """
    has_times = _has_times(container)
    for number, frame in enumerate(container.decode(stream)):
        _check_number(number)
        if frame.is_corrupt:
            raise BadDataError(f"{_DAMAGED} (picture {number + 1})")
        yield _require_time(frame.pts) if has_times else number, frame


def convert_picture(frame: VideoFrame, stream: VideoStream) -> Image.Image:
    """Turn a decoded picture into upright 8-bit RGB with square pixels, whatever its pixel format."""
    wide = stream.sample_aspect_ratio or 1
    width = max(1, round(frame.width * wide))
    _check_size(width, frame.height)
    mode = "rgba" if any(part.is_alpha for part in frame.format.components) else "rgb24"
    image = make_rgb(Image.fromarray(frame.to_ndarray(format=mode, width=width, height=frame.height)))
    return image.rotate(frame.rotation, expand=True) if frame.rotation % 90 == 0 else image


def _find_format(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(8)
    name = "mov" if start[4:] in _MOV else _CONTAINERS.get(start[:4], "")
    if not name:
        raise BadDataError("not a video of a kind that is read (MP4, MOV, AVI, Matroska, WebM, MPEG, WMV, FLV, Ogg)")
    return name


def _find_stream(container: InputContainer) -> VideoStream:
    av = load_av()
    for stream in container.streams.video:
        if not stream.disposition & av.stream.Disposition.attached_pic:  # the cover of a sound
            break
    else:
        raise BadDataError("has no video stream")
    if stream.codec_context is None:
        raise BadDataError("the video's coding is unknown; store it as H.264 in an .mp4")
    _check_size(stream.codec_context.width, stream.codec_context.height)
    return stream


def _check_size(width: int, height: int) -> None:
    if not 0 < width * height <= MAX_FRAME_PIXELS:
        raise BadDataError(
            f"a video of {width} x {height} pixels; 1 to {MAX_FRAME_PIXELS // 1_000_000} million are read: scale it"
        )


def _has_times(container: InputContainer) -> bool:
    return container.format.name not in _COUNTED


def _require_time(time: int | None) -> int:
    if time is None:
        raise BadDataError("the video does not tell when its pictures are shown; store it as .mp4")
    return time


def _check_number(number: int) -> None:
    if number > MAX_FRAMES:
        raise BadDataError(f"a video of more than {MAX_FRAMES} pictures; cut it into clips")
