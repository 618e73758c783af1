"""The layer profiles of a network: which are drawn, with what beside the scores, and what their captions say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dnnbrain_app.records import RsaScores
from dnnbrain_app.reports.contents import NetworkReport
from dnnbrain_app.reports.profiles import MAX_LINES, Evidence, draw_profile
from dnnbrain_app.reports.vector import Drawing
from dnnbrain_app.reports.wording import COMPARISONS

P = 0.05  # corrected for the number of layers
ENCODING = "encoding"
_NOT_CENTRED = ("cosine", "whitened-cosine")  # whose chance is not 0


@dataclass(frozen=True, slots=True, eq=False)
class ProfilePanel:
    """A profile and what is said of it.

    Parameters
    ----------
    network : str
        Label of the network.
    kind : str
        ``encoding``, or the comparison of RDMs.
    title, caption : str
        Above and below it.
    drawing : Drawing
        The profile.
    """

    network: str
    kind: str
    title: str
    caption: str
    drawing: Drawing


def draw_profiles(
    stem: str, network: NetworkReport, ceilings: Mapping[str, float], held_out: str
) -> list[ProfilePanel]:
    """Draw the profile of encoding scores, and one of each comparison of RDMs.

    Parameters
    ----------
    stem : str
        Begins the names of the figures.
    network : NetworkReport
        Its scores.
    ceilings : mapping of str to float
        Highest r of a perfect model, of the regions where it is known.
    held_out : str
        What encoding models predict.
    """
    panels = []
    if network.region_r is not None and network.regions:
        drawing = draw_profile(
            f"{stem}-{network.network}-encoding",
            network.layers,
            network.regions,
            network.region_r,
            "Encoding score (mean Pearson r)",
            Evidence(highest=ceilings),
        )
        caption = f"Pearson correlation between predicted and measured {held_out}, mean over the region’s voxels."
        if len(network.regions) <= MAX_LINES and set(network.regions) & set(ceilings):
            caption += (
                " Dashed: the highest r, what a perfect model would reach in the region’s median voxel, given the "
                "noise of its responses."
            )
        panels.append(ProfilePanel(network.network, ENCODING, f"{network.network} · encoding", caption, drawing))
    if network.rsa is not None and network.rsa.regions:
        panels += [_draw_comparison(stem, network.rsa, comparison) for comparison in network.rsa.similarity]
    return panels


def _draw_comparison(stem: str, rsa: RsaScores, comparison: str) -> ProfilePanel:
    measure = COMPARISONS.get(comparison, comparison)
    evidence = gather_evidence(rsa, comparison)
    drawing = draw_profile(
        f"{stem}-{rsa.network}-rsa-{comparison}",
        rsa.layers,
        rsa.regions,
        rsa.similarity[comparison],
        f"RSA similarity ({measure})",
        evidence,
    )
    said = [f"Similarity ({measure}) between the dissimilarity matrices of region and layer."]
    said += _explain_evidence(evidence, are_lines=len(rsa.regions) <= MAX_LINES)
    if comparison in _NOT_CENTRED:
        p = "; the test allows for that" if evidence.significant is not None else ""
        said.append(f"Chance is not 0, as distances above 0 have that in common{p}.")
    said.append("No noise ceiling is drawn.")
    return ProfilePanel(rsa.network, comparison, f"{rsa.network} · RSA, {measure}", " ".join(said), drawing)


def gather_evidence(rsa: RsaScores, comparison: str) -> Evidence:
    """Gather intervals and tests of a comparison, which only the tested one has; a p value of NaN is no finding."""
    found = rsa.inference if comparison == rsa.tested else {}
    p = found.get("p_fwe")
    return Evidence(found.get("low"), found.get("high"), None if p is None else p <= P)


def _explain_evidence(evidence: Evidence, *, are_lines: bool) -> list[str]:
    said = []
    if evidence.low is not None and are_lines:
        said.append("Band: 95 % confidence interval of the similarity over all stimuli of this kind (bootstrap).")
    if evidence.significant is not None:
        symbols = "Filled symbols" if are_lines else "Filled circles (peaks)"
        said.append(
            f"{symbols}: more than with permuted stimuli, p ≤ {P:g}, corrected for the number of layers; open: not "
            "significant."
        )
    return said
