"""A map as one picture, for slides and papers: its views, title and legend."""

from __future__ import annotations

import io

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dnnbrain_app.reports.maps import BrainMap, ChoiceLegend, ScoreLegend
from dnnbrain_app.reports.surfaces import VIEWS
from dnnbrain_app.reports.vector import label_layers


def compose_map(brain: BrainMap, title: str) -> bytes:
    """Put all pictures of a map and its legend into one PNG, on white; the same bytes for the same map."""
    columns = len(VIEWS) if brain.surfaces else 4
    rows = [brain.surfaces[i : i + columns] for i in range(0, len(brain.surfaces), columns)]
    rows += [brain.slices[i : i + columns] for i in range(0, len(brain.slices), columns)]
    width = 9.6
    heights = [max(p.picture.shape[0] / p.picture.shape[1] for p in row) * width / columns + 0.28 for row in rows]
    total = sum(heights) + 1.9
    with matplotlib.rc_context({"text.parse_math": False, "font.size": 9, "font.sans-serif": ["DejaVu Sans"]}):
        figure = Figure(figsize=(width, total), facecolor="white")
        figure.text(0.02, 1 - 0.2 / total, title, fontsize=12, weight="bold", va="center")
        top = total - 0.45
        for row, height in zip(rows, heights, strict=True):
            for i, panel in enumerate(row):
                axes = figure.add_axes(
                    (i / columns + 0.01, (top - height) / total, 1 / columns - 0.02, (height - 0.25) / total)
                )
                axes.imshow(panel.picture, interpolation="antialiased")
                axes.set_axis_off()
                axes.set_title(panel.label, fontsize=9, color="#5d6670", pad=3)
            top -= height
        axes = figure.add_axes((0.25, 0.85 / total, 0.5, 0.16 / total))
        if isinstance(brain.legend, ScoreLegend):
            _draw_score_bar(axes, brain.legend)
        else:
            axes.set_position((0.2, 0.95 / total, 0.6, 0.4 / total))
            _draw_choice_bars(axes, brain.legend)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=200, metadata={"Software": None})
    return buffer.getvalue()


def _draw_score_bar(axes: Axes, legend: ScoreLegend) -> None:
    colours = np.array([[int(stop[i : i + 2], 16) for i in (1, 3, 5)] for stop in legend.stops], dtype=float)
    axes.imshow(
        colours[None].astype(np.uint8), aspect="auto", extent=(0, legend.highest, 0, 1), interpolation="bilinear"
    )
    axes.set_yticks([])
    axes.set_xticks(np.linspace(0, legend.highest, 3))
    axes.set_xticklabels(["0", f"{legend.highest / 2:.3g}", f"{'≥ ' if legend.saturated else ''}{legend.highest:.2f}"])
    axes.set_xlabel(legend.label)


def _draw_choice_bars(axes: Axes, legend: ChoiceLegend) -> None:
    axes.bar(range(len(legend.choices)), legend.shares, width=1, color=legend.colours)
    axes.margins(x=0)
    axes.set_ylabel("% of\nvoxels")
    label_layers(axes, legend.choices)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
