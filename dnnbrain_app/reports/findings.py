"""What was found, in a row a region and a sentence a network, and what must be known before it is believed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dnnbrain_app.records import Array
from dnnbrain_app.reports.contents import NetworkReport, UnitReport, find_best
from dnnbrain_app.reports.maps import colour_layers, write_hex

Q = 0.05  # false discovery rate over regions
EDGE = 0.05  # share of fits with a penalty on an edge of the grid that deserves a warning


@dataclass(frozen=True, slots=True)
class Peak:
    """The best layer of a region, by one analysis; `significant` also where this was not tested."""

    layer: str
    number: int
    n_layers: int
    score: float
    colour: str
    significant: bool = True


@dataclass(frozen=True, slots=True)
class Finding:
    """One row of the summary."""

    region: str
    network: str
    encoding: Peak | None
    rsa: Peak | None


def find_peaks(network: NetworkReport, comparison: str) -> list[Finding]:
    """Find the best layer of each region, by encoding and by the given comparison of RDMs."""
    palette = colour_layers(len(network.layers))

    def peak(regions: tuple[str, ...], scores: Array | None, region: str, q: Array | None = None) -> Peak | None:
        if scores is None or region not in regions:
            return None
        column = scores[:, regions.index(region)]
        best = find_best(column)
        if best is None:
            return None
        significant = q is None or bool(q[best, regions.index(region)] <= Q)
        n, colour = len(network.layers), write_hex(palette[best])
        return Peak(network.layers[best], best + 1, n, float(column[best]), colour, significant)

    rsa = network.rsa
    similarity = rsa.similarity.get(comparison) if rsa else None
    q = rsa.inference.get("q") if rsa and rsa.tested == comparison else None
    names = dict.fromkeys([*network.regions, *(rsa.regions if rsa else ())])
    return [
        Finding(
            region,
            network.network,
            peak(network.regions, network.region_r, region),
            peak(rsa.regions if rsa else (), similarity, region, q),
        )
        for region in names
    ]


def tell_findings(findings: tuple[Finding, ...], comparison: str) -> str:
    """Say in one sentence a network where the regions with the highest scores peak."""
    told = []
    for network in dict.fromkeys(finding.network for finding in findings):
        rows = [f for f in findings if f.network == network]
        has_encoding = any(f.encoding for f in rows)
        measure = "r" if has_encoding else comparison
        peaks = [(f.region, f.encoding if has_encoding else f.rsa) for f in rows]
        known = [(region, peak) for region, peak in peaks if peak and peak.significant]
        if any(peak for _, peak in peaks) and not known:
            told.append(f"The geometry of no region resembles that of a layer of {network} significantly.")
        known = sorted(known, key=lambda known: -known[1].score)[:4]
        known.sort(key=lambda known: known[1].number)
        places = [
            f"{region} {'' if i else 'is best explained '}by {peak.layer} ({measure} = {peak.score:.2f})"
            for i, (region, peak) in enumerate(known)
        ]
        if known:
            listed = " and ".join([*([", ".join(places[:-1])] if places[1:] else []), places[-1]])
            told.append(f"Of the {known[0][1].n_layers} layers of {network}, {listed}.")
    return " ".join(told)


def warn_reader(unit: UnitReport) -> list[str]:
    """Warn where nothing was found, and where the grid of ridge penalties was too short."""
    warnings = []
    for scores in (network.encoding for network in unit.networks if network.encoding is not None):
        if not np.any(scores.best_layer):
            warnings.append(f"{scores.network}: no voxel is predicted significantly by any layer.")
        if scores.edge_fraction > EDGE:
            warnings.append(
                f"{scores.network}: in {100 * scores.edge_fraction:.0f} % of the fits of voxels that a layer predicts, "
                "the ridge penalty is on an edge of its grid. Widen alpha_min and alpha_max."
            )
    return warnings
