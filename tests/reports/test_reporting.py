from pathlib import Path

import numpy as np
import pytest

from dnnbrain_app.derivatives import names
from dnnbrain_app.derivatives.tables import write_design
from dnnbrain_app.records import Run, Trials, Unit
from dnnbrain_app.reporting import count_trials, has_frequent, name_library, read_design, warn_about
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
