"""What holds for one call of the app: settings, places, resources, and how it tells what it does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dnnbrain_app.config import Config

STEP = 25  # between INFO and WARNING: what the door shows without -v
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, eq=False)
class Session:
    """What holds for one call of the app.

    Parameters
    ----------
    config : Config
        All settings.
    output : Path
        The output dataset.
    run_id : str
        Names this call in logs.
    command_line : tuple of str
        As it was typed.
    roots : mapping of str to Path
        Datasets by their name in BIDS URIs; ``""`` is the output itself.
    memory : int
        Bytes that may be used.
    n_cpus : int
        Cores that may be used.
    progress : callable
        Called with what is being done, how much of it is done, and how much there is.
    """

    config: Config
    output: Path
    run_id: str
    command_line: tuple[str, ...]
    roots: Mapping[str, Path]
    memory: int
    n_cpus: int
    progress: Progress
