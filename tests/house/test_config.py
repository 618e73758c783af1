"""Settings: declared once, checked, written and read back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnnbrain_app import config as module
from dnnbrain_app.config import (
    SECTIONS,
    Config,
    RunOptions,
    build_config,
    count_cpus,
    dump_toml,
    find_setting,
    measure_memory,
    parse_memory,
    read_toml,
)
from dnnbrain_app.errors import MissingInputError, UnknownNameError, UsageError

GIGA = 1024**3


def build(**sections: Mapping[str, Any]) -> Config:
    return build_config(Path("in"), Path("out"), "participant", dict(sections))  # type: ignore[arg-type]


def test_every_setting_has_a_sentence_and_a_default() -> None:
    for section, options in SECTIONS.items():
        options()
        for field in dataclasses.fields(options):
            doc = field.metadata.get("doc", "")
            assert doc.rstrip().endswith((".", "(large).")), f"{section}.{field.name}"
            choices = field.metadata.get("choices")
            default = field.default
            if choices and not isinstance(default, tuple):
                assert default in choices, f"{section}.{field.name}"


def test_a_configuration_survives_being_written_and_read(tmp_path: Path) -> None:
    config = build(
        dataset={
            "participants": ("01", "02"),
            "atlas": ("a/b.dlabel.nii",),
            "bids_filter_file": "filter.json",
            "rois": ("VTC=V8+FFC",),
        },
        stimuli={"directory": "/images", "column": 'a "quoted" \\ column'},
        networks={"names": ("alexnet", "möbius:build"), "batch_size": 3, "save_activations": True},
        responses={"high_pass": 0, "motion": 24},
        encoding={"alpha_min": 1e-7, "n_folds": 3},
        run={"memory": "2G", "work_dir": "w", "analyses": ("rsa",)},
    )
    file = tmp_path / "config.toml"
    file.write_text(dump_toml(config, {"versions": {"torch": "2"}, "command_line": ["dnnbrain", "-x"]}))
    again = build_config(Path("in"), Path("out"), "participant", read_toml(file))
    assert again == config
    assert again != build()


def test_defaults_survive_too(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(dump_toml(build()))
    assert build_config(Path("in"), Path("out"), "participant", read_toml(file)) == build()


@given(
    st.floats(min_value=1e-300, max_value=1e300),
    st.text(st.characters(blacklist_categories=("Cs",)), max_size=20),
    st.lists(st.text(st.characters(blacklist_categories=("Cs",)), min_size=1, max_size=9), max_size=4, unique=True),
)
def test_any_text_and_number_survives(number: float, text: str, names: list[str]) -> None:
    config = build(
        encoding={"alpha_min": number, "alpha_max": number}, stimuli={"column": text}, dataset={"rois": names}
    )
    settings = module.tomllib.loads(dump_toml(config))
    settings.pop(module.RECORD)
    assert build_config(Path("in"), Path("out"), "participant", settings) == config


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[encoding]\nn_fold = 5\n", ["[encoding]", "'n_fold'", "did you mean 'n_folds'"]),
        ("[encodings]\nn_folds = 5\n", ["section", "'encodings'", "did you mean 'encoding'"]),
        ("[encodings]\n", ["section", "'encodings'", "did you mean 'encoding'"]),
        ("n_folds = 5\n", ["'n_folds'", "outside a section", "encoding"]),
        ("[encoding\n", ["config.toml", "not valid TOML"]),
        ("[encoding]\nn_folds = 5\nn_folds = 6\n", ["config.toml", "not valid TOML"]),
    ],
)
def test_a_file_that_is_wrong(text: str, parts: list[str], tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(text)
    with pytest.raises(UsageError) as caught:
        read_toml(file)
    for part in parts:
        assert part in str(caught.value)


def test_an_empty_section_and_an_empty_file_are_fine(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    for text in ("", "[encoding]\n"):
        file.write_text(text)
        assert build_config(Path("in"), Path("out"), "participant", read_toml(file)) == build()


def test_a_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"nowhere\.toml"):
        read_toml(tmp_path / "nowhere.toml")
    with pytest.raises(MissingInputError, match="cannot be read"):
        read_toml(tmp_path)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match=r"binary\.toml is not valid TOML"):
        read_toml(tmp_path / "binary.toml")


@pytest.mark.parametrize(
    ("section", "key", "value", "parts"),
    [
        ("encoding", "n_folds", "5", ["encoding.n_folds", "'5'", "int"]),
        ("encoding", "n_folds", True, ["encoding.n_folds", "True", "int"]),
        ("encoding", "n_folds", 2.5, ["encoding.n_folds", "2.5", "int"]),
        ("encoding", "n_folds", [5], ["encoding.n_folds", "[5]", "int"]),
        ("encoding", "alpha_min", "small", ["encoding.alpha_min", "'small'", "float"]),
        ("encoding", "alpha_min", -1.0, ["encoding.alpha_min", "positive"]),
        ("encoding", "alpha_min", float("nan"), ["encoding.alpha_min", "positive"]),
        ("encoding", "alpha_max", float("inf"), ["encoding.alpha_m", "positive"]),
        ("run", "low_mem", 1, ["run.low_mem", "1", "bool"]),
        ("run", "low_mem", [True], ["run.low_mem", "bool"]),
        ("run", "memory", 16, ["run.memory", "16", "str"]),
        ("run", "memory", "16", ["16 MB", "16G"]),
        ("run", "analyses", ["mvpa"], ["run.analyses", "'mvpa'", "encoding, rsa"]),
        ("run", "analyses", [1], ["run.analyses", "1", "str"]),
        ("run", "analyses", {"rsa": 1}, ["run.analyses", "{'rsa': 1}", "str"]),
        ("run", "analyses", 2.5, ["run.analyses", "2.5", "str"]),
        ("dataset", "participants", True, ["dataset.participants", "True"]),
        ("dataset", "participants", [["01"]], ["dataset.participants"]),
        ("responses", "motion", 12, ["responses.motion", "'12'", "0, 6, 24"]),
        ("responses", "model", "LSS", ["responses.model", "'LSS'", "lss, lsa"]),
        ("responses", "high_pass", -1, ["responses.high_pass", "-1"]),
        ("networks", "names", [], ["networks.names", "--network"]),
        ("networks", "weights", 3, ["networks.weights", "3"]),
    ],
)
def test_a_value_that_is_wrong(section: str, key: str, value: Any, parts: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        build(**{section: {key: value}})
    for part in parts:
        assert part in str(caught.value)


def test_numbers_as_labels_and_single_values_as_lists() -> None:
    config = build(dataset={"participants": [1, "sub-02"], "runs": 3, "tasks": "task-a"})
    assert config.dataset.participants == ("1", "02")
    assert config.dataset.runs == ("3",)
    assert config.dataset.tasks == ("a",)


def test_five_hundred_participants_on_one_line() -> None:
    labels = [f"{number:03d}" for number in range(500)]
    assert build(dataset={"participants": ",".join(labels)}).dataset.participants == tuple(labels)


def test_later_layers_win_and_lists_are_replaced() -> None:
    config = build_config(
        Path("in"), Path("out"), "participant", {"dataset": {"tasks": ["a", "b"]}}, {"dataset": {"tasks": ["c"]}}
    )
    assert config.dataset.tasks == ("c",)


def test_the_home_folder_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert build(run={"work_dir": "~/work"}).run.work_dir == tmp_path / "work"


def test_settings_that_do_not_exist_are_suggested() -> None:
    with pytest.raises(UnknownNameError, match=r"'n_fold'.*did you mean 'n_folds'"):
        find_setting("encoding.n_fold")
    with pytest.raises(UnknownNameError, match=r"'networkz'.*did you mean 'networks'"):
        find_setting("networkz.names")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("16G", 16 * GIGA),
        ("16g", 16 * GIGA),
        ("16 GB", 16 * GIGA),
        ("16GiB", 16 * GIGA),
        ("1.5G", 3 * GIGA // 2),
        (".5T", 512 * GIGA),
        ("512", GIGA // 2),
        ("16000", 16000 * 1024**2),
        ("16000M", 16000 * 1024**2),
        ("2000000K", 2000000 * 1024),
    ],
)
def test_memory(text: str, size: int) -> None:
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["", "G", "16X", "-16G", "1e3G", "16 G B", "nan"])
def test_memory_that_is_no_amount(text: str) -> None:
    with pytest.raises(UsageError, match="is not an amount; write it as 16G"):
        parse_memory(text)


@pytest.mark.parametrize("text", ["16", "511", "0"])
def test_a_small_bare_number_is_a_trap(text: str) -> None:
    with pytest.raises(UsageError, match=f"did you mean {text}G"):
        parse_memory(text)


def test_low_memory_is_half() -> None:
    assert measure_memory(RunOptions(memory="8G")) == 8 * GIGA
    assert measure_memory(RunOptions(memory="8G", low_mem=True)) == 4 * GIGA


def test_resources_are_those_granted(monkeypatch: pytest.MonkeyPatch) -> None:
    granted: dict[str, list[str]] = {}
    monkeypatch.setattr(module, "_read_words", lambda file: granted.get(file, []))
    monkeypatch.setattr(module.os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    for name in ("SLURM_CPUS_PER_TASK", "SLURM_MEM_PER_NODE"):
        monkeypatch.delenv(name, raising=False)
    assert count_cpus(RunOptions()) == 16
    granted["/sys/fs/cgroup/cpu.max"] = ["300000", "100000"]
    assert count_cpus(RunOptions()) == 3
    granted["/sys/fs/cgroup/cpu.max"] = ["max", "100000"]
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "2")
    assert count_cpus(RunOptions()) == 2
    assert count_cpus(RunOptions(n_cpus=5)) == 5
    granted["/sys/fs/cgroup/memory.max"] = [str(GIGA)]
    assert measure_memory(RunOptions()) == int(0.8 * GIGA)
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "512")
    assert measure_memory(RunOptions()) == int(0.8 * GIGA / 2)
