"""The figures of a unit, gathered for its part of the page and kept as files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from dnnbrain_app.records import Array, Rdm
from dnnbrain_app.reports.composing import compose_map
from dnnbrain_app.reports.contents import UnitReport, find_best
from dnnbrain_app.reports.findings import Finding, find_peaks, tell_findings, warn_reader
from dnnbrain_app.reports.maps import BrainMap, Painter, draw_scores
from dnnbrain_app.reports.matrices import choose_grouping, draw_design, draw_rdm
from dnnbrain_app.reports.profile_panels import ENCODING, ProfilePanel, draw_profiles
from dnnbrain_app.reports.reliability import ResponsePage, draw_responses, find_ceilings
from dnnbrain_app.reports.vector import Drawing
from dnnbrain_app.reports.wording import COMPARISONS, DISTANCES, ELEMENTS, space_thousands

_MAX_REGIONS = 6  # whose RDMs are drawn


@dataclass(frozen=True, slots=True, eq=False)
class UnitPage:
    """A unit with its figures."""

    report: UnitReport
    anchor: str
    findings: tuple[Finding, ...]
    headline: str
    comparison: str
    profiles: tuple[ProfilePanel, ...]
    maps: Mapping[str, tuple[BrainMap, BrainMap]]
    rdms: tuple[tuple[str, list[tuple[str, Drawing]]], ...]
    distances: str
    n_regions_left_out: int
    grouping: str
    design: Drawing | None
    warnings: tuple[str, ...]
    responses: ResponsePage | None
    ceilings: Mapping[str, float]

    @property
    def tested(self) -> bool:
        """Whether the summary knows which similarities are significant."""
        scores = [network.rsa for network in self.report.networks if network.rsa]
        return any(rsa.tested == self.comparison and "q" in rsa.inference for rsa in scores)

    def caption_scores(self, brain: BrainMap, colour: str) -> str:
        """Say what a map of encoding scores shows."""
        if not brain.n_shown:
            return self.caption_map(brain, colour, "No voxel is predicted significantly by any layer: all is grey.")
        left_out = self.responses is not None and self.responses.report.min_reliability
        reasons = [
            "no layer predicts the voxel (not significant)",
            *(["it is not reliable enough"] if left_out else []),
        ]
        return self.caption_map(brain, colour, f"Grey: {', '.join(reasons)}, or no data.")

    def caption_map(self, brain: BrainMap, colour: str, grey: str) -> str:
        """Say what the colours are, what is grey, and on what it is drawn."""
        space = self.report.space
        share = 100 * brain.n_shown / max(space.n_voxels, 1)
        drawn = []
        if brain.surfaces:
            names = ", ".join(dict.fromkeys(mesh.name for mesh in self.report.meshes.values()))
            drawn.append(f"Drawn on {names}; a pixel has the value of its nearest vertex.")
        if brain.slices:
            behind = "their mean image" if self.report.background is not None else "a plain grey"
            drawn.append(
                f"Axial slices of the {'subcortical ' if brain.surfaces else ''}voxels over {behind}; left is left."
            )
        return " ".join(
            [
                colour,
                f"{share:.1f} % of {space_thousands(space.n_voxels)} {ELEMENTS[space.format]} are coloured.",
                grey,
                *drawn,
            ]
        )


def draw_unit(unit: UnitReport, anchor: str, figures: dict[str, bytes]) -> UnitPage:
    """Draw all figures of a unit; each is also put among the `figures`, by file name."""
    stem = re.sub(r"[^A-Za-z0-9_+-]", "", unit.unit.label)
    keep = _Keeper(stem, unit.unit.label, figures)
    comparison = _choose_comparison(unit)
    quartiles = find_ceilings(unit.responses) if unit.responses is not None else {}
    ceilings = {region: float(np.sqrt(values[1])) for region, values in quartiles.items()}
    profiles = [panel for network in unit.networks for panel in draw_profiles(stem, network, ceilings, unit.held_out)]
    for panel in profiles:
        kind = f"{'' if panel.kind == ENCODING else 'rsa'}{_clean(panel.kind)}"
        keep(f"model-{_clean(panel.network)}_desc-{kind}profile", panel.drawing)
    painter = Painter(unit)
    responses = draw_responses(stem, unit, painter)
    if responses is not None:
        _keep_responses(responses, keep)
    maps = {
        network.network: draw_scores(network.encoding, painter, unit.held_out)
        for network in unit.networks
        if network.encoding is not None
    }
    for network, (best, score) in maps.items():
        keep.picture(f"model-{_clean(network)}_stat-bestlayer", best, f"best layer of {network}")
        keep.picture(f"model-{_clean(network)}_stat-r", score, f"score of {network}")
    regions = _choose_regions(unit, comparison)
    grouping = choose_grouping(unit.attributes, unit.n_stimuli)
    groups = grouping[1] if grouping else None
    rdms = tuple((region.name, _draw_rdms(unit, region, comparison, groups, keep)) for region in regions)
    design = keep("desc-design", draw_design(f"{stem}-design", unit.design)) if unit.design is not None else None
    findings = tuple(finding for network in unit.networks for finding in find_peaks(network, comparison))
    return UnitPage(
        report=unit,
        anchor=anchor,
        findings=findings,
        headline=tell_findings(findings, COMPARISONS.get(comparison, comparison)),
        comparison=comparison,
        profiles=tuple(profiles),
        maps=maps,
        rdms=rdms,
        distances=_name_distances(unit),
        n_regions_left_out=len(unit.region_rdms) - len(regions),
        grouping=grouping[0] if grouping else "",
        design=design,
        warnings=(*unit.warnings, *warn_reader(unit)),
        responses=responses,
        ceilings=ceilings,
    )


def _keep_responses(responses: ResponsePage, keep: _Keeper) -> None:
    """Put the figures of the responses among the files, named as their maps are."""
    model = _clean(responses.report.model)
    for stat, brain, title in (
        ("noiseceiling", responses.ceiling, "noise ceiling"),
        ("hrf", responses.hrf, "time to peak of the response"),
    ):
        if brain is not None:
            keep.picture(f"stat-{stat}_desc-{model}", brain, title)
    for name, drawing in (("reliability", responses.histogram), ("noiseceilingbyregion", responses.regions)):
        if drawing is not None:
            keep(f"desc-{model}{name}", drawing)


class _Keeper:
    """Puts each figure also among the files."""

    def __init__(self, stem: str, label: str, figures: dict[str, bytes]) -> None:
        self.stem, self.label, self.figures = stem, label, figures

    def __call__(self, name: str, drawing: Drawing) -> Drawing:
        self.figures[f"{self.name(name)}.svg"] = drawing.file
        return drawing

    def picture(self, name: str, brain: BrainMap, title: str) -> None:
        if brain.panels:
            self.figures[f"{self.name(name)}.png"] = compose_map(brain, f"{self.label}: {title}")

    def name(self, name: str) -> str:
        """File name without extension; numbered where there is one already (regions that differ in signs only)."""
        numbered = (f"{self.stem}_{name}{'' if n == 1 else n}" for n in range(1, 10_000))
        return next(stem for stem in numbered if not {f"{stem}.svg", f"{stem}.png"} & self.figures.keys())


def _clean(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]", "", name)


def _choose_comparison(unit: UnitReport) -> str:
    """Choose the comparison that the summary tells: the tested one, else rho-a, else the last one of those computed."""
    scores = [network.rsa for network in unit.networks if network.rsa]
    names = [name for rsa in scores for name in rsa.similarity]
    tested = next((rsa.tested for rsa in scores if rsa.tested in names), "")
    if tested:
        return tested
    return "rho-a" if "rho-a" in names else (names[-1] if names else "")


def _name_distances(unit: UnitReport) -> str:
    """Say what a dissimilarity is, of regions and of layers."""
    layers = [rdm for network in unit.networks for rdm in network.layer_rdms]
    used = {
        of: DISTANCES.get(rdms[0].metric, rdms[0].metric)
        for of, rdms in (("regions", unit.region_rdms), ("layers", layers))
        if rdms
    }
    if len(set(used.values())) == 1:
        return next(iter(used.values()))
    return "; ".join(f"{of}: {distance}" for of, distance in used.items())


def _choose_regions(unit: UnitReport, comparison: str) -> tuple[Rdm, ...]:
    """Choose the regions whose RDMs are drawn: those that agree best with any layer."""
    if len(unit.region_rdms) <= _MAX_REGIONS:
        return unit.region_rdms
    highest = dict.fromkeys((rdm.name for rdm in unit.region_rdms), -np.inf)
    for rsa in (network.rsa for network in unit.networks if network.rsa and comparison in network.rsa.similarity):
        for region, column in zip(rsa.regions, rsa.similarity[comparison].T, strict=True):
            best = find_best(column)
            if best is not None and region in highest:
                highest[region] = max(highest[region], column[best])
    kept = sorted(highest, key=lambda name: -highest[name])[:_MAX_REGIONS]
    return tuple(rdm for rdm in unit.region_rdms if rdm.name in kept)


def _draw_rdms(
    unit: UnitReport, region: Rdm, comparison: str, groups: Array | None, keep: _Keeper
) -> list[tuple[str, Drawing]]:
    """Draw the region's RDM, and beside it that of the layer most similar to it, for each network."""
    name = f"desc-rdm{_clean(region.name)}"
    drawn = [("Region", keep(name, draw_rdm(keep.name(name), region, groups)))]
    for network in unit.networks:
        rsa = network.rsa
        if rsa is None or comparison not in rsa.similarity or region.name not in rsa.regions:
            continue
        similarity = rsa.similarity[comparison][:, rsa.regions.index(region.name)]
        best = find_best(similarity)
        rdm = None if best is None else next((r for r in network.layer_rdms if r.name == rsa.layers[best]), None)
        if rdm is not None:
            role = f"{network.network}, {COMPARISONS.get(comparison, comparison)} = {similarity[best]:.3f}"
            beside = f"model-{_clean(network.network)}_{name}best"
            drawn.append((role, keep(beside, draw_rdm(keep.name(beside), rdm, groups))))
    return drawn
