"""When each volume was acquired: what the sidecars say, checked against the header."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from dnnbrain_app.dataset.headers import Header
from dnnbrain_app.errors import BadDataError

logger = logging.getLogger(__name__)


def read_sidecars(paths: Iterable[str]) -> dict[str, Any]:
    """Merge JSON sidecars, the nearest (first) winning.

    Raises
    ------
    BadDataError
        If one is not a JSON object.
    """
    merged: dict[str, Any] = {}
    for path in paths:
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
        except OSError as error:
            logger.warning("%s: cannot be read (%s); ignored", path, error.strerror)
            continue
        except ValueError as error:
            raise BadDataError(f"{path}: not JSON ({error})") from error
        if not isinstance(content, dict):
            raise BadDataError(f"{path}: must be a JSON object")
        merged = content | merged
    return merged


def resolve_timing(path: Path, header: Header, sidecar: dict[str, Any]) -> tuple[float, float]:
    """Decide on a run's repetition time and on the time of its first volume.

    Parameters
    ----------
    path : Path
        The data, for messages.
    header : Header
        What the file says.
    sidecar : dict
        What its sidecars say: ``RepetitionTime`` or an even ``VolumeTiming``, ``StartTime``, ``SliceTimingCorrected``.

    Returns
    -------
    repetition_time, start_time : float
        Seconds. Without ``StartTime``, slice-time corrected data (fMRIPrep before 21) start in the middle of the first
        volume, others at its start: 0, or where ``VolumeTiming`` begins.

    Raises
    ------
    BadDataError
        If sidecar and header disagree by more than 1 ms and 0.1 %, or neither says.
    """
    given, first = _read_number(sidecar, "RepetitionTime", path), 0.0
    if given is None and sidecar.get("VolumeTiming"):
        given, first = _read_volume_timing(sidecar["VolumeTiming"], path)
    if given is not None and given <= 0:
        raise BadDataError(f"{path}: RepetitionTime {given} in the sidecar; it must be positive")
    measured = header.repetition_time
    repetition_time = given if given is not None else measured
    if repetition_time is None:
        raise BadDataError(f"{path}: no RepetitionTime in a sidecar, and none in the header")
    if measured is not None and abs(repetition_time - measured) > max(1e-3, 1e-3 * repetition_time):
        raise BadDataError(
            f"{path}: RepetitionTime is {repetition_time:g} s in the sidecar and {measured:g} s in the header; "
            "one is wrong"
        )
    start = _read_number(sidecar, "StartTime", path)
    if start is None:
        start = first + (repetition_time / 2 if sidecar.get("SliceTimingCorrected") is True else 0.0)
    return repetition_time, start


def _read_volume_timing(timing: Any, path: Path) -> tuple[float, float]:
    """Return the step of even times, and the first of them."""
    try:
        times = np.asarray(timing, dtype=float)
        steps = np.diff(times)
    except (TypeError, ValueError) as error:
        raise BadDataError(
            f"{path}: VolumeTiming is {timing!r} in the sidecar; it must be a list of seconds"
        ) from error
    if len(steps) == 0 or np.ptp(steps) > 1e-3:
        raise BadDataError(f"{path}: VolumeTiming is uneven; only a constant repetition time is supported")
    return float(steps.mean()), float(times[0])


def _read_number(sidecar: dict[str, Any], key: str, path: Path) -> float | None:
    value = sidecar.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        raise BadDataError(f"{path}: {key} is {value!r} in the sidecar; it must be a number of seconds")
    return float(value)
