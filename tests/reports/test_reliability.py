import dataclasses
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from scipy.stats import f_oneway

from dnnbrain_app.errors import BadDataError
from dnnbrain_app.reports.contents import ResponseReport, RunRow
from dnnbrain_app.reports.maps import Painter
from dnnbrain_app.reports.participant import ParticipantReport, render_participant
from dnnbrain_app.reports.reliability import (
    compare_stimuli,
    draw_responses,
    find_ceilings,
    find_left_out,
    find_responsive,
)

LIBRARY = {"Glover (5.0 s)": 5.0, "3.0 s": 3.0, "7.0 s": 7.0}
REPEATS = np.full(12, 2)


def make_responses(n: int, **changes: object) -> ResponseReport:
    """The first tenth of the voxels respond, with a ceiling of 0.8; the others do not."""
    ceiling = np.where(np.arange(n) < n // 10, 0.8, 0.0)
    maps = {
        "noiseceiling": ceiling,
        "ncsnr": np.sqrt(ceiling / (1 - ceiling) / 2),
        "reliability": np.where(ceiling > 0, 0.7, 0.1),
    }
    fields = {"model": "lss", "counts": np.full(60, 2), "n_runs": 2, "maps": maps}
    return ResponseReport(**(fields | changes))


@pytest.fixture
def draw(make, rng):
    """Draw the responses of a block of voxels."""

    def draw_block(**changes):
        space = make.volume_space()
        unit = make.unit(space, np.zeros(space.n_voxels, dtype=int), rng)
        unit = dataclasses.replace(unit, responses=make_responses(space.n_voxels, **changes))
        return draw_responses("stem", unit, Painter(unit))

    return draw_block


@pytest.fixture
def render(make, rng):
    """Render a page on a block of voxels; networks take time, and are left out unless asked for."""

    def render_block(responses_model="lss", changes=None, *, networks=False, **unit_changes):
        space = make.volume_space()
        responses = make_responses(space.n_voxels, model=responses_model, **(changes or {}))
        best = np.where(np.arange(space.n_voxels) < 50, 1, 0)
        few = {"region_rdms": (), "design": None} | ({} if networks else {"networks": ()})
        unit = make.unit(space, best, rng, responses=responses, **few | unit_changes)
        rendered = render_participant(ParticipantReport("01", (unit,), make.facts()))
        text = " ".join(re.sub(r"<style.*?</style>|<[^>]+>", " ", rendered.html, flags=re.DOTALL).split())
        return rendered, text

    return render_block


def read_texts(svg: bytes) -> list[str]:
    return ["".join(node.itertext()).strip() for node in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


@pytest.mark.parametrize("counts", [[3] * 12, [2, 5, 3, 1, 4, 4]])
def test_p_values_are_those_of_an_analysis_of_variance(rng, counts):
    betas = rng.normal(size=(sum(counts), 50)) + np.repeat(rng.normal(size=(len(counts), 50)), counts, axis=0)
    groups = np.split(betas, np.cumsum(counts)[:-1])
    n, N, k = np.array(counts), sum(counts), len(counts)
    noise = sum(((group - group.mean(axis=0)) ** 2).sum(axis=0) for group in groups) / (N - k)
    means = np.array([group.mean(axis=0) for group in groups])
    between = (n @ (means - betas.mean(axis=0)) ** 2) / (k - 1)
    n0 = (N - (n**2).sum() / N) / (k - 1)
    ncsnr = np.sqrt(np.maximum(between - noise, 0) / n0 / noise)
    expected = f_oneway(*groups)
    above = expected.statistic > 1
    assert above.sum() > 10
    p = compare_stimuli(ResponseReport("lss", n, 1, {"ncsnr": ncsnr}))
    np.testing.assert_allclose(p[above], expected.pvalue[above], rtol=1e-9)
    assert (p[~above] >= p[above].max()).all()  # cut off at F = 1


def test_what_was_planted_responds_and_noise_does_not(rng):
    betas = rng.normal(size=(2, 60, 3000))
    betas[:, :, :200] += 2 * rng.normal(size=(60, 200))
    noise = np.square(betas[0] - betas[1]).mean(axis=0) / 2
    signal = 2 * np.square(betas.mean(axis=0) - betas.mean(axis=(0, 1))).sum(axis=0) / 59 / 2 - noise / 2
    ncsnr = np.sqrt(np.maximum(signal, 0) / noise)
    ncsnr[-10:] = np.nan
    responsive = find_responsive(compare_stimuli(ResponseReport("lss", np.full(60, 2), 1, {"ncsnr": ncsnr})))
    assert responsive[:200].mean() > 0.95
    assert responsive[200:].sum() < 40
    assert not responsive[-10:].any()


@pytest.mark.parametrize(
    ("counts", "n_runs"), [(np.ones(60, dtype=int), 1), (np.full(2, 2), 3), (np.array([9]), 1), (np.zeros(0, int), 1)]
)
def test_without_repeats_nothing_responds(counts, n_runs):
    p = compare_stimuli(make_responses(100, counts=counts, n_runs=n_runs))
    assert np.isnan(p).all()
    assert not find_responsive(p).any()


def test_ceiling_has_a_scale_from_0_to_1_and_noise_is_grey(draw):
    page = draw()
    assert page.ceiling.legend.highest == 1
    assert not page.ceiling.legend.saturated
    assert page.ceiling.n_shown == 96
    assert "variance" in page.ceiling.legend.label
    numbers = dict(page.tiles)
    assert numbers["Stimuli repeated"] == "60 of 12"
    assert numbers["Median reliability"] == "0.10"
    assert numbers["Responsive"] == "10.0 %"
    assert numbers["Median ceiling there"] == "0.80"
    assert page.explanation == ""


def test_what_may_respond_is_hinted_at(draw):
    none, few = np.zeros(960), np.where(np.arange(960) == 0, 0.55, 0.0)  # p = .02, of 960 voxels
    pages = [draw(maps={"noiseceiling": ncsnr, "ncsnr": ncsnr}) for ncsnr in (none, few)]
    assert [page.ceiling.n_shown for page in pages] == [0, 0]
    grey, faint = (page.ceiling.slices[0].picture[-1, 0, :3].astype(int) for page in pages)
    assert np.ptp(grey) == 0
    assert np.ptp(faint) > 25


def test_histogram_tells_the_median_and_what_was_left_out(draw):
    drawing = draw().histogram
    assert "960 voxels: median 0.10." in drawing.alt
    texts = read_texts(drawing.file)
    assert "median 0.10" in texts
    assert not [text for text in texts if text.startswith("least")]
    page = draw(min_reliability=0.3)
    assert "those below 0.3 were left out" in page.histogram.alt
    assert "least 0.3" in read_texts(page.histogram.file)
    assert dict(page.tiles)["Left out"] == "90.0 %"
    assert page.explanation.startswith("864 of 960 voxels were left out of every analysis")


def test_reliability_outside_the_axis_and_below_0_is_drawn(draw):
    values = np.full(960, -7.0)
    values[:2] = np.nan
    drawing = draw(maps=make_responses(960).maps | {"reliability": values}).histogram
    assert "958 voxels: median -7.00" in drawing.alt
    assert "median −7.00" in read_texts(drawing.file)
    assert draw(maps=make_responses(960).maps | {"reliability": np.full(960, np.nan)}).histogram is None


def test_unknown_reliability_is_left_out_where_one_was_asked_for():
    maps = {"reliability": np.array([0.1, 0.2, 0.3, np.nan])}
    np.testing.assert_array_equal(
        find_left_out(ResponseReport("lss", maps=maps, min_reliability=0.2)), [True, False, False, True]
    )
    assert not find_left_out(ResponseReport("lss", maps=maps)).any()


def test_ceilings_of_regions_are_of_the_voxels_analysed():
    maps = {
        "noiseceiling": np.array([0.1, 0.5, 0.9, 0.3, np.nan]),
        "reliability": np.array([0.1, 0.5, 0.9, 0.5, 0.5]),
    }
    regions = {"V1": np.array([1, 1, 1, 0, 1], bool), "out": np.array([0, 0, 0, 0, 1], bool)}
    every = find_ceilings(ResponseReport("lss", maps=maps, regions=regions))
    assert list(every) == ["V1"]
    np.testing.assert_allclose(every["V1"], [0.3, 0.5, 0.7])
    fewer = find_ceilings(ResponseReport("lss", maps=maps, regions=regions, min_reliability=0.4))
    np.testing.assert_allclose(fewer["V1"], [0.6, 0.7, 0.8])
    assert find_ceilings(ResponseReport("lss", regions=regions)) == {}


def test_regions_are_drawn_the_best_first(draw):
    index = np.arange(960)
    drawing = draw(regions={"worse": index >= 96, "better": index < 96, "$\\frac{<b>": index < 200}).regions
    assert "Median noise ceiling by region: better 0.80, " in drawing.alt
    texts = read_texts(drawing.file)
    assert {"better", "worse", "$\\frac{<b>", "Highest r", "0.4"} <= set(texts)
    assert draw(regions={"nowhere": np.zeros(960, bool)}).regions is None


def test_hrfs_are_ordered_by_their_peak_and_shown_where_there_are_responses(draw):
    hrf = np.tile([1.0, 2.0, 3.0, 3.0], 240)
    hrf[0] = np.nan
    page = draw(model="glmsingle", maps=make_responses(960).maps | {"hrf": hrf}, library=LIBRARY)
    assert page.hrf.legend.choices == ("3.0 s", "Glover (5.0 s)", "7.0 s")
    assert page.hrf.n_shown == 95
    np.testing.assert_allclose(page.hrf.legend.shares, 100 * np.array([24, 23, 48]) / 95)
    without = draw(model="glmsingle", maps={"hrf": hrf}, library=LIBRARY, counts=np.ones(12, int))
    assert without.hrf.n_shown == 959
    assert without.ceiling is None


def test_fraction_of_the_ridge_is_told_where_there_are_responses(draw):
    fraction = np.where(np.arange(960) < 96, 0.4, 0.05)
    page = draw(model="glmsingle", maps=make_responses(960).maps | {"fraction": fraction})
    assert dict(page.tiles)["Median ridge fraction there"] == "0.40"


def test_page_shows_ceilings_and_says_what_they_are(render):
    regions = {"V1": np.arange(960) < 50, "VTC": np.arange(960) < 96}
    rendered, text = render(changes={"regions": regions, "min_reliability": 0.3}, networks=True)
    assert 'href="#u0-responses">Responses' in rendered.html
    assert "Share of the variance of averaged responses" in text
    assert "10.0 % of 960 voxels are coloured" in text
    assert "highest r" in text
    assert "0.894" in text  # the root of 0.8
    assert "it is not reliable enough" in text
    assert "864 of 960 voxels were left out" in text
    figures = {name.removeprefix("sub-01_task-objects_space-MNI152NLin2009cAsym_") for name in rendered.figures}
    assert {"stat-noiseceiling_desc-lss.png", "desc-lssreliability.svg", "desc-lssnoiseceilingbyregion.svg"} <= figures


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("lss", "Too few stimuli have two or more trials: there is no noise ceiling, and none is made up."),
        ("condition", "Nothing repeats in that, so no noise ceiling is known"),
        ("timeseries", "the features of the stimuli predict the volumes themselves"),
    ],
)
@pytest.mark.parametrize("maps", [{}, {"noiseceiling": np.full(960, np.nan), "ncsnr": np.full(960, np.nan)}])
def test_no_ceiling_is_made_up(render, model, said, maps):
    rendered, text = render(model, {"maps": maps, "counts": np.ones(12, dtype=int)})
    assert said in text
    assert "highest r" not in text
    assert "Share of the variance" not in text
    assert not [name for name in rendered.figures if "noiseceiling" in name or "reliability" in name]


def test_volumes_are_not_called_responses(render):
    text = render("timeseries", {"maps": {}}, networks=True)[1].partition("ready to paste")[0]
    assert "predicted and measured held-out volumes" in text
    assert "held-out stimuli" not in text  # as test_participant finds it elsewhere


def test_runs_of_responses_estimated_before_have_no_volumes(render):
    rendered, text = render("precomputed", runs=(RunRow("ses-1_run-2", 42),))
    assert "ses-1_run-2 42" in text
    assert "had been estimated before" in text
    assert "TR (s)" not in text
    assert "None" not in text
    assert 'id="u0-design"' not in rendered.html


def test_maps_of_another_space_are_refused(make, rng):
    space = make.volume_space()
    with pytest.raises(BadDataError, match=r"map ncsnr of shape \(7,\) in a space of 960"):
        make.unit(space, np.zeros(960, int), rng, responses=ResponseReport("lss", maps={"ncsnr": np.zeros(7)}))
