"""RDMs and design matrices as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from scipy.spatial.distance import squareform
from scipy.stats import rankdata

from dnnbrain_app.records import Array, Rdm
from dnnbrain_app.reports.contents import Design
from dnnbrain_app.reports.vector import INK, MUTED, Drawing, drawing_style, finish_drawing, shorten

_MAX_PIXELS = 600  # larger RDMs are averaged down to this


def choose_grouping(attributes: Mapping[str, Array], n_stimuli: int) -> tuple[str, Array] | None:
    """Choose the attribute that orders the stimuli: the finest with 2 to 20 values, at most half as many as stimuli."""
    best: tuple[str, Array] | None = None
    for name, values in attributes.items():
        labels = np.array([str(value) for value in values])
        n = len(set(labels))
        if len(labels) == n_stimuli and 2 <= n <= min(20, n_stimuli // 2) and (best is None or n > len(set(best[1]))):
            best = name, labels
    return best


def draw_rdm(name: str, rdm: Rdm, groups: Array | None) -> Drawing:
    """Draw an RDM, its dissimilarities replaced by their percentiles.

    Parameters
    ----------
    name : str
        Of the figure.
    rdm : Rdm
        What to draw; entries that are NaN stay blank.
    groups : array of str, shape (n_stimuli,), optional
        The stimuli are put in the order of their groups, which are named.
    """
    labels = np.full(len(rdm.items), "") if groups is None else groups
    order = np.argsort(labels, kind="stable")
    percentiles = _average_down(squareform(rank_percentiles(rdm.dissimilarities), checks=False)[np.ix_(order, order)])
    n = len(rdm.items)
    alt = f"Dissimilarity matrix of {rdm.name}: {n} stimuli, percentiles of the {rdm.metric} distance."
    with drawing_style(name):
        figure = Figure(figsize=(4.0, 3.9), layout="constrained")
        axes = figure.add_subplot()
        image = axes.imshow(percentiles, cmap="viridis", vmin=0, vmax=100, interpolation="none", extent=(0, n, n, 0))
        axes.set_title(shorten(rdm.name, 34), loc="left", fontsize=11.5, fontweight="bold", color=INK)
        axes.set_xticks([])
        axes.set_yticks([])
        edges = np.flatnonzero(labels[order][1:] != labels[order][:-1]) + 1
        if len(edges):
            middles = (np.r_[0, edges] + np.r_[edges, n]) / 2
            axes.set_yticks(middles, [shorten(labels[order][int(m)], 14) for m in middles])
            axes.hlines(edges, 0, n, color="white", linewidth=0.5)
            axes.vlines(edges, 0, n, color="white", linewidth=0.5)
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        bar = figure.colorbar(
            image, ax=axes, orientation="horizontal", shrink=0.6, aspect=30, pad=0.03, ticks=[0, 50, 100]
        )
        bar.set_label("Dissimilarity (percentile)", fontsize=9.5)
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=2, color=MUTED)
        return finish_drawing(figure, name, alt)


def rank_percentiles(dissimilarities: Array) -> Array:
    """Percentile of each dissimilarity among the finite ones, 0 to 100; ties share their mean rank, NaN stays."""
    out = np.full(len(dissimilarities), np.nan)
    finite = np.isfinite(dissimilarities)
    ranks = rankdata(dissimilarities[finite])
    out[finite] = 100 * (ranks - 1) / max(len(ranks) - 1, 1)
    return out


def _average_down(matrix: Array) -> Array:
    """Mean of blocks, so that no picture has more than some hundred pixels a side; the diagonal is blank."""
    matrix = matrix.copy()
    np.fill_diagonal(matrix, np.nan)
    block = -(-len(matrix) // _MAX_PIXELS)
    if block == 1:
        return matrix
    size = -(-len(matrix) // block) * block
    padded = np.full((size, size), np.nan)
    padded[: len(matrix), : len(matrix)] = matrix
    blocks = padded.reshape(size // block, block, size // block, block)
    count = np.isfinite(blocks).sum(axis=(1, 3))
    return np.where(count > 0, np.nansum(blocks, axis=(1, 3)) / np.maximum(count, 1), np.nan)


def draw_design(name: str, design: Design) -> Drawing:
    """Draw a design matrix as SPM does: volumes downwards, each column scaled by its largest absolute value."""
    largest = np.nanmax(np.abs(design.matrix), axis=0, initial=0.0)
    scaled = design.matrix / np.where(largest > 0, largest, 1)
    n_frames, n_columns = scaled.shape
    alt = f"Design matrix of {design.run}: {n_frames} volumes by {n_columns} regressors."
    with drawing_style(name):
        figure = Figure(figsize=(max(3.6, min(9.0, 1.4 + 0.2 * n_columns)), 4.6), layout="constrained")
        axes = figure.add_subplot()
        extent = (-0.5, n_columns - 0.5, n_frames - 0.5, -0.5)
        image = axes.imshow(scaled, cmap="RdGy_r", vmin=-1, vmax=1, aspect="auto", interpolation="none", extent=extent)
        _name_columns(figure, design.names)
        ticks = np.linspace(0, n_frames - 1, 6).astype(int)
        axes.set_yticks(ticks, [f"{design.frame_times[t]:.0f}" for t in ticks])
        axes.set_ylabel("Time in the run (s)")
        for spine in axes.spines.values():
            spine.set_visible(False)
        bar = figure.colorbar(image, ax=axes, shrink=0.5, aspect=24, pad=0.02, ticks=[-1, 0, 1])
        bar.set_label("Value / largest absolute value", fontsize=9.5)
        bar.outline.set_visible(False)
        return finish_drawing(figure, name, alt)


def _name_columns(figure: Figure, names: Sequence[str]) -> None:
    axes = figure.axes[0]
    step = max(1, -(-len(names) // 45))
    shown = range(0, len(names), step)
    axes.set_xticks(list(shown), [shorten(names[i], 24) for i in shown], rotation=90)
    axes.xaxis.tick_top()
    axes.tick_params(axis="x", length=0, labelsize=8 if len(names) > 25 else 9.5)
