"""The two maps of a network: which layer is best where, and how well it does."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from dnnbrain_app.records import Array, BrainSpace, EncodingScores
from dnnbrain_app.reports.contents import UnitReport
from dnnbrain_app.reports.slices import paint_slices
from dnnbrain_app.reports.surfaces import VIEWS, View, choose_scale, rasterise_views
from dnnbrain_app.reports.vector import label_layers

_VIEW_WIDTH = 600  # pixels: twice what the page shows
_SIDES = {"L": "Left", "R": "Right"}


@dataclass(frozen=True, slots=True, eq=False)
class Panel:
    """One picture of a map.

    Parameters
    ----------
    label : str
        ``Left, lateral`` or ``z = -12 mm``.
    picture : array of uint8, shape (height, width, 4)
        Transparent outside the brain.
    """

    label: str
    picture: Array

    @property
    def source(self) -> str:
        """The picture as a data URI."""
        return "data:image/png;base64," + base64.b64encode(encode_png(self.picture)).decode()


@dataclass(frozen=True, slots=True)
class ScoreLegend:
    """Colour bar of a score.

    Parameters
    ----------
    label : str
        Name of the score.
    stops : tuple of str
        Colours from 0 to ``highest``, equally spaced.
    highest : float
        Values above it have its colour.
    saturated : bool
        Whether there are any.
    """

    label: str
    stops: tuple[str, ...]
    highest: float
    saturated: bool


@dataclass(frozen=True, slots=True)
class LayerLegend:
    """Colour of each layer, and the share of the shown voxels that it is best in.

    Parameters
    ----------
    layers, colours : tuple of str
        In depth order.
    shares : tuple of float
        Percent; they sum to 100 where any voxel is shown.
    """

    layers: tuple[str, ...]
    colours: tuple[str, ...]
    shares: tuple[float, ...]


@dataclass(frozen=True, slots=True, eq=False)
class BrainMap:
    """A drawn map.

    Parameters
    ----------
    surfaces, slices : tuple of Panel
        Pictures of the cortex (left then right; lateral, medial, ventral), and of the voxels.
    legend : ScoreLegend or LayerLegend
        What the colours mean.
    n_shown : int
        Voxels in colour.
    """

    surfaces: tuple[Panel, ...]
    slices: tuple[Panel, ...]
    legend: ScoreLegend | LayerLegend
    n_shown: int

    @property
    def panels(self) -> tuple[Panel, ...]:
        """All pictures."""
        return self.surfaces + self.slices

    def compose(self, title: str) -> bytes:
        """All pictures with the legend in one PNG, on white."""
        return _compose(self, title)


def draw_maps(unit: UnitReport) -> dict[str, tuple[BrainMap, BrainMap]]:
    """Draw the best-layer map and the score map of every network with encoding scores.

    Parameters
    ----------
    unit : UnitReport
        With meshes for its cortex, or voxels, or both.

    Returns
    -------
    dict of str to (BrainMap, BrainMap)
        By network: the best layer, and the score of the best layer. Voxels whose ``best_layer`` is 0, or whose
        scores are NaN, are left in grey.
    """
    scored = {network.network: network.encoding for network in unit.networks if network.encoding is not None}
    if not scored:
        return {}
    paint = _prepare_painter(unit)
    return {name: _draw_pair(scores, paint) for name, scores in scored.items()}


Painter = Callable[[Array], tuple[tuple[Panel, ...], tuple[Panel, ...]]]


def _draw_pair(scores: EncodingScores, paint: Painter) -> tuple[BrainMap, BrainMap]:
    best = np.nan_to_num(scores.best_layer).astype(int)
    r = np.take_along_axis(scores.r, np.maximum(best - 1, 0)[None], axis=0)[0]
    shown = (best > 0) & np.isfinite(r)
    palette = colour_layers(len(scores.layers))
    layer_colours = np.column_stack([palette[np.maximum(best - 1, 0)], shown])
    highest = choose_highest(r[shown])
    inferno = matplotlib.colormaps["inferno"]
    score_colours = inferno(0.12 + 0.86 * np.clip(np.nan_to_num(r) / highest, 0, 1))
    score_colours[:, 3] = shown
    counts = np.bincount(best[shown] - 1, minlength=len(scores.layers))
    n = int(shown.sum())
    layers = LayerLegend(
        scores.layers, tuple(map(write_hex, palette)), tuple(float(c) for c in 100 * counts / max(n, 1))
    )
    stops = tuple(write_hex(inferno(0.12 + 0.86 * t)) for t in np.linspace(0, 1, 17))
    bar = ScoreLegend(
        "Encoding score of the best layer (Pearson r, held-out stimuli)",
        stops,
        highest,
        bool(n and r[shown].max() > highest),
    )
    return BrainMap(*paint(layer_colours), layers, n), BrainMap(*paint(score_colours), bar, n)


def colour_layers(n_layers: int) -> Array:
    """Colours of the layers, dark to bright with depth, of shape (n_layers, 3)."""
    depth = np.linspace(0.0, 0.98, n_layers) if n_layers > 1 else np.array([0.6])
    return np.asarray(matplotlib.colormaps["viridis"](depth)[:, :3])


def choose_highest(values: Array) -> float:
    """End of a colour bar that starts at 0: the 99.5th percentile, up to the next multiple of 0.05."""
    if not len(values):
        return 0.05
    return max(0.05, round(float(np.ceil(np.percentile(values, 99.5) / 0.05 - 1e-9)) * 0.05, 2))


def _prepare_painter(unit: UnitReport) -> Painter:
    """Work out the geometry once; the painter that comes back draws any map on it."""
    meshes = {
        part.hemisphere: unit.meshes[part.hemisphere]
        for part in unit.space.parts
        if part.hemisphere is not None
        and part.hemisphere in unit.meshes
        and len(unit.meshes[part.hemisphere].coordinates) == part.n_vertices
    }
    scale = choose_scale(meshes, _VIEW_WIDTH) if meshes else 1.0
    views = [view for side in ("L", "R") if side in meshes for view in rasterise_views(meshes[side], side, scale=scale)]
    volumes = [part for part in unit.space.parts if not part.is_surface]
    only_voxels = len(volumes) == len(unit.space.parts)

    def paint(colours: Array) -> tuple[tuple[Panel, ...], tuple[Panel, ...]]:
        surfaces = tuple(_paint_view(view, unit.space, colours) for view in views)
        if not (only_voxels or any(colours[part.start : part.stop, 3].any() for part in volumes)):
            return surfaces, ()
        return surfaces, tuple(Panel(*drawn) for drawn in paint_slices(unit.space, colours, unit.background))

    return paint


def _paint_view(view: View, space: BrainSpace, colours: Array) -> Panel:
    part = next(part for part in space.parts if part.hemisphere == view.hemisphere)
    mesh_colours = np.zeros((part.n_vertices, 4))
    mesh_colours[part.vertices] = colours[part.start : part.stop]
    return Panel(f"{_SIDES[view.hemisphere]}, {view.name}", view.paint(mesh_colours))


def encode_png(picture: Array) -> bytes:
    """PNG of an array of colours; the same bytes for the same picture."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", compress_level=6)
    return buffer.getvalue()


def write_hex(colour: Sequence[float]) -> str:
    """Colour as HTML spells it."""
    return "#" + "".join(f"{round(255 * float(c)):02x}" for c in colour[:3])


def _compose(brain: BrainMap, title: str) -> bytes:
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
            _draw_layer_bars(axes, brain.legend)
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


def _draw_layer_bars(axes: Axes, legend: LayerLegend) -> None:
    axes.bar(range(len(legend.layers)), legend.shares, width=1, color=legend.colours)
    axes.margins(x=0)
    axes.set_ylabel("% of\nvoxels")
    label_layers(axes, legend.layers)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
