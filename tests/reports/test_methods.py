import dataclasses
import re

import pytest

from dnnbrain_app.analyses.options import RsaOptions
from dnnbrain_app.reports.analysis_methods import _COMPARISONS
from dnnbrain_app.reports.facts import DecodingFacts, MethodsFacts, NetworkFacts, RsaFacts, SearchlightFacts
from dnnbrain_app.reports.methods import describe_methods, write_methods
from dnnbrain_app.reports.references import NETWORK_REFERENCES, REFERENCES, find_network_reference
from dnnbrain_app.reports.wording import COMPARISONS, DISTANCES

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


MODELS = {  # what is said, and what is not
    "lss": (
        """separately for each trial (Mumford | one regressor for it and one for all other trials of its run.
        | a voxel and run | were averaged""",
        "Turner et al. | Prince",
    ),
    "lsa": ("one model a run with a regressor for each trial (Mumford | a voxel and run | were averaged", "separately"),
    "glmsingle": (
        """ideas of GLMsingle (Prince | (Handwerker | most likely | (Kay et al., 2013) | (Rokem & Kay
        | one coefficient a run | The first function of the library was Glover's | were averaged""",
        "Mumford",
    ),
    "condition": ("one regressor for each stimulus | one coefficient a voxel,", "were averaged | Mumford"),
    "timeseries": (
        """predicted the volumes themselves (Nishimoto | Features were convolved with Glover | shifted in time
        | taken from data and convolved features: a constant | The data were expressed in percent | held-out runs
        | convolved activations | predicted and measured volumes""",
        "autoregressive | whitened | were averaged | permuted stimuli | held-out stimuli",
    ),
    "precomputed": (
        "had been estimated before | were averaged",
        "nuisance | Glover | autoregressive | percent of | CompCor | Friston",
    ),
}


def split_phrases(text: str) -> list[str]:
    return [phrase.strip() for phrase in text.split("|") if phrase.strip()]


@pytest.mark.parametrize("model", MODELS)
def test_each_model_is_told_as_it_is(make, model):
    facts = make.facts()
    text = write_methods(dataclasses.replace(facts, responses=dataclasses.replace(facts.responses, model=model)))
    told, gone = map(split_phrases, MODELS[model])
    for said in told:
        assert said in text
    for word in gone:
        assert word not in text


OPTIONS = [
    ({"hrf": "fir", "model": "timeseries", "fir_length": 12.0}, "delays of 0 to 12 s, one a volume", "Glover"),
    (
        {"hrf": "spm + derivative", "model": "lsa"},
        "function of SPM | derivatives to latency (Friston et al., 1998)",
        "width",
    ),
    ({"hrf": "glover + derivative + dispersion", "model": "condition"}, "to latency and width (Friston", "SPM"),
    ({"fd_threshold": 0.5}, "a framewise displacement above 0.5 mm (Power et al., 2012)", ""),
    ({}, "", "framewise | Power | reliability | noise ceiling | Spearman, 1910 | derivatives"),
    ({"noise_model": "ols"}, "Noise was taken as white.", "autoregressive"),
    ({"min_reliability": 0.2}, "a reliability below 0.2 were left out of all analyses", "noise ceiling"),
    (
        {"has_ceiling": True},
        "noise ceiling of each voxel | Allen et al., 2022; Lage-Castellanos | (Spearman, 1910; Brown, 1910)",
        "left out",
    ),
    ({"has_frequent": True}, "many trials in the run, which had one each (Turner et al., 2012; Abdulrahman", ""),
    (
        {"model": "glmsingle", "is_regularised": False},
        "need stimuli that are shown in two runs, and were left out | separately for each trial",
        "Rokem | GLMdenoise",
    ),
]


@pytest.mark.parametrize(("changes", "told", "gone"), OPTIONS)
def test_each_option_is_told_and_only_where_it_was_taken(make, changes, told, gone):
    facts = make.facts()
    text = write_methods(dataclasses.replace(facts, responses=dataclasses.replace(facts.responses, **changes)))
    for said in split_phrases(told):
        assert said in text
    for word in split_phrases(gone):
        assert word not in text


ENCODING = [
    (
        {},
        "50000 voxels with permuted stimuli | p values of each layer's scores | (Benjamini & Hochberg, 1995)",
        "family-wise | Nichols | noise ceiling | halves | half of the folds | bootstrap",
    ),
    (
        {"n_permutations": 100},
        "family-wise error rate | highest of all voxels in 100 permutations | (Nichols & Holmes, 2002)",
        "noise ceiling",
    ),
    ({"ceiling_floor": 0.05}, "divided by the noise ceiling, correlations by its root, in voxels where it is 0.05", ""),
    ({"n_bootstrap": 1000}, "in each half of the folds | 1000 bootstrap samples of the folds | weighted by", ""),
]


@pytest.mark.parametrize(("changes", "told", "gone"), ENCODING)
def test_inference_of_encoding_is_told_as_far_as_it_was_done(make, changes, told, gone):
    facts = dataclasses.replace(make.facts(), rsa=None)
    text = write_methods(
        dataclasses.replace(facts, encoding=dataclasses.replace(facts.encoding, n_null=50_000, **changes))
    )
    for said in split_phrases(told):
        assert said in text
    for word in split_phrases(gone):
        assert word not in text


def test_family_wise_error_of_time_series_is_that_of_shifts(make):
    facts = make.facts()
    responses = dataclasses.replace(facts.responses, model="timeseries")
    encoding = dataclasses.replace(facts.encoding, n_permutations=20)
    text = write_methods(dataclasses.replace(facts, responses=responses, encoding=encoding, rsa=None))
    assert "20 such shifts that all voxels had in common" in text
    assert "permut" not in text.split("## References")[0]


SHRUNK = "shrunk towards its diagonal (Schäfer & Strimmer, 2005)"
RSA = [
    (
        RsaFacts(("pearson",)),
        "of regions and layers were computed with the correlation distance",
        "crossnobis | Schäfer | permutations | bootstrap | Schütt | Benjamini | Nichols",
    ),
    (
        RsaFacts(("whitened-cosine",), ("crossnobis",), tested=("whitened-cosine",)),
        f"""the crossnobis distance (Walther et al., 2016) | {SHRUNK} | the whitened cosine (Diedrichsen et al., 2021)
        | RDMs of layers, with the correlation distance""",
        "permutations | bootstrap | where each stimulus",
    ),
    (RsaFacts(("cosine",), ("mahalanobis",), "cosine"), f"squared Mahalanobis | {SHRUNK} | by the cosine", "Walther"),
    (RsaFacts(("cka",), ("cosine",), "cosine"), "(Kornblith et al., 2019; Song et al., 2012)", "Schäfer"),
    (
        RsaFacts(("rho-a", "whitened-cosine"), ("crossnobis", "correlation"), tested=("whitened-cosine", "rho-a")),
        "(Walther et al., 2016) where each stimulus was in two runs, else the correlation distance, between",
        "whichever",
    ),
    (
        RsaFacts(
            ("rho-a", "whitened-cosine"),
            ("crossnobis", "correlation"),
            tested=("whitened-cosine", "rho-a"),
            n_permutations=500,
        ),
        "by the whitened cosine or the rank correlation rho-a, whichever suits the distances, were compared",
        "bootstrap",
    ),
    (
        RsaFacts(("pearson",), tested=("pearson",), n_permutations=1000),
        """similarities by Pearson's correlation were compared with those after 1000 permutations
        | maximum over layers of the standardised similarities (Nichols & Holmes, 2002)
        | over regions by the false discovery rate (Benjamini""",
        "bootstrap | Schütt",
    ),
    (
        RsaFacts(("pearson",), tested=("pearson",), n_bootstraps=200),
        """intervals of the similarities by Pearson's correlation come from 200 bootstrap samples of the stimuli
        (Schütt et al., 2023)""",
        "permutations | Nichols | Benjamini",
    ),
    (
        RsaFacts(("pearson",), tested=("pearson",), n_permutations=1000, n_bootstraps=200),
        "intervals of these similarities come from 200",
        "",
    ),
]


@pytest.mark.parametrize(("rsa", "told", "gone"), RSA)
def test_rsa_is_told_as_it_was_done(make, rsa, told, gone):
    text = write_methods(dataclasses.replace(make.facts(), encoding=None, rsa=rsa))
    for said in split_phrases(told):
        assert " ".join(said.split()) in text
    for word in split_phrases(gone):
        assert word not in text


def test_every_measure_of_the_settings_has_words(make):
    fields = {field.name: field.metadata for field in dataclasses.fields(RsaOptions)}
    assert set(fields["comparisons"]["choices"]) == set(_COMPARISONS) == set(COMPARISONS)
    assert set(fields["metric"]["choices"]) - {"auto"} == set(DISTANCES)
    for metric in DISTANCES:
        assert "Representational" in write_methods(
            dataclasses.replace(make.facts(), rsa=RsaFacts(("cka",), (metric,), "sqeuclidean"))
        )


def test_a_single_run_is_divided_into_parts(make):
    facts = make.facts()
    responses = dataclasses.replace(facts.responses, model="timeseries")
    text = write_methods(dataclasses.replace(facts, responses=responses, n_runs=1))
    assert "held-out parts of the run in 10-fold cross-validation; the 20 s between two parts were left out" in text


def test_choice_of_trials_is_told(make):
    text = write_methods(dataclasses.replace(make.facts(), trial_filter="trial_type == 'exp'"))
    assert "Of the events, those with \"trial\\_type == 'exp'\" were trials." in text
    assert "Of the events" not in write_methods(make.facts())


@pytest.mark.parametrize(
    ("network", "model", "told"),
    [
        (NetworkFacts("alexnet", frame_rate=2.0), "lss", "2 frames a second, each the one on the screen in the middle"),
        (NetworkFacts("alexnet", frame_rate=2.0), "lss", "by a video were averaged over frames, weighted"),
        (NetworkFacts("alexnet", frame_rate=0.5), "timeseries", "each frame was a stimulus, shown at its own time"),
        (NetworkFacts("r3d_18", clip_frames=16), "lss", "Of each video it saw 16 frames, evenly spaced in time."),
    ],
)
def test_frames_of_videos_are_told(make, network, model, told):
    facts = make.facts()
    responses = dataclasses.replace(facts.responses, model=model)
    assert told in write_methods(dataclasses.replace(facts, networks=(network,), responses=responses))
    assert "video" not in write_methods(facts)


def test_almost_nothing_known_is_still_a_text():
    text = write_methods(MethodsFacts("0.1.0"))
    assert "dnnbrain 0.1.0" in text
    assert "None" not in text
    assert "  " not in text
    assert {r.short for r in describe_methods(MethodsFacts("0.1.0")).references} == {
        "Chen et al., 2020", "Gorgolewski et al., 2016", "Gorgolewski et al., 2017",
    }  # fmt: skip


@pytest.mark.parametrize("model", [*MODELS, "alone"])
def test_every_citation_is_listed_and_everything_listed_is_cited(make, model):
    facts, every = make.facts(), {"has_ceiling": True, "has_frequent": True, "fd_threshold": 0.5}
    changes = {"model": "glmsingle", "is_regularised": False} if model == "alone" else {"model": model}
    methods = describe_methods(
        dataclasses.replace(
            facts,
            responses=dataclasses.replace(facts.responses, **changes, **every),
            encoding=dataclasses.replace(facts.encoding, n_permutations=1000, ceiling_floor=0.05, n_bootstrap=1000),
            rsa=RsaFacts(
                tuple(_COMPARISONS), ("crossnobis", "correlation"), "correlation", ("rho-a", "cka"), 1000, 1000
            ),
        )
    )
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
    places = r"doi\.org/10\.\d{4,5}/\S+|arxiv\.org/abs/\d{4}\.\d{4,5}|jmlr\.org/papers/v\d+/\w+\.html"
    assert re.fullmatch(rf"https://({places})", work.link)
    assert work.full.endswith(".")
    year = re.search(r"\d{4}$", work.short)
    assert year is None or f"({year[0]})" in work.full


def test_markdown_in_names_is_text(make):
    text = write_methods(dataclasses.replace(make.facts(), tasks=("<script>", "a*b*_c_[x](http://y)")))
    assert "\\<script\\>" in text
    assert "a\\*b\\*\\_c\\_\\[x\\](http://y)" in text


def test_searchlights_and_decoding_are_told():
    facts = MethodsFacts(
        "1.0",
        searchlight=SearchlightFacts(8.0, "cka", 500),
        decoding=DecodingFacts(("animate", "category"), "svc", "ridge", 10, 200),
    )
    text = write_methods(facts)
    for part in ("within 8 mm", "500 permutations of the stimuli", "Kriegeskorte", "linear support vector machines"):
        assert part in text
    assert "attribute animate and attribute category of the stimuli were predicted" in text
    assert "searchlight" not in write_methods(MethodsFacts("1.0")).lower()
