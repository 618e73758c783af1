import xml.etree.ElementTree as ET

import numpy as np
import pytest

from dnnbrain_app.reports.profiles import MAX_LINES, Evidence, draw_profile
from dnnbrain_app.reports.vector import COLOURS

LAYERS = tuple(f"layer{i}" for i in range(5))


def read_texts(svg: bytes) -> list[str]:
    return ["".join(node.itertext()).strip() for node in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_lines_are_named_and_axes_have_labels():
    drawing = draw_profile(
        "p", LAYERS, ("V1", "VTC"), np.column_stack([np.arange(5, 0, -1), np.arange(5)]) / 20, "Score (r)"
    )
    texts = read_texts(drawing.file)
    assert {"V1", "VTC", "Score (r)", *LAYERS} <= set(texts)
    assert "V1 peaks at layer0, VTC peaks at layer4" in drawing.alt


def test_names_of_lines_that_end_together_do_not_overlap():
    scores = np.tile(np.linspace(0, 0.3, 5)[:, None], 5) + np.arange(5) * 1e-4
    regions = tuple(f"region{i}" for i in range(5))
    root = ET.fromstring(draw_profile("p", LAYERS, regions, scores, "r").file)
    heights = sorted(
        float(node.get("y") or node.get("transform").split("translate(")[1].split(")")[0].replace(",", " ").split()[1])
        for node in root.iter("{http://www.w3.org/2000/svg}text")
        if "".join(node.itertext()).strip() in regions
    )
    assert np.diff(heights).min() > 11  # the letters' height


@pytest.mark.parametrize("scores", [np.full((5, 2), np.nan), np.zeros((5, 2)), -np.ones((5, 2)) / 9])
def test_scores_without_a_peak_are_drawn_all_the_same(scores):
    assert "V1" in draw_profile("p", LAYERS, ("V1", "V2"), scores, "r").file.decode() or np.isnan(scores).all()


def test_many_regions_become_a_heat_map_in_the_order_of_their_peaks():
    n = MAX_LINES + 3
    peaks = np.arange(n) % 5
    scores = 0.3 - 0.05 * np.abs(np.arange(5)[:, None] - peaks)
    scores[:, 0] = np.nan
    regions = tuple(f"region{i}" for i in range(n))
    texts = [t for t in read_texts(draw_profile("p", LAYERS, regions, scores, "r").file) if t.startswith("region")]
    assert "region0" not in texts
    order = [int(t.removeprefix("region")) for t in texts]
    assert sorted(order) == list(range(1, n))
    drawn = peaks[order]
    assert (np.diff(drawn) >= 0).all() or (np.diff(drawn) <= 0).all()


def test_one_layer_and_one_region_can_be_drawn():
    assert "fc" in draw_profile("p", ("fc",), ("V1",), np.array([[0.2]]), "r").file.decode()


def test_markup_in_names_is_text():
    drawing = draw_profile("p", ("<b>$\\frac{", "x"), ("<script>alert(1)</script>", "$b"), np.ones((2, 2)), "r")
    ET.fromstring(drawing.file)
    assert "<script" not in drawing.inline
    assert "<b>" not in drawing.inline


def test_bytes_are_the_same_every_time_and_ids_differ_between_figures():
    scores = np.random.default_rng(1).random((5, 2))
    first = draw_profile("p", LAYERS, ("a", "b"), scores, "r")
    assert draw_profile("p", LAYERS, ("a", "b"), scores, "r") == first
    other = draw_profile("q", LAYERS, ("a", "b"), scores, "r")

    def ids(svg: bytes) -> set[str]:
        return {node.get("id") for node in ET.fromstring(svg).iter()} - {None}

    assert ids(first.file)
    assert not ids(first.file) & ids(other.file)


def test_page_colours_inside_and_white_outside():
    drawing = draw_profile("p", LAYERS, ("a",), np.ones((5, 1)), "r")
    assert "var(--ink)" in drawing.inline
    assert "var(--" not in drawing.file.decode()
    for sentinel in ("#010203", "#020304", "#030405", "#040506"):
        assert sentinel not in drawing.inline
        assert sentinel not in drawing.file.decode()


SCORES = np.column_stack([np.linspace(0.1, 0.3, 5), np.linspace(0.2, 0.0, 5)])


def read_styles(svg: bytes, tag: str = "path") -> list[str]:
    """Styles of lines and areas, or of symbols (``use``)."""
    return [node.get("style", "") for node in ET.fromstring(svg).iter(f"{{http://www.w3.org/2000/svg}}{tag}")]


def count_symbols(svg: bytes, colour: str) -> tuple[int, int]:
    """Count filled and open symbols with an edge of a colour."""
    styles = [style for style in read_styles(svg, "use") if f"stroke: {colour}" in style]
    return sum(f"fill: {colour}" in s for s in styles), sum("fill: #ffffff" in s for s in styles)


def test_symbols_are_open_where_a_score_is_not_significant():
    significant = np.column_stack([[True, True, False, True, True], [False] * 5])
    drawn = draw_profile("p", LAYERS, ("V1", "V2"), SCORES, "r", Evidence(significant=significant))
    plain = draw_profile("p", LAYERS, ("V1", "V2"), SCORES, "r")
    uses = [count_symbols(drawn.file, colour) for colour in COLOURS[:2]]
    assert uses == [(4, 1), (0, 5)]
    assert [count_symbols(plain.file, colour) for colour in COLOURS[:2]] == [(5, 0), (5, 0)]
    assert "V1 peaks at layer4, V2 peaks at layer0 (not significant)" in drawn.alt


def find_ticks(svg: bytes) -> list[float]:
    """Numbers along the axes."""
    return [
        float(text.replace("−", "-")) for text in read_texts(svg) if text.replace("−", "-").replace(".", "").isdigit()
    ]


def test_intervals_and_ceilings_are_drawn_within_the_axes():
    regions = ("V1", "V2")
    plain = draw_profile("p", LAYERS, regions, SCORES, "r").file
    banded = draw_profile("p", LAYERS, regions, SCORES, "r", Evidence(SCORES - 0.05, SCORES + 0.45)).file
    capped = draw_profile("p", LAYERS, regions, SCORES, "r", Evidence(highest={"V2": 0.8, "other": 3.0})).file
    assert max(find_ticks(plain)) < 0.4
    assert 0.6 < max(find_ticks(banded)) < 0.9
    assert 0.7 < max(find_ticks(capped)) < 0.9  # nothing of a region that is not there
    dashed = [s for s in read_styles(capped) if "stroke-dasharray" in s and "none" not in s.split("dasharray")[1]]
    assert len(dashed) == 1
    assert COLOURS[1] in dashed[0]
    assert [svg.decode().count("fill-opacity: 0.16") for svg in (plain, banded)] == [0, 2]


def test_interval_of_a_single_layer_is_a_line():
    one = np.array([[0.2]])
    lines = [
        draw_profile("p", ("fc",), ("V1",), one, "r", evidence).file.decode().count("LineCollection")
        for evidence in (Evidence(), Evidence(one - 0.1, one + 0.1))
    ]
    assert lines == [0, 1]


@pytest.mark.parametrize("significant", [True, False])
def test_peaks_of_a_heat_map_are_open_where_they_are_not_significant(significant):
    n = MAX_LINES + 1
    scores = np.random.default_rng(3).random((5, n))
    evidence = Evidence(significant=np.full(scores.shape, significant))
    svg = draw_profile("p", LAYERS, tuple(map(str, range(n))), scores, "r", evidence).file
    symbols = [style for style in read_styles(svg, "use") if "stroke: #ffffff" in style]
    assert len(symbols) == n
    assert all(("fill-opacity: 0" in style) != significant for style in symbols)
