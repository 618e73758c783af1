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
        default="",
        metadata={
            "doc": (
                "Column of events.tsv that names the stimulus: a file relative to the folder of the stimuli, or an "
                "identifier. Default: stim_file, else stim_id or stimulus_id (BEP044)."
            )
        },
    )
    stim_map: Path | None = field(
        default=None,
        metadata={
            "doc": (
                "Table (.tsv) from what the column of the events says to files: a column of the same name, and "
                "stim_file. A row of an HDF5 dataset is named as a file, e.g. nsd_stimuli.hdf5/imgBrick/46002."
            )
        },
    )
    trial_filter: str = field(
        default="",
        metadata={
            "doc": "Which rows of the events are trials, as a condition on columns, e.g. \"trial_type == 'exp'\"."
        },
    )
    frame_rate: float = field(
        default=2.0,
        metadata={"doc": "Frames a second of a video that a network of images looks at."},
    )
