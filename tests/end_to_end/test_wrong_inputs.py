"""What a user can get wrong: one message that names the thing, and the exit code of its kind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FMRIPREP = Path("derivatives/fmriprep/sub-01/func")
STEM = "sub-01_task-objects_run-02"
BOLD = f"{STEM}_space-fsLR_den-91k_bold"


@pytest.fixture
def refuse(copied: Any, tmp_path: Path, run_dnnbrain: Callable[..., Any]) -> Callable[..., str]:
    """Run on the copy, expect this exit code and these words in the message, and no output of a result."""

    def run(code: int, *parts: str, bids: Path = copied.path, out: Path = tmp_path / "out", more: Any = ()) -> str:
        options = ["--participant-label", "01", *copied.options("fsLR"), "--work-dir", tmp_path / "work", *more]
        outcome = run_dnnbrain(bids, out, "participant", *options)
        assert outcome.code == code, outcome.err
        for part in parts:
            assert part in outcome.err
        assert "Traceback" not in outcome.err
        assert "unexpected" not in outcome.err
        assert not list(tmp_path.rglob("*_stat-r_*"))
        return outcome.err

    return run


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def edit_events(dataset: Any, old: str, new: str) -> None:
    for path in (dataset.path / "sub-01").rglob("*_events.tsv"):
        edit(path, old, new)


def test_bids_folder_too_high(copied: Any, refuse: Callable[..., str]) -> None:
    refuse(66, "no participants", f"Did you mean {copied.path}?", bids=copied.path.parent)


def test_bids_folder_too_low(copied: Any, refuse: Callable[..., str]) -> None:
    refuse(66, "no participants", f"Did you mean {copied.path}?", bids=copied.path / "sub-01")


def test_bids_folder_that_does_not_exist(copied: Any, refuse: Callable[..., str]) -> None:
    refuse(66, "rwa does not exist", bids=copied.path.with_name("rwa"))


def test_bids_folder_that_is_a_file(copied: Any, refuse: Callable[..., str]) -> None:
    refuse(66, "README is not a folder", bids=copied.path / "README")


def test_unknown_participant(refuse: Callable[..., str]) -> None:
    refuse(66, "'001'", "did you mean '01'?", "Valid: 01, 02", more=["--participant-label", "001"])


def test_no_derivatives(copied: Any, refuse: Callable[..., str]) -> None:
    (copied.path / "derivatives" / "fmriprep").rename(copied.path / "derivatives" / "spm")
    refuse(66, "no fMRIPrep derivatives", "spm", "--derivatives NAME=PATH")


def test_derivatives_that_are_not_there(tmp_path: Path, refuse: Callable[..., str]) -> None:
    refuse(66, "--derivatives", "nowhere", more=["--derivatives", tmp_path / "nowhere"])


def test_two_candidate_derivatives(copied: Any, refuse: Callable[..., str]) -> None:
    folder = copied.path / "derivatives"
    shutil.copytree(folder / "fmriprep", folder / "fmriprep-24.1")
    refuse(2, "2 candidates", f"--derivatives fmriprep-24.1={folder / 'fmriprep-24.1'}")


def test_participant_without_preprocessed_data(copied: Any, refuse: Callable[..., str]) -> None:
    shutil.rmtree(copied.path / "derivatives" / "fmriprep" / "sub-01")
    refuse(66, "no preprocessed BOLD", "01", "fmriprep")


def test_no_events(copied: Any, refuse: Callable[..., str]) -> None:
    for path in copied.path.rglob("*_events.tsv"):
        path.unlink()
    refuse(66, "no events", "events.tsv", str(copied.path))


def test_stimulus_missing(copied: Any, refuse: Callable[..., str]) -> None:
    (copied.path / "stimuli" / "texture1" / "place2.png").unlink()
    refuse(66, "1 of 24 stimuli are not in", "'texture1/place2.png'", "--stimuli-dir")


def test_stimuli_folder_missing(copied: Any, refuse: Callable[..., str]) -> None:
    (copied.path / "stimuli").rename(copied.path / "code")
    refuse(66, "folder of the stimuli", "--stimuli-dir")


@pytest.mark.parametrize("content", [b"", b"not an image at all"])
def test_stimulus_that_is_no_image(content: bytes, copied: Any, refuse: Callable[..., str]) -> None:
    (copied.path / "stimuli" / "texture1" / "place2.png").write_bytes(content)
    message = refuse(65, "1 of 24 stimuli are not readable images", "place2.png")
    assert ("the file is empty" in message) == (not content)


def test_stimulus_outside_its_folder(copied: Any, refuse: Callable[..., str]) -> None:
    shutil.copy(copied.path / "stimuli" / "texture1" / "place2.png", copied.path / "secret.png")
    edit_events(copied, "texture1/place2.png", "../secret.png")
    refuse(65, "1 of 24 stimuli", "refused", "'../secret.png' leads out of the folder")


def test_no_column_of_stimuli(copied: Any, refuse: Callable[..., str]) -> None:
    edit_events(copied, "stim_file", "image_file")
    refuse(65, "events.tsv", "no column stim_file, stim_id or stimulus_id", "likely: image_file", "--stim-column")


def test_one_stimulus_is_too_few(copied: Any, refuse: Callable[..., str]) -> None:
    for path in (copied.path / "sub-01").rglob("*_events.tsv"):
        path.write_text("onset\tduration\tstim_file\n6\t1\ttexture0/place0.png\n20\t1\ttexture0/place0.png\n")
    refuse(65, "the events of sub-01", "name only 'texture0/place0.png'", "at least two different stimuli")


def test_events_without_any_stimulus(copied: Any, refuse: Callable[..., str]) -> None:
    for path in (copied.path / "sub-01").rglob("*_events.tsv"):
        path.write_text("onset\tduration\tstim_file\n6\t1\tn/a\n")
    refuse(65, "no column stim_file, stim_id or stimulus_id that names stimuli in all runs")


def test_onset_that_is_no_number(copied: Any, refuse: Callable[..., str]) -> None:
    edit(copied.path / "sub-01" / "func" / f"{STEM}_events.tsv", "\n6\t", "\nsix\t")
    refuse(65, f"{STEM}_events.tsv", "row 1", "onset 'six' is not a number")


def test_space_that_is_not_there(refuse: Callable[..., str]) -> None:
    refuse(18, "--space T1w", "fsLR:den-91k", "MNI152NLin2009cAsym:res-2", more=["--space", "T1w"])


@pytest.mark.parametrize(("flag", "found"), [("--task-id", "objects"), ("--run-label", "01, 02")])
def test_filters_that_select_nothing(flag: str, found: str, refuse: Callable[..., str]) -> None:
    refuse(18, f"{flag} 7 selects nothing", found, more=[flag, "7"])


def test_atlas_of_another_space(copied: Any, tmp_path: Path, run_dnnbrain: Callable[..., Any]) -> None:
    options = [*copied.options("fsLR", atlas=False), "--atlas", copied.atlas("MNI152NLin2009cAsym")]
    outcome = run_dnnbrain(copied.path, tmp_path / "out", "participant", *options, "--work-dir", tmp_path / "work")
    assert outcome.code == 65
    parts = "no atlas is in the space of the data, fsLR", "atlas-demo_res-2", "12x10x8", "Surfaces are not resampled"
    for part in parts:
        assert part in outcome.err


def test_atlas_that_does_not_exist(tmp_path: Path, copied: Any, refuse: Callable[..., str]) -> None:
    copied.atlas("fsLR").unlink()
    refuse(66, copied.atlas("fsLR").name, "does not exist")


def test_unknown_label_in_a_region(refuse: Callable[..., str]) -> None:
    refuse(2, "unknown atlas label 'LATTE'", "did you mean 'LATE'?", "NOISE", more=["--roi", "IT=LATTE"])


def test_region_without_an_atlas(copied: Any, tmp_path: Path, run_dnnbrain: Callable[..., Any]) -> None:
    options = [*copied.options("fsLR", atlas=False), "--work-dir", tmp_path / "work"]
    outcome = run_dnnbrain(copied.path, tmp_path / "out", "participant", *options, "--roi", "LATE")
    assert outcome.code == 2
    assert "--roi LATE" in outcome.err
    assert "--atlas" in outcome.err


def test_rsa_without_an_atlas(copied: Any, tmp_path: Path, run_dnnbrain: Callable[..., Any]) -> None:
    options = [*copied.options("fsLR", atlas=False), "--work-dir", tmp_path / "work"]
    outcome = run_dnnbrain(copied.path, tmp_path / "out", "participant", *options, "--analysis", "rsa")
    assert outcome.code == 2
    assert "--analysis rsa" in outcome.err
    assert "--atlas" in outcome.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("keep", [0.5, 0.99, 0.0])
def test_bold_cut_off(keep: float, copied: Any, refuse: Callable[..., str]) -> None:
    path = copied.path / FMRIPREP / f"{BOLD}.dtseries.nii"
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    refuse(65, path.name, "the file is empty" if not keep else "cut off")


def test_bold_of_another_format(copied: Any, refuse: Callable[..., str]) -> None:
    path = copied.path / FMRIPREP / f"{BOLD}.dtseries.nii"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    refuse(65, path.name, "another format")


def test_repetition_times_that_disagree(copied: Any, refuse: Callable[..., str]) -> None:
    path = copied.path / FMRIPREP / f"{BOLD}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"RepetitionTime": 1.5}))
    refuse(65, f"{BOLD}.dtseries.nii", "1.5 s in the sidecar and 2 s in the header")


def test_output_not_writable(tmp_path: Path, refuse: Callable[..., str]) -> None:
    (tmp_path / "file").write_text("")
    refuse(73, "cannot write to", str(tmp_path / "file" / "out"), out=tmp_path / "file" / "out")


def test_work_not_writable(tmp_path: Path, refuse: Callable[..., str]) -> None:
    (tmp_path / "file").write_text("")
    refuse(73, "cannot write to", str(tmp_path / "file" / "work"), more=["--work-dir", tmp_path / "file" / "work"])


def test_output_equal_to_the_input(copied: Any, refuse: Callable[..., str]) -> None:
    refuse(2, "is the input dataset itself", "derivatives/dnnbrain", out=copied.path)


def test_output_among_the_raw_data(copied: Any, refuse: Callable[..., str]) -> None:
    refuse(2, "lies among the raw data", "derivatives/dnnbrain", out=copied.path / "sub-01" / "results")


def test_output_that_holds_the_input(copied: Any, refuse: Callable[..., str]) -> None:
    refuse(2, "holds the input dataset", "derivatives/dnnbrain", out=copied.path.parent)


def test_output_that_is_another_dataset(copied: Any, refuse: Callable[..., str]) -> None:
    refuse(2, "is another dataset", out=copied.path / "derivatives" / "fmriprep")


def test_work_inside_the_input(copied: Any, refuse: Callable[..., str]) -> None:
    refuse(2, "lies in the input dataset", "--work-dir", more=["--work-dir", copied.path / "work"])


def test_unknown_layer(refuse: Callable[..., str]) -> None:
    refuse(2, "unknown layer 'latte'", "did you mean 'late'?", "early, ", "middle, ", more=["--layers", "latte"])


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("alexnte", ["unknown network 'alexnte'", "did you mean 'alexnet'?", "module:callable"]),
        ("tiny_network:biuld", ["tiny_network:biuld", "biuld"]),
        ("tiny_netwrok:build", ["tiny_netwrok", "PYTHONPATH"]),
    ],
)
def test_unknown_network(name: str, parts: list[str], copied: Any, tmp_path: Path, run_dnnbrain: Any) -> None:
    outcome = run_dnnbrain(
        *(copied.path, tmp_path / "out", "participant", "--participant-label", "01", "--space", "fsLR"),
        *(f"--network={name}", "--work-dir", tmp_path / "work"),
    )
    assert outcome.code == 2
    for part in parts:
        assert part in outcome.err
    assert "Traceback" not in outcome.err
    assert "unexpected" not in outcome.err


def test_two_networks_of_one_label(refuse: Callable[..., str]) -> None:
    refuse(2, "'tiny_network:build' and 'tinynetwork:build'", more=["--network", "tinynetwork:build"])


def test_network_without_a_label(copied: Any, tmp_path: Path, run_dnnbrain: Callable[..., Any]) -> None:
    outcome = run_dnnbrain(copied.path, tmp_path / "out", "participant", "--network=---")
    assert outcome.code == 65
    assert "'---' has no letter or digit" in outcome.err


@pytest.mark.parametrize("flag", ["\N{EN DASH}-participant-label", "\N{EM DASH}participant-label"])
def test_typographic_dash(flag: str, refuse: Callable[..., str]) -> None:
    refuse(2, "typographic dash", "'--participant-label'", more=[flag, "01"])


@pytest.mark.parametrize(
    ("column", "code", "parts"),
    [("semester", 2, ["'semester'", "stimulus, run, session"]), ("run", 65, ["run"]), ("session", 65, ["session"])],
)
def test_folds_that_cannot_be(column: str, code: int, parts: list[str], refuse: Callable[..., str]) -> None:
    assert "fold" in refuse(code, *parts, more=["--folds-by", column])


def test_device_that_is_not_there(refuse: Callable[..., str]) -> None:
    refuse(2, "device 'cuda:9'", "auto or cpu", more=["--device", "cuda:9"])


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("{", ["filter.json", "JSON"]),
        ('{"bolt": {}}', ["'bolt'", "bold"]),
        ('{"bold": {"taks": "objects"}}', ["'taks'", "task"]),
    ],
)
def test_filter_file_that_is_wrong(content: str, parts: list[str], tmp_path: Path, refuse: Callable[..., str]) -> None:
    (tmp_path / "filter.json").write_text(content)
    refuse(2, *parts, more=["--bids-filter-file", tmp_path / "filter.json"])


def test_several_failures_are_one_participant_each(copied: Any, tmp_path: Path, run_dnnbrain: Any) -> None:
    """What all participants lack ends with the code of that failure, not with 1."""
    (copied.path / "stimuli" / "texture1" / "place2.png").unlink()
    options = [*copied.options("fsLR"), "--work-dir", tmp_path / "work"]
    outcome = run_dnnbrain(copied.path, tmp_path / "out", "participant", *options)
    assert outcome.code == 66
    assert outcome.err.count("failed: 1 of 24 stimuli") == 2
    assert "0 of 2 units complete" in outcome.err
