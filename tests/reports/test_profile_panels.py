import dataclasses

import numpy as np
import pytest

from dnnbrain_app.records import RsaScores
from dnnbrain_app.reports.contents import NetworkReport
from dnnbrain_app.reports.profile_panels import draw_profiles, gather_evidence

LAYERS, REGIONS = ("a", "b", "c"), ("V1", "VTC")
SIMILARITY = np.array([[0.3, 0.02], [0.2, 0.05], [0.1, 0.01]])
P_FWE = np.array([[0.001, 0.4], [0.05, 0.2], [0.051, np.nan]])
INFERENCE = {
    "p": P_FWE / 2, "p_fwe": P_FWE, "q": P_FWE, "low": SIMILARITY - 0.1, "high": SIMILARITY + 0.1
}  # fmt: skip


def make_network(inference: dict[str, np.ndarray], tested: str = "rho-a", regions: tuple = REGIONS) -> NetworkReport:
    repeat = len(regions) // 2
    inference = {name: np.tile(values, repeat) for name, values in inference.items()}
    similarity = np.tile(SIMILARITY, repeat)
    rsa = RsaScores(
        "net", LAYERS, regions, {"pearson": similarity, "rho-a": similarity, "cosine": similarity}, tested, inference
    )
    return NetworkReport("net", LAYERS, None, regions, similarity, rsa)


def caption(network: NetworkReport, kind: str, ceilings: dict[str, float] | None = None) -> str:
    panels = draw_profiles("s", network, ceilings or {}, "responses to held-out stimuli")
    return next(panel.caption for panel in panels if panel.kind == kind)


def test_only_the_tested_comparison_has_evidence():
    rsa = make_network(INFERENCE).rsa
    found = gather_evidence(rsa, "rho-a")
    assert found.significant.tolist() == [[True, False], [True, False], [False, False]]
    np.testing.assert_array_equal(found.low, INFERENCE["low"])
    np.testing.assert_array_equal(found.high, INFERENCE["high"])
    other = gather_evidence(rsa, "pearson")
    assert other.significant is None
    assert other.low is None


BAND, SYMBOLS = "Band: 95 % confidence interval", "Filled symbols: more than with permuted stimuli, p ≤ 0.05"


@pytest.mark.parametrize(
    ("left", "told", "gone"),
    [
        (("p", "p_fwe", "q", "low", "high"), [BAND, SYMBOLS, "open: not significant"], []),
        (("p", "p_fwe", "q"), [SYMBOLS], ["Band"]),  # rsa.n_bootstraps = 0
        (("low", "high"), [BAND], ["symbols"]),  # rsa.n_permutations = 0
        ((), ["No noise ceiling"], ["Band", "symbols"]),
    ],
)
def test_captions_say_what_is_drawn(left, told, gone):
    network = make_network({name: INFERENCE[name] for name in left})
    for said in told:
        assert said in caption(network, "rho-a")
    for word in gone:
        assert word not in caption(network, "rho-a")
    assert "Band" not in caption(network, "pearson")


def test_a_heat_map_has_no_bands_and_says_so_of_none():
    regions = tuple(f"area{i}" for i in range(8))
    network = make_network(INFERENCE, regions=regions)
    text = caption(network, "rho-a")
    assert "Band" not in text
    assert "Filled circles (peaks)" in text
    assert "Dashed" not in caption(network, "encoding", dict.fromkeys(regions, 0.5))


def test_chance_of_cosines_is_told():
    assert "Chance is not 0" not in caption(make_network(INFERENCE), "rho-a")
    assert caption(make_network(INFERENCE), "cosine").count("the test allows for that") == 0
    assert "the test allows for that" in caption(make_network(INFERENCE, "cosine"), "cosine")


def test_ceilings_are_told_where_there_are_any():
    network = make_network({})
    assert "Dashed: the highest r" in caption(network, "encoding", {"V1": 0.6})
    for ceilings in ({}, {"other": 0.6}):
        assert "Dashed" not in caption(network, "encoding", ceilings)


def test_panels_are_one_for_encoding_and_one_a_comparison():
    network = make_network(INFERENCE)
    panels = draw_profiles("s", network, {}, "held-out volumes")
    assert [panel.kind for panel in panels] == ["encoding", "pearson", "rho-a", "cosine"]
    assert [panel.title for panel in panels][1:3] == ["net · RSA, Pearson r", "net · RSA, ρₐ"]
    assert "measured held-out volumes" in panels[0].caption
    assert "VTC peaks at b (not significant)" in panels[2].drawing.alt
    assert "(not" not in panels[1].drawing.alt
    assert draw_profiles("s", dataclasses.replace(network, region_r=None, rsa=None), {}, "") == []
