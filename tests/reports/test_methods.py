import dataclasses
import re

import pytest

from dnnbrain_app.reports.facts import MethodsFacts, NetworkFacts, RsaFacts
from dnnbrain_app.reports.methods import describe_methods, write_methods
from dnnbrain_app.reports.references import NETWORK_REFERENCES, REFERENCES, find_network_reference

WORKS = [*REFERENCES.values(), *NETWORK_REFERENCES.values()]


def test_everything_passed_is_said(make):
    text = write_methods(make.facts())
    told = """dnnbrain 9.8.7 | fMRIPrep 25.1.0 | task objects | 4 runs, 368 trials and 92 distinct stimuli | alexnet
        | IMAGENET1K\\_V1 | 6 layers | resized to 224 pixels | separately for each trial | 24 motion regressors
        | first 5 anatomical CompCor | 128 s and longer | motion-outlier volume | percent of the voxel | 10-fold
        | 21 values | 1e-5 to 1e5 | false discovery rate of 0.05 | permuted stimuli | rho-a | VTC (V8+FFC) | numpy 2.4.0
        | seeded with 77 | WU-Minn"""
    for said in told.split("|"):
        assert said.strip() in text


@pytest.mark.parametrize(
    ("changes", "gone"),
    [
        ({"rsa": None}, ["RDM", "Kriegeskorte", "rho-a", "Schütt"]),
        ({"encoding": None}, ["ridge", "Golub", "Benjamini", "fold"]),
        ({"responses": None}, ["Mumford", "Glover", "CompCor", "Friston", "percent of"]),
        ({"atlas": "", "surfaces": ()}, ["Glasser", "WU-Minn", "V8+FFC"]),
        ({"atlas": "aparc", "surfaces": ("fsaverage5",)}, ["Glasser", "WU-Minn"]),
        ({"fmriprep": None}, ["fMRIPrep", "Esteban"]),
        ({"networks": ()}, ["alexnet", "Krizhevsky", "Marcel"]),
        ({"seed": None}, ["seeded"]),
        ({"software": {}}, ["Abraham", "numpy"]),
        ({"rsa": RsaFacts(("pearson",))}, ["rho-a", "Spearman", "Schütt"]),
    ],
)
def test_nothing_is_said_that_was_not_done(make, changes, gone):
    everything = write_methods(make.facts())
    text = write_methods(dataclasses.replace(make.facts(), **changes))
    for word in gone:
        assert word not in text
    assert sum(word in everything for word in gone) >= len(gone) - 1  # else the test could not fail


def test_condition_model_without_options_says_so_little(make):
    responses = dataclasses.replace(
        make.facts().responses,
        model="condition",
        hrf="spm",
        motion=0,
        compcor=0,
        spikes=False,
        scaling="none",
        drifts_from_confounds=None,
    )
    text = write_methods(dataclasses.replace(make.facts(), responses=responses))
    assert "one regressor for each stimulus" in text
    assert "haemodynamic response function of SPM" in text
    assert "The nuisance regressors were a constant for each run." in text
    for word in ("Mumford", "Glover", "motion", "CompCor", "drifts", "percent"):
        assert word not in text


def test_almost_nothing_known_is_still_a_text():
    text = write_methods(MethodsFacts("0.1.0"))
    assert "dnnbrain 0.1.0" in text
    assert "None" not in text
    assert "  " not in text
    assert {r.short for r in describe_methods(MethodsFacts("0.1.0")).references} == {
        "Chen et al., 2020", "Gorgolewski et al., 2016", "Gorgolewski et al., 2017",
    }  # fmt: skip


def test_every_citation_is_listed_and_everything_listed_is_cited(make):
    methods = describe_methods(make.facts())
    text = " ".join(paragraph for _, paragraph in methods.paragraphs)
    cited = {work for group in re.findall(r"\(([^()]*\d{4}[^()]*|Brett et al\.)\)", text) for work in group.split("; ")}
    cited -= {"Principal Investigators: David Van Essen and Kamil Ugurbil", "1U54MH091657"}  # of the acknowledgment
    assert {reference.short for reference in methods.references} == cited


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("alexnet", "Krizhevsky, 2014"),
        ("efficientnet_lite0", "Tan & Le, 2019"),
        ("efficientnet_v2_s", "Tan & Le, 2021"),
        ("VGG16", "Simonyan & Zisserman, 2015"),
        ("resnet50", "He et al., 2016"),
    ],
)
def test_networks_are_cited_by_name(name, short):
    assert find_network_reference(name).short == short
    assert f"shown to {name} ({short})".replace("_", "\\_") in write_methods(
        MethodsFacts("1", networks=(NetworkFacts(name),))
    )


def test_network_of_ones_own_is_not_cited():
    assert find_network_reference("mymodule:build") is None
    assert "(," not in write_methods(MethodsFacts("1", networks=(NetworkFacts("mymodule:build"),)))


@pytest.mark.parametrize("work", WORKS, ids=lambda work: work.short)
def test_references_are_complete(work):
    assert re.fullmatch(r"https://(doi\.org/10\.\d{4,5}/\S+|arxiv\.org/abs/\d{4}\.\d{4,5})", work.link)
    assert work.full.endswith(".")
    year = re.search(r"\d{4}$", work.short)
    assert year is None or f"({year[0]})" in work.full


def test_markdown_in_names_is_text(make):
    text = write_methods(dataclasses.replace(make.facts(), tasks=("<script>", "a*b*_c_[x](http://y)")))
    assert "\\<script\\>" in text
    assert "a\\*b\\*\\_c\\_\\[x\\](http://y)" in text
