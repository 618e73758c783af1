"""How good the responses are: what of them comes back when a stimulus does, in pictures and numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import f as f_distribution
from scipy.stats import false_discovery_control

from dnnbrain_app.records import Array
from dnnbrain_app.reports.contents import ResponseReport, UnitReport
from dnnbrain_app.reports.maps import BrainMap, Painter
from dnnbrain_app.reports.vector import COLOURS, INK, LINE, MUTED, Drawing, drawing_style, finish_drawing, shorten
from dnnbrain_app.reports.wording import ELEMENTS, space_thousands

Q = 0.05  # false discovery rate of voxels that respond to stimuli
UNCORRECTED = 0.05  # p value below which a voxel is hinted at
MAX_ROWS = 30
_LEFT_OUT = "#a9aeb5"
_LEAST = -0.5  # what is less reliable is drawn here

NO_CEILING = {
    "condition": (
        "One response a stimulus was estimated over all runs. Nothing repeats in that, so no noise ceiling is known; "
        "the models lss, lsa and glmsingle estimate a response a trial, which tell one where stimuli repeat."
    ),
    "timeseries": (
        "No responses were estimated: the features of the stimuli predict the volumes themselves, for which there is "
        "no noise ceiling."
    ),
}
NO_REPEATS = "Too few stimuli have two or more trials: there is no noise ceiling, and none is made up."


@dataclass(frozen=True, slots=True, eq=False)
class ResponsePage:
    """The figures of the section on responses; None where there is nothing to show.

    Parameters
    ----------
    report : ResponseReport
        What they were drawn from.
    tiles : tuple of (str, str)
        Numbers, named.
    explanation : str
        Why there is no noise ceiling, or what was left out; may be empty.
    ceiling, hrf : BrainMap, optional
        Noise ceiling, and when each voxel's HRF peaks.
    histogram, regions : Drawing, optional
        Reliability over voxels; noise ceiling by region.
    """

    report: ResponseReport
    tiles: tuple[tuple[str, str], ...]
    explanation: str = ""
    ceiling: BrainMap | None = None
    hrf: BrainMap | None = None
    histogram: Drawing | None = None
    regions: Drawing | None = None


def draw_responses(stem: str, unit: UnitReport, painter: Painter) -> ResponsePage | None:
    """Draw what is known about the responses of a unit; `stem` begins the names of the figures."""
    report = unit.responses
    if report is None:
        return None
    tiles = _list_numbers(unit, report)
    hrf = _draw_hrfs(report, painter)
    if not report.has_ceiling:
        return ResponsePage(report, tiles, NO_CEILING.get(report.model, NO_REPEATS), hrf=hrf)
    p = compare_stimuli(report)
    label = "Share of the variance of averaged responses"
    reliability = report.maps.get("reliability", np.zeros(0))
    return ResponsePage(
        report,
        tiles,
        _tell_left_out(report, ELEMENTS[unit.space.format]),
        painter.paint_score(report.maps["noiseceiling"], find_responsive(p), label, highest=1.0, faint=p < UNCORRECTED),
        hrf,
        _draw_histogram(f"{stem}-reliability", report) if np.isfinite(reliability).any() else None,
        _draw_regions(f"{stem}-noiseceiling", find_ceilings(report)) if report.regions else None,
    )


def find_left_out(report: ResponseReport) -> Array:
    """Find the voxels that are not reliable enough, or of unknown reliability where one was asked for."""
    if not report.min_reliability or "reliability" not in report.maps:
        return np.zeros(len(next(iter(report.maps.values()), ())), dtype=bool)
    return np.asarray(~(report.maps["reliability"] >= report.min_reliability))


def compare_stimuli(report: ResponseReport) -> Array:
    r"""Test whether responses differ between stimuli, by the analysis of variance behind the noise ceiling.

    .. math:: F = 1 + n_0 \, \mathrm{ncsnr}^2, \quad n_0 = \frac{N - \sum_i n_i^2 / N}{k - 1}

    of :math:`N` trials of :math:`k` stimuli, shown :math:`n_i` times each, with :math:`k - 1` and :math:`N - k -
    (n_{runs} - 1)` degrees of freedom.

    Returns
    -------
    array of shape (n_voxels,)
        p values; NaN where nothing repeats, and in voxels without signal.
    """
    ncsnr, n = report.maps.get("ncsnr", np.zeros(0)), report.counts
    freedom = n.sum() - len(n) - (report.n_runs - 1)
    if freedom <= 0 or len(n) < 2:
        return np.full(len(ncsnr), np.nan)
    n0 = (n.sum() - np.square(n).sum() / n.sum()) / (len(n) - 1)
    return np.asarray(f_distribution.sf(1 + n0 * np.square(ncsnr, dtype=np.float64), len(n) - 1, freedom))


def find_responsive(p: Array) -> Array:
    """Find the voxels that respond to stimuli, (n_voxels,), at a false discovery rate of 5 %, by their p values."""
    known = np.isfinite(p)
    responsive = np.zeros(len(p), dtype=bool)
    responsive[known] = false_discovery_control(p[known]) <= Q
    return responsive


def find_ceilings(report: ResponseReport) -> dict[str, Array]:
    """Quartiles (3,) of the noise ceiling over the voxels of each region that were analysed; no region without any."""
    if not report.has_ceiling:
        return {}
    ceiling = np.where(find_left_out(report), np.nan, report.maps["noiseceiling"])
    known = {region: ceiling[mask & np.isfinite(ceiling)] for region, mask in report.regions.items()}
    return {region: np.percentile(values, [25, 50, 75]) for region, values in known.items() if len(values)}


def _list_numbers(unit: UnitReport, report: ResponseReport) -> tuple[tuple[str, str], ...]:
    if report.is_timeseries:
        return ()
    listed = [("Stimuli repeated", f"{report.n_repeated} of {unit.n_stimuli}")]
    if report.has_ceiling:
        reliability, responsive = report.maps.get("reliability", np.zeros(0)), find_responsive(compare_stimuli(report))
        if np.isfinite(reliability).any():
            listed.append(("Median reliability", f"{np.nanmedian(reliability):.2f}".replace("-", "−")))
        listed.append(("Responsive", f"{100 * responsive.mean():.1f} %"))
        if responsive.any():
            listed.append(("Median ceiling there", f"{np.median(report.maps['noiseceiling'][responsive]):.2f}"))
        if "fraction" in report.maps and responsive.any():
            listed.append(("Median ridge fraction there", f"{np.nanmedian(report.maps['fraction'][responsive]):.2f}"))
    if report.min_reliability:
        listed.append(("Left out", f"{100 * find_left_out(report).mean():.1f} %"))
    return tuple(listed)


def _tell_left_out(report: ResponseReport, elements: str) -> str:
    if not report.min_reliability:
        return ""
    left_out = find_left_out(report)
    counted = f"{space_thousands(int(left_out.sum()))} of {space_thousands(len(left_out))} {elements}"
    return (
        f"{counted} were left out of every analysis, as their reliability is below {report.min_reliability:g} or not "
        "known. The ceilings of those that remain, which were chosen in the same data, are a little too high."
    )


def _draw_hrfs(report: ResponseReport, painter: Painter) -> BrainMap | None:
    """Draw when each voxel's HRF peaks; where noise ceilings are known, of voxels with responses only."""
    if "hrf" not in report.maps or not report.library:
        return None
    shown = np.isfinite(report.maps["hrf"])
    if report.has_ceiling:
        shown &= find_responsive(compare_stimuli(report))
    order = np.argsort(list(report.library.values()), kind="stable")
    number = np.nan_to_num(report.maps["hrf"], nan=1.0).astype(int) - 1
    names = tuple(list(report.library)[i] for i in order)
    return painter.paint_choice(np.argsort(order)[number], shown, "with each time to peak of the response", names)


def _draw_histogram(name: str, report: ResponseReport) -> Drawing:
    """Draw how reliability is distributed over voxels; what was left out is grey."""
    values = report.maps["reliability"][np.isfinite(report.maps["reliability"])]
    middle, least = float(np.median(values)), report.min_reliability
    alt = f"Histogram of the reliability of {len(values)} voxels: median {middle:.2f}"
    alt += f"; those below {least:g} were left out." if least else "."
    with drawing_style(name):
        figure = Figure(figsize=(6.0, 3.6), layout="constrained")
        axes = figure.add_subplot()
        edges = np.linspace(_LEAST, 1, 61).tolist()
        weights = np.full(len(values), 100 / len(values))
        clipped = np.clip(values, _LEAST, 1)
        kept = values >= (least or -np.inf)
        for bars, colour in ((kept, COLOURS[0]), (~kept, _LEFT_OUT)):
            axes.hist(clipped[bars], edges, weights=weights[bars], color=colour, rwidth=0.9)
        axes.set_ylim(0, 1.18 * axes.get_ylim()[1])
        _mark(axes, max(middle, _LEAST), f"median {middle:.2f}".replace("-", "−"), INK)
        if least:
            _mark(axes, least, f"least {least:g}", MUTED, lower=True)
        axes.set_xlim(_LEAST - 0.02, 1.02)
        ticks = np.linspace(_LEAST, 1, 7)
        axes.set_xticks(ticks, ["≤ −0.5", *(f"{tick:g}".replace("-", "−") for tick in ticks[1:])])
        axes.set_xlabel("Split-half reliability (Spearman-Brown)")
        axes.set_ylabel("Voxels (%)")
        return finish_drawing(figure, name, alt)


def _mark(axes: Axes, x: float, text: str, colour: str, *, lower: bool = False) -> None:
    """Mark a place on the horizontal axis by a line, named on the side with more room."""
    axes.axvline(x, color=colour, linewidth=1.2, linestyle=":" if lower else "-")
    left = x > 0.6
    place = (-4 if left else 4, -16 if lower else -2)
    axes.annotate(
        text,
        (x, 1),
        place,
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        color=colour,
        ha="right" if left else "left",
        va="top",
    )


def _draw_regions(name: str, ceilings: Mapping[str, Array]) -> Drawing | None:
    """Draw median and quartiles of the noise ceiling by region, the highest first."""
    if not ceilings:
        return None
    regions = sorted(ceilings, key=lambda region: -ceilings[region][1])[:MAX_ROWS]
    quartiles = np.array([ceilings[region] for region in regions])
    told = ", ".join(f"{region} {ceilings[region][1]:.2f}" for region in regions)
    alt = f"Median noise ceiling by region: {told}."
    with drawing_style(name):
        figure = Figure(figsize=(6.0, 1.7 + 0.22 * max(len(regions), 4)), layout="constrained")
        axes = figure.add_subplot()
        rows = np.arange(len(regions))
        axes.hlines(rows, quartiles[:, 0], quartiles[:, 2], color=COLOURS[0], linewidth=2.2, alpha=0.55)
        axes.plot(quartiles[:, 1], rows, "o", color=COLOURS[0], markersize=5.5)
        axes.set_yticks(rows, [shorten(region, 22) for region in regions])
        axes.set_ylim(len(regions) - 0.5, -0.5)
        axes.set_xlim(0, 1)
        axes.set_axisbelow(True)
        axes.grid(axis="x", color=LINE, linewidth=0.6)
        axes.tick_params(length=0)
        axes.set_xlabel("Noise ceiling (share of variance)")
        top = axes.secondary_xaxis("top", functions=(lambda share: np.sqrt(np.maximum(share, 0)), np.square))
        top.set_xlabel("Highest r")
        top.set_xticks([0.2, 0.4, 0.6, 0.8, 1.0])
        top.spines[:].set_visible(False)
        axes.spines[["left", "bottom"]].set_visible(False)
        return finish_drawing(figure, name, alt)
