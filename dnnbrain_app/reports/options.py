"""How the report looks."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ReportOptions:
    """Settings of the HTML report."""

    max_stimuli_shown: int = field(
        default=100, metadata={"doc": "Largest number of stimuli whose thumbnails are shown beside an RDM."}
    )
