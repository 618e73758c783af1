import base64
import io
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image
from scipy.stats import percentileofscore

from dnnbrain_app.errors import BadDataError
from dnnbrain_app.records import Rdm
from dnnbrain_app.reports.contents import Design
from dnnbrain_app.reports.matrices import choose_grouping, draw_design, draw_rdm, rank_percentiles


def read_image(svg: bytes) -> np.ndarray:
    """The first raster in an SVG: the matrix itself."""
    found = re.search(rb'href="data:image/png;base64,\s*([^"]+)"', svg)
    assert found
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(found[1]))).convert("RGBA")).astype(int)


def test_percentiles_agree_with_scipy(rng):
    values = rng.random(50)
    expected = [100 * (percentileofscore(values, v, kind="weak") / 100 * 50 - 1) / 49 for v in values]
    np.testing.assert_allclose(rank_percentiles(values), expected)


def test_percentiles_of_ties_and_nan():
    np.testing.assert_allclose(rank_percentiles(np.array([1.0, np.nan, 3.0, 3.0, 9.0])), [0, np.nan, 50, 50, 100])


def test_groups_of_alike_stimuli_are_dark_blocks_on_the_diagonal(rng):
    groups = np.array(["b", "a"] * 8)
    upper = np.triu_indices(16, 1)
    rdm = Rdm(
        "V1",
        np.where(groups[upper[0]] == groups[upper[1]], 0.1, 1.0) + 0.01 * rng.random(120),
        tuple(map(str, range(16))),
    )
    picture = read_image(draw_rdm("m", rdm, groups).file)
    height, width = picture.shape[:2]
    bright = picture[..., :3].sum(axis=-1)
    off = ~np.eye(8, dtype=bool).repeat(height // 16, axis=0).repeat(width // 16, axis=1)
    within, between = bright[: height // 2, : width // 2], bright[: height // 2, width // 2 :]
    assert within[off[: height // 2, : width // 2]].max() < between.min()


def test_group_names_are_shown_and_markup_in_them_is_text(rng):
    groups = np.array(["<i>x", "face"] * 3)
    drawing = draw_rdm("m", Rdm("<b>", rng.random(15), tuple("abcdef")), groups)
    texts = [
        "".join(node.itertext()).strip()
        for node in ET.fromstring(drawing.file).iter("{http://www.w3.org/2000/svg}text")
    ]
    assert {"<i>x", "face", "<b>"} <= set(texts)


def test_large_rdm_is_averaged_down(rng):
    n = 1300
    rdm = Rdm("V1", rng.random(n * (n - 1) // 2), tuple(map(str, range(n))))
    assert max(read_image(draw_rdm("m", rdm, None).file).shape) <= 600
    assert len(draw_rdm("m", rdm, None).file) < 2e6


@pytest.mark.parametrize(
    ("attributes", "chosen"),
    [
        ({}, None),
        ({"only": ["a"] * 8}, None),
        ({"each": list("abcdefgh")}, None),
        ({"two": list("aabbaabb"), "four": list("aabbccdd"), "each": list("abcdefgh")}, "four"),
        ({"short": list("aabb")}, None),
        ({"number": [0, 1] * 4}, "number"),
    ],
)
def test_the_finest_categorical_attribute_orders_the_stimuli(attributes, chosen):
    found = choose_grouping({name: np.array(values) for name, values in attributes.items()}, 8)
    assert (found[0] if found else None) == chosen


def test_design_is_drawn_with_the_names_of_its_columns(rng):
    design = Design("run-1", rng.normal(size=(40, 3)), ("trial $1", "trans_x", "<constant>"), 2.0 * np.arange(40))
    drawing = draw_design("d", design)
    texts = [
        "".join(node.itertext()).strip()
        for node in ET.fromstring(drawing.file).iter("{http://www.w3.org/2000/svg}text")
    ]
    assert {"trial $1", "trans_x", "<constant>", "Time in the run (s)", "78"} <= set(texts)
    assert read_image(drawing.file)[..., :3].std() > 20


def test_design_with_an_empty_column_is_drawn():
    assert draw_design("d", Design("r", np.zeros((5, 1)), ("none",), np.arange(5.0))).alt.startswith(
        "Design matrix of r: 5"
    )


def test_design_whose_names_do_not_fit_is_refused():
    with pytest.raises(BadDataError, match=r"run-1.*\(5, 2\).*\(5, 1\)"):
        Design("run-1", np.zeros((5, 2)), ("one",), np.arange(5.0))
