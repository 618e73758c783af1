from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dnnbrain_app.derivatives import files
from dnnbrain_app.errors import CannotWriteError, InputOutputError


def test_a_file_appears_whole_and_leaves_no_part(tmp_path):
    path = tmp_path / "new" / "folder" / "a.nii.gz"
    seen = []

    def write(part):
        seen.append(part)
        assert not path.exists()
        part.write_bytes(b"1")

    files.write_atomically(path, write)
    assert path.read_bytes() == b"1"
    assert list(path.parent.iterdir()) == [path]
    assert seen[0].parent == path.parent
    assert seen[0].name.startswith(".")
    assert seen[0].name.endswith("a.nii.gz")


@pytest.mark.parametrize("failure", [ValueError("x"), KeyboardInterrupt()])
def test_a_failing_writer_leaves_the_old_file(tmp_path, failure):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write(part):
        part.write_text("ne")
        raise failure

    with pytest.raises(type(failure)):
        files.write_atomically(path, write)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [tmp_path / "a.txt"]


def test_a_killed_process_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from dnnbrain_app.derivatives.files import write_atomically\n"
        "def write(part): part.write_text('ne'); os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_atomically(Path(sys.argv[1]), write)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    (part,) = tmp_path.glob(f"{files.PART_PREFIX}*")
    files.remove_leftovers(tmp_path)
    assert part.exists()  # it might still be written
    files.remove_leftovers(tmp_path, older_than=-1)
    assert list(tmp_path.iterdir()) == [tmp_path / "a.txt"]


def test_readers_see_only_whole_files_while_many_write(tmp_path):
    path = tmp_path / "a.txt"
    texts = [letter * 100_000 for letter in "abcd"]
    stop = time.monotonic() + 0.5

    def write(text):
        while time.monotonic() < stop:
            files.write_text(path, text)

    threads = [threading.Thread(target=write, args=[text]) for text in texts]
    files.write_text(path, texts[0])
    for thread in threads:
        thread.start()
    while time.monotonic() < stop:
        assert path.read_text() in texts
    for thread in threads:
        thread.join()
    assert list(tmp_path.iterdir()) == [tmp_path / "a.txt"]


@pytest.mark.parametrize(
    ("number", "error", "words"),
    [
        (errno.ENOSPC, CannotWriteError, "No space left"),
        (errno.EDQUOT, CannotWriteError, "quota"),
        (errno.EROFS, CannotWriteError, "Read-only"),
        (errno.EACCES, CannotWriteError, "Permission denied"),
        (errno.EIO, InputOutputError, "failed"),
    ],
)
def test_failures_of_the_file_system_name_file_and_reason(tmp_path, number, error, words):
    def write(part):
        part.write_text("half")
        raise OSError(number, os.strerror(number))

    path = tmp_path / "a.txt"
    with pytest.raises(error, match=words) as caught:
        files.write_atomically(path, write)
    assert str(path) in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_failing_rename_is_explained(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(CannotWriteError, match="not permitted"):
        files.write_text(tmp_path / "a.txt", "text")
    assert not list(tmp_path.iterdir())


def test_a_file_where_a_folder_should_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotWriteError, match=r"file/deep/a\.txt"):
        files.write_text(tmp_path / "file" / "deep" / "a.txt", "text")


def test_a_full_disk(small_disk):
    (small_disk / "a.txt").write_text("old")
    with pytest.raises(CannotWriteError, match=r"No space left.*Free some space"):
        files.write_text(small_disk / "a.txt", "x" * 2_000_000)
    assert list(small_disk.iterdir()) == [small_disk / "a.txt"]
    assert (small_disk / "a.txt").read_text() == "old"


def test_a_read_only_disk(small_disk):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(CannotWriteError, match="Read-only file system"):
        files.write_text(small_disk / "a.txt", "x")


def test_update_text_leaves_equal_files_alone(tmp_path):
    path = tmp_path / "a.txt"
    assert files.update_text(path, "é\n")
    before = path.stat()
    assert not files.update_text(path, "é\n")
    assert path.stat().st_ino == before.st_ino
    assert files.update_text(path, "e\n")
    assert path.read_bytes() == b"e\n"


@dataclass(frozen=True, slots=True)
class Options:
    names: tuple[str, ...]
    path: Path | None


def test_json_keeps_order_and_knows_no_nan(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(
        path,
        {
            "z": np.float32(0.5),
            "a": [np.nan, np.inf, np.int64(3), np.bool_(True)],
            "array": np.arange(4.0).reshape(2, 2),
            "options": Options(("é",), Path("a/b")),
            "set": {"b", "a"},
        },
    )
    text = path.read_text(encoding="utf-8")
    assert text.endswith("}\n")
    assert "é" in text
    content = json.loads(text, parse_constant=pytest.fail)
    assert list(content) == ["z", "a", "array", "options", "set"]
    assert content["a"] == [None, None, 3, True]
    assert content["array"] == [[0, 1], [2, 3]]
    assert content["options"] == {"names": ["é"], "path": "a/b"}
    assert content["set"] == ["a", "b"]


def test_json_refuses_what_has_no_meaning(tmp_path):
    with pytest.raises(TypeError, match="function"):
        files.write_json(tmp_path / "a.json", {"f": lambda: 0})
    assert not list(tmp_path.iterdir())


def test_table_is_what_bids_wants(tmp_path, rng):
    path = tmp_path / "a.tsv"
    values = rng.standard_normal(4).astype(np.float32)
    values[1] = np.nan
    columns = {
        "stimulus": ['a "b".jpg', "tab\tline\nend", "", None],
        "r": values,
        "count": np.arange(4),
        "shown": [True, False, True, True],
    }
    files.write_table(path, columns)
    raw = path.read_bytes()
    assert raw.splitlines()[:3] == [
        b"stimulus\tr\tcount\tshown",
        f'a "b".jpg\t{values[0]:.9g}\t0\ttrue'.encode(),
        b"tab line end\tn/a\t1\tfalse",
    ]
    assert raw.endswith(b"\n")
    assert b"\r" not in raw
    back = pd.read_csv(path, sep="\t", na_values="n/a", quoting=3)
    assert np.array_equal(back["r"].to_numpy(dtype=np.float32), values, equal_nan=True)
    assert back["stimulus"].isna().tolist() == [False, False, True, True]
    files.write_table(path, pd.DataFrame(columns, index=[4, 3, 2, 1]))
    assert path.read_bytes() == raw


def test_table_without_rows_has_its_header(tmp_path):
    files.write_table(tmp_path / "a.tsv", {"region": [], "r": []})
    assert (tmp_path / "a.tsv").read_text() == "region\tr\n"
