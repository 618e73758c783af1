"""Layer profiles: how a score rises and falls with the depth of the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dnnbrain_app.records import Array
from dnnbrain_app.reports.contents import find_best
from dnnbrain_app.reports.vector import (
    COLOURS,
    INK,
    LINE,
    MARKERS,
    MUTED,
    PAPER,
    Drawing,
    drawing_style,
    finish_drawing,
    label_layers,
    shorten,
)

MAX_LINES = 6  # more lines than that cannot be told apart: a heat map then
MAX_ROWS = 40


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What is known of scores that helps to judge them.

    Parameters
    ----------
    low, high : array of shape (n_layers, n_regions), optional
        Ends of their intervals.
    significant : array of bool, shape (n_layers, n_regions), optional
        Whether they are more than chance.
    highest : mapping of str to float
        By region, what a perfect model would score.
    """

    low: Array | None = None
    high: Array | None = None
    significant: Array | None = None
    highest: Mapping[str, float] = field(default_factory=dict)


NO_EVIDENCE = Evidence()


def draw_profile(
    name: str,
    layers: tuple[str, ...],
    regions: Sequence[str],
    scores: Array,
    axis_label: str,
    evidence: Evidence = NO_EVIDENCE,
) -> Drawing:
    """Draw a score of every region against the layers, in depth order.

    Parameters
    ----------
    name : str
        Of the figure; its ids derive from it.
    layers, regions : sequence of str
        Names.
    scores : array of shape (n_layers, n_regions)
        NaN is left out.
    axis_label : str
        The score and its unit.
    evidence : Evidence
        Intervals become bands, what is not significant open symbols, the highest score a dashed line; a heat map has
        the symbols only.

    Returns
    -------
    Drawing
        Lines with the names of up to six regions at their ends; beyond that a heat map of the regions with the
        highest scores, in the order of their peak layers.
    """
    peaks = [(region, find_best(scores[:, i])) for i, region in enumerate(regions)]
    filled = np.ones(scores.shape, dtype=bool) if evidence.significant is None else evidence.significant
    told = ", ".join(
        f"{region} peaks at {layers[peak]}{'' if filled[peak, i] else ' (not significant)'}"
        for i, (region, peak) in enumerate(peaks[:MAX_ROWS])
        if peak is not None
    )
    alt = f"{axis_label} against {len(layers)} layers: {told or 'no finite score'}."
    with drawing_style(name):
        if len(regions) > MAX_LINES:
            return finish_drawing(_draw_heat(layers, regions, scores, filled, axis_label), name, alt)
        figure = Figure(figsize=(6.0, 4.0), layout="constrained")
        axes = figure.add_subplot()
        _draw_lines(axes, layers, regions, scores, filled, evidence)
        axes.set_ylabel(axis_label)
        return finish_drawing(figure, name, alt)


def _draw_lines(
    axes: Axes, layers: tuple[str, ...], regions: Sequence[str], scores: Array, filled: Array, evidence: Evidence
) -> None:
    x = np.arange(len(layers))
    axes.axhline(0, color=MUTED, linewidth=0.8)
    axes.grid(axis="y", color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    highest = [evidence.highest[region] for region in regions if region in evidence.highest]
    drawn = [values.ravel() for values in (scores, evidence.low, evidence.high) if values is not None]
    finite = np.concatenate([*drawn, highest])
    finite = finite[np.isfinite(finite)]
    low, high = (min(0.0, finite.min()), max(0.0, finite.max())) if len(finite) else (0.0, 1.0)
    margin = 0.08 * (high - low or 1)
    axes.set_ylim(low - margin if low < 0 else -0.02 * (high or 1), high + margin)
    ends = _spread_labels(axes, scores, [shorten(region, 16) for region in regions])
    for i, region in enumerate(regions):
        y, colour, marker = scores[:, i], COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        peak = find_best(y)
        if peak is None:
            continue
        if evidence.low is not None and evidence.high is not None:
            _draw_band(axes, evidence.low[:, i], evidence.high[:, i], colour)
        if region in evidence.highest:
            axes.axhline(evidence.highest[region], color=colour, linewidth=0.9, linestyle=(0, (5, 4)))
        axes.plot(x, y, color=colour, linewidth=1.8, solid_joinstyle="round")
        for layer in np.flatnonzero(np.isfinite(y)):
            axes.plot(
                x[layer],
                y[layer],
                marker=marker,
                markersize=8 if layer == peak else 4.5,
                markerfacecolor=colour if filled[layer, i] else PAPER,
                markeredgecolor=colour,
                markeredgewidth=1.3,
            )
        axes.annotate(
            shorten(region, 16),
            (1.015, ends[i]),
            xycoords=("axes fraction", "data"),
            color=colour,
            va="center",
            weight="bold",
            annotation_clip=False,
        )
    axes.set_xlim(-0.4, len(layers) - 0.6)
    axes.set_xlabel("Layer, in the order of the forward pass")
    label_layers(axes, layers)


def _draw_band(axes: Axes, low: Array, high: Array, colour: str) -> None:
    x = np.arange(len(low))
    if len(x) == 1:  # no area
        axes.vlines(x, low, high, color=colour, linewidth=1.2)
    else:
        axes.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)


def _spread_labels(axes: Axes, scores: Array, names: Sequence[str]) -> Array:
    """Heights of the names at the right end, moved apart where lines end together."""
    low, high = axes.get_ylim()
    gap = 0.08 * (high - low)
    last = np.array([column[np.isfinite(column)][-1] if np.isfinite(column).any() else 0.0 for column in scores.T])
    height = last.copy()
    order = np.argsort(last, kind="stable")
    for before, after in pairwise(order):
        height[after] = max(height[after], height[before] + gap)
    if len(names) and height.max() > high:  # pushed over the top: let them down together, in order
        height[order[-1]] = high
        for after, before in pairwise(order[::-1]):
            height[before] = min(height[before], height[after] - gap)
    return height


def _draw_heat(
    layers: tuple[str, ...], regions: Sequence[str], scores: Array, filled: Array, axis_label: str
) -> Figure:
    found = [(i, find_best(column)) for i, column in enumerate(scores.T)]
    peaks = {i: peak for i, peak in found if peak is not None}
    kept = sorted(peaks, key=lambda i: -scores[peaks[i], i])[:MAX_ROWS]
    kept.sort(key=lambda i: (peaks[i], -scores[peaks[i], i]))
    figure = Figure(figsize=(6.0, 1.6 + 0.17 * max(len(kept), 6)), layout="constrained")
    axes = figure.add_subplot()
    high = max((float(scores[peaks[i], i]) for i in kept), default=1.0)
    image = axes.imshow(
        scores[:, kept].T, cmap="inferno", vmin=0, vmax=max(high, 1e-3), aspect="auto", interpolation="none"
    )
    for row, i in enumerate(kept):
        face = "white" if filled[peaks[i], i] else "none"
        for edge, width in (("black", 2.2), ("white", 1.0)):  # to be seen on dark and on bright
            axes.plot(
                peaks[i], row, "o", markersize=4.4, markerfacecolor=face, markeredgecolor=edge, markeredgewidth=width
            )
    axes.set_yticks(range(len(kept)), [shorten(regions[i], 22) for i in kept], fontsize=8.5)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("Layer, in the order of the forward pass")
    label_layers(axes, layers)
    bar = figure.colorbar(image, ax=axes, shrink=0.6, aspect=24, pad=0.02)
    bar.set_label(axis_label, color=INK)
    bar.outline.set_visible(False)
    return figure
