import dataclasses
from pathlib import Path

import numpy as np
import pytest

from dnnbrain_app.config import build_config
from dnnbrain_app.derivatives import names
from dnnbrain_app.derivatives.tables import write_design
from dnnbrain_app.records import Run, Trials, Unit
from dnnbrain_app.reporting import collect_facts, count_trials, has_frequent, name_library, read_design, warn_about
from dnnbrain_app.reports.contents import ResponseReport


def make_trials(stimulus: list[str], run: list[int] | None = None) -> Trials:
    n = len(stimulus)
    runs = np.array(run or [0] * n)
    labels = tuple(f"task-x_run-{i + 1}" for i in range(runs.max() + 1))
    return Trials(np.arange(n) * 4.0, np.ones(n), np.array(stimulus, dtype=object), runs, labels)


def make_responses(stimulus: list[str], model: str = "lss", **maps: list[float]) -> ResponseReport:
    counts = np.unique(stimulus, return_counts=True)[1]
    return ResponseReport(model, counts, maps={stat: np.array(values) for stat, values in maps.items()})


ONCE, TWICE = ["a", "b", "c", "d"], ["a", "b", "a", "b"]
NO_CEILING = "No noise ceiling can be known, nor which voxels are reliable, as {} two or more trials."


@pytest.mark.parametrize(
    ("stimulus", "model", "maps", "said"),
    [
        (ONCE, "lss", {}, [NO_CEILING.format("no stimulus has")]),
        (ONCE, "precomputed", {}, [NO_CEILING.format("no stimulus has")]),
        (["a", "b", "a"], "lsa", {}, [NO_CEILING.format("only 1 of 2 stimuli have")]),
        (TWICE, "lss", {"noiseceiling": [np.nan, np.nan]}, [NO_CEILING.format("only 2 of 2 stimuli have")]),
        (TWICE, "lss", {"noiseceiling": [0.0, 0.3]}, []),
        (ONCE, "condition", {}, []),  # the section says why
        (ONCE, "timeseries", {}, []),
        (TWICE, "glmsingle", {"noiseceiling": [0.1], "hrf": [1.0], "fraction": [0.5]}, []),
    ],
)
def test_a_reader_is_warned_where_nothing_repeats(stimulus, model, maps, said):
    trials = make_trials(stimulus)
    assert list(warn_about(trials, trials, make_responses(stimulus, model, **maps), with_rsa=False)) == said


def test_a_reader_is_warned_of_glmsingle_without_repeats_in_two_runs():
    trials = make_trials(TWICE)
    said = warn_about(trials, trials, make_responses(TWICE, "glmsingle", noiseceiling=[0.2], hrf=[3.0]), with_rsa=False)
    assert len(said) == 1
    assert "its responses are those of lss" in said[0]


def test_a_reader_is_warned_of_blurred_geometry():
    trials = make_trials(TWICE)
    for model, expected in (("lss", True), ("glmsingle", False)):
        responses = make_responses(TWICE, model, noiseceiling=[0.2], fraction=[0.5])
        said = warn_about(trials, trials, responses, with_rsa=True)
        assert any("keep the geometry better" in text for text in said) == expected


def test_a_reader_is_warned_of_stimuli_without_a_response():
    shown, kept = make_trials([*TWICE, "lost"]), make_trials(TWICE)
    said = warn_about(shown, kept, make_responses(TWICE, noiseceiling=[0.2]), with_rsa=False)
    assert said == ("Left out: 1 stimulus, none of whose trials could be estimated.",)


def test_trials_are_counted_by_run():
    rows = count_trials(make_trials(ONCE, [1, 0, 1, 1]))
    assert [(row.label, row.n_trials, row.n_volumes) for row in rows] == [
        ("task-x_run-1", 1, None),
        ("task-x_run-2", 3, None),
    ]


@pytest.mark.parametrize(("n", "expected"), [(7, False), (8, True)])
def test_stimuli_are_frequent_within_a_run_only(n, expected):
    assert has_frequent(make_trials(["a"] * n + ["b"])) == expected
    assert not has_frequent(make_trials(["a"] * 7 + ["a"] * 7, [0] * 7 + [1] * 7))


@pytest.mark.parametrize("hrf", ["glover", "spm"])
def test_library_is_named_by_the_time_of_each_peak(hrf):
    library = name_library(hrf)
    (assumed, peak), *others = library.items()
    assert assumed.lower().startswith(hrf)
    assert 4.5 < peak < 6
    assert [round(peak, 1) for _, peak in others] == [3.0, 3.5, 4.0, 4.5, 5.0, 5.5, 6.0, 6.5, 7.0]
    assert others[0][0] == "3.0 s"


@pytest.mark.parametrize(
    ("model", "titles", "derived", "shown"),
    [
        ("lss", ["a @ 0 s", "b @ 4 s"], [], ["a @ 0 s", "b @ 4 s", "all trials"]),
        ("lsa", ["a @ 0 s", "b"], ["a, derivative", "b, derivative"], ["a @ 0 s", "b", "all trials"]),
        ("timeseries", ["all stimuli"], [], ["all stimuli"]),
        ("timeseries", ["all, 0 volumes", "all, 1 volume"], [], ["all, 0 volumes", "all, 1 volume"]),
        ("lss", [], [], ["all trials"]),
        ("lss", [f"{i} @ {i} s" for i in range(20)], [], [*(f"{i} @ {i} s" for i in range(12)), "all trials"]),
    ],
)
def test_design_is_read_back_whatever_the_model(tmp_path: Path, rng, model, titles, derived, shown):
    run = Run({"sub": "01", "task": "x", "run": "1"}, (), tmp_path / "events.tsv", None, None, 2.0, 0.0, 10)
    nuisance = ["constant", "trans_x"]
    columns = {title: rng.normal(size=10) for title in [*titles, *derived, *nuisance]}
    write_design(names.design_table(tmp_path, run), np.arange(10) * 2.0, columns, {"Nuisance": nuisance})
    trials = make_trials([*titles, "other"], [0] * len(titles) + [1])
    design = read_design(Unit("01", "x", "fsLR", {}, (run,)), trials, model, tmp_path)
    assert list(design.names) == [*shown, *nuisance]
    expected = columns | {"all trials": sum((columns[title] for title in titles), np.zeros(10))}
    np.testing.assert_allclose(design.matrix, np.column_stack([expected[name] for name in design.names]), atol=1e-5)
    few = f"the first {min(len(titles), 12)} of {len(titles)} trials, "
    assert design.note.startswith(few) == (model != "timeseries")


def make_config(tmp_path: Path, **sections: dict):
    options = {"networks": {"names": ["alexnet"]}, "run": {"analyses": ["encoding", "rsa"]}}
    return build_config(tmp_path, tmp_path / "out", "participant", options | sections)


def make_page(
    make, rng, *, metric: str = "correlation", inference: tuple[str, ...] = (), further: tuple[str, ...] = ()
):
    space = make.volume_space()
    unit = make.unit(space, np.zeros(space.n_voxels, dtype=int), rng)
    network = unit.networks[0]
    known = dict.fromkeys(inference, network.rsa.similarity["rho-a"])
    rsa = dataclasses.replace(network.rsa, tested="rho-a", inference=known)
    rdms = tuple(dataclasses.replace(rdm, metric=metric) for rdm in unit.region_rdms)
    network = dataclasses.replace(network, rsa=rsa, further=further)
    return dataclasses.replace(unit, networks=(network,), region_rdms=rdms)


AUTO = {"metric": "auto", "comparisons": ["rho-a", "whitened-cosine"]}


@pytest.mark.parametrize(
    ("model", "found", "metrics", "tested"),
    [
        ("lss", (), ("crossnobis", "correlation"), ("whitened-cosine", "rho-a")),  # not known yet
        ("condition", (), ("correlation",), ("rho-a",)),
        ("lss", ("crossnobis",), ("crossnobis",), ("whitened-cosine",)),
        ("lss", ("correlation",), ("correlation",), ("rho-a",)),
        ("lss", ("correlation", "crossnobis"), ("crossnobis", "correlation"), ("whitened-cosine", "rho-a")),
    ],
)
def test_distances_are_those_that_were_chosen(tmp_path, make, rng, model, found, metrics, tested):
    config = make_config(tmp_path, rsa=AUTO, responses={"model": model})
    pages = [make_page(make, rng, metric=metric) for metric in found]
    rsa = collect_facts(config, (), pages).rsa
    assert rsa.metrics == metrics
    assert rsa.tested == tested


def test_only_what_was_computed_is_told(tmp_path, make, rng):
    config = make_config(tmp_path, rsa={"n_permutations": 300, "n_bootstraps": 70}, encoding={"n_permutations": 40})
    facts = collect_facts(config, (), ())  # what the settings imply
    assert (facts.rsa.n_permutations, facts.rsa.n_bootstraps, facts.encoding.n_permutations) == (300, 70, 40)
    assert (facts.encoding.ceiling_floor, facts.encoding.n_bootstrap) == (0, 0)
    facts = collect_facts(config, (), [make_page(make, rng)])
    assert (facts.rsa.n_permutations, facts.rsa.n_bootstraps, facts.encoding.n_permutations) == (0, 0, 0)
    every = make_page(make, rng, inference=("p", "low"), further=("p", "q", "pfwe", "rnorm", "confidence"))
    facts = collect_facts(config, (), [every])
    assert (facts.rsa.n_permutations, facts.rsa.n_bootstraps, facts.encoding.n_permutations) == (300, 70, 40)
    assert facts.encoding.ceiling_floor == config.encoding.ceiling_floor
    assert facts.encoding.n_bootstrap == config.encoding.n_bootstrap
