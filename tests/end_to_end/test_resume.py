"""What is done is not done again, what was broken off is continued, and the same input gives the same bytes."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

BOTH = ("fsLR", "MNI152NLin2009cAsym")
RESULTS = ("_statmap.", "_relmat.", "_design.")
KILLS = 6
WITHOUT_TORCH = """
import sys
from dnnbrain_app.cli import main
try:
    main(sys.argv[1:])
except SystemExit as stop:
    print("code", stop.code)
print([name for name in ("torch", "sklearn", "matplotlib", "nilearn") if name in sys.modules])
"""


def digest_results(output: Path) -> dict[str, str]:
    """SHA-256 of every map, table and matrix, and of their sidecars."""
    return {
        str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in output.rglob("*")
        if path.is_file() and any(mark in path.name for mark in RESULTS) and not path.name.startswith(".")
        if "figures" not in path.parts
    }


def stamp_files(output: Path) -> dict[str, int]:
    """Time of the last change of every file but the records of the calls and the locks."""
    return {
        str(path.relative_to(output)): path.stat().st_mtime_ns
        for path in output.rglob("*")
        if path.is_file() and path.suffix not in (".toml", ".lock")
    }


@pytest.fixture(scope="module")
def options(dataset: Any) -> list[str]:
    return [*dataset.options(*BOTH), "--participant-label", "01"]


@pytest.fixture(scope="module")
def volume(dataset: Any) -> list[str]:
    """The same for one of the two spaces, the one whose report is drawn faster."""
    atlases = [word for space in BOTH for word in ("--atlas", str(dataset.atlas(space)))]
    return [*dataset.options(BOTH[1], atlas=False), *atlases, "--participant-label", "01"]


@pytest.fixture(scope="module")
def whole(
    dataset: Any, options: list[str], start_dnnbrain: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with the work and the output of a run that nobody disturbed; read only."""
    folder = tmp_path_factory.mktemp("whole")
    process = start_dnnbrain(dataset.path, folder / "out", "participant", *options, "-w", folder / "work")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "2 of 2 units complete" in err
    assert "warning: No" not in err
    return folder


@pytest.fixture
def again(whole: Path, tmp_path: Path) -> Path:
    """A copy of the undisturbed run."""
    shutil.copytree(whole, tmp_path / "again")
    return tmp_path / "again"


def test_a_second_run_computes_nothing(
    dataset: Any, options: list[str], whole: Path, start_dnnbrain: Callable[..., Any]
) -> None:
    before = stamp_files(whole)
    args = [dataset.path, whole / "out", "participant", *options, "-w", whole / "work"]
    out, err = start_dnnbrain(*args, code=WITHOUT_TORCH).communicate(timeout=120)
    assert out.split("\n")[:2] == ["code 0", "[]"], err
    assert err.count("all results are there already") == 2
    assert stamp_files(whole) == before


def test_another_folder_gets_the_same_bytes(
    dataset: Any, options: list[str], whole: Path, tmp_path: Path, start_dnnbrain: Callable[..., Any]
) -> None:
    process = start_dnnbrain(dataset.path, tmp_path / "out", "participant", *options, "-w", tmp_path / "work")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    results = digest_results(tmp_path / "out")
    assert len(results) > 30
    assert results == digest_results(whole / "out")


def test_a_run_killed_again_and_again_ends_with_the_same_bytes(
    dataset: Any, volume: list[str], whole: Path, tmp_path: Path, start_dnnbrain: Callable[..., Any]
) -> None:
    chance, out, n_killed = random.Random(3), tmp_path / "out", 0
    expected = {name: digest for name, digest in digest_results(whole / "out").items() if "fsLR" not in name}
    n_files = len([path for path in (whole / "out").rglob("*") if "fsLR" not in path.name])
    args = [dataset.path, out, "participant", *volume, "-w", tmp_path / "work"]
    for done in sorted(chance.uniform(0.05, 0.98) for _ in range(KILLS)):
        process = start_dnnbrain(*args)
        # counted in files, hidden parts included, so that a busy machine is killed at the same places
        while process.poll() is None and len(list(out.rglob("*"))) < done * n_files:
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.02))
        process.kill()
        process.communicate()
        assert process.returncode in (-signal.SIGKILL, 0)
        n_killed += process.returncode != 0
    assert n_killed > KILLS // 2
    process = start_dnnbrain(*args)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert digest_results(out) == expected
    assert (out / "sub-01.html").stat().st_size > 10_000
    _, err = start_dnnbrain(*args).communicate(timeout=120)
    assert "all results are there already" in err


@pytest.mark.parametrize(
    ("change", "done"),
    [
        (["--n-folds", "5"], {"encoding"}),
        (["--random-seed", "7"], {"encoding", "rsa"}),
        (["--layers", "early", "late"], {"encoding", "rsa"}),
        (["--roi", "IT=LATE"], {"encoding", "rsa"}),
        (["--response-model", "condition"], {"responses", "encoding", "rsa"}),
        (["--n-cpus", "2", "--mem", "4G", "--batch-size", "5"], set()),
    ],
)
def test_a_changed_option_does_again_what_depends_on_it(
    change: list[str], done: set[str], dataset: Any, volume: list[str], again: Path, run_dnnbrain: Callable[..., Any]
) -> None:
    outcome = run_dnnbrain(dataset.path, again / "out", "participant", *volume, "-w", again / "work", *change)
    assert outcome.code == 0, outcome.err
    said = [line.partition(": done in ")[2].partition(": ")[2] for line in outcome.err.splitlines()]
    stages = {stage.split()[0] for line in said if line for stage in line.split(", ")}
    assert stages == done


def test_a_lost_and_a_broken_result_are_made_again(
    dataset: Any, volume: list[str], again: Path, whole: Path, run_dnnbrain: Callable[..., Any]
) -> None:
    func = again / "out" / "sub-01" / "func"
    lost, broken = next(func.glob("*_stat-r_*_statmap.nii.gz")), next(func.glob("*MNI*_desc-rsa_statmap.tsv"))
    lost.unlink()
    broken.write_bytes(broken.read_bytes()[:50])
    outcome = run_dnnbrain(dataset.path, again / "out", "participant", *volume, "-w", again / "work")
    assert outcome.code == 0, outcome.err
    assert "responses" not in outcome.err
    assert digest_results(again / "out").keys() == digest_results(whole / "out").keys()
    assert broken.stat().st_size == (whole / broken.relative_to(again)).stat().st_size


def test_changed_data_are_seen(copied: Any, again: Path, volume: list[str], run_dnnbrain: Callable[..., Any]) -> None:
    path = next((copied.path / "sub-01").rglob("*run-02_events.tsv"))
    path.write_text(path.read_text().replace("\n6\t", "\n7\t"))
    outcome = run_dnnbrain(copied.path, again / "out", "participant", *volume, "-w", again / "work")
    assert outcome.code == 0, outcome.err
    assert "s: responses, encoding" in outcome.err


def test_a_damaged_gram_is_computed_again(
    dataset: Any, again: Path, volume: list[str], run_dnnbrain: Callable[..., Any]
) -> None:
    before = {path.name for path in (again / "out").rglob("*MNI*statmap*")}
    entry = next((again / "work" / "grams").rglob("*-K.*.npy"))
    content = bytearray(entry.read_bytes())
    content[len(content) // 2] ^= 255
    entry.write_bytes(content)
    shutil.rmtree(again / "out")
    outcome = run_dnnbrain(dataset.path, again / "out", "participant", *volume, "-w", again / "work")
    assert outcome.code == 0, outcome.err
    assert "damaged" in outcome.err
    assert "computed again" in outcome.err
    assert {path.name for path in (again / "out").rglob("*MNI*statmap*")} == before


def test_one_bad_participant_does_not_stop_the_other(
    copied: Any, tmp_path: Path, run_dnnbrain: Callable[..., Any]
) -> None:
    bad = next((copied.path / "derivatives" / "fmriprep" / "sub-01").rglob("*run-02*.dtseries.nii"))
    bad.write_bytes(bad.read_bytes()[:-1000])
    args = [copied.path, tmp_path / "out", "participant", *copied.options("fsLR"), "-w", tmp_path / "work"]
    outcome = run_dnnbrain(*args)
    assert outcome.code == 1
    assert f"{bad}: cannot be read" in outcome.err
    assert "1 of 2 units complete" in outcome.err
    assert "Traceback" not in outcome.err
    (crash,) = (tmp_path / "out").rglob("crash-*.txt")
    assert "sub-01" in crash.name
    assert str(crash) in outcome.err
    assert "Traceback" in crash.read_text()
    assert bad.name in (tmp_path / "out" / "sub-01.html").read_text()
    good = tmp_path / "out" / "sub-02" / "func"
    assert len(list(good.glob("*_statmap.dscalar.nii"))) == 15
    assert (tmp_path / "out" / "sub-02.html").exists()
    status = json.loads(next((good.parent / "log").glob("*fsLR*.json")).read_text())
    assert [stage.split()[0] for stage in status] == ["responses", "encoding", "rsa"]
    second = run_dnnbrain(*args)
    assert second.code == 1
    assert second.err.count("all results are there already") == 1


def test_the_first_crash_can_be_the_last(copied: Any, tmp_path: Path, run_dnnbrain: Callable[..., Any]) -> None:
    bad = next((copied.path / "derivatives" / "fmriprep" / "sub-01").rglob("*run-02*.dtseries.nii"))
    bad.write_bytes(bad.read_bytes()[:-1000])
    options = [*copied.options("fsLR"), "-w", tmp_path / "work", "--stop-on-first-crash"]
    outcome = run_dnnbrain(copied.path, tmp_path / "out", "participant", *options)
    assert outcome.code != 0
    assert not list((tmp_path / "out").glob("sub-02*"))


def test_a_file_without_content_leaves_out_its_participant_whole(
    copied: Any, tmp_path: Path, run_dnnbrain: Callable[..., Any]
) -> None:
    """A git-annex pointer where the data should be is found before anything is computed."""
    name = "*run-02*desc-preproc_bold.nii.gz"
    bad = next((copied.path / "derivatives" / "fmriprep" / "sub-02").rglob(name))
    bad.write_bytes(b"/annex/objects/MD5E-s1--0.nii.gz\n")
    space = "MNI152NLin2009cAsym"
    args = [copied.path, tmp_path / "out", "participant", *copied.options(space), "-w", tmp_path / "work"]
    outcome = run_dnnbrain(*args)
    assert outcome.code == 1
    assert f"sub-02 failed: {bad}" in outcome.err
    assert "1 of 2 units complete" in outcome.err
    assert (tmp_path / "out" / "sub-01.html").exists()
    assert not list((tmp_path / "out" / "sub-02").rglob("*_statmap*"))
    assert list((tmp_path / "out" / "sub-02").rglob("crash-sub-02.txt"))


def test_regions_that_were_renamed_are_seen(
    copied: Any, again: Path, volume: list[str], run_dnnbrain: Callable[..., Any]
) -> None:
    """The names of a volume's regions are in a table beside it."""
    options = [
        word.replace(str(volume[volume.index("--atlas") + 1].partition("/derivatives")[0]), str(copied.path))
        for word in volume
    ]
    assert run_dnnbrain(copied.path, again / "out", "participant", *options, "-w", again / "work").code == 0
    table = next((copied.path / "derivatives" / "atlas").rglob("*_dseg.tsv"))
    table.write_text(table.read_text().replace("EARLY", "V1"))
    outcome = run_dnnbrain(copied.path, again / "out", "participant", *options, "-w", again / "work")
    assert outcome.code == 0, outcome.err
    scores = next((again / "out").rglob("*MNI*desc-rsa_statmap.tsv"))
    assert "\nV1\t" in scores.read_text()
    assert "EARLY" not in scores.read_text()


def test_copies_of_a_stimulus_share_a_fold(copied: Any, tmp_path: Path, run_dnnbrain: Callable[..., Any]) -> None:
    """Stimuli named anew in every run are still the same images: not to be learnt in one run and tested in another."""
    for events in copied.path.rglob("*run-02_events.tsv"):
        lines = [line.split("\t") for line in events.read_text().splitlines()]
        column = lines[0].index("stim_file")
        for line in lines[1:]:
            old = copied.path / "stimuli" / line[column]
            shutil.copy(old, old.with_name(f"again{old.name}"))
            line[column] = str(old.with_name(f"again{old.name}").relative_to(copied.path / "stimuli"))
        events.write_text("\n".join("\t".join(line) for line in lines) + "\n")
    options = [*copied.options("MNI152NLin2009cAsym", atlas=False), "--participant-label", "01"]
    args = [copied.path, tmp_path / "out", "participant", *options, "-w", tmp_path / "work"]
    outcome = run_dnnbrain(*args)
    assert outcome.code == 0, outcome.err
    assert "24 stimuli are copies of others; copies stay in one fold" in outcome.err
