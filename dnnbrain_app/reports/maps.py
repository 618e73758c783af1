"""Maps of scores and of choices, painted on the brain: of a network, which layer is best where, and how well."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import matplotlib
import numpy as np
from PIL import Image

from dnnbrain_app.records import Array, BrainSpace, EncodingScores
from dnnbrain_app.reports.contents import UnitReport
from dnnbrain_app.reports.slices import paint_slices
from dnnbrain_app.reports.surfaces import View, choose_scale, rasterise_views

_VIEW_WIDTH = 600  # pixels: twice what the page shows
_FAINT = 0.45  # opacity
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
class ChoiceLegend:
    """Colour of each choice, and the share of the shown voxels that made it.

    Parameters
    ----------
    label : str
        What was chosen: ``explained best by each layer``.
    choices, colours : tuple of str
        In their order, such as the depth of layers.
    shares : tuple of float
        Percent; they sum to 100 where any voxel is shown.
    """

    label: str
    choices: tuple[str, ...]
    colours: tuple[str, ...]
    shares: tuple[float, ...]


@dataclass(frozen=True, slots=True, eq=False)
class BrainMap:
    """A drawn map.

    Parameters
    ----------
    surfaces, slices : tuple of Panel
        Pictures of the cortex (left then right; lateral, medial, ventral), and of the voxels.
    legend : ScoreLegend or ChoiceLegend
        What the colours mean.
    n_shown : int
        Voxels in colour.
    """

    surfaces: tuple[Panel, ...]
    slices: tuple[Panel, ...]
    legend: ScoreLegend | ChoiceLegend
    n_shown: int

    @property
    def panels(self) -> tuple[Panel, ...]:
        """All pictures."""
        return self.surfaces + self.slices


class Painter:
    """Paints any number of maps of a unit; the geometry is worked out once, when the first is asked for."""

    def __init__(self, unit: UnitReport) -> None:
        self._unit = unit
        self._volumes = [part for part in unit.space.parts if not part.is_surface]

    def paint_score(
        self, values: Array, shown: Array, label: str, *, highest: float | None = None, faint: Array | None = None
    ) -> BrainMap:
        """Paint a score that begins at 0.

        Parameters
        ----------
        values : array of shape (n_voxels,)
            The score; only those shown need be finite.
        shown : bool array of shape (n_voxels,)
            The others stay grey.
        label : str
            Its name, for the colour bar.
        highest : float, optional
            End of the colour bar; without it, one that few of the values shown exceed.
        faint : bool array of shape (n_voxels,), optional
            Voxels that are hinted at where they are not shown.
        """
        highest = highest or choose_highest(values[shown])
        inferno = matplotlib.colormaps["inferno"]
        colours = inferno(0.12 + 0.86 * np.clip(np.nan_to_num(values) / highest, 0, 1))
        colours[:, 3] = shown if faint is None else np.where(shown, 1, _FAINT * faint)
        stops = tuple(write_hex(inferno(0.12 + 0.86 * t)) for t in np.linspace(0, 1, 17))
        saturated = bool(values[shown].max(initial=0.0) > highest)
        return BrainMap(*self._paint(colours), ScoreLegend(label, stops, highest, saturated), int(shown.sum()))

    def paint_choice(self, chosen: Array, shown: Array, label: str, choices: tuple[str, ...]) -> BrainMap:
        """Paint which of some ordered choices each voxel made.

        Parameters
        ----------
        chosen : array of int, shape (n_voxels,)
            Number of the choice, from 0; of voxels that are not shown, any.
        shown, label, choices
            As in `paint_score`, and names in order.
        """
        palette = colour_layers(len(choices))
        colours = np.column_stack([palette[np.clip(chosen, 0, len(choices) - 1)], shown])
        n = int(shown.sum())
        shares = 100 * np.bincount(chosen[shown], minlength=len(choices)) / max(n, 1)
        legend = ChoiceLegend(label, choices, tuple(map(write_hex, palette)), tuple(map(float, shares)))
        return BrainMap(*self._paint(colours), legend, n)

    @cached_property
    def _views(self) -> list[View]:
        parts, meshes = self._unit.space.parts, self._unit.meshes
        fitting = {
            part.hemisphere: meshes[part.hemisphere]
            for part in parts
            if part.hemisphere is not None
            and part.hemisphere in meshes
            and len(meshes[part.hemisphere].coordinates) == part.n_vertices
        }
        if not fitting:
            return []
        scale = choose_scale(fitting, _VIEW_WIDTH)
        sides = [side for side in ("L", "R") if side in fitting]
        return [view for side in sides for view in rasterise_views(fitting[side], side, scale=scale)]

    def _paint(self, colours: Array) -> tuple[tuple[Panel, ...], tuple[Panel, ...]]:
        """Paint surfaces and slices; no slices where there are surfaces and no voxel is coloured."""
        unit = self._unit
        surfaces = tuple(_paint_view(view, unit.space, colours) for view in self._views)
        only_voxels = len(self._volumes) == len(unit.space.parts)
        if not (only_voxels or any(colours[part.start : part.stop, 3].any() for part in self._volumes)):
            return surfaces, ()
        return surfaces, tuple(Panel(*drawn) for drawn in paint_slices(unit.space, colours, unit.background))


def draw_scores(scores: EncodingScores, painter: Painter, held_out: str) -> tuple[BrainMap, BrainMap]:
    """Draw the best layer of each voxel, and the score of that layer.

    Parameters
    ----------
    scores : EncodingScores
        Of one network. Voxels whose ``best_layer`` is 0, or whose scores are NaN, are left in grey.
    painter : Painter
        Of the unit.
    held_out : str
        What the score is of: ``held-out stimuli``.
    """
    best = np.nan_to_num(scores.best_layer).astype(int)
    r = np.take_along_axis(scores.r, np.maximum(best - 1, 0)[None], axis=0)[0]
    shown = (best > 0) & np.isfinite(r)
    return (
        painter.paint_choice(best - 1, shown, "explained best by each layer", scores.layers),
        painter.paint_score(r, shown, f"Encoding score of the best layer (Pearson r, {held_out})"),
    )


def colour_layers(n_layers: int) -> Array:
    """Colours of the layers, dark to bright with depth, of shape (n_layers, 3)."""
    depth = np.linspace(0.0, 0.98, n_layers) if n_layers > 1 else np.array([0.6])
    return np.asarray(matplotlib.colormaps["viridis"](depth)[:, :3])


def choose_highest(values: Array) -> float:
    """End of a colour bar that starts at 0: the 99.5th percentile, up to the next multiple of 0.05."""
    if not len(values):
        return 0.05
    return max(0.05, round(float(np.ceil(np.percentile(values, 99.5) / 0.05 - 1e-9)) * 0.05, 2))


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
