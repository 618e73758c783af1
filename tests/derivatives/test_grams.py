from __future__ import annotations

import dataclasses
import errno
import gc
import hashlib
import json
import logging
import os
import subprocess
import sys
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from dnnbrain_app.derivatives import grams as grams_module
from dnnbrain_app.derivatives.features import MappedRows
from dnnbrain_app.derivatives.files import PART_PREFIX
from dnnbrain_app.derivatives.grams import find_grams, write_grams
from dnnbrain_app.errors import BadDataError, CannotWriteError, InputOutputError
from dnnbrain_app.records import ChannelStatistics, Gram, StimulusSet

N = 6
DIGESTS = tuple(hashlib.sha256(bytes([i])).hexdigest() for i in range(N))
IDENTITY = "ab" + "0" * 62
ABOUT = {
    "network": "alexnet",
    "provenance": {"Name": "alexnet:IMAGENET1K_V1", "Crop": (224, 224), "Mean": np.float32(0.5)},
}
WIDE, NARROW, ONLY_X = range(3)


@pytest.fixture
def grams(rng) -> list[Gram]:
    wide, narrow = rng.standard_normal((N, 12)).astype(np.float32), rng.standard_normal((N, 2)).astype(np.float32)
    return [
        Gram("conv/1", (3, 2, 2), 0, (wide @ wide.T).astype(float), wide.sum(1, dtype=float)),
        Gram("fc", (2,), 1, (narrow @ narrow.T).astype(float), narrow.sum(1, dtype=float), narrow),
        Gram("fc:2", (2,), 2, None, narrow.sum(1, dtype=float), narrow[::-1]),
    ]


@pytest.fixture
def statistics(rng) -> list[ChannelStatistics]:
    def make(layer: str, n: int) -> ChannelStatistics:
        top = np.argsort(rng.random((N, n)), axis=0)[:4]
        return ChannelStatistics(layer, N, *rng.standard_normal((4, n)), rng.standard_normal((4, n)), top)

    return [make("conv/1", 3), make("fc", 2), make("fc:2", 2)]


def make_stimuli(rows) -> StimulusSet:
    ids = tuple(f"s{i}.png" for i in range(len(rows)))
    return StimulusSet(ids, tuple(map(Path, ids)), tuple(DIGESTS[row] for row in rows))


def assert_same(found: Gram, expected: Gram) -> None:
    assert (found.layer, found.shape, found.depth) == (expected.layer, expected.shape, expected.depth)
    for letter in ("K", "row_sums", "X"):
        ours, theirs = getattr(found, letter), getattr(expected, letter)
        assert (ours is None) == (theirs is None)
        if theirs is not None:
            assert ours.dtype == theirs.dtype
            np.testing.assert_array_equal(ours, theirs)


def list_names(folder: Path) -> list[str]:
    return sorted(path.name.partition(".")[0] for path in folder.iterdir())


def test_grams_come_back(tmp_path, grams):
    assert find_grams(tmp_path, IDENTITY, DIGESTS) is None
    written = write_grams(tmp_path, IDENTITY, DIGESTS, ABOUT, iter(grams))
    found = find_grams(tmp_path, IDENTITY, DIGESTS)
    stimuli = make_stimuli(range(N))
    for entry in (written, found):
        assert entry.path.parent == tmp_path / "ab" / IDENTITY
        activations = entry.select(stimuli)
        assert (activations.network, activations.stimuli) == ("alexnet", stimuli.ids)
        assert activations.names == ("conv/1", "fc", "fc:2")
        assert activations.provenance == {"Name": "alexnet:IMAGENET1K_V1", "Crop": [224, 224], "Mean": 0.5}
        for ours, theirs in zip(activations.layers, grams, strict=True):
            assert_same(ours, theirs)
        assert entry.statistics is None
    assert find_grams(tmp_path, "ab" + "1" * 62, DIGESTS) is None
    names = ["0000-K", "0001-K", "0001-X", "0002-X", "about", "digests", "row_sums"]
    assert list_names(found.path) == names
    assert list_names(found.path.parent) == [found.path.name]


@pytest.mark.parametrize("rows", [range(N)[::-1], [4, 1], [2], [5, 0, 5, 5, 1, 0], [0, 1, 2, 3, 4, 5, 5]])
def test_stimuli_are_found_by_their_content(tmp_path, grams, rows):
    write_grams(tmp_path, IDENTITY, DIGESTS, ABOUT, grams)
    stimuli = make_stimuli(rows)
    entry = find_grams(tmp_path, IDENTITY, stimuli.distinct()[0].digests)
    activations = entry.select(stimuli)
    assert activations.stimuli == stimuli.ids
    for ours, theirs in zip(activations.layers, grams, strict=True):
        assert_same(ours, theirs.take(np.array(rows)))
        assert not isinstance(ours.K, np.memmap)


def test_features_are_mapped(tmp_path, grams):
    entry = write_grams(tmp_path, IDENTITY, DIGESTS, ABOUT, grams)
    X = entry.select(make_stimuli(range(N))).layers[ONLY_X].X
    assert isinstance(X, MappedRows)
    assert not X.flags.writeable


def test_the_exact_entry_comes_first_then_the_smallest(tmp_path, grams):
    def write(rows) -> Path:
        some = [gram.take(np.array(rows)) for gram in grams]
        return write_grams(tmp_path, IDENTITY, [DIGESTS[row] for row in rows], ABOUT, some).path

    everything, five, pair, other = write(range(N)), write([4, 3, 2, 1, 0]), write([0, 1]), write([4, 5])

    def find(*rows) -> Path | None:
        entry = find_grams(tmp_path, IDENTITY, [DIGESTS[row] for row in rows])
        return entry and entry.path

    assert find(1, 0) == find(0) == pair
    assert find(0, 1, 2, 3, 4) == find(2, 3) == five
    assert find(5) == other
    assert find(0, 5) == find(*range(N)) == everything
    assert find_grams(tmp_path, IDENTITY, [*DIGESTS[:2], "f" * 64]) is None


def test_many_entries_are_searched_quickly(tmp_path, grams, monkeypatch):
    entry = write_grams(tmp_path, IDENTITY, DIGESTS, ABOUT, grams)
    for i in range(200):
        other = entry.path.with_name(f"{i:064d}")
        other.mkdir()
        (other / "digests.txt").write_text("".join(f"{digest}\n" for digest in DIGESTS[: 1 + i % 5]))
    read = []
    real = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda path: read.append(path) or real(path))
    assert find_grams(tmp_path, IDENTITY, DIGESTS[:5][::-1] + DIGESTS[5:]).path == entry.path
    assert len(read) == 1  # it has the name
    read.clear()
    assert find_grams(tmp_path, IDENTITY, [*DIGESTS[1:5], "f" * 64]) is None
    assert len(read) == 41  # the others are too short


def test_unknown_stimuli_are_told(tmp_path, grams):
    entry = write_grams(tmp_path, IDENTITY, DIGESTS[:2], ABOUT, [gram.take(np.arange(2)) for gram in grams])
    with pytest.raises(BadDataError, match=r"2 stimuli are not in .*: s1\.png, s2\.png$"):
        entry.select(make_stimuli([1, 2, 5]))


def test_statistics_follow_the_order_of_the_stimuli(tmp_path, grams, statistics):
    write_grams(tmp_path, IDENTITY, DIGESTS, ABOUT, grams, statistics)
    order = np.array([3, 0, 5, 1, 2, 4])
    entry = find_grams(tmp_path, IDENTITY, [DIGESTS[row] for row in order])
    for ours, theirs in zip(entry.statistics, statistics, strict=True):
        assert (ours.layer, ours.n_stimuli) == (theirs.layer, N)
        for name in ("mean", "sd", "maximum", "zeros", "top_values"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
        np.testing.assert_array_equal(order[ours.top_stimuli], theirs.top_stimuli)
    assert find_grams(tmp_path, IDENTITY, DIGESTS[:3]).statistics is None  # they are of other stimuli


def test_statistics_can_come_later(tmp_path, grams, statistics):
    first = write_grams(tmp_path, IDENTITY, DIGESTS, ABOUT, grams)
    activations = first.select(make_stimuli(range(N)))
    order = np.arange(N)[::-1]
    turned = [dataclasses.replace(layer, top_stimuli=N - 1 - layer.top_stimuli) for layer in statistics]
    entry = write_grams(tmp_path, IDENTITY, [DIGESTS[i] for i in order], ABOUT, iter(()), turned)  # not needed
    assert entry.path == first.path
    for found, expected in ((entry, turned), (find_grams(tmp_path, IDENTITY, DIGESTS), statistics)):
        for ours, theirs in zip(found.statistics, expected, strict=True):
            np.testing.assert_array_equal(ours.top_stimuli, theirs.top_stimuli)
            np.testing.assert_array_equal(ours.mean, theirs.mean)
        assert_same(found.select(make_stimuli(range(N))).layers[WIDE], grams[WIDE])
    assert_same(activations.layers[NARROW], grams[NARROW])  # the entry found before still serves
    fewer = [dataclasses.replace(layer, top_stimuli=layer.top_stimuli[:1]) for layer in statistics]
    write_grams(tmp_path, IDENTITY, DIGESTS, ABOUT, iter(()), fewer)
    assert len(find_grams(tmp_path, IDENTITY, DIGESTS).statistics[0].top_stimuli) == 1


def test_one_gram_is_in_memory_at_a_time(tmp_path):
    alive: list[weakref.ref] = []

    def make():
        for i in range(5):
            gc.collect()
            assert sum(ref() is not None for ref in alive) == 0
            K = np.eye(N)
            alive.append(weakref.ref(K))
            gram = Gram(f"l{i}", (9,), i, K, np.ones(N))
            del K
            yield gram
            del gram

    write_grams(tmp_path, IDENTITY, DIGESTS, ABOUT, make())
    layers = find_grams(tmp_path, IDENTITY, DIGESTS).select(make_stimuli(range(N))).layers
    assert [gram.layer for gram in layers] == [f"l{i}" for i in range(5)]


def test_large_arrays_are_written_in_pieces(tmp_path, rng, monkeypatch):
    monkeypatch.setattr(grams_module, "_PIECE", 1000)
    X = rng.standard_normal((N, 300)).astype(np.float32)
    K = np.asfortranarray(rng.standard_normal((N, N)))
    entry = write_grams(tmp_path, IDENTITY, DIGESTS, ABOUT, [Gram("a", (300,), 0, K, X.sum(1, dtype=float), X)])
    (found,) = find_grams(tmp_path, IDENTITY, DIGESTS).select(make_stimuli(range(N))).layers
    assert_same(found, Gram("a", (300,), 0, K, X.sum(1, dtype=float), X))
    assert np.load(next(entry.path.glob("0000-X*"))).shape == (N, 300)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)


def remove(path: Path) -> None:
    path.unlink()


def replace_by_pickle(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)


@pytest.mark.parametrize("damage", [cut, empty, flip, remove, replace_by_pickle])
@pytest.mark.parametrize("name", ["0000-K*", "0001-X*", "row_sums*", "statistics*", "digests.txt", "about.json"])
def test_damaged_entries_are_computed_again(tmp_path, grams, statistics, caplog, damage, name):
    entry = write_grams(tmp_path, IDENTITY, DIGESTS, ABOUT, grams, statistics)
    (file,) = entry.path.glob(name)
    damage(file)
    with caplog.at_level(logging.WARNING):
        assert find_grams(tmp_path, IDENTITY, DIGESTS) is None
    (record,) = caplog.records
    assert "is damaged" in record.getMessage()
    assert "\n" not in record.getMessage()
    write_grams(tmp_path, IDENTITY, DIGESTS, ABOUT, grams, statistics)
    caplog.clear()
    again = find_grams(tmp_path, IDENTITY, DIGESTS)
    assert_same(again.select(make_stimuli(range(N))).layers[WIDE], grams[WIDE])
    assert again.statistics is not None
    assert not caplog.records
    assert list_names(entry.path.parent) == [entry.path.name]
    assert file.exists() == (name in ("digests.txt", "about.json"))  # nothing is left of the damaged one


@pytest.mark.parametrize("change", [{"version": 0}, {"identity": "cd" * 32}, {"network": "vgg"}, {"layers": []}])
def test_what_an_entry_says_of_itself_is_checked(tmp_path, grams, caplog, change):
    entry = write_grams(tmp_path, IDENTITY, DIGESTS, ABOUT, grams)
    path = entry.path / "about.json"
    content = json.loads(path.read_text())
    content["about"] |= change
    path.write_text(json.dumps(content))
    assert find_grams(tmp_path, IDENTITY, DIGESTS) is None
    assert "is damaged" in caplog.text


@pytest.mark.parametrize("content", ["[]", "3", '{"about": 1, "sha256": ""}', '{"about": {}}', "\x00", "null"])
def test_nonsense_is_no_entry(tmp_path, grams, caplog, content):
    entry = write_grams(tmp_path, IDENTITY, DIGESTS, ABOUT, grams)
    (entry.path / "about.json").write_text(content)
    assert find_grams(tmp_path, IDENTITY, DIGESTS) is None
    assert "is damaged" in caplog.text


def test_a_damaged_larger_entry_is_passed_over(tmp_path, grams, caplog):
    pair = write_grams(tmp_path, IDENTITY, DIGESTS[:2], ABOUT, [gram.take(np.arange(2)) for gram in grams])
    everything = write_grams(tmp_path, IDENTITY, DIGESTS, ABOUT, grams)
    flip(next(pair.path.glob("0000-K*")))
    assert find_grams(tmp_path, IDENTITY, DIGESTS[:2]).path == everything.path
    assert "is damaged" in caplog.text


def test_an_entry_that_is_replaced_while_it_is_read_never_gives_other_rows(tmp_path, grams):
    reading = write_grams(tmp_path, IDENTITY, DIGESTS, ABOUT, grams).select(make_stimuli(range(N)))
    flip(next(tmp_path.rglob("0001-K*")))
    order = np.arange(N)[::-1]
    write_grams(tmp_path, IDENTITY, [DIGESTS[i] for i in order], ABOUT, [gram.take(order) for gram in grams])
    with pytest.raises(InputOutputError, match=r"0000-K\..* has gone or changed while it was needed .* run again$"):
        _ = reading.layers[WIDE]


def test_many_writers_and_readers(tmp_path, grams, statistics, caplog):
    def write_and_read(i: int) -> bool:
        order = np.roll(np.arange(N), i)
        digests = [DIGESTS[row] for row in order]
        entry = write_grams(tmp_path, IDENTITY, digests, ABOUT, (gram.take(order) for gram in grams), statistics)
        for found in (entry, find_grams(tmp_path, IDENTITY, digests)):
            for ours, theirs in zip(found.select(make_stimuli(range(N))).layers, grams, strict=True):
                assert_same(ours, theirs)
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(write_and_read, range(40)))
    assert not caplog.text
    (entry,) = (tmp_path / "ab" / IDENTITY).iterdir()
    assert find_grams(tmp_path, IDENTITY, DIGESTS).path == entry


def test_writers_of_a_damaged_entry_do_not_disturb_each_other(tmp_path, grams, caplog):
    for round_ in range(5):
        write_grams(tmp_path, IDENTITY, DIGESTS, ABOUT, grams)
        flip(next(tmp_path.rglob("0000-K*")))
        with ThreadPoolExecutor(4) as pool:
            entries = list(pool.map(lambda _: write_grams(tmp_path, IDENTITY, DIGESTS, ABOUT, grams), range(4)))
        assert len({entry.path for entry in entries}) == 1
        assert find_grams(tmp_path, IDENTITY, DIGESTS) is not None, round_
        assert len(list((tmp_path / "ab" / IDENTITY).iterdir())) == 1


WRITE = """
import sys, time
import numpy as np
from pathlib import Path
from dnnbrain_app.derivatives.grams import write_grams
from dnnbrain_app.records import Gram
def make():
    yield Gram("a", (9,), 0, np.eye(2), np.ones(2))
    print("writing", flush=True)
    time.sleep(60)
write_grams(Path(sys.argv[1]), sys.argv[2], ["1" * 64, "2" * 64], {"network": "x", "provenance": {}}, make())
"""


@pytest.fixture
def writer(tmp_path):
    code = [sys.executable, "-c", WRITE, str(tmp_path), IDENTITY]
    with subprocess.Popen(code, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2], text=True) as process:
        assert process.stdout.readline() == "writing\n"
        yield process
        process.kill()


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_leftovers_of_killed_writers_go(tmp_path, grams, writer, monkeypatch):
    folder = tmp_path / "ab" / IDENTITY
    (part,) = folder.glob(f"{PART_PREFIX}*")
    assert find_grams(tmp_path, IDENTITY, ["1" * 64]) is None  # half an entry is none
    age(part, 3 * 86400)

    def write_another(i: int) -> None:
        write_grams(tmp_path, IDENTITY, DIGESTS[i:], ABOUT, [gram.take(np.arange(i, N)) for gram in grams])

    write_another(0)
    assert part.exists()  # it is being written, however slowly
    writer.kill()
    writer.wait()
    age(part, 10)
    write_another(1)
    assert part.exists()  # perhaps its writer has not come to the lock yet
    age(part, 100)
    monkeypatch.setattr(grams_module, "try_lock", lambda _: None)
    write_another(2)
    assert part.exists()  # without locks nobody knows
    monkeypatch.undo()
    write_another(3)
    assert not part.exists()
    assert len(list(folder.iterdir())) == 4


def test_a_failing_maker_leaves_nothing(tmp_path, grams):
    def make():
        yield grams[0]
        raise KeyError

    with pytest.raises(KeyError):
        write_grams(tmp_path, IDENTITY, DIGESTS, ABOUT, make())
    assert not list((tmp_path / "ab" / IDENTITY).iterdir())


@pytest.mark.parametrize(("number", "error"), [(errno.ENOSPC, CannotWriteError), (errno.EIO, InputOutputError)])
@pytest.mark.parametrize("after", range(7))
def test_failures_leave_nothing(tmp_path, grams, statistics, monkeypatch, number, error, after):
    left, real = iter(range(after)), os.fsync

    def fsync(file: int) -> None:
        if next(left, None) is None:
            raise OSError(number, os.strerror(number))
        real(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(error) as caught:
            write_grams(tmp_path, IDENTITY, DIGESTS, ABOUT, grams, statistics)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "ab" / IDENTITY).iterdir())


def test_a_full_disk(small_disk, rng):
    K = rng.standard_normal((300, 300))  # 720 kB
    digests = [hashlib.sha256(bytes([i // 256, i % 256])).hexdigest() for i in range(300)]
    layers = [Gram(name, (500,), i, K, K.sum(1)) for i, name in enumerate("ab")]
    with pytest.raises(CannotWriteError, match="No space left"):
        write_grams(small_disk, IDENTITY, digests, ABOUT, layers)
    assert not list((small_disk / "ab" / IDENTITY).iterdir())
    assert find_grams(small_disk, IDENTITY, digests) is None
    write_grams(small_disk, IDENTITY, digests, ABOUT, layers[:1])
    assert find_grams(small_disk, IDENTITY, digests) is not None


def test_a_folder_that_cannot_be_made(tmp_path, grams):
    (tmp_path / "file").touch()
    with pytest.raises(CannotWriteError, match="file"):
        write_grams(tmp_path / "file", IDENTITY, DIGESTS, ABOUT, grams)
    assert find_grams(tmp_path / "file", IDENTITY, DIGESTS) is None


def test_a_folder_that_may_not_be_looked_into(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "exists", refuse)
    assert find_grams(tmp_path, IDENTITY, DIGESTS) is None
