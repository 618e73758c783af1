import dataclasses
import re
import shutil
import tempfile
from html.parser import HTMLParser

import numpy as np
import pytest

from dnnbrain_app.errors import BadDataError
from dnnbrain_app.reports.contents import ResponseReport
from dnnbrain_app.reports.facts import MethodsFacts
from dnnbrain_app.reports.participant import ParticipantReport, render_participant

VOID = {"meta", "link", "img", "br", "hr", "input", "rect", "path", "use"}


class Page(HTMLParser):
    """Elements, ids and text of a page; refuses elements that are closed in the wrong order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.text += data


@pytest.fixture
def html(rendered) -> str:
    return rendered.html


def test_page_has_every_section_and_the_navigation_leads_there(html):
    page = Page(html)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [
        attributes["href"][1:] for tag, attributes in page.elements if tag == "a" and attributes["href"].startswith("#")
    ]
    sections = [
        "summary",
        "u0-data",
        "u0-profiles",
        "u0-maps",
        "u0-rdms",
        "u0-design",
        "methods",
        "errors",
        "provenance",
    ]
    assert list(dict.fromkeys(links)) == sections
    assert set(sections) <= set(ids)


def test_summary_says_what_was_found(html):
    text = " ".join(Page(html).text.split())
    assert (
        "Of the 6 layers of alexnet, V1 is best explained by blocks.1 (r = 0.30) and VTC by blocks.5 (r = 0.30)."
        in text
    )
    assert "0.300" in text
    assert "predicted and measured responses to held-out stimuli" in text
    for said in ("task-objects_run-01", "0.123", "dnnbrain /data /out participant", "seed = 1", "No errors", "2 min"):
        assert said in text


def test_page_asks_for_nothing_outside(html):
    for tag, attributes in Page(html).elements:
        if tag != "a":
            for name in ("src", "href", "xlink:href", "srcset", "data", "action"):
                assert (attributes.get(name) or "#").startswith(("data:", "#")), (tag, attributes)
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)
    assert not any(tag in ("script", "iframe", "object", "embed", "base") for tag, _ in Page(html).elements)


def test_every_picture_is_described(html):
    page = Page(html)
    images = [attributes for tag, attributes in page.elements if tag == "img"]
    assert len(images) == 12
    assert all(len(image["alt"]) > 10 for image in images)
    described = [attributes for _, attributes in page.elements if attributes.get("role") == "img"]
    assert all(len(attributes["aria-label"]) > 5 for attributes in described)
    drawings = [attributes for tag, attributes in page.elements if tag == "svg"]
    assert all(attributes["aria-hidden"] == "true" for attributes in drawings)
    assert len(drawings) == 3 + 4 + 1  # profiles, RDMs, design


EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{ 7*7 }}$\\frac{"


def test_names_from_the_data_are_text_wherever_they_appear(make, rng):
    space = make.volume_space()
    best = np.ones(space.n_voxels, dtype=int)
    unit = make.unit(space, best, rng, regions=(EVIL, "V1"), warnings=(EVIL,))
    run = dataclasses.replace(unit.runs[0], label=EVIL, confounds=(EVIL,))
    design = dataclasses.replace(unit.design, run=EVIL, names=(EVIL, "b", "c"), note=EVIL)
    network = unit.networks[0]
    layers = (EVIL, *make.layers[1:])
    network = dataclasses.replace(
        network,
        network=EVIL,
        layers=layers,
        encoding=dataclasses.replace(network.encoding, network=EVIL, layers=layers, edge_fraction=1.0),
        rsa=dataclasses.replace(network.rsa, network=EVIL, layers=layers),
        layer_rdms=tuple(
            dataclasses.replace(rdm, name=name) for rdm, name in zip(network.layer_rdms, layers, strict=True)
        ),
    )
    n = space.n_voxels
    maps = {
        "noiseceiling": np.full(n, 0.8),
        "ncsnr": np.full(n, 2.0),
        "reliability": np.full(n, 0.5),
        "hrf": np.ones(n),
    }
    everywhere = {EVIL: np.ones(n, dtype=bool)}
    responses = ResponseReport(EVIL, np.full(12, 2), 1, maps, 0.1, library={EVIL: 5.0}, regions=everywhere)
    named = dataclasses.replace(unit.unit, task=EVIL, space=EVIL, entities={"sub": "../../" + EVIL})
    unit = dataclasses.replace(
        unit, unit=named, runs=(run,), design=design, networks=(network,), attributes={EVIL: np.array([EVIL, "b"] * 6)}
    )
    unit = dataclasses.replace(unit, responses=responses)
    facts = dataclasses.replace(make.facts(), tasks=(EVIL,), atlas=EVIL, regions={EVIL: EVIL}, software={EVIL: EVIL})
    provenance = dataclasses.replace(make.provenance(), command=EVIL, configuration=EVIL, versions={EVIL: EVIL})
    report = ParticipantReport(EVIL, (unit,), facts, EVIL, (EVIL,), provenance)
    rendered = render_participant(report)
    page = Page(rendered.html)
    assert not [tag for tag, _ in page.elements if tag == "script"]
    assert not [attributes for _, attributes in page.elements if "onerror" in attributes]
    assert all(attributes["src"].startswith("data:image/png") for tag, attributes in page.elements if tag == "img")
    assert page.text.count("<script>alert(1)") > 20
    assert "49" not in page.text.replace("491", "")
    for name, content in rendered.figures.items():
        assert re.fullmatch(r"[A-Za-z0-9_+-]+\.(svg|png)", name)
        assert b"<script" not in content


def test_figures_are_named_like_the_outputs_and_all_differ(rendered):
    figures = rendered.figures
    stem = "sub-01_task-objects_space-fsaverage5"
    assert sorted(figures) == sorted(
        f"{stem}_{name}"
        for name in (
            "desc-design.svg",
            "desc-rdmV1.svg",
            "desc-rdmVTC.svg",
            "model-alexnet_desc-encodingprofile.svg",
            "model-alexnet_desc-rdmV1best.svg",
            "model-alexnet_desc-rdmVTCbest.svg",
            "model-alexnet_desc-rsapearsonprofile.svg",
            "model-alexnet_desc-rsarhoaprofile.svg",
            "model-alexnet_stat-bestlayer.png",
            "model-alexnet_stat-r.png",
        )
    )
    assert len(set(figures.values())) == len(figures)


def test_same_input_same_bytes_and_no_date(report, rendered):
    again = render_participant(report)
    assert again.html == rendered.html
    assert again.figures == rendered.figures
    assert not re.search(r"20\d\d-\d\d-\d\dT", again.html)


def test_errors_are_shown_and_announced(report):
    html = render_participant(dataclasses.replace(report, units=(), errors=("the atlas is torn",))).html
    assert "the atlas is torn" in Page(html).text
    assert "1 part of this analysis failed" in Page(html).text
    assert "No errors" not in html


def test_warnings_of_edges_and_of_the_caller_come_first(make, rng):
    space = make.volume_space()
    best = np.zeros(space.n_voxels, dtype=int)
    network = make.network(best, rng)
    network = dataclasses.replace(network, rsa=None, encoding=dataclasses.replace(network.encoding, edge_fraction=0.5))
    told = ("only two repeats",)
    unit = make.unit(space, best, rng, warnings=told, networks=(network,), region_rdms=(), design=None)
    html = render_participant(ParticipantReport("01", (unit,), make.facts())).html
    assert "only two repeats" in html
    assert "no voxel is predicted significantly by any layer" in html
    assert "in 50 % of the fits" in html
    assert html.index("only two repeats") < html.index('id="u0-data"')


def test_little_is_enough_for_a_page(make, rng):
    nothing = ParticipantReport("07", (), MethodsFacts("0.1.0"), errors=("no events",))
    assert "Nothing was analysed." in Page(render_participant(nothing).html).text
    space = make.volume_space()
    bare = make.unit(
        space,
        np.zeros(space.n_voxels, dtype=int),
        rng,
        networks=(),
        region_rdms=(),
        design=None,
        attributes={},
        runs=(),
    )
    page = Page(render_participant(dataclasses.replace(nothing, units=(bare,))).html)
    assert not [
        attributes for _, attributes in page.elements if attributes.get("id") in ("u0-maps", "u0-rdms", "u0-design")
    ]


def test_many_regions_are_cut_to_those_that_agree_best(make, rng):
    space = make.volume_space()
    regions = tuple(f"area{i}" for i in range(9))
    network = dataclasses.replace(make.network(np.zeros(space.n_voxels, dtype=int), rng, regions), encoding=None)
    unit = make.unit(space, np.zeros(0), rng, regions=regions, networks=(network,), design=None)
    unit.networks[0].rsa.similarity["rho-a"][:, 0] = 0.9
    report = ParticipantReport("01", (unit,), make.facts())
    rendered = render_participant(report)
    drawn = {
        name for name in rendered.figures if re.search(r"sub-01_.*_desc-rdmarea\d\.svg", name) and "model" not in name
    }
    assert len(drawn) == 6
    assert any("area0" in name for name in drawn)
    assert "3 more regions are in the files" in rendered.html


def infer(network, tested: str, q: np.ndarray):
    """Add tests and intervals of a comparison to a network's RSA."""
    similarity = network.rsa.similarity[tested]
    inference = {"p": q / 2, "p_fwe": q, "q": q, "low": similarity - 0.1, "high": similarity + 0.1}
    return dataclasses.replace(network, rsa=dataclasses.replace(network.rsa, tested=tested, inference=inference))


def render_tested(make, rng, q: np.ndarray, **changes) -> Page:
    space = make.volume_space()
    network = infer(make.network(np.zeros(space.n_voxels, dtype=int), rng), "pearson", q)
    network = dataclasses.replace(network, **changes)
    unit = make.unit(space, np.zeros(0), rng, networks=(network,), design=None)
    html = render_participant(ParticipantReport("01", (unit,), make.facts())).html
    page = Page(html)
    page.text = " ".join(page.text.split())
    return page


def test_best_layers_that_are_not_significant_are_marked(make, rng):
    q = np.full((len(make.layers), 2), 0.01)
    q[5, 1] = 0.051  # VTC is most like blocks.5
    q[0, 0] = 0.9  # not the best layer of V1
    page = render_tested(make, rng, q)
    assert sum(attributes.get("class") == "ns" for _, attributes in page.elements) == 1
    assert "blocks.5 n.s.0.350" in page.text
    assert "Similarities of dissimilarity matrices (Pearson r) were tested" in page.text
    assert "n.s. marks those that are not significant at a false discovery rate of 5 % over regions" in page.text


def test_summary_tells_the_tested_comparison(make, rng, html):
    page = render_tested(make, rng, np.full((len(make.layers), 2), 0.05))
    assert "n.s." not in page.text
    assert "all are significant at a false discovery rate" in page.text
    assert "0.350" in page.text  # Pearson's, though there is rho-a
    untested = Page(html).text
    assert "n.s." not in untested
    assert "were tested" not in untested


def test_what_is_not_significant_is_no_headline(make, rng):
    alone = {"encoding": None, "region_r": None, "regions": ()}
    q = np.full((len(make.layers), 2), 0.01)
    q[:, 1] = np.nan  # not known: no finding
    text = render_tested(make, rng, q, **alone).text
    assert "Of the 6 layers of alexnet, V1 is best explained by blocks.1 (Pearson r = 0.35)." in text
    text = render_tested(make, rng, q * np.nan, **alone).text
    assert "The geometry of no region resembles that of a layer of alexnet significantly." in text
    assert "is best explained" not in text


def test_dissimilarities_are_told_as_they_are(make, rng, html):
    assert "of two stimuli (1 − Pearson correlation of their patterns), shown" in " ".join(Page(html).text.split())
    space = make.volume_space()
    unit = make.unit(space, np.zeros(space.n_voxels, dtype=int), rng, design=None)
    crossed = tuple(dataclasses.replace(rdm, metric="crossnobis") for rdm in unit.region_rdms)
    unit = dataclasses.replace(unit, region_rdms=crossed)
    text = " ".join(Page(render_participant(ParticipantReport("01", (unit,), make.facts())).html).text.split())
    assert "(regions: crossnobis: squared Mahalanobis distance of their patterns, cross-validated over runs; " in text
    assert "layers: 1 − Pearson correlation of their patterns), shown" in text


def test_scores_of_another_space_are_refused(make, meshes, rng):
    with pytest.raises(BadDataError, match=r"scores of 10 voxels in a space of 6400"):
        make.unit(make.surface_space(meshes), np.zeros(10, dtype=int), rng)


@pytest.fixture(scope="module")
def browser():
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("no browser: chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with tempfile.TemporaryDirectory() as profile:
        for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", f"user-data-dir={profile}"):
            options.add_argument(f"--{flag}")
        chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
        yield chrome
        chrome.quit()


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_browser_shows_the_page_without_a_complaint(browser, html, tmp_path, width, scheme):
    page = tmp_path / "sub-01.html"
    page.write_text(html, encoding="utf-8")
    wanted = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", wanted)
    size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(page.as_uri())
    assert browser.get_log("browser") == []
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.execute_script("return [...document.images].every(i => i.naturalWidth > 0)")
    loaded = browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert [name for name in loaded if not name.startswith("data:")] == []
    colour = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", colour))) < 150) == (scheme == "dark")
