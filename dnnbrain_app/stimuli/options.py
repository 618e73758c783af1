"""Where the stimuli are, and which column of the events names them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class StimuliOptions:
    """How a row of the events leads to an image."""

    directory: Path | None = field(default=None, metadata={"doc": "Folder of the stimuli. Default: BIDS_DIR/stimuli."})
    file: Path | None = field(
        default=None,
        metadata={"doc": "File .stim.csv with the stimuli to show at the stimulus level. Default: all in the folder."},
    )
    column: str = field(
        default="stim_file",
        metadata={"doc": "Column of events.tsv that names the stimulus file, relative to the folder of the stimuli."},
    )
