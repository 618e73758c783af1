from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from dnnbrain_app.derivatives import features
from dnnbrain_app.derivatives.features import FeatureStore, MappedRows
from dnnbrain_app.derivatives.shards import Plan
from dnnbrain_app.errors import CannotWriteError, InputOutputError

ROOT = Path(__file__).parents[2]
SHAPES = {"conv": (26, 20, 20), "a/b:2": (3,), "fc": (4096,)}  # blocks of 4096: two and a half, less than one, just one
N = 11
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def values(rng):
    return {name: rng.standard_normal((N, np.prod(shape))).astype(np.float32) for name, shape in SHAPES.items()}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "work" / "key"


def fill(store: FeatureStore, values, n_shards: int | None = None, batch: int = 2) -> None:
    for rows in store.pending()[:n_shards]:
        for start in range(rows.start, rows.stop, batch):
            for name, X in values.items():
                store.write(name, start, X[start : min(start + batch, rows.stop)])
        store.commit(rows, {"fc.max": values["fc"][rows.start : rows.stop].max(0), "n": np.array(len(rows))})


def list_files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize(
    ("memory", "shard", "on_disk"), [(10**6, 512, False), (10**6, 4, True), (0, 512, True), (0, 4, True), (0, 1, True)]
)
def test_features_come_back(folder, values, memory, shard, on_disk):
    with FeatureStore(folder, memory, shard=shard) as store:
        store.open(SHAPES, N)
        assert [len(rows) for rows in store.pending()] == [min(shard, N - i) for i in range(0, N, shard)]
        fill(store, values)
        assert not store.pending()
        assert folder.exists() == on_disk
        assert store.n_bytes == sum(X.nbytes for X in values.values())
        assert (store.layers, store.shape("conv"), store.n_stimuli) == (tuple(SHAPES), (26, 20, 20), N)
        for name, X in values.items():
            np.testing.assert_array_equal(store.read(name), X)
            for width in (1000, 4096, 5000, 8192, 20_000):
                blocks = list(store.blocks(name, width))
                assert [block.shape[1] for block in blocks[:-1]] == [width] * (len(blocks) - 1)
                np.testing.assert_array_equal(np.hstack(blocks), X)
                assert blocks[0].dtype == np.float32
            for rows in ([], [3], [9, 10, 0, 1, 2, 3, 4, 5, 5, 1], np.arange(N)[::-1]):
                np.testing.assert_array_equal(store.take(name, rows), X[np.array(rows, dtype=int)])
        extras = store.extras()
        assert sum(int(extra["n"]) for extra in extras) == N
        np.testing.assert_array_equal(np.max([extra["fc.max"] for extra in extras], axis=0), values["fc"].max(0))
        store.remove()
        assert not folder.exists()


def test_rows_of_a_shard_come_in_any_order_and_layout(folder, values):
    with FeatureStore(folder, 0, shard=6) as store:
        store.open(SHAPES, N)
        for rows in reversed(store.pending()):
            for name, X in values.items():
                for row in reversed(rows):
                    store.write(name, row, np.asfortranarray(X[row : row + 1].astype(np.float64)))
            store.commit(rows, {})
        for name, X in values.items():
            np.testing.assert_array_equal(store.read(name), X)


def test_shards_can_be_written_at_the_same_time(folder, values):
    with FeatureStore(folder, 0, shard=4) as store:
        store.open(SHAPES, N)
        shards = store.pending()
        for name, X in values.items():
            for row in (10, 0, 5, 4, 9, 1, 6, 2, 8, 3, 7):
                store.write(name, row, X[row : row + 1])
        store.commit(shards[1], {})
        assert store.pending() == [range(4), range(8, 11)]
        assert (folder / "shard-0000.part").exists()
        store.commit(shards[2], {})
    with FeatureStore(folder, 0, shard=4) as store:
        store.open(SHAPES, N)
        assert store.pending() == [range(4)]
        assert not (folder / "shard-0000.part").exists()
        for name, X in values.items():
            np.testing.assert_array_equal(store.take(name, range(4, 11)), X[4:])


def test_the_next_store_goes_on(folder, values):
    with FeatureStore(folder, 0, shard=4) as store:
        store.open(SHAPES, N)
        fill(store, values, n_shards=2)
        store.write("fc", 8, values["fc"][8:9])  # is lost
    with FeatureStore(folder, 0, shard=4) as store:
        assert list_files(folder)[0] == "plan.json"
        store.open(dict(SHAPES), N)
        assert store.pending() == [range(8, 11)]
        fill(store, values)
    with FeatureStore(folder, 0, shard=4) as store:
        store.open(SHAPES, N)
        assert not store.pending()
        for name, X in values.items():
            np.testing.assert_array_equal(store.read(name), X)
        assert [int(extra["n"]) for extra in store.extras()] == [4, 4, 3]


@pytest.mark.parametrize(
    ("shapes", "n", "shard"),
    [
        (SHAPES | {"fc": (4095,)}, N, 4),
        (SHAPES | {"conv": (20, 26, 20)}, N, 4),  # as many bytes
        (dict(reversed(SHAPES.items())), N, 4),
        (SHAPES, N - 1, 4),
        (SHAPES, N, 3),
    ],
)
def test_shards_of_another_plan_do_not_count(folder, values, shapes, n, shard):
    with FeatureStore(folder, 0, shard=4) as store:
        store.open(SHAPES, N)
        fill(store, values)
    with FeatureStore(folder, 0, shard=shard) as store:
        store.open(shapes, n)
        assert sum(map(len, store.pending())) == n
        assert list_files(folder) == ["plan.json"]


@pytest.mark.parametrize("damage", ["cut", "no values", "no extras", "no plan", "plan"])
def test_damaged_shards_do_not_count(folder, values, damage):
    with FeatureStore(folder, 0, shard=4) as store:
        store.open(SHAPES, N)
        fill(store, values)
    shard = folder / "shard-0001"
    if damage == "cut":
        os.truncate(shard / "features.f32", 1000)
    elif damage == "no values":
        (shard / "features.f32").unlink()
    elif damage == "no extras":
        (shard / "extras.npy").unlink()
    elif damage == "no plan":
        (folder / "plan.json").unlink()
    else:
        (folder / "plan.json").write_bytes(b"\x00" * 100)
    with FeatureStore(folder, 0, shard=4) as store:
        store.open(SHAPES, N)
        assert store.pending() == ([range(4), range(4, 8), range(8, 11)] if "plan" in damage else [range(4, 8)])
        fill(store, values)
        np.testing.assert_array_equal(store.read("conv"), values["conv"])


def test_a_run_without_a_whole_shard_leaves_nothing(folder, values):
    def fail() -> None:
        with FeatureStore(folder, 0) as store:
            store.open(SHAPES, N)
            store.write("fc", 0, values["fc"])
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not folder.exists()


def test_what_is_not_ours_stays(folder, values):
    folder.mkdir(parents=True)
    (folder / "thesis.tex").touch()
    with FeatureStore(folder, 0) as store:
        store.open(SHAPES, N)
        fill(store, values)
        store.remove()
    assert list_files(folder) == ["thesis.tex"]


def test_memory_that_suffices_now_also_removes_the_shards_of_before(folder, values):
    for memory in (0, 10**6):
        with FeatureStore(folder, memory) as store:
            store.open(SHAPES, N)
            assert store.pending() == [range(N)]
            fill(store, values, n_shards=1 - bool(memory))
            if memory:
                fill(store, values)
                store.remove()
    assert not folder.exists()


def test_rows_that_were_never_written_are_noticed(folder, values):
    for memory in (0, 10**6):
        with FeatureStore(folder, memory) as store:
            store.open(SHAPES, N)
            store.write("conv", 0, values["conv"])
            store.write("a/b:2", 0, values["a/b:2"])
            store.write("fc", 1, values["fc"][1:])
            with pytest.raises(AssertionError, match="fc"):
                store.commit(range(N), {})


def test_layers_larger_than_the_memory_are_mapped(folder, values, monkeypatch):
    monkeypatch.setattr(features, "_PIECE", 100_000)
    with FeatureStore(folder, values["conv"].nbytes - 1, shard=4) as store:
        store.open(SHAPES, N)
        fill(store, values)
        X = store.read("conv")
        assert isinstance(X, MappedRows)
        assert not X.flags.writeable
        assert not isinstance(store.read("fc"), np.memmap)
        store.remove()
    assert not folder.exists()
    np.testing.assert_array_equal(X, values["conv"])


def test_mapped_rows_are_selected_like_others(tmp_path, rng):
    X = rng.standard_normal((20, 300)).astype(np.float32)
    X.tofile(tmp_path / "x")
    mapped = np.memmap(tmp_path / "x", np.float32, "r", shape=X.shape).view(MappedRows)
    odd = np.arange(20) % 2 == 1
    copies = [[3, 1, 1], np.array([], int), odd, np.ix_([1, 2], [5, 3]), (odd, 4)]
    for index in [*copies, slice(3, 9), (slice(None), slice(2, 5)), 4, (4, 5), Ellipsis, slice(0)]:
        np.testing.assert_array_equal(mapped[index], X[index])
    assert {type(mapped[index]) for index in copies} == {np.ndarray}
    part = mapped[5:15]
    np.testing.assert_array_equal(part[[2, 0]], X[[7, 5]])
    np.testing.assert_array_equal((part * 2)[[2, 0]], 2 * X[[7, 5]])
    np.testing.assert_allclose(mapped @ X.T, X @ X.T, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(mapped.sum(axis=0), X.sum(axis=0), rtol=1e-4, atol=1e-4)


RESIDENT = """
import resource, sys
from pathlib import Path
import numpy as np
from dnnbrain_app.derivatives import features
features._PIECE = 2**22
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform == "linux" else 1024**2)
with features.FeatureStore(Path(sys.argv[1]), 0) as store:
    store.open({"fc": (8192,)}, 4096)  # 128 MB
    for rows in store.pending():
        for start in range(rows.start, rows.stop, 64):
            store.write("fc", start, np.full((64, 8192), start, np.float32))
        store.commit(rows, {})
    for block in store.blocks("fc", 256):
        before = peak()
    X = store.read("fc")
    for start in range(0, 4096, 64):
        assert (X[start : start + 64] == start).all()
    for start in range(0, 4096, 64):
        assert X[np.arange(start, start + 64)].sum() == 64 * 8192 * start
    print(peak() - before)
    store.remove()
"""


def test_mapped_rows_do_not_stay_in_memory(tmp_path):
    done = subprocess.run([sys.executable, "-c", RESIDENT, tmp_path], cwd=ROOT, check=True, capture_output=True)
    assert int(done.stdout) < 40  # MB; a plain map would be all of it


def test_blocks_of_very_many_stimuli_fit_the_memory():
    widths = [Plan({}, n, 512).width for n in (1, 16_384, 16_385, 73_000, 10**7)]
    assert widths == [4096, 4096, 2048, 512, 64]


def test_a_layer_too_big_for_the_disk(folder):
    shapes = {"fc": (4096,), "conv1": (64, 10**4, 10**4)}
    message = (
        r"need 25,600,016\.4 GB .*/key has .* GB; the largest layer, conv1, takes 25,600,000\.0 GB. "
        r"Choose fewer layers, --pool, another --work-dir$"
    )
    with FeatureStore(folder, 0) as store, pytest.raises(CannotWriteError, match=message):
        store.open(shapes, 10**6)
    assert not folder.exists()
    with FeatureStore(folder, 0) as store, pytest.raises(CannotWriteError, match=r"or more --mem$"):
        store.open(shapes, 512)


def test_only_missing_shards_need_room(folder, values, monkeypatch):
    with FeatureStore(folder, 0, shard=4) as store:
        store.open(SHAPES, N)
        fill(store, values, n_shards=2)
        row_bytes = store.n_bytes // N
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1, 1, 3 * row_bytes))
    with FeatureStore(folder, 0, shard=4) as store:
        store.open(SHAPES, N)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1, 1, 3 * row_bytes - 1))
    with FeatureStore(folder, 0, shard=4) as store, pytest.raises(CannotWriteError, match="scratch"):
        store.open(SHAPES, N)
    assert len(list(folder.glob("shard-000?"))) == 2
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, 0))  # it is not known
    with FeatureStore(folder, 0, shard=4) as store:
        store.open(SHAPES, N)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with FeatureStore(tmp_path / "file" / "work", memory=0) as store, pytest.raises(CannotWriteError, match="work"):
        store.open(SHAPES, N)


def fail_later(monkeypatch, name: str, number: int, calls: int) -> None:
    real, left = getattr(os, name), iter(range(calls))

    def call(*args, **kwargs):
        if next(left, None) is None:
            raise OSError(number, os.strerror(number))
        return real(*args, **kwargs)

    monkeypatch.setattr(os, name, call)


@pytest.mark.parametrize(("number", "error"), [(errno.ENOSPC, CannotWriteError), (errno.EIO, InputOutputError)])
@pytest.mark.parametrize(("call", "after"), [("pwrite", 0), ("pwrite", 8), ("fsync", 3), ("fsync", 5), ("open", 7)])
def test_failures_commit_nothing(folder, values, monkeypatch, call, after, number, error):
    with monkeypatch.context() as patch:
        fail_later(patch, call, number, after)
        with pytest.raises(error, match="work") as caught, FeatureStore(folder, 0, shard=4) as store:  # noqa: PT012
            store.open(SHAPES, N)
            fill(store, values)
    assert "\n" not in str(caught.value)
    whole = len(list(folder.glob("shard-000?")))
    with FeatureStore(folder, 0, shard=4) as store:
        store.open(SHAPES, N)
        assert len(store.pending()) == 3 - whole
        fill(store, values)
        for name, X in values.items():
            np.testing.assert_array_equal(store.read(name), X)


def test_short_writes_go_on(folder, values, monkeypatch):
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, offset: real(file, data[: len(data) // 2 + 1], offset))
    with FeatureStore(folder, 0, shard=4) as store:
        store.open(SHAPES, N)
        fill(store, values)
        np.testing.assert_array_equal(store.read("conv"), values["conv"])


def test_a_full_disk(small_disk, rng):
    X = rng.standard_normal((8, 20_000)).astype(np.float32)  # 640 of 1024 kB
    folder = small_disk / "features"
    with FeatureStore(folder, 0, shard=4) as store:
        store.open({"fc": (20_000,)}, 8)
        store.write("fc", 0, X[:4])
        store.commit(range(4), {})
        (small_disk / "ballast").write_bytes(b"x" * 500_000)
        with pytest.raises(CannotWriteError, match=r"shard-0001\.part: No space left"):
            store.write("fc", 4, X[4:])
    assert list_files(folder) == ["plan.json", "shard-0000", "shard-0000/extras.npy", "shard-0000/features.f32"]
    with FeatureStore(folder, 0, shard=4) as store, pytest.raises(CannotWriteError, match="scratch space"):
        store.open({"fc": (20_000,)}, 8)
    (small_disk / "ballast").unlink()
    with FeatureStore(folder, 10**6, shard=4) as store:
        store.open({"fc": (20_000,)}, 8)
        assert store.pending() == [range(4, 8)]
        store.write("fc", 4, X[4:])
        store.commit(range(4, 8), {})
        np.testing.assert_array_equal(store.read("fc"), X)
    with FeatureStore(folder, 0, shard=4) as store:
        store.open({"fc": (20_000,)}, 8)
        with pytest.raises(CannotWriteError, match="No space left"):
            store.read("fc")  # would be a map of another 640 kB


def test_a_shard_that_goes_while_it_is_needed(folder, values):
    with FeatureStore(folder, 0, shard=4) as store:
        store.open(SHAPES, N)
        fill(store, values)
        os.truncate(folder / "shard-0001" / "features.f32", 1000)
        with pytest.raises(InputOutputError, match=r"shard-0001/features.f32 failed: the file is too short; run again"):
            list(store.blocks("conv", 4096))
        shutil.rmtree(folder / "shard-0001")
        with pytest.raises(InputOutputError, match="shard-0001"):
            store.read("fc")
        with pytest.raises(InputOutputError, match="shard-0001"):
            store.extras()


# One process that makes others and kills them, so that Python and numpy start only once.
KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import numpy as np
from dnnbrain_app.derivatives.features import FeatureStore

home, way = Path(sys.argv[1]), sys.argv[2]
SHAPES, N, SHARD = {"conv": (50, 10, 10), "fc": (30,)}, 40 if way == "at random" else 8, 4

def make(layer, start, stop):
    columns = np.arange(np.prod(SHAPES[layer]))
    return ((np.arange(start, stop)[:, None] * 7919 + columns * 104729 + len(layer)) % 65521).astype(np.float32)

def write(folder):
    with FeatureStore(folder, 0, shard=SHARD) as store:
        store.open(SHAPES, N)
        for rows in store.pending():
            for start in range(rows.start, rows.stop, 3):
                for layer in SHAPES:
                    store.write(layer, start, make(layer, start, min(start + 3, rows.stop)))
            store.commit(rows, {"rows": np.array(rows)})

def start(folder, prepare=None):
    pid = os.fork()
    if pid:
        return pid
    try:
        if prepare:
            prepare()
        write(folder)
    finally:
        os._exit(0)

def check(folder):
    \"\"\"Whole shards only, and right ones; returns how many.\"\"\"
    whole = [range(i, i + SHARD) for i in range(0, N, SHARD)]
    with FeatureStore(folder, 0, shard=SHARD) as store:
        store.open(SHAPES, N)
        pending = store.pending()
        assert all(rows in whole for rows in pending)
        there = [rows for rows in whole if rows not in pending]
        for rows in there:
            for layer in SHAPES:
                assert np.array_equal(store.take(layer, rows), make(layer, rows.start, rows.stop))
        assert sorted(path.name for path in folder.glob("shard-*")) == [f"shard-{r.start // SHARD:04d}" for r in there]
    return len(there)

def kill_at(event):
    \"\"\"Die before the n-th call that changes the disk.\"\"\"
    left = iter(range(event))
    def wrap(function):
        def call(*args, **kwargs):
            if next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)
        return call
    for name in ("pwrite", "fsync", "mkdir", "rename", "open", "close", "unlink", "rmdir"):
        setattr(os, name, wrap(getattr(os, name)))

rng, seen = random.Random(7), []
if way == "at random":
    began = time.perf_counter()
    write(home / "whole")
    duration = time.perf_counter() - began
    for trial in range(15):
        folder = home / str(trial // 3)  # some are killed again and again
        pid = start(folder)
        time.sleep(rng.random() * duration)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        seen.append(check(folder))
else:
    for event in range(400):
        folder = home / str(event)
        _, status = os.waitpid(start(folder, lambda: kill_at(event)), 0)
        seen.append(check(folder))
        if not os.WIFSIGNALED(status):
            break
    assert seen[-1] == N // SHARD, "400 events were not enough"
for folder in home.iterdir():
    write(folder)
    assert check(folder) == N // SHARD
print(*seen)
"""


@pytest.mark.parametrize("way", ["at random", "before every call"])
def test_killed_processes_leave_whole_shards_only(tmp_path, way):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, tmp_path, way], cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    seen = set(map(int, done.stdout.split()))
    assert len(seen) > 2, seen  # they were killed half-way
