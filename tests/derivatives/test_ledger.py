from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from dnnbrain_app.derivatives.ledger import Ledger, digest_key, stamp


@pytest.fixture
def output(tmp_path):
    path = tmp_path / "sub-01" / "func" / "a_statmap.tsv"
    path.parent.mkdir(parents=True)
    path.write_text("12345")
    return path


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "sub-01" / "log" / "unit.json")


def test_nothing_is_current_before_it_is_recorded(ledger):
    assert not ledger.is_current("betas", "k")
    assert not ledger.path.exists()


def test_current_while_key_and_outputs_are_the_same(ledger, output):
    ledger.record("betas", "k", [output])
    assert Ledger(ledger.path).is_current("betas", "k")
    assert not ledger.is_current("betas", "other")
    assert not ledger.is_current("encoding", "k")
    os.utime(output, (1, 1))
    assert ledger.is_current("betas", "k")
    output.write_text("123456")
    assert not ledger.is_current("betas", "k")
    output.write_text("54321")
    assert ledger.is_current("betas", "k")
    output.unlink()
    assert not ledger.is_current("betas", "k")


def test_stages_are_kept_apart(ledger, output):
    ledger.record("betas", "k1", [output])
    Ledger(ledger.path).record("encoding", "k2", [])
    ledger.record("encoding", "k3", [output])
    assert ledger.is_current("betas", "k1")
    assert ledger.is_current("encoding", "k3")
    ledger.forget("betas")
    ledger.forget("never recorded")
    assert not ledger.is_current("betas", "k1")
    assert ledger.is_current("encoding", "k3")


def test_the_dataset_may_move(ledger, output, tmp_path):
    ledger.record("betas", "k", [output])
    assert str(tmp_path) not in ledger.path.read_text()
    (tmp_path / "sub-01").rename(tmp_path / "elsewhere")
    assert Ledger(tmp_path / "elsewhere" / "log" / "unit.json").is_current("betas", "k")


def test_a_stage_without_its_output_is_not_recorded(ledger, output):
    ledger.record("betas", "k", [output])
    with pytest.raises(FileNotFoundError):
        ledger.record("betas", "k2", [output.with_name("none")])
    assert ledger.is_current("betas", "k")


@pytest.mark.parametrize("content", ['{"betas": {"key"', "[1]", "\x00", '{"betas": 3}', '{"betas": {"key": "k"}}'])
def test_a_broken_status_file_means_that_nothing_is_done(ledger, output, content, caplog):
    ledger.record("betas", "k", [output])
    ledger.path.write_text(content)
    with caplog.at_level(logging.WARNING):
        assert not ledger.is_current("betas", "k")
        assert bool(caplog.records) == (not content.startswith('{"betas": ') or not content.endswith("}"))
    ledger.record("encoding", "k2", [output])
    assert ledger.is_current("encoding", "k2")


@dataclass(frozen=True, slots=True)
class Options:
    names: tuple[str, ...]
    folder: Path | None


def test_keys_depend_on_content_only():
    key = digest_key({"o": Options(("a", "b"), Path("x")), "n": 3, "r": 0.1})
    assert key == digest_key({"r": np.float64(0.1), "n": np.int64(3), "o": {"names": ["a", "b"], "folder": "x"}})
    assert len(key) == 64
    assert int(key, 16)


@pytest.mark.parametrize("other", [{"a": [1, 3]}, {"a": [2, 1]}, {"b": [1, 2]}, {"a": ["1", 2]}, {"a": [True, 2]}, {}])
def test_keys_tell_contents_apart(other):
    assert digest_key(other) != digest_key({"a": [1, 2]})


def test_a_stamp_changes_with_the_file(output):
    before = stamp(output)
    assert before[:2] == ["a_statmap.tsv", 5]
    os.utime(output, ns=(0, 10**18))
    assert stamp(output) == ["a_statmap.tsv", 5, 10**18]
    assert digest_key(stamp(output)) != digest_key(before)
