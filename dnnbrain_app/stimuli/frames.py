"""A network of images looks at clips: frames in place of each clip, with the times at which they are on the screen."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from fractions import Fraction
from functools import partial
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from dnnbrain_app.errors import UsageError
from dnnbrain_app.records import Array, StimulusSet, Trials
from dnnbrain_app.stimuli.clips import hold_frames, is_clip, opening_clip

logger = logging.getLogger(__name__)

Write = Callable[[Path, Callable[[Path], None]], None]
_MAX_RATE = 1000  # a second: more than any film has, and times are told in milliseconds
_LONGER = 1.0  # seconds for which a trial may outlast its clip without a word
_LIST = "frames.json"
_COMPRESSION = 1  # of 9: several times faster, and a sixth larger


@dataclass(frozen=True, slots=True, eq=False)
class Frames:
    """Still images that stand for stimuli, some of which move.

    Parameters
    ----------
    stimuli : StimulusSet
        The n_frames frames (``film.mp4@12.250``: from 12.25 s on), clip after clip; a stimulus in which nothing moves
        is itself. Attributes are those of the clip.
    clip : array of str, shape (n_frames,)
        The stimulus that each is of.
    onset, duration : array of shape (n_frames,)
        Seconds from the start of the clip; each frame ends where the next begins. 0 and 0 where nothing moves.
    """

    stimuli: StimulusSet
    clip: Array
    onset: Array
    duration: Array

    def __len__(self) -> int:
        return len(self.stimuli)

    @property
    def moves(self) -> bool:
        """Whether anything does."""
        return bool(self.duration.any())

    @property
    def weights(self) -> Array:
        """Share of each frame in its clip's duration, float64 (n_frames,): those of a clip add up to 1."""
        clips, rows = np.unique(self.clip, return_inverse=True)
        lengths = np.bincount(rows, self.duration, len(clips))[rows]
        return np.divide(self.duration, lengths, out=np.ones(len(rows)), where=lengths > 0)


@dataclass(frozen=True, slots=True)
class _Frame:
    """What is kept of a frame: seconds, and the digest of its size and pixels."""

    onset: float
    duration: float
    digest: str


def find_frames(
    stimuli: StimulusSet,
    rate: float,
    folder: Path,
    *,
    write: Write,
    n_jobs: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Frames:
    """Put frames in the place of clips, as PNG files.

    Time is cut into windows of ``1 / rate`` seconds from the start of the clip; the last one ends with the clip, and a
    rest of less than half a window belongs to it. Of each window, the frame is taken that is on the screen in its
    middle, by the times at which the file says that frames are to be shown. Windows in a row with the same frame are
    one.

    Parameters
    ----------
    stimuli : StimulusSet
        Videos, animations and still images, in any mixture.
    rate : float
        Frames a second, up to 1000.
    folder : Path
        Where the frames are kept, below the digest of the clip; those that are there are not made again.
    write : callable
        Makes a file whole or not at all: takes its path, and a function that fills a file of another name.
    n_jobs : int
        Clips to read side by side, in threads.
    progress : callable, optional
        Called with the number of stimuli that are done, and of all.

    Returns
    -------
    Frames
        In the order of the stimuli.

    Raises
    ------
    UsageError
        A rate that cannot be.
    MissingInputError
        If a file is absent, or PyAV is, with which videos are read.
    BadDataError
        If a clip is damaged.
    CannotWriteError, InputOutputError
        What `write` raises.
    """
    if not 0 < rate <= _MAX_RATE:
        raise UsageError(f"{rate:g} frames a second: should be above 0 and at most {_MAX_RATE}; set --frame-rate")

    def cut(path: Path, digest: str) -> tuple[Path, list[_Frame]]:
        place = folder / digest[:32] / f"{float(rate)}"
        return place, (_find_list(place) or _cut_clip(path, rate, place, write)) if is_clip(path) else []

    found: list[tuple[Path, list[_Frame]]] = []
    with ThreadPoolExecutor(n_jobs) as pool:
        try:
            for place_and_frames in pool.map(cut, stimuli.paths, stimuli.digests):
                found.append(place_and_frames)
                if progress is not None:
                    progress(len(found), len(stimuli))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    return _gather(stimuli, found)


def expand_trials(trials: Trials, frames: Frames) -> Trials:
    """Turn every presentation of a clip into presentations of its frames.

    Frames begin at the onset of the trial plus their own. The last one is held until the trial ends, and what would
    come after the end is left out. A trial of duration 0 lasts as long as the clip. (A still that was shown before or
    after a clip, such as its first frame, is a row of the events of its own.)

    Parameters
    ----------
    trials : Trials
        Of the stimuli that `frames` stands for.
    frames : Frames
        From `find_frames`.

    Returns
    -------
    Trials
        In the order of the trials, then of the frames. Trials of stimuli in which nothing moves stay as they are.
    """
    first = {clip: row for row, clip in reversed(list(enumerate(frames.clip)))}
    counts = Counter(frames.clip)
    names = np.array(frames.stimuli.ids, dtype=object)
    onsets, durations, shown, sources, n_held = [], [], [], [], 0
    for number, (clip, lasts) in enumerate(zip(trials.stimulus, trials.duration, strict=True)):
        rows = np.arange(first[clip], first[clip] + counts[clip])
        length = frames.onset[rows[-1]] + frames.duration[rows[-1]]
        end = lasts if lasts > 0 else length
        rows = rows[: max(1, int(np.searchsorted(frames.onset[rows], end)))]
        n_held += bool(0 < length < end - _LONGER)
        onsets.append(trials.onset[number] + frames.onset[rows])
        durations.append(np.diff(frames.onset[rows], append=end))
        shown.append(names[rows])
        sources.append(np.full(len(rows), trials.run[number]))
    if n_held:
        logger.warning(
            "%d of %d trials outlast their clips by more than %g s; the last frame is taken to stay on the screen",
            n_held,
            len(trials),
            _LONGER,
        )
    return Trials(
        _concatenate(onsets), _concatenate(durations), _concatenate(shown), _concatenate(sources), trials.run_labels
    )


def _concatenate(arrays: Sequence[Array]) -> Array:
    return np.concatenate(arrays) if arrays else np.empty(0)


def _cut_clip(path: Path, rate: float, place: Path, write: Write) -> list[_Frame]:
    """Make the frames of a clip, and last the list of them: where it is, all of them are."""
    window = 1 / Fraction(str(float(rate)))
    found = []
    with opening_clip(path) as clip:
        length = clip.duration * clip.tick
        n_windows = max(1, math.floor(length / window + Fraction(1, 2)))
        edges = [*(i * window for i in range(n_windows)), length]
        moments = [(a + b) / 2 / clip.tick for a, b in pairwise(edges)]
        for held, image in hold_frames(clip, moments):
            onset, end = float(edges[held.start]), float(edges[held.stop])
            found.append(_Frame(onset, end - onset, _digest_pixels(image)))
            write(place / _name_file(onset), partial(image.save, compress_level=_COMPRESSION))

    def write_list(part: Path) -> None:
        part.write_text(json.dumps([astuple(frame) for frame in found]))

    write(place / _LIST, write_list)
    return found


def _find_list(place: Path) -> list[_Frame]:
    """Find the frames that were made before; none where one of them has gone."""
    try:
        found = [_Frame(*entry) for entry in json.loads((place / _LIST).read_bytes())]
        return found if all((place / _name_file(frame.onset)).is_file() for frame in found) else []
    except (OSError, ValueError, TypeError):
        return []


def _name_file(onset: float) -> str:
    return f"{onset:010.3f}.png"


def _digest_pixels(image: Image.Image) -> str:
    """Digest what is seen, which does not change with the PNG writer."""
    return sha256(f"{image.size} ".encode() + image.tobytes()).hexdigest()


def _gather(stimuli: StimulusSet, found: Sequence[tuple[Path, Sequence[_Frame]]]) -> Frames:
    ids, paths, digests, rows, times = [], [], [], [], []
    for row, (name, path, digest, (place, cut)) in enumerate(
        zip(stimuli.ids, stimuli.paths, stimuli.digests, found, strict=True)
    ):
        ids += [f"{name}@{frame.onset:.3f}" for frame in cut] or [name]
        paths += [place / _name_file(frame.onset) for frame in cut] or [path]
        digests += [frame.digest for frame in cut] or [digest]
        times += [(frame.onset, frame.duration) for frame in cut] or [(0.0, 0.0)]
        rows += [row] * max(1, len(cut))
    attributes = {key: values[rows] for key, values in stimuli.attributes.items()}
    shown = StimulusSet(tuple(ids), tuple(paths), tuple(digests), attributes)
    onset, duration = np.array(times).T
    return Frames(shown, np.array(stimuli.ids, dtype=object)[rows], onset, duration)
