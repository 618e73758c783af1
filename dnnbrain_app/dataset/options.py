"""What to read from the BIDS dataset and its derivatives."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class DatasetOptions:
    """Filters and places. An empty list means: all that there is."""

    participants: tuple[str, ...] = field(
        default=(),
        metadata={
            "doc": "Participant labels, with or without sub-; or a file with one label a line.",
            "prefix": "sub-",
        },
    )
    sessions: tuple[str, ...] = field(
        default=(), metadata={"doc": "Session labels, with or without ses-.", "prefix": "ses-"}
    )
    tasks: tuple[str, ...] = field(
        default=(), metadata={"doc": "Task labels, with or without task-.", "prefix": "task-"}
    )
    runs: tuple[str, ...] = field(default=(), metadata={"doc": "Run numbers; 1 and 01 are the same.", "prefix": "run-"})
    spaces: tuple[str, ...] = field(
        default=(),
        metadata={
            "doc": (
                "Spaces of the preprocessed data, e.g. fsLR, fsLR:den-91k, fsaverage5, MNI152NLin2009cAsym:res-2, "
                "T1w. Default: one space, the first found of fsLR, fsaverage*, fsnative, MNI*, T1w."
            )
        },
    )
    bids_filter_file: Path | None = field(
        default=None,
        metadata={
            "doc": (
                "NiPreps filter file (JSON): queries bold, events, mask, confounds, betas; null means the entity must "
                'be absent, "*" anything.'
            )
        },
    )
    derivatives: tuple[str, ...] = field(
        default=(),
        metadata={
            "doc": (
                "fMRIPrep derivatives, as PATH or NAME=PATH. Default: BIDS_DIR/derivatives/fmriprep*. With "
                "--response-model precomputed: where the betas are, which must be said."
            )
        },
    )
    bids_database_dir: Path | None = field(
        default=None,
        metadata={
            "doc": "Read the file list from this pybids database (made when absent) instead of scanning the folders."
        },
    )
    atlas: tuple[Path, ...] = field(
        default=(),
        metadata={
            "doc": (
                "Atlas in the data's own space: .dlabel.nii, .label.gii (either hemisphere; the other is found), or a "
                "_dseg.nii.gz with its .tsv, which may have another grid if its name has the space (tpl- or space-). "
                "Repeat it for several spaces."
            )
        },
    )
    rois: tuple[str, ...] = field(
        default=(),
        metadata={
            "doc": (
                "Regions as NAME=LABEL+LABEL, e.g. VTC=V8+FFC+PIT+VVC+VMV1+VMV2+VMV3, or VTC alone for that preset. "
                "Default: every label of the atlas."
            )
        },
    )
