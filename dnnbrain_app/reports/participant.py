"""The report of one participant: one page, complete in itself."""

from __future__ import annotations

from dataclasses import dataclass, field

import jinja2
from markupsafe import Markup

from dnnbrain_app.reports.contents import Design, NetworkReport, Provenance, RenderedReport, RunRow, UnitReport
from dnnbrain_app.reports.facts import MethodsFacts
from dnnbrain_app.reports.methods import describe_methods, write_methods
from dnnbrain_app.reports.pages import draw_unit
from dnnbrain_app.reports.vector import Drawing
from dnnbrain_app.reports.wording import COMPARISONS, ELEMENTS, space_thousands

__all__ = [
    "Design",
    "NetworkReport",
    "ParticipantReport",
    "Provenance",
    "RenderedReport",
    "RunRow",
    "UnitReport",
    "render_participant",
]


@dataclass(frozen=True, slots=True, eq=False)
class ParticipantReport:
    """All that the page says.

    Parameters
    ----------
    participant : str
        Label without ``sub-``.
    units : tuple of UnitReport
        Tasks and spaces.
    methods : MethodsFacts
        What was done.
    dataset : str
        Name of the dataset, as its description has it.
    errors : tuple of str
        One message a failure.
    provenance : Provenance
        How to make it again.
    """

    participant: str
    units: tuple[UnitReport, ...]
    methods: MethodsFacts
    dataset: str = ""
    errors: tuple[str, ...] = ()
    provenance: Provenance = field(default_factory=Provenance)


def render_participant(report: ParticipantReport) -> RenderedReport:
    """Render the report of a participant.

    Parameters
    ----------
    report : ParticipantReport
        What to show. Every name in it is untrusted text.

    Returns
    -------
    RenderedReport
        The page, which asks for no other file, and its figures one by one. Same input, same bytes.
    """
    figures: dict[str, bytes] = {}
    pages = [draw_unit(unit, f"u{i}", figures) for i, unit in enumerate(report.units)]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dnnbrain_app.reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"drawing": _embed, "spaced": space_thousands}
    html = environment.get_template("participant.html").render(
        report=report,
        pages=pages,
        methods=describe_methods(report.methods),
        methods_markdown=write_methods(report.methods),
        comparisons=COMPARISONS,
        elements=ELEMENTS,
    )
    return RenderedReport(html, figures)


def _embed(drawing: Drawing) -> Markup:
    return Markup(drawing.inline)  # noqa: S704  written by matplotlib, which escapes text
