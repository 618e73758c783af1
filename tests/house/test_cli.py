"""The door: flags in, messages and exit codes out."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from dnnbrain_app import __version__, cli
from dnnbrain_app.config import SECTIONS, Config, find_setting

HEAVY = ("torch", "torchvision", "nilearn", "sklearn", "nibabel", "matplotlib", "pandas", "numpy", "scipy", "bids")
LABELS = st.text(alphabet="abcXYZ019", min_size=1, max_size=5)


@pytest.fixture
def configure(run_dnnbrain: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Config]:
    """Give the configuration that a command line stands for, without doing anything."""
    seen: list[Config] = []
    monkeypatch.setattr(cli, "dispatch", lambda config, _: seen.append(config) or 0)

    def read(*args: object) -> Config:
        outcome = run_dnnbrain("/data", "/out", "participant", *args)
        assert outcome.code == 0, outcome.err
        return seen[-1]

    return read


@pytest.mark.parametrize("flag", ["--help", "-h", "--version"])
def test_nothing_heavy_is_imported_to_say_what_the_app_is(flag: str, start_dnnbrain: Callable[..., Any]) -> None:
    code = (
        "import sys, json\nfrom dnnbrain_app.cli import main\n"
        f"try: main([{flag!r}])\nexcept SystemExit as stop: code = stop.code\n"
        "sys.stderr.write(json.dumps([code, sorted(sys.modules)]))"
    )
    out, err = start_dnnbrain(code=code).communicate(timeout=120)
    exit_code, modules = json.loads(err)
    assert exit_code == 0
    assert (__version__ if flag == "--version" else "BIDS_DIR") in out
    assert set(HEAVY) & set(modules) == set()


def test_help_names_every_flag_once_and_says_what_each_setting_is() -> None:
    text = CliRunner().invoke(cli.command, ["--help"], terminal_width=10_000).output
    rows = [line[: line.find("  ", 4)] for line in text.splitlines() if line.startswith("  -")]
    listed = [re.findall(r"(?<![\w-])--?[a-z][\w-]*", row) for row in rows]
    names = [name for found in listed for name in found]
    for flag in cli.FLAGS:
        assert [names.count(name) for name in flag.names] == [1] * len(flag.names)
    flat = " ".join(text.split())
    for flag in cli.FLAGS:
        assert " ".join(find_setting(flag.setting)[0].metadata["doc"].split()) in flat, flag.setting
    for name in cli.ACCEPTED:
        assert name not in text


def test_every_flag_fills_a_setting_of_its_own() -> None:
    settings = [flag.setting for flag in cli.FLAGS]
    assert len(set(settings)) == len(settings)
    for setting in settings:
        find_setting(setting)
    names = [name for flag in cli.FLAGS for name in flag.names]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    "args",
    [
        ["--participant-label", "01", "02"],
        ["--participant-label", "sub-01", "sub-02"],
        ["--participant-label", "01,02"],
        ["--participant-label", "01, 02"],
        ["--participant-label", "01", "--participant-label", "02"],
        ["--participant-label=01", "--participant-label=sub-02"],
        ["--participant_label", "01", "02"],
        ["--participant-label", "01", "02", "01", "sub-02"],
    ],
)
def test_participants_can_be_listed_in_every_usual_way(args: list[str], configure: Callable[..., Config]) -> None:
    assert configure(*args).dataset.participants == ("01", "02")


def test_participants_can_be_listed_in_a_file(tmp_path: Path, configure: Callable[..., Config]) -> None:
    (tmp_path / "labels.txt").write_text("sub-01\n02\n\n03\n")
    config = configure("--participant-label", tmp_path / "labels.txt", "04")
    assert config.dataset.participants == ("01", "02", "03", "04")


def test_a_list_before_the_three_arguments_ends_where_they_begin(run_dnnbrain: Any, monkeypatch: Any) -> None:
    seen: list[Config] = []
    monkeypatch.setattr(cli, "dispatch", lambda config, _: seen.append(config) or 0)
    outcome = run_dnnbrain("--participant-label", "01", "02", "/data", "/out", "participant", "-t", "a", "b")
    assert outcome.code == 0, outcome.err
    (config,) = seen
    assert (config.bids_dir, config.output_dir) == (Path("/data"), Path("/out"))
    assert (config.dataset.participants, config.dataset.tasks) == (("01", "02"), ("a", "b"))


def test_after_the_level_a_list_may_hold_paths(configure: Callable[..., Config]) -> None:
    config = configure("--atlas", "/a/x.dlabel.nii", "b/y_dseg.nii.gz", "--derivatives", "/a/prep", "other=b/prep")
    assert config.dataset.atlas == (Path("/a/x.dlabel.nii"), Path("b/y_dseg.nii.gz"))
    assert config.dataset.derivatives == ("/a/prep", "other=b/prep")


def test_other_lists(configure: Callable[..., Config]) -> None:
    config = configure(
        *("--space", "fsLR:den-91k", "MNI152NLin2009cAsym", "--network", "alexnet", "mine:build"),
        *("--layers", "blocks.*", "fc", "--roi", "VTC=V8+FFC", "V1=V1", "--analysis", "rsa", "encoding"),
        *("--session_id", "ses-a", "--task-label", "task-x,y", "--run-index", "1", "run-02", "-d", "a=/x", "b=/y"),
    )
    assert config.dataset.spaces == ("fsLR:den-91k", "MNI152NLin2009cAsym")
    assert config.networks.names == ("alexnet", "mine:build")
    assert config.networks.layers == ("blocks.*", "fc")
    assert config.dataset.rois == ("VTC=V8+FFC", "V1=V1")
    assert config.run.analyses == ("rsa", "encoding")
    assert config.dataset.sessions == ("a",)
    assert config.dataset.tasks == ("x", "y")
    assert config.dataset.runs == ("1", "02")
    assert config.dataset.derivatives == ("a=/x", "b=/y")


@given(st.lists(LABELS, min_size=1, max_size=6), st.lists(LABELS, max_size=4))
def test_repeating_the_flag_is_the_same_as_listing(first: list[str], second: list[str]) -> None:
    many = {"--a", "--b"}
    listed = ["--a", *first, *(["--b", *second] if second else [])]
    repeated = [token for label in first for token in ("--a", label)]
    repeated += [token for label in second for token in ("--b", label)]
    assert cli.repeat_flags(["/x/in", "out", "participant", *listed], many)[3:] == repeated
    assert cli.repeat_flags(repeated, many) == repeated  # and what is repeated already stays as it is
    if first:
        assert cli.repeat_flags([*listed, "/x/in"], many)[-1] == "/x/in"


def test_a_flag_without_its_value_is_an_error(run_dnnbrain: Callable[..., Any]) -> None:
    for args in (["--participant-label"], ["--participant-label", "--low-mem"], ["--n-folds"]):
        outcome = run_dnnbrain("/data", "/out", "participant", *args)
        assert outcome.code == 2
        assert args[0] in outcome.err
        assert re.search("needs a value|requires an argument", outcome.err)


@pytest.mark.parametrize("dash", ["\N{EN DASH}", "\N{EM DASH}", "\N{MINUS SIGN}"])
@pytest.mark.parametrize("form", ["{0}participant-label", "{0}-participant-label", "{0}{0}participant-label"])
def test_typographic_dashes_are_named(dash: str, form: str, run_dnnbrain: Callable[..., Any]) -> None:
    outcome = run_dnnbrain("/data", "/out", "participant", form.format(dash), "01")
    assert outcome.code == 2
    assert "typographic dash" in outcome.err
    assert "'--participant-label'" in outcome.err


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        ([], ["BIDS_DIR OUTPUT_DIR participant"]),
        (["/data", "/out"], ["BIDS_DIR OUTPUT_DIR participant"]),
        (["/data", "/out", "session"], ["'session'", "'participant'"]),
        (["/data", "/out", "participant", "extra"], ["extra"]),
        (["/data", "/out", "participant", "--particpant-label", "01"], ["--particpant-label", "--participant-label"]),
        (["/data", "/out", "participant", "--analysis", "mvpa"], ["'mvpa'", "encoding", "rsa"]),
        (["/data", "/out", "participant", "--n-folds", "many"], ["--n-folds", "'many'"]),
        (["/data", "/out", "participant", "--n-folds", "1"], ["encoding.n_folds = 1", "at least 2"]),
        (["/data", "/out", "participant", "--batch-size", "0"], ["networks.batch_size = 0", "at least 1"]),
        (["/data", "/out", "participant", "--random-seed", "-1"], ["random_seed = -1"]),
        (["/data", "/out", "participant", "--mem", "16"], ["16 MB", "16G"]),
        (["/data", "/out", "participant", "--mem", "lots"], ["'lots'", "16G"]),
        (["/data", "/out", "participant", "--config-file", "/nowhere.toml"], ["/nowhere.toml"]),
        (
            ["/data", "/out", "participant", "--weights", "w.pth", "--network", "alexnet", "vgg16"],
            ["w.pth", "one network", "2 are named"],
        ),
    ],
)
def test_wrong_command_lines(args: list[str], parts: list[str], run_dnnbrain: Callable[..., Any]) -> None:
    outcome = run_dnnbrain(*args)
    assert outcome.code == (66 if "/nowhere.toml" in args else 2)
    for part in parts:
        assert part in outcome.err
    assert "Traceback" not in outcome.err
    assert "unexpected" not in outcome.err.replace("unexpected extra argument", "")


def test_memory_in_gigabytes_and_megabytes(configure: Callable[..., Config]) -> None:
    assert configure("--mem-gb", "1.5").run.memory == "1.5G"
    assert configure("--mem_mb", "16000").run.memory == "16000"
    assert configure("--mem", "16G").run.memory == "16G"


def test_what_other_apps_accept_is_accepted(configure: Callable[..., Config]) -> None:
    assert configure("--skip-bids-validation") == configure("--skip_bids_validator", "--notrack") == configure()


def test_a_flag_wins_over_the_file_and_the_file_over_the_default(
    tmp_path: Path, configure: Callable[..., Config]
) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('[encoding]\nn_folds = 5\n[dataset]\ntasks = ["a"]\n[networks]\nnames = ["alexnet"]\n')
    config = configure("--config-file", file, "--n-folds", "7", "--network", "vgg16")
    assert config.encoding.n_folds == 7
    assert config.networks.names == ("vgg16",)
    assert config.dataset.tasks == ("a",)
    assert config.encoding.folds_by == SECTIONS["encoding"]().folds_by


def test_a_switch_in_the_file_stays_on(tmp_path: Path, configure: Callable[..., Config]) -> None:
    (tmp_path / "settings.toml").write_text("[run]\nlow_mem = true\n")
    assert configure("--config-file", tmp_path / "settings.toml").run.low_mem
    assert not configure().run.low_mem


def test_an_interruption_ends_with_130(run_dnnbrain: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "dispatch", interrupt)
    outcome = run_dnnbrain("/data", "/out", "participant")
    assert outcome.code == 130
    assert "interrupted" in outcome.err


def test_a_bug_is_one_line_and_a_traceback_only_with_debug(
    run_dnnbrain: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stumble(*args: object) -> int:
        raise ZeroDivisionError("by hand")

    monkeypatch.setattr(cli, "dispatch", stumble)
    plain, debug = (run_dnnbrain("/data", "/out", "participant", *more) for more in ([], ["--debug"]))
    assert plain.code == debug.code == 1
    assert "unexpected ZeroDivisionError: by hand" in plain.err
    assert "Traceback" not in plain.err
    assert "Traceback" in debug.err


def test_listings_need_no_dataset(run_dnnbrain: Callable[..., Any]) -> None:
    networks = run_dnnbrain("--list-networks")
    assert networks.code == 0
    assert {"efficientnet_lite0", "alexnet", "resnet50"} <= set(networks.out.split())
    layers = run_dnnbrain("--list-layers", "tiny_network:build")
    assert layers.code == 0
    rows = {line.split()[1]: line for line in layers.out.splitlines() if line.startswith("*  ")}
    assert list(rows) == ["early", "middle", "late"]
    assert "8x6x6" in rows["early"]
    assert "288" in rows["early"]


def test_progress_counts_only_what_this_run_did(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 100, 60 were there: 20 more in 20 s leave 20 for another 20 s."""
    clock = iter([0.0, 20.0, 40.0])
    monkeypatch.setattr(cli.time, "monotonic", lambda: next(clock))
    logger = cli.logging.getLogger("dnnbrain_app")
    logger.setLevel(cli.STEP)
    show = cli.Progress()
    try:
        for done in (60, 80, 100):
            show("net: images", done, 100)
    finally:
        logger.setLevel(cli.logging.NOTSET)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["         net: images: 80/100, 1/s, about 20 s left", "         net: images: 100/100"]
